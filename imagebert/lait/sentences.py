"""What a text of a page says, in whole sentences: boilerplate taken out, and what is no sentence told (paper, section 4).

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

from imagebert.lait.language import Languages, stop_words_of, words_of
from imagebert.lait.recipe import SentencesRecipe

LONGEST = 2_000  # characters of a text that are looked at: captions are shorter
# The reasons for which a sentence is not kept.
FLAWS = ("short", "long", "letters", "capitals", "keywords", "repetition", "spam", "unknown_words", "language")

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
_MONTH = r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
_DATE = re.compile(
    rf"\b(?:\d{{1,2}}[./-]\d{{1,2}}[./-]\d{{2,4}}|\d{{4}}-\d{{2}}-\d{{2}}(?:T[\d:.]+Z?)?|"
    rf"(?:on )?{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}|(?:on )?\d{{1,2}}(?:st|nd|rd|th)? {_MONTH},? \d{{4}})\b"
    r"(?:,? (?:at )?\d{1,2}:\d{2}(?: ?[ap]\.?m\.?)?)?",
    re.I,
)
# Who made or owns a picture: to the end of its line, sentence or bracket.
_WHOSE = r"(?:photo(?:graph)?s?|images?|pictures?|pics?|illustrations?|file photo|handout|stock photo)"
_CREDIT = re.compile(
    rf"[(\[]\s*(?:{_WHOSE}|credits?|source|courtesy|via|©|copyright)\b[^()\[\]]{{0,120}}[)\]]|"
    rf"(?:\b{_WHOSE}\s*(?:credits?|courtesy(?: of)?|by|source|via|:|/|©)|\b(?:credits?|source|courtesy(?: of)?)\s*[:/]|"
    r"\bcourtesy of\b|©|\(c\)|\bcopyright\b|\ball rights reserved\b)[^\n]{0,120}?(?=[.!?](?:\s|$)|\n|\||$)[.!?]?",
    re.I,
)
_AGENCY = re.compile(
    r"[(\[][^()\[\]]{0,60}\b(?:getty(?: images)?|reuters|afp|ap|epa|shutterstock|istock|alamy|unsplash|flickr)\b[^()\[\]]{0,30}"
    r"[)\]]|(?:[-–—|/]\s*)?\b(?:getty images|shutterstock|istockphoto|alamy(?: stock photo)?)\b",
    re.I,
)
_CALL = re.compile(
    r"[(\[]?\b(?:(?:click|tap)(?: here| the (?:image|picture|photo))?(?: to| for)[ \w]{0,40}|(?:click|tap) here|"
    r"(?:view|see|show) (?:larger|full[- ]?size|bigger|original|enlarged|gallery|image|all)[ \w]{0,20}|enlarge(?: (?:image|"
    r"photo|picture))?|zoom (?:in|out)|read more|learn more|continue reading|show more|load(?:ing)? more|share this|share "
    r"on \w+|tweet this|pin it|follow us[ \w]{0,20}|subscribe[ \w]{0,30}|sign up[ \w]{0,30}|log ?in|add to (?:cart|basket|"
    r"wishlist|bag)|buy now|shop now|order now|free shipping[ \w]{0,20}|advert(?:isement|ising)?|sponsored|image (?:not "
    r"available|may contain)[^.]{0,80}|(?:full|high)[- ]res(?:olution)?|hi-?res|download (?:image|photo|wallpaper)s?|"
    r"related (?:articles?|stories|posts?)|(?:previous|next) (?:image|photo|slide|post)|skip to content|related:|"
    r"leave a (?:comment|reply)|\d+ (?:comments?|shares?|likes?|views?)|we use cookies[^.]{0,80}|accept (?:all )?cookies)"
    r"\b[)\]]?[:.!]?",
    re.I,
)
_OPENING = re.compile(
    rf"^\W*(?:(?:(?:a|an|the|this|stock|file|featured|main|hero|cover|header|close-?up)\s+)*{_WHOSE}\s*(?:\d+\s*)?(?:of|"
    r"showing|shows|depicting|for|[:#-])|(?:fig(?:ure)?|slide|photo|image|picture|caption|alt|title)\.?\s*"
    r"(?:\d+[a-z]?)?(?:\s*(?:of|/)\s*\d+)?\s*[.:)–-]|\d+\s*(?:of|/)\s*\d+\s*[.:)–-]?|\d{1,3}[.)]\s)\s*",
    re.I,
)
_SPACES = re.compile(r"[\s\u00a0\u2028\u2029]+")
_BROKEN = re.compile(r"\s+([,.;:!?)])|([(\[])\s+|[(\[]\s*[)\]]|([,;:])(?=\s*[.!?])")
_ENDS = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])")
_ABBREVIATED = re.compile(
    r"\b(?:mr|mrs|ms|dr|st|mt|no|vs|jr|sr|prof|gen|col|inc|ltd|co|u\.s|u\.k|e\.g|i\.e|[a-z])\.$", re.I
)
_EDGES = " \t\n\"'“”‘’`*_|/\\•·-–—:;,~<>=+^"
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SITE = re.compile(r"\s+(?:[|»·•]|[-–—]{1,2}|::)\s+")

_SPAM = frozenset(
    "viagra cialis casino porn porno xxx nude nudes naked sex sexy escort escorts hentai milf webcam nsfw payday "
    "forex bitcoin lottery jackpot poker coupon coupons promo discount cheap cheapest wholesale clickbait torrent "
    "lorem ipsum undefined null javascript cookie cookies checkout".split()
)


# What is taken out, and what a text in lower case has to have for a pattern to be tried: most have nothing of it.
_DIGITS = tuple("0123456789")
_SPANS = (
    (_MARKUP, ("<", "[", "{{")),
    (_ADDRESS, ("http", "www.", "@")),
    (_CREDIT, tuple("photo image pic credit source courtesy © (c) copyright reserved illustration handout".split())),
    (_AGENCY, tuple("getty reuters afp ap epa shutterstock istock alamy unsplash flickr".split())),
    (_FILE, tuple(".jp .png .gif .webp .bmp .tif .svg .avif .heic".split())),
    (_CAMERA, _DIGITS),
    (_EXIF, _DIGITS),
    (_HASHTAG, ("#", "@")),
    (_DATE, _DIGITS),
    (
        _CALL,
        tuple(
            "click tap view see show enlarge zoom more share tweet pin follow subscribe sign log add now free advert "
            "sponsor image res download related previous next skip leave comment like cookie".split()
        ),
    ),
)


@lru_cache(4096)  # a page has one text in several places
def clean(text: str, site: str = "") -> str:
    """A text of one line without what is boilerplate, markup or noise; "" where nothing is left.

    Args:
        site: what the page's site is called, which titles end with
    """
    text = text[:LONGEST]
    if "&" in text:
        text = html.unescape(text)
    lowered = text.lower()
    for pattern, signs in _SPANS:
        if any(sign in lowered for sign in signs):
            text = pattern.sub(" ", text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", "".join(map(_shown, text)))
    text = _SPACES.sub(" ", text)
    if site:
        text = _without_site(text, site)
    while (shorter := _OPENING.sub("", text, count=1)) != text:
        text = shorter
    text = _BROKEN.sub(lambda found: found[1] or found[2] or "", text)
    return _SPACES.sub(" ", text).strip(_EDGES)


def _shown(character: str) -> str:
    """A character that makes words or ends them; a space for emoji, arrows, control characters and half characters."""
    category = unicodedata.category(character)
    return " " if category[0] == "C" or category == "So" or character == "\ufffd" else character


def _without_site(text: str, site: str) -> str:
    """Without the parts, behind a bar or a dash, that name the site."""
    name = re.sub(r"\W", "", site.lower())
    parts = _SITE.split(text)
    kept = [
        part for part in parts if (plain := re.sub(r"\W", "", part.lower())) and plain not in name and name not in plain
    ]
    return text if len(kept) == len(parts) else " - ".join(kept)


def sentences(text: str) -> list[str]:
    """The sentences of a clean text."""
    found: list[str] = []
    for part in _ENDS.split(text):
        if found and _ABBREVIATED.search(found[-1]):
            found[-1] = f"{found[-1]} {part}"
        else:
            found.append(part)
    return [sentence for part in found if (sentence := part.strip(_EDGES))]


class Judge:
    """Tells what is wrong with a sentence."""

    def __init__(self, recipe: SentencesRecipe, language: str) -> None:
        self._recipe, self._language = recipe, language
        self._languages = Languages()
        self._words, self._stop_words = words_of(language), stop_words_of(language)

    def flaw(self, sentence: str) -> str:
        """Why a sentence is not kept, one of FLAWS; "" where it is."""
        recipe = self._recipe
        words = [word.lower().replace("’", "'") for word in _WORD.findall(sentence)]
        if len(words) < recipe.words[0] or len(sentence) < recipe.characters[0]:
            return "short"
        if len(words) > recipe.words[1] or len(sentence) > recipe.characters[1]:
            return "long"
        letters = sum(map(str.isalpha, sentence))
        if letters < recipe.letters * len(sentence):
            return "letters"
        if sum(map(str.isupper, sentence)) > recipe.capitals * letters:
            return "capitals"
        if not _SPAM.isdisjoint(words):
            return "spam"
        separators = sum(map(sentence.count, ",;|/"))
        if separators > recipe.commas * len(words) or sum(w in self._stop_words for w in words) < recipe.stop_words:
            return "keywords"
        if self.repetition(words) > recipe.repetition:
            return "repetition"
        if self.unknown(words) > recipe.unknown_words:
            return "unknown_words"
        if self._languages.score(sentence, self._language) < recipe.language_score:
            return "language"
        return ""

    def repetition(self, words: list[str]) -> float:
        """The share of a sentence's words that are its most frequent one, stop words apart; of pairs where those say more."""
        plain = [word for word in words if word not in self._stop_words]
        if len(plain) < 4:
            return 0.0
        (_, most), *_ = Counter(plain).most_common(1)
        pairs = Counter(zip(words, words[1:], strict=False))
        again = sum(count - 1 for count in pairs.values())
        return max((most / len(plain)) if most > 2 else 0.0, again / len(words))

    def unknown(self, words: list[str]) -> float:
        """The share of words that the language's 100,000 most frequent ones do not have."""
        return sum(not self._knows(word) for word in words) / len(words)

    def _knows(self, word: str) -> bool:
        if word in self._words or word.removesuffix("'s") in self._words:
            return True
        return "-" in word and all(part in self._words for part in word.split("-") if part)

    def page_score(self, text: str) -> float:
        """How sure it is that a page's text is in the recipe's language; see Languages.score."""
        return self._languages.score(text, self._language)
