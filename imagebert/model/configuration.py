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
    """Describes the shape of an ImageBERT.

    Arguments that are not listed here are BERT's, with BERT's names and defaults.

    Args:
        feature_size: The length F of a region feature.
        num_region_classes: The number C of the detector's classes.
        num_region_attributes: The number of the detector's attributes that pre-training predicts; 0: it does not.
        use_pooler: Whether [CLS] is scored through BERT's tanh pooler instead of directly.
        use_global_image_token: Whether the region of the whole image is marked with an embedding of its own (paper,
            section 5.4: an ablation without clear gain).
        gradient_checkpointing: Whether each layer is computed again in the backward pass, which saves memory.
        dual_size: The length of the vectors that images and texts get by themselves, by which candidates are found. 0
            leaves that head out.
        dual_shortcut: The width of a hidden layer by which the feature of the whole image adds to the image's vector,
            past the Transformer. 0 leaves it out. Images without such a region have the mean of their regions instead.
        dual_shortcut_dropout: The probability of dropout before and behind that hidden layer.
        fusion_layer: The first layer that attends to both sides of a pair; those before it attend within an image or
            within a text. 0 lets all attend to both, as in the paper; num_hidden_layers none, so that vectors are all
            that there is.
        residual_score: Whether a pair's score is the product of its vectors plus what the ITM head says.
        tie_word_embeddings: Whether the head that predicts words shares the table of word embeddings.
        kwargs: What `transformers.PretrainedConfig` takes.

    Raises:
        ValueError: The hidden size is no multiple of the number of heads, there are fewer layers than fusion_layer, or
            a score or a shortcut is to be made of vectors and dual_size is 0.
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
        num_region_attributes: int = 0,
        use_pooler: bool = False,
        use_global_image_token: bool = False,
        gradient_checkpointing: bool = False,
        dual_size: int = 0,
        dual_shortcut: int = 0,
        dual_shortcut_dropout: float = 0.5,
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
        self.num_region_attributes = num_region_attributes
        self.use_pooler = use_pooler
        self.use_global_image_token = use_global_image_token
        self.gradient_checkpointing = gradient_checkpointing
        self.dual_size = dual_size
        self.dual_shortcut = dual_shortcut
        self.dual_shortcut_dropout = dual_shortcut_dropout
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
        if dual_shortcut and not dual_size:
            raise ValueError("dual_shortcut adds to an image's vector, and dual_size is 0: there is none")
        if fusion_layer == num_hidden_layers and not residual_score:
            raise ValueError(
                "no layer sees both sides of a pair, so that its score is that of its vectors: set residual_score"
            )

    @property
    def marks_whole_image(self) -> bool:
        """Says whether the model wants to know which region is the whole image."""
        return self.use_global_image_token or self.dual_shortcut > 0

    @classmethod
    def preset(cls, name: str, **sizes: Any) -> ImageBertConfig:
        """Makes the configuration of a model by the name of its size.

        Args:
            name: One of tiny, small, base (which is the paper's), large and xl.
            sizes: Any arguments of the class, which take precedence.

        Raises:
            KeyError: There is no preset of that name.
        """
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
