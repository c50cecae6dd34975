"""A page from a template that extends page.html.j2, which has the look: colours for light and dark, tables, plots."""

from __future__ import annotations

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader


def render(package: str, template: str, **values: Any) -> str:
    """The HTML of a template that lies beside the modules of `package`; what is put in is escaped."""
    loader = ChoiceLoader([PackageLoader(package, "."), PackageLoader("imagebert.pages", ".")])
    return Environment(loader=loader, autoescape=True).get_template(template).render(values)
