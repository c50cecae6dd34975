"""Everything around: the head with what it says to machines, menu, columns and footer; and the page as bytes."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from random import Random

from imagebert.demo.web.draft import Draft
from imagebert.demo.web.kinds import KINDS, advertisement, comments, related
from imagebert.demo.web.page import Page, Subject
from imagebert.demo.web.site import Site
from imagebert.errors import UsageError

# What a page says to robots: in a meta tag of its head (meta), in other places of it (html), in X-Robots-Tag (header);
# and whether that forbids the use of its pictures. A robot of another name is somebody else.
_ROBOTS: tuple[tuple[str, str, bool], ...] = (
    ("meta", "noai", True),
    ("meta", "noai, noimageai", True),
    ("meta", "NOINDEX,NOFOLLOW", True),
    ("meta", "none", True),
    ("meta", "index, follow, noimageindex", True),
    ("header", "noai", True),
    ("header", "max-image-preview:large, noai", True),
    ("header", "noindex", True),
    ("header", "NoImageAI, nofollow", True),
    ("header", "none", True),
    ("meta", "index, follow", False),
    ("meta", "max-image-preview:large", False),
    ("meta", "index,follow,max-snippet:-1,max-image-preview:large,max-video-preview:-1", False),
    ("meta", "nofollow, noarchive", False),
    ("meta", "noodp", False),
    ("header", "max-image-preview:large", False),
    ("header", "nosnippet", False),
    ("header", "otherbot: noindex", False),
    ("html", '<!-- <meta name="robots" content="noai"> -->', False),
    ("html", '<meta name="otherbot" content="noindex, noai">', False),
    ("html", '<meta name="description" content="noindex and noai explained">', False),
)


def make_web(subjects: Sequence[Subject], pages: int, seed: int) -> list[Page]:
    """Makes pages that show photographs, of several websites, in a dozen kinds, and says what is true of each.

    Each photograph is shown before one is shown again; then, and now and then before, it comes with another address.
    Of one with a side of at most 300 pixels nothing is dominant.

    Args:
        subjects: what the photographs show, each of another name
        pages: how many
        seed: of everything that is drawn; the same gives the same bytes

    Raises:
        UsageError: there is no subject, two have one name, or pages are negative.
    """
    if not subjects or pages < 0:
        raise UsageError("a web needs a subject at least and a number of pages: give some")
    if len({subject.name for subject in subjects}) < len(subjects):
        raise UsageError("two subjects have one name: give each its own")
    random = Random(f"web {seed}")
    endless = _endless(subjects, random)
    of_kind: dict[str, list[Site]] = {kind: [] for kind in KINDS}
    for number in range(max(len(KINDS), pages // 6)):
        site = Site(seed, number, english=number % 5 < 4)
        for kind in {list(KINDS)[number % len(KINDS)]: 0, **dict.fromkeys(random.sample(list(KINDS), 2))}:
            of_kind[kind].append(site)
    hundred = [kind for kind, (_, share) in KINDS.items() for _ in range(share)]
    kinds = [kind for _ in range(0, pages, len(hundred)) for kind in random.sample(hundred, len(hundred))][:pages]
    return [
        _page(random.choice(of_kind[kind]), kind, (seed, number), endless, subjects)
        for number, kind in enumerate(kinds)
    ]


def _endless(subjects: Sequence[Subject], random: Random) -> Iterator[Subject]:
    """All subjects in another order each time; some that come between are seen on several pages."""
    while True:
        for subject in random.sample(subjects, len(subjects)):
            yield subject
            if random.random() < 0.1:
                yield subjects[random.randrange(len(subjects))]


def _page(
    site: Site, kind: str, seed: tuple[int, int], endless: Iterator[Subject], subjects: Sequence[Subject]
) -> Page:
    random, number = Random(f"page {seed}"), seed[1]
    used: set[str] = set()

    def draw(count: int, elsewhere: bool) -> list[Subject]:
        source = iter(random.sample(subjects, min(2 * count, len(subjects)))) if elsewhere else endless
        drawn: list[Subject] = []
        for _ in range(2 * count + 4):
            subject = next(source, None) if len(drawn) < count else None
            if subject and subject.name not in used:
                used.add(subject.name)
                drawn.append(subject)
        return drawn

    path = random.choice(
        [
            f"/2019/05/{number}/",
            f"/{kind}/{number}.html",
            f"/index.php?page={number}",
            f"/bilder/{number}.html",
            f"/photos/{number}/view",
        ]
    )
    draft = Draft(site, random, f"{site.scheme}://{site.host}{path}", draw)
    main = KINDS[kind][0](draft)
    said, opted_out = _robots(random)
    html = _whole(draft, kind, main, said)
    headers = [
        ("Content-Type", _content_type(site)),
        ("Server", random.choice(["nginx", "Apache/2.4.41", "cloudflare"])),
    ]
    headers += [("X-Robots-Tag", text) for place, text in said if place == "header"]
    return Page(
        draft.url, _bytes(html, site), tuple(headers), kind, draft.english, opted_out, draft.pictures, draft.images
    )


def _robots(random: Random) -> tuple[list[tuple[str, str]], bool]:
    if random.random() < 0.6:
        return [], False
    said = random.choices(_ROBOTS, [1 if forbids else 3 for _, _, forbids in _ROBOTS], k=random.randrange(1, 3))
    return [(place, text) for place, text, _ in said], any(forbids for *_, forbids in said)


# ------------------------------------------------------------------------------------------------------- around it


def _whole(draft: Draft, kind: str, main: str, said: list[tuple[str, str]]) -> str:
    """The page from doctype to end, damaged as authors do."""
    random, site = draft.random, draft.site
    if kind == "frames":
        body = main
    else:
        middle = draft.tag(site.main, "quiet", inner=main) if site.main != "td" else f"<table><tr><td>{main}</table>"
        said_after = comments(draft) if kind in ("news", "blog", "travel", "responsive", "video") else ""
        side = _side(draft) if kind not in ("letter", "frames", "homepage") else ""
        columns = [side, middle + said_after] if site.side_first else [middle + said_after, side]
        body = draft.tag("body", inner="\n".join([_header(draft), *columns, _footer(draft)]))
    language = site.tongue.code if random.random() < 0.8 else random.choice(["en", "de", "en-US", "x-default"])
    direction = (' dir="rtl"' if site.tongue.code == "ar" else "") + (" amp" if kind == "amp" else "")
    opened = f'<html lang="{language}"{direction}>' if random.random() < 0.8 else f"<html{direction}>"
    doctype = random.choice(
        ["<!DOCTYPE html>", "<!doctype html>", '<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 4.01//EN">', ""]
    )
    html = f"{doctype}\n{opened}\n{_head(draft, kind, said)}\n{body}\n</html>\n"
    return _spoilt(random, html) if kind == "homepage" or random.random() < 0.12 else html


def _spoilt(random: Random, html: str) -> str:
    """HTML with what browsers forgive."""
    for way in random.sample(["p", "li", "before", "end", "stray"], 2):
        match way:
            case "p" | "li":
                html = re.sub(f"</{way}>", "", html, flags=re.IGNORECASE)
            case "before":
                html = f"\n\n Warning: mysql_connect() in /srv/www/db.php on line 12 <br>\n{html}"
            case "end":
                html = html.replace("</body>", "").replace("</html>", "")
            case _:
                html = html.replace("</body>", "</span></font></center></b></body>")
    return html


def _head(draft: Draft, kind: str, said: list[tuple[str, str]]) -> str:
    random, site, tag = draft.random, draft.site, draft.tag
    parts = [_declared(site), tag("title", inner=draft.text(f"{draft.title or draft.heading} | {site.title}"))]
    parts.append(f'<base href="{draft.base}">' if draft.base != draft.url else "")
    about = draft.described or random.choice(["", draft.prose()])
    parts.append(tag("meta", "", [("name", "description"), ("content", about)]) if about else "")
    if draft.described or random.random() < 0.6:
        parts.append(tag("meta", "", [("property", "og:title"), ("content", draft.title or draft.heading)]))
        parts.append(tag("meta", "", [("property", "og:description"), ("content", about)]))
        parts.append(_preview(draft))
    for place, text in said:
        robots = [("name", random.choice(["robots", "ROBOTS", "Robots"])), ("content", text)]
        parts.append({"meta": tag("meta", "", robots), "html": text}.get(place, ""))
    icon = draft.name_image(site.furniture("favicon.png"))
    parts.append(tag("link", "", [("rel", "apple-touch-icon"), ("href", draft.reference(icon))]))
    parts += [tag("style", inner=site.styles), tag("script", inner=site.script) if kind != "amp" else ""]
    if draft.lead and random.random() < 0.3:
        known = {
            "@context": "https://schema.org",
            "@type": "Article",
            "headline": draft.heading,
            "image": draft.lead[1],
        }
        parts.append(f'<script type="application/ld+json">{json.dumps(known)}</script>')
    return tag("head", inner="\n".join(filter(None, parts)))


def _declared(site: Site) -> str:
    charset = "gb2312" if site.charset == "gb18030" and site.layout % 2 else site.charset
    if site.declared in ("meta", "both", "wrong"):
        return f'<meta charset="{charset}">'
    if site.declared == "http-equiv":
        return f'<meta http-equiv="Content-Type" content="text/html; charset={charset}">'
    return ""


def _content_type(site: Site) -> str:
    match site.declared:
        case "header" | "both":
            return ["text/html; charset=", "text/html;charset=", "Text/HTML; Charset="][site.layout % 3] + site.charset
        case "wrong":
            return f"text/html; charset={'iso-8859-1' if site.charset == 'utf-8' else 'utf-8'}"
        case _:
            return "text/html"


def _bytes(html: str, site: Site) -> bytes:
    """In the site's charset; what calls itself Latin 1 has the quotation marks of Windows."""
    charset = "windows-1252" if site.charset == "iso-8859-1" else site.charset
    mark = codecs.BOM_UTF8 if site.charset == "utf-8" and site.layout == 5 and site.declared != "wrong" else b""
    return mark + html.encode(charset, "xmlcharrefreplace")


def _preview(draft: Draft) -> str:
    """og:image: the lead photograph, a cut of it for social networks, the site's logo; or none."""
    preview = draft.site.preview
    if preview == "logo":
        url = draft.name_image(draft.site.furniture("og-logo-1200.png"))
    elif preview == "none" or draft.lead is None:
        return ""
    elif preview == "crop":
        subject = draft.lead[0]
        url = draft.name_image(f"https://{draft.site.host}/social/{subject.name}-1200x630.jpg", subject)
    else:
        url = draft.lead[1]
    return draft.tag("meta", "", [("property", "og:image"), ("content", url)])


def _header(draft: Draft) -> str:
    random, site, tag = draft.random, draft.site, draft.tag
    logo = draft.icon(random.choice(["logo.png", "logo.svg", "brand@2x.png"]), (220, 60), site.title)
    link = tag("a", "logo", [("href", "/")], logo)
    rounds = range(random.randrange(1, 5))
    entries = [
        tag("li", inner=tag("a", "", [("href", f"/{number}/{at}/")], draft.text(word)))
        for number in rounds
        for at, word in enumerate(site.tongue.menu)
    ]
    drawn = '<svg viewBox="0 0 24 24" width="24"><path d="M3 6h18M3 12h18M3 18h18"/></svg>'
    behind = draft.name_image(site.furniture("bg/header.jpg"))
    style = [("style", f"background-image:url('{behind}')")] if random.random() < 0.3 else []
    return tag("header", "nav", style, f"{link}{drawn}{tag('ul', 'nav', inner=''.join(entries))}")


def _side(draft: Draft) -> str:
    random = draft.random
    parts = [related(draft) if random.random() < 0.6 else "", advertisement(draft), advertisement(draft)]
    random.shuffle(parts)
    return draft.box("side", *parts, draft.paragraphs(1)[0] if random.random() < 0.5 else "")


def _footer(draft: Draft) -> str:
    """Copyright, notices, trackers, what is broken, and pictures that nobody sees."""
    random, site, tag = draft.random, draft.site, draft.tag
    parts = [tag("p", inner=f"&copy; 2019 {site.title}. All rights reserved.")]
    parts.append(tag("div", "quiet", inner="We use cookies to improve your experience. <button>Accept</button>"))
    parts.append(draft.icon(f"/p?id={random.randrange(10**9)}&ev=view", (1, 1), "", "https://pixel.tracker.example"))
    parts.append(tag("noscript", inner=draft.icon("/tr?noscript=1", (1, 1), None, "https://stats.example")))
    parts.append(draft.icon("spacer.gif", (1, 20)))
    sprite = draft.reference(draft.name_image(site.furniture("sprite.png")), strict=True)
    parts.append(f'<i class="icon" style="background:url({sprite}) 0 -48px"></i>')
    parts.append(
        random.choice(['<img src="">', "<img>", '<img src="about:blank" alt="">', '<a href="javascript:;">Top</a>', ""])
    )
    if random.random() < 0.1:
        parts.append(draft.icon("[object%20Object]", (0, 0), "undefined"))
    if draft.lead and random.random() < 0.2:
        subject, _ = draft.lead
        url = draft.name_image(f"{site.scheme}://{site.host}/print/{subject.name}-320.jpg", subject)
        hidden = tag("img", "", [("src", draft.reference(url)), ("alt", draft.prose("headline"))])
        parts.append(f'<div style="display:none">{hidden}</div>')
    return tag("footer", "footer", inner="\n".join(parts))
