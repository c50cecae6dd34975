"""Words to word pieces: BERT's WordPiece over a vocab.txt, through the `tokenizers` library."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from tokenizers import BertWordPieceTokenizer

from imagebert.config import UsageError
from imagebert.files import read_text

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_BYTES = 1 << 24  # of 65,536 pieces


class Tokenizer:
    """A BERT vocabulary. `path` is a vocab.txt (one piece a line), or a folder that holds one.

    Raises:
        UsageError: no such file, a special piece is missing, or more pieces than 16 bits can number.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if os.path.isdir(self.path):
            self.path = self.path / "vocab.txt"
        try:
            text = read_text(self.path, _BYTES)
        except (OSError, UsageError) as error:
            raise UsageError(f"cannot read the vocabulary {self.path}: {error}") from None
        self.pieces = [line.rstrip() for line in text.removesuffix("\n").split("\n")]  # as `tokenizers` counts them
        missing = [special for special in SPECIALS if special not in self.pieces]
        if missing:
            raise UsageError(f"{self.path} lacks {', '.join(missing)}: give a BERT vocab.txt, one piece a line")
        if len(self.pieces) > 65536:
            raise UsageError(f"{self.path} has {len(self.pieces)} pieces: pair stores keep them in 16 bits")
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = map(self.pieces.index, SPECIALS)
        cased = any("A" <= piece[:1] <= "Z" for piece in self.pieces)
        self.lower_case = not cased
        try:
            self._wordpiece = BertWordPieceTokenizer(str(self.path), lowercase=self.lower_case)
        except Exception as error:  # of Rust, with no common base: a name that is no UTF-8, for one
            raise UsageError(f"cannot read the vocabulary {self.path}: {error}") from None

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The word pieces of each text, without [CLS] and [SEP]."""
        return [e.ids for e in self._wordpiece.encode_batch(list(texts), add_special_tokens=False)]
