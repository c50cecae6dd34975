"""ImageBERT in Hugging Face's conventions: configuration, model, heads and losses on packed batches."""

from imagebert.model.configuration import PRESETS, ImageBertConfig
from imagebert.model.initialization import InitializationReport, initialize_from
from imagebert.model.modeling import (
    DualHead,
    Encoded,
    ImageBertForImageTextRetrieval,
    ImageBertForPreTraining,
    ImageBertModel,
    ImageBertPreTrainedModel,
    WithVectors,
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
