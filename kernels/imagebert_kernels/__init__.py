"""Operations on packed tensors, one file each: formula, layouts, reference, dispatch. Knows tensors, nothing else."""

from imagebert_kernels.attention import packed_attention

__all__ = ["packed_attention"]
