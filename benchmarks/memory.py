"""Memory that training keeps for backward, per token: counted, without a GPU and without computing anything.

    python -m benchmarks.memory [--json FILE]

The model runs on tensors that have shapes and types but no contents (PyTorch's fake tensors), with its kernels' own
descriptions of what they return; counted are the tensors that autograd keeps, each memory once, without weights and
without the batch. On a GPU benchmarks/train.py measures the peak beside it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.report import publish
from benchmarks.step import MODELS, Work, work_of
from imagebert.batch import PackedBatch
from imagebert.model import ImageBertConfig, ImageBertForPreTraining
from imagebert_kernels import backend

PAIRS = 256


def batch_of(work: Work, features: int) -> PackedBatch:
    """A batch of the right shapes; its numbers are never looked at."""
    tokens, words, regions = work.tokens, int(work.masked_words), int(work.masked_regions)
    reads = work.pairs + words + regions

    def index(size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.int64)

    return PackedBatch(
        cu_seqlens=torch.zeros(work.pairs + 1, dtype=torch.int32),
        side_cu_seqlens=torch.zeros(2 * work.pairs + 1, dtype=torch.int32),
        max_seqlen=144,
        real_pairs=work.pairs,
        real_tokens=tokens,
        position_ids=index(tokens),
        token_type_ids=index(tokens),
        text_rows=index(work.texts),
        input_ids=index(work.texts),
        region_rows=index(work.regions),
        region_features=torch.zeros(work.regions, features, dtype=torch.int8),
        region_scales=torch.zeros(work.regions),
        region_boxes=torch.zeros(work.regions, 5),
        region_zeroed=torch.zeros(work.regions, dtype=torch.bool),
        global_regions=index(0),
        counts=torch.zeros(3),
        read_rows=index(reads),
        read_cu_seqlens=torch.zeros(work.pairs + 1, dtype=torch.int32),
        cls_reads=index(work.pairs),
        mlm_reads=index(words),
        mlm_labels=index(words),
        region_reads=index(regions),
        masked_regions=index(regions),
        moc_labels=index(regions),
        attribute_labels=index(0),
        itm_labels=torch.zeros(work.pairs),
        block=0,
        image_class=index(0),
        text_class=index(0),
        negative_draws=torch.zeros(0, 0),
    )


def kept_bytes(preset: str, work: Work, recompute: bool) -> int:
    """What a forward leaves for backward, in bf16."""
    with FakeTensorMode():
        config = ImageBertConfig.preset(preset, gradient_checkpointing=recompute)
        torch.set_default_dtype(torch.bfloat16)
        model = ImageBertForPreTraining(config).train()
        torch.set_default_dtype(torch.float32)
        batch = batch_of(work, config.feature_size)
        given = {t.untyped_storage()._cdata for t in (*model.parameters(), *batch) if isinstance(t, Tensor)}
        kept: dict[int, int] = {}
        alive = []  # so that no memory is given to two

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in given:
                kept[storage._cdata] = storage.nbytes()
                alive.append(tensor)
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = model(batch).result
        assert len(losses) == 4
    return sum(kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    # The kernels' operators, which a fake tensor only describes.
    os.environ[backend.VARIABLE] = "triton"
    table = Table("model", "lengths", "recompute", "tokens", "GiB", "kB a token")
    figures: list[dict[str, Any]] = []
    for model in MODELS:
        for mix in ("full", "real"):
            work = work_of(mix, PAIRS)
            for recompute in (False, True):
                total = kept_bytes(model, work, recompute)
                row = {"model": model, "mix": mix, "recompute": recompute, "pairs": PAIRS, "tokens": work.tokens}
                figures.append(row | {"bytes": total, "bytes_per_token": total / work.tokens})
                gib, kb = f"{total / 2**30:.2f}", f"{total / work.tokens / 1e3:.1f}"
                table.add_row(model, mix, "yes" if recompute else "no", str(work.tokens), gib, kb)
    Console().print(table)
    publish({"kept": figures}, [], parsed.json)


if __name__ == "__main__":
    main()
