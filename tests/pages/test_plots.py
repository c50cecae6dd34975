"""Where plots put what they show, read back from the SVG by an XML parser."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from xml.etree.ElementTree import Element

import pytest

from imagebert.pages.plots import Curve, _ticks, bars, plot


def corners(element: Element) -> list[tuple[float, float]]:
    pairs = [pair.split(",") for pair in element.attrib["points"].split()]
    return [(float(x), float(y)) for x, y in pairs]


def test_a_curve_goes_through_its_points() -> None:
    """The picture's coordinates are a straight line of step and value, the values' the other way round."""
    points = [(0.0, 0.0), (50.0, 10.0), (100.0, 2.5)]
    figure = ElementTree.fromstring(plot("loss", [Curve("a", points)], zero=True))
    (line,) = figure.iter("polyline")
    (x0, y0), (x1, y1), (x2, y2) = corners(line)
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.5, abs=0.01)
    assert (y0 - y2) / (y0 - y1) == pytest.approx(0.25, abs=0.01)
    assert y1 < y2 < y0
    labels = [text.text for text in figure.iter("text")]
    assert {"0", "10", "20", "100"} <= set(labels)
    assert figure.findtext(".//li/b") == "2.5"


def test_of_many_points_no_spike_is_lost() -> None:
    points = [(float(step), 1.0) for step in range(5000)]
    points[1234] = (1234.0, 9.0)
    figure = ElementTree.fromstring(plot("norm", [Curve("a", points)], zero=True))
    (line,), (band,) = figure.iter("polyline"), figure.iter("polygon")
    assert len(corners(line)) == 60
    top = min(y for _, y in corners(band))
    usual = max(set(ys := [y for _, y in corners(line)]), key=ys.count)
    floor = max(float(e.attrib["y1"]) for e in figure.iter("line"))
    assert (floor - top) / (floor - usual) == pytest.approx(9, abs=0.2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_left_out(value: float) -> None:
    figure = ElementTree.fromstring(plot("loss", [Curve("a", [(1, 2.0), (2, value)])]))
    assert len(list(figure.iter("circle"))) == 1
    assert plot("loss", [Curve("a", [(1, value)])]) == ""


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (3, 3), (-5, -5), (0, 1e-9), (1e300, 1.7e308), (-1.7e308, 1.7e308), (0.31, 0.32), (-2, 7)]
)
def test_ticks_span_what_is_shown_and_are_few(low: float, high: float) -> None:
    ticks = _ticks(low, high)
    assert 2 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))
    spacing = ticks[1] - ticks[0]
    assert ticks[0] <= low + spacing * 1e-6
    assert ticks[-1] >= high - spacing * 1e-6


def test_names_are_text_and_no_markup() -> None:
    name = "<script>&\"'"
    for drawn in (plot(name, [Curve(name, [(1, 2.0)])]), bars(name, [(name, 5.0)], 1.0, 5.0)):
        assert "<script>" not in drawn
        assert ElementTree.fromstring(drawn).findtext("figcaption") == name


def test_bars_are_as_long_as_their_values() -> None:
    figure = ElementTree.fromstring(bars("R@1", [("one", 10.0), ("two", 40.0)], mark=20.0, most=5))
    first, second = (float(e.attrib["width"]) for e in figure.iter("rect"))
    mark, _ = figure.iter("line")
    assert second == pytest.approx(4 * first, abs=0.3)
    assert float(mark.attrib["x1"]) == pytest.approx(2 * first, abs=0.3)
