"""Computes on packed tensors: attention, embeddings, LayerNorm, losses and products, each with its gradients.

Each file has one operation with its formula, the layout of its tensors, kernels, a reference in PyTorch, and the choice
between them. Tensors without a GPU are computed by the reference.
"""

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
