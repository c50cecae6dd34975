"""HDF5 of other projects. The gate of h5py.

bottom-up-attention-vqa: image ids in STEM_imgid2idx.pkl beside. Fixed numbers of boxes: image_features [N, n, F],
image_bb [N, n, 4] in pixels, spatial_features [N, n, 6] as shares. Adaptive ones: the same without N, all boxes behind
each other, and pos_boxes [N, 2] from where to where.

VL-T5, VOLTA and IGLUE: a group an image, called after it, with features [n, F], boxes [n, 4], obj_id, obj_conf, img_w,
img_h. A name with slashes is groups in groups. All tables of a group are handed on, under their own names.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagebert.config import UsageError
from imagebert.data.readers import LARGEST, BadRecord, ListedReader, find_files
from imagebert.data.readers.layout import NAMES
from imagebert.data.readers.unpickle import unpickle
from imagebert.files import read_bytes

_ROWS = ("image_features", "image_bb", "spatial_features", "pos_boxes")
_FIELDS = {name for names in NAMES.values() for name in names}
_SHUFFLED, _DEFLATED = 2, 1  # HDF5's numbers of these filters
_DEEPEST = 8  # of groups in groups
_LOOKED_AT = 9  # of a group's children, which tell what it holds
_KEPT = LARGEST  # bytes of unpacked chunks

_Load = Callable[[], dict[str, Any]]


class Hdf5Reader(ListedReader):
    """Of files, or of folders that hold some. What cannot be used in a file costs itself, as an image."""

    def __init__(self, sources: Sequence[Path]) -> None:
        try:
            import h5py
        except ImportError as error:
            raise UsageError(f"HDF5 files need h5py ({error}): pip install 'imagebert[data]'") from None
        files = find_files(sources, (".h5", ".hdf5"))
        self._images: list[tuple[Path, str, _Load]] = []
        self.beside = [ids for source in files if (ids := _ids_of(source)).exists()]
        unpacked = _Unpacked()
        for source in files:
            try:
                file = h5py.File(source, "r").id  # by h5py's lower floor: the upper takes a millisecond an image
                self._images += [(source, key, load) for key, load in _images(source, file, unpacked)]
            except UsageError:
                raise
            except Exception as error:  # what a damaged file makes of HDF5's library is no closed list
                raise UsageError(f"cannot open {source} as HDF5: {error}") from None

    def _item(self, image: tuple[Path, str, _Load]) -> tuple[str, str, _Load]:
        path, key, load = image
        return f"{path}, image {key!r}", key, load


def _images(source: Path, file: Any, unpacked: _Unpacked) -> Iterator[tuple[str, _Load]]:
    names = _children(file)
    if not set(names) & set(_ROWS):
        yield from ((name, partial(_of_group, file, name)) for name in _groups(file, names, "", {_address(file)}))
        return
    missing = set(_ROWS[:3]) - set(names)
    if missing:
        raise UsageError(f"{source} has no {', '.join(sorted(missing))}")
    try:
        tables = {name: _dataset(file, name) for name in _ROWS if name in names}
    except BadRecord as error:
        raise UsageError(f"{source}: {error}") from None
    for name, table in tables.items():
        if len(table.shape) not in (2, 3):
            raise UsageError(f"{source}: {name} has {len(table.shape)} dimensions")
    for row, key in sorted((row, key) for key, row in _read_ids(source).items()):
        yield key, partial(_of_row, tables, unpacked, row)


def _children(group: Any) -> list[str]:
    """Their names. Asking for a child by its name would follow links."""
    return [name.decode("utf-8", "surrogateescape") for name in group]


def _groups(group: Any, names: Sequence[str], path: str, seen: set[int]) -> Iterator[str]:
    """Images in a group, and in the groups in it; what is neither is handed on as an image, which is then refused.

    Args:
        seen: addresses of groups that were walked: one may be in itself
    """
    some = [child for name in _some(names) if (child := _group_of(group, name))]
    if some and all(map(_is_image, some)):  # then all are, which need not be opened here
        yield from (f"{path}{name}" for name in names)
        return
    for name in names:
        child = _group_of(group, name)
        if not child or _is_image(child) or _address(child.group) in seen or path.count("/") == _DEEPEST:
            yield f"{path}{name}"
        else:
            seen.add(_address(child.group))
            yield from _groups(child.group, child.names, f"{path}{name}/", seen)


def _some(names: Sequence[str]) -> Sequence[str]:
    """From everywhere among them: the first ones may be damaged."""
    return names[:: len(names) // _LOOKED_AT + 1]


class _Group(NamedTuple):
    group: Any
    names: list[str]  # of its children


def _is_image(child: _Group) -> bool:
    """Whether it holds tables, and not groups of images; one that holds nothing is refused as an image."""
    inner = [_group_of(child.group, name) for name in _some(child.names)]
    return 2 * inner.count(None) >= len(inner)


def _group_of(parent: Any, name: str) -> _Group | None:
    """The group of that name; None where there is none, or a damaged one."""
    try:
        child = _child(parent, name)
        return _Group(child, _children(child)) if isinstance(child, _h5py().h5g.GroupID) else None
    except Exception:  # what a damaged file makes of HDF5's library is no closed list
        return None


def _address(group: Any) -> int:
    address: int = _h5py().h5o.get_info(group).addr
    return address


def _h5py() -> Any:
    import h5py

    return h5py


def _child(group: Any, name: str) -> Any:
    """What lies there, unless that is a link, which may lead to any file.

    Raises:
        BadRecord: it is one, or nothing lies there.
    """
    h5py, raw = _h5py(), name.encode("utf-8", "surrogateescape")
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
    if not isinstance(group, _h5py().h5g.GroupID):
        raise BadRecord("it is no group of an image's tables")
    fields, left = {}, LARGEST
    for name in _children(group):
        try:
            table = _dataset(group, name)
        except BadRecord:
            if name in _FIELDS:
                raise
            continue  # text, or attributes packed as ours must not be
        left -= math.prod(table.shape) * table.dtype.itemsize
        if left < 0:
            raise BadRecord(f"{name} has {table.shape} numbers")
        fields[name] = _read(table, 0, table.shape[0] if table.shape else 1)
    if not fields:
        raise BadRecord("it is a group without tables")
    return fields


class _Unpacked:
    """The chunks that were unpacked last, for all threads: each may have numbers of a thousand images."""

    def __init__(self) -> None:
        self._chunks: dict[tuple[int, ...], NDArray[Any]] = {}
        self._left = _KEPT
        self._changing = threading.Lock()

    def chunk(self, table: _Table, corner: tuple[int, ...]) -> NDArray[Any]:
        place = (table.dataset.id, *corner)
        found = self._chunks.get(place)
        if found is None:
            found = _chunk(table, corner)
            with self._changing:
                self._left -= 0 if place in self._chunks else found.nbytes
                self._chunks[place] = found
                while self._left < 0:
                    self._left += self._chunks.pop(next(iter(self._chunks))).nbytes
        return found


def _read(table: _Table, start: int, stop: int, unpacked: _Unpacked | None = None) -> NDArray[Any]:
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
        part = unpacked.chunk(table, corner) if unpacked else _chunk(table, corner)
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


def _of_row(tables: dict[str, _Table], unpacked: _Unpacked, row: int) -> dict[str, Any]:
    features, pixels, shares = (tables[name] for name in _ROWS[:3])
    try:
        rows = features.shape[0]
        if "pos_boxes" in tables:
            places = tables["pos_boxes"]
            if not 0 <= row < places.shape[0] or places.shape[1:] != (2,):
                raise BadRecord(f"pos_boxes is {list(places.shape)}")
            start, stop = (int(at) for at in _read(places, row, row + 1, unpacked)[0])
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
        found = [_read(dataset, start, stop, unpacked).reshape(many, -1) for dataset in (features, pixels, shares)]
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
