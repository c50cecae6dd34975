"""A model folder that is complete: weights, shape, words, what it is fed, how it was trained, and digests of all that.

    config.json, model.safetensors     shape and weights, as Hugging Face's `from_pretrained` reads them
    vocab.txt, tokenizer_config.json   the word pieces and how texts become them
    preprocessor_config.json           what of a pair is fed; region features, class names and the extractor
    training.json                      recipe, digests of the data, steps, version and commit
    README.md                          the model card: the same for people
    digests.json                       size and SHA-256 of each of these (files.py); those of weights, shape and words
                                       name the model

So a copy of the folder, on whatever machine, is fed as it was trained, and a changed byte of it is told. Folders of
before, or that other programs wrote, may lack some of it; that is said once.
"""

from __future__ import annotations

import logging
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from imagebert import __version__
from imagebert.config import load_recipe
from imagebert.data.corpus import Corpus
from imagebert.data.folder import publish
from imagebert.data.regions import RegionStore
from imagebert.errors import UsageError
from imagebert.feed.packer import Limits
from imagebert.files import (
    DIGESTS,
    check_digests,
    read_json,
    write_digests,
    write_json,
)
from imagebert.log import BY_RANK_0
from imagebert.model.card import model_digest, write_card
from imagebert.model.initialization import find_model

log = logging.getLogger(__name__)

_CURE = "restore the folder; if it was changed on purpose, `imagebert verify --accept` it"
_FILES = ("vocab.txt", "tokenizer_config.json", "preprocessor_config.json", "training.json")


class Processing(NamedTuple):
    """What stands between a pair and the model: a checkpoint keeps it as plain data, a model folder as files."""

    preprocessor: dict[str, Any]
    tokenizer: dict[str, Any]
    vocabulary: str


def processing_of(corpus: Corpus, limits: Limits) -> Processing:
    """That of a run."""
    store = corpus.stores[0]
    tokenizer = corpus.tokenizer
    return Processing(
        preprocessor={
            "processor_class": "ImageBertProcessor",
            "max_regions": limits.max_regions,
            "max_words": limits.max_words,
            "whole_image": limits.whole_image,
            "feature_size": corpus.feature_size,
            "feature_type": corpus.feature_type,
            "region_classes": corpus.classes,
            **({"region_attributes": corpus.attributes} if corpus.has_attributes else {}),
            "extractor": store.extractor,
        },
        tokenizer=tokenizer.described(limits.max_words),
        vocabulary=tokenizer.text,
    )


def write_model(
    model: PreTrainedModel,
    weights: dict[str, Tensor],
    processing: Processing,
    training: dict[str, Any],
    out: Path,
    wait: bool = False,
) -> None:
    """Writes a model folder, whole or not at all.

    Args:
        weights: float32, by the names of the model's parameters
        training: the recipe, data, steps and so on, as plain data
        wait: while another process writes `out`, instead of refusing

    Raises:
        UsageError: `out` is something else, or another process writes it.
        FloatingPointError: a weight is not finite.
        OSError: the disk is full or failing.
    """
    bad = [name for name, weight in weights.items() if not bool(torch.isfinite(weight).all())]
    if bad:
        raise FloatingPointError(f"{bad[0]} (one of {len(bad)} tensors) is not finite: {out} is not written")
    whole = type(model)(model.config)
    whole.load_state_dict(weights, strict=False)  # tied weights are listed once
    whole.tie_weights()
    disable_progress_bar()
    training = {**training, "version": __version__, "commit": commit()}
    with publish(out, "config.json", wait) as folder:
        try:
            whole.save_pretrained(folder)
        except OSError:
            raise
        except Exception as error:  # safetensors has an error of its own for a full disk
            raise OSError(f"{type(error).__name__}: {error}") from None
        (folder / "model.safetensors").chmod(0o644)  # as the others; safetensors makes it its owner's alone
        (folder / "vocab.txt").write_text(processing.vocabulary, encoding="utf-8")
        write_json(folder / "tokenizer_config.json", processing.tokenizer)
        write_json(folder / "preprocessor_config.json", processing.preprocessor)
        write_json(folder / "training.json", training)
        (folder / "README.md").write_text(
            write_card(type(whole).__name__, whole.config, processing.preprocessor, training), encoding="utf-8"
        )
        write_digests(folder)


@cache
def commit() -> str | None:
    """Of this source tree; None where it is installed without one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


class ModelFolder(NamedTuple):
    """A model folder that was compared with its digests."""

    path: Path
    digest: str  # of what scores follow from: weights, shape, words
    limits: Limits
    preprocessor: dict[str, Any]  # empty where the folder does not say
    training: dict[str, Any]  # likewise

    def note_differences(self, store: RegionStore, limits: Limits) -> None:
        """Says where it is fed otherwise than it was trained."""
        told = []
        for name in ("max_regions", "max_words", "whole_image"):
            if getattr(limits, name) != getattr(self.limits, name):
                told.append(f"{name} {getattr(limits, name)} instead of {getattr(self.limits, name)}")
        trained = self.preprocessor
        if trained:
            if store.feature_type != trained["feature_type"]:
                told.append(f"features as {store.feature_type} instead of {trained['feature_type']}")
            if store.classes != trained["region_classes"]:
                told.append(f"other region classes ({len(store.classes)} and {len(trained['region_classes'])})")
            named = trained.get("region_attributes", [])
            if store.attributes != named and named and store.attributes:
                told.append(f"other attributes ({len(store.attributes)} and {len(named)}, or in another order)")
            ours, theirs = (extractor.get("digest") for extractor in (store.extractor, trained["extractor"]))
            if ours != theirs:
                names = store.extractor.get("name"), trained["extractor"].get("name")
                told.append(f"regions of another extractor ({names[0]!r} instead of {names[1]!r})")
        if told:
            log.warning("%s is fed otherwise than it was trained: %s", self.path, "; ".join(told), extra=BY_RANK_0)


def is_whole(folder: Path) -> bool:
    """Whether there is a model folder with nothing missing or changed; what is wrong with one that is there is said."""
    if not (folder / "config.json").is_file():
        return False
    try:
        check_digests(folder)
    except UsageError as error:
        log.warning("%s is made anew: %s", folder, error)
        return False
    return True


def open_model(path: Path) -> ModelFolder:
    """A model folder, or the one of a finished run, checked byte for byte.

    Raises:
        UsageError: there is none, or it has changed since it was written.
        OSError: the disk fails.
    """
    folder = find_model(path)
    if not (folder / DIGESTS).is_file():
        return _of_before(folder)
    found = check_digests(folder, _CURE)
    missing = [name for name in _FILES if name not in found["files"]]
    preprocessor: dict[str, Any] = {}
    limits = _run_limits(folder)
    if "preprocessor_config.json" in found["files"]:
        preprocessor = read_json(folder / "preprocessor_config.json")
        limits = Limits(**{name: preprocessor[name] for name in ("max_regions", "max_words", "whole_image")})
    training = read_json(folder / "training.json") if "training.json" in found["files"] else {}
    if missing:
        log.warning("%s lacks %s: %s", folder, ", ".join(missing), _told(limits), extra=BY_RANK_0)
    return ModelFolder(folder, model_digest(folder, _CURE), limits, preprocessor, training)


def _of_before(folder: Path) -> ModelFolder:
    """A folder that was written before there were digests, or by another program."""
    limits = _run_limits(folder)
    log.warning(
        "%s was made by an older version, it lacks %s: %s; `imagebert verify --accept %s` adds what can be added",
        *(folder, ", ".join([*(name for name in _FILES if not (folder / name).is_file()), DIGESTS]), _told(limits)),
        folder,
        extra=BY_RANK_0,
    )
    return ModelFolder(folder, model_digest(folder), limits, {}, {})


def _told(limits: Limits) -> str:
    return f"it is fed {limits.max_regions} regions and {limits.max_words} words" + (
        ", the whole image among them" if limits.whole_image else ""
    )


def _run_limits(folder: Path) -> Limits:
    """What the run beside a model of before fed; the paper's 100 regions and 41 words where there is none."""
    if (folder.parent / "config.yaml").is_file():
        return Limits.of(load_recipe(str(folder.parent / "config.yaml")).data)
    return Limits(max_regions=100, max_words=41, whole_image=True)
