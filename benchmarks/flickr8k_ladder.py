"""The paper's ablations at a small size on Flickr8k's photographs, one command on one machine.

    python -m benchmarks.flickr8k_ladder --data FLICKR8K --models MODELS --seeds 3 [--ladders flickr8k ...]

FLICKR8K and MODELS are those of benchmarks/flickr8k.py, and so are the regions. The training photographs are dealt into
four parts: weak (half of them, as LAIT: three captions in ten are another photograph's, one word in seven is missing),
clean_a and clean_b (a sixth each, as CC and SBU) and tune (a sixth, that no pre-training sees). Then `imagebert ladder`
runs. A second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

from benchmarks.flickr8k import add_options, extract_regions
from benchmarks.report import publish
from imagebert.data.tokens import SPECIALS

_WRONG, _MISSING = 0.3, 0.15  # captions and words of the weak part
_LEAST = 4  # times that a word of the vocabulary occurs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ladders", nargs="+", default=["flickr8k", "flickr8k_finetuning"])
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides of every run")
    parsed = parser.parse_args()
    out: Path = parsed.out
    extract_regions(parsed.data, parsed.models, out)
    if not (out / "ladder").exists():
        write_parts(parsed.data, out)
        call("pairs", out / "ladder.tsv", out / "ladder", "--vocab", out / "ladder-vocab.txt")
    figures = {}
    for ladder in parsed.ladders:
        result = out / f"{ladder}.json"
        # Both ladders share their pre-trained runs.
        call("ladder", ladder, "--data", out, "--out", out / "ladder-runs", "--seeds", parsed.seeds, "--json", result,
             *parsed.set)  # fmt: skip
        figures[ladder] = json.loads(result.read_text())
        for rung in figures[ladder]["rungs"]:
            for seed in rung["seeds"]:
                del seed["folder"]
        publish({"ladders": figures}, [], parsed.json)


def call(*command: object) -> None:
    subprocess.run([sys.executable, "-m", "imagebert", *map(str, command)], check=True)


def write_parts(data: Path, out: Path) -> None:
    """Captions of all parts as a table, and a vocabulary of the words that occur often enough."""
    captions: dict[str, list[str]] = defaultdict(list)
    for line in (data / "captions.tsv").read_text(encoding="utf-8").splitlines():
        image, _, caption = line.split("\t")
        captions[image].append(caption)
    train = (data / "train.txt").read_text(encoding="utf-8").split()
    chance = random.Random(0)
    chance.shuffle(train)
    sixth = len(train) // 6
    parts = {
        "weak": train[: 3 * sixth],
        "clean_a": train[3 * sixth : 4 * sixth],
        "clean_b": train[4 * sixth : 5 * sixth],
        "tune": train[5 * sixth :],
        "dev": (data / "dev.txt").read_text(encoding="utf-8").split(),
    }
    lines = ["image\tcaption\tsplit"]
    for split, images in parts.items():
        for image in images:
            for caption in captions[image]:
                lines.append(f"{image}\t{weakened(caption, images, captions, chance, split)}\t{split}")
    (out / "ladder.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    counts = Counter(
        word for image in train for caption in captions[image] for word in re.findall(r"\w+|[^\w\s]", caption.lower())
    )
    words = [word for word, count in counts.most_common() if count >= _LEAST]
    (out / "ladder-vocab.txt").write_text("\n".join([*SPECIALS, *words]) + "\n", encoding="utf-8")


def weakened(caption: str, images: list[str], captions: dict[str, list[str]], chance: random.Random, split: str) -> str:
    if split != "weak":
        return caption
    if chance.random() < _WRONG:
        caption = chance.choice(captions[chance.choice(images)])
    return " ".join(word for word in caption.split() if chance.random() > _MISSING) or caption


if __name__ == "__main__":
    main()
