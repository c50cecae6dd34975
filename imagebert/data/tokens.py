"""Words to word pieces: BERT's WordPiece over a vocab.txt, through the `tokenizers` library."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from tokenizers import BertWordPieceTokenizer

from imagebert.config import UsageError

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokenizer:
    """A BERT vocabulary. `path` is a vocab.txt (one piece a line), or a folder that holds one.

    Raises:
        UsageError: no such file, a special piece is missing, or more pieces than 16 bits can number.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            self.path = self.path / "vocab.txt"
        try:
            data = self.path.read_bytes()
            self.pieces = data.decode("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the vocabulary {self.path}: {error}") from None
        missing = [special for special in SPECIALS if special not in self.pieces]
        if missing:
            raise UsageError(f"{self.path} lacks {', '.join(missing)}: give a BERT vocab.txt, one piece a line")
        if len(self.pieces) > 65536:
            raise UsageError(f"{self.path} has {len(self.pieces)} pieces: pair stores keep them in 16 bits")
        self.digest = hashlib.sha256(data).hexdigest()
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = map(self.pieces.index, SPECIALS)
        cased = any("A" <= piece[:1] <= "Z" for piece in self.pieces)
        self._wordpiece = BertWordPieceTokenizer(str(self.path), lowercase=not cased)

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The word pieces of each text, without [CLS] and [SEP]."""
        return [e.ids for e in self._wordpiece.encode_batch(list(texts), add_special_tokens=False)]
