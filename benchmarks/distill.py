"""What distillation gains: a student 10 times smaller, and a pruned MobileNetV2 that recovers without a label.

    scripts/bench distill                      (both halves; --only fashion or --only mobilenet for one)
    scripts/bench distill --cpu-minutes 30     (what the recovery may take, the teacher's answers included)

On Fashion-MNIST one teacher is trained; a student of a tenth of its parameters is trained by each of five seeds, alone
from labels and with the teacher, for the same epochs, at the same rate, on the same batches. MobileNetV2 is cut to 60 %
of its multiply-adds, or by 40 % of its channels, by Optimal Brain Surgeon with compensation, and learns from its
original on drawings, photos and textures that packages carry, cropped, mirrored, coloured and mixed; none of them is
judged. One process, one thread; seconds are of the processor. What ended is kept in build/distill, a recovery under way
goes on from its last epoch. Writes benchmarks/results/distill_cpu_DATE.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import math
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from models.mobilenet import mobilenet
from models.unlabelled import varied, views
from safetensors.torch import load_file, save_file
from scipy.stats import t as student_t
from torch import nn

from trimtab.compress.allocate import Budget
from trimtab.compress.distill import Distill
from trimtab.compress.objectives import Features, Labels, Logits, Objective
from trimtab.compress.prune import Prune
from trimtab.core import Fit, Split, Task, Tools
from trimtab.files import read_json, write_json
from trimtab.graph.capture import capture
from trimtab.graph.cost import macs, num_parameters
from trimtab.graph.fold import fold_batchnorm
from trimtab.measure.machine import stamp, versions
from trimtab.tasks.fashion import LABELS, FashionNet, conv, fashion
from trimtab.train.loop import fit, score

ROOT = Path(__file__).parents[1]
SEEDS, FASHION = 5, Fit(lr=6e-3, batch_size=100, weight_decay=0.05)
TAUGHT: tuple[Objective, ...] = (Logits(temperature=4.0), Labels(weight=0.5))
WIDTHS = (10, 20, 20, 40, 40)
CUTS = {"60 % of the MACs left": {"budget": Budget(macs=0.6)}, "40 % of the channels cut": {"ratio": 0.4}}
RECOVERY = Fit(batch_size=32, weight_decay=0.0, precision="bf16")
RECOVERY_LR, SAMPLES = 1e-4, 64
LEARNED: tuple[Objective, ...] = (Logits(temperature=2.0), Features(at=("mean",)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "distill", help="where what ended is kept")
    parser.add_argument("--only", choices=("fashion", "mobilenet"), help="one half; default: both")
    parser.add_argument("--cut", choices=tuple(CUTS), default=next(iter(CUTS)))
    parser.add_argument("--epochs", type=int, default=6, help="of Fashion-MNIST's teacher and students")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of Fashion-MNIST's training")
    parser.add_argument("--cpu-minutes", type=float, default=30.0)
    parser.add_argument("--report-only", action="store_true", help="write the report of what is there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    if not given.report_only and given.only != "mobilenet":
        compare_students(given.work, dataclasses.replace(FASHION, epochs=given.epochs, precision=given.precision))
    if not given.report_only and given.only != "fashion":
        recover(given.work, given.cut, given.cpu_minutes)
    path = ROOT / "benchmarks" / "results" / f"distill_cpu_{datetime.date.today():%Y-%m-%d}.md"
    path.write_text("\n".join(report(given.work)) + "\n")
    print(path)


class Student(nn.Module):
    """FashionNet with narrower layers: [B, 1, 28, 28] -> [B, 10]."""

    def __init__(self) -> None:
        super().__init__()
        before = (1, *WIDTHS)
        strides = (1, 2, 1, 2, 1)
        layers = [conv(before[at], WIDTHS[at], stride=stride) for at, stride in enumerate(strides)]
        self.features = nn.Sequential(*(part for layer in layers for part in layer))
        self.head = nn.Linear(WIDTHS[-1], len(LABELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


def compare_students(work: Path, settings: Fit) -> None:
    """Train each seed's student alone and with the teacher; verify is the test data, and chooses nothing."""
    _, task = fashion()
    task = dataclasses.replace(task, fit=settings)
    test = task.verify.open("benchmarks/distill")
    teacher = trained_teacher(work, task)
    for seed in range(SEEDS):
        file = work / f"fashion-{seed}.json"
        if file.exists():
            continue
        torch.manual_seed(seed)
        fresh = capture(Student(), task.train.batch(slice(0, 2)).inputs)
        own = dataclasses.replace(task, fit=dataclasses.replace(settings, seed=seed))
        taught = Distill(epochs=settings.epochs, lr=settings.lr, objectives=TAUGHT, teacher=teacher)
        began = time.process_time()
        alone = fit(fresh, own, own.fit)
        middle = time.process_time()
        learned = taught.apply(fresh, taught.plan(fresh, own), Tools(task=own))
        seconds = {"alone_seconds": middle - began, "taught_seconds": time.process_time() - middle}
        rates = {name: accuracy(model, test, task) for name, model in (("alone", alone), ("taught", learned))}
        sizes = {
            "student_params": num_parameters(fresh),
            "teacher_params": sum(p.numel() for p in teacher.parameters()),
        }
        how = {"seed": seed, "epochs": settings.epochs, "precision": settings.precision}
        write_json(file, {**how, "teacher": accuracy(teacher, test, task), **rates, **sizes, **seconds})
        print(f"seed {seed}: {rates}", flush=True)


def trained_teacher(work: Path, task: Task) -> nn.Module:
    """FashionNet, trained now or read."""
    file = work / "teacher.safetensors"
    torch.manual_seed(0)
    teacher: nn.Module = FashionNet()
    if not file.exists():
        teacher = fit(teacher, task, checkpoint=work / "teacher.checkpoint")
        save_file({name: tensor.contiguous() for name, tensor in teacher.state_dict().items()}, file)
    teacher.load_state_dict(load_file(file))
    return teacher.eval()


def accuracy(model: nn.Module, test: Split, task: Task) -> float:
    return float(score(model, test, task.metric).mean())


def recover(work: Path, cut: str, cpu_minutes: float) -> None:
    """Prune MobileNetV2, judge it, let it learn from its original for so many CPU minutes, judge it again."""
    file = work / f"mobilenet-{'-'.join(cut.replace('%', 'percent').split())}-{cpu_minutes:g}.json"
    if file.exists():
        return
    loaded = mobilenet()
    graph = capture(loaded.module, loaded.task.train.batch(slice(0, 2)).inputs)
    method = Prune(importance="obs", samples=SAMPLES, **CUTS[cut])
    pruned = method.apply(graph, method.plan(graph, loaded.task), Tools(task=loaded.task))
    before = loaded.quality(pruned)
    print(f"{cut}: {before}", flush=True)
    images = views()
    task = dataclasses.replace(
        loaded.task, train=Split((images,), torch.zeros(len(images), dtype=torch.long)), augment=varied, fit=RECOVERY
    )
    folder = file.with_suffix("")
    folder.mkdir(exist_ok=True)
    clock = Clock(folder / "seconds.json")
    # Folded, the norms keep the statistics of photos: with those of the drawings it agrees less from the start.
    folded = fold_batchnorm(pruned)
    epochs = planned_epochs(folder, task, folded, graph, cpu_minutes)
    learner = Distill(epochs=epochs, lr=RECOVERY_LR, objectives=LEARNED)
    tools = Tools(task=task, original=graph, folder=str(folder), report=clock.report)
    learned = learner.apply(folded, learner.plan(folded, task), tools)
    found = {"cut": cut, "before": before, "after": loaded.quality(learned), "seconds": clock.seconds()}
    shares = {"macs": macs(pruned) / macs(graph), "params": num_parameters(pruned) / num_parameters(graph)}
    settings = {"epochs": epochs, "images": len(images), "lr": RECOVERY_LR, "data": loaded.data}
    write_json(file, {**found, **shares, **settings, "cpu_minutes": cpu_minutes})


def planned_epochs(folder: Path, task: Task, pruned: nn.Module, graph: nn.Module, cpu_minutes: float) -> int:
    """As many as the minutes allow, by the time of a few steps; kept, so that a run that goes on has the same."""
    file = folder / "epochs.json"
    if not file.exists():
        few = dataclasses.replace(task, train=task.train.batch(slice(0, 4 * RECOVERY.batch_size)))
        trial = Distill(epochs=1, lr=RECOVERY_LR, objectives=LEARNED)
        began = time.process_time()
        trial.apply(pruned, trial.plan(pruned, few), Tools(task=few, original=graph))
        each = (time.process_time() - began) / 4
        steps = len(task.train) // RECOVERY.batch_size
        write_json(file, {"epochs": max(1, int(60 * cpu_minutes / each / steps)), "seconds_a_step": each})
    return int(read_json(file)["epochs"])


class Clock:
    """Seconds of the processor that a run took, over all its parts, those of broken-off epochs too."""

    def __init__(self, file: Path) -> None:
        self.file, self.earlier = file, float(read_json(file)["seconds"]) if file.exists() else 0.0
        self.began = time.process_time()

    def seconds(self) -> float:
        return self.earlier + time.process_time() - self.began

    def report(self, done: int, total: int, text: str) -> None:
        """Told by the training loop."""
        write_json(self.file, {"seconds": self.seconds()})
        print(f"{done}/{total} {self.seconds():.0f} s: {text}", flush=True)


def report(work: Path) -> Iterator[str]:
    """The results as Markdown."""
    machine, used = stamp(), versions()
    yield "# What distillation gains"
    yield ""
    yield (
        f"{machine['cpu']}, one thread of {machine['cores']}, other work beside it; torch {used['torch']}; seconds "
        "are of the processor. Made by `scripts/bench distill`."
    )
    rows = [read_json(path) for path in sorted(work.glob("fashion-*.json"))]
    if rows:
        yield from told_students(rows)
    found = [read_json(path) for path in sorted(work.glob("mobilenet-*.json"))]
    if found:
        yield from told_recovery(found)


def told_students(rows: list[dict[str, Any]]) -> Iterator[str]:
    gains = [row["taught"] - row["alone"] for row in rows]
    first = rows[0]
    yield ""
    yield "## A student 10 times smaller, Fashion-MNIST"
    yield ""
    yield (
        f"Teacher: {first['teacher_params']:,} parameters, accuracy {first['teacher']:.4f}. Student: "
        f"{first['student_params']:,} parameters ({first['teacher_params'] / first['student_params']:.1f} times less). "
        f"{first['epochs']} epochs over 10,000 images at {FASHION.lr:g}, AdamW, {first['precision']}, for all. Taught: "
        f"{' + '.join(str(one) for one in TAUGHT)}, chosen beforehand. Accuracy on 4,000 test images."
    )
    yield ""
    yield "| seed | alone | taught | gain | seconds alone | seconds taught |"
    yield "|---|---|---|---|---|---|"
    for row, gain in zip(rows, gains, strict=True):
        yield (
            f"| {row['seed']} | {row['alone']:.4f} | {row['taught']:.4f} | {gain:+.4f} | "
            f"{row['alone_seconds']:.0f} | {row['taught_seconds']:.0f} |"
        )
    if len(rows) > 1:
        spread = stdev(gains)
        error = spread / math.sqrt(len(gains))
        half = float(student_t.ppf(0.975, len(gains) - 1)) * error
        p = float(student_t.sf(mean(gains) / error, len(gains) - 1))
        yield ""
        yield (
            f"Gain {mean(gains):+.4f}, 95 % from {mean(gains) - half:+.4f} to {mean(gains) + half:+.4f}; standard "
            f"deviation {spread:.4f}; paired t-test over n = {len(gains)} seeds, one-sided p = {p:.4f}."
        )


def told_recovery(found: list[dict[str, Any]]) -> Iterator[str]:
    yield ""
    yield "## A pruned MobileNetV2 recovers without a label"
    yield ""
    first = found[0]
    yield (
        f"Cut by Optimal Brain Surgeon with compensation on {SAMPLES} pictures; learned: "
        f"{' + '.join(str(one) for one in LEARNED)}, AdamW at {first['lr']:g}, batches of {RECOVERY.batch_size}, "
        f"{RECOVERY.precision}, seed {RECOVERY.seed}, BatchNorm folded, on {first['images']} pictures that nothing is "
        f"judged on. Judged on {first['data']}. Recovered: the share of the lost agreement that came back; the "
        "interval is Wilson's of the agreement after, at 95 %."
    )
    yield ""
    yield (
        "| cut | MACs left | parameters left | CPU minutes | epochs | agreement before | after | 95 % | recovered | "
        "top-1 before | after |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for row in found:
        before, after = row["before"], row["after"]
        lost = 1 - before["agreement"]
        low, high = wilson(after["agreement"], 218)
        yield (
            f"| {row['cut']} | {row['macs']:.3f} | {row['params']:.3f} | {row['seconds'] / 60:.1f} | {row['epochs']} | "
            f"{before['agreement']:.3f} | {after['agreement']:.3f} | {low:.3f} to {high:.3f} | "
            f"{100 * (after['agreement'] - before['agreement']) / lost:.0f} % | {before['top-1']:.3f} | "
            f"{after['top-1']:.3f} |"
        )


def wilson(rate: float, num: int) -> tuple[float, float]:
    """Wilson's interval of a rate of `num` samples, at 95 %.

    >>> [round(end, 3) for end in wilson(0.5, 100)]
    [0.404, 0.596]
    """
    z = 1.96
    middle = (rate + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(rate * (1 - rate) / num + z * z / (4 * num * num))
    return middle - half, middle + half


if __name__ == "__main__":
    main()
