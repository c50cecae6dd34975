"""Relevance: features against counting them one by one, the model by hand, a model's scores against an evaluation."""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from imagebert import api
from imagebert.cli import main
from imagebert.config import SourceConfig
from imagebert.data.corpus import Corpus
from imagebert.data.pairs import Caption, PairStore, write_pairs
from imagebert.data.tokens import Tokenizer
from imagebert.errors import UsageError
from imagebert.files import read_sealed, write_sealed
from imagebert.lait.engine import Done, Engine, read_step
from imagebert.lait.language import stop_words_of, words_of
from imagebert.lait.score import FEATURES, MATCHED, SHIPPED, Scorer, features_of, score_pairs
from tests.lait.made import kept, scored, scored_row
from tests.retrieval.scenes import Scenes, write_scenes

WORDS = ["a", "dog", "the", "of", "Grass", "grass.", "(a", "xqzzk", "beach", "on", '"Beach"', "--", "and", "Tokyo!"]


def random_rows(seed: int) -> list[dict[str, Any]]:
    """Of some pictures, all of one behind the other; some with a model's logit."""
    rng = random.Random(seed)
    rows = []
    for picture in range(12):
        width, height, natural = rng.randrange(300, 3000), rng.randrange(300, 3000), rng.choice([math.nan, 0.7])
        for rank in range(rng.randrange(1, 5)):
            sentence = " ".join(rng.choices(WORDS, k=rng.randrange(1, 60))) + rng.choice(["", ".", "!", "?"])
            row = scored_row(f"{picture:016x}", sentence, 0, rank=rank, width=width, height=height, natural=natural)
            row |= {name: rng.random() for name in ("fit", "dominance", "name_overlap", "title_overlap")}
            row |= {"source": rng.choice(["alt", "og", "heading", "around"]), "pictures": rng.randrange(1, 20)}
            rows.append({**row, "pages": rng.randrange(1, 9), "match": rng.choice([math.nan, 0.0, -3.5, 40.0, -99.0])})
    return rows


def slowly(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The features of a row, each counted by itself."""
    beside = [other for other in rows if other["key"] == row["key"]]

    def words(other: dict[str, Any]) -> set[str]:
        letters = "".join(c if c.isalpha() else " " for c in other["sentence"].lower())
        return {word for word in letters.split() if len(word) > 1}

    own = words(row)
    said_by_others = {
        word for other in beside if other is not row for word in words(other) if word not in stop_words_of("en")
    }
    meant = [word for word in own if word not in stop_words_of("en")]
    logits = [other["match"] for other in beside if not math.isnan(other["match"])]
    sources = ("alt", "title", "figcaption", "caption", "og", "page_title", "heading")
    return {
        **{f"from_{source}": float(row["source"] == source) for source in sources},
        "words": min(len(row["sentence"].split(" ")), 40) / 10,
        "is_whole": float(row["sentence"].endswith((".", "!"))),
        "stop_words": sum(word in stop_words_of("en") for word in own) / max(len(own), 1),
        "unknown_words": sum(word not in words_of("en") for word in own) / max(len(own), 1),
        "dominance": row["dominance"],
        "log_pictures": math.log(row["pictures"]),
        "natural": 1.0 if math.isnan(row["natural"]) else row["natural"],
        "log_side": math.log(min(row["width"], row["height"])),
        "fit": row["fit"],
        "fit_among": row["fit"] - max(other["fit"] for other in beside),
        "is_first": float(row["rank"] == 0),
        "name_overlap": row["name_overlap"],
        "title_overlap": row["title_overlap"],
        "log_pages": math.log(row["pages"]),
        "agreement": sum(word in said_by_others for word in meant) / max(len(meant), 1),
        "match": min(max(row["match"], -10.0), 10.0) if row["match"] == row["match"] else math.nan,
        "match_among": row["match"] - max(logits) if logits else math.nan,
    }


@pytest.mark.parametrize("seed", range(5))
def test_features_are_those_of_counting(seed: int) -> None:
    rows = random_rows(seed)
    found = features_of(rows)
    assert found.shape == (len(rows), len(MATCHED))
    for row, features in zip(rows, found, strict=True):
        expected = slowly(row, rows)
        assert list(expected) == list(MATCHED)
        np.testing.assert_allclose(features, list(expected.values()), rtol=1e-12)
    assert features_of([]).shape == (0, len(MATCHED))


def scorer_file(path: Path, alone: dict[str, float], matched: dict[str, float] | None = None) -> Path:
    """A relevance model with these weights and the bias."""

    def part(weights: dict[str, float], names: Sequence[str]) -> dict[str, Any]:
        return {
            "features": list(names),
            "weights": [weights.get(name, 0.0) for name in names],
            "bias": weights.get("bias", 0.0),
        }

    content = {"alone": part(alone, FEATURES)}
    if matched is not None:
        content["matched"] = part(matched, MATCHED)
    write_sealed(path, content)
    return path


def logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_relevance_by_hand(tmp_path: Path) -> None:
    rows = [
        scored_row("1", "A dog.", 0, fit=0.25),
        scored_row("1", "A dog on the grass", 0, fit=0.75, source="og", match=2.0),
        scored_row("2", "A cat.", 0, fit=0.5, match=-1.0),
    ]
    alone = {"fit": 2.0, "words": -5.0, "from_og": 1.0, "fit_among": 3.0, "bias": 0.5}
    scorer = Scorer(scorer_file(tmp_path / "scorer.json", alone, {"match": 1.5, "match_among": 1.0, "bias": -1.0}))
    expected = [2 * 0.25 - 5 * 0.2 + 3 * (0.25 - 0.75) + 0.5, 1.5 * 2.0 - 1.0, 1.5 * -1.0 - 1.0]
    np.testing.assert_allclose(scorer.relevance(rows), [logistic(value) for value in expected], rtol=1e-12)
    without = [{**row, "match": math.nan} for row in rows]
    expected = [expected[0], 2 * 0.75 - 5 * 0.5 + 1.0 + 0.5, 2 * 0.5 - 5 * 0.2 + 0.5]
    np.testing.assert_allclose(scorer.relevance(without), [logistic(value) for value in expected], rtol=1e-12)
    scorer = Scorer(scorer_file(tmp_path / "scorer.json", alone))
    np.testing.assert_allclose(scorer.relevance(without), [logistic(value) for value in expected], rtol=1e-12)
    with pytest.raises(UsageError, match=r"scorer.json was trained without a model's scores: train it on rows that"):
        scorer.relevance(rows)


def test_a_scorer_that_is_none_is_named(tmp_path: Path) -> None:
    Scorer(SHIPPED)
    path = tmp_path / "scorer.json"
    with pytest.raises(UsageError, match=r"scorer.json"):
        Scorer(path)
    path.write_text(SHIPPED.read_text().replace("0.", "1.", 1))
    with pytest.raises(UsageError, match=r"scorer.json has changed since it was written"):
        Scorer(path)
    for content in ({}, {"alone": {"features": ["fit"], "weights": [1.0], "bias": 0.0}}):
        write_sealed(path, content)
        with pytest.raises(UsageError, match=r"scorer.json was trained on other features than this version measures"):
            Scorer(path)


def relevances(done: Done) -> dict[tuple[str, str], float]:
    rows = [row for path in done.files() for row in parquet.read_table(path).to_pylist()]
    return {(row["key"], row["sentence"]): row["relevance"] for row in rows}


def test_the_step_gives_each_row_its_relevance(tmp_path: Path) -> None:
    unique = list({(row["key"], row["sentence"]): row for row in random_rows(0)}.values())
    tars = [[row for row in unique if int(row["key"], 16) % 2 == tar] for tar in range(2)]
    plain = [[{k: v for k, v in row.items() if k not in ("match", "relevance")} for row in tar] for tar in tars]
    kept(tmp_path / "kept", *plain, [])
    done = api.lait_score(tmp_path / "kept", tmp_path / "scored", api.LaitOptions(processes=1))
    assert (done.files, done.counts) == (3, {"sentences": len(unique)})
    rows_32 = [{**row, **{k: float(np.float32(v)) for k, v in row.items() if isinstance(v, float)}} for row in unique]
    expected = Scorer().relevance([{**row, "match": math.nan} for row in rows_32])
    found = relevances(read_step(tmp_path / "scored"))
    assert [found[row["key"], row["sentence"]] for row in unique] == pytest.approx(expected.tolist(), rel=1e-6)
    scorer_file(tmp_path / "scorer.json", {"bias": 2.0})
    done = api.lait_score(tmp_path / "kept", tmp_path / "scored", scorer=tmp_path / "scorer.json")
    assert set(relevances(read_step(tmp_path / "scored")).values()) == {np.float32(logistic(2.0))}


# ------------------------------------------------------------------------------------------------------------ a model


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return write_scenes(tmp_path_factory.mktemp("scenes"), images=6)


def test_a_models_scores_are_those_of_an_evaluation(scenes: Scenes, tmp_path: Path) -> None:
    """Of all images and captions; no regions or no known word: no score, and relevance without."""
    store = PairStore(scenes.folder / "pairs")
    said = sorted({store.text(number) for number in range(0, len(store), 3)})[:8]
    pairs, keys = tmp_path / "pairs", [key.decode() for key in store.images]
    texts = [Caption(key, text) for key, text in zip(keys * 2, said, strict=False)]
    write_pairs(pairs, texts, Tokenizer(scenes.folder / "model"))
    data = api.Data(regions=scenes.folder / "regions", pairs=pairs, split=None)
    api.evaluate(scenes.folder / "model", data, out=tmp_path / "evaluation")
    scores = np.load(tmp_path / "evaluation/scores.npy")
    corpus = Corpus([SourceConfig(regions=str(scenes.folder / "regions"), pairs=str(pairs), split=None)])
    images = [corpus.image_key(image) for image in range(corpus.images)]
    assert scores.shape == (len(images), len(said))
    rows = [scored_row(key, text, 0) for key in sorted(images) for text in said]
    rows += [scored_row("no such picture", said[0], 0), scored_row("no such picture", said[1], 0)]
    rows += [scored_row(sorted(images)[-1], "§§", 0)]
    rows.sort(key=lambda row: str(row["key"]))
    kept(tmp_path / "kept", [{k: v for k, v in row.items() if k not in ("match", "relevance")} for row in rows])
    model, regions = scenes.folder / "model", scenes.folder / "regions"
    done = api.lait_score(tmp_path / "kept", tmp_path / "scored", model=model, regions=regions)
    assert done.counts == {"sentences": len(rows), "sentences: no regions or words": 3}
    found = {
        (row["key"], row["sentence"]): row for row in parquet.read_table(tmp_path / "scored/00000.parquet").to_pylist()
    }
    expected = {(key, text): scores[i, n] for i, key in enumerate(images) for n, text in enumerate(said)}
    for pair, row in found.items():
        if pair in expected:
            assert row["match"] == pytest.approx(float(expected[pair]), abs=1e-5)
        else:
            assert math.isnan(row["match"])
        assert 0 < row["relevance"] < 1
    assert len(expected) == len(found) - 3
    assert len({round(float(score), 4) for score in expected.values()}) > len(said)
    with pytest.raises(UsageError, match="give model and regions, or neither"):
        api.lait_score(tmp_path / "kept", tmp_path / "scored", model=model)
    before = (tmp_path / "scored/00000.parquet").read_bytes()
    again = api.lait_score(tmp_path / "kept", tmp_path / "again", model=model, regions=regions)
    assert (again.folder / "00000.parquet").read_bytes() == before
    stamp = (tmp_path / "scored/00000.parquet").stat().st_mtime_ns
    api.lait_score(tmp_path / "kept", tmp_path / "scored", model=model, regions=regions)
    assert (tmp_path / "scored/00000.parquet").stat().st_mtime_ns == stamp
    api.lait_score(tmp_path / "kept", tmp_path / "scored")
    assert (tmp_path / "scored/00000.parquet").stat().st_mtime_ns != stamp


# ----------------------------------------------------------------------------------------------------------- training


def labelled(path: Path, *lines: str, header: str = "key,sentence,label") -> Path:
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_a_person_judges_and_the_model_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sample, labels, training, scores, by the commands: this person likes sentences of captions, and long ones."""
    rng = random.Random(0)
    rows = []
    for picture in range(80):
        for rank, source in enumerate(rng.sample(["alt", "figcaption", "og", "around"], 3)):
            sentence = f'Sentence, {picture} {rank} of the "picture" ' + "dog " * rng.randrange(1, 20)
            rows.append(scored_row(f"{picture:016x}", sentence.strip(), 0, source=source, rank=rank, fit=rng.random()))
    plain = [{k: v for k, v in row.items() if k not in ("match", "relevance")} for row in rows]
    kept(tmp_path / "kept", plain[:120], plain[120:])
    assert main(["lait", "score", str(tmp_path / "kept"), str(tmp_path / "scored"), "--processes", "1"]) == 0
    capsys.readouterr()
    sample = ["lait", "sample", str(tmp_path / "scored"), str(tmp_path / "sample.csv"), "--count", "150"]
    assert main(sample) == 0
    assert "sample.csv: 150 sentences; write 1 where" in capsys.readouterr().out
    assert main(sample) == 2  # somebody may have judged
    assert "sample.csv exists, and may hold what somebody has judged: name another" in capsys.readouterr().err
    sampled = list(csv.DictReader(io.StringIO((tmp_path / "sample.csv").read_text())))
    assert len({(row["key"], row["sentence"]) for row in sampled}) == 150
    assert {row["label"] for row in sampled} == {""}
    found = relevances(read_step(tmp_path / "scored"))
    chosen = sorted(found[row["key"], row["sentence"]] for row in sampled)
    assert np.quantile(chosen, [0, 0.25, 0.5, 0.75]) == pytest.approx(
        np.quantile(list(found.values()), [0, 0.25, 0.5, 0.75]), abs=0.02
    )
    source_of = {(row["key"], row["sentence"]): row["source"] for row in rows}
    good = {pair for pair, source in source_of.items() if source == "figcaption" or len(pair[1]) > 85}
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["key", "url", "sentence", "label"])
        writer.writeheader()
        for row in sampled[:-5]:
            writer.writerow({**row, "label": f" {int((row['key'], row['sentence']) in good)}"})
        writer.writerows(sampled[-5:])  # not judged
    trained = [str(tmp_path / name) for name in ("labels.csv", "scored", "scorer.json")]
    assert main(["lait", "train-scorer", *trained]) == 0
    ones = sum((row["key"], row["sentence"]) in good for row in sampled[:-5])
    assert f"trained on {ones} sentences that fit and {145 - ones} that do not" in capsys.readouterr().out
    assert set(read_sealed(tmp_path / "scorer.json")) == {"alone", "digest"}
    score = ["lait", "score", str(tmp_path / "kept"), str(tmp_path / "again"), "--processes", "1"]
    assert main([*score, "--scorer", str(tmp_path / "scorer.json")]) == 0
    found = relevances(read_step(tmp_path / "again"))
    right = [(relevance > 0.5) == (pair in good) for pair, relevance in found.items()]
    assert np.mean(right) > 0.95


def test_a_sample_is_spread_and_never_larger_than_all(tmp_path: Path) -> None:
    rows = [scored_row(f"{n:04x}", f"Sentence {n}.", n / 10) for n in range(10)]
    scored(tmp_path / "scored", rows[:4], rows[4:])
    for count, expected in ((5, [0, 2, 4, 6, 8]), (10, range(10)), (11, range(10)), (200, range(10))):
        out = tmp_path / f"{count}.csv"
        assert api.lait_sample(tmp_path / "scored", out, count) == len(expected)
        assert [int(row["key"], 16) for row in csv.DictReader(out.open())] == list(expected)
    with pytest.raises(UsageError, match="0 sentences cannot be judged"):
        api.lait_sample(tmp_path / "scored", tmp_path / "none.csv", 0)


def test_labels_that_are_wrong_are_named_by_their_line(tmp_path: Path) -> None:
    rows = [scored_row(f"{n:04x}", f"Sentence, {n}.", 0.5) for n in range(60)]
    scored(tmp_path / "scored", rows)
    good = [f'{n:04x},"Sentence, {n}.",{n % 2}' for n in range(60)]

    def train(*lines: str, header: str = "key,sentence,label") -> dict[str, int]:
        labels = labelled(tmp_path / "labels.csv", *lines, header=header)
        return api.lait_train_scorer(labels, tmp_path / "scored", tmp_path / "scorer.json")

    for lines, said in (
        ([*good[:3], '0003,"Sentence, 3.",yes'], "labels.csv, line 5: the label is 'yes': give 1, 0, or nothing"),
        ([good[0], "0001,Sentence, 1.,1"], "labels.csv, line 3: it has not as many columns as the header line: quote"),
        ([good[0], "0001,1"], "labels.csv, line 3: it has not as many columns"),
        ([*good, '0001,"Sentence, 1.",0'], "labels.csv, line 62: the sentence was judged otherwise before"),
        ([good[0], '0001,"Sentence" 1,1'], "labels.csv, line 3: it is no line of a CSV"),
        ([*good, "0001,No such sentence,1"], "labels.csv: 'No such sentence' of 0001 is not in .*scored: judge"),
        (good[:38], "labels.csv has 19 ones and 19 zeros: judge 20 of each at least"),
        (good[::2], "labels.csv has 0 ones and 30 zeros"),
    ):
        with pytest.raises(UsageError, match=said):
            train(*lines)
    with pytest.raises(UsageError, match=r"labels.csv has no columns key, sentence and label: write a header line"):
        train(*good, header="key,text,label")
    (tmp_path / "labels.csv").write_bytes(b"key,sentence,label\n1,caf\xe9,1\n")
    with pytest.raises(UsageError, match=r"labels.csv, line 2: it is no UTF-8"):
        api.lait_train_scorer(tmp_path / "labels.csv", tmp_path / "scored", tmp_path / "scorer.json")
    assert not (tmp_path / "scorer.json").exists()
    assert train(*good[:40], '0030,"Sentence, 48.",') == {"1": 20, "0": 20}


def test_rows_with_scores_train_a_part_of_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, 120)
    rows = [scored_row(f"{n:04x}", f"Sentence {n}.", 0.5, match=float(logits[n])) for n in range(120)]
    scored(tmp_path / "scored", rows)
    labels = labelled(tmp_path / "labels.csv", *(f"{n:04x},Sentence {n}.,{int(logits[n] > 1)}" for n in range(120)))
    api.lait_train_scorer(labels, tmp_path / "scored", tmp_path / "scorer.json")
    found = Scorer(tmp_path / "scorer.json").relevance(rows)
    assert np.mean((found > 0.5) == (logits > 1)) > 0.97


def test_what_is_not_whole_is_not_scored(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"kept has no step.json: imagebert lait filter has not ended well there"):
        score_pairs(tmp_path / "kept", tmp_path / "scored", SHIPPED, Engine(), None, "")
    scored(tmp_path / "kept", [scored_row("1", "A dog.", 0.5)])
    with pytest.raises(UsageError, match=r"kept is what another step wrote \(score\): give what imagebert lait filter"):
        score_pairs(tmp_path / "kept", tmp_path / "scored", SHIPPED, Engine(), None, "")
