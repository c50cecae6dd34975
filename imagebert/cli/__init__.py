"""The one command: parses, calls imagebert.api, prints. Here: what is asked for, on which ranks, and how it ends.

Each command imports what it needs when it runs, so that --help is instant.

Exit codes: 0 done, 1 the work failed, 2 the call was wrong, 75 stopped with a checkpoint: the same call goes on.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from imagebert.cli import data, detectors, lait, retrieval, stores, train
from imagebert.cli.commands import Command, build_parser

# As `imagebert --help` lists them.
COMMANDS = (
    train.demo,
    data.extract,
    detectors.detector,
    data.pairs,
    data.import_,
    stores.store,
    lait.lait,
    data.verify,
    train.pretrain,
    train.finetune,
    train.export,
    train.onnx,
    train.report,
    train.plan,
    train.doctor,
    retrieval.evaluate,
    retrieval.compare,
    retrieval.index,
    retrieval.search,
    retrieval.serve,
    retrieval.mine,
    train.ladder,
    train.recipes,
)

# What is wrong with a name, not with a disk.
_NAMES = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)
_READER_GONE = 128 + signal.SIGPIPE  # as a shell says of those whom that signal ends


def main(arguments: Sequence[str] | None = None) -> int:
    """Carries out a command line, this process' own where none is given; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be no UTF-8, or the terminal none
        sys.stdout.reconfigure(errors="backslashreplace")
    if any("\0" in argument for argument in arguments or ()):  # which a shell cannot give
        print("imagebert: an argument has a zero byte: leave it out", file=sys.stderr)
        return 2
    try:
        parsed = _parse(arguments)
        code = _carry_out(parsed.command, parsed, sys.argv[1:] if arguments is None else arguments)
    except SystemExit:  # of argparse: help, or what is wrong
        if _unwritten() is None:
            raise
        return _READER_GONE
    error = _unwritten()
    if error is None:
        return code
    if isinstance(error, BrokenPipeError):  # `| head` has seen enough
        return _READER_GONE
    print(f"imagebert: the work failed: cannot write what it says: {error.strerror}", file=sys.stderr)
    return code or 1


def _parse(arguments: Sequence[str] | None) -> Namespace:
    parser = build_parser(COMMANDS)
    parsed, rest = parser.parse_known_args(arguments)
    # argparse takes no optional words behind an option; overrides are told by their form.
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(parsed, "query", "") is None:
        parsed.query = rest.pop()
    if hasattr(parsed, "paths"):
        parsed.paths = [*(parsed.paths or ()), *(Path(word) for word in rest if not word.startswith("-"))]
        rest = [word for word in rest if word.startswith("-")]
    if any(a.startswith("-") or "=" not in a for a in rest) or (rest and not hasattr(parsed, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides += rest
    return parsed


def _carry_out(command: Command, parsed: Namespace, words: Sequence[str]) -> int:
    """The command's exit code, or what its error comes to."""
    from imagebert.endings import ending_of, tell
    from imagebert.header import announce
    from imagebert.host import STOPPED, give_way
    from imagebert.log import place, set_up

    set_up()
    give_way()
    if command.header:
        announce(words)
    try:
        return _on_ranks(command, parsed)
    except SystemExit as error:
        if error.code == STOPPED and place().rank == 0:
            print("stopped before the first step, as asked; the same command goes on from here", flush=True)
        raise
    except UnicodeEncodeError as error:
        print(f"imagebert: {error.object[:200]!r} is no text ({error.reason}): give it in UTF-8", file=sys.stderr)
        return 2
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _reader_gone():
            return _READER_GONE
        if isinstance(error, OSError) and error.errno in _NAMES and error.filename:
            name = str(error.filename)
            shown = name if len(name) <= 200 else f"{name[:200]}..."
            print(f"imagebert: {error.strerror}: {shown}: correct the name", file=sys.stderr)
            return 2
        if ending_of(error).unexpected and not place().shared:
            raise  # alone, Python says it
        return tell(error)


def _on_ranks(command: Command, parsed: Namespace) -> int:
    """The command, on those of the ranks that a launcher started that are to do it."""
    from imagebert.errors import UsageError
    from imagebert.launch import placed

    if command.ranks == "all":
        return command(parsed)
    rank, size, launcher = placed(os.environ)
    if size == 1:
        return command(parsed)
    if command.ranks == "none":
        raise UsageError(
            f"{launcher} started {size} processes of the {command.name}, which is one's work: call it without that"
        )
    if rank == 0:
        print(f"imagebert: this is one process' work: rank 0 of {size} does it", file=sys.stderr)
    if launcher != "slurm" or command.ranks == "first":
        return command(parsed) if rank == 0 else 0

    from imagebert.workers import workers

    with workers():
        return command(parsed) if rank == 0 else 0


def _unwritten() -> OSError | None:
    """Why what was printed cannot be written, where that is so; Python does not try again at its end then."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _reader_gone() -> bool:
    """Whether a broken pipe is that of what is printed."""
    import select

    if sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
