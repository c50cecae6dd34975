"""Which key of a region store an image's name is: as captions write names, and as stores have them.

A name is looked for as it is. Where a project wrote the names of its pictures in another way than whoever extracted
them, a rule is chosen for all of a source (`imagebert pairs --match`): a name is the key of which the rule makes the
same. Nothing is guessed for one image alone, and what a rule cannot tell apart is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imagebert.data.pairs import Caption
from imagebert.data.regions import RegionStore, find_sorted
from imagebert.errors import UsageError

_BLOCK = 1 << 16  # names that are looked for, or keys that are rewritten, at once


def _nfc(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _casefold(name: str) -> str:
    return _nfc(_nfc(name).casefold())


def _stem(name: str) -> str:
    file = _casefold(name).rpartition("/")[2]
    return file.rpartition(".")[0] or file


def _number(name: str) -> str:
    stem = _stem(name)
    digits = re.findall("[0-9]+", stem)
    return (digits[-1].lstrip("0") or "0") if digits else stem


# Each makes the same of all that the one before it makes the same of, and of more. Of "" nothing is the same.
RULES: dict[str, Callable[[str], str]] = {
    "exact": str,
    "nfc": _nfc,  # one way to write é
    "casefold": _casefold,
    "stem": _stem,  # without folders and suffix
    "number": _number,  # the last one of the stem, without zeros in front; a stem that has none stays
}


class Keys:
    """The keys of region stores, among which names are looked for.

    Args:
        known: [K] UTF-8, sorted, each once; see `keys_of`

    Raises:
        UsageError: two keys are the same by the rule.
    """

    def __init__(self, known: NDArray[np.bytes_], rule: str = "exact") -> None:
        self.known, self.rule = known, rule
        self._forms = known
        self._places = np.arange(0)
        if rule == "exact":
            return
        blocks = (known[start : start + _BLOCK] for start in range(0, len(known), _BLOCK))
        forms = np.concatenate([_encoded(map(RULES[rule], map(_decoded, block.tolist()))) for block in blocks])
        self._places = np.argsort(forms, kind="stable")
        self._forms = forms[self._places]
        twice = np.flatnonzero((self._forms[1:] == self._forms[:-1]) & (self._forms[1:] != b""))
        if len(twice):
            one, other = (self[self._places[twice[0] + more]] for more in (0, 1))
            raise UsageError(
                f"match {rule}: of the keys {' and '.join(apart(one, other))} (one of {len(twice):,} such pairs) it "
                "makes the same, so that no name is one of them: take a rule before it, or an `image_key`"
            )

    def __getitem__(self, place: int | np.integer) -> str:
        return _decoded(self.known[place])

    def find(self, names: Sequence[str]) -> NDArray[np.int64]:
        """The place of each name's key among `known` [n]; -1: there is none. A key of that very name comes first."""
        found = find_sorted(self.known, _encoded(names))
        if self.rule != "exact":
            left = np.flatnonzero(found < 0)
            forms = _encoded(RULES[self.rule](names[place]) for place in left.tolist())
            at = find_sorted(self._forms, forms)
            found[left] = np.where((at >= 0) & (forms != b""), self._places[at], -1)
        return found


class InStores:
    """Captions whose image has regions, under the key that it has there; the others are left out and noted.

    Args:
        keys: None: all have, under their own name
        where: what `keys` are of, for people

    Attributes:
        missing: images without regions, and how many captions each has

    Raises:
        UsageError: no image has regions, or two images are one by the rule.
    """

    def __init__(self, captions: Iterable[Caption], keys: Keys | None, where: str = "") -> None:
        self.keys, self.where = keys, where
        self.missing: dict[str, int] = {}
        self._captions = captions
        self._taken = np.zeros(0 if keys is None else len(keys.known), bool)
        self._names: dict[int, str] = {}  # place -> the name that found it, where a rule could find it by two

    def __iter__(self) -> Iterator[Caption]:
        return iter(self._captions) if self.keys is None else self._found(self.keys)

    def _found(self, keys: Keys) -> Iterator[Caption]:
        captions = iter(self._captions)
        while block := list(islice(captions, _BLOCK)):
            for caption, place in zip(block, keys.find([c.image for c in block]).tolist(), strict=True):
                if place < 0:
                    self.missing[caption.image] = self.missing.get(caption.image, 0) + 1
                    continue
                self._taken[place] = True
                if keys.rule != "exact":
                    before = self._names.setdefault(place, caption.image)
                    if before != caption.image:
                        raise UsageError(
                            f"match {keys.rule}: the images {' and '.join(apart(before, caption.image))} both are "
                            f"{keys[place]!r} of {self.where}: take a rule before it, or an `image_key`"
                        )
                yield caption._replace(image=keys[place])
        if self.missing and not self._taken.any():
            name, key = apart(next(iter(self.missing)), keys[0])
            raise UsageError(
                f"none of the {len(self.missing):,} images that have captions is in {self.where}, which has {key} and "
                f"not {name}: {self._suggestion(keys) or 'make the names match by an `image_key`'}"
            )

    def notes(self) -> list[str]:
        """Sentences on what was found, when all captions were read."""
        notes = []
        if self.keys is not None and (renamed := sum(name != self.keys[at] for at, name in self._names.items())):
            notes.append(f"{renamed:,} images have their regions under another name, by match {self.keys.rule}")
        if self.keys is not None and self.missing:
            notes.append(
                f"{len(self.missing):,} images with {sum(self.missing.values()):,} captions have no regions in "
                f"{self.where}, such as {next(iter(self.missing))!r}: left out, and listed in without_regions.txt"
            )
            notes += filter(None, [self._suggestion(self.keys)])
        return notes

    def _suggestion(self, keys: Keys) -> str:
        """A sentence on the rule that would find more; "" where none does."""
        found = suggest(list(self.missing), keys.known, self._taken, keys.rule)
        many = f"{found.many:,} of the {len(self.missing):,}" if found else ""
        return f"match {found.rule} finds {many}, such as {' as '.join(found.example)}" if found else ""


class Suggestion(NamedTuple):
    """A rule that finds more: how many names, and one of them with its key, as `apart` shows them."""

    rule: str
    many: int
    example: tuple[str, str]


def suggest(
    missing: Sequence[str], known: NDArray[np.bytes_], taken: NDArray[np.bool_], beyond: str = "exact"
) -> Suggestion | None:
    """The rule behind `beyond` that finds most of the `missing` names, each alone, among keys that are not `taken`.

    Args:
        known: see `Keys`
        taken: [K] keys that are other names'
    """
    best: Suggestion | None = None
    rules = list(RULES)
    for rule in rules[rules.index(beyond) + 1 :]:
        try:
            keys = Keys(known, rule)
        except UsageError:  # it could not be used
            continue
        found = keys.find(missing)
        hits = np.flatnonzero(found >= 0)
        places = found[hits]
        usable = len(np.unique(places)) == len(places) and not taken[places].any()
        if usable and len(hits) > (best.many if best else 0):
            best = Suggestion(rule, len(hits), apart(missing[hits[0]], keys[places[0]]))
        if best and best.many == len(missing):
            break
    return best


def keys_of(stores: Sequence[RegionStore]) -> NDArray[np.bytes_]:
    """All keys of some stores [K], sorted, each once."""
    parts = [np.ascontiguousarray(store.index["key"]) for store in stores]
    return parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts))


def apart(one: str, other: str) -> tuple[str, str]:
    """Two names as a sentence can hold them: escaped where they look alike and are not."""
    same, there = (unicodedata.normalize("NFKC", name) for name in (one, other))
    return (ascii(one), ascii(other)) if same == there and one != other else (repr(one), repr(other))


def _encoded(names: Iterable[str]) -> NDArray[np.bytes_]:
    return np.array([name.encode("utf-8", "surrogateescape") for name in names], np.bytes_)


def _decoded(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")
