"""Pickles of other projects, read without running what they name: arrays and builtins only.

A pickle rebuilds an array by calling NumPy's own `dtype`, `ndarray` and their `__setstate__`, which trust what they are
given: a wrong state there is a crash, or worse. So nothing of NumPy is handed out. Stand-ins take the same calls, check
them, and are turned into arrays afterwards.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagebert.data.readers import BadRecord

_DEEPEST = 20  # of containers in containers


def unpickle(data: bytes) -> Any:
    """The object in a pickle that holds arrays and builtins only.

    Raises:
        BadRecord: it holds something else, or is damaged.
    """
    try:
        for opcode, argument, _ in pickletools.genops(data):
            # The memo grows to the largest index that is named.
            if "PUT" in opcode.name and argument is not None and int(argument) > len(data):
                raise BadRecord("its pickle names a place that it cannot have")
        return _resolved(_Unpickler(io.BytesIO(data), encoding="latin1").load(), 0)
    except BadRecord:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise BadRecord(f"its pickle is damaged ({type(error).__name__}: {error})") from None


class _Dtype:
    """Stands for numpy.dtype: a number's type, or object."""

    def __init__(self, code: str, *_: Any) -> None:
        if not re.fullmatch(r"[<>|=]?([bifu][1248]|f16|O8?|[SU]\d{1,5})", code):
            raise BadRecord(f"its pickle has an array of {code!r}")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # What else a state may say (fields, a type within the type) is for codes that are not admitted.
        if state[1] not in ("<", ">", "|", "="):
            raise BadRecord(f"its pickle has numbers in the order {state[1]!r}")
        self.code = state[1] + self.code.lstrip("<>|=")

    @property
    def holds_objects(self) -> bool:
        return "O" in self.code


class _Array:
    """Stands for numpy.ndarray; `value` is the array."""

    value: Any

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.holds_objects:
            if not isinstance(data, list) or len(data) != math.prod(shape):
                raise BadRecord("its pickle has an array of objects that does not fit its shape")
            self.value = data if shape else data[0]
        else:
            self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    content = data.encode("latin1") if isinstance(data, str) else bytes(data)  # Python 2 wrote bytes as text
    found, size = np.dtype(dtype.code), math.prod(shape)
    if dtype.holds_objects or min(shape, default=0) < 0 or len(content) != size * found.itemsize:
        raise BadRecord(f"its pickle has an array {found}{list(shape)} of {len(content)} bytes")
    return np.frombuffer(content, found).reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(kind: type, *_: Any) -> _Array:
    if kind is not _Array:
        raise BadRecord("its pickle has an array of a kind of its own")
    return _Array()


def _scalar(dtype: _Dtype, data: Any = b"") -> Any:
    return _array(data, dtype, (), "C")[()]


def _from_buffer(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    return _array(data, dtype, shape, order)


def _latin1(text: str, encoding: str) -> bytes:
    """How old protocols write bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise BadRecord(f"its pickle encodes as {encoding}")
    return text.encode("latin1")


def _bytearray(data: bytes | str = b"", encoding: str = "latin-1") -> bytes:
    if not isinstance(data, bytes | str):  # a number would be a size to allocate
        raise BadRecord("its pickle has a bytearray of no bytes")
    return data if isinstance(data, bytes) else _latin1(data, encoding)


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _from_buffer
for _builtins in ("builtins", "__builtin__"):
    _ADMITTED |= {(_builtins, "set"): set, (_builtins, "frozenset"): frozenset, (_builtins, "bytearray"): _bytearray}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise BadRecord(f"its pickle names {module}.{name}: only NumPy arrays and builtins are admitted")
        return _ADMITTED[module, name]


def _resolved(value: Any, depth: int) -> Any:
    """The same with arrays in place of their stand-ins."""
    if depth > _DEEPEST:
        raise BadRecord("its pickle goes too deep")
    if isinstance(value, _Array):
        return _resolved(value.value, depth + 1)
    if isinstance(value, dict):
        return {name: _resolved(thing, depth + 1) for name, thing in value.items()}
    if isinstance(value, list | tuple):
        return [_resolved(thing, depth + 1) for thing in value]
    if isinstance(value, _Dtype):
        raise BadRecord("its pickle holds a type")
    return value
