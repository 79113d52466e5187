"""A goal with several bounds, as a user states it, from the task to the page; and a metric that raises on the way."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from torch import Tensor, nn

import trimtab as tt
from tests import small
from trimtab import prove
from trimtab.core import Artifact
from trimtab.errors import MetricError
from trimtab.report.terminal import summary
from trimtab.tasks.metrics import correct, f1

pytestmark = pytest.mark.slow
RECIPES = (tt.Recipe((tt.Prune(ratio=0.9),)), tt.Recipe((tt.Quantize(samples=128),)))


def strict(outputs: Tensor, targets: Tensor) -> Tensor:
    """A metric that some answers are too bad for: those of the model cut by nine tenths."""
    if correct(outputs, targets).mean() < 0.85:
        raise ValueError("hopeless answers")
    return outputs.softmax(1).gather(1, targets[:, None])[:, 0]


def dark(inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
    return inputs[0].mean(1) > inputs[0].mean()


GOAL = tt.Goal(
    "size_bytes",
    keep=0.9,
    bounds=(
        tt.Bound("F1 of 8", keep=0.8),
        tt.Bound("confidence in the right one", drop=0.1),
        tt.Bound(slice="dark"),
        tt.Bound(per_class=True, drop=0.3),
    ),
)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    model, first = small.make()
    task = tt.Task.of(
        "digits",
        train=first.train,
        select=first.select,
        verify=first.verify.open("make the task anew"),
        fit=first.fit,
        labels=first.labels,
        metrics=(f1(8), tt.Metric("confidence in the right one", strict, limits=(0.0, 1.0))),
        slices={"dark": dark},
    )
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    run = tmp_path_factory.mktemp("runs") / "digits"
    return tt.optimize(model, task, target=small.TARGET, goal=GOAL, run=run, recipes=RECIPES, quiet=True)


def bounds(result: Artifact) -> dict[str, Any]:
    return {bound["what"]: bound for bound in result.evidence["bounds"]}


def test_every_bound_is_shown_with_what_select_and_verify_tell(result: Artifact) -> None:
    found = bounds(result)
    classes = [f"accuracy, {digit}" for digit in range(10)]
    assert list(found) == ["accuracy", "F1 of 8", "confidence in the right one", "accuracy of dark", *classes]
    assert all(bound["select"]["n"] < bound["verify"]["n"] for bound in found.values())
    assert found["accuracy"]["verify"]["n"] == 600
    assert sum(found[name]["verify"]["n"] for name in classes) == 600
    assert found["F1 of 8"]["verify"]["method"].startswith("paired BCa bootstrap")
    assert found["confidence in the right one"]["verify"]["margin"] == 0.1
    assert [bound["percent"] for bound in found.values()] == [True, False, False, *[True] * 11]


def test_the_verdict_needs_every_bound(result: Artifact) -> None:
    words = [held.word for held in result.verdict.bounds]
    assert result.verdict.drop == result.verdict.bounds[0].drop
    assert result.name.startswith("int8")
    assert result.verdict.word == "PASS", result.verdict.reason
    assert words == ["PASS"] * 14
    assert "and so do 13 more bounds" in result.verdict.reason


def test_a_metric_that_raises_fails_its_trial_and_keeps_the_traceback(result: Artifact) -> None:
    run = Path(result.path).parent
    why = next(skip["why"] for skip in result.evidence["skipped"] if skip["what"] == RECIPES[0].name)
    assert "'confidence in the right one' raised ValueError: hopeless answers" in why
    kept = (run / why.split(" is in ")[1].rstrip(".")).read_text()
    assert 'raise ValueError("hopeless answers")' in kept
    assert "test_prove.py" in kept


def test_page_and_terminal_show_the_bounds(result: Artifact) -> None:
    page = (Path(result.path).parent / "report.html").read_text(encoding="utf-8")
    assert "What had to stay true" in page
    assert all(f">{what}<small>" in page for what in bounds(result))
    console = Console(width=200, record=True, file=io.StringIO())
    summary(result.evidence, console=console)
    told = console.export_text()
    assert "PASS  F1 of 8 changed by" in told
    assert told.count("allowed, ") == len(result.verdict.bounds) - 1


def scored_with(bad: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[list[str], list[str]]:
    """Who is scored, and what is told, where the metric raises at the answers of `bad`."""

    def graded(task: object, goal: object, answers: str, split: object) -> dict[str, str]:
        if answers == bad:
            raise MetricError("'strict' raised ValueError.")
        return {"strict": answers}

    monkeypatch.setattr(prove, "graded", graded)
    roles = ("reference", "best_free", "finalist 1", "finalist 2", "finalist 3")
    picked = {role: SimpleNamespace(id=role.replace(" ", "-"), candidate=f"the {role}") for role in roles}
    raced = {role: SimpleNamespace(answers=role) for role in roles}
    job = SimpleNamespace(task=None, goal=None, held=SimpleNamespace(folder=tmp_path))
    scored, skips = prove._scored(job, picked, raced, None)
    return list(scored), [f"{skip.what}: {skip.why}" for skip in skips]


def test_a_metric_that_raises_at_a_bolder_finalist_ends_the_order_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scored, told = scored_with("finalist 2", monkeypatch, tmp_path)
    assert scored == ["reference", "best_free", "finalist 1"]
    assert told == ["finalist the finalist 2: 'strict' raised ValueError. The traceback is in failures/finalist-2.txt."]
    assert "MetricError" in (tmp_path / "failures" / "finalist-2.txt").read_text()
    for first in ("finalist 1", "reference"):
        with pytest.raises(MetricError):
            scored_with(first, monkeypatch, tmp_path)
