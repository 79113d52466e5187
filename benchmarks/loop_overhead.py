"""What a training loop costs beside the work: microseconds a step, ours and others', over a loop written by hand.

    scripts/bench loop_overhead --cache /tmp/loop_overhead

Every contestant trains the same MLP on the same tensors in memory, with a fused AdamW, one thread; each takes blocks of
steps in turn with the loop written by hand, in the same process, and the differences of neighbouring blocks count. Time
is processor time, so that what else runs on the machine adds noise and no seconds. Others run in an environment of
their own, made in the cache. Then: samples/s of a small CNN on Fashion-MNIST with each lever alone and all together.
Writes benchmarks/results/loop_overhead_cpu_DATE.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).parent
PINS = ("lightning-fabric==2.6.6", "accelerate==1.15.0", "keras==3.15.1", "transformers==5.24.0", "numpy==2.4.6")
WIDTHS, BATCH, NUM, LR = (16, 288), 64, 12_800, 1e-3
BLOCKS, OWN_BLOCKS, STEPS, WARM = 60, 300, 10, 3
Block = Callable[[], float]  # takes steps, returns processor seconds a step


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(NUM, 64, generator=generator), torch.randint(10, (NUM,), generator=generator)


def net(width: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    return nn.Sequential(*layers).train()


def fused(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with the two groups that trimtab makes: biases do not decay."""
    many, few = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": many, "weight_decay": 0.02}, {"params": few, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LR, fused=True)


def endless(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    backward: Callable[[torch.Tensor], Any] = torch.Tensor.backward,
) -> Iterator[None]:
    """The loop written by hand: shuffle, batch, learning rate, forward, backward, step."""
    x, y = data()
    index, total = 0, 1_000_000
    while True:
        order = torch.randperm(NUM)
        for at in range(0, NUM, BATCH):
            batch = order[at : at + BATCH]
            for group in optimizer.param_groups:
                group["lr"] = LR * (1 - index / total)
            optimizer.zero_grad()
            backward(F.cross_entropy(model(x.index_select(0, batch)), y.index_select(0, batch)))
            optimizer.step()
            index += 1
            yield


def block_of(steps: Iterator[Any]) -> Block:
    def block() -> float:
        next(steps)  # the caches are another contestant's
        began = time.process_time()
        for _ in range(STEPS):
            next(steps)
        return (time.process_time() - began) / STEPS

    return block


def bare(width: int) -> Block:
    model = net(width)
    return block_of(endless(model, fused(model)))


def trimtab(width: int) -> Block:
    from trimtab.core import Fit, Task
    from trimtab.train.loop import training

    x, y = data()
    task = Task.of("random", train=(x, y), select=(x[:1] + 1, y[:1]), verify=(x[:1] + 2, y[:1]))

    def steps() -> Iterator[Any]:
        with training(net(width), task, Fit(epochs=5000, batch_size=BATCH, lr=LR, precision="fp32")) as taken:
            yield from taken

    return block_of(steps())


def fabric(width: int) -> Block:
    from lightning_fabric import Fabric

    runner = Fabric(accelerator="cpu", devices=1)
    runner.launch()
    model = net(width)
    return block_of(endless(*runner.setup(model, fused(model)), runner.backward))


def accelerate(width: int) -> Block:
    from accelerate import Accelerator

    runner = Accelerator(cpu=True)
    model = net(width)
    return block_of(endless(*runner.prepare(model, fused(model)), runner.backward))


def keras(width: int) -> Block:
    os.environ["KERAS_BACKEND"] = "torch"
    import keras as k

    layers = [k.layers.Dense(width, "relu"), k.layers.Dense(width, "relu"), k.layers.Dense(10)]
    model = k.Sequential([k.Input((64,)), *layers])
    loss = k.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(k.optimizers.AdamW(LR, weight_decay=0.02), loss, jit_compile=False)
    x, y = data()
    marks: list[float] = []
    watch = k.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: marks.append(time.process_time()))

    def block() -> float:
        marks.clear()
        num = (WARM + STEPS + 1) * BATCH
        model.fit(x[:num], y[:num], batch_size=BATCH, epochs=1, verbose=0, callbacks=[watch])
        return (marks[-1] - marks[WARM]) / (len(marks) - 1 - WARM)

    return block


def trainer(width: int) -> Block:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(width)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.net(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class Data(torch.utils.data.Dataset):
        x, y = data()

        def __len__(self) -> int:
            return NUM

        def __getitem__(self, at: int) -> int:
            return at

    def collate(batch: list[int]) -> dict[str, torch.Tensor]:
        index = torch.tensor(batch)
        return {"x": Data.x[index], "labels": Data.y[index]}

    marks: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.process_time())

    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        max_steps=WARM + STEPS + 1,
        use_cpu=True,
        optim="adamw_torch_fused",
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        max_grad_norm=0.0,
        dataloader_pin_memory=False,
    )
    made = Trainer(Model(), arguments, train_dataset=Data(), data_collator=collate, callbacks=[Watch()])

    def block() -> float:
        marks.clear()
        made.train()
        return (marks[-1] - marks[WARM]) / (len(marks) - 1 - WARM)

    return block


OURS = {"by hand, again": bare, "trimtab": trimtab}
OTHERS = {"Lightning Fabric": fabric, "Accelerate": accelerate, "Keras on torch": keras, "HF Trainer": trainer}


def in_process(python: Path, name: str) -> Any:
    """What a contestant, or the levers, came to in a process of its own."""
    command = [str(python), str(Path(__file__)), "--other", name]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
    print(name, said, file=sys.stderr, flush=True)
    return json.loads(said)


def race(make: Callable[[int], Block], width: int, blocks: int) -> dict[str, float]:
    """A contestant in turn with the loop written by hand; processor microseconds a step, and the differences."""
    reference, block = bare(width), make(width)
    pairs = [(1e6 * reference(), 1e6 * block()) for _ in range(WARM + blocks)]
    return summary(pairs[WARM:])


def summary(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Medians, and the interval of the median difference at 95 % from its order statistics."""
    differences = sorted(own - by_hand for by_hand, own in pairs)
    half = round(0.98 * len(pairs) ** 0.5)
    middle = len(pairs) // 2
    return {
        "by_hand": statistics.median(by_hand for by_hand, _ in pairs),
        "own": statistics.median(own for _, own in pairs),
        "more": statistics.median(differences),
        "low": differences[max(middle - half, 0)],
        "high": differences[min(middle + half, len(pairs) - 1)],
    }


def cnn(*, bf16: bool, channels_last: bool, fused: bool, compiled: bool) -> Iterator[None]:
    """Steps of the built-in task's CNN on Fashion-MNIST, with some of the levers."""
    from trimtab.tasks.fashion import fashion

    model, task = fashion()
    model = model.train()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=fused, foreach=False)
    called: Any = torch.compile(model) if compiled else model
    x, y = task.train.inputs[0], task.train.targets
    while True:
        order = torch.randperm(len(y))
        for at in range(0, len(y) - 99, 100):
            batch = order[at : at + 100]
            inputs = x[batch].to(memory_format=torch.channels_last) if channels_last else x[batch]
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(called(inputs).float(), y[batch])
            loss.backward()
            optimizer.step()
            yield


LEVERS_NAME, LEVER_TURNS = "levers", 13
LEVERS = {
    "none": "",
    "bf16": "bf16",
    "channels_last": "channels_last",
    "fused optimizer": "fused",
    "compile": "compiled",
    "bf16 + channels_last + fused (trimtab's default where bf16 is faster)": "bf16 channels_last fused",
    "all four": "bf16 channels_last fused compiled",
}


def levers() -> dict[str, dict[str, float]]:
    """Samples a processor second of each combination, in turns."""
    names = ("bf16", "channels_last", "fused", "compiled")
    runs = {lever: cnn(**{name: name in flags.split() for name in names}) for lever, flags in LEVERS.items()}
    rates: dict[str, list[float]] = {lever: [] for lever in runs}
    for turn in range(LEVER_TURNS):
        for lever, steps in runs.items():
            next(steps)
            began = time.process_time()
            for _ in range(2):
                next(steps)
            if turn >= 1:
                rates[lever].append(200 / (time.process_time() - began))
    return {
        lever: {"median": statistics.median(own), "low": min(own), "high": max(own)} for lever, own in rates.items()
    }


def environment(cache: Path) -> Path:
    """The interpreter of the others' environment, made if it is missing."""
    place = cache / "others"
    python = place / "bin" / "python"
    if not (place / "done").exists():
        venv.create(place, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, "torch==2.13.0"], check=True)
        subprocess.run([*install, "torch==2.13.0", *PINS], check=True)
        (place / "done").touch()
    return python


def table(results: dict[str, list[dict[str, float]]]) -> list[str]:
    lines = [
        "| width | loop | step by hand | us a step more | 95 % interval | of the step |",
        "|---|---|---|---|---|---|",
    ]
    for place, width in enumerate(WIDTHS):
        for name, own in ((name, each[place]) for name, each in results.items()):
            share, interval = own["more"] / own["by_hand"], f"{own['low']:.0f} to {own['high']:.0f}"
            lines.append(
                f"| {width} | {name} | {own['by_hand']:.0f} us | {own['more']:.0f} | {interval} | {share:.1%} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/loop_overhead"))
    parser.add_argument("--other", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.other:
        make = (OURS | OTHERS).get(given.other)
        blocks = OWN_BLOCKS if given.other in OURS else BLOCKS
        print(json.dumps([race(make, width, blocks) for width in WIDTHS] if make else levers()))
        return
    python = environment(given.cache)
    results = {name: in_process(Path(sys.executable), name) for name in OURS}
    results |= {name: in_process(python, name) for name in OTHERS}
    from trimtab.measure.machine import stamp, versions

    machine, rates = stamp(), in_process(Path(sys.executable), LEVERS_NAME)
    lines = [
        "# What the training loop costs",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, one thread; trimtab {version('trimtab')}, torch "
        f"{versions()['torch']}; {', '.join(pin.replace('==', ' ') for pin in PINS)}. An MLP 64-W-W-10, W = "
        f"{' and '.join(map(str, WIDTHS))}, batches of {BATCH}, fused AdamW, seed 0. {BLOCKS} pairs "
        f"({OWN_BLOCKS} of the first two loops) of blocks of "
        f"{STEPS} steps, in turns with the loop written by hand; medians of processor time, and of the paired "
        "differences.",
        "",
        *table(results),
        "",
        "The first row of each width is the noise: the loop written by hand against itself. That loop takes its "
        "batches by `index_select` and clears gradients by `optimizer.zero_grad()`. Keras trains with its own "
        "AdamW (it has no fused one on torch). trimtab's includes what the others leave to the user: seeds for each "
        "step, a check for NaN, the clock.",
        "",
        "## Levers on Fashion-MNIST",
        "",
        f"The built-in task's CNN (batches of 100), a loop written by hand, {LEVER_TURNS - 1} turns of 2 steps, "
        "samples a processor second.",
        "",
        "| levers | median | lowest | highest | times none |",
        "|---|---|---|---|---|",
    ]
    for lever, own in rates.items():
        times = own["median"] / rates["none"]["median"]
        lines.append(f"| {lever} | {own['median']:.0f} | {own['low']:.0f} | {own['high']:.0f} | {times:.2f} |")
    out = ROOT / "results" / f"loop_overhead_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
