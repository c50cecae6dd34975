"""DeepSpeed behind a small face: forward, backward of a global sum, step, snapshot, restore, whole weights.

The gate of deepspeed: no other file imports it. A recipe owns batch sizes, accumulation, clipping, precision,
optimizer and schedule; the JSON in ds_configs/ owns how states are sharded and moved. A key in the wrong place is an
error here, since DeepSpeed lets an unknown top-level key pass in silence.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from imagebert import distributed
from imagebert.batch import PackedBatch
from imagebert.config import RunConfig, UsageError, check_monitors
from imagebert.engine.graphs import Graphed
from imagebert.engine.optimizers import make_optimizer, scale_gradients
from imagebert.engine.shards import Piece, Shards, Snapshot
from imagebert.engine.states import (
    MOMENTS,
    basic_optimizer,
    forget_steps,
    fragments,
    masters,
    refresh,
    set_updates,
    updates,
)
from imagebert.files import read_json, write_bytes
from imagebert.strict_yaml import shown

# Loaded late and quietly: its import looks for compilers and prints.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
import deepspeed
import deepspeed.runtime.zero.stage_1_and_2 as zero_stage_1_and_2
from deepspeed.utils import safe_get_full_fp32_param

log = logging.getLogger(__name__)

# What DeepSpeed says is said as all else is.
logging.getLogger("DeepSpeed").handlers.clear()
logging.getLogger("DeepSpeed").propagate = True

# What DeepSpeed calls in torch.distributed has newer names; that is DeepSpeed's to follow.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")

# On a CPU DeepSpeed would compile a shared-memory collective at every first start: most of a minute, a compiler
# needed, and nothing won on the machines where CPUs train.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _invalid_norm_to(norm: Tensor, device: Any = None, val: float = -1.0) -> None:
    """DeepSpeed's mask_nan_or_inf_with_val_inplace; its own makes the host wait for each group's norm."""
    norm.masked_fill_(~norm.isfinite(), val)


zero_stage_1_and_2.mask_nan_or_inf_with_val_inplace = _invalid_norm_to

_RECIPE_OWNS = {
    "train_batch_size": "schedule.batch_size",
    "train_micro_batch_size_per_gpu": "schedule.batch_size",
    "gradient_accumulation_steps": "schedule.accumulation",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "bf16": "engine.precision",
    "fp16": "engine.precision",
    "tensorboard": "logging.monitors",
    "wandb": "logging.monitors",
    "csv_monitor": "logging.monitors",
    "steps_per_print": "logging.every_steps",
}
_JSON_OWNS = {
    "zero_optimization",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "sparse_gradients",
    "data_types",
    "activation_checkpointing",
    "aio",
    "comms_logger",
    "flops_profiler",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
}


def find_deepspeed_config(name_or_path: str) -> Path:
    """A JSON file, or one of ds_configs/ by its name (in the installed package, or beside it in the source tree)."""
    if os.path.isfile(name_or_path):
        return Path(name_or_path)
    folders = [Path(__file__).parents[up] / "ds_configs" for up in (1, 2)]
    for folder in folders:
        if os.path.isfile(folder / f"{name_or_path}.json"):
            return folder / f"{name_or_path}.json"
    known = sorted({p.stem for folder in folders for p in folder.glob("*.json")})
    raise UsageError(f"engine.deepspeed is {name_or_path!r}: give a JSON file or one of {', '.join(known)}")


def merge_deepspeed_config(config: RunConfig, precision: str, world_size: int) -> dict[str, Any]:
    """What DeepSpeed is given: the JSON's keys and the recipe's, each from its owner.

    Raises:
        UsageError: a JSON with a key that the recipe owns or that DeepSpeed would not know, or a bad combination.
    """
    path = find_deepspeed_config(config.engine.deepspeed)
    merged = read_json(path, 1 << 20)
    if not isinstance(merged, dict) or not isinstance(merged.get("zero_optimization", {}), dict):
        raise UsageError(f"{path} is no object with an object zero_optimization: write it as those in ds_configs/")
    for key in merged:
        if key in _RECIPE_OWNS:
            raise UsageError(f"{path}: {key} belongs into the recipe, as {_RECIPE_OWNS[key]}: remove it here")
        if key not in _JSON_OWNS:
            raise UsageError(f"{path}: unknown key {key}: there are {', '.join(sorted(_JSON_OWNS))}")
    stage = merged.setdefault("zero_optimization", {}).setdefault("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise UsageError(f"{path}: zero_optimization.stage is {shown(stage)}: give 0 to 3")
    if config.optimizer.name == "lamb" and stage > 0:
        raise UsageError(
            f"optimizer.name lamb with ZeRO stage {stage}: LAMB needs the norm of whole tensors, which a shard does "
            "not have. Use engine.deepspeed=zero0, or optimizer.name=adamw"
        )
    within_a_node = stage < 3 and world_size <= torch.cuda.device_count()
    if (world_size == 1 or within_a_node) and "overlap_comm" in merged["zero_optimization"]:
        # DeepSpeed makes the host wait for the GPU whenever it reduces. Alone there is nothing to overlap; between the
        # GPUs of a node, less than the waiting costs.
        merged["zero_optimization"]["overlap_comm"] = False
    accumulation = config.schedule.accumulation
    monitors = {
        {"csv": "csv_monitor"}.get(name, name): {
            "enabled": True,
            **({"project": "imagebert"} if name == "wandb" else {}),
            **({"output_path": f"{config.output}/monitor", "job_name": config.stage} if name != "wandb" else {}),
        }
        for name in config.logging.monitors
    }
    return {
        **merged,
        **monitors,
        # Microbatches are of unequal size: losses arrive normalised, and DeepSpeed only has to count calls.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": world_size * accumulation,
        # Clipped on the device (optimizers.py): DeepSpeed would wait for the norm.
        "gradient_clipping": 0.0,
        # So is passed over what is not finite: DeepSpeed would look for it on the host.
        "bf16": {"enabled": precision == "bf16", "check_grad_overflow": False},
        "steps_per_print": sys.maxsize,
        # Waits for the GPU at both ends of a step.
        "timers": {"throughput": {"enabled": False}},
        "zero_force_ds_cpu_optimizer": False,
    }


def zero_stage(config: RunConfig) -> int:
    """How far the recipe's JSON shards: 0 to 3."""
    merged = merge_deepspeed_config(config, "fp32", distributed.world_size())
    return int(merged["zero_optimization"]["stage"])


def resolve_precision(config: RunConfig) -> str:
    """fp32 or bf16: what `auto` means on this machine."""
    if config.engine.precision != "auto":
        return config.engine.precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def _go_on_at_wandb(config: RunConfig) -> None:
    """All attempts of a run are one run at Weights & Biases: its id is kept in the run's folder."""
    if "wandb" not in config.logging.monitors or distributed.rank() != 0 or "WANDB_RUN_ID" in os.environ:
        return
    file = Path(config.output) / "wandb_id"
    name = ""
    with suppress(OSError, UnicodeDecodeError):
        name = file.read_text(encoding="ascii").strip()
    if not re.fullmatch("[0-9a-z]{16}", name):
        name = secrets.token_hex(8)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, f"{name}\n".encode())
        except OSError as error:
            log.warning("cannot write %s (%s): the next attempt is another run at wandb", file, error.strerror)
    # Read when wandb starts, which a process does once: a second run in it brings its own.
    os.environ.update(WANDB_RUN_ID=name, WANDB_RESUME="allow")


def _forgiving(write: Callable[[Any], None], where: str) -> Callable[[Any], None]:
    """The same, but a disk that does not take it is told of once and ends nothing. DeepSpeed too writes, every step."""
    told = False

    def forgiving(events: Any) -> None:
        nonlocal told
        try:
            write(events)
        except OSError as error:
            if not told:
                log.warning("cannot write %s (%s): training goes on without", where, error)
            told = True

    return forgiving


class Engine:
    """A model with its optimizer, sharded over the ranks. Collective: all ranks make the same calls."""

    def __init__(self, model: nn.Module, config: RunConfig) -> None:
        check_monitors(config)
        self._compiled = config.engine.step == "compiled"
        self.precision = resolve_precision(config)
        merged = merge_deepspeed_config(config, self.precision, distributed.world_size())
        self.stage: int = merged["zero_optimization"]["stage"]
        # DeepSpeed averages over ranks and microbatches; the losses are already parts of a global mean.
        self._sum_from_mean = distributed.world_size() * config.schedule.accumulation
        optimizer = make_optimizer(model, config.optimizer)
        self._engine: Any
        _go_on_at_wandb(config)
        try:
            self._engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=merged, dist_init_required=False
            )
        except OSError as error:
            if not config.logging.monitors:
                raise
            raise OSError(
                f"cannot write {config.output}/monitor ({error.strerror}): free some space, or leave out "
                "logging.monitors"
            ) from None
        for monitor in vars(self._engine.monitor).values():
            if hasattr(monitor, "write_events"):
                monitor.write_events = _forgiving(monitor.write_events, f"{config.output}/monitor")
        if hasattr(self._engine.optimizer, "fp32_groups_flat"):
            raise UsageError(
                "optimizer.implementation deepspeed in bf16 without ZeRO keeps its weights where no checkpoint finds "
                "them: take torch, or engine.deepspeed=zero1"
            )
        forget_steps(self._engine)
        if self.stage == 0 and distributed.world_size() == 1:
            # It would flatten all gradients, "reduce" them, and copy them back.
            self._engine.enable_backward_allreduce = False
        self._host: dict[str, Tensor] = {}  # a snapshot's memory, which goes round
        # Of the last step, and of all steps so far: whether its gradient was not finite, so that nothing moved.
        self._norm: Tensor | float = 0.0
        self._bad: Tensor | float = 0.0
        self._skipped: Tensor | float = 0.0

        def clip(*_: Any) -> None:  # ZeRO steps one group after the other: the same norm for each
            self._norm = self._global_norm(optimizer)
            self._bad = scale_gradients(optimizer, self._norm, config.optimizer.gradient_clipping)

        optimizer.register_step_pre_hook(clip)
        log.info("DeepSpeed ZeRO-%d, %s, %d ranks", self.stage, self.precision, distributed.world_size())

    def __call__(self, batch: Any) -> Any:
        # A batch without fill has a shape of its own: it is not worth compiling for.
        eager = self._compiled and batch.tokens == batch.real_tokens
        with torch.compiler.set_stance("force_eager") if eager else nullcontext():
            return self._engine(batch)

    def close(self) -> None:
        """Gives the memory back: DeepSpeed's hooks hold an engine beyond its last use."""
        self._engine.destroy()

    def capture(self, batch: PackedBatch) -> None:
        """From now on, batches of this shape are trained on by replaying two CUDA graphs, of forward and backward."""
        module = self._engine.module
        plain, replayed = module.forward, Graphed(module, batch)
        told = False

        def forward(batch: PackedBatch) -> Any:
            nonlocal told
            if replayed.fits(batch) and module.training:
                return replayed(batch)
            if module.training and not told:
                log.warning("a microbatch is larger than the graph's: it runs without, and so will others like it")
                told = True
            return plain(batch)

        module.forward = forward

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of one microbatch; after the last of a step, the weights move.

        Args:
            loss: this microbatch's part of the global mean: the parts of all ranks and microbatches sum to the loss
        """
        with record_function("backward"):
            self._engine.backward(loss * self._sum_from_mean)
        last = self._engine.is_gradient_accumulation_boundary()
        with record_function("optimizer"):
            self._engine.step()
        if last:
            if getattr(self._engine.optimizer, "overflow", False):  # DeepSpeed left the step out by itself
                self._norm, self._bad = float("inf"), 1.0
            self._skipped = self._skipped + self._bad

    def set_learning_rate(self, rate: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate * group["rate"]

    def gradient_norm(self) -> Tensor | float:
        """Norm of the whole gradient at the last step, before clipping. On the device."""
        return self._norm

    def skipped(self) -> Tensor | float:
        """1 where the last step moved nothing since its gradient was not finite, on all ranks alike. On the device."""
        return self._bad

    def skipped_updates(self) -> float:
        """How many steps moved nothing so far, over all restarts. Synchronises."""
        return float(self._skipped)

    def _global_norm(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Of the gradient of this step, while DeepSpeed's wrapper steps `optimizer`."""
        wrapper = self._engine.optimizer
        if wrapper is optimizer:
            return nn.utils.get_total_norm([p.grad for g in optimizer.param_groups for p in g["params"]])
        return torch.as_tensor(wrapper._global_grad_norm)

    def write_monitors(self, values: dict[str, float], step: int) -> None:
        if distributed.rank() == 0 and self._engine.monitor.enabled:
            self._engine.monitor.write_events([(name, value, step) for name, value in values.items()])

    def layout(self) -> dict[str, Any]:
        """How states are cut and computed; a checkpoint of one layout goes on in any other."""
        return {"ranks": distributed.world_size(), "zero_stage": self.stage, "precision": self.precision}

    def snapshot(self) -> Snapshot:
        """A copy of what this rank has to save, in host memory that the next snapshot uses again."""
        rank, ranks = distributed.rank(), distributed.world_size()
        pieces, values = [], []
        for name, start, tensors in fragments(self._engine, self.stage):
            if self.stage == 0:  # all ranks have all: each saves its share
                n = len(tensors["weight"])
                start, end = n * rank // ranks, n * (rank + 1) // ranks
                tensors = {key: t[start:end] for key, t in tensors.items()}
            pieces.append(Piece(name, start, len(tensors["weight"])))
            values.append(tensors)
        total = sum(piece.n for piece in pieces)
        on_gpu = distributed.device().type == "cuda"
        for key in ("weight", *MOMENTS):
            if key not in self._host:
                self._host[key] = torch.empty(total, pin_memory=on_gpu)
            places = torch.split(self._host[key], [piece.n for piece in pieces])
            for place, tensors in zip(places, values, strict=True):
                place.copy_(tensors[key], non_blocking=True)
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return Snapshot(pieces, self._host)

    def counters(self) -> dict[str, int]:
        """What a checkpoint holds beside tensors. Synchronises."""
        return {"updates": updates(basic_optimizer(self._engine)), "skipped": int(self._skipped)}

    def restore(self, shards: Shards, counters: dict[str, int]) -> None:
        """Takes weights and moments from a checkpoint, whatever ranks and stage it was saved with. Collective.

        Raises:
            UsageError: it is of another model.
        """
        for name, start, tensors in fragments(self._engine, self.stage):
            for key, tensor in tensors.items():
                shards.read(name, key, start, tensor)
        refresh(self._engine, self.stage)
        set_updates(basic_optimizer(self._engine), counters["updates"])
        self._skipped = float(counters["skipped"])

    def copy_weights(self, model: nn.Module) -> None:
        """Gives a model of the same architecture the weights as they are now, those that it has. Collective."""
        places = dict(model.named_parameters())
        with torch.no_grad():
            for name, parameter in self._engine.module.named_parameters():
                gathered = deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3)
                with gathered:
                    if name in places:
                        places[name].copy_(parameter)

    def full_weights(self) -> dict[str, Tensor] | None:
        """Every parameter in float32 on the CPU; None on ranks other than 0."""
        high = {id(p): master for p, master in masters(self._engine)}
        weights = {}
        for name, parameter in self._engine.module.named_parameters():
            whole = safe_get_full_fp32_param(parameter) if self.stage else high.get(id(parameter), parameter)
            if distributed.rank() == 0:
                weights[name] = whole.detach().to("cpu", torch.float32).clone()
        return weights if distributed.rank() == 0 else None
