"""What training needs of a cluster, before there is one: a small model of a step's time, its memory and its failures.

A step of N GPUs takes
    compute     FLOPs of its tokens / (GPUs x matmul rate x share that is reached), slowest of N by jitter
    exposed     what of the gradients' all-reduce the backward pass does not hide, and the weights' all-gather behind it
    overhead    what does not shrink with more GPUs: launches, the host's sums
and a run takes its steps, its pauses for checkpoints, and for each failure half an interval and a restart. Formulas
stand beside the lines that compute them; docs/operations.md says how they were checked, and simulation.py does it again
event by event. Constants are the vendors' or published ones until a calibration brings measured ones.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imagebert.data.records import Sections
from imagebert.errors import UsageError
from imagebert.files import read_json
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval, ImageBertForPreTraining

_SPECIALS = 3  # tokens of a pair that are neither region nor word
_MASKED, _MATCHED = 0.15, 0.5


@dataclass(frozen=True)
class Constants:
    """What is measured. Rates in bytes or operations a second; times in seconds."""

    matmul: float  # of one GPU, bf16, dense products
    memory: float  # of one GPU
    share: float = 0.5  # of `matmul` that a training step reaches: the project's aim, not yet measured on a GPU
    inside: float = 300e9  # an all-reduce's bandwidth within a node, by GPU (NVLink: 450e9 each way)
    between: float = 40e9  # and between nodes, by GPU (one 400 Gb/s card each: 50e9)
    latency: float = 20e-6  # of one collective and doubling of the ranks
    jitter: float = 0.02  # standard deviation of a rank's compute time, as a share of it
    overhead: float = 2e-3
    host_copy: float = 20e9  # GPU to pinned memory: what a checkpoint pauses for
    disk: float = 2e9  # written by one node
    restart: float = 180.0  # requeue, start, restore
    detect: float = 60.0  # until the others know
    node_mtbf_hours: float = 6300.0  # between failures of a node of 8 (Llama 3, table 5: 419 of 2,048 nodes in 54 days)
    kept_bytes: float = 30.8  # kept for backward, a token, layer and hidden unit (python -m benchmarks.memory)
    word_bytes: int = 2  # of a weight, gradient and activation


# Dense bf16 rates that matmuls reach, somewhat under the data sheets'; none measured by this project's commands yet.
GPUS = {
    "a100": Constants(matmul=280e12, memory=80e9, inside=200e9, between=20e9),
    "h100": Constants(matmul=750e12, memory=80e9),
    "h200": Constants(matmul=790e12, memory=141e9),
    "b200": Constants(matmul=1600e12, memory=180e9, inside=600e9),
    # One core; a calibration brings this machine's.
    "cpu": Constants(
        matmul=50e9,
        memory=16e9,
        share=0.3,
        inside=1e9,
        between=1e9,
        latency=1e-4,
        host_copy=2e9,
        disk=0.5e9,
        word_bytes=4,
    ),
}


@dataclass(frozen=True)
class Job:
    """What is to be trained, and on what.

    Args:
        pairs: sampled in an epoch
        regions, words: of a pair, on average
        batch_size: pairs sampled in a step
        group_size: pairs that each of those becomes: itself and its negatives when fine-tuning
        chosen: negatives that are chosen for it in the step, which only fused layers see
        save_every: steps between checkpoints; None: what costs least
        images, record: of the stores, and the bytes of an image's record; None: an image a pair, of `regions`
    """

    pairs: int
    nodes: int
    gpus_per_node: int
    shape: ImageBertConfig
    constants: Constants
    regions: float = 100
    words: float = 41
    epochs: float = 17.0
    batch_size: float = 1024
    accumulation: int = 1
    stage: int = 1
    feature_bytes: int = 1
    recompute: bool = False
    task: str = "pretrain"
    group_size: int = 1
    chosen: int = 0
    steps: int | None = None  # instead of epochs
    save_every: int | None = None
    images: int | None = None
    record: float | None = None

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def tokens(self) -> float:
        """Of a pair."""
        return self.regions + self.words + _SPECIALS

    @property
    def parameters(self) -> int:
        return parameter_count(self.shape, self.task)


def calibrated(constants: Constants, path: Path) -> Constants:
    """`constants` with those in a JSON's `constants`, as `python -m benchmarks.calibrate` writes it.

    Raises:
        UsageError: no such file, or a name that is none of Constants'.
    """
    try:
        found = read_json(path, 1 << 20)
        measured = found.get("figures", found)["constants"]
        values: dict[str, Any] = {name: float(value) for name, value in measured.items()}
        return dataclasses.replace(constants, **values)
    except (OSError, UsageError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UsageError(f"calibration {path}: {error}; make it with `python -m benchmarks.calibrate`") from None


def parameter_count(shape: ImageBertConfig, task: str = "pretrain") -> int:
    """Of the model as it is built, tied weights once; nothing is allocated."""
    with torch.device("meta"):
        model = (ImageBertForPreTraining if task == "pretrain" else ImageBertForImageTextRetrieval)(shape)
    return sum(p.numel() for p in model.parameters())


def checkpoint_bytes(parameters: int) -> int:
    """Weights and two moments in float32."""
    return 12 * parameters


def job_flops(job: Job) -> float:
    """Of one sampled pair of a job, with its negatives."""
    each = pair_flops(job.shape, job.regions, job.words, masked=job.task == "pretrain", chosen=job.chosen)
    return job.group_size * each * (4 / 3 if job.recompute else 1)


def matmul_rate(device: torch.device) -> float:
    """Of dense products on `device`: the table's for a GPU that is in it, else 0; of a CPU measured, in float32."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).lower()
        return next((c.matmul for known, c in GPUS.items() if known in name), 0.0)
    factor, seconds = torch.randn(1024, 1024), []
    for _ in range(5):
        begun = time.perf_counter()
        factor @ factor
        seconds.append(time.perf_counter() - begun)
    return 2 * 1024**3 / min(seconds)


def pair_flops(shape: ImageBertConfig, regions: float, words: float, masked: bool = True, chosen: int = 0) -> float:
    """Of one pair, forward and backward, as benchmarks/step.py counts them: heads and the last layer for read rows.

    Args:
        chosen: negatives that are chosen for it in the step: they go through the fused layers only
    """
    s, t = shape, regions + words + _SPECIALS
    h, i = s.hidden_size, s.intermediate_size
    matched = 1.0 if chosen else _MATCHED
    masked_words, masked_regions = (n * _MASKED * matched * masked for n in (words, regions))
    reads, pairs = 1 + masked_words + masked_regions, 1 + chosen
    products = 4 * h * h + 2 * h * i
    # A product's forward is 2 operations a weight and row, its backward 4.
    image, text = regions + 1, words + 2
    flops = s.fusion_layer * (6 * t * products + 14 * h * (image * image + text * text))
    if s.fusion_layer < s.num_hidden_layers:
        full = s.num_hidden_layers - s.fusion_layer - 1
        flops += 6 * (pairs * (full * t * products + 2 * t * h * h) + (reads + chosen) * (2 * h * h + 2 * h * i))
        flops += 14 * h * t * t * (pairs * full + (reads + chosen) / t)
    labels = s.num_region_classes + s.num_region_attributes + s.feature_size
    heads = 6 * h * (masked_words * (s.vocab_size + h) + masked_regions * labels)
    dual = 6 * t * h * h if s.dual_size and not s.fusion_layer else 0
    dual += s.dual_shortcut * (4 * s.feature_size + 6 * s.dual_size)
    return flops + heads + dual + 4 * regions * s.feature_size * h


def score_flops(shape: ImageBertConfig, regions: float, words: float) -> tuple[float, float, float]:
    """Of scoring a pair whose sides are encoded, and of encoding an image and a text (retrieval/scoring.py).

    Encoding has the region projection, the layers before `fusion_layer` and the next one's queries, keys and values;
    scoring has the rest of the layers, the last one for [CLS] only.
    """
    h, i, t = shape.hidden_size, shape.intermediate_size, regions + words + _SPECIALS
    products, features = 4 * h * h + 2 * h * i, 2 * regions * shape.feature_size * h
    features += 2 * shape.dual_shortcut * (shape.feature_size + shape.dual_size)
    first, fused = shape.fusion_layer, shape.num_hidden_layers - shape.fusion_layer
    token = 6 * h * h if fused else 0  # queries, keys and values
    image, text = (n * token + first * (2 * n * products + 4 * h * n * n) for n in (regions + 1, words + 2))
    if not fused:
        return 2.0 * shape.dual_size, image + features, text
    layers = 2 * ((fused - 1) * t * products + 2 * t * h * h + 2 * h * h + 2 * h * i)
    attention = 4 * h * t * t * (fused - 1 + 1 / t)
    return layers + attention - t * token, image + features, text


def state_bytes(parameters: int, stage: int, ranks: int, word_bytes: int, bucket: float = 1e8) -> float:
    """Between steps, on one rank: weights as they are computed with, float32 masters, two moments.

    Without ZeRO in float32 the weights are their own masters; ZeRO keeps both. Stage 3 also keeps its bucket.

    Args:
        bucket: elements, reduce_bucket_size of ds_configs/
    """
    masters = 8 + (4 if word_bytes == 2 or stage > 0 else 0)
    if stage == 0:
        return parameters * (word_bytes + masters)
    if stage < 3:
        return parameters * (word_bytes + masters / ranks)
    return parameters * (word_bytes + masters) / ranks + word_bytes * bucket


def gradient_bytes(parameters: int, stage: int, ranks: int, word_bytes: int, bucket: float = 1e8) -> float:
    """In a step, on one rank, at most: gradients, what of them is being reduced, and the optimizer's float32 copy."""
    held = word_bytes * parameters * (1 if stage < 2 else 1 / ranks)
    buckets = 0.0 if ranks == 1 or stage in (0, 3) else 2 * word_bytes * bucket
    return held + buckets + (4 * parameters / ranks if stage > 0 else 0)


def activation_bytes(job: Job) -> float:
    """Kept for backward by a microbatch."""
    tokens = job.tokens * job.group_size * job.batch_size / (job.ranks * job.accumulation)
    s, c = job.shape, job.constants
    layers = 2.3 if job.recompute else s.num_hidden_layers  # its input of each, and one at work
    return tokens * layers * s.hidden_size * c.kept_bytes * c.word_bytes / 2


def step_memory(job: Job, stage: int) -> float:
    """Bytes of a GPU inside a step, at most."""
    sizes = job.parameters, stage, job.ranks, job.constants.word_bytes
    return state_bytes(*sizes) + gradient_bytes(*sizes) + activation_bytes(job)


def record_bytes(job: Job) -> float:
    if job.record is not None:
        return job.record
    return float(Sections.of(math.ceil(job.regions), job.shape.feature_size * job.feature_bytes).end)


def records_read(job: Job) -> float:
    """For a sampled pair: its image, and another one for every second negative of a group."""
    return 1 + (job.group_size - 1) / 2


def steps_of(job: Job) -> int:
    return job.steps or max(1, round(job.epochs * job.pairs / job.batch_size))


def run_seconds(job: Job) -> float:
    return steps_of(job) * step_time(job).total * (1 + failures(job).share)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, by what they go to."""

    compute: float
    straggling: float
    exposed: float
    hidden: float
    overhead: float

    @property
    def total(self) -> float:
        return self.compute + self.straggling + self.exposed + self.overhead


def reduce_seconds(job: Job, size: float) -> float:
    """An all-reduce of `size` bytes in a ring through all ranks: within nodes and between them at the same time."""
    c, n = job.constants, job.ranks
    if n == 1:
        return 0.0
    slowest = c.between if job.nodes > 1 else c.inside
    return 2 * (n - 1) / n * size / slowest + c.latency * math.log2(n)


def gather_seconds(job: Job, parameters: int) -> float:
    """ZeRO: updated weights come back from the ranks that hold them, by half of an all-reduce."""
    if job.stage == 0:
        return 0.0
    return reduce_seconds(job, job.constants.word_bytes * parameters) / 2


def buckets_of(job: Job, parameters: int, bucket: float = 1e8) -> list[float]:
    """Bytes of each bucket of gradients, in the order in which backward fills them."""
    count = max(1, math.ceil(parameters / bucket))
    return [job.constants.word_bytes * parameters / count] * count


def step_time(job: Job) -> StepTime:
    c, n = job.constants, job.ranks
    parameters = job.parameters
    compute = job_flops(job) * job.batch_size / n / (c.matmul * c.share)
    # The slowest of n normal draws, a microbatch at a time: sigma sqrt(2 ln n) for large n.
    straggling = compute * c.jitter / math.sqrt(job.accumulation) * _largest_of(n)
    buckets = buckets_of(job, parameters)
    each = [reduce_seconds(job, size) for size in buckets]
    backward = compute / job.accumulation * 2 / 3  # of the last microbatch: only then gradients are reduced
    # A bucket is full at equal parts of backward; the last one cannot hide, those before may queue.
    end = 0.0
    for number, seconds in enumerate(each, 1):
        end = max(end, backward * number / len(each)) + seconds
    reduction = max(0.0, end - backward) if n > 1 else 0.0
    gather = gather_seconds(job, parameters)
    hidden = sum(each) - reduction
    if job.stage == 3:  # in forward and in backward of each microbatch, while the layers before are computed
        under = compute * 0.9
        late = max(0.0, 2 * gather * job.accumulation - under)
        hidden, gather = hidden + 2 * gather * job.accumulation - late, late
    return StepTime(compute, straggling, reduction + gather, max(0.0, hidden), c.overhead)


def _largest_of(n: int) -> float:
    """The expected largest of n standard normal draws (Blom 1958)."""
    if n == 1:
        return 0.0
    return math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * (n - 0.375) / (n + 0.25) - 1, dtype=torch.float64)))


@dataclass(frozen=True)
class Failures:
    """Seconds; a cluster fails as often as its nodes do together."""

    mtbf: float
    interval: float  # between checkpoints: the job's, or sqrt(2 x pause x mtbf) (Young 1974)
    pause: float  # of training, for one
    writing: float  # of it, beside training
    cost: float  # of one failure: noticed, restarted, half an interval done again
    share: float  # of the whole time that failures and checkpoints cost


def failures(job: Job) -> Failures:
    c = job.constants
    size = checkpoint_bytes(job.parameters)
    pause = size / job.ranks / c.host_copy
    writing = size / job.nodes / c.disk
    mtbf = c.node_mtbf_hours * 3600 / job.nodes
    asked = job.save_every * step_time(job).total if job.save_every else max(math.sqrt(2 * pause * mtbf), 60.0)
    interval = max(asked, writing)  # one is written before the next begins
    cost = c.detect + c.restart + interval / 2 + writing
    return Failures(mtbf, interval, pause, writing, cost, cost / mtbf + pause / interval)


def plan(job: Job) -> dict[str, dict[str, Any]]:
    """The whole answer: named figures in groups.

    Raises:
        UsageError: a batch that cannot be cut into that many microbatches.
    """
    c = job.constants
    microbatches = job.ranks * job.accumulation
    if job.batch_size < microbatches:
        raise UsageError(f"batch_size {job.batch_size:g} cannot be cut into {microbatches} microbatches: raise it")
    parameters = job.parameters
    step, trouble = step_time(job), failures(job)
    seconds = run_seconds(job)
    record, rate = record_bytes(job), job.batch_size / step.total
    reads, size = rate * records_read(job), checkpoint_bytes(parameters)
    store = record * (job.images or job.pairs)
    return {
        "run": {
            "parameters": parameters,
            "steps": steps_of(job),
            "hours": seconds / 3600,
            "GPU hours": seconds / 3600 * job.ranks,
            "pairs a second": rate,
            "pairs a second and GPU": rate / job.ranks,
        },
        "step, ms": {name: 1e3 * value for name, value in dataclasses.asdict(step).items()}
        | {"total": 1e3 * step.total},
        "scaling": {"pace of a GPU, of what it has on one node": rate / job.ranks * _one_node(job)},
        "data": {
            "record, bytes": record,
            "store, TB": store / 1e12,
        },
        "shared file system": {
            "read, GB/s in all": reads * record / 1e9,
            "read by a node, GB/s": reads / job.nodes * record / 1e9,
            "read, records a second in all": reads,
            "with --local: read before by each node, TB": store / 1e12,
            "with --local: read before in all, TB": store * job.nodes / 1e12,
            "a checkpoint's burst, GB": size / 1e9,
            "of it by a node, GB": size / job.nodes / 1e9,
            "one every, minutes": trouble.interval / 60,
            "written before the next at, GB/s": size / trouble.interval / 1e9,
        },
        "memory of a GPU, GB": {
            **{f"ZeRO {stage}": step_memory(job, stage) / 1e9 for stage in range(4)},
            "of them kept for backward": activation_bytes(job) / 1e9,
            "there are": c.memory / 1e9,
        },
        "checkpoints": {
            "size, GB": size / 1e9,
            "every, steps": max(1, round(trouble.interval / step.total)),
            "pause, ms": 1e3 * trouble.pause,
        },
        "failures": {
            "hours between two": trouble.mtbf / 3600,
            "minutes that one costs": trouble.cost / 60,
            "share of the run": trouble.share,
        },
    }


def _one_node(job: Job) -> float:
    """GPU seconds a pair on one node, with the same microbatches."""
    alone = dataclasses.replace(job, nodes=1, batch_size=job.batch_size / job.nodes)
    return step_time(alone).total / alone.batch_size * alone.ranks
