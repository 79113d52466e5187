"""Coverage of structured pruning: every architecture family of timm, and transformers' classes from tiny configs.

    scripts/bench prune_zoo [--only NAME ...] [--rival] [--quick] [--failed]

Each model is captured, 30 % of the channels or heads of every group are cut, and the result has to be exact against the
masked original, train one step, reload bit-exact and run in ONNX Runtime. The same list goes through Torch-Pruning in
an environment of its own. Every model runs in a process of its own, and leaves a record under build/prune_zoo, so a run
that was stopped goes on where it was. On two cores about an hour and a half each half, and 3 GB for the environments.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from zoo import hf_models, timm_models
from zoo.earlier import read_earlier
from zoo.envs import ALONE, COMMON, MODELS, ROOT, TORCH, python_of
from zoo.table import OURS, Record, all_passed, failures, finished, passed, read_records, reasons, rows, totals

from trimtab.measure.machine import stamp

# The settings of each half; the best one counts.
HALVES = {"trimtab": ("full",), "torch_pruning": ("plain", "head_dims", "heads")}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, default=Path("build/envs"), help="where the environments are kept")
    parser.add_argument("--work", type=Path, default=Path("build/prune_zoo"), help="where the records are kept")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="these models, e.g. timm:resnet18 or bert"
    )
    parser.add_argument("--rival", action="store_true", help="Torch-Pruning's half instead of trimtab's")
    parser.add_argument("--quick", action="store_true", help="trimtab's half without reloading and ONNX Runtime")
    parser.add_argument("--failed", action="store_true", help="again what has not passed every column")
    parser.add_argument("--limit", type=float, default=100, help="CPU seconds per model and setting")
    parser.add_argument("--table", type=Path, help="write the results of both halves into this file, run nothing")
    parser.add_argument("--earlier", type=Path, help="an earlier results file, for models without a record of today")
    parser.add_argument("--failures", type=Path, help="also write what failed, at length, into this file")
    return parser.parse_args(given)


def all_models() -> list[str]:
    """KIND:NAME of every model."""
    return [*(f"timm:{name}" for name in timm_models.names()), *(f"hf:{name}" for name in hf_models.names())]


def wanted(models: Sequence[str], only: Sequence[str]) -> list[str]:
    """Those that were asked for, by KIND:NAME or NAME."""
    chosen = [model for model in models if model in only or model.partition(":")[2] in only]
    unknown = set(only) - set(chosen) - {model.partition(":")[2] for model in chosen}
    if unknown:
        raise SystemExit(f"No such model: {', '.join(sorted(unknown))}. The lists are in benchmarks/zoo.")
    return chosen


def commit() -> str:
    got = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return got.stdout.strip()


def run(half: str, models: Sequence[str], settings: argparse.Namespace) -> None:
    """Run a half over `models` in its own environment."""
    python = python_of(settings.envs.resolve(), half)
    settings.work.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks")))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    tried = "quick" if settings.quick else ",".join(HALVES[half])
    given = [half, tried, str(settings.work.resolve()), str(settings.limit), commit()]
    subprocess.run([str(python), "-m", "zoo.worker", *given, *models], env=environment, check=True)


def write_failures(settings: argparse.Namespace, half: str) -> None:
    """What fails now, with long texts."""
    records = read_records(settings.work, half)
    lines = failures(records, list(records), longest=2000)
    head = f"# What fails now ({half}): {len([line for line in lines if line != 'None.'])} of {len(records)}"
    settings.failures.write_text("\n".join([head, "", *lines, ""]), encoding="utf-8")


def _head(ours: dict[str, Record], theirs: dict[str, Record], models: Sequence[str]) -> list[str]:
    num_exported = sum(passed(record, "exports") for record in ours.values())
    num_whole = sum(all_passed(record, OURS) for record in ours.values())
    num_late = sum("died" in record for record in theirs.values())
    machine = stamp()
    commits = ", ".join(sorted({record["commit"] for record in ours.values()})) or "none"
    packages = ", ".join(part.replace("==", " ") for part in (TORCH, *COMMON, *MODELS, *ALONE["torch_pruning"]))
    return [
        "# Coverage of structured pruning",
        "",
        f"{len(models)} models with random weights, 30 % of the channels or heads of every group cut. Both have the",
        "same limit of processor time.",
        "",
        f"* trimtab tried {len(ours)}: torch.export captures {num_exported}, and {num_whole} pass every column.",
        f"* Torch-Pruning tried {len(theirs)}, at three settings (`benchmarks/zoo/half_torch_pruning.py`): the best",
        f"  one counts, none is tried after one that did not end. {num_late} models ran out of time or died.",
        "",
        "Made by `scripts/bench prune_zoo`.",
        *_earlier(ours, theirs),
        "",
        f"{machine['cpu']}, {machine['cores']} cores, 1 thread; Python {machine['python']}; {packages};",
        f"commit {commits}; {time.strftime('%Y-%m-%d')}.",
        "",
        "## Of the models that export",
        "",
    ]


def _earlier(ours: dict[str, Record], theirs: dict[str, Record]) -> list[str]:
    """What was not measured now, and where it comes from."""
    lines = []
    for half, records in (("trimtab", ours), ("Torch-Pruning", theirs)):
        taken = [record for record in records.values() if "earlier" in record]
        if taken:
            source = taken[0]["earlier"]
            lines.append(f"{len(taken)} rows of {half} are of an earlier run on another machine, {source}.")
    return ["", *lines] if lines else []


def write_table(settings: argparse.Namespace, models: Sequence[str]) -> None:
    """The results file."""
    earlier = read_earlier(settings.earlier) if settings.earlier else {}
    ours, theirs = (
        earlier.get(half, {})
        | {model: record for model, record in read_records(settings.work, half).items() if finished(record)}
        for half in HALVES
    )
    text = [
        *_head(ours, theirs, models),
        *totals(ours, theirs, models),
        "",
        "Each row counts for itself: a model that could not be cut may still run and train.",
        "",
        "## Every model",
        "",
        *rows(ours, theirs, models),
        "",
        "MACs: multiply-accumulates of one sample, by trimtab's count on its graph; for Torch-Pruning as PyTorch",
        "counts them, without recurrent layers.",
        "",
        "## What was left whole, and why",
        "",
        *reasons(ours, models),
        "",
        "## What failed in trimtab",
        "",
        *failures(ours, models),
        "",
        "## What failed in Torch-Pruning, at its best setting",
        "",
        *failures(theirs, models),
        "",
    ]
    settings.table.write_text("\n".join(text), encoding="utf-8")


def main(given: Sequence[str] | None = None) -> None:
    settings = arguments(given)
    models = wanted(all_models(), settings.only) if settings.only else all_models()
    if settings.table:
        write_table(settings, models)
        return
    half = "torch_pruning" if settings.rival else "trimtab"
    known = read_records(settings.work, half)
    done = {model for model, record in known.items() if finished(record)}
    if settings.failed:
        done = {model for model in done if all_passed(known[model])}
    again = settings.only and not settings.failed
    left = [model for model in models if model not in done or again]
    if left:
        run(half, left, settings)
    if settings.failures:
        write_failures(settings, half)
    records = read_records(settings.work, half)
    good = sum(all_passed(record) for record in records.values())
    print(f"{half}: {good} of {len(records)} models pass every column")


if __name__ == "__main__":
    main()
