"""ImageBERT: BERT over a packed sequence of regions and words (paper, section 3 and figure 1).

Three ideas. Nothing is padded: hidden states are [T, H] over the real tokens of all pairs. Heads see only the rows
that a loss or a score reads, and the last layer computes only those (its keys and values span all tokens, its
queries, projections and feed-forward the read rows). Every head takes part in every step, if with zero rows, so that
no rank of a sharded run waits for a gradient that never comes.

An operation often takes parameters of several modules at once: a product's bias goes to the LayerNorm behind it. ZeRO-3
gathers a parameter of another module when a forward first asks for it, and knows it from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from imagebert.batch import PackedBatch
from imagebert.model.configuration import ImageBertConfig
from imagebert.model.losses import PretrainingLosses, itm_loss
from imagebert_kernels import (
    bias_gelu,
    classification_loss,
    packed_attention,
    packed_embedding,
    project_regions,
    region_regression_loss,
    residual_layer_norm,
    residual_linear,
)
from imagebert_kernels.dropout import draw_seeds


class Embeddings(nn.Module):
    """Words: LN(word + segment + position). Regions: LN(W_v r + segment + W_c c + position)."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.region_projection = nn.Linear(config.feature_size, config.hidden_size)
        self.location_projection = nn.Linear(5, config.hidden_size)
        # A table of one row: what marks a region as the whole image.
        self.global_image = nn.Embedding(1, config.hidden_size) if config.use_global_image_token else None
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = config.hidden_dropout_prob

    def forward(self, batch: PackedBatch, seed: Tensor | None = None) -> Float[Tensor, "T H"]:
        """The embedded tokens; `seed` as packed_embedding takes it."""
        regions = project_regions(
            batch.region_features,
            batch.region_scales,
            batch.region_zeroed,
            batch.region_boxes,
            self.region_projection.weight,
            self.region_projection.bias,
            self.location_projection.weight,
            self.location_projection.bias,
        )
        if self.global_image is not None:
            marks = self.global_image(torch.zeros_like(batch.global_regions))
            regions = regions.index_add(0, batch.global_regions, marks)
        return packed_embedding(
            regions,
            batch.region_rows,
            self.word_embeddings.weight,
            batch.input_ids,
            batch.text_rows,
            batch.position_ids,
            batch.token_type_ids,
            self.position_embeddings.weight,
            self.token_type_embeddings.weight,
            self.layer_norm.weight,
            self.layer_norm.bias,
            self.layer_norm.eps,
            self.dropout if self.training else 0.0,
            seed,
        )


class Reads(NamedTuple):
    """The rows whose last layer is wanted."""

    rows: Tensor  # [Q]
    cu_seqlens: Tensor  # [B+1]


class Encoded(NamedTuple):
    """Tokens of one side, image or text, of any number of pairs: they do not know the other side yet.

    Embeddings and the first layer's projections are functions of a token and its place on its own side: all regions
    share a position, and so the text's positions are the same behind any image (paper, figure 1).
    """

    hidden: Tensor  # [S, H] embedded
    first: Tensor  # [S, 3H] the first layer's queries, keys and values


class QueryKeyValue(nn.Linear):
    """The three projections as one weight [3H, H]: all rows in one product, or queries for the read rows only."""

    def forward(  # type: ignore[override]
        self, hidden: Float[Tensor, "T H"], rows: Int[Tensor, " Q"] | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Queries, keys and values [T, 3H], and the residual; with `rows` keys and values [T, 2H], queries [Q, H]."""
        if rows is None:
            packed, residual = residual_linear(hidden, self.weight, self.bias, in_place=True)
            return packed, None, residual
        size = self.in_features
        queries, residual = residual_linear(hidden[rows], self.weight[:size], self.bias[:size], in_place=True)
        return F.linear(hidden, self.weight[size:], self.bias[size:]), queries, residual


class Product(nn.Linear):
    """A product whose bias is left to what follows it."""

    def forward(self, x: Float[Tensor, "Q I"]) -> Float[Tensor, "Q O"]:
        return F.linear(x, self.weight)


# Of a layer's dropouts: of attention weights, behind attention, behind the feed-forward products. Each None where the
# operation draws for itself.
Seeds = Sequence[Tensor | None]
_OWN_SEEDS: Seeds = (None, None, None)


class Layer(nn.Module):
    """A post-LN Transformer layer of BERT."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        size, self.heads = config.hidden_size, config.num_attention_heads
        self.attention_dropout, self.dropout = config.attention_probs_dropout_prob, config.hidden_dropout_prob
        self.query_key_value = QueryKeyValue(size, 3 * size)
        self.attention_output = Product(size, size)
        self.attention_layer_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(size, config.intermediate_size)
        self.output = Product(config.intermediate_size, size)
        self.output_layer_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden: Float[Tensor, "T H"],
        cu_seqlens: Int[Tensor, " ends"],
        max_seqlen: int,
        reads: Reads | None = None,
        seeds: Seeds = _OWN_SEEDS,
    ) -> Float[Tensor, "Q H"]:
        """The layer's output for all rows, or for the read rows only."""
        packed, queries, residual = self.query_key_value(hidden, None if reads is None else reads.rows)
        return self.attend(packed, queries, residual, cu_seqlens, max_seqlen, reads, seeds)

    def attend(
        self,
        packed: Float[Tensor, "T parts"],
        queries: Float[Tensor, "Q H"] | None,
        residual: Float[Tensor, "Q H"],
        cu_seqlens: Int[Tensor, " ends"],
        max_seqlen: int,
        reads: Reads | None,
        seeds: Seeds = _OWN_SEEDS,
    ) -> Float[Tensor, "Q H"]:
        """What follows the first product, whose results `query_key_value` gives."""
        head_size = residual.shape[1] // self.heads
        context = packed_attention(
            packed.view(len(packed), -1, self.heads, head_size),
            cu_seqlens,
            max_seqlen,
            head_size**-0.5,
            self.attention_dropout if self.training else 0.0,
            None if queries is None else queries.view(len(queries), self.heads, head_size),
            None if reads is None else reads.cu_seqlens,
            seeds[0],
        )
        attended = self._add(self.attention_output, context.flatten(1), residual, self.attention_layer_norm, seeds[1])
        expanded, residual = residual_linear(attended, self.intermediate.weight, in_place=True)
        raised = bias_gelu(expanded, self.intermediate.bias)
        return self._add(self.output, raised, residual, self.output_layer_norm, seeds[2])

    def _add(self, product: Product, x: Tensor, residual: Tensor, norm: nn.LayerNorm, seed: Tensor | None) -> Tensor:
        """LN(residual + dropout(product(x))) [Q, H]."""
        dropout = self.dropout if self.training else 0.0
        return residual_layer_norm(product(x), product.bias, residual, norm.weight, norm.bias, norm.eps, dropout, seed)


class ImageBertPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    config_class = ImageBertConfig
    base_model_prefix = "imagebert"


class ImageBertModel(ImageBertPreTrainedModel):
    """Embeddings and encoder."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(
        self,
        batch: PackedBatch,
        reads_only: bool = False,
        embedded: Float[Tensor, "T H"] | None = None,
        seeds: Seeds | None = None,
    ) -> Float[Tensor, "Q H"]:
        """Hidden states of the last layer: of all T tokens, or of batch.read_rows only.

        Args:
            embedded: what `embeddings` gave for the batch, where somebody has it already
            seeds: of `draw_seeds`, where somebody has drawn them already
        """
        seeds = self.draw_seeds() if seeds is None else seeds
        hidden = self.embeddings(batch, seeds[0]) if embedded is None else embedded
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            reads = Reads(batch.read_rows, batch.read_cu_seqlens) if reads_only and number == last else None
            of_layer = seeds[1 + 3 * number : 4 + 3 * number]
            arguments = hidden, batch.cu_seqlens, batch.max_seqlen, reads, of_layer
            if self.config.gradient_checkpointing and self.training:
                # With seeds the layer draws nothing, and a CUDA graph may not look at the generator.
                drawing = any(seed is None for seed in of_layer)
                hidden = checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=drawing)
            else:
                hidden = layer(*arguments)
        return hidden

    def draw_seeds(self) -> Seeds:
        """Of the embeddings' dropout, then three of each layer, in one draw."""
        count = 1 + 3 * len(self.layers)
        return draw_seeds(count, self.embeddings.layer_norm.weight) if self.training else [None] * count


class Classifier(nn.Linear):
    """A linear layer and its cross-entropy as one operation: logits are nowhere else."""

    def forward(  # type: ignore[override]
        self, hidden: Float[Tensor, "Q H"], rows: Int[Tensor, " M"] | None, labels: Int[Tensor, " M"]
    ) -> Float[Tensor, ""]:
        return classification_loss(hidden, rows, self.weight, self.bias, labels)


class Regressor(nn.Linear):
    """A linear layer and its squared distance to stored features as one operation."""

    def forward(  # type: ignore[override]
        self, hidden: Float[Tensor, "Q H"], rows: Int[Tensor, " M"], batch: PackedBatch
    ) -> Float[Tensor, ""]:
        stored = batch.region_features, batch.region_scales, batch.masked_regions
        return region_regression_loss(hidden, rows, self.weight, self.bias, *stored)


class MlmHead(nn.Module):
    """BERT's: transform, then the word table again."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = Classifier(config.hidden_size, config.vocab_size)

    def forward(
        self, hidden: Float[Tensor, "Q H"], rows: Int[Tensor, " M"], labels: Int[Tensor, " M"]
    ) -> Float[Tensor, ""]:
        transformed = self.layer_norm(F.gelu(self.transform(hidden[rows])))
        loss: Tensor = self.decoder(transformed, None, labels)
        return loss


class Score(nn.Linear):
    """In float32 at least: in bf16 high scores would tie, and ties are lost (retrieval/metrics.py)."""

    def forward(self, x: Float[Tensor, "B H"]) -> Float[Tensor, "B 1"]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return F.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class ItmHead(nn.Module):
    """[CLS] to one score (paper, section 4), through BERT's pooler where the configuration says so."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if config.use_pooler else None
        self.score = Score(config.hidden_size, 1)

    def forward(self, cls: Float[Tensor, "B H"]) -> Float[Tensor, " B"]:
        """The logit of each pair matching."""
        if self.pooler is not None:
            cls = torch.tanh(self.pooler(cls))
        logits: Tensor = self.score(cls)
        return logits[:, 0]


class WithVectors(NamedTuple):
    """What a model with a dual head returns: what it would without, and the vectors of each pair's two sides."""

    output: Any
    vectors: tuple[Tensor, Tensor]  # of images and texts [B, D], scaled so that their products are logits


class Tower(nn.Module):
    """The embedded tokens of one side to one vector: a layer, a gated mean, a projection to the unit sphere."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.gate = nn.Linear(config.hidden_size, 1)
        self.projection = nn.Linear(config.hidden_size, config.dual_size)

    def forward(
        self, tokens: Float[Tensor, "S H"], real: Tensor, rows: Int[Tensor, " S"], cu_seqlens: Int[Tensor, " ends"]
    ) -> Float[Tensor, "B D"]:
        """A vector of each pair, from those of `tokens` that are real; `rows` are theirs among all tokens."""
        pairs = len(cu_seqlens) - 1
        # Without a look at the host: which pair a row belongs to; fill goes to one behind the last.
        pair = torch.searchsorted(cu_seqlens[1:].contiguous(), rows.int(), right=True)
        weight = torch.sigmoid(self.gate(tokens).float()) * real[:, None]  # [S, 1]
        hidden = F.gelu(self.transform(tokens)).float() * weight
        total = hidden.new_zeros(pairs + 1, hidden.shape[1]).index_add(0, pair, hidden)[:pairs]
        weights = weight.new_zeros(pairs + 1, 1).index_add(0, pair, weight)[:pairs]
        mean = total / weights.clamp(min=1e-6)
        return F.normalize(self.projection(mean.to(tokens.dtype)).float(), dim=1)


class DualHead(nn.Module):
    """Images and texts each to a vector of its own, from embeddings alone: candidates for what ITM then scores.

    Light: no Transformer layer is run, so an image's vector costs a thousandth of scoring it with some captions.
    """

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        self.image, self.text = Tower(config), Tower(config)
        # Of the logits' temperature; 1/0.07 to begin with (Radford et al., 2021, section 2.5).
        self.log_scale = nn.Parameter(torch.tensor([2.6593]))

    def images(self, embedded: Float[Tensor, "T H"], batch: PackedBatch) -> Float[Tensor, "B D"]:
        rows = batch.region_rows
        vectors: Tensor = self.image(embedded[rows], torch.ones_like(rows), rows, batch.cu_seqlens)
        return vectors

    def texts(self, embedded: Float[Tensor, "T H"], batch: PackedBatch) -> Float[Tensor, "B D"]:
        rows = batch.text_rows
        vectors: Tensor = self.text(embedded[rows], batch.token_type_ids[rows], rows, batch.cu_seqlens)
        return vectors

    def forward(self, embedded: Float[Tensor, "T H"], batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """As WithVectors holds them."""
        scale = self.log_scale.clamp(max=4.6).exp()  # at most 100
        return self.images(embedded, batch) * scale, self.texts(embedded, batch)


def _encoded(encoder: ImageBertModel, batch: PackedBatch) -> tuple[Float[Tensor, "T H"], Float[Tensor, "Q H"]]:
    """The embedded tokens, and the last layer of the rows that heads read."""
    seeds = encoder.draw_seeds()
    embedded = encoder.embeddings(batch, seeds[0])
    return embedded, encoder(batch, reads_only=True, embedded=embedded, seeds=seeds)


class ImageBertForPreTraining(ImageBertPreTrainedModel):
    """The four pre-training tasks."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"mlm.decoder.weight": "imagebert.embeddings.word_embeddings.weight"}

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__(config)
        self.imagebert = ImageBertModel(config)
        self.mlm = MlmHead(config)
        self.moc = Classifier(config.hidden_size, config.num_region_classes)
        self.mrfr = Regressor(config.hidden_size, config.feature_size)
        self.itm = ItmHead(config)
        self.dual = DualHead(config) if config.dual_size else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.imagebert.embeddings.word_embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm.decoder

    def forward(self, batch: PackedBatch) -> PretrainingLosses | WithVectors:
        """Each task's loss summed over this microbatch; `PretrainingLosses.counts(batch)` are the counts beside it."""
        embedded, hidden = _encoded(self.imagebert, batch)
        losses = PretrainingLosses(
            mlm=self.mlm(hidden, batch.mlm_reads, batch.mlm_labels),
            moc=self.moc(hidden, batch.region_reads, batch.moc_labels),
            mrfr=self.mrfr(hidden, batch.region_reads, batch),
            itm=itm_loss(self.itm(hidden[batch.cls_reads]), batch.itm_labels),
        )
        return losses if self.dual is None else WithVectors(losses, self.dual(embedded, batch))


class ImageBertForImageTextRetrieval(ImageBertPreTrainedModel):
    """Scores how well image and text match: fine-tuning and retrieval (paper, section 5.3)."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__(config)
        self.imagebert = ImageBertModel(config)
        self.itm = ItmHead(config)
        self.dual = DualHead(config) if config.dual_size else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.imagebert.embeddings.word_embeddings

    def forward(self, batch: PackedBatch) -> Float[Tensor, " B"] | WithVectors:
        """The logit of each pair matching."""
        embedded, hidden = _encoded(self.imagebert, batch)
        scores: Tensor = self.itm(hidden[batch.cls_reads])
        return scores if self.dual is None else WithVectors(scores, self.dual(embedded, batch))

    def encode(self, batch: PackedBatch) -> Encoded:
        """What of each token does not depend on the other side of its pair."""
        hidden = self.imagebert.embeddings(batch)
        first: Any = self.imagebert.layers[0]
        return Encoded(hidden, first.query_key_value(hidden, None)[0])

    def score(self, tokens: Encoded, cu_seqlens: Int[Tensor, " ends"], max_seqlen: int) -> Float[Tensor, " B"]:
        """`forward` from encoded tokens on: those of each pair in their order, pairs one behind the other."""
        layers: list[Any] = list(self.imagebert.layers)
        first, *rest = layers
        ends = torch.arange(len(cu_seqlens), dtype=torch.int32, device=cu_seqlens.device)
        reads = Reads(cu_seqlens[:-1].long(), ends)
        if rest:
            hidden = first.attend(tokens.first, None, tokens.hidden, cu_seqlens, max_seqlen, None)
            for layer in rest:
                hidden = layer(hidden, cu_seqlens, max_seqlen, reads if layer is rest[-1] else None)
        else:
            size, cls = tokens.hidden.shape[1], reads.rows
            queries, residual = tokens.first[cls, :size], tokens.hidden[cls]
            hidden = first.attend(tokens.first[:, size:], queries, residual, cu_seqlens, max_seqlen, reads)
        scores: Tensor = self.itm(hidden)
        return scores
