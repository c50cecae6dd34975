"""HDF5 of other projects. The gate of h5py.

bottom-up-attention-vqa: image ids in STEM_imgid2idx.pkl beside. Fixed numbers of boxes: image_features [N, n, F],
image_bb [N, n, 4] in pixels, spatial_features [N, n, 6] as shares. Adaptive ones: the same without N, all boxes behind
each other, and pos_boxes [N, 2] from where to where.

VL-T5, VOLTA and IGLUE: a group an image, called after it, with features [n, F], boxes [n, 4], obj_id, obj_conf, img_w,
img_h. A name with slashes is groups in groups.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagebert.config import UsageError
from imagebert.data.readers import LARGEST, BadRecord, ListedReader, check_files
from imagebert.data.readers.layout import NAMES
from imagebert.data.readers.unpickle import unpickle
from imagebert.files import read_bytes

_ROWS = ("image_features", "image_bb", "spatial_features", "pos_boxes")
_FIELDS = {name for names in NAMES.values() for name in names}
_SHUFFLED, _DEFLATED = 2, 1  # HDF5's numbers of these filters
_DEEPEST = 8  # of groups in groups


class Hdf5Reader(ListedReader):
    """Of one file or several."""

    def __init__(self, sources: Sequence[Path]) -> None:
        try:
            import h5py
        except ImportError as error:
            raise UsageError(f"HDF5 files need h5py ({error}): pip install imagebert[formats]") from None
        check_files(sources)
        self._images: list[tuple[Path, Any, str, int | None]] = []  # file, its key, its row where it has one
        self.beside = [ids for source in sources if (ids := _ids_of(source)).exists()]
        for source in sources:
            try:
                file = h5py.File(source, "r").id  # by h5py's lower floor: the upper takes a millisecond an image
                self._images += [(source, file, key, row) for key, row in _images(source, file)]
            except UsageError:
                raise
            except Exception as error:  # what a damaged file makes of HDF5's library is no closed list
                raise UsageError(f"cannot open {source} as HDF5: {error}") from None

    def _item(self, image: tuple[Path, Any, str, int | None]) -> tuple[str, str, Callable[[], Any]]:
        path, file, key, row = image
        load = partial(_of_group, file, key) if row is None else partial(_of_row, file, row)
        return f"{path}, image {key!r}", key, load


def _images(source: Path, file: Any) -> Iterator[tuple[str, int | None]]:
    names = [name.decode("utf-8", "replace") for name in file]  # asking for one by its name would follow links
    if not set(names) & set(_ROWS):
        yield from ((name, None) for name in _groups(source, file, names, "", _DEEPEST))
        return
    missing = set(_ROWS[:3]) - set(names)
    if missing:
        raise UsageError(f"{source} has no {', '.join(sorted(missing))}")
    for name in set(_ROWS) & set(names):
        dimensions = len(_dataset(file, name).shape)
        if dimensions not in (2, 3):
            raise UsageError(f"{source}: {name} has {dimensions} dimensions")
    yield from ((key, row) for row, key in sorted((row, key) for key, row in _read_ids(source).items()))


def _groups(source: Path, group: Any, names: Sequence[str], path: str, deepest: int) -> Iterator[str]:
    """Groups of images, told by the first one: it has features, or it holds more groups."""
    if not names:
        return
    first = _child(group, names[0])
    if isinstance(first, _h5py().h5g.GroupID) and b"features" in first:
        yield from (f"{path}{name}" for name in names)
        return
    for name in names:
        child = _child(group, name)
        if not isinstance(child, _h5py().h5g.GroupID) or not deepest:
            raise UsageError(f"{source}: {path}{name} is no group of an image, with features")
        yield from _groups(source, child, [inner.decode() for inner in child], f"{path}{name}/", deepest - 1)


def _h5py() -> Any:
    import h5py

    return h5py


def _child(group: Any, name: str) -> Any:
    """What lies there, unless that is a link, which may lead to any file.

    Raises:
        BadRecord: it is one, or nothing lies there.
    """
    h5py, raw = _h5py(), name.encode()
    try:
        if group.links.get_info(raw).type != h5py.h5l.TYPE_HARD:
            raise BadRecord(f"{name} is a link, write numbers")
        return h5py.h5o.open(group, raw)
    except KeyError:
        raise BadRecord(f"it has no {name}, or that is damaged") from None


class _Table(NamedTuple):
    """A table of numbers: asking HDF5 for what it is takes longer than reading some."""

    dataset: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    filters: list[Any]
    chunk: tuple[int, ...]  # where there are filters


def _dataset(group: Any, name: str) -> _Table:
    """A table of numbers, before it is read: they may lie elsewhere, and what is packed may unpack to anything.

    Raises:
        BadRecord: it is none.
    """
    h5py, dataset = _h5py(), _child(group, name)
    found = None
    if not isinstance(dataset, h5py.h5d.DatasetID) or (dtype := dataset.dtype).kind not in "fiu":
        raise BadRecord(f"{name} is no table of numbers")
    made = dataset.get_create_plist()
    filters = [made.get_filter(number) for number in range(made.get_nfilters())]
    chunk = made.get_chunk() if made.get_layout() == h5py.h5d.CHUNKED else ()
    if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
        found = "lies in other files"
    elif not {number for number, *_ in filters} <= {_SHUFFLED, _DEFLATED}:
        found = f"is packed by {', '.join(label.decode() for *_, label in filters)}"
    elif math.prod(chunk) * dtype.itemsize > LARGEST:
        found = f"has chunks of {chunk} numbers"
    if found:
        raise BadRecord(f"{name} {found}: write plain numbers (h5repack -f NONE unpacks what is compressed)")
    return _Table(dataset, dataset.shape, dtype, filters, chunk)


def _ids_of(source: Path) -> Path:
    return source.with_name(f"{source.stem}_imgid2idx.pkl")


def _read_ids(source: Path) -> dict[str, int]:
    path = _ids_of(source)
    try:
        data = read_bytes(path)
    except UsageError as error:
        raise UsageError(f"{source} needs its image ids in {path.name}: {error}") from None
    try:
        return {str(key): int(row) for key, row in unpickle(data).items()}
    except (BadRecord, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{path} is no dictionary of image ids to rows: {error}") from None


def _of_group(file: Any, key: str) -> dict[str, Any]:
    group = file
    for name in key.split("/"):
        group = _child(group, name)
    fields = {}
    for raw in group:
        name = raw.decode("utf-8", "replace")
        if name in _FIELDS:
            table = _dataset(group, name)
            if math.prod(table.shape) * table.dtype.itemsize > LARGEST:
                raise BadRecord(f"{name} has {table.shape} numbers")
            fields[name] = _read(table, 0, table.shape[0] if table.shape else 1)
    return fields


def _read(table: _Table, start: int, stop: int) -> NDArray[Any]:
    """Rows of a table. What is compressed is unpacked here, to the size that it must have and no more."""
    h5s, chunk = _h5py().h5s, table.chunk
    shape = (stop - start, *table.shape[1:]) if table.shape else ()
    out = np.empty(shape, table.dtype)
    if not table.filters:
        space, memory = h5s.ALL, h5s.ALL
        if shape != table.shape:
            space, memory = table.dataset.get_space(), h5s.create_simple(shape)
            space.select_hyperslab((start, *[0] * (len(shape) - 1)), shape)
        table.dataset.read(memory, space, out)
        return out
    ranges = [range(start // chunk[0] * chunk[0], stop, chunk[0])]
    ranges += [range(0, size, side) for size, side in zip(shape[1:], chunk[1:], strict=True)]
    for corner in product(*ranges):
        part = _chunk(table, corner)
        low, high = max(start, corner[0]), min(stop, corner[0] + chunk[0])
        inner = [slice(at, at + side) for at, side in zip(corner[1:], chunk[1:], strict=True)]
        into = out[(slice(low - start, high - start), *inner)]
        into[...] = part[(slice(low - corner[0], high - corner[0]), *(slice(0, size) for size in into.shape[1:]))]
    return out


def _chunk(table: _Table, corner: tuple[int, ...]) -> NDArray[Any]:
    width = table.dtype.itemsize
    size = math.prod(table.chunk) * width
    mask, data = table.dataset.read_direct_chunk(corner)
    for place, (number, *_) in reversed(list(enumerate(table.filters))):
        if mask >> place & 1:  # it was left out for this chunk
            continue
        if number == _DEFLATED:
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(data, size)
            if len(data) != size or not unpacker.eof:
                raise BadRecord(f"a chunk unpacks to more or less than the {size} bytes that it must have")
        else:
            data = np.frombuffer(data, np.uint8).reshape(width, -1).T.tobytes()
    if len(data) != size:
        raise BadRecord(f"a chunk has {len(data)} bytes, not {size}")
    return np.frombuffer(data, table.dtype).reshape(table.chunk)


def _of_row(file: Any, row: int) -> dict[str, Any]:
    features, pixels, shares = (_dataset(file, name) for name in _ROWS[:3])
    try:
        rows = features.shape[0]
        if file.links.exists(b"pos_boxes"):
            places = _dataset(file, "pos_boxes")
            if not 0 <= row < places.shape[0] or places.shape[1] != 2:
                raise BadRecord(f"pos_boxes is {list(places.shape)}")
            start, stop = (int(at) for at in _read(places, row, row + 1)[0])
            if not 0 <= start < stop <= rows:
                raise BadRecord(f"pos_boxes says {start} to {stop}, there are {rows}")
            many = stop - start
        else:
            if not 0 <= row < rows:
                raise BadRecord(f"there are {rows} rows")
            start, stop, many = row, row + 1, features.shape[1]
        # Before it is read: what was never written takes no space in the file.
        for dataset in (features, pixels, shares):
            if many > 65535 or many * dataset.shape[-1] * dataset.dtype.itemsize > LARGEST:
                raise BadRecord(f"it has {many} boxes of {dataset.shape[-1]} numbers")
            if dataset.shape[:-1] != features.shape[:-1]:
                raise BadRecord(f"boxes are {list(dataset.shape)}, features {list(features.shape)}")
        found = [_read(dataset, start, stop).reshape(many, -1) for dataset in (features, pixels, shares)]
    except (OSError, ValueError, IndexError) as error:
        raise BadRecord(f"it cannot be read ({error})") from None
    _, boxes, spatial = found
    # The size of the image is not told, but its boxes stand there twice: in pixels and as shares of it.
    corner, share = boxes[:, 2:4].max(axis=0), spatial[:, 2:4].max(axis=0)
    if not (share > 0).all():
        raise BadRecord("its spatial features are zero")
    with np.errstate(over="ignore"):
        width, height = np.rint(corner / share)
    return {"features": found[0], "boxes": boxes, "image_w": width, "image_h": height}
