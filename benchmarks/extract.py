"""The Visual Genome detector: pictures a second beside the ports' way of computing it, and what doing less costs.

    python -m benchmarks.extract [--weights FILE] [--pictures 3] [--variant caffe] [--json FILE]

The peer is the same network as the ports have it: convolutions and batch normalisation apart, channels first, all
regions of a picture at once. Both give the same regions (tests/regions/vg/test_parity.py compares ours with the ports'
own). Rounds alternate; a figure is the median of their ratios. Without --weights a seed makes them, at the published
sizes: then speeds say what they say, but what doing less costs is that of made-up weights, whose boxes are all nearly
as sure. Fewer proposals and bf16 are compared region by region with 300 proposals in fp32.

On a GPU the peer computes in fp32 and bf16, too, and pictures come in batches.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import made_up
from benchmarks.report import Line, publish
from imagebert.regions.vg import network
from imagebert.regions.vg.extractor import VisualGenomeExtractor
from imagebert.regions.vg.operators import overlaps
from imagebert.regions.vg.rules import Detections, Rules
from imagebert.regions.vg.weights import Detector, read_detector

GPU_WANTED = 150.0  # pictures a second on one H100 in bf16
CPU_WANTED, RATE_WANTED = 1.2, 0.8
NAMES = ("odd", "tall", "wide", "square")


class PortsConvolution:
    """A convolution and its normalisation, as the ports compute them."""

    def __init__(
        self, weights: Any, name: str, dtype: torch.dtype, device: torch.device, stride: int = 1, dilation: int = 1
    ) -> None:
        def tensor(part: str) -> torch.Tensor | None:
            found = weights.get(f"{name}.{part}")
            return None if found is None else found.to(device, dtype)

        self._weight, self._bias = tensor("weight"), tensor("bias")
        self._norm = [tensor(f"norm.{part}") for part in ("running_mean", "running_var", "weight", "bias")]
        assert self._weight is not None
        self._how = stride, self._weight.shape[2] // 2 * dilation, dilation

    def __call__(self, maps: torch.Tensor) -> torch.Tensor:
        maps = torch.nn.functional.conv2d(maps.contiguous(), self._weight, self._bias, *self._how)  # type: ignore[arg-type]
        if self._norm[0] is None:
            return maps
        return torch.nn.functional.batch_norm(maps, *self._norm)  # type: ignore[arg-type]


class PortsNetwork(network.Network):
    @property
    def regions_at_once(self) -> int:
        return 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, metavar="FILE")
    parser.add_argument("--variant", choices=["caffe", "detectron2"], default="detectron2", help="of made-up weights")
    parser.add_argument("--pictures", type=int, default=3, metavar="N", help="pictures, or on a GPU batches of 16")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of a CPU (%(default)s)")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    gpu = torch.cuda.is_available()
    detector = read_detector(parsed.weights) if parsed.weights else _made_up(parsed.variant)
    batch = 16 if gpu else 1
    pictures = [Image.fromarray(made_up.picture(NAMES[n % len(NAMES)], seed=n)) for n in range(parsed.pictures)]
    batches = [[picture] * batch for picture in pictures]
    precisions = ("fp32", "bf16")
    ours = {
        name: VisualGenomeExtractor(detector, boxes="36", precision=name)  # type: ignore[arg-type]
        for name in precisions
    }
    fewer = VisualGenomeExtractor(detector, boxes="36", proposals=100)
    ports = _ports(detector, "fp32")
    ways = {"ports' way, fp32": ports, "fp32": ours["fp32"], "bf16": ours["bf16"], "fp32, 100 proposals": fewer}
    if gpu:
        ways["ports' way, bf16"] = _ports(detector, "bf16")
    for way in ways.values():
        way.detect(batches[0])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, list[Detections]] = {name: [] for name in ways}
    rates = []
    for images in batches:
        for name, way in ways.items():
            begun = time.perf_counter()
            found[name].append(way.detect(images)[0])
            if gpu:
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - begun) / batch)
        rates.append(_product_rate())
    flop = _flop(ours["fp32"], pictures[0])
    speed = {name: 1 / statistics.median(each) for name, each in seconds.items()}
    against = [one / other for one, other in zip(seconds["ports' way, fp32"], seconds["fp32"], strict=True)]
    share = [flop / took / rate for took, rate in zip(seconds["fp32"], rates, strict=True)]
    loss = {name: _loss(found["fp32"], found[name]) for name in ways}
    lines = [Line("fp32 beside the ports' way", statistics.median(against), CPU_WANTED)]
    if gpu:
        lines.append(Line("pictures a second, bf16", speed["bf16"], GPU_WANTED))
    else:
        lines.append(Line("of the rate of products, fp32", statistics.median(share), RATE_WANTED))
    lines.append(Line("regions that are the ports', fp32", loss["ports' way, fp32"]["boxes"], 0.99))
    for name, value in speed.items():
        told = ", ".join(f"{what} {part:.3f}" for what, part in loss[name].items())
        print(f"{name:22} {value:8.3f} pictures/s; of fp32's: {told}")
    figures = {
        "weights": detector.source,
        "variant": detector.rules.variant,
        "pictures_per_second": speed,
        "seconds": seconds,
        "flop_per_picture": flop,
        "product_rate": rates,
        "loss": loss,
    }
    publish(figures, lines, parsed.json)


def _made_up(variant: made_up.Variant) -> Detector:
    arrays = made_up.weights(variant, base=64, classes=1600, attributes=400)
    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    rules = Rules(variant=variant, resize="factor" if variant == "caffe" else "pillow")
    return Detector(
        weights, rules, [str(n) for n in range(1600)], [str(n) for n in range(400)], "", "made up by a seed"
    )


def _ports(detector: Detector, precision: Any) -> VisualGenomeExtractor:
    with (
        mock.patch.object(network, "Convolution", PortsConvolution),
        mock.patch("imagebert.regions.vg.extractor.Network", PortsNetwork),
    ):
        return VisualGenomeExtractor(detector, boxes="36", precision=precision)


def _product_rate() -> float:
    """FLOP/s of a product of matrices as large as a layer of the last stage, in fp32: the faster one of what torch has,
    a product and a convolution of 1 x 1."""
    rows, depth, columns = 16 * 196, 2048, 2048
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = torch.randn(rows, depth, device=device), torch.randn(depth, columns, device=device)
    maps = a.view(16, 14, 14, depth).permute(0, 3, 1, 2)
    kernel = b.T.contiguous()[:, :, None, None].contiguous(memory_format=torch.channels_last)
    rates = []
    for work in (lambda: a @ b, lambda: torch.nn.functional.conv2d(maps, kernel)):
        for _ in range(4):
            begun = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            rates.append(2 * rows * depth * columns / (time.perf_counter() - begun))
    return max(rates)


def _flop(extractor: VisualGenomeExtractor, picture: Image.Image) -> int:
    with FlopCounterMode(display=False) as counter:
        extractor.detect([picture])
    return int(counter.get_total_flops())


def _loss(exact: list[Detections], others: list[Detections]) -> dict[str, float]:
    """Of all exact regions: the share of boxes found again at an IoU of 0.7 and more; of those, the share with the same
    class, and the mean cosine of features."""
    boxes, classes, cosines = [], [], []
    for one, other in zip(exact, others, strict=True):
        overlap, nearest = overlaps(one.boxes, other.boxes).max(dim=1)
        again = overlap >= 0.7
        boxes.append(again.float())
        classes.append((one.classes == other.classes[nearest])[again].float())
        cosines.append(torch.nn.functional.cosine_similarity(one.features, other.features[nearest])[again])
    return {
        "boxes": float(torch.cat(boxes).mean()),
        "classes": float(torch.cat(classes).mean()),
        "features": float(torch.cat(cosines).mean()),
    }


if __name__ == "__main__":
    main()
