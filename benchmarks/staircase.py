"""How well the staircase predicts: the latency of pruned models, from their layers' times and the original's latency.

    scripts/bench staircase

Each model is pruned at three ratios; original and pruned ones are raced in ONNX Runtime, one thread, one sample. What
the staircase predicts of a pruned one, from its layers timed alone and from the original's latency, is held against the
race; beside it the prediction by multiply-accumulates alone. Weights are random, as only sizes matter. Layers' times
are kept in build/staircase/times.db, models that ended beside it. Writes benchmarks/results/staircase_cpu_DATE.md.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from kept import cells
from models.crnn import CRNN
from models.efficientnet import EfficientNetLite0
from models.minilm import SentenceEncoder
from models.mobilenet import MobileNetV2
from models.silero import SileroVAD
from models.whisper import Encoder
from prune_plan import MINILM
from torch import Tensor, nn
from torch.fx import GraphModule

from trimtab.compress.layertime import LayerTimes, in_runtime
from trimtab.compress.prune import Prune
from trimtab.core import Target
from trimtab.graph.capture import capture
from trimtab.graph.cost import Sizes, activations, macs
from trimtab.graph.fold import fold_batchnorm
from trimtab.measure.machine import stamp, versions
from trimtab.measure.speed import block_spread
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.alone import described
from trimtab.runtimes.evaluate import Exported, race
from trimtab.search.staircase import Staircase, predicted_ms
from trimtab.tasks.fashion import FashionNet

ROOT = Path(__file__).parents[1]
RUNTIME, THREADS, ROUNDS, LENGTH = "onnxruntime", 1, 12, 64
RATIOS = (0.25, 0.5, 0.75)
AIM = 0.10
K = TypeVar("K", bound=Hashable)
Made = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]
MODELS: dict[str, Made] = {
    "Fashion-MNIST CNN": lambda: (FashionNet(), (torch.randn(2, 1, 28, 28),)),
    "MobileNetV2": lambda: (MobileNetV2(), (torch.randn(2, 3, 224, 224),)),
    "MiniLM": lambda: (
        SentenceEncoder(MINILM),
        (torch.zeros(2, LENGTH, dtype=torch.long), torch.ones(2, LENGTH, dtype=torch.long)),
    ),
    "OCR-CRNN": lambda: (CRNN(), (torch.randn(2, 1, 64, 600),)),
    "EfficientNet-Lite0": lambda: (EfficientNetLite0(), (torch.randn(2, 3, 224, 224),)),
    "Whisper tiny, encoder": lambda: (Encoder(), (torch.randn(2, 80, 3000),)),
    "Silero VAD": lambda: (SileroVAD(), (torch.randn(2, 32, 576),)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "staircase", help="where what ended is kept")
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    parser.add_argument("--report-only", action="store_true", help="write the report of the models that ended")
    given = parser.parse_args()
    wanted = () if given.report_only else given.models
    found = cells(given.work, MODELS, lambda name: measured(name, given.work / "times.db"), wanted=wanted)
    out = ROOT / "benchmarks" / "results" / f"staircase_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(report(found)) + "\n")
    print(out)


def measured(name: str, times: Path) -> dict[str, Any]:
    """The race of the original and the pruned ones, and what their layers take alone."""
    torch.manual_seed(0)
    module, inputs = MODELS[name]()
    original = capture(module.eval(), inputs)
    graphs = {0.0: original}
    for ratio in RATIOS:
        method = Prune(ratio)
        graphs[ratio] = method.apply(original, method.plan(original))
    raced = latencies(graphs, inputs)
    kept = Staircase(times, machine=stamp(), runtime=described(RUNTIME, "fp32", THREADS))
    began, known = time.perf_counter(), len(kept)
    clock = in_runtime(RUNTIME, precision="fp32", threads=THREADS, kept=kept.ms)
    rows = [
        {
            "ratio": ratio,
            "ms": raced[ratio][0],
            "spread": raced[ratio][1],
            "layers_ms": LayerTimes(Sizes(fold_batchnorm(graph)), clock).ms(),
            "macs": macs(graph),
            "activations": activations(graph),
        }
        for ratio, graph in graphs.items()
    ]
    return {"rows": rows, "seconds": time.perf_counter() - began, "shapes": len(kept) - known}


def latencies(graphs: Mapping[K, GraphModule], inputs: tuple[Tensor, ...]) -> dict[K, tuple[float, float]]:
    """The least block median of each in ms, and the spread of its blocks, all timed in turn."""
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for ratio, graph in graphs.items():
            own = Path(folder) / f"{ratio}"
            own.mkdir()
            RUNTIMES[RUNTIME].export(graph, own, precision="fp32", batch_size=1, threads=THREADS)
            files[str(ratio)] = Exported(RUNTIME, "fp32", own)
        arrays = tuple(x.numpy() for x in inputs)
        raced = race(files, arrays, target=Target(threads=THREADS), rounds=ROUNDS, asked=())
    medians = {ratio: raced[str(ratio)].timing.block_medians for ratio in graphs}
    return {ratio: (min(own), block_spread(own)) for ratio, own in medians.items()}


def errors(found: dict[str, Any]) -> list[tuple[float, float, float]]:
    """Of each pruned version its ratio, and by how much both predictions miss: the staircase's, and that of MACs."""
    whole, *pruned = found["rows"]
    misses = []
    for row in pruned:
        rest = row["activations"] / whole["activations"]
        stairs = predicted_ms(whole["ms"], whole["layers_ms"], row["layers_ms"], rest=rest)
        by_macs = whole["ms"] * row["macs"] / whole["macs"]
        misses.append((row["ratio"], stairs / row["ms"] - 1, by_macs / row["ms"] - 1))
    return misses


def report(found: dict[str, dict[str, Any]]) -> list[str]:
    """The results as lines of Markdown."""
    if not found:
        raise SystemExit("There is no model to report yet: run without --report-only first.")
    misses = {name: errors(own) for name, own in found.items()}
    middle = median(abs(miss) for own in misses.values() for _, miss, _ in own)
    by_macs = median(abs(miss) for own in misses.values() for *_, miss in own)
    word = "holds" if middle <= AIM else "does not hold"
    lines = [
        "# What the staircase predicts",
        "",
        f"{stamp()['cpu']}, {described(RUNTIME, 'fp32', THREADS)}, one sample, PyTorch {versions()['torch']}; one run, "
        f"random weights, seed 0; {ROUNDS} blocks or more of each version, in turn, of which the least counts.",
        "",
        f"- The median error should be at most {AIM:.0%}: it is {middle:.1%} on {len(found)} of {len(MODELS)} models: "
        f"there this {word}. By multiply-accumulates alone it would be {by_macs:.1%}.",
        "",
        "| model | pruned | original ms | pruned ms | spread | staircase misses by | MACs miss by | shapes | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, own in found.items():
        whole, *pruned = own["rows"]
        for row, (ratio, stairs, macs_miss) in zip(pruned, misses[name], strict=True):
            lines.append(
                f"| {name} | {ratio:g} | {whole['ms']:.3f} | {row['ms']:.3f} | {row['spread']:.0%} | {stairs:+.1%} | "
                f"{macs_miss:+.1%} | {own['shapes']} | {own['seconds']:.0f} |"
            )
    missing = [name for name in MODELS if name not in found]
    return [*lines, "", f"Not run: {', '.join(missing)}."] if missing else lines


if __name__ == "__main__":
    main()
