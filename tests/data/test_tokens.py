"""Ids are transformers' own, on folders laid out as those that are public and on strings that were made to hurt."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from pathlib import Path

import pytest
from tokenizers.models import WordPiece
from transformers import AutoTokenizer, BertTokenizer

from imagebert.data.tokens import SPECIALS, Settings, Tokenizer, settings_of_before


def letters(*ranges: tuple[int, int]) -> list[str]:
    return [chr(c) for start, end in ranges for c in range(start, end) if chr(c).isalnum()]


def split(text: str) -> list[str]:
    return text.split(" ")


def vocabulary(characters: list[str], words: list[str], unused: int = 99) -> list[str]:
    """As Google orders one: [PAD], the unused, the other specials, marks, characters, words; then what goes on."""
    marks = [chr(c) for c in (*range(33, 127), 0xA1, 0x20AC, 0x2026, 0x3002, 0x1F600) if not chr(c).isalnum()]
    whole = [*marks, *characters, *words]
    return ["[PAD]", *(f"[unused{i}]" for i in range(1, unused + 1)), *SPECIALS[1:], *whole, *(f"##{w}" for w in whole)]


LOWER = letters((97, 123), (48, 58))
LATIN = letters((65, 91), (97, 123), (48, 58), (0xC0, 0x180))
SCRIPTS = letters((0x370, 0x600), (0x620, 0x700), (0x900, 0xE80), (0x10A0, 0x1100), (0x1E00, 0x2000))
HAN, HANGUL = letters((0x4E00, 0x9FA6)), letters((0xAC00, 0xD7A4))
ENGLISH = ["two", "dogs", "playing", "on", "the", "grass", "play", "ing", "mask", "sep", "cafe", "straße", "strasse"]
GERMAN = ["Zwei", "Hunde", "spielen", "auf", "dem", "Gras", "Straße", "Äpfel", "über", "MASK", "SEP", "größe"]
# Pieces, and what the folder on the hub says. Chinese has a piece that is the end of a line to Python.
FOLDERS: dict[str, tuple[list[str], dict[str, object]]] = {
    "uncased": (vocabulary([*LOWER, *HAN[:200], *letters((0x3B1, 0x3CA))], ENGLISH), {"do_lower_case": True}),
    "german": (vocabulary(LATIN, GERMAN), {"do_lower_case": False}),
    "chinese": (vocabulary([*LOWER, "\u2028", *HAN], ["##A", "iphone"]), {"do_lower_case": False}),
    "multilingual": (vocabulary([*LATIN, *SCRIPTS, *HANGUL, *HAN], [*ENGLISH, *GERMAN]), {"do_lower_case": False}),
    "accents": (vocabulary([*LATIN, *HAN[:50]], ENGLISH), {"strip_accents": False, "tokenize_chinese_chars": False}),
}
HOSTILE = [
    *split("é e\u0301 Å A\u030a ǖ \u0301 \u0334\u0489 ñ İ \u0131 I i\u0307 ß ẞ ﬁ \u017f \u01c5 \uff11\uff12 ² Ⅷ ½"),
    *split(
        "Σίσυφος ΣΑΣ Москва Ёлка ᏣᎳᎩ ÄPFEL 二匹 犬 犬dog犬 㐀 𠀀 豈 カタカナ ｶﾞ 두 강아지 \u1112\u1161\u11ab ไทย हिन्दी"
    ),
    *split("שלום مرحبا \u202eabc\u202c \u200f \u200d \u200b \ufeff 👨\u200d👩\u200d👧 😀 🇩🇪 ☃\ufe0f"),
    *split("\0 \x01 \x1c \x7f \xad \ufffd \ue000 \U0010ffff \U000e0001"),
    *("\n", "\r\n", "\t", "\v", "\x85", "\xa0", "\u2028", "\u2029", " ", "  ", "\u3000", "\u2009"),
    *("w" * 100, "w" * 101, "x" * 5000, "犬" * 120, "é" * 100, "[ MASK ]"),
    *split("# ## ##ing [ ] [MASK] [SEP] [CLS] [PAD] [UNK] [mask] [unused1] a[MASK]b <s> don't 3.5% … “so” a-b_c"),
    *split("Two dogs playing GRASS Zwei Hunde spielen A the x1 iPhone Straße"),
]


def strings(count: int = 2000) -> list[str]:
    draw = random.Random(0)
    made = [*HOSTILE, ""]
    while len(made) < count:
        parts = draw.choices(HOSTILE, k=draw.randint(1, 12))
        made.append(draw.choice(("", " ", " ", "\u0301")).join(parts))
        if draw.random() < 0.1:
            made[-1] += "".join(
                chr(draw.choice((draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)))) for _ in "123"
            )
    return made


def write(folder: Path, pieces: list[str], config: dict[str, object] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 512}))
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    pieces, config = FOLDERS[name]
    old = write(tmp_path / "old", pieces, config)
    BertTokenizer.from_pretrained(old).save_pretrained(tmp_path / "new")
    both = write(tmp_path / "both", pieces, config)  # as the hub has them, written by earlier versions
    fast = json.loads((tmp_path / "new/tokenizer.json").read_text())
    fast["model"]["vocab"] = {piece: number for number, piece in enumerate(pieces)}
    fast |= {"truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}}
    (both / "tokenizer.json").write_text(json.dumps(fast))
    texts, expected = strings(), None
    for folder in (old, tmp_path / "new", both):
        tokenizer, theirs = Tokenizer(folder), BertTokenizer.from_pretrained(folder)
        assert len(tokenizer) == len(pieces) == len(theirs)
        ids = theirs(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokenizer.encode(texts) == ids
        assert expected in (None, ids)
        expected = ids
        own = [theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id]
        ours = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
        assert ours == own
    assert len({tuple(one) for one in expected or []}) > 1000  # no vocabulary that answers [UNK] to all
    # Where no special piece is written in a text, it is all as transformers reads it without being told anything.
    plain = [text for text in texts if not any(special in text for special in SPECIALS)]
    assert AutoTokenizer.from_pretrained(both)(plain, add_special_tokens=False)["input_ids"] == tokenizer.encode(plain)


def test_a_special_piece_in_a_caption_is_words(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write(tmp_path, FOLDERS["uncased"][0]))
    (ids,) = tokenizer.encode(["a [MASK] on the grass [SEP] [UNK]"])
    assert [tokenizer.pieces[i] for i in ids[:8]] == ["a", "[", "mask", "]", "on", "the", "grass", "["]
    assert not {tokenizer.mask_id, tokenizer.sep_id, tokenizer.cls_id, tokenizer.pad_id} & set(ids)


def test_pieces_are_numbered_as_they_are_found(tmp_path: Path) -> None:
    """Where Python sees more ends of lines than the tokenizer does, too."""
    pieces = [*SPECIALS, "one", "a\u2028b", "c\x0bd", "two"]
    for end in ("\n", "\r\n"):
        (tmp_path / "vocab.txt").write_text(end.join(pieces) + end, newline="")
        tokenizer = Tokenizer(tmp_path)
        assert tokenizer.pieces == pieces
        assert tokenizer.encode(["one two"]) == [[5, 8]]
    # What is cut from a line's end is what `tokenizers` cuts, of all characters.
    tails = [chr(c) for c in range(0x3100) if c != 10]
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, *(f"{ord(c)}x{c}" for c in tails)]), newline="")
    theirs = WordPiece.read_file(str(tmp_path / "vocab.txt"))
    assert {piece: number for number, piece in enumerate(Tokenizer(tmp_path).pieces)} == theirs


@pytest.mark.parametrize(
    ("capitals", "of", "lower_case"),
    [(0, 100, True), (1, 100, True), (2, 100, True), (3, 100, False), (400, 1000, False)],
)
def test_a_lone_vocabulary_decides_by_its_capitals(
    capitals: int, of: int, lower_case: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [f"Word{i}" if i < capitals else f"word{i}" for i in range(of)]
    folder = write(tmp_path / "folder", [*SPECIALS, *words, *HAN, "[Unused]"])
    with caplog.at_level(logging.INFO):
        tokenizer = Tokenizer(folder)
    assert (tokenizer.settings, tokenizer.told) == (Settings(lower_case), False)
    how = "are lower-cased" if lower_case else "keep their case"
    said = f"texts {how}, as {capitals:,} of {of:,} pieces with letters of two cases have capitals"
    assert caplog.text.count(said) == (capitals > 0)
    write(folder, [*SPECIALS, *words, *HAN], {"do_lower_case": not lower_case})
    tokenizer = Tokenizer(folder)
    assert (tokenizer.settings, tokenizer.told) == (Settings(not lower_case), True)
    # And so does one that has another name.
    (folder / "vocab.txt").rename(folder / "words.txt")
    assert Tokenizer(folder / "words.txt").settings == Settings(not lower_case)


def test_settings_against_the_vocabulary_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Tokenizer(write(tmp_path / "german", FOLDERS["german"][0], {}))  # which transformers lower-cases
    assert "texts are lower-cased as its folder says, though" in caplog.text
    Tokenizer(write(tmp_path / "chinese", FOLDERS["uncased"][0], {"do_lower_case": False}))
    assert "texts keep their case as its folder says, though 0 of" in caplog.text
    caplog.clear()
    Tokenizer(write(tmp_path / "german", FOLDERS["german"][0], {"do_lower_case": False}))
    assert not caplog.text


def test_tokenizer_json_decides_where_nothing_else_does(tmp_path: Path) -> None:
    write(tmp_path / "old", FOLDERS["german"][0], {"do_lower_case": False})
    BertTokenizer.from_pretrained(tmp_path / "old").save_pretrained(tmp_path / "new")
    (tmp_path / "new/tokenizer_config.json").unlink()
    assert Tokenizer(tmp_path / "new").settings == Settings(False)
    # To transformers this class is one that takes tokenizer.json as it is.
    config = {"tokenizer_class": "TokenizersBackend", "do_lower_case": True}
    (tmp_path / "new/tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "new/config.json").write_text('{"model_type": "bert"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path / "new", split_special_tokens=True)
    texts = strings()
    assert Tokenizer(tmp_path / "new").encode(texts) == theirs(texts, add_special_tokens=False)["input_ids"]


def test_a_digest_names_pieces_and_settings(tmp_path: Path) -> None:
    """That of stores of before, which had pieces alone, is the same as long as their settings are."""
    pieces = [*SPECIALS, *(f"word{i}" for i in range(100)), "Stray"]
    assert settings_of_before(pieces) == Settings(False)
    lone = Tokenizer(write(tmp_path, pieces))
    before = Tokenizer(tmp_path, settings_of_before)
    assert before.digest == hashlib.sha256((tmp_path / "vocab.txt").read_bytes()).hexdigest()
    assert before.encode(["Stray word1"]) != lone.encode(["Stray word1"])
    chosen = [Settings(True), Settings(True, False), Settings(True, None, False), Settings(False, True)]
    tokenizers = [before, *(Tokenizer(tmp_path, lambda _, s=s: s) for s in chosen)]
    assert len({tokenizer.digest for tokenizer in tokenizers}) == 5
    assert lone.digest == tokenizers[1].digest
    assert [before.difference(other) for other in tokenizers] == [
        "",
        "do_lower_case is false, not true",
        "do_lower_case is false, not true",
        "do_lower_case is false, not true",
        "strip_accents is null, not true",
    ]
    assert not before.difference(lone)  # nobody said what its settings are
    write(tmp_path, [*pieces, "more"])
    assert before.difference(Tokenizer(tmp_path)) == "piece 106 differs"
