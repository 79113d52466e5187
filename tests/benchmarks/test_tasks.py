"""The real models are tasks that the command line takes by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import tasks
from models.loaded import Loaded
from torch import nn

import trimtab as tt
from tests.train.toy import toy_net, toy_task
from trimtab.core import Recipe
from trimtab.tasks.resolve import resolve

FILE = Path(tasks.__file__)


@pytest.mark.parametrize("name", tasks.LOADERS)
def test_every_loader_is_a_task_by_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Loaded(name, toy_net(), toy_task(), lambda model: {}, "nothing")
    monkeypatch.setitem(tasks.LOADERS, name, lambda: made)
    assert getattr(tasks, name)() == (made.module, made.task)


@pytest.mark.slow
def test_a_real_model_is_optimized_by_name(tmp_path: Path) -> None:
    model, task = resolve(f"{os.path.relpath(FILE)}:silero_vad")
    assert isinstance(model, nn.Module)
    assert task.fit is None
    recipe = Recipe((tt.WeightOnly("int8"),))
    artifact = tt.optimize(
        model,
        task,
        target=tt.Target(runtimes=("eager", "onnxruntime"), threads=1),
        goal=tt.Goal(keep=0.98),
        recipes=(recipe,),
        run=tmp_path / "run",
        quiet=True,
    )
    assert artifact.verdict.word in ("PASS", "FAIL", "INCONCLUSIVE")
    assert any(trial["recipe"] == recipe.name for trial in artifact.evidence["trials"])
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
