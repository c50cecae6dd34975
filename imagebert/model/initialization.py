"""Weights to start from: any BERT-architecture folder in Hugging Face's format, or an ImageBERT's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from imagebert.config import UsageError

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
    """Names of this model's parameters that were loaded, those left new, and the file's tensors nobody wanted."""

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
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} has no readable config.json ({error}): give a Hugging Face model folder") from None
    kind = config.get("model_type")
    if kind not in ("bert", "imagebert"):
        raise UsageError(f"{folder} holds a {kind!r} model: start from a BERT or an ImageBERT")
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
    return {name: config[name] for name in names if name in config}


def initialize_from(model: nn.Module, folder: Path) -> InitializationReport:
    """Copies into `model` every tensor of the folder that has a place there, in place.

    Raises:
        UsageError: no model.safetensors, it cannot be read, or a tensor has another shape.
    """
    file = folder / "model.safetensors"
    if not file.is_file():
        raise UsageError(f"{folder} has no model.safetensors: convert its weights with transformers' save_pretrained")
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} is damaged: {error}") from None
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    renamed = tensors if kind == "imagebert" else _from_bert(tensors)
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
    return InitializationReport(sorted(loaded), new, sorted(ignored))


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
        renamed[place] = torch.cat([parts["query"], parts["key"], parts["value"]])
    return renamed
