"""Several processes, one search: what another found is made and measured here before it can be chosen here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import trimtab as tt
from tests import small
from tests.machines import EAGER, FASTER, Machine, begun, next_of
from trimtab import prove
from trimtab.compress.recipes import recipe_of
from trimtab.core import Artifact, Search, Trial
from trimtab.errors import RunError
from trimtab.explore import _adopt as adopt
from trimtab.graph.cost import num_parameters
from trimtab.report.terminal import Progress
from trimtab.search.sampler import Proposal, Result, Sampler, filled
from trimtab.search.space import choose, cost
from trimtab.tasks.resolve import resolve
from trimtab.underway import BITS_GAIN, Sampling

CUT = "channels cut"


def two_workers(folder: Path, machines: Sequence[Machine], first: Sequence[Mapping[str, str]]) -> list[Sampling]:
    """On one storage, each on its machine, with one of the `first` proposals tried by each."""
    storage, found = f"sqlite:///{folder}/shared.db", []
    for machine in machines:
        with pytest.MonkeyPatch.context() as patched:
            machine.put(patched)
            found.append(begun(folder / machine.name, first, storage=storage, worker=machine.name))
            next_of(found[-1])
    return found


def adopted(own: Sampling, machine: Machine) -> Trial:
    """Have `own` adopt on its machine; what is chosen after that."""
    with pytest.MonkeyPatch.context() as patched:
        machine.put(patched)
        adopt(own)
    return chosen(own)


def chosen(own: Sampling) -> Trial:
    return choose(own.under_way.trials(), own.under_way.job.chance)


def ms(own: Sampling, recipe: str) -> float:
    (trial,) = (one for one in own.under_way.trials() if one.recipe == recipe)
    return cost(trial, "latency_ms")


def test_two_machines_of_unequal_speed_end_with_the_same_choice_each_by_its_own_times(tmp_path: Path) -> None:
    fast, slow = Machine("fast"), Machine("slow", ms=50.0)
    one, other = two_workers(tmp_path, [fast, slow], [{CUT: "0.25"}, {CUT: "0.5"}])
    gentle, bold = "prune .25 as measured", "prune .5 as measured"
    assert [trial.recipe for trial in one.under_way.trials()] == [gentle]
    assert [trial.recipe for trial in other.under_way.trials()] == [bold]
    assert ms(one, gentle) < ms(other, bold) / 10, "by absolute time the worse one would win"
    assert chosen(one).recipe == gentle, "what another has found is not chosen before it is made here"
    assert [adopted(one, fast).recipe, adopted(other, slow).recipe] == [bold, bold]
    assert ms(other, bold) == pytest.approx(50 * ms(one, bold)), "each measured by itself"
    assert [trial.recipe for trial in other.under_way.trials()] == [bold], "the worse one of the other is not made"


def test_what_is_better_on_the_other_machine_alone_is_measured_here_and_not_chosen(tmp_path: Path) -> None:
    able, unable = Machine("able"), Machine("unable", slower={"int8w": 9.0})
    packed, cut = {CUT: "0.25", "numbers": "weights in int8"}, {CUT: "0.25"}
    one, other = two_workers(tmp_path, [able, unable], [packed, cut])
    picks = filled(other.space.slots, packed)
    assert picks
    foreseen = other.predicted(other.in_floats(picks), Proposal(9, picks))
    assert foreseen == other.uncorrected(other.in_floats(picks), ("eager", "int8w")) / BITS_GAIN, "no time of the other"
    assert adopted(one, able).precision == "int8w"
    assert adopted(other, unable).precision == "fp32"
    (measured,) = (trial for trial in other.under_way.trials() if trial.precision == "int8w")
    assert measured.gain
    assert measured.gain.value < chosen(other).gain.value < chosen(one).gain.value


def test_of_what_others_found_the_boldest_and_the_best_that_is_likely_are_made_here(tmp_path: Path) -> None:
    """One that passes with a chance of .6 gains most and is no choice, so that it must not hide one that is."""
    machine = Machine("one")
    (own,) = two_workers(tmp_path, [machine], [{CUT: "0.25"}])
    url, slots = f"sqlite:///{tmp_path}/shared.db", own.space.slots
    other = Sampler(url, {}, slots, (), seed=0, worker="other", alone=False)
    found = [
        ({CUT: "0.75"}, 9.0, 0.6),
        ({CUT: "0.5"}, 8.0, 0.99),
        ({CUT: "0.625"}, 7.0, 0.99),
        ({CUT: "0.75", "allocation": "uniform"}, 20.0, 0.1),
    ]
    for picks, gain, chance in found:
        whole = filled(slots, picks)
        assert whole
        name = recipe_of(whole).name
        notes = {"gain": gain, "chance": chance, "recipe": name, "candidate": f"{name} (eager fp32)"}
        other.learn(whole, Result((1 / gain, 0.5), notes))
    assert adopted(own, machine).recipe == "prune .75 as measured", "here it is likely"
    cuts = [f"prune {ratio} as measured" for ratio in (".25", ".5", ".75")]
    assert sorted(trial.recipe for trial in own.under_way.trials()) == cuts


def test_what_had_nothing_to_recover_is_made_here_without_training_too(tmp_path: Path) -> None:
    one, other = Machine("one"), Machine("other")
    found, own = two_workers(tmp_path, [one, other], [{CUT: "0.5", "epochs of recovery": "4"}, {CUT: "0.25"}])
    assert chosen(found).recipe == "prune .5 as measured"
    assert adopted(own, other).recipe == "prune .5 as measured"
    assert not [path.name for path in (tmp_path / "other" / "built").iterdir() if "distill" in path.name]


JUDGED = """
import dataclasses
from pathlib import Path

from tests import small
from trimtab.core import Metric

HERE = Path(__file__).parent
FOLDER, KNOWN = str(HERE / "data"), frozenset({{"a", "b", "c"}})


def right(outputs, targets):
    assert FOLDER and KNOWN and __file__
    return (outputs.argmax(1) == targets).float() * {scale}


def low(inputs, targets):
    return targets < {limit}


def make():
    model, task = small.make(width=64)
    metric = Metric("score", right)
    return model, dataclasses.replace(task, metric=metric, slices={{"low": low}})
"""
PRINTED = """
import json, sys
import trimtab as tt
from trimtab.graph.capture import capture
from trimtab.pipeline import _identity
from trimtab.tasks.resolve import resolve

model, task = resolve(sys.argv[1])
graph = capture(model, task.select.batch(slice(0, 2)).inputs)
print(json.dumps(_identity(model, str(graph.graph), task, tt.Target(), tt.Goal())[0]))
"""


def judged(folder: Path, *, scale: float = 1.0, limit: int = 5) -> str:
    """The name of a task in a file of its own, whose score and slice are so."""
    folder.mkdir(exist_ok=True)
    (folder / "job.py").write_text(JUDGED.format(scale=scale, limit=limit))
    return f"{folder / 'job.py'}:make"


def test_what_a_search_is_of_is_the_same_in_another_process_and_folder(tmp_path: Path) -> None:
    root = Path(tt.__file__).parent.parent
    found = []
    for seed in ("1", "2"):  # of the order in sets
        command = [sys.executable, "-c", PRINTED, judged(tmp_path / f"of {seed}")]
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONHASHSEED": seed}, cwd=root
        ).stdout
        found.append(json.loads(said))
    assert found[0] == found[1]
    assert {"code of metric score", "code of slice low", "code of the loss"} <= set(found[0])
    assert not [value for value in found[0].values() if str(tmp_path) in str(value)]


@pytest.mark.parametrize(
    ("changed", "part"), [({"scale": 0.5}, "code of metric score"), ({"limit": 6}, "code of slice low")]
)
def test_a_metric_or_slice_of_the_same_name_and_other_code_is_refused_by_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], part: str
) -> None:
    Machine("one").put(monkeypatch)
    search = Search(storage=f"sqlite:///{tmp_path}/shared.db", trials=1)

    def run(name: str, **settings: Any) -> Artifact:
        model, task = resolve(judged(tmp_path / "job", **settings))
        folder = tmp_path / name
        return tt.optimize(model, task, target=EAGER, goal=FASTER, run=folder, quiet=True, search=search)

    with monkeypatch.context() as patched:  # as soon as it has begun
        patched.setattr(Progress, "trial", killed)
        for name in ("one", "other"):
            with pytest.raises(Killed):
                run(name)
        with pytest.raises(RunError, match="holds a search of something else") as refused:
            run("third", **changed)
    assert not (tmp_path / "third").exists(), "it is refused before any work"
    differing = [line.strip() for line in str(refused.value).splitlines() if ": it has " in line]
    assert [line.partition(": ")[0] for line in differing] == [part]


class Killed(Exception):
    pass


def killed(*_: object, **__: object) -> None:
    raise Killed


@pytest.mark.slow
def test_a_run_killed_at_its_verdict_ships_what_it_had_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = Machine("fast"), Machine("slow", ms=50.0)

    def run(machine: Machine) -> Artifact:
        machine.put(monkeypatch)
        model, task = small.make(width=64)
        search = Search(storage=f"sqlite:///{tmp_path}/shared.db", trials=2)
        folder = tmp_path / machine.name
        return tt.optimize(model, task, target=EAGER, goal=FASTER, run=folder, quiet=True, search=search)

    with monkeypatch.context() as patched:  # in its second trial
        trial = Progress.trial
        patched.setattr(Progress, "trial", lambda self, *at: killed() if at[0] else trial(self, *at))
        with pytest.raises(Killed):
            run(fast)
    other = run(slow)
    assert other.name == "prune .75 by obs (eager fp32)"
    with monkeypatch.context() as patched:
        patched.setattr(prove, "in_order", killed)
        with pytest.raises(Killed):
            run(fast)
    own = run(fast)
    assert own.name == other.name
    assert own.evidence["recipe"] == other.evidence["recipe"] != []
    sizes = [num_parameters(tt.load(tmp_path / name / "artifact").graph) for name in ("fast", "slow")]
    assert sizes[0] == sizes[1]
