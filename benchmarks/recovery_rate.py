"""Whether the rate that recovery finds by itself is a good one: each rate trained to its end, beside the one found.

    scripts/bench recovery_rate

FashionNet, cut in five ways, learns its original's answers for two epochs of 3,000 pictures by `Distill`, once at each
rate and once at the one that it finds (`trimtab/train/further.py`). Judged by what it learns, the divergence from the
original's answers, on 2,000 pictures that no recovery was trained or chosen by; the original had learned them. What
ended is kept in build/recovery_rate. Writes benchmarks/results/recovery_rate_cpu_DATE.md. Ten minutes of a core.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trimtab.compress.distill import Distill
from trimtab.compress.factorize import Factorize
from trimtab.compress.objectives import Logits
from trimtab.compress.prune import Prune
from trimtab.core import Fit, Method, Split, Task, Tools
from trimtab.files import read_json, write_json
from trimtab.graph.capture import capture
from trimtab.measure.machine import stamp
from trimtab.tasks.fashion import fashion
from trimtab.train.further import HIGHER, RATES, learned_of
from trimtab.train.loop import fit, predict

ROOT = Path(__file__).parents[1]
EPOCHS, NUM_TRAIN, NUM_SELECT, JUDGED = 2, 3000, 1000, slice(6000, 8000)
LADDER = (*HIGHER[::-1], *RATES)
CUTS: dict[str, tuple[Method, ...]] = {
    "three quarters of the channels": (Prune(0.75, importance="obs"),),
    "the same, where outputs move least": (Prune(0.75, importance="obs", allocation="measured"),),
    "half, where outputs move least": (Prune(0.5, importance="obs", allocation="measured"),),
    "low rank, half of the MACs": (Factorize(macs=0.5, weighted=True),),
    "a quarter, then low rank": (Prune(0.25, importance="obs"), Factorize(macs=0.5, weighted=True)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "recovery_rate", help="where what ended is kept")
    given = parser.parse_args()
    torch.set_num_threads(1)
    module, task = fashion()
    fitted = dataclasses.replace(task.fit or Fit(), precision="fp32")
    original = capture(fit(module, task, fitted), task.train.batch(slice(0, 2)).inputs)
    judged = task.train.batch(JUDGED)
    few = dataclasses.replace(
        task,
        train=task.train.batch(slice(0, NUM_TRAIN)),
        select=task.select.batch(slice(0, NUM_SELECT)),
        fit=fitted,
    )
    rows = [row_of(given.work / f"{at}.json", name, original, few, judged) for at, name in enumerate(CUTS)]
    out = ROOT / "benchmarks" / "results" / f"recovery_rate_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(report(rows)) + "\n")
    print(out)


def row_of(file: Path, name: str, original: Any, task: Task, judged: Split) -> dict[str, Any]:
    """A cut: its divergence before, at each rate, and at the one that was found."""
    if not file.exists():
        cut, tools = original, Tools(task=task, original=original)
        for method in CUTS[name]:
            cut = method.apply(cut, method.plan(cut, task), tools)

        def taught(lr: float | None) -> nn.Module:
            method = Distill(epochs=EPOCHS, lr=lr)
            return method.apply(cut, method.plan(cut, task), tools)

        at_rates = {f"{lr:g}": divergence(taught(lr), original, judged) for lr in LADDER}
        found = taught(None)
        told = learned_of(found)
        assert told is not None
        row = {"cut": name, "before": divergence(cut, original, judged), "rates": at_rates}
        write_json(
            file,
            row
            | {"found": told.lr, "kept": told.kept, "tried": told.tried, "after": divergence(found, original, judged)},
        )
        print(read_json(file), flush=True)
    return read_json(file)  # type: ignore[no-any-return]


def divergence(model: nn.Module, original: nn.Module, judged: Split) -> float:
    """What `Distill` learns by, as a mean over samples: the soft answers' divergence."""
    said, wanted = (predict(one, judged.inputs) for one in (model, original))
    return float(Logits().loss(said, wanted))


def report(rows: list[dict[str, Any]]) -> list[str]:
    """A row a cut, its best rate in bold."""
    lines = [
        "# The rate that recovery finds by itself",
        "",
        f"{stamp()['cpu']}, one thread, other work beside it; torch {torch.__version__}. Made by `scripts/bench "
        "recovery_rate`. "
        f"Divergence from the original's answers on {JUDGED.stop - JUDGED.start:,} pictures that no recovery was "
        f"trained or chosen by (the original had learned them), after {EPOCHS} epochs of "
        f"{NUM_TRAIN:,}; less is better. One seed.",
        "",
        f"| cut | before | {' | '.join(f'{lr:g}' for lr in LADDER)} | found | after |",
        f"|{'---|' * (len(LADDER) + 4)}",
    ]
    for row in rows:
        least = min(row["rates"].values())
        cells = [f"**{own:.4f}**" if own == least else f"{own:.4f}" for own in row["rates"].values()]
        after = f"{row['after']:.4f}" + ("" if row["kept"] else ", undone")
        lines.append(f"| {row['cut']} | {row['before']:.4f} | {' | '.join(cells)} | {row['found']:g} | {after} |")
    hit = sum(row["rates"][f"{row['found']:g}"] == min(row["rates"].values()) for row in rows)
    return [*lines, "", f"The rate that was found is the best of the {len(LADDER)} for {hit} of {len(rows)} cuts."]


if __name__ == "__main__":
    main()
