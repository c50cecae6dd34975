"""A shard of pictures as img2dataset writes it: NNNNN.tar with KEY.jpg and KEY.json, NNNNN.parquet with a row for each.

The Parquet has a row for every picture that was wanted, also where it did not come; its `status` says why. Both hold
nothing of when or in what order pictures came: the same answers make the same bytes. A gate of pyarrow.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import Table, field, int32, int64, parquet, schema, string

from imagebert.errors import UsageError
from imagebert.files import replacing


class Row(NamedTuple):
    """What became of a picture; numbers and texts are None where there are none."""

    key: str
    url: str
    status: str
    http_status: int | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    content_type: str | None = None
    suffix: str | None = None
    error_message: str | None = None


_KINDS = {name: int32() for name in ("http_status", "width", "height")} | {"bytes": int64()}
_SCHEMA = schema([field(name, _KINDS.get(name, string())) for name in Row._fields])


_IDENTITY = b"imagebert.identity"


def rows_path(shard: Path) -> Path:
    """The Parquet beside a tar."""
    return shard.with_suffix(".parquet")


def write_shard(shard: Path, rows: Sequence[Row], picture: Callable[[Row], bytes], identity: str = "") -> None:
    """Writes tar and Parquet, in the order of the rows. The tar gets its name last: where it is, both are whole.

    Args:
        picture: gives a picture's bytes
        identity: of what the rows were fetched by, which the Parquet says

    Raises:
        OSError: the disk is full or failing; there is no tar then.
    """
    try:
        with replacing(shard) as tar:
            _write_tar(tar, rows, picture)
            with replacing(rows_path(shard)) as part:
                table = Table.from_pylist([row._asdict() for row in rows], schema=_SCHEMA)
                parquet.write_table(table.replace_schema_metadata({_IDENTITY: identity}), part)
    except OSError as error:
        raise OSError(error.errno, f"writing {shard} failed: {error.strerror or error}") from None


def _write_tar(path: Path, rows: Iterable[Row], picture: Callable[[Row], bytes]) -> None:
    with open_tar(path) as tar:
        for row in rows:
            if row.status != "success":
                continue
            told = {name: value for name, value in row._asdict().items() if name not in ("suffix", "error_message")}
            add_file(tar, f"{row.key}.{row.suffix}", picture(row))
            add_file(tar, f"{row.key}.json", json.dumps(told, indent=2).encode())


def open_tar(path: Path) -> tarfile.TarFile:
    """A new tar, to write into."""
    return tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file to a tar."""
    member = tarfile.TarInfo(name)  # of nobody, at no time
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def identity_of_shard(shard: Path) -> str:
    """What the rows of a shard were fetched by; read_rows says what is wrong with it otherwise."""
    metadata = parquet.read_schema(rows_path(shard)).metadata or {}
    return metadata.get(_IDENTITY, b"").decode()


def read_rows(shard: Path) -> list[Row]:
    """The rows of a shard that is whole.

    Raises:
        UsageError: its Parquet is not there, or is none of this program.
        OSError: the disk fails.
    """
    path = rows_path(shard)
    cure = f"remove {shard}, and fetch it again"
    try:
        table: Any = parquet.read_table(path, schema=_SCHEMA)
        return [Row(**row) for row in table.to_pylist()]
    except FileNotFoundError:
        raise UsageError(f"{path} is missing beside its tar: {cure}") from None
    except Exception as error:  # what a damaged Parquet raises is no closed list
        if isinstance(error, OSError) and error.errno is not None:
            raise
        said = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} is no list of fetched pictures ({said}): {cure}") from None
