"""Kinds of page: what stands in the middle of each. Every function adds to a draft and gives the page's own HTML."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest

from imagebert.demo.web.draft import Draft
from imagebert.demo.web.words import PROSE, name_of

_SINGLE = ("alt", "caption", "caption", "title", "before", "after", "og", "headline")


def _top(draft: Draft, *more: str) -> str:
    """Headline, author with portrait, date, and what one may share it by."""
    random, day = draft.random, f"{draft.random.randrange(1, 29)} March 20{draft.random.randrange(10, 24)}"
    who = name_of(random)
    portrait = draft.icon(
        f"/users/{who.split()[1].lower()}.jpg", (60, 60), who, f"{draft.site.scheme}://{draft.site.host}"
    )
    line = draft.box("author", portrait if random.random() < 0.6 else "", draft.tag("span", inner=f"By {who}, {day}"))
    shares = "".join(draft.icon(f"{name}.{random.choice(['png', 'svg'])}", (32, 32), name) for name in _SHARES)
    parts = [draft.tag("h1", inner=draft.text(draft.heading)), line, draft.box("share", shares), *more]
    return "\n".join(parts)


_SHARES = ("facebook", "twitter", "pinterest", "mail")


def _woven(draft: Draft, pictures: list[str], most: int = 22) -> str:
    """Pictures, each after one paragraph or several, and advertisements between."""
    texts = draft.paragraphs(draft.random.randrange(max(4, len(pictures)), most))
    each = max(1, len(texts) // max(1, len(pictures)))
    groups = ["\n".join(texts[at : at + each]) for at in range(0, len(texts), each)]
    woven = [part for pair in zip_longest(groups, pictures, fillvalue="") for part in pair if part]
    if draft.random.random() < 0.5:
        woven.insert(draft.random.randrange(1, len(woven) + 1), advertisement(draft))
    return "\n".join(woven)


def advertisement(draft: Draft) -> str:
    """A picture or a frame of a server of advertisements, of the usual sizes."""
    random = draft.random
    width, height = random.choice([(300, 250), (728, 90), (160, 600), (970, 250), (320, 50), (336, 280)])
    host = random.choice(
        ["https://ads.doubleklick.example", "https://static.adserver.example", "https://banner.example"]
    )
    if random.random() < 0.5:
        frame = [("src", f"{host}/frame?slot={random.randrange(999)}"), ("width", str(width)), ("height", str(height))]
        return draft.box("advert", draft.tag("iframe", "", frame))
    name = f"/{random.choice(['creative', 'b', 'banners'])}/{random.randrange(10**6)}_{width}x{height}.jpg"
    image = draft.icon(name, (width, height), random.choice(["", "Advertisement", "Save 50 % today only"]), host)
    return draft.box("advert", draft.tag("a", "", [("href", f"{host}/click?to={random.randrange(10**6)}")], image))


def related(draft: Draft, most: int = 9, widths: tuple[int, ...] = (0, 90, 150, 240)) -> str:
    """Teasers of other pages, with versions of their pictures."""
    teasers, width = [], draft.random.choice(widths)
    for subject in draft.others(draft.random.randrange(3, most)):
        heading = draft.text(draft.prose("headline"))
        link = draft.tag("a", "", [("href", f"/story/{draft.random.randrange(10**6)}")], heading)
        teasers.append(draft.box("teaser", draft.thumbnail(subject, width), draft.tag("h3", inner=link)))
    return draft.box("related", draft.tag("h2", inner=draft.text(draft.prose("headline"))), *teasers)


def _one(draft: Draft, mode: str = "", places: tuple[str, ...] = _SINGLE) -> str:
    """The one picture that a page is about."""
    subject = draft.subjects(1)[0]
    told = draft.tell(subject, places)
    return draft.captioned(draft.photo(subject, told, mode), told)


def _several(draft: Draft, least: int, most: int, *modes: str) -> list[str]:
    """Pictures, each with what is said of it; where there are several modes, each in one of them."""
    made = []
    for subject in draft.subjects(draft.random.randrange(least, most + 1)):
        told = draft.tell(subject)
        made.append(draft.captioned(draft.photo(subject, told, draft.random.choice(modes or ("",))), told))
    return made


def news(draft: Draft) -> str:
    """An article with its photograph, sometimes a second one, and stories beside it."""
    lead = _one(draft)
    more = _several(draft, 1, 1) if draft.random.random() < 0.25 else []
    text = draft.box("body", _woven(draft, more))
    top = _top(draft)
    return "\n".join([*([lead, top] if draft.random.random() < 0.25 else [top, lead]), text, related(draft)])


def blog(draft: Draft) -> str:
    """A post with photographs among its paragraphs."""
    pictures = _several(draft, 2, 6)
    return _top(draft) + draft.box("body", _woven(draft, pictures))


def shop(draft: Draft) -> str:
    """A product: its photograph, smaller ones of the same, others that are recommended."""
    random, subject = draft.random, draft.subjects(1)[0]
    draft.heading = PROSE.sentence(random, "product") if draft.english else draft.prose("headline")
    told = draft.tell(subject, ("alt", "title", "after", "headline", "og", "caption"))
    picture = draft.captioned(draft.photo(subject, told), told)
    small = [draft.thumbnail(subject, width, "#view") for width in random.sample([64, 80, 96, 100], 3)]
    blurbs = [
        PROSE.sentence(random, "blurb") if draft.english else draft.prose() for _ in range(random.randrange(4, 20))
    ]
    items = "".join(draft.tag("li", inner=draft.text(blurb)) for blurb in blurbs)
    price = draft.tag("span", "meta", inner=f"&pound;{random.randrange(5, 900)}.{random.randrange(100):02}")
    payment = "".join(draft.icon(f"pay/{name}.png", (51, 32), name) for name in ("visa", "paypal", "amex"))
    offer = draft.box("product", draft.tag("h1", inner=draft.text(draft.heading)), price, draft.tag("ul", inner=items))
    main = draft.box("gallery", picture, *small)
    first, second = random.choice([(main, offer), (offer, main)]) if told.caption or told.after else (main, offer)
    return "\n".join(
        [first, second, *draft.paragraphs(random.randrange(1, 6)), comments(draft), related(draft), payment]
    )


def gallery(draft: Draft) -> str:
    """Many photographs that are equal: each large, or small and leading to its large file; both are dominant.

    Those that are small and lead to pages of their own are not.
    """
    random = draft.random
    way = random.choice(["large", "linked", "linked", "index"])
    if way == "index":
        width = random.choice([120, 150, 200])
        cells = [
            draft.box("teaser", draft.thumbnail(subject, width)) for subject in draft.others(random.randrange(6, 20))
        ]
    else:
        cells = []
        for subject in draft.subjects(random.randrange(4, 17)):
            told = draft.tell(subject, ("alt", "title", "caption"))
            mode = "linked" if way == "linked" else ""
            cells.append(draft.captioned(draft.photo(subject, told, mode), told))
    return draft.tag("h1", inner=draft.text(draft.heading)) + draft.box("gallery", *cells)


def forum(draft: Draft) -> str:
    """A thread: posts with avatars and smilies, and a photograph in one of them."""
    random = draft.random
    count = random.randrange(3, 14)
    at, posts = random.randrange(count), []
    for number in range(count):
        who = name_of(random)
        avatar = draft.icon(
            f"avatars/{who.replace(' ', '_').lower()}.jpg", (80, 80), random.choice([who, "avatar", ""])
        )
        parts = draft.paragraphs(random.randrange(1, 4))
        if random.random() < 0.5:
            parts.append(draft.icon(f"smilies/{random.choice(['biggrin', 'wink', 'rolleyes'])}.gif", (15, 15), ":D"))
        if number == at:
            parts.insert(random.randrange(len(parts)), _one(draft, "", ("alt", "title", "before", "after", "headline")))
        signature = draft.tag("div", "meta", inner=draft.text(draft.prose("headline")))
        posts.append(draft.box("comment", avatar, draft.tag("b", inner=who), *parts, signature))
    return draft.tag("h1", inner=draft.text(draft.heading)) + "\n".join(posts)


def encyclopedia(draft: Draft) -> str:
    """An article with a table of facts and its photograph, flags, and more pictures, whose links lead to pages."""
    random = draft.random
    subject = draft.subjects(1)[0]
    told = draft.tell(subject, ("alt", "caption", "caption", "title"))
    flag = draft.icon("flags/23px-Flag_of_the_Country.svg.png", (23, 15), "Flag of the Country")
    rows = [
        ("", draft.photo(subject, told, random.choice(["plain", "srcset"]))),
        ("", draft.rich(told.caption or "&nbsp;")),
    ]
    rows += [(f"Fact {number}", f"{flag} {random.randrange(10**5):,}") for number in range(random.randrange(3, 12))]
    cells = [draft.tag("tr", inner=draft.tag("th", inner=a) + draft.tag("td", inner=b)) for a, b in rows]
    box = draft.tag("table", "side", [("summary", "infobox")], "\n".join(cells))
    parts = []
    for other in draft.subjects(random.randrange(4)):
        each = draft.tell(other, ("alt", "caption", "caption"))
        link = draft.tag("a", "", [("href", f"/wiki/File:{other.name}.jpg")], draft.photo(other, each, "srcset"))
        parts.append(draft.captioned(link, each))
    for other in draft.others(random.randrange(2)):  # too small, and leads to another page
        parts.append(draft.captioned(draft.thumbnail(other, 220, f"/wiki/File:{other.name}.jpg"), draft.tell(other)))
    notes = draft.tag("ol", inner="".join(draft.tag("li", inner=draft.text(draft.prose())) for _ in range(12)))
    heading = draft.tag("h1", inner=draft.text(draft.heading))
    return heading + box + _woven(draft, parts, 40) + notes


def recipe(draft: Draft) -> str:
    """A dish: its photograph, what goes in, steps, and what readers say."""
    random = draft.random
    picture = _one(draft, "", ("alt", "caption", "headline", "og", "before", "after"))

    def say() -> str:
        return PROSE.sentence(random, "step") if draft.english else draft.prose()

    inside = draft.tag("ul", inner="".join(draft.tag("li", inner=f"{random.randrange(1, 500)} g") for _ in range(8)))
    steps = draft.tag(
        "ol", inner="".join(draft.tag("li", inner=draft.text(say())) for _ in range(random.randrange(4, 14)))
    )
    return "\n".join([_top(draft), *draft.paragraphs(2), picture, inside, steps, comments(draft), related(draft)])


def travel(draft: Draft) -> str:
    """A guide with sections, each with a photograph."""
    sections = [
        f"{draft.tag('h2', inner=draft.text(draft.prose('headline')))}\n{picture}\n{draft.paragraphs(1)[0]}"
        for picture in _several(draft, 3, 8)
    ]
    return _top(draft, *draft.paragraphs(2)) + draft.box("body", *sections) + related(draft)


def portfolio(draft: Draft) -> str:
    """A photographer's work, loaded when it is scrolled to."""
    works = [draft.tag("li", "teaser", inner=picture) for picture in _several(draft, 3, 9, "lazy")]
    return draft.tag("h1", inner=draft.text(draft.heading)) + draft.tag("ul", "gallery", inner="\n".join(works))


def responsive(draft: Draft) -> str:
    """An article whose photographs come in several sizes."""
    pictures = _several(draft, 1, 3, "srcset", "picture")
    return _top(draft) + draft.box("body", _woven(draft, pictures)) + related(draft)


def amp(draft: Draft) -> str:
    """An article in AMP."""
    return _top(draft) + draft.box("body", _woven(draft, _several(draft, 1, 3, "amp")))


def homepage(draft: Draft) -> str:
    """A private page as in 1999: nested tables, attributes without quotes, nothing closed."""
    pictures = _several(draft, 1, 3, "plain")
    cells = [f"<TR><TD align=center bgcolor=#ffffcc><font face=Arial size=2>{part}<p>" for part in pictures]
    cells += [f"<TR><TD><TABLE><TR><TD>{text}</TABLE>" for text in draft.paragraphs(draft.random.randrange(2, 9))]
    under = draft.icon("construction.gif", (90, 60), "under construction")
    counter = draft.icon("/cgi-bin/counter.gif", (88, 31), "You are visitor", "http://counter.example")
    cells.append(f"<TR><TD>{under}<BR>{counter}<HR noshade>{draft.icon('line.gif', (600, 4))}")
    return f"<CENTER><H1>{draft.text(draft.heading)}</H1><TABLE border=1 cellpadding=4>{''.join(cells)}"


def listing(draft: Draft) -> str:
    """A front page: teasers of articles. None of its pictures is the page's own."""
    return "\n".join(
        [draft.tag("h1", inner=draft.text(draft.heading)), related(draft, 5, (240, 480, 640)), related(draft, 25)]
    )


def letter(draft: Draft) -> str:
    """Text without any picture."""
    return draft.tag("h1", inner=draft.text(draft.heading)) + draft.box(
        "body", *draft.paragraphs(draft.random.randrange(4, 30))
    )


def logos(draft: Draft) -> str:
    """Partners and their logos, some of them large."""
    random = draft.random
    size = random.choice([(120, 60), (400, 200), (320, 320)])
    names = random.sample(["acme", "globex", "initech", "umbrella", "hooli", "soylent", "stark"], 6)
    marks = [draft.icon(f"partners/{name}-logo.png", size, f"{name.title()} logo") for name in names]
    return draft.tag("h1", inner=draft.text(draft.heading)) + draft.box("logo", *marks) + "\n".join(draft.paragraphs(3))


def small(draft: Draft) -> str:
    """An article whose photograph is too small, as its attributes say."""
    random, subject = draft.random, draft.others(1)[0]
    told = draft.tell(subject, _SINGLE)
    width = random.choice([120, 160, 200, 240])
    size = (width, round(width * subject.height / subject.width)) if random.random() < 0.7 else (width, 180)
    sides = [("width", str(size[0])), ("height", str(size[1]))]
    source = [("src", draft.reference(draft.version(subject, width))), ("alt", told.alt), *sides]
    return _top(draft, draft.captioned(draft.tag("img", "photo", source), told)) + draft.box(
        "body", *draft.paragraphs(8)
    )


def video(draft: Draft) -> str:
    """A film: its poster is no picture of the page."""
    poster = draft.name_image(draft.site.furniture(f"posters/{draft.random.randrange(10**6)}.jpg"))
    given = [("poster", draft.reference(poster)), ("width", "854"), ("height", "480"), ("controls", "")]
    film = draft.tag("video", "lead", given, draft.tag("source", "", [("src", "/film.mp4"), ("type", "video/mp4")]))
    frame = [("src", "https://player.example/embed/1"), ("width", "560"), ("height", "315")]
    return _top(draft, film, *draft.paragraphs(3), draft.tag("iframe", "", frame)) + related(draft, 14)


def frames(draft: Draft) -> str:
    """A page made of frames, and what those see that have none."""
    inner = "".join(draft.tag("frame", "", [("src", f"{name}.html"), ("name", name)]) for name in ("menu", "main"))
    return f'<frameset cols="20%,*">{inner}<noframes>{draft.paragraphs(1)[0]}</noframes></frameset>'


def comments(draft: Draft) -> str:
    """What readers say, with their portraits."""
    random, made = draft.random, []
    for _ in range(random.randrange(12)):
        grammar = PROSE if random.random() < 0.15 else draft.site.tongue.grammar  # some write English anywhere
        who, said = name_of(random), draft.text(grammar.sentence(random, "comment"))
        face = draft.icon(f"/avatar/{random.randrange(16**8):08x}?s=48", (48, 48), who, "https://gravatar.example")
        made.append(draft.box("comment", face, draft.tag("b", inner=who), draft.tag("p", inner=said)))
    return "\n".join(made)


# How many of 100 pages each is.
KINDS: dict[str, tuple[Callable[[Draft], str], int]] = {
    kind.__name__: (kind, share)
    for share, kind in (
        *((18, news), (12, shop), (10, blog), (7, gallery), (6, forum), (6, encyclopedia), (6, recipe), (6, travel)),
        *((6, responsive), (4, portfolio), (3, amp), (3, homepage), (3, listing), (3, small), (2, letter), (2, logos)),
        *((2, video), (1, frames)),
    )
}
