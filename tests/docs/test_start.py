"""docs/start.md, followed to the letter: its files are written, its commands run, on photographs that are made here."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/start.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r'^```(\w*)(?: title="([^"\n]+)")?\n(.*?)^```', PAGE, re.M | re.S)
FILES = {title: text for _, title, text in BLOCKS if title and title != "captions.csv"}
COMMANDS = [line for language, title, text in BLOCKS if not title for line in text.splitlines()]

COLORS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (50, 70, 200), "yellow": (220, 200, 40)}
GROUNDS = {"sand": (215, 200, 160), "grass": (120, 150, 90)}


def photograph(path: Path, color: str, shape: str, ground: str) -> None:
    image = Image.new("RGB", (320, 240), GROUNDS[ground])
    draw = ImageDraw.Draw(image)
    box = (90, 50, 230, 190)
    if shape == "circle":
        draw.ellipse(box, fill=COLORS[color])
    elif shape == "square":
        draw.rectangle(box, fill=COLORS[color])
    else:
        draw.polygon([(160, 50), (90, 190), (230, 190)], fill=COLORS[color])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=90)


def write_photographs(folder: Path) -> None:
    rows = []
    for number, (color, shape, ground) in enumerate(itertools.product(COLORS, ["circle", "square", "wedge"], GROUNDS)):
        name = f"{ground}/IMG_{number:04d}.jpg"
        photograph(folder / "photos" / name, color, shape, ground)
        split = "test" if number % 5 == 0 else "train"
        rows += [[name, f"a {color} {shape} on {ground}", split], [name, f"{ground} behind a {color} {shape}", split]]
    with open(folder / "captions.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["image", "caption", "split"], *rows])


def environment(folder: Path) -> dict[str, str]:
    """`imagebert` and `python` are this checkout's, as if it were installed; what a line sets itself holds too."""
    programs = {"python": f'exec "{sys.executable}" "$@"'}
    paths = f'PYTHONPATH="$PYTHONPATH:{ROOT}:{ROOT / "kernels"}"'
    programs["imagebert"] = f'{paths} exec "{sys.executable}" -P -m imagebert "$@"'
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder that the page leaves behind when all is done but the last command, which serves; what each said."""
    top = tmp_path_factory.mktemp("start")
    folder, said = top / "mine", {}
    write_photographs(folder)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    variables = environment(top / "bin")
    for command in COMMANDS[:-1]:
        done = subprocess.run(command, shell=True, cwd=folder, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said[command] = done.stdout + done.stderr
    return folder, said


def test_the_page_ends_with_the_server() -> None:
    assert "imagebert serve" in COMMANDS[-1]
    assert sum("imagebert " in command for command in COMMANDS) >= 6


def test_all_photographs_and_captions_are_stored(followed: tuple[Path, dict[str, str]]) -> None:
    said = " ".join(followed[1].values())
    assert "24 pictures: 24 stored in data/regions, 0 refused" in said
    assert "48 captions: 48 stored in data/pairs, 0 refused" in said


def test_something_is_learnt(followed: tuple[Path, dict[str, str]]) -> None:
    lines = (followed[0] / "runs/mine/log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss/binary"] for line in lines]
    assert min(losses[-5:]) < 0.5  # 0.56 by guessing


def test_pictures_that_were_kept_are_evaluated(followed: tuple[Path, dict[str, str]]) -> None:
    [folder] = (followed[0] / "runs/mine/evaluation").iterdir()
    figures = json.loads((folder / "recall.json").read_text())
    assert (figures["images"], figures["captions"]) == (5, 10)
    assert (folder / "failures.html").is_file()


def test_a_search_draws_its_pictures(followed: tuple[Path, dict[str, str]]) -> None:
    with Image.open(followed[0] / "search.jpg") as sheet:
        assert sheet.format == "JPEG"
    assert "red" not in " ".join(re.findall(r"unknown.*", followed[1][COMMANDS[-2]]))


def test_the_page_in_the_browser_answers(followed: tuple[Path, dict[str, str]]) -> None:
    folder, _ = followed
    variables = {**os.environ, "PATH": f"{folder.parent / 'bin'}:{os.environ['PATH']}"}
    server = subprocess.Popen(
        ["sh", "-c", f"exec env {COMMANDS[-1]}"], cwd=folder, env=variables, stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
        assert found, "no address was printed"
        with urllib.request.urlopen(found[0], timeout=30) as answer:
            assert answer.status == 200
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)
