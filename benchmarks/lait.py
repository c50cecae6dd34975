"""LAIT's two steps that processors are for: pages read, and pictures looked at, a second and core.

    python -m benchmarks.lait [--pages 2000] [--pictures 100] [--rounds 3] [--json FILE]

Pages are a made-up web's (imagebert/demo/web), archived as a crawler does. In turns, each by one process, in seconds of
its processor: ours (archive to Parquet: reading, language, dominant pictures, sentences), the half of it that nothing
can do without (archive to parsed page), and, where they are installed, cc2dataset's own extraction from the archive's
WAT, which Common Crawl makes of it and which has alternative texts only, with trafilatura's text of each page besides:
what it takes to have both pictures and the text around. Making the WAT is not counted.

Pictures are random ones of 1,024 x 768 pixels, JPEGs of some 150 kB, of which each is decoded and goes through all
that judges it: natural or not, OpenNSFW where it is installed, the perceptual hash. Both rates are those of
`imagebert lait plan`.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from selectolax.lexbor import LexborHTMLParser

from benchmarks.lait_ranker import web
from benchmarks.report import Line, publish
from imagebert.demo.web import Page, write_warcs
from imagebert.lait.document import Document, decode
from imagebert.lait.filter import look
from imagebert.lait.pages import read_archive
from imagebert.lait.ranker import Ranker
from imagebert.lait.recipe import LaitRecipe
from imagebert.lait.shards import Row, write_shard
from imagebert.lait.warc import responses

SEED = 21
LEAST = 2000.0  # pages a second and core
PICTURES = "pictures looked at"
PEER = "cc2dataset and trafilatura"


def parse_only(archive: Path) -> None:
    for page in responses(archive, ("text/html",), 4 << 20, Counter()):
        Document(page.url, decode(page.body, page.charset))


def wat_of(pages: list[Page]) -> bytes:
    """The records that Common Crawl's WAT has of pages: their links, as JSON."""
    buffer = io.BytesIO()
    for page in pages:
        tree = LexborHTMLParser(page.html)
        links = [
            {"path": "IMG@/src", "url": a.get("src") or "", **({"alt": a["alt"]} if a.get("alt") else {})}
            for a in (node.attributes for node in tree.css("img"))
        ]
        links += [{"path": "A@/href", "url": n.attributes.get("href") or "", "text": n.text()} for n in tree.css("a")]
        record = {
            "Container": {"Filename": "made-up.warc.gz"},
            "Envelope": {
                "WARC-Header-Metadata": {"WARC-Target-URI": page.url},
                "Payload-Metadata": {"HTTP-Response-Metadata": {"HTML-Metadata": {"Links": links}}},
            },
        }
        body = json.dumps(record).encode()
        head = f"WARC/1.0\r\nWARC-Type: metadata\r\nWARC-Target-URI: {page.url}\r\nWARC-Date: 2020-01-01T00:00:00Z\r\n"
        head += "WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        buffer.write(gzip.compress(head.encode() + body + b"\r\n\r\n"))
    return buffer.getvalue()


def peer(pages: list[Page], wat: bytes) -> Callable[[], None] | None:
    """What others do, where it is installed."""
    if find_spec("cc2dataset") is None or find_spec("trafilatura") is None:
        return None
    for name in ("pyspark", "pyspark.sql", "pyspark.sql.functions"):  # the engine around what is measured
        stub: Any = sys.modules.setdefault(name, ModuleType(name))
        stub.SparkContext = stub.SparkSession = stub.rand = None
    import trafilatura
    from cc2dataset.main import extract_documents_from_wat

    def run() -> None:
        found = extract_documents_from_wat(io.BytesIO(wat), "image")
        assert found
        for page in pages:
            trafilatura.extract(page.html, url=page.url)

    return run


def write_pictures(folder: Path, count: int) -> Path:
    """A tar of pictures, as `imagebert lait fetch` writes them."""
    rng = np.random.default_rng(SEED)
    data = dict[str, bytes]()
    for number in range(count):
        image = sum(
            np.asarray(Image.fromarray(rng.integers(0, 85, (size, size, 3), np.uint8)).resize((1024, 768)), np.uint8)
            for size in (4, 24, 160)
        )
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=85)
        data[f"{number:016x}"] = buffer.getvalue()
    shard = folder / "00000.tar"
    rows = [Row(key, f"http://a.example/{key}.jpg", "success", suffix="jpg") for key in data]
    write_shard(shard, rows, lambda row: data[row.key])
    return shard


def seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=2000)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    pages = web(parsed.pages, SEED)
    ranker, recipe = Ranker(), LaitRecipe()
    with tempfile.TemporaryDirectory() as folder:
        (archive,) = write_warcs(pages, Path(folder), 1)
        out = Path(folder) / "out.parquet"
        counts = read_archive(archive, out, recipe, ranker)  # once before, so that all is loaded
        works: dict[str, Callable[[], object]] = {
            "ours": lambda: read_archive(archive, out, recipe, ranker),
            "archive to parsed page": lambda: parse_only(archive),
        }
        few = pages[: max(1, len(pages) // 10)]
        if (theirs := peer(few, wat_of(few))) is not None:
            theirs()
            works[PEER] = theirs
        shard, looked = write_pictures(Path(folder), parsed.pictures), Path(folder) / "looked"
        # Whatever is found, all is looked for.
        all_of_it = replace(recipe.filter, natural=1e-9, nsfw=1 - 1e-9)
        shard_bytes = shard.stat().st_size
        good = look(shard, all_of_it, None, looked)["pictures: good"]
        assert good == parsed.pictures
        works[PICTURES] = lambda: look(shard, all_of_it, None, looked)
        taken: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(parsed.rounds):
            for name, work in works.items():
                taken[name].append(seconds(work))
    count = dict.fromkeys(works, counts["pages"]) | {PEER: len(few), PICTURES: parsed.pictures}
    rates = {name: count[name] / statistics.median(times) for name, times in taken.items()}
    pictures = rates.pop(PICTURES)
    figures: dict[str, Any] = {
        "kilobytes_a_page": sum(len(page.html) for page in pages) / len(pages) / 1e3,
        "images_a_page": sum(len(page.images) for page in pages) / len(pages),
        "pages_a_second_and_core": rates,
        "kilobytes_a_picture": shard_bytes / parsed.pictures / 1e3,
        "pictures_looked_at_a_second_and_core": pictures,
        "counts": dict(sorted(counts.items())),
    }
    lines = [Line("pages/s and core", rates["ours"], LEAST)]
    if PEER in rates:
        lines.append(Line(f"times {PEER}", rates["ours"] / rates[PEER], 1.0))
    for name, rate in rates.items():
        print(f"{name}: {rate:,.0f} pages/s and core")
    print(f"{PICTURES}: {pictures:,.0f} pictures/s and core")
    publish(figures, lines, parsed.json)


if __name__ == "__main__":
    main()
