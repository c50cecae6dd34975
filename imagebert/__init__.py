"""Trains ImageBERT (Qi et al., 2020, arXiv 2001.07966) and retrieves images and texts with it.

What is listed in `__all__` is imported when it is first asked for, so that the command line starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from imagebert.model import (
        ImageBertConfig,
        ImageBertForImageTextRetrieval,
        ImageBertForPreTraining,
        ImageBertModel,
        ImageBertPreTrainedModel,
    )
    from imagebert.processing import ImageBertProcessor

_FACE = {
    "ImageBertConfig": "imagebert.model",
    "ImageBertForImageTextRetrieval": "imagebert.model",
    "ImageBertForPreTraining": "imagebert.model",
    "ImageBertModel": "imagebert.model",
    "ImageBertPreTrainedModel": "imagebert.model",
    "ImageBertProcessor": "imagebert.processing",
}

__all__ = [
    "ImageBertConfig",
    "ImageBertForImageTextRetrieval",
    "ImageBertForPreTraining",
    "ImageBertModel",
    "ImageBertPreTrainedModel",
    "ImageBertProcessor",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module("imagebert.auto")
    return getattr(importlib.import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_FACE])
