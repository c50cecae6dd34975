"""The page as a person uses it, in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

from imagebert.data.pairs import PairStore
from imagebert.data.regions import RegionStore
from imagebert.feed.packer import Limits
from imagebert.model_folder import open_model
from imagebert.retrieval.search import Finder
from imagebert.retrieval.serve import UPLOAD_BYTES
from tests.browser.browser import find_browser
from tests.retrieval.scenes import Scenes, write_scenes

pytestmark = pytest.mark.slow  # where there is no browser, one is installed

QUERY = "a red square and a yellow circle"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return write_scenes(tmp_path_factory.mktemp("scenes"), images=12)


@pytest.fixture(scope="module")
def server(scenes: Scenes) -> Iterator[str]:
    command = [sys.executable, "-m", "imagebert", "serve", *scenes.serve, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found, "the server said no address"
        yield found[0]
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def finder(scenes: Scenes) -> Finder:
    """What the page must say."""
    store, pairs = RegionStore(scenes.folder / "regions"), PairStore(scenes.folder / "pairs")
    return Finder(
        open_model(scenes.folder / "model"), store, Limits(max_regions=100, max_words=41, whole_image=True), pairs
    )


@pytest.fixture
def page(server: str) -> Iterator[Page]:
    """On a phone's screen; nothing may go wrong in the console."""
    complaints: list[str] = []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = started.new_page(viewport={"width": 390, "height": 844})
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(server)
        expect(page.locator("#upload")).to_be_visible()  # the server has said what it is: the page is ready
        yield page
        started.close()
    # A refused question is an answer of status 400, which a browser writes down as an error.
    assert [c for c in complaints if "Failed to load resource" not in c] == []


def search(page: Page, text: str) -> None:
    page.get_by_label("words to search for").fill(text)
    page.get_by_role("button", name="Search").click()


def test_words_find_pictures_and_show_where_they_look(page: Page, finder: Finder) -> None:
    search(page, QUERY)
    hits = finder.images(finder.query(QUERY), top=12)
    cards = page.locator(".hit")
    expect(cards).to_have_count(12)
    shown = [re.match(r"(.+) %\s(.+)", text) for text in cards.all_inner_texts()]
    assert [match and match[2] for match in shown] == [hit.name for hit in hits]
    for match, hit in zip(shown, hits, strict=True):
        assert match
        assert float(match[1]) == pytest.approx(100 * hit.probability, abs=0.51)
    for number in range(2):
        picture = cards.nth(number).locator("img")
        picture.scroll_into_view_if_needed()
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("picture => picture.naturalWidth") > 100

    cards.nth(1).click()
    explanation = finder.explain(hits[1].number, finder.query(QUERY))
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(dialog.locator("rect")).to_have_count(len(explanation.record.boxes))
    assert dialog.locator("#words button").all_inner_texts() == explanation.words
    legend = dialog.locator("#legend li").all_inner_texts()
    for line, name, words in zip(legend, explanation.classes, explanation.answers(), strict=True):
        assert line.startswith(name)
        assert ("← " + ", ".join(words) in line) == bool(words)
    # A word fills the region it looks at most, and that lies where it is in the picture.
    dialog.get_by_role("button", name="red", exact=True).click()
    fills = [float(fill) for fill in dialog.locator("rect").evaluate_all("r => r.map(x => x.style.fillOpacity)")]
    weights = explanation.attention[explanation.words.index("red")].copy()
    weights[0] = 0  # the whole image
    assert max(range(len(fills)), key=fills.__getitem__) == weights.argmax()
    assert fills[0] == 0
    record = explanation.record
    assert_lies_at(dialog, record.boxes[1] / [record.width, record.height, record.width, record.height])
    dialog.get_by_role("button", name="close").click()
    expect(dialog).to_be_hidden()


def assert_lies_at(dialog: Locator, sides: np.ndarray) -> None:
    """The second box drawn, after the whole image, in shares of the picture."""
    box = dialog.locator("rect").nth(1).bounding_box()
    stage = dialog.locator("#photograph").bounding_box()
    assert box
    assert stage
    for side, (start, size) in enumerate([("x", "width"), ("y", "height")]):
        assert (box[start] - stage[start]) / stage[size] == pytest.approx(sides[side], abs=0.02)
        assert box[size] / stage[size] == pytest.approx(sides[side + 2] - sides[side], abs=0.03)


def test_boxes_lie_where_they_belong_without_the_picture(page: Page, finder: Finder) -> None:
    page.route("**/large", lambda route: route.abort())
    search(page, QUERY)
    page.locator(".hit").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    record = finder.store.read(finder.images(finder.query(QUERY), top=1)[0].number)
    sides = record.boxes[1] / [record.width, record.height, record.width, record.height]
    assert_lies_at(dialog, sides)
    page.locator("#photograph").evaluate("picture => picture.removeAttribute('src')")  # a server that has none
    assert_lies_at(dialog, sides)


def test_a_picture_finds_captions(page: Page, finder: Finder, scenes: Scenes) -> None:
    key = finder.store.key(7)
    page.locator("#picture").set_input_files(scenes.folder / "images" / key)
    expect(page.locator(".answer li")).to_have_count(12)
    expected = [hit.name for hit in finder.texts(finder.store.read(7), top=12)]
    for line, text in zip(page.locator(".answer li").all_inner_texts(), expected, strict=True):
        assert line.startswith(text)
    expect(page.locator(".answer rect")).to_have_count(int(finder.store.region_counts[7]))


def test_what_cannot_be_answered_is_said(page: Page, tmp_path: Path) -> None:
    message = page.locator("#message")
    search(page, "   ")
    expect(message).to_contain_text("the query is empty")
    search(page, "两只狗")
    expect(message).to_contain_text("knows no word of")
    search(page, "a red zebra")
    expect(message).to_contain_text("The model does not know: zebra.")
    expect(page.locator(".hit")).to_have_count(12)
    search(page, "<img src=x onerror=alert(1)> red")
    expect(message).to_contain_text("“<img src=x onerror=alert(1)> red”")
    bomb, text, large = tmp_path / "bomb.png", tmp_path / "text.jpg", tmp_path / "large.jpg"
    Image.new("1", (30_000, 3000)).save(bomb)
    text.write_text("no picture")
    large.write_bytes(bytes(UPLOAD_BYTES + 1))
    for file, said in (
        (bomb, "more pixels than 4,000,000"),
        (text, "cannot read the picture, it is none: send a JPEG, PNG or WebP"),
        (large, "larger than 10 MB"),
    ):
        page.locator("#picture").set_input_files(file)
        expect(message).to_contain_text(said)
    search(page, QUERY)  # nothing is lost
    expect(page.locator(".hit")).to_have_count(12)


def test_fits_a_phone(page: Page) -> None:
    search(page, QUERY)
    expect(page.locator(".hit")).to_have_count(12)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".hit").first.click()
    dialog = page.get_by_role("dialog").bounding_box()
    assert dialog
    assert dialog["width"] <= 390
    for button in page.locator("button, .button").all():
        size = button.bounding_box()
        assert size is None or size["height"] >= 24


def test_an_example_is_asked_by_a_click(page: Page) -> None:
    link = page.locator("#examples a").first
    text = link.inner_text()
    link.click()
    expect(page.locator("#message")).to_contain_text(f"The best images for “{text}”.")


# ------------------------------------------------------------------------------------------- what no page would ask


def ask(url: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def test_what_comes_from_elsewhere(server: str, scenes: Scenes) -> None:
    status, _, headers = ask(server)
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert ask(server + "/search?q=red", Host="evil.example")[0] == 400  # a name that was bent to this machine
    assert ask(server + "/search?q=red", **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    for path in ("/..%2f..%2fetc%2fpasswd", "/app.js%00", "/serve.py", "/picture/0/huge", "/picture/x/small"):
        assert ask(server + path)[0] == 404
    store = RegionStore(scenes.folder / "regions").content[:16]
    for path in (f"/picture/{store}/99/small", "/regions/99?q=red", "/search?q=" + "a" * 600):
        status, body, _ = ask(server + path)
        assert status == 400
        assert json.loads(body)["error"]
    status, body, _ = ask(server + "/captions", bytes(UPLOAD_BYTES + 1))
    assert status == 413
    assert "larger than 10 MB" in json.loads(body)["error"]
    gif = scenes.folder / "x.gif"
    Image.new("L", (30, 30)).save(gif)
    assert ask(server + "/captions", gif.read_bytes())[0] == 400


def test_keys_that_point_elsewhere(scenes: Scenes) -> None:
    from imagebert.retrieval.pictures import Pictures

    pictures = Pictures(scenes.folder / "images")
    assert pictures.path("scene-00000.jpg")
    assert pictures.path("../vocab.txt") is None
    assert pictures.path("/etc/passwd") is None
    (scenes.folder / "images" / "link.jpg").symlink_to("/etc/passwd")
    assert pictures.path("link.jpg") is None
    assert pictures.thumbnail("none.jpg", 100) is None
