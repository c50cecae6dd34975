"""The rules that the golden pictures do not reach, beside loops written from the ports' description."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.made_up import picture
from imagebert.regions.vg.resizing import resize
from imagebert.regions.vg.rules import (
    Heads,
    Resized,
    Rules,
    all_anchors,
    anchors,
    choose,
    clipped,
    moved,
    propose,
)
from tests.regions.vg.test_operators import kept_by_definition, some_boxes

CAFFE = Rules(variant="caffe", resize="factor")
DETECTRON2 = Rules(variant="detectron2", resize="pillow")


def seen(width: int = 640, height: int = 480, factor: float = 2.0) -> Resized:
    return Resized(torch.zeros(3, height, width), (factor, factor))


def heads(n: int, rules: Rules, seed: int = 0, sure: float = 6.0, classes: int = 5) -> Heads:
    random = torch.Generator().manual_seed(seed)
    moves = 4 * (classes + (rules.variant == "caffe"))
    shapes = (n, 8), (n, classes + 1), (n, moves), (n, 4)
    features, logits, deltas, attributes = (torch.randn(*shape, generator=random) for shape in shapes)
    return Heads(features, sure * logits, 0.1 * deltas, attributes)


@pytest.mark.parametrize(("sure", "many"), [(0.02, "least"), (0.1, "between"), (9.0, "most")])
def test_caffe_keeps_by_confidence_between_least_and_most(sure: float, many: str) -> None:
    """At 0.2 and more in the proposals' order; else the best: of too few, and of too many."""
    rules = Rules(variant="caffe", resize="factor", least=10, most=40)
    boxes = some_boxes(120, seed=1, size=900)
    found = heads(120, rules, sure=sure)
    scores = found.classes.softmax(dim=1)[:, 1:]
    best = np.zeros(120)
    for name in range(scores.shape[1]):
        order = scores[:, name].argsort(descending=True, stable=True)
        kept = order[kept_by_definition(boxes[order] / 2, 0.3, 1.0)]
        best[kept] = np.maximum(best[kept], scores[kept, name])
    above = np.flatnonzero(best >= 0.2)
    wanted = {
        "least": np.argsort(-best, kind="stable")[:10],
        "between": above,
        "most": np.argsort(-best, kind="stable")[:40],
    }[many]
    assert (len(above) < 10, len(above) > 40) == (many == "least", many == "most")
    chosen = choose(boxes, found, seen(), rules)
    np.testing.assert_array_equal(chosen.proposals.numpy(), wanted)
    torch.testing.assert_close(chosen.boxes, boxes[wanted] / 2)  # not moved by the second half of the network
    assert torch.equal(chosen.classes, scores.argmax(dim=1)[wanted])


def test_detectron2_lets_more_overlap_until_there_are_enough() -> None:
    rules = Rules(variant="detectron2", resize="pillow", least=30, most=36)
    corners = some_boxes(60, seed=2, size=90)[:, :2]
    boxes = torch.cat([corners, corners + 100], dim=1)
    found = heads(60, rules)
    scores, classes = found.classes.softmax(dim=1)[:, :-1].max(dim=1)
    deltas = found.deltas.view(60, -1, 4)[torch.arange(60), classes]
    regressed = clipped(moved(boxes, deltas, 0.0, (10.0, 5.0)), 640, 480)
    order = scores.argsort(descending=True)
    counts = []
    for limit in rules.nms_iou:
        kept = order[kept_by_definition(regressed[order], limit, 0.0)][:36]
        counts.append(len(kept))
        if len(kept) >= 30:
            break
    assert len(counts) > 1
    chosen = choose(boxes, found, seen(), rules)
    np.testing.assert_array_equal(chosen.proposals, kept)
    torch.testing.assert_close(chosen.boxes, regressed[kept] / 2)


def test_too_few_regions_for_any_overlap_are_kept() -> None:
    """Where transformers' port has no answer: it raises, or takes another picture's boxes."""
    rules = Rules(variant="detectron2", resize="pillow", least=36, most=36)
    boxes = torch.tensor([[10.0, 10, 200, 200], [10, 10, 201, 200], [300, 300, 400, 400]])
    found = heads(3, rules)._replace(deltas=torch.zeros(3, 20))
    assert sorted(choose(boxes, found, seen(), rules).proposals.tolist())[-1] == 2
    assert len(choose(boxes, found, seen(), rules).boxes) == 2


@pytest.mark.parametrize("rules", [CAFFE, DETECTRON2])
def test_the_background_is_no_class_and_no_attribute(rules: Rules) -> None:
    caffe = rules.variant == "caffe"
    background, other = (0, 3) if caffe else (5, 2)
    found = heads(4, rules)
    logits, attributes = torch.zeros(4, 6), torch.zeros(4, 4)
    logits[:, background], logits[:, other] = 9, 5
    attributes[:, 0 if caffe else 3], attributes[:, 2] = 9, 5
    boxes = torch.tensor([[0.0, 0, 50, 50], [100, 0, 150, 50], [200, 0, 250, 50], [300, 0, 350, 50]])
    chosen = choose(boxes, found._replace(classes=logits, attributes=attributes), seen(), rules)
    assert set(chosen.classes.tolist()) == {2}
    assert set(chosen.attributes.tolist()) == {1 if caffe else 2}
    # Caffe's attribute shares its probability with none at all, detectron2's does not.
    assert (chosen.attribute_confidences < 0.1).all() if caffe else (chosen.attribute_confidences > 0.9).all()
    assert (chosen.confidences < 0.1).all()


@pytest.mark.parametrize(("rules", "first"), [(CAFFE, "filter"), (DETECTRON2, "candidates")])
def test_which_comes_first_the_best_candidates_or_the_filter(rules: Rules, first: str) -> None:
    """Of 24 candidates the surest lie outside of the picture: caffe drops them before it takes the best, and detectron2
    behind."""
    rules = Rules(variant=rules.variant, resize=rules.resize, candidates=24, proposals=24, least=1, most=24)
    cell = anchors(rules.variant)
    height, width = 4, 30
    picture_seen = Resized(torch.zeros(3, 64, 320), (0.5, 0.5))  # the map is wider than the picture
    logits = torch.linspace(0, 1, 12 * height * width).view(12, height, width)
    logits[:, :, 20:] += 5
    scores = torch.cat([torch.zeros_like(logits), logits]) if rules.variant == "caffe" else logits
    boxes, found = propose(scores, torch.zeros(48, height, width), cell, picture_seen, rules)
    outside = all_anchors(cell, height, width)[:, 0] >= 320
    assert outside.any()
    surest = logits.permute(1, 2, 0).reshape(-1).argsort(descending=True)
    if first == "filter":
        kept = surest[~outside[surest]]
        assert torch.equal(boxes[0], clipped(all_anchors(cell, height, width)[kept[:1]], 319, 63)[0])
    else:
        assert len(boxes) <= int((~outside[surest[:24]]).sum())
    assert (found.diff() <= 0).all()


def test_caffe_wants_sides_longer_than_sixteen_pixels_of_the_picture() -> None:
    cell = torch.tensor([[0.0, 0, 30, 99], [0, 0, 31, 99]])  # moved by nothing they are 32 and 33 pixels wide
    boxes, _ = propose(torch.zeros(4, 1, 1), torch.zeros(8, 1, 1), cell, seen(), CAFFE)
    assert boxes.tolist() == [[0, 0, 32, 100]]
    boxes, _ = propose(torch.zeros(2, 1, 1), torch.zeros(8, 1, 1), cell, seen(), DETECTRON2)
    assert len(boxes) == 1  # they overlap by more than 0.7


@pytest.mark.parametrize(
    ("size", "wanted", "scale"),
    [
        ((640, 407), (600, 943), 600 / 407),
        ((300, 1200), (600, 150), 0.5),  # height, width of the input
        ((2000, 1), (1, 1000), 0.5),
        ((1, 1), (600, 600), 600.0),
    ],
)
def test_sizes_are_the_ports(size: tuple[int, int], wanted: tuple[int, int], scale: float) -> None:
    image = Image.new("RGB", size, (200, 10, 30))
    if size == (300, 1200):
        wanted = (1000, 250)
        scale = 1000 / 1200
    for rules in (CAFFE, DETECTRON2, Rules(variant="detectron2", resize="interpolate")):
        found = resize(image, rules)
        assert tuple(found.pixels.shape) == (3, *wanted)
        assert found.scale[0] == pytest.approx(scale, rel=0.01)
    # Of one colour: blue, green, red, less their means.
    assert found.pixels[:, 0, 0].tolist() == pytest.approx([30 - 102.9801, 10 - 115.9465, 200 - 122.7717], abs=1e-3)


def test_a_factor_reads_where_opencv_does() -> None:
    """Beside a loop in double precision: at (x + 0.5) / factor - 0.5, and not at shares of the two sizes."""
    pixels = picture("odd").astype(np.float64)
    found = resize(Image.fromarray(picture("odd")), CAFFE).pixels.numpy()
    factor = 600 / 407
    for y, x in ((0, 0), (599, 942), (300, 17), (123, 801)):
        places = [min(max((one + 0.5) / factor - 0.5, 0), side - 1) for one, side in ((y, 407), (x, 640))]
        (top, left), (down, right) = (int(place) for place in places), (place % 1 for place in places)
        below, beside = min(top + 1, 406), min(left + 1, 639)
        upper = pixels[top, left] * (1 - right) + pixels[top, beside] * right
        lower = pixels[below, left] * (1 - right) + pixels[below, beside] * right
        level = upper * (1 - down) + lower * down
        np.testing.assert_allclose(found[:, y, x], level[::-1] - [102.9801, 115.9465, 122.7717], atol=1e-3)
