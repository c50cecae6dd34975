"""The weights of a Visual Genome detector: read from every file they are published in, checked by name, converted.

    bua-caffe-frcn-r101-*.pth          MILVLG, torch.save
    faster_rcnn_from_caffe_attr.pkl    airsplay, a pickle of arrays
    frcnn-vg-finetuned/                transformers' lxmert: pytorch_model.bin and config.yaml; or that file beside it
    *.safetensors                      any of their tensors under the same names
    OUT.safetensors                    `convert_detector`'s: weights, rules, names and digests in one file

Nothing in them is executed. Two shapes tell the variant; each tensor of it has to be there, finite and of the right
shape, and none besides.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imagebert.data.readers import BadRecord
from imagebert.data.readers.tensors import read_weights
from imagebert.errors import UsageError
from imagebert.files import check_sealed, file_digest, open_regular, parse_json, read_names, replacing, sealed
from imagebert.regions.vg.rules import Rules, Variant, anchors
from imagebert.strict_yaml import build, read_yaml

log = logging.getLogger(__name__)

_METADATA = "imagebert_detector"
_VERSION = 1
_ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
_HEAD = "roi_heads.box_predictor"
_STAGES = ("backbone.res2", "backbone.res3", "backbone.res4", "roi_heads.res5")
_BLOCKS = (3, 4, 23, 3)  # of the stages of a ResNet-101, which whoever publishes has
# In made-up weights of a smaller network how many they have, [4]: no project's file has a tensor of this name.
_MADE_UP = "imagebert.made_up_blocks"
_DEEPEST = 64  # blocks of a stage
_LARGEST_HEADER = 1 << 26  # bytes, of a safetensors file
_NAMED = 3  # tensors, in an error

_FOLDER = ("pytorch_model.bin", "model.safetensors")  # transformers' names, of old and of late
_ALIKE = 0.83  # from which on a key is one that was misspelt

# transformers' config.yaml -> what it says of the rules.
_CONFIG = {
    ("input", "min_size_test"): "short_side",
    ("input", "max_size_test"): "long_side",
    ("rpn", "pre_nms_topk_test"): "candidates",
    ("rpn", "post_nms_topk_test"): "proposals",
    ("min_detections",): "least",
    ("max_detections",): "most",
    ("roi_heads", "nms_thresh_test"): "nms_iou",
}


@dataclass(frozen=True)
class Detector:
    """Holds the weights of a detector, and what belongs to them.

    Attributes:
        weights: The tensors by the ports' names, float32.
        rules: What the port does before and behind the network.
        classes: The names of the object classes; without names "object 0" and so on.
        attributes: The names of the attributes, likewise.
        digest: SHA-256 of the tensors.
        source: The name of the file that they are from.
    """

    weights: Mapping[str, torch.Tensor]
    rules: Rules
    classes: list[str]
    attributes: list[str]
    digest: str
    source: str


def read_detector(path: Path) -> Detector:
    """Reads the weights of a detector, whoever published them.

    Args:
        path: A file of weights, or transformers' folder.

    Raises:
        UsageError: It is none, is damaged, or a tensor is missing, superfluous, of another shape or not finite.
    """
    file = _file(path)
    if file.suffix == ".safetensors" and (converted := _converted(file)) is not None:
        return converted
    ports = file.suffix == ".bin" or file.name in _FOLDER
    detector = _published(file, "interpolate" if ports else "pillow")
    config = file.with_name("config.yaml")
    said = ports and config.exists()
    rules = _configured(detector.rules, config) if said else detector.rules
    log.info(
        "%s: rules of %s%s: resize %s, sides of %d to %d pixels, %d to %d regions of %d proposals of %d candidates, "
        "suppressed at %s",
        *(file, rules.variant, f" as {config} has them" if said and rules != detector.rules else ", its defaults"),
        *(rules.resize, rules.short_side, rules.long_side, rules.least, rules.most, rules.proposals, rules.candidates),
        ", ".join(map(str, rules.nms_iou)),
    )
    return replace(detector, rules=rules)


def _file(path: Path) -> Path:
    """The file of weights in a folder, or the one that is given.

    Raises:
        UsageError: the folder is of another detector of transformers.
    """
    if not path.is_dir():
        return path
    if (path / "preprocessor_config.json").exists() and not (path / "config.yaml").exists():
        raise UsageError(
            f"{path} holds another detector of transformers than Visual Genome's: give a YAML description with "
            f"detector: {{transformers: {path}}}"
        )
    return next((path / name for name in _FOLDER if (path / name).exists()), path / _FOLDER[0])


def _published(path: Path, resize: Any) -> Detector:
    try:
        arrays = _tensors(path) if path.suffix == ".safetensors" else read_weights(path)
    except BadRecord as error:
        raise UsageError(f"{path} cannot be read as the weights of a detector: {error}") from None
    weights = {
        name: torch.from_numpy(np.array(array, np.float32))
        for name, array in arrays.items()
        if not name.endswith("num_batches_tracked")  # training's, of no use here
    }
    variant = _check(weights, path)
    rules = Rules(variant=variant, resize="factor" if variant == "caffe" else resize)
    classes, attributes = (_numbered(weights, name) for name in ("object", "attribute"))
    return Detector(weights, rules, classes, attributes, _digest(weights), path.name)


def _tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    from safetensors.torch import load_file

    return {name: tensor.float().numpy() for name, tensor in load_file(path).items()}


def _numbered(weights: Mapping[str, torch.Tensor], what: str) -> list[str]:
    caffe = f"{_HEAD}.cls_embed.weight" in weights
    score = {"object": "cls_score", "attribute": "attr_linear2" if caffe else "attr_score"}[what]
    return [f"{what} {number}" for number in range(len(weights[f"{_HEAD}.{score}.bias"]) - 1)]


def _configured(rules: Rules, config: Path) -> Rules:
    """The rules as transformers' config.yaml changes them.

    Raises:
        UsageError: a key that is not there stands there misspelt, or a value is wrong.
    """
    tree, changes = _lower(read_yaml(config)), {}
    for path, name in _CONFIG.items():
        value: Any = tree
        for depth, part in enumerate(path):
            if isinstance(value, dict) and part not in value:
                _check_spelling(value, path[: depth + 1], config)
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            listed = value if isinstance(value, list) else [value]
            changes[name] = tuple(listed) if name == "nms_iou" else listed[0]
    return build(Rules, asdict(rules) | {"nms_iou": list(rules.nms_iou)} | _plain(changes), str(config))


def _check_spelling(section: dict[str, Any], path: tuple[str, ...], config: Path) -> None:
    """Raises: UsageError: among a section's keys, which lacks this one, is one that must be meant by it."""
    known = {each[len(path) - 1] for each in _CONFIG if each[: len(path) - 1] == path[:-1]}
    # Those of training look alike, and are no mistake.
    others = [key for key in section if key not in known and not key.endswith("_train")]
    for key in difflib.get_close_matches(path[-1], others, n=1, cutoff=_ALIKE):
        *place, _ = path
        raise UsageError(f"{config}: unknown key {'.'.join([*place, key])}; did you mean {path[-1]}?")


def _plain(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in changes.items()}


def _lower(tree: Any) -> Any:
    return {str(key).lower(): _lower(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


# -------------------------------------------------------------------------------------------------------------- checks


def _check(weights: dict[str, torch.Tensor], path: Path) -> Variant:
    """Which variant they are; see `read_detector` for what is raised. Anchors that are missing are added."""
    variant: Variant
    if f"{_HEAD}.cls_embed.weight" in weights:
        variant = "caffe"
    elif f"{_HEAD}.cls_embedding.weight" in weights:
        variant = "detectron2"
    else:
        raise UsageError(
            f"{path} holds no Visual Genome detector with attributes: among its {len(weights)} tensors is neither"
            f" {_HEAD}.cls_embed.weight (MILVLG) nor {_HEAD}.cls_embedding.weight (airsplay, transformers)"
        )
    if _ANCHORS not in weights:
        weights[_ANCHORS] = anchors(variant)
    wanted = _shapes(weights, variant)
    problems = {
        "are missing": [name for name in wanted if name not in weights],
        "do not belong to it": [name for name in weights if name not in wanted],
        "have another shape": [
            f"{name} {list(weights[name].shape)} instead of {list(shape)}"
            for name, shape in wanted.items()
            if name in weights and weights[name].shape != shape
        ],
        "are not finite": [name for name, tensor in weights.items() if not tensor.isfinite().all()],
        "are negative": [
            name for name, tensor in weights.items() if name.endswith("running_var") and bool((tensor < 0).any())
        ],
    }
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            raise UsageError(
                f"{path} is no whole {variant} detector (ResNet-C4): {len(names)} tensors {problem}:"
                f" {', '.join(names[:_NAMED])}{more}"
            )
    return variant


def _shapes(weights: Mapping[str, torch.Tensor], variant: Variant) -> dict[str, tuple[int, ...]]:
    """The tensors of a detector and their shapes, as the sizes of a few of them imply."""
    caffe = variant == "caffe"

    def size(name: str, axis: int = 0) -> int:
        """0 where it is missing, which is told for that name then."""
        shape = weights[name].shape if name in weights else ()
        return shape[axis] if len(shape) > axis else 0

    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.norm.{part}"] = shape[:1]

    def linear(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    into = size("backbone.stem.conv1.weight")
    convolution("backbone.stem.conv1", into, 3, 7, 7)
    if _MADE_UP in weights:
        shapes[_MADE_UP] = (len(_STAGES),)
    for stage, blocks in zip(_STAGES, _blocks(weights), strict=True):
        if stage == "roi_heads.res5":
            map_size = into
        middle = size(f"{stage}.0.conv1.weight")
        for block in range(blocks):
            place = f"{stage}.{block}"
            if block == 0:
                convolution(f"{place}.shortcut", 4 * middle, into, 1, 1)
            convolution(f"{place}.conv1", middle, into, 1, 1)
            convolution(f"{place}.conv2", middle, middle, 3, 3)
            convolution(f"{place}.conv3", 4 * middle, middle, 1, 1)
            into = 4 * middle
    rpn = "proposal_generator.rpn_head"
    hidden, cell = size(f"{rpn}.conv.weight"), size(_ANCHORS)
    shapes[_ANCHORS] = (cell, 4)
    linear(f"{rpn}.conv", hidden, map_size, 3, 3)
    linear(f"{rpn}.objectness_logits", (2 if caffe else 1) * cell, hidden, 1, 1)
    linear(f"{rpn}.anchor_deltas", 4 * cell, hidden, 1, 1)
    words, first, score = (
        ("cls_embed", "attr_linear1", "attr_linear2") if caffe else ("cls_embedding", "fc_attr", "attr_score")
    )
    classes, word = size(f"{_HEAD}.cls_score.weight"), size(f"{_HEAD}.{words}.weight", 1)
    linear(f"{_HEAD}.cls_score", classes, into)
    linear(f"{_HEAD}.bbox_pred", 4 * (classes if caffe else classes - 1), into)
    shapes[f"{_HEAD}.{words}.weight"] = (classes, word)
    linear(f"{_HEAD}.{first}", size(f"{_HEAD}.{first}.weight"), into + word)
    linear(f"{_HEAD}.{score}", size(f"{_HEAD}.{score}.weight"), size(f"{_HEAD}.{first}.weight"))
    return shapes


def _blocks(weights: Mapping[str, torch.Tensor]) -> Sequence[int]:
    """How many blocks each stage has. Never as many as there are: a file that lacks the last of them is not whole."""
    stated = weights[_MADE_UP].flatten().tolist() if _MADE_UP in weights else []
    if len(stated) == len(_STAGES) and all(number in range(1, _DEEPEST) for number in stated):
        return [int(number) for number in stated]
    return _BLOCKS


def _digest(weights: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {list(tensor.shape)} ".encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------ our file


def convert_detector(path: Path, out: Path, classes: Path | None = None, attributes: Path | None = None) -> Detector:
    """Writes the weights of a detector as one safetensors file, with its rules and names.

    Args:
        path: The weights as they are published.
        out: The file to write.
        classes: A file of the classes' names, one a line: objects_vocab.txt of the projects.
        attributes: A file of the attributes' names, likewise: attributes_vocab.txt.

    Returns:
        The detector.

    Raises:
        UsageError: The weights are none (`read_detector`), names do not fit, or `out` is no safetensors file.
        OSError: The disk is full or fails.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if out.suffix != ".safetensors":
        raise UsageError(f"the detector is written as {out.name}: name a file that ends in .safetensors")
    detector = read_detector(path)
    detector = replace(
        detector,
        classes=_names(classes, detector.classes),
        attributes=_names(attributes, detector.attributes),
    )
    content = sealed(
        {
            "version": _VERSION,
            "rules": asdict(detector.rules),
            "classes": detector.classes,
            "attributes": detector.attributes,
            "weights_sha256": detector.digest,
            "source": detector.source,
            "source_sha256": file_digest(_file(path)),
        }
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(out) as temporary:
            save_file(dict(detector.weights), temporary, {_METADATA: json.dumps(content)})
            temporary.chmod(0o644)
    except SafetensorError as error:  # which is no OSError, whatever the disk says
        raise OSError(f"writing {out} failed, it is as it was: {error}") from None
    return detector


def _names(file: Path | None, numbered: list[str]) -> list[str]:
    if file is None:
        return numbered
    names = read_names(file)
    if len(names) != len(numbered):
        raise UsageError(f"{file} has {len(names)} names, the detector {len(numbered)}: give one a line")
    return names


def holds_detector(path: Path) -> bool:
    """Whether a safetensors file is one of `convert_detector`."""
    try:
        with open_regular(path) as opened:
            size = int.from_bytes(opened.read(8), "little")
            return f'"{_METADATA}":'.encode() in opened.read(min(size, _LARGEST_HEADER))
    except (OSError, UsageError):
        return False


def _converted(path: Path) -> Detector | None:
    """The detector in a file of `convert_detector`; None: it is another one's, of bare tensors."""
    from safetensors import SafetensorError, safe_open

    open_regular(path).close()
    try:
        with safe_open(path, "pt") as opened:
            metadata = (opened.metadata() or {}).get(_METADATA)
            if metadata is None:
                return None
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is no mapping
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is damaged ({error}): convert the published weights again") from None
    cure = "convert the published weights again"
    content = check_sealed(parse_json(metadata, str(path)), path, cure)
    if content.get("version") != _VERSION:
        raise UsageError(f"{path} is of version {content.get('version')}, this program reads {_VERSION}: {cure}")
    rules = build(Rules, content["rules"], str(path))
    if _digest(weights) != content["weights_sha256"]:
        raise UsageError(f"{path} is damaged: its tensors are not those that were written; {cure}")
    if _check(weights, path) != rules.variant:
        raise UsageError(f"{path} says it is {rules.variant}, its weights are of another kind: {cure}")
    return Detector(
        weights, rules, content["classes"], content["attributes"], content["weights_sha256"], content["source"]
    )
