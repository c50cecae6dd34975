"""AdamW and LAMB over BERT's two groups of parameters: biases and LayerNorms are not decayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from imagebert.config import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if config.name == "lamb":
        return Lamb(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True)


def scale_gradients(optimizer: torch.optim.Optimizer, norm: Tensor, largest: float) -> Tensor:
    """Clips the gradient to `largest` (0: not at all); AdamW's step leaves all alone where the norm is not finite.

    On the device: PyTorch's fused AdamW takes both as tensors (its way of loss scaling), at no pass over the gradient.
    Returns 1 where the norm is not finite, else 0.
    """
    scale = ((norm + 1e-6) / largest).clamp(min=1) if largest else torch.ones_like(norm)
    bad = (~torch.isfinite(norm)).float()
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.grad_scale, optimizer.found_inf = scale.float(), bad  # type: ignore[attr-defined]
        return bad
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    torch._foreach_mul_(gradients, 1 / scale)
    return bad


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2020, algorithm 2): Adam's direction, scaled per tensor to the size of its weights.

    Needs whole tensors: ZeRO's shards have no norm of their own.
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

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
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                step = int(state["step"])
                mean, square = state["exp_avg"], state["exp_avg_sq"]
                mean.lerp_(parameter.grad, 1 - beta1)
                square.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                update = (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt() + group["eps"])
                update.add_(parameter, alpha=group["weight_decay"])
                parameter.add_(update * _trust(parameter, update), alpha=-group["lr"])
        return loss


def _trust(weights: Tensor, update: Tensor) -> Tensor:
    """|weights| / |update|, 1 where either is zero; stays on the device."""
    weight_norm, update_norm = weights.norm(), update.norm()
    ratio = weight_norm / update_norm
    return torch.where((weight_norm > 0) & (update_norm > 0), ratio, torch.ones_like(ratio))
