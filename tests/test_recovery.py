"""A search killed within the training that recovers a candidate goes on from that training's checkpoint.

As a script it is such a search: `python -m tests.test_recovery FOLDER KIND LINE` kills itself once it has told that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import trimtab as tt
from tests import small
from tests.machines import EAGER, Machine
from trimtab.core import Artifact, Search
from trimtab.files import read_json
from trimtab.report.terminal import Progress
from trimtab.train import keep, loop

GOAL = tt.Goal("latency_ms", keep=0.97)
RECIPES = tuple(tt.Recipe((tt.Prune(ratio=ratio), tt.Distill(epochs=4))) for ratio in (0.5, 0.75))
# The epochs of the first recovery.
KINDS = {"listed": 4, "sampled": 2}


class Heard:
    """What the recoveries of a search tell from now on: the rates that are tried, and each step with its loss."""

    def __init__(self, patched: pytest.MonkeyPatch, *, last: str = "") -> None:
        self.lines: list[str] = []
        tell = Progress.step

        def step(show: Progress, done: int, total: int, text: str) -> None:
            if show._phase != "training" and text.startswith(("epoch ", "rate ")):
                self.lines.append(f"{done} of {total}: {text.rpartition(', ')[0] or text}")
                if self.lines[-1].startswith(last or "-"):
                    print(*self.lines, sep="\n", flush=True)
                    os.kill(os.getpid(), signal.SIGKILL)
            tell(show, done, total, text)

        patched.setattr(keep, "MOST_SECONDS", 0.0)  # as if each step took longer than may be lost
        patched.setattr(Progress, "step", step)
        patched.setattr(loop, "REPORT_EVERY_SECONDS", 0)


def search(folder: Path, kind: str, patched: pytest.MonkeyPatch) -> Artifact:
    """Of recipes that are given, or of those that a storage hands out."""
    Machine("one").put(patched)
    model, task = small.make(width=64)
    given: dict[str, Any] = {"recipes": RECIPES} if kind == "listed" else {}
    if kind == "sampled":
        given["search"] = Search(storage=f"sqlite:///{folder}/shared.db", trials=4)
    return tt.optimize(model, task, target=EAGER, goal=GOAL, run=folder / "run", quiet=True, **given)


def candidates(run: Path) -> dict[str, tuple[bytes, Any]]:
    """The weights of each, and what was decided and learned."""
    return {
        folder.name: ((folder / "weights.safetensors").read_bytes(), read_json(folder / "plan.json")["plan"])
        for folder in (run / "built").iterdir()
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_search_killed_within_a_recovery_goes_on_from_its_checkpoint(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("whole", "killed")
    for name in names:
        (tmp_path / name).mkdir()
    with monkeypatch.context() as patched:
        whole = Heard(patched)
        artifacts = [search(tmp_path / "whole", kind, patched)]
    first = whole.lines.index(next(line for line in whole.lines if ": epoch" in line))
    assert first >= 2, "rates are tried first"
    num = int(whole.lines[first].split()[2].rstrip(":"))
    kept = num - num // KINDS[kind]  # the steps of all its epochs but the last
    last = whole.lines[first + kept + 1]
    assert last.startswith(f"{kept + 2} of {num}: epoch {KINDS[kind]}/{KINDS[kind]}, loss ")

    command = [sys.executable, "-m", "tests.test_recovery", str(tmp_path / "killed"), kind, last]
    killed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert killed.stdout.splitlines() == whole.lines[: first + kept + 2]
    run = tmp_path / "killed" / "run"
    assert [len(list((run / "work").glob(f"*/distill{end}"))) for end in (".safetensors", ".rate.json")] == [1, 1]

    with monkeypatch.context() as patched:
        resumed = Heard(patched)
        artifacts.append(search(tmp_path / "killed", kind, patched))
    assert resumed.lines == whole.lines[first + kept + 2 :], "no rate is tried again, nor any step that had ended"
    assert not list((run / "work").iterdir())
    found = [candidates(tmp_path / name / "run") for name in names]
    assert found[0] == found[1]
    assert sum("distill" in name for name in found[0]) >= 1
    told = [[(one["id"], one["select"], one["gain"]) for one in artifact.evidence["trials"]] for artifact in artifacts]
    assert told[0] == told[1]
    assert artifacts[0].name == artifacts[1].name


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests: another number of threads rounds otherwise
    with pytest.MonkeyPatch.context() as own:
        Heard(own, last=sys.argv[3])
        search(Path(sys.argv[1]), sys.argv[2], own)
