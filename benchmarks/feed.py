"""How fast a microbatch is fed, beside what peers do with the same records, in one run.

    python -m benchmarks.feed                        # int8 and fp16 stores of 100 regions, 2 GB each
    python -m benchmarks.feed --soak 600             # does memory stay where it is?

Each candidate runs in a process of its own, several times in turn with the others: first at full speed, then beside a
consumer that takes 5,300 pairs a second, as one H200 is meant to. Bytes are those of real features, padding does not
count. Peers run where they are installed (webdataset, mosaicml-streaming). Masks are the device's work and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.report import Line, publish
from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus
from imagebert.data.pairs import Caption, write_pairs
from imagebert.data.records import RegionRecord
from imagebert.data.region_writer import Target, write_regions
from imagebert.data.regions import RegionStore
from imagebert.data.tokens import SPECIALS, Tokenizer
from imagebert.feed.arena import Arena
from imagebert.feed.dali import DaliCarrier
from imagebert.feed.draws import stage_key
from imagebert.feed.feeder import Feeder, Prefetch, Share
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import Cut, Negatives, Plan

PAIRS = 256  # of a microbatch
REGIONS, FEATURES = 100, 2048
TARGET = 5300  # pairs a second that one H200 is meant to train

Batches = Iterator[tuple[int, int]]  # records and bytes of features, one microbatch after the other, for ever


class Data(NamedTuple):
    folder: Path
    feature_type: str
    device: torch.device = torch.device("cpu")

    @property
    def source(self) -> SourceConfig:
        return SourceConfig(regions=str(self.folder / "regions"), pairs=str(self.folder / "pairs"))

    @property
    def record_bytes(self) -> int:
        return REGIONS * FEATURES * np.dtype(self.feature_type).itemsize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/feed"), help="where the stores are made and kept")
    parser.add_argument("--gib", type=float, default=2.0, help="size of each store")
    parser.add_argument("--features", nargs="*", default=["int8", "float16"], choices=["int8", "float16", "float32"])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="only: feed for so long and watch the memory")
    parser.add_argument("--cold", action="store_true", help="only: read from disk, the page cache emptied (root)")
    parser.add_argument("--device", default="cpu", help="where batches go: cpu, cuda")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # a candidate, in its own process
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    device = torch.device(parsed.device)
    stores = [Data(parsed.folder / kind, kind, device) for kind in parsed.features]
    if parsed.only:
        print(json.dumps(measure(CANDIDATES[parsed.only](stores[0]), parsed.seconds)))
        return
    for data in stores:
        make_store(data, int(parsed.gib * 2**30))
    if parsed.soak:
        publish({"soak": soak(stores[0], parsed.soak)}, [], parsed.json)
        return
    if parsed.cold:
        publish({"cold": {data.feature_type: cold(data) for data in stores}}, [], parsed.json)
        return
    figures: dict[str, Any] = {}
    lines: list[Line] = []
    for data in stores:
        prepare_peers(data)
        for found in compare(data, parsed.seconds, parsed.turns):
            figures[data.feature_type] = found
            publish(figures, [], parsed.json)  # after each turn: a limit of time loses only the rest
        show(data.feature_type, found)
        lines += lines_of(data.feature_type, found)
        publish(figures, lines, parsed.json)


def compare(data: Data, seconds: float, turns: int) -> Iterator[dict[str, dict[str, float]]]:
    """After each turn the medians so far."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CANDIDATES if runs_here(name)}
    for _ in range(turns):
        for name, results in runs.items():
            call = [sys.executable, "-m", "benchmarks.feed", "--only", name, "--folder", str(data.folder.parent)]
            call += ["--features", data.feature_type, "--seconds", str(seconds), "--device", str(data.device)]
            done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
        yield {
            name: {figure: statistics.median(result[figure] for result in results) for figure in results[0]}
            for name, results in runs.items()
        }


def measure(batches: Batches, seconds: float) -> dict[str, float]:
    """Rates at full speed, and how long a consumer of TARGET pairs a second waits."""
    until = time.perf_counter() + min(seconds, 2)
    while time.perf_counter() < until:  # memory is touched, workers are up
        next(batches)
    records = size = 0
    cpu, begun = cpu_seconds(), time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds:
        more = next(batches)
        records, size = records + more[0], size + more[1]
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        elapsed = time.perf_counter() - begun
    cpu = cpu_seconds() - cpu
    memory = memory_mib()
    waited = consumed = 0.0
    while consumed < seconds:
        asked = time.perf_counter()
        pairs, _ = next(batches)
        waited += time.perf_counter() - asked
        time.sleep(pairs / TARGET)
        consumed += pairs / TARGET
    return {
        "records_per_second": records / elapsed,
        "gigabytes_per_second": size / elapsed / 1e9,
        "cpu_seconds_per_gigabyte": cpu / size * 1e9,
        "memory_mib": memory,
        "share_waited": waited / (waited + consumed),
    }


def show(title: str, found: dict[str, dict[str, float]]) -> None:
    table = Table("", "records/s", "GB/s", "CPU s/GB", "host MiB", f"waits at {TARGET}/s", title=title)
    for name, row in found.items():
        table.add_row(
            name,
            f"{row['records_per_second']:,.0f}",
            f"{row['gigabytes_per_second']:.2f}",
            f"{row['cpu_seconds_per_gigabyte']:.2f}",
            f"{row['memory_mib']:,.0f}",
            f"{row['share_waited']:.1%}",
        )
    Console().print(table)


def lines_of(kind: str, found: dict[str, dict[str, float]]) -> list[Line]:
    rate = {name: row["records_per_second"] for name, row in found.items()}
    lines = [
        Line(f"{kind}: ours, plain, 2 workers, to memcpy of one core", rate["ours, plain"] / rate["memcpy"], 0.8),
        Line(
            f"{kind}: ours, plain, 2 workers, to DataLoader of 2 workers, as UNITER",
            rate["ours, plain"] / rate["DataLoader, as UNITER"],
            5.0,
        ),
    ]
    if "ours, DALI" in rate:
        lines.append(
            Line(f"{kind}: ours, DALI, 2 workers, to memcpy of one core", rate["ours, DALI"] / rate["memcpy"], 0.6)
        )
    return lines


# -------------------------------------------------------------------------------------------------------- candidates


def memcpy(data: Data) -> Batches:
    """One core copies pieces as large as a record, from all over a large array into memory that is used again."""
    source = np.ones(2**31, np.uint8)
    arenas = [Arena().take(PAIRS * data.record_bytes).numpy() for _ in range(3)]
    starts = np.random.default_rng(0).integers(0, len(source) - data.record_bytes, 2**16).tolist()
    batch = 0
    while True:
        target = arenas[batch % 3]
        for k in range(PAIRS):
            start = starts[(batch * PAIRS + k) % len(starts)]
            to = k * data.record_bytes
            target[to : to + data.record_bytes] = source[start : start + data.record_bytes]
        batch += 1
        yield PAIRS, PAIRS * data.record_bytes


def raw_lmdb(data: Data) -> Batches:
    """The same from LMDB's pages, by key: nothing is checked and nothing is laid out."""
    store = RegionStore(data.folder / "regions")
    get = [_lmdb_get(store.folder_of(shard["name"])) for shard in store.shards]
    keys, shards = store.index["key"].tolist(), store.index["shard"].tolist()
    arenas = [Arena().take(PAIRS * data.record_bytes).numpy() for _ in range(3)]
    order = np.random.default_rng(0).permutation(len(store)).tolist()
    batch = 0
    while True:
        target, to = arenas[batch % 3], 0
        for k in range(PAIRS):
            image = order[(batch * PAIRS + k) % len(order)]
            record = get[shards[image]](keys[image])
            target[to : to + data.record_bytes] = np.frombuffer(record, np.uint8)[-data.record_bytes - 4 : -4]
            to += data.record_bytes
        batch += 1
        yield PAIRS, PAIRS * data.record_bytes


def _lmdb_get(shard: Path) -> Callable[[bytes], memoryview]:
    environment = lmdb.open(str(shard), readonly=True, lock=False, readahead=False)
    return environment.begin(buffers=True).get


def ours(data: Data, workers: int = 2, dali: bool = False, read_ahead: bool = True) -> Batches:
    corpus = Corpus([data.source])
    packer = Packer(corpus, Limits(max_regions=100, max_words=41, whole_image=True))
    # No pair is mismatched: each record is read once an epoch, as the peers do.
    negatives = Negatives(share=0.0, candidates=1, source="batch")
    plan = Plan(corpus.caption_image, packer.lengths, negatives, Cut(batch_size=PAIRS, parts=1), key=stage_key(0, "s"))
    share, prefetch = Share(0, 1, data.device), Prefetch(2, workers, read_ahead)
    carrier = DaliCarrier(data.device) if dali else None
    feeder = Feeder(plan, packer, None, share, range(2**31), prefetch, carrier=carrier)
    with feeder:
        for (batch,) in feeder:
            yield batch.real_pairs, batch.region_features.nbytes


def dataloader(data: Data, floats: bool = True) -> Batches:
    """As UNITER does it: a map-style dataset over LMDB, two workers, float32 made of what is stored, batches padded by
    the collate function. Without `floats` features stay as they are stored, which no project does."""
    records = _Records(data.folder / "regions", floats)
    loader = torch.utils.data.DataLoader(
        records,
        batch_size=PAIRS,
        sampler=_Endless(len(records)),
        num_workers=2,
        collate_fn=_padded,
        pin_memory=data.device.type == "cuda",
    )
    yield from _consumed(loader, data)


class _Records(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, path: Path, floats: bool) -> None:
        self._path, self._size, self._floats = path, len(RegionStore(path)), floats
        self._store: RegionStore | None = None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, image: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._store is None:  # each worker opens its own
            self._store = RegionStore(self._path, verify=False)
        record = self._store.read(image)
        features = record.dequantized() if self._floats else record.features
        return torch.tensor(features), torch.tensor(record.boxes)


class _Endless(torch.utils.data.Sampler[int]):
    """A fresh permutation every epoch, without an end: peers need not fill their queues again."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __iter__(self) -> Iterator[int]:
        for epoch in count():
            yield from np.random.default_rng(epoch).permutation(self._size).tolist()


def _padded(items: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, ...]:
    features, boxes = zip(*items, strict=True)
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(features, True), pad(boxes, True), torch.tensor([len(f) for f in features])


def _consumed(loader: Any, data: Data) -> Batches:
    """A peer's batches, on the device."""
    while True:
        for features, boxes, regions in loader:
            features.to(data.device, non_blocking=True)
            boxes.to(data.device, non_blocking=True)
            # Of what is stored, whatever it was made into.
            yield len(boxes), int(regions.sum()) * FEATURES * np.dtype(data.feature_type).itemsize


def webdataset(data: Data) -> Batches:
    """Tar shards, shuffled in a buffer, two workers, the same collate function."""
    import webdataset as wds

    shape = REGIONS, FEATURES

    def decode(sample: dict[str, bytes]) -> tuple[torch.Tensor, torch.Tensor]:
        features = np.frombuffer(sample["features"], data.feature_type).reshape(shape)
        return torch.tensor(features), torch.tensor(np.frombuffer(sample["boxes"], np.float32).reshape(-1, 4))

    urls = [str(path) for path in sorted((data.folder / "webdataset").glob("*.tar"))]
    dataset = wds.WebDataset(urls, shardshuffle=len(urls), nodesplitter=wds.split_by_node, seed=0)
    dataset = dataset.repeat().shuffle(1000).map(decode).batched(PAIRS, collation_fn=_padded, partial=False)
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=2, pin_memory=data.device.type == "cuda")
    yield from _consumed(loader, data)


def streaming(data: Data) -> Batches:
    """MosaicML Streaming's MDS shards, two workers, the same collate function."""
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=str(data.folder / "streaming"), shuffle=True, batch_size=PAIRS)

    def collate(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, ...]:
        return _padded([(torch.tensor(s["features"]), torch.tensor(s["boxes"])) for s in samples])

    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=PAIRS,
        num_workers=2,
        collate_fn=collate,
        drop_last=True,
        persistent_workers=True,
        pin_memory=data.device.type == "cuda",
    )
    yield from _consumed(loader, data)


CANDIDATES: dict[str, Callable[[Data], Batches]] = {
    "memcpy": memcpy,
    "raw LMDB": raw_lmdb,
    "ours, plain, 1 worker": lambda data: ours(data, workers=1),
    "ours, plain": ours,
    "ours, DALI": lambda data: ours(data, dali=True),
    "DataLoader, as UNITER": dataloader,
    "DataLoader, as stored": lambda data: dataloader(data, floats=False),
    "WebDataset": webdataset,
    "MosaicML Streaming": streaming,
}


def runs_here(name: str) -> bool:
    needed = {"ours, DALI": "nvidia.dali", "WebDataset": "webdataset", "MosaicML Streaming": "streaming"}.get(name)
    try:
        return needed is None or find_spec(needed) is not None
    except ModuleNotFoundError:
        return False


# --------------------------------------------------------------------------------------------------- memory and disk


def soak(data: Data, seconds: float) -> dict[str, Any]:
    """Feeds at full speed and looks at the memory every two seconds."""
    batches = ours(data)
    begun, samples, size = time.perf_counter(), [], 0
    while (elapsed := time.perf_counter() - begun) < seconds:
        size += next(batches)[1]
        if elapsed > 2 * len(samples):
            samples.append(memory_mib())
    settled = samples[len(samples) // 10 :]
    result = {
        "seconds": elapsed,
        "terabytes": size / 1e12,
        "memory_mib": {"after a tenth": settled[0], "least": min(settled), "most": max(settled), "last": settled[-1]},
    }
    print(json.dumps(result))
    return result


def cold(data: Data) -> dict[str, float]:
    """Records a second from disk, with and without asking the system for them beforehand."""
    rates: dict[str, list[float]] = {"as touched": [], "read ahead": []}
    for _ in range(3):
        for name, found in rates.items():
            subprocess.run(["sync"], check=True)
            Path("/proc/sys/vm/drop_caches").write_text("3")
            batches = ours(data, read_ahead=name == "read ahead")
            next(batches)
            begun, records = time.perf_counter(), 0
            for _ in range(10):
                records += next(batches)[0]
            found.append(records / (time.perf_counter() - begun))
            batches.close()  # type: ignore[attr-defined]
    result = {name: statistics.median(found) for name, found in rates.items()}
    print(data.feature_type, json.dumps(result))
    return result


def processes() -> Iterator[Path]:
    """This process and those that it started, in /proc."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found = [os.getpid()]
    for process in found:
        yield Path(f"/proc/{process}")
        found += [child for child, parent in parents.items() if parent == process]


def cpu_seconds() -> float:
    """Of those that run, and of those that have ended."""
    ended = os.times()
    seconds = ended.children_user + ended.children_system
    for process in processes():
        with suppress(OSError):
            fields = (process / "stat").read_text().rsplit(")", 1)[1].split()
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def memory_mib() -> float:
    """Of all processes, what they share once; not the page cache that the store lies in."""
    kib = 0
    for process in processes():
        with suppress(OSError):
            for line in (process / "smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                    kib += int(line.split()[1])
    return kib / 1024


def make_store(data: Data, size: int) -> None:
    """Records of 100 regions with random features; a second call finds them."""
    if not (data.folder / "regions").exists():
        rng = np.random.default_rng(0)
        features = np.maximum(rng.normal(size=(4 * REGIONS, FEATURES)), 0).astype(np.float32)
        names = [f"class {i}" for i in range(1600)]
        with write_regions(Target(data.folder / "regions", names, {"name": "random"}, data.feature_type)) as writer:  # type: ignore[arg-type]
            for image in range(size // data.record_bytes + 1):
                boxes = np.sort(rng.random((REGIONS, 2, 2), np.float32), axis=1).reshape(-1, 4) * 500
                first = int(rng.integers(0, 3 * REGIONS))
                record = RegionRecord(
                    width=500,
                    height=500,
                    boxes=boxes,
                    confidences=np.ones(REGIONS, np.float32),
                    classes=rng.integers(0, 1600, REGIONS).astype(np.uint16),
                    features=features[first : first + REGIONS],
                    scales=np.ones(REGIONS, np.float32),
                )
                writer.add(f"{image:012d}", record)
    if not (data.folder / "pairs").exists():
        rng = np.random.default_rng(0)
        words = [f"word{i}" for i in range(1000)]
        (data.folder / "vocab.txt").write_text("\n".join([*SPECIALS, *words]) + "\n")
        captions = (
            Caption(f"{image:012d}", " ".join(rng.choice(words, 13)))
            for image in range(len(RegionStore(data.folder / "regions")))
        )
        write_pairs(data.folder / "pairs", captions, Tokenizer(data.folder / "vocab.txt"))


def prepare_peers(data: Data) -> None:
    """The same records in the formats of the peers that are installed."""
    store = RegionStore(data.folder / "regions")
    columns = {"features": f"ndarray:{data.feature_type}", "boxes": "ndarray:float32"}
    tars, shards = data.folder / "webdataset", data.folder / "streaming"
    if runs_here("WebDataset") and not (tars / "done").exists():
        import webdataset as wds

        shutil.rmtree(tars, ignore_errors=True)
        tars.mkdir()
        with wds.ShardWriter(str(tars / "%04d.tar"), maxsize=256 << 20, verbose=0) as sink:
            for image in range(len(store)):
                record = store.read(image)
                parts = {"features": record.features.tobytes(), "boxes": record.boxes.tobytes()}
                sink.write({"__key__": store.key(image), **parts})
        (tars / "done").touch()
    if runs_here("MosaicML Streaming") and not (shards / "done").exists():
        from streaming import MDSWriter

        shutil.rmtree(shards, ignore_errors=True)
        with MDSWriter(out=str(shards), columns=columns, size_limit=256 << 20) as sink:
            for image in range(len(store)):
                record = store.read(image)
                sink.write({"features": record.features, "boxes": record.boxes})
        (shards / "done").touch()


if __name__ == "__main__":
    main()
