"""Runs one half over many models: python -m zoo.worker HALF SETTINGS FOLDER SECONDS COMMIT KIND:NAME ...

Every model runs in a process of its own, forked after the imports, with a limit of processor time, so that what else
the machine does decides nothing; each writes one JSON file, after every step, so that what had passed is known even of
a process that is killed.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import math
import multiprocessing
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Make = Callable[[str], tuple[nn.Module, tuple[Tensor, ...]]]
HANGS = 10  # times the limit: so long may a process take by the clock


def record_path(folder: Path, half: str, model: str, setting: str) -> Path:
    """Where the record of one model at one setting of a half lies."""
    return folder / f"{half}.{model.replace(':', '.')}.{setting}.json"


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record at once, or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1), encoding="utf-8")
    part.replace(path)


def make_model(model: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build a model of the zoo by KIND:NAME."""
    kind, _, name = model.partition(":")
    module, inputs = importlib.import_module(f"zoo.{kind}_models").make(name)
    return module, inputs


def run_one(half: str, model: str, setting: str, path: Path, commit: str, make: Make = make_model) -> None:
    """Measure one model at one setting, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.perf_counter()
    record: dict[str, Any] = {"half": half, "model": model, "setting": setting, "commit": commit}

    def save(current: dict[str, Any]) -> None:
        current["wall seconds"] = round(time.perf_counter() - start, 1)
        write_record(path, current)

    tried = importlib.import_module(f"zoo.half_{half}")
    save(record | {"columns": dict.fromkeys(tried.COLUMNS, "the model could not be made")})
    module, inputs = make(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried.measure(module, inputs, setting=setting, record=record, save=save)
    record["ended"] = True
    save(record)


def run_many(
    half: str,
    models: Sequence[str],
    folder: Path,
    *,
    settings: Sequence[str],
    limit: float,
    commit: str,
    make: Make = make_model,
) -> None:
    """Measure models one by one, each setting in a process of its own, telling how far it is."""
    context = multiprocessing.get_context("fork")
    start = time.perf_counter()
    for at, model in enumerate(models):
        shown = []
        for setting in settings:
            path = record_path(folder, half, model, setting)
            path.unlink(missing_ok=True)
            process = context.Process(target=_quietly, args=(half, model, setting, path, commit, make, limit))
            process.start()
            process.join(HANGS * limit)
            if process.is_alive():
                process.kill()
                process.join()
            shown.append(
                _closed(path, half, model, setting, commit, f"exit code {process.exitcode}, limit {limit:g} CPU s")
            )
            # What does not end hangs before its setting matters: the rival walks the same dependencies for each.
            if "died" in shown[-1] or all(value is True for value in shown[-1]["columns"].values()):
                break
        good = max(sum(value is True for value in record["columns"].values()) for record in shown)
        left = (time.perf_counter() - start) / (at + 1) * (len(models) - at - 1) / 60
        columns = len(shown[0]["columns"])
        print(f"[{at + 1}/{len(models)}] {half} {model}: {good} of {columns}; about {left:.0f} min left", flush=True)


def _closed(path: Path, half: str, model: str, setting: str, commit: str, end: str) -> dict[str, Any]:
    """The record of a process that has ended; one that did not come to its end says so."""
    columns = dict.fromkeys(importlib.import_module(f"zoo.half_{half}").COLUMNS, "not reached")
    empty = {"half": half, "model": model, "setting": setting, "commit": commit, "columns": columns}
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty
    if not record.get("ended"):
        log = path.with_suffix(".log")
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
        record["died"] = f"{end}: {' '.join(said[-1:])[:500]}"
        write_record(path, record)
    return record


def _quietly(half: str, model: str, setting: str, path: Path, commit: str, make: Make, limit: float) -> None:
    # What exporters and the rival print goes into a file beside the record.
    with path.with_suffix(".log").open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        faulthandler.register(signal.SIGXCPU, file=log, chain=True)  # tells where it was when its time was up
        faulthandler.dump_traceback_later(0.95 * HANGS * limit, file=log)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), resource.RLIM_INFINITY))
        run_one(half, model, setting, path, commit, make)


def main(arguments: Sequence[str]) -> None:
    """Import once what every model needs, then run them."""
    half, settings, folder, limit, commit, *models = arguments
    warnings.simplefilter("ignore")
    for needed in {model.partition(":")[0] for model in models}:
        importlib.import_module(f"zoo.{needed}_models").warm_up()
    importlib.import_module(f"zoo.half_{half}").warm_up()
    run_many(half, models, Path(folder), settings=settings.split(","), limit=float(limit), commit=commit)


if __name__ == "__main__":
    main(sys.argv[1:])
