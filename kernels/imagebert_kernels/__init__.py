"""Operations on packed tensors, one file each: formula, layouts, kernels, reference, dispatch. Knows tensors only."""

from imagebert_kernels.attention import packed_attention

__all__ = ["packed_attention"]
