"""Seeds: one draw for many operations, each of which gives what it gives with that seed alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from imagebert_kernels import residual_layer_norm
from imagebert_kernels.dropout import draw_seeds, seed_of
from tests.kernels.numerics import DEVICE, TYPES, normal


def count_draws(call: Callable[[], object]) -> int:
    with torch.profiler.profile() as profiler:
        call()
    return sum(event.count for event in profiler.key_averages() if event.key == "aten::randint")


def test_one_draw_for_all(kernel: None) -> None:
    like = normal(3).to(TYPES[0])
    assert count_draws(lambda: draw_seeds(37, like)) == 1
    seeds = draw_seeds(37, like)
    assert len({int(seed) for seed in seeds if seed is not None}) == 37
    for seed in seeds:
        assert seed is not None
        assert (seed.shape, seed.dtype, seed.device.type) == ((1,), torch.int64, DEVICE.type)
    # Triton compiles a kernel again for a pointer that is less aligned than the first.
    assert len({seed.data_ptr() % 16 for seed in seeds if seed is not None}) == 1


def test_the_reference_draws_for_itself(entry: str) -> None:
    seeds = draw_seeds(2, normal(3).to(TYPES[0]))
    assert [seed is None for seed in seeds] == [entry == "reference"] * 2


def test_a_given_seed_decides_alone(kernel: None) -> None:
    x, residual = (normal(9, 64, seed=s).to(TYPES[0]) for s in (0, 1))
    vectors = [normal(64, seed=s).to(TYPES[0]) for s in (2, 3, 4)]

    def run(seed: Tensor) -> Tensor:
        return residual_layer_norm(x, vectors[0], residual, *vectors[1:], 1e-5, 0.25, seed)

    first, second = (torch.tensor([value], device=DEVICE) for value in (5, 6))
    assert torch.equal(run(first), run(first))
    assert not torch.equal(run(first), run(second))
    assert count_draws(lambda: run(first)) == 0


@pytest.mark.parametrize("given", [None, torch.tensor([3])])
def test_nothing_is_drawn_without_dropout(given: Tensor | None) -> None:
    assert seed_of(0.0, given, DEVICE) is None
    assert count_draws(lambda: seed_of(0.0, given, DEVICE)) == 0
