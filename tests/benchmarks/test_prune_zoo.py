"""The coverage benchmark's own code, on a net made by hand: no timm, no transformers, no Torch-Pruning."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import prune_zoo  # noqa: E402 - found through the line above
from zoo import half_torch_pruning, half_trimtab, steps, table, worker  # noqa: E402
from zoo.hf_models import ENTRIES as HF  # noqa: E402
from zoo.timm_models import ENTRIES as TIMM  # noqa: E402


def make_net(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A small net; `slow` takes too long, `fixed` cannot be captured."""
    if name.endswith("slow"):
        while time.process_time() < 60:
            pass
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    x = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return (Fixed(net) if name.endswith("fixed") else net.eval()), (x,)


class Fixed(nn.Module):
    """Reads a value out of a tensor."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """The net, or its opposite."""
        out: Tensor = self.inner(x)
        return out if out.sum().item() > 0 else -out


def record(model: str, *, half: str = "trimtab", setting: str = "full", columns: dict[str, Any]) -> dict[str, Any]:
    return {
        "half": half,
        "model": model,
        "setting": setting,
        "commit": "abc",
        "columns": columns,
        "params": [100, 60],
        "macs": [1000, 500],
        "groups": [3, 1],
        "skipped": [["head (10)", "it is the model's output"]],
        "ended": True,
    }


def test_trimtabs_half_passes_every_column(tmp_path: Path) -> None:
    path = worker.record_path(tmp_path, "trimtab", "hand:net", "full")
    worker.run_one("trimtab", "hand:net", "full", path, "abc", make_net)
    got = json.loads(path.read_text(encoding="utf-8"))
    assert got["columns"] == dict.fromkeys(half_trimtab.COLUMNS, True)
    assert got["ended"]
    assert got["params"][1] < got["params"][0]
    assert got["macs"] == [36 * 3 * 9 * 8 + 8 * 4, 36 * 3 * 9 * 6 + 6 * 4]
    assert got["groups"] == [1, 1]


def test_a_quick_run_ends_after_training(tmp_path: Path) -> None:
    path = tmp_path / "quick.json"
    worker.run_one("trimtab", "hand:net", "quick", path, "abc", make_net)
    assert json.loads(path.read_text(encoding="utf-8"))["columns"] == dict.fromkeys(half_trimtab.QUICK, True)


def test_what_cannot_be_captured_is_told(tmp_path: Path) -> None:
    path = tmp_path / "fixed.json"
    worker.run_one("trimtab", "hand:fixed", "full", path, "abc", make_net)
    columns = json.loads(path.read_text(encoding="utf-8"))["columns"]
    assert "CaptureError" in columns["exports"]
    assert columns["cut"] == "not reached"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_model_that_takes_too_long_is_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worker.run_many("trimtab", ["hand:slow"], tmp_path, settings=["quick"], limit=0.5, commit="abc", make=make_net)
    got = json.loads(worker.record_path(tmp_path, "trimtab", "hand:slow", "quick").read_text(encoding="utf-8"))
    assert got["died"].startswith("exit code -24, limit 0.5 CPU s: ")
    assert "[1/1] trimtab hand:slow: 0 of 6" in capsys.readouterr().out


def test_a_step_that_fails_says_why(tmp_path: Path) -> None:
    saved: list[dict[str, Any]] = []
    ran = steps.Steps({}, ["one", "two"], saved.append)
    assert ran.run("one", lambda: 7) == 7
    assert ran.run("two", lambda: steps.check_cut(100, 96)) is None
    assert ran.record["columns"] == {"one": True, "two": "only 4.0% of the parameters went (100 -> 96)"}
    assert saved[-1] is ran.record


def test_a_training_step_that_moves_nothing_fails() -> None:
    net = nn.Linear(2, 2, bias=False)
    steps.train_one_step(net, (torch.ones(2, 2),))
    with pytest.raises(steps.Failed, match="no weight moved"):
        steps.train_one_step(net, (torch.zeros(2, 2),))


def test_outputs_that_differ_fail() -> None:
    steps.check_agrees(torch.ones(2), torch.ones(2), tolerance=0, what="it")
    with pytest.raises(steps.Failed, match=r"it is 1.0e\+00 off"):
        steps.check_agrees(torch.zeros(2), torch.ones(2), tolerance=1e-3, what="it")
    with pytest.raises(steps.Failed, match=r"it gives \(3,\) where \(2,\)"):
        steps.check_agrees(torch.ones(3), torch.ones(2), tolerance=1e-3, what="it")


def test_the_rival_is_told_of_the_heads() -> None:
    attention = nn.Module()
    attention.qkv = nn.Linear(32, 96)
    attention.num_heads, attention.head_dim = 4, 8  # type: ignore[assignment]
    heads = half_torch_pruning._heads(attention)
    assert heads == {attention.qkv: 4}
    attention.qkv = nn.Linear(32, 72)
    half_torch_pruning._set_heads_(attention, [attention.qkv], {attention.qkv: 4})
    assert (attention.num_heads, attention.head_dim) == (4, 6)


def test_the_rivals_last_layer_is_left_whole() -> None:
    net, inputs = make_net("net")
    assert half_torch_pruning._last_layers(net, inputs) == [net[-1]]  # type: ignore[index]


def test_the_best_setting_counts(tmp_path: Path) -> None:
    bad = dict.fromkeys(table.THEIRS, "RuntimeError: no")
    good = dict.fromkeys(table.THEIRS, True)
    for setting, columns in (("plain", bad), ("heads", good), ("head_dims", bad)):
        path = worker.record_path(tmp_path, "torch_pruning", "hand:net", setting)
        worker.write_record(path, record("hand:net", half="torch_pruning", setting=setting, columns=columns))
    best = table.read_records(tmp_path, "torch_pruning")
    assert best["hand:net"]["setting"] == "heads"
    assert table.all_passed(best["hand:net"])


def test_totals_are_of_the_models_that_export_and_that_both_tried() -> None:
    good = record("a", columns=dict.fromkeys(table.OURS, True))
    no_export = record("b", columns=dict.fromkeys(table.OURS, "CaptureError: no"))
    theirs = record("a", half="torch_pruning", columns={**dict.fromkeys(table.THEIRS, True), "runs": "no"})
    lines = table.totals({"a": good, "b": no_export, "c": good}, {"a": theirs, "b": theirs}, ["a", "b", "c"])
    assert lines[0] == "| of 1 models | trimtab | Torch-Pruning 1.6.1 |"
    assert lines[2] == "| cut by 5 % of the parameters or more | 1 (100.0 %) | 1 (100.0 %) |"
    assert lines[-1] == "| **all of it** | **1 (100.0 %)** | **0 (0.0 %)** |"


def test_the_results_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = prune_zoo.all_models()[:2]
    columns = {**dict.fromkeys(table.OURS, True), "onnxruntime": "RuntimeFailed: no a | b at /x/site-packages/y.py:3"}
    for name, mine in zip(names, (dict.fromkeys(table.OURS, True), columns), strict=True):
        worker.write_record(worker.record_path(tmp_path, "trimtab", name, "full"), record(name, columns=mine))
    results = tmp_path / "results.md"
    prune_zoo.main(["--work", str(tmp_path), "--table", str(results), "--only", *names])
    text = results.read_text(encoding="utf-8")
    assert f"| {names[0]} | 100 | yes | yes | yes | yes | yes | yes | -40 % | -50 % | 3 / 1 |" in text
    assert f"- {names[1]}: onnxruntime: `RuntimeFailed: no a \\| b at y.py:3`" in text
    assert "6 groups were cut and 2 left whole (25 %):" in text
    assert str(tmp_path) not in text
    monkeypatch.setattr(prune_zoo, "run", lambda *_: pytest.fail("nothing is left to run"))
    prune_zoo.main(["--work", str(tmp_path), "--failures", str(tmp_path / "fails.md"), "--only", names[0], "--failed"])
    assert names[1] in (tmp_path / "fails.md").read_text(encoding="utf-8")


def test_a_results_file_is_read_back(tmp_path: Path) -> None:
    names = prune_zoo.all_models()[:4]
    late = dict.fromkeys(table.THEIRS, "did not end (time or memory)")
    failed = {**dict.fromkeys(table.OURS, True), "onnxruntime": "RuntimeFailed: no a | b"}
    for half, name, columns in (
        ("trimtab", names[0], dict.fromkeys(table.OURS, True)),
        ("trimtab", names[1], failed),
        ("torch_pruning", names[1], late),
        ("torch_pruning", names[2], dict.fromkeys(table.THEIRS, True)),
    ):
        worker.write_record(worker.record_path(tmp_path, half, name, "full"), record(name, half=half, columns=columns))
    (tmp_path / "none").mkdir()
    first, second = tmp_path / "first.md", tmp_path / "second.md"
    prune_zoo.main(["--work", str(tmp_path), "--table", str(first)])
    prune_zoo.main(["--work", str(tmp_path / "none"), "--table", str(second), "--earlier", str(first)])
    one, two = (path.read_text(encoding="utf-8") for path in (first, second))
    told = [
        [line for line in text.splitlines() if line.startswith(("| timm:", "| hf:", "| **all", "- "))]
        for text in (one, two)
    ]
    assert told[0] == told[1]
    assert f"- {names[1]}: onnxruntime: `RuntimeFailed: no a \\| b`" in told[1]
    assert "1 models ran out of time or died" in two
    assert "2 rows of trimtab are of an earlier run on another machine, first.md." in two


def test_unknown_models_are_refused() -> None:
    with pytest.raises(SystemExit, match="No such model: resnet19"):
        prune_zoo.wanted(prune_zoo.all_models(), ["resnet19"])


def test_the_lists_are_long_enough() -> None:
    kinds = {entry.kind for entry in HF.values()}
    assert len(HF) >= 30
    assert len(TIMM) >= 98
    assert {"tokens", "pair", "image", "wave"} <= kinds
