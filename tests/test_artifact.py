"""The artifact of a task of another kind: two inputs, real targets, no class names; moved, and served elsewhere."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trimtab as tt
from trimtab.artifact import sample_name
from trimtab.cli import main
from trimtab.errors import ArtifactError, RuntimeFailed
from trimtab.files import read_array
from trimtab.report.usage import usage


class Price(nn.Module):
    """([B, 4], [B, 6]) -> [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 256), nn.Linear(6, 256), nn.Linear(256, 2)

    def forward(self, size: Tensor, place: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(size) + self.right(place)))


def make() -> tuple[nn.Module, tt.Task]:
    torch.manual_seed(0)
    teacher = Price()
    splits = {}
    for name in ("train", "select", "verify"):
        inputs = torch.randn(120, 4), torch.randn(120, 6)
        splits[name] = (inputs, teacher(*inputs).detach())
    metric = tt.Metric("negative error", lambda outputs, targets: -(outputs - targets).abs().mean(1))
    fit = tt.Fit(epochs=4, batch_size=32, lr=1e-2, precision="fp32")
    return Price(), tt.Task.of("prices", **splits, loss=nn.functional.mse_loss, metric=metric, fit=fit)


pytestmark = pytest.mark.slow
RECIPES = (tt.Recipe((tt.Prune(ratio=0.5), tt.FineTune(epochs=4, lr=1e-2))),)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, task = make()
    folder = tmp_path_factory.mktemp("runs") / "prices"
    target, goal = tt.Target(runtimes=("onnxruntime",)), tt.Goal("size_bytes", drop=0.5)
    tt.optimize(model, task, target=target, goal=goal, run=folder, recipes=RECIPES, quiet=True)
    return folder


def samples(artifact: Path) -> list[np.ndarray]:
    return [read_array(artifact / sample_name(place)) for place in range(2)]


def test_it_is_judged_by_its_own_metric_and_goal(run: Path) -> None:
    evidence = tt.load(run / "artifact").artifact.evidence
    assert evidence["task"]["binary"] is False
    assert (evidence["task"]["num_inputs"], evidence["task"]["labels"]) == (2, [])
    assert evidence["verdict"]["drop"]["margin"] == 0.5
    assert all(row["metric"] <= 0 for row in evidence["rows"])
    assert evidence["verdict"]["gain"]["value"] > 1.2, "half of the channels are gone, and so is their size"
    assert evidence["examples"] == []


def test_the_artifact_works_wherever_it_is_put(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "artifact", tmp_path / "deep" / "a model")
    here, there = tt.load(run / "artifact"), tt.load(tmp_path / "deep" / "a model")
    size, place = samples(here.path)
    assert size.shape == (5, 4)
    answers = there.run(size, place)
    assert np.array_equal(answers, here.run(size, place))
    with torch.no_grad():
        from_graph = there.graph(torch.from_numpy(size), torch.from_numpy(place)).numpy()
    assert np.allclose(from_graph, answers, rtol=1e-4, atol=1e-5)
    assert there.run(size[:1], place[:1]).shape == (1, 2)


def test_each_input_is_checked(run: Path) -> None:
    loaded = tt.load(run / "artifact")
    size, place = samples(loaded.path)
    for wrong in ((size,), (place, size), (size, place.astype(np.float64)), (size, place[:3]), (size[:0], place[:0])):
        with pytest.raises(RuntimeFailed, match=r"takes|same number"):
            loaded.run(*wrong)


def test_the_printed_use_has_both_inputs_and_shows_values_and_no_classes(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = tt.load(run / "artifact")
    python, shell = usage(loaded.artifact.evidence)
    want = loaded.run(*samples(loaded.path))
    exec(python, {})
    printed = np.array(capsys.readouterr().out.replace("[", " ").replace("]", " ").split(), float).reshape(want.shape)
    assert np.allclose(printed, want, atol=1e-6)
    monkeypatch.setattr(sys, "argv", shlex.split(shell))
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line.partition(": ")[2]) for line in lines] == want.tolist()


def test_the_manifest_cannot_be_edited_unnoticed(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "artifact", tmp_path / "a")
    file = tmp_path / "a" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"precision": "int8"}))
    with pytest.raises(ArtifactError, match=r"manifest\.json has changed since it was written"):
        tt.load(tmp_path / "a")
    file.write_text("{")
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        tt.load(tmp_path / "a")


def test_plans_and_recipe_are_kept_as_data(run: Path) -> None:
    stages = json.loads((run / "artifact" / "plans.json").read_text())
    assert stages[0]["method"] == "prune .5"
    assert stages[0]["settings"]["ratio"] == 0.5
    assert stages[0]["plan"]["cuts"]
    forbidden = {".pkl", ".pickle", ".pt", ".pth", ".bin"}
    assert not [path for path in (run / "artifact").rglob("*") if path.suffix in forbidden]
