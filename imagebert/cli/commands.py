"""How a subcommand is declared: its name, its options and its body together, and who runs it where ranks were started.

    def _options(parser): ...

    @command("verify", "Compare ... with their checksums", _options, ranks="first_others_wait")
    def verify(parsed): ...

A command's options are added when that command is asked for: `imagebert --help` needs none of them.
"""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

from imagebert import __version__
from imagebert.renamed import warn_renamed

# Of the ranks that a launcher started:
#   all                 each does its share
#   first               rank 0 does the work, the others end at once
#   first_others_wait   the same, but under srun they end together: it may end what is left soon after the first is done
#   none                the command starts processes itself, which would take themselves for those ranks
Ranks = Literal["all", "first", "first_others_wait", "none"]
Body = Callable[[Namespace], int]


class Command(NamedTuple):
    """A subcommand, or a group of such."""

    name: str
    summary: str  # empty: no help lists it
    options: Callable[[ArgumentParser], None]
    run: Body | None  # returns the exit code; None: a group
    ranks: Ranks = "first"
    header: bool = False  # whether its log begins with what is run, of which code, where
    actions: tuple[Command, ...] = ()

    def __call__(self, parsed: Namespace) -> int:
        assert self.run is not None
        return self.run(parsed)


def command(
    name: str,
    summary: str,
    options: Callable[[ArgumentParser], None],
    *,
    ranks: Ranks = "first",
    header: bool = False,
) -> Callable[[Body], Command]:
    """Makes a function the body of a command."""
    return lambda run: Command(name, summary, options, run, ranks, header)


def former(name: str, now: Command, group: str) -> Command:
    """The name that an action of a group had in the version before: it works and says the new one; no help lists it."""

    def run(parsed: Namespace) -> int:
        warn_renamed(f"imagebert {group} {name}", f"imagebert {group} {now.name}")
        return now(parsed)

    return now._replace(name=name, summary="", run=run)


class Parser(ArgumentParser):
    """The parser of a command, which has its options from when it is asked to parse."""

    declared: Command | None = None

    def complete(self) -> None:
        """Adds the options and actions, where they are not there yet."""
        if (declared := self.declared) is not None:
            self.declared = None
            declared.options(self)
            if declared.actions:
                _add(self, "actions", "ACTION", declared.actions)

    def parse_known_args(self, *given: Any, **named: Any) -> Any:
        self.complete()
        return super().parse_known_args(*given, **named)


def build_parser(commands: Iterable[Command]) -> Parser:
    """The parser of all commands; what it parses has the asked one as `command`."""
    parser = Parser("imagebert", description="Pre-train, fine-tune and evaluate ImageBERT.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher puts it in front
    _add(parser, "commands", "COMMAND", commands)
    return parser


def _add(parser: Parser, title: str, metavar: str, commands: Iterable[Command]) -> None:
    group = parser.add_subparsers(title=title, required=True, metavar=metavar)
    for declared in commands:
        shown: dict[str, Any] = {"help": declared.summary, "description": declared.summary} if declared.summary else {}
        sub = group.add_parser(declared.name, **shown)
        sub.set_defaults(command=declared)
        sub.declared = declared
