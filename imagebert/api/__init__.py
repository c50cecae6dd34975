"""Offers all that this program does as functions of Python values, which the command line and a notebook call.

    from imagebert import api

    api.pairs("captions.json", "data/coco/pairs", "bert-base-uncased", regions=["data/coco/regions"])
    trained = api.finetune("finetune_coco", {"schedule.steps": 1000})
    api.evaluate(trained.folder, api.dataset("coco1k")).figures["rsum"]

Paths are text or os.PathLike. None stands for what the model, the run or the recipe says. Each function returns what it
found or made, and prints nothing but progress. A call that is wrong raises UsageError, whose one sentence says what to
do; a disk, a machine or another rank that fails raises OSError. Under a launcher (srun, torchrun, mpirun) all ranks
make the same call and share the work of pretrain, finetune, evaluate, mine, index, ladder, extract, import_features,
merge, split, quantize, doctor and the steps of LAIT; figures are rank 0's. Functions are imported when they are first
asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagebert.api.data import CaptionOptions as CaptionOptions
    from imagebert.api.data import Columns as Columns
    from imagebert.api.data import Features as Features
    from imagebert.api.data import Paired as Paired
    from imagebert.api.data import accept as accept
    from imagebert.api.data import extract as extract
    from imagebert.api.data import formats as formats
    from imagebert.api.data import import_features as import_features
    from imagebert.api.data import pairs as pairs
    from imagebert.api.data import preview_regions as preview_regions
    from imagebert.api.data import survey_features as survey_features
    from imagebert.api.data import verify as verify
    from imagebert.api.detectors import Checked as Checked
    from imagebert.api.detectors import Converted as Converted
    from imagebert.api.detectors import VisualGenome as VisualGenome
    from imagebert.api.detectors import check_detector as check_detector
    from imagebert.api.detectors import convert_detector as convert_detector
    from imagebert.api.lait import LaitOptions as LaitOptions
    from imagebert.api.lait import LaitPlan as LaitPlan
    from imagebert.api.lait import LaitStep as LaitStep
    from imagebert.api.lait import lait_build as lait_build
    from imagebert.api.lait import lait_fetch as lait_fetch
    from imagebert.api.lait import lait_filter as lait_filter
    from imagebert.api.lait import lait_pages as lait_pages
    from imagebert.api.lait import lait_pairs as lait_pairs
    from imagebert.api.lait import lait_plan as lait_plan
    from imagebert.api.lait import lait_report as lait_report
    from imagebert.api.lait import lait_sample as lait_sample
    from imagebert.api.lait import lait_score as lait_score
    from imagebert.api.lait import lait_train_scorer as lait_train_scorer
    from imagebert.api.planning import Cluster as Cluster
    from imagebert.api.planning import ClusterEstimate as ClusterEstimate
    from imagebert.api.planning import Schedule as Schedule
    from imagebert.api.planning import Told as Told
    from imagebert.api.planning import plan as plan
    from imagebert.api.planning import plan_evaluation as plan_evaluation
    from imagebert.api.retrieval import Data as Data
    from imagebert.api.retrieval import Evaluated as Evaluated
    from imagebert.api.retrieval import Indexed as Indexed
    from imagebert.api.retrieval import Mined as Mined
    from imagebert.api.retrieval import Searched as Searched
    from imagebert.api.retrieval import compare as compare
    from imagebert.api.retrieval import dataset as dataset
    from imagebert.api.retrieval import evaluate as evaluate
    from imagebert.api.retrieval import index as index
    from imagebert.api.retrieval import mine as mine
    from imagebert.api.retrieval import recount as recount
    from imagebert.api.retrieval import search as search
    from imagebert.api.retrieval import serve as serve
    from imagebert.api.stores import Localised as Localised
    from imagebert.api.stores import Quantized as Quantized
    from imagebert.api.stores import StoreOptions as StoreOptions
    from imagebert.api.stores import inspect as inspect
    from imagebert.api.stores import keys as keys
    from imagebert.api.stores import localise as localise
    from imagebert.api.stores import merge as merge
    from imagebert.api.stores import quantize as quantize
    from imagebert.api.stores import split as split
    from imagebert.api.train import Exported as Exported
    from imagebert.api.train import Trained as Trained
    from imagebert.api.train import demo as demo
    from imagebert.api.train import doctor as doctor
    from imagebert.api.train import doctor_on_paper as doctor_on_paper
    from imagebert.api.train import export as export
    from imagebert.api.train import finetune as finetune
    from imagebert.api.train import ladder as ladder
    from imagebert.api.train import ladder_tables as ladder_tables
    from imagebert.api.train import ladders as ladders
    from imagebert.api.train import onnx as onnx
    from imagebert.api.train import pretrain as pretrain
    from imagebert.api.train import recipe as recipe
    from imagebert.api.train import recipes as recipes
    from imagebert.api.train import report as report

_MODULES = {
    "data": (
        *(
            "CaptionOptions",
            "Columns",
            "Features",
            "Paired",
            "accept",
            "extract",
            "formats",
            "import_features",
            "pairs",
        ),
        *("preview_regions", "survey_features", "verify"),
    ),
    "detectors": ("Checked", "Converted", "VisualGenome", "check_detector", "convert_detector"),
    "lait": (
        *(
            "LaitOptions",
            "LaitPlan",
            "LaitStep",
            "lait_build",
            "lait_fetch",
            "lait_filter",
            "lait_pages",
            "lait_pairs",
            "lait_plan",
        ),
        *("lait_report", "lait_sample", "lait_score", "lait_train_scorer"),
    ),
    "planning": ("Cluster", "ClusterEstimate", "Schedule", "Told", "plan", "plan_evaluation"),
    "retrieval": (
        *("Data", "Evaluated", "Indexed", "Mined", "Searched", "compare", "dataset", "evaluate", "index", "mine"),
        *("recount", "search", "serve"),
    ),
    "stores": ("Localised", "Quantized", "StoreOptions", "inspect", "keys", "localise", "merge", "quantize", "split"),
    "train": (
        *("Exported", "Trained", "demo", "doctor", "doctor_on_paper", "export", "finetune", "ladder"),
        *("ladder_tables", "ladders", "onnx", "pretrain", "recipe", "recipes", "report"),
    ),
}
# Names of the version before; they work in this one.
_RENAMED = {"Plan": "ClusterEstimate", "Staged": "Localised", "stage": "localise"}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        from imagebert.renamed import warn_renamed

        warn_renamed(f"imagebert.api.{name}", f"imagebert.api.{_RENAMED[name]}")
        name = _RENAMED[name]
    if name not in _MODULE_OF:
        raise AttributeError(f"imagebert.api has no {name!r}: it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"imagebert.api.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
