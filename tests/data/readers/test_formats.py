"""Each published format, written here as its own project writes it, and read back: the same arrays, bit for bit."""

from __future__ import annotations

import base64
import contextlib
import csv
import gzip
import io
import json
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import lmdb
import msgpack
import msgpack_numpy
import numpy as np
import pytest
from numpy.typing import NDArray

from imagebert.cli import main
from imagebert.config import UsageError
from imagebert.data.readers import BadRecord
from imagebert.data.readers.detect import detect
from imagebert.data.readers.source import LaidOutReader, open_reader, survey
from imagebert.data.readers.tsv import lines_of_share
from imagebert.data.records import RegionRecord

NAMES = [f"thing {i}" for i in range(7)]


class Image(NamedTuple):
    """What a detector found, confidences falling."""

    key: str
    width: int
    height: int
    boxes: NDArray[np.float32]
    features: NDArray[np.float32]
    classes: NDArray[np.int64]
    confidences: NDArray[np.float32]

    @property
    def shares(self) -> NDArray[np.float32]:
        """x1 y1 x2 y2 as shares of the image."""
        return self.boxes / np.array([self.width, self.height, self.width, self.height], np.float32)

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """The background's first."""
        table = np.full((len(self.boxes), 1 + len(NAMES)), 0.01, np.float32)
        table[:, 0] = 0.9  # must not count
        table[np.arange(len(self.boxes)), 1 + self.classes] = self.confidences
        return table


def make(features: int = 16, boxes: int | None = None) -> list[Image]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(5):
        n = boxes or int(rng.integers(2, 6))
        width, height = 640 - 10 * number, 480 + number
        corners = np.sort(rng.random((n, 2, 2)), axis=1).reshape(n, 4) * (width, height, width, height)
        corners[0] = 0, 0, width, height
        found.append(
            Image(
                f"{1000 + number}",
                width,
                height,
                corners.astype(np.float32),
                rng.random((n, features), np.float32),
                rng.integers(0, len(NAMES), n),
                np.sort(rng.uniform(0.2, 0.99, n).astype(np.float32))[::-1].copy(),
            )
        )
    return found


def b64(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array)).decode()


# ------------------------------------------------------------------------------ as the projects' own scripts write them


def write_bottom_up(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """tools/generate_tsv.py"""
    fields = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
    with (folder / "features.tsv").open("w") as file:
        writer = csv.DictWriter(file, delimiter="\t", fieldnames=fields)
        for i in images:
            values = i.key, i.width, i.height, len(i.boxes), b64(i.boxes), b64(i.features)
            writer.writerow(dict(zip(fields, values, strict=True)))
    return "bottom-up-attention", folder / "features.tsv"


def write_lxmert(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """data/*/extract_*_image.py"""
    with (folder / "obj36.tsv").open("w") as file:
        writer = csv.writer(file, delimiter="\t")
        for i in images:
            head = [i.key, i.height, i.width, b64(i.classes), b64(i.confidences), b64(i.classes), b64(i.confidences)]
            writer.writerow([*head, len(i.boxes), b64(i.boxes), b64(i.features)])
    return "lxmert", folder / "obj36.tsv"


def tsv(path: Path, rows: list[list[str]]) -> None:
    """Oscar's tsv_writer: the rows, and where each begins."""
    at = 0
    with path.open("w") as file, path.with_suffix(".lineidx").open("w") as index:
        for row in rows:
            line = "\t".join(row) + "\n"
            index.write(f"{at}\n")
            file.write(line)
            at += len(line)


def write_vinvl(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """As its pre-training and retrieval features: number and base64; labels with the size, in another order."""
    rows = []
    for i in images:
        sides = (i.boxes[:, 2:] - i.boxes[:, :2]) / (i.width, i.height)
        wide = np.concatenate([i.features, i.shares, sides.astype(np.float32)], axis=1)
        rows.append([i.key, str(len(wide)), b64(wide)])
    tsv(folder / "features.tsv", rows)
    labels = []
    for i in reversed(images):
        objects = [
            {"rect": [float(v) for v in box], "class": NAMES[c], "conf": float(p)}
            for box, c, p in zip(i.boxes, i.classes, i.confidences, strict=True)
        ]
        labels.append([i.key, json.dumps({"image_h": i.height, "image_w": i.width, "objects": objects})])
    tsv(folder / "predictions.tsv", labels)
    return "vinvl", folder


def write_vinvl_captioning(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """As its captioning features: json of number and base64; labels are lists, and tell no size."""
    rows, labels = [], []
    for i in images:
        wide = np.concatenate([i.features, i.shares, i.shares[:, :2]], axis=1)
        rows.append([i.key, json.dumps({"num_boxes": len(wide), "features": b64(wide)})])
        objects = [
            {"class": NAMES[c], "conf": float(p), "rect": [float(v) for v in box]}
            for box, c, p in zip(i.boxes, i.classes, i.confidences, strict=True)
        ]
        labels.append([i.key, json.dumps(objects)])
    tsv(folder / "features.tsv", rows)
    tsv(folder / "label.tsv", labels)
    return "vinvl", folder


def uniter_dump(image: Image) -> dict[str, NDArray[Any]]:
    sides = image.shares[:, 2:] - image.shares[:, :2]
    norm_bb = np.concatenate([image.shares, sides, sides.prod(axis=1, keepdims=True)], axis=1)
    dump = {
        "norm_bb": norm_bb,
        "features": image.features,
        "conf": image.confidences,
        "soft_labels": image.probabilities,
    }
    return {name: array.astype(np.float16) for name, array in dump.items()}


def write_uniter(folder: Path, images: list[Image], compress: bool = False) -> tuple[str, Path]:
    """scripts/convert_imgdir.py: one region more in each than its json says."""
    name = "feat_th0.2_max100_min10" + ("_compressed" if compress else "")
    numbers = {}
    with lmdb.open(str(folder / name), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        for image in images:
            dump = {k: np.concatenate([array, array[-1:]]) for k, array in uniter_dump(image).items()}
            numbers[image.key] = len(image.boxes)
            if compress:
                with io.BytesIO() as writer:
                    np.savez_compressed(writer, **dump, allow_pickle=True)
                    value = writer.getvalue()
            else:
                value = msgpack.dumps(dump, use_bin_type=True, default=msgpack_numpy.encode)
            transaction.put(image.key.encode(), value)
        transaction.put(b"__keys__", json.dumps(list(numbers)).encode())
    (folder / "nbb_th0.2_max100_min10.json").write_text(json.dumps(numbers))
    return "uniter", folder / name


def write_uniter_compressed(folder: Path, images: list[Image]) -> tuple[str, Path]:
    return write_uniter(folder, images, compress=True)


def write_vilbert(folder: Path, images: list[Image], raw: bool = False) -> tuple[str, Path]:
    """script/convert_to_lmdb.py: the fields of the TSV, still base64, pickled."""
    with (
        lmdb.open(str(folder / "x.lmdb"), map_size=1 << 26) as environment,
        environment.begin(write=True) as transaction,
    ):
        for i in images:
            item: dict[str, Any] = {
                "image_id": i.key,
                "image_h": i.height if raw else str(i.height),
                "image_w": i.width if raw else str(i.width),
                "num_boxes": len(i.boxes) if raw else str(len(i.boxes)),
                "boxes": i.boxes if raw else b64(i.boxes),
                "features": i.features if raw else b64(i.features),
                "cls_prob": i.probabilities if raw else b64(i.probabilities),
            }
            transaction.put(i.key.encode(), pickle.dumps(item))
        transaction.put(b"keys", pickle.dumps([i.key.encode() for i in images]))
    return "vilbert", folder / "x.lmdb"


def write_mmf_lmdb(folder: Path, images: list[Image]) -> tuple[str, Path]:
    return write_vilbert(folder, images, raw=True)


def write_mmf(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """tools/scripts/features/extract_features_vmb.py"""
    (folder / "deep").mkdir()
    for i in images:
        info = {
            "bbox": i.boxes,
            "num_boxes": len(i.boxes),
            "objects": i.classes,
            "image_width": i.width,
            "image_height": i.height,
            "cls_prob": i.probabilities,
        }
        np.save(folder / "deep" / i.key, i.features)
        np.save(folder / "deep" / f"{i.key}_info.npy", np.array(info, dtype=object), allow_pickle=True)
    return "mmf", folder / "deep"


def write_npz(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """bottom-up-attention.pytorch's extract_features.py"""
    (folder / "npz").mkdir()
    for i in images:
        info = {"image_id": i.key, "objects_id": i.classes, "objects_conf": i.confidences}
        np.savez_compressed(
            folder / "npz" / i.key,
            x=i.features,
            bbox=i.boxes,
            num_bbox=len(i.boxes),
            image_h=i.height,
            image_w=i.width,
            info=info,  # type: ignore[arg-type]
        )
    return "npz", folder / "npz"


def write_hdf5(folder: Path, images: list[Image], adaptive: bool = False) -> tuple[str, Path]:
    """tools/detection_features_converter.py, and the adaptive one of ban-vqa"""
    sides = [i.shares[:, 2:] - i.shares[:, :2] for i in images]
    spatial = [np.concatenate([i.shares, side], axis=1) for i, side in zip(images, sides, strict=True)]
    join = np.concatenate if adaptive else np.stack
    with h5py.File(folder / "trainval36.hdf5", "w") as file:
        file["image_features"] = join([i.features for i in images])
        file["image_bb"] = join([i.boxes for i in images])
        file["spatial_features"] = join(spatial)
        if adaptive:
            ends = np.cumsum([len(i.boxes) for i in images])
            file["pos_boxes"] = np.stack([ends - [len(i.boxes) for i in images], ends], axis=1)
    ids = {int(i.key): row for row, i in enumerate(images)}
    (folder / "trainval36_imgid2idx.pkl").write_bytes(pickle.dumps(ids, protocol=2))
    return "hdf5", folder / "trainval36.hdf5"


def write_hdf5_adaptive(folder: Path, images: list[Image]) -> tuple[str, Path]:
    return write_hdf5(folder, images, adaptive=True)


def write_lxmert_python3(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """The same script under Python 3, whose csv writes bytes as b'...'."""
    name, path = write_lxmert(folder, images)
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    path.write_text("".join("\t".join(f"b'{c}'" if c.endswith("=") else c for c in row) + "\r\n" for row in rows))
    return name, path


def write_lxmert_gz(folder: Path, images: list[Image]) -> tuple[str, Path]:
    name, path = write_lxmert(folder, images)
    (folder / "obj36.tsv.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return name, folder / "obj36.tsv.gz"


def volta_row(i: Image) -> dict[str, str]:
    """data/mscoco/extract_coco_image.py"""
    return {
        "img_id": f"COCO_val2014_{int(i.key):012d}",
        "img_h": str(i.height),
        "img_w": str(i.width),
        "objects_id": b64(i.classes),
        "objects_conf": b64(i.confidences),
        "attrs_id": b64(i.classes),
        "attrs_conf": b64(i.confidences),
        "num_boxes": str(len(i.boxes)),
        "boxes": b64(i.boxes),
        "features": b64(i.features),
        "cls_prob": b64(i.probabilities),
        "attrs": b64(i.probabilities),
        "classes": b64(i.probabilities),
    }


def write_volta_tsv(folder: Path, images: list[Image]) -> tuple[str, Path]:
    with (folder / "val2014_obj36-36.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, delimiter="\t", fieldnames=list(volta_row(images[0])))
        writer.writerows(volta_row(i) | {"img_id": i.key} for i in images)
    return "lxmert", folder / "val2014_obj36-36.tsv"


def write_vilbert_tsv(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """jiasenlu/bottom-up-attention's generate_tsv.py"""
    with (folder / "VCR_resnet101_faster_rcnn_genome.tsv.0").open("w", newline="") as file:
        for i in images:
            row = [i.key, i.width, i.height, len(i.boxes), b64(i.boxes), b64(i.features), b64(i.probabilities)]
            csv.writer(file, delimiter="\t").writerow(row)
    return "bottom-up-attention", folder / "VCR_resnet101_faster_rcnn_genome.tsv.0"


@contextlib.contextmanager
def written(path: Path, subdir: bool = True) -> Iterator[Any]:
    with (
        lmdb.open(str(path), map_size=1 << 26, subdir=subdir) as environment,
        environment.begin(write=True) as transaction,
    ):
        yield transaction


def write_volta_lmdb(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """data/mscoco/convert_*_lmdb.py, under Python 3.7: rows of the TSV in order, under the number of their image."""
    with written(folder / "trainval_feat.lmdb") as transaction:
        for i in images:
            row = OrderedDict(volta_row(i))
            transaction.put(str(int(row["img_id"].split("_")[-1])).encode(), pickle.dumps(row, protocol=3))
        transaction.put(b"keys", pickle.dumps([i.key.encode() for i in images]))
    return "vilbert", folder / "trainval_feat.lmdb"


def volta_arrays(i: Image) -> dict[str, Any]:
    """What the HDF5 of VL-T5, VOLTA and IGLUE has of an image."""
    return {
        "attr_conf": i.confidences,
        "attr_id": i.classes,
        "boxes": i.boxes,
        "features": i.features,
        "img_h": np.int64(i.height),
        "img_w": np.int64(i.width),
        "obj_conf": i.confidences,
        "obj_id": i.classes,
    }


def write_volta_h5_lmdb(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """features_extraction/h5_to_lmdb.py"""
    with written(folder / "nlvr2_feat.lmdb") as transaction:
        for i in images:
            transaction.put(i.key.encode(), pickle.dumps({**volta_arrays(i), "img_id": i.key}))
        transaction.put(b"keys", pickle.dumps([i.key.encode() for i in images]))
    return "vilbert", folder / "nlvr2_feat.lmdb"


def write_volta_npy_lmdb(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """features_extraction/npy_to_lmdb.py: some arrays as base64, some as they are."""
    with written(folder / "resnext.lmdb") as transaction:
        for i in images:
            item = {
                "feature_path": i.key,
                "features": base64.b64encode(i.features),
                "boxes": base64.b64encode(i.boxes),
                "img_h": i.height,
                "img_w": i.width,
                "num_boxes": len(i.boxes),
                "objects": i.classes,
                "cls_prob": i.probabilities,
            }
            transaction.put(i.key.encode(), pickle.dumps(item))
        transaction.put(b"keys", pickle.dumps([i.key.encode() for i in images]))
    return "vilbert", folder / "resnext.lmdb"


def pack(thing: Any) -> bytes:
    """tensorpack 0.9.4's dumps."""
    packed: bytes = msgpack.dumps(thing, use_bin_type=True, default=msgpack_numpy.encode)
    return packed


def write_tensorpack(
    path: Path, images: list[Image], dumps: Callable[[Any], bytes], record: Callable[[Image], Any]
) -> None:
    """LMDBSerializer.save"""
    with written(path, subdir=False) as transaction:
        keys = [f"{number:08}".encode() for number in range(len(images))]
        for key, image in zip(keys, reversed(images), strict=True):
            transaction.put(key, dumps(record(image)))
        transaction.put(b"__keys__", dumps(keys))


def write_vilbert_captions(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """script/conceptual_caption_preprocess_sequential_train.py"""

    def record(i: Image) -> list[Any]:
        told = [str(len(i.boxes)), str(i.height), str(i.width), i.key, "a caption"]
        return [i.features, i.probabilities, i.boxes, *told]

    write_tensorpack(folder / "training_feat_all.lmdb", images, pack, record)
    return "uniter", folder / "training_feat_all.lmdb"


def write_volta_captions(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """data/conceptual_captions/preprocess_cc_train.py"""

    def record(i: Image) -> list[Any]:
        found = [i.features, i.probabilities, i.classes, i.confidences, i.classes, i.confidences, i.probabilities]
        return [*found, i.boxes, str(len(i.boxes)), str(i.height), str(i.width), i.key, "a caption"]

    write_tensorpack(folder / "training_feat_all.lmdb", images, pack, record)
    return "uniter", folder / "training_feat_all.lmdb"


def write_volta_h5_tensorpack(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """features_extraction/h5_to_td-lmdb.py, by tensorpack 0.9.9 and later"""
    write_tensorpack(folder / "td.lmdb", images, pickle.dumps, lambda i: {**volta_arrays(i), "img_id": i.key})
    return "vilbert", folder / "td.lmdb"


def write_vilbert_multi_task(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """script/extract_features.py: all of an image in one object; it loses a row of the classes."""
    (folder / "npy").mkdir()
    for i in images:
        info = {
            "bbox": i.boxes,
            "num_boxes": len(i.boxes),
            "objects": (1 + i.classes)[1:],
            "image_width": i.width,
            "image_height": i.height,
            "cls_prob": i.probabilities,
            "image_id": i.key,
            "features": i.features,
        }
        np.save(folder / "npy" / i.key, np.array(info, dtype=object), allow_pickle=True)
    return "mmf", folder / "npy"


def write_mmf_background(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """extract_features_vmb.py --background: class 0 is the background's."""
    name, path = write_mmf(folder, images)
    for i in images:
        table = i.probabilities
        table[:, 0] = 0.01
        info = {
            "bbox": i.boxes,
            "num_boxes": len(i.boxes),
            "objects": 1 + i.classes,
            "cls_prob": table,
            "image_width": i.width,
            "image_height": i.height,
        }
        np.save(path / f"{i.key}_info.npy", np.array(info, dtype=object), allow_pickle=True)
    return name, path


def write_mcan(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """As its VQA features are: regions are the columns of x."""
    (folder / "train2014").mkdir()
    for i in images:
        arrays = {"x": i.features.T, "bbox": i.boxes, "num_bbox": len(i.boxes), "image_h": i.height, "image_w": i.width}
        np.savez_compressed(folder / "train2014" / i.key, **arrays)  # type: ignore[arg-type]
    return "npz", folder / "train2014"


def write_vl_t5(folder: Path, images: list[Image], name: str = "{}", **packed: Any) -> tuple[str, Path]:
    """feature_extraction/detectron2_proposal_maxnms.py"""
    with h5py.File(folder / "train2014_obj36.h5", "w") as file:
        for i in images:
            group = file.create_group(name.format(i.key))
            for field, value in volta_arrays(i).items():
                group.create_dataset(field, data=value, **(packed if np.ndim(value) else {}))
    return "hdf5", folder / "train2014_obj36.h5"


def write_vl_t5_compressed(folder: Path, images: list[Image]) -> tuple[str, Path]:
    return write_vl_t5(folder, images, compression="gzip", shuffle=True)


def write_hdf5_compressed(folder: Path, images: list[Image]) -> tuple[str, Path]:
    name, path = write_hdf5(folder, images)
    with h5py.File(path) as file:
        arrays = {field: file[field][()] for field in file}
    with h5py.File(path, "w") as file:
        for number, (field, value) in enumerate(arrays.items()):
            file.create_dataset(field, data=value, chunks=(2, 2, 3 + number), compression="gzip", shuffle=number > 0)
    return name, path


def write_vinvl_predictions(folder: Path, images: list[Image], size: str = "list") -> tuple[str, Path]:
    """maskrcnn_benchmark/engine/inference.py: a feature an object; sizes lie in hw.tsv."""
    rows, sizes = [], []
    for i in images:
        objects = [
            {"rect": box.tolist(), "bbox_id": n, "class": NAMES[c], "conf": float(p), "feature": b64(feature)}
            for n, (box, c, p, feature) in enumerate(zip(i.boxes, i.classes, i.confidences, i.features, strict=True))
        ]
        rows.append([i.key, json.dumps({"objects": objects, "relations": None})])
        both = {"height": i.height, "width": i.width}
        told = {"list": json.dumps([both]), "object": json.dumps(both), "text": f"{i.height} {i.width}"}
        sizes.append([i.key, told[size]])
    tsv(folder / "predictions.tsv", rows)
    tsv(folder / "hw.tsv", sizes)
    return "vinvl", folder


def write_vinvl_yaml(folder: Path, images: list[Image]) -> tuple[str, Path]:
    """A data set's yaml, which names its files."""
    write_vinvl(folder, images)
    (folder / "deep").mkdir()
    for name in ("features", "predictions"):
        for suffix in (".tsv", ".lineidx"):
            (folder / f"{name}{suffix}").rename(folder / "deep" / f"train_{name}{suffix}")
    text = "img: train.tsv\nfeature: deep/train_features.tsv\nlabel: deep/train_predictions.tsv\n"
    (folder / "train.yaml").write_text(text)
    return "vinvl", folder / "train.yaml"


Write = Callable[[Path, list[Image]], tuple[str, Path]]
# What is lost on the way: classes, confidences, the size, bits of the features.
FORMATS: list[tuple[Write, set[str], int, int | None]] = [
    (write_bottom_up, {"classes", "confidences"}, 16, None),
    (write_vilbert_tsv, set(), 16, None),
    (write_lxmert, set(), 16, None),
    (write_lxmert_python3, set(), 16, None),
    (write_lxmert_gz, set(), 16, None),
    (write_volta_tsv, set(), 16, None),
    (write_vinvl, set(), 2048, None),
    (write_vinvl_captioning, {"size"}, 2048, None),
    (write_vinvl_predictions, set(), 16, None),
    (write_vinvl_yaml, set(), 2048, None),
    (write_uniter, {"size", "half"}, 16, None),
    (write_uniter_compressed, {"size", "half"}, 16, None),
    (write_vilbert, set(), 16, None),
    (write_vilbert_captions, set(), 16, None),
    (write_vilbert_multi_task, set(), 16, None),
    (write_volta_lmdb, set(), 16, None),
    (write_volta_h5_lmdb, set(), 16, None),
    (write_volta_npy_lmdb, set(), 16, None),
    (write_volta_captions, set(), 16, None),
    (write_volta_h5_tensorpack, set(), 16, None),
    (write_mmf_lmdb, set(), 16, None),
    (write_mmf, set(), 16, None),
    (write_mmf_background, set(), 16, None),
    (write_npz, set(), 16, None),
    (write_mcan, {"classes", "confidences"}, 16, None),
    (write_hdf5, {"classes", "confidences"}, 16, 3),
    (write_hdf5_adaptive, {"classes", "confidences"}, 16, None),
    (write_hdf5_compressed, {"classes", "confidences"}, 16, 3),
    (write_vl_t5, set(), 16, None),
    (write_vl_t5_compressed, set(), 16, None),
]


def open_laid_out(name: str, path: Path, **given: str) -> LaidOutReader:
    reader = open_reader(name, [path], NAMES)
    return LaidOutReader(reader, survey(reader, str(path), len(NAMES), given).layout)


def read(name: str, path: Path, shares: int = 1) -> dict[str, RegionRecord]:
    reader = open_laid_out(name, path)
    found: dict[str, RegionRecord] = {}
    for share in range(shares):
        last = 0
        for item in reader.items(share, shares):
            assert item.key not in found, "an image in two shares"
            assert last <= item.done <= reader.size(share, shares) or shares > 1
            last = item.done
            loaded = item.load()
            found[loaded.key] = loaded.record
    return found


@pytest.mark.parametrize(("write", "lost", "features", "boxes"), FORMATS, ids=[f[0].__name__[6:] for f in FORMATS])
def test_what_a_project_writes_is_read(
    write: Write, lost: set[str], features: int, boxes: int | None, tmp_path: Path
) -> None:
    images = make(features, boxes)
    name, path = write(tmp_path, images)
    found = read(name, path)
    assert sorted(found) == [image.key for image in images]
    for image in images:
        record = found[image.key]
        half = 1e-3 if "half" in lost else 0
        np.testing.assert_allclose(record.features, image.features, rtol=half)
        assert (record.width, record.height) == ((1, 1) if "size" in lost else (image.width, image.height))
        expected = image.shares if "size" in lost else image.boxes
        np.testing.assert_allclose(record.boxes, expected, rtol=half or 1e-5, atol=1e-3 if half else 1e-4)
        np.testing.assert_array_equal(record.classes, 0 if "classes" in lost else image.classes)
        np.testing.assert_allclose(record.confidences, 1 if "confidences" in lost else image.confidences, rtol=half)
    assert detect([path]) == name
    for shares in (2, 3, 7):
        again = read(name, path, shares)
        assert sorted(again) == sorted(found)
        for key, record in again.items():
            np.testing.assert_array_equal(record.features, found[key].features)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_every_line_is_in_one_share(tmp_path: Path, ends: str) -> None:
    """Shares that end where a line does, too: all lines are equally long."""
    files = [tmp_path / "a.tsv", tmp_path / "b.tsv"]
    files[0].write_text("".join(f"{i:04d}\tx{ends}" for i in range(8)), newline="")
    files[1].write_text("".join(f"{i:04d}\tx{ends}" for i in range(8, 12)), newline="")
    for shares in range(1, 14):
        lines = [line for share in range(shares) for _, _, line, _ in lines_of_share(files, share, shares)]
        assert [int(line[:4]) for line in lines] == list(range(12)), shares


def test_the_most_confident_region_comes_first(tmp_path: Path) -> None:
    (image, *_) = make(boxes=4)
    shuffled = [2, 0, 3, 1]
    mixed = image._replace(**{n: getattr(image, n)[shuffled] for n in ("boxes", "features", "classes", "confidences")})
    name, path = write_lxmert(tmp_path, [mixed])
    record = read(name, path)[image.key]
    np.testing.assert_array_equal(record.features, image.features)
    np.testing.assert_array_equal(record.confidences, image.confidences)


# -------------------------------------------------------------------------------------------------- what must not pass


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/imagebert-was-here",)


def load_all(name: str, path: Path, laid_out: bool = False) -> list[str]:
    """What cannot be used; as arrays, or as regions."""
    errors = []
    reader = open_laid_out(name, path) if laid_out else open_reader(name, [path], NAMES)
    for item in reader.items(0, 1):
        try:
            item.load()
        except BadRecord as error:
            errors.append(f"{item.where}: {error}")
    return errors


def test_a_pickle_that_runs_something_is_refused(tmp_path: Path) -> None:
    with (
        lmdb.open(str(tmp_path / "evil"), map_size=1 << 20) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(b"1", pickle.dumps({"features": Evil()}))
        transaction.put(b"2", pickle.dumps({"features": np.array([Evil()], dtype=object)}))
        transaction.put(b"3", pickle.dumps({"features": np.ones((2, 4))})[:-20])
        transaction.put(b"4", b"\x80\x04cbuiltins\neval\n(S'1'\ntR.")
    np.save(tmp_path / "evil.npy", np.array({"image_feat": Evil()}, dtype=object), allow_pickle=True)
    errors = load_all("vilbert", tmp_path / "evil") + load_all("mmf", tmp_path / "evil.npy")
    assert len(errors) == 5
    assert sum("only NumPy arrays and builtins are admitted" in error for error in errors) == 4
    assert "key '3'" in errors[2]
    assert not Path("/tmp/imagebert-was-here").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda line: line.replace(b"\t640\t", b"\twide\t"), "width is b'wide'"),
        (lambda line: line[:-40] + b"\r\n", "features has|features is no base64"),
        (lambda line: line.replace(b"\t480\t", b"\t48\t"), "is outside of 640 x 48 pixels"),
        (lambda line: b"\t".join(line.split(b"\t")[:4]) + b"\n", "4 columns, not 6"),
        (lambda line: line.split(b"\t")[0] + b"\t640\t480\t0\t\t\r\n", "features has 0 bytes, which are not 0 rows"),
        (lambda line: b"\xff\xfe\x00nonsense\n", "1 columns, not 6"),
    ],
)
def test_a_damaged_line_is_named_and_the_others_are_read(
    damage: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    name, path = write_bottom_up(tmp_path, make())
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = damage(lines[0])
    path.write_bytes(b"".join(lines))
    (error,) = load_all(name, path, laid_out=True)
    assert re.search(message, error), error
    assert f"{path}, byte {len(lines[0]) + len(lines[1])}" in error


def test_vinvls_files_of_other_names(tmp_path: Path) -> None:
    _, folder = write_vinvl_captioning(tmp_path, make(2048))
    for old, new in (("features", "train.feature"), ("label", "train.label")):
        for suffix in (".tsv", ".lineidx"):
            (folder / f"{old}{suffix}").rename(folder / f"{new}{suffix}")
    for path in (folder, folder / "train.feature.tsv"):
        found = read("vinvl", path)
        assert len(found) == 5
        assert any(record.classes.any() for record in found.values())


@pytest.mark.parametrize(("write", "lost", "features", "boxes"), FORMATS, ids=[f[0].__name__[6:] for f in FORMATS])
def test_damaged_bytes_never_do_more_than_damage(
    write: Write, lost: set[str], features: int, boxes: int | None, tmp_path: Path
) -> None:
    """Anything else than an image's or a file's clear error would stop an import at the same place for ever.

    These files have no checksums, so a changed number may pass; one that no source of this layout has may not.
    """
    name, path = write(tmp_path, make(features, boxes)[:3])
    files = [file for file in tmp_path.rglob("*") if file.is_file() and "lock" not in file.name]
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(100):
        file = files[int(rng.integers(len(files)))]
        whole = file.read_bytes()
        file.unlink()  # HDF5's library knows a file that is still open by its inode
        file.write_bytes(mutated(whole, rng))
        try:
            for item in open_laid_out(name, path).items(0, 1):
                try:
                    check(item.load().record)
                except (UsageError, OSError):
                    refused += 1
        except (UsageError, OSError):
            refused += 1
        file.unlink()
        file.write_bytes(whole)
    assert refused > 0
    assert len(read(name, path)) == 3


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """Bits turned over, a part cut out, noise put in, or a part written over by another."""
    start, stop = sorted(rng.integers(0, len(whole) + 1, 2).tolist())
    kind = int(rng.integers(4))
    if kind == 0:
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3).tolist():
            damaged[place] ^= 1 << int(rng.integers(8))
        return bytes(damaged)
    if kind == 1:
        return whole[:start] + whole[stop:]
    if kind == 2:
        return whole[:start] + rng.bytes(20) + whole[start:]
    return whole[:start] + whole[: stop - start] + whole[stop:]


def check(record: RegionRecord) -> None:
    """What holds for every record that may be stored."""
    n = len(record.features)
    assert n > 0
    assert all(len(array) == n for array in (record.boxes, record.classes, record.confidences))
    assert np.abs(record.features).max() < 1e4  # nor where one is no number
    assert (record.classes < len(NAMES)).all()
    assert ((record.confidences >= 0) & (record.confidences <= 1)).all()
    limit = [record.width, record.height, record.width, record.height]
    assert ((record.boxes >= 0) & (record.boxes <= limit)).all()
    assert (record.boxes[:, 2:] >= record.boxes[:, :2]).all()


def test_archives_and_arrays_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebert.data.readers.folders.LARGEST", 10_000)
    monkeypatch.setattr("imagebert.data.readers.hdf5.LARGEST", 10_000)
    np.savez_compressed(tmp_path / "1.npz", x=np.zeros((9, 100)), bbox=np.zeros((9, 100)))
    with h5py.File(tmp_path / "big.hdf5", "w") as file:
        for dataset, last in (("image_features", 1000), ("image_bb", 4), ("spatial_features", 6)):
            file.create_dataset(dataset, (1, 3000, last), np.float32)  # never written, so it takes no space
    (tmp_path / "big_imgid2idx.pkl").write_bytes(pickle.dumps({1: 0}))
    errors = load_all("npz", tmp_path) + load_all("hdf5", tmp_path / "big.hdf5")
    assert "unpacks to more than 10000 bytes" in errors[0]
    assert "3000 boxes of 1000 numbers" in errors[1]


@pytest.mark.parametrize("packing", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_an_archive_is_packed_as_numpy_packs(packing: int, tmp_path: Path) -> None:
    """Python's zipfile unpacks these a whole block at a time, whatever was asked for."""
    with zipfile.ZipFile(tmp_path / "1.npz", "w", packing) as archive:
        archive.writestr("x.npy", b"nothing")
    (error,) = load_all("npz", tmp_path)
    assert "it is packed as NumPy packs none" in error


def test_an_archive_that_says_less_than_it_holds(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "1.npz", x=np.zeros((900, 1000), np.float32), bbox=np.zeros((900, 4)))
    data = bytearray((tmp_path / "1.npz").read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (1000).to_bytes(4, "little")
    (tmp_path / "1.npz").write_bytes(data)
    (error,) = load_all("npz", tmp_path)
    assert "it is not what its checksum says" in error


def test_an_array_larger_than_any_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebert.data.readers.folders.LARGEST", 10_000)
    np.save(tmp_path / "1.npy", np.zeros((9, 1000)))
    (error,) = load_all("mmf", tmp_path)
    assert "bytes, more than 10000" in error


def test_lists_of_msgpack_are_not_made_before_they_are_read(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "l"), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"1", (b"\xdd" + (1 << 20).to_bytes(4, "big")) * 400 + bytes(1 << 20))
        transaction.put(b"2", b"\xc9\x00\x00\x10\x00\x05" + bytes(4096))
    errors = load_all("uniter", tmp_path / "l")
    assert len(errors) == 2
    assert "exceeds max_array_len" in errors[0]
    assert "exceeds max_ext_len" in errors[1]


@pytest.mark.parametrize(("write", "lost", "features", "boxes"), FORMATS, ids=[f[0].__name__[6:] for f in FORMATS])
def test_a_pipe_is_refused_at_once(
    write: Write, lost: set[str], features: int, boxes: int | None, tmp_path: Path
) -> None:
    """In the place of each file that a reader opens, and of all."""
    name, path = write(tmp_path, make(features, boxes)[:2])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe is no regular file"):
        open_reader(name, [tmp_path / "pipe"], NAMES)
    (tmp_path / "pipe").unlink()
    for file in [file for file in tmp_path.rglob("*") if file.is_file()]:
        if "lock" in file.name or file.name == "data.mdb" or file.suffix == ".lineidx":  # which need not be opened
            continue
        kept = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(UsageError, match="is no regular file"):
            for item in open_laid_out(name, path).items(0, 1):
                item.load()
            pytest.fail(str(file))
        file.unlink()
        file.write_bytes(kept)


def test_jsons_beside_the_features(tmp_path: Path) -> None:
    """Deep ones and long numbers: the file and the line are named."""
    name, path = write_uniter(tmp_path, make())
    for text in ("[" * 9999, '{"1": ' + "9" * 5000 + "}", '{"1": 1e999}', "[" * 70 + "]" * 70):
        (tmp_path / "nbb_th0.2_max100_min10.json").write_text(text)
        with pytest.raises(UsageError, match=r"nbb_th0\.2_max100_min10\.json"):
            open_reader(name, [path], [])
    _, folder = write_vinvl(tmp_path, make(2048))
    (folder / "predictions.lineidx").unlink()
    for text in ("[" * 9999, "[" * 70 + "]" * 70, "9" * 5000):
        (folder / "predictions.tsv").write_text("".join(f"{image.key}\t{text}\n" for image in make()))
        errors = load_all("vinvl", folder)
        assert len(errors) == 5
        assert all("features.tsv, byte" in error and "its label is n" in error for error in errors)
    for offset in ("9" * 400, "9" * 5000):
        (folder / "predictions.lineidx").write_text(offset)
        with pytest.raises(UsageError, match=r"predictions\.lineidx"):
            open_reader("vinvl", [folder], NAMES)


def test_hdf5_that_leads_elsewhere(tmp_path: Path) -> None:
    name, path = write_hdf5(tmp_path, make(16, 3))
    os.mkfifo(tmp_path / "pipe")
    whole = path.read_bytes()

    def packed(file: Any) -> None:
        file.create_dataset("image_bb", data=np.zeros((5, 3, 4), np.float32), compression="lzf")

    def linked(file: Any) -> None:
        file["image_bb"] = h5py.ExternalLink(str(tmp_path / "pipe"), "x")

    def external(file: Any) -> None:
        file.create_dataset("image_bb", (5, 3, 4), "f4", external=[("/etc/passwd", 0, 240)])

    def grouped(file: Any) -> None:
        file.create_group("image_bb")

    def wide(file: Any) -> None:
        file.create_dataset("image_bb", (5, 3, 4), "f4", chunks=(1 << 14, 1 << 14, 2), maxshape=(None, None, None))

    for change, message in (
        (packed, "image_bb is packed by lzf"),
        (linked, "image_bb is a link"),
        (external, "image_bb lies in other files"),
        (grouped, "image_bb is no table of numbers"),
        (wide, "image_bb has chunks of"),
    ):
        path.write_bytes(whole)
        with h5py.File(path, "a") as file:
            del file["image_bb"]
            change(file)
        with pytest.raises(UsageError, match=message):
            open_reader(name, [path], [])


def test_a_truncated_lmdb(tmp_path: Path) -> None:
    name, path = write_vilbert(tmp_path, make(2048))
    data = path / "data.mdb"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(UsageError, match=r"data.mdb is truncated: it has \d+ bytes and needs \d+"):
        read(name, path)


def test_a_file_without_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebert.data.readers.tsv.LONGEST", 1000)
    (tmp_path / "x.tsv").write_bytes(b"x" * 5000)
    with pytest.raises(UsageError, match="byte 0: a line has more than 1000 bytes: is it a TSV"):
        read("lxmert", tmp_path / "x.tsv")


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "1.npz").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "2.npy").write_bytes(
        b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99, 9)}"
    )
    whole = io.BytesIO()
    np.savez_compressed(whole, x=np.ones((9, 99)), bbox=np.zeros((9, 4)))
    (tmp_path / "3.npz").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    with lmdb.open(str(tmp_path / "l"), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"0", pack({"features": np.ones((2, 4))}))
        transaction.put(b"1", b"\xc1nothing")
        lying = {"nd": True, "type": "<f4", "kind": b"", "shape": [10**9, 10**9], "data": b"1234"}
        transaction.put(b"2", msgpack.dumps({"features": lying}, use_bin_type=True))
        transaction.put(b"3", msgpack.dumps([1, 2], use_bin_type=True))
    errors = load_all("npz", tmp_path) + load_all("uniter", tmp_path / "l")
    assert len(errors) == 6


@pytest.mark.parametrize("write", [write_vilbert_captions, write_volta_h5_tensorpack])
def test_a_damaged_first_record_changes_no_names(write: Write, tmp_path: Path) -> None:
    name, path = write(tmp_path, make())
    whole = sorted(read(name, path))
    with lmdb.open(str(path), subdir=False, map_size=1 << 26) as environment:
        for damage in (b"\xc1nothing", b"\x80\x04nothing", b""):
            with environment.begin(write=True) as transaction:
                transaction.put(b"00000000", damage)
            found = []
            for item in open_laid_out(name, path).items(0, 1):
                with contextlib.suppress(BadRecord):
                    found.append(item.load().key)
            assert sorted(found) == whole[:-1]  # they lie there in reverse


def test_a_key_that_is_no_utf8_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two of them would else have one name, that of neither."""
    images = make()
    name, path = write_bottom_up(tmp_path, images)
    lines = path.read_bytes()
    for key, wrong in ((images[0].key, b"caf\xe9"), (images[1].key, b"caf\xe8")):
        lines = lines.replace(key.encode(), wrong)
    path.write_bytes(lines)
    assert main(["import", name, str(path), str(tmp_path / "out")]) == 0
    assert "5 images: 3 stored" in capsys.readouterr().out
    with written(tmp_path / "x.lmdb") as transaction:
        for key, image in zip([b"caf\xe9", b"caf\xe8", b"3"], images, strict=False):
            transaction.put(key, pickle.dumps(volta_arrays(image)))
    assert main(["import", "vilbert", str(tmp_path / "x.lmdb"), str(tmp_path / "lmdb")]) == 0
    assert "3 images: 1 stored" in capsys.readouterr().out


def test_a_damaged_gzip_is_named(tmp_path: Path) -> None:
    name, path = write_lxmert_gz(tmp_path, make())
    whole = path.read_bytes()
    for damaged in (whole[:200], whole[:20] + bytes(100) + whole[120:]):
        path.write_bytes(damaged)
        for ask in (lambda: read(name, path), lambda: detect([path])):
            with pytest.raises(UsageError, match=r"obj36\.tsv\.gz is a damaged gzip behind byte"):
                ask()


def test_an_index_of_lines_that_does_not_fit(tmp_path: Path) -> None:
    _, path = write_vinvl(tmp_path, make(2048))
    (path / "predictions.lineidx").write_text("0\n17\n")
    with pytest.raises(Exception, match=r"predictions.lineidx: no line of predictions.tsv begins at 17: remove it"):
        read("vinvl", path)
    (path / "predictions.lineidx").unlink()
    assert len(read("vinvl", path)) == 5
