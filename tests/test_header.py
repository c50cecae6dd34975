from __future__ import annotations

import subprocess
from pathlib import Path

from imagebert.config import load_recipe
from imagebert.header import commit, recipe_changes, short_list


def test_hosts_as_slurm_writes_them() -> None:
    assert short_list(["node2", "node1", "node3", "node7", "node1"]) == "node[1-3,7]"
    assert short_list(["gpu09-ib", "gpu10-ib", "login"]) in ("gpu09-ib, gpu10-ib, login", "gpu[09-10]-ib, login")
    assert short_list(["gpu01", "gpu02"]) == "gpu[01-02]"
    assert short_list(["node0", "node1"]) == "node[0-1]"
    assert short_list(["node1"]) == "node1"
    assert short_list(["a.b", "c"]) == "a.b, c"


def test_the_commit_is_gits(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=main"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    assert commit(tmp_path) == ""
    git("init", "-q")
    assert commit(tmp_path) == ""
    git("commit", "-q", "--allow-empty", "-m", "x")
    head = git("rev-parse", "HEAD").strip()
    assert commit(tmp_path) == head
    git("pack-refs", "--all")
    assert commit(tmp_path) == head
    git("checkout", "-q", "--detach")
    assert commit(tmp_path) == head
    git("worktree", "add", "-q", "-b", "other", str(tmp_path / "beside"))
    assert commit(tmp_path / "beside") == head


def test_what_differs_from_the_recipe_that_ships(tmp_path: Path) -> None:
    assert recipe_changes("demo_stage1", load_recipe("demo_stage1")) == []
    config = load_recipe("demo_stage1", ["seed=7", "schedule.steps=3"])
    assert recipe_changes("demo_stage1", config) == ["schedule.steps=3", "seed=7"]
    config = load_recipe("tests/recipe.yaml", ["seed=7"])
    assert recipe_changes("tests/recipe.yaml", config) == ["seed=7"]
