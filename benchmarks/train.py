"""Training throughput on this machine, all four tasks, optimizer and feed included, beside transformers' VisualBERT.

    python -m benchmarks.train --against visualbert [--json FILE]

Both train 4 layers of 256 on the same random pairs with Flickr8k's real lengths and features of 1,280, in float32 on a
CPU, dropout 0.1, AdamW. Ours is `imagebert pretrain` as a user runs it: regions from LMDB, packed by its feeder.
VisualBertForPreTraining (masked words and image-text matching only) is given its batches ready-made, padded to the
longest of the batch. The two take turns; figures are medians over the turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import VisualBertConfig, VisualBertForPreTraining

import imagebert.model.configuration as configuration
from benchmarks.length_mixes import write_random_corpus
from benchmarks.report import Line, publish
from imagebert.batch import PackedBatch
from imagebert.config import RunConfig, build
from imagebert.data.corpus import Corpus
from imagebert.engine.metrics import read_log
from imagebert.feed.packer import FeatureBuffer, Limits, Packer
from imagebert.training.run import make_masking, make_plan, run

FEATURE_SIZE, CLASSES = 1280, 80
LAYERS, HIDDEN, HEADS = 4, 256, 4
LINE = 3.0  # times VisualBERT's pairs per second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", choices=["visualbert"], default="visualbert")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps of each in a turn")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    configuration.PRESETS["tiny"] = (LAYERS, HIDDEN, HEADS)
    with tempfile.TemporaryDirectory() as folder:
        source = write_random_corpus(Path(folder), "flickr8k", 1500, 2, FEATURE_SIZE, CLASSES)
        tree = {
            "task": "pretrain",
            "stage": "benchmark",
            "output": f"{folder}/run",
            "data": {"sources": [{"regions": source.regions, "pairs": source.pairs}]},
            "model": {"preset": "tiny"},
            "schedule": {"batch_size": parsed.batch_size, "steps": parsed.turns * parsed.steps},
            "logging": {"every_steps": 1},
        }
        config = build(RunConfig, tree, "benchmark")
        theirs = VisualBert(config, parsed.batch_size)
        ours_rates, their_rates = [], []
        for turn in range(parsed.turns):
            run(config, stop_at=(turn + 1) * parsed.steps)
            lines = read_log(Path(folder) / "run/log.jsonl")[turn * parsed.steps + 2 :]  # after two to warm up
            ours_rates += [line["rate/pairs_per_second"] for line in lines]
            their_rates += theirs.turn(turn * parsed.steps, parsed.steps)[2:]
    ours, other = statistics.median(ours_rates), statistics.median(their_rates)
    print(f"{'':24}pairs/s (median)")
    print(f"{'imagebert':24}{ours:.1f}")
    print(f"{'VisualBERT':24}{other:.1f}")
    figures = {
        "imagebert_pairs_per_second": ours_rates,
        "visualbert_pairs_per_second": their_rates,
        "batch_size": parsed.batch_size,
        "layers": LAYERS,
        "hidden_size": HIDDEN,
    }
    publish(figures, [Line("pairs/s over VisualBERT's", ours / other, LINE)], parsed.json)


class VisualBert:
    """The peer, on the pairs of the same plan."""

    def __init__(self, config: RunConfig, batch_size: int) -> None:
        corpus = Corpus(config.data.sources)
        self.packer = Packer(corpus, Limits(max_regions=100, max_words=41, whole_image=True))
        self.plan = make_plan(config, corpus, self.packer)
        self.masking = make_masking(config, corpus)
        shape = VisualBertConfig(
            vocab_size=len(corpus.tokenizer),
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=4 * HIDDEN,
            visual_embedding_dim=FEATURE_SIZE,
        )
        self.model = VisualBertForPreTraining(shape).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def turn(self, start: int, steps: int) -> list[float]:
        """Pairs per second of each step; making the padded batch is not counted."""
        rates = []
        for step in range(start, start + steps):
            samples = self.plan.global_batch(step)
            batch = padded(self.packer.pack(samples, FeatureBuffer(), step, self.masking))
            begun = time.perf_counter()
            self.model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            rates.append(len(samples.labels) / (time.perf_counter() - begun))
        return rates


def padded(batch: PackedBatch) -> dict[str, Any]:
    """A packed batch as VisualBERT takes it: [CLS] words [SEP] then regions, each padded to the longest."""
    pairs = batch.pairs
    token_pair = torch.repeat_interleave(torch.arange(pairs), batch.cu_seqlens.diff().long())
    text_pair, region_pair = token_pair[batch.text_rows], token_pair[batch.region_rows]
    keep = batch.position_ids[batch.text_rows] != 2  # VisualBERT has one [SEP] less
    words = [batch.input_ids[keep & (text_pair == b)] for b in range(pairs)]
    features = batch.region_features.float() * batch.region_scales[:, None]
    features[batch.region_zeroed] = 0
    regions = [features[region_pair == b] for b in range(pairs)]
    labels = torch.full((batch.tokens,), -100)
    labels[batch.read_rows[batch.mlm_reads]] = batch.mlm_labels
    text_labels = [labels[batch.text_rows[keep & (text_pair == b)]] for b in range(pairs)]
    pad = torch.nn.utils.rnn.pad_sequence
    visual = pad(regions, batch_first=True)
    text = pad(words, batch_first=True)
    return {
        "input_ids": text,
        "attention_mask": pad([torch.ones_like(w) for w in words], batch_first=True),
        "token_type_ids": torch.zeros_like(text),
        "visual_embeds": visual,
        "visual_attention_mask": pad([torch.ones(len(r), dtype=torch.long) for r in regions], batch_first=True),
        "visual_token_type_ids": torch.ones(visual.shape[:2], dtype=torch.long),
        "labels": torch.cat(
            [pad(text_labels, batch_first=True, padding_value=-100), torch.full(visual.shape[:2], -100)], dim=1
        ),
        "sentence_image_labels": batch.itm_labels.long(),
    }


if __name__ == "__main__":
    main()
