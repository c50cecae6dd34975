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
from imagebert.model.dual import DualHead, WithVectors
from imagebert.model.heads import Classifier, ItmHead, MlmHead, Regressor, classify, regress
from imagebert.model.layers import Embeddings, Layer, Reads, Seeds
from imagebert.model.losses import PretrainingLosses, itm_loss
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


class Encoded(NamedTuple):
    """Tokens of one side, image or text, of any number of pairs: they do not know the other side yet.

    Embeddings and the first layer's projections are functions of a token and its place on its own side: all regions
    share a position, and so the text's positions are the same behind any image (paper, figure 1).
    """

    hidden: Tensor  # [S, H] embedded
    first: Tensor  # [S, 3H] the first layer's queries, keys and values


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
        return pack(padded, self.config.feature_size, self.config.use_global_image_token, pretraining)

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
    return encode(model.layers, images[image], texts[text], region_mask[image], text_mask[text], attentions)


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

    def forward(
        self,
        batch: PackedBatch | None = None,
        reads_only: bool = False,
        embedded: Float[Tensor, "T H"] | None = None,
        seeds: Seeds | None = None,
        **padded: Unpack[PaddedPairs],
    ) -> Any:
        """Computes the hidden states of the last layer.

        Shapes are of T packed tokens, Q rows that a head reads, and hidden size H.

        Args:
            batch: The packed pairs. None takes padded tensors.
            reads_only: Whether only the rows in batch.read_rows are computed, in their order, instead of all T tokens.
            embedded: The tokens as `embeddings` gave them for the batch, [T, H], where they are computed already.
            seeds: The seeds of dropout as `draw_seeds` gave them, where they are drawn already.
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
        seeds = self.draw_seeds() if seeds is None else seeds
        hidden = self.embeddings(batch, seeds[0]) if embedded is None else embedded
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            reads = Reads(batch.read_rows, batch.read_cu_seqlens) if reads_only and number == last else None
            of_layer = seeds[1 + 3 * number : 4 + 3 * number]
            arguments = hidden, batch.cu_seqlens, batch.max_seqlen, reads, of_layer
            if self.gradient_checkpointing and self.training:
                # With seeds the layer draws nothing, and a CUDA graph may not look at the generator.
                drawing = any(seed is None for seed in of_layer)
                hidden = checkpoint(layer, *arguments, use_reentrant=False, preserve_rng_state=drawing)
            else:
                hidden = layer(*arguments)
        return hidden

    def draw_seeds(self) -> Seeds:
        """Draws the seeds of all dropout of a forward pass at once: one of the embeddings, then three of each layer.

        Returns:
            The seeds in this order. They are None outside training, where nothing is dropped.
        """
        count = 1 + 3 * len(self.layers)
        return draw_seeds(count, self.embeddings.layer_norm.weight) if self.training else [None] * count


def _encoded(encoder: ImageBertModel, batch: PackedBatch) -> tuple[Float[Tensor, "T H"], Float[Tensor, "Q H"]]:
    """The embedded tokens, and the last layer of the rows that heads read."""
    seeds = encoder.draw_seeds()
    embedded = encoder.embeddings(batch, seeds[0])
    return embedded, encoder(batch, reads_only=True, embedded=embedded, seeds=seeds)


class ImageBertForPreTraining(ImageBertPreTrainedModel):
    """Trains on the four pre-training tasks: masked words, masked region classes, masked region features, and matching.

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
            PretrainingLosses, four scalars which `PretrainingLosses.counts(batch)` divides into means; within a
            WithVectors, which also has the vectors of both sides, where the model has a dual head. An
            ImageBertPreTrainingOutput for padded tensors.

        Raises:
            ValueError: Padded tensors do not fit together.
        """
        if batch is None:
            return self._of_padded(padded)
        embedded, hidden = _encoded(self.imagebert, batch)
        losses = PretrainingLosses(
            mlm=self.mlm(hidden, batch.mlm_reads, batch.mlm_labels),
            moc=classify(self.moc, hidden, batch.region_reads, batch.moc_labels),
            mrfr=regress(self.mrfr, hidden, batch.region_reads, batch),
            itm=itm_loss(self.itm(hidden[batch.cls_reads]), batch.itm_labels),
        )
        return losses if self.dual is None else WithVectors(losses, self.dual(embedded, batch))

    def _of_padded(self, padded: PaddedPairs) -> Any:
        if padded.get("all_pairs"):
            raise ValueError("all_pairs is for retrieval: in pre-training image b belongs to text b")
        packed = self._packed(padded, pretraining=True)
        if any(padded.get(name) is not None for name in ("labels", "masked_regions", "region_labels", "matched")):
            sums = self(packed.batch)
            sums = sums.output if isinstance(sums, WithVectors) else sums
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
        self.itm = ItmHead(config)
        self.dual = DualHead(config) if config.dual_size else None
        self.post_init()

    def forward(self, batch: PackedBatch | None = None, **padded: Unpack[PaddedPairs]) -> Any:
        """Computes for each pair the logit that image and text match, of which a sigmoid is the probability.

        Args:
            batch: The packed pairs. None takes padded tensors.
            padded: Padded tensors in place of `batch`, as `imagebert.model.padded.PaddedPairs` lists them.

        Returns:
            Logits [B] of B pairs; within a WithVectors, which also has the vectors of both sides, where the model has a
            dual head. An ImageBertRetrievalOutput for padded tensors.

        Raises:
            ValueError: Padded tensors do not fit together.
        """
        if batch is None:
            return self._of_padded(padded)
        embedded, hidden = _encoded(self.imagebert, batch)
        scores: Tensor = self.itm(hidden[batch.cls_reads])
        return scores if self.dual is None else WithVectors(scores, self.dual(embedded, batch))

    def _of_padded(self, padded: PaddedPairs) -> Any:
        packed = self._packed(padded)
        batch, every = packed.batch, bool(padded.get("all_pairs"))
        images, texts = len(packed.inputs.features), len(packed.inputs.ids)
        embedded, hidden = _encoded(self.imagebert, batch)
        logits = self.itm(hidden[batch.cls_reads])
        output = ImageBertRetrievalOutput(logits=logits.view(images, texts) if every else logits)
        if padded.get("labels") is not None:
            output["loss"] = itm_loss(logits, batch.itm_labels) / len(logits)
        if self.dual is not None:
            output["image_vectors"] = self.dual.images(embedded, batch)[:: texts if every else 1]
            output["text_vectors"] = self.dual.texts(embedded, batch)[:texts]
        return self._answer(padded, output, packed)

    def encode(self, batch: PackedBatch) -> Encoded:
        """Computes what of each token does not depend on the other side of its pair.

        Pairs that share an image or a text can share this, instead of computing it again.

        Args:
            batch: The packed tokens of images, of texts, or of both.

        Returns:
            For S tokens their embeddings [S, H], and the first layer's queries, keys and values [S, 3H].
        """
        hidden = self.imagebert.embeddings(batch)
        first: Any = self.imagebert.layers[0]
        return Encoded(hidden, first.project(hidden, None)[0])

    def score(self, tokens: Encoded, cu_seqlens: Int[Tensor, " ends"], max_seqlen: int) -> Float[Tensor, " B"]:
        """Scores pairs of tokens that `encode` has encoded, as `forward` scores a batch.

        Args:
            tokens: The encoded tokens of each pair in their order, pairs one behind the other.
            cu_seqlens: The cumulative lengths of B pairs, [B+1], beginning with 0.
            max_seqlen: The length of the longest pair, or more.

        Returns:
            The logit of each pair, [B].
        """
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
