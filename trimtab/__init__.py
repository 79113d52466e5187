"""trimtab: bring a model; get back the cheapest version that keeps what must stay true, with the proof.

>>> import trimtab as tt
>>> tt.Goal("latency_ms", keep=0.99).keep
0.99
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.artifact import Loaded, Saved, load, save
    from trimtab.compress.allocate import Budget
    from trimtab.compress.blocks import DropBlocks
    from trimtab.compress.distill import Distill
    from trimtab.compress.dynamic import Dynamic
    from trimtab.compress.factorize import Factorize
    from trimtab.compress.finetune import FineTune
    from trimtab.compress.palette import Palette
    from trimtab.compress.prune import Prune
    from trimtab.compress.qat import QAT
    from trimtab.compress.quantize import Quantize
    from trimtab.compress.sharing import ShareBlocks
    from trimtab.compress.sparsify import Sparsify
    from trimtab.compress.weightonly import WeightOnly
    from trimtab.core import (
        Artifact,
        Bound,
        Drop,
        Fit,
        Goal,
        Measurement,
        Metric,
        Ratio,
        Recipe,
        Split,
        Target,
        Task,
        Tools,
        Verdict,
    )
    from trimtab.diagnose.machine import doctor
    from trimtab.errors import TrimtabError
    from trimtab.graph.capture import capture
    from trimtab.graph.rebuild import as_module
    from trimtab.pipeline import optimize
    from trimtab.train.integers import integer_weights_
    from trimtab.train.loop import fit, score, training

# name -> where it lives; what is asked for is imported, and nothing else
FRONT_DOOR = {
    "Artifact": "core",
    "Bound": "core",
    "Budget": "compress.allocate",
    "Distill": "compress.distill",
    "Drop": "core",
    "DropBlocks": "compress.blocks",
    "Dynamic": "compress.dynamic",
    "Factorize": "compress.factorize",
    "FineTune": "compress.finetune",
    "Fit": "core",
    "Goal": "core",
    "Loaded": "artifact",
    "Measurement": "core",
    "Metric": "core",
    "Palette": "compress.palette",
    "Prune": "compress.prune",
    "QAT": "compress.qat",
    "Quantize": "compress.quantize",
    "Ratio": "core",
    "Recipe": "core",
    "Saved": "artifact",
    "ShareBlocks": "compress.sharing",
    "Sparsify": "compress.sparsify",
    "Split": "core",
    "Target": "core",
    "Task": "core",
    "Tools": "core",
    "TrimtabError": "errors",
    "Verdict": "core",
    "WeightOnly": "compress.weightonly",
    "as_module": "graph.rebuild",
    "capture": "graph.capture",
    "doctor": "diagnose.machine",
    "fit": "train.loop",
    "integer_weights_": "train.integers",
    "load": "artifact",
    "optimize": "pipeline",
    "save": "artifact",
    "score": "train.loop",
    "training": "train.loop",
}

__all__ = [  # noqa: RUF022 - in plain order, also where a name is an abbreviation
    "Artifact",
    "Bound",
    "Budget",
    "Distill",
    "Drop",
    "DropBlocks",
    "Dynamic",
    "Factorize",
    "FineTune",
    "Fit",
    "Goal",
    "Loaded",
    "Measurement",
    "Metric",
    "Palette",
    "Prune",
    "QAT",
    "Quantize",
    "Ratio",
    "Recipe",
    "Saved",
    "ShareBlocks",
    "Sparsify",
    "Split",
    "Target",
    "Task",
    "Tools",
    "TrimtabError",
    "Verdict",
    "WeightOnly",
    "as_module",
    "capture",
    "doctor",
    "fit",
    "integer_weights_",
    "load",
    "optimize",
    "save",
    "score",
    "training",
]


def __getattr__(name: str) -> Any:
    if name not in FRONT_DOOR:
        raise AttributeError(f"module 'trimtab' has no attribute {name!r}")
    return getattr(import_module(f"trimtab.{FRONT_DOOR[name]}"), name)


def __dir__() -> list[str]:
    return __all__
