"""Trains what tells photographs from drawings (imagebert/lait/natural.py), and says how well it does on others.

    python -m benchmarks.lait_natural --photographs FLICKR8K [--out natural.json] [--json FILE]

FLICKR8K holds images/ and train.txt, the names of those that may be trained on; no others are read. What is no
photograph is rendered (not_natural.py). Both are resized, sharpened, softened and compressed alike, so that neither is
told by its size or its JPEG. Some of both are grey, dark, blurred, framed, ...

Held out are a quarter of the photographs with as many fresh drawings of each kind; and, one after another, whole kinds
of drawings: those are judged by weights that were trained without any of that kind. Needs scikit-learn and matplotlib.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

from benchmarks.not_natural import KINDS, WORDS, load_font, smooth
from benchmarks.report import Line, publish
from imagebert.decoder import decode
from imagebert.demo import scenes
from imagebert.files import read_text, write_sealed
from imagebert.lait.natural import FEATURES, WEIGHTS, features, probabilities, terms

Floats = NDArray[np.float64]
Random = np.random.Generator

STRONGEST = 4.0  # deviations from the mean that a feature counts for
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
_PIXELS = 25_000_000


# --------------------------------------------------------------------------------------------------------- photographs


def _grey(image: Image.Image, _: Random) -> Image.Image:
    return image.convert("L").convert("RGB")


def _saturated(image: Image.Image, rng: Random) -> Image.Image:
    return ImageEnhance.Contrast(ImageEnhance.Color(image).enhance(rng.uniform(1.8, 4))).enhance(rng.uniform(1, 1.6))


def _blurred(image: Image.Image, rng: Random) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(1, 4)))


def _dark(image: Image.Image, rng: Random) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(rng.uniform(0.08, 0.3))


def _framed(image: Image.Image, rng: Random) -> Image.Image:
    color = (255, 255, 255) if rng.random() < 0.5 else tuple(int(value) for value in rng.integers(0, 256, 3))
    return ImageOps.expand(image, int(rng.integers(6, 30)), fill=color)


def _with_caption(image: Image.Image, rng: Random) -> Image.Image:
    """A bar above or below, with words."""
    bar = int(image.height * rng.uniform(0.1, 0.25))
    dark = rng.random() < 0.5
    made = Image.new("RGB", (image.width, image.height + bar), (0, 0, 0) if dark else (255, 255, 255))
    above = rng.random() < 0.5
    made.paste(image, (0, bar if above else 0))
    text = " ".join(WORDS[int(rng.integers(len(WORDS)))] for _ in range(4))
    at = made.width / 2, bar / 2 if above else image.height + bar / 2
    fill = (255, 255, 255) if dark else (0, 0, 0)
    ImageDraw.Draw(made).text(at, text, fill=fill, font=load_font("DejaVuSans-Bold", max(9, bar // 3)), anchor="mm")
    return made


def _compressed(image: Image.Image, rng: Random) -> Image.Image:
    return _as_jpeg(image, int(rng.integers(5, 20)))


def _product(image: Image.Image, rng: Random) -> Image.Image:
    """A thing on white, with a soft shadow: a piece of a photograph in an irregular outline."""
    width, height = image.size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    distance = np.hypot(x / width - 0.5, y / height - 0.5) + 0.25 * (smooth(rng, height, width, 40) - 0.5)
    mask = Image.fromarray(((distance < rng.uniform(0.2, 0.42)) * 255).astype(np.uint8))
    mask = mask.filter(ImageFilter.GaussianBlur(0.7))
    made = Image.new("RGB", image.size, (255, 255, 255))
    shadow = mask.filter(ImageFilter.GaussianBlur(8)).point(lambda value: value * 0.35)
    made.paste((90, 90, 90), (3, 8), shadow)
    made.paste(image, mask=mask)
    return made


VARIANTS: dict[str, Callable[[Image.Image, Random], Image.Image]] = {
    "grey": _grey,
    "saturated": _saturated,
    "blurred": _blurred,
    "dark": _dark,
    "framed": _framed,
    "with a caption": _with_caption,
    "heavily compressed": _compressed,
    "a product on white": _product,
}

# What is done to drawings, too: else a dark picture would be a photograph.
BOTH = ("grey", "saturated", "blurred", "dark", "framed", "heavily compressed")


def _as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return decode(buffer.getvalue(), _PIXELS)


def dressed(image: Image.Image, rng: Random) -> NDArray[np.uint8]:
    """As a picture comes from the web: of some size, sharpened or soft, compressed more or less."""
    side = rng.uniform(110, 420)
    ratio = min(1.5, side / max(image.size))
    size = max(8, round(image.width * ratio)), max(8, round(image.height * ratio * rng.uniform(0.75, 1.3)))
    ways = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    image = image.resize(size, ways[int(rng.integers(3))])
    treated = rng.random()
    if treated < 0.3:
        image = image.filter(ImageFilter.UnsharpMask(rng.uniform(0.5, 2), int(rng.integers(40, 160))))
    elif treated < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1)))
    return np.asarray(image if rng.random() < 0.15 else _as_jpeg(image, int(rng.integers(35, 97))))


# ------------------------------------------------------------------------------------------------------------- samples


class Sample(NamedTuple):
    """Pictures of one kind, measured."""

    kind: str
    natural: bool
    measured: Floats  # [N, features]


def measure(pictures: Iterator[NDArray[np.uint8]]) -> Floats:
    return np.stack([features(pixels) for pixels in pictures])


def read_photographs(folder: Path, most: int, rng: Random) -> list[Image.Image]:
    names = read_text(folder / "train.txt").split()
    chosen = rng.permutation(len(names))[:most]
    return [decode((folder / "images" / names[index]).read_bytes(), _PIXELS, web=True) for index in chosen]


def photograph_samples(photographs: Sequence[Image.Image], seed: int) -> Iterator[Sample]:
    """Half of them as they are, the others in each variant."""
    half = len(photographs) // 2
    rng = np.random.default_rng([seed, 0])
    yield Sample("photograph", True, measure(dressed(image, rng) for image in photographs[:half]))
    for number, (name, change) in enumerate(VARIANTS.items()):
        own = photographs[half + number :: len(VARIANTS)]
        yield Sample(name, True, measure(dressed(change(image, rng), rng) for image in own))


def drawn_samples(photographs: Sequence[Image.Image], each: int, seed: int) -> Iterator[Sample]:
    """Every third of each kind is changed in one of the ways that photographs are changed, too."""
    for number, (name, draw) in enumerate(KINDS.items()):
        rng = np.random.default_rng([seed, 1, number])
        pictures = (_changed(draw(rng, photographs), turn, rng) for turn in range(each))
        yield Sample(name, False, measure(dressed(image, rng) for image in pictures))


def _changed(image: Image.Image, turn: int, rng: Random) -> Image.Image:
    return image if turn % 3 else VARIANTS[BOTH[turn // 3 % len(BOTH)]](image, rng)


# ------------------------------------------------------------------------------------------------------------ training


def fit(samples: Sequence[Sample], strength: float) -> dict[str, Any]:
    """Weights as natural.json has them. Photographs and drawings count the same, and so does each kind of drawing."""
    measured = np.concatenate([sample.measured for sample in samples])
    natural = np.concatenate([np.full(len(sample.measured), sample.natural) for sample in samples])
    mean = measured.mean(axis=0)
    deviation = np.maximum(measured.std(axis=0), 1e-3)
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=3000, tol=1e-6)
    model.fit(terms(measured, mean, deviation, STRONGEST), natural)
    return {
        "features": FEATURES,
        "mean": _rounded(mean),
        "deviation": _rounded(deviation),
        "weights": _rounded(model.coef_[0]),
        "bias": round(float(model.intercept_[0]), 5),
        "most": STRONGEST,
    }


def _rounded(values: Floats) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def judge(content: dict[str, Any], sample: Sample) -> Floats:
    return probabilities(content, sample.measured)


def shares(judged: Sequence[tuple[Sample, Floats]]) -> list[dict[str, float]]:
    """At each threshold: of photographs the share that is kept; of drawings that which is dropped; and of what is kept
    the share of photographs, were there as many of both."""
    found = []
    for threshold in THRESHOLDS:
        recall = float(np.concatenate([p >= threshold for s, p in judged if s.natural]).mean())
        passed = float(np.mean([(p >= threshold).mean() for s, p in judged if not s.natural]))
        found.append(
            {"threshold": threshold, "recall": recall, "dropped": 1 - passed, "precision": recall / (recall + passed)}
        )
    return found


def without_each_kind(
    samples: Sequence[Sample], held: Sequence[Sample], strength: float
) -> list[tuple[Sample, Floats]]:
    """Each held-out sample of a kind of drawing, judged by weights that were trained without that kind."""
    judged = []
    for sample in held:
        if not sample.natural:
            others = fit([other for other in samples if other.kind != sample.kind], strength)
            judged.append((sample, judge(others, sample)))
    return judged


def demo_scenes(content: dict[str, Any], count: int) -> Floats:
    """Of the demo's own rendered scenes, which are no photographs."""
    rng = np.random.default_rng(0)
    mixture = scenes.Mixture(things=(2, 4), captions=1)
    drawn = (scenes.render(scenes.make_scene(rng, mixture), rng) for _ in range(count))
    pictures = (np.asarray(_as_jpeg(image, 88)) for image in drawn)
    return judge(content, Sample("demo", False, measure(pictures)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, metavar="FLICKR8K")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the weights go (the package's own)")
    parser.add_argument("--count", type=int, default=4000, help="photographs (%(default)s)")
    parser.add_argument("--each", type=int, default=120, help="drawings of each kind to train on (%(default)s)")
    parser.add_argument("--strength", type=float, default=0.1, help="C of the regression (%(default)s)")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    begun = time.process_time()

    photographs = read_photographs(parsed.photographs, parsed.count, np.random.default_rng(2))
    others, photographs = photographs[: parsed.count // 4], photographs[parsed.count // 4 :]
    seen = [*photograph_samples(photographs, 0), *drawn_samples(photographs, parsed.each, 0)]
    held = [*photograph_samples(others, 2), *drawn_samples(others, max(1, parsed.each // 3), 2)]

    content = fit(seen, parsed.strength)
    judged = [(sample, judge(content, sample)) for sample in held]
    unseen = without_each_kind(seen, held, parsed.strength)
    kept = [(sample, found) for sample, found in judged if sample.natural]
    scenes_found = demo_scenes(content, 200)
    seconds = time.process_time() - begun
    digest = write_sealed(parsed.out, content)

    figures = {
        "trained_on": {"photographs": len(photographs), "drawings": parsed.each * len(KINDS), "kinds": len(KINDS)},
        "held_out_pictures": shares(judged),
        "held_out_kinds": shares(kept + unseen),
        "photographs_kept_at_0.5": {s.kind: float((p >= 0.5).mean()) for s, p in judged if s.natural},
        "drawings_dropped_at_0.5": {s.kind: float((p < 0.5).mean()) for s, p in judged if not s.natural},
        "drawings_of_unseen_kinds_dropped_at_0.5": {s.kind: float((p < 0.5).mean()) for s, p in unseen},
        "demo_scenes": {name: float(np.quantile(scenes_found, q)) for name, q in (("median", 0.5), ("most", 1.0))},
        "milliseconds_a_picture": _milliseconds(others[:100]),
        "bytes": parsed.out.stat().st_size,
        "processor_seconds": seconds,
        "digest": digest,
    }
    _show(figures)
    middle = THRESHOLDS.index(0.5)
    lines = [
        Line("photographs kept", figures["held_out_pictures"][middle]["recall"], 0.97),
        Line("drawings dropped, held-out pictures", figures["held_out_pictures"][middle]["dropped"], 0.97),
        Line("drawings dropped, held-out kinds", figures["held_out_kinds"][middle]["dropped"], 0.9),
        Line("milliseconds a picture", figures["milliseconds_a_picture"], 2, at_most=True),
        Line("processor seconds of training", seconds, 300, at_most=True),
    ]
    publish(figures, lines, parsed.json)


def _milliseconds(photographs: Sequence[Image.Image]) -> float:
    """The median of a picture of 256 pixels."""
    found = []
    for image in photographs:
        pixels = np.asarray(image.resize((256, 256)))
        begun = time.process_time()
        features(pixels)
        found.append(time.process_time() - begun)
    return float(np.median(found)) * 1e3


def _show(figures: dict[str, Any]) -> None:
    console = Console()
    for title in ("held_out_pictures", "held_out_kinds"):
        table = Table("threshold", "photographs kept", "drawings dropped", "precision", title=title.replace("_", " "))
        for row in figures[title]:
            table.add_row(f"{row['threshold']:g}", *(f"{row[name]:.4f}" for name in ("recall", "dropped", "precision")))
        console.print(table)
    table = Table("kind", "right at 0.5", "never trained on it")
    unseen = figures["drawings_of_unseen_kinds_dropped_at_0.5"]
    for kind, share in {**figures["photographs_kept_at_0.5"], **figures["drawings_dropped_at_0.5"]}.items():
        table.add_row(kind, f"{share:.3f}", f"{unseen[kind]:.3f}" if kind in unseen else "")
    console.print(table)
    console.print(figures["demo_scenes"])


if __name__ == "__main__":
    main()
