"""Captions to a pair store, as its user types it: what is printed, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebert.cli import main
from imagebert.config import SourceConfig
from imagebert.data.pairs import PairStore
from tests.cli.calls import train
from tests.corpora import write_corpus, write_vocabulary


def test_pairs_without_what_was_refused(
    source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dead link's caption is left out, counted and listed; what is left can be trained on."""
    names = [f"image{i:03d}.jpg" for i in range(24)]
    table = tmp_path / "captions.csv"
    table.write_text("image,caption\n" + "".join(f"{name},word01\n" for name in ["dead.jpg", *names, "dead.jpg"]))
    call = ["pairs", str(table), str(tmp_path / "pairs"), "--vocab", str(write_vocabulary(tmp_path).path)]
    call += ["--regions", source.regions]
    for _ in range(2):  # the second ended well before
        assert main(call) == 0
        out = capsys.readouterr().out
        assert f"26 captions: 24 stored in {tmp_path}/pairs, 0 refused, 2 of images without regions" in out
        assert "note: 1 images with 2 captions have no regions" in out
    assert (tmp_path / "pairs/without_regions.txt").read_text() == "dead.jpg\n"
    assert main(["verify", str(tmp_path / "pairs")]) == 0
    assert main(train(source, tmp_path, f"data.sources.0.pairs={tmp_path}/pairs", "schedule.steps=1")) == 0
    # Another store is another job.
    other = write_corpus(tmp_path / "other", images=30)
    assert main([*call, "--regions", other.regions]) == 2
    assert "pairs exists" in capsys.readouterr().err
    assert main([*call[:-2], "--match", "stem"]) == 2
    assert "name them in `regions`" in capsys.readouterr().err


def test_pairs_under_the_stores_own_keys(
    source: SourceConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "captions.csv"
    rows = [(f"COCO/Image{i:03d}.png", "word01", "test" if i % 2 else "train") for i in range(24)]
    rows.append(("COCO/Image003.png", "word02", "train"))
    table.write_text("image,caption,split\n" + "".join(",".join(row) + "\n" for row in rows))
    call = ["pairs", str(table), str(tmp_path / "pairs"), "--vocab", str(write_vocabulary(tmp_path).path)]
    call += ["--regions", source.regions]
    assert main(call) == 2
    assert "match stem finds 24 of the 24, such as 'COCO/Image000.png' as 'image000.jpg'" in capsys.readouterr().err
    assert not (tmp_path / "pairs").exists()
    assert main([*call, "--match", "stem"]) == 0
    out = capsys.readouterr().out
    assert "note: 24 images have their regions under another name" in out
    assert "note: 1 images have captions in several splits, such as 'image003.jpg'" in out
    assert not (tmp_path / "pairs/without_regions.txt").exists()
    assert main(["store", "keys", source.regions]) == 0
    images = sorted(set(PairStore(tmp_path / "pairs").images.tolist()))
    assert capsys.readouterr().out.encode().splitlines() == images


def test_lists_of_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,word01\nb.jpg,word02\n")
    for name, text in (("one", "a.jpg\nlost.jpg\n"), ("two", "b.jpg\na.jpg\n"), ("stems", "a\nb\n")):
        (tmp_path / name).write_text(text)
    call = ["pairs", str(tmp_path / "captions.csv"), str(tmp_path / "pairs")]
    call += ["--vocab", str(write_vocabulary(tmp_path).path), "--split", f"train={tmp_path}/one"]
    for more, message in (("two", "image 'a.jpg' (one of 1) is in"), ("stems", "it lists 'a', the captions are of")):
        assert main([*call, "--split", f"test={tmp_path}/{more}"]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "pairs").exists()
    assert main(call) == 0
    assert f"note: split train={tmp_path}/one: 1 of its 2 images have no caption: 'lost.jpg'" in capsys.readouterr().out
