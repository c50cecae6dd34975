"""A source of published region features: what kind of file it is, how its records are to be read, and what it holds."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from imagebert.config import UsageError
from imagebert.data.readers import BadRecord, Item, Loaded, Reader, check_files
from imagebert.data.readers.layout import Layout, Sample, decide
from imagebert.files import parse_json

# The sample: the first images, and a run of others from each of so many places.
_FIRST, _RUNS, _RUN = 16, 8, 8


class Format(NamedTuple):
    """A kind of published file."""

    what: str
    module: str  # imported when it is wanted: some need packages of their own
    reader: str
    named: bool = False  # it holds names of classes instead of numbers


_TSV, _LMDB, _FOLDER = ("tsv", "TsvReader"), ("lmdbs", "LmdbReader"), ("folders", "FolderReader")
FORMATS = {
    "bottom-up-attention": Format("TSV of base64 (Anderson et al. 2018), also ViLBERT's", *_TSV),
    "lxmert": Format("TSV of base64 with classes and confidences (Tan & Bansal 2019)", *_TSV),
    "vinvl": Format("features.tsv with predictions.tsv or label.tsv (Zhang et al. 2021)", "vinvl", "VinvlReader", True),
    "uniter": Format("LMDB of msgpack or npz, with its nbb json (Chen et al. 2020); also tensorpack's", *_LMDB),
    "vilbert": Format("LMDB of pickles (Lu et al. 2019), also MMF's, VOLTA's, tensorpack's", *_LMDB),
    "mmf": Format("folder of .npy with _info.npy, or of .npz", *_FOLDER),
    "npz": Format("folder of one .npz an image", *_FOLDER),
    "hdf5": Format("HDF5: a group an image (VL-T5, VOLTA), or rows with imgid2idx.pkl", "hdf5", "Hdf5Reader"),
    "tensors": Format("PyTorch's .pt, .pth, .th (Oscar, VisualBERT)", "tensors", "TensorReader"),
    "arrow": Format("Arrow, a row an image (Hugging Face's LXMERT)", "tables", "TableReader"),
    "parquet": Format("Parquet, a row an image, arrays as lists or as bytes", "tables", "TableReader"),
    "webdataset": Format("tars of .npz, or of .npy and .json, also gzipped", "webdataset", "WebdatasetReader"),
}


@dataclass(frozen=True)
class Survey:
    """What a source is, found by looking at some of it; plain data, so that all workers can be given the same.

    Attributes:
        source: what it is of, for people
        images: how many there are, about
        first: the first one's key
        regions: of the first
        sampled: how many images were looked at
    """

    source: str
    layout: Layout
    images: int
    first: str
    regions: int
    sampled: int

    def lines(self, names: str) -> list[str]:
        """What was found, for people.

        Args:
            names: where the names of the classes are from
        """
        layout, found = self.layout, self.layout.names
        size = "its size is not told"
        if {"width", "height"} <= found.keys():
            size = f"its size from {found['width']} and {found['height']}"
        classes = found.get("classes") or ("the most likely one" if layout.has_classes else "none, all are of class 0")
        rows = {
            "features": f"{found['features']}: {self.regions} regions of {layout.size} in the first image",
            "boxes": f"{found.get('boxes', 'behind the features')}: {layout.unit}, {layout.corners}; {size}",
            "classes": f"{classes}; {layout.classes:,} names from {names}" if layout.has_classes else classes,
            "probabilities": f"{found.get('probabilities')}: background {layout.background}",
            "confidences": found.get("confidences")
            or ("the class'" if "probabilities" in found else "none, all are 1"),
            "image": f"called by {found.get('key', 'its place in the file')}",
        }
        if "probabilities" not in found:
            del rows["probabilities"]
        if layout.encoded:
            rows["features"] += f", bytes of {layout.numbers}"
        if layout.axis == "columns":
            rows["features"] += ", as columns"
        return [
            f"{self.source}, about {self.images:,} images, the first is {self.first!r}",
            *(f"    {what:13} {text}" for what, text in rows.items()),
            f"    from {self.sampled} images; `layout` NAME=VALUE decides otherwise",
        ]


class LaidOutReader:
    """A reader's images as region records."""

    beside: Sequence[Path] = ()

    def __init__(self, reader: Reader, layout: Layout) -> None:
        self._reader, self._layout = reader, layout
        self.size = reader.size

    def items(self, share: int, shares: int) -> Iterator[Item]:
        for item in self._reader.items(share, shares):
            yield item._replace(parse=partial(self._loaded, item))

    def _loaded(self, item: Item) -> Loaded:
        return self._layout.record(item.key, item.parse())


def class_names(path: Path, lines: Sequence[str]) -> list[str]:
    """Names of region classes, in the order of their numbers: a name a line, or VinVL's JSON of label_to_idx.

    Args:
        lines: what the file holds

    Raises:
        UsageError: it is neither.
    """
    if not lines or not lines[0].startswith("{"):
        return [line.split("\t")[0] for line in lines]  # VinVL's labelmap.tsv has more columns
    numbers = parse_json("\n".join(lines), str(path)).get("label_to_idx")
    if not isinstance(numbers, dict) or sorted(map(str, numbers.values())) != sorted(
        map(str, range(1, len(numbers) + 1))
    ):
        raise UsageError(f"{path} has no label_to_idx that numbers names from 1 on, without the background")
    return sorted(numbers, key=lambda name: int(numbers[name]))


def open_reader(name: str, sources: Sequence[Path], classes: Sequence[str] = ()) -> Reader:
    """The reader of a format.

    Args:
        name: one of FORMATS; `detect` tells which
        sources: files or folders
        classes: names of the region classes, for formats that hold names instead of numbers

    Raises:
        UsageError: a source is missing, or is not of that format.
    """
    if name not in FORMATS:
        raise UsageError(f"no format {name!r}: there are auto, {', '.join(FORMATS)}")
    for source in sources:
        if not os.path.isdir(source):
            check_files([source])
    module = importlib.import_module(f"imagebert.data.readers.{FORMATS[name].module}")
    reader = getattr(module, FORMATS[name].reader)
    opened: Reader = reader(sources, classes) if FORMATS[name].named else reader(sources)
    return opened


def survey(reader: Reader, source: str, classes: int, given: Mapping[str, str]) -> Survey:
    """Looks at a sample of a source, and decides from it how the records are to be read.

    Args:
        source: what it reads, for people
        classes: how many classes have a name
        given: what of the layout is not to be decided; see `decide`

    Raises:
        UsageError: no image can be used, or the sample contradicts itself.
    """
    images = {item.where: item for item in islice(reader.items(0, 1), _FIRST)}
    about = len(images)
    if about == _FIRST:
        about = reader.size(0, 1) * about // max(1, list(images.values())[-1].done)
        for share in range(1, _RUNS):
            images |= {item.where: item for item in islice(reader.items(share, _RUNS), _RUN)}
    sample, problem = [], None
    for item in images.values():
        try:
            sample.append(Sample(item.where, item.key, item.load()))
        except UsageError as error:  # as the import does, which refuses the one image
            problem = problem or f"{item.where}: {error}"
    if not sample:
        raise UsageError(problem or f"{source} holds no images")
    layout = decide(sample, classes, given)
    first, problem = None, None
    for one in sample:
        try:
            first = first or layout.record(one.key, one.fields)
        except BadRecord as error:
            problem = problem or f"{one.where}: {error}"
    if first is None:
        raise UsageError(f"none of {len(sample)} sampled images can be used; {problem}")
    return Survey(source, layout, max(about, len(images)), first.key, len(first.record.boxes), len(sample))
