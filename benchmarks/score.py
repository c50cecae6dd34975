"""Scoring every image with every caption, beside transformers' VisualBERT.

    python -m benchmarks.score [--json FILE]                  on a CPU: 4 layers of 256, Flickr8k's lengths, float32
    python -m benchmarks.score --model base --mix real full   on a GPU: bf16, and COCO 5K by extrapolation

All candidates score the same pairs of random regions and words, in the same precision, and take turns; figures are
medians over the turns.
    imagebert           as `imagebert evaluate` scores: a scorer that has seen nothing yet, so sides are encoded too
    imagebert, fused from the middle    the same where only the second half of the layers sees both sides of a pair
                        (model.fusion_layer), and a score has the product of vectors in it
    imagebert, packed   the plain forward on packed pairs: what one-sided work and [CLS] alone are worth is the rest
    visualbert          VisualBertModel with a linear score on its pooler; batches of pairs, each padded to its longest,
                        a caption with all images, then the next, as UNITER's and ViLBERT's evaluations go; inputs are
                        ready-made on the device, on a GPU for some batches only
    visualbert, by image    the same, an image with all captions, then the next: regions need no padding then
    visualbert, sorted      the same, all pairs sorted by length
VisualBERT's own score comes with logits over the vocabulary for every token; they are not computed here.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import VisualBertConfig, VisualBertModel

from benchmarks.length_mixes import write_random_corpus
from benchmarks.report import Line, publish
from benchmarks.step import MODELS, Model
from benchmarks.train import CPU_MODEL, padded
from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus
from imagebert.feed.arena import Arena
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import Samples
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval
from imagebert.retrieval.matrix import score_all, tiles
from imagebert.retrieval.scoring import PairScorer

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
LIMITS = Limits(max_regions=100, max_words=41, whole_image=True)
COCO_5K = 5000 * 25000
PACKED, FUSED = "imagebert, packed", "imagebert, fused from the middle"
Candidate = tuple[Callable[[], Any], int]  # scores so many pairs
BATCH = 64 if not GPU else 1024  # VisualBERT's; --batch tries others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*MODELS, "small"], default="small")
    parser.add_argument("--mix", nargs="+", default=["flickr8k"])
    parser.add_argument("--images", type=int, default=500 if GPU else 64)
    parser.add_argument("--captions", type=int, default=1000 if GPU else 64)
    parser.add_argument("--batch", type=int, default=BATCH, help="pairs of VisualBERT's batches (%(default)s)")
    parser.add_argument("--tokens", type=int, nargs="+", help="tokens that go through our layers together")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    settings: list[dict[str, Any]] = []
    lines: list[Line] = []
    for mix in parsed.mix:
        settings.append({})
        for figures in measure(mix, parsed):
            settings[-1] = figures
            publish({"settings": settings}, [], parsed.json)  # after each turn: a limit of time loses only the rest
        show(figures)
        by = figures["pairs_per_second"]
        best = max(rate for name, rate in by.items() if name.startswith("imagebert") and name not in (PACKED, FUSED))
        lines += [Line(f"{mix}: pairs/s over VisualBERT's", best / by["visualbert"], 2.5)]
        lines += [Line(f"{mix}: pairs/s fused from the middle over the paper's", by[FUSED] / best, 1.7)]
        if GPU:
            lines += [Line(f"{mix}: minutes of COCO 5K, extrapolated", COCO_5K / best / 60, 70, at_most=True)]
        lines += [
            Line(f"{mix}: largest difference from one pair at a time, fp32", figures["error"], 1e-5, at_most=True)
        ]
        publish({"settings": settings}, lines, parsed.json)


def measure(mix: str, parsed: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """After each turn the figures so far."""
    shape = MODELS.get(parsed.model, CPU_MODEL)
    dtype = torch.bfloat16 if GPU else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        source = write_random_corpus(
            Path(folder), mix, max(parsed.images, parsed.captions), 1, shape.features, shape.classes
        )
        corpus = Corpus([source])
        images, captions = np.arange(parsed.images), np.arange(parsed.captions)
        pairs = np.repeat(images, len(captions)), np.tile(captions, len(images))
        model = imagebert(shape, corpus)
        fused = imagebert(shape, corpus, fusion_layer=shape.layers // 2, dual_size=shape.hidden, residual_score=True)
        error = max(one_at_a_time(model, corpus), one_at_a_time(fused, corpus))
        model, fused = model.to(DEVICE, dtype), fused.to(DEVICE, dtype)
        candidates: dict[str, Candidate] = {
            **{
                "imagebert" + (f", {t} tokens" if parsed.tokens else ""): (
                    lambda t=t: score_all(PairScorer(model, corpus, corpus, LIMITS, DEVICE, t), images, captions),
                    len(pairs[0]),
                )
                for t in parsed.tokens or [None]
            },
            FUSED: (
                lambda: score_all(PairScorer(fused, corpus, corpus, LIMITS, DEVICE), images, captions),
                len(pairs[0]),
            ),
            PACKED: (packed(model, corpus, images, captions), len(pairs[0])),
            "visualbert": visualbert(shape, source, pairs, parsed.batch, dtype, "caption"),
            "visualbert, by image": visualbert(shape, source, pairs, parsed.batch, dtype, "image"),
            "visualbert, sorted": visualbert(shape, source, pairs, parsed.batch, dtype, "length"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        for turn in range(parsed.turns + 1):  # the first to warm up
            for name, (score, _) in candidates.items():
                begun = now()
                score()
                if turn:
                    seconds[name].append(now() - begun)
            if turn:
                yield {
                    "model": parsed.model,
                    "layers": shape.layers,
                    "hidden_size": shape.hidden,
                    "mix": mix,
                    "pairs": len(pairs[0]),
                    "batch": parsed.batch,
                    "precision": str(dtype),
                    "seconds": seconds,
                    "pairs_per_second": {n: candidates[n][1] / statistics.median(s) for n, s in seconds.items()},
                    "error": error,
                }


def show(figures: dict[str, Any]) -> None:
    title = f"{figures['model']}, {figures['mix']}, {figures['pairs']:,} pairs, {figures['precision']}"
    table, rates = Table("", "pairs/s", "of VisualBERT's", title=title), figures["pairs_per_second"]
    for name, rate in rates.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / rates['visualbert']:.2f}")
    Console().print(table)


def now() -> float:
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def imagebert(shape: Model, corpus: Corpus, **options: Any) -> ImageBertForImageTextRetrieval:
    torch.manual_seed(0)
    sizes = {"vocab_size": len(corpus.tokenizer), "feature_size": shape.features, "num_region_classes": shape.classes}
    config = ImageBertConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64,
        intermediate_size=4 * shape.hidden,
        **sizes,
        **options,
    )
    return ImageBertForImageTextRetrieval(config).eval()


@torch.inference_mode()
def one_at_a_time(model: ImageBertForImageTextRetrieval, corpus: Corpus) -> float:
    """The largest difference of a score from the plain forward of its pair alone, in float32."""
    images, captions = np.arange(4), np.arange(16)
    scores = score_all(PairScorer(model, corpus, corpus, LIMITS, torch.device("cpu")), images, captions)
    packer, one = Packer(corpus, LIMITS), np.ones(1, np.int64)
    expected = [
        [model(packer.pack(Samples(i * one, c * one, one, one), Arena())).result.item() for c in captions]
        for i in images
    ]
    return float(np.abs(scores - np.array(expected)).max())


def packed(
    model: ImageBertForImageTextRetrieval, corpus: Corpus, images: np.ndarray[Any, Any], captions: np.ndarray[Any, Any]
) -> Callable[[], None]:
    """The model's own forward, tile by tile: every pair is laid out, projected and embedded by itself."""
    packer = Packer(corpus, LIMITS)
    arena = Arena()

    @torch.inference_mode()
    def score() -> None:
        for rows, columns in tiles(packer.lengths.regions[images], packer.lengths.words[captions]):
            i, c = np.repeat(images[rows], len(columns)), np.tile(captions[columns], len(rows))
            for part in np.array_split(np.arange(len(i)), max(1, len(i) // BATCH)):
                samples = Samples(i[part], c[part], np.ones(len(part), np.int64), part)
                model(packer.pack(samples, arena, device=DEVICE)).result.float().cpu()

    return score


def visualbert(
    shape: Model, source: SourceConfig, pairs: tuple[Any, Any], batch: int, dtype: torch.dtype, by: str
) -> Candidate:
    corpus = Corpus([source])
    packer = Packer(corpus, LIMITS)
    config = VisualBertConfig(
        vocab_size=len(corpus.tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64,
        intermediate_size=4 * shape.hidden,
        visual_embedding_dim=shape.features,
    )
    model = VisualBertModel(config).eval().to(DEVICE, dtype)
    head = torch.nn.Linear(shape.hidden, 1).to(DEVICE, dtype)
    images, captions = pairs
    lengths = packer.lengths.regions[images] + packer.lengths.words[captions]
    order = np.argsort({"caption": captions, "image": images, "length": -lengths}[by], kind="stable")
    ready: list[dict[str, Tensor]] = []
    parts = np.array_split(order, max(1, len(order) // batch))
    parts = parts[:: max(1, len(parts) // 16)] if GPU else parts  # their inputs would fill it
    for part in parts:
        samples = Samples(images[part], captions[part], np.ones(len(part), np.int64), np.arange(len(part)))
        inputs = padded(packer.pack(samples, Arena()), dtype)
        ready.append(
            {name: t.to(DEVICE) for name, t in inputs.items() if name not in ("labels", "sentence_image_labels")}
        )

    @torch.inference_mode()
    def score() -> None:
        for inputs in ready:
            head(model(**inputs).pooler_output).float().cpu()

    return score, sum(len(inputs["input_ids"]) for inputs in ready)


if __name__ == "__main__":
    main()
