"""Small corpora of random regions and captions, written through the public writers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imagebert.config import SourceConfig
from imagebert.data.pairs import Caption, write_pairs
from imagebert.data.records import WHOLE_IMAGE, FeatureType, RegionRecord, crc32
from imagebert.data.region_writer import Target, write_regions
from imagebert.data.regions import RegionStore, content_of, describe_array
from imagebert.data.tokens import SPECIALS, Tokenizer
from imagebert.files import write_sealed

WORDS = [f"word{i:02d}" for i in range(40)]
FEATURE_SIZE, CLASSES = 12, 5


def random_record(rng: np.random.Generator, regions: int, feature_size: int = FEATURE_SIZE) -> RegionRecord:
    width, height = (int(v) for v in rng.integers(50, 400, 2))
    corners = np.sort(rng.random((regions, 2, 2)), axis=1) * (width, height)
    classes = rng.integers(0, CLASSES, regions).astype(np.uint16)
    classes[0] = WHOLE_IMAGE
    return RegionRecord(
        width,
        height,
        corners.reshape(regions, 4).astype(np.float32),
        np.sort(rng.random(regions).astype(np.float32))[::-1],
        classes,
        rng.normal(size=(regions, feature_size)).astype(np.float32),
        np.ones(regions, np.float32),
    )


def write_vocabulary(folder: Path) -> Tokenizer:
    path = folder / "vocab.txt"
    path.write_text("\n".join([*SPECIALS, *WORDS]) + "\n")
    return Tokenizer(path)


def write_corpus(
    folder: Path,
    images: int = 24,
    captions: int = 3,
    feature_type: FeatureType = "int8",
    feature_size: int = FEATURE_SIZE,
    seed: int = 0,
) -> SourceConfig:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    names = [f"class{i}" for i in range(CLASSES)]
    with write_regions(Target(folder / "regions", names, {"name": "random", "digest": "0"}, feature_type)) as writer:
        for i in range(images):
            writer.add(f"image{i:03d}.jpg", random_record(rng, int(rng.integers(1, 8)), feature_size))
    texts = (
        Caption(f"image{i:03d}.jpg", " ".join(rng.choice(WORDS, int(rng.integers(1, 9)))))
        for i in range(images)
        for _ in range(captions)
    )
    write_pairs(folder / "pairs", texts, write_vocabulary(folder))
    return SourceConfig(regions=str(folder / "regions"), pairs=str(folder / "pairs"))


def change_last_feature(regions: Path, key: str, feature: bytes, checksum: bool) -> None:
    """Overwrites the last feature of an image in the store's file; with checksums, as if it had come so."""
    store = RegionStore(regions)
    (number,) = store.find(np.array([key.encode()]))
    index = np.array(store.index)
    row = index[number]
    record = bytearray(next(store.raw(np.array([number]))))
    record[-4 - len(feature) : -4] = feature
    if checksum:
        row["checksum"] = crc32(record[:-4])
        record[-4:] = crc32(record[:-4]).to_bytes(4, "little")
        np.save(store.path / "index.npy", index)
        changed = {"index": describe_array(store.path / "index.npy"), "content": content_of(store.meta, index)}
        write_sealed(store.path / "meta.json", {**store.meta, **changed})
    with (store.folder_of(store.shards[int(row["shard"])]["name"]) / "data.mdb").open("r+b") as file:
        file.seek(int(row["offset"]))
        file.write(record)
