"""Pages of a made-up web and the truth about their pictures, to test and measure whatever finds pictures in pages.

A page's dominant pictures are the photographs that are its content: those that the page was made to show, or that
illustrate its own text, in the largest version that it names, with both sides longer than 300 pixels as far as the
page says. No dominant pictures are what its site shows on other pages as well (logos, icons, backgrounds, portraits of
authors and of who comments), advertisements and trackers, posters of videos, what is hidden, teasers of other pages,
and smaller pictures of a product beside its main one. Where the page names one photograph more than once (a thumbnail
and the file that it leads to, candidates of a srcset, sources of a picture, a placeholder and what a script puts in its
place), it is one picture, whose URL is that of the largest version, in JPEG if there are several formats; a URL is as
browsers resolve it, without a fragment.
"""

from __future__ import annotations

from imagebert.demo.web.kinds import KINDS
from imagebert.demo.web.page import Page, Subject
from imagebert.demo.web.shell import make_web
from imagebert.demo.web.warcs import DAMAGES, damage_warc, members, write_warcs
from imagebert.demo.web.words import some_subjects

__all__ = ["DAMAGES", "KINDS", "Page", "Subject", "damage_warc", "make_web", "members", "some_subjects", "write_warcs"]
