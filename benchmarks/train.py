"""Training throughput beside transformers' VisualBERT, and where the time of a step goes.

    python -m benchmarks.train [--json FILE]                    on a CPU: 4 layers of 256, Flickr8k's lengths, float32
    python -m benchmarks.train --models base large --mixes full real [--json FILE]          on a GPU: bf16

All candidates train through the same engine (DeepSpeed, fused AdamW, clipping, dropout 0.1, the same precision) on the
same pairs, batches ready-made on the device; they take turns, and figures are medians over the turns.
    imagebert           all four tasks; eager, and with --steps compiled or graphed with batches of one shape
    imagebert pretrain  the same as a user runs it: plan, regions from LMDB, packing, masks, logging
    visualbert          VisualBertForPreTraining: masked words and matching, padded to the batch's longest; eager, and
                        with --compile through torch.compile
Model FLOP/s are those of benchmarks/step.py: what ImageBERT must compute on real tokens; the matmul rate beside it is
measured in the same run. On a GPU a whole step also runs with every wait of the host forbidden.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import statistics
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import VisualBertConfig, VisualBertForPreTraining

import imagebert.model.configuration as configuration
from benchmarks import step as floors
from benchmarks.length_mixes import write_random_corpus
from benchmarks.report import Line, publish
from imagebert import distributed
from imagebert.batch import PackedBatch
from imagebert.config import RunConfig
from imagebert.data.corpus import Corpus
from imagebert.engine.engine import Engine, resolve_precision
from imagebert.engine.metrics import read_log
from imagebert.feed.arena import Arena
from imagebert.feed.packer import Limits, Packer
from imagebert.host import keep_memory
from imagebert.strict_yaml import build
from imagebert.training.assemble import make_masking, make_model, make_plan, make_sizes
from imagebert.training.objectives import make_objective
from imagebert.training.run import run

GPU = torch.cuda.is_available()
DISTINCT = 8  # batches that go round
PRODUCT = 2048  # rows and columns
CPU_MODEL = floors.Model(4, 256, features=1280, classes=80)


class Setting(NamedTuple):
    model: str  # a preset; on a CPU small, of CPU_MODEL's shape
    mix: str
    pairs: int

    @property
    def shape(self) -> floors.Model:
        return floors.MODELS.get(self.model, CPU_MODEL)


class Candidate(NamedTuple):
    batches: Sequence[Any]
    step: Callable[[Any], Any]
    close: Callable[[], None] = lambda: None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[*floors.MODELS, "small"], default=["small"])
    parser.add_argument("--mixes", nargs="+", default=["flickr8k"])
    parser.add_argument("--pairs", type=int, default=256 if GPU else 64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps-of-a-turn", type=int, default=8)
    parser.add_argument("--steps", nargs="+", choices=["eager", "compiled", "graphed"], default=["eager"])
    parser.add_argument("--compile", action="store_true", help="VisualBERT through torch.compile too")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    keep_memory()  # for all candidates, as training does
    if GPU:
        torch.set_float32_matmul_precision("high")
    settings, lines = [], []
    for model in parsed.models:
        for mix in parsed.mixes:
            setting = Setting(model, mix, parsed.pairs)
            figures = measure(setting, parsed)
            settings.append(figures)
            lines += lines_of(figures)
            publish({"settings": settings}, lines, parsed.json)  # again after each: a limit of time loses only the rest


def lines_of(figures: dict[str, Any]) -> list[Line]:
    where, by = f"{figures['model']}, {figures['mix']}", figures["candidates"]
    ran = {name: row for name, row in by.items() if "error" not in row}
    ours = max((row for name, row in ran.items() if name.startswith("imagebert, ")), key=_pairs)
    theirs = max((row for name, row in ran.items() if name.startswith("visualbert")), key=_pairs)
    wanted = 3.0 if not GPU or figures["mix"] == "full" else 5.0
    lines = [Line(f"{where}: pairs/s over VisualBERT's fastest", _pairs(ours) / _pairs(theirs), wanted)]
    if GPU:
        lines.append(Line(f"{where}: share of the matmul rate", ours["share_of_matmul"], 0.5))
        lines.append(Line(f"{where}: a step without waiting", float(figures["waits"] is None), 1))
    return lines


def _pairs(row: dict[str, Any]) -> float:
    return float(row["pairs_per_second"])


# --------------------------------------------------------------------------------------------------------- measuring


def measure(setting: Setting, parsed: argparse.Namespace) -> dict[str, Any]:
    """All candidates at one setting, by turns."""
    distributed.start()
    shape = setting.shape
    configuration.PRESETS["small"] = (CPU_MODEL.layers, CPU_MODEL.hidden, 4)
    with tempfile.TemporaryDirectory() as folder:
        images = 512 if GPU else 1500
        source = write_random_corpus(Path(folder), setting.mix, images, 2, shape.features, shape.classes)
        tree = {
            "task": "pretrain",
            "stage": "benchmark",
            "output": f"{folder}/run",
            "data": {"sources": [{"regions": source.regions, "pairs": source.pairs}]},
            "model": {"preset": setting.model},
            "schedule": {"batch_size": setting.pairs, "steps": parsed.turns * parsed.steps_of_a_turn},
            "engine": {"deepspeed": "zero1" if GPU else "zero0"},
            "logging": {"every_steps": 1},
            "checkpoint": {"every_steps": 10**9},
        }
        config = build(RunConfig, tree, "benchmark")
        work = work_of(config)
        candidates = {
            **{f"imagebert, {step}": lambda step=step: ours(config, step) for step in parsed.steps},
            "visualbert": lambda: visualbert(config, False),
            **({"visualbert, torch.compile": lambda: visualbert(config, True)} if parsed.compile else {}),
        }
        figures: dict[str, Any] = {
            "model": setting.model,
            "layers": shape.layers,
            "hidden_size": shape.hidden,
            "mix": setting.mix,
            "pairs": setting.pairs,
            "tokens": work.tokens,
            "precision": resolve_precision(config),
            "floors": {name: part._asdict() for name, part in floors.parts(shape, work).items()},
            "candidates": {},
            "waits": waits(config) if GPU else None,
        }
        # One candidate at a time is on a GPU, for its peak memory; on a CPU all are there and take turns, since other
        # work comes and goes.
        if GPU:
            from benchmarks.timing import ceilings

            figures["ceilings"] = ceilings()
            taken = {name: _tried(make, parsed) for name, make in candidates.items()}
        else:
            rows = _turns([*candidates.values(), large_product], parsed, peak=False)
            taken = dict(zip(candidates, rows, strict=False))
            figures["ceilings"] = {"matmul": 2 * PRODUCT**3 / statistics.median(rows[-1]["seconds"])}
        matmul = figures["ceilings"]["matmul"]
        for name, row in taken.items():
            figures["candidates"][name] = row
            if "error" in row:
                continue
            seconds = statistics.median(row["seconds"])
            rates = {"pairs_per_second": setting.pairs / seconds, "tokens_per_second": work.tokens / seconds}
            if name.startswith("imagebert"):
                flops = floors.model_flops(shape, work) / seconds
                rates |= {"model_flops_per_second": flops, "share_of_matmul": flops / matmul}
                if row["peak_memory_gib"] is not None:
                    rates["activation_bytes_per_token"] = row["activation_gib"] * 2**30 / work.tokens
            row |= rates
        figures["candidates"]["imagebert pretrain"] = as_a_user(config, parsed)
    _print(figures)
    return figures


def _turns(makers: list[Callable[[], Candidate]], parsed: argparse.Namespace, peak: bool) -> list[dict[str, Any]]:
    candidates = [make() for make in makers]
    rows: list[dict[str, Any]] = [{"seconds": [], "peak_memory_gib": None} for _ in candidates]
    for candidate in candidates:  # to warm up; compiled ones meet every shape
        for batch in candidate.batches:
            candidate.step(batch)
    if peak:
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        candidates[0].step(candidates[0].batches[0])
        torch.cuda.synchronize()
        top = torch.cuda.max_memory_allocated()
        rows[0] |= {"peak_memory_gib": top / 2**30, "activation_gib": (top - held) / 2**30}
    for turn in range(parsed.turns):
        for candidate, row in zip(candidates, rows, strict=True):
            for i in range(parsed.steps_of_a_turn):
                begun = _now()
                candidate.step(candidate.batches[(turn * parsed.steps_of_a_turn + i) % len(candidate.batches)])
                row["seconds"].append(_now() - begun)
    for candidate, row in zip(candidates, rows, strict=True):
        row["seconds_by_part"] = by_part(candidate)
        candidate.close()
    return rows


def _tried(make: Callable[[], Candidate], parsed: argparse.Namespace) -> dict[str, Any]:
    """One candidate on a GPU, alone, and nothing of it left behind; `error` where it does not run."""
    try:
        return _turns([make], parsed, peak=True)[0]
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}
    finally:
        _clear()


def _clear() -> None:
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()


def _now() -> float:
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def by_part(candidate: Candidate, steps: int = 3) -> dict[str, float]:
    """Seconds of a step in each part: of kernels on a GPU, of operators by themselves on a CPU."""
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if GPU else [])]) as profiler:
        for batch in candidate.batches[:steps]:
            candidate.step(batch)
        _now()
    found: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if GPU and (event.device_type != DeviceType.CUDA or event.is_user_annotation):
            continue  # operators and ranges, which span the kernels that are counted by themselves
        microseconds = event.self_device_time_total if GPU else event.self_cpu_time_total
        found[floors.part_of(event.key)] += microseconds / 1e6 / min(steps, len(candidate.batches))
    return {part: seconds for part, seconds in sorted(found.items(), key=lambda item: -item[1]) if seconds > 0}


def large_product() -> Candidate:
    """A product of float32 numbers, which takes turns with the others: its rate is what the processor gives then."""
    factors = torch.randn(PRODUCT, PRODUCT), torch.randn(PRODUCT, PRODUCT)
    return Candidate([factors], lambda pair: pair[0] @ pair[1])


def as_a_user(config: RunConfig, parsed: argparse.Namespace) -> dict[str, Any]:
    """`imagebert pretrain` on this recipe: what its log says, after two steps to warm up."""
    run(config)
    lines = read_log(Path(config.output) / "log.jsonl")[2:]
    return {
        "pairs_per_second": statistics.median(line["rate/pairs_per_second"] for line in lines),
        "tokens_per_second": statistics.median(line["rate/tokens_per_second"] for line in lines),
        "share_waiting_for_data": statistics.median(line["rate/share_waiting_for_data"] for line in lines),
    }


# -------------------------------------------------------------------------------------------------------- candidates


def feed(config: RunConfig, device: torch.device) -> tuple[list[PackedBatch], Corpus]:
    """The first microbatches of the plan, masked."""
    corpus = Corpus(config.data.sources)
    packer = Packer(corpus, Limits(max_regions=100, max_words=41, whole_image=True))
    plan, masking = make_plan(config, corpus, packer), make_masking(config, corpus)
    sizes = make_sizes(config, plan)
    batches = [
        packer.pack(samples, Arena(), step, masking, sizes, device)
        for step in range(DISTINCT)
        for samples in plan.step(step, 0, 1)
    ]
    return batches, corpus


def work_of(config: RunConfig) -> floors.Work:
    """The mean of the batches."""
    batches, _ = feed(config, torch.device("cpu"))
    each = [
        (
            b.pairs,
            len(b.region_rows),
            len(b.text_rows),
            float(b.cu_seqlens.diff().square().sum()),
            *b.counts[:2].tolist(),
        )
        for b in batches
    ]
    pairs, regions, texts, *rest = (statistics.mean(values) for values in zip(*each, strict=True))
    return floors.Work(round(pairs), round(regions), round(texts), *rest)


def ours(config: RunConfig, step: str) -> Candidate:
    config = dataclasses.replace(config, engine=dataclasses.replace(config.engine, step=step))
    batches, corpus = feed(config, distributed.device())
    model = make_model(config, corpus)
    engine, objective = Engine(model, config), make_objective(config)
    if step == "graphed":
        engine.capture(next(batch for batch in batches if batch.tokens > batch.real_tokens))

    def train(batch: PackedBatch) -> None:
        losses = objective.losses(engine(batch), batch)
        engine.backward(objective.mean(losses, objective.counts(batch)))

    return Candidate(batches, train, engine.close)


def waits(config: RunConfig) -> str | None:
    """What in a step, with its masks, makes the host wait for the GPU; None: nothing."""
    candidate = ours(config, "eager")
    for batch in candidate.batches[:2]:
        candidate.step(batch)
    corpus = Corpus(config.data.sources)
    packer = Packer(corpus, Limits(max_regions=100, max_words=41, whole_image=True))
    plan, masking = make_plan(config, corpus, packer), make_masking(config, corpus)
    packed, plain = packer.lay_out(plan.step(3, 0, 1)[0], Arena()), torch.cuda.synchronize
    # The feeder copies from pinned memory; from this, which is not, the copy waits, and is no part of a step.
    packed = packed._replace(memory=packed.memory.to(distributed.device()))
    plain()

    def forbidden(*_: Any) -> None:
        raise RuntimeError("torch.cuda.synchronize was called")

    try:
        torch.cuda.synchronize = forbidden  # which the mode does not see
        torch.cuda.set_sync_debug_mode("error")
        candidate.step(packed.finish(3, masking))
    except RuntimeError as error:
        return "".join(traceback.format_exception(error))[-2000:]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize = plain
        candidate.close()
        del candidate
        _clear()
    return None


class Padded(nn.Module):
    """VisualBERT as the engine takes it: one argument."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        loss: Tensor = self.model(**batch).loss
        return loss


def visualbert(config: RunConfig, compiled: bool) -> Candidate:
    device = distributed.device()
    batches, corpus = feed(config, torch.device("cpu"))
    layers, hidden, heads = configuration.PRESETS[config.model.preset or ""]
    shape = VisualBertConfig(
        vocab_size=len(corpus.tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        visual_embedding_dim=corpus.feature_size,
    )
    model = Padded(VisualBertForPreTraining(shape).train())
    if compiled:
        # Batches are padded to their longest pair, mostly the same; shapes that vary make torch 2.13 fail.
        torch._dynamo.config.recompile_limit = 4 * DISTINCT
        model.model.compile(dynamic=False)
    engine = Engine(model, config)
    dtype = torch.bfloat16 if engine.precision == "bf16" else torch.float32
    ready = [{name: t.to(device) for name, t in padded(batch, dtype).items()} for batch in batches]

    def train(batch: dict[str, Tensor]) -> None:
        engine.backward(engine(batch))

    return Candidate(ready, train, engine.close)


def padded(batch: PackedBatch, dtype: torch.dtype) -> dict[str, Any]:
    """A packed batch as VisualBERT takes it: [CLS] words [SEP] then regions, each padded to the longest."""
    pairs = batch.pairs
    token_pair = torch.repeat_interleave(torch.arange(pairs), batch.cu_seqlens.diff().long())
    text_pair, region_pair = token_pair[batch.text_rows], token_pair[batch.region_rows]
    keep = batch.position_ids[batch.text_rows] != 2  # VisualBERT has one [SEP] less
    words = [batch.input_ids[keep & (text_pair == b)] for b in range(pairs)]
    features = batch.region_features.float() * batch.region_scales[:, None]
    features[batch.region_zeroed] = 0
    regions = [features[region_pair == b].to(dtype) for b in range(pairs)]
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


def _print(figures: dict[str, Any]) -> None:
    console = Console(width=140)
    title = f"{figures['model']}, {figures['mix']}, {figures['pairs']} pairs, {figures['precision']}"
    table = Table("", "pairs/s", "tokens/s", "TFLOP/s", "% of matmul", "peak GiB", title=title)
    for name, row in figures["candidates"].items():
        if "error" in row:
            table.add_row(name, row["error"])
            continue
        peak = row.get("peak_memory_gib")
        table.add_row(
            name,
            f"{row['pairs_per_second']:.0f}",
            f"{row['tokens_per_second']:.0f}",
            f"{row['model_flops_per_second'] / 1e12:.3g}" if "model_flops_per_second" in row else "",
            f"{100 * row['share_of_matmul']:.0f}" if "share_of_matmul" in row else "",
            "" if peak is None else f"{peak:.1f}",
        )
    console.print(table)
    parts = sorted({part for row in figures["candidates"].values() for part in row.get("seconds_by_part", {})})
    shown = [name for name, row in figures["candidates"].items() if "seconds_by_part" in row]
    table = Table("ms of a step", *shown)
    for part in parts:
        table.add_row(part, *(f"{1e3 * figures['candidates'][n]['seconds_by_part'].get(part, 0):.1f}" for n in shown))
    console.print(table)


if __name__ == "__main__":
    main()
