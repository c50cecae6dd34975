"""Data from Python: photographs, captions and published features to stores, and whether what is kept is whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imagebert.api.stores import Names, Paths, StoreOptions, names_of, paths_of
from imagebert.data.captions import Captions
from imagebert.data.captions import Columns as Columns
from imagebert.data.folder import clear_lock
from imagebert.data.keys import InStores, Keys, keys_of
from imagebert.data.pairs import Caption, PairStore, write_pairs
from imagebert.data.readers import Reader
from imagebert.data.readers.detect import detect
from imagebert.data.readers.source import FORMATS, LaidOutReader, Survey, class_names, open_reader, survey
from imagebert.data.records import FeatureType
from imagebert.data.region_writer import Target
from imagebert.data.regions import RegionStore
from imagebert.data.splits import SplitList, Splits
from imagebert.data.tokens import Tokenizer
from imagebert.data.transfer import Transferred, describe_sources, transfer
from imagebert.errors import UsageError
from imagebert.files import digest_of
from imagebert.launch import see_own_gpu
from imagebert.log import Progress, place, track
from imagebert.regions.vg import VisualGenome
from imagebert.workers import workers

if TYPE_CHECKING:
    from imagebert.regions.extract import Extracted
    from imagebert.regions.preview import Preview
    from imagebert.verify import Found

PathLike = str | os.PathLike[str]
Match = Literal["exact", "nfc", "casefold", "stem", "number"]


def extract(
    images: PathLike,
    out: PathLike,
    extractor: PathLike | VisualGenome,
    *,
    features: FeatureType = "int8",
    decoder: Literal["auto", "pillow", "dali"] = "auto",
    part: tuple[int, int] = (0, 1),
    overwrite: bool = False,
) -> Extracted:
    """Extracts the regions of every picture below a folder into a region store, and of those in tars below it.

    An image's key is its path below that folder. A picture in a tar has the key that captions of the same tar name: its
    name up to the first dot, without a suffix. A call that was killed goes on where it stopped when it is made again.
    Ranks share the work: each claims some pictures when it is done with those before.

    Args:
        images: The folder of pictures, of tars as webdataset and img2dataset write them, or of both; or one tar.
        out: The region store to write.
        extractor: The YAML file that describes the detector and the backbone (docs/extract.md), or the Visual Genome
            detector: its weights, or those with what is asked of it (docs/detector.md).
        features: The type in which features are stored.
        decoder: The program that decodes JPEGs. "auto" takes DALI where it is installed and there is a GPU, else
            Pillow.
        part: A pair (k, n): only every nth picture is extracted, beginning with picture k, where k is 0 to n - 1.
        overwrite: Whether a store that is already at `out` is replaced, once the new one is whole.

    Returns:
        How many pictures there are, were stored and were refused, and what else the folder holds.

    Raises:
        UsageError: There is no such folder, it has no picture that can be read, two pictures have one key, or the
            extractor's description is wrong.
        OSError: The disk is full or fails, or another rank is gone.
    """
    from imagebert.regions.extract import extract as extract_pictures
    from imagebert.regions.extractor import open_extractor

    if place().ranks > 1:
        see_own_gpu()
    with workers() as team:
        detector = open_extractor(extractor if isinstance(extractor, VisualGenome) else Path(extractor))
        return extract_pictures(Path(images), Path(out), detector, features, overwrite, part, decoder, team)


def preview_regions(images: PathLike, store: PathLike, count: int, page: PathLike | None = None) -> Preview:
    """Writes a page of pictures with the boxes, classes and confidences that a region store has of them.

    Whoever looks at it sees whether a detector's weights fit how pictures are prepared for it.

    Args:
        images: The folder of pictures that the regions were extracted from.
        store: The region store.
        count: The number of images to show, 1 to 200, spread evenly over the store.
        page: The HTML file to write. None puts it beside the store, as STORE.preview.html.

    Returns:
        Where the page is, how many images it shows, and of how many the picture is gone.

    Raises:
        UsageError: The store is none or is damaged, the count is out of range, or the page cannot be written.
        OSError: The disk is full or fails.
    """
    from imagebert.regions.preview import page_of, write_preview

    out = page_of(Path(store)) if page is None else Path(page)
    return write_preview(RegionStore(Path(store)), Path(images), out, count)


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """Says how `imagebert.api.pairs` reads a file of captions, where what it finds by itself is not what is meant.

    Args:
        columns: The names of a table's columns.
        image_key: A pattern for an image's key in the region stores, made of {image} {stem} {id} {row} {url} {crc32},
            such as "COCO_val2014_{id:012d}". None takes the image's name as it is.
        match: The way in which an image's name and its key in the region stores may differ (docs/captions.md).
        strict: Whether a caption that cannot be used is an error. Otherwise it is left out and counted.
    """

    columns: Columns = field(default_factory=Columns)
    image_key: str | None = None
    match: Match | None = None
    strict: bool = False


@dataclass(frozen=True)
class Paired:
    """Describes a pair store that `imagebert.api.pairs` wrote or found written, and what became of each caption.

    The captions that came are those stored, refused, left out, not downloaded and without regions, added up.

    Attributes:
        folder: The pair store.
        images: The number of images that have captions in it.
        splits: The names of its splits.
        came: The number of captions in the file.
        stored: The number of captions in the store.
        refused: The number of captions that cannot be used.
        left_out: The number of captions of images that no split lists.
        not_downloaded: The number of captions of images that the file says could not be downloaded.
        without_regions: The number of captions of images that are in none of the region stores.
        notes: Sentences on what a person should know of the store.
    """

    folder: Path
    images: int
    splits: tuple[str, ...]
    came: int
    stored: int
    refused: int
    left_out: int
    not_downloaded: int
    without_regions: int
    notes: tuple[str, ...]


def pairs(
    captions: PathLike,
    out: PathLike,
    vocabulary: PathLike,
    *,
    format: str = "auto",
    splits: Mapping[str, Names] | Sequence[tuple[str, Names]] = (),
    regions: Paths = (),
    overwrite: bool = False,
    options: CaptionOptions = CaptionOptions(),
) -> Paired:
    """Tokenises captions into a pair store.

    The same call again leaves a finished store as it is.

    Args:
        captions: A table, or a file or folder as a project publishes it.
        out: The pair store to write.
        vocabulary: The folder of a BERT, or its vocab.txt.
        format: The format of `captions`. "auto" goes by the content.
        splits: The images of each split, as a file of names or a list of them; captions of other images are left out.
            Where none is given, the splits are those that the file itself names.
        regions: One region store, or several. Captions of images that are in none of them are left out and listed.
        overwrite: Whether a store that is already at `out` is replaced, once the new one is whole.
        options: How the file is read, where that is not found by itself.

    Returns:
        What became of the captions, counted.

    Raises:
        UsageError: The file cannot be read, no caption or no image of it can be used, or `out` exists already.
        OSError: The disk is full or fails.
    """
    job = _PairsJob(Path(captions), format, options, _split_lists(splits), paths_of(regions))
    return job.run(Path(out), Tokenizer(Path(vocabulary)), overwrite)


class _PairsJob:
    """Captions of one file on their way into a store."""

    def __init__(
        self, path: Path, format: str, options: CaptionOptions, splits: list[SplitList], regions: list[Path]
    ) -> None:
        self.path, self.format, self.options = path, format, options
        self.splits = Splits(splits)
        if options.match and not regions:
            raise UsageError(f"match {options.match} finds images in region stores: name them in `regions`")
        self.stores = [RegionStore(store) for store in regions]
        self.captions = Captions(path, format, options.columns, options.image_key, self.splits, options.strict)
        keys = Keys(keys_of(self.stores), options.match or "exact") if self.stores else None
        self.found = InStores(self.captions, keys, " and ".join(map(str, regions)))

    def run(self, out: Path, tokenizer: Tokenizer, overwrite: bool) -> Paired:
        job = self._identity(tokenizer)
        there = (out / "meta.json").is_file() and not overwrite
        if there and PairStore(out).meta["origin"].get("job") == job:  # this very call has ended well
            clear_lock(out)  # where it was killed just behind its last rename
            return _paired(out)

        def chosen() -> Iterator[Caption]:
            yield from self.found
            self.splits.check()

        def origin() -> dict[str, Any]:
            notes = [*self.splits.notes(), *self.found.notes()]
            counts = {**vars(self.captions.counts), "without_regions": sum(self.found.missing.values())}
            return {"job": job, **counts, "notes": notes}

        def lists() -> dict[str, list[str]]:
            return {"without_regions.txt": list(self.found.missing)} if self.found.missing else {}

        shown = track(chosen(), f"Writing {out.name}", "captions")
        captions = self.captions
        write_pairs(out, shown, tokenizer, overwrite, lambda: captions.dataset, origin, lists, captions.refuse)
        return _paired(out)

    def _identity(self, tokenizer: Tokenizer) -> str:
        """The digest of what decides what is written."""
        options = self.options
        given: list[Any] = [self.format, vars(options.columns), options.image_key, self.splits.plain, tokenizer.digest]
        if self.stores:
            given += [options.match, [store.content for store in self.stores]]
        return digest_of([describe_sources([self.path]), given])


def _paired(out: Path) -> Paired:
    """What a store says of how it was made.

    Raises:
        OSError: its counts do not add up.
    """
    store = PairStore(out)
    counts = {"not_downloaded": 0, "without_regions": 0, "notes": [], **store.meta["origin"]}
    apart = {name: counts[name] for name in ("refused", "left_out", "not_downloaded", "without_regions")}
    if counts["came"] != len(store) + sum(apart.values()):
        raise OSError(f"{counts} do not add up to the {len(store)} captions in {out}: do not use it")
    shared = store.in_two_splits()
    first = [f"{len(shared):,} images have captions in several splits, such as {shared[0]!r}"] if shared else []
    notes = (*counts["notes"], *first)
    return Paired(out, len(store.images), tuple(store.splits), counts["came"], len(store), **apart, notes=notes)


def _split_lists(splits: Mapping[str, Names] | Sequence[tuple[str, Names]]) -> list[SplitList]:
    lists = []
    for name, given in splits.items() if isinstance(splits, Mapping) else splits:
        where = f"split {name}={given}" if isinstance(given, str | os.PathLike) else f"split {name}"
        lists.append(SplitList(name, names_of(given, where), where))
    return lists


@dataclass(frozen=True)
class Features:
    """Describes published region features that were looked at: what they are, and how they will be read.

    Attributes:
        format: One of the names that `imagebert.api.formats` lists.
        sources: The files or folders.
        classes: The names of the region classes, in the order of their numbers.
        survey: What was found by looking at some images.
        lines: What was found, as lines of text for people.
    """

    format: str
    sources: tuple[Path, ...]
    classes: tuple[str, ...]
    survey: Survey
    lines: tuple[str, ...]
    _reader: Reader = field(repr=False)


def formats() -> dict[str, str]:
    """Lists the formats of published region features that can be read, each with a phrase that describes it."""
    return {"auto": "whichever of these it is", **{name: format_.what for name, format_ in FORMATS.items()}}


def survey_features(
    sources: Paths,
    *,
    format: str = "auto",
    classes: Names | None = None,
    layout: Mapping[str, str] | None = None,
) -> Features:
    """Says what published region features hold, and how `imagebert.api.import_features` would read them.

    Args:
        sources: The files or folders of features.
        format: One of the names that `imagebert.api.formats` lists. "auto" finds which one it is.
        classes: The names of the region classes, as a list or as a file with one name a line. None takes the classes
            for Visual Genome's, without names.
        layout: How the features are read, where that differs from what is found, such as {"boxes": "normalized"}
            (docs/regions.md).

    Returns:
        What was found, which `imagebert.api.import_features` takes.

    Raises:
        UsageError: A source is missing or of another format, no image can be used, or the layout cannot be told.
        OSError: The disk fails, or another rank is gone.
    """
    paths, known = paths_of(sources), list[str]()
    if classes is not None:
        lines = names_of(classes, "classes")
        known = class_names(Path(classes), lines) if isinstance(classes, str | os.PathLike) else lines
    with workers() as team:
        name = team.agreed(lambda: detect(paths)) if format == "auto" else format
        reader = open_reader(name, paths, known)
        # Visual Genome's classes, when their names are not told: most published features have them.
        names = known or [f"object {number}" for number in range(1600)]
        found = team.agreed(lambda: survey(reader, f"{paths[0]}: {name}", len(names), layout or {}))
    told = "Visual Genome, not told"
    if known:
        told = os.fspath(classes) if isinstance(classes, str | os.PathLike) else "a list"
    return Features(name, tuple(paths), tuple(names), found, tuple(found.lines(told)), reader)


def import_features(
    source: Features | Paths,
    out: PathLike,
    *,
    extractor: str | None = None,
    strict: bool = False,
    options: StoreOptions = StoreOptions(),
) -> Transferred:
    """Writes published region features as a region store.

    A call that was killed goes on where it stopped when it is made again, and one that ended well leaves the store as
    it is. Ranks share the work.

    Args:
        source: What `imagebert.api.survey_features` found, or the files or folders of features, which are then surveyed
            first.
        out: The region store to write.
        extractor: The name of what made the features, for the store's meta.json. None takes the format's name.
        strict: Whether an image that cannot be used is an error. Otherwise it is left out and counted.
        options: How the store is written. Features are stored as int8 where the options do not say.

    Returns:
        How many images came, were stored and were refused.

    Raises:
        UsageError: A source is missing or of another format, the layout cannot be told, no image can be used, or `out`
            exists already.
        OSError: The disk is full or fails, or another rank is gone.
    """
    given = source if isinstance(source, Features) else survey_features(source)
    layout, found = given.survey.layout, given.survey.layout.described()
    described = {"name": extractor or given.format, "digest": None, "imported_from": given.format, "layout": found}
    target = Target(
        *(Path(out), list(given.classes), described, options.features or "int8"),
        shard_bytes=options.shard_gib << 30,
        overwrite=options.overwrite,
        feature_size=layout.size,
        has_classes=layout.has_classes,
    )
    with workers() as team:
        # Of which the first alone asks whether they are the same.
        known = describe_sources([*given.sources, *given._reader.beside]) if team.rank == 0 else []
        job = {"import": given.format, "layout": found, "sources": known, "classes": list(given.classes)}
        return transfer(LaidOutReader(given._reader, layout), target, job, strict=strict, workers=team)


def verify(path: PathLike, *, threads: int | None = None) -> list[Found]:
    """Compares everything that this program wrote at and below a path with its checksums, byte for byte.

    Args:
        path: A store, a model, a run or an evaluation, or a folder that holds many.
        threads: The number of threads that read at once. None takes one for each core.

    Returns:
        For each artefact its kind, its path, what it holds, and a sentence for each problem.

    Raises:
        UsageError: The path holds nothing that this program wrote.
        OSError: The disk fails.
    """
    from imagebert.verify import verify as verify_all

    looks = 0
    with Progress("Verifying", None, "looks") as progress:

        def tick(what: str) -> None:
            nonlocal looks
            looks += 1
            progress.update(looks, what)

        return verify_all(Path(path), threads or os.cpu_count() or 1, tick)


def accept(path: PathLike) -> list[str]:
    """Writes digests for what older versions wrote without them, and for models that were changed on purpose.

    Args:
        path: A store, a model, a run or an evaluation, or a folder that holds many.

    Returns:
        A sentence for each artefact that was changed.

    Raises:
        UsageError: An artefact is damaged.
        OSError: The disk is full or fails.
    """
    from imagebert.verify import accept as accept_all

    return accept_all(Path(path))
