"""Rendered scenes and captions of them: several objects with shape, colour, size, texture and place, as real JPEGs.

Everything is drawn from one random generator, so that a seed gives the same corpus. Captions come from a grammar with
synonyms and leave attributes out, as people do. Weak captions are spoilt the way web text is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 160, 120

SHAPES: dict[str, list[str]] = {
    "circle": ["circle", "disc", "ball"],
    "square": ["square", "box"],
    "triangle": ["triangle", "wedge"],
    "star": ["star"],
    "cross": ["cross", "plus"],
    "ring": ["ring", "hoop"],
    "diamond": ["diamond", "rhombus"],
    "heart": ["heart"],
}
COLORS: dict[str, tuple[tuple[int, int, int], list[str]]] = {
    "red": ((205, 30, 35), ["red", "crimson"]),
    "orange": ((240, 130, 20), ["orange"]),
    "yellow": ((225, 205, 30), ["yellow", "golden"]),
    "green": ((40, 150, 60), ["green"]),
    "cyan": ((40, 190, 200), ["cyan", "turquoise"]),
    "blue": ((35, 70, 200), ["blue", "navy"]),
    "purple": ((125, 45, 165), ["purple", "violet"]),
    "pink": ((240, 110, 175), ["pink", "rosy"]),
}
SIZES = {"small": ["small", "tiny", "little"], "big": ["big", "large", "huge"]}
TEXTURES = {"plain": ["plain", "solid"], "striped": ["striped", "stripy"], "dotted": ["dotted", "spotted"]}
CLUTTER = [
    "free",
    "photo",
    "stock",
    "wallpaper",
    "click",
    "download",
    "best",
    "hd",
    "image",
    "buy",
    "online",
    "clipart",
]


@dataclass(frozen=True)
class Thing:
    """One object of a scene; its box in pixels."""

    shape: str
    color: str
    size: str
    texture: str
    x: int
    y: int
    extent: int

    @property
    def place(self) -> str:
        across = (self.x + self.extent / 2) / WIDTH
        down = (self.y + self.extent / 2) / HEIGHT
        sideways = "left" if across < 0.4 else "right" if across > 0.6 else ""
        upright = "top" if down < 0.4 else "bottom" if down > 0.6 else ""
        return " ".join(filter(None, [upright, sideways])) or "middle"


@dataclass(frozen=True)
class Mixture:
    """What a set is made of: how many things a scene has, and how its captions speak of them."""

    things: tuple[int, int]
    captions: int
    mentioned: tuple[int, int] = (2, 3)
    swapped: float = 0.0  # share of captions that belong to another picture
    wrong_words: float = 0.0  # share of attribute words that are wrong
    clutter: float = 0.0  # share of captions with words of no meaning


def make_scene(rng: np.random.Generator, mixture: Mixture) -> list[Thing]:
    """Things that do not touch each other."""
    wanted = int(rng.integers(mixture.things[0], mixture.things[1] + 1))
    things: list[Thing] = []
    while len(things) < wanted:
        size = str(rng.choice(list(SIZES)))
        extent = int(rng.integers(22, 29) if size == "small" else rng.integers(38, 48))
        x, y = int(rng.integers(2, WIDTH - extent - 2)), int(rng.integers(2, HEIGHT - extent - 2))
        gap = 5
        apart = all(
            x + extent + gap < o.x or o.x + o.extent + gap < x or y + extent + gap < o.y or o.y + o.extent + gap < y
            for o in things
        )
        if apart:
            shape, color, texture = (str(rng.choice(list(kind))) for kind in (SHAPES, COLORS, TEXTURES))
            things.append(Thing(shape, color, size, texture, x, y, extent))
    return things


def render(things: list[Thing], rng: np.random.Generator) -> Image.Image:
    """The scene as a picture: things on a pale sloping background, with noise."""
    base = rng.integers(215, 240, 3).astype(float)
    slope = rng.normal(0, 10, (2, 3))
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    pixels = base + (xs / WIDTH - 0.5)[..., None] * slope[0] + (ys / HEIGHT - 0.5)[..., None] * slope[1]
    for thing in things:
        shape = np.asarray(outline(thing.shape, thing.extent), float)[..., None] / 255
        color = np.array(COLORS[thing.color][0], float) + rng.normal(0, 8, 3)
        rows, columns = np.mgrid[: thing.extent, : thing.extent]
        if thing.texture == "striped":
            dark = (rows + columns) // 4 % 2 == 0
        elif thing.texture == "dotted":
            dark = (rows % 7 < 3) & (columns % 7 < 3)
        else:
            dark = np.zeros(rows.shape, bool)
        surface = color * np.where(dark, 0.55, 1.0)[..., None]
        window = pixels[thing.y : thing.y + thing.extent, thing.x : thing.x + thing.extent]
        window[:] = window * (1 - shape) + surface * shape
    noisy = pixels + rng.normal(0, 3, pixels.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def outline(shape: str, extent: int) -> Image.Image:
    """The shape in white on black, antialiased, filling a square of `extent` pixels."""
    size = 4 * extent
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)

    def polygon(points: list[tuple[float, float]]) -> None:
        draw.polygon([(x * size, y * size) for x, y in points], fill=255)

    if shape == "circle":
        draw.ellipse([0, 0, size, size], fill=255)
    elif shape == "square":
        draw.rectangle([0.06 * size, 0.06 * size, 0.94 * size, 0.94 * size], fill=255)
    elif shape == "triangle":
        polygon([(0.5, 0.02), (1, 0.95), (0, 0.95)])
    elif shape == "star":
        turns = np.pi * np.arange(10) / 5
        radii = np.where(np.arange(10) % 2 == 0, 0.5, 0.21)
        polygon([(0.5 + r * np.sin(t), 0.5 - r * np.cos(t)) for r, t in zip(radii, turns, strict=True)])
    elif shape == "cross":
        draw.rectangle([0.34 * size, 0, 0.66 * size, size], fill=255)
        draw.rectangle([0, 0.34 * size, size, 0.66 * size], fill=255)
    elif shape == "ring":
        draw.ellipse([0, 0, size, size], fill=255)
        draw.ellipse([0.28 * size, 0.28 * size, 0.72 * size, 0.72 * size], fill=0)
    elif shape == "diamond":
        polygon([(0.5, 0), (0.88, 0.5), (0.5, 1), (0.12, 0.5)])
    else:  # heart
        draw.ellipse([0, 0.05 * size, 0.54 * size, 0.55 * size], fill=255)
        draw.ellipse([0.46 * size, 0.05 * size, size, 0.55 * size], fill=255)
        polygon([(0.03, 0.4), (0.97, 0.4), (0.5, 0.98)])
    return image.resize((extent, extent), Image.Resampling.BOX)


def describe(things: list[Thing], rng: np.random.Generator, mixture: Mixture) -> str:
    """One caption: some of the things, some of their attributes."""
    low, high = mixture.mentioned
    count = min(len(things), int(rng.integers(low, high + 1)))
    chosen = [things[i] for i in rng.permutation(len(things))[:count]]
    phrases = [_phrase(thing, rng, mixture.wrong_words) for thing in chosen]
    if count == 2 and rng.random() < 0.5:
        text = f"{phrases[0]} {_relation(chosen[0], chosen[1], rng)} {phrases[1]}"
    elif count == 1:
        text = phrases[0]
    else:
        text = " , ".join(phrases[:-1]) + " and " + phrases[-1]
    if rng.random() < 0.3:
        text = str(rng.choice(["there is", "a picture with", "we see"])) + " " + text
    if rng.random() < mixture.clutter:
        words = rng.choice(CLUTTER, int(rng.integers(1, 4)))
        text = f"{' '.join(words)} {text}" if rng.random() < 0.5 else f"{text} {' '.join(words)}"
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def _phrase(thing: Thing, rng: np.random.Generator, wrong: float) -> str:
    def word(kinds: dict[str, list[str]], value: str) -> str:
        value = str(rng.choice(list(kinds))) if rng.random() < wrong else value
        return str(rng.choice(kinds[value]))

    parts = ["a"]
    if rng.random() < 0.35:
        parts.append(word(SIZES, thing.size))
    if rng.random() < 0.35 and thing.texture != "plain":
        parts.append(word(TEXTURES, thing.texture))
    if rng.random() < 0.9:
        parts.append(word({name: words for name, (_, words) in COLORS.items()}, thing.color))
    parts.append(word(SHAPES, thing.shape))
    if rng.random() < 0.25:
        parts.append(f"at the {thing.place}")
    return " ".join(parts)


def _relation(first: Thing, second: Thing, rng: np.random.Generator) -> str:
    right, down = first.x - second.x, first.y - second.y
    if abs(right) > abs(down):
        return str(rng.choice(["right of", "to the right of"] if right > 0 else ["left of", "to the left of"]))
    return str(rng.choice(["below", "under"] if down > 0 else ["above", "over"]))


def write_set(folder: Path, name: str, images: int, mixture: Mixture, seed: int) -> list[tuple[str, str]]:
    """Renders `images` scenes as folder/name-00000.jpg, ...; returns (file name, caption) for every caption."""
    rng = np.random.default_rng([seed, *name.encode()])
    scenes, keys = [], []
    for number in range(images):
        scene = make_scene(rng, mixture)
        key = f"{name}-{number:05d}.jpg"
        render(scene, rng).save(folder / key, quality=88)
        scenes.append(scene)
        keys.append(key)
    captions = []
    for number, key in enumerate(keys):
        for _ in range(mixture.captions):
            swapped = rng.random() < mixture.swapped
            about = scenes[int(rng.integers(images))] if swapped else scenes[number]
            captions.append((key, describe(about, rng, mixture)))
    return captions
