"""What a bare `pip install` of the wheel must do. release.py runs it where nothing else is installed, as VERSION."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from collections import Counter
from importlib import metadata, resources
from pathlib import Path

BIN = Path(sys.executable).parent


def main(version: str) -> None:
    folder = Path(importlib.import_module("imagebert").__file__ or "").parent
    assert Path(sys.prefix) in folder.parents, folder
    check_metadata(version)
    print(f"{check_imports()}; {check_data()} recipes")
    check_forward()
    check_commands(version, folder)


def check_metadata(version: str) -> None:
    from packaging.metadata import Metadata

    told = Metadata.from_email(metadata.distribution("imagebert").read_text("METADATA") or "", validate=True)
    assert str(told.version) == version
    assert told.license_expression == "Apache-2.0"
    assert told.description_content_type == "text/markdown"
    assert {"data", "train", "extract", "search", "demo", "all"} <= set(told.provides_extra or ())


def check_imports() -> str:
    """Imports every module; one that fails has to lack what an extra brings."""
    from imagebert.extras import cure

    names, lacking = [], Counter[str]()
    for package in ("imagebert", "imagebert_kernels"):
        module = importlib.import_module(package)
        names += [found.name for found in pkgutil.walk_packages(module.__path__, f"{package}.", onerror=lambda _: None)]
    for name in names:
        if name.endswith("__main__"):
            continue
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if cure(error) is None:
                sys.exit(f"{name} needs {error.name}, which no extra brings: add it to setup.py")
            lacking[error.name or ""] += 1
    for name in ("imagebert.cli", "imagebert.model", "imagebert.batch", "imagebert.config", "imagebert_kernels"):
        assert name in sys.modules, name
    reasons = ", ".join(f"{count} for {name}" for name, count in lacking.most_common())
    return f"{len(names) - lacking.total()} of {len(names)} modules import; {reasons} wait for an extra"


def check_data() -> int:
    from imagebert.config import RECIPES, load_recipe

    recipes = sorted(RECIPES.glob("*.yaml"))
    for path in recipes:
        engine = load_recipe(path.stem).engine.deepspeed
        json.loads(resources.files("imagebert.ds_configs").joinpath(f"{engine}.json").read_text())
    return len(recipes)


def check_forward() -> None:
    """Two pairs of two regions and some words through a small model: packed together and alone, the same states."""
    import torch

    from imagebert.batch import PackedBatch
    from imagebert.model import ImageBertConfig, ImageBertModel

    def packed(texts: list[list[int]], features: torch.Tensor) -> PackedBatch:
        """[CLS] region region [SEP] words [SEP]; features [R, F]."""
        lengths = [len(text) + 5 for text in texts]
        ends = torch.tensor([0, *lengths]).cumsum(0)
        starts, rows, none = ends[:-1], torch.arange(int(ends[-1])), torch.zeros(0, dtype=torch.long)
        regions = torch.stack([starts + 1, starts + 2], 1).flatten()
        return PackedBatch(
            cu_seqlens=ends.int(),
            max_seqlen=max(lengths),
            real_pairs=len(texts),
            real_tokens=len(rows),
            position_ids=torch.cat([torch.tensor([0, 1, 1, *range(2, n - 1)]) for n in lengths]),
            token_type_ids=torch.cat([torch.tensor([0] * 4 + [1] * (n - 4)) for n in lengths]),
            text_rows=rows[~torch.isin(rows, regions)],
            input_ids=torch.tensor([word for text in texts for word in (2, 3, *text, 3)]),
            region_rows=regions,
            region_features=features,
            region_scales=torch.ones(len(features)),
            region_boxes=torch.tensor([[0.0, 0.0, 0.5, 0.5, 0.25]]).repeat(len(features), 1),
            region_zeroed=torch.zeros(len(features), dtype=torch.bool),
            global_regions=none,
            counts=torch.zeros(3),
            read_rows=starts,
            read_cu_seqlens=torch.arange(len(texts) + 1, dtype=torch.int32),
            cls_reads=torch.arange(len(texts)),
            **dict.fromkeys(("mlm_reads", "mlm_labels", "region_reads", "masked_regions", "moc_labels"), none),
            itm_labels=torch.ones(len(texts)),
        )

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = ImageBertModel(ImageBertConfig(vocab_size=20, feature_size=8, initializer_range=0.2, **sizes)).eval()
    texts, features = [[5, 6, 7], [8, 9]], torch.randn(4, 8)
    with torch.no_grad():
        both = model(packed(texts, features))
        alone = [model(packed([text], features[2 * i : 2 * i + 2])) for i, text in enumerate(texts)]
    assert both.shape == (15, 32)
    torch.testing.assert_close(both, torch.cat(alone))
    print(f"a forward pass with torch {torch.__version__}, Python {sys.version.split()[0]}")


def check_commands(version: str, folder: Path) -> None:
    code, printed, errors = call(BIN / "imagebert", "--version")
    assert (code, printed.split()[-1]) == (0, version), errors
    code, _, errors = call(BIN / "imagebert", "serve", "MODEL", "STORE")
    assert (code, "pip install 'imagebert[search]'" in errors) == (2, True), errors
    code, printed, errors = call(folder / "slurm/stage1.sh", "--force", "--dry-run", "--nodes", "2")
    assert (code, " imagebert pretrain stage1_lait " in printed) == (0, True), errors


def call(*command: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


if __name__ == "__main__":
    main(sys.argv[1])
