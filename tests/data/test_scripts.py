"""Scripts in processes of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imagebert.data.scripts import started


def test_what_it_writes_and_how_it_ends(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys; print(*sys.argv[1:], sys.stdin.read()); sys.exit(3)")
    with started(tmp_path / "script.py", "a b", "c") as (output, end):
        assert output.read() == b"a b c \n"
        assert end() == 3


def test_it_ends_with_the_block(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(1000)")
    with pytest.raises(KeyError), started(tmp_path / "script.py") as (output, _):
        child = int(output.readline())
        os.kill(child, 0)
        raise KeyError
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
