"""Given pairs of images and texts to scores: what the LAIT builder asks of a model (its cross-modal feature)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from imagebert import distributed
from imagebert.data.corpus import LooseItems, StoreImages
from imagebert.data.regions import RegionStore
from imagebert.data.tokens import Tokenizer
from imagebert.files import digest_of
from imagebert.model_folder import ModelFolder
from imagebert.retrieval.evaluation import make_scorer


class Matcher:
    """Scores texts for images of a region store by a model.

    Attributes:
        digest: of model and store, what scores depend on

    Raises:
        UsageError: the model is for other features, or lacks its vocabulary.
    """

    def __init__(self, model: ModelFolder, store: RegionStore) -> None:
        self.digest = digest_of([model.digest, store.content])
        self._store, self._tokenizer = store, Tokenizer(model.path)
        nothing = self._texts([[self._tokenizer.unk_id]])
        images = StoreImages(store, self._tokenizer)
        self._scorer = make_scorer(model, images, nothing, model.limits, distributed.device())

    def _texts(self, pieces: Sequence[Sequence[int]]) -> LooseItems:
        return LooseItems([self._store.read(0)], pieces, self._tokenizer, self._store.feature_type)

    def __call__(self, keys: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        """The logit of each pair matching, float32 [B]; NaN where the store has no such image, or no word is known.

        Of one list of pairs the same bits, whatever was asked before.
        """
        scores = np.full(len(keys), np.nan, np.float32)
        if not keys:
            return scores
        encoded = self._tokenizer.encode(list(texts))
        images = self._store.find(np.array([key.encode() for key in keys]))
        known = [bool(set(pieces) - {self._tokenizer.unk_id}) for pieces in encoded]
        asked = np.flatnonzero((images >= 0) & np.array(known))
        if len(asked):
            self._scorer.ask(self._texts([encoded[i] for i in asked.tolist()]))
            scores[asked] = self._scorer.score_anew(images[asked].astype(np.int64), np.arange(len(asked)))
        return scores
