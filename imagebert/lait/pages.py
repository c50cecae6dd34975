"""Step 1: the pages of a web archive to the dominant pictures on them, each with sentences (paper, section 4).

A task is one WARC file, its result a Parquet file with a row for each picture and sentence. Opt-outs are kept: a page
that asks robots not to take its pictures gives none.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyarrow import parquet

from imagebert.files import replacing
from imagebert.lait.document import Document, decode
from imagebert.lait.images import PageImage, images_of
from imagebert.lait.opt_out import header_opt_out, meta_opt_out
from imagebert.lait.ranker import Ranker
from imagebert.lait.recipe import AGENT, LaitRecipe
from imagebert.lait.sentences import Judge
from imagebert.lait.texts import candidates
from imagebert.lait.warc import Response, responses

_HTML = ("text/html", "application/xhtml")
_PROSE = 400  # characters that a page's language is told by
_ROWS = 20_000  # of a group in the file
OPTED_OUT = ".opted-out"  # suffix of the table of such pages

SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # of the picture: 16 hexadecimal digits of its address' SHA-256
        ("url", pa.string()),
        ("page", pa.string()),
        ("sentence", pa.string()),
        ("source", pa.string()),
        ("fit", pa.float32()),  # how likely the sentence is the picture's, by the page alone
        ("rank", pa.int32()),  # of the sentence among the picture's, from 0
        ("dominance", pa.float32()),  # how likely the picture is a dominant one
        ("pictures", pa.int32()),  # dominant ones of the page
        ("name_overlap", pa.float32()),  # of the file's name with the sentence
        ("title_overlap", pa.float32()),  # of the page's title with it
    ]
)


class PageSentence(NamedTuple):
    """A sentence that may describe a picture of a page: a row of the result."""

    key: str
    url: str
    page: str
    sentence: str
    source: str
    fit: float
    rank: int
    dominance: float
    pictures: int
    name_overlap: float
    title_overlap: float


def key_of(url: str) -> str:
    """The name of a picture by its address: 16 hexadecimal digits."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class PageReader:
    """Finds the pictures and sentences of pages, and counts what becomes of each page, picture and sentence."""

    def __init__(self, recipe: LaitRecipe, ranker: Ranker) -> None:
        self._recipe, self._ranker = recipe, ranker
        self._judge = Judge(recipe.sentences)
        self._now = datetime.now(UTC)  # what was available when it was archived may no longer be
        self.counts: Counter[str] = Counter()
        self.opted_out: set[str] = set()  # pages

    def read(self, page: Response) -> list[PageSentence]:
        """What one page gives."""
        recipe, counts = self._recipe.pages, self.counts
        counts["pages"] += 1
        counts["pages: cut"] += page.cut
        if header_opt_out(page.robots, AGENT, self._now):
            return self._opted_out(page.url)
        try:
            document = Document(page.url, decode(page.body, page.charset))
        except ValueError:
            counts["pages: address is none"] += 1
            return []
        counts["pages: too many tags"] += document.cut
        if meta_opt_out(document.named, AGENT, self._now):
            return self._opted_out(page.url)
        if not document.has_pictures():
            counts["pages: no picture"] += 1
            return []
        if self._judge.page_score(document.prose(_PROSE)) < recipe.language_score:
            counts["pages: another language"] += 1
            return []
        found = images_of(document, recipe.images)
        counts["pictures"] += len(found)
        chosen = self._dominant(found)
        counts["pages: used"] += bool(chosen)
        counts["pages: no dominant picture"] += not chosen
        return [row for image, dominance in chosen for row in self._rows(document, image, dominance, chosen)]

    def _opted_out(self, url: str) -> list[PageSentence]:
        self.counts["pages: opted out"] += 1
        self.opted_out.add(url)
        return []

    def _dominant(self, found: list[PageImage]) -> list[tuple[PageImage, float]]:
        chances = self._ranker.dominance(found).tolist()
        likely = sorted(range(len(found)), key=lambda i: (-chances[i], i))
        most = self._recipe.pages.pictures
        chosen = sorted(i for i in likely[:most] if chances[i] >= self._recipe.pages.dominance)
        self.counts["pictures: dominant"] += len(chosen)
        return [(found[i], chances[i]) for i in chosen]

    def _rows(
        self, document: Document, image: PageImage, dominance: float, chosen: list[tuple[PageImage, float]]
    ) -> Iterator[PageSentence]:
        others = [other for other, _ in chosen if other is not image]
        there = candidates(document, image, not others, others, self._recipe.pages.around)
        chances = self._ranker.fit(there).tolist()
        order = list[int]()
        for i in sorted(range(len(there)), key=lambda i: (-chances[i], i)):
            if len(order) == self._recipe.pages.sentences:
                self.counts["sentences: behind those kept"] += 1
            elif flaw := self._judge.flaw(there[i].sentence):
                self.counts[f"sentences: {flaw}"] += 1
            else:
                order.append(i)
        self.counts["pictures: no sentence"] += not order
        self.counts["sentences: kept"] += len(order)
        key = key_of(image.url)
        for rank, i in enumerate(order):
            sentence, source, _ = there[i]
            overlaps = there[i].overlap("name"), there[i].overlap("title")
            place = (key, image.url, document.url, sentence, source)
            yield PageSentence(*place, chances[i], rank, dominance, len(chosen), *overlaps)


def read_archive(archive: Path, out: Path, recipe: LaitRecipe, ranker: Ranker) -> Counter[str]:
    """Reads a WARC file's pages and writes `out`, a Parquet file as SCHEMA; what became of each is counted.

    Beside it, as OPTED_OUT, a table of the pages that say no: another archive may hold them from before.

    Raises:
        UsageError: there is no such file.
        OSError: the disk is full or fails.
    """
    reader = PageReader(recipe, ranker)
    rows: list[PageSentence] = []
    with replacing(out) as part, parquet.ParquetWriter(part, SCHEMA, compression="zstd") as writer:
        for page in responses(archive, _HTML, recipe.pages.page_bytes, reader.counts):
            rows += reader.read(page)
            if len(rows) >= _ROWS:
                writer.write_table(_table(rows))
                rows.clear()
        writer.write_table(_table(rows))
    with replacing(out.with_suffix(OPTED_OUT)) as part:
        parquet.write_table(pa.table({"page": pa.array(sorted(reader.opted_out), pa.string())}), part)
    return reader.counts


def _table(rows: list[PageSentence]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ([] for _ in SCHEMA)
    return pa.table(
        [pa.array(list(column), field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )
