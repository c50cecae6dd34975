"""A detector of transformers (DETR, RT-DETR, D-FINE and their kin) from a local folder, as save_pretrained writes it.

The folder says everything: config.json the network and the names of its classes, model.safetensors the weights,
preprocessor_config.json what becomes of a picture. Boxes are those of the processor's own post-processing. Nothing is
downloaded and no code of the folder is run. Pictures are prepared by Pillow, also where torchvision is installed, whose
pixels differ.
"""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import MODEL_FOR_OBJECT_DETECTION_MAPPING, AutoConfig, AutoImageProcessor, AutoModelForObjectDetection
from transformers.utils import logging

from imagebert.errors import UsageError
from imagebert.files import file_digest
from imagebert.pictures import UnreadableImage
from imagebert.regions.networks import Candidates, FeatureMap, in_words

_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
_NAMED = 3  # tensors, in an error


class TransformersDetector:
    """A detector, ready to look at pictures.

    Args:
        own_backbone: whether candidates come with the last feature map of the detector's own backbone

    Attributes:
        classes: the names of its classes, in the order of their numbers
        digest: SHA-256 of the weights and of all settings

    Raises:
        UsageError: the folder, or one of its files, is missing or wrong.
    """

    def __init__(self, folder: Path, own_backbone: bool) -> None:
        digests = [_digest(folder, name) for name in _FILES]
        logging.disable_progress_bar()
        self._model, self._processor = _load(folder)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model.eval().to(self._device)
        names = {int(number): str(name) for number, name in self._model.config.id2label.items()}
        self.classes = [names.get(number, f"class {number}") for number in range(max(names, default=0) + 1)]
        defined = f"{digests} {type(self._processor).__name__}"
        self.digest = hashlib.sha256(defined.encode()).hexdigest()
        # As the model was trained; what does not ask has one way only.
        asks = inspect.signature(self._processor.post_process_object_detection).parameters
        focal = getattr(self._model.config, "use_focal_loss", None)
        self._way = {"use_focal_loss": focal} if "use_focal_loss" in asks and focal is not None else {}
        self._map: Any = None
        self._folder, self._own = folder, own_backbone
        if own_backbone:
            _backbone(self._model, folder).register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, given: Any, output: Any) -> None:
        self._map = output

    @torch.inference_mode()
    def __call__(self, image: Image.Image, confidence: float) -> Candidates:
        """What it finds with more than this confidence."""
        given = self._processor(images=image, return_tensors="pt").to(self._device)
        self._map = None
        outputs = self._model(**given)
        if any(outputs[name].isnan().any() for name in ("logits", "pred_boxes") if name in outputs):
            raise UnreadableImage(
                "the detector gives boxes or scores that are no numbers (NaN): are its weights right?"
            )
        sizes = [(image.height, image.width)]
        (found,) = self._processor.post_process_object_detection(
            outputs, threshold=confidence, target_sizes=sizes, **self._way
        )
        boxes, labels, scores = (found[name].float().cpu().numpy() for name in ("boxes", "labels", "scores"))
        seen = None
        if self._own:
            kept, self._map = self._map, None
            values = None if kept is None else _last(kept)[0].float().cpu()
            if values is None or values.dim() != 3:
                raise UsageError(f"the backbone of {self._folder} gives no feature map: name a backbone of its own")
            seen = FeatureMap(values, _extent(given, image))
        return Candidates(boxes, labels.astype(np.int64), scores, seen)


def _digest(folder: Path, name: str) -> str:
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder} of a detector: give one with {', '.join(_FILES)}")
    try:
        return file_digest(folder / name)
    except UsageError as error:
        raise UsageError(f"the detector {folder} lacks {name} ({error}): write it with save_pretrained") from None


def _load(folder: Path) -> tuple[Any, Any]:
    """Model and processor; see `TransformersDetector` for what is raised."""
    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **here)
        if type(config) not in MODEL_FOR_OBJECT_DETECTION_MAPPING:
            raise UsageError(f"{folder} holds a {config.model_type}, which is no object detector of transformers")
        model, told = AutoModelForObjectDetection.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **here
        )
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **here)
    except UsageError:
        raise
    except Exception as error:  # what transformers raises on a wrong folder is no closed list
        raise UsageError(f"{folder} cannot be loaded as a detector ({in_words(error)})") from None
    # Of what is missing transformers makes up numbers, and only warns.
    wrong = sorted({str(name) for kind in ("missing_keys", "mismatched_keys") for name in told.get(kind, ())})
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise UsageError(
            f"model.safetensors of {folder} does not fit its config.json: it lacks {', '.join(wrong[:_NAMED])}{more},"
            " or has them in another shape"
        )
    if not hasattr(processor, "post_process_object_detection"):
        raise UsageError(f"preprocessor_config.json of {folder} names {type(processor).__name__}, which finds no boxes")
    return model, processor


def _backbone(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """What makes feature maps of pixels: the outermost part of that name."""
    for name in ("backbone", "conv_encoder"):
        found = [(path, part) for path, part in model.named_modules() if path.rpartition(".")[2] == name]
        if found:
            return min(found, key=lambda pair: pair[0].count("."))[1]
    raise UsageError(f"the detector {folder} ({type(model).__name__}) has no backbone with feature maps: name one")


def _last(output: Any) -> torch.Tensor:
    """The last feature map [1, channels, h, w]: of several that one, of a map with its mask the map."""
    while not isinstance(output, torch.Tensor):
        if hasattr(output, "feature_maps"):
            output = output.feature_maps[-1]
        else:
            output = output[-1] if isinstance(output, list) else output[0]
    return output


def _extent(given: Any, image: Image.Image) -> tuple[float, float]:
    """x and y of the network's whole input in the picture's pixels: where the processor padded it, more than it has."""
    mask = given.get("pixel_mask")
    if mask is None:
        return float(image.width), float(image.height)
    across, down = int(mask[0].any(dim=0).sum()), int(mask[0].any(dim=1).sum())
    return image.width * mask.shape[2] / across, image.height * mask.shape[1] / down
