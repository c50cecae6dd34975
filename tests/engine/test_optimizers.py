from __future__ import annotations

import numpy as np
import torch

from imagebert.config import OptimizerConfig
from imagebert.engine.optimizers import make_optimizer


def test_biases_and_norms_are_not_decayed() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    for name in ("adamw", "lamb"):
        decayed, others = make_optimizer(model, OptimizerConfig(name=name)).param_groups  # type: ignore[arg-type]
        assert [p.shape for p in decayed["params"]] == [(4, 3)]
        assert len(others["params"]) == 3
        assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)


def test_lamb_is_the_papers_algorithm() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 2))
    model = torch.nn.Linear(2, 3, bias=False, dtype=torch.float64)
    model.weight.data.copy_(torch.from_numpy(weights))
    optimizer = make_optimizer(model, OptimizerConfig(name="lamb", learning_rate=0.1, weight_decay=0.05))
    mean, square = np.zeros((3, 2)), np.zeros((3, 2))
    for step in range(1, 6):
        gradient = rng.normal(size=(3, 2))
        model.weight.grad = torch.from_numpy(gradient)
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        update = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-6) + 0.05 * weights
        weights = weights - 0.1 * np.linalg.norm(weights) / np.linalg.norm(update) * update
        np.testing.assert_allclose(model.weight.detach().numpy(), weights, rtol=1e-10)
