"""Which of an operation's two entries runs: the Triton kernel or the plain PyTorch reference.

Decided here and asked by each operation once, in its dispatch. `auto` takes the kernels for bfloat16 and float16 on a
GPU: float32 has no matrix instruction of its precision. `reference` forces PyTorch everywhere; `triton` forces the
kernels for all but float64, on a CPU too where Triton's interpreter is on (TRITON_INTERPRET=1). The environment
variable IMAGEBERT_KERNELS, where it is set, wins over `choose`.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

Choice = Literal["auto", "reference", "triton"]
VARIABLE = "IMAGEBERT_KERNELS"

_chosen: Choice = "auto"


def choose(choice: Choice, device: torch.device) -> None:
    """Sets the choice for this process, whose work is on `device`: the recipe's key `engine.kernels`.

    Raises:
        ValueError: the environment variable holds no choice, or the kernels are forced where they cannot run.
    """
    global _chosen
    _chosen = choice
    if _choice() == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"engine.kernels or {VARIABLE} is triton, but there is no GPU: choose auto, or set TRITON_INTERPRET=1 for "
            "Triton's interpreter, which is slow"
        )


def uses_kernels(tensor: Tensor) -> bool:
    """Whether an operation on `tensor` goes to its kernel.

    Raises:
        ValueError: the environment variable holds no choice.
    """
    choice = _choice()
    if choice == "auto":
        return tensor.device.type == "cuda" and tensor.dtype in (torch.bfloat16, torch.float16)
    return choice == "triton" and tensor.dtype != torch.float64


def _choice() -> str:
    choice = os.environ.get(VARIABLE, _chosen)
    if choice not in get_args(Choice):
        raise ValueError(f"{VARIABLE}={choice}: give one of {', '.join(get_args(Choice))}")
    return choice


def programs(device: torch.device, resident: int = 2) -> int:
    """How many programs a kernel starts whose programs walk over rows and keep sums: as a multiprocessor holds."""
    return resident * _multiprocessors(device) if device.type == "cuda" else 2


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache
def is_hopper(device: torch.device) -> bool:
    """Compute capability 9.0 or above. The interpreter passes for one."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)
