from __future__ import annotations

import pickle
import struct
import subprocess
import sys
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from imagebert.data.readers import BadRecord
from imagebert.data.readers.unpickle import unpickle


def record() -> dict[str, Any]:
    return {
        "features": np.arange(12, dtype=np.float32).reshape(3, 4),
        "boxes": np.asfortranarray(np.arange(12, dtype=">f8").reshape(3, 4)),
        "objects": np.array([1, 2, 3]),
        "half": np.ones(2, np.float16),
        "num_boxes": 3,
        "scalar": np.float32(0.5),
        "names": np.array(["a", "bc"]),
        "flags": np.array([True, False]),
        "nested": {"list": [np.zeros(2), ("x", b"y")]},
        "ordered": OrderedDict(a=1),
        "set": {1, 2},
        "bytes": b"\xff\x00",
        "array of things": np.array([{"a": np.ones(1)}, None], dtype=object),
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_builtins_come_through(protocol: int) -> None:
    expected, found = record(), unpickle(pickle.dumps(record(), protocol))
    assert found.keys() == expected.keys()
    for name in ("features", "boxes", "objects", "half", "names", "flags", "scalar"):
        np.testing.assert_array_equal(found[name], expected[name])
        assert found[name].dtype == expected[name].dtype
    np.testing.assert_array_equal(found["nested"]["list"][0], np.zeros(2))
    assert found["nested"]["list"][1] == ["x", b"y"]
    assert (found["ordered"], found["set"], found["bytes"]) == ({"a": 1}, {1, 2}, b"\xff\x00")
    np.testing.assert_array_equal(found["array of things"][0]["a"], np.ones(1))


def test_what_python_2_wrote() -> None:
    """Bytes as text, and NumPy's older place: as cPickle 2 writes np.array([1.5], '<f4')."""
    data = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    data += (
        b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    data += b"\x89U\x04" + struct.pack("<f", 1.5) + b"tb."
    np.testing.assert_array_equal(unpickle(data), np.array([1.5], np.float32))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_no_flipped_bit_does_more_than_damage(protocol: int) -> None:
    """One of these bits made NumPy's own dtype end the process."""
    data = pickle.dumps({"f": np.ones((2, 2), np.float32), "i": np.arange(3), "n": 2}, protocol)
    refused = 0
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            unpickle(bytes(damaged))
        except BadRecord:
            refused += 1
    assert refused > len(data)


def twice(start: bytes, times: int = 60) -> bytes:
    """A tuple of two that are one, again and again: two bytes each time."""
    return start + b"2\x86" * times


TEXT = b"X" + struct.pack("<I", 100_000) + b"a" * 100_000
NUMBERS = b"(" + b"K\x01" * 20_000 + b"l"
BOMBS = {
    "lists of lists that are one": b"\x80\x02" + twice(b"]", 18) + b".",
    "a key of tuples": b"\x80\x02}" + twice(b"K\x01\x85") + b"K\x01s.",
    "keys of tuples": b"\x80\x02}(" + twice(b"K\x01\x85") + b"K\x01u.",
    "a dictionary from tuples": b"\x80\x02(" + twice(b"K\x01\x85") + b"K\x01d.",
    "a set of tuples": b"\x80\x04\x8f(" + twice(b"K\x01\x85") + b"\x90.",
    "a frozen set of tuples": b"\x80\x04(" + twice(b"K\x01\x85") + b"\x91.",
    "a set by its name": b"\x80\x02cbuiltins\nset\n]" + twice(b"K\x01\x85") + b"a\x85R.",
    "a long row in many rows": pickle.dumps([list(range(6000))] * 6000),
    "an array in many rows": pickle.dumps([np.zeros(6000, np.float32)] * 6000),
    "a text that is encoded often": b"\x80\x02"
    + TEXT
    + b"q\x000c_codecs\nencode\nq\x010("
    + b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 20_000
    + b"l.",
    "a set that is made often": b"\x80\x02"
    + NUMBERS
    + b"q\x000cbuiltins\nset\nq\x010("
    + b"h\x01h\x00\x85R" * 20_000
    + b"l.",
    "a state for a dictionary": b"\x80\x02ccollections\nOrderedDict\n)R}b.",
    "a state for a function": b"\x80\x02cnumpy.core.multiarray\nscalar\n}X\x01\x00\x00\x00aK\x01sb.",
    "bytes by their number": b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R"
    + b"\x8a\x08\x00\x00\x00\x00\x02\x00\x00\x00\x86R.",
    "a long number": b"\x80\x02\x8b\x00\x00\x01\x00" + b"\x7f" * 65536 + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_no_few_bytes_take_long_or_much(name: str) -> None:
    """In a process of its own: what the old code did with these cannot be interrupted."""
    if name == "lists of lists that are one":  # harmless: resolved once, and small enough
        assert unpickle(BOMBS[name])
        return
    code = "import sys, resource; from imagebert.data.readers.unpickle import unpickle\n"
    code += "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
    code += "resource.setrlimit(resource.RLIMIT_CPU, (20, 20))\n"
    code += "try:\n    unpickle(sys.stdin.buffer.read())\nexcept Exception as error:\n    print(type(error).__name__)"
    done = subprocess.run([sys.executable, "-c", code], input=BOMBS[name], capture_output=True, check=False)
    assert (done.returncode, done.stdout.decode()) == (0, "BadRecord\n"), done.stderr.decode()[-500:]


def test_the_steps_of_a_pickle_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebert.data.readers.unpickle._STEPS", 1000)
    unpickle(pickle.dumps([[]] * 300))
    with pytest.raises(BadRecord, match="more than 1,000 steps"):
        unpickle(b"\x80\x02(" + b"]" * 1000 + b"l.")


class Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def test_what_is_not_admitted() -> None:
    fields = b"\x80\x04cnumpy\ndtype\n(\x8c\x02V8\x89\x88tR(K\x03\x8c\x01|N\x8c\x01a\x85}\x8c\x01acnumpy\ndtype\n"
    fields += b"(\x8c\x01O\x89\x88tRK\x00\x86sK\x08K\x01K\x00tb."
    endless: list[Any] = []
    endless.append(endless)
    deep: Any = 1
    for _ in range(50):
        deep = [deep]
    bombs = {
        "a dtype with an object in its fields": fields,
        "a bytearray of a size": pickle.dumps(Call(bytearray, 1 << 40)),
        "a place of the memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "an array by its constructor": pickle.dumps(Call(np.ndarray, (1 << 20, 1 << 20), "f4", b"1234", 0, (0, 0))),
        "more than there are bytes": pickle.dumps(np.ones(4)).replace(b"K\x04\x85", b"K\x40\x85"),
        "eval": b"\x80\x04cbuiltins\neval\n(S'1'\ntR.",
        "one that holds itself": pickle.dumps(endless),
        "very deep": pickle.dumps(deep),
        "a long": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "nothing": b"",
    }
    for name, data in bombs.items():
        with pytest.raises(BadRecord):
            unpickle(data)
            pytest.fail(name)
