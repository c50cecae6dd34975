"""ImageBERT: BERT over a packed sequence of regions and words (paper, section 3 and figure 1).

Three ideas. Nothing is padded: hidden states are [T, H] over the real tokens of all pairs. Heads see only the rows
that a loss or a score reads, and the last layer computes only those (its keys and values span all tokens, its
queries, projections and feed-forward the read rows). Every head takes part in every step, if with zero rows, so that
no rank of a sharded run waits for a gradient that never comes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar, Unpack

import torch
from huggingface_hub import HfApi
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from imagebert.batch import PackedBatch
from imagebert.files import add_digests, file_digest, write_digests
from imagebert.model.card import figures_of
from imagebert.model.configuration import ImageBertConfig
from imagebert.model.dense import Inside, embed_images, embed_texts, encode
from imagebert.model.dual import DualHead, Gate, Projection
from imagebert.model.heads import Classifier, ItmHead, MlmHead, Regressor, classify, regress
from imagebert.model.layers import Embeddings, Layer, Reads, Seeds
from imagebert.model.losses import PretrainingLosses, group_labels, itm_loss
from imagebert.model.negatives import choose_negatives, rows_of_pairs
from imagebert.model.padded import (
    ImageBertModelOutput,
    ImageBertPreTrainingOutput,
    ImageBertRetrievalOutput,
    Padded,
    PaddedPairs,
    pack,
)
from imagebert_kernels.dropout import draw_seeds

WEIGHTS = "model.safetensors"
# Files of a model folder (model_folder.py), by what they follow from.
_OF_MODEL = (WEIGHTS, "config.json")
_OF_PAIRS = ("vocab.txt", "tokenizer_config.json", "preprocessor_config.json")
_OF_TRAINING = ("training.json", "README.md")

Output = TypeVar("Output", ImageBertModelOutput, ImageBertPreTrainingOutput, ImageBertRetrievalOutput)


class Sides(NamedTuple):
    """Tokens of one side, image or text, of any number of pairs: they do not know the other side yet.

    Embeddings, the layers before `fusion_layer` and the first fused layer's projections are functions of a side: all
    regions share a position, and so the text's positions are the same behind any image (paper, figure 1).
    """

    hidden: Tensor  # [S, H]
    first: Tensor  # [S, 3H] the first fused layer's queries, keys and values; [S, 0] where no layer is fused


class ImageBertPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """Gives all ImageBERT models what they have in common.

    Called with a PackedBatch, which the feed makes of stores, models train and score. Padded tensors, which
    `ImageBertProcessor` makes, are packed first.
    """

    config_class = ImageBertConfig
    base_model_prefix = "imagebert"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["Embeddings", "Layer"]

    @property
    def encoder(self) -> ImageBertModel:
        """Gives the embeddings and layers without heads, which are the model itself where it has none."""
        found: Any = getattr(self, self.base_model_prefix, self)
        return found  # type: ignore[no-any-return]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Projection) and module.in_features == module.out_features:
            nn.init.eye_(module.weight)
        elif isinstance(module, Gate):
            nn.init.zeros_(module.weight)

    def get_input_embeddings(self) -> nn.Module:
        """Returns the table of word embeddings."""
        return self.encoder.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replaces the table of word embeddings.

        Args:
            value: The new table [V, H].
        """
        self.encoder.embeddings.word_embeddings = value

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Writes weights and configuration, and a whole model folder where this model was loaded from one.

        A whole model folder also has the vocabulary, the processor's settings and digests, and with unchanged weights
        what says how the model was trained, and its card.

        Args:
            save_directory: The folder, which is made where there is none.
            kwargs: What `transformers.PreTrainedModel.save_pretrained` takes.
        """
        super().save_pretrained(save_directory, **kwargs)
        out, source = Path(save_directory), Path(self.name_or_path)
        weights, written = out / WEIGHTS, [name for name in _OF_MODEL if (out / name).is_file()]
        if WEIGHTS not in written:
            return  # in several files, or in a form of before
        weights.chmod(0o644)  # as the others; safetensors makes it its owner's alone
        if not self.name_or_path or not source.is_dir() or source.resolve() == out.resolve():
            return
        same = (source / WEIGHTS).is_file() and file_digest(source / WEIGHTS) == file_digest(weights)
        names = [n for n in (*_OF_PAIRS, *(_OF_TRAINING if same else ())) if (source / n).is_file()]
        for name in names:
            shutil.copyfile(source / name, out / name)
        write_digests(out, sorted([*written, *names]))

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, token: str | None = None, **commit: Any) -> str:
        """Uploads what `save_pretrained` writes to the Hugging Face hub, with the run's own model card.

        The card describes data, recipe and limits, and has R@K of each evaluation of this very model.

        Args:
            repo_id: The name of the repository, such as somebody/imagebert-flickr30k, which is made where there is
                none.
            private: Whether a new repository is hidden from others.
            token: The token of the hub. None takes the one that was stored when logging in.
            commit: What `huggingface_hub.HfApi.upload_folder` takes: commit_message, revision, create_pr and so on.

        Returns:
            The address of the commit.
        """
        hub = HfApi(token=token)
        repository = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit.setdefault("commit_message", f"Upload {type(self).__name__}")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            card = Path(folder) / "README.md"
            if card.is_file():
                card.write_text(
                    card.read_text(encoding="utf-8") + figures_of(Path(self.name_or_path)), encoding="utf-8"
                )
                add_digests(Path(folder), [card.name])
            return str(hub.upload_folder(repo_id=repository, folder_path=folder, **commit))

    def _backward_compatibility_gradient_checkpointing(self) -> None:
        """Transformers would take it out of the configuration, which a run has to be able to read again."""

    def _packed(self, padded: PaddedPairs, pretraining: bool = False) -> Padded:
        unknown = set(padded) - PaddedPairs.__required_keys__ - PaddedPairs.__optional_keys__
        if unknown:
            raise TypeError(f"{type(self).__name__} takes no {sorted(unknown)[0]}")
        return pack(padded, self.config.feature_size, self.config.marks_whole_image, pretraining)

    def _answer(self, padded: PaddedPairs, output: Output, batch: Padded) -> Output | tuple[Any, ...]:
        """With hidden states and attentions where they are asked for, as a tuple where that is."""
        states, attentions = padded.get("output_hidden_states"), bool(padded.get("output_attentions"))
        if states or attentions:
            if self.training:
                raise ValueError("hidden states and attentions are computed apart, so dropout must be off: call eval()")
            inside = _look_inside(self.encoder, padded, batch, attentions)
            output["hidden_states"] = tuple(inside.hidden) if states else None
            output["attentions"] = tuple(inside.attentions) if attentions else None
        return output if padded.get("return_dict", True) else output.to_tuple()


def _look_inside(model: ImageBertModel, padded: PaddedPairs, packed: Padded, attentions: bool) -> Inside:
    ids, text_mask, features, boxes, region_mask, image, text = packed.inputs
    whole = padded.get("whole_image") if model.config.use_global_image_token else None
    zeroed = padded.get("masked_regions")
    images = embed_images(model.embeddings, features, boxes, whole, None if zeroed is None else zeroed.bool())
    texts = embed_texts(model.embeddings, ids, text_mask)
    return encode(
        model.layers,
        images[image],
        texts[text],
        region_mask[image],
        text_mask[text],
        attentions,
        model.config.fusion_layer,
    )


class ImageBertModel(ImageBertPreTrainedModel):
    """Encodes regions and words together: embeddings and Transformer layers, without heads.

    Args:
        config: The model's shape.
    """

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = config.gradient_checkpointing  # where gradient_checkpointing_enable looks for it
        self.post_init()

    def forward(self, batch: PackedBatch | None = None, reads_only: bool = False, **padded: Unpack[PaddedPairs]) -> Any:
        """Computes the hidden states of the last layer.

        Shapes are of T packed tokens, Q rows that a head reads, and hidden size H.

        Args:
            batch: The packed pairs. None takes padded tensors.
            reads_only: Whether only the rows in batch.read_rows are computed, in their order, instead of all T tokens.
            padded: Padded tensors in place of `batch`, as `imagebert.model.padded.PaddedPairs` lists them.

        Returns:
            Hidden states [T, H], or [Q, H] where reads_only is true. An ImageBertModelOutput for padded tensors.

        Raises:
            ValueError: Padded tensors do not fit together.
        """
        if batch is None:
            packed = self._packed(padded)
            mask = torch.zeros(packed.batch.pairs * packed.width, dtype=torch.bool, device=packed.rows.device)
            output = ImageBertModelOutput(
                last_hidden_state=packed.unpack(self(packed.batch)),
                attention_mask=mask.index_fill(0, packed.rows, True).view(packed.batch.pairs, packed.width),
            )
            return self._answer(padded, output, packed)
        seeds = self.draw_seeds()
        reads = Reads(batch.read_rows, batch.read_cu_seqlens) if reads_only else None
        return self.fuse(self.sides(batch, seeds), batch.cu_seqlens, batch.max_seqlen, reads, seeds)

    def sides(self, batch: PackedBatch, seeds: Seeds) -> Float[Tensor, "T H"]:
        """Computes states that know their own side only, by the embeddings and the layers before `fusion_layer`.

        Args:
            batch: The packed pairs.
            seeds: The seeds of dropout as `draw_seeds` gives them.

        Returns:
            The states of all T tokens, [T, H].
        """
        hidden = self.embeddings(batch, seeds[0])
        for number in range(self.config.fusion_layer):
            hidden = self._layer(number, seeds, hidden, batch.side_cu_seqlens, batch.max_seqlen, None)
        return hidden

    def fuse(
        self,
        hidden: Float[Tensor, "T H"],
        cu_seqlens: Int[Tensor, " ends"],
        max_seqlen: int,
        reads: Reads | None,
        seeds: Seeds,
    ) -> Float[Tensor, "Q H"]:
        """Computes the layers in which both sides of a pair meet.

        Args:
            hidden: The states of the sides' T tokens, [T, H].
            cu_seqlens: The cumulative lengths of B pairs, [B+1], beginning with 0.
            max_seqlen: The length of the longest pair, or more.
            reads: The rows of the last layer that are wanted. None wants all.
            seeds: The seeds of dropout as `draw_seeds` gives them.

        Returns:
            The states of the wanted rows, [Q, H].
        """
        first, last = self.config.fusion_layer, len(self.layers) - 1
        for number in range(first, len(self.layers)):
            wanted = reads if number == last else None
            hidden = self._layer(number, seeds, hidden, cu_seqlens, max_seqlen, wanted)
        return hidden[reads.rows] if reads is not None and first > last else hidden

    def _layer(self, number: int, seeds: Seeds, hidden: Tensor, *where: Any) -> Float[Tensor, "Q H"]:
        of_layer = seeds[1 + 3 * number : 4 + 3 * number]
        arguments = self.layers[number], hidden, *where, of_layer
        if self.gradient_checkpointing and self.training:
            # With seeds the layer draws nothing, and a CUDA graph may not look at the generator.
            drawing = any(seed is None for seed in of_layer)
            return checkpoint(*arguments, use_reentrant=False, preserve_rng_state=drawing)  # type: ignore[no-any-return]
        layer, *inputs = arguments
        return layer(*inputs)  # type: ignore[no-any-return]

    @property
    def side_layers(self) -> list[Any]:
        """Lists the layers that attend within an image or within a text."""
        return list(self.layers)[: self.config.fusion_layer]

    @property
    def fused_layers(self) -> list[Any]:
        """Lists the layers in which both sides of a pair meet."""
        return list(self.layers)[self.config.fusion_layer :]

    def draw_seeds(self) -> Seeds:
        """Draws the seeds of all dropout of a forward pass at once: one of the embeddings, then three of each layer.

        Returns:
            The seeds in this order. They are None outside training, where nothing is dropped.
        """
        count = 1 + 3 * len(self.layers)
        return draw_seeds(count, self.embeddings.layer_norm.weight) if self.training else [None] * count


class PackedOutput(NamedTuple):
    """Holds what a model answers to a PackedBatch of B pairs.

    Attributes:
        result: PretrainingLosses of ImageBertForPreTraining; of ImageBertForImageTextRetrieval the logits [B] of
            matching, or [B, 1 + N'] where the batch asks for N' negatives of each pair: the pair's own, then theirs.
        vectors: The vectors of images and texts, [B, D] each, scaled so that their products are logits. There are none
            without a dual head.
        attributes: The sum of losses of masked regions' attributes. None where the model does not predict them.
    """

    result: Any
    vectors: tuple[Tensor, ...] = ()
    attributes: Tensor | None = None


class Fused(NamedTuple):
    """What the heads read of a batch, and of the negatives that were chosen in it."""

    hidden: Tensor  # [Q + N, H] the last layer's read rows, then each negative's [CLS]
    logits: Tensor  # [B, 1 + N'] of matching: the pair itself, then its negatives; very low where there is no negative
    vectors: tuple[Tensor, ...]  # as PackedOutput's


# Of a negative that there is not: no loss, and no gradient.
_NO_LOGIT = -1e4


def _fused(encoder: ImageBertModel, dual: DualHead | None, itm: ItmHead | None, batch: PackedBatch) -> Fused:
    """A batch through the whole model; only the layers that mix sides see the negatives that are chosen in it."""
    seeds = encoder.draw_seeds()
    sides = encoder.sides(batch, seeds)
    vectors: tuple[Tensor, ...] = () if dual is None else dual(sides, batch)
    hidden, cu_seqlens, reads = sides, batch.cu_seqlens, Reads(batch.read_rows, batch.read_cu_seqlens)
    cls, chosen = batch.cls_reads[:, None], None
    if batch.negative_draws.shape[1]:
        chosen = choose_negatives(vectors, batch)
        rows, ends = rows_of_pairs(batch.side_cu_seqlens, chosen.image_of.flatten(), chosen.text_of.flatten())
        hidden = torch.cat([sides, sides[rows]])
        cu_seqlens = torch.cat([cu_seqlens, len(sides) + ends[1:]])
        read, numbers = len(reads.rows), torch.arange(len(ends) - 1, device=rows.device)
        reads = Reads(
            torch.cat([reads.rows, len(sides) + ends[:-1].long()]),
            torch.cat([reads.cu_seqlens, (read + 1 + numbers).int()]),
        )
        cls = torch.cat([cls, read + numbers.view(batch.pairs, -1)], dim=1)
    last = encoder.fuse(hidden, cu_seqlens, batch.max_seqlen, reads, seeds)
    logits = last.new_zeros(cls.shape) if itm is None else itm(last[cls.flatten()]).view(cls.shape)
    if encoder.config.residual_score:
        images, texts = vectors
        products = (images * texts).sum(1)[:, None]
        if chosen is not None:
            products = torch.cat([products, (images[chosen.image_of] * texts[chosen.text_of]).sum(2)], dim=1)
        logits = logits + products
    if chosen is not None:
        logits = torch.cat([logits[:, :1], torch.where(chosen.found[:, None], logits[:, 1:], _NO_LOGIT)], dim=1)
    return Fused(last, logits, vectors)


class ImageBertForPreTraining(ImageBertPreTrainedModel):
    """Trains on the four pre-training tasks: masked words, masked region classes, masked region features, and matching.

    With `num_region_attributes` it predicts the attributes of masked regions, too, which is not the paper's.

    Args:
        config: The model's shape.
    """

    _tied_weights_keys: ClassVar[dict[str, str]] = {"mlm.decoder.weight": "imagebert.embeddings.word_embeddings.weight"}

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__(config)
        self.imagebert = ImageBertModel(config)
        self.mlm = MlmHead(config)
        self.moc = Classifier(config.hidden_size, config.num_region_classes)
        self.mrfr = Regressor(config.hidden_size, config.feature_size)
        attributes = config.num_region_attributes
        self.attributes = Classifier(config.hidden_size, attributes) if attributes else None
        self.itm = ItmHead(config)
        self.dual = DualHead(config) if config.dual_size else None
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Returns the linear layer that predicts words."""
        return self.mlm.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replaces the linear layer that predicts words, as when the table of words is made longer or shorter.

        Args:
            value: A linear layer with weight [V, H] and bias [V], whose parameters are taken over.
        """
        decoder = Classifier(value.in_features, value.out_features)
        decoder.weight, decoder.bias = value.weight, value.bias
        self.mlm.decoder = decoder

    def forward(self, batch: PackedBatch | None = None, **padded: Unpack[PaddedPairs]) -> Any:
        """Computes the loss of each pre-training task, summed over this microbatch.

        Args:
            batch: The packed pairs, with their labels. None takes padded tensors.
            padded: Padded tensors in place of `batch`, as `imagebert.model.padded.PaddedPairs` lists them.

        Returns:
            A PackedOutput, whose `result` is PretrainingLosses: four scalars which `PretrainingLosses.counts(batch)`
            divides into means. An ImageBertPreTrainingOutput for padded tensors.

        Raises:
            ValueError: Padded tensors do not fit together.
        """
        if batch is None:
            return self._of_padded(padded)
        hidden, logits, vectors = _fused(self.imagebert, self.dual, self.itm, batch)
        losses = PretrainingLosses(
            mlm=self.mlm(hidden, batch.mlm_reads, batch.mlm_labels),
            moc=classify(self.moc, hidden, batch.region_reads, batch.moc_labels),
            mrfr=regress(self.mrfr, hidden, batch.region_reads, batch),
            itm=itm_loss(logits.flatten(), group_labels(batch).flatten()),
        )
        return PackedOutput(losses, vectors, self._of_attributes(hidden, batch))

    def _of_attributes(self, hidden: Tensor, batch: PackedBatch) -> Tensor | None:
        if self.attributes is None:
            return None
        labels = batch.attribute_labels
        if not len(labels):  # the head takes part all the same
            labels = torch.full_like(batch.moc_labels, -1)
        return classify(self.attributes, hidden, batch.region_reads, labels)

    def _of_padded(self, padded: PaddedPairs) -> Any:
        if padded.get("all_pairs"):
            raise ValueError("all_pairs is for retrieval: in pre-training image b belongs to text b")
        packed = self._packed(padded, pretraining=True)
        if any(padded.get(name) is not None for name in ("labels", "masked_regions", "region_labels", "matched")):
            sums = self(packed.batch).result
            counts = PretrainingLosses.counts(packed.batch)
            given = (counts > 0).tolist()
            if padded.get("region_labels") is None:
                given[1] = False
            if padded.get("matched") is None:
                given[3] = False
            losses = {n: s / c for n, s, c, g in zip(sums._fields, sums, counts, given, strict=True) if g}
            output = ImageBertPreTrainingOutput(loss=sum(losses.values()) if losses else None, losses=losses)
            return self._answer(padded, output, packed)
        regions = padded["region_features"].shape[1]
        hidden = packed.unpack(self.imagebert(packed.batch))
        words = torch.cat([hidden[:, :1], hidden[:, 2 + regions :]], dim=1)
        output = ImageBertPreTrainingOutput(
            prediction_logits=self.mlm.decoder(self.mlm.transformed(words)),
            region_logits=self.moc(hidden[:, 1 : 1 + regions]),
            matching_logits=self.itm(hidden[:, 0]),
        )
        return self._answer(padded, output, packed)


class ImageBertForImageTextRetrieval(ImageBertPreTrainedModel):
    """Scores how well image and text match, in fine-tuning and retrieval (paper, section 5.3).

    Args:
        config: The model's shape.
    """

    def __init__(self, config: ImageBertConfig) -> None:
        super().__init__(config)
        self.imagebert = ImageBertModel(config)
        self.itm = ItmHead(config) if config.num_hidden_layers > config.fusion_layer else None
        self.dual = DualHead(config) if config.dual_size else None
        self.post_init()

    def forward(self, batch: PackedBatch | None = None, **padded: Unpack[PaddedPairs]) -> Any:
        """Computes for each pair the logit that image and text match, of which a sigmoid is the probability.

        Args:
            batch: The packed pairs. None takes padded tensors.
            padded: Padded tensors in place of `batch`, as `imagebert.model.padded.PaddedPairs` lists them.

        Returns:
            A PackedOutput, whose `result` are the logits [B] of B pairs, or [B, 1 + N'] where the batch asks for N'
            negatives of each. An ImageBertRetrievalOutput for padded tensors.

        Raises:
            ValueError: Padded tensors do not fit together.
        """
        if batch is None:
            return self._of_padded(padded)
        _, logits, vectors = _fused(self.imagebert, self.dual, self.itm, batch)
        return PackedOutput(logits if batch.negative_draws.shape[1] else logits[:, 0], vectors)

    def _of_padded(self, padded: PaddedPairs) -> Any:
        packed = self._packed(padded)
        batch, every = packed.batch, bool(padded.get("all_pairs"))
        images, texts = len(packed.inputs.features), len(packed.inputs.ids)
        _, logits, vectors = _fused(self.imagebert, self.dual, self.itm, batch)
        logits = logits[:, 0]
        output = ImageBertRetrievalOutput(logits=logits.view(images, texts) if every else logits)
        if padded.get("labels") is not None:
            output["loss"] = itm_loss(logits, batch.itm_labels) / len(logits)
        if self.dual is not None:
            output["image_vectors"] = vectors[0][:: texts if every else 1] / self.dual.scale
            output["text_vectors"] = vectors[1][:texts]
        return self._answer(padded, output, packed)

    def encode(self, batch: PackedBatch) -> Sides:
        """Computes what of each token does not depend on the other side of its pair.

        Pairs that share an image or a text can share this, instead of computing it again.

        Args:
            batch: The packed tokens of images, of texts, or of both.

        Returns:
            For S tokens their states before the first fused layer [S, H], and that layer's queries, keys and values
            [S, 3H]; [S, 0] where no layer is fused.
        """
        encoder = self.imagebert
        hidden = encoder.sides(batch, encoder.draw_seeds())
        if encoder.fused_layers:
            return Sides(hidden, encoder.fused_layers[0].project(hidden, None)[0])
        return Sides(hidden, hidden[:, :0])

    def score(self, tokens: Sides, cu_seqlens: Int[Tensor, " ends"], max_seqlen: int) -> Float[Tensor, " B"]:
        """Scores pairs of tokens that `encode` has encoded, by the ITM head.

        With `residual_score` this is what is added to the product of a pair's vectors; a model without fused layers
        has no such head.

        Args:
            tokens: The encoded tokens of each pair in their order, pairs one behind the other.
            cu_seqlens: The cumulative lengths of B pairs, [B+1], beginning with 0.
            max_seqlen: The length of the longest pair, or more.

        Returns:
            The logit of each pair, [B].
        """
        assert self.itm is not None
        first, *rest = self.imagebert.fused_layers
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
