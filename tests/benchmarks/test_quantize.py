"""The benchmark of quantization: its measures, and its table."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import quantize
import torch
from models.loaded import Loaded
from quantized.cells import BEST, CELLS, NAIVE, ORIGINAL, RIVALS, Cell, Job
from quantized.earlier import read_earlier
from torch import nn

from trimtab.core import Task
from trimtab.files import read_json, write_json

SPLITS = ("train", "select", "verify")


def row(cell: str, runtime: str, kl: float, accuracy: float, **more: Any) -> dict[str, Any]:
    known = next(one for one in CELLS if (one.name, one.runtime) == (cell, runtime))
    found = {"model": "Fashion-MNIST", "cell": cell, "runtime": runtime, "ours": known.ours, "data": "4,000 pictures"}
    figures = {"seconds": 3.2, "bits": 8, "samples": 64, "bytes": 250_400, "times": None}
    return {**found, **figures, "quality": {"accuracy": accuracy}, "KL": kl, "relative error": kl / 10, **more}


def key(cell: str, runtime: str) -> str:
    return next(one.key for one in CELLS if (one.name, one.runtime) == (cell, runtime))


def rows() -> list[dict[str, Any]]:
    rival = "NNCF, mixed"
    faster = {key(rival, "openvino"): [1.02, 0.99, 1.05], key(ORIGINAL, "openvino"): [2.0, 1.9, 2.1]}
    times = {"ms": [2.0, 1.9, 2.1], "n": 160, "gains": faster}
    slower = {"ms": [2.04, 1.9, 2.1], "n": 160, "gains": {key(BEST, "openvino"): [0.98, 0.95, 1.01]}}
    return [
        row(BEST, "openvino", 0.001, 0.89, times=times),
        row(ORIGINAL, "openvino", 0.0, 0.90, times={"ms": [4.0, 3.9, 4.1], "n": 160, "gains": {}}),
        row(rival, "openvino", 0.002, 0.88, times=slower),
        row("default", "onnxruntime", 0.003, 0.88),
    ]


def test_report_marks_the_best_and_tells_the_race() -> None:
    lines = quantize.report(rows())
    assert "| | file for | accuracy | KL | relative error | kB | seconds |" in lines
    assert "| original fp32 | openvino | 0.900 | 0.00000 | 0.00000 | 250 | 3 |" in lines
    assert f"| {BEST} | openvino | **0.890** | **0.00100** | **0.00010** | 250 | 3 |" in lines
    assert "| *rival:* NNCF, mixed | openvino | 0.880 | 0.00200 | 0.00020 | 250 | 3 |" in lines
    assert "| in openvino | ms | times as fast as original fp32 | times as fast as NNCF, mixed |" in lines
    assert f"| {BEST} | 2.00 [1.90, 2.10] | 2.00 [1.90, 2.10] | 1.02 [0.99, 1.05] |" in lines


def test_the_page_compares_the_best_of_each_side() -> None:
    lines = quantize.page(rows(), "quantize_cpu_2026-11-28.md")
    quality = (
        f"| Fashion-MNIST | accuracy | 0.900 | 0.890 ({BEST}, openvino) | 0.880 (NNCF, mixed, openvino) | +0.010 |"
    )
    assert quality in lines
    race = f"| Fashion-MNIST | openvino | 2.00 ms ({BEST}) | 2.04 ms (NNCF, mixed) | 1.02 [0.99, 1.05] | yes |"
    assert race in lines
    undecided = rows()
    undecided[0]["times"]["gains"][key("NNCF, mixed", "openvino")] = [1.0, 0.96, 1.05]
    assert any(line.endswith("| not decided |") for line in quantize.page(undecided, "x.md"))


def test_one_side_alone_is_no_comparison() -> None:
    lines = quantize.page(rows()[:2], "x.md")
    assert not any(line.startswith("| Fashion-MNIST") for line in lines)
    assert any(line.startswith("* Fashion-MNIST: original fp32 (onnxruntime), ") for line in lines)
    plain = [row(NAIVE, "onnxruntime", 0.0, 1.0), *rows()]
    assert not any(NAIVE in line for line in quantize.page(plain, "x.md")), "the plainest setting is not trimtab's best"


def test_an_earlier_report_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "quantize_cpu_2026-11-28.md"
    lines = quantize.report(rows())
    file.write_text("\n".join(lines) + "\n")
    again = read_earlier(file)
    assert {row["earlier"] for row in again} == {file.name}
    anew = quantize.report(again)
    assert anew[3:] == lines[3:]
    assert anew[2] == f"{lines[2]} 4 rows are those of an earlier run, {file.name}."
    mixed = quantize.report([*rows()[:2], *again[2:]])
    words = f"2 rows are those of an earlier run, {file.name}, but for the races of Fashion-MNIST in openvino."
    assert mixed[2].endswith(words)
    assert quantize.page(again, "x.md") == quantize.page(rows(), "x.md")
    close = rows()
    close[0]["times"]["gains"][key("NNCF, mixed", "openvino")] = [1.0, 0.9651, 1.05]  # 0.97 in the table
    file.write_text("\n".join(quantize.report(close)) + "\n")
    assert quantize.page(read_earlier(file), "x.md") == quantize.page(close, "x.md")
    assert any(line.endswith("| not decided |") for line in quantize.page(close, "x.md"))
    file.write_text("# Something else\n")
    with pytest.raises(SystemExit, match="holds no results of this benchmark"):
        read_earlier(file)


def test_cells_of_today_replace_earlier_ones_and_races_are_of_one_run(tmp_path: Path) -> None:
    best, rival = (tmp_path / "Fashion-MNIST" / key(name, "openvino") for name in (BEST, "NNCF, mixed"))
    write_json(best / "cell.json", row(BEST, "openvino", 0.0005, 0.895))
    unraced = quantize.joined(tmp_path, rows())
    assert [one["quality"]["accuracy"] for one in unraced] == [0.895, 0.90, 0.88, 0.88]
    assert [bool(one["times"]) for one in unraced] == [False, True, True, False]
    times = {"ms": [1.0, 0.9, 1.1], "n": 160, "gains": {}}
    for folder in (best, rival):
        write_json(folder / "times.json", times)
    assert [one["times"] for one in quantize.joined(tmp_path, rows())] == [times, None, times, None]


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """One model, and two cells whose files a runtime serves that answers nothing but ones."""
    cells = [Cell(name, "onnxruntime", write, timed=timed) for name, timed in (("a", True), ("b", False))]
    data = torch.randn(3, 4, 3)
    task = Task.of("t", **{name: (x, torch.tensor([0, 1, 2, 0])) for name, x in zip(SPLITS, data, strict=True)})
    loaded = Loaded("Linear", nn.Linear(3, 3), task, lambda model: {"mean": float(model(data[0]).mean())}, "four rows")
    served = SimpleNamespace(load=lambda folder, **how: lambda inputs: np.ones((1, 3), np.float32))
    monkeypatch.setattr(quantize, "MODELS", {"Linear": lambda cache: loaded})
    monkeypatch.setattr(quantize, "cells_of", lambda name, skipped=(): cells)
    monkeypatch.setattr(quantize, "RUNTIMES", {"onnxruntime": served})


@pytest.mark.usefixtures("linear")
def test_every_cell_is_made_and_judged_once(tmp_path: Path) -> None:
    for _ in range(2):
        quantize.run("Linear", tmp_path, tmp_path, {}, ())
    found = [read_json(tmp_path / f"{name}-onnxruntime" / "cell.json") for name in "ab"]
    assert [one["quality"] for one in found] == [{"mean": 1.0}, {"mean": 1.0}]
    assert found[0]["relative error"] == found[1]["relative error"] > 0


@pytest.mark.usefixtures("linear")
def test_of_a_cell_that_is_told_of_only_the_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "judge", lambda *given: pytest.fail("judged again"))
    for _ in range(2):  # the second time it is there
        quantize.run("Linear", tmp_path, tmp_path, {}, (), told=[("a", "onnxruntime"), ("b", "onnxruntime")])
        assert sorted(path.name for path in tmp_path.glob("*/file/*")) == ["model.onnx", "signature.json"]


def write(job: Job, folder: Path) -> float:
    assert not list(folder.iterdir())
    (folder / "model.onnx").write_text("")
    return 0.0


def test_nothing_to_report() -> None:
    with pytest.raises(SystemExit, match="no cell to report"):
        quantize.report([])


def test_divergence_is_zero_for_the_original_and_agrees_with_a_known_one() -> None:
    logits = torch.randn(5, 4)
    assert quantize.divergence("MobileNetV2", logits, logits) == {"KL": 0.0, "relative error": 0.0}
    even, sure = torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])
    want = float(torch.nn.functional.kl_div(sure.log_softmax(1), even.softmax(1), reduction="sum"))
    assert quantize.divergence("MobileNetV2", even, sure)["KL"] == pytest.approx(want)
    assert quantize.divergence("MiniLM", sure, 2 * sure) == {"relative error": 1.0}


def test_files_are_asked_sample_by_sample() -> None:
    asked: list[tuple[int, ...]] = []

    def answer(row: tuple[np.ndarray, ...]) -> np.ndarray:
        asked.append(row[0].shape)
        return 2 * row[0]

    x = torch.randn(3, 4)
    served = quantize.Served(answer)
    assert torch.equal(served(x), 2 * x)
    assert asked == [(1, 4)] * 3
    assert torch.equal(served(x[1:]), 2 * x[1:])
    assert len(asked) == 3, "what was asked before is remembered"


def test_cells_have_names_of_their_own_and_rivals_can_be_left_out() -> None:
    assert len({one.key for one in CELLS}) == len(CELLS)
    every, ours = quantize.cells_of("MiniLM"), quantize.cells_of("MiniLM", ("nncf", "torchao"))
    gone = {one.name for one in every if one not in ours and not one.ours}
    assert gone == {one.name for one in RIVALS if "ONNX" not in one.name}
    assert {one.runtime for one in ours} == {"onnxruntime", "openvino"}
    assert "dynamic" not in {one.name for one in quantize.cells_of("MobileNetV2")}


def test_a_rival_without_an_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["quantize", "--nncf", "python"])
    with pytest.raises(SystemExit):
        quantize.main()
