from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

from imagebert.cli import main
from imagebert.config import SourceConfig, UsageError
from imagebert.data.corpus import Corpus
from imagebert.data.pairs import Caption, write_pairs
from imagebert.data.region_writer import Target, write_regions
from imagebert.model import ImageBertConfig, ImageBertForPreTraining
from imagebert.model_folder import open_model
from imagebert.retrieval import paper
from imagebert.retrieval.evaluation import load_model
from imagebert.retrieval.matrix import score_all
from imagebert.retrieval.metrics import evaluate
from imagebert.retrieval.scoring import PairScorer
from tests.corpora import WORDS, random_record, write_corpus, write_vocabulary
from tests.forked import IMAGEBERT, start_ranks
from tests.model.test_modeling import SHAPE
from tests.retrieval.test_scoring import LIMITS, make_model, one_at_a_time


@pytest.fixture
def model(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def call(model: Path, source: SourceConfig, *more: str) -> int:
    data = ["--regions", source.regions, "--pairs", source.pairs, "--split", "train"]
    return main(["evaluate", str(model), *data, "--max-regions", "6", "--max-words", "8", *more])


def test_what_an_evaluation_leaves(model: Path, source: SourceConfig, tmp_path: Path, capsys) -> None:
    figures = tmp_path / "figures.json"
    assert call(model, source, "--images", "12", "--json", str(figures)) == 0
    printed = capsys.readouterr().out
    assert "text finds image" in printed
    assert "95 % interval" in printed
    (folder,) = (model / "evaluation").iterdir()
    assert not (folder / "tiles").exists()
    corpus = Corpus([source])
    scores = np.load(folder / "scores.npy")
    np.testing.assert_allclose(scores, one_at_a_time(make_model(), corpus, LIMITS, 12), atol=1e-5)
    expected = evaluate(scores, corpus.caption_image[:36])
    found = json.loads(figures.read_text())
    assert found["ir"] == json.loads(json.dumps(expected["ir"]))
    assert found["kind"] == "fine-tuned"
    assert found["paper"] is None
    queries = parquet.read_table(folder / "queries.parquet").to_pylist()
    assert [q["query"] for q in queries] == ["text"] * 36 + ["image"] * 12
    for number in (0, 17, 35):
        query, image = queries[number], number // 3
        assert query["image"] == corpus.image_key(image)
        assert query["caption"] == corpus.text(number)
        assert query["rank"] == (scores[:, number] >= scores[image, number]).sum()
        others = np.delete(np.arange(12), image)
        best = others[scores[others, number].argmax()]
        assert query["best_wrong"] == corpus.image_key(best)
        assert query["best_wrong_score"] == pytest.approx(scores[best, number])
    page = (folder / "failures.html").read_text()
    worst = max(queries[:36], key=lambda q: q["rank"])
    assert worst["caption"] in page
    # The same call counts again and scores nothing; kept scores count in folds.
    (model / "model.safetensors").stat()
    before = (folder / "scores.npy").stat().st_mtime_ns
    (folder / "failures.html").unlink()
    os.mkfifo(folder / "failures.html")  # whose reader never comes
    assert call(model, source, "--images", "12") == 0
    assert (folder / "scores.npy").stat().st_mtime_ns == before
    assert main(["evaluate", "--scores", str(folder), "--folds", "4", "--json", str(figures)]) == 0
    assert json.loads(figures.read_text())["ir"]["r1"] == evaluate(scores, corpus.caption_image[:36], 4)["ir"]["r1"]


def test_another_evaluation_has_another_folder(model: Path, source: SourceConfig, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert call(model, source, "--images", "6", "--out", str(out)) == 0
    assert call(model, source, "--images", "9", "--out", str(out)) == 2
    assert "is an evaluation with another images: give another `out`" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert call(model, source, "--images", "6", "--out", str(tmp_path / "mine")) == 2
    assert "exists and is no evaluation" in capsys.readouterr().err
    assert call(model, source, "--images", "6") == 0
    assert call(model, source, "--images", "9") == 0
    assert len(list((model / "evaluation").iterdir())) == 2


def test_other_features_are_another_evaluation(model: Path, tmp_path: Path, capsys) -> None:
    """Keys, counts and lengths are equal; so are the folders' names, one after the other."""
    rng = np.random.default_rng(0)
    records = [random_record(rng, 2) for _ in range(6)]

    def evaluate_with(order: list[int], name: str) -> dict[str, object]:
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        with write_regions(Target(tmp_path / name, [f"c{i}" for i in range(5)], {"name": "x"}, "float32")) as writer:
            for place, number in enumerate(order):
                writer.add(f"{place}.jpg", records[number])
        source = SourceConfig(regions=str(tmp_path / name), pairs=str(tmp_path / "pairs"))
        assert call(model, source, "--json", str(tmp_path / "x.json")) == 0
        found: dict[str, object] = json.loads((tmp_path / "x.json").read_text())
        return {way: found[way] for way in ("ir", "tr")}

    tokenizer = write_vocabulary(tmp_path)
    captions = (Caption(f"{i}.jpg", " ".join(rng.choice(WORDS, 5))) for i in range(6))
    write_pairs(tmp_path / "pairs", captions, tokenizer)
    first = evaluate_with([0, 1, 2, 3, 4, 5], "regions")
    second = evaluate_with([1, 2, 3, 4, 5, 0], "regions")
    assert second != first
    assert evaluate_with([1, 2, 3, 4, 5, 0], "elsewhere") == second
    assert len(list((model / "evaluation").iterdir())) == 2  # the same data at another place is the same


def test_what_was_kept_is_checked(model: Path, source: SourceConfig, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert call(model, source, "--images", "6", "--out", str(out)) == 0
    changed = {
        "scores.npy": ["evaluate", "--scores", str(out)],
        "caption_image.npy": ["evaluate", "--scores", str(out)],
        "digests.json": ["evaluate", "--scores", str(out)],
        "queries.parquet": ["compare", str(out), str(out)],
    }
    for name, command in changed.items():
        data = (out / name).read_bytes()
        (out / name).write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        assert main(command) == 2, name
        assert f"{name} has changed since it was written" in capsys.readouterr().err
        (out / name).write_bytes(data)
    (out / "evaluation.json").write_bytes(b"[" * 100_000)
    assert call(model, source, "--images", "6", "--out", str(out)) == 2
    assert "evaluation.json is nested too deep: it is damaged; remove" in capsys.readouterr().err


@pytest.mark.ranks
def test_killed_under_two_ranks_goes_on_under_one(source: SourceConfig, tmp_path: Path) -> None:
    """SIGKILL in the middle; what was scored is not scored again, and the matrix is that of an undisturbed call."""
    big = write_corpus(tmp_path, images=120, captions=3)
    make_model().save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    command = ["evaluate", str(tmp_path / "model"), "--regions", big.regions]
    command += ["--pairs", big.pairs, "--split", "train", "--max-regions", "6", "--max-words", "8", "--out", str(out)]
    ranks = start_ranks(2, IMAGEBERT, *command)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and all(process.poll() is None for process in ranks):
        if sum(p.stat().st_size for p in out.glob("tiles/*")) > 30_000:
            break
        time.sleep(0.005)
    for process in ranks:
        process.kill()
        process.wait()
    assert not (out / "scores.npy").exists(), "it was over before it was killed: make the corpus larger"
    written = {p: p.stat().st_size for p in out.glob("tiles/*.tiles")}
    assert len(written) == 2, "both ranks scored tiles"
    done = sum(written.values())
    assert main(command) == 0
    whole = np.load(out / "scores.npy")
    assert done < whole.nbytes
    corpus = Corpus([big])
    scorer = PairScorer(make_model(), corpus, corpus, LIMITS, torch.device("cpu"))
    np.testing.assert_allclose(whole, score_all(scorer, np.arange(120), np.arange(360)), atol=1e-5)


def test_zero_shot_scores_with_the_pretrained_head(source: SourceConfig, tmp_path: Path) -> None:
    ImageBertForPreTraining(ImageBertConfig(**SHAPE)).save_pretrained(tmp_path / "model")
    figures = tmp_path / "figures.json"
    assert call(tmp_path / "model", source, "--images", "3", "--json", str(figures)) == 0
    assert json.loads(figures.read_text())["kind"] == "zero-shot"


def test_the_papers_row_stands_beside_its_split(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that Karpathy's file for Flickr30k was made into, and 24 images for its 1,000."""
    assert paper.paper_row("coco", "test", 5000, 5, "zero-shot")["ir"]["r1"] == 53.6
    assert paper.paper_row("coco", "test", 5000, 1, "fine-tuned")["tr"] == {"r1": 66.4, "r5": 89.8, "r10": 94.4}
    assert paper.paper_row("coco", "val", 5000, 1, "fine-tuned") is None
    monkeypatch.setitem(paper._ROWS, ("flickr30k", 24, 1), paper._ROWS["flickr30k", 1000, 1])
    file = tmp_path / "dataset_flickr30k.json"
    images = [
        {"filename": f"image{i:03d}.jpg", "imgid": i, "split": "test", "sentences": [{"raw": "word01 word02"}]}
        for i in range(24)
    ]
    file.write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    source = write_corpus(tmp_path / "made", images=24, captions=1)
    pairs = str(tmp_path / "pairs")
    assert main(["pairs", str(file), pairs, "--vocab", str(Path(source.pairs) / "vocab.txt")]) == 0
    make_model().save_pretrained(tmp_path / "model")
    figures = tmp_path / "figures.json"
    data = ["--regions", source.regions, "--pairs", pairs, "--json", str(figures)]
    assert main(["evaluate", str(tmp_path / "model"), *data]) == 0
    assert "the paper" in capsys.readouterr().out
    assert json.loads(figures.read_text())["paper"]["ir"] == {"r1": 73.1, "r5": 92.6, "r10": 96.0}


def test_a_model_of_other_features(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    wide = write_corpus(tmp_path, images=3, feature_size=20)
    with pytest.raises(UsageError, match="has feature_size 12, the data has 20"):
        load_model(open_model(tmp_path / "model"), Corpus([wide]))


def test_a_model_of_other_words(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    source = write_corpus(tmp_path, images=3)
    vocabulary = tmp_path / "model/vocab.txt"
    vocabulary.write_bytes((Path(source.pairs) / "vocab.txt").read_bytes())
    load_model(open_model(tmp_path / "model"), Corpus([source]))
    (tmp_path / "model/tokenizer_config.json").write_text('{"strip_accents": false}')
    with pytest.raises(UsageError, match=r"that the pairs were tokenised with \(strip_accents is false, not null\)"):
        load_model(open_model(tmp_path / "model"), Corpus([source]))
    vocabulary.write_text(vocabulary.read_text().replace("word39", "other"))
    with pytest.raises(UsageError, match=r"that the pairs were tokenised with \(piece 44 differs\)"):
        load_model(open_model(tmp_path / "model"), Corpus([source]))


def test_comparing_two(model: Path, source: SourceConfig, tmp_path: Path, capsys) -> None:
    make_model(intermediate_size=24).save_pretrained(tmp_path / "other")
    for name, folder in (("a", model), ("b", tmp_path / "other")):
        assert call(folder, source, "--out", str(tmp_path / name)) == 0
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json", str(tmp_path / "c.json")]) == 0
    rows = json.loads((tmp_path / "c.json").read_text())["figures"]
    for row, way in zip(rows[:6:3], ("ir", "tr"), strict=True):
        for side in ("a", "b"):
            expected = json.loads((tmp_path / side / "recall.json").read_text())[way]["r1"]
            assert row[side] == pytest.approx(expected)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "a"), "--json", str(tmp_path / "c.json")]) == 0
    assert all(r["interval"] == [0, 0] for r in json.loads((tmp_path / "c.json").read_text())["figures"])
    assert call(model, source, "--images", "5", "--out", str(tmp_path / "few")) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "few")]) == 2
    assert "asked different queries" in capsys.readouterr().err
    # What is counted in folds stands beside what is counted as a whole, and looks within its fold only.
    for name, folder in (("a", model), ("b", tmp_path / "other")):
        assert call(folder, source, "--out", str(tmp_path / name), "--folds", "4") == 0
    queries = [parquet.read_table(tmp_path / "a" / f"queries{n}.parquet").to_pylist() for n in ("", "-4-folds")]
    assert max(q["rank"] for q in queries[1]) <= 18
    assert max(q["rank"] for q in queries[0]) > 18
    keys = [q["image"] for q in queries[1] if q["query"] == "image"]
    for query in queries[1][:72]:
        assert keys.index(query["best_wrong"]) // 6 == keys.index(query["image"]) // 6
        assert (query["rank"] == 1) == (query["best_wrong_score"] < query["score"])
    parts = [str(tmp_path / name / "queries-4-folds.parquet") for name in ("a", "b")]
    assert main(["compare", *parts]) == 0


def test_wrong_calls(model: Path, source: SourceConfig, tmp_path: Path, capsys) -> None:
    for more, message in (
        (["--dataset", "coco"], "--dataset stands for --regions and --pairs"),
        (["--pictures", str(tmp_path / "none")], "is no folder"),
        (["--folds", "7"], "24 images cannot be cut into 7 equal folds"),
        (["--candidates", "3"], "no dual head to find candidates with"),
        (["--candidates", "3", "--folds", "2"], "leave the folds out"),
        (["--candidates", "3", "--embeddings", str(tmp_path / "none.npz")], "give an .npz with"),
        (["--embeddings", str(tmp_path / "none.npz")], "say how many with --candidates"),
        (["--candidates-only"], "--candidates-only needs --candidates K"),
    ):
        assert call(model, source, *more) == 2
        assert message in capsys.readouterr().err
    assert main(["evaluate", str(model), "--dataset", "imagenet"]) == 2
    assert "there are flickr30k, flickr8k, coco, coco1k" in capsys.readouterr().err
    assert main(["evaluate", str(model), "--dataset", "coco", "--data", str(tmp_path)]) == 2
    assert str(tmp_path / "coco") in capsys.readouterr().err
