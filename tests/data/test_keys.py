from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from imagebert.config import SourceConfig, UsageError
from imagebert.data.keys import RULES, InStores, Keys, apart, keys_of, suggest
from imagebert.data.pairs import Caption
from imagebert.data.region_writer import Target, write_regions
from imagebert.data.regions import RegionStore
from tests.corpora import random_record

COMPOSED, DECOMPOSED = "caf\u00e9.jpg", "cafe\u0301.jpg"


def known(*keys: str) -> np.ndarray:
    return np.sort(np.array([key.encode() for key in keys]))


@pytest.mark.parametrize(
    ("name", "key", "first"),
    [
        ("a.jpg", "a.jpg", "exact"),
        (COMPOSED, DECOMPOSED, "nfc"),
        ("Photo.JPG", "photo.jpg", "casefold"),
        ("STRASSE.jpg", "stra\u00dfe.jpg", "casefold"),
        ("CAF\u00c9.jpg", DECOMPOSED, "casefold"),
        ("val2014/a.b.jpg", "a.b.npz", "stem"),
        ("A.jpg", "x/a", "stem"),
        ("COCO_val2014_000000000042.jpg", "42", "number"),
        ("val/000.jpg", "0", "number"),
        ("2014_7.jpg", "2014.jpg", None),
        ("a.jpg", "b.jpg", None),
        (".jpg", ".png", None),
    ],
)
def test_each_rule_finds_what_those_before_it_find(name: str, key: str, first: str | None) -> None:
    finds = [rule for rule in RULES if Keys(known(key, "zzz"), rule).find([name])[0] >= 0]
    assert finds == ([] if first is None else list(RULES)[list(RULES).index(first) :])


# The same rules, written another way.
REFERENCE: dict[str, Callable[[str], str]] = {
    "exact": lambda name: name,
    "nfc": lambda name: unicodedata.normalize("NFC", name),
    "casefold": lambda name: unicodedata.normalize("NFD", name).casefold(),
    "stem": lambda name: PurePosixPath(unicodedata.normalize("NFD", name).casefold()).stem,
    "number": lambda name: str(int((re.findall(r"\d+", PurePosixPath(name).stem) or ["-1"])[-1])),
}


@pytest.mark.parametrize("rule", RULES)
def test_find_is_a_search_of_all_keys(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagebert.data.keys._BLOCK", 7)
    rng = np.random.default_rng(0)
    same = REFERENCE[rule]

    def names(count: int, numbers: int) -> list[str]:
        folders, words, suffixes = ("", "x/", "X/y/"), ("a_", "A_", "\u00e9_", "e\u0301_", ""), (".jpg", ".PNG", "")
        drawn = zip(*(rng.integers(0, n, count) for n in (3, 5, 2, numbers, 3)), strict=True)
        return [f"{folders[f]}{words[w]}{'00' * z}{n}{suffixes[s]}" for f, w, z, n, s in drawn]

    keys: dict[str, str] = {}
    for key in names(200, 400):
        keys.setdefault(same(key), key)
    looked_for = names(500, 400) + list(keys.values()) + ["words only", ""]
    found = Keys(known(*keys.values()), rule)
    for name, place in zip(looked_for, found.find(looked_for), strict=True):
        exact = name in keys.values()
        expected = name if exact else keys.get(same(name))
        assert (None if place < 0 else found[place]) == expected, name


def test_a_key_of_the_very_name_needs_no_rule() -> None:
    keys = Keys(known("/", "a.jpg"), "stem")  # of the first a rule leaves nothing
    assert [keys[place] for place in keys.find(["/", "a.jpg"])] == ["/", "a.jpg"]
    assert keys.find(["x/"])[0] < 0


def test_keys_that_a_rule_makes_the_same_are_refused() -> None:
    keys = known("train/1.jpg", "val/1.jpg", "b.jpg")
    Keys(keys, "casefold")
    with pytest.raises(UsageError, match=r"match stem: of the keys 'train/1.jpg' and 'val/1.jpg' \(one of 1 such"):
        Keys(keys, "stem")
    with pytest.raises(UsageError, match=r"'cafe\\u0301.jpg' and 'caf\\xe9.jpg'"):
        Keys(known(COMPOSED, DECOMPOSED), "nfc")
    Keys(known("a", "b", "c1"), "number")  # what has no number is what it is


def test_captions_take_the_key_that_the_store_has() -> None:
    captions = [Caption("a.png", "one"), Caption("lost.png", "two"), Caption("B.png", "three"), Caption("a.png", "4")]
    found = InStores([*captions, Caption("lost.png", "5")], Keys(known("a.jpg", "b.jpg"), "stem"), "STORE")
    assert [caption[:2] for caption in found] == [("a.jpg", "one"), ("b.jpg", "three"), ("a.jpg", "4")]
    assert found.missing == {"lost.png": 2}
    renamed, missing = found.notes()
    assert renamed.startswith("2 images have their regions under another name, by match stem")
    assert missing.startswith("1 images with 2 captions have no regions in STORE, such as 'lost.png'")
    everything = InStores(captions, None)
    assert list(everything) == captions
    assert everything.missing == {}
    assert everything.notes() == []


def test_two_images_are_never_one() -> None:
    """Not even where the second is the key itself."""
    for captions in (["a.png", "a.jpg"], ["a.jpg", "x/a.jpg"]):
        with pytest.raises(UsageError, match=r"match stem: the images 'a.*' and '.*a.jpg' both are 'a.jpg' of STORE"):
            list(InStores([Caption(name, "words") for name in captions], Keys(known("a.jpg"), "stem"), "STORE"))


def test_where_none_is_found_a_rule_is_named() -> None:
    found = InStores([Caption(DECOMPOSED, "x"), Caption("b.jpg", "y")], Keys(known(COMPOSED, "B.jpg")), "STORE")
    with pytest.raises(UsageError) as error:
        list(found)
    assert str(error.value) == (
        "none of the 2 images that have captions is in STORE, which has 'B.jpg' and not 'cafe\u0301.jpg': "
        r"match casefold finds 2 of the 2, such as 'cafe\u0301.jpg' as 'caf\xe9.jpg'"
    )
    with pytest.raises(UsageError, match="make the names match by an `image_key`"):
        list(InStores([Caption("x", "words")], Keys(known("a.jpg")), "STORE"))


def test_the_finest_rule_that_finds_most_is_suggested() -> None:
    keys = known("a.jpg", "b.jpg", "x/17.jpg")

    def rule(missing: list[str], *taken: str) -> tuple[str, int] | None:
        found = suggest(missing, keys, np.isin(keys, known(*taken) if taken else []))
        return found and (found.rule, found.many)

    assert rule(["A.jpg", "B.jpg"]) == ("casefold", 2)
    assert rule(["A.jpg", "b.png"]) == ("stem", 2)
    assert rule(["A.jpg", "COCO_0017.jpg"]) == ("number", 2)
    assert rule(["lost.jpg"]) is None
    # Another image's already; and one key cannot be two images'.
    assert rule(["A.jpg"], "a.jpg") is None
    assert rule(["a.png", "a.gif"]) is None


def test_names_that_look_alike_are_told_apart() -> None:
    assert apart(COMPOSED, DECOMPOSED) == (r"'caf\xe9.jpg'", r"'cafe\u0301.jpg'")
    assert apart("a b", "a\u00a0b") == ("'a b'", r"'a\xa0b'")
    assert apart(COMPOSED, "b") == ("'caf\u00e9.jpg'", "'b'")


def test_keys_of_several_stores(source: SourceConfig, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"class{i}" for i in range(5)]
    with write_regions(Target(tmp_path / "other", names, {"name": "random", "digest": "0"})) as writer:
        for key in ("image003.jpg", "a longer name than the others have.jpg"):
            writer.add(key, random_record(rng, 2))
    keys = keys_of([RegionStore(source.regions), RegionStore(tmp_path / "other")])
    expected = {f"image{i:03d}.jpg" for i in range(24)} | {"a longer name than the others have.jpg"}
    assert [key.decode() for key in keys] == sorted(expected)
