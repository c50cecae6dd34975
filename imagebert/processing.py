"""Turns pictures, or their regions, and texts into the padded tensors that a model takes.

A model is fed what it was trained with: its model folder says how many regions and word pieces, in which type features
are kept, and which extractor found the regions.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BatchFeature
from transformers.utils import PushToHubMixin, cached_file

from imagebert.data.records import WHOLE_IMAGE, RegionRecord, convert
from imagebert.data.tokens import Tokenizer
from imagebert.errors import UsageError
from imagebert.files import read_bytes, read_json, write_json

# Pictures and stores need more packages than regions in memory: they are imported when they are met.
if TYPE_CHECKING:
    from PIL import Image

    from imagebert.data.regions import RegionStore
    from imagebert.regions.extractor import Extractor

log = logging.getLogger(__name__)

Picture: TypeAlias = "Image.Image | str | os.PathLike[str]"
Array: TypeAlias = "NDArray[Any] | Tensor | Sequence[Any]"

_FILES = ("vocab.txt", "tokenizer_config.json", "preprocessor_config.json")


class ImageBertProcessor(PushToHubMixin):  # type: ignore[misc]
    """Makes the batches that an ImageBERT takes, of pictures or their regions, and of texts.

    Args:
        tokenizer: The tokenizer of the model's vocabulary.
        settings: The contents of the model folder's preprocessor_config.json.
        extractor: What finds the regions of a picture. None takes regions alone, and no pictures.

    Example:
        >>> processor = ImageBertProcessor.from_pretrained(FOLDER)
        >>> batch = processor(images=picture, texts=["two dogs", "a cat"])
        >>> probabilities = model(**batch).logits.sigmoid()  # [1, 2]
    """

    model_input_names = ("input_ids", "attention_mask", "region_features", "region_boxes", "region_mask")

    def __init__(self, tokenizer: Tokenizer, settings: dict[str, Any], extractor: Extractor | None = None) -> None:
        self.tokenizer, self.settings, self.extractor = tokenizer, settings, extractor

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        extractor: str | os.PathLike[str] | Extractor | None = None,
        **kwargs: Any,
    ) -> ImageBertProcessor:
        """Loads the processor of a model folder, or of a repository of the Hugging Face hub.

        Args:
            folder: The model folder, or the name of a repository.
            extractor: What finds the regions of pictures: the YAML file that describes a detector and a backbone, as
                `imagebert extract` takes it, or a function from a picture to its RegionRecord. None takes the extractor
                of the demo for a model of the demo; any other model is then given regions.
            kwargs: The options revision, token, cache_dir and local_files_only of `transformers.utils.cached_file`.

        Raises:
            UsageError: The folder lacks a file, or it is damaged.
            OSError: There is no such folder or repository.
        """
        known = {
            name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs
        }
        files = {name: cached_file(os.fspath(folder), name, **known) for name in _FILES}
        missing = [name for name, file in files.items() if file is None]
        if missing:
            raise UsageError(f"{folder} lacks {missing[0]}: `imagebert export` writes whole model folders")
        settings = read_json(Path(files["preprocessor_config.json"]))
        found = find_extractor(extractor, settings["extractor"])
        ours = getattr(found, "description", {}).get("digest")
        if found is not None and ours != settings["extractor"].get("digest"):
            log.warning(
                "%s was trained with regions of %r, and this is another extractor: its scores may mean little",
                *(folder, settings["extractor"].get("name")),
            )
        return cls(Tokenizer(Path(files["vocab.txt"]).parent), settings, found)

    def save_pretrained(self, folder: str | os.PathLike[str], **kwargs: Any) -> list[str]:
        """Writes the processor's files into a folder, beside a model's or alone.

        Args:
            folder: The folder, which is made where there is none.
            kwargs: Options that transformers gives every processor, which are ignored.

        Returns:
            The paths of the files.
        """
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        (out / "vocab.txt").write_text(self.tokenizer.text, encoding="utf-8")
        write_json(out / "tokenizer_config.json", self.tokenizer.described(self.settings["max_words"]))
        write_json(out / "preprocessor_config.json", self.settings)
        return [str(out / name) for name in _FILES]

    def __call__(
        self,
        images: Picture | Sequence[Picture] | None = None,
        texts: str | Sequence[str] | None = None,
        *,
        boxes: Array | Sequence[Array] | None = None,
        features: Array | Sequence[Array] | None = None,
        regions: RegionStore | str | os.PathLike[str] | None = None,
        pairs: bool = False,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Makes the padded tensors that a model's forward takes, of images and texts.

        Images are pictures. With `regions` they are keys of a region store, and with `boxes` and `features` there are
        none. One image or text may stand alone, several stand in a list.

        Args:
            images: Pictures (PIL images, or paths of files) whose regions the extractor finds, or keys in `regions`.
            texts: Captions or queries.
            boxes: The boxes of an image [R, 4], or a list of such, given in place of `images`: x1, y1, x2, y2 as shares
                of its width and height. The first box is the whole image, if the model was trained with it.
            features: The region features of an image [R, F], or a list of such, given with `boxes`.
            regions: A region store, open or as a path.
            pairs: Whether image b belongs to text b. Otherwise every image is scored with every text.
            return_tensors: Either "pt" for PyTorch's tensors or "np" for NumPy's arrays.

        Returns:
            For I images and S texts `input_ids` and `attention_mask` [S, W], `region_features` [I, R, F],
            `region_boxes` [I, R, 4], `region_mask` [I, R], `whole_image` [I], and `all_pairs`.

        Raises:
            UsageError: A picture cannot be read, a key is not in the store, or regions do not fit the model.
            ValueError: The arguments do not go together.
        """
        if texts is None or (images is None) == (boxes is None) or (boxes is None) != (features is None):
            raise ValueError("give texts, and images, or boxes with features")
        if return_tensors not in ("pt", "np"):
            raise ValueError(f"return_tensors is {return_tensors!r}: there are 'pt' and 'np'")
        if boxes is not None:
            records = [_record(*each) for each in zip(*_listed(boxes, features), strict=True)]
        else:
            listed: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
            find = self._in_store(regions) if regions is not None else self._look_at
            records = [find(image) for image in listed]
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not records or not texts:
            raise ValueError("give at least one image and one text")
        if pairs and len(records) != len(texts):
            raise ValueError(f"{len(records)} images and {len(texts)} texts make no pairs: give as many of each")
        tensors = {**self._texts(texts), **self._regions(records)}
        if return_tensors == "np":
            return BatchFeature({**{name: tensor.numpy() for name, tensor in tensors.items()}, "all_pairs": not pairs})
        return BatchFeature({**tensors, "all_pairs": not pairs})

    def _texts(self, texts: list[str]) -> dict[str, Tensor]:
        encoded = [pieces[: self.settings["max_words"]] for pieces in self.tokenizer.encode(texts)]
        shape = len(texts), max(map(len, encoded)) + 2
        ids = torch.full(shape, self.tokenizer.pad_id)
        mask = torch.zeros(shape, dtype=torch.int64)
        for row, pieces in enumerate(encoded):
            whole = [self.tokenizer.cls_id, *pieces, self.tokenizer.sep_id]
            ids[row, : len(whole)], mask[row, : len(whole)] = torch.tensor(whole), 1
        return {"input_ids": ids, "attention_mask": mask}

    def _regions(self, records: list[RegionRecord]) -> dict[str, Tensor]:
        kept = []
        for record in records:
            if record.features.shape[1] != self.settings["feature_size"]:
                raise UsageError(
                    f"an image's regions have {record.features.shape[1]} features, the model's "
                    f"{self.settings['feature_size']}: extract them with {self.settings['extractor'].get('name')}"
                )
            whole = len(record.classes) > 0 and record.classes[0] == WHOLE_IMAGE
            skip = int(whole and not self.settings["whole_image"])
            kept.append((record, slice(skip, skip + self.settings["max_regions"]), whole and not skip))
        count = max(len(record.boxes[fed]) for record, fed, _ in kept)
        features = torch.zeros(len(records), count, self.settings["feature_size"])
        boxes, mask = torch.zeros(len(records), count, 4), torch.zeros(len(records), count, dtype=torch.int64)
        for row, (record, fed, _) in enumerate(kept):
            # As training reads them from its store, rounded to int8 say.
            stored, scales, _lost = convert(record, record.dequantized(), self.settings["feature_type"])
            rounded = stored[fed].astype(np.float32) * scales[fed, None]
            n = len(rounded)
            sides = np.array([record.width, record.height] * 2, np.float32)
            features[row, :n], boxes[row, :n] = torch.from_numpy(rounded), torch.from_numpy(record.boxes[fed] / sides)
            mask[row, :n] = 1
        whole_images = torch.tensor([whole for *_, whole in kept])
        return {
            "region_features": features,
            "region_boxes": boxes,
            "region_mask": mask,
            "whole_image": whole_images,
        }

    def _look_at(self, image: Picture) -> RegionRecord:
        if self.extractor is None:
            name = self.settings["extractor"].get("name")
            raise ValueError(
                f"pictures need what finds their regions, for this model {name!r}: give from_pretrained an extractor, "
                "or give boxes and features, or a region store"
            )
        if isinstance(image, str | os.PathLike):
            from imagebert.pictures import FILE_BYTES, LOCAL
            from imagebert.retrieval.pictures import open_picture

            image = open_picture(read_bytes(Path(image), FILE_BYTES), LOCAL)
        return self.extractor(image.convert("RGB"))

    def _in_store(self, regions: RegionStore | str | os.PathLike[str]) -> Callable[[Any], RegionRecord]:
        from imagebert.data.regions import RegionStore

        store = regions if isinstance(regions, RegionStore) else RegionStore(Path(regions))

        def find(key: Any) -> RegionRecord:
            if not isinstance(key, str):
                raise ValueError("with a region store images are keys, which `imagebert store keys` lists")
            (number,) = store.find(np.array([key.encode()])).tolist()
            if number < 0:
                raise UsageError(f"there is no image {key!r} in {store.path}; `imagebert store keys` lists them")
            return store.read(number)

        return find

    def __repr__(self) -> str:
        return f"{type(self).__name__}({json.dumps(self.settings, indent=2)[:2000]})"


def find_extractor(given: Any, described: dict[str, Any]) -> Extractor | None:
    """Chooses what finds the regions of pictures, or nothing where nothing can.

    Args:
        given: The path of a YAML description or of a detector's weights, or an extractor. None takes the demo's own for
            regions of the demo.
        described: What a store or a model says of the extractor that its regions are from.

    Returns:
        The extractor, or None.

    Raises:
        UsageError: The description, or a file that it names, is missing or wrong.
    """
    if isinstance(given, str | os.PathLike):
        from imagebert.regions.extractor import open_extractor

        given = open_extractor(Path(given))
    if given is None and described.get("name") == "connected components of rendered scenes":
        from imagebert.demo.extractor import SceneExtractor

        return SceneExtractor()
    found: Extractor | None = given
    ours, theirs = getattr(found, "description", {}).get("digest"), described.get("digest")
    if ours and theirs and ours != theirs:
        log.warning(
            "pictures are looked at by another extractor than made the regions: %r instead of %r, or otherwise set",
            *(getattr(found, "description", {}).get("name"), described.get("name")),
        )
    return found


def _listed(boxes: Any, features: Any) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """One image's arrays, or several images', as lists of arrays."""
    single = np.ndim(boxes[0]) == 1
    both = []
    for arrays in (boxes, features):
        listed = [arrays] if single else list(arrays)
        both.append([np.asarray(array, np.float32) for array in listed])
    if len(both[0]) != len(both[1]):
        raise ValueError(f"boxes of {len(both[0])} images, and features of {len(both[1])}")
    return both[0], both[1]


def _record(boxes: NDArray[np.float32], features: NDArray[np.float32]) -> RegionRecord:
    n = len(boxes)
    if boxes.shape != (n, 4) or features.ndim != 2 or len(features) != n or n == 0:
        raise ValueError(f"boxes {list(boxes.shape)} and features {list(features.shape)}: give [R, 4] and [R, F]")
    if not (np.isfinite(features).all() and (boxes >= 0).all() and (boxes <= 1).all()):
        raise ValueError("features are finite, and boxes are shares of the image's width and height, from 0 to 1")
    classes, ones = np.zeros(n, np.uint16), np.ones(n, np.float32)
    whole = bool((boxes[0] == (0, 0, 1, 1)).all())
    classes[0] = WHOLE_IMAGE if whole else 0
    return RegionRecord(1, 1, boxes, ones, classes, features, ones)
