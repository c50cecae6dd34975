"""PyTorch's files, of torch.save: a dictionary or a list of images, or one image a file (Oscar, VisualBERT).

Oscar's X_img_frcnn_feats.pt: image -> [n, 2054], the last six the box as shares. VisualBERT's resnet101_genome.th:
image -> {boxes, features, image_w, image_h, num_boxes}; its features_train_150.th: image -> (features, boxes,
confidences).

PyTorch itself is not asked. Its `weights_only` unpickler goes without end through a few hundred bytes that name each
other as keys, it allocates what an old file says before it looks what there is, and reads such a file into memory
whole, where VisualBERT's have 70 gigabytes. Here the pickle goes through our own, with stand-ins for tensors, and an
image's numbers are read when it is loaded, from where they lie: nothing of it can crash, so no other process is needed.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagebert.config import UsageError
from imagebert.data.readers import LARGEST, BadRecord, ListedReader, find_files
from imagebert.data.readers.layout import NAMES
from imagebert.data.readers.unpickle import Unpickler, load
from imagebert.data.records import crc32
from imagebert.files import open_regular, read_bytes

SUFFIXES = (".pt", ".pth", ".th")
OLD = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how a file begins that PyTorch wrote before 1.6
_LOCAL = struct.Struct("<4s22xHH")  # a member's own header: magic, lengths of its name and of what stands behind
_PICKLE = 1 << 28  # bytes: 150,000 images have 25 million
_STEPS = 1 << 24  # of a pickle: 150,000 images take five million
_TRIED = 20  # files, before none is said to be one
_SIDES = 8  # of a tensor
_BLOCK = 1 << 20  # bytes read at once for a checksum
_TUPLE = ("box_features", "cls_boxes", "max_conf")  # of VisualBERT

# What torch calls the types of storages.
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",  # the upper half of a float32
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}


class TensorReader(ListedReader):
    """A folder's first whole file tells whether each is one image, which it then names."""

    def __init__(self, sources: Sequence[Path]) -> None:
        files = find_files(sources, SUFFIXES)
        first, told = _first(files)
        self._images: list[tuple[Path, str, Callable[[], Any]]] = []
        for file in files:
            content = None
            if not _is_image(told.value):
                with suppress(UsageError):  # which is told when it is loaded
                    content = told if file == first else _opened(file)
            if content is None:
                self._images.append((file, file.stem, partial(_of_file, file)))
            else:
                self._images += [(file, key, partial(_fields, content, value)) for key, value in _images(file, content)]

    def _item(self, image: tuple[Path, str, Callable[[], Any]]) -> tuple[str, str, Callable[[], Any]]:
        file, key, parse = image
        return f"{file}, image {key!r}", key, parse


def read_tensors(data: bytes) -> dict[str, Any]:
    """The arrays of one image that torch.save packed.

    Raises:
        BadRecord: it is damaged, holds other things, or more than one image.
    """
    return _of_image(_of_bytes(data))


def read_plain(file: Path) -> Any:
    """What torch.save wrote of texts, numbers and arrays, without any tensor.

    Raises:
        BadRecord: it is damaged, or holds other things.
        UsageError, OSError: as `open_regular` does.
    """
    with open_regular(file) as opened:
        content = _content(opened)
    if content.storages:
        raise BadRecord("it holds tensors")
    return content.value


def read_weights(file: Path) -> dict[str, NDArray[Any]]:
    """A network's tensors by their names: of torch.save, or a pickle of NumPy arrays as Detectron's projects write it.

    Where a file has more than weights, they are what it calls model or state_dict.

    Raises:
        BadRecord: it is damaged, or holds other things.
        UsageError, OSError: as `open_regular` does.
    """
    with open_regular(file) as opened:
        content = None
        if opened.read(len(OLD)).startswith((b"PK", OLD)):
            content = _content(opened)
            value = content.value
        else:
            value, _ = load(read_bytes(file, LARGEST), Unpickler, _STEPS, LARGEST)
        for name in ("model", "state_dict"):
            if isinstance(value, dict) and isinstance(value.get(name), dict):
                value = value[name]
        if not isinstance(value, dict):
            raise BadRecord(f"it holds {type(value).__name__}, not tensors by their names")
        found = {}
        for name, tensor in value.items():
            if isinstance(tensor, _Tensor):
                assert content is not None
                tensor = content.array(str(name), tensor)
            if not isinstance(tensor, np.ndarray | np.generic) or tensor.dtype.kind not in "fiub":
                raise BadRecord(f"its {name} is {type(tensor).__name__}, no tensor")
            found[str(name)] = np.asarray(tensor)
        return found


def _of_file(file: Path) -> dict[str, Any]:
    with open_regular(file) as opened:
        return _of_image(_content(opened))


def _of_image(content: _Content) -> dict[str, Any]:
    if not _is_image(content.value):
        raise BadRecord(f"it holds {type(content.value).__name__}, not one image's tensors")
    return _fields(content, content.value)


def _of_bytes(data: bytes) -> _Content:
    return _Content(io.BytesIO(data), len(data), lambda offset, size: data[offset : offset + size])


def _content(opened: BinaryIO) -> _Content:
    number = opened.fileno()  # which `opened` keeps open as long as it lives
    return _Content(opened, os.fstat(number).st_size, lambda offset, size: os.pread(number, size, offset))


def _opened(file: Path) -> _Content:
    try:
        return _content(open_regular(file))
    except BadRecord as error:
        raise UsageError(f"cannot read {file} as torch.save writes: {error}") from None


def _first(files: Sequence[Path]) -> tuple[Path, _Content]:
    """The first one that can be read.

    Raises:
        UsageError: none of the first can.
    """
    problems = []
    for file in files[:_TRIED]:
        try:
            return file, _opened(file)
        except UsageError as error:
            problems.append(error)
    raise problems[0]


def _is_image(value: Any) -> bool:
    """One image's tensors, not a table of images."""
    if isinstance(value, dict):
        return any(isinstance(value.get(name), _Tensor | np.ndarray) for name in NAMES["features"])
    return isinstance(value, _Tensor | np.ndarray)


def _images(file: Path, content: _Content) -> Iterator[tuple[str, Any]]:
    if isinstance(content.value, list):
        yield from (("", one) for one in content.value)  # then each names itself
    elif isinstance(content.value, dict):
        for key, value in content.value.items():
            yield key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else str(key), value
    else:
        raise UsageError(f"{file} holds {type(content.value).__name__}, no images")


def _fields(content: _Content, found: Any) -> dict[str, Any]:
    if isinstance(found, list) and len(found) == len(_TUPLE):
        found = dict(zip(_TUPLE, found, strict=True))
    fields = found if isinstance(found, Mapping) else {"features": found}
    return {
        str(name): content.array(str(name), value) if isinstance(value, _Tensor) else value
        for name, value in fields.items()
    }


# -------------------------------------------------------------------------------------------------------- the pickle


@dataclass(frozen=True)
class _Storage:
    """Stands for numbers in the file."""

    key: str
    dtype: str
    numbers: int

    @property
    def width(self) -> int:
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize


class _Kind:
    """Stands for the class of a storage, which is only named."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


class _Tensor:
    """Stands for a tensor: which numbers of a storage it has."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


def _rebuilt(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    sides = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= _SIDES
    if not sides or not all(isinstance(number, int) and number >= 0 for number in (offset, *shape, *strides)):
        raise BadRecord("its pickle has a tensor of no shape")
    if not isinstance(storage, _Storage):
        raise BadRecord("its pickle has a tensor without numbers")
    return _Tensor(storage, offset, shape, strides)


_ADMITTED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _rebuilt,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}


class _TensorUnpickler(Unpickler):
    """Notes the storages that it meets."""

    def __init__(self, storages: dict[str, _Storage], data: bytes) -> None:
        super().__init__(data)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _Kind(_STORAGES[name])
        if (module, name) in _ADMITTED:
            return partial(self._call, _ADMITTED[module, name])
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> _Storage:
        """("storage", class, key, device, numbers), and before 1.6 a view."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or not isinstance(pid[1], _Kind):
            raise BadRecord("its pickle names something else than a storage")
        _, kind, key, _, numbers = pid[:5]
        if not isinstance(key, str) or not isinstance(numbers, int) or numbers < 0 or any(pid[5:]):
            raise BadRecord("its pickle names a storage of no size, or a view of one")
        return self._storages.setdefault(key, _Storage(key, kind.dtype, numbers))


class _Packed(NamedTuple):
    """A storage in a pickle of Python's own: what torch.save writes of it, as bytes."""

    content: _Content
    storage: _Storage


class _PackedUnpickler(Unpickler):
    """Tensors become arrays at once. All of them are given what is left of the pickle's bytes, four times."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return partial(self._call, _packed)
        if (module, name) in (("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2")):
            return partial(self._call, self._rebuild)
        return super().find_class(module, name)

    def _rebuild(self, packed: Any, *arguments: Any) -> NDArray[Any]:
        if not isinstance(packed, _Packed):
            raise BadRecord("its pickle has a tensor without numbers")
        tensor = _rebuilt(packed.storage, *arguments)
        self._spend_bytes(math.prod(tensor.shape) * tensor.storage.width)  # a stride of 0 names a number many times
        return packed.content.array("tensor", tensor)


def _packed(data: Any) -> _Packed:
    if not isinstance(data, bytes):
        raise BadRecord("its pickle has a tensor of no bytes")
    content = _of_bytes(data)
    if not isinstance(content.value, _Storage):
        raise BadRecord("its pickle has a tensor without numbers")
    return _Packed(content, content.value)


def unpickle_tensors(data: bytes) -> Any:
    """As `unpickle`, and PyTorch's tensors come as arrays.

    Raises:
        BadRecord: it holds something else, unfolds to more than any record has, or is damaged.
    """
    return load(data, _PackedUnpickler, _STEPS)[0]


# ---------------------------------------------------------------------------------------------------------- the file


class _Place(NamedTuple):
    """Where a storage's bytes are."""

    offset: int
    size: int
    checksum: int = 0  # 0: none was made
    headed: bool = False  # a zip's own header stands before them


class _Content:
    """What torch.save wrote: `value` with stand-ins for its tensors, `storages` where their numbers are.

    Any thread may read those.

    Args:
        read: bytes from an offset, so many; less at the file's end

    Raises:
        BadRecord: it is damaged, or holds more than tensors, arrays and plain data.
    """

    def __init__(self, file: BinaryIO, size: int, read: Callable[[int, int], bytes]) -> None:
        self._file, self._size, self._read = file, size, read
        self._whole: dict[str, bool] = {}  # storages, as their checksums say
        start = read(0, len(OLD))
        if start[:2] == b"PK":
            self.value, self.storages = self._of_zip()
        elif start == OLD:
            self.value, self.storages = self._of_old()
        else:
            raise BadRecord("it begins as no file of torch.save does")

    def _of_zip(self) -> tuple[Any, dict[str, _Place]]:
        try:
            with zipfile.ZipFile(self._file) as archive:
                members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
        except Exception as error:  # of zipfile, struct, ...
            raise BadRecord(f"it is a damaged zip ({type(error).__name__}: {error})") from None
        if "data.pkl" not in members:
            raise BadRecord("it is a zip without a data.pkl, which torch.save writes")
        places = {}
        for name, member in members.items():
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise BadRecord(f"its {name} is packed, or encrypted: torch.save packs nothing")
            if not 0 <= member.header_offset <= self._size - member.file_size:
                raise BadRecord(f"its {name} does not lie in it")
            places[name] = _Place(member.header_offset, member.file_size, member.CRC, True)
        if "byteorder" in places and self._member(places["byteorder"]) != b"little":
            raise BadRecord("its numbers are big-endian: save it again on a little-endian machine")
        value, _ = load(self._member(places["data.pkl"]), partial(_TensorUnpickler, {}), _STEPS)
        return value, {name[5:]: place for name, place in places.items() if name.startswith("data/")}

    def _member(self, place: _Place) -> bytes:
        """One that is no storage, whole."""
        if place.size > _PICKLE:
            raise BadRecord(f"its pickle has {place.size} bytes, more than {_PICKLE}")
        data = self._read(self._begin(place), place.size)
        if len(data) != place.size or (place.checksum and crc32(data) != place.checksum):
            raise BadRecord("a part of it is cut off, or is not what its checksum says")
        return data

    def _begin(self, place: _Place) -> int:
        if not place.headed:
            return place.offset
        header = self._read(place.offset, _LOCAL.size)
        if len(header) != _LOCAL.size or header[:4] != b"PK\3\4":
            raise BadRecord("a part of it does not lie where its directory says")
        _, name, extra = _LOCAL.unpack(header)
        return place.offset + _LOCAL.size + int(name) + int(extra)

    def _of_old(self) -> tuple[Any, dict[str, _Place]]:
        """Five pickles (magic, version, machine, content, keys of storages); then each one's length, and its bytes."""
        data, at = self._read(0, min(self._size, _PICKLE)), 0
        found: list[Any] = []
        storages: dict[str, _Storage] = {}
        for _ in range(5):
            value, size = load(data[at:], partial(_TensorUnpickler, storages), _STEPS)
            found.append(value)
            at += size
        _, _, machine, value, keys = found
        if not isinstance(machine, dict) or machine.get("little_endian") is not True or not isinstance(keys, list):
            raise BadRecord("it was saved on a big-endian machine, or is damaged")
        places = {}
        for key in keys:
            length = int.from_bytes(self._read(at, 8), "little")
            if not isinstance(key, str) or key not in storages or length > self._size:
                raise BadRecord("a storage of it is damaged")
            places[key] = _Place(at + 8, length * storages[key].width)
            at += 8 + places[key].size
        if at > self._size:
            raise BadRecord(f"it is cut off: it needs {at} bytes and has {self._size}")
        return value, places

    def array(self, name: str, tensor: _Tensor) -> NDArray[Any]:
        """A tensor's numbers, read from the file.

        Raises:
            BadRecord: they are not there, are damaged, or more than any image has.
            OSError: the disk fails.
        """
        storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
        place = self.storages.get(storage.key)
        if place is None or storage.numbers * storage.width > place.size:
            raise BadRecord(f"the numbers of its {name} are not in the file")
        numbers, width = math.prod(shape), storage.width
        reach = 1 + sum((side - 1) * step for side, step in zip(shape, strides, strict=True)) if numbers else 0
        if tensor.offset + reach > storage.numbers:
            raise BadRecord(f"its {name} reaches out of its storage")
        if max(numbers, reach) * width > LARGEST:  # a stride of 0 names a number any number of times
            raise BadRecord(f"its {name} has {numbers * width} bytes, more than {LARGEST}")
        begin = self._begin(place)
        data = self._read(begin + tensor.offset * width, reach * width)
        if len(data) != reach * width:
            raise BadRecord(f"its {name} is cut off")
        if not self._is_whole(storage.key, place, begin, data):
            raise BadRecord(f"its {name} is damaged: it is not what its checksum says")
        flat = np.frombuffer(data, "<u2" if storage.dtype == "bfloat16" else storage.dtype)
        array = np.lib.stride_tricks.as_strided(flat, shape, [step * width for step in strides], writeable=False)
        if storage.dtype == "bfloat16":
            return (array.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(array, order="C")

    def _is_whole(self, key: str, place: _Place, begin: int, data: bytes) -> bool:
        """Whether all of a storage is as its checksum says: of what images share once, unless it is larger than any."""
        if not place.checksum or place.size > LARGEST:
            return True
        if len(data) == place.size:
            return crc32(data) == place.checksum
        if key not in self._whole:
            checksum = 0
            for at in range(begin, begin + place.size, _BLOCK):
                checksum = crc32(self._read(at, min(_BLOCK, begin + place.size - at)), checksum)
            self._whole[key] = checksum == place.checksum
        return self._whole[key]
