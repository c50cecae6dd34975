"""A website: what its pages have in common. Names of classes, addresses of files, charset, menu, styles and scripts."""

from __future__ import annotations

import zlib
from random import Random

from imagebert.demo.web.tongues import ENGLISH, OTHERS, Tongue
from imagebert.demo.web.words import listed

# What authors call the parts of a page. A site chooses one of each, or lets a tool make names that mean nothing.
_CALLED = {
    "lead": "lead-image hero main-photo article-image featured-media top-pic entry-visual opener",
    "photo": "photo image pic inline-image content-img attachment-large size-full media",
    "caption": "caption legend description pic-text wp-caption-text subline media-info",
    "body": "article-body entry-content post story text content-main copy rte",
    "related": "related more-stories teasers recommended also-like sidebar-list read-next cross-sell",
    "teaser": "teaser card item tile promo entry-small media-object box",
    "thumb": "thumb preview mini teaser-img card-image small-pic",
    "author": "author byline-photo avatar writer profile user-pic",
    "share": "share social sharing follow icons sns",
    "advert": "ad advert banner sponsored leaderboard promo-slot mpu",
    "nav": "nav menu main-navigation topbar site-links",
    "footer": "footer site-info bottom colophon",
    "comment": "comment reply response discussion-item",
    "gallery": "gallery grid album photos slideshow lightbox",
    "logo": "logo brand site-title masthead",
    "side": "sidebar aside secondary rail widget-area",
    "meta": "meta byline dateline info published",
    "product": "product item-detail pdp offer goods",
    "quiet": "wrap inner row col container group section block",
}
# How a site writes where an image lies: as it is best read, and in ways that have to be made out.
_REFERENCES = (
    ["absolute"],
    ["absolute", "protocol"],
    ["root"],
    ["relative"],
    ["absolute", "protocol", "root", "relative"],
)
_NOUNS = listed("daily city green north river home photo travel kitchen market garden sport open little blue", " ")
_THINGS = listed("post times corner notes world life journal club shop guide lens review table house board press", " ")


class Site:
    """A website, drawn from its number.

    Args:
        english: whether it is in English
    """

    def __init__(self, seed: int, number: int, english: bool) -> None:
        self._random = random = Random(f"site {seed} {number}")
        self.tongue: Tongue = ENGLISH if english else OTHERS[number // 5 % len(OTHERS)]
        name = f"{random.choice(_NOUNS)}{random.choice(['', '-'])}{random.choice(_THINGS)}"
        ending = random.choice(["com", "org", "net", "co.uk"]) if english else random.choice(["com", self.tongue.code])
        self.title = name.replace("-", " ").title()
        self.host = f"{random.choice(['www.', 'blog.', ''])}{name}{number}.{ending}"
        agency = "images.agency.example"  # of several sites, so that they show a picture by one URL
        self.media = random.choice(
            [self.host, f"media.{name}{number}.{ending}", f"d{number:04x}kq.cdn.example", agency]
        )
        self.scheme = random.choice(["https", "https", "http"])
        round_of = number // 5 // len(OTHERS)  # so that few sites have many languages and charsets
        self.charset = self.tongue.charsets[(number if english else round_of) % len(self.tongue.charsets)]
        self.declared = random.choice(["header", "meta", "both", "both", "both", "http-equiv", "none", "wrong"])
        self.references = random.choice(_REFERENCES)
        self.layout = random.randrange(8)  # of pictures with their captions
        self.addressing = 2 if self.media == agency else random.randrange(8)
        self.sizes = random.choice(["attributes", "attributes", "style", "absent", "percent"])
        self.upper = random.random() < 0.08
        self.quote = random.choice(['"', '"', '"', '"', "'", ""])
        self.modes = random.choice(
            [["plain"], ["plain"], ["plain", "linked"], ["srcset"], ["lazy"], ["picture", "srcset"]]
        )
        self.preview = random.choice(["picture", "picture", "picture", "none", "none", "none", "logo", "crop"])
        self.side_first = random.random() < 0.3
        self.main = random.choice(["article", "main", "div", "div", "section", "td"])
        self._named = random.choice(["plain", "plain", "prefix", "block", "camel", "hashed"])
        self._prefix = random.choice("costx")
        self._names: dict[str, str] = {}
        self.styles, self.script = _styles(random, self), _script(random)

    def named(self, role: str) -> str:
        """The class, or classes, of what plays a role in its pages."""
        if role not in self._names:
            random = Random(f"{self.host} {role}")
            called = random.choice(_CALLED[role].split())
            self._names[role] = {
                "plain": called,
                "prefix": f"{self._prefix}-{called}",
                "block": f"{self._prefix}-{random.choice(['page', 'article', 'layout'])}__{called} {called}",
                "camel": "".join(part.title() for part in called.split("-")),
                "hashed": f"css-{zlib.crc32(f'{self.host}{role}'.encode()):x}",
            }[self._named]
        return self._names[role]

    def address(self, stem: str, size: tuple[int, int], original: bool = False, ending: str = "jpg") -> str:
        """The absolute URL of a version of a photograph."""
        (width, height), own = size, f"{self.scheme}://{self.host}"
        month = zlib.crc32(stem.encode()) % 12 + 1
        letter = "o" if original else "b" if width > 800 else "z" if width > 300 else "t"
        return [
            f"{own}/wp-content/uploads/2019/{month:02}/{stem}{'' if original else f'-{width}x{height}'}.{ending}",
            f"{self.scheme}://{self.media}/{month:02x}/{stem}.{ending}?w={width}&h={height}&q=80",
            f"https://{self.media}/image/upload/c_fill,w_{width},h_{height}/v157{month}/{stem}.{ending}",
            f"{self.scheme}://{self.media}/photos/{month}/{stem}_{letter}.{ending}",
            f"{own}/Photo%20Library/{month}/{stem}%20({width}).{ending.upper()}",
            f"{own}/img.php?f={stem}.{ending}&size={width}x{height}",
            f"{self.scheme}://{self.media}/resize/{width}x{height}/{stem}.{ending}",
            f"{own}/bilder/%C3%BCbersicht/{stem}{'' if original else f'_{width}'}.{ending}",
        ][self.addressing]

    def furniture(self, name: str) -> str:
        """The absolute URL of a picture that belongs to the site: a logo, an icon."""
        return f"{self.scheme}://{self.host}/{self._prefix}/img/{name}"


def _styles(random: Random, site: Site) -> str:
    """Rules enough to weigh what those of real pages weigh."""
    properties = listed(
        "margin:0 auto|padding:8px 16px|color:#333|font:400 16px/1.5 Georgia,serif|display:flex|max-width:100%|"
        "border:1px solid rgba(0,0,0,.1)|background:url(data:image/gif;base64,R0lGODlhAQABAAAAACw=) no-repeat|"
        "transition:opacity .2s ease-in-out|grid-template-columns:repeat(3,1fr)|text-transform:uppercase"
    )
    names = [site.named(role) for role in _CALLED]
    rules = []
    for _ in range(random.randrange(20, 320)):
        chosen = ";".join(random.sample(properties, random.randrange(1, 5)))
        rules.append(
            f".{random.choice(names).split()[0]} {random.choice(['', '> a', 'img', 'li:first-child'])}{{{chosen}}}"
        )
    return "\n".join(rules)


def _script(random: Random) -> str:
    """Code that does nothing, with a tag in a text that is none."""
    lines = ["window.dataLayer=window.dataLayer||[];function gtag(){dataLayer.push(arguments)}"]
    for number in range(random.randrange(20, 280)):
        name, other = (f"{random.choice('abcdefgh')}{random.randrange(99)}" for _ in range(2))
        lines.append(
            random.choice(
                [
                    f"var {name}=function(e,t){{return e&&t?e.concat({other}(t)):[]}};",
                    f'if({name}<{other}&&!window.{name}){{document.querySelector("#{name}").hidden=true}}',
                    f'var {name}="<img src=\\"/track/"+{other}+".gif\\" width=1 height=1>";',
                    f'{name}.push({{"id":{random.randrange(10**8)},"slot":"{other}","sizes":[[300,250],[728,90]]}});',
                    f"/* {name} */ for(var i=0;i<{number};i++){{{other}[i]=Math.round({name}[i]*1e3)/1e3}}",
                ]
            )
        )
    return "\n".join(lines)
