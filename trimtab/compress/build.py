"""From a recipe to a graph, method by method.

Each stage is committed as it ends, and shared by the recipes that begin alike.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import cattrs
from torch import nn
from torch.fx import GraphModule

from trimtab.compress.order import refuse_order
from trimtab.compress.parts import Parts
from trimtab.core import Method, Plan, Recipe, Skip, Task, Tools
from trimtab.files import read_json, write_json
from trimtab.graph.save import load_graph, save_graph
from trimtab.tasks.check import fingerprint_weights
from trimtab.train.further import learned_of

OnceFolder = Callable[[str, Callable[[Path], Any]], Path]
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Stage:
    """What one method did: its settings and its plan as data, and the seconds it took."""

    method: str
    settings: dict[str, Any]
    plan: dict[str, Any]
    skipped: tuple[Skip, ...]
    seconds: float


@dataclass(frozen=True)
class Built:
    """The graph that a recipe gave, the folder that keeps it, and its stages in order."""

    graph: GraphModule
    folder: Path
    stages: tuple[Stage, ...]


def build(recipe: Recipe, original: Built, task: Task, *, once_folder: OnceFolder, tools: Tools) -> Built:
    """Apply `recipe` to the original; stages that ended before are read.

    Args:
        recipe: its methods are applied in order.
        original: the captured model, which learning methods learn from.
        task: gives the data.
        once_folder: (name, make) -> folder; makes and commits what has not ended yet.
        tools: told of progress; its folder holds the checkpoints of stages under way.

    Raises:
        PlanError: a method refuses, or the order of the recipe cannot work.
    """
    refuse_order(recipe)
    if not recipe.methods:
        return original
    folder, stages = _made(recipe, original, task, once_folder, tools)
    return Built(load_graph(folder), folder, stages)


def _made(
    recipe: Recipe, original: Built, task: Task, once_folder: OnceFolder, tools: Tools
) -> tuple[Path, tuple[Stage, ...]]:
    """The folder of the recipe's graph, and its stages. No graph is loaded that nothing is made from."""
    if not recipe.methods:
        return original.folder, original.stages
    stem = Recipe(recipe.methods[:-1])
    stem_folder, stages = _made(stem, original, task, once_folder, tools)
    method = recipe.methods[-1]
    name = key(recipe)
    work = f"{tools.folder}/{name}" if tools.folder else None

    def make(folder: Path) -> None:
        given = load_graph(stem_folder) if stem.methods else original.graph
        started = time.perf_counter()
        own = replace(tools, task=task, original=original.graph, folder=work)
        plan = _planned(method, given, task, own)
        graph = method.apply(given, plan, own)
        learned = learned_of(graph)
        stage = Stage(
            method.name,
            settings_of(method),
            cattrs.unstructure(plan) | ({"learned": cattrs.unstructure(learned)} if learned else {}),
            (*plan.skipped, *((Skip(method.name, learned.why_undone()),) if learned and not learned.kept else ())),
            time.perf_counter() - started,
        )
        save_graph(graph, folder)
        write_json(folder / PLAN_FILE, cattrs.unstructure(stage))

    folder = once_folder(f"built/{name}", make)
    if work:
        shutil.rmtree(work, ignore_errors=True)  # its checkpoints: the stage has ended
    return folder, (*stages, cattrs.structure(read_json(folder / PLAN_FILE), Stage))


def _planned(method: Method, graph: GraphModule, task: Task, tools: Tools) -> Plan:
    """The method's plan: read if a process that was killed had ended it. Those that plan long take `tools` for it."""
    long = "tools" in inspect.signature(method.plan).parameters
    make = partial(method.plan, graph, task, **({"tools": tools} if long else {}))
    try:
        kind = get_type_hints(method.plan).get("return")
    except (NameError, TypeError):  # somebody's own method, which says nothing that can be looked up
        kind = None
    if tools.folder is None or kind is None:
        return make()
    return Parts(Path(tools.folder)).value("plan", make, kind)


def key(recipe: Recipe) -> str:
    """A file name for the recipe: readable, and different for different settings."""
    settings = json.dumps([[type(m).__name__, settings_of(m)] for m in recipe.methods], sort_keys=True)
    words = re.sub(r"[^a-z0-9.]+", "-", recipe.name.lower()).strip("-")
    return f"{words}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def settings_of(method: Any) -> dict[str, Any]:
    """The method's fields as JSON values; a model among them as the hash of its weights."""
    values = cattrs.unstructure(method)
    return {
        name: fingerprint_weights(value, values=True) if isinstance(value, nn.Module) else value
        for name, value in values.items()
    }
