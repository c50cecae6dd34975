"""ImageBERT: BERT over a packed sequence of regions and words (paper, section 3 and figure 1).

Three ideas. Nothing is padded: hidden states are [T, H] over the real tokens of all pairs. Heads see only the rows
that a loss or a score reads, and the last layer computes only those (its keys and values span all tokens, its
queries, projections and feed-forward the read rows). Every head takes part in every step, if with zero rows, so that
no rank of a sharded run waits for a gradient that never comes.

Parameters used by a module belong to that very module, since ZeRO-3 gathers them around its forward.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from imagebert.batch import PackedBatch
from imagebert.model.configuration import ImageBertConfig
from imagebert.model.losses import PretrainingLosses, itm_loss, mlm_loss, moc_loss, mrfr_loss
from imagebert_kernels import packed_attention


class RegionProjection(nn.Linear):
    """W_v r (paper, section 3) of features that stay as they are stored until the product: scales come after it."""

    def forward(  # type: ignore[override]
        self,
        features: Float[Tensor, "R F"] | Int[Tensor, "R F"],
        scales: Float[Tensor, " R"],
        zeroed: Tensor,
    ) -> Float[Tensor, "R H"]:
        scales = scales.masked_fill(zeroed, 0).to(self.weight.dtype)
        return F.linear(features.to(self.weight.dtype), self.weight) * scales[:, None] + self.bias


class Embeddings(nn.Module):
    """Words: LN(word + segment + position). Regions: LN(W_v r + segment + W_c c + position)."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.region_projection = RegionProjection(config.feature_size, config.hidden_size)
        self.location_projection = nn.Linear(5, config.hidden_size)
        # A table of one row: what marks a region as the whole image.
        self.global_image = nn.Embedding(1, config.hidden_size) if config.use_global_image_token else None
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, batch: PackedBatch) -> Float[Tensor, "T H"]:
        words = self.word_embeddings(batch.input_ids)  # [T-R, H]
        regions = self.region_projection(batch.region_features, batch.region_scales, batch.region_zeroed)
        regions = regions + self.location_projection(batch.region_boxes.to(words.dtype))  # [R, H]
        if self.global_image is not None:
            marks = self.global_image(torch.zeros_like(batch.global_regions))
            regions = regions.index_add(0, batch.global_regions, marks)
        hidden = self.position_embeddings(batch.position_ids) + self.token_type_embeddings(batch.token_type_ids)
        hidden = hidden.index_add(0, batch.text_rows, words).index_add(0, batch.region_rows, regions)
        embedded: Tensor = self.dropout(self.layer_norm(hidden))
        return embedded


class Reads(NamedTuple):
    """The rows whose last layer is wanted."""

    rows: Tensor  # [Q]
    cu_seqlens: Tensor  # [B+1]


class QueryKeyValue(nn.Linear):
    """The three projections as one weight [3H, H]: all rows in one product, or queries for the read rows only."""

    def forward(  # type: ignore[override]
        self, hidden: Float[Tensor, "T H"], rows: Int[Tensor, " Q"] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Queries, keys and values [T, 3H]; with `rows` keys and values [T, 2H], and queries [Q, H]."""
        if rows is None:
            return F.linear(hidden, self.weight, self.bias), None
        size = self.in_features
        queries = F.linear(hidden[rows], self.weight[:size], self.bias[:size])
        return F.linear(hidden, self.weight[size:], self.bias[size:]), queries


class Layer(nn.Module):
    """A post-LN Transformer layer of BERT."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        size, self.heads = config.hidden_size, config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.query_key_value = QueryKeyValue(size, 3 * size)
        self.attention_output = nn.Linear(size, size)
        self.attention_layer_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(size, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, size)
        self.output_layer_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden: Float[Tensor, "T H"],
        cu_seqlens: Int[Tensor, " ends"],
        max_seqlen: int,
        reads: Reads | None = None,
    ) -> Float[Tensor, "Q H"]:
        """The layer's output for all rows, or for the read rows only."""
        packed, queries = self.query_key_value(hidden, None if reads is None else reads.rows)
        head_size = hidden.shape[1] // self.heads
        context = packed_attention(
            packed.unflatten(1, (-1, self.heads, head_size)),
            cu_seqlens,
            max_seqlen,
            head_size**-0.5,
            self.attention_dropout if self.training else 0.0,
            None if queries is None else queries.unflatten(1, (self.heads, head_size)),
            None if reads is None else reads.cu_seqlens,
        )
        residual = hidden if reads is None else hidden[reads.rows]
        attended = self.attention_layer_norm(residual + self.dropout(self.attention_output(context.flatten(1))))
        expanded = self.output(F.gelu(self.intermediate(attended)))
        output: Tensor = self.output_layer_norm(attended + self.dropout(expanded))
        return output


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

    def forward(self, batch: PackedBatch, reads_only: bool = False) -> Float[Tensor, "Q H"]:
        """Hidden states of the last layer: of all T tokens, or of batch.read_rows only."""
        hidden = self.embeddings(batch)
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            reads = Reads(batch.read_rows, batch.read_cu_seqlens) if reads_only and number == last else None
            if self.config.gradient_checkpointing and self.training:
                hidden = checkpoint(layer, hidden, batch.cu_seqlens, batch.max_seqlen, reads, use_reentrant=False)
            else:
                hidden = layer(hidden, batch.cu_seqlens, batch.max_seqlen, reads)
        return hidden


class MlmHead(nn.Module):
    """BERT's: transform, then the word table again."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, rows: Float[Tensor, "M H"]) -> Float[Tensor, "M V"]:
        logits: Tensor = self.decoder(self.layer_norm(F.gelu(self.transform(rows))))
        return logits


class ItmHead(nn.Module):
    """[CLS] to one score (paper, section 4), through BERT's pooler where the configuration says so."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__()
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if config.use_pooler else None
        self.score = nn.Linear(config.hidden_size, 1)

    def forward(self, cls: Float[Tensor, "B H"]) -> Float[Tensor, " B"]:
        """The logit of each pair matching."""
        if self.pooler is not None:
            cls = torch.tanh(self.pooler(cls))
        logits: Tensor = self.score(cls)
        return logits[:, 0]


class ImageBertForPreTraining(ImageBertPreTrainedModel):
    """The four pre-training tasks."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"mlm.decoder.weight": "imagebert.embeddings.word_embeddings.weight"}

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__(config)
        self.imagebert = ImageBertModel(config)
        self.mlm = MlmHead(config)
        self.moc = nn.Linear(config.hidden_size, config.num_region_classes)
        self.mrfr = nn.Linear(config.hidden_size, config.feature_size)
        self.itm = ItmHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.imagebert.embeddings.word_embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm.decoder

    def forward(self, batch: PackedBatch) -> PretrainingLosses:
        """Each task's loss summed over this microbatch; `PretrainingLosses.counts(batch)` are the counts beside it."""
        hidden = self.imagebert(batch, reads_only=True)  # [Q, H]
        regions = hidden[batch.region_reads]
        return PretrainingLosses(
            mlm=mlm_loss(self.mlm(hidden[batch.mlm_reads]), batch.mlm_labels),
            moc=moc_loss(self.moc(regions), batch.moc_labels),
            mrfr=mrfr_loss(
                self.mrfr(regions),
                batch.region_features[batch.masked_regions],
                batch.region_scales[batch.masked_regions],
            ),
            itm=itm_loss(self.itm(hidden[batch.cls_reads]), batch.itm_labels),
        )


class ImageBertForImageTextRetrieval(ImageBertPreTrainedModel):
    """Scores how well image and text match: fine-tuning and retrieval (paper, section 5.3)."""

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__(config)
        self.imagebert = ImageBertModel(config)
        self.itm = ItmHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.imagebert.embeddings.word_embeddings

    def forward(self, batch: PackedBatch) -> Float[Tensor, " B"]:
        """The logit of each pair matching."""
        hidden = self.imagebert(batch, reads_only=True)
        scores: Tensor = self.itm(hidden[batch.cls_reads])
        return scores
