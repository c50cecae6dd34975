"""Pictures that are no photographs, rendered: what the web has most of, by kind.

Each kind is a function of a random generator, and of photographs where it shows some; a seed gives the same pictures.
Fonts are those that come with matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Random = np.random.Generator
Photographs = Sequence[Image.Image]
Color = tuple[int, int, int]
Kind = Callable[[Random, Photographs], Image.Image]

KINDS: dict[str, Kind] = {}

_TEXT = (
    "about above account across action address after again against age agency air all almost along amount "
    "and answer area article assets author average bank base basic beauty before best better between "
    "board body book box bridge budget building business button camera capital care case cell center "
    "change chapter chart check child choice city class clear click close coffee color common company "
    "contact content control cost country course cover credit current customer data date day deal design "
    "detail device digital direct doctor door download early earth east economy edge edit effect email "
    "energy engine error event every example express face factor family fast field figure file final fire "
    "first flow food force form free friend full future game garden general glass global gold good grand "
    "green group growth guide half hand happy head health heart help high history home hotel hour house "
    "image impact income index info input inside issue item January join journal just kernel key kind "
    "kitchen label lake land language large last law lead learn legal less letter level life light limit "
    "line link list local login look low main make manager map March market master matter mean media "
    "medical memory menu message method middle milk mind minute mobile model money month more morning "
    "motor mountain music name nation nature network never news night north note number ocean offer "
    "office online open order output page paper part past pattern people percent phone place plan plant "
    "play point policy power press price print private problem process product profit program project "
    "public quality quarter question quick rate reader record red region report research result return "
    "review right river road room rule sale sample save school science score sea search season second "
    "section security select series service settings share shop short sign simple size small social "
    "software sound source south space special spring staff standard start state station status step "
    "stock store street strong student study style subject submit summer support surface system table "
    "target task team test text theory ticket time title today tools total tower town trade train travel "
    "tree trend trial type under union unit update user value version video view village visit voice "
    "volume walk wall water weather week weight west white window winter wonder word work world write "
    "year yellow yield young zone "
)
WORDS = _TEXT.split()


def kind(make: Kind) -> Kind:
    KINDS[make.__name__] = make
    return make


# ------------------------------------------------------------------------------------------------------------- helpers


def _int(rng: Random, low: int, high: int) -> int:
    """From low to high, both included."""
    return int(rng.integers(low, high + 1))


def _one(rng: Random, things: Sequence[Any]) -> Any:
    return things[int(rng.integers(len(things)))]


def _words(rng: Random, count: int) -> str:
    return " ".join(_one(rng, WORDS) for _ in range(count))


def _color(rng: Random, low: int = 0, high: int = 255) -> Color:
    return _int(rng, low, high), _int(rng, low, high), _int(rng, low, high)


def _part_of_1(color: Color) -> tuple[float, float, float]:
    """As matplotlib has colours."""
    return color[0] / 255, color[1] / 255, color[2] / 255


def _pale(rng: Random) -> Color:
    return (255, 255, 255) if rng.random() < 0.5 else _color(rng, 215, 255)


def _dark(rng: Random) -> Color:
    return _color(rng, 0, 70)


def _size(rng: Random, low: int = 280, high: int = 560) -> tuple[int, int]:
    return _int(rng, low, high), _int(rng, low, high)


@cache
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / f"fonts/ttf/{name}.ttf"), size)


SANS, SERIF, MONO = ("DejaVuSans", "DejaVuSans-Bold"), ("DejaVuSerif", "STIXGeneral", "cmr10"), ("DejaVuSansMono",)


def _canvas(size: tuple[int, int], color: Color) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", size, color)
    return image, ImageDraw.Draw(image)


def _gradient(rng: Random, size: tuple[int, int]) -> Image.Image:
    """Between two or three colours, along a line or around a point."""
    width, height = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    if rng.random() < 0.5:
        turn = rng.uniform(0, 2 * np.pi)
        along = np.cos(turn) * x / width + np.sin(turn) * y / height
    else:
        along = np.hypot(x / width - rng.random(), y / height - rng.random())
    along = (along - along.min()) / np.ptp(along)
    stops = np.array([_color(rng) for _ in range(_int(rng, 2, 3))], np.float32)
    places = np.linspace(0, 1, len(stops))
    return Image.fromarray(
        np.stack([np.interp(along, places, stops[:, channel]) for channel in range(3)], 2).astype(np.uint8)
    )


def _paragraph(
    draw: ImageDraw.ImageDraw, rng: Random, box: tuple[int, int, int, int], font: ImageFont.FreeTypeFont, fill: Color
) -> None:
    """Lines of words that fill a box."""
    left, top, right, bottom = box
    step = int(font.size * rng.uniform(1.15, 1.6)) + 1
    for y in range(top, bottom - step, step):
        line = _words(rng, max(1, int((right - left) / (font.size * 3.6))))
        while len(line) > 3 and draw.textlength(line, font=font) > right - left:
            line = line[:-2]
        draw.text((left, y), line, fill=fill, font=font)


def _photo(rng: Random, photographs: Photographs, size: tuple[int, int]) -> Image.Image:
    return _one(rng, photographs).resize(size)


# -------------------------------------------------------------------------------------------------------------- charts


def _figure(rng: Random) -> Figure:
    figure = Figure(figsize=(rng.uniform(3, 6.5), rng.uniform(2.5, 5)), dpi=_int(rng, 60, 110))
    figure.set_facecolor(_part_of_1(_pale(rng) if rng.random() < 0.85 else _dark(rng)))
    return figure


def _drawn(figure: Figure) -> Image.Image:
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _labelled(rng: Random, axes: Any) -> None:
    if rng.random() < 0.7:
        axes.set_title(_words(rng, 3))
    if rng.random() < 0.6:
        axes.set_xlabel(_words(rng, 2))
        axes.set_ylabel(_words(rng, 1))
    if rng.random() < 0.5:
        axes.grid(alpha=rng.uniform(0.2, 1))
    if rng.random() < 0.3:
        axes.set_facecolor(_part_of_1(_color(rng, 200, 255)))
    if axes.get_legend_handles_labels()[1] and rng.random() < 0.6:
        axes.legend()


@kind
def line_chart(rng: Random, _: Photographs) -> Image.Image:
    figure = _figure(rng)
    axes = figure.subplots()
    for _line in range(_int(rng, 1, 6)):
        steps = rng.normal(0, 1, _int(rng, 8, 400))
        y = np.cumsum(steps) if rng.random() < 0.6 else steps
        axes.plot(y, lw=rng.uniform(0.5, 3), marker=_one(rng, ["", "", "o", "s", "^"]), label=_words(rng, 1))
        if rng.random() < 0.3:
            axes.fill_between(range(len(y)), y - 1, y + 1, alpha=0.3)
    _labelled(rng, axes)
    return _drawn(figure)


@kind
def bar_chart(rng: Random, _: Photographs) -> Image.Image:
    figure = _figure(rng)
    axes = figure.subplots()
    count = _int(rng, 3, 20)
    bottom = np.zeros(count)
    for _layer in range(_int(rng, 1, 3)):
        heights = rng.gamma(3, 1, count)
        color = _part_of_1(_color(rng))
        if rng.random() < 0.5:
            axes.bar(range(count), heights, bottom=bottom, color=color, label=_words(rng, 1))
        else:
            axes.barh(range(count), heights, left=bottom, color=color, label=_words(rng, 1))
        bottom += heights
    _labelled(rng, axes)
    return _drawn(figure)


@kind
def scatter_plot(rng: Random, _: Photographs) -> Image.Image:
    """From a few points to so many that they are noise."""
    figure = _figure(rng)
    axes = figure.subplots()
    for _cloud in range(_int(rng, 1, 4)):
        count = int(10 ** rng.uniform(1.3, 3.7))
        points = rng.normal(0, 1, (count, 2)) @ rng.normal(0, 1, (2, 2)) + rng.normal(0, 2, 2)
        chosen: dict[str, Any] = {"color": _part_of_1(_color(rng))}
        if rng.random() < 0.4:
            chosen = {"c": rng.random(count), "cmap": _one(rng, list(colormaps))}
        x, y = points.T
        axes.scatter(x, y, s=rng.uniform(1, 60), alpha=rng.uniform(0.2, 1), **chosen)
    _labelled(rng, axes)
    return _drawn(figure)


@kind
def heat_map(rng: Random, _: Photographs) -> Image.Image:
    figure = _figure(rng)
    axes = figure.subplots()
    values = rng.normal(0, 1, (_int(rng, 4, 60), _int(rng, 4, 60)))
    if rng.random() < 0.5:
        values = np.cumsum(np.cumsum(values, 0), 1)
    shown = axes.imshow(
        values, cmap=_one(rng, list(colormaps)), aspect="auto", interpolation=_one(rng, ["nearest", "bilinear"])
    )
    if rng.random() < 0.7:
        figure.colorbar(shown)
    _labelled(rng, axes)
    return _drawn(figure)


@kind
def pie_chart(rng: Random, _: Photographs) -> Image.Image:
    figure = _figure(rng)
    axes = figure.subplots()
    shares = rng.gamma(1.5, 1, _int(rng, 2, 9)) + 0.05
    ring = {"width": 0.4} if rng.random() < 0.4 else {}
    colors = [_part_of_1(_color(rng)) for _ in shares]
    axes.pie(
        shares, labels=[_words(rng, 1) for _ in shares], wedgeprops=ring, colors=colors, shadow=bool(rng.random() < 0.3)
    )
    return _drawn(figure)


@kind
def panels(rng: Random, _: Photographs) -> Image.Image:
    """A figure of a paper: several small plots."""
    figure = _figure(rng)
    rows, columns = _int(rng, 1, 3), _int(rng, 2, 3)
    for axes in figure.subplots(rows, columns).ravel():
        if rng.random() < 0.5:
            axes.hist(rng.normal(0, 1, 300), bins=_int(rng, 8, 40), color=_part_of_1(_color(rng)))
        else:
            axes.plot(np.cumsum(rng.normal(0, 1, (60, _int(rng, 1, 4))), axis=0), lw=1)
        axes.tick_params(labelsize=6)
    return _drawn(figure)


@kind
def surface_plot(rng: Random, _: Photographs) -> Image.Image:
    figure = _figure(rng)
    axes: Any = figure.add_subplot(projection="3d")
    x, y = np.meshgrid(np.linspace(-3, 3, 30), np.linspace(-3, 3, 30))
    z = np.sin(x * rng.uniform(0.3, 2)) * np.cos(y * rng.uniform(0.3, 2)) + rng.normal(0, 0.3) * x
    axes.plot_surface(
        x, y, z, cmap=_one(rng, list(colormaps)), lw=0, antialiased=bool(rng.random() < 0.5), rcount=25, ccount=25
    )
    axes.view_init(rng.uniform(15, 60), rng.uniform(0, 360))
    return _drawn(figure)


@kind
def contours(rng: Random, _: Photographs) -> Image.Image:
    figure = _figure(rng)
    axes = figure.subplots()
    values = smooth(rng, 60, 60, rng.uniform(2, 8))
    draw = axes.contourf if rng.random() < 0.6 else axes.contour
    draw(values, levels=_int(rng, 5, 25), cmap=_one(rng, list(colormaps)))
    _labelled(rng, axes)
    return _drawn(figure)


@kind
def chart_with_photographs(rng: Random, photographs: Photographs) -> Image.Image:
    """Points or bars, each with a small picture."""
    image = line_chart(rng, photographs) if rng.random() < 0.5 else bar_chart(rng, photographs)
    for _one_of in range(_int(rng, 2, 5)):
        side = int(min(image.size) * rng.uniform(0.1, 0.22))
        place = _int(rng, 0, image.width - side), _int(rng, 0, image.height - side)
        image.paste(_photo(rng, photographs, (side, side)), place)
    return image


def smooth(rng: Random, height: int, width: int, sigma: float) -> NDArray[np.float32]:
    """Noise without detail finer than sigma, 0 to 1."""
    small = rng.random((max(3, int(height / sigma)), max(3, int(width / sigma)))).astype(np.float32)
    values = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return (values - values.min()) / np.ptp(values)


# ----------------------------------------------------------------------------------------------- tables, diagrams, maps


@kind
def table(rng: Random, _: Photographs) -> Image.Image:
    size = _size(rng)
    image, draw = _canvas(size, _pale(rng))
    font = load_font(_one(rng, [*SANS, *SERIF]), _int(rng, 10, 16))
    step, columns = int(font.size * rng.uniform(1.4, 2.4)), _int(rng, 2, 6)
    head, striped, ruled = _color(rng), rng.random() < 0.5, rng.random() < 0.6
    for row, y in enumerate(range(8, size[1] - step, step)):
        if row == 0:
            draw.rectangle([6, y, size[0] - 6, y + step], fill=head)
        elif striped and row % 2:
            draw.rectangle([6, y, size[0] - 6, y + step], fill=_color(np.random.default_rng(head[0]), 225, 250))
        if ruled:
            draw.line([6, y, size[0] - 6, y], fill=(120, 120, 120))
        for column in range(columns):
            x = 6 + column * (size[0] - 12) // columns
            text = _words(rng, 1) if row == 0 or column == 0 else f"{rng.gamma(1, 500):,.2f}"
            draw.text((x + 4, y + 3), text, fill=(255, 255, 255) if row == 0 else (20, 20, 20), font=font)
            if ruled:
                draw.line([x, 8, x, size[1] - step], fill=(120, 120, 120))
    return image


@kind
def flow_diagram(rng: Random, _: Photographs) -> Image.Image:
    size = _size(rng)
    image, draw = _canvas(size, _pale(rng))
    font, fills = load_font(_one(rng, SANS), _int(rng, 10, 15)), [_color(rng, 150, 255) for _ in range(3)]
    columns, rows = _int(rng, 2, 4), _int(rng, 2, 5)
    centres = [
        ((column + 0.5) * size[0] / columns, (row + 0.5) * size[1] / rows)
        for row in range(rows)
        for column in range(columns)
        if rng.random() < 0.85
    ]
    for (x, y), (right, below) in pairwise(centres):
        draw.line(
            [x, y, right, y, right, below] if rng.random() < 0.6 else [x, y, right, below], fill=(40, 40, 40), width=2
        )
    for x, y in centres:
        across, down = size[0] / columns * 0.36, size[1] / rows * 0.3
        box = [x - across, y - down, x + across, y + down]
        shape, fill = _int(rng, 0, 2), _one(rng, fills)
        if shape == 0:
            draw.rectangle(box, fill=fill, outline=(30, 30, 30), width=_int(rng, 1, 2))
        elif shape == 1:
            draw.rounded_rectangle(box, 10, fill=fill, outline=(30, 30, 30))
        else:
            draw.ellipse(box, fill=fill, outline=(30, 30, 30))
        draw.text((x, y), _words(rng, 1), fill=(10, 10, 10), font=font, anchor="mm")
    return image


@kind
def street_map(rng: Random, _: Photographs) -> Image.Image:
    size = _size(rng)
    image, draw = _canvas(size, _color(rng, 225, 245))
    for _area in range(_int(rng, 3, 9)):
        around = rng.uniform(0, 1, 2) * size
        turns = np.sort(rng.uniform(0, 2 * np.pi, _int(rng, 4, 9)))
        points = around + np.stack([np.cos(turns), np.sin(turns)], 1) * rng.uniform(30, 140)
        draw.polygon(
            [tuple(point) for point in points], fill=_one(rng, [(200, 228, 180), (170, 211, 223), (240, 232, 215)])
        )
    for _street in range(_int(rng, 12, 45)):
        start, turn = rng.uniform(0, 1, 2) * size, rng.choice([0, np.pi / 2]) + rng.normal(0, 0.25)
        points = start + np.linspace(-400, 400, 5)[:, None] * [np.cos(turn), np.sin(turn)] + rng.normal(0, 12, (5, 2))
        line, width = [tuple(point) for point in points], _int(rng, 2, 8)
        draw.line(line, fill=(180, 170, 160), width=width + 2)
        draw.line(
            line, fill=_one(rng, [(255, 255, 255), (255, 255, 255), (250, 214, 120), (240, 160, 120)]), width=width
        )
    font = load_font(_one(rng, SANS), _int(rng, 9, 13))
    for _label in range(_int(rng, 6, 25)):
        draw.text(tuple(rng.uniform(0, 1, 2) * size), _words(rng, 1), fill=(70, 70, 80), font=font)
    return image


# ---------------------------------------------------------------------------------------------------- logos, clip art


def _shape(rng: Random, draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, fill: Color) -> None:
    x, y = centre
    box = [x - radius, y - radius, x + radius, y + radius]
    chosen = _int(rng, 0, 4)
    if chosen == 0:
        draw.ellipse(box, fill=fill)
    elif chosen == 1:
        draw.rounded_rectangle(box, radius * rng.uniform(0, 0.6), fill=fill)
    elif chosen == 2:
        draw.arc(box, _int(rng, 0, 180), _int(rng, 200, 360), fill=fill, width=max(2, int(radius / 4)))
    else:
        corners = _int(rng, 3, 10)
        turns = np.arange(corners) * 2 * np.pi / corners + rng.uniform(0, 3)
        radii = np.where(np.arange(corners) % 2 == 0, radius, radius * (0.5 if chosen == 3 else 1))
        draw.polygon([(x + r * np.cos(t), y + r * np.sin(t)) for r, t in zip(radii, turns, strict=True)], fill=fill)


@kind
def logo(rng: Random, _: Photographs) -> Image.Image:
    size = _size(rng)
    image, draw = _canvas(size, _pale(rng) if rng.random() < 0.7 else _color(rng))
    middle, radius = (size[0] / 2, size[1] * 0.4), min(size) * rng.uniform(0.15, 0.32)
    for part in range(_int(rng, 1, 5)):
        moved = middle[0] + rng.normal(0, radius / 2), middle[1] + rng.normal(0, radius / 4)
        _shape(rng, draw, moved if part else middle, radius * rng.uniform(0.4, 1), _color(rng))
    if rng.random() < 0.75:
        font = load_font(_one(rng, [*SANS, *SERIF]), int(size[0] / rng.uniform(7, 12)))
        draw.text(
            (size[0] / 2, size[1] * 0.82),
            _words(rng, _int(rng, 1, 2)),
            fill=_color(rng, 0, 160),
            font=font,
            anchor="mm",
        )
    return image.filter(ImageFilter.GaussianBlur(0.6)) if rng.random() < 0.5 else image


@kind
def icons(rng: Random, _: Photographs) -> Image.Image:
    size = _size(rng)
    image, draw = _canvas(size, _pale(rng))
    columns, rows = _int(rng, 1, 6), _int(rng, 1, 6)
    across, down = size[0] / columns, size[1] / rows
    one, fill = rng.random() < 0.4, _color(rng)
    for row in range(rows):
        for column in range(columns):
            for part in range(_int(rng, 1, 3)):
                centre = (column + 0.5) * across, (row + 0.5) * down
                color = fill if one and part % 2 == 0 else _pale(rng) if one else _color(rng)
                _shape(rng, draw, centre, min(across, down) * 0.42 * 0.6**part, color)
    return image


@kind
def clip_art(rng: Random, _: Photographs) -> Image.Image:
    """A scene of flat colours: sky, hills, houses, trees, a sun, some with outlines."""
    size = width, height = _size(rng)
    image, draw = _canvas(size, _color(rng, 130, 255))
    outline = (20, 20, 20) if rng.random() < 0.5 else None
    _shape(rng, draw, (rng.uniform(0, width), height * 0.2), height * rng.uniform(0.06, 0.14), (250, 210, 60))
    for hill in range(_int(rng, 1, 4)):
        level, radius = height * (0.5 + 0.13 * hill), width * rng.uniform(0.5, 1.4)
        x = rng.uniform(0, width)
        draw.ellipse([x - radius, level, x + radius, level + 2 * height], fill=_color(rng, 40, 220), outline=outline)
    for _thing in range(_int(rng, 1, 7)):
        x, y, side = rng.uniform(0, width), height * rng.uniform(0.5, 0.9), height * rng.uniform(0.08, 0.22)
        wall = [x - side, y - side, x + side, y + side]
        if rng.random() < 0.5:
            draw.rectangle(wall, fill=_color(rng), outline=outline, width=2)
            roof = [(x - 1.2 * side, y - side), (x + 1.2 * side, y - side), (x, y - 1.9 * side)]
            draw.polygon(roof, fill=_color(rng), outline=outline)
            draw.rectangle([x - side / 3, y, x + side / 3, y + side], fill=_color(rng, 0, 120))
        else:
            draw.rectangle([x - side / 6, y, x + side / 6, y + side], fill=(110, 70, 40))
            _shape(rng, draw, (x, y - side / 2), side * 0.8, _color(rng, 20, 200))
    return image


@kind
def illustration(rng: Random, _: Photographs) -> Image.Image:
    """Many soft shapes with gradients and shadows, as of stock vectors."""
    size = _size(rng)
    image = _gradient(rng, size)
    for _part in range(_int(rng, 4, 14)):
        mask = Image.new("L", size)
        draw = ImageDraw.Draw(mask)
        centre, radius = (rng.uniform(0, size[0]), rng.uniform(0, size[1])), min(size) * rng.uniform(0.05, 0.35)
        _shape(rng, draw, centre, radius, 255)  # type: ignore[arg-type]
        if rng.random() < 0.3:
            shadow = mask.filter(ImageFilter.GaussianBlur(radius / 6)).point(lambda value: value // 3)
            image.paste((0, 0, 0), (4, 6), shadow)
        image.paste(_gradient(rng, size) if rng.random() < 0.6 else Image.new("RGB", size, _color(rng)), mask=mask)
    return image


@kind
def shaded_balls(rng: Random, _: Photographs) -> Image.Image:
    """Spheres with light and shadow on a floor, some with noise: rendered in three dimensions."""
    size = width, height = _size(rng)
    pixels = np.asarray(_gradient(rng, size), np.float32) * 0.5 + 100
    y, x = np.mgrid[:height, :width].astype(np.float32)
    light = np.array([rng.normal(0, 0.5), -0.7, 0.8])
    light /= np.linalg.norm(light)
    for _ball in range(_int(rng, 1, 7)):
        radius = min(size) * rng.uniform(0.06, 0.25)
        left, top = (x - rng.uniform(0, width)) / radius, (y - rng.uniform(0.3, 1) * height) / radius
        shadow = np.clip(1.3 - np.hypot(left * 0.8, (top - 1.1) * 3), 0, 1)[..., None]
        pixels *= 1 - 0.5 * shadow
        inside = left**2 + top**2 < 1
        depth = np.sqrt(np.clip(1 - left**2 - top**2, 0, 1))
        bright = np.clip(left * light[0] + top * light[1] + depth * light[2], 0, 1)
        shaded = np.array(_color(rng), np.float32) * (0.25 + 0.75 * bright)[..., None] + 160 * (bright**30)[..., None]
        pixels = np.where(inside[..., None], shaded, pixels)
    pixels += rng.normal(0, rng.choice([0, 0, 2, 5]), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


# ------------------------------------------------------------------------------------------------------- text, screens


@kind
def window(rng: Random, _: Photographs) -> Image.Image:
    """A program's window: bars, a list at the side, buttons, text."""
    size = width, height = _size(rng, 320, 640)
    paper = _pale(rng) if rng.random() < 0.7 else _color(rng, 25, 55)
    ink = (30, 30, 30) if paper[0] > 128 else (220, 220, 220)
    image, draw = _canvas(size, paper)
    font = load_font(_one(rng, SANS), _int(rng, 9, 14))
    side = int(width * rng.uniform(0.15, 0.35))
    draw.rectangle([0, 0, side, height], fill=tuple(int(value * 0.93) for value in paper))
    draw.rectangle([0, 0, width, 26], fill=_color(rng))
    for x in (12, 28, 44):
        draw.ellipse([x - 5, 8, x + 5, 18], fill=_color(rng))
    _paragraph(draw, rng, (8, 36, side - 8, height - 10), font, ink)
    _paragraph(draw, rng, (side + 12, 60, width - 12, int(height * rng.uniform(0.4, 0.95))), font, ink)
    for _button in range(_int(rng, 1, 4)):
        x, y = _int(rng, side, width - 60), _int(rng, height // 2, height - 30)
        draw.rounded_rectangle([x, y, x + 70, y + 24], 5, fill=_color(rng))
        draw.text((x + 35, y + 12), _words(rng, 1), fill=(255, 255, 255), font=font, anchor="mm")
    return image


@kind
def terminal(rng: Random, _: Photographs) -> Image.Image:
    size = _size(rng, 320, 640)
    paper = _color(rng, 0, 45) if rng.random() < 0.8 else (253, 246, 227)
    image, draw = _canvas(size, paper)
    font = load_font(_one(rng, MONO), _int(rng, 9, 15))
    colors = [_color(rng, 120, 255) if paper[0] < 100 else _color(rng, 0, 130) for _ in range(4)]
    for y in range(6, size[1] - 10, int(font.size * 1.3)):
        if rng.random() < 0.9:
            x = 6.0 + font.size * 2 * _int(rng, 0, 3)
            for _part in range(_int(rng, 1, 7)):
                text = _words(rng, 1) + " "
                draw.text((x, y), text, fill=_one(rng, colors), font=font)
                x += draw.textlength(text, font=font)
    return image


@kind
def page_with_photographs(rng: Random, photographs: Photographs) -> Image.Image:
    """A page of the web: bar, heading, text, and small pictures with names, as of a shop or a newspaper."""
    size = width, height = _size(rng, 360, 680)
    image, draw = _canvas(size, _pale(rng))
    font = load_font(_one(rng, SANS), _int(rng, 9, 13))
    draw.rectangle([0, 0, width, _int(rng, 24, 60)], fill=_color(rng))
    columns = _int(rng, 2, 4)
    across, side = width // columns, int(width / columns * rng.uniform(0.45, 0.8))
    for y in range(72, height - side // 2, int(side * rng.uniform(1.4, 2.2))):
        for column in range(columns):
            if rng.random() < 0.6:
                image.paste(_photo(rng, photographs, (side, int(side * 0.75))), (column * across + 8, y))
            _paragraph(
                draw,
                rng,
                (column * across + 8, y + int(side * 0.8), column * across + side, y + int(side * 1.35)),
                font,
                (40, 40, 40),
            )
    return image


@kind
def scanned_page(rng: Random, _: Photographs) -> Image.Image:
    """A page of a book or a letter, on paper that is not quite even, not quite straight, with a scanner's noise."""
    size = width, height = _int(rng, 380, 640), _int(rng, 460, 760)
    image, draw = _canvas(size, (255, 255, 255))
    font = load_font(_one(rng, [*SERIF, *SANS, *MONO]), _int(rng, 10, 17))
    top, edge = _int(rng, 20, 80), _int(rng, 20, 60)
    draw.text((width / 2, top), _words(rng, 3), fill=(0, 0, 0), font=load_font(SERIF[0], 20), anchor="mm")
    columns = _int(rng, 1, 2)
    for column in range(columns):
        left = edge + column * (width - edge) // columns
        right = left + (width - edge) // columns - edge
        _paragraph(draw, rng, (left, top + 24, right, height - edge), font, _color(rng, 0, 60))
    paper = np.array(_color(rng, 195, 255), np.float32) if rng.random() < 0.6 else np.full(3, 255.0, np.float32)
    image = image.rotate(
        rng.normal(0, 1.5), Image.Resampling.BICUBIC, fillcolor=_one(rng, [(255, 255, 255), (60, 60, 60)])
    )
    shade = 1 - rng.uniform(0, 0.35) * smooth(rng, height, width, rng.uniform(80, 300))[..., None]
    pixels = np.asarray(image, np.float32) / 255 * paper * shade
    pixels += rng.normal(0, rng.uniform(0, 9), (height, width, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(rng.uniform(0, 0.8))
    )


@kind
def text_card(rng: Random, _: Photographs) -> Image.Image:
    """A saying in large letters on a colour or a gradient."""
    size = _size(rng)
    image = Image.new("RGB", size, _color(rng)) if rng.random() < 0.5 else _gradient(rng, size)
    draw, font = ImageDraw.Draw(image), load_font(_one(rng, [*SANS, *SERIF]), int(size[0] / rng.uniform(8, 18)))
    light = np.asarray(image).mean() < 128
    fill = (255, 255, 255) if light else _dark(rng)
    lines = _int(rng, 1, 7)
    for line in range(lines):
        y = size[1] * (line + 1) / (lines + 1)
        draw.text((size[0] / 2, y), _words(rng, _int(rng, 1, 3)), fill=fill, font=font, anchor="mm")
    return image


@kind
def banner(rng: Random, _: Photographs) -> Image.Image:
    """An advertisement: a wide or tall strip with words, shapes and a button."""
    size = (
        (_int(rng, 468, 760), _int(rng, 60, 240)) if rng.random() < 0.7 else (_int(rng, 120, 240), _int(rng, 480, 640))
    )
    image = _gradient(rng, size) if rng.random() < 0.6 else Image.new("RGB", size, _color(rng))
    draw = ImageDraw.Draw(image)
    for _part in range(_int(rng, 0, 6)):
        _shape(
            rng,
            draw,
            (rng.uniform(0, size[0]), rng.uniform(0, size[1])),
            min(size) * rng.uniform(0.1, 0.5),
            _color(rng),
        )
    font = load_font("DejaVuSans-Bold", int(min(size) / rng.uniform(4, 7)))
    draw.text((size[0] * 0.05, size[1] * 0.15), _words(rng, 2), fill=(255, 255, 255), font=font)
    draw.text(
        (size[0] * 0.05, size[1] * 0.5),
        _words(rng, 3),
        fill=_color(rng),
        font=load_font("DejaVuSans", max(9, int(font.size * 0.6))),
    )
    x, y = size[0] * rng.uniform(0.3, 0.8), size[1] * 0.75
    draw.rounded_rectangle([x, y, x + min(size) * 0.7, y + min(size) * 0.22], 6, fill=_color(rng))
    return image


# ------------------------------------------------------------------------------------------- codes, colours, patterns


@kind
def qr_code(rng: Random, _: Photographs) -> Image.Image:
    modules = 17 + 4 * _int(rng, 1, 8)
    bits = rng.random((modules, modules)) < 0.5
    for top, left in ((0, 0), (0, modules - 7), (modules - 7, 0)):
        finder = np.ones((7, 7), bool)
        finder[1:6, 1:6] = False
        finder[2:5, 2:5] = True
        bits[max(0, top - 1) : top + 8, max(0, left - 1) : left + 8] = False
        bits[top : top + 7, left : left + 7] = finder
    bits = np.pad(bits, _int(rng, 1, 5))
    ink, paper = ((0, 0, 0), (255, 255, 255)) if rng.random() < 0.7 else (_dark(rng), _pale(rng))
    pixels = np.where(bits[..., None], np.array(ink, np.uint8), np.array(paper, np.uint8))
    side = _int(rng, 200, 500)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)


@kind
def bar_code(rng: Random, _: Photographs) -> Image.Image:
    size = _int(rng, 240, 500), _int(rng, 120, 320)
    image, draw = _canvas(size, (255, 255, 255))
    x = size[0] * 0.06
    while x < size[0] * 0.94:
        wide = _int(rng, 1, 4) * size[0] / 300
        draw.rectangle([x, 10, x + wide, size[1] * 0.82], fill=(0, 0, 0))
        x += wide + _int(rng, 2, 5) * size[0] / 300
    draw.text(
        (size[0] / 2, size[1] * 0.91),
        str(_int(rng, 10**11, 10**12)),
        fill=(0, 0, 0),
        font=load_font(MONO[0], 18),
        anchor="mm",
    )
    return image


@kind
def gradient(rng: Random, _: Photographs) -> Image.Image:
    image = _gradient(rng, _size(rng))
    if rng.random() < 0.3:
        image = Image.blend(image, _gradient(rng, image.size), 0.5)
    return image


@kind
def plain_colour(rng: Random, _: Photographs) -> Image.Image:
    """A colour, or a few side by side; some with noise."""
    size = _size(rng)
    image, draw = _canvas(
        size, _one(rng, [(0, 0, 0), (255, 255, 255), _dark(rng), _color(rng), _color(rng), _color(rng)])
    )
    for _part in range(_int(rng, 0, 4)):
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        draw.rectangle([x, y, x + rng.uniform(0, size[0]), y + rng.uniform(0, size[1])], fill=_color(rng))
    pixels = np.asarray(image, np.float32) + rng.normal(0, rng.choice([0, 0, 2, 6]), (size[1], size[0], 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@kind
def pattern(rng: Random, _: Photographs) -> Image.Image:
    """A wallpaper: stripes, checks, waves or noise, the same everywhere."""
    width, height = _size(rng)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    turn, wave = rng.uniform(0, np.pi), rng.uniform(6, 60)
    along, across = np.cos(turn) * x + np.sin(turn) * y, -np.sin(turn) * x + np.cos(turn) * y
    values = {
        0: np.sin(along / wave * 6.3),
        1: np.sin(along / wave * 6.3) * np.sin(across / wave * 6.3),
        2: np.sin(np.hypot(along - width / 2, across) / wave * 6.3),
        3: rng.normal(0, 0.7, (height, width)).astype(np.float32),
    }[_int(rng, 0, 3)]
    values = np.sign(values) if rng.random() < 0.5 else np.clip(values, -1, 1)
    first, second = np.array(_color(rng), np.float32), np.array(_color(rng), np.float32)
    return Image.fromarray((first + (second - first) * (values[..., None] + 1) / 2).astype(np.uint8))
