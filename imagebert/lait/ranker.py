"""Which pictures of a page are dominant, and which sentence is likeliest a picture's: two logistic regressions.

Their weights (ranker.json) were trained by `python -m benchmarks.lait_ranker` on pages whose truth is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagebert.errors import UsageError
from imagebert.files import read_sealed
from imagebert.lait import images, texts

SHIPPED = Path(__file__).with_name("ranker.json")


class Logistic:
    """A logistic regression of named features.

    Args:
        content: its `features`, their `weights` and the `bias`, as plain data

    Raises:
        UsageError: it is not one of these features; `what` names it.
    """

    def __init__(self, content: Mapping[str, Any], features: Sequence[str], what: str) -> None:
        if list(content.get("features", ())) != list(features) or len(content.get("weights", ())) != len(features):
            raise UsageError(f"{what} was trained on other features than this version measures: train it anew")
        self._weights = np.array(content["weights"], np.float64)
        self._bias = float(content["bias"])

    def probabilities(self, rows: Sequence[Sequence[float]] | NDArray[np.float64]) -> NDArray[np.float64]:
        """A probability for each row of features."""
        if len(rows) == 0:
            return np.zeros(0)
        # Added up in one order for a row, however many there are: a matrix product may add in another.
        logits = (np.asarray(rows, np.float64) * self._weights).sum(axis=1) + self._bias
        return 1.0 / (1.0 + np.exp(-logits.clip(-60, 60)))


def fit_logistic(
    features: Sequence[str],
    rows: NDArray[np.float64],
    labels: NDArray[np.int64] | NDArray[np.bool_],
    trust: float = 1.0,
) -> dict[str, Any]:
    """The content of a logistic regression, trained on rows of features.

    Args:
        trust: in the examples, scikit-learn's C: below 1, what is rare in them and wrong each time there counts less
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    model = LogisticRegression(C=trust, max_iter=5000)
    model.fit(scaler.fit_transform(rows), labels)
    weights = model.coef_[0] / scaler.scale_
    bias = float(model.intercept_[0] - (weights * scaler.mean_).sum())
    return {"features": list(features), "weights": [round(float(w), 6) for w in weights], "bias": round(bias, 6)}


class Ranker:
    """The two models of a page's pictures and sentences.

    Raises:
        UsageError: the file is damaged, or of another version.
    """

    def __init__(self, path: Path = SHIPPED) -> None:
        content = read_sealed(path)
        self.digest: str = content["digest"]
        self._pictures = Logistic(content.get("pictures", {}), images.FEATURES, str(path))
        self._sentences = Logistic(content.get("sentences", {}), texts.FEATURES, str(path))

    def dominance(self, found: Sequence[images.PageImage]) -> NDArray[np.float64]:
        """How likely each picture of a page is a dominant one."""
        return self._pictures.probabilities([image.features for image in found])

    def fit(self, found: Sequence[texts.Candidate]) -> NDArray[np.float64]:
        """How likely each sentence is its picture's."""
        return self._sentences.probabilities([candidate.features for candidate in found])
