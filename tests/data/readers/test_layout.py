"""What is decided for a source from its sample, and what contradicts it."""

from __future__ import annotations

import base64
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from imagebert.config import UsageError
from imagebert.data.readers import BadRecord
from imagebert.data.readers.layout import Layout, Sample, decide
from imagebert.data.records import RegionRecord

CLASSES = 7
SIZE = np.array([640, 480, 640, 480], np.float32)


def image(seed: int, n: int = 5, **changed: Any) -> dict[str, Any]:
    """An image's fields, in pixels."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((n, 2, 2)), axis=1).reshape(n, 4) * SIZE
    corners[0] = SIZE * (0, 0, 1, 1)
    table = rng.random((n, 1 + CLASSES), np.float32) / 10
    table[np.arange(n), rng.integers(1, 1 + CLASSES, n)] = np.linspace(0.9, 0.5, n)
    return {
        "features": rng.random((n, 16), np.float32),
        "boxes": corners.astype(np.float32),
        "image_w": 640,
        "image_h": 480,
        "cls_prob": table,
    } | changed


def decided(*images: dict[str, Any], **given: str) -> Layout:
    return decide([Sample(f"file, row {i}", str(i), fields) for i, fields in enumerate(images)], CLASSES, given)


def read(layout: Layout, fields: dict[str, Any]) -> RegionRecord:
    return layout.record("k", fields).record


def b64(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array)).decode()


# --------------------------------------------------------------------------------------------------- boxes and features


def test_an_image_with_a_box_over_the_edge_has_no_other_unit_than_its_source() -> None:
    shares = [image(i, boxes=image(i)["boxes"] / SIZE) for i in range(8)]
    shares[3]["boxes"][1, 2] = 1.02
    layout = decided(*shares)
    assert layout.unit == "shares"
    for number, fields in enumerate(shares):
        expected = np.clip(fields["boxes"] * SIZE, 0, SIZE)
        np.testing.assert_allclose(read(layout, fields).boxes, expected, rtol=1e-6, err_msg=str(number))
    small = image(9, boxes=np.full((5, 4), 0.5, np.float32))  # within one pixel
    assert decided(*[image(i) for i in range(7)], small).unit == "pixels"
    np.testing.assert_array_equal(read(decided(*[image(i) for i in range(7)], small), small).boxes, small["boxes"])


def test_boxes_of_another_unit_than_their_source_are_refused() -> None:
    layout = decided(*[image(i, boxes=image(i)["boxes"] / SIZE) for i in range(8)])
    with pytest.raises(BadRecord, match="is outside of the image, whose boxes are shares"):
        read(layout, image(9))
    with pytest.raises(UsageError, match="4 say unit=pixels and 4 unit=shares: say which with layout unit="):
        decided(*[image(i, boxes=image(i)["boxes"] / (SIZE if i % 2 else 1)) for i in range(8)])


def test_boxes_as_a_corner_with_sides() -> None:
    fields = [image(i) for i in range(4)]
    sides = [
        one | {"boxes": np.concatenate([one["boxes"][:, :2], one["boxes"][:, 2:] - one["boxes"][:, :2]], 1)}
        for one in fields
    ]
    layout = decided(*sides)
    assert layout.corners == "xywh"
    for one, expected in zip(sides, fields, strict=True):
        np.testing.assert_allclose(read(layout, one).boxes, expected["boxes"], rtol=1e-5)


def test_regions_as_columns() -> None:
    turned = [image(i, n=5 + i) for i in range(4)]
    for one in turned:
        one["x"] = one.pop("features").T
    layout = decided(*turned)
    assert (layout.axis, layout.size) == ("columns", 16)
    for one in turned:
        np.testing.assert_array_equal(read(layout, one).features, one["x"].T)
    square = image(9, n=16)
    square["x"] = square.pop("features").T  # 16 regions of 16 features: only its source tells
    np.testing.assert_array_equal(read(layout, square).features, square["x"].T)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_type_of_numbers_in_bytes(dtype: str) -> None:
    images = [image(i) for i in range(4)]
    encoded = [
        one
        | {
            "features": b64(one["features"].astype(dtype)),
            "boxes": b64(one["boxes"]),
            "num_boxes": "5",
            "cls_prob": b64(one["cls_prob"]),
        }
        for one in images
    ]
    layout = decided(*encoded)
    assert (layout.numbers, layout.size) == (dtype, 16)
    for one, fields in zip(images, encoded, strict=True):
        np.testing.assert_array_equal(read(layout, fields).features, one["features"].astype(dtype).astype(np.float32))
    written = [one | {"features": f"b'{one['features']}'"} for one in encoded]  # as Python's text of bytes
    np.testing.assert_array_equal(read(decided(*written), written[0]).features, read(layout, encoded[0]).features)


def test_bytes_that_could_be_either() -> None:
    constant = [image(i, features=b64(np.ones((5, 16), np.float32)), num_boxes=5) for i in range(3)]
    with pytest.raises(UsageError, match="float32 or float16 is not to be told: say it with layout numbers="):
        decided(*constant)
    assert decided(*constant, numbers="float32").size == 16


def test_one_odd_image_costs_one_image_wherever_it_lies() -> None:
    """In size, in unit, in its fields."""
    odd = [
        image(9, cls_prob=[[0.1], [0.1, 0.2]]),
        image(9, features=np.ones((5, 3), np.float32)),
        image(9, boxes=image(9)["boxes"] / SIZE),
        {"other": 1},
    ]
    for one in odd:
        for place in (0, 3, 7):
            images = [image(i) for i in range(7)]
            images.insert(place, one)
            layout = decided(*images)
            assert (layout.size, layout.unit) == (16, "pixels")
            assert sum(read(layout, fields) is not None for fields in images if fields is not one) == 7
    with pytest.raises(BadRecord, match="its features have 3 numbers, those of the source 16"):
        read(layout, odd[1])


def test_rows_that_fill_a_table_up_are_left_out_and_counted() -> None:
    layout = decided(*[image(i) for i in range(3)])
    whole = image(5, n=4)
    filled = {
        k: np.concatenate([v, np.zeros((3, *v.shape[1:]), v.dtype)]) if np.ndim(v) else v for k, v in whole.items()
    }
    for fields in (filled, filled | {"num_boxes": 7}, filled | {"num_boxes": 4}):
        loaded = layout.record("k", fields)
        assert loaded.padding == 3
        for name in ("features", "boxes"):
            np.testing.assert_array_equal(getattr(loaded.record, name), whole[name])
    with pytest.raises(BadRecord, match="all its regions are rows of zeros"):
        read(layout, {k: np.zeros_like(v) if np.ndim(v) else v for k, v in whole.items()})


# ------------------------------------------------------------------------------------------------------------- classes


def with_classes(seed: int, background: str, **changed: Any) -> tuple[dict[str, Any], NDArray[Any], NDArray[Any]]:
    """An image whose table is of that kind; its classes and confidences, which fall."""
    fields = image(seed)
    table = fields["cls_prob"]
    classes, confidences = table[:, 1:].argmax(axis=1), table[:, 1:].max(axis=1)
    fields["cls_prob"] = {"none": table[:, 1:], "last": np.roll(table, -1, axis=1)}.get(background, table)
    if background != "alone":
        fields["objects"] = classes + (background == "counted")
    return fields | changed, classes, confidences


@pytest.mark.parametrize("background", ["none", "first", "last", "counted", "alone"])
def test_where_the_background_is(background: str) -> None:
    images = [with_classes(i, background) for i in range(6)]
    layout = decided(*[fields for fields, _, _ in images])
    assert layout.background == ("first" if background == "alone" else background)
    for fields, classes, confidences in images:
        record = read(layout, fields)
        np.testing.assert_array_equal(record.classes, classes)
        np.testing.assert_array_equal(record.confidences, confidences)


def test_a_region_that_is_background_has_its_best_class() -> None:
    """MMF's --background: the table's first column wins, and the class numbers count it."""
    images = [with_classes(i, "counted")[0] for i in range(6)]
    for fields in images:
        fields["cls_prob"][4, 0] = 0.95
        fields["objects"][4] = 0
    layout = decided(*images)
    assert layout.background == "counted"
    table = images[0]["cls_prob"]
    record = read(layout, images[0])
    assert record.classes[4] == table[4, 1:].argmax()
    assert record.confidences[4] == table[4, 1:].max()


def test_what_mmf_and_vilbert_make_of_classes() -> None:
    fields, classes, confidences = with_classes(0, "first")
    of_top = fields | {"cls_prob": confidences}  # MMF's extract_features_frcnn.py
    lost = fields | {"objects": classes[1:]}  # ViLBERT's own extraction
    for kind in (of_top, lost):
        record = read(decided(kind), kind)
        np.testing.assert_array_equal(record.classes, classes)
        np.testing.assert_array_equal(record.confidences, confidences)


def test_without_classes_nothing_claims_to_have_some() -> None:
    plain = image(0)
    del plain["cls_prob"]
    layout = decided(plain)
    assert not layout.has_classes
    record = read(layout, plain)
    assert not record.classes.any()
    np.testing.assert_array_equal(record.confidences, np.ones(5))
    assert decided(image(0)).has_classes
    assert not decided(image(0), probabilities="none").has_classes


def test_class_numbers_that_have_no_name() -> None:
    fields = image(0, obj_id=np.array([0, 1, 2, 3, CLASSES]))
    del fields["cls_prob"]
    with pytest.raises(UsageError, match=r"obj_id has class 7, .* are 7 classes.* layout background=counted"):
        decided(fields)
    record = read(decided(fields, background="counted"), fields | {"obj_id": np.array([1, 2, 3, 4, CLASSES])})
    np.testing.assert_array_equal(record.classes, [0, 1, 2, 3, 6])
    with pytest.raises(UsageError, match="cls_prob has 10 columns, and there are 7 classes: name them by `classes`"):
        decided(image(0, cls_prob=np.full((5, 10), 0.1, np.float32)))


# ------------------------------------------------------------------------------------------------ what is not to pass


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"boxes": None}, "it has no boxes, which the others have"),
        ({"boxes": np.ones((3, 4))}, "boxes are .3, 4., features .5, 16."),
        ({"image_w": None}, "boxes are in pixels, and the size of the image is unknown"),
        ({"boxes": np.array([[500.0, 0, 400, 100]] * 5)}, "ends before it begins"),
        ({"boxes": np.full((5, 4), np.nan)}, "a box is not finite"),
        ({"boxes": np.full((5, 4), 700.0)}, "is outside of 640 x 480 pixels"),
        ({"num_boxes": 0}, "says 0 boxes"),
        ({"num_boxes": 6}, "it says 6 boxes and has 5"),
        ({"num_boxes": np.nan}, "number of boxes is"),
        ({"image_w": np.inf}, "width is"),
        ({"image_w": -3}, "width is -3"),
        ({"features": np.array(["a", "b"])}, "not a table of numbers"),
        ({"features": np.full((5, 16), 1e18, np.float32)}, "a feature is not finite, or 10000 and more"),
        ({"features": np.full((5, 16), np.nan, np.float32)}, "a feature is not finite"),
        ({"features": np.full((5, 16), -np.inf, np.float32)}, "a feature is not finite"),
        ({"cls_prob": np.full((5, 8), 5.0, np.float32)}, "confidences are 5 to 5, not between 0 and 1"),
        ({"cls_prob": np.full((5, 8), -1.0, np.float32)}, "confidences are -1 to -1"),
        ({"cls_prob": np.full((5, 8), np.nan, np.float32)}, "confidences are nan"),
        ({"cls_prob": np.full((5, 9), 0.1, np.float32)}, "it has 8 class probabilities, there are 7 classes"),
        ({"cls_prob": np.full((4, 8), 0.1, np.float32)}, "for 5 regions"),
        ({"cls_prob": [[0.1], [0.1, 0.2]]}, "cls_prob is no array of numbers"),
        ({"features": [[0.1], [0.1, 0.2]]}, "features is no array of numbers"),
    ],
)
def test_a_record_that_contradicts_its_source_is_refused(changed: dict[str, Any], message: str) -> None:
    layout = decided(*[image(i, num_boxes=5) for i in range(5)])
    with pytest.raises(BadRecord, match=message):
        read(layout, image(9) | {"num_boxes": 5} | changed)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"unit": "inches"}, "layout unit=inches: give one of pixels, shares"),
        ({"units": "pixels"}, "layout has no 'units': it has .*unit"),
        ({"features": "roi"}, "layout features=roi: there is no such field, there are boxes, cls_prob, features"),
        ({"largest": "-1"}, "layout largest=-1: give a positive number"),
        ({"numbers": "float16"}, "its features say themselves"),
        ({"probabilities": "none", "background": "last"}, "layout background=last: it has no probabilities"),
    ],
)
def test_what_cannot_be_given(given: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        decided(image(0), **given)


def test_what_is_given_is_not_decided() -> None:
    large = image(0, features=np.full((5, 16), 2e4, np.float32))
    assert read(decided(large, largest="1e5"), large).features.max() == 2e4
    other = image(0) | {"mine": np.zeros((5, 16), np.float32)}
    assert not read(decided(other, features="mine"), other).features.any()
    named = image(0, image_id=17)
    assert decided(named).record("place", named).key == "place"
    assert decided(named, key="image_id").record("place", named).key == "17"


def test_a_layout_is_the_same_when_it_was_written_down() -> None:
    import json

    layout = decided(image(0))
    assert Layout(**json.loads(json.dumps(layout.described()))) == layout


def test_sources_without_what_is_needed() -> None:
    for missing, message in (("features", "no field of features is known"), ("boxes", "row 0 has no boxes")):
        fields = image(0)
        del fields[missing]
        with pytest.raises(UsageError, match=message):
            decided(fields)
    with pytest.raises(UsageError, match=re.escape("no field names the image")):
        decide([Sample("file", "", image(0))], CLASSES)


@pytest.mark.filterwarnings("error")
def test_a_damaged_number_in_the_sample_warns_of_nothing() -> None:
    """A signalling NaN, of which NumPy warns when it converts."""
    images = [image(i) for i in range(40)]
    for number, fields in enumerate(images):
        if number == 3:
            fields["features"].view(np.uint32)[0, 1] = 0x7FA00000
        fields |= {"features": b64(fields["features"]), "num_boxes": 5}
    assert decided(*images).numbers == "float32"
