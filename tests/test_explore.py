"""The search end to end on digits: first the given recipes, then what is sampled; alone, shared and killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import trimtab as tt
from tests import small
from trimtab.compress.recipes import default_picks, recipe_of, space_of
from trimtab.core import Search
from trimtab.errors import GoalError, RunError
from trimtab.explore import cheaper_first
from trimtab.graph.capture import capture
from trimtab.search.sampler import all_picks, filled, local

GOAL = tt.Goal("size_bytes", keep=0.97)
TARGET = tt.Target(runtimes=("eager",))  # whose files are written fast


def search(run: Path, **settings) -> tt.Artifact:
    model, task = small.make()
    return tt.optimize(model, task, target=TARGET, goal=GOAL, run=run, quiet=True, search=Search(**settings))


def test_the_space_holds_what_comes_first_and_what_this_model_can_do() -> None:
    model, task = small.make()
    serving = {"fp32": ("eager", "openvino"), "bf16": ("openvino",), "int8": ("openvino",), "int4w": ("openvino",)}
    space = space_of(capture(model, task.select.batch(slice(0, 2)).inputs), serving)
    names = [slot.name for slot in space.slots]
    served = ["runtime of floats", "precision of floats"]
    assert names == ["channels cut", "allocation", "low rank", "order", "epochs of recovery", "numbers", *served]
    assert space.slots[-3].options == (
        "floats",
        "int8",
        "int8, learned rounding",
        "int8, trained",
        "weights in int4",
    )
    assert {skip.what for skip in space.skipped} == {"blocks dropped", "int8 at run time", "weights in int8"}
    assert all(filled(space.slots, picks) for picks in default_picks())
    recipes = [recipe_of(picks) for picks in all_picks(space.slots)]
    assert len({str(recipe) for recipe in recipes}) > 500
    assert recipe_of({"channels cut": "0.5", "low rank": "0.7", "order": "low rank first"}).name.startswith("low rank")


def test_what_serves_a_candidate_is_decided_where_there_is_a_choice() -> None:
    serving = {
        "fp32": ("eager", "openvino"),
        "bf16": ("openvino",),
        "int8": ("openvino",),
        "int8w": ("eager", "openvino"),
    }
    model, task = small.make()
    space = space_of(capture(model, task.select.batch(slice(0, 2)).inputs), serving)
    picks = all_picks(space.slots)
    assert {space.served(one) for one in picks} == {
        *(("eager", precision) for precision in ("fp32", "int8w")),
        *(("openvino", precision) for precision in serving),
    }
    assert not any("precision of floats" in one for one in picks if space.served(one)[0] == "eager")
    first = filled(space.slots, {"channels cut": "0.5", "numbers": "floats"})
    assert first
    assert space.served(first) == ("eager", "fp32")
    other = space.served_as(first, "openvino", "bf16")
    assert other in picks
    assert recipe_of(other) == recipe_of(first)
    assert space.served_as(first, "openvino", "int8") is None
    assert space.served_as(first, "eager", "bf16") is None


def test_a_recipe_that_learns_is_looked_at_without_and_after_little_learning() -> None:
    whole = recipe_of({"channels cut": "0.5", "epochs of recovery": "4", "numbers": "int8"})
    assert [one.name for one in cheaper_first(whole)] == ["prune .5 by obs", "prune .5 by obs + distill 1 epoch"]
    assert len(cheaper_first(recipe_of({"channels cut": "0.5", "epochs of recovery": "1"}))) == 1
    assert cheaper_first(recipe_of({"channels cut": "0.5", "numbers": "int8"})) == ()


def test_recipes_and_a_search_are_not_given_together(tmp_path: Path) -> None:
    model, task = small.make()
    with pytest.raises(GoalError, match="either recipes"):
        tt.optimize(model, task, run=tmp_path / "r", recipes=small.RECIPES, search=Search(trials=3))
    with pytest.raises(GoalError, match="must be 1 or more"):
        Search(trials=0)
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_storage_that_cannot_be_reached_ends_the_run_with_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(RunError, match="cannot be used"):
        search(tmp_path / "r", storage="sqlite:////nowhere/at/all/trials.db", trials=1)


@pytest.mark.slow
def test_a_killed_search_goes_on_with_the_same_sequence(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    for name, kills in (("whole", ()), ("killed", (25, 40))):
        command = [sys.executable, "-m", "tests.test_explore", str(tmp_path / name)]
        for seconds in kills:
            try:
                subprocess.run(command, check=True, timeout=seconds)  # SIGKILL when the time is over
            except subprocess.TimeoutExpired:
                continue
        subprocess.run(command, check=True)
    whole, killed = (
        [trial.params for trial in optuna.load_study(study_name="trimtab", storage=local(tmp_path / name)).trials]
        for name in ("whole", "killed")
    )
    assert killed == whole
    assert len(whole) >= 12


@pytest.mark.slow
def test_two_processes_share_one_search(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{tmp_path}/shared.db"
    command = [sys.executable, "-m", "tests.test_explore"]
    both = [subprocess.Popen([*command, str(tmp_path / name), storage]) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    trials = optuna.load_study(study_name="trimtab", storage=storage).trials
    workers = {trial.user_attrs["worker"] for trial in trials if trial.state.is_finished()}
    assert len(workers) == 2
    tried = [str(trial.params) for trial in trials if trial.state.is_finished() and "same as" not in trial.user_attrs]
    assert len(set(tried)) == len(tried) >= 12
    assert all((tmp_path / name / "artifact").is_dir() for name in "ab")


if __name__ == "__main__":
    torch.set_num_threads(1)
    search(Path(sys.argv[1]), trials=12, storage=sys.argv[2] if len(sys.argv) > 2 else None)
