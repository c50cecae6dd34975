"""Weights to start from: any BERT-architecture folder in Hugging Face's format, or an ImageBERT's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from imagebert.errors import UsageError
from imagebert.files import open_regular, read_json

_LAYER = {
    "attention.output.dense": "attention_output",
    "attention.output.LayerNorm": "attention_layer_norm",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
    "output.LayerNorm": "output_layer_norm",
}
_OTHER = {
    "embeddings.LayerNorm": "imagebert.embeddings.layer_norm",
    "embeddings.word_embeddings": "imagebert.embeddings.word_embeddings",
    "embeddings.position_embeddings": "imagebert.embeddings.position_embeddings",
    "embeddings.token_type_embeddings": "imagebert.embeddings.token_type_embeddings",
    "pooler.dense": "itm.pooler",
    "cls.predictions.transform.dense": "mlm.transform",
    "cls.predictions.transform.LayerNorm": "mlm.layer_norm",
}


class InitializationReport(NamedTuple):
    """Names the parameters that were loaded, those left new, and the file's tensors that have no place in the model."""

    loaded: list[str]
    new: list[str]
    ignored: list[str]

    def __str__(self) -> str:
        def some(names: list[str]) -> str:
            return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "none"

        return (
            f"{len(self.loaded)} tensors loaded; {len(self.new)} new ({some(self.new)}); "
            f"{len(self.ignored)} ignored ({some(self.ignored)})"
        )


def find_model(path: Path) -> Path:
    """A model folder, or the one that a finished run holds.

    Raises:
        UsageError: neither.
    """
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise UsageError(f"{path} holds no model: give a folder with config.json, or a run that has finished")


def read_architecture(folder: Path) -> dict[str, Any]:
    """The arguments of ImageBertConfig that a folder's config.json fixes.

    Raises:
        UsageError: no config.json, or a model that is neither BERT nor ImageBERT.
    """
    config, kind = _read_config(folder)
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu" or config.get("position_embedding_type", "absolute") != "absolute":
        raise UsageError(f"{folder} has activation {activation!r} or relative positions: ImageBERT has neither")
    names = [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "type_vocab_size",
        "layer_norm_eps",
        "initializer_range",
    ]
    if kind == "imagebert":
        names += ["feature_size", "num_region_classes"]
    shape = {name: config[name] for name in names if name in config}
    if kind == "imagebert":
        fusion, residual = config.get("fusion_layer", 0), config.get("residual_score", False)
        if type(fusion) is not int or not 0 <= fusion < 1 << 20 or type(residual) is not bool:
            raise UsageError(f"{folder}/config.json has no whole fusion_layer, or residual_score: it is damaged")
    for name, value in shape.items():
        whole = name not in ("layer_norm_eps", "initializer_range")
        # Larger than any model: memory would be asked for before the weights are seen not to fit.
        if type(value) not in ((int,) if whole else (int, float)) or not 0 < value < (1 << 20 if whole else 1):
            raise UsageError(f"{folder}/config.json has {name} {str(value)[:40]!r}: it is damaged")
    return {**shape, "fusion_layer": fusion, "residual_score": residual} if kind == "imagebert" else shape


def is_imagebert(folder: Path) -> bool:
    """Whether a model folder holds an ImageBERT, and no text-only BERT."""
    return _read_config(folder)[1] == "imagebert"


def _read_config(folder: Path) -> tuple[dict[str, Any], str]:
    """config.json, and which model it is of."""
    try:
        config = read_json(folder / "config.json")
    except UsageError as error:
        raise UsageError(f"{folder} has no readable config.json ({error}): give a Hugging Face model folder") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in ("bert", "imagebert"):
        raise UsageError(f"{folder} holds a {str(kind)[:40]!r} model: start from a BERT or an ImageBERT")
    return config, kind


def initialize_from(model: nn.Module, folder: Path, allow_partial: bool = False) -> InitializationReport:
    """Copies into a model every tensor of a folder that has a place there, in place.

    Args:
        model: The model whose parameters are overwritten.
        folder: A folder with config.json and model.safetensors.
        allow_partial: Whether a folder that has only parts of the encoder, or nothing of it, is no error.

    Returns:
        The names of what was loaded, what is new and what was ignored.

    Raises:
        UsageError: There is no model.safetensors, it cannot be read, a tensor has another shape, or of embeddings and
            layers, as far as that kind of model has them, one would stay new.
    """
    renamed, kind = _read_tensors(folder)
    file = folder / "model.safetensors"
    # Tied tensors are stored once; the parameters list them once too.
    places = dict(model.named_parameters())
    loaded, ignored = [], []
    with torch.no_grad():
        for name, tensor in renamed.items():
            if name not in places:
                ignored.append(name)
                continue
            if places[name].shape != tensor.shape:
                raise UsageError(
                    f"{file}: {name} has shape {tuple(tensor.shape)}, the model wants {tuple(places[name].shape)}"
                )
            places[name].copy_(tensor)
            loaded.append(name)
    new = [name for name in places if name not in set(loaded)]
    # What no BERT has, and what an ImageBERT may lack.
    absent = ["global_image", *([] if kind == "imagebert" else ["region_projection", "location_projection"])]
    absent += [f"imagebert.layers.{number}." for number in _new_layers(model, folder)]
    lacking = [name for name in new if name.startswith("imagebert.") and not any(part in name for part in absent)]
    if lacking and not allow_partial:
        strange = f", and has {ignored[0]!r} (one of {len(ignored)}), which is of no use" if ignored else ""
        raise UsageError(
            f"{file} lacks {lacking[0]} (one of {len(lacking)} tensors of the encoder){strange}: is it another model, "
            "or one whose names were given a prefix? model.allow_partial=true takes what there is"
        )
    return InitializationReport(sorted(loaded), new, sorted(ignored))


def initialize_fused(model: nn.Module, folder: Path) -> InitializationReport:
    """Copies the last layers of a BERT or ImageBERT to a model's fused ones, as many as there are of these, in place.

    Raises:
        UsageError: as `initialize_from`; or the folder has fewer layers, or of another size.
    """
    config: Any = model.config
    count = config.num_hidden_layers - config.fusion_layer
    theirs = read_architecture(folder)
    if theirs["num_hidden_layers"] < count or theirs["hidden_size"] != config.hidden_size:
        raise UsageError(
            f"model.fused_from {folder} has {theirs['num_hidden_layers']} layers of {theirs['hidden_size']}: it cannot "
            f"give {count} of {config.hidden_size}"
        )
    tensors, _ = _read_tensors(folder)
    places = dict(model.named_parameters())
    loaded = []
    with torch.no_grad():
        for number in range(count):
            own = f"imagebert.layers.{config.fusion_layer + number}."
            prefix = f"imagebert.layers.{theirs['num_hidden_layers'] - count + number}."
            for name in (name for name in places if name.startswith(own)):
                tensor = tensors.get(prefix + name.removeprefix(own))
                if tensor is None or tensor.shape != places[name].shape:
                    wanted = prefix + name.removeprefix(own)
                    raise UsageError(f"model.fused_from {folder} lacks {wanted}, or has it in another shape")
                places[name].copy_(tensor)
                loaded.append(name)
    return InitializationReport(sorted(loaded), [], [])


def embed_text_alone(model: nn.Module, cls_id: int, sep_id: int) -> None:
    """Moves a BERT's tables in place so that `[SEP] words [SEP]` of a pair is embedded as its `[CLS] words [SEP]`.

    A text's places in a pair begin with 2 and are of the second segment (paper, section 3.1). Where layers attend
    within a text, a BERT that was trained on texts alone then says the very same of them, until training changes it.

    Args:
        model: a model that was initialised from that BERT
        cls_id: the number of [CLS]
        sep_id: the number of [SEP]
    """
    embeddings: Any = model.get_submodule("imagebert.embeddings")
    with torch.no_grad():
        words, places = embeddings.word_embeddings.weight, embeddings.position_embeddings.weight
        segments = embeddings.token_type_embeddings.weight
        places[2:] = places[:-2].clone()
        # The first [SEP] is the only token that is ever there.
        places[2] += words[cls_id] - words[sep_id]
        segments[1] = segments[0]


def _new_layers(model: nn.Module, folder: Path) -> range:
    """Fused layers that a folder of sides only cannot have."""
    config: Any = getattr(model, "config", None)
    theirs = read_architecture(folder)
    if config is None or theirs.get("fusion_layer", 0) != theirs["num_hidden_layers"]:
        return range(0)
    return range(config.fusion_layer, config.num_hidden_layers)


def _read_tensors(folder: Path) -> tuple[dict[str, Tensor], str]:
    """A folder's weights under our names, and which model they are of."""
    file = folder / "model.safetensors"
    if not file.is_file():
        raise UsageError(f"{folder} has no model.safetensors: convert its weights with transformers' save_pretrained")
    try:
        open_regular(file).close()
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} is damaged: {error}") from None
    _, kind = _read_config(folder)
    return (tensors if kind == "imagebert" else _from_bert(tensors)), kind


def _from_bert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """BERT's names to ours; its three attention projections become one."""
    renamed: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix("bert.")
        # Checkpoints converted from TensorFlow call LayerNorm's parameters gamma and beta.
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        module, _, parameter = name.rpartition(".")
        layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", module)
        if layer and (part := re.fullmatch(r"attention\.self\.(query|key|value)", layer[2])):
            place = f"imagebert.layers.{layer[1]}.query_key_value.{parameter}"
            joined.setdefault(place, {})[part[1]] = tensor
        elif layer and layer[2] in _LAYER:
            renamed[f"imagebert.layers.{layer[1]}.{_LAYER[layer[2]]}.{parameter}"] = tensor
        elif module in _OTHER:
            renamed[f"{_OTHER[module]}.{parameter}"] = tensor
        elif name == "cls.predictions.bias":
            renamed["mlm.decoder.bias"] = tensor
        else:
            renamed[full_name] = tensor
    for place, parts in joined.items():
        if len(parts) == 3 and len({part.shape[1:] for part in parts.values()}) == 1:
            renamed[place] = torch.cat([parts["query"], parts["key"], parts["value"]])
    return renamed
