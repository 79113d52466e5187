"""The artifact of a task of another kind (two inputs, real targets, no class names), and the saved model."""

from __future__ import annotations

import functools
import json
import shlex
import shutil
import sys
from pathlib import Path

import cattrs
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import trimtab as tt
from tests.nets import NETS, net
from trimtab.artifact import Saved, load_artifact, sample_name
from trimtab.cli import main
from trimtab.compress.prune import PrunePlan
from trimtab.errors import ArtifactError, PlanError, RunError, RuntimeFailed
from trimtab.files import read_array, read_json, write_json
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


@pytest.mark.slow
def test_it_is_judged_by_its_own_metric_and_goal(run: Path) -> None:
    evidence = tt.load(run / "artifact").artifact.evidence
    assert evidence["task"]["binary"] is False
    assert (evidence["task"]["num_inputs"], evidence["task"]["labels"]) == (2, [])
    assert evidence["verdict"]["drop"]["margin"] == 0.5
    assert all(row["metric"] <= 0 for row in evidence["rows"])
    assert evidence["verdict"]["gain"]["value"] > 1.2, "half of the channels are gone, and so is their size"
    assert evidence["examples"] == []


@pytest.mark.slow
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


@pytest.mark.slow
def test_each_input_is_checked(run: Path) -> None:
    loaded = tt.load(run / "artifact")
    size, place = samples(loaded.path)
    for wrong in ((size,), (place, size), (size, place.astype(np.float64)), (size, place[:3]), (size[:0], place[:0])):
        with pytest.raises(RuntimeFailed, match=r"takes|same number"):
            loaded.run(*wrong)


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_manifest_cannot_be_edited_unnoticed(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "artifact", tmp_path / "a")
    file = tmp_path / "a" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"precision": "int8"}))
    with pytest.raises(ArtifactError, match=r"manifest\.json has changed since it was written"):
        tt.load(tmp_path / "a")
    file.write_text("{")
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        tt.load(tmp_path / "a")


@pytest.mark.slow
def test_plans_and_recipe_are_kept_as_data(run: Path) -> None:
    stages = json.loads((run / "artifact" / "plans.json").read_text())
    assert stages[0]["method"] == "prune .5"
    assert stages[0]["settings"]["ratio"] == 0.5
    assert stages[0]["plan"]["cuts"]
    forbidden = {".pkl", ".pickle", ".pt", ".pth", ".bin"}
    assert not [path for path in (run / "artifact").rglob("*") if path.suffix in forbidden]
    assert loaded_plans(run) == stages


def loaded_plans(run: Path) -> list:
    return list(tt.load(run / "artifact").plans)


# --- a saved model ---------------------------------------------------------------------------------------------------


@functools.cache
def pruned(name: str) -> tuple[GraphModule, Tensor, tt.Prune, PrunePlan]:
    module, x = net(name)
    method = tt.Prune(0.5)
    graph = tt.capture(module, (x,))
    plan = method.plan(graph)
    return method.apply(graph, plan), x, method, plan


@pytest.mark.parametrize("name", NETS)
def test_a_saved_model_comes_back_bit_for_bit_with_its_plans(name: str, tmp_path: Path) -> None:
    graph, x, method, plan = pruned(name)
    frozen = next(graph.parameters()).requires_grad_(False)
    assert tt.save(graph, tmp_path / "deep" / "model", plans=[(method, plan)]) == tmp_path / "deep" / "model"
    saved = tt.load(tmp_path / "deep" / "model")
    frozen.requires_grad_(True)
    assert isinstance(saved, Saved)
    assert torch.equal(saved.graph(x), graph(x))
    assert saved.graph.state_dict().keys() == graph.state_dict().keys()
    assert all(torch.equal(tensor, graph.state_dict()[key]) for key, tensor in saved.graph.state_dict().items())
    assert [one.requires_grad for one in saved.graph.parameters()] == [
        False,
        *[True] * (len([*graph.parameters()]) - 1),
    ]
    (step,) = saved.plans
    assert (step["method"], step["settings"]["ratio"]) == ("prune .5", 0.5)
    assert cattrs.structure(step["plan"], PrunePlan) == plan
    saved.graph.train()(x).sum().backward()
    assert tt.Prune(0.25, round_to=1).plan(saved.graph).cuts, "it can be pruned further"
    names = {path.name for path in saved.path.iterdir()}
    assert names == {"manifest.json", "plans.json", "graph.json", "weights.safetensors"}


def test_a_saved_model_is_given_back_as_the_class_of_a_factory(tmp_path: Path) -> None:
    graph, x, method, plan = pruned("mlp")

    def make(first: int, second: int) -> nn.Module:
        layers = nn.Linear(16, first), nn.ReLU(), nn.Dropout(0.2), nn.Linear(first, second), nn.GELU()
        return nn.ModuleDict({"layers": nn.Sequential(*layers, nn.Linear(second, 5))})

    class Mine(nn.Module):
        def __init__(self, *widths: int) -> None:
            super().__init__()
            self.layers = make(*widths)["layers"]

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    saved = tt.load(tt.save(graph, tmp_path / "model", plans=[(method, plan)]))
    own = tt.as_module(saved.graph, like=Mine(*(len(cut["kept"]) for cut in saved.plans[0]["plan"]["cuts"])))
    assert torch.equal(own(x), graph(x))


def saved_folder(folder: Path) -> Path:
    graph, _, method, plan = pruned("mlp")
    return tt.save(graph, folder / "model", plans=[(method, plan)])


@pytest.mark.parametrize("name", ["manifest.json", "plans.json", "graph.json", "weights.safetensors"])
def test_any_changed_byte_and_any_missing_file_is_found(name: str, tmp_path: Path) -> None:
    folder = saved_folder(tmp_path)
    good = (folder / name).read_bytes()
    for place in (0, len(good) // 2, len(good) - 2):
        (folder / name).write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(ArtifactError, match=rf"{name} (has changed since|is damaged).*|has format"):
            tt.load(folder)
    (folder / name).unlink()
    with pytest.raises(
        ArtifactError, match=rf"{name} is missing: the saved model is not what was saved|is no artifact"
    ):
        tt.load(folder)
    (folder / name).write_bytes(good)
    assert tt.load(folder).plans
    (folder / "more.txt").write_text("")
    with pytest.raises(ArtifactError, match=r"more\.txt was added: the saved model .*Copy it again from its source"):
        tt.load(folder)


@pytest.mark.parametrize(("key", "value"), [("format", 99), ("kind", "song")])
def test_a_folder_of_another_format_is_refused(key: str, value: object, tmp_path: Path) -> None:
    folder = saved_folder(tmp_path)
    write_json(folder / "manifest.json", read_json(folder / "manifest.json") | {key: value})
    with pytest.raises(ArtifactError, match=rf"{key} {value!r}.*reads format 1 and the kinds artifact, model, bundle"):
        tt.load(folder)


def test_save_refuses_a_folder_that_holds_something_and_leaves_it_alone(tmp_path: Path) -> None:
    graph = pruned("mlp")[0]
    (tmp_path / "mine").mkdir()
    assert tt.save(graph, tmp_path / "mine").is_dir(), "an empty folder will do"
    for path in (tmp_path / "mine", tmp_path / "mine" / "plans.json"):
        before = {file: file.read_bytes() for file in (tmp_path / "mine").iterdir()}
        with pytest.raises(RunError, match=r"exists and is not an empty folder.*give save a new folder"):
            tt.save(graph, path)
        assert {file: file.read_bytes() for file in (tmp_path / "mine").iterdir()} == before
    with pytest.raises(RunError, match=r"Cannot write .*Nothing half-written was left"):
        tt.save(graph, tmp_path / "mine" / "plans.json" / "below")


def test_save_leaves_nothing_of_a_graph_that_it_cannot_keep(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    graph = tt.capture(Odd(), (torch.randn(2, 3),))
    node = next(node for node in graph.graph.nodes if node.op == "call_function")
    node.target = torch.nn.functional.relu
    with pytest.raises(ArtifactError, match="cannot be saved"):
        tt.save(graph, tmp_path / "model")
    assert not [*tmp_path.iterdir()]


def test_save_refuses_what_is_no_graph_and_what_are_no_plans(tmp_path: Path) -> None:
    graph, _, method, plan = pruned("mlp")
    with pytest.raises(PlanError, match=r"got a Linear. Capture it first: tt.save\(tt.capture\("):
        tt.save(nn.Linear(2, 2), tmp_path / "model")
    for wrong in ([plan], [(plan, method)], [("prune", plan)], ["prune"]):
        with pytest.raises(PlanError, match=r"\(method, plan\) pairs, e\.g\. plans="):
            tt.save(graph, tmp_path / "model", plans=wrong)
    assert not [*tmp_path.iterdir()]


def test_what_needs_an_artifact_says_that_a_saved_model_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved_folder(tmp_path)
    with pytest.raises(
        ArtifactError, match="is a saved model, not an artifact: it has no runtime's file and no verdict"
    ):
        load_artifact(folder)
    np.save(tmp_path / "x.npy", np.zeros((2, 16), np.float32))
    for command in (["run", str(folder), "--input", str(tmp_path / "x.npy")], ["report", str(folder)]):
        monkeypatch.setattr(sys, "argv", ["trimtab", *command])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 3
        assert "is a saved model, not an artifact" in capsys.readouterr().err
