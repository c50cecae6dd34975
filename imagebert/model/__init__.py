"""ImageBERT in Hugging Face's conventions: configuration, model, heads and losses on packed batches."""

from imagebert.model.configuration import PRESETS, ImageBertConfig
from imagebert.model.dual import DualHead, WithVectors
from imagebert.model.initialization import InitializationReport, initialize_from
from imagebert.model.modeling import (
    Encoded,
    ImageBertForImageTextRetrieval,
    ImageBertForPreTraining,
    ImageBertModel,
    ImageBertPreTrainedModel,
)

__all__ = [
    "PRESETS",
    "DualHead",
    "Encoded",
    "ImageBertConfig",
    "ImageBertForImageTextRetrieval",
    "ImageBertForPreTraining",
    "ImageBertModel",
    "ImageBertPreTrainedModel",
    "InitializationReport",
    "WithVectors",
    "initialize_from",
]
