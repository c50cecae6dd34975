"""The texts around a picture: where each is from, how far it is, and what its sentences are measured by."""

from __future__ import annotations

import pytest

from imagebert.lait.document import Document
from imagebert.lait.images import images_of
from imagebert.lait.texts import FEATURES, SOURCES, Candidate, Text, candidates, texts_of

DOG, CAT = "A brown dog runs on the wet sand.", "A black cat sleeps on a red sofa."


def around(html: str, place: int = 0, alone: bool = True) -> list[Text]:
    document = Document("http://example.org/", html)
    return list(texts_of(document, images_of(document, 99)[place], alone))


def told(html: str, place: int = 0, most: int = 3) -> dict[str, Candidate]:
    document = Document("http://example.org/", html)
    images = images_of(document, 99)
    others = [image for image in images if image is not images[place]]
    found = candidates(document, images[place], not others, others, most)
    assert len({candidate.sentence for candidate in found}) == len(found)
    return {candidate.sentence: candidate for candidate in found}


def value(candidate: Candidate, name: str) -> float:
    return candidate.features[FEATURES.index(name)]


@pytest.mark.parametrize(
    ("html", "source", "distance", "behind"),
    [
        (f"<img src=/a.jpg alt='{DOG}'>", "alt", 0, True),
        (f"<img src=/a.jpg title='{DOG}'>", "title", 0, True),
        (f"<img src=/a.jpg aria-label='{DOG}'>", "title", 0, True),
        (f"<img src=/a.jpg data-caption='{DOG}'>", "caption", 0, True),
        (f"<a href=/b title='{DOG}'><img src=/a.jpg></a>", "title", 1, True),
        (f"<figure><img src=/a.jpg><figcaption>{DOG}</figcaption></figure>", "figcaption", 0, True),
        (f"<figure><div><img src=/a.jpg></div><figcaption>{DOG}</figcaption></figure>", "figcaption", 1, True),
        (f"<div><img src=/a.jpg><div class=wp-caption-text>{DOG}</div></div>", "caption", 0, True),
        (f"<div><img src=/a.jpg><p id=legend>{DOG}</p></div>", "caption", 0, True),
        (f"<div><img src=/a.jpg><p>{DOG}</p></div>", "around", 0, True),
        (f"<div><img src=/a.jpg>{DOG}</div>", "around", 0, True),
        (f"<div><img src=/a.jpg><p>1</p><p>{DOG}</p></div>", "around", 1, True),
        (f"<div><p>{DOG}</p><img src=/a.jpg></div>", "around", 0, False),
        (f"<div><div><img src=/a.jpg></div><p>{DOG}</p></div>", "around", 1, True),
        (f"<div><h2>{DOG}</h2><img src=/a.jpg></div>", "heading", 0, False),
        (f"<title>{DOG}</title><img src=/a.jpg>", "page_title", 0, True),
        (f"<meta property=og:title content='{DOG}'><img src=/a.jpg>", "page_title", 0, True),
        (f"<meta property=og:description content='{DOG}'><img src=/a.jpg>", "og", 0, True),
        (f"<meta name=description content='{DOG}'><img src=/a.jpg>", "og", 0, True),
        (
            f"<meta name=twitter:image content=/a.jpg><meta name=twitter:image:alt content='{DOG}'><img src=/a.jpg>",
            *("caption", 0, True),
        ),
        # What a browser does not show is not said, and a word goes on behind a letter that is larger.
        (f"<div><img src=/a.jpg><p><script>var x;</script>{DOG}<button>Share</button></p></div>", "around", 0, True),
        (f"<figure><img src=/a.jpg><figcaption><i style='display: none'>No.</i>{DOG}<b hidden>No</b></figcaption>",
         "figcaption", 0, True),
        ("<div><img src=/a.jpg><p><span>A</span> br<em>o</em>wn d<b>og</b> runs on the wet sand.", "around", 0, True),
        (f"<figure><figure><img src=/b.jpg><figcaption>No.</figcaption></figure><figure><img src=/a.jpg></figure>"
         f"<figcaption>{DOG}</figcaption></figure>", "figcaption", 2, True),
        ("<div><img src=/a.jpg><p><b>A brown</b> dog\nruns on <i>the</i> wet&nbsp;sand.</p></div>", "around", 0, True),
    ],
)  # fmt: skip
def test_each_text_knows_where_it_is_from(html: str, source: str, distance: int, behind: bool) -> None:
    found = [text for text in around(html) if text.text == DOG]
    assert found[0] == Text(source, DOG, distance, behind)
    assert source in SOURCES


@pytest.mark.parametrize(
    "html",
    [
        f"<div><img src=/a.jpg><img src=/b.jpg><p>{DOG}</p></div>",  # the other one's
        f"<div><img src=/a.jpg><figure><img src=/b.jpg><figcaption>{DOG}</figcaption></figure></div>",
        *(f"<div><img src=/a.jpg><{tag}>{DOG}</{tag}></div>" for tag in ("script", "style", "nav", "footer", "form")),
        f"<div><img src=/a.jpg><!-- {DOG} --></div>",
        # A gallery's other picture's; another file's, as the site's logo; what no browser shows.
        f"<figure><figure><img src=/a.jpg></figure><figure><img src=/b.jpg><figcaption>{DOG}</figcaption></figure>",
        f"<meta property=og:image content=/logo.jpg><meta property=og:image:alt content='{DOG}'><img src=/a.jpg>",
        f"<div><img src=/a.jpg><div class=caption><script>{DOG}</script></div></div>",
        f"<div><img src=/a.jpg><p style='visibility:hidden'>{DOG}</p><div><p hidden>{DOG}</p></div></div>",
        f"<div><img src=/a.jpg><amp-img src=/b.jpg></amp-img><p>{DOG}</p></div>",
        f"<div><img src=/a.jpg><p>1</p><p>2</p><p>{DOG}</p></div>",  # behind two others
        f"<div><img src=/a.jpg>{'<i></i>' * 200}<p>{DOG}</p></div>",  # behind many that are empty
        f"<div>{'<div>' * 9}<img src=/a.jpg>{'</div>' * 9}<p>{DOG}</p></div>",
    ],
)
def test_what_is_of_others_or_far_away_is_none(html: str) -> None:
    assert DOG not in [text.text for text in around(html)]


def test_what_is_said_of_the_page_is_said_of_its_only_picture() -> None:
    html = f"<title>{DOG}</title><meta name=description content='{CAT}'><img src=/a.jpg>"
    assert {text.source for text in around(html, alone=True)} == {"page_title", "og"}
    assert around(html, alone=False) == []


def test_a_long_text_is_kept_where_it_is_near() -> None:
    long = " ".join(f"Sentence number {n} is here." for n in range(1000))
    (before,) = [text for text in around(f"<div><p>{long}</p><img src=/a.jpg></div>") if text.source == "around"]
    (behind,) = [text for text in around(f"<div><img src=/a.jpg><p>{long}</p></div>") if text.source == "around"]
    assert long.startswith(behind.text)
    assert long.endswith(before.text)
    assert len(before.text) == len(behind.text) < 2000
    near = told(f"<div><img src=/a.jpg><p>{long}</p></div>", most=2)
    assert list(near) == ["Sentence number 0 is here.", "Sentence number 1 is here."]
    assert [value(candidate, "place") for candidate in near.values()] == [0, 1]


def test_sentences_are_measured() -> None:
    html = (
        f"<title>The brown dog of the town</title><div><img src=/photos/brown-dog.jpg alt='{DOG.rstrip('.')}'>"
        f"<p>{DOG} Nothing of it is known so far in this old town here.</p></div>"
    )
    dog, other, title = told(html).values()
    assert (dog.sentence, dog.source) == (DOG.rstrip("."), "alt")
    assert title.source == "around" or other.source == "around"
    measured = {name: value(dog, name) for name in FEATURES}
    assert measured["is_alt"] == 1
    assert sum(measured[f"is_{source}"] for source in SOURCES) == 1
    assert measured["words"] == pytest.approx(0.8)
    assert measured["is_short"] == measured["is_whole"] == measured["shared_with_pictures"] == 0
    assert measured["named_twice"] == 1
    assert measured["overlap_with_name"] == pytest.approx(2 / 3)  # brown, dog, of three with jpg
    assert measured["overlap_with_title"] == pytest.approx(3 / 4)  # the, brown, dog, town
    assert measured["overlap_with_alt"] == 0  # its own
    assert dog.overlap("name") == measured["overlap_with_name"]
    assert dog.overlap("title") == measured["overlap_with_title"]
    rest = next(candidate for candidate in told(html).values() if candidate.sentence.startswith("Nothing"))
    assert value(rest, "is_whole") == 1
    assert value(rest, "is_around") == 1
    assert value(rest, "place") == 1


def test_a_text_that_pictures_share_is_known() -> None:
    cell = "<div><img src=/{}.jpg alt='{}'></div>"
    html = cell.format("a", DOG) + cell.format("b", DOG) + cell.format("c", CAT)
    assert value(told(html, 0)[DOG], "shared_with_pictures") == 1
    assert value(told(html, 2)[CAT], "shared_with_pictures") == 0
    assert value(told(html, 2)[CAT], "log_pictures") == pytest.approx(0.2)
