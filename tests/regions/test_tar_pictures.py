"""Pictures in tars: where Python's tarfile finds them, whole, cut and damaged."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from imagebert.claims import Claims
from imagebert.errors import UsageError
from imagebert.pictures import UnreadableImage
from imagebert.regions import tar_pictures
from imagebert.regions.tar_pictures import TarPicture, TarReader, list_tar, list_tars
from imagebert.workers import ALONE

SAMPLE = {"jpg": b"\xff\xd8\xff" + bytes(900), "txt": b"a cat", "json": b'{"caption": "a cat"}'}


def write_tar(path: Path, files: Mapping[str, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1764100000
            archive.addfile(member, io.BytesIO(data))
    return path


def samples(count: int, first: int = 0) -> dict[str, bytes]:
    """As img2dataset names them; each picture has other bytes."""
    return {
        f"{number:09d}.{suffix}": data + bytes([number])
        for number in range(first, first + count)
        for suffix, data in SAMPLE.items()
    }


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_pictures_are_those_that_tarfile_finds(form: int, tmp_path: Path) -> None:
    files = samples(3)
    files |= {f"./deep/{'x' * 90}/1.PNG": b"png", "two.seg.png": b"mask", "two.webp": b"webp", "two.cls": b"3"}
    files |= {"none.json": b"{}", "none.txt": b"", "text": b"", "__index__.json": b"", "._1.jpg": b"a mac's"}
    tar = write_tar(tmp_path / "x.tar", files, form)
    with tarfile.open(tar) as archive:
        places = {file.name.removeprefix("./"): (file.offset_data, file.size) for file in archive}
    listing = list_tar(tar)
    names = [f"{number:09d}.jpg" for number in range(3)] + [f"deep/{'x' * 90}/1.PNG", "two.webp"]
    assert [str(picture) for picture in listing.pictures] == [f"{tar}, {name}" for name in names]
    assert [picture.key for picture in listing.pictures] == [name.rpartition(".")[0] for name in names]
    assert [(p.offset, p.size) for p in listing.pictures] == [places[name] for name in names]
    # Captions of a picture are no other files; those of none, and all else, are.
    assert listing.others == {".seg.png": 1, ".cls": 1, ".json": 1, ".txt": 1, "none": 1}
    reader = TarReader()
    whole = {name.removeprefix("./"): data for name, data in files.items()}
    assert [reader.read(picture) for picture in reversed(listing.pictures)] == [whole[n] for n in reversed(names)]
    reader.close()


def test_links_are_counted(tmp_path: Path) -> None:
    """A picture that a tar names twice has bytes at its first name only."""
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(tmp_path / "x.tar", "w", format=form) as archive:
            for name, kind in (("a.jpg", b""), ("b.jpg", tarfile.LNKTYPE), ("c.jpg", tarfile.SYMTYPE), ("d", b"dir")):
                member = tarfile.TarInfo(name if name != "c.jpg" else f"{'x' * 200}/c.jpg")
                member.type = {b"": tarfile.REGTYPE, b"dir": tarfile.DIRTYPE}.get(kind, kind)
                member.linkname, member.size = "a.jpg" if kind else "", 0 if kind else 3
                archive.addfile(member, io.BytesIO(b"" if kind else b"abc"))
        listing = list_tar(tmp_path / "x.tar")
        assert [picture.key for picture in listing.pictures] == ["a"]
        assert listing.others == {"link": 2}


def test_a_cut_costs_what_is_behind_it(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", samples(4))
    data = tar.read_bytes()
    whole = list_tar(tar).pictures
    assert [picture.problem for picture in whole] == [""] * 4
    near = [picture.offset + step for picture in whole for step in (-1, 0, 1, picture.size - 1, picture.size)]
    for cut in (0, 1, 511, 512, 513, 2000, *near):
        tar.write_bytes(data[:cut])
        *kept, lost = list_tar(tar).pictures
        assert kept == [picture for picture in whole if picture.offset + picture.size <= cut]
        assert lost.problem.startswith("it is lost: ")
        assert lost.offset < cut + 512  # a cut within what fills a block up
        assert str(lost) == f"{tar}, from byte {lost.offset} on,"
        with pytest.raises(UnreadableImage, match="it is lost: "):
            TarReader().read(lost)


def test_what_is_no_tar_is_one_loss(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("no tar" * 200)
    (tmp_path / "gz.tar").write_bytes(gzip.compress(write_tar(tmp_path / "x.tar", samples(1)).read_bytes()))
    (tmp_path / "folder.tar").mkdir()
    for name, problem in {
        "text.tar": "a header is damaged",
        "gz.tar": "it is packed by gzip: unpack it",
        "folder.tar": "is no regular file",
        "gone.tar": "No such file",
    }.items():
        (lost,) = list_tar(tmp_path / name).pictures
        assert problem in lost.problem


def test_a_picture_that_is_not_there_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = write_tar(tmp_path / "x.tar", samples(2))
    _, second = list_tar(tar).pictures
    reader = TarReader()
    assert reader.read(second) == SAMPLE["jpg"] + b"\1"
    tar.write_bytes(tar.read_bytes()[: second.offset + 100])
    with pytest.raises(UnreadableImage, match="it is cut off: 100 of its 904 bytes are there"):
        TarReader().read(second)
    monkeypatch.setattr(tar_pictures, "FILE_BYTES", 900)
    with pytest.raises(UnreadableImage, match="it has 904 bytes, more than 900"):
        reader.read(second)
    tar.unlink()
    with pytest.raises(UsageError, match="No such file"):
        TarReader().read(TarPicture(tar, "", "jpg", 0, 1))


def test_a_tar_is_walked_once_unless_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tars = [write_tar(tmp_path / f"{number}.tar", samples(2, 2 * number)) for number in range(3)]
    folder = tmp_path / "folder"
    folder.mkdir()

    def listed() -> list[tar_pictures.Listing]:
        return list_tars(tars, folder, Claims(folder, ALONE), ALONE)

    first = listed()
    assert first == [list_tar(tar) for tar in tars]
    write_tar(tars[1], samples(5, 10))
    walked = []

    def walk(tar: Path) -> tar_pictures.Listing:
        walked.append(tar)
        return list_tar(tar)

    monkeypatch.setattr(tar_pictures, "list_tar", walk)
    note = folder / "tars/000002.json"
    note.write_bytes(note.read_bytes().replace(b"000000005", b"000000006"))  # damaged
    assert listed() == [first[0], list_tar(tars[1]), first[2]]
    assert walked == tars[1:]
    tar_pictures.clear_notes(folder)
    assert list(folder.iterdir()) == []
