"""Words to word pieces: BERT's WordPiece, with the ids of transformers' BertTokenizer, by the `tokenizers` library.

A caption is data: a "[SEP]" or "[MASK]" that somebody wrote in one is a bracket, a word and a bracket, as in Google's
BERT and in transformers with `split_special_tokens=True`. As the piece of that name, which transformers makes of it by
default, it would be taken for the end of the caption, or for a word that was hidden.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from imagebert.data.vocabulary import SPECIALS, Settings, read_vocabulary
from imagebert.files import digest_of
from imagebert.log import BY_RANK_0

__all__ = ["SPECIALS", "Settings", "Tokenizer", "settings_of_before"]

log = logging.getLogger(__name__)


class Tokenizer:
    """A BERT vocabulary and how texts become its pieces.

    A tokenizer_config.json is read as transformers reads it: texts are lower-cased unless it says otherwise. Where
    there is none tokenizer.json decides, and where there is neither, the vocabulary: texts keep their case if more than
    one piece in 50 has capitals, of those whose letters have two cases.

    Args:
        path: a folder that holds a vocab.txt or a tokenizer.json, or such a file; see vocabulary.py
        settings: what they are for these pieces, whatever lies beside them

    Attributes:
        path: of the file with the pieces
        text: vocab.txt
        pieces: each at its id
        told: whether something says what the settings are; else they follow from the pieces
        digest: SHA-256 of vocab.txt; of it and the settings where they are not `settings_of_before`

    Raises:
        UsageError: no such file, or no BERT vocabulary: see `read_vocabulary`.
    """

    def __init__(self, path: Path | str, settings: Callable[[list[str]], Settings] | None = None) -> None:
        self.path, self.text, self.pieces, ids, told = read_vocabulary(Path(path))
        if settings is not None:
            told = settings(self.pieces)
        self.told = told is not None
        self.settings = told if told is not None else Settings(not _is_cased(self.pieces))
        if settings is None:
            self._note_capitals()
        self.digest = hashlib.sha256(self.text.encode()).hexdigest()
        if self.settings != settings_of_before(self.pieces):
            self.digest = digest_of([self.digest, self.settings])
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[special] for special in SPECIALS)
        self._wordpiece = tokenizers.Tokenizer(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
        self._wordpiece.normalizer = BertNormalizer(
            clean_text=True,
            handle_chinese_chars=self.settings.tokenize_chinese_chars,
            strip_accents=self.settings.strip_accents,
            lowercase=self.settings.do_lower_case,
        )
        self._wordpiece.pre_tokenizer = BertPreTokenizer()

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The word pieces of each text, without [CLS] and [SEP]."""
        return [e.ids for e in self._wordpiece.encode_batch(list(texts), add_special_tokens=False)]

    def described(self, max_words: int) -> dict[str, Any]:
        """tokenizer_config.json of a model that is fed so many word pieces, as transformers reads it."""
        named = {f"{name.strip('[]').lower()}_token": name for name in ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")}
        length = {"model_max_length": max_words + 2}
        return {"tokenizer_class": "BertTokenizer", **self.settings._asdict(), **length, **named}

    def difference(self, other: Tokenizer) -> str:
        """The first thing that is otherwise in `other`; "" where nothing is.

        Settings that nothing tells are not compared.
        """
        if self.pieces != other.pieces:
            same = [a == b for a, b in zip(self.pieces, other.pieces, strict=False)]
            return f"piece {same.index(False) if False in same else len(same)} differs"
        if self.told and other.told:
            for name, ours, theirs in zip(Settings._fields, self.settings, other.settings, strict=True):
                if ours != theirs:
                    return f"{name} is {json.dumps(ours)}, not {json.dumps(theirs)}"
        return ""

    def _note_capitals(self) -> None:
        """Says what becomes of capitals, where that was decided here or cannot be meant."""
        lower_case, (capitals, of) = self.settings.do_lower_case, _capitals(self.pieces)
        how = "are lower-cased" if lower_case else "keep their case"
        seen = f"{capitals:,} of {of:,} pieces with letters of two cases have capitals"
        if not self.told and capitals:
            log.info("%s: texts %s, as %s; a tokenizer_config.json beside it decides", self.path, how, seen)
        elif self.told and lower_case == _is_cased(self.pieces):
            what = "no text reaches these" if lower_case else "words with capitals may be [UNK]"
            log.warning("%s: texts %s as its folder says, though %s: %s", self.path, how, seen, what, extra=BY_RANK_0)


def settings_of_before(pieces: list[str]) -> Settings:
    """Those of a pair store that keeps none: one piece that begins with A to Z was enough to keep the case."""
    return Settings(not any("A" <= piece[:1] <= "Z" for piece in pieces))


def _is_cased(pieces: list[str]) -> bool:
    capitals, of = _capitals(pieces)
    return 50 * capitals > of


def _capitals(pieces: list[str]) -> tuple[int, int]:
    """How many pieces have capitals, of how many that could; [CLS] and [unused7] are none of them."""
    could = [piece for piece in pieces if piece.lower() != piece.upper() and not piece.startswith("[")]
    return sum(piece != piece.lower() for piece in could), len(could)
