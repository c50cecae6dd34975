"""What is printed, as it is."""

from __future__ import annotations

import pytest

from imagebert.cli.printing import print_table


def test_words_from_outside_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """As those that `imagebert search` was asked for, and what it found."""
    print_table("red [/b] :smile: circle", [{"[/i]": "[/b]o", "found": "[red]x[/red] :smile:"}])
    out = capsys.readouterr().out
    assert all(text in out for text in ("red [/b] :smile: circle", "[/i]", "[/b]o", "[red]x[/red] :smile:"))
