from __future__ import annotations

import numpy as np
import pytest
import torch

from imagebert.config import OptimizerConfig, UsageError
from imagebert.engine.optimizers import make_optimizer, scale_gradients
from imagebert.model import ImageBertConfig, ImageBertForImageTextRetrieval


def test_biases_and_norms_are_not_decayed() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    for name in ("adamw", "lamb"):
        decayed, others = make_optimizer(model, OptimizerConfig(name=name)).param_groups  # type: ignore[arg-type]
        assert [p.shape for p in decayed["params"]] == [(4, 3)]
        assert len(others["params"]) == 3
        assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)


def test_what_is_new_to_a_text_model_may_have_a_rate_of_its_own() -> None:
    model = ImageBertForImageTextRetrieval(ImageBertConfig.preset("tiny", dual_size=8, feature_size=12))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = make_optimizer(model, OptimizerConfig(new_rate=10)).param_groups
    found = {names[id(p)] for group in groups if group["rate"] == 10 for p in group["params"]}
    expected = {f"imagebert.embeddings.{n}.{p}" for n in ("region_projection", "location_projection")
                for p in ("weight", "bias")}  # fmt: skip
    assert found == expected | {name for name in names.values() if name.startswith("dual.")}
    assert sum(len(group["params"]) for group in groups) == len(names)
    assert {(g["rate"], g["weight_decay"]) for g in groups} == {(1, 0.01), (1, 0), (10, 0.01), (10, 0)}


def test_what_makes_vectors_may_stay_as_it_is() -> None:
    config = ImageBertConfig.preset("tiny", dual_size=8, feature_size=12, fusion_layer=2, residual_score=True)
    model = ImageBertForImageTextRetrieval(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, OptimizerConfig(side_rate=0, new_rate=10, learning_rate=0.1))
    for group in optimizer.param_groups:  # as the schedule does
        group["lr"] = 0.1 * group["rate"]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    sides = ("imagebert.embeddings.", "imagebert.layers.0.", "imagebert.layers.1.", "dual.")
    assert moved == {name for name in before if not name.startswith(sides)}
    assert {name.split(".")[2] for name in moved if ".layers." in name} == {"2", "3"}
    groups = make_optimizer(model, OptimizerConfig(side_rate=0.5)).param_groups
    assert {group["rate"] for group in groups} == {1, 0.5}


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


def steps(name: str, largest: float, gradients: list[torch.Tensor], by_hand: bool) -> torch.Tensor:
    """The weights after a step for each gradient, clipped by PyTorch's own function or by ours."""
    model = torch.nn.Linear(5, 4, bias=False)
    model.weight.data = torch.arange(20.0).view(4, 5) / 10
    optimizer = make_optimizer(model, OptimizerConfig(name=name, learning_rate=0.1))  # type: ignore[arg-type]
    for gradient in gradients:
        model.weight.grad = gradient.clone()
        if by_hand:
            torch.nn.utils.clip_grad_norm_(model.parameters(), largest or float("inf"))
        else:
            scale_gradients(optimizer, gradient.norm(), largest)
        optimizer.step()
    return model.weight.detach()


@pytest.mark.parametrize("name", ["adamw", "lamb"])
@pytest.mark.parametrize("largest", [0.0, 0.5, 100.0])
def test_gradients_are_clipped_as_by_pytorch(name: str, largest: float) -> None:
    gradients = [torch.randn(4, 5, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    torch.testing.assert_close(steps(name, largest, gradients, False), steps(name, largest, gradients, True))


@pytest.mark.parametrize("name", ["adamw", "lamb"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_a_gradient_that_is_not_finite_moves_nothing(name: str, bad: float) -> None:
    good = [torch.randn(4, 5, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    spoilt = good[0].clone()
    spoilt[1, 2] = bad  # its square at least is not finite
    assert torch.equal(steps(name, 1.0, [good[0], spoilt, good[1]], False), steps(name, 1.0, good, False))


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "other"), [("adamw", "deepspeed"), ("lamb", "deepspeed"), ("lamb", "apex")])
def test_implementations_agree(name: str, other: str) -> None:
    """On a GPU where they are installed: the same weights from the same gradients, a spoilt one among them."""
    results = []
    for implementation in ("torch", other):
        config = OptimizerConfig(name=name, implementation=implementation, learning_rate=0.01)  # type: ignore[arg-type]
        model = torch.nn.Sequential(torch.nn.Linear(33, 20), torch.nn.LayerNorm(20))
        for number, p in enumerate(model.parameters()):
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
        if torch.cuda.is_available():
            model.cuda()
        try:
            optimizer = make_optimizer(model, config)
        except UsageError as error:
            pytest.skip(str(error))
        for step in range(6):
            for number, p in enumerate(model.parameters()):
                gradient = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + number))
                p.grad = gradient.to(p.device) * (float("nan") if step == 3 else 1)
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
            scale_gradients(optimizer, norm, 0.5)
            optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


def test_an_implementation_that_is_not_there_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.Linear(3, 4)
    with caplog.at_level("INFO"):
        make_optimizer(model, OptimizerConfig(name="lamb"))
    if not torch.cuda.is_available():
        assert "optimizer: Lamb of torch (apex: needs a GPU; deepspeed: needs a GPU)" in caplog.text
        with pytest.raises(UsageError, match=r"apex is not there \(apex: needs a GPU\): take auto"):
            make_optimizer(model, OptimizerConfig(name="lamb", implementation="apex"))
