"""A method that was killed goes on with the part after the last that it had ended, and comes to the same, bit for bit.

As a script it is such a method: `python -m tests.compress.test_parts FOLDER` kills itself when it has rounded a layer.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from tests.compress.test_quantize import task_of
from tests.nets import net
from trimtab.compress import rounding
from trimtab.compress.build import Built, build, key
from trimtab.compress.parts import Parts
from trimtab.compress.prune import Prune, PrunePlan
from trimtab.compress.qat import QAT
from trimtab.compress.quantize import Quantize
from trimtab.compress.weightonly import WeightOnly
from trimtab.core import Recipe, Task, Tools
from trimtab.graph.capture import capture
from trimtab.graph.save import save_graph

LEARNED = Quantize(samples=32, rounding="learned")
ROWS: dict[str, Any] = {
    "int8": Quantize(samples=32, equalize=True),
    "int8 by learned rounding": LEARNED,
    "int8 with layers kept in floats": Quantize(samples=32, rounding="learned", weight_bits=3, most_error=0.1),
    "int8 QAT": QAT(epochs=1, start=Quantize(samples=32)),
    "weights in int4 by GPTQ": WeightOnly("int4", rounding="gptq", samples=32),
    "prune by obs": Prune(0.5, importance="obs", samples=32, round_to=1),
}


class Killed(BaseException):
    """As a signal would end it."""


@dataclass
class Bench:
    """An original, and where what is made of it is kept."""

    folder: Path
    original: Built
    task: Task

    @classmethod
    def at(cls, folder: Path) -> Bench:
        module, x = net("conv")
        graph = capture(module, (x,))
        save_graph(graph, folder)
        return cls(folder, Built(graph, folder, ()), task_of(x, num=64))

    def made(self, method: Any, report: Callable[[int, int, str], None]) -> Built:
        """What the method makes, in a folder that is there when it has ended."""

        def once_folder(name: str, make: Callable[[Path], Any]) -> Path:
            folder = self.folder / name
            folder.mkdir(parents=True, exist_ok=True)
            make(folder)
            return folder

        tools = Tools(report=report, folder=str(self.folder / "work"))
        return build(Recipe((method,)), self.original, self.task, once_folder=once_folder, tools=tools)

    def parts(self) -> dict[Path, bytes]:
        """What has ended of a method that was killed."""
        return {file: file.read_bytes() for file in sorted((self.folder / "work").rglob("*")) if file.is_file()}


def tensors(built: Built) -> dict[str, Tensor]:
    return dict(built.graph.state_dict())


def plan_of(built: Built) -> Any:
    return built.stages[-1].plan


def num_checkpoints(kept: dict[Path, bytes]) -> int:
    """Of the files that a training keeps."""
    return sum(path.name.startswith("qat.") for path in kept)


@pytest.mark.parametrize("method", ROWS.values(), ids=ROWS)
def test_a_method_goes_on_where_it_was_killed(method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: set[str] = set()
    whole = Bench.at(tmp_path / "whole").made(method, lambda done, total, text: steps.add(f"{done} of {total}: {text}"))
    made: list[str] = []
    for name in ("value", "tensors"):
        keep = getattr(Parts, name)

        def noted(parts: Parts, part: str, make: Any, *kind: Any, keep: Any = keep) -> Any:
            return keep(parts, part, lambda: (make(), made.append(f"{parts.folder}/{part}"))[0], *kind)

        monkeypatch.setattr(Parts, name, noted)
    reached: set[str] = set()

    def die(done: int, total: int, text: str) -> None:
        step = f"{done} of {total}: {text}"
        if step not in reached and not text.startswith("epoch"):  # each time it gets one further
            reached.add(step)
            raise Killed

    bench, built = Bench.at(tmp_path / "killed"), None
    kept: dict[Path, bytes] = {}
    while built is None:
        try:
            built = bench.made(method, die)
        except Killed:
            assert bench.parts().items() >= kept.items(), "what has ended stays as it was"
            kept = bench.parts()
    assert reached == {step for step in steps if "epoch" not in step}
    assert len(kept) >= 2
    ended = [part for part in made if {Path(f"{part}.json"), Path(f"{part}.safetensors")} & set(kept)]
    assert len(ended) == len(set(ended)) == len(kept) - num_checkpoints(kept), "none that had ended was made again"
    assert plan_of(built) == plan_of(whole)
    assert all(torch.equal(own, tensors(whole)[name]) for name, own in tensors(built).items())
    assert not bench.parts(), "parts go once the method has ended"


def test_a_calibration_killed_by_a_signal_goes_on_with_the_next_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "tests.compress.test_parts", str(tmp_path / "killed")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    bench = Bench.at(tmp_path / "killed")
    ended = [path.stem.removesuffix(" rounding") for path in bench.parts() if path.stem.endswith("rounding")]
    assert len(ended) == 1
    learned: list[str] = []
    learn = rounding._learned

    def noted(exact: Any, given: Any, scale: Any, **settings: Any) -> Any:
        learned.append(scale.layer)
        return learn(exact, given, scale, **settings)

    monkeypatch.setattr(rounding, "_learned", noted)
    built = bench.made(LEARNED, lambda done, total, text: None)
    whole = Bench.at(tmp_path / "whole").made(LEARNED, lambda done, total, text: None)
    every = learned[len(learned) // 2 :]
    assert len(every) >= 3
    assert learned == every[1:] + every
    assert ended == every[:1]
    assert plan_of(built) == plan_of(whole)


def test_a_plan_that_had_ended_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, method, plans = Bench.at(tmp_path), ROWS["prune by obs"], []
    plan = Prune.plan

    def noted(self: Prune, graph: GraphModule, task: Task | None = None) -> Any:
        plans.append(self)
        return plan(self, graph, task)

    noted.__annotations__ = {"return": PrunePlan}
    monkeypatch.setattr(Prune, "plan", noted)

    def die(done: int, total: int, text: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        bench.made(method, die)
    assert [path.name for path in bench.parts()] == ["plan.json"]
    assert (tmp_path / "work" / key(Recipe((method,))) / "plan.json").exists()
    bench.made(method, lambda done, total, text: None)
    assert len(plans) == 1


def test_another_graph_other_data_and_other_settings_have_other_parts(tmp_path: Path) -> None:
    module, x = net("conv")
    graph, task = capture(module, (x,)), task_of(x)
    tools = Tools(folder=str(tmp_path))
    other = capture(net("conv", seed=1)[0], (x,))
    folders = {
        Parts.of(tools, graph, task.train, LEARNED).folder,
        Parts.of(tools, other, task.train, LEARNED).folder,
        Parts.of(tools, graph, task.select, LEARNED).folder,
        Parts.of(tools, graph, task.train, Quantize()).folder,
        Parts.of(tools, graph, task.train, LEARNED).inner(True).folder,
    }
    assert len(folders) == 5
    assert Parts.of(tools, graph, task.train, LEARNED).folder in folders


def test_without_a_folder_nothing_is_kept_and_steps_are_told(tmp_path: Path) -> None:
    module, x = net("conv")
    told: list[str] = []
    tools = Tools(report=lambda done, total, text: told.append(f"{done} of {total}: {text}"))
    parts = Parts.of(tools, capture(module, (x,)), task_of(x).train, None)
    assert parts.folder is None
    assert parts.inner(1) is parts
    parts.step(0, 2, "one")
    assert told == ["0 of 2: one"]
    Parts().step(0, 2, "nobody is told")
    count = iter(range(9))
    assert [parts.value("one", lambda: next(count), int) for _ in range(2)] == [0, 1]
    assert [parts.tensors("one", lambda: {"x": torch.full((), next(count))})["x"].item() for _ in range(2)] == [2, 3]


@dataclass(frozen=True)
class Loose:
    """A value of a type that its annotation does not tell."""

    share: float
    other: Any = None


@pytest.mark.parametrize(
    ("value", "kept"),
    [(Loose(0.5), True), (Loose(True), False), (Loose(0.5, {1, 2}), False), (Loose(0.5, (1,)), False)],
)
def test_what_json_would_change_is_not_kept(value: Loose, kept: bool, tmp_path: Path) -> None:
    parts, made = Parts(tmp_path), []
    found = [parts.value("one", lambda: made.append(1) or value, Loose) for _ in range(2)]
    assert [repr(one) for one in found] == [repr(value)] * 2
    assert len(made) == (1 if kept else 2)


def test_no_tensors_are_a_part_as_well(tmp_path: Path) -> None:
    parts, made = Parts(tmp_path), []
    for _ in range(2):
        assert parts.tensors("none", lambda: made.append(1) or {}) == {}
    assert made == [1]


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests: another number of threads rounds otherwise
    own = Bench.at(Path(sys.argv[1]))

    def die_after_a_layer(done: int, total: int, text: str) -> None:
        if any(path.stem.endswith("rounding") for path in own.parts()):
            os.kill(os.getpid(), signal.SIGKILL)

    own.made(LEARNED, die_after_a_layer)
