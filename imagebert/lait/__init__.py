"""The LAIT builder: from web pages to weakly supervised pairs for stage 1 (paper, section 4).

pages      WARC -> candidates: the dominant pictures of English pages, each with sentences that may describe it
fetch      candidates -> pictures, in tars as img2dataset writes them
filter     pictures -> kept: large enough, natural, not unsafe, no near duplicates
score      kept -> scored: how likely each sentence belongs to its picture
pairs      scored -> pairs.parquet: the best sentence of each picture; what too many pictures share is dropped

A step is a function of one file, and its result is a file that says what it was made from (engine.py). Two steps look
at everything at once: which pictures are near duplicates, and which sentences too many pictures share; DuckDB does that
(tables.py) within a bound of memory.
"""
