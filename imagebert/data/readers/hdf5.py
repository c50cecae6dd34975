"""HDF5 as bottom-up-attention-vqa converts it, with the image ids in STEM_imgid2idx.pkl beside. The gate of h5py.

Fixed numbers of boxes: image_features [N, n, F], image_bb [N, n, 4] in pixels, spatial_features [N, n, 6] as shares.
Adaptive ones: the same without N, all boxes behind each other, and pos_boxes [N, 2] from where to where.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from imagebert.config import UsageError
from imagebert.data.readers import BadRecord, Item, check_files, share_of
from imagebert.data.readers.fields import record_from
from imagebert.data.readers.folders import LARGEST
from imagebert.data.readers.unpickle import unpickle
from imagebert.data.records import RegionRecord
from imagebert.files import read_bytes


class Hdf5Reader:
    """Shares are runs of images, in the file's order."""

    def __init__(self, sources: Sequence[Path]) -> None:
        try:
            import h5py
        except ImportError as error:
            raise UsageError(f"HDF5 files need h5py ({error}): pip install imagebert[formats]") from None
        check_files(sources)
        self._images: list[tuple[Path, Any, str, int]] = []
        for source in sources:
            try:
                file = h5py.File(source, "r")
                _check(h5py, source, file)
            except UsageError:
                raise
            except Exception as error:  # what a damaged file makes of HDF5's library is no closed list
                raise UsageError(f"cannot open {source} as HDF5: {error}") from None
            ids = _read_ids(source)
            self._images += [(source, file, key, row) for row, key in sorted((row, key) for key, row in ids.items())]

    def size(self, share: int, shares: int) -> int:
        return len(share_of(len(self._images), share, shares))

    def items(self, share: int, shares: int) -> Iterator[Item]:
        mine = share_of(len(self._images), share, shares)
        for number in mine:
            path, file, key, row = self._images[number]
            yield Item(f"{path}, row {row}, image {key!r}", key, partial(_record, file, row), number + 1 - mine.start)


def _check(h5py: Any, source: Path, file: Any) -> None:
    names = set(file)  # asking for one by its name would follow links
    missing = {"image_features", "image_bb", "spatial_features"} - names
    if missing:
        raise UsageError(f"{source} has no {', '.join(sorted(missing))}")
    for name in names & {"image_features", "image_bb", "spatial_features", "pos_boxes"}:
        _check_dataset(h5py, source, file, name)


def _check_dataset(h5py: Any, source: Path, file: Any, name: str) -> None:
    """Before it is read: a link may lead to any file, and what is packed may unpack to anything."""
    found = None
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        found = "is a link"
    elif not isinstance(file[name], h5py.Dataset) or file[name].dtype.kind not in "fiu":
        found = "is no table of numbers"
    elif file[name].external or file[name].is_virtual:
        found = "lies in other files"
    elif file[name].ndim < 2 or file[name].ndim > 3:
        found = f"has {file[name].ndim} dimensions"
    elif file[name].id.get_create_plist().get_nfilters():
        found = "is compressed"
    elif file[name].chunks and math.prod(file[name].chunks) * file[name].dtype.itemsize > LARGEST:
        found = f"has chunks of {file[name].chunks} numbers"
    if found:
        raise UsageError(f"{source}: {name} {found}: write plain numbers (h5repack -f NONE unpacks what is compressed)")


def _read_ids(source: Path) -> dict[str, int]:
    path = source.with_name(f"{source.stem}_imgid2idx.pkl")
    try:
        data = read_bytes(path)
    except UsageError as error:
        raise UsageError(f"{source} needs its image ids in {path.name}: {error}") from None
    try:
        return {str(key): int(row) for key, row in unpickle(data).items()}
    except (BadRecord, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{path} is no dictionary of image ids to rows: {error}") from None


def _record(file: Any, row: int) -> RegionRecord:
    features, pixels, shares = (file[name] for name in ("image_features", "image_bb", "spatial_features"))
    try:
        if "pos_boxes" in file:
            if not 0 <= row < len(file["pos_boxes"]) or file["pos_boxes"].shape[1] != 2:
                raise BadRecord(f"pos_boxes is {list(file['pos_boxes'].shape)}")
            start, stop = (int(at) for at in file["pos_boxes"][row])
            if not 0 <= start < stop <= len(features):
                raise BadRecord(f"pos_boxes says {start} to {stop}, there are {len(features)}")
            where: Any = slice(start, stop)
        else:
            if not 0 <= row < len(features):
                raise BadRecord(f"there are {len(features)} rows")
            start, stop, where = 0, features.shape[1], row
        # Before it is read: what was never written takes no space in the file.
        for dataset in (features, pixels, shares):
            if stop - start > 65535 or (stop - start) * dataset.shape[-1] * dataset.dtype.itemsize > LARGEST:
                raise BadRecord(f"it has {stop - start} boxes of {dataset.shape[-1]} numbers")
            if dataset.shape[:-1] != features.shape[:-1]:
                raise BadRecord(f"boxes are {list(dataset.shape)}, features {list(features.shape)}")
        found = features[where], pixels[where], shares[where]
    except (OSError, ValueError, IndexError) as error:
        raise BadRecord(f"it cannot be read ({error})") from None
    _, boxes, spatial = found
    # The size of the image is not told, but its boxes stand there twice: in pixels and as shares of it.
    corner, share = boxes[:, 2:4].max(axis=0), spatial[:, 2:4].max(axis=0)
    if not (share > 0).all():
        raise BadRecord("its spatial features are zero")
    width, height = np.rint(corner / share)
    return record_from({"features": found[0], "boxes": boxes, "image_w": width, "image_h": height})
