"""What one optimizer step costs on CPU: ours and public implementations against torch's fused AdamW.

25.2 M parameters in 80 tensors (16 blocks of four matrices and a bias), one thread, fp32, fixed gradients. Each
contestant runs in three processes of its own, as where its tensors come to lie in memory moves its time, in turns with
torch's fused AdamW (A B A B); the ratio is the median of all pairs. Processor time is taken, so that what else runs on
the machine decides little; with `--threads 2` it is the clock's, on a quiet machine. Muon and SOAP run on a quarter
of the blocks, also in turns with the bare matrix products that their formula needs.

The public ones are not dependencies of trimtab. Give a Python that has them and torch:

    python -m venv /tmp/rivals && /tmp/rivals/bin/pip install torch==2.13.0
    /tmp/rivals/bin/pip install --no-deps schedulefree prodigyopt lion-pytorch pytorch-optimizer
    PYTHONPATH=. /tmp/rivals/bin/python benchmarks/optim_step.py --found steps.json

Writes benchmarks/results/optim_step_cpu_DATE.md, or optim_step_2_threads_cpu_DATE.md. `--only NAME ...` runs some,
adding to what `--found` holds; those that it does not hold are named as not measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.measure.machine import stamp, versions
from trimtab.optim import OPTIMIZERS
from trimtab.optim.adamw8bit import AdamW8bit
from trimtab.optim.adaptive import AdamW
from trimtab.optim.cautious import Cautious
from trimtab.optim.lion import Lion
from trimtab.optim.muon import Muon
from trimtab.optim.prodigy import Prodigy
from trimtab.optim.schedule_free import ScheduleFreeAdamW
from trimtab.optim.soap import SOAP

ROOT = Path(__file__).parent.parent
SHAPES = ((512, 1024), (1024, 512), (512, 512), (512, 512), (512,))
BLOCKS, QUARTER, ROUNDS, PROCESSES, SEED = 16, 4, 9, 3, 0
RIVALS = ("schedulefree", "prodigyopt", "lion-pytorch", "pytorch-optimizer")
Build = Callable[[nn.Module], Any]


def public(module: str, name: str, **settings: Any) -> Build:
    """An implementation from another package, with all parameters."""
    return lambda model: getattr(import_module(module), name)(list(model.parameters()), **settings)


def matrices(module: str, name: str, **settings: Any) -> Build:
    """The same for those that take matrices alone."""
    return lambda model: getattr(import_module(module), name)(
        [p for p in model.parameters() if p.ndim == 2], **settings
    )


def schedule_free(**settings: Any) -> Build:
    """The public schedule-free AdamW, in the mode in which it trains."""

    def build(model: nn.Module) -> Any:
        optimizer = public("schedulefree", "AdamWScheduleFree", **settings)(model)
        optimizer.train()
        return optimizer

    return build


# name -> (how it is built, the method whose matrix products bound it)
CONTESTANTS: dict[str, tuple[Build, str | None]] = {
    "torch AdamW, for-loop": (public("torch.optim", "AdamW", lr=1e-3, foreach=False), None),
    "torch AdamW, foreach": (public("torch.optim", "AdamW", lr=1e-3, foreach=True), None),
    "Lion": (Lion().build, None),
    "Lion, compiled": (Lion(compiled=True).build, None),
    "lion-pytorch Lion": (public("lion_pytorch", "Lion", lr=1e-4), None),
    "schedule-free AdamW": (ScheduleFreeAdamW().build, None),
    "schedule-free AdamW, compiled": (ScheduleFreeAdamW(compiled=True).build, None),
    "schedulefree AdamW, for-loop": (schedule_free(foreach=False), None),
    "schedulefree AdamW, foreach": (schedule_free(foreach=True), None),
    "schedule-free SGD": (OPTIMIZERS["schedule_free_sgd"].build, None),
    "cautious AdamW": (Cautious().build, None),
    "cautious AdamW, compiled": (Cautious(compiled=True).build, None),
    "AdamW 8-bit": (OPTIMIZERS["adamw8bit"].build, None),
    "AdamW 8-bit, compiled": (AdamW8bit(compiled=True).build, None),
    "Prodigy": (Prodigy().build, None),
    "Prodigy, compiled": (Prodigy(compiled=True).build, None),
    "prodigyopt Prodigy": (public("prodigyopt", "Prodigy"), None),
    "Muon": (Muon().build, "muon"),
    "torch Muon (matrices alone, bf16)": (matrices("torch.optim", "Muon", lr=1e-3), "muon"),
    "SOAP": (SOAP().build, "soap"),
    "SOAP, one-sided": (SOAP(one_sided=True).build, None),
    "pytorch-optimizer SOAP": (public("pytorch_optimizer", "SOAP", lr=1e-3), "soap"),
}
SLOW = ("Muon", "SOAP")
# Bytes a weight that a step must read and write; AdamW: the weight, both means in and out, the gradient in.
ADAMW_BYTES = 28
BYTES = {
    "Lion": (20, "the weight and one mean in and out, the gradient in"),
    "schedule-free AdamW": (28, "the weight, z and the squares in and out, the gradient in"),
    "cautious AdamW": (36, "AdamW's, after a pass that reads gradient and mean and counts what agrees"),
    "Prodigy": (44, "AdamW's, s in and out, the start in, after a pass that looks for what is no number"),
    "AdamW 8-bit": (16, "the weight in and out, the gradient in, two codes in and out"),
}


def network(blocks: int) -> nn.ParameterList:
    """Parameters with gradients."""
    generator = torch.Generator().manual_seed(SEED)
    draw = lambda shape: torch.randn(shape, generator=generator) * 0.02  # noqa: E731
    model = nn.ParameterList([nn.Parameter(draw(shape)) for _ in range(blocks) for shape in SHAPES])
    for p in model:
        p.grad = draw(p.shape)
    return model


def products(model: nn.Module, method: str) -> Callable[[], None]:
    """The bare matrix products of a step."""

    def muon(g: Tensor) -> None:
        x = g if g.shape[0] <= g.shape[1] else g.T
        for _ in range(5):
            gram = x @ x.T
            gram @ gram
            gram @ x

    def soap(g: Tensor) -> None:
        left, right = g @ g.T, g.T @ g
        for _ in range(3):  # the gradient's and the momentum's way there, and the step's way back
            left @ g @ right

    run = {"muon": muon, "soap": soap}[method]

    def step() -> None:
        for p in model.parameters():
            if p.ndim == 2:
                assert p.grad is not None
                run(p.grad)

    return step


def measure(name: str, threads: int) -> dict[str, list[float]]:
    """Seconds of the contestant's steps, of fused AdamW's and of the bare products, in turns."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    build, method = CONTESTANTS[name]
    blocks = QUARTER if any(word in name for word in SLOW) else BLOCKS
    ours, base = network(blocks), network(blocks)
    turns = {"step": build(ours).step, "adamw": AdamW(lr=1e-3).build(base).step}
    if method:
        turns["products"] = products(ours, method)
    found: dict[str, list[float]] = {key: [] for key in turns}
    for turn in range(ROUNDS + 2 if blocks == BLOCKS else 12):  # SOAP renews its bases once in ten
        for key, step in turns.items():
            begin = clock()
            with torch.no_grad():
                step()
            if turn > 1:
                found[key].append(clock() - begin)
    return found


def ratio(found: dict[str, list[float]], key: str) -> str:
    """The median of the pairs and their quartiles; sums where single steps differ by design."""
    pairs = [a / b for a, b in zip(found["step"], found[key], strict=True)]
    low, _, high = statistics.quantiles(pairs, n=4)
    return f"{statistics.median(pairs):.2f} [{low:.2f}, {high:.2f}]"


def table(results: dict[str, dict[str, list[float]]]) -> str:
    rows = ["| optimizer | step, ms | fused AdamW beside it, ms | ratio, median of pairs [quartiles] | n |"]
    rows.append("|---|---|---|---|---|")
    bounded = ["| optimizer | step, ms | bare products, ms | mean step / mean products | n |", "|---|---|---|---|---|"]
    for name, found in results.items():
        step, adamw = (1e3 * statistics.median(found[key]) for key in ("step", "adamw"))
        rows.append(f"| {name} | {step:.1f} | {adamw:.1f} | {ratio(found, 'adamw')} | {len(found['step'])} |")
        if "products" in found:
            mean, bare = (1e3 * statistics.mean(found[key]) for key in ("step", "products"))
            bounded.append(f"| {name} | {mean:.0f} | {bare:.0f} | {mean / bare:.2f} | {len(found['step'])} |")
    moved = [
        "| optimizer | bytes a weight | by bytes, of AdamW's time | of that, taken | which |",
        "|---|---|---|---|---|",
    ]
    for name, found in results.items():
        size, which = BYTES.get(name.removesuffix(", compiled"), (0, ""))
        if size:
            taken = statistics.median(a / b for a, b in zip(found["step"], found["adamw"], strict=True))
            floor = size / ADAMW_BYTES
            moved.append(f"| {name} | {size} | {floor:.2f} | {taken / floor:.2f} | {which} |")
    parts = ("\n".join(rows), "## Against the bytes that they move", "\n".join(moved))
    return "\n\n".join((*parts, "## Against their matrix products", "\n".join(bounded)))


def write(results: dict[str, dict[str, list[float]]], threads: int) -> Path:
    machine = stamp()
    names = ("trimtab", "torch", *RIVALS)
    said = ", ".join(f"{name} {version}" for name, version in versions(names).items())
    text = f"""# One optimizer step on CPU

{BLOCKS * len(SHAPES)} tensors, {BLOCKS * sum(torch.Size(shape).numel() for shape in SHAPES) / 1e6:.1f} M parameters, \
{"one thread" if threads == 1 else f"{threads} threads"}, fp32; Muon and SOAP on a quarter of that. \
{"Processor time" if threads == 1 else "Time by the clock"}, in turns with torch's fused AdamW, \
in one process where n is {ROUNDS} or 10, else in {PROCESSES}; seed {SEED}. \
Names with a package in front are that package's; the others are trimtab's. Written by `benchmarks/optim_step.py`.

{machine["cpu"]}, {machine["cores"]} cores, {", ".join(machine["features"])}; {said}

{table(results)}

Not measured in this run: {", ".join(name for name in CONTESTANTS if name not in results) or "none"}.

SOAP's products leave out the decompositions, of which it does one a side in ten steps; both Muons multiply in \
bf16 where the processor has it, and the products they are held against are fp32.
"""
    of = "" if threads == 1 else f"_{threads}_threads"
    path = ROOT / f"benchmarks/results/optim_step{of}_cpu_{datetime.date.today().isoformat()}.md"
    path.write_text(text)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one")
    parser.add_argument("--only", nargs="*", default=list(CONTESTANTS))
    parser.add_argument("--found", type=Path, default=Path("optim_step.json"))
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.threads)))
        return
    results = json.loads(given.found.read_text()) if given.found.exists() else {}
    for name in given.only:
        command = [sys.executable, "-W", "ignore", __file__, "--one", name, "--threads", str(given.threads)]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(PROCESSES)]
        found = [json.loads(done.stdout.splitlines()[-1]) for done in runs]
        results[name] = {key: [second for one in found for second in one[key]] for key in found[0]}
        print(name, ratio(results[name], "adamw"), flush=True)
        given.found.write_text(json.dumps(results))
    print(write({name: results[name] for name in CONTESTANTS if name in results}, given.threads))


if __name__ == "__main__":
    main()
