"""Operations on packed tensors, one file each: formula, layouts, kernels, reference, dispatch. Knows tensors only."""

from imagebert_kernels.attention import packed_attention
from imagebert_kernels.classification import classification_loss
from imagebert_kernels.embedding import packed_embedding
from imagebert_kernels.gelu import bias_gelu
from imagebert_kernels.layer_norm import residual_layer_norm
from imagebert_kernels.region_projection import project_regions
from imagebert_kernels.region_regression import region_regression_loss
from imagebert_kernels.residual_linear import residual_linear

__all__ = [
    "bias_gelu",
    "classification_loss",
    "packed_attention",
    "packed_embedding",
    "project_regions",
    "region_regression_loss",
    "residual_layer_norm",
    "residual_linear",
]
