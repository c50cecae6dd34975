"""The page against people who send what they like: what it answers, and that others are answered meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagebert.data.corpus import LooseItems
from imagebert.data.pairs import PairStore
from imagebert.data.records import RegionRecord
from imagebert.data.regions import RegionStore
from imagebert.demo.extractor import SceneExtractor
from imagebert.errors import UsageError
from imagebert.feed.packer import Limits
from imagebert.model_folder import open_model
from imagebert.pictures import LOCAL, SENT, Decoder
from imagebert.regions.extract import extract
from imagebert.retrieval import serve as serving
from imagebert.retrieval.pictures import Pictures
from imagebert.retrieval.search import Finder
from imagebert.retrieval.serve import make_app
from tests.retrieval.scenes import Scenes, write_scenes
from tests.test_pictures import MALFORMED_EXIF, many_scans, picture, saved

# The page with shorter times and fewer connections than people get.
_QUICK = """
import sys
from imagebert.cli import main
from imagebert.retrieval import serve, server
server.SECONDS.update(head=2, body=4)
server.CONNECTIONS = 60
serve.SILENT_SECONDS = 2
raise SystemExit(main(["serve", *sys.argv[1:], "--port", "0"]))
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return write_scenes(tmp_path_factory.mktemp("scenes"))


class Page:
    """A page's process."""

    def __init__(self, scenes: Scenes, folder: Path) -> None:
        self.errors = folder / "stderr"
        self.process = subprocess.Popen(
            [sys.executable, "-c", _QUICK, *scenes.serve],
            stdout=subprocess.PIPE,
            stderr=self.errors.open("w"),
            text=True,
        )

    def listening(self) -> Page:
        """This, when it has said where it listens."""
        assert self.process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.process.stdout.readline())
        assert found, self.errors.read_text()
        self.address, self.port = found[0], int(found[1])
        socket.create_connection(("127.0.0.1", self.port)).close()  # it does, already
        return self

    def ask(self, path: str, data: bytes | None = None) -> tuple[int, bytes, dict[str, str]]:
        try:
            with urllib.request.urlopen(urllib.request.Request(self.address + path, data), timeout=30) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read(), dict(error.headers)

    def send(self, data: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(data)
        return connection

    def search(self) -> list[dict[str, Any]]:
        status, body, _ = self.ask("/search?q=a+red+square")
        assert status == 200
        hits: list[dict[str, Any]] = json.loads(body)["hits"]
        return hits


@pytest.fixture(scope="module")
def page(scenes: Scenes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    made = Page(scenes, tmp_path_factory.mktemp("page")).listening()
    yield made
    made.process.terminate()
    made.process.wait(10)


def half_an_upload(page: Page) -> socket.socket:
    return page.send(b"POST /captions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n" + bytes(70_000))


def test_pictures_from_people(page: Page, scenes: Scenes) -> None:
    good = (scenes.folder / "images/scene-00003.jpg").read_bytes()
    with Image.open(scenes.folder / "images/scene-00003.jpg") as image:
        malformed = saved(image, "JPEG", quality=95, exif=MALFORMED_EXIF)
    for data in (good, malformed):
        status, body, _ = page.ask("/captions", data)
        assert status == 200, body
        assert len(json.loads(body)["captions"]) == 12
    flat = saved(Image.new("RGB", (7000, 7000)), "JPEG")
    for data, said in (
        (good[:900], "cannot read the picture, it is damaged"),
        (flat, "more pixels than 4,000,000"),
        (many_scans(saved(picture(), "JPEG", progressive=True), 1500), "more than 100 scans"),
        (saved(picture(), "TIFF"), "it is none: send a JPEG, PNG or WebP"),
    ):
        begun = time.monotonic()
        status, body, _ = page.ask("/captions", data)
        assert status == 400
        assert said in json.loads(body)["error"]
        assert time.monotonic() - begun < 10


def test_pictures_have_their_stores_address(page: Page, scenes: Scenes) -> None:
    hit = page.search()[0]
    store = RegionStore(scenes.folder / "regions").content[:16]
    assert hit["picture"] == f"/picture/{store}/{hit['number']}"
    status, body, headers = page.ask(hit["picture"] + "/small")
    assert status == 200
    assert body[:2] == b"\xff\xd8"
    assert "max-age" in headers["cache-control"]
    for path in (
        f"/picture/{16 * '0'}/{hit['number']}/small",
        f"/picture/{hit['number']}/small",
        f"/picture/{store}/{5000 * '9'}/small",
        f"/picture/{store}/-1/small",
        f"/picture/{store}/%C2%B2/small",
        f"/picture/{store}/0/huge",
        f"/regions/{5000 * '9'}?q=red",
    ):
        status, body, _ = page.ask(path)
        assert status in (400, 404), path
        assert b"Traceback" not in body


def test_half_sent_requests_make_room_and_are_dropped(page: Page) -> None:
    with ExitStack() as open_ones:
        slow = [open_ones.enter_context(page.send(b"GET /search?q=red HT")) for _ in range(150)]
        for _ in range(3):
            assert page.search()
        slow[0].settimeout(10)
        with pytest.raises(ConnectionError):  # the first made room for the last
            if slow[0].recv(1) == b"":
                raise ConnectionResetError
        for connection in slow[-20:]:
            connection.settimeout(20)
            with suppress(ConnectionError):
                assert connection.recv(1) == b""
    assert len(page.errors.read_text().splitlines()) < 40


def test_half_sent_uploads_keep_nobody_from_searching(page: Page, scenes: Scenes) -> None:
    good = (scenes.folder / "images/scene-00003.jpg").read_bytes()
    with ExitStack() as open_ones:
        slow = [open_ones.enter_context(half_an_upload(page)) for _ in range(30)]
        time.sleep(0.5)
        assert page.search()
        status, body, headers = page.ask("/captions", good)
        assert status == 503
        assert "4 pictures are being looked at already" in json.loads(body)["error"]
        assert headers["retry-after"] == "5"
        said = []
        for connection in slow:
            connection.settimeout(20)
            said.append(connection.recv(100)[9:12])
        assert said == 30 * [b"408"]
    deadline = time.monotonic() + 20
    while page.ask("/captions", good)[0] == 503:
        assert time.monotonic() < deadline


def test_a_burst_of_log_lines_is_summed_up(page: Page) -> None:
    for _ in range(200):
        with page.send(b"\0\0\0\0\r\n\r\n") as connection:
            connection.recv(1000)
    lines = page.errors.read_text().splitlines()
    assert len([line for line in lines if "Invalid HTTP request" in line]) <= 30
    assert any("are left out" in line for line in lines)


@pytest.mark.slow
def test_ends_within_seconds_whatever_is_half_sent(scenes: Scenes, tmp_path: Path) -> None:
    folders = tmp_path / "term", tmp_path / "int"
    for folder in folders:
        folder.mkdir()
    started = [Page(scenes, folder) for folder in folders]
    for page, number in zip(started, (signal.SIGTERM, signal.SIGINT), strict=True):
        page.listening()
        with half_an_upload(page), page.send(b"GET / HT"), page.send(b""):
            # And a picture whose regions take seconds.
            large = saved(Image.new("RGB", (2000, 2000)), "PNG")
            head = f"POST /captions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(large)}\r\n\r\n"
            with page.send(head.encode() + large):
                time.sleep(0.5)
                page.process.send_signal(number)
                page.process.wait(10)
        assert "Traceback" not in page.errors.read_text()


# ---------------------------------------------------------------------------------------- within this process, by ASGI


@pytest.fixture(scope="module")
def finder(scenes: Scenes) -> Finder:
    store, pairs = RegionStore(scenes.folder / "regions"), PairStore(scenes.folder / "pairs")
    return Finder(
        open_model(scenes.folder / "model"), store, Limits(max_regions=8, max_words=41, whole_image=True), pairs
    )


async def asked(app: Any, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
    """What an application answers."""
    sent: list[dict[str, Any]] = []
    messages = iter([{"type": "http.request", "body": body or b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        if (message := next(messages, None)) is None:
            await asyncio.Event().wait()  # the asker stays
        assert message is not None
        return message

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET" if body is None else "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


def test_words_are_answered_while_regions_are_found(finder: Finder) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(image: Image.Image) -> RegionRecord:
        begun.set()
        assert go_on.wait(60)
        return finder.store.read(0)

    async def both() -> None:
        app = make_app(finder, Pictures(None), slowly, ["localhost"])
        upload = asyncio.create_task(asked(app, "/captions", saved(picture(), "PNG")))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        try:
            status, answer = await asyncio.wait_for(asked(app, "/search?q=red"), 30)
            assert (status, len(answer["hits"])) == (200, 9)
        finally:
            go_on.set()
        assert (await upload)[0] == 200

    asyncio.run(both())


def test_what_goes_wrong_inside_is_one_sentence(
    finder: Finder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(query: Any, top: int) -> None:
        raise RuntimeError("line one\nline two")

    monkeypatch.setattr(finder, "images", fail)
    app = make_app(finder, Pictures(None), None, ["localhost"])
    status, answer = asyncio.run(asked(app, "/search?q=red"))
    assert status == 500
    assert answer == {"error": "the server failed at this: its own messages say why"}
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        "GET '/search' failed: RuntimeError: line one line two"
    ]


def test_questions_that_wait_are_so_many(finder: Finder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "WAITING", 3)

    async def ask() -> list[int]:
        app = make_app(finder, Pictures(None), None, ["localhost"])
        return [status for status, _ in await asyncio.gather(*(asked(app, "/search?q=red") for _ in range(5)))]

    assert asyncio.run(ask()) == [200, 200, 200, 503, 503]


# ------------------------------------------------------------------------------------------------ photographs by keys


def test_pictures_that_cannot_be_shown(scenes: Scenes, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "exif.jpg").write_bytes(saved(picture(), "JPEG", exif=MALFORMED_EXIF))
    (folder / "scans.jpg").write_bytes(many_scans(saved(picture(), "JPEG", progressive=True), 1500))
    (folder / "ring.jpg").symlink_to("ring.jpg")
    pictures = Pictures(folder)
    for key in (300 * "x", "a/" * 3000, "nothing\0here.jpg", "ring.jpg"):
        assert pictures.path(key) is None
        assert pictures.thumbnail(key, 100) is None
    assert pictures.thumbnail("scans.jpg", 100) is None
    small = pictures.thumbnail("exif.jpg", 20)
    assert small is not None
    # Kept until the file changes.
    assert pictures.thumbnail("exif.jpg", 20) is small
    (folder / "exif.jpg").write_bytes(saved(picture(), "JPEG"))
    assert pictures.thumbnail("exif.jpg", 20) != small


def test_regions_are_named_with_their_attributes(scenes: Scenes) -> None:
    store = RegionStore(scenes.folder / "regions")
    record = store.read(0)
    names = [store.class_name(number) for number in record.classes.tolist()]
    assert {region["attribute"] for region in serving._regions(record, names, store)["regions"]} == {""}
    store.attributes = ["small", "large"]  # type: ignore[attr-defined, unused-ignore]
    numbers = np.array([65535, *[1] * (len(names) - 1)], np.uint16)
    told = record._replace(attributes=numbers, attribute_confidences=np.ones(len(names), np.float32))
    found = serving._regions(told, names, store)["regions"]
    assert [region["attribute"] for region in found] == ["", *["large"] * (len(names) - 1)]
    assert [region["class"] for region in found] == names


def test_a_picture_without_regions_is_a_sentence(scenes: Scenes) -> None:
    store = RegionStore(scenes.folder / "regions")
    arrays = {name: value[:0] for name, value in store.read(0)._asdict().items() if isinstance(value, np.ndarray)}
    with pytest.raises(UsageError, match="no region was found in the picture"):
        LooseItems([store.read(0)._replace(**arrays)], [[5]], PairStore(scenes.folder / "pairs").tokenizer(), "int8")


def test_a_picture_has_the_regions_that_extract_stored(tmp_path: Path) -> None:
    """Transparent and deep pictures, by all three ways."""
    scene = write_scenes(tmp_path / "scenes", images=2)
    with Image.open(scene.folder / "images/scene-00001.jpg") as image:
        rgba = image.convert("RGBA")
        deep = np.asarray(image.convert("L")).astype(np.uint16) * 256 + 77
    rgba.putalpha(
        Image.fromarray(np.linspace(0, 255, rgba.width * rgba.height).reshape(rgba.size[::-1]).astype(np.uint8))
    )
    images = tmp_path / "images"
    images.mkdir()
    rgba.save(images / "clear.png")
    Image.fromarray(deep).save(images / "deep.png")
    extract(images, tmp_path / "regions", SceneExtractor(), "float32")
    store, decoder = RegionStore(tmp_path / "regions"), Decoder()
    for number in range(2):
        data = (images / store.key(number)).read_bytes()
        for limits in (LOCAL, SENT):
            np.testing.assert_array_equal(
                SceneExtractor()(decoder.picture(data, limits)).features, store.read(number).features
            )
    decoder.close()
