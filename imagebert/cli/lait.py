"""Commands that build LAIT: from web pages to weakly supervised pairs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from imagebert.cli.commands import Command, command
from imagebert.cli.options import add_json, finite, positive, preview
from imagebert.cli.printing import check_json, is_first, print_report, write_json

if TYPE_CHECKING:
    from imagebert.api import LaitOptions, LaitStep


def _add_engine(parser: ArgumentParser) -> None:
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="thresholds (the lait.yaml that ships)")
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help="thresholds in place of its own")
    parser.add_argument("--processes", type=positive, metavar="N", help="of this machine, or a rank (one a core; 1)")
    parser.add_argument("--ray", default="", metavar="ADDRESS", help="a Ray cluster does the work: auto, or HOST:PORT")
    parser.add_argument("--memory", type=finite, default=4.0, metavar="GIB", help="of the tables (%(default)s GiB)")
    add_json(parser)


def _options(parsed: Namespace) -> LaitOptions:
    from imagebert import api

    check_json(parsed.json)
    return api.LaitOptions(
        recipe=parsed.recipe,
        overrides=parsed.overrides,
        processes=parsed.processes,
        ray=parsed.ray,
        memory_gib=parsed.memory,
        **{name: vars(parsed)[name] for name in ("blocked", "again") if vars(parsed).get(name)},
    )


def _tell(done: LaitStep, parsed: Namespace) -> int:
    _print(f"{done.folder}: {done.files} files", done.counts, parsed)
    return 0


def _print(title: str, counts: Mapping[str, int], parsed: Namespace) -> None:
    if is_first():
        print_report(title, {name: f"{count:,}" for name, count in counts.items()})
        write_json(parsed.json, dict(counts))


def _pages_options(parser: ArgumentParser) -> None:
    parser.add_argument("crawl", type=Path, metavar="CRAWL", help="a WARC file, or a folder of such")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of candidates to write")
    _add_engine(parser)


@command("pages", "Web pages to their dominant pictures and sentences", _pages_options, ranks="all", header=True)
def pages(parsed: Namespace) -> int:
    from imagebert import api

    return _tell(api.lait_pages(parsed.crawl, parsed.out, _options(parsed)), parsed)


def _fetch_options(parser: ArgumentParser) -> None:
    parser.add_argument("candidates", type=Path, metavar="CANDIDATES", help="what `lait pages` wrote")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of tars to write, as img2dataset's")
    parser.add_argument("--archived", type=Path, metavar="CRAWL", help="take pictures from these WARC files instead")
    _add_hosts(parser)
    _add_engine(parser)


def _add_hosts(parser: ArgumentParser) -> None:
    parser.add_argument("--blocked", type=Path, metavar="FILE", help="hosts that are never asked, one a line")
    parser.add_argument("--again", action="store_true", help="ask once more for what failed and may come another time")


@command("fetch", "Download the pictures, or take them from archives", _fetch_options, ranks="all", header=True)
def fetch(parsed: Namespace) -> int:
    from imagebert import api

    archives = () if parsed.archived is None else parsed.archived
    return _tell(api.lait_fetch(parsed.candidates, parsed.out, _options(parsed), archives=archives), parsed)


def _filter_options(parser: ArgumentParser) -> None:
    parser.add_argument("candidates", type=Path, metavar="CANDIDATES", help="what `lait pages` wrote")
    parser.add_argument("pictures", type=Path, metavar="PICTURES", help="tars, by `lait fetch` or img2dataset")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of tars to write")
    _add_nsfw(parser)
    _add_engine(parser)


def _add_nsfw(parser: ArgumentParser) -> None:
    parser.add_argument("--nsfw", type=Path, metavar="FILE", help="YAML of an ONNX file that tells unsafe pictures")


@command("filter", "Keep pictures: large, natural, safe, not there twice", _filter_options, ranks="all", header=True)
def filter_(parsed: Namespace) -> int:
    from imagebert import api

    done = api.lait_filter(parsed.candidates, parsed.pictures, parsed.out, _options(parsed), nsfw=parsed.nsfw)
    return _tell(done, parsed)


def _score_options(parser: ArgumentParser) -> None:
    parser.add_argument("kept", type=Path, metavar="KEPT", help="what `lait filter` wrote")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    _add_model(parser)
    parser.add_argument("--regions", type=Path, metavar="STORE", help="region store of the kept pictures")
    _add_scorer(parser)
    _add_engine(parser)


def _add_scorer(parser: ArgumentParser) -> None:
    parser.add_argument("--scorer", type=Path, metavar="FILE", help="relevance model (the one that ships)")


def _add_model(parser: ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, metavar="RUN", help="a run or model folder, whose score is a feature")


@command("score", "How likely each sentence belongs to its picture", _score_options, ranks="all", header=True)
def score(parsed: Namespace) -> int:
    from imagebert import api

    done = api.lait_score(
        *(parsed.kept, parsed.out, _options(parsed)),
        model=parsed.model,
        regions=parsed.regions,
        scorer=parsed.scorer,
    )
    return _tell(done, parsed)


def _pairs_options(parser: ArgumentParser) -> None:
    parser.add_argument("scored", type=Path, metavar="SCORED", help="what `lait score` wrote")
    parser.add_argument("out", type=Path, metavar="OUT", help="Parquet file to write, for `imagebert pairs`")
    _add_engine(parser)


@command("pairs", "The best sentence of each picture, as a table of pairs", _pairs_options, ranks="first_others_wait")
def pairs(parsed: Namespace) -> int:
    from imagebert import api

    _print(str(parsed.out), api.lait_pairs(parsed.scored, parsed.out, _options(parsed)), parsed)
    return 0


def _build_options(parser: ArgumentParser) -> None:
    parser.add_argument("crawl", type=Path, metavar="CRAWL", help="a WARC file, or a folder of such")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--archived", action="store_true", help="the archives hold the pictures too: fetch nothing")
    _add_model(parser)
    parser.add_argument("--extractor", type=Path, metavar="FILE", help="what finds the regions that --model needs")
    _add_nsfw(parser)
    _add_scorer(parser)
    _add_hosts(parser)
    _add_engine(parser)


@command("build", "All steps, from archives to a table of pairs", _build_options, ranks="all", header=True)
def build(parsed: Namespace) -> int:
    from imagebert import api

    counts = api.lait_build(
        *(parsed.crawl, parsed.out, _options(parsed)),
        archived=parsed.archived,
        model=parsed.model,
        extractor=parsed.extractor,
        nsfw=parsed.nsfw,
        scorer=parsed.scorer,
    )
    _print(str(parsed.out / "pairs.parquet"), counts, parsed)
    return 0


def _report_options(parser: ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of a build")
    parser.add_argument("--page", type=Path, metavar="FILE", help="HTML file to write (OUT/report.html)")
    parser.add_argument("--pictures", type=preview, default=60, metavar="N", help="to show (%(default)s)")
    add_json(parser)


@command("report", "A page: what came in, what went out, why, with pictures", _report_options)
def report(parsed: Namespace) -> int:
    from imagebert import api

    check_json(parsed.json)
    done = api.lait_report(parsed.out, parsed.page, count=parsed.pictures)
    print(f"{done.page}: {len(done.steps)} steps, {done.pictures} pictures")
    write_json(parsed.json, {name: dict(counts) for name, counts in done.steps.items()})
    return 0


def _train_options(parser: ArgumentParser) -> None:
    parser.add_argument("labels", type=Path, metavar="LABELS", help="CSV: key, sentence, label (1 or 0)")
    parser.add_argument("scored", type=Path, metavar="SCORED", help="what `lait score` wrote")
    parser.add_argument("out", type=Path, metavar="OUT", help="relevance model to write, for `lait score --scorer`")


@command("train-scorer", "Train the relevance model on sentences that you judged", _train_options)
def train_scorer(parsed: Namespace) -> int:
    from imagebert import api

    counts = api.lait_train_scorer(parsed.labels, parsed.scored, parsed.out)
    print(f"{parsed.out}: trained on {counts['1']} sentences that fit and {counts['0']} that do not")
    return 0


def _sample_options(parser: ArgumentParser) -> None:
    parser.add_argument("scored", type=Path, metavar="SCORED", help="what `lait score` wrote")
    parser.add_argument("out", type=Path, metavar="LABELS", help="CSV to write")
    parser.add_argument("--count", type=positive, default=200, metavar="N", help="sentences (%(default)s)")


@command("sample", "Sentences to judge, as the CSV that `lait train-scorer` reads", _sample_options)
def sample(parsed: Namespace) -> int:
    from imagebert import api

    count = api.lait_sample(parsed.scored, parsed.out, parsed.count)
    print(f"{parsed.out}: {count} sentences; write 1 where one describes its picture, else 0, into the last column")
    return 0


def _plan_options(parser: ArgumentParser) -> None:
    parser.add_argument("--pages", type=positive, default=1_000_000_000, metavar="N", help="web pages (%(default)s)")
    parser.add_argument("--cores", type=positive, default=64, metavar="N", help="that read and look (%(default)s)")
    parser.add_argument("--nodes", type=positive, default=4, metavar="N", help="that fetch (%(default)s)")
    parser.add_argument("--gpus", type=positive, default=8, metavar="N", help="for regions and scores (%(default)s)")
    parser.add_argument("--like", type=Path, metavar="OUT", help="a build whose shares are taken (published ones)")
    add_json(parser)


@command("plan", "What so many pages give, and take", _plan_options)
def plan(parsed: Namespace) -> int:
    from imagebert import api

    check_json(parsed.json)
    made = api.lait_plan(parsed.pages, cores=parsed.cores, nodes=parsed.nodes, gpus=parsed.gpus, like=parsed.like)
    shown = {name: f"{value:,.0f}" if value >= 100 else f"{value:.2g}" for name, value in made.figures.items()}
    print_report(f"{parsed.pages:,} pages", shown)
    rates = vars(made.rates)
    print_report("from these rates", {name: f"{value:,.4g} ({made.sources[name]})" for name, value in rates.items()})
    write_json(parsed.json, {"figures": made.figures, "rates": rates, "sources": made.sources})
    return 0


lait = Command(
    "lait",
    "Web pages to weakly supervised pairs, as the paper's LAIT",
    options=lambda parser: None,
    run=None,
    actions=(pages, fetch, filter_, score, pairs, build, report, sample, train_scorer, plan),
)
