"""A BERT's vocabulary as files: what `tokens.py` needs of them, or one sentence why it is none.

What a folder may hold, as Hugging Face has it:

    vocab.txt               one piece a line
    tokenizer.json          the same pieces, and how a text becomes words
    tokenizer_config.json   how a text becomes words: it decides, and may stand beside a lone vocab.txt too
    special_tokens_map.json, added_tokens.json, config.json    names of special pieces, others, the tokenizer's class

Whatever would make transformers' BertTokenizer give a text other ids than these pieces and settings do is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from imagebert.errors import UsageError
from imagebert.files import read_json, read_text

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_NAMES = ("vocab.txt", "tokenizer.json")
_BYTES = 1 << 24  # of 120,000 pieces with all that JSON writes around them, and more
_MOST = 1 << 20  # pieces; no model has so many
_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")  # one and the same to transformers
_ANY_CLASS = ("PreTrainedTokenizer", "TokenizersBackend")  # whatever tokenizer.json says
_OTHERS = {
    "spiece.model": "a SentencePiece model, as T5's, ALBERT's and XLNet's are",
    "sentencepiece.bpe.model": "a SentencePiece model, as XLM-R's is",
    "tokenizer.model": "a SentencePiece model",
    "merges.txt": "a byte-pair vocabulary, as GPT-2's and RoBERTa's are",
}
_WANTED = "the words of ImageBERT are BERT's WordPiece, give a BERT's folder or its vocab.txt"
# What `tokenizers` cuts from the end of a line, Unicode's White_Space; str.rstrip takes U+001C to U+001F too.
_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f"
    "\u205f\u3000"
)


class Settings(NamedTuple):
    """How a text becomes words, by the names of tokenizer_config.json."""

    do_lower_case: bool
    strip_accents: bool | None = None  # None: where texts are lower-cased
    tokenize_chinese_chars: bool = True


class Vocabulary(NamedTuple):
    path: Path  # of the file with the pieces
    text: str  # as a vocab.txt
    pieces: list[str]
    ids: dict[str, int]  # the last one's of equal pieces
    settings: Settings | None  # None: no file says


def read_vocabulary(path: Path) -> Vocabulary:
    """That of a folder; a vocab.txt or tokenizer.json in it means the same.

    A list of pieces by another name is read alone, but for a tokenizer_config.json beside it.

    Raises:
        UsageError: no such file, a damaged one, a tokenizer of another kind, a special piece is missing or has another
            name, a piece was added to the vocabulary, or two files number the pieces in two ways.
    """
    if path.name in _NAMES and os.path.lexists(path):
        path = path.parent
    if not os.path.isdir(path):
        return _vocabulary(path, _text_of(path), _settings_beside(path, None, None))
    names = [name for name in _NAMES if os.path.lexists(path / name)]
    if not names:
        kinds = [f"{kind} ({name})" for name, kind in _OTHERS.items() if os.path.lexists(path / name)]
        what = f"holds {kinds[0]}" if kinds else "has neither vocab.txt nor tokenizer.json"
        raise UsageError(f"{path} {what}: {_WANTED}")
    fast = _read_fast(path / "tokenizer.json") if "tokenizer.json" in names else None
    file = path / names[0]
    if names[0] == "vocab.txt":
        text = _text_of(file)
    else:
        assert fast is not None
        text = "".join(f"{piece}\n" for piece in sorted(fast.ids, key=fast.ids.__getitem__))
    config = _read_object(path / "config.json") if os.path.lexists(path / "config.json") else {}
    found = _vocabulary(file, text, _settings_beside(file, fast, config.get("tokenizer_class")))
    if fast is not None:
        _check_agreement(fast.ids, found)
    for token in _added(path, fast):
        number = found.ids.get(token.piece)
        if number is None or token.number not in (None, number) or not token.special:
            raise UsageError(
                f"{path} adds the piece {token.piece[:40]!r} to its vocabulary (in {token.file}), as no BERT does: "
                "take it out there, or give a vocab.txt that lies alone"
            )
    return found


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder says what its words are."""
    return any(os.path.lexists(folder / name) for name in _NAMES)


def _text_of(path: Path) -> str:
    try:
        return read_text(path, _BYTES)
    except (OSError, UsageError) as error:
        raise UsageError(f"cannot read the vocabulary {path}: {error}") from None


def _vocabulary(path: Path, text: str, settings: Settings | None) -> Vocabulary:
    pieces = [line.rstrip(_SPACE) for line in text.removesuffix("\n").split("\n")]
    ids = {piece: number for number, piece in enumerate(pieces)}
    missing = [special for special in SPECIALS if special not in ids]
    if missing:
        raise UsageError(f"{path} lacks {', '.join(missing)}: give a BERT vocab.txt, one piece a line")
    if len(pieces) >= _MOST:
        raise UsageError(f"{path} has {len(pieces):,} pieces: no BERT has {_MOST:,}")
    return Vocabulary(path, text, pieces, ids, settings)


# -------------------------------------------------------------------------------------------------------- settings


def _settings_beside(vocabulary: Path, fast: _Fast | None, named: Any) -> Settings | None:
    """What tokenizer_config.json says beside a vocabulary, else what tokenizer.json does.

    Args:
        named: the tokenizer's class, where tokenizer_config.json names none
    """
    file = vocabulary.parent / "tokenizer_config.json"
    config = _read_names(file) if os.path.lexists(file) else None
    kind = str((config or {}).get("tokenizer_class") or named or _CLASSES[0]).removesuffix("Fast")
    if kind not in _CLASSES and (kind not in _ANY_CLASS or fast is None):
        raise UsageError(f"{vocabulary} is the vocabulary of a {_short(kind)}: {_WANTED}")
    if config is None or kind in _ANY_CLASS:
        return fast.settings if fast is not None else None
    return _settings(config, Settings._fields, file)


def _settings(content: dict[str, Any], names: tuple[str, ...], path: Path) -> Settings:
    """Those of a file by its own names for them; where it does not say, transformers' defaults."""
    lower_case, chinese = (content.get(name, True) for name in (names[0], names[2]))
    accents = content.get(names[1])
    if accents is None:
        accents = lower_case
    for name, value in zip(names, (lower_case, accents, chinese), strict=True):
        if type(value) is not bool:
            raise UsageError(f"{path} has {name} {_short(value)}: write true or false")
    return Settings(lower_case, None if accents == lower_case else accents, chinese)


def _read_names(path: Path) -> dict[str, Any]:
    """A JSON object that may name special pieces, each as BERT does."""
    content = _read_object(path)
    for special in SPECIALS:
        name = f"{special.strip('[]').lower()}_token"
        if _content(content.get(name)) not in (None, special):
            raise UsageError(f"{path} calls the {name} {_short(_content(content[name]))}, BERT {special}: {_WANTED}")
    return content


# -------------------------------------------------------------------------------------------------- tokenizer.json


class _Fast(NamedTuple):
    """What a tokenizer.json says."""

    ids: dict[str, int]
    settings: Settings
    added: Any


def _read_fast(path: Path) -> _Fast:
    """A tokenizer.json, after it was seen to be a BERT's."""
    content = _read_object(path)
    model, normalizer, splitter = (content.get(name) for name in ("model", "normalizer", "pre_tokenizer"))
    if not isinstance(model, dict):
        raise UsageError(f"{path} has no model: it is damaged")
    kind = model.get("type", "BPE" if "merges" in model else "WordPiece")  # older files do not say
    normal = normalizer if isinstance(normalizer, dict) else {}
    split = splitter if isinstance(splitter, dict) else {}
    for what, found, wanted in (
        ("model", kind, "WordPiece"),
        ("normalizer", normal.get("type"), "BertNormalizer"),
        ("pre_tokenizer", split.get("type"), "BertPreTokenizer"),
        ("clean_text", normal.get("clean_text", True), True),
        ("unk_token", model.get("unk_token", "[UNK]"), "[UNK]"),
        ("continuing_subword_prefix", model.get("continuing_subword_prefix", "##"), "##"),
        ("max_input_chars_per_word", model.get("max_input_chars_per_word", 100), 100),
    ):
        if found != wanted:
            raise UsageError(f"{path} has the {what} {_short(found)}, BERT {_short(wanted)}: {_WANTED}")
    ids = model.get("vocab")
    if not isinstance(ids, dict) or not all(type(number) is int for number in ids.values()):
        raise UsageError(f"{path} does not number its pieces: it is damaged")
    if any("\ud800" <= character <= "\udfff" for character in "".join(ids)):
        raise UsageError(f"{path} has a piece with half a character: it is damaged")
    names = ("lowercase", "strip_accents", "handle_chinese_chars")
    return _Fast(ids, _settings(normal, names, path), content.get("added_tokens"))


def _check_agreement(fast: dict[str, int], found: Vocabulary) -> None:
    """Whether tokenizer.json and the lines of vocab.txt give every text the same ids.

    A piece with white space at its end, such as the U+2028 of bert-base-chinese, is in no text, and none without it is.
    """
    theirs, ours = (
        {piece: number for piece, number in ids.items() if piece not in ("", "##") and piece[-1] not in _SPACE}
        for ids in (fast, found.ids)
    )
    if theirs != ours:
        piece, number = min(theirs.items() ^ ours.items(), key=lambda item: item[::-1])
        if found.path.name == "tokenizer.json":
            raise UsageError(f"{found.path} does not number its pieces from 0 on, each once (at {number}): restore it")
        numbers = f"{_short(theirs.get(piece))} and {_short(ours.get(piece))}"
        raise UsageError(
            f"tokenizer.json and vocab.txt of {found.path.parent} number {piece[:40]!r} {numbers}: restore the folder"
        )


# ---------------------------------------------------------------------------------------------------- added pieces


class _Token(NamedTuple):
    piece: str
    number: int | None  # where the file says
    special: bool  # is matched in no text that is data
    file: str


def _added(folder: Path, fast: _Fast | None) -> Iterator[_Token]:
    """Every piece that a file of the folder names beside the vocabulary."""
    if fast is not None:
        yield from _listed(fast.added or [], folder / "tokenizer.json")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if os.path.lexists(folder / name):
            yield from _named(_read_names(folder / name), folder / name)
    if os.path.lexists(folder / "added_tokens.json"):
        for piece, number in _read_object(folder / "added_tokens.json").items():
            yield _Token(piece, number, piece in SPECIALS, "added_tokens.json")


def _named(content: dict[str, Any], path: Path) -> Iterator[_Token]:
    named = [value for name, value in content.items() if name.endswith("_token") and type(value) is not bool]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = content.get(name) or []
        named += more.values() if isinstance(more, dict) else more if isinstance(more, list) else [more]
    for value in named:
        if value is not None:
            yield _Token(str(_content(value)), None, True, path.name)
    decoder = content.get("added_tokens_decoder") or {}
    tokens = decoder.items() if isinstance(decoder, dict) else [("", decoder)]
    yield from _listed([{**(token if isinstance(token, dict) else {}), "id": n} for n, token in tokens], path)


def _listed(tokens: Any, path: Path) -> Iterator[_Token]:
    """Those of a list of objects with `id`, `content` and `special`."""
    for token in tokens if isinstance(tokens, list) else [tokens]:
        piece, number = (token.get("content"), str(token.get("id"))) if isinstance(token, dict) else (None, "")
        if not isinstance(piece, str) or not re.fullmatch("[0-9]{1,9}", number):
            raise UsageError(f"{path} has an added piece without a name or a number: it is damaged")
        yield _Token(piece, int(number), token.get("special") is True, path.name)


def _content(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path, _BYTES)
    if not isinstance(content, dict):
        raise UsageError(f"{path} is no JSON object: it is damaged")
    return content


def _short(value: Any) -> str:
    return json.dumps(value)[:60]
