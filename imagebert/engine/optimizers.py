"""AdamW and LAMB over BERT's two groups of parameters: biases and LayerNorms are not decayed. The gate of apex."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from imagebert.config import OptimizerConfig, UsageError

log = logging.getLogger(__name__)

_Groups = list[dict[str, Any]]


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of a recipe, over `model`'s parameters; says which implementation it is.

    Raises:
        UsageError: the implementation that was asked for is not there.
    """
    groups: _Groups = []
    for factor, named in _by_rate(model, config):
        decayed, others = [p for p in named if p.dim() >= 2], [p for p in named if p.dim() < 2]
        groups.append({"params": decayed, "weight_decay": config.weight_decay, "rate": factor})
        groups.append({"params": others, "weight_decay": 0.0, "rate": factor})
    makers = _ADAMW if config.name == "adamw" else _LAMB
    reasons = []
    for name, make in makers.items():
        if config.implementation in ("auto", name):
            try:
                optimizer = make(groups, {"lr": config.learning_rate, "betas": config.betas, "eps": config.epsilon})
            except (ImportError, RuntimeError, OSError) as error:  # not installed, not for this machine, no compiler
                reasons.append(f"{name}: {' '.join(str(error).split())[:120]}")
            else:
                log.info(
                    "optimizer: %s of %s%s", type(optimizer).__name__, name, f" ({'; '.join(reasons)})" * bool(reasons)
                )
                return optimizer
    raise UsageError(f"optimizer.implementation {config.implementation} is not there ({'; '.join(reasons)}): take auto")


# Parts of names of parameters that no text model has.
_NEW = ("region_projection", "location_projection", "global_image", "dual.")


def _by_rate(model: nn.Module, config: OptimizerConfig) -> list[tuple[float, list[nn.Parameter]]]:
    """Factors of the learning rate and the parameters that have it; those with 1 first."""
    found: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = config.new_rate if any(part in name for part in _NEW) else 1.0
            factor *= config.side_rate if config.side_rate != 1 and _makes_vectors(model, name) else 1.0
            found.setdefault(factor, []).append(parameter)
    return [(factor, named) for factor, named in found.items() if named]


def _makes_vectors(model: nn.Module, name: str) -> bool:
    """Whether a parameter takes part in the vectors of images and texts."""
    fusion_layer = int(model.config.fusion_layer)  # type: ignore[union-attr, arg-type]
    layer = re.search(r"\blayers\.(\d+)\.", name)
    return "embeddings." in name or "dual." in name or (layer is not None and int(layer[1]) < fusion_layer)


def _torch_adamw(groups: _Groups, settings: dict[str, Any]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, **settings, fused=True)


def _deepspeed_adamw(groups: _Groups, settings: dict[str, Any]) -> torch.optim.Optimizer:
    _need_gpu()
    from deepspeed.ops.adam import FusedAdam

    return FusedAdam(groups, **settings, adam_w_mode=True)


def _apex_lamb(groups: _Groups, settings: dict[str, Any]) -> torch.optim.Optimizer:
    _need_gpu()
    try:
        from apex.optimizers import FusedLAMB  # PyPI's apex is something else
    except ImportError as error:
        raise ImportError(f"{error}; build it from https://github.com/NVIDIA/apex with APEX_CUDA_EXT=1") from None
    # The paper scales every tensor, which apex calls NVLAMB; the gradient is clipped already.
    return FusedLAMB(groups, **settings, use_nvlamb=True, max_grad_norm=1e30)


def _deepspeed_lamb(groups: _Groups, settings: dict[str, Any]) -> torch.optim.Optimizer:
    _need_gpu()
    from deepspeed.ops.lamb import FusedLamb

    return FusedLamb(groups, **settings, max_coeff=float("inf"), min_coeff=0.0)


def _torch_lamb(groups: _Groups, settings: dict[str, Any]) -> torch.optim.Optimizer:
    return Lamb(groups, **settings)


def _need_gpu() -> None:
    if not torch.cuda.is_available():
        raise RuntimeError("needs a GPU")


# By preference. PyTorch's AdamW is as fused as DeepSpeed's, and takes clipping and skipping as tensors: neither a pass
# over the gradient nor a wait of the host.
_ADAMW = {"torch": _torch_adamw, "deepspeed": _deepspeed_adamw}
_LAMB = {"apex": _apex_lamb, "deepspeed": _deepspeed_lamb, "torch": _torch_lamb}


def scale_gradients(optimizer: torch.optim.Optimizer, norm: Tensor, largest: float) -> Tensor:
    """Clips the gradient to `largest` (0: not at all); the step after it leaves all alone where the norm is not finite.

    On the device with PyTorch's AdamW and our LAMB, which take both as tensors (PyTorch's way of loss scaling), at no
    pass over the gradient; others make the host wait. Returns 1 where the norm is not finite, else 0.
    """
    scale = ((norm + 1e-6) / largest).clamp(min=1) if largest else torch.ones_like(norm)
    bad = (~torch.isfinite(norm)).float()
    if isinstance(optimizer, torch.optim.AdamW | Lamb):
        optimizer.grad_scale, optimizer.found_inf = scale.float(), bad  # type: ignore[union-attr]
        return bad
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if bad:
        for p in parameters:  # they step over those without
            p.grad = None
        for group in optimizer.param_groups:
            if "step" in group:  # apex counts all the same
                group["step"] -= 1
    elif largest:
        torch._foreach_mul_([p.grad for p in parameters], 1 / scale)
    return bad


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2020, algorithm 2): Adam's direction, scaled per tensor to the size of its weights.

    Needs whole tensors: ZeRO's shards have no norm of their own.
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

        # Set by scale_gradients: what to divide gradients by, and whether to leave all as it is.
        self.grad_scale: Tensor | None = None
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), device=parameter.device)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                # 1, or 0 for a step that changes nothing: every change below is a product with it.
                moves = (
                    1.0 - (self.found_inf if self.found_inf is not None else torch.zeros_like(state["step"])).double()
                )
                gradient = parameter.grad if self.grad_scale is None else parameter.grad / self.grad_scale
                if self.found_inf is not None:  # a product with 0 is not enough: the square of a large one is infinite
                    gradient = gradient.masked_fill(self.found_inf.bool(), 0)
                state["step"] += moves
                step = state["step"].double().clamp(min=1)
                mean, square = state["exp_avg"], state["exp_avg_sq"]
                mean.lerp_(gradient, ((1 - beta1) * moves).to(mean.dtype))
                square.lerp_(gradient.square(), ((1 - beta2) * moves).to(mean.dtype))
                direction = mean / (1 - beta1**step) / ((square / (1 - beta2**step)).sqrt() + group["eps"])
                update = direction.to(mean.dtype).add_(parameter, alpha=group["weight_decay"])
                parameter.sub_(update * (_trust(parameter, update) * group["lr"] * moves).to(mean.dtype))
        return loss


def _trust(weights: Tensor, update: Tensor) -> Tensor:
    """|weights| / |update|, 1 where either is zero; stays on the device."""
    weight_norm, update_norm = weights.norm(), update.norm()
    ratio = weight_norm / update_norm
    return torch.where((weight_norm > 0) & (update_norm > 0), ratio, torch.ones_like(ratio))
