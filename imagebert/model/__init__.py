"""ImageBERT in Hugging Face's conventions: configuration, model, heads and losses on packed batches."""

from imagebert.model.configuration import PRESETS, ImageBertConfig
from imagebert.model.dual import DualHead
from imagebert.model.initialization import InitializationReport, initialize_from
from imagebert.model.modeling import (
    ImageBertForImageTextRetrieval,
    ImageBertForPreTraining,
    ImageBertModel,
    ImageBertPreTrainedModel,
    PackedOutput,
    Sides,
)

__all__ = [
    "PRESETS",
    "DualHead",
    "ImageBertConfig",
    "ImageBertForImageTextRetrieval",
    "ImageBertForPreTraining",
    "ImageBertModel",
    "ImageBertPreTrainedModel",
    "InitializationReport",
    "PackedOutput",
    "Sides",
    "initialize_from",
]
