"""The page of regions: what it shows, and that nothing in a name becomes a part of it."""

from __future__ import annotations

import base64
import io
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagebert import api
from imagebert.cli import main
from imagebert.config import UsageError
from imagebert.data.attributes import Attribute, attributes_of
from imagebert.data.records import WHOLE_IMAGE, RegionRecord
from imagebert.data.region_writer import Target, write_regions
from imagebert.data.regions import RegionStore
from imagebert.regions.preview import write_preview
from tests.regions.test_extractor import description, half_red  # noqa: F401  # a fixture

HOSTILE = ['<script>alert("class")</script>', "\"'><img src=x onerror=alert(1)>", "</title><b>{{ 7 * 7 }}"]


class Read(HTMLParser):
    """Tags with their attributes, and the text of lines and captions."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.lines: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))
        self.lines = [" ".join(line.split()) for line in self.lines]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("li", "figcaption", "p", "h1", "title", "script"):
            self.lines.append("")

    def handle_data(self, data: str) -> None:
        if self.lines:
            self.lines[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def record(width: int = 120, height: int = 60) -> RegionRecord:
    boxes = np.array([[0, 0, width, height], [10, 5, 40, 55.25], [30, 20, 90, 40]], np.float32)
    return RegionRecord(
        width,
        height,
        boxes,
        np.array([1, 0.875, 0.25], np.float32),
        np.array([WHOLE_IMAGE, 1, 0], np.uint16),
        np.ones((3, 4), np.float32),
        np.ones(3, np.float32),
    )


def make(folder: Path, keys: list[str], classes: list[str]) -> RegionStore:
    """A store and its pictures, each of another grey, in folder/pictures."""
    with write_regions(Target(folder / "store", classes, {"name": "<i>detector</i>", "digest": "0"})) as writer:
        for number, key in enumerate(keys):
            writer.add(key, record())
            (folder / "pictures" / key).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (1200, 600), 10 * number).save(folder / "pictures" / key, "PNG")
    return RegionStore(folder / "store")


def shown(page: Read) -> list[Image.Image]:
    found = []
    for image in page.all("img"):
        source = image["src"] or ""
        assert source.startswith("data:image/jpeg;base64,")
        found.append(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
    return found


def test_pictures_boxes_and_names(tmp_path: Path) -> None:
    keys = [f"{number:02}.png" for number in range(11)]
    store = make(tmp_path, keys, ["cat", "dog"])
    done = write_preview(store, tmp_path / "pictures", tmp_path / "page.html", 3)
    assert done == (tmp_path / "page.html", 3, 0)
    page = Read(done.page)
    pictures = shown(page)
    # The first, the middle and the last one, of at most 480 pixels.
    assert [image.size for image in pictures] == [(480, 240)] * 3
    assert [np.asarray(image).mean().round() for image in pictures] == pytest.approx([0, 50, 100], abs=2)
    assert [image["alt"] for image in page.all("img")] == ["00.png", "05.png", "10.png"]
    assert [svg["viewbox"] for svg in page.all("svg")] == ["0 0 120 60"] * 3
    boxes = [[rect[side] for side in ("x", "y", "width", "height")] for rect in page.all("rect")]
    assert (
        boxes
        == [["0.0", "0.0", "120.0", "60.0"], ["10.0", "5.0", "30.0", "50.2"], ["30.0", "20.0", "60.0", "20.0"]] * 3
    )
    assert [rect.get("class") for rect in page.all("rect")] == ["whole", None, None] * 3
    assert [line for line in page.lines if line.endswith(("dog", "cat", "image"))] == [
        *("whole image", "88 %dog", "25 %cat") * 3
    ]
    assert any("3 of 11 images" in line and "6 regions of 2 classes" in line for line in page.lines)


def test_attributes_where_a_record_has_them(tmp_path: Path) -> None:
    told = {"attributes": np.array([0, 1, 0], np.uint16), "attribute_confidences": np.array([0, 0.5, 0.125], "f4")}
    named = Target(tmp_path / "store", ["cat", "dog"], {"name": "x", "digest": ""}, attributes=["wet", "<b>old</b>"])
    with write_regions(named) as writer:
        writer.add("a.png", record()._replace(**told))
    store = RegionStore(tmp_path / "store")
    assert attributes_of(store.read(0), store) == [Attribute(), Attribute("<b>old</b>", 0.5), Attribute("wet", 0.125)]
    write_preview(store, tmp_path / "pictures", tmp_path / "page.html", 1)
    page = Read(tmp_path / "page.html")
    assert [line for line in page.lines if "%dog" in line or "%cat" in line] == [
        "88 %dog <b>old</b> 50 %",
        "25 %cat wet 12 %",
    ]
    assert len(page.all("i")) == 2


def test_a_store_without_attributes_names_none(tmp_path: Path) -> None:
    store = make(tmp_path, ["a.png"], ["cat", "dog"])
    assert attributes_of(record(), store) == [Attribute()] * 3


def test_pictures_in_tars_are_shown(tmp_path: Path) -> None:
    store = make(tmp_path, ["a.png"], ["cat", "dog"])
    with write_regions(Target(tmp_path / "tarred", ["cat", "dog"], {"name": "x", "digest": ""})) as writer:
        writer.add("0001", record())
        writer.add("0002", record())
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as tar:
        tar.add(tmp_path / "pictures" / "a.png", "0001.png")
    done = write_preview(RegionStore(tmp_path / "tarred"), tmp_path / "shards", tmp_path / "tar.html", 2)
    assert (done.pictures, done.missing) == (2, 1)
    plain = write_preview(store, tmp_path / "pictures", tmp_path / "plain.html", 1)
    pictures = [[image["src"] for image in Read(page).all("img")] for page in (done.page, plain.page)]
    assert pictures[0] == pictures[1]


def test_names_stay_text(tmp_path: Path) -> None:
    names = ["<img src=x onerror=alert(1)>.png", "a\"b'c&amp;.png", "</script>/{{ 7 * 7 }}.png"]
    store = make(tmp_path, names, HOSTILE)
    plain = Read(
        write_preview(make(tmp_path / "plain", ["a.png"], ["a", "b"]), tmp_path, tmp_path / "plain.html", 1).page
    )
    page = Read(write_preview(store, tmp_path / "pictures", tmp_path / "page.html", 9).page)
    assert {tag for tag, _ in page.tags} - {"img"} <= {tag for tag, _ in plain.tags}
    assert len(page.all("script")) == len(page.all("title")) == 1
    assert page.all("script") == [{}]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert sorted(image["alt"] or "" for image in page.all("img")) == sorted(names)
    assert sum(HOSTILE[1] in line for line in page.lines) == 4  # a line a picture, and among the most frequent
    assert any("<i>detector</i>" in line for line in page.lines)
    text = (tmp_path / "page.html").read_text()
    assert "http:" not in text
    assert "https:" not in text
    assert "49.png" not in text


def test_a_picture_that_is_gone_or_damaged_costs_itself(tmp_path: Path) -> None:
    store = make(tmp_path, ["a.png", "b.png", "c.png"], ["cat", "dog"])
    (tmp_path / "pictures/a.png").unlink()
    (tmp_path / "pictures/b.png").write_bytes(b"no picture")
    done = write_preview(store, tmp_path / "pictures", tmp_path / "page.html", 9)
    assert done == (tmp_path / "page.html", 3, 2)
    page = Read(done.page)
    assert [image["alt"] for image in page.all("img")] == ["c.png"]
    assert len(page.all("rect")) == 9
    assert sum("is gone, or cannot be read" in line for line in page.lines) == 2
    assert any(line.startswith("2 of the pictures are gone") for line in page.lines)


def test_a_key_shows_nothing_outside_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    store = make(tmp_path, ["../outside.png", str(tmp_path / "absolute.png")], ["cat", "dog"])
    assert (tmp_path / "outside.png").exists()
    assert write_preview(store, tmp_path / "pictures", tmp_path / "page.html", 2).missing == 2
    assert shown(Read(tmp_path / "page.html")) == []


@pytest.mark.parametrize("count", [0, -1, 201])
def test_a_count_out_of_range(count: int, tmp_path: Path) -> None:
    make(tmp_path, ["a.png"], ["cat", "dog"])
    with pytest.raises(UsageError, match=f"a preview of {count} pictures was asked for: give 1 to 200"):
        api.preview_regions(tmp_path / "pictures", tmp_path / "store", count)
    assert not (tmp_path / "store.preview.html").exists()


def test_the_command_writes_it_beside_the_store_also_of_a_finished_job(
    description: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    half_red().save(folder / "a.jpg")
    half_red().save(folder / "sub/b.jpg")
    (folder / "broken.jpg").write_text("no picture")
    page = tmp_path / "out.preview.html"
    command = ["extract", str(folder), str(out), "--extractor", str(description), "--decoder", "pillow"]
    assert main(command) == 0
    assert not page.exists()
    assert main([*command, "--preview", "5"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{page} shows the regions of 2 pictures"
    assert [image["alt"] for image in Read(page).all("img")] == ["a.jpg", "sub/b.jpg"]
    page.unlink()
    (folder / "a.jpg").write_bytes(b"")
    assert main([*command, "--preview", "5", "--overwrite"]) == 0
    assert [image["alt"] for image in Read(page).all("img")] == ["sub/b.jpg"]
    # Of several ranks only the first one writes it.
    page.unlink()
    monkeypatch.setattr("imagebert.cli.data.is_first", lambda: False)
    assert main([*command, "--preview", "5", "--overwrite"]) == 0
    assert not page.exists()
    with pytest.raises(SystemExit):
        main([*command, "--preview", "201"])
    assert "201 pictures are more than a page shows: give 1 to 200" in capsys.readouterr().err
