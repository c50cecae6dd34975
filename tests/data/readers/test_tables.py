"""Arrow and Parquet of region features, written as each project does."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

from imagebert.config import UsageError
from imagebert.data.readers import BadRecord
from imagebert.data.readers.source import open_reader, survey
from tests.data.readers.checks import (
    NAMES,
    Case,
    Image,
    all_within_bounds,
    check_pipes,
    check_read,
    each,
    loaded,
    make,
    mutated,
    open_laid_out,
    read,
    refused,
    volta_arrays,
)

MOST = 8  # regions of a table that is filled up


def padded(array: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([array, np.zeros((MOST - len(array), *array.shape[1:]), array.dtype)])


class Array2D(pa.ExtensionType):
    """How Hugging Face's datasets stores Array2D."""

    def __init__(self, rows: int, columns: int) -> None:
        self.shape = (rows, columns)
        super().__init__(pa.list_(pa.list_(pa.float32())), "datasets.features.features.Array2DExtensionType")

    def __arrow_ext_serialize__(self) -> bytes:
        return json.dumps([self.shape, "float32"]).encode()

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Array2D:
        return cls(*json.loads(serialized)[0])


def lxmert_batches(images: list[Image]) -> Iterator[pa.RecordBatch]:
    """extracting_data.py: batches of 36 regions an image, filled up by zeros; class numbers as floats."""
    size = images[0].features.shape[1]
    floats = pa.list_(pa.float32(), MOST)

    def table(arrays: list[Any], columns: int) -> pa.Array:
        storage = pa.array([padded(array).tolist() for array in arrays], pa.list_(pa.list_(pa.float32())))
        return pa.ExtensionArray.from_storage(Array2D(MOST, columns), storage)

    def numbers(arrays: list[Any]) -> pa.Array:
        return pa.array([padded(array.astype(np.float32)).tolist() for array in arrays], floats)

    for at in range(0, len(images), 2):
        some = images[at : at + 2]
        columns = {
            "attr_ids": numbers([i.classes for i in some]),
            "attr_probs": numbers([i.confidences for i in some]),
            "boxes": table([i.shares for i in some], 4),
            "img_id": pa.array([int(i.key) for i in some], pa.int32()),
            "obj_ids": numbers([i.classes for i in some]),
            "obj_probs": numbers([i.confidences for i in some]),
            "roi_features": table([i.features for i in some], size),
            "sizes": pa.array([[800.0, 600.0] for _ in some], pa.list_(pa.float32(), 2)),
            "preds_per_image": pa.array([len(i.boxes) for i in some], pa.int32()),
        }
        batch = pa.record_batch(columns)
        yield batch.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {}}})})


def write_lxmert(folder: Path, images: list[Image]) -> Path:
    batches = list(lxmert_batches(images))
    with pa.ipc.new_stream(folder / "train.datasets", batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return folder / "train.datasets"


def write_arrow_file(folder: Path, images: list[Image]) -> Path:
    batches = list(lxmert_batches(images))
    with pa.ipc.new_file(folder / "train.arrow", batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return folder / "train.arrow"


def write_saved(folder: Path, images: list[Image]) -> Path:
    """save_to_disk of several splits: their files in state.json; a cache beside them, which is none of them."""
    for split, some in (("train", images[:3]), ("validation", images[3:])):
        (folder / "saved" / split).mkdir(parents=True)
        names = []
        for number, batch in enumerate(lxmert_batches(some)):
            names.append(f"data-{number:05}-of-00002.arrow")
            with pa.ipc.new_stream(folder / "saved" / split / names[-1], batch.schema) as writer:
                writer.write_batch(batch)
        whole = (folder / "saved" / split / names[0]).read_bytes()
        (folder / "saved" / split / "cache-0123456789abcdef.arrow").write_bytes(whole)
        state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": split}
        (folder / "saved" / split / "state.json").write_text(json.dumps(state))
        (folder / "saved" / split / "dataset_info.json").write_text(json.dumps({"features": {}}))
    (folder / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    return folder / "saved"


def write_saved_parquet(folder: Path, images: list[Image]) -> Path:
    """Dataset.to_parquet"""
    batches = list(lxmert_batches(images))
    parquet.write_table(pa.Table.from_batches(batches), folder / "train.parquet", row_group_size=2)
    return folder / "train.parquet"


def write_rows(folder: Path, rows: list[dict[str, Any]], name: str = "regions.parquet", **kinds: Any) -> Path:
    table = pa.Table.from_pylist(rows)
    for column, kind in kinds.items():
        table = table.set_column(table.schema.get_field_index(column), column, table.column(column).cast(kind))
    parquet.write_table(table, folder / name, row_group_size=2)
    return folder / name


def row_of(image: Image) -> dict[str, Any]:
    fields = {name: value.tolist() for name, value in volta_arrays(image).items()}
    return {**fields, "image_id": image.key, "num_boxes": len(image.boxes)}


def write_lists(folder: Path, images: list[Image]) -> Path:
    """Lists of lists of a fixed length; of half floats, whose bits these features do not need."""
    wide, four = pa.list_(pa.list_(pa.float32(), 16)), pa.list_(pa.list_(pa.float32(), 4))
    return write_rows(folder, [row_of(i) for i in images], features=wide, boxes=four, obj_conf=pa.list_(pa.float32()))


def write_large_lists(folder: Path, images: list[Image]) -> Path:
    large = pa.large_list(pa.large_list(pa.float32()))
    return write_rows(folder, [row_of(i) for i in images], features=large, boxes=large, obj_conf=pa.list_(pa.float32()))


def write_flat(folder: Path, images: list[Image]) -> Path:
    """Arrays behind each other in one list."""
    rows = [row_of(i) | {n: getattr(i, n).reshape(-1).tolist() for n in ("features", "boxes")} for i in images]
    flat = pa.list_(pa.float32())
    return write_rows(folder, rows, features=flat, boxes=flat, obj_conf=flat)


def write_flat_padded(folder: Path, images: list[Image]) -> Path:
    """The same, filled up to a fixed length."""
    rows = []
    for i in images:
        arrays = {"features": i.features, "boxes": i.boxes, "obj_id": i.classes, "obj_conf": i.confidences}
        rows.append(row_of(i) | {name: padded(array).reshape(-1).tolist() for name, array in arrays.items()})
    flat = pa.list_(pa.float32())
    fixed = {"features": pa.list_(pa.float32(), MOST * 16), "boxes": pa.list_(pa.float32(), MOST * 4)}
    return write_rows(folder, rows, **fixed, obj_conf=flat)


def encoded(images: list[Image], encode: Callable[[Any], Any]) -> list[dict[str, Any]]:
    rows = []
    for i in images:
        arrays = {"features": i.features, "boxes": i.boxes, "obj_id": i.classes, "obj_conf": i.confidences}
        rows.append(row_of(i) | {name: encode(array) for name, array in arrays.items()})
    return rows


def write_bytes(folder: Path, images: list[Image]) -> Path:
    return write_rows(folder, encoded(images, lambda array: array.tobytes()))


def write_base64(folder: Path, images: list[Image]) -> Path:
    return write_rows(folder, encoded(images, base64.b64encode))


def write_base64_text(folder: Path, images: list[Image]) -> Path:
    return write_rows(folder, encoded(images, lambda array: base64.b64encode(array).decode()))


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_npy(folder: Path, images: list[Image]) -> Path:
    return write_rows(folder, encoded(images, npy))


def write_npz(folder: Path, images: list[Image]) -> Path:
    """All arrays of an image in one column."""
    rows = []
    for i in images:
        file = io.BytesIO()
        np.savez(file, **volta_arrays(i))  # type: ignore[arg-type]
        rows.append({"image": i.key, "npz": file.getvalue()})
    return write_rows(folder, rows)


Write = Callable[[Path, list[Image]], Path]
WRITE: list[tuple[Write, str, set[str]]] = [
    (write_lxmert, "arrow", {"size"}),
    (write_arrow_file, "arrow", {"size"}),
    (write_saved, "arrow", {"size"}),
    (write_saved_parquet, "parquet", {"size"}),
    (write_lists, "parquet", set()),
    (write_large_lists, "parquet", set()),
    (write_flat, "parquet", set()),
    (write_flat_padded, "parquet", set()),
    (write_bytes, "parquet", set()),
    (write_base64, "parquet", set()),
    (write_base64_text, "parquet", set()),
    (write_npy, "parquet", set()),
    (write_npz, "parquet", set()),
]


def case_of(write: Write, name: str, lost: set[str]) -> Case:
    return Case(lambda folder, images: (name, write(folder, images)), lost, name=write.__name__[6:])


@each([case_of(*layout) for layout in WRITE])
def test_what_is_in_the_rows_is_read(case: Case, tmp_path: Path) -> None:
    images = make()
    name, path = case.write(tmp_path, images)
    shares = (1, 3) if case.name in ("lxmert", "saved", "lists") else (1,)  # a process each
    check_read(name, path, images, case.lost, shares)


@pytest.mark.parametrize("write", [write_lxmert, write_saved, write_lists])
def test_a_pipe_is_refused_at_once(write: Write, tmp_path: Path) -> None:
    name = "parquet" if write is write_lists else "arrow"
    path = write(tmp_path, make(16))
    for unread in (*path.rglob("cache-*"), *path.rglob("dataset*.json")):
        unread.unlink()
    check_pipes(name, path, tmp_path)


@pytest.mark.parametrize("write", [write_lxmert, write_arrow_file, write_lists, write_npz])
def test_damage(write: Write, tmp_path: Path) -> None:
    """A hundred files in a folder, each damaged in its way: a process for all of them, but for those that break it."""
    whole = write(tmp_path, make(16)[:3])
    rng = np.random.default_rng(3)
    (tmp_path / "damaged").mkdir()
    for number in range(100):
        (tmp_path / "damaged" / f"{number:03}{whole.suffix}").write_bytes(mutated(whole.read_bytes(), rng))
    (tmp_path / "damaged" / f"100{whole.suffix}").write_bytes(whole.read_bytes())
    name = "parquet" if whole.suffix == ".parquet" else "arrow"
    assert not all_within_bounds(name, tmp_path / "damaged")
    found, errors = loaded(name, tmp_path / "damaged")
    assert len(errors) > 20
    assert all(str(tmp_path / "damaged") in error for error in errors)
    assert len(found) >= 3


def test_whoever_closes_a_reader_ends_its_process(tmp_path: Path) -> None:
    path = write_lists(tmp_path, make(16))
    before = set(children())  # of other tests
    items = open_reader("parquet", [path]).items(0, 1)
    next(items)
    (child,) = set(children()) - before
    items.close()  # type: ignore[attr-defined]
    assert child not in children()


def test_what_ends_a_process_loses_one_file(tmp_path: Path) -> None:
    """A process reads many files, and one of them may break it: another goes on behind that."""
    (tmp_path / "all").mkdir()
    images = make(2048)  # more bytes than a pipe holds
    for number in range(3):
        write_lxmert(tmp_path, images).rename(tmp_path / "all" / f"{number}.arrow")
    before = set(children())  # of other tests
    items = open_reader("arrow", [tmp_path / "all"]).items(0, 1)
    found, errors = [next(items)], []
    (child,) = set(children()) - before
    os.kill(int(child), signal.SIGKILL)
    for item in items:
        try:
            item.load()
            found.append(item)
        except BadRecord as error:
            errors.append(f"{item.where}: {error}")
    (lost,) = errors
    assert re.search(r"0\.arrow, rows \d to 4: it is lost: its reader broke, so it is damaged", lost)
    assert [item.where.endswith(f"{number}.arrow, row 4") for number in (1, 2) for item in found].count(True) == 2


def children() -> list[str]:
    task = threading.get_native_id()
    return Path(f"/proc/{os.getpid()}/task/{task}/children").read_text().split()


# -------------------------------------------------------------------------------------------------- what must not pass


def test_sizes_of_the_resized_picture_are_no_images(tmp_path: Path) -> None:
    """LXMERT's `sizes` are 800 x 600 here; boxes are shares of the picture, which has no other size."""
    path = write_lxmert(tmp_path, make(16))
    assert {(record.width, record.height) for record in read("arrow", path).values()} == {(1, 1)}
    told = survey(open_reader("arrow", [path]), str(path), len(NAMES), {}).lines("names")
    assert any("shares" in line and "its size is not told" in line for line in told)


def test_class_numbers_that_are_not_whole(tmp_path: Path) -> None:
    rows = [row_of(i) for i in make(16)]
    rows[2]["obj_id"] = [float(number) for number in rows[2]["obj_id"]]
    rows[2]["obj_id"][0] += 0.5
    rows[3]["obj_id"] = [float("nan")] * len(rows[3]["obj_id"])
    for row in (0, 1, 4):
        rows[row]["obj_id"] = [float(number) for number in rows[row]["obj_id"]]
    path = write_rows(tmp_path, rows)
    first, second = refused("parquet", path)
    assert "row 2: obj_id has numbers that are not whole" in first
    assert "row 3: obj_id has numbers that are not whole" in second


def test_rows_that_are_no_tables(tmp_path: Path) -> None:
    """Of lists of different lengths, of texts, of nothing, and of numbers that are no rows."""
    rows = [row_of(i) for i in make(16)]
    rows[1]["features"][0] = [1.0]
    rows[2]["features"] = []
    rows[3]["features"] = None
    path = write_rows(tmp_path, rows)
    errors = []
    for item in open_laid_out("parquet", path).items(0, 1):
        try:
            item.load()
        except BadRecord as error:
            errors.append(f"{item.where}: {error}")
    assert [error.partition("row ")[2][:1] for error in errors] == ["1", "2", "3"]
    assert "it has no features, which the others have" in errors[2]
    names = [row_of(i) | {"obj_id": ["a cat"]} for i in make(16)]
    with pytest.raises(UsageError, match="obj_id is <U"):
        open_laid_out("parquet", write_rows(tmp_path, names))
    nameless = open_laid_out("parquet", path, classes="none")
    assert all(not item.load().record.classes.any() for item in nameless.items(0, 1))
    short = [row_of(i) | {"features": [1.0] * 7, "boxes": i.boxes.tolist()} for i in make(16, 3)]
    errors = refused("parquet", write_rows(tmp_path, short))
    assert len(errors) == 5
    assert all("features has 7 numbers, which are no table of 3 regions" in error for error in errors)


def test_columns_of_other_names(tmp_path: Path) -> None:
    rows = []
    for i in make(16):
        row = row_of(i)
        rows.append({"vectors" if name == "features" else name: value for name, value in row.items()})
    path = write_rows(tmp_path, rows)
    with pytest.raises(UsageError, match=r"no field of features is known .* vectors"):
        open_laid_out("parquet", path)
    for image, item in zip(make(16), open_laid_out("parquet", path, features="vectors").items(0, 1), strict=True):
        np.testing.assert_array_equal(item.load().record.features, image.features)
    unnamed = [{name: value for name, value in row.items() if name != "image_id"} for row in rows]
    with pytest.raises(UsageError, match="no field names the image"):
        open_laid_out("parquet", write_rows(tmp_path, unnamed), features="vectors")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_data_files": [{"filename": "x.arrow"}], "_indices_data_files": [{"filename": "i"}]}, "flatten_indices"),
        ({"_data_files": [{"filename": "../../x.arrow"}]}, "names no files"),
        ({"_data_files": 7}, "names no files"),
        ({}, "names no files"),
        ([], "flatten_indices|names no files"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, r"cannot read .*gone\.arrow"),
    ],
)
def test_states_that_do_not_fit(state: Any, message: str, tmp_path: Path) -> None:
    folder = write_saved(tmp_path, make(16)) / "train"
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(UsageError, match=message):
        open_reader("arrow", [folder])


def test_few_bytes_that_say_they_are_many(tmp_path: Path) -> None:
    """More rows than bytes, and zeros without end."""
    nothing = pa.table({"image_id": pa.nulls(3_000_000, pa.int32())})
    parquet.write_table(nothing, tmp_path / "rows.parquet", compression="zstd")
    with pytest.raises(UsageError, match=r"it says 3000000 rows and has \d+ bytes"):
        open_reader("parquet", [tmp_path / "rows.parquet"])
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(10 << 20, np.float32)), 5 << 20)
    table = pa.table({"num_boxes": [1] * 8, "features": pa.chunked_array([zeros] * 4)})
    parquet.write_table(table, tmp_path / "zeros.parquet", compression="zstd")
    (error,) = refused("parquet", tmp_path / "zeros.parquet")
    assert re.search(r"rows \d to 7: it is lost: .* unpacks to more than 1000 times its size", error)


def test_a_file_that_ends_early_loses_its_own_rows_only(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    images = make(16)
    for number, image in enumerate(images):
        write_lxmert(tmp_path, [image, *images[:1]]).rename(tmp_path / "all" / f"{number}.arrow")
    cut = tmp_path / "all" / "1.arrow"
    cut.write_bytes(cut.read_bytes()[:-1500])
    (tmp_path / "all" / "3.arrow").write_bytes(b"\xff\xff\xff\xff nothing")
    for shares in (1, 2, 7):
        errors = [error for share in range(shares) for error in refused("arrow", tmp_path / "all", share, shares)]
        assert len(errors) == 2
        assert re.search(r"1\.arrow.*it is lost", errors[0])
        assert re.search(r"3\.arrow.*it is lost", errors[1])
    assert sys.modules.get("pyarrow") is pa  # of the test; the readers leave it to their process
