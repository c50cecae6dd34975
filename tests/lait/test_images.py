"""The pictures of a page: which address, which are left out, and each number that the ranker is given."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebert.lait.document import Document
from imagebert.lait.images import FEATURES, LAZY, PageImage, images_of

PAGE = "http://www.example.org/news/page.html"


def found(html: str, most: int = 1000) -> list[PageImage]:
    return images_of(Document(PAGE, html), most)


def urls(html: str) -> list[str]:
    return [image.url.removeprefix("http://www.example.org/") for image in found(html)]


def feature(html: str, name: str, place: int = 0) -> float:
    (value,) = [value for key, value in zip(FEATURES, found(html)[place].features, strict=True) if key == name]
    return value


# ------------------------------------------------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("html", "url"),
    [
        ("<img src=a.jpg>", "news/a.jpg"),
        ("<IMG SRC=' /a.jpg#x '>", "a.jpg"),
        ("<img src=/first.jpg src=/second.jpg>", "first.jpg"),
        ("<amp-img src=/a.jpg></amp-img>", "a.jpg"),
        ("<img src=/s.jpg srcset='/a.jpg 320w, /b.jpg 1024w, /c.jpg 640w'>", "b.jpg"),
        ("<img src=/s.jpg srcset='/a.jpg, /b.jpg 2x'>", "b.jpg"),
        ("<img src=/s.jpg srcset='/a.jpg 1.5x,/b.jpg 1x'>", "a.jpg"),
        ("<img srcset='/c_fill,w_320/a.jpg 320w, /c_fill,w_640/a.jpg 640w'>", "c_fill,w_640/a.jpg"),
        ("<img srcset='/a.jpg\n\t320w\n,\n/b.jpg 640w ,'>", "b.jpg"),
        ("<img srcset='/a.jpg,/b.jpg'>", "a.jpg,/b.jpg"),  # one address, by the standard
        ("<img srcset='/a.jpg, /b.jpg,'>", "a.jpg"),
        (f"<img srcset='{', '.join(f'/{n}{chr(97) * 800}.jpg {n}w' for n in range(1, 40))}'>", f"24{'a' * 800}.jpg"),
        (f"<a href='/big.jpg?sig={'s' * 2_500}'><img src=/s.jpg></a>", "s.jpg"),
        ("<img srcset='/a.jpg 100w 50h, /b.jpg 70w'>", "a.jpg"),  # what is not understood counts once
        ("<img src=/s.jpg srcset=''>", "s.jpg"),
        ("<img src=/s.jpg srcset=' , ,, '>", "s.jpg"),
        ("<img src=/s.jpg srcset='data:image/gif;base64,AA== 1x'>", "s.jpg"),
        ("<img src=/s.jpg srcset='/a.jpg .w, /b.jpg ..5x, /c.jpg 99999999999999999999w'>", "a.jpg"),
        ("<img src=/s.jpg data-srcset='/a.jpg 1x, /b.jpg 2x'>", "b.jpg"),
        ("<picture><source srcset='/a.webp 900w'><img src=/s.jpg srcset='/b.jpg 900w'></picture>", "b.jpg"),
        ("<picture><source srcset='/a.webp 900w'><img src=/s.jpg srcset='/b.jpg 800w'></picture>", "a.webp"),
        ("<picture><source srcset=/a.jpg><img src=/s.jpg></picture>", "a.jpg"),
        ("<a href=/large.jpg><img src=/small.jpg width=100></a>", "large.jpg"),
        ("<a href=/large.JPEG?x=1><b><img src=/small.jpg></b></a>", "large.JPEG?x=1"),
        ("<a href='/img.php?f=a.jpg&s=9'><img src='/img.php?f=a.jpg&s=1'></a>", "img.php?f=a.jpg&s=9"),
        ("<a href=/wiki/File:a.jpg><img src=/a.jpg></a>", "a.jpg"),
        ("<a href=/page.html><img src=/a.jpg></a>", "a.jpg"),
        ("<a href='javascript:x.jpg'><img src=/a.jpg></a>", "a.jpg"),
        *((f"<img src=/blank.png {name}=/a.jpg>", "a.jpg") for name in LAZY),
        ("<img src=/a.jpg data-src='data:image/gif;base64,AA'>", "a.jpg"),
        ("<img src=/a.jpg data-src='javascript:0'>", "a.jpg"),
    ],
)
def test_the_largest_form_is_taken(html: str, url: str) -> None:
    assert urls(html) == [url]


@pytest.mark.parametrize(
    "html",
    [
        *("<img>", "<img src>", "<img src='  '>", "<img src=data:image/png,x>", "<img src=/a.gif>"),
        *("<img src=/a.SVG?x>",),
        *("<img src=/a.jpg width=300 height=400>", "<img src=/a.jpg height=1>", "<img src=/a.jpg style='width:20px'>"),
        *("<a href=/page.html><img src=/a.jpg width=100></a>", "<video poster=/a.jpg></video>", "<input src=/a.jpg>"),
        *("<a href=/x.jpg></a><img src=/a.jpg width=9>", "<noscript></noscript>", "<img src=/a.jpg width='299.9px'>"),
    ],
)
def test_what_is_no_picture_or_too_small_is_left_out(html: str) -> None:
    assert urls(html) == []


def test_each_address_comes_once_in_the_pages_order_and_no_more_than_asked() -> None:
    html = "".join(f"<img src=/{name}.jpg>" for name in "bacabd")
    assert urls(html) == ["b.jpg", "a.jpg", "c.jpg", "d.jpg"]
    assert [image.url[-5:] for image in found(html, 2)] == ["b.jpg", "a.jpg"]
    assert found(html, 0) == []


@pytest.mark.parametrize(
    ("attributes", "sizes"),
    [
        ("width=640 height=480", (640, 480)),
        ("width='640px' height=' 480 '", (640, 480)),
        ("width=640.7", (640, 0)),
        ("width=100%", (0, 0)),
        ("width=-5 height=1e3", (0, 0)),
        ("width=999999", (0, 0)),
        ("style='max-width: 800px; HEIGHT:600.5px'", (800, 600)),
        ("width=640 style='width:9px;height:500px'", (640, 500)),
        ("style='border-width:5px'", (0, 0)),
        ("width='\u00b2' height=''", (0, 0)),
    ],
)
def test_sizes_are_as_the_page_says(attributes: str, sizes: tuple[int, int]) -> None:
    (image,) = found(f"<img src=/a.jpg {attributes}>")
    assert (image.width, image.height) == sizes


# ------------------------------------------------------------------------------------------------------------- features

ONE = "<img src=/a.jpg>"


@pytest.mark.parametrize(
    ("name", "html", "value"),
    [
        ("size_known", "<img src=/a.jpg width=400>", 1),
        ("size_known", ONE, 0),
        ("log_area", "<img src=/a.jpg width=400 height=500>", math.log(200_001)),
        ("log_area", "<img src=/a.jpg width=400>", math.log(160_001)),
        ("log_aspect", "<img src=/a.jpg width=400 height=800>", math.log(2)),
        ("is_figure", f"<figure><p>{ONE}</p></figure>", 1),
        ("is_figure", ONE, 0),
        ("has_figcaption", f"<figure>{ONE}<figcaption>x</figcaption></figure>", 1),
        ("has_figcaption", f"<figure>{ONE}</figure>", 0),
        ("in_article", f"<article><div>{ONE}</div></article>", 1),
        ("in_article", f"<main>{ONE}</main>", 1),
        ("in_frame", f"<aside>{ONE}</aside>", 1),
        ("in_frame", f"<div>{ONE}</div>", 0),
        ("in_list", f"<ul><li>{ONE}</ul>", 1),
        ("in_table", f"<table><tr><td>{ONE}</table>", 1),
        ("good_class", "<div class='main photo'><img src=/a.jpg class=hero></div>", 3),
        ("bad_class", "<div id=sidebar><img src=/a.jpg class=logo></div>", 2),
        ("good_address", "<img src=/photos/a.jpg>", 1),
        ("bad_address", "<img src=/site-logo.jpg>", 1),
        ("bad_address", "<img src=/logotype.jpg>", 0),
        ("alt_words", "<img src=/a.jpg alt='three short words'>", 3),
        ("alt_words", f"<img src=/a.jpg alt='{'w ' * 500_000}'>", 12),
        ("alt_missing", "<img src=/a.jpg alt='  '>", 1),
        ("alt_missing", "<img src=/a.jpg alt=x>", 0),
        ("is_og_image", f"<meta property=og:image content=../a.jpg>{ONE}", 1),
        ("is_og_image", "<meta name=twitter:image content=/dog-1200x800.jpg><img src=/big/dog-640x480.jpg>", 0),
        ("is_og_image", "<meta name=twitter:image content=/doggy-1200x800.jpg><img src=/b/doggy-640x480.jpg>", 1),
        ("log_name", "<img src=/photos/abcd.jpg?x=longer>", math.log(5)),
        ("words_of_name", "<img src=/brown-dog_12-of-sea.jpg>", 3),
        ("is_jpeg", "<img src=/a.png>", 0),
        ("is_jpeg", "<img src=/a.JPG?x>", 1),
        ("is_lazy", "<img src=data:,x data-src=/a.jpg>", 1),
        ("has_srcset", "<img srcset='/a.jpg 640w'>", 1),
        ("log_width_of_srcset", "<img srcset='/a.jpg 640w'>", math.log(641)),
        ("log_width_of_srcset", f"<img srcset='/a.jpg 640w, /b.jpg {'9' * 400}w'>", math.log(641)),
        ("links_to_picture", "<a href=/b.jpg><img src=/a.jpg></a>", 1),
        ("links_to_file_page", "<a href=/wiki/File:b.jpg><img src=/a.jpg></a>", 1),
        ("links_to_page", "<a href=/b.html><img src=/a.jpg></a>", 1),
        ("links_to_page", "<a href=/b.jpg><img src=/a.jpg></a>", 0),
        ("links_away", "<a href=//other.example/><img src=/a.jpg></a>", 1),
        ("links_away", "<a href=http://www.example.org/x><img src=/a.jpg></a>", 0),
        ("other_host", "<img src=//cdn.other.net/a.jpg>", 1),
        ("other_host", "<img src=//media.example.net/a.jpg>", 0),
        ("hidden", f"<div style='color:red; Display : NONE'>{ONE}</div>", 1),
        ("hidden", "<img src=/a.jpg hidden>", 1),
        ("repeated", ONE * 2, 1),
        ("log_images", ONE * 2 + "<img src=/b.jpg>", math.log(3)),
        ("next_to_paragraph", f"<div><div>{ONE}</div>\n<p>x</p></div>", 1),
        ("next_to_paragraph", f"<div><div>{ONE}</div>text<p>x</p></div>", 0),
    ],
)
def test_features_say_what_their_names_say(name: str, html: str, value: float) -> None:
    assert feature(html, name) == pytest.approx(value)


def test_features_of_a_group() -> None:
    cells = "".join(f"<div class=cell{n}><a href=/{n}.html><img src=/{n}.jpg></a></div>" for n in range(4))
    html = f"<p><img src=/x.jpg class=hero></p>{cells}"
    assert [feature(html, "order", n) for n in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert [feature(html, "is_first", n) for n in range(5)] == [1, 0, 0, 0, 0]
    assert [feature(html, "log_alike", n) for n in range(5)] == pytest.approx([0] + [math.log(4)] * 4)
    assert [feature(html, "alike_with_links", n) for n in range(5)] == [0, 1, 1, 1, 1]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["src", "srcset", "data-src", "width", "height", "style", "alt", "class", "id", "hidden"]),
            st.text(max_size=12)
            | st.sampled_from(["/a.jpg 1x, /b.jpg 2.5x", "/a.jpg", "640", "width:9px", "//[", "."]),
        ),
        max_size=8,
    ),
    st.sampled_from(["{}", "<a href='/x.jpg'>{}</a>", "<picture><source srcset='/y.webp 5w'>{}</picture>", "<li>{}"]),
)
def test_of_any_attributes_all_features_are_finite(attributes: list[tuple[str, str]], around: str) -> None:
    written = " ".join(f"{name}='{value.replace(chr(39), '')}'" for name, value in attributes)
    for image in found(around.format(f"<img {written}>")):
        assert image.url.startswith(("http://", "https://"))
        assert len(image.features) == len(FEATURES)
        assert all(math.isfinite(value) for value in image.features)
