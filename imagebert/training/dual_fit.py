"""The dual head fitted before training, to what the text model says already: its head first, then all of it.

A text model's vectors of captions are good from the start, an image's are nothing. So the captions' vectors stay what
they are but for a linear map, and the images' shortcut learns to meet them (locked-image tuning turned round: Zhai et
al., 2022, section 3), before gradients of a head that says nothing reach the layers (Kumar et al., 2022, section 3.3).
Both sides are encoded once: an epoch takes seconds where one through all layers takes minutes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagebert import distributed
from imagebert.batch import to_device
from imagebert.config import RunConfig, UsageError
from imagebert.data.corpus import Corpus
from imagebert.feed.packer import Limits
from imagebert.model import DualHead, ImageBertConfig
from imagebert.model.initialization import find_model, is_imagebert
from imagebert.model.losses import Contrasted, contrastive_loss
from imagebert.retrieval.scoring import PairScorer
from imagebert.retrieval.vectors import encode

log = logging.getLogger(__name__)

_PAIRS = 200_000  # at most, by chance: what is kept of them lies in memory
_BATCH, _RATE, _WARMUP, _DECAY = 512, 2e-3, 100, 0.01


def fit_dual(model: Any, corpus: Corpus, config: RunConfig, alive: Callable[[], None]) -> None:
    """Fits the dual head's shortcut, a linear map of its texts and its temperature, in place.

    An image's states add nothing to its vector until training lets them. On every rank the same.

    Args:
        model: an ImageBertForImageTextRetrieval, or one for pre-training, with a shortcut
        alive: called once an epoch

    Raises:
        UsageError: the model that is started from has a dual head of its own.
    """
    origin = config.model.initialize_from
    folder = None if origin is None else find_model(Path(origin))
    if folder is not None and is_imagebert(folder) and ImageBertConfig.from_pretrained(folder).dual_size:
        raise UsageError(f"{origin} has a dual head, which model.dual_fit_epochs would forget: leave that key out")
    begun, rng = time.perf_counter(), np.random.default_rng(config.seed)
    captions = np.sort(rng.permutation(len(corpus))[:_PAIRS])
    images, image_of = np.unique(corpus.caption_image[captions], return_inverse=True)
    scorer = PairScorer(model, corpus, corpus, Limits.of(config.data), distributed.device())
    with torch.compiler.set_stance("force_eager"):  # layers are compiled for a step's shape, which these have not
        texts = encode(scorer, lambda n: scorer.text_vectors(captions[n]), len(captions))
    features = encode(scorer, lambda n: scorer.image_features(images[n]), len(images), corpus.feature_size)
    classes = corpus.image_class[corpus.caption_image[captions]], corpus.caption_class[captions]
    kept = _Pairs(*(torch.from_numpy(each) for each in (features, texts, image_of, *classes)))
    pairs = to_device(kept, distributed.device())
    model.train()
    epochs = config.model.dual_fit_epochs
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        loss = _fit(model.dual, pairs, epochs, alive)
    seconds = time.perf_counter() - begun
    log.info("dual head fitted: %d epochs of %d pairs, last loss %.3f, %.0f s", epochs, len(captions), loss, seconds)


class _Pairs(NamedTuple):
    """What is kept of the pairs."""

    features: Tensor  # [I, F]
    texts: Tensor  # [n, D] unit vectors
    image_of: Tensor  # [n] rows of features
    image_class: Tensor  # [n] equal numbers: equal images
    text_class: Tensor  # [n] likewise

    def contrasted(self, dual: DualHead, mapping: Tensor, chosen: Tensor) -> Contrasted:
        assert dual.shortcut is not None
        images = F.normalize(dual.shortcut(self.features[self.image_of[chosen]]).float(), dim=1) * dual.scale
        texts = F.normalize(self.texts[chosen] @ mapping.T, dim=1)
        matched = torch.ones_like(chosen, dtype=torch.bool)
        each = images, texts, matched, self.image_class[chosen], self.text_class[chosen]
        return Contrasted(*(t[None] for t in each))


def _fit(dual: DualHead, pairs: _Pairs, epochs: int, alive: Callable[[], None]) -> float:
    assert dual.shortcut is not None
    count = len(pairs.texts)
    batch = min(_BATCH, count)
    mapping = nn.Parameter(torch.eye(pairs.texts.shape[1], device=pairs.texts.device))
    learnt = [*dual.shortcut.parameters(), mapping, dual.log_scale]
    optimizer = torch.optim.AdamW(learnt, lr=_RATE, weight_decay=_DECAY)
    total = max(1, epochs * (count // batch))
    rise = max(1, min(_WARMUP, total // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / rise) * (1 - s / total))
    loss = torch.zeros(())
    for _ in range(epochs):
        alive()
        order = torch.randperm(count).to(pairs.texts.device)
        for chosen in order[: count // batch * batch].view(-1, batch):
            block = pairs.contrasted(dual, mapping, chosen)
            loss = contrastive_loss(block, block) / batch
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        # A vector's length is of no matter, so that the map and the projection before it are one.
        projection = dual.text.projection
        projection.weight.copy_(mapping @ projection.weight)
        projection.bias.copy_(mapping @ projection.bias)
        nn.init.zeros_(dual.image.projection.weight)
        nn.init.zeros_(dual.image.projection.bias)
    return float(loss.detach())
