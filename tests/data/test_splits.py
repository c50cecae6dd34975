from __future__ import annotations

import pytest

from imagebert.config import UsageError
from imagebert.data.splits import SplitList, Splits


def lists(**given: str) -> Splits:
    return Splits([SplitList(name, images.split(), f"split {name}=FILE") for name, images in given.items()])


def test_the_split_of_an_image() -> None:
    splits = lists(train="a b b", test="c")
    assert dict(splits) == splits.plain == {"a": "train", "b": "train", "c": "test"}
    assert "d" not in splits
    assert splits.get("d") is None
    assert len(splits) == 3


def test_an_image_in_two_splits_is_refused() -> None:
    with pytest.raises(UsageError, match=r"image 'b' \(one of 2\) is in split train=FILE and in split test=FILE"):
        lists(train="a b c", dev="d", test="b e c b")
    twice = SplitList("train", ["a"], "one"), SplitList("train", ["a", "b"], "two")
    assert Splits(twice).plain == {"a": "train", "b": "train"}
    with pytest.raises(UsageError, match="split test=FILE lists no image"):
        lists(train="a", test="")


def test_images_that_no_caption_is_of_are_counted() -> None:
    splits = lists(train="a b c d e f", test="x y")
    for image in ("c", "x", "y", "z"):
        splits.get(image)
    splits.check()
    assert splits.notes() == ["split train=FILE: 5 of its 6 images have no caption: 'a', 'b', 'd', ..."]


def test_a_list_of_other_names_is_refused() -> None:
    splits = lists(train="a.jpg", test="caf\u00e9 b")
    for image in ("a.jpg", "b.jpg"):
        splits.get(image)
    with pytest.raises(UsageError, match=r"test=FILE: none of its 2 images has a caption: it lists 'café', the cap.*"):
        splits.check()
    alike = lists(test="caf\u00e9")
    assert "cafe\u0301" not in alike
    with pytest.raises(UsageError, match=r"it lists 'caf\\xe9', the captions are of 'cafe\\u0301'"):
        alike.check()
    nothing_was_read = lists(test="a")
    nothing_was_read.check()
