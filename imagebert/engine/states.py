"""Where DeepSpeed keeps the float32 weights and moments of each parameter: as views, whatever the ZeRO stage.

A checkpoint is written from these views and read back into them, so it does not matter how many ranks and which stage
cut the parameters when it was written. What DeepSpeed derives from them (weights in bf16, gathered copies) follows by
`refresh`. Nothing else in DeepSpeed's engine outlives a step: the schedule, clipping and skipping are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imagebert import distributed

MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW and LAMB remember of a parameter


class Fragment(NamedTuple):
    """A run of one parameter's elements that this rank updates."""

    name: str
    start: int  # of the parameter, flattened
    values: dict[str, Tensor]  # weight, exp_avg, exp_avg_sq: [n] float32, views of the real ones


def fragments(engine: Any, stage: int) -> list[Fragment]:
    """This rank's fragments; without ZeRO every rank has all parameters whole.

    Args:
        engine: DeepSpeed's
    """
    optimizer = basic_optimizer(engine)
    return [
        Fragment(name, start, {key: t.view(-1)[offset : offset + n] for key, t in _values(optimizer, whole).items()})
        for name, start, whole, offset, n in _places(engine, stage)
    ]


def basic_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that we gave to DeepSpeed, out of its wrapper."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def refresh(engine: Any, stage: int) -> None:
    """Makes what is derived from the float32 weights follow them. Collective."""
    wrapper = engine.optimizer
    if stage == 3:
        wrapper._partition_all_parameters()
        for group in range(len(wrapper.fp16_groups)):
            wrapper._reassign_or_swap_out_partitioned_parameters(group)
        wrapper.invalidate_secondary_tensor()  # ZeRO++'s copy within the node
        # Small parameters, which it keeps whole, are gathered at the next forward: done here, DeepSpeed 0.19's first
        # backward finds them empty.
    elif stage > 0:
        wrapper.update_lp_params()
    else:
        for p, master in masters(engine):
            p.data.copy_(master.data)


def masters(engine: Any) -> list[tuple[Tensor, Tensor]]:
    """In bf16 without ZeRO each parameter with its float32 master, which DeepSpeed keeps in lists beside; else none."""
    wrapper = engine.optimizer
    if not hasattr(wrapper, "fp32_groups"):
        return []
    groups = zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
    return [pair for low, high in groups for pair in zip(low, high, strict=True)]


def forget_steps(engine: Any) -> None:
    """Undoes what DeepSpeed does in bf16 without ZeRO when it starts: a step with gradients of zero, which decays."""
    if found := masters(engine):
        for p, master in found:
            master.data.copy_(p.data)
        for state in basic_optimizer(engine).state.values():
            for key in MOMENTS:
                state[key].zero_()
        set_updates(basic_optimizer(engine), 0)


def updates(optimizer: torch.optim.Optimizer) -> int:
    """How often the weights were moved: what the moments' bias correction counts. Synchronises."""
    counts = [state["step"] for state in optimizer.state.values() if "step" in state]
    counts += [group["step"] for group in optimizer.param_groups if "step" in group]  # apex
    return int(max(counts, default=0))  # DeepSpeed's FusedAdam counts in one of its tensors only


def set_updates(optimizer: torch.optim.Optimizer, count: int) -> None:
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"].fill_(count)
        elif "step" in state:
            state["step"] = count
    for group in optimizer.param_groups:
        if "step" in group or _counts_in_groups(optimizer):
            group["step"] = count


def _counts_in_groups(optimizer: torch.optim.Optimizer) -> bool:
    """apex's do, from their first step on."""
    return type(optimizer).__module__.startswith("apex")


def _places(engine: Any, stage: int) -> Iterator[tuple[str, int, Tensor, int, int]]:
    """Parameter, first element of it, and where it lies: a tensor that the optimizer steps, offset and length there."""
    wrapper, parameters = engine.optimizer, dict(engine.module.named_parameters())
    names = {id(p): name for name, p in parameters.items()}
    if stage == 3:
        for name, p in parameters.items():
            group, offset, part = wrapper.grad_position[wrapper.get_param_id(p)]
            start = part * distributed.rank()
            n = min(part, p.ds_numel - start)  # the last ranks' parts may be fill
            if n > 0:
                yield name, start, wrapper.fp32_partitioned_groups_flat[group], offset, n
    elif stage > 0:
        for group, flat in zip(wrapper.bit16_groups, wrapper.single_partition_of_fp32_groups, strict=True):
            for p in group:
                if (place := p._hp_mapping) is not None:
                    here, there = place.lp_fragment_address, place.hp_fragment_address
                    yield names[id(p)], here.start, flat, there.start, there.numel
    elif found := masters(engine):
        for p, master in found:
            yield names[id(p)], 0, master, 0, master.numel()
    else:
        for name, p in parameters.items():
            yield name, 0, p, 0, p.numel()


def _values(optimizer: torch.optim.Optimizer, whole: Tensor) -> dict[str, Tensor]:
    """A tensor that the optimizer steps, with its moments; they are made where there was no step yet."""
    state = optimizer.state[whole]
    if not state:
        state.update({key: torch.zeros_like(whole.data) for key in MOMENTS})
        if not _counts_in_groups(optimizer):
            state["step"] = torch.zeros((), device=whole.device)
    return {"weight": whole.data, **{key: state[key] for key in MOMENTS}}
