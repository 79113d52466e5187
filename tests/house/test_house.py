"""The house rules that a machine can hold: rooms, budgets, the front door, style, types, import time, flags."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import trimtab
from trimtab.core import Goal, Search, Target

ROOT = Path(trimtab.__file__).parent
REPO = ROOT.parent
FILES = sorted(ROOT.rglob("*.py"))
# Data flows down this list, imports point up it; what shares a line never imports each other.
ORDER = [
    ["errors"],
    ["core"],
    ["files"],
    ["tasks"],
    ["measure"],
    ["graph"],
    ["runtimes"],
    ["optim"],
    ["train"],
    ["compress"],
    ["artifact"],
    ["search", "diagnose"],
    ["report"],
    ["attempt", "attribute", "forecast", "teach"],
    ["underway"],
    ["explore"],
    ["prove"],
    ["pipeline", "recheck", "watch"],
    ["track"],
    ["cli"],
    ["__main__"],
]
RANK = {room: rank for rank, line in enumerate(ORDER) for room in line}
# core names one later room inside a function: Task.of is the front door to what checks a task.
ALLOWED = {("core", "tasks")}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST) -> set[str]:
    names = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    rooms = {name.split(".")[1] for name in names if name.startswith("trimtab.")}
    return rooms | {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "trimtab"
        for alias in node.names
    }


@pytest.mark.parametrize(
    "path", [p for p in FILES if p != ROOT / "__init__.py"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_point_up(path: Path) -> None:
    room = room_of(path)
    assert room in RANK, f"{path} is in no room of ORDER"
    wrong = {
        other
        for other in imported_rooms(ast.parse(path.read_text()))
        if other != room and (room, other) not in ALLOWED and RANK[other] >= RANK[room]
    }
    assert not wrong, f"{room} must not import {wrong}"


def test_search_imports_core_files_and_measure_alone() -> None:
    for path in (ROOT / "search").glob("*.py"):
        assert imported_rooms(ast.parse(path.read_text())) <= {"core", "errors", "files", "measure", "search"}, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_budgets(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= (200 if path.name == "pipeline.py" else 500)
    assert len(path.relative_to(ROOT).parts) <= 2
    commands = path.name == "cli.py"  # a command's parameters are its flags
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"
            count = len(node.args.args) + len(node.args.kwonlyargs)
            assert commands or count <= 8, f"{node.name} takes {count} parameters"


def test_the_front_door_is_true() -> None:
    assert sorted(trimtab.FRONT_DOOR) == trimtab.__all__ == sorted(set(trimtab.__all__))
    assert len(trimtab.__all__) <= 40
    for name in trimtab.__all__:
        assert getattr(trimtab, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = trimtab.nonsense


def test_import_is_cheap_and_lazy() -> None:
    code = "import sys, trimtab; print(sorted({'torch', 'numpy', 'scipy', 'onnx', 'plotly'} & set(sys.modules)))"
    assert run(sys.executable, "-c", code).stdout.strip() == "[]"
    code = "import sys, trimtab.runtimes.worker; print(sorted({'torch', 'scipy', 'onnx', 'plotly'} & set(sys.modules)))"
    assert run(sys.executable, "-c", code).stdout.strip() == "[]"


def test_style_and_types() -> None:
    for command in (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"]):
        result = run(sys.executable, "-m", *command)
        assert result.returncode == 0, result.stdout + result.stderr


def test_no_flag_exists_that_python_lacks() -> None:
    from trimtab import cli, pipeline
    from trimtab.compress.allocate import Budget
    from trimtab.compress.importance import MEASURES
    from trimtab.compress.prune import Prune
    from trimtab.core import Fit
    from trimtab.diagnose.examine import examine
    from trimtab.recheck import verify
    from trimtab.teach.train import train
    from trimtab.teach.verify import verify_resume
    from trimtab.track import tracked, tracked_training
    from trimtab.watch import PORT, watch

    fields = {field.name for value in (Goal, Search, Target) for field in dataclasses.fields(value)}
    known = fields | set(inspect.signature(pipeline.optimize).parameters) | set(inspect.signature(tracked).parameters)
    flags = set(inspect.signature(cli.optimize).parameters)
    assert flags <= known, flags - known
    pairs = ((cli.run, pipeline.run), (cli.report, pipeline.rewrite_report), (cli.verify_resume, verify_resume))
    for command, function in pairs:
        assert set(inspect.signature(command).parameters) == set(inspect.signature(function).parameters)
    assert set(inspect.signature(cli.verify).parameters) - {"as_json"} <= set(inspect.signature(verify).parameters)
    assert set(inspect.signature(cli.watch).parameters) == set(inspect.signature(watch).parameters) - {"ready"}
    assert inspect.signature(cli.watch).parameters["port"].default == PORT
    seen = set(inspect.signature(cli.doctor).parameters) - {"as_json"}
    assert seen <= fields | set(inspect.signature(examine).parameters)
    of_fit = {field.name for field in dataclasses.fields(Fit)}
    of_training = set(inspect.signature(train).parameters) | set(inspect.signature(tracked_training).parameters)
    assert set(inspect.signature(cli.train).parameters) <= of_fit | of_training
    settings = {field.name for value in (Prune, Budget) for field in dataclasses.fields(value)}
    flags_of_prune = set(inspect.signature(cli.prune).parameters)
    assert flags_of_prune <= settings | set(inspect.signature(pipeline.prune).parameters)
    for field in dataclasses.fields(Prune):
        if field.name in flags_of_prune:
            default = inspect.signature(cli.prune).parameters[field.name].default
            assert getattr(default, "value", default) == field.default, field.name
    assert {one.value for one in cli.Importance} == set(MEASURES)
    for value in (Goal, Search, Target):
        for field in dataclasses.fields(value):
            if field.name in flags:
                default = inspect.signature(cli.optimize).parameters[field.name].default
                assert getattr(default, "value", default) == field.default, field.name


def test_nothing_is_unsafe() -> None:
    words = ("import pickle", "torch.save(", "torch.load(", "weights_only=False", "shell=True", "TODO", "FIXME")
    for path in FILES:
        found = [word for word in words if word in path.read_text()]
        assert not found, f"{path}: {found}"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)
