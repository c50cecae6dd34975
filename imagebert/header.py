"""What a log begins with: who runs what, of which code, on which machines. Rank 0 says it, where lines are told."""

from __future__ import annotations

import logging
import os
import re
import shlex
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from imagebert import __version__
from imagebert.config import RECIPES, UsageError, load_recipe
from imagebert.launch import find_job
from imagebert.log import is_told_by_lines
from imagebert.strict_yaml import to_plain

log = logging.getLogger(__name__)

_SHOWN = 20  # differences of a recipe


def announce(arguments: Sequence[str]) -> None:
    """Date, job, version, commit and the command as it was typed."""
    if not is_told_by_lines():
        return
    job, attempt = find_job(os.environ)
    of = f", job {job}, attempt {attempt + 1}" if job else ""
    found = commit()
    log.info(
        "imagebert %s%s%s, %s", __version__, f" of commit {found[:12]}" if found else "", of, time.strftime("%F %T %Z")
    )
    log.info("command: %s", shlex.join(["imagebert", *arguments]))


def announce_recipe(name: str, config: Any) -> None:
    """What differs from the recipe as it ships, or as its file says."""
    if is_told_by_lines():
        log.info("recipe: %s%s", name, "".join(f" {text}" for text in recipe_changes(name, config)) or ", as it is")


def announce_machines(hosts: Sequence[str], gpus: Sequence[str]) -> None:
    """Ranks, their hosts, their GPUs.

    Args:
        hosts, gpus: of each rank; an empty name: it has none
    """
    if not is_told_by_lines():
        return
    kinds = [f"{sum(g == kind for g in gpus)} x {kind}" for kind in sorted(set(gpus)) if kind]
    log.info("%d ranks on %s; %s", len(hosts), short_list(hosts), ", ".join(kinds) or "no GPUs")


def commit(folder: Path = Path(__file__).parents[1]) -> str:
    """The commit of a git checkout, by its files alone, or of a copy that slurm/ took; empty where there is none."""
    with suppress(OSError, UnicodeDecodeError):
        return (folder / "COMMIT").read_text().strip()
    with suppress(OSError, UnicodeDecodeError):
        git = folder / ".git"
        if git.is_file():  # of a worktree
            git = folder / git.read_text().partition(":")[2].strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head if re.fullmatch("[0-9a-f]{40,64}", head) else ""
        ref = head[5:]
        common = git
        with suppress(OSError):
            common = git / (git / "commondir").read_text().strip()
        with suppress(OSError):
            return (common / ref).read_text().strip()
        for line in (common / "packed-refs").read_text().splitlines():
            if line.endswith(f" {ref}"):
                return line.split()[0]
    return ""


def recipe_changes(name: str, config: Any) -> list[str]:
    """`key=value` of each key at which a recipe differs from the one that ships by its name, else from its own file."""
    shipped = RECIPES / f"{Path(name).stem}.yaml"
    try:
        before = flat(to_plain(load_recipe(str(shipped) if shipped.is_file() else name)))
    except UsageError:  # whole with its overrides only
        return ["(differences unknown)"]
    now = flat(to_plain(config))
    changed = [f"{key}={now.get(key)}" for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    return changed[:_SHOWN] + [f"and {len(changed) - _SHOWN} more"] * (len(changed) > _SHOWN)


def short_list(hosts: Iterable[str]) -> str:
    """Names as Slurm writes them: node[1-3,7], other."""
    numbers: dict[tuple[str, str, int], list[int]] = {}
    for host in sorted(set(hosts)):
        if found := re.fullmatch(r"(.*?)([0-9]+)(\D*)", host):
            before, digits, after = found.groups()
            width = len(digits) if digits.startswith("0") and len(digits) > 1 else 0
            numbers.setdefault((before, after, width), []).append(int(digits))
        else:
            numbers[host, "", -1] = []
    return ", ".join(
        f"{before}{_ranges(sorted(those), width)}{after}" for (before, after, width), those in numbers.items()
    )


def _ranges(numbers: list[int], width: int) -> str:
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    texts = [f"{a:0{max(width, 1)}d}" + (f"-{b:0{max(width, 1)}d}" if b > a else "") for a, b in spans]
    return texts[0] if len(numbers) == 1 else f"[{','.join(texts)}]" if texts else ""


def flat(tree: Any, key: str = "") -> dict[str, Any]:
    """The values of a plain recipe by their dotted keys, such as data.sources.0.pairs."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        return {key: tree}
    return {k: v for name, value in items for k, v in flat(value, f"{key}.{name}" if key else str(name)).items()}
