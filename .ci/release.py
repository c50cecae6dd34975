"""Makes dist/: sdist and wheel, and checks the wheel as somebody else would install it, outside the repository.

    make release                      with python3
    make release PYTHON=python3.13    with another one

Needs Python alone. Build tools (pinned in constraints.txt) and what is checked go into environments of their own in a
temporary folder. Where a commit has a tag such as v0.1.0, the words have to fit that too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
OLDEST_AND_NEWEST = ("3.11", "3.13")
FROM_SOURCES = {"deepspeed"}  # has no builds: pip makes one where it is installed


def main() -> None:
    version = agreed_version(ROOT, tags_of_commit())
    with tempfile.TemporaryDirectory(prefix="imagebert-release-") as name:
        folder = Path(name)
        tools = environment(folder / "tools", "build", "setuptools")
        check_pins(tools, folder)
        wheel = build(tools, folder / "dist", version)
        bare = environment(folder / "bare", str(wheel))
        say("checking the installed wheel")
        shutil.copy(ROOT / ".ci/installed.py", folder)
        plain = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        run(bare, folder / "installed.py", version, cwd=folder, env=plain)
        shutil.copytree(wheel.parent, ROOT / "dist", dirs_exist_ok=True)
    say(f"dist/ has imagebert {version}")


def agreed_version(root: Path, tags: list[str]) -> str:
    """The version that the code, CHANGELOG.md, CITATION.cff and a tag agree on.

    Raises:
        SystemExit: they do not, or a tagged version is still called unreleased.
    """
    version = found(r'^__version__ = "(.+)"$', root / "imagebert/__init__.py")
    top = found(r"^## (.+)$", root / "CHANGELOG.md")
    cited = found(r"^version: (.+)$", root / "CITATION.cff")
    if top.partition(",")[0] != version:
        sys.exit(
            f"CHANGELOG.md begins with {top}, and the code is {version}: write what changed under ## {version}, DATE"
        )
    if cited != version:
        sys.exit(f"CITATION.cff is of {cited}, and the code is {version}: correct it")
    for tag in tags:
        if tag != f"v{version}":
            sys.exit(f"this commit has the tag {tag}, and the code is {version}: correct one of them")
        if not re.fullmatch(r"\S+, \d{4}-\d{2}-\d{2}", top):
            sys.exit(
                f"the tag {tag} is a release, and CHANGELOG.md calls it {top}: give its date as ## {version}, DATE"
            )
    return version


def found(pattern: str, path: Path) -> str:
    """The group of a pattern's first match in a file."""
    match = re.search(pattern, path.read_text(encoding="utf-8"), re.M)
    return match[1] if match else sys.exit(f"{path} has no line {pattern}: write one")


def tags_of_commit() -> list[str]:
    git = ["git", "-C", str(ROOT), "tag", "--points-at", "HEAD", "--list", "v*"]
    return subprocess.run(git, check=True, capture_output=True, text=True).stdout.split()


def environment(folder: Path, *packages: str) -> Path:
    """Python of a fresh environment that has these, as pinned."""
    say(f"installing {', '.join(Path(p).name for p in packages)}")
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    run(python, *PIP, "-c", ROOT / "constraints.txt", *packages, cwd=folder)
    return python


def check_pins(python: Path, folder: Path) -> None:
    """Every pin has a build for the oldest Python and for the newest; nothing is installed."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if "==" in line and line.partition("==")[0] not in FROM_SOURCES]
    (folder / "pins.txt").write_text("\n".join(pins))
    for version in OLDEST_AND_NEWEST:
        say(f"asking for builds of {len(pins)} pins for Python {version}")
        where = ["--dry-run", "--ignore-installed", "--no-deps", "--target", folder / "nowhere"]
        run(python, *PIP, *where, "--only-binary=:all:", "--python-version", version, "-r", "pins.txt", cwd=folder)


def build(python: Path, dist: Path, version: str) -> Path:
    """Sdist, and the wheel that is made from it; returns the wheel."""
    say("building")
    run(python, "-m", "build", "--no-isolation", "--outdir", dist, ROOT, cwd=dist.parent, stdout=subprocess.DEVNULL)
    with tarfile.open(dist / f"imagebert-{version}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    git = ["git", "-C", str(ROOT), "ls-files", "-z"]
    tracked = subprocess.run(git, check=True, capture_output=True, text=True).stdout.split("\0")
    lacking = [path for path in tracked if path and path not in names]
    if lacking:
        sys.exit(f"the sdist lacks {', '.join(lacking)}: name them in MANIFEST.in")
    return dist / f"imagebert-{version}-py3-none-any.whl"


def run(python: Path, *arguments: str | Path, **options: object) -> None:
    subprocess.run([python, *arguments], check=True, **options)  # type: ignore[call-overload]


def say(text: str) -> None:
    print(f"release: {text}", flush=True)


PIP = ("-m", "pip", "install", "--disable-pip-version-check", "--quiet")

if __name__ == "__main__":
    main()
