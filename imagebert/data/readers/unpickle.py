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
from collections.abc import Callable, Iterable, Sized
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagebert.data.readers import BadRecord

_DEEPEST = 20  # of containers in containers
_STEPS = 1 << 22  # of a pickle: a record has a hundred, the ids of a million images four million
_BITS = 80  # of a number: those of torch.save begin with one of 77
_THINGS = 1 << 25  # numbers and texts that it unfolds to: a thousand boxes have four million


def unpickle(data: bytes) -> Any:
    """The object in a pickle that holds arrays and builtins only. Time and memory are bounded by its size.

    Raises:
        BadRecord: it holds something else, unfolds to more than any record has, or is damaged.
    """
    return load(data, Unpickler, _STEPS)[0]


def load(data: bytes, unpickler: Callable[[bytes], Unpickler], steps: int, things: int = _THINGS) -> tuple[Any, int]:
    """The same by an unpickler of one's own, of a pickle that more may follow; and where it ends.

    Args:
        steps: at most so many
        things: numbers and texts that it may unfold to

    Raises:
        BadRecord: as `unpickle` does.
    """
    try:
        end = 0
        for step, (opcode, argument, place) in enumerate(pickletools.genops(data)):  # it looks at lengths, too
            if step == steps:
                raise BadRecord(f"its pickle has more than {steps:,} steps")
            if isinstance(argument, int) and argument.bit_length() > _BITS:
                raise BadRecord(f"its pickle has a number of {argument.bit_length()} bits")
            if "PUT" in opcode.name and argument is not None and int(argument) > len(data):
                raise BadRecord("its pickle names a place that it cannot have")
            end = (place or 0) + 1
        found = _resolved(unpickler(data[:end]).load(), {}, 0)
        if found.things > things:
            raise BadRecord(f"its pickle unfolds to more than {things:,} things")
        return found.value, end
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
        _check_shape(shape)
        if dtype.holds_objects:
            if not isinstance(data, list) or len(data) != math.prod(shape):
                raise BadRecord("its pickle has an array of objects that does not fit its shape")
            self.value = data if shape else data[0]
        else:
            self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _check_shape(shape: Any) -> None:
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(isinstance(side, int) for side in shape):
        raise BadRecord("its pickle has an array of no shape")


def _array(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    _check_shape(shape)
    content = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote bytes as text
    if not isinstance(content, bytes | bytearray):  # a number would be a size to allocate
        raise BadRecord("its pickle has an array of no bytes")
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
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): dict,
}
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _reconstruct
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _scalar
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _from_buffer
for _builtins in ("builtins", "__builtin__"):
    _ADMITTED |= {(_builtins, "set"): set, (_builtins, "frozenset"): frozenset, (_builtins, "bytearray"): _bytearray}


_DISPATCH: dict[int, Any] = dict(pickle._Unpickler.dispatch)


class Unpickler(pickle._Unpickler):
    """Python's own in Python, not the one in C, so that what a step takes can be looked at before.

    A pickle names a thing again for two bytes. So what is called is given four times the pickle's size to work on in
    all; what is hashed is text or a number, since the hash of tuples in tuples goes through each as often as it is
    named.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_DISPATCH)
    stack: list[Any]
    metastack: list[list[Any]]

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._left = 4 * len(data) + 1024

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return _Array  # which is only named
        if (module, name) not in _ADMITTED:
            raise BadRecord(f"its pickle names {module}.{name}: only NumPy arrays and builtins are admitted")
        return partial(self._call, _ADMITTED[module, name])

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self._spend(arguments)
        if function in (set, frozenset, dict):
            for items in arguments:
                _check_keys([item[0] for item in items] if function is dict else items)
        return function(*arguments)

    def _spend(self, things: Any) -> None:
        self._spend_bytes(len(things))
        self._spend_bytes(sum(len(thing) for thing in things if isinstance(thing, Sized)))

    def _spend_bytes(self, number: int) -> None:
        self._left -= number
        if self._left < 0:
            raise BadRecord("its pickle makes more of its bytes than there are")

    def _build(self) -> None:
        state, thing = self.stack[-1], self.stack[-2]
        if not isinstance(thing, _Array | _Dtype):
            raise BadRecord(f"its pickle gives a state to {type(thing).__name__}")
        self._spend(state)
        _DISPATCH[pickle.BUILD[0]](self)

    def _check_dictionary(self, thing: Any) -> None:
        if not isinstance(thing, dict):  # an array would set all that a key names
            raise BadRecord(f"its pickle sets an item of {type(thing).__name__}")

    def _set_item(self) -> None:
        self._check_dictionary(self.stack[-3])
        _check_keys(self.stack[-2:-1])
        _DISPATCH[pickle.SETITEM[0]](self)

    def _set_items(self) -> None:
        self._check_dictionary(self.metastack[-1][-1])
        _check_keys(self.stack[::2])
        _DISPATCH[pickle.SETITEMS[0]](self)

    def _add_items(self) -> None:
        _check_keys(self.stack)
        _DISPATCH[pickle.ADDITEMS[0]](self)

    def _frozen_set(self) -> None:
        _check_keys(self.stack)
        _DISPATCH[pickle.FROZENSET[0]](self)

    def _dictionary(self) -> None:
        _check_keys(self.stack[::2])
        _DISPATCH[pickle.DICT[0]](self)

    dispatch |= {
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.ADDITEMS[0]: _add_items,
        pickle.FROZENSET[0]: _frozen_set,
        pickle.DICT[0]: _dictionary,
    }


_KEYS = (str, bytes, int, float, np.generic, type(None))


def _check_keys(keys: Iterable[Any]) -> None:
    for key in keys:
        if not isinstance(key, _KEYS):
            raise BadRecord(f"its pickle has {type(key).__name__} for a key")


class _Resolved(NamedTuple):
    """What stands in place of a value, and how much it unfolds to."""

    value: Any
    things: int
    depth: int


def _resolved(value: Any, known: dict[int, _Resolved], depth: int) -> _Resolved:
    """The same with arrays in place of their stand-ins; what is named several times is resolved once."""
    if isinstance(value, _Dtype):
        raise BadRecord("its pickle holds a type")
    if isinstance(value, partial):
        raise BadRecord("its pickle holds a function")
    if not isinstance(value, _Array | dict | list | tuple):
        size = value.size if isinstance(value, np.ndarray) else len(value) if isinstance(value, set | frozenset) else 1
        return _Resolved(value, size, 0)
    if id(value) in known:
        return known[id(value)]
    if depth > _DEEPEST:
        raise BadRecord("its pickle goes too deep")
    if isinstance(value, _Array):
        inner = [_resolved(value.value, known, depth + 1)]
        new = inner[0].value
    elif isinstance(value, dict):
        inner = [_resolved(thing, known, depth + 1) for thing in value.values()]
        new = {name: found.value for name, found in zip(value, inner, strict=True)}
    else:
        inner = [_resolved(thing, known, depth + 1) for thing in value]
        new = [found.value for found in inner]
    found = _Resolved(new, 1 + sum(i.things for i in inner), 1 + max((i.depth for i in inner), default=0))
    if found.depth > _DEEPEST + 1:
        raise BadRecord("its pickle goes too deep")
    known[id(value)] = found
    return found
