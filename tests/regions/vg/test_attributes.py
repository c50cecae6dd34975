"""From photographs to a trained model with the detector's own regions: attributes are stored, fed, and learnt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.made_up import picture, weights
from imagebert import api
from imagebert.cli import main
from imagebert.config import SourceConfig, UsageError, load_recipe
from imagebert.data.corpus import Corpus
from imagebert.data.records import decode_record, encode_record
from imagebert.data.region_writer import Target, write_regions
from imagebert.data.regions import RegionStore
from imagebert.data.tokens import SPECIALS
from imagebert.feed.arena import Arena
from imagebert.feed.packer import Limits, Packer
from imagebert.feed.plan import Samples
from imagebert.model.configuration import ImageBertConfig
from imagebert.model.modeling import ImageBertForPreTraining
from imagebert.regions.vg.extractor import VisualGenomeExtractor
from imagebert.regions.vg.weights import read_detector
from imagebert.training.assemble import make_masking, sizes_of

RECIPE = str(Path(__file__).parents[2] / "recipe.yaml")
PHOTOS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/, vg.pth, regions/ by the command, and pairs/ of two captions each."""
    folder = tmp_path_factory.mktemp("attributes")
    (folder / "photos").mkdir()
    for number in range(PHOTOS):
        Image.fromarray(picture("square", seed=number)).save(folder / "photos" / f"{number}.png")
    made = weights("caffe", base=4, blocks=(1, 1, 2, 1), classes=7, attributes=5)
    torch.save({name: torch.from_numpy(array) for name, array in made.items()}, folder / "vg.pth")
    call = ["extract", str(folder / "photos"), str(folder / "regions"), "--extractor", str(folder / "vg.pth")]
    assert main([*call, "--boxes", "10"]) == 0
    words = [f"word{number}" for number in range(20)]
    (folder / "vocab.txt").write_text("\n".join([*SPECIALS, *words]) + "\n")
    lines = [f"{n}.png\t{words[n]} {words[n + 7 * k]} {words[3 * k + 2]}" for n in range(PHOTOS) for k in range(2)]
    (folder / "captions.tsv").write_text("image\tcaption\n" + "\n".join(lines) + "\n")
    assert (
        main(["pairs", str(folder / "captions.tsv"), str(folder / "pairs"), "--vocab", str(folder / "vocab.txt")]) == 0
    )
    return folder


def overrides(folder: Path, out: Path, *more: str) -> list[str]:
    sources = [f"data.sources=[{{regions: {folder / 'regions'}, pairs: {folder / 'pairs'}}}]"]
    return [f"output={out}", *sources, "schedule.steps=6", "schedule.batch_size=8", *more]


def test_a_store_has_what_the_detector_says(folder: Path) -> None:
    store = RegionStore(folder / "regions")
    assert store.attributes == [f"attribute {number}" for number in range(5)]
    extractor = VisualGenomeExtractor(read_detector(folder / "vg.pth"), boxes="10")
    (found,) = extractor.detect([Image.open(folder / "photos" / "2.png")])
    order = found.confidences.argsort(descending=True, stable=True)
    record = store.read(2)
    assert record.attributes is not None
    assert record.attribute_confidences is not None
    np.testing.assert_array_equal(record.attributes, found.attributes[order].numpy())
    np.testing.assert_allclose(record.attribute_confidences, found.attribute_confidences[order].numpy(), atol=1e-6)
    assert main(["verify", str(folder / "regions")]) == 0


@pytest.mark.parametrize("feature_type", ["int8", "float16", "float32"])
@pytest.mark.parametrize("regions", [1, 2, 3])
def test_a_record_with_attributes_comes_back(folder: Path, feature_type: str, regions: int) -> None:
    whole = RegionStore(folder / "regions").read(0)
    cut = whole._replace(**{name: array[:regions] for name, array in whole._asdict().items() if np.ndim(array)})
    data = encode_record(cut, feature_type)  # type: ignore[arg-type]
    again = decode_record(data, "record")
    for name, array in cut._asdict().items():
        if name not in ("features", "scales"):
            np.testing.assert_array_equal(getattr(again, name), array)
    np.testing.assert_allclose(again.dequantized(), cut.dequantized(), rtol=0.01, atol=0.02 * whole.dequantized().max())
    plain = encode_record(cut._replace(attributes=None, attribute_confidences=None), feature_type)  # type: ignore[arg-type]
    assert (plain[0], data[0]) == (1, 2)  # without attributes a record is as it always was
    assert decode_record(plain, "record").attributes is None


def test_stores_are_merged_split_and_quantized_with_attributes(folder: Path, tmp_path: Path) -> None:
    first, other = tmp_path / "a", tmp_path / "b"
    api.split(folder / "regions", first, keys=["0.png", "1.png"])
    api.split(folder / "regions", other, keys=["2.png", "3.png", "4.png", "5.png"])
    api.merge([first, other], tmp_path / "merged")
    assert RegionStore(tmp_path / "merged").content == RegionStore(folder / "regions").content
    with write_regions(Target(tmp_path / "plain", RegionStore(first).classes, {"name": "x", "digest": ""})) as writer:
        record = RegionStore(first).read(0)
        with pytest.raises(UsageError, match="has attributes, the store is for regions without"):
            writer.add("x", record)
        writer.add("x", record._replace(attributes=None, attribute_confidences=None))
    with pytest.raises(UsageError, match="differ in their attributes"):
        api.merge([first, tmp_path / "plain"], tmp_path / "none")
    target = Target(tmp_path / "few", RegionStore(first).classes, {"name": "x", "digest": ""}, attributes=["one"])
    with write_regions(target) as writer:
        with pytest.raises(UsageError, match="has no attributes, the store is for regions with"):
            writer.add("x", record._replace(attributes=None, attribute_confidences=None))
        with pytest.raises(UsageError, match="unknown attribute 4: there are 1"):
            writer.add("x", record._replace(attributes=np.full_like(record.attributes, 4)))
        writer.add("x", record._replace(attributes=np.zeros_like(record.attributes)))


def test_labels_are_those_of_the_masked_regions(folder: Path) -> None:
    corpus = Corpus([SourceConfig(regions=str(folder / "regions"), pairs=str(folder / "pairs"))])
    limits = Limits(max_regions=6, max_words=4, whole_image=True)
    images = np.arange(len(corpus)) % PHOTOS
    samples = Samples(images, np.arange(len(corpus)), np.ones(len(corpus)), np.arange(len(corpus)))
    masking = make_masking(load_recipe(RECIPE, ["pretraining.masked_regions=0.5"]), corpus)
    batch = Packer(corpus, limits, attributes=True).pack(samples, Arena(), 0, masking)
    stored = [corpus.regions(image) for image in images]
    attributes = np.concatenate([record.attributes[:6] for record in stored])  # type: ignore[index]
    classes = np.concatenate([record.classes[:6] for record in stored])
    assert len(batch.attribute_labels) > 10
    np.testing.assert_array_equal(batch.attribute_labels, attributes[batch.masked_regions])
    np.testing.assert_array_equal(batch.moc_labels, classes[batch.masked_regions])
    without = Packer(corpus, limits).pack(samples, Arena(), 0, masking)
    assert len(without.attribute_labels) == 0
    for name, field in batch._asdict().items():  # and nothing else is another
        if isinstance(field, torch.Tensor) and name != "attribute_labels":
            assert torch.equal(field, getattr(without, name)), name


def test_the_loss_is_the_cross_entropy_of_masked_regions(folder: Path) -> None:
    corpus = Corpus([SourceConfig(regions=str(folder / "regions"), pairs=str(folder / "pairs"))])
    ones, every = np.ones(len(corpus)), np.arange(len(corpus))
    samples = Samples(every % PHOTOS, every, ones, every)
    config = load_recipe(RECIPE, ["pretraining.masked_regions=0.5", "pretraining.attributes=1"])
    packer = Packer(corpus, Limits.of(config.data), attributes=True)
    batch = packer.pack(samples, Arena(), 0, make_masking(config, corpus))
    sizes = {**sizes_of(config, corpus), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = ImageBertForPreTraining(ImageBertConfig.preset("tiny", **sizes)).eval()
    found = model(batch).attributes
    hidden = model.imagebert(batch)[batch.region_rows[batch.masked_regions]]
    logits = model.attributes(hidden).double()
    wanted = torch.nn.functional.cross_entropy(logits, batch.attribute_labels, reduction="sum")
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    # Without labels the head takes part all the same: no rank waits for a gradient that never comes.
    none = model(batch._replace(attribute_labels=batch.attribute_labels[:0])).attributes
    assert none.item() == 0
    none.backward()
    assert model.attributes.weight.grad is not None


def test_a_store_of_the_detector_trains_a_model_and_its_attributes(folder: Path, tmp_path: Path) -> None:
    """The demo's way in small: extract, pairs, pretrain, and the model goes on without that head."""
    plain, named = tmp_path / "plain", tmp_path / "named"
    assert main(["pretrain", RECIPE, *overrides(folder, plain)]) == 0
    assert main(["pretrain", RECIPE, *overrides(folder, named, "pretraining.attributes=2")]) == 0
    lines = [json.loads(line) for line in (named / "log.jsonl").read_text().splitlines()]
    losses = [line["loss/attributes"] for line in lines if "loss/attributes" in line]
    assert all(np.isfinite(losses))
    assert losses[-1] < losses[0] / 3  # six pictures of few attributes
    first = lines[0]
    total = sum(first[f"loss/{name}"] for name in ("mlm", "moc", "mrfr", "itm")) + 2 * first["loss/attributes"]
    assert first["loss/total"] == pytest.approx(total, rel=1e-5)
    config = json.loads((named / "model" / "config.json").read_text())
    assert config["num_region_attributes"] == 5
    assert json.loads((plain / "model" / "config.json").read_text())["num_region_attributes"] == 0
    preprocessor = json.loads((named / "model" / "preprocessor_config.json").read_text())
    assert preprocessor["region_attributes"][4] == "attribute 4"
    again = overrides(folder, tmp_path / "again", "model.preset=null", f"model.initialize_from={named / 'model'}")
    assert main(["pretrain", RECIPE, *again]) == 0


def test_attributes_that_regions_do_not_have_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = RegionStore(folder / "regions")
    with write_regions(Target(tmp_path / "plain", store.classes, {"name": "x", "digest": ""})) as writer:
        for number in range(len(store)):
            record = store.read(number)._replace(attributes=None, attribute_confidences=None)
            writer.add(store.key(number), record)
    (tmp_path / "pairs").symlink_to(folder / "pairs")
    (tmp_path / "regions").symlink_to(tmp_path / "plain")
    assert main(["pretrain", RECIPE, *overrides(tmp_path, tmp_path / "run", "pretraining.attributes=1")]) == 2
    assert "has regions without attributes: set pretraining.attributes=0" in capsys.readouterr().err
