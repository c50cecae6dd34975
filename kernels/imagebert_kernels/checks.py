"""Arguments are checked before anything runs, without reading from the device: what is wrong is named."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def must(operation: str, holds: bool, name: str, found: object, wanted: str) -> None:
    """Raises ValueError unless it holds."""
    if not holds:
        raise ValueError(f"{operation}: {name} is {found}; it must be {wanted}")


def check_tensor(
    operation: str,
    name: str,
    tensor: Tensor,
    letters: str,
    shape: Sequence[int | None],
    like: Tensor,
    *dtypes: torch.dtype,
) -> None:
    """A contiguous tensor of `shape` (None: any size), on the device of `like`; of one of `dtypes`, or as `like`."""
    found = tuple(tensor.shape)
    fits = len(found) == len(shape) and all(w is None or f == w for f, w in zip(found, shape, strict=False))
    sizes = ", ".join("any" if w is None else str(w) for w in shape)
    must(operation, fits, f"the shape of {name}", found, f"[{letters}] = [{sizes}]")
    wanted = dtypes or (like.dtype,)
    named = " or ".join(str(d).removeprefix("torch.") for d in wanted)
    must(operation, tensor.dtype in wanted, f"the type of {name}", tensor.dtype, named)
    must(operation, tensor.device == like.device, f"the device of {name}", tensor.device, str(like.device))
    must(operation, tensor.is_contiguous(), f"the stride of {name}", tensor.stride(), "contiguous")
