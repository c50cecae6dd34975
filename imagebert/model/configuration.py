"""The model's own configuration: BERT's names, and the region sizes that ImageBERT adds."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

# (layers, hidden size, heads). `base` is the paper's; `small` has MiniLM's shape.
PRESETS: dict[str, tuple[int, int, int]] = {
    "tiny": (4, 128, 4),
    "small": (6, 384, 12),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
    "xl": (48, 1600, 25),
}


class ImageBertConfig(PretrainedConfig):  # type: ignore[misc]
    """Shape of an ImageBERT.

    Args:
        feature_size: F, length of a region feature
        num_region_classes: C, classes of the detector
        use_pooler: score [CLS] through BERT's tanh pooler instead of directly
        use_global_image_token: mark the whole-image region with an embedding of its own (paper, section 5.4: an
            ablation without clear gain)
        gradient_checkpointing: recompute each layer in the backward pass
        dual_size: length of the vectors that images and texts get by themselves, for finding candidates; 0: none
        fusion_layer: layers before this one attend within an image or a text, the others to both sides of a pair; 0:
            all to both, as in the paper; num_hidden_layers: none does, and vectors are all that there is
        residual_score: a pair's score is the product of its vectors plus what the ITM head says
    The others are BERT's, with BERT's defaults.
    """

    model_type = "imagebert"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        feature_size: int = 2048,
        num_region_classes: int = 1600,
        use_pooler: bool = False,
        use_global_image_token: bool = False,
        gradient_checkpointing: bool = False,
        dual_size: int = 0,
        fusion_layer: int = 0,
        residual_score: bool = False,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.feature_size = feature_size
        self.num_region_classes = num_region_classes
        self.use_pooler = use_pooler
        self.use_global_image_token = use_global_image_token
        self.gradient_checkpointing = gradient_checkpointing
        self.dual_size = dual_size
        self.fusion_layer = fusion_layer
        self.residual_score = residual_score
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
        if hidden_size % num_attention_heads:
            raise ValueError(f"hidden_size {hidden_size} is no multiple of num_attention_heads {num_attention_heads}")
        if not 0 <= fusion_layer <= num_hidden_layers:
            raise ValueError(
                f"fusion_layer {fusion_layer} of {num_hidden_layers} layers: give 0 to {num_hidden_layers}"
            )
        if residual_score and not dual_size:
            raise ValueError("residual_score adds to a product of vectors, and dual_size is 0: there are none")
        if fusion_layer == num_hidden_layers and not residual_score:
            raise ValueError(
                "no layer sees both sides of a pair, so that its score is that of its vectors: set residual_score"
            )

    @classmethod
    def preset(cls, name: str, **sizes: Any) -> ImageBertConfig:
        """One of PRESETS, with `sizes` (any argument of the class) on top."""
        layers, hidden, heads = PRESETS[name]
        shape = {
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "intermediate_size": 4 * hidden,
            # BERT's 0.02 belongs to 768; narrower layers need wider weights for the same activations.
            "initializer_range": 0.02 * (768 / hidden) ** 0.5,
        }
        return cls(**{**shape, **sizes})
