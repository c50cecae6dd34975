"""What the engine really holds, and what it sends: `probe` starts the ranks, and `main` is what they do."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from imagebert import distributed
from imagebert.config import SourceConfig, load_recipe
from imagebert.data.corpus import Corpus
from imagebert.engine.engine import Engine
from imagebert.feed.arena import Arena
from imagebert.feed.packer import Limits, Packer
from imagebert.training.assemble import make_masking, make_model, make_plan
from imagebert.training.objectives import make_objective
from tests.forked import finish, start_ranks


def probe(ranks: int, source: SourceConfig, out: Path, recipes: list[list[str]]) -> list[dict[str, float]]:
    """Of each recipe, in what it differs from tests/recipe.yaml: the parameters, bytes of all tensors alive between
    steps (the batch's left out), and elements that ranks exchanged in a step."""
    code = "from tests.training.probe import main; main()"
    finish(start_ranks(ranks, code, out, source.regions, source.pairs, json.dumps(recipes)))
    found: list[dict[str, float]] = json.loads(out.read_text())
    return found


def alive(without: set[int]) -> int:
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type != "meta":
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and tensor.untyped_storage().data_ptr() not in without:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


@contextmanager
def counted_exchange() -> Iterator[list[int]]:
    """Elements of each collective in the block, as PyTorch is asked for it."""
    counts: list[int] = []
    names = ("all_reduce", "reduce", "reduce_scatter_tensor", "all_gather_into_tensor", "all_gather", "broadcast")
    real = {name: getattr(dist, name) for name in names}

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            counts.append(sum(t.numel() for t in tensor) if isinstance(tensor, list) else tensor.numel())
            return function(tensor, *args, **kwargs)

        return call

    for name, function in real.items():
        setattr(dist, name, counting(function))
    try:
        yield counts
    finally:
        for name, function in real.items():
            setattr(dist, name, function)


def measure(settings: list[str]) -> dict[str, float]:
    config = load_recipe("tests/recipe.yaml", settings)
    before = alive(set())
    corpus = Corpus(config.data.sources)
    packer = Packer(corpus, Limits(max_regions=100, max_words=41, whole_image=True))
    plan, masking = make_plan(config, corpus, packer), make_masking(config, corpus)
    samples = plan.step(0, distributed.rank(), distributed.world_size())[0]
    batch = packer.pack(samples, Arena(), 0, masking)
    model: Any = make_model(config, corpus)
    parameters = sum(p.numel() for p in model.parameters())
    engine, objective = Engine(model, config), make_objective(config)
    ours = {t.untyped_storage().data_ptr() for t in batch if isinstance(t, torch.Tensor)}
    with counted_exchange() as exchanged:
        for _ in range(2 * config.schedule.accumulation):
            losses = objective.losses(engine(batch), batch)
            engine.backward(objective.mean(losses, objective.counts(batch)))
            del losses
    found = {"parameters": parameters, "between_steps": alive(ours) - before, "exchanged": sum(exchanged) / 2}
    engine.close()
    return found


def main() -> None:
    out, regions, pairs, given = sys.argv[1:]
    distributed.start()
    data = [f"data.sources.0.regions={regions}", f"data.sources.0.pairs={pairs}", "output=unset"]
    found = [measure([*data, *settings]) for settings in json.loads(given)]
    if distributed.rank() == 0:
        Path(out).write_text(json.dumps(found))
