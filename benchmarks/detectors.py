"""What a picture costs with each detector that docs/extract.md names: parameters, GFLOP, seconds on a CPU.

    python -m benchmarks.detectors [--pictures 5] [--threads 1] [--json FILE]

Published weights are not needed: a seed makes those of the base configurations, in transformers' own classes, and they
are saved, described and run as a user's are, from the picture to its record. GFLOP count a product and its sum as two.
The Visual Genome detector stands beside them. Nothing is downloaded. Detectors take turns, and what counts is the least
time of a processor: on a machine that does something else beside, the clock says more.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    DFineConfig,
    DFineForObjectDetection,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
)

from benchmarks import made_up
from benchmarks.extract import _made_up
from benchmarks.report import publish
from imagebert.regions.extractor import DetectorExtractor, Extractor
from imagebert.regions.vg.extractor import VisualGenomeExtractor

SIZE = (640, 480)  # width, height: most of COCO's pictures


def _detr() -> DetrForObjectDetection:
    backbone = ResNetConfig(out_features=["stage4"])
    return DetrForObjectDetection(DetrConfig(use_timm_backbone=False, backbone_config=backbone))


MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "DETR, ResNet-50": (_detr, DetrImageProcessorPil),
    "RT-DETR, ResNet-50": (lambda: RTDetrForObjectDetection(RTDetrConfig()), RTDetrImageProcessorPil),
    "D-FINE-L, HGNetV2": (lambda: DFineForObjectDetection(DFineConfig()), RTDetrImageProcessorPil),
}


def extractors(folder: Path) -> Iterator[tuple[str, Extractor, int]]:
    """Each with its name and the number of its parameters."""
    for number, (name, (model, processor)) in enumerate(MODELS.items()):
        torch.manual_seed(0)
        made, place = model(), folder / str(number)
        made.save_pretrained(place)
        processor().save_pretrained(place)
        description = place / "extractor.yaml"
        description.write_text(f"name: {name}\ndetector: {{transformers: {place}, confidence: 0}}\nmax_regions: 36\n")
        yield name, DetectorExtractor(description), sum(weight.numel() for weight in made.parameters())
    detector = _made_up("detectron2")
    counted = sum(weight.numel() for weight in detector.weights.values())
    yield "Visual Genome, ResNet-101-C4", VisualGenomeExtractor(detector, boxes="36"), counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=5, metavar="N", help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of a CPU (%(default)s)")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    pictures = [Image.fromarray(made_up.picture("odd", seed=n)).resize(SIZE) for n in range(parsed.pictures)]
    figures: dict[str, Any] = {}
    seen: dict[str, Extractor] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, extractor, parameters in extractors(Path(folder)):
            with FlopCounterMode(display=False) as counter:
                record = extractor(pictures[0])
            figures[name] = {
                "parameters": parameters,
                "flop": counter.get_total_flops(),
                "feature_size": record.features.shape[1],
                "seconds": [],
                "processor_seconds": [],
            }
            seen[name] = extractor
    for picture in pictures:
        for name, extractor in seen.items():
            begun = time.perf_counter(), time.process_time()
            extractor(picture)
            figures[name]["seconds"].append(time.perf_counter() - begun[0])
            figures[name]["processor_seconds"].append(time.process_time() - begun[1])
    table = Table("detector", "parameters, M", "GFLOP a picture", "processor seconds a picture", "a vector has")
    for name, row in figures.items():
        cells = f"{row['parameters'] / 1e6:.1f}", f"{row['flop'] / 1e9:.0f}", f"{min(row['processor_seconds']):.2f}"
        table.add_row(name, *cells, str(row["feature_size"]))
    Console().print(table)
    publish({"picture": list(SIZE), "detectors": figures}, [], parsed.json)


if __name__ == "__main__":
    main()
