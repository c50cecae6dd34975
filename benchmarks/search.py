"""Finding the nearest of a million vectors: exactly, and by indices that look at some of them only.

    python -m benchmarks.search [--images 1000000] [--json FILE]

Vectors are of length 1 and lie in clusters, as those of pictures do: around 10,000 centres, more than IVF has lists,
with as much noise. Queries are drawn alike and asked one at a time. For each kind: seconds to build, bytes (of flat,
the vectors themselves), milliseconds of a query, and of the exact ten nearest how many percent are the index's first
ten, and how many are among its candidates, which ImageBERT then scores. What that costs is measured apart: MiniLM's
shape (6 layers of 384) with random weights on random regions of real lengths, a new query and images not yet seen.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.length_mixes import write_random_corpus
from benchmarks.report import publish
from imagebert.data.corpus import Corpus
from imagebert.feed.packer import Limits
from imagebert.files import file_digest
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval
from imagebert.retrieval.candidates import Index, Kind, nearest
from imagebert.retrieval.scoring import PairScorer
from imagebert.retrieval.search import CANDIDATES

CENTRES, NOISE, TOP = 10_000, 1.0, 10
# Looked at for a query: HNSW's candidates, IVF's lists.
SEARCHES: dict[Kind, tuple[int, ...]] = {"ivf": (16, 32, 64, 128), "hnsw": (200, 400, 800)}

Vectors = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=256)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--kinds", nargs="+", choices=list(SEARCHES), default=list(SEARCHES))
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    figures: dict[str, Any] = {
        **{name: getattr(parsed, name) for name in ("images", "dimensions", "queries")},
        "centres": CENTRES,
        "noise": NOISE,
        "candidates": CANDIDATES,
        "scoring": [scoring(count) for count in (50, CANDIDATES)],
        "searches": [],
    }
    vectors = clustered(parsed.images, parsed.dimensions, 1)
    queries = clustered(parsed.queries, parsed.dimensions, 2)
    exact = nearest(queries, vectors, TOP)
    found, times = asked(lambda query: nearest(query[None], vectors, CANDIDATES)[0], queries)
    flat = {"kind": "flat", "parameters": {}, "bytes": vectors.nbytes, "seconds_building": 0.0}
    figures["searches"].append({**flat, **recall(exact, found), **times})
    for kind in parsed.kinds:
        for row in measure(kind, vectors, queries, exact):
            figures["searches"].append(row)
        publish(figures, [], parsed.json)  # a million takes long: what is measured is kept
    show(figures)


def clustered(count: int, size: int, seed: int) -> Vectors:
    """Unit vectors [count, size] around the same centres for any seed."""
    centres = np.random.default_rng(0).standard_normal((CENTRES, size), np.float32)
    rng, vectors = np.random.default_rng(seed), np.empty((count, size), np.float32)
    for rows in np.array_split(vectors, max(1, count // 10_000)):
        rows[:] = NOISE * rng.standard_normal(rows.shape, np.float32)
        rows += centres[rng.integers(0, CENTRES, len(rows))]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return vectors


def measure(kind: Kind, vectors: Vectors, queries: Vectors, exact: NDArray[np.int64]) -> Iterable[dict[str, Any]]:
    begun = time.perf_counter()
    index = Index.build(kind, vectors)
    seconds = time.perf_counter() - begun
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "index")
        index.write(path)
        size, begun = path.stat().st_size, time.perf_counter()
        file_digest(path)
        index = Index.read(path)
        opening = time.perf_counter() - begun
    for value in SEARCHES[kind]:
        index.search_as(value)
        found, times = asked(lambda query: index(query, CANDIDATES), queries)
        yield {
            **index.described,
            "bytes": size,
            "seconds_building": seconds,
            "seconds_opening": opening,
            **recall(exact, found),
            **times,
        }


def asked(
    find: Callable[[Vectors], NDArray[np.int64]], queries: Vectors
) -> tuple[list[NDArray[np.int64]], dict[str, float]]:
    """What is found for each query, and the milliseconds of one."""
    for query in queries[:10]:
        find(query)
    found, taken = [], []
    for query in queries:
        begun = time.perf_counter()
        found.append(find(query))
        taken.append(1e3 * (time.perf_counter() - begun))
    return found, dict(zip(("ms_p50", "ms_p95"), np.percentile(taken, (50, 95)).tolist(), strict=True))


def recall(exact: NDArray[np.int64], found: list[NDArray[np.int64]]) -> dict[str, float]:
    """Percent of the exact ten nearest that are the first ten found, and that are found at all."""

    def among(count: int) -> float:
        return float(100 * np.mean([np.isin(ten, some[:count]).mean() for ten, some in zip(exact, found, strict=True)]))

    return {"recall_at_10": among(TOP), "recall_among_candidates": among(CANDIDATES)}


def scoring(count: int, repeats: int = 5) -> dict[str, float]:
    """Milliseconds until ImageBERT has scored so many candidates of a query."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus([write_random_corpus(Path(folder), "flickr8k", count, 1, 2048, 1600)])
        torch.manual_seed(0)
        sizes = {"vocab_size": len(corpus.tokenizer), "feature_size": 2048, "num_region_classes": 1600}
        model = ImageBertForImageTextRetrieval(ImageBertConfig.preset("small", **sizes))
        limits = Limits(max_regions=100, max_words=41, whole_image=True)
        scorer = PairScorer(model, corpus, corpus, limits, torch.device("cpu"))
        images, first, again = np.arange(count), [], []
        for repeat in range(repeats + 1):
            text = np.full(count, repeat)
            begun = time.perf_counter()
            scorer.score_anew(images, text)
            first.append(1e3 * (time.perf_counter() - begun))
            begun = time.perf_counter()
            scorer(images, text + repeats + 1)
            again.append(1e3 * (time.perf_counter() - begun))
    return {
        "pairs": count,
        "ms_p50": float(np.median(first[1:])),
        "ms_p50_of_images_seen_before": float(np.median(again[1:])),
    }


def show(figures: dict[str, Any]) -> None:
    table = Table(
        *("kind", "looks at", "building, s", "MiB", "p50, ms", "p95, ms", "recall@10", "among candidates"),
        title=f"{figures['images']:,} vectors of {figures['dimensions']}",
    )
    for row in figures["searches"]:
        looks = {"hnsw": "search_candidates", "ivf": "probes"}.get(row["kind"])
        table.add_row(
            *(row["kind"], str(row["parameters"][looks]) if looks else "all", f"{row['seconds_building']:.0f}"),
            *(f"{row['bytes'] / 2**20:,.0f}", f"{row['ms_p50']:.2f}", f"{row['ms_p95']:.2f}"),
            *(f"{row['recall_at_10']:.1f} %", f"{row['recall_among_candidates']:.1f} %"),
        )
    Console().print(table)
    for row in figures["scoring"]:
        print(
            f"ImageBERT scores {row['pairs']} pairs in {row['ms_p50']:.0f} ms, "
            f"{row['ms_p50_of_images_seen_before']:.0f} ms where the images were seen before"
        )


if __name__ == "__main__":
    main()
