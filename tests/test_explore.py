"""The search end to end on digits: first the given recipes, then what is sampled; alone, shared and killed."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import trimtab as tt
from tests import small
from tests.machines import EAGER, FASTER, ByParameters, Machine, begun, digits, next_of
from trimtab import attempt, explore, pipeline
from trimtab.attempt import Job
from trimtab.compress.build import Built
from trimtab.compress.recipes import cheaper_first, default_picks, recipe_of, space_of
from trimtab.core import Drop, Measurement, Search, Trial
from trimtab.errors import GoalError, RunError
from trimtab.explore import SLOWER
from trimtab.explore import _result as tried
from trimtab.explore import _slower as slower
from trimtab.forecast import Forecast
from trimtab.graph.capture import capture
from trimtab.graph.cost import num_parameters
from trimtab.graph.save import load_graph
from trimtab.measure.quality import graded
from trimtab.report.terminal import Progress
from trimtab.runtimes.trial import Bench
from trimtab.search import clock
from trimtab.search.clock import Clock
from trimtab.search.sampler import BY_FORECAST, STORAGE_FILE, Proposal, Result, Sampler, all_picks, filled, local
from trimtab.search.study import Study
from trimtab.train import loop
from trimtab.train.loop import predict
from trimtab.underway import Exploration, OutOfTime, Sampling

GOAL = tt.Goal("size_bytes", keep=0.97)
TARGET = tt.Target(runtimes=("onnxruntime",))  # whose processes start fast
# What serves on a made-up machine, which has eager alone and lacks bf16.
SERVED = dict.fromkeys(("fp32", "int8w", "int4w", "nf4w", "fp16"), ("eager",))
FINISHED = "SELECT COUNT(*) FROM trials WHERE state IN ('COMPLETE', 'FAIL')"


def search(run: Path, **settings) -> tt.Artifact:
    model, task = small.make(width=64)
    return tt.optimize(model, task, target=TARGET, goal=GOAL, run=run, quiet=True, search=Search(**settings))


def test_a_storage_that_is_not_there_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be used"):
        search(tmp_path / "run", storage="sqlite:////nowhere/at/all/trials.db", trials=2)
    assert not (tmp_path / "run").exists()


def test_the_space_holds_what_comes_first_and_what_this_model_can_do() -> None:
    model, task = small.make()
    serving = {"fp32": ("eager", "openvino"), "bf16": ("openvino",), "int8": ("openvino",), "int4w": ("openvino",)}
    space = space_of(capture(model, task.select.batch(slice(0, 2)).inputs), serving, minimise="latency_ms")
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
    left_out = {"blocks dropped", "int8 at run time", "weights in int8", "weights in nf4", "weights in fp16"}
    assert {skip.what for skip in space.skipped} == left_out
    assert all(filled(space.slots, picks) for picks in default_picks("latency_ms", linear=False, residual=True))
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
    space = space_of(capture(model, task.select.batch(slice(0, 2)).inputs), serving, minimise="latency_ms")
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
    assert [one.name for one in cheaper_first(whole, eta=3)] == ["prune .5 by obs", "prune .5 by obs + distill 1 epoch"]
    assert len(cheaper_first(recipe_of({"channels cut": "0.5", "epochs of recovery": "1"}), eta=3)) == 1
    assert cheaper_first(recipe_of({"channels cut": "0.5", "numbers": "int8"}), eta=3) == ()


def free_trial(runtime: str, num_bytes: float) -> Trial:
    drop = Drop(0.9, 0.9, 0.0, -0.01, 0.01, 0.02, 300, 0.95, "given")
    size = Measurement("size_bytes", num_bytes, "B", 1, num_bytes, num_bytes)
    return Trial(runtime, f"{runtime} fp32", "original", runtime, "fp32", drop, (size,), None, 1.0, "o", free=True)


def told(folder: Path, capfd: pytest.CaptureFixture[str], **given: Any) -> list[str]:
    """What a run on a made-up machine tells, line by line, without the times."""
    model, task = small.make(width=64)
    tt.optimize(model, task, target=EAGER, goal=FASTER, run=folder, **given)
    return [line.partition("] ")[2] for line in capfd.readouterr().err.splitlines()]


def test_the_space_is_printed_once_as_a_table_before_anything_is_tried_where_something_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Machine("one").put(monkeypatch)
    listed = (tt.Recipe((tt.Prune(ratio=0.25),)),)
    alone = told(tmp_path / "alone", capfd, recipes=listed)
    assert "trial 1 of 1: prune .25" in alone
    assert not [line for line in alone if line.startswith(("searching ", "decision "))]

    monkeypatch.setattr(pipeline, "recipes_to_try", lambda *_: listed)
    lines = told(tmp_path / "one", capfd, search=Search(trials=2))
    trials = [at for at, line in enumerate(lines) if line.startswith("trial ")]
    assert [lines[at] for at in trials[:1]] == ["trial 1 of 1: prune .25"]
    assert len(trials) > 1, "it was sampled after the listed one"
    (header,) = (at for at, line in enumerate(lines) if line.startswith("decision "))
    left_out = lines.index("left alone:")
    assert lines[header - 1].startswith("searching ")
    assert lines[header - 1].endswith(f" candidates; the trials are kept in {local(tmp_path / 'one')}")
    assert header < left_out < trials[0]

    space = space_of(digits(), SERVED, minimise="latency_ms")
    columns = [lines[header].index(word) for word in ("decision", "options", "when asked")]
    found: list[list[str]] = []
    for line in lines[header + 1 : left_out]:
        cells = [line[start:end].strip() for start, end in pairwise([*columns, None])]
        if cells[0]:
            found.append(cells)
        else:  # what was too wide goes on below
            found[-1] = [" ".join(both).strip() for both in zip(found[-1], cells, strict=True)]
    assert found == [[row["decision"], row["options"], row["asked"]] for row in space.rows()], "and nothing is cut off"
    skips = [f"  {skip.what}: {skip.why}" for skip in space.skipped]
    assert lines[left_out + 1 : left_out + 1 + len(skips)] == skips != []


def test_what_no_allowed_runtime_serves_is_not_made(tmp_path: Path) -> None:
    _, task = small.make()
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    graph = capture(model.eval(), task.select.batch(slice(0, 2)).inputs)
    job = Job(task, tt.Target(runtimes=("eager",)), GOAL, Study(tmp_path), Progress(quiet=True), "")
    bench = Bench(task, job.target, GOAL, graded(task, GOAL, predict(graph, task.select.inputs), task.select))
    recipe = tt.Recipe((tt.Prune(ratio=0.5), tt.Quantize()))
    ended = attempt.attempt(job, bench, Built(graph, tmp_path, ()), [free_trial("eager", 1e6)], recipe)
    assert [skip.what for skip in ended.skipped] == [f"{recipe.name} (eager int8)"]
    assert ended.skipped[0].why.startswith("eager has no int8 here (it would only simulate integers)")
    assert not ended.screen
    assert not list(tmp_path.iterdir())


def test_nothing_is_trained_for_a_runtime_that_the_measurements_refuse(tmp_path: Path) -> None:
    _, task = small.make()
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    graph = capture(model.eval(), task.select.batch(slice(0, 2)).inputs)
    job = Job(task, tt.Target(), GOAL, Study(tmp_path), Progress(quiet=True), "")
    free = [free_trial("eager", 1e6), free_trial("openvino", 1.6e6)]
    bench = Bench(task, job.target, GOAL, graded(task, GOAL, predict(graph, task.select.inputs), task.select))
    under_way = Exploration(job, bench, Built(graph, tmp_path, ()), free, Clock(tmp_path, 9))
    space = space_of(graph, {"fp32": ("eager", "openvino")}, minimise="latency_ms")
    sampler = Sampler(local(tmp_path), {}, space.slots, (), seed=0, worker="a", alone=True)
    forecast = Forecast(graph, minimise=GOAL.minimise, target=job.target, file=tmp_path / "stairs.db")
    own = Sampling(under_way, sampler, space, forecast, "a")
    picks = filled(space.slots, {"channels cut": "0.75", "epochs of recovery": "4", "runtime of floats": "openvino"})
    result = tried(own, Proposal(0, picks))
    assert result.costs == (1.6, 0.0), "at best as good as the original there"
    assert (
        result.notes["why"] == "search in openvino: in size_bytes its best free baseline costs 1.6 times the best one"
    )
    assert not [path.name for path in (tmp_path / "built").glob("*distill*")]
    assert [skip.why for one in under_way.ended.values() for skip in one.skipped] == [result.notes["why"]]


def test_what_is_foreseen_to_be_slower_than_the_original_is_not_tried_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine("one").put(monkeypatch)
    own = begun(tmp_path / "run", [{"channels cut": "0.5", "epochs of recovery": "1"}])
    proposal = own.sampler.ask()
    assert proposal
    own.forecast.times = 10.0
    refused = tried(own, proposal)
    assert refused.costs
    share = refused.costs[0]
    assert refused.costs == (share, 0.0)
    assert share > 1
    why = f"foreseen to cost {share:.2f} times the original there, or the best free baseline"
    assert (refused.notes[BY_FORECAST], refused.notes["why"]) == (True, why)
    (known,) = own.under_way.ended.values()
    assert [(skip.what, skip.why) for skip in known.skipped] == [
        ("prune .5 as measured + distill 1 epoch (eager fp32)", why)
    ]
    folder = own.under_way.job.held.folder
    assert len(list((folder / "built").iterdir())) == 1, "it was cut, to see what is left, and not trained"
    assert not (folder / "screens").exists()

    own.forecast.times = 1.0
    found = tried(own, proposal)
    assert BY_FORECAST not in found.notes
    (trial,) = own.under_way.trials()
    assert trial.gain
    assert found.costs
    assert found.costs[0] == 1 / trial.gain.value < 1
    assert found.notes["gain"] == trial.gain.value


@pytest.mark.parametrize(("times", "tried_there"), [(0.99, False), (0.94, True)])
def test_what_beats_the_original_in_its_runtime_may_still_be_foreseen_to_cost_more_than_the_best_one(
    tmp_path: Path, times: float, tried_there: bool
) -> None:
    learned = digits()
    space = space_of(learned, {"fp32": ("eager", "openvino")}, minimise="latency_ms")
    free = [free_trial("eager", 1e6), free_trial("openvino", 1.2e6)]
    _, task = small.make()
    job = Job(task, tt.Target(), GOAL, Study(tmp_path), Progress(quiet=True), "")
    bench = Bench(task, job.target, GOAL, graded(task, GOAL, predict(learned, task.select.inputs), task.select))
    under_way = Exploration(job, bench, Built(learned, tmp_path, ()), free, Clock(tmp_path, 9))
    sampler = Sampler(local(tmp_path), {}, space.slots, (), seed=0, worker="a", alone=True)
    forecast = ByParameters(learned, minimise=GOAL.minimise, target=job.target, file=tmp_path / "stairs.db")
    own = Sampling(under_way, sampler, space, forecast, "a")
    picks = filled(space.slots, {"channels cut": "0.5", "runtime of floats": "openvino"})
    assert picks
    forecast.times = times / Forecast.share(forecast, own.in_floats(picks), ("openvino", "fp32"), 1.2)
    found = slower(own, Proposal(0, picks))
    assert (found is None) == tried_there
    assert found is None or SLOWER < found[0] == pytest.approx(1.2 * times)


def a_clock_that_jumps_in_epoch_2(patched: pytest.MonkeyPatch) -> list[str]:
    """In the second epoch of any recovery the budget is spent. Returns what the recoveries tell, step by step."""
    now, told, step = [0.0], list[str](), Progress.step

    def heard(self: Progress, done: int, total: int, text: str) -> None:
        if self._phase != "training" and text.startswith("epoch "):
            told.append(text)
            now[0] = 1e4 if text.startswith("epoch 2") else now[0]
        step(self, done, total, text)

    patched.setattr(clock, "time", SimpleNamespace(monotonic=lambda: now[0]))
    patched.setattr(loop, "REPORT_EVERY_SECONDS", 0)
    patched.setattr(Progress, "step", heard)
    return told


def test_a_budget_spent_in_the_middle_of_a_candidate_ends_it_and_what_there_is_is_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine("one").put(monkeypatch)
    told = a_clock_that_jumps_in_epoch_2(monkeypatch)
    model, task = small.make(width=64)
    cuts = [tt.Prune(ratio=ratio) for ratio in (0.25, 0.5, 0.75)]
    recipes = (tt.Recipe(cuts[:1]), tt.Recipe((cuts[1], tt.Distill(epochs=4))), tt.Recipe(cuts[2:]))
    run = tmp_path / "run"
    made = tt.optimize(model, task, target=EAGER, goal=FASTER, run=run, recipes=recipes, quiet=True)
    epochs = [text.split("/")[0] for text in told]
    assert epochs == ["epoch 1"] * (len(told) - 1) + ["epoch 2"], "it was ended after the first step of that epoch"
    skipped = {skip["what"]: skip["why"] for skip in made.evidence["skipped"]}
    for recipe in recipes[1:]:
        assert skipped[recipe.name] == "the budget of 9 minutes was spent"
    assert [trial["recipe"] for trial in made.evidence["trials"]] == ["original", "prune .25"]
    assert made.name == "prune .25 (eager fp32)"
    assert not [path.name for path in (run / "built").iterdir() if "distill" in path.name]
    assert num_parameters(tt.load(run / "artifact").graph) < num_parameters(load_graph(run / "original"))


def test_a_proposal_that_the_end_of_the_budget_found_in_its_training_is_told_as_far_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine("one").put(monkeypatch)
    monkeypatch.setattr(attempt, "SURE", 1.1)  # so that there is something to recover
    told = a_clock_that_jumps_in_epoch_2(monkeypatch)
    own = begun(tmp_path / "run", [{"channels cut": "0.25"}, {"channels cut": "0.75", "epochs of recovery": "4"}])
    assert next_of(own).notes["gain"] > 1
    ended = next_of(own)
    assert told[-1].startswith("epoch 2/4")
    assert ended.notes["why"] == "the budget of 9 minutes was spent"
    assert len(ended.rungs) == 2, "without recovery and after a short one"
    assert ended.costs == ended.rungs[-1]
    skips = [skip for one in own.under_way.ended.values() for skip in one.skipped if skip.why == ended.notes["why"]]
    assert [skip.what for skip in skips] == ["prune .75 as measured + distill"]
    assert [trial.recipe for trial in own.under_way.trials()] == ["prune .25 as measured"]
    known = [result for _, result in own.sampler.ended()]
    assert known[1].notes["why"] == ended.notes["why"], "one that resumes does not try it again"
    with pytest.raises(OutOfTime):
        own.under_way.watch()
    replace(own.under_way, ended={}).watch()  # as long as nothing has ended, there is time


def ended_with(picks: dict[str, str], costs: tuple[float, float] | None, *rungs: tuple[float, float]) -> Any:
    return Proposal(0, picks, "a"), Result(costs, {}, rungs)


def test_what_training_recovered_is_read_from_what_ended() -> None:
    cut, trained = {"channels cut": "0.5"}, {"channels cut": "0.5", "epochs of recovery": "2"}
    ended = [
        ended_with({**cut, "epochs of recovery": "-", "numbers": "int8"}, (0.5, 3.0)),
        ended_with({**trained, "numbers": "int8"}, (0.5, 1.5)),
        ended_with({**trained, "numbers": "floats"}, (0.9, 1.5)),  # nothing is known of it without training
        ended_with({**trained, "numbers": "weights in int8"}, (0.5, 8.0), (0.5, 8.0)),  # it was stopped
        ended_with({"channels cut": "0.75", "epochs of recovery": "4"}, (0.3, 7.0), (0.3, 9.0), (0.3, 8.0)),
        ended_with({"channels cut": "0.75", "epochs of recovery": "2"}, None),
    ]
    sampler: Any = SimpleNamespace(ended=lambda: ended)
    nothing: Any = None
    assert sorted(Sampling(nothing, sampler, nothing, nothing, "a").recoveries()) == [(3.0, 1.5), (9.0, 8.0)]


def test_what_recoveries_so_far_could_not_bring_back_is_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine("one").put(monkeypatch)
    own = begun(tmp_path / "run", [{"channels cut": "0.75", "epochs of recovery": "1"}])
    monkeypatch.setattr(explore, "lost", lambda drops: 5.0)
    monkeypatch.setattr(Sampling, "recoveries", lambda own: [(5.0, 4.5), (9.0, 9.5)])
    ended = next_of(own)
    loses, _, left = ended.notes["why"].partition(", and ")
    assert loses == "prune .75 as measured loses 5 times what is allowed on select"
    assert left == "recoveries of such losses left 90% of them or more"
    assert len(ended.rungs) == 1
    assert not [path.name for path in (own.under_way.job.held.folder / "built").iterdir() if "distill" in path.name]


def test_what_has_nothing_to_recover_is_known_without_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine("one").put(monkeypatch)
    own = begun(tmp_path / "run", [{"channels cut": "0.25"}, {"channels cut": "0.25", "epochs of recovery": "4"}])
    cut, trained = next_of(own), next_of(own)
    assert trained.costs == cut.costs
    assert BY_FORECAST in trained.notes, "it is not counted"
    assert "there is nothing to recover by training" in trained.notes["why"]
    assert not trained.rungs
    assert "gain" not in trained.notes


@pytest.mark.parametrize("left", [0.6, 0.9])
def test_what_recovery_brings_back_goes_on_though_others_look_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: float
) -> None:
    Machine("one").put(monkeypatch)
    own = begun(tmp_path / "run", [{"channels cut": "0.75", "epochs of recovery": "1"}])
    monkeypatch.setattr(attempt, "SURE", 1.1)  # so that there is something to recover
    monkeypatch.setattr(explore, "lost", lambda drops: 1.5)
    monkeypatch.setattr(explore, "promoted", lambda reached, others: False)
    monkeypatch.setattr(Sampling, "recoveries", lambda own: [(2.0, 2.0 * left)])
    next_of(own)
    trained = [path for path in (own.under_way.job.held.folder / "built").iterdir() if "distill" in path.name]
    assert bool(trained) == (1.5 * left <= 1)


@pytest.mark.parametrize(("loss", "goes_on"), [(0.9, True), (1.1, False)])
def test_what_is_within_the_bound_is_trained_though_others_are_better(
    loss: float, goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine("one").put(monkeypatch)
    monkeypatch.setattr(attempt, "SURE", 1.1)  # so that there is something to recover
    monkeypatch.setattr(explore, "promoted", lambda own, others: False)
    monkeypatch.setattr(explore, "lost", lambda drops: loss)
    own = begun(tmp_path / "run", [{"channels cut": "0.25", "epochs of recovery": "1"}])
    ended = next_of(own)
    assert ("not among the best third" in ended.notes.get("why", "")) != goes_on
    assert bool(own.under_way.trials()) == goes_on


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
def test_no_layer_is_timed_and_nothing_sampled_where_no_candidate_is_left(tmp_path: Path) -> None:
    made = search(tmp_path / "r", trials=1)
    assert made.evidence["search"]["candidates"] <= 1
    assert not [name for name in (STORAGE_FILE, "worker.json") if (tmp_path / "r" / name).exists()]


def end_when(run: Path, reached: Callable[[], bool]) -> None:
    """Begin the search in `run`, or go on with it, and kill it when that is reached, before the verdict."""
    process = subprocess.Popen([sys.executable, "-m", "tests.test_explore", str(run)])
    while not reached():
        assert process.poll() is None, "it ended before"
        time.sleep(0.05)
    process.kill()
    process.wait()


def num_finished(run: Path) -> int:
    """The trials that have ended, as the database has them."""
    file = run / STORAGE_FILE
    if not file.exists():
        return 0
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=60)) as base:
        has_table = base.execute("SELECT 1 FROM sqlite_master WHERE name = 'trials'").fetchone()
        return int(base.execute(FINISHED).fetchone()[0]) if has_table else 0


@pytest.mark.slow
def test_a_killed_search_goes_on_with_the_same_sequence(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    for name, kills in (("whole", ()), ("killed", (9, 11))):
        run = tmp_path / name
        for num in kills:
            end_when(run, lambda run=run, num=num: num_finished(run) >= num)
        end_when(run, (run / "choice.json").exists)
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
