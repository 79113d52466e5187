"""What breaks on the way of one candidate ends that candidate, or a part of the page, and never the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import trimtab as tt
from tests import small
from trimtab import attempt, prove
from trimtab.core import Artifact, Trial
from trimtab.errors import RuntimeFailed, TaskError
from trimtab.files import read_json

pytestmark = pytest.mark.slow
DIVERGES = tt.Recipe((tt.FineTune(epochs=1, lr=1e30),))
CRASHES = tt.Recipe((tt.Prune(ratio=0.25),))
WORKS = tt.Recipe((tt.Prune(ratio=0.5), tt.Distill(epochs=1)))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A training that comes to no number, a serving process that dies, a show and a profile that fail at the end."""
    asked: list[int] = []

    def shown(_: tuple[Tensor, ...]) -> str:
        asked.append(1)
        if len(asked) > 1:  # once before the run, then at the verdict
            raise ValueError("no such picture")
        return "a digit"

    def dies(*args: Any, recipe: str, **kwargs: Any) -> Trial:
        if recipe == CRASHES.name:
            raise RuntimeFailed("The serving process was killed (signal 9).")
        return try_one(*args, recipe=recipe, **kwargs)

    def no_profile(*args: Any, **kwargs: Any) -> None:
        raise RuntimeFailed("The serving process was killed at batches of 32.")

    try_one = attempt.try_one
    model, first = small.make(width=64)
    verify = first.verify.open("make the task anew")
    task = tt.Task.of(
        "digits", train=first.train, select=first.select, verify=verify, fit=first.fit, labels=first.labels, show=shown
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt, "try_one", dies)
        patch.setattr(prove, "profile", no_profile)
        return tt.optimize(
            model,
            task,
            target=small.TARGET,
            goal=tt.Goal("size_bytes", keep=0.9),
            run=tmp_path_factory.mktemp("broken") / "run",
            recipes=(DIVERGES, CRASHES, WORKS),
            quiet=True,
        )


def why(result: Artifact, recipe: tt.Recipe) -> str:
    return next(skip["why"] for skip in result.evidence["skipped"] if skip["what"].startswith(recipe.name))


def test_a_training_that_comes_to_no_number_fails_its_trial_alone(result: Artifact) -> None:
    told = why(result, DIVERGES)
    assert "learning rate" in told
    kept = Path(result.path).parent / told.split(" is in ")[1].rstrip(".")
    assert "TaskError" in kept.read_text()


def test_a_serving_process_that_dies_fails_its_trial_alone_and_is_not_tried_again(result: Artifact) -> None:
    assert why(result, CRASHES) == "The serving process was killed (signal 9)."
    (file,) = (Path(result.path).parent / "trials").glob("prune-.25-*.json")
    assert read_json(file)["trial"] is None
    assert result.name.startswith(WORKS.name)


def test_what_only_decorates_the_page_costs_no_verdict(result: Artifact) -> None:
    assert result.verdict.word in ("PASS", "FAIL", "INCONCLUSIVE")
    assert "profile" not in result.evidence
    run = Path(result.path).parent
    assert "not profiled: The serving process was killed at batches of 32." in (run / "log.txt").read_text()
    assert "The task's show raised ValueError: no such picture" in result.evidence["examples"][0]["text"]
    assert "no such picture" in (run / "report.html").read_text(encoding="utf-8")


def test_a_show_that_raises_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    def shown(_: tuple[Tensor, ...]) -> str:
        raise ValueError("no such picture")

    model, first = small.make(width=64)
    verify = first.verify.open("make the task anew")
    task = tt.Task.of("digits", train=first.train, select=first.select, verify=verify, fit=first.fit, show=shown)
    with pytest.raises(TaskError, match="show raised ValueError"):
        tt.optimize(model, task, target=small.TARGET, run=tmp_path / "run", recipes=(WORKS,), quiet=True)
    assert not (tmp_path / "run").exists()
