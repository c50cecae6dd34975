"""Step 4: how likely each sentence belongs to its picture (paper, section 4, semantic scoring).

A weak model: a logistic regression of features of the text alone, of the picture alone, and of both, among these the
logit of an ImageBERT where one is given. It was trained on the made-up web (`python -m benchmarks.lait_scorer`), and
`imagebert lait train-scorer` trains another on sentences that a person has judged.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from imagebert.errors import UsageError
from imagebert.files import read_sealed, replacing, text_lines, write_bytes, write_sealed
from imagebert.lait.engine import Done, Engine, Task, check_result, read_step, run_step
from imagebert.lait.filter import KEPT_SCHEMA
from imagebert.lait.language import LANGUAGE, stop_words_of, words_of
from imagebert.lait.ranker import Logistic, fit_logistic

SHIPPED = Path(__file__).with_name("scorer.json")
SCORED_SCHEMA = KEPT_SCHEMA.append(pa.field("match", pa.float32())).append(pa.field("relevance", pa.float32()))
# Keys and sentences to logits; NaN where there is none.
Match = Callable[[Sequence[str], Sequence[str]], NDArray[np.float32]]

_SOURCES = ("alt", "title", "figcaption", "caption", "og", "page_title", "heading")
FEATURES = (
    # of the text alone
    *(f"from_{source}" for source in _SOURCES),
    "words",
    "is_whole",
    "stop_words",
    "unknown_words",
    # of the picture alone
    "dominance",
    "log_pictures",
    "natural",
    "log_side",
    # of both
    "fit",
    "fit_among",
    "is_first",
    "name_overlap",
    "title_overlap",
    "log_pages",
    "agreement",
)
MATCHED = (*FEATURES, "match", "match_among")
_WORD = re.compile(r"[^\W\d_]{2,}")
_LOGIT = 10.0  # what a model's logits are cut to
_FEWEST = 20  # judged sentences of each kind that a model can be trained on


class Scorer:
    """The relevance model, for rows with a logit of an ImageBERT and for rows without.

    Raises:
        UsageError: the file is damaged, or of other features.
    """

    def __init__(self, path: Path = SHIPPED) -> None:
        content = read_sealed(path)
        self.digest: str = content["digest"]
        self._alone = Logistic(content.get("alone", {}), FEATURES, str(path))
        matched = content.get("matched")
        self._matched = None if matched is None else Logistic(matched, MATCHED, str(path))
        self._path = path

    def relevance(self, rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        """How likely each row's sentence belongs to its picture; all rows of a picture are given together.

        Raises:
            UsageError: rows have logits, and this model was trained without any.
        """
        features = features_of(rows)
        found = self._alone.probabilities(features[:, : len(FEATURES)])
        has_match = ~np.isnan(features[:, MATCHED.index("match")])
        if has_match.any():
            if self._matched is None:
                raise UsageError(f"{self._path} was trained without a model's scores: train it on rows that have some")
            found[has_match] = self._matched.probabilities(features[has_match])
        return found


def features_of(rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """The features of each row as MATCHED, float64 [rows, features]."""
    table = np.zeros((len(rows), len(MATCHED)))
    words, stops = words_of(LANGUAGE), stop_words_of(LANGUAGE)
    start = 0
    while start < len(rows):
        end = start
        while end < len(rows) and rows[end]["key"] == rows[start]["key"]:
            end += 1
        table[start:end] = _of_picture(rows[start:end], words, stops)
        start = end
    return table


def _of_picture(rows: Sequence[Mapping[str, Any]], known: frozenset[str], stops: frozenset[str]) -> NDArray[np.float64]:
    """Features of one picture's sentences."""
    bags = [frozenset(_WORD.findall(row["sentence"].lower())) for row in rows]
    plain = [bag - stops for bag in bags]
    best_fit = max(row["fit"] for row in rows)
    matches = np.array([row.get("match", math.nan) for row in rows], np.float64)
    best_match = np.nanmax(matches) if not np.isnan(matches).all() else math.nan
    found = []
    for number, (row, bag) in enumerate(zip(rows, bags, strict=True)):
        others = frozenset[str]().union(*(plain[other] for other in range(len(rows)) if other != number))
        found.append(
            (
                *(row["source"] == source for source in _SOURCES),
                min(40, row["sentence"].count(" ") + 1) / 10,
                row["sentence"][-1:] in ".!",
                len(bag & stops) / max(1, len(bag)),
                len(bag - known) / max(1, len(bag)),
                row["dominance"],
                math.log(max(1, row["pictures"])),
                1.0 if math.isnan(row["natural"]) else row["natural"],
                math.log(max(1, min(row["width"], row["height"]))),
                row["fit"],
                row["fit"] - best_fit,
                row["rank"] == 0,
                row["name_overlap"],
                row["title_overlap"],
                math.log(max(1, row["pages"])),
                len(plain[number] & others) / max(1, len(plain[number])),
                min(_LOGIT, max(-_LOGIT, matches[number])) if not math.isnan(matches[number]) else math.nan,
                matches[number] - best_match,
            )
        )
    return np.array(found, np.float64)


# --------------------------------------------------------------------------------------------------------------- task


def score_pairs(kept: Path, out: Path, scorer: Path, engine: Engine, match: Match | None, match_digest: str) -> Done:
    """Gives every kept picture's sentences their relevance.

    Args:
        match: an ImageBERT's logits, which this process computes
        match_digest: of what they depend on

    Raises:
        UsageError: the step before is not whole, or the scorer's file is damaged.
        OSError: the disk is full or fails.
    """
    before = read_step(kept, "imagebert lait filter", "keep")
    notes = {name: read_sealed(kept / f"{name}.json")["digest"] for name in before.names}
    tasks = [Task(name, notes[name], (kept / f"{name}.parquet", scorer, match)) for name in before.names]
    if match is not None:  # it is not sent elsewhere
        engine = Engine(engine.workers)
    return run_step("score", out, score, tasks, [Scorer(scorer).digest, match_digest], engine)


def score(kept: Path, scorer: Path, match: Match | None, out: Path) -> Counter[str]:
    """Writes a tar's sentences with their relevance into OUT.parquet."""
    check_result(kept)
    table = parquet.read_table(kept)
    if match is not None:
        logits = match(table["key"].to_pylist(), table["sentence"].to_pylist())
    else:
        logits = np.full(len(table), np.nan, np.float32)
    table = table.append_column("match", pa.array(logits, pa.float32()))
    relevance = Scorer(scorer).relevance(table.to_pylist())
    table = table.append_column("relevance", pa.array(relevance.astype(np.float32))).cast(SCORED_SCHEMA)
    with replacing(out.with_name(f"{out.name}.parquet")) as part:
        parquet.write_table(table, part, compression="zstd")
    counts = Counter({"sentences": len(table)})
    if match is not None:
        counts["sentences: no regions or words"] = int(np.isnan(logits).sum())
    return counts


# ----------------------------------------------------------------------------------------------------------- training


def sample(scored: Path, count: int) -> Iterator[tuple[str, str, str, str]]:
    """Rows to be judged, spread evenly over relevance: key, url, sentence, "" for the label.

    Raises:
        UsageError: the step before is not whole.
    """
    step = read_step(scored, "imagebert lait score", "score")
    for path in step.files():
        check_result(path)
    table = pa.concat_tables(parquet.read_table(path, columns=_JUDGED) for path in step.files())
    order = sorted(range(len(table)), key=table["relevance"].to_numpy().tolist().__getitem__)
    taken = min(count, len(order))
    places = sorted(order[i * len(order) // taken] for i in range(taken))
    for row in table.take(pa.array(places, pa.int64())).to_pylist():
        yield row["key"], row["url"], row["sentence"], ""


def write_sample(scored: Path, out: Path, count: int) -> int:
    """Writes rows to be judged as a CSV; how many they are.

    Raises:
        UsageError: the step before is not whole, there is such a file, or the count is not positive.
        OSError: the disk is full or fails.
    """
    if count < 1:
        raise UsageError(f"{count} sentences cannot be judged: ask for one at least")
    if out.exists():
        raise UsageError(f"{out} exists, and may hold what somebody has judged: name another file")
    rows = list(sample(scored, count))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("key", "url", "sentence", "label"), *rows])
    write_bytes(out, text.getvalue().encode("utf-8", "replace"))
    return len(rows)


_JUDGED = ["key", "url", "sentence", "relevance"]


def train_scorer(labels: Path, scored: Path, out: Path) -> dict[str, int]:
    """Trains the relevance model on judged sentences of scored pictures; returns how many there are of each label.

    Args:
        labels: a CSV with the columns key, sentence and label, 1 where the sentence describes the picture and else 0

    Raises:
        UsageError: a row is wrong, a sentence is not among the scored ones, or there are too few.
    """
    judged = _read_labels(labels)
    rows, features, found = list[dict[str, Any]](), list[NDArray[np.float64]](), list[int]()
    for path in read_step(scored, "imagebert lait score", "score").files():
        check_result(path)
        rows = parquet.read_table(path).to_pylist()
        here = features_of(rows)
        for row, measured in zip(rows, here, strict=True):
            label = judged.pop((row["key"], row["sentence"]), None)
            if label is not None:
                features.append(measured)
                found.append(label)
    if judged:
        key, sentence = next(iter(judged))
        raise UsageError(f"{labels}: {sentence[:60]!r} of {key} is not in {scored}: judge sentences that were scored")
    counts = {"1": sum(found), "0": len(found) - sum(found)}
    if min(counts.values()) < _FEWEST:
        raise UsageError(f"{labels} has {counts['1']} ones and {counts['0']} zeros: judge {_FEWEST} of each at least")
    write_sealed(out, fit(np.array(features), np.array(found)))
    return counts


def _read_labels(path: Path) -> dict[tuple[str, str], int]:
    rows = csv.DictReader(_texts(path), strict=True)
    judged: dict[tuple[str, str], int] = {}
    try:
        if not {"key", "sentence", "label"} <= set(rows.fieldnames or ()):
            raise UsageError(f"{path} has no columns key, sentence and label: write a header line that names them")
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if None in row or None in row.values():
                raise UsageError(f"{where}: it has not as many columns as the header line: quote what has a comma")
            label, pair = row["label"].strip(), (row["key"], row["sentence"])
            if label not in ("0", "1", ""):
                raise UsageError(f"{where}: the label is {label!r}: give 1, 0, or nothing where it is not judged")
            if label and judged.setdefault(pair, int(label)) != int(label):
                raise UsageError(f"{where}: the sentence was judged otherwise before: judge it once")
    except csv.Error as error:
        line = rows.reader.line_num  # the other one is of the last row that was whole
        raise UsageError(f"{path}, line {line}: it is no line of a CSV ({error}): correct it") from None
    return judged


def _texts(path: Path) -> Iterator[str]:
    for line in text_lines(path):
        if line.error:
            raise UsageError(f"{path}, line {line.number}: {line.error}")
        yield line.text


def fit(features: NDArray[np.float64], labels: NDArray[np.int64], trust: float = 1.0) -> dict[str, Any]:
    """The content of a scorer's file, from rows of MATCHED; with a part for logits where enough rows have one.

    Args:
        trust: see `fit_logistic`
    """
    content = {"alone": fit_logistic(FEATURES, features[:, : len(FEATURES)], labels, trust)}
    has_match = ~np.isnan(features[:, MATCHED.index("match")])
    if min(int(labels[has_match].sum()), int((1 - labels[has_match]).sum())) >= _FEWEST:
        content["matched"] = fit_logistic(MATCHED, features[has_match], labels[has_match], trust)
    return content
