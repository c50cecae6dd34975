"""Lists of images that are a split each, as projects publish them, beside the captions that they choose from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from imagebert.data.keys import apart
from imagebert.errors import UsageError

_NAMED = 3  # images that a sentence names


class SplitList(NamedTuple):
    """The images of one split, or some of them, as a file lists them."""

    split: str
    images: Sequence[str]
    where: str  # for people


class Splits(Mapping[str, str]):
    """The split of each image that is listed. Remembers which images it was asked for.

    Raises:
        UsageError: a list is empty, or an image is in two splits.
    """

    def __init__(self, lists: Sequence[SplitList]) -> None:
        self.lists = lists
        self.plain: dict[str, str] = {}
        self._asked: set[str] = set()  # of those
        self._first = ""  # that it was asked for, listed or not
        for number, one in enumerate(lists):
            if not one.images:
                raise UsageError(f"{one.where} lists no image: give one a line")
            shared = [image for image in one.images if self.plain.get(image, one.split) != one.split]
            if shared:
                before = next(o for o in lists[:number] if o.split != one.split and shared[0] in set(o.images))
                raise UsageError(
                    f"image {shared[0]!r} (one of {len(set(shared)):,}) is in {before.where} and in {one.where}: an "
                    "image belongs to one split, take it out of the other"
                )
            self.plain.update(dict.fromkeys(one.images, one.split))

    def __getitem__(self, image: str) -> str:
        self._first = self._first or image
        split = self.plain[image]
        self._asked.add(image)
        return split

    def __iter__(self) -> Iterator[str]:
        return iter(self.plain)

    def __len__(self) -> int:
        return len(self.plain)

    def check(self) -> None:
        """Whether each list has an image that captions are of; called when all were read.

        Raises:
            UsageError: one has none.
        """
        for one in self.lists:
            if self._first and not any(image in self._asked for image in one.images):
                listed, there = apart(one.images[0], self._first)
                raise UsageError(
                    f"{one.where}: none of its {len(set(one.images)):,} images has a caption: it lists {listed}, the "
                    f"captions are of {there}; write images as the captions' file does"
                )

    def notes(self) -> list[str]:
        """Sentences on listed images that no caption is of, when all were read."""
        notes = []
        for one in self.lists:
            images = list(dict.fromkeys(one.images))
            unknown = [image for image in images if image not in self._asked]
            if unknown:
                named = ", ".join(map(repr, unknown[:_NAMED])) + ", ..." * (len(unknown) > _NAMED)
                notes.append(f"{one.where}: {len(unknown):,} of its {len(images):,} images have no caption: {named}")
        return notes
