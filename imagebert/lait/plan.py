"""What it takes to make so many pairs: pages, core hours, requests, disk and GPUs, from shares and rates.

Each says where it is from: measured on a made-up web, published of the real one, or a goal. Whoever has built a first
archive gives his own shares (`imagebert lait plan --like OUT`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pyarrow import parquet

from imagebert.files import read_sealed
from imagebert.lait.engine import STEP, read_step
from imagebert.lait.whole import WANTED, check_build

_WARC_PAGES = 27_000  # HTML pages of a WARC of Common Crawl, of about 1 GB


@dataclass(frozen=True)
class LaitRates:
    """Holds the shares and rates that a plan is made of; LAIT_SOURCES says where each is from.

    Attributes:
        english: The share of pages that are read: English, with a picture, not opted out.
        pictures: The number of dominant pictures with a sentence on such a page.
        fetched: The share of addresses that bring a picture.
        kept: The share of pictures that pass all filters and are no near duplicates.
        related: The share of kept pictures that keep a sentence.
        pages_per_core: Pages read a second and core.
        looked_per_core: Pictures looked at a second and core, NSFW included.
        fetched_per_node: Pictures fetched a second and node.
        scored_per_gpu: Pairs scored a second and GPU, regions being there.
        extracted_per_gpu: Pictures whose regions are found a second and GPU.
        picture_bytes: Bytes of a picture.
        candidate_bytes: Bytes of a candidate in Parquet.
    """

    english: float = 0.35
    pictures: float = 1.5
    fetched: float = 0.65
    kept: float = 0.35
    related: float = 0.3
    pages_per_core: float = 800.0
    looked_per_core: float = 50.0
    fetched_per_node: float = 1_350.0
    scored_per_gpu: float = 2_000.0
    extracted_per_gpu: float = 150.0
    picture_bytes: float = 150_000.0
    candidate_bytes: float = 120.0


# Where each of the rates above is from.
SOURCES: Mapping[str, str] = {
    "english": "published, Common Crawl: 45 % are English; not all have a picture",
    "pictures": "a guess; made-up pages of benchmarks.lait have 2.8",
    "fetched": "published, img2dataset on LAION: 60 to 70 %",
    "kept": "published, Conceptual Captions: 35 %",
    "related": "published, COYO and LAION: a tenth to a half",
    "pages_per_core": "measured: benchmarks.lait",
    "looked_per_core": "measured: benchmarks.lait",
    "fetched_per_node": "published, img2dataset on 16 cores",
    "scored_per_gpu": "a goal, not measured on a GPU yet",
    "extracted_per_gpu": "a goal, not measured on a GPU yet",
    "picture_bytes": "a guess: a JPEG of 1,024 x 768",
    "candidate_bytes": "a guess; made-up pages pack into 28",
}


def measured(out: Path, rates: LaitRates = LaitRates()) -> LaitRates:
    """The shares that a build had, and the bytes of what it wrote, in place of the defaults.

    Raises:
        UsageError: the build has no whole step.
    """
    check_build(out)
    found = {name: read_step(out / name).counts for name in _STEPS if (out / name / STEP).is_file()}
    if not found:
        read_step(out / "candidates", "imagebert lait build")
    values = dict(vars(rates))
    pages = found.get("candidates", {})
    if pages.get("pages"):
        values["english"] = max(1e-6, pages.get("pages: used", 0) / pages["pages"])
        with_sentence = pages.get("pictures: dominant", 0) - pages.get("pictures: no sentence", 0)
        values["pictures"] = with_sentence / max(1, pages.get("pages: used", 0))
    fetched = found.get("pictures", {})
    lists = sorted((out / "pictures" / WANTED).glob("[0-9]*.parquet"))
    if asked := sum(parquet.read_metadata(path).num_rows for path in lists):
        # Of archives several may hold one picture.
        values["fetched"] = min(1.0, fetched.get("success", 0) / asked)
    if fetched.get("success") and (size := _bytes_of(out / "pictures", "*.tar")):
        values["picture_bytes"] = size / fetched["success"]
    if pages.get("sentences: kept") and (size := _bytes_of(out / "candidates", "*.parquet")):
        values["candidate_bytes"] = size / pages["sentences: kept"]
    kept = found.get("kept", {})
    if fetched.get("success") and "pictures: kept" in kept:
        values["kept"] = kept["pictures: kept"] / fetched["success"]
    if (out / "pairs.json").is_file():
        pairs = read_sealed(out / "pairs.json", "make the table again")["counts"]
        values["related"] = pairs["pairs"] / max(1, pairs["pictures"])
    return LaitRates(**values)


def _bytes_of(folder: Path, files: str) -> int:
    """Of what is still there: whoever is short of disk removes what the next step has read."""
    return sum(path.stat().st_size for path in folder.glob(files))


_STEPS = ("candidates", "pictures", "kept", "scored")


def plan(pages: int, cores: int, nodes: int, gpus: int, rates: LaitRates = LaitRates()) -> Mapping[str, float]:
    """What `pages` pages give and take; hours are those of all cores, nodes or GPUs together.

    Args:
        cores: for pages and filtering
        nodes: that fetch
        gpus: for regions and scores
    """
    used = pages * rates.english
    candidates = used * rates.pictures
    pictures = candidates * rates.fetched
    kept = pictures * rates.kept
    hour = 3600.0
    core_hours = pages / rates.pages_per_core / hour + pictures / rates.looked_per_core / hour
    gpu_hours = kept / rates.extracted_per_gpu / hour + 4 * kept / rates.scored_per_gpu / hour
    return {
        "WARC files": pages / _WARC_PAGES,
        "pages": pages,
        "pages used": used,
        "requests for pictures": candidates,
        "pictures": pictures,
        "pictures kept": kept,
        "pairs": kept * rates.related,
        "core hours": core_hours,
        "hours of all cores": core_hours / cores,
        "hours of fetching": candidates / rates.fetched_per_node / nodes / hour,
        "GPU hours": gpu_hours,
        "hours of all GPUs": gpu_hours / gpus,
        "TB of candidates": 4 * candidates * rates.candidate_bytes / 1e12,
        "TB of pictures fetched": pictures * rates.picture_bytes / 1e12,
        "TB of pictures kept": kept * rates.picture_bytes / 1e12,
    }
