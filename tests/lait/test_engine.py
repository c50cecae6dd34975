"""A step is the same bytes whatever does it, goes on after any kill, and does nothing twice that was noted."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagebert.claims import Claims
from imagebert.errors import UsageError
from imagebert.files import write_json, write_sealed
from imagebert.lait import engine
from imagebert.lait.engine import STEP, Engine, Task, check_step, identity_of, read_step, run_step
from tests.disks import enlarge, small_disk
from tests.forked import Forked, finish, start, start_ranks
from tests.lait.work import CODE, NAMES, contents, run, task, tasks, work

COUNT = 8
MPIRUN = Path(sys.executable).with_name("mpirun")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


def done_in(notes: Path) -> list[str]:
    """The tasks that have been begun since the last look."""
    lines = notes / "done"
    found = lines.read_text().splitlines() if lines.exists() else []
    lines.unlink(missing_ok=True)
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def noted(folder: Path) -> set[str]:
    return {path.name.removesuffix(".json") for path in folder.glob("[!.]*.json")} - {"step"}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a step that nothing happens to writes; its results as they should be."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(folder / "step", folder, COUNT)
    found = files_of(folder / "step")
    results = {k: v for number, name in enumerate(names()) for k, v in contents(number, name).items()}
    assert {name: data for name, data in found.items() if not name.endswith(".json")} == results
    assert found.keys() == results.keys() | {f"{name}.json" for name in names()} | {STEP}
    assert done.names == tuple(sorted(names()))
    assert done.counts == {"things": sum(range(COUNT)), "odd things": COUNT // 2}
    assert done.files(".tar") == [folder / "step" / f"{name}.tar" for name in sorted(names())]
    assert read_step(folder / "step") == done
    assert check_step(folder / "step") == 2 * COUNT
    return found


def names() -> list[str]:
    return [*NAMES, "00006", "00007"]


def test_two_processes(tmp_path: Path, notes: Path, expected: dict[str, bytes]) -> None:
    run(tmp_path / "step", notes, COUNT, Engine(processes=2))
    assert files_of(tmp_path / "step") == expected
    assert sorted(done_in(notes)) == sorted(names())


def test_another_order(
    tmp_path: Path, notes: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reversed(Claims):
        def pieces(self, things: Any) -> Iterator[Any]:
            return super().pieces(things[::-1])

    monkeypatch.setattr(engine, "Claims", Reversed)
    run(tmp_path / "step", notes, COUNT)
    assert files_of(tmp_path / "step") == expected
    assert done_in(notes) == sorted(names(), reverse=True)


@pytest.mark.ranks
@pytest.mark.parametrize(("ranks", "processes"), [(2, 1), (3, 1), (2, 2)])
def test_ranks(ranks: int, processes: int, tmp_path: Path, notes: Path, expected: dict[str, bytes]) -> None:
    found = start_ranks(ranks, CODE, tmp_path / "step", notes, COUNT, processes)
    finish(found)
    assert {rank.communicate()[0] for rank in found} == {f"('odd things', 4) ('things', {sum(range(COUNT))})\n"}
    assert files_of(tmp_path / "step") == expected
    assert sorted(done_in(notes)) == sorted(names())


@pytest.mark.ranks
@pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python")
def test_ranks_by_mpi(tmp_path: Path, notes: Path, expected: dict[str, bytes]) -> None:
    call = [str(MPIRUN), "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, "-c", CODE]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/kernels"}
    arguments = [str(tmp_path / "step"), str(notes), str(COUNT), "1"]
    subprocess.run([*call, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
    assert files_of(tmp_path / "step") == expected
    assert sorted(done_in(notes)) == sorted(names())


# -------------------------------------------------------------------------------------------------------------- kills


def test_killed_wherever_it_writes(tmp_path: Path, notes: Path) -> None:
    """At each of its calls that make something lasting; the next call does what had no note, and that alone."""
    run(tmp_path / "whole", notes, 3)
    expected = files_of(tmp_path / "whole")
    done_in(notes)
    for number in range(1, 100):
        folder = tmp_path / str(number)
        killed = start(CODE, folder, notes, 3, 1, number)
        if killed.wait() == 0:
            break
        assert killed.returncode == -signal.SIGKILL
        first, before = done_in(notes), noted(folder) if folder.exists() else set()
        assert len(first) - len(before) in (0, 1)
        run(folder, notes, 3)
        assert files_of(folder) == expected
        second = done_in(notes)
        assert sorted([*before, *second]) == sorted(NAMES[:3])
        assert set(first) | set(second) == set(NAMES[:3])
    assert number > 20


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_any_instant(processes: int, tmp_path: Path, notes: Path) -> None:
    """Again and again, until it ends by itself."""
    rng, before = random.Random(processes), set[str]()
    run(tmp_path / "whole", notes, 60)
    expected = files_of(tmp_path / "whole")
    done_in(notes)
    for _ in range(6):
        call = start(CODE, tmp_path / "step", notes, 60, processes)
        assert wait_for((notes / "done").exists), call.communicate(1)
        time.sleep(rng.uniform(0, 0.15))
        call.kill()
        call.wait()
        assert not before & set(done_in(notes))
        before = noted(tmp_path / "step")
        if len(before) == 60:
            break
    run(tmp_path / "step", notes, 60, Engine(processes=processes))
    assert not before & set(done_in(notes))
    assert files_of(tmp_path / "step") == expected


def wait_for(asked: Any, seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while not asked():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def test_a_killed_process_is_named_and_the_call_goes_on(
    tmp_path: Path, notes: Path, expected: dict[str, bytes]
) -> None:
    (notes / "at *").write_text("wait")  # the first two
    (notes / "at 00000").write_text("kill")
    said = r"a process was killed at one of \*, 00000.*, by a lack of memory .*: give fewer processes; the same call"
    with pytest.raises(OSError, match=said):
        run(tmp_path / "step", notes, COUNT, Engine(processes=2))
    with pytest.raises(UsageError, match=r"has no step.json: the step before has not ended well there"):
        read_step(tmp_path / "step")
    before = noted(tmp_path / "step")
    assert "00000" not in before
    (notes / "at *").unlink()
    done_in(notes)
    run(tmp_path / "step", notes, COUNT, Engine(processes=2))
    assert files_of(tmp_path / "step") == expected
    assert sorted(done_in(notes)) == sorted(set(names()) - before)


def test_processes_end_with_who_started_them(tmp_path: Path, notes: Path) -> None:
    (notes / "at 00000").write_text("wait")
    call = start(CODE, tmp_path / "step", notes, 2, 2)
    assert wait_for((notes / "waiting").exists), call.communicate(1)
    worker = int(wait_for_text(notes / "waiting"))
    assert worker != call.pid
    call.kill()
    call.wait()
    assert wait_for(lambda: not is_running(worker))


def wait_for_text(path: Path) -> str:
    assert wait_for(lambda: path.read_text() != "")
    return path.read_text()


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.ranks
def test_a_killed_rank_ends_the_others(tmp_path: Path, notes: Path, expected: dict[str, bytes]) -> None:
    (notes / "at 00006").write_text("kill")
    ranks = start_ranks(2, CODE, tmp_path / "step", notes, COUNT, 1)
    # The other one would wait a minute for its word.
    assert wait_for(lambda: any(rank.poll() == -9 for rank in ranks))
    for rank in ranks:
        rank.kill()
        rank.wait()
    before = noted(tmp_path / "step")
    done_in(notes)
    finish(start_ranks(3, CODE, tmp_path / "step", notes, COUNT, 1))
    assert files_of(tmp_path / "step") == expected
    assert sorted(done_in(notes)) == sorted(set(names()) - before)


# ------------------------------------------------------------------------------------------------------------ changes


@pytest.fixture
def made(tmp_path: Path, notes: Path) -> Path:
    run(tmp_path / "step", notes, COUNT)
    done_in(notes)
    return tmp_path / "step"


def test_a_second_call_does_nothing(made: Path, notes: Path, expected: dict[str, bytes]) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.iterdir() if path.name != STEP}
    run(made, notes, COUNT, Engine(processes=2))
    assert done_in(notes) == []
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert files_of(made) == expected


def test_another_threshold_makes_all_again(made: Path, notes: Path) -> None:
    before = read_step(made)
    after = run(made, notes, COUNT, source=0.6)
    assert sorted(done_in(notes)) == sorted(names())
    assert after.digest != before.digest
    assert after[1:3] == before[1:3]


def only_a_table(number: int, notes: Path, out: Path) -> dict[str, int]:
    out.with_name(f"{out.name}.parquet").write_bytes(b"%d" % number)
    return {}


def test_what_a_task_wrote_before_does_not_stay(made: Path, notes: Path) -> None:
    """Of another recipe, which makes no such file."""
    run_step("test", made, only_a_table, tasks(COUNT, notes), 0.6)
    assert sorted(files_of(made)) == sorted(
        [STEP, *(f"{name}.json" for name in names()), *(f"{name}.parquet" for name in names())]
    )
    assert check_step(made) == COUNT


def test_another_input_makes_its_own_again(made: Path, notes: Path) -> None:
    changed = [each._replace(source="changed") if each.name == "c'd" else each for each in tasks(COUNT, notes)]
    run_step("test", made, work, changed, 0.5)
    assert done_in(notes) == ["c'd"]


@pytest.mark.parametrize("change", ["removed", "shortened", "note removed", "note damaged", "note of another"])
@pytest.mark.parametrize("name", ["00000", "b[1]"])
def test_a_result_that_is_not_whole_is_made_again(
    change: str, name: str, made: Path, notes: Path, expected: dict[str, bytes]
) -> None:
    result, note = made / f"{name}.tar", made / f"{name}.json"
    if change == "removed":
        result.unlink()
    elif change == "shortened":
        result.write_bytes(result.read_bytes()[:-1])
    elif change == "note removed":
        note.unlink()
    elif change == "note damaged":
        note.write_bytes(note.read_bytes().replace(b"things", b"thongs"))
    else:
        shutil.copy(made / "00006.json", note)
    run(made, notes, COUNT)
    assert done_in(notes) == [name]
    assert files_of(made) == expected


def test_results_of_inputs_that_have_gone_are_removed(made: Path, notes: Path) -> None:
    """And nothing else: others' files may lie there."""
    write_json(made / "package.json", {"files": ["mine"]})
    write_sealed(made / "pairs.json", {"step": "pairs", "made_from": "x", "counts": {}})
    (made / "package.tar").write_text("mine")
    (made / "00000.mine.txt").write_text("mine")
    left = [each for each in tasks(COUNT, notes) if each.name not in ("00000", "b[1]", "*")]
    done = run_step("test", made, work, left, 0.5)
    assert done_in(notes) == []
    assert done.counts["things"] == sum(range(COUNT)) - sum(names().index(name) for name in ("00000", "b[1]", "*"))
    found = set(files_of(made))
    others = {"package.json", "pairs.json", "package.tar", "00000.mine.txt"}
    assert found == others | {STEP} | {f"{each.name}.{s}" for each in left for s in ("json", "tar", "parquet")}


def test_what_was_not_noted_goes_with_its_input(made: Path, notes: Path) -> None:
    """Killed between a result and its note; then the input leaves the crawl."""
    (notes / "at *").write_text("fail")
    with pytest.raises(OSError, match="was not made"):
        run(made, notes, COUNT, source=0.6)
    (made / "c'd.json").unlink()
    left = [each for each in tasks(COUNT, notes) if each.name not in ("c'd", "*")]
    run_step("test", made, work, left, 0.6)
    assert set(files_of(made)) == {STEP} | {f"{each.name}.{s}" for each in left for s in ("json", "tar", "parquet")}


def test_a_folder_of_another_step_is_left_as_it_is(made: Path, notes: Path, expected: dict[str, bytes]) -> None:
    with pytest.raises(
        UsageError, match=r"step is what another step wrote \(test\): name another folder for `lait other`"
    ):
        run_step("other", made, work, tasks(COUNT, notes), 0.5)
    assert files_of(made) == expected
    (notes / "at *").write_text("fail")
    with pytest.raises(OSError, match="was not made"):
        run(made, notes, COUNT, source=0.6)
    half = files_of(made)
    with pytest.raises(UsageError, match=r"is what another step wrote"):  # also while it is not whole
        run_step("other", made, work, tasks(COUNT, notes), 0.5)
    assert files_of(made) == half


def test_what_tells_files_apart(made: Path, tmp_path: Path) -> None:
    """Of results their contents, whenever they were written; of what is not ours also what lies at its ends."""
    before = identity_of(made / "00000.tar")
    os.utime(made / "00000.tar", (0, 0))
    assert identity_of(made / "00000.tar") == before
    found = []
    for text in (b"one" + bytes(200_000), b"two" + bytes(200_000), bytes(200_000) + b"one", bytes(200_000) + b"two"):
        (tmp_path / "a.warc").write_bytes(text)
        os.utime(tmp_path / "a.warc", (0, 0))
        found.append(identity_of(tmp_path / "a.warc"))
    assert len({str(each) for each in found}) == 4


def test_while_it_is_not_whole_it_does_not_say_so(made: Path, notes: Path) -> None:
    """Else the next step would take what is half of another recipe."""
    (notes / "at *").write_text("fail")
    with pytest.raises(OSError, match=r"step/\* was not made \(Input/output error: disk\): the same call goes on"):
        run(made, notes, COUNT, source=0.6)
    with pytest.raises(UsageError, match=r"has no step.json: imagebert lait pages has not ended well there"):
        read_step(made, "imagebert lait pages")
    with pytest.raises(OSError, match=r"step/\* was not made"):
        run(made, notes, COUNT, Engine(processes=2), source=0.6)
    (notes / "at *").unlink()
    assert run(made, notes, COUNT, source=0.6).counts["things"] == sum(range(COUNT))


def test_names_that_cannot_be_are_refused(tmp_path: Path, notes: Path) -> None:
    for wrong, said in (
        ([task(0, "a", notes), task(1, "a", notes)], "2 files would be written as a: give each a name of its own"),
        ([task(0, "step", notes)], "a file step cannot be told from this program's own"),
        ([task(0, ".a", notes)], "a file .a cannot be told"),
    ):
        with pytest.raises(UsageError, match=said):
            run_step("test", tmp_path / "step", work, wrong, 0.5)
    assert done_in(notes) == []


def test_a_step_without_input(tmp_path: Path) -> None:
    assert run_step("test", tmp_path / "step", work, [], 0.5).counts == {}
    assert check_step(tmp_path / "step") == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_is_a_sentence(processes: int, tmp_path: Path, notes: Path) -> None:
    with small_disk(tmp_path / "disk", "80k") as disk:
        with pytest.raises(OSError, match=r"disk/step/.* (was not made|failed).*No space left on device"):
            run(disk / "step", notes, 20, Engine(processes=processes))
        assert not (disk / "step" / STEP).exists()
        before = noted(disk / "step")
        done_in(notes)
        enlarge(disk, "1m")
        run(disk / "step", notes, 20, Engine(processes=processes))
        assert sorted(done_in(notes)) == sorted({each.name for each in tasks(20, notes)} - before)
        run(tmp_path / "large", notes, 20)
        assert files_of(disk / "step") == files_of(tmp_path / "large")


def test_two_calls_in_one_folder(tmp_path: Path, notes: Path, expected: dict[str, bytes]) -> None:
    (notes / "at 00000").write_text("wait")
    first: Forked = start(CODE, tmp_path / "step", notes, COUNT, 1)
    assert wait_for((notes / "waiting").exists), first.communicate(1)
    with pytest.raises(UsageError, match=r"another process is writing .*step: process \d+ on .*; wait for it to end"):
        run(tmp_path / "step", notes, COUNT)
    (notes / "at 00000").unlink()
    finish([first])
    assert files_of(tmp_path / "step") == expected


def test_one_changed_byte_is_named(made: Path) -> None:
    for path in sorted(made.iterdir()):
        data = path.read_bytes()
        at = data.index(b'"things": ') + 10 if path.suffix == ".json" else len(data) // 2
        for changed in (data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], None):
            path.unlink()
            if changed is not None:
                path.write_bytes(changed)
            with pytest.raises(UsageError) as raised:
                check_step(made)
            assert str(path) in str(raised.value)
            path.write_bytes(data)
    (made / STEP).write_text(json.dumps({"tasks": {}}))
    with pytest.raises(UsageError, match=r"step.json has no digest of its content.*: make the step again"):
        check_step(made)


def test_a_note_of_another_call_is_named(made: Path, tmp_path: Path, notes: Path) -> None:
    run(tmp_path / "other", notes, COUNT, source=0.6)
    shutil.copy(tmp_path / "other/00006.json", made / "00006.json")
    with pytest.raises(UsageError, match=r"00006.json is of another call"):
        check_step(made)


def test_what_a_task_depends_on_is_plain(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        run_step("test", tmp_path / "step", work, [Task("a", tmp_path, ())], 0.5)
