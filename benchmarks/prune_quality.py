"""Test accuracy against the share of channels cut, for every importance, with and without recovery, beside a peer.

    scripts/bench prune_quality --peer PEER_VENV/bin/python

Two nets are trained on the built-in Fashion-MNIST by each of five seeds, cut at four ratios by every importance and by
Torch-Pruning, judged, trained further for one epoch (all by the same loop, data, order and learning rate) and judged
again. Cells that ended are kept in build/prune_quality and not run again; one process, one thread. Writes
benchmarks/results/prune_quality_cpu_DATE.md and docs/benchmarks/prune_quality.{md,svg}. The peer's environment:

    python -m venv PEER_VENV && PEER_VENV/bin/pip install torch==2.13.0 numpy scipy cattrs safetensors
    PEER_VENV/bin/pip install --no-deps torch-pruning==1.6.1

The plot needs `pip install matplotlib`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from quality.cells import ORIGINAL, Cell, Progress, cells_in, kept
from quality.nets import FITS, NETS, RECOVERY, fresh, resized
from quality.report import write_report
from safetensors.torch import load_file, save_file
from torch import nn
from torch.fx import GraphModule

from trimtab.compress.prune import Prune
from trimtab.core import Fit, Split, Task, Tools
from trimtab.graph.capture import capture
from trimtab.graph.cost import macs, num_parameters
from trimtab.tasks.fashion import fashion
from trimtab.train.loop import fit, score

ROOT = Path(__file__).parents[1]
RATIOS = (0.2, 0.4, 0.6, 0.8)
SEEDS = 5
SAMPLES, NUM_SELECT, NUM_VERIFY, NUM_RECOVERY = 128, 500, 2000, 2000
OURS: dict[str, dict[str, Any]] = {
    "magnitude": {"importance": "magnitude"},
    "bn_scale": {"importance": "bn_scale"},
    "taylor": {"importance": "taylor"},
    "fisher": {"importance": "fisher"},
    "activation": {"importance": "activation"},
    "obs": {"importance": "obs", "compensate": False},
    "magnitude + compensation": {"importance": "magnitude", "compensate": True},
    "obs + compensation": {"importance": "obs", "compensate": True},
}
# All seeds of these come first, so that a run that is stopped can be reported.
FIRST = ("obs + compensation", "magnitude + compensation", "magnitude")
PEER = {"Torch-Pruning magnitude": "magnitude", "Torch-Pruning taylor": "taylor"}


@dataclasses.dataclass(frozen=True)
class Data:
    """The task, the splits that judge, and the part of the training data that recovery gets."""

    task: Task
    select: Split
    verify: Split
    recovery: Task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="python of an environment with Torch-Pruning 1.6.1")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "prune_quality", help="where cells are kept")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--report-only", action="store_true", help="write the report of the cells that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.report_only:
        if given.peer is None or not given.peer.exists():
            parser.error(f"--peer {given.peer}: give the python of an environment with Torch-Pruning; see --help")
        run(given.work, given.peer, given.seeds)
    settings = {"original": FITS, "recovery": RECOVERY, "images": NUM_RECOVERY, "samples": SAMPLES, "test": NUM_VERIFY}
    for path in write_report(cells_in(given.work), settings, ROOT):
        print(path)


def run(work: Path, peer: Path, num_seeds: int) -> None:
    """Every cell that has not ended yet."""
    wanted = [*OURS, *PEER]
    progress = Progress(num_seeds * len(NETS) * (1 + len(RATIOS) * len(wanted)), len(cells_in(work)))
    data = load()
    later = tuple(method for method in OURS if method not in FIRST)
    for methods, seed, net in itertools.product((FIRST, later), range(num_seeds), NETS):
        folder = work / net / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        original = trained(folder, net, seed, data, progress)
        graph = capture(original, data.task.train.batch(slice(0, 2)).inputs)
        recover = dataclasses.replace(RECOVERY, seed=seed)
        for method, ratio in itertools.product(methods, RATIOS):
            cell = Cell(net, seed, method, ratio)
            if not kept(folder, cell):
                began = time.process_time()
                pruned = by_us(graph, method, ratio, data.task)
                judge(folder, cell, pruned, data, recover=recover, cut_seconds=time.process_time() - began)
                progress.told(cell)
        for cell, pruned in by_peer(folder, net, seed, peer, data):
            judge(folder, cell, pruned, data, recover=recover, cut_seconds=0.0)
            progress.told(cell)


def load() -> Data:
    """The built-in task; its verify split is the test data here, and nothing is chosen by it."""
    _, task = fashion()
    part = dataclasses.replace(task, train=task.train.batch(slice(0, NUM_RECOVERY)))
    verify = task.verify.open("prune_quality").batch(slice(0, NUM_VERIFY))
    return Data(task, task.select.batch(slice(0, NUM_SELECT)), verify, part)


def trained(folder: Path, net: str, seed: int, data: Data, progress: Progress) -> nn.Module:
    """The original of a seed, from its file or trained now."""
    file, cell = folder / "original.safetensors", Cell(net, seed, ORIGINAL, 0.0)
    module = fresh(net, seed)
    if not kept(folder, cell):
        settings: Fit = dataclasses.replace(FITS[net], seed=seed)
        module = fit(module, data.task, settings, checkpoint=folder / "original.checkpoint")
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, file)
        graph = capture(module, data.task.train.batch(slice(0, 2)).inputs)
        judge(folder, cell, graph, data, recover=None, cut_seconds=0.0)
        progress.told(cell)
    module.load_state_dict(load_file(file))
    return module.eval()


def judge(folder: Path, cell: Cell, graph: GraphModule, data: Data, *, recover: Fit | None, cut_seconds: float) -> None:
    """Keep what `graph` costs and how well it does, as it is and after recovery."""
    began = time.process_time()
    found: dict[str, Any] = {"params": num_parameters(graph), "macs": macs(graph), "raw": accuracies(graph, data)}
    if recover is not None:
        found["recovered"] = accuracies(fit(graph, data.recovery, recover), data)
    found |= {"cut_seconds": cut_seconds, "judge_seconds": time.process_time() - began}
    cell.keep(folder, found)


def accuracies(graph: GraphModule, data: Data) -> dict[str, float]:
    splits = {"select": data.select, "verify": data.verify}
    return {name: float(score(graph, split, data.task.metric).mean()) for name, split in splits.items()}


def by_us(graph: GraphModule, method: str, ratio: float, task: Task) -> GraphModule:
    """What trimtab makes of the original."""
    settings = Prune(ratio, round_to=1, samples=SAMPLES, **OURS[method])
    return settings.apply(graph, settings.plan(graph, task), Tools(task=task))


def by_peer(folder: Path, net: str, seed: int, peer: Path, data: Data) -> Iterator[tuple[Cell, GraphModule]]:
    """What Torch-Pruning makes of the original at each ratio, as a graph like ours; cells that ended are left out."""
    cells = [Cell(net, seed, method, ratio) for method, ratio in itertools.product(PEER, RATIOS)]
    cells = [cell for cell in cells if not kept(folder, cell)]
    if not cells:
        return
    files = {cell: folder / f"{cell.slug}.safetensors" for cell in cells}
    # The samples that our importances see, too.
    samples = data.task.train.batch(torch.linspace(0, len(data.task.train) - 1, SAMPLES).long())
    save_file({"inputs": samples.inputs[0], "targets": samples.targets}, folder / "samples.safetensors")
    cuts = [{"importance": PEER[c.method], "ratio": c.ratio, "out": str(files[c].resolve())} for c in cells]
    weights, images = (str((folder / f"{name}.safetensors").resolve()) for name in ("original", "samples"))
    job = folder / "peer.json"
    job.write_text(json.dumps({"net": net, "weights": weights, "samples": images, "cuts": cuts}))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
    subprocess.run([str(peer), "-m", "quality.peer", str(job)], check=True, env=environment)
    for cell in cells:
        module = resized(fresh(net, seed), load_file(files[cell]))
        yield cell, capture(module, data.task.train.batch(slice(0, 2)).inputs)


if __name__ == "__main__":
    main()
