"""The benchmark of packed weights on a small net: cells, files, and the table that is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import weight_only
from models.loaded import Loaded

from tests.compress.test_quantize import task_of
from tests.nets import net
from trimtab.compress.weightonly import WeightOnly
from trimtab.files import read_json


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module, x = net("mlp")
    loaded = Loaded("small", module, task_of(x), lambda model: {"norm": float(model(x).detach().norm())}, "four inputs")
    monkeypatch.setattr(weight_only, "MODELS", {"small": (lambda cache: loaded, 8)})
    monkeypatch.setattr(weight_only, "methods", lambda group, samples: [WeightOnly("int4", group_size=group)])
    monkeypatch.setattr(weight_only, "SERVED", ("eager",))
    weight_only.run("small", tmp_path, tmp_path / "small", 16)
    return tmp_path


def test_each_cell_has_a_graph_its_quality_and_its_files(work: Path) -> None:
    cell = read_json(work / "small" / "int4w-g8" / "cell.json")
    assert cell["method"] == "int4w g8"
    file = read_json(work / "small" / "int4w-g8" / "eager.json")
    assert (file["precision"], file["layers"], file["running"]) == ("int4w", 3, 3)
    assert 0 < file["bytes"] < read_json(work / "small" / "original" / "eager.json")["bytes"]


def test_what_ended_is_not_done_again(work: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.json")}
    weight_only.run("small", work, work / "small", 16)
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.json")} == before


def test_the_report_has_a_line_a_method(work: Path) -> None:
    text = "\n".join(weight_only.report(work))
    assert "## small" in text
    assert "four inputs" in text
    lines = [line for line in text.splitlines() if line.startswith(("| original", "| int4w g8"))]
    assert len(lines) == 2
    assert "3 of 3" in lines[1]
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
