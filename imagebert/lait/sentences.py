"""What a text of a page says, in whole sentences: boilerplate taken out, what is no sentence told (paper, section 4).

Cleaning takes spans out of a text: markup, addresses, file and camera names, credits, dates, calls to click. What is
left is cut into sentences, and a sentence that is too short, too long, a list of keywords, full of unknown words,
repetitive, in another language, or spam has a flaw, by a name that is counted.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from functools import lru_cache
from itertools import pairwise

from imagebert.lait.language import LANGUAGE, Languages, stop_words_of, words_of
from imagebert.lait.recipe import SentencesRecipe

_SURELY = 0.1  # share of unknown words up to which a sentence with stop words is in the language
_MANY = 20  # words that say it
_ROUNDS = 8  # of cleaning
LONGEST = 2_000  # characters of a text that are looked at: captions are shorter
# The reasons for which a sentence is not kept.
FLAWS = ("short", "long", "letters", "capitals", "keywords", "repetition", "spam", "unknown_words", "language")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_MARKUP = re.compile(r"<[/!a-zA-Z][^<>]{0,300}>|\[/?[a-z]{1,8}(?:=[^\]]{0,100})?\]|\{\{[^{}]{0,200}\}\}")
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+|\b[\w.+-]{1,60}@[\w-]{1,60}\.[\w.]{2,20}", re.I)
_FILE = re.compile(r"\b[\w()%+-]{1,80}\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|avif|heic)\b", re.I)
_CAMERA = re.compile(r"\b(?:dscn?|dscf|img|imag|pict?|p10|mvi|gopr|dji|sam|wp|screenshot|scan)[ _-]?\d{3,}\b", re.I)
_EXIF = re.compile(
    r"\b(?:canon|nikon|sony|olympus|pentax|fuji(?:film)?|leica|panasonic)\s+(?:eos|d\d+|alpha|powershot|coolpix|x-?\w+)"
    r"[\w -]{0,20}|\bf/\d(?:\.\d)?\b|\b1/\d{2,4}\s?s(?:ec)?\b|\biso\s?\d{2,6}\b",
    re.I,
)
_HASHTAG = re.compile(r"(?:^|\s)[#@][\w.]{2,40}")
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)\.?"
)
_DATE = re.compile(
    r"\b(?:\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}-\d{2}-\d{2}(?:T[\d:.]+Z?)?|"
    rf"(?:on )?{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}|(?:on )?\d{{1,2}}(?:st|nd|rd|th)? {_MONTH},? \d{{4}})\b"
    r"(?:,? (?:at )?\d{1,2}:\d{2}(?: ?[ap]\.?m\.?)?)?",
    re.I,
)
# Who made or owns a picture: to the end of its line, sentence or bracket.
_WHOSE = r"(?:photo(?:graph)?s?|images?|pictures?|pics?|illustrations?|file photo|handout|stock photo)"
_CREDIT = re.compile(
    rf"[(\[]\s*(?:{_WHOSE}|credits?|source|courtesy|via|©|copyright)\b[^()\[\]]{{0,120}}[)\]]|"
    rf"(?:\b{_WHOSE}\s*(?:credits?|courtesy(?: of)?|by(?=:| (?-i:[A-Z@]))|source|via|:|/|©)|"
    r"\b(?:credits?|source|courtesy(?: of)?)\s*[:/]|"
    r"\bcourtesy of\b|©|\(c\)|\bcopyright\b|\ball rights reserved\b)[^\n]{0,120}?(?=[.!?](?:\s|$)|\n|\||$)[.!?]?|"
    r"\b(?:file|stock|handout) (?:photo|picture|image)(?=[.)\]]|\s*$)",
    re.I,
)
_AGENCY = re.compile(
    r"[(\[][^()\[\]]{0,60}\b(?:getty(?: images)?|reuters|afp|ap|epa|shutterstock|istock|alamy|unsplash|flickr)\b"
    r"[^()\[\]]{0,30}[)\]]|"
    r"(?:[-\u2013\u2014|/]\s*)?\b(?:getty images|shutterstock|istockphoto|alamy(?: stock photo)?)\b",
    re.I,
)
_CALL = re.compile(
    r"[(\[]?\b(?:(?:click|tap)(?: here| the (?:image|picture|photo))?(?: to| for)[ \w]{0,40}|(?:click|tap) here|"
    r"(?:view|see|show) (?:larger|full[- ]?size|bigger|original|enlarged|gallery|image|all)[ \w]{0,20}|"
    r"enlarge(?: (?:image|photo|picture))?|zoom (?:in|out)|read more|learn more|continue reading|show more|"
    r"load(?:ing)? more|share this|share on \w+|tweet this|pin it|follow us[ \w]{0,20}|subscribe[ \w]{0,30}|"
    r"sign up[ \w]{0,30}|log ?in|add to (?:cart|basket|wishlist|bag)|buy now|shop now|order now|"
    r"free shipping[ \w]{0,20}|advert(?:isement|ising)?|sponsored|image (?:not available|may contain)[^.]{0,80}|"
    r"(?:full|high)[- ]res(?:olution)?|hi-?res|download (?:image|photo|wallpaper)s?|"
    r"related (?:articles?|stories|posts?)|(?:previous|next) (?:image|photo|slide|post)|skip to content|related:|"
    r"leave a (?:comment|reply)|\d+ (?:comments?|shares?|likes?|views?)|we use cookies[^.]{0,80}|"
    r"accept (?:all )?cookies)\b[)\]]?[:.!]?",
    re.I,
)
_OPENING = re.compile(
    rf"^\W*(?:(?:(?:a|an|the|this|stock|file|featured|main|hero|cover|header|close-?up)\s+)*{_WHOSE}\s*(?:\d+\s*)?"
    r"(?:of|showing|shows|depicting|for|[:#-])|(?:fig(?:ure)?|slide|photo|image|picture|caption|alt|title)\.?\s*"
    r"(?:\d+[a-z]?)?(?:\s*(?:of|/)\s*\d+)?\s*[.:)\u2013-]|\d+\s*(?:of|/)\s*\d+\s*[.:)\u2013-]?|\d{1,3}[.)]\s)\s*",
    re.I,
)
# Of a text whose spaces are single ones.
_BROKEN = re.compile(r" ?[(\[] ?[)\]]| ([,.;:!?)])|([(\[]) |([,;:])(?= ?[.!?])")
# One of these is in what it finds.
_FAULTS = ("(", "[", *(f" {sign}" for sign in ",.;:!?)"), *(a + b for a in ",;:" for b in ".!?"))
_SIGN = re.compile(r"[.!?\u2026]")
_ENDS = re.compile(r"(?<=[.!?\u2026])[\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(\[]*[A-Z0-9])")
_ABBREVIATED = re.compile(
    r"\b(?:mr|mrs|ms|dr|st|mt|no|vs|jr|sr|prof|gen|col|inc|ltd|co|u\.s|u\.k|e\.g|i\.e|[a-z])\.$", re.I
)
_EDGES = " \t\n\"'`*_|/\\-:;,~<>=+^\u201c\u201d\u2018\u2019\u2022\u00b7\u2013\u2014"
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_SITE = re.compile(r" (?:[|\u00bb\u00b7\u2022]|[-\u2013\u2014]{1,2}|::) ")

_SPAM = _set(
    "viagra cialis casino porn porno xxx nude nudes naked sex sexy escort escorts hentai milf webcam nsfw payday "
    "forex bitcoin lottery jackpot poker coupon coupons promo discount cheap cheapest wholesale clickbait torrent "
    "lorem ipsum undefined null javascript cookie cookies checkout"
)
# The words or signs of which a text has to have one for a pattern to be tried: most texts have none.
_BY_WORD = (
    (
        _CREDIT,
        _set(
            "photo photos photograph photographs image images picture pictures pic pics illustration illustrations "
            "handout credit credits source courtesy c copyright reserved"
        ),
    ),
    (_AGENCY, _set("getty reuters afp ap epa shutterstock istock istockphoto alamy unsplash flickr")),
    (_FILE, _set("jpg jpeg png gif webp bmp tif tiff svg avif heic")),
    (
        _CALL,
        _set(
            "click tap view see show enlarge zoom more share tweet pin follow subscribe sign log login add buy shop "
            "order free advertisement advertising sponsored available may res resolution hi hires download related "
            "previous next skip leave comment comments shares likes views cookies"
        ),
    ),
)
_BY_SIGN = (
    *((_MARKUP, sign) for sign in ("<", "[", "{{")),
    *((_ADDRESS, sign) for sign in ("http", "www.", "@")),
    *((_HASHTAG, sign) for sign in ("#", "@")),
    (_CREDIT, "\u00a9"),
)
_BY_DIGIT = (_CAMERA, _EXIF, _DATE)
_DIGIT, _LETTERS = re.compile(r"\d"), re.compile(r"[a-z]+")


class _Shown(dict[int, str]):
    """Characters as `str.translate` asks for them: what makes no word is a space (emoji, arrows, half characters)."""

    def __missing__(self, code: int) -> str:
        category = unicodedata.category(chr(code))
        self[code] = " " if category[0] == "C" or category == "So" or code == 0xFFFD else chr(code)
        return self[code]


_SHOWN = _Shown()


def clean(text: str, site: str = "") -> str:
    """A text of one line without what is boilerplate, markup or noise; "" where nothing is left.

    Args:
        site: what the page's site is called, which titles end with
    """
    return _clean(text[:LONGEST], site)


@lru_cache(4096)  # a page has one text in several places
def _clean(text: str, site: str) -> str:
    for _ in range(_ROUNDS):  # what is taken out may bring together what is no text either
        before, text = text, _once(text, site)
        if text == before:
            break
    return text


def _once(text: str, site: str) -> str:
    if "&" in text:
        text = html.unescape(text)
    lowered = text.lower()
    for pattern, sign in _BY_SIGN:
        if sign in lowered:
            text = pattern.sub(" ", text)
    words = _LETTERS.findall(lowered)
    for pattern, signs in _BY_WORD:
        if not signs.isdisjoint(words):
            text = pattern.sub(" ", text)
    if _DIGIT.search(text):
        for pattern in _BY_DIGIT:
            text = pattern.sub(" ", text)
    if not (text.isascii() and text.isprintable()):
        text = unicodedata.normalize("NFC", text.translate(_SHOWN))
    text = " ".join(text.split())
    if site:
        text = _without_site(text, site)
    while (shorter := _OPENING.sub("", text, count=1)) != text:
        text = shorter
    if any(fault in text for fault in _FAULTS):
        text = _BROKEN.sub(lambda found: found[1] or found[2] or "", text)
    return " ".join(text.split()).strip(_EDGES)


def _without_site(text: str, site: str) -> str:
    """Without the parts, behind a bar or a dash, that name the site."""
    name = re.sub(r"\W", "", site.lower())
    parts = _SITE.split(text)
    kept = [part for part in parts if not _names(re.sub(r"\W", "", part.lower()), name, len(parts) == 1)]
    return text if len(kept) == len(parts) else " - ".join(kept)


def _names(part: str, site: str, alone: bool) -> bool:
    """Whether a part of a title is a site's name, or a part of it, or little more."""
    if alone or not part:
        return part == site
    return (len(part) > 2 and part in site) or (len(site) > 2 and site in part and len(part) <= 2 * len(site) + 4)


def sentences(text: str) -> list[str]:
    """The sentences of a clean text."""
    found: list[str] = []
    for part in _ENDS.split(text) if _SIGN.search(text, 0, len(text) - 1) else [text]:
        if found and _ABBREVIATED.search(found[-1]):
            found[-1] = f"{found[-1]} {part}"
        else:
            found.append(part)
    return [sentence for part in found if (sentence := part.strip(_EDGES))]


class Judge:
    """Tells what is wrong with a sentence."""

    def __init__(self, recipe: SentencesRecipe) -> None:
        self._recipe, self._languages = recipe, Languages()
        self._words, self._stop_words = words_of(LANGUAGE), stop_words_of(LANGUAGE)

    def flaw(self, sentence: str) -> str:
        """Why a sentence is not kept, one of FLAWS; "" where it is."""
        recipe = self._recipe
        words = [word.lower().replace("\u2019", "'") for word in _WORD.findall(sentence)]
        if len(words) < recipe.words[0] or len(sentence) < recipe.characters[0]:
            return "short"
        if len(words) > recipe.words[1] or len(sentence) > recipe.characters[1]:
            return "long"
        letters = sum(map(len, words))  # and the signs within them
        if letters < recipe.letters * len(sentence):
            return "letters"
        if not sentence[1:].islower() and sum(map(str.isupper, sentence)) > recipe.capitals * letters:
            return "capitals"
        if not _SPAM.isdisjoint(words):
            return "spam"
        separators = sum(map(sentence.count, ",;|/"))
        plain = [word for word in words if word not in self._stop_words]
        if separators > recipe.commas * len(words) or len(words) - len(plain) < recipe.stop_words:
            return "keywords"
        if self.repetition(words, plain) > recipe.repetition:
            return "repetition"
        unknown = self.unknown(words)
        if unknown > recipe.unknown_words:
            return "unknown_words"
        # What nearly all words are of is in the language; a model is asked of the others, and of what is full of names.
        if unknown > _SURELY and self._languages.score(sentence, LANGUAGE) < recipe.language_score:
            return "language"
        return ""

    def repetition(self, words: list[str], plain: list[str]) -> float:
        """The share of words without stop words that are the most frequent one, or of pairs that come again."""
        if len(plain) < 4 or len(set(plain)) == len(plain):
            return 0.0
        (_, most), *_ = Counter(plain).most_common(1)
        pairs = Counter(pairwise(words))
        again = sum(count - 1 for count in pairs.values())
        return max((most / len(plain)) if most > 2 else 0.0, again / len(words))

    def unknown(self, words: list[str]) -> float:
        """The share of words that the language's 100,000 most frequent ones do not have."""
        rare = [word for word in words if word not in self._words and not self._knows(word)]
        return len(rare) / max(1, len(words))

    def _knows(self, word: str) -> bool:
        if word.removesuffix("'s") in self._words:
            return True
        return "-" in word and all(part in self._words for part in word.split("-") if part)

    def page_score(self, text: str) -> float:
        """How sure it is that a page's text is English; see Languages.score.

        Of most pages the words say it, without the model: nearly all are known, and a fifth are stop words.
        """
        words = _WORD.findall(text.lower())
        stops = len([word for word in words if word in self._stop_words])
        if len(words) >= _MANY and stops >= 0.2 * len(words) and self.unknown(words) <= _SURELY:
            return 1.0
        return self._languages.score(text, LANGUAGE)
