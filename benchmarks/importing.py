"""How fast `imagebert import` is beside the peers' own readers.

    python -m benchmarks.importing
    python -m benchmarks.importing --images 300 --json importing.json

For each layout: the same images, written as its project writes them and read once, so that they are in memory. The
peer reads them as its own code does, in this process, already started, and copies the features into memory that is
there. Ours is the whole command, from the start of its process to a store on disk, and the same without what a process
costs before its second image (the import of one image, measured beside it).
"""

from __future__ import annotations

import argparse
import base64
import csv
import json
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import lmdb
import msgpack
import msgpack_numpy
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.report import Line, publish

Arrays = dict[str, NDArray[Any]]
REGIONS, FEATURES = 36, 2048


class Layout(NamedTuple):
    """A published layout: how it is written, and how its own project reads it."""

    write: Callable[[Path, list[Arrays]], Path]
    read: Callable[[Path], Iterator[Arrays]]  # at least an image's features


def make(images: int) -> list[Arrays]:
    """As a detector's: most features are zero or small."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(images):
        corners = np.sort(rng.random((REGIONS, 2, 2)), axis=1).reshape(REGIONS, 4) * (640, 480, 640, 480)
        made.append(
            {
                "features": np.maximum(rng.normal(0, 1.5, (REGIONS, FEATURES)), 0).astype(np.float32),
                "boxes": corners.astype(np.float32),
                "classes": rng.integers(0, 1600, REGIONS),
                "confidences": np.sort(rng.uniform(0.2, 0.99, REGIONS).astype(np.float32))[::-1].copy(),
            }
        )
    return made


_LXMERT = ("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes")


def write_lxmert(folder: Path, images: list[Arrays]) -> Path:
    with (folder / "obj36.tsv").open("w") as file:
        writer = csv.writer(file, delimiter="\t")
        for number, one in enumerate(images):
            ids, sure, boxes, features = (
                base64.b64encode(one[name]).decode() for name in ("classes", "confidences", "boxes", "features")
            )
            writer.writerow([number, 480, 640, ids, sure, ids, sure, REGIONS, boxes, features])
    return folder / "obj36.tsv"


def read_lxmert(path: Path) -> Iterator[Arrays]:
    csv.field_size_limit(1 << 26)
    types = {"objects_id": np.int64, "objects_conf": np.float32, "attrs_id": np.int64, "attrs_conf": np.float32}
    with path.open() as file:
        for row in csv.DictReader(file, (*_LXMERT, "features"), delimiter="\t"):
            arrays = {name: np.frombuffer(base64.b64decode(row[name]), kind) for name, kind in types.items()}
            for name in ("boxes", "features"):
                data = np.frombuffer(base64.b64decode(row[name]), np.float32)
                arrays[name] = data.reshape(int(row["num_boxes"]), -1)
            yield arrays


@contextmanager
def _written(path: Path) -> Iterator[Any]:
    """The transaction that writes an LMDB."""
    with lmdb.open(str(path), map_size=1 << 34) as environment, environment.begin(write=True) as transaction:
        yield transaction


def write_uniter(folder: Path, images: list[Arrays]) -> Path:
    with _written(folder / "feat_th0.2") as transaction:
        for number, one in enumerate(images):
            sides = one["boxes"] / (640, 480, 640, 480)
            dump = {
                "norm_bb": np.concatenate([sides, sides[:, 2:] - sides[:, :2]], axis=1),
                "features": one["features"],
                "conf": one["confidences"][:, None],
                "soft_labels": np.full((REGIONS, 1601), 1e-4),
            }
            dump = {name: array.astype(np.float16) for name, array in dump.items()}
            value = msgpack.dumps(dump, use_bin_type=True, default=msgpack_numpy.encode)
            transaction.put(str(number).encode(), value)
    (folder / "nbb_th0.2.json").write_text(json.dumps({str(number): REGIONS for number in range(len(images))}))
    return folder / "feat_th0.2"


def read_uniter(path: Path) -> Iterator[Arrays]:
    numbers = json.loads(path.with_name("nbb_th0.2.json").read_text())
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin(buffers=True) as transaction:
        for key, number in numbers.items():
            dump = msgpack.loads(transaction.get(key.encode()), raw=False, object_hook=msgpack_numpy.decode)
            yield {name: array[:number] for name, array in dump.items()}


def write_hdf5(folder: Path, images: list[Arrays]) -> Path:
    with h5py.File(folder / "obj36.h5", "w") as file:
        for number, one in enumerate(images):
            group = file.create_group(str(number))
            for name, value in (
                *(("features", one["features"]), ("boxes", one["boxes"]), ("obj_id", one["classes"])),
                *(("obj_conf", one["confidences"]), ("img_w", 640), ("img_h", 480)),
            ):
                group[name] = value
    return folder / "obj36.h5"


def read_hdf5(path: Path) -> Iterator[Arrays]:
    with h5py.File(path) as file:
        for key in file:
            features = np.zeros((REGIONS, FEATURES), np.float32)
            file[f"{key}/features"].read_direct(features)
            yield {"features": features, **{name: file[f"{key}/{name}"][()] for name in ("boxes", "img_w", "img_h")}}


def write_npz(folder: Path, images: list[Arrays]) -> Path:
    (folder / "npz").mkdir()
    for number, one in enumerate(images):
        info = {"image_id": str(number), "objects_id": one["classes"], "objects_conf": one["confidences"]}
        arrays: dict[str, Any] = {"x": one["features"], "bbox": one["boxes"], "num_bbox": REGIONS, "info": info}
        np.savez_compressed(folder / "npz" / str(number), **arrays, image_h=480, image_w=640)
    return folder / "npz"


def read_npz(path: Path) -> Iterator[Arrays]:
    for file in sorted(path.glob("*.npz")):
        with np.load(file, allow_pickle=True) as archive:
            yield {"features": archive["x"], "boxes": archive["bbox"], "info": archive["info"]}


def write_vilbert(folder: Path, images: list[Arrays]) -> Path:
    with _written(folder / "feat.lmdb") as transaction:
        for number, one in enumerate(images):
            text = {name: base64.b64encode(one[name]).decode() for name in ("features", "boxes")}
            sizes = {"image_id": str(number), "image_h": "480", "image_w": "640", "num_boxes": str(REGIONS)}
            transaction.put(str(number).encode(), pickle.dumps(sizes | text))
        transaction.put(b"keys", pickle.dumps([str(number).encode() for number in range(len(images))]))
    return folder / "feat.lmdb"


def read_vilbert(path: Path) -> Iterator[Arrays]:
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        for key in pickle.loads(transaction.get(b"keys")):
            item = pickle.loads(transaction.get(key))
            rows = int(item["num_boxes"])
            yield {
                name: np.frombuffer(base64.b64decode(item[name]), np.float32).reshape(rows, -1)
                for name in ("features", "boxes")
            }


LAYOUTS = {
    "LXMERT, TSV": Layout(write_lxmert, read_lxmert),
    "UNITER, LMDB": Layout(write_uniter, read_uniter),
    "ViLBERT, LMDB": Layout(write_vilbert, read_vilbert),
    "VL-T5, HDF5": Layout(write_hdf5, read_hdf5),
    "npz, compressed": Layout(write_npz, read_npz),
}


def peer(layout: Layout, path: Path, images: int) -> float:
    """Seconds of the project's own reader and a copy of its features into memory that is there."""
    into = np.zeros((REGIONS, FEATURES), np.float32)
    begun, count = time.perf_counter(), 0
    for arrays in layout.read(path):
        into[:] = arrays["features"]
        count += 1
    assert count == images
    return time.perf_counter() - begun


def ours(path: Path, out: Path) -> float:
    """Seconds of the command, from the start of its process to its end."""
    shutil.rmtree(out, ignore_errors=True)
    begun = time.perf_counter()
    call = [sys.executable, "-m", "imagebert", "import", "auto", str(path), str(out)]
    subprocess.run(call, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def measure(layout: Layout, images: int, repeats: int) -> dict[str, float]:
    made = make(images)
    with tempfile.TemporaryDirectory() as folder:
        whole, one = Path(folder, "whole"), Path(folder, "one")
        for place in (whole, one):
            place.mkdir()
        path, single = layout.write(whole, made), layout.write(one, made[:1])
        times: dict[str, list[float]] = {"peer": [], "ours": [], "start": []}
        for _ in range(repeats):
            times["peer"].append(peer(layout, path, images))
            times["ours"].append(ours(path, Path(folder, "store")))
            times["start"].append(ours(single, Path(folder, "store")))
    median = {name: statistics.median(values) for name, values in times.items()}
    ratios = [p / (o - s) for p, o, s in zip(*(times[name] for name in ("peer", "ours", "start")), strict=True)]
    return {
        "peer_images_per_second": images / median["peer"],
        "images_per_second": images / median["ours"],
        "images_per_second_without_start": images / (median["ours"] - median["start"]),
        "start_seconds": median["start"],
        "of_peer": median["peer"] / median["ours"],
        "of_peer_without_start": statistics.median(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    figures = {name: measure(LAYOUTS[name], parsed.images, parsed.repeats) for name in parsed.layouts}
    table = Table("layout", "the peer's reader", "import", "without its start", "start, s")
    for name, found in figures.items():
        names = ("peer_images_per_second", "images_per_second", "images_per_second_without_start")
        table.add_row(name, *(f"{found[n]:,.0f}/s" for n in names), f"{found['start_seconds']:.2f}")
    Console().print(table)
    lines = [
        Line(f"{name}{what}: rate beside the peer's reader", found[f"of_peer{which}"], 1)
        for name, found in figures.items()
        for which, what in (("", ""), ("_without_start", ", without the start"))
    ]
    publish(figures, lines, parsed.json)


if __name__ == "__main__":
    main()
