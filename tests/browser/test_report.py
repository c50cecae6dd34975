"""The page of two runs as a person sees it: on a phone and on a desk, by day and by night, from the file alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import sync_playwright

from imagebert import api
from tests.browser.browser import find_browser
from tests.report.test_report import evaluate, make_run

pytestmark = pytest.mark.slow  # where there is no browser, one is installed


def brightness(color: str) -> float:
    red, green, blue = (int(part) for part in re.findall(r"\d+", color)[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / f"a-run-of-a-long-name-{n}", f"seed={n}") for n in (1, 2)]
    for run in runs:
        evaluate(run, "test-1")
    return api.report(*runs, out=folder / "page.html")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(file: Path, width: int, scheme: Literal["light", "dark"]) -> None:
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        assert asked == [file.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        style = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
        ink, paper = map(brightness, style)
        assert abs(ink - paper) > 0.7
        assert (paper < 0.5) is (scheme == "dark")
        plots = [plot.bounding_box() for plot in page.locator(".plot svg").all()]
        assert len(plots) == 8
        for box in plots:
            assert box
            assert 0 <= box["x"] < box["x"] + box["width"] <= width
            assert box["width"] >= 280  # at which its 11 px are 8.6
        beside = len({round(box["x"]) for box in plots if box})
        assert beside == (1 if width == 390 else 3)
        colors = page.evaluate("[...document.querySelectorAll('polyline')].map(p => getComputedStyle(p).stroke)")
        assert all(abs(brightness(color) - paper) > 0.25 for color in colors)
        assert len(set(colors)) == 2
        browser.close()
