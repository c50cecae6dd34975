"""Pickles of other projects, read without running what they name: NumPy arrays and builtins only."""

from __future__ import annotations

import io
import pickle
from typing import Any, BinaryIO

from imagebert.data.readers import BadRecord

_ADMITTED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *((f"{core}.multiarray", name) for core in ("numpy.core", "numpy._core") for name in ("_reconstruct", "scalar")),
    *((f"{core}.numeric", "_frombuffer") for core in ("numpy.core", "numpy._core")),
    ("_codecs", "encode"),  # how old protocols write bytes
    *(("builtins", name) for name in ("bytearray", "complex", "frozenset", "set")),
    *(("__builtin__", name) for name in ("bytearray", "complex", "frozenset", "set")),
    ("collections", "OrderedDict"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise BadRecord(f"its pickle names {module}.{name}: only NumPy arrays and builtins are admitted")
        return super().find_class(module, name)


def unpickle(data: bytes | memoryview | BinaryIO) -> Any:
    """The object in a pickle that holds arrays and builtins only.

    Raises:
        BadRecord: it holds something else, or is damaged.
    """
    file = io.BytesIO(data) if isinstance(data, bytes | memoryview) else data
    try:
        return _Unpickler(file, encoding="latin1").load()
    except BadRecord:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise BadRecord(f"its pickle is damaged ({type(error).__name__}: {error})") from None
