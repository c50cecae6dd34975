"""The page of regions in a browser: a line that is pointed at shows its box alone, from the file alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from imagebert.regions.preview import write_preview
from tests.browser.browser import find_browser
from tests.regions.test_preview import HOSTILE, make

pytestmark = pytest.mark.slow  # where there is no browser, one is installed

SEEN = "[...document.querySelectorAll('rect')].filter(r => getComputedStyle(r).display != 'none').length"


@pytest.mark.parametrize("width", [390, 1280])
def test_a_line_shows_its_box(width: int, tmp_path: Path) -> None:
    store = make(tmp_path, ["<img src=x onerror=alert(1)>.png", "b.png"], HOSTILE)
    file = write_preview(store, tmp_path / "pictures", tmp_path / "page.html", 2).page
    told: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page: Page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("request", lambda request: told.append(request.url) if not request.url.startswith("data:") else None)
        page.on("console", lambda message: told.append(message.text))
        page.on("dialog", lambda dialog: told.append(dialog.message))
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(SEEN) == 4  # the whole image has no box
        first = page.locator("figure").first
        image, box = first.locator("img").bounding_box(), first.locator("rect").nth(1).bounding_box()
        assert image
        assert box
        # 10, 5, 30 and 50.25 of 120 x 60, as far as a line's width.
        expected = [10 / 120, 5 / 60, 30 / 120, 50.25 / 60]
        found = [
            (box["x"] - image["x"]) / image["width"],
            (box["y"] - image["y"]) / image["height"],
            box["width"] / image["width"],
            box["height"] / image["height"],
        ]
        assert found == pytest.approx(expected, abs=0.03)
        first.locator("li").nth(2).hover()
        assert page.evaluate(SEEN) == 3
        assert [rect.is_visible() for rect in first.locator("rect").all()] == [False, False, True]
        page.locator("h1").hover()
        assert page.evaluate(SEEN) == 4
        page.locator("#all").click()
        assert page.evaluate(SEEN) == 0
        first.locator("li").first.focus()
        assert [rect.is_visible() for rect in first.locator("rect").all()] == [True, False, False]
        browser.close()
    assert told == [file.as_uri()]
