"""Texts as the Web has them to sentences: each kind of boilerplate, each flaw, and what holds of any text."""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebert.demo.web import some_subjects
from imagebert.lait.recipe import SentencesRecipe
from imagebert.lait.sentences import FLAWS, LONGEST, Judge, clean, sentences

DOG = "A brown dog is running on wet sand"
PLAIN = [subject.sentence for subject in some_subjects(2000, 77)]
JUDGE = Judge(SentencesRecipe())


@pytest.mark.parametrize(
    "noise",
    [
        *("<p>{}</p>", "{}<br/>", "<a href='x'>{}</a>", "[b]{}[/b]", "[caption=x]{}[/caption]"),
        *("{} {{{{template|x}}}}",),
        *("{} http://example.org/a?b=c", "www.example.org {}", "{} me@example.org", "{} https://t.co/x"),
        *("{} IMG_1234.JPG", "dsc-0001.png {}", "my%20dog(1).jpeg {}", "{} photo-of-dog.webp"),
        *("{} DSC01234", "IMG 20190405 {}", "{} Screenshot 12345", "{} f/2.8 1/250 s ISO 400", "{} Canon EOS 5D"),
        *("{} (Photo: Jane Doe)", "{} [Credit: AP Photo/Jane Doe]", "{}. Photo by Jane Doe"),
        *("{}. Photo courtesy of Jane",),
        *("{}. \N{COPYRIGHT SIGN} Jane Doe 2019", "{} (c) Jane Doe", "{}. Image credit: Jane Doe."),
        *("{}. Source: Jane Doe",),
        *("{}. All rights reserved", "{}. Copyright Jane Doe, 2020", "{} (Jane Doe/Getty Images)", "{} / Shutterstock"),
        *("{} (Reuters)", "{} (AFP/Jane Doe)", "{}. File photo", "{} - Alamy Stock Photo"),
        *("{} on 5 May 2019", "{}, May 5th, 2019", "{} 2019-05-05", "{} 05/05/2019 at 10:30 pm"),
        *("{} 2019-05-05T10:30:00Z",),
        *("{} (click to enlarge)", "Click here. {}", "{} View larger image", "{} Read more", "Advertisement {}"),
        *("{} Share on Facebook", "{} Add to cart", "{} Skip to content", "{} Download photo", "{} Hi-res"),
        *("{} #dog #sand", "@jane {}", "Photo of: {}", "Image 3: {}", "Figure 2a. {}", "Fig. 1: {}", "2 of 9: {}"),
        *("1. {}", "A photo of: {}", "Caption: {}", "Slide 2 of 5 - {}"),
        *("  {}  ", "\N{LEFT DOUBLE QUOTATION MARK}{}\N{RIGHT DOUBLE QUOTATION MARK}", "- {} -", "* {} *", "| {} |"),
        *("{}&nbsp;", "&quot;{}&quot;", "\u2028{}\u00a0", "\N{DOG FACE} {} \N{WATER WAVE}", "{}\ufffd"),
        *("\ud800{}\udfff", "{}\x07"),
        *("{} | The Site", "The Site - {}", "{} \N{BULLET} thesite", "{} :: The Site", "{} \N{EM DASH} The Site"),
        *("{} ( )", "{} ()", "{} []", "{}  ,"),
    ],
)
def test_boilerplate_is_taken_out_and_the_sentence_is_left(noise: str) -> None:
    found = sentences(clean(noise.format(DOG), "The Site"))
    assert [sentence.rstrip(".") for sentence in found] == [DOG]


@pytest.mark.parametrize(
    "nothing",
    ["", " ", "<img>", "IMG_1234.jpg", "http://x.org/", "12/05/2019", "(click to enlarge)", "...", "\ufffd", "&nbsp;"],
)
def test_of_noise_alone_nothing_is_left(nothing: str) -> None:
    assert [sentence for sentence in sentences(clean(nothing)) if re.search(r"\w", sentence)] == []


@pytest.mark.parametrize(
    "text",
    [
        "A photograph hangs above the old sofa.",
        "The image on the wall is of a dog.",
        "Two people share a sandwich in May.",
        "A view of the harbour at night.",
        "The dog's owner reads a well-known book.",
        "A woman, who is old, waits (alone) at 5 p.m. in the rain.",
        "Children see the sea for the first time!",
        "A source of water in the desert.",
        "A dog sits between 2 cats - and a mouse.",
        "A man clicks his fingers in front of a site.",
        "Two friends pose for a picture by the harbour.",
    ],
)
def test_ordinary_sentences_stay_as_they_are(text: str) -> None:
    assert clean(text, "Another Name") == text


def test_plain_english_is_not_changed_and_has_no_flaw() -> None:
    for text in PLAIN:
        assert clean(text) == text
        assert sentences(text) == [text]
        assert JUDGE.flaw(text) == ""


def test_only_what_names_the_site_is_taken_from_a_title() -> None:
    assert clean("A dog - on a beach | Example News", "Example News") == "A dog - on a beach"
    assert clean("A dog - on a beach | Example News", "") == "A dog - on a beach | Example News"
    assert clean("Well-known dogs are here", "dogs") == "Well-known dogs are here"
    assert clean("An apple on a table | Apple", "Apple") == "An apple on a table"
    assert clean("The Site", "The Site") == ""


# ------------------------------------------------------------------------------------------------------------ sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("He said yes. \N{LEFT DOUBLE QUOTATION MARK}No\N{RIGHT DOUBLE QUOTATION MARK} was the answer.", None),
        ("Mr. Smith and Dr. Jones live at St. Mary St. in town. They wait.", None),
        ("J. R. Smith sits. It is 3.5 metres high. 2 dogs wait.", None),
        ("It costs 5. And more.", ["It costs 5.", "And more."]),
        ("no capital. follows here", ["no capital. follows here"]),
        ("The end (of it). (And more.)", None),
        ("", []),
        ("...", ["..."]),
    ],
)
def test_a_text_is_cut_where_sentences_end(text: str, expected: list[str] | None) -> None:
    found = sentences(text)
    if expected is None:
        expected = {
            "He": ["He said yes.", "No\N{RIGHT DOUBLE QUOTATION MARK} was the answer."],
            "Mr": ["Mr. Smith and Dr. Jones live at St. Mary St. in town.", "They wait."],
            "J.": ["J. R. Smith sits.", "It is 3.5 metres high.", "2 dogs wait."],
            "Th": ["The end (of it).", "(And more.)"],
        }[text[:2]]
    assert found == expected


_TEXT = st.one_of(
    st.text(max_size=200),
    st.lists(
        st.sampled_from(
            [
                *("photo ", "Photo: ", "by ", "(", ")", "[", "]", "credit ", "image ", "courtesy of ", "Getty Images "),
                *("1 ", "2019 ", "May ", "/", "-", " - ", "| ", ". ", "! ", "? ", ", ", "A ", "dog ", "Dog. "),
                *("http://x ",),
                *("x.jpg ", "IMG_123 ", "<b>", "</b>", "&lt;", "&amp;", "&#x26;", "#", "@", "\u00a9", "\u00a0"),
                *("\n", "1) "),
                *("of ", "The ", "click here ", "Fig. 1: ", "Mr. ", '"', "'", "\u201c", "{{", "}}", "\ud800"),
                *("\U0001f600",),
            ]
        ),
        max_size=40,
    ).map("".join),
)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


@settings(max_examples=600, deadline=None)
@given(_TEXT, st.sampled_from(["", "The Site", "a", "dog"]))
def test_of_any_text_cleaning_is_final_and_adds_nothing(text: str, site: str) -> None:
    once = clean(text, site)
    assert clean(once, site) == once
    assert once.isprintable()
    assert "  " not in once
    once.encode()
    while (plain := html.unescape(text)) != text:
        text = plain
    whole = unicodedata.normalize("NFC", "".join(words(text)))
    rest = iter(whole)
    assert all(character in rest for character in "".join(words(once)))  # in their order


@settings(max_examples=400, deadline=None)
@given(_TEXT)
def test_of_any_clean_text_no_word_is_lost_between_sentences(text: str) -> None:
    cleaned = clean(text)
    found = sentences(cleaned)
    assert [word for sentence in found for word in words(sentence)] == words(cleaned)
    assert all(sentence == sentence.strip() for sentence in found)
    for sentence in found:
        assert JUDGE.flaw(sentence) in (*FLAWS, "")


def test_what_is_looked_at_is_bounded() -> None:
    assert len(clean("word " * 100_000)) <= LONGEST
    assert len(clean("&lt;" * 100_000)) <= LONGEST


@pytest.mark.parametrize(
    "unit",
    [
        *(" ", "\t", "\u00a0 ", "(", "[", "{{", "<", "< ", "photo ", "photo courtesy ", "(photo ", "[b", "1", "1 "),
        *("1/", "12-"),
        *("a.", "a-", "a@"),
        *("a@a.", "@", "#", "x.jp", "a%20", "fig. ", "1 of 1 ", "1) ", "getty ", "- ", "| ", ", ", " ,"),

        *("\u00a9", "(c) ", "click to a ", "image may contain ", "jan 1 ", "canon eos ", "the ", "A. ", "! ", "&"),
        *("&#x", "\u0301"),
    ],
)  # fmt: skip
def test_a_text_of_one_thing_a_million_times_is_cleaned(unit: str) -> None:
    # It ends in time: patterns are tried on what is bounded, and go back over no more than their own bounds.
    for text in (unit * 200_000, "(" + unit * 1_000, "photo of " + unit * 1_000 + ")"):
        sentences(clean(text, "a site"))


# ---------------------------------------------------------------------------------------------------------------- flaws


@pytest.mark.parametrize(
    ("sentence", "flaw"),
    [
        ("", "short"),
        ("A brown dog.", "short"),
        ("It is a b.", "short"),
        ("The dog is " + "very " * 40 + "old.", "long"),
        ("The dog and " + "internationalisation " * 15 + "are here.", "long"),
        ("The 12 34 56 78 90 12 34 56 of it is a 78 90 11.", "letters"),
        ("A DOG IS RUNNING on the BEACH OF THE TOWN.", "capitals"),
        ("The cheap viagra is for the old dog.", "spam"),
        ("Lorem ipsum is in the text of it.", "spam"),
        ("dog, beach, sand, sea, sun, holiday, the", "keywords"),
        ("dog beach sand sea sun holiday", "keywords"),
        ("The dog dog dog dog on the beach.", "repetition"),
        ("The old dog sleeps the old dog sleeps the old dog sleeps.", "repetition"),
        ("The xqzzt vrrpl kkjwq is in the hhgfd bnmqw.", "unknown_words"),
        ("El perro corre por la playa con una pelota en la boca.", "keywords"),  # no stop word of English
        ("Der braune Hund in dem Sand was gestern zu Hause.", "language"),
        (DOG + ".", ""),
        ("a brown dog is running on wet sand", ""),
        ("Angela Merkel visits the town of Wolfsburg in Germany.", ""),
        ("A well-known actor\N{RIGHT SINGLE QUOTATION MARK}s dog is in the park.", ""),
    ],
)
def test_flaws_are_told_by_name(sentence: str, flaw: str) -> None:
    assert JUDGE.flaw(sentence) == flaw
    assert flaw in (*FLAWS, "")


def test_thresholds_are_the_recipes() -> None:
    def flaw(sentence: str, **keys: object) -> str:
        return Judge(replace(SentencesRecipe(), **keys)).flaw(sentence)  # type: ignore[arg-type]

    assert flaw("A brown dog.", words=(3, 40), characters=(5, 300)) == ""
    assert flaw(DOG, words=(4, 7)) == "long"
    assert flaw(DOG, characters=(100, 300)) == "short"
    assert flaw("A DOG IS RUNNING on the BEACH OF THE TOWN.", capitals=1.0) == ""
    assert flaw("dog, beach, sand, sea, sun, holiday, the", commas=1.0) == ""
    assert flaw("dog beach sand sea sun holiday", stop_words=0) == ""
    assert flaw("The xqzzt vrrpl kkjwq is in the hhgfd bnmqw.", unknown_words=1.0, language_score=0.0) == ""
    assert flaw("The dog dog dog dog on the beach.", repetition=1.0) == ""
    assert flaw("", words=(0, 9), characters=(0, 99), stop_words=0) == ""


def test_a_page_is_in_the_language_that_its_words_are_in() -> None:
    english = " ".join(PLAIN[:5])
    assert JUDGE.page_score(english) == 1.0
    assert JUDGE.page_score("Der braune Hund rennt mit dem Ball in dem Sand. Er hat sich sehr gefreut.") == 0.0
    assert JUDGE.page_score("") == JUDGE.page_score(" \n ") == 0.0
    assert JUDGE.page_score(english.upper()) > 0.5
