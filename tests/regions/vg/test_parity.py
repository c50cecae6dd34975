"""The detector beside its public ports: equal regions, with the weights and pictures of benchmarks/made_up.py.

golden.npz holds what the ports' own programs gave, one picture at a time, in float32: bottom-up-attention.pytorch of
MILVLG (4dbce86, its caffe mode, under detectron2 be792b9), the lxmert project of transformers
(transformers-research-projects fccd0cd) and airsplay's py-bottom-up-attention. NMS and RoI pooling of torchvision were
stand-ins written from its source.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.made_up import SIZES, picture, weights
from imagebert.regions.vg.extractor import VisualGenomeExtractor
from imagebert.regions.vg.operators import overlaps
from imagebert.regions.vg.weights import Detector, read_detector

PORTS = {
    "milvlg": ("caffe", "factor"),
    "transformers": ("detectron2", "interpolate"),
    "airsplay": ("detectron2", "pillow"),
}
GOLDEN = np.load(Path(__file__).with_name("golden.npz"))
CASES = sorted({name.rpartition("/")[0] for name in GOLDEN.files})


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Detector]:
    """By port."""
    found = {}
    for port, (variant, resize) in PORTS.items():
        file = tmp_path_factory.mktemp("weights") / f"{port}.pth"
        torch.save({name: torch.from_numpy(array) for name, array in weights(variant).items()}, file)  # type: ignore[arg-type]
        detector = read_detector(file)
        found[port] = replace(detector, rules=replace(detector.rules, resize=resize))
    return found


@pytest.mark.parametrize("case", CASES)
def test_regions_are_the_ports(case: str, detectors: dict[str, Detector]) -> None:
    port, boxes, name = case.split("/")
    extractor = VisualGenomeExtractor(detectors[port], boxes=boxes)
    (found,) = extractor.detect([Image.fromarray(picture(name))])
    wanted = {field: GOLDEN[f"{case}/{field}"] for field in (*found._fields[:6], "proposals")}
    assert len(found.boxes) == len(wanted["boxes"])
    if not len(found.boxes):
        return
    if (port, name) == ("transformers", "small"):
        # Enlarged 37 times it is smooth, and two of its regions are equally sure but for rounding.
        places = np.lexsort(found.boxes.numpy().round(1).T), np.lexsort(wanted["boxes"].round(1).T)
    else:
        places = slice(None), slice(None)
        assert (found.proposals.numpy() == wanted["proposals"]).all()
    ours = {field: getattr(found, field).numpy()[places[0]] for field in wanted}
    theirs = {field: array[places[1]] for field, array in wanted.items()}
    for field in ("classes", "attributes"):
        assert (ours[field] == theirs[field]).all()
    for field in ("confidences", "attribute_confidences", "features"):
        np.testing.assert_allclose(ours[field], theirs[field], atol=1e-4, rtol=0)
    # In pixels of a picture of hundreds.
    np.testing.assert_allclose(ours["boxes"], theirs["boxes"], atol=1e-4 * max(SIZES[name]), rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("case", [case for case in CASES if not case.endswith("small")])
def test_regions_on_a_gpu_are_the_ports(case: str, detectors: dict[str, Detector]) -> None:
    """Nearly: what rounding of a GPU's convolutions may exchange are regions that are equally sure."""
    port, boxes, name = case.split("/")
    extractor = VisualGenomeExtractor(detectors[port], boxes=boxes)
    (found,) = extractor.detect([Image.fromarray(picture(name))])
    wanted = torch.from_numpy(GOLDEN[f"{case}/boxes"])
    assert len(found.boxes) == len(wanted)
    if len(wanted):
        overlap, nearest = overlaps(wanted, found.boxes.cpu()).max(dim=1)
        same = overlap > 0.999
        assert same.float().mean() > 0.9
        features = torch.from_numpy(GOLDEN[f"{case}/features"])
        torch.testing.assert_close(found.features.cpu()[nearest][same], features[same], atol=1e-2, rtol=0)


def test_golden_cases_have_every_port_picture_and_rule() -> None:
    assert {case.split("/")[0] for case in CASES} == set(PORTS)
    assert {case.split("/")[2] for case in CASES} == set(SIZES) - {"line"}  # of which the ports make an error
    counts = {len(GOLDEN[f"{case}/boxes"]) for case in CASES}
    assert {0, 36} < counts
    for case in CASES:  # the regions are not all alike
        if len(GOLDEN[f"{case}/boxes"]):
            assert len(np.unique(GOLDEN[f"{case}/confidences"])) > 10
            assert GOLDEN[f"{case}/features"].std(axis=0).max() > 0.1


@pytest.mark.parametrize("port", PORTS)
def test_a_picture_does_not_depend_on_its_neighbours(port: str, detectors: dict[str, Detector]) -> None:
    extractor = VisualGenomeExtractor(detectors[port], boxes="36")
    images = [Image.fromarray(picture(name)) for name in ("square", "odd", "square", "strip", "line", "square")]
    images[2] = Image.fromarray(picture("square", seed=1))
    together = extractor.many(images)
    for image, record in zip(images, together, strict=True):
        alone = extractor(image)
        assert len(alone.boxes) == len(record.boxes)
        np.testing.assert_allclose(record.boxes, alone.boxes, atol=1e-2)
        np.testing.assert_allclose(record.features, alone.features, atol=1e-4)
        assert (record.classes == alone.classes).all()
        assert (np.diff(record.confidences) <= 0).all()
    assert not (together[0].boxes == together[2].boxes).all()
    assert len(together[4].boxes) == 0  # one pixel high


def test_half_precision_changes_little(detectors: dict[str, Detector]) -> None:
    image = Image.fromarray(picture("square"))
    exact, near = (
        VisualGenomeExtractor(detectors["milvlg"], boxes="36", precision=precision) for precision in ("fp32", "bf16")
    )
    assert exact.description["digest"] != near.description["digest"]
    (one,), (other,) = exact.detect([image]), near.detect([image])
    found = overlaps(one.boxes, other.boxes)  # with made-up weights nearly all boxes are nearly as sure
    same = found.amax(dim=1) > 0.95
    assert same.float().mean() > 0.3
    assert not torch.equal(one.boxes, other.boxes)
    alike = torch.nn.functional.cosine_similarity(one.features, other.features[found.argmax(dim=1)])
    assert alike[same].min() > 0.95


def test_fewer_proposals_are_the_best_ones(detectors: dict[str, Detector]) -> None:
    image = Image.fromarray(picture("square"))
    all_of_them = VisualGenomeExtractor(detectors["airsplay"], boxes="10-100")
    few = VisualGenomeExtractor(detectors["airsplay"], boxes="10-100", proposals=20)
    (one,), (other,) = all_of_them.detect([image]), few.detect([image])
    assert few.rules.most == 20
    assert (other.proposals < 20).all()
    assert (one.proposals >= 20).any()


def test_each_port_reads_blue_green_red(detectors: dict[str, Detector]) -> None:
    """A picture whose channels are exchanged has other regions: nothing is grey about the made-up weights."""
    extractor = VisualGenomeExtractor(detectors["milvlg"], boxes="36")
    rgb = picture("square")
    (one,), (other,) = (
        extractor.detect([Image.fromarray(rgb)]),
        extractor.detect([Image.fromarray(rgb[..., ::-1].copy())]),
    )
    assert not torch.allclose(one.boxes, other.boxes, atol=1)
