"""An evidence bundle as another person has it: verified claim by claim, compared, and refused where it was altered."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cattrs
import pytest

import trimtab as tt
from tests import small
from tests.machines import Machine
from trimtab import recheck
from trimtab.artifact import evidence_of, load, load_artifact, load_bundle
from trimtab.cli import main
from trimtab.core import Target
from trimtab.errors import ArtifactError, RuntimeFailed, TaskError
from trimtab.files import read_json, sha256, write_json
from trimtab.measure.machine import stamp
from trimtab.recheck import Recheck, verify
from trimtab.report.compare import differences
from trimtab.runtimes.evaluate import Raced

ROUNDS = 6
SPEC = "tests.small:make"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, task = small.make()
    folder = tmp_path_factory.mktemp("runs") / "digits"
    goal = tt.Goal("size_bytes", keep=0.9)
    recipes = small.RECIPES[:1]
    tt.optimize(model, task, target=small.TARGET, goal=goal, run=folder, recipes=recipes, quiet=True)
    return folder


@pytest.fixture(scope="module")
def again(run: Path) -> Recheck:
    return verify(run, small.make()[1], rounds=ROUNDS, quiet=True)


def resealed(run: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the bundle whose evidence was changed by somebody who wrote every hash anew."""
    from trimtab.artifact import BUNDLE, MANIFEST_FILE, _seal

    shutil.copytree(run / BUNDLE, to)
    evidence = read_json(to / "evidence.json")
    change(evidence)
    write_json(to / "evidence.json", evidence)
    manifest = read_json(to / MANIFEST_FILE)
    (to / MANIFEST_FILE).unlink()
    _seal(to, BUNDLE, {key: manifest[key] for key in ("trimtab", "task", "contenders")})
    return to


def test_the_bundle_holds_all_that_the_verdict_rests_on(run: Path) -> None:
    bundle = load_bundle(run)
    evidence = bundle.evidence
    assert evidence == load_artifact(run / "artifact").artifact.evidence
    assert (
        evidence["task"]["data"] == read_json(run / "run.json")["data"] == read_json(bundle.path / "run.json")["data"]
    )
    assert [step["method"] for step in evidence["recipe"]] == ["int8"]
    assert evidence["recipe"][0]["settings"]["samples"] == 256
    blocks = evidence["latency_blocks"]
    assert {20 * len(blocks[role]) for role in blocks} == {len(own) for own in evidence["latency_samples"].values()}
    assert all(len(values) == 600 for values in evidence["outcomes"].values())
    assert (bundle.path / "log.txt").read_text().count(" ended ") > 3
    assert read_json(bundle.path / "plans.json")[0]["method"] == "int8"
    assert {role: (one.runtime, one.precision) for role, one in bundle.contenders.items()} == {
        "reference": ("eager", "fp32"),
        "best_free": ("onnxruntime", "fp32"),
        "chosen": ("onnxruntime", "int8"),
    }
    held = {str(path.relative_to(bundle.path)): sha256(path) for path in bundle.path.rglob("*") if path.is_file()}
    assert bundle.manifest["files"] == {name: digest for name, digest in held.items() if name != "manifest.json"}


def test_every_claim_holds_on_the_machine_that_made_it(again: Recheck) -> None:
    told = {
        claim.what: claim for claim in again.claims if claim.what != "latency p50"
    }  # a time may be off: others work
    assert [claim.what for claim in again.claims if claim.answer != "holds" and claim.what in told] == []
    assert set(told) == {
        "the verdict follows from the recorded samples",
        "accuracy keeps what was allowed",
        "size: better than the best free baseline",
        "size: by as much",
        "the verdict",
        "size on disk",
    }
    assert "otherwise than recorded on 0 of 600 samples" in again.notes[0]


def test_what_was_altered_is_refused_before_anything_runs(run: Path, tmp_path: Path) -> None:
    _, task = small.make()
    for name, state in (("evidence.json", "has changed"), ("contenders/chosen/signature.json", "has changed")):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(run / "bundle", copy)
        (copy / name).write_text((copy / name).read_text() + " ")
        with pytest.raises(ArtifactError, match=state):
            verify(copy, task, quiet=True)
    shutil.copytree(run / "bundle", tmp_path / "less")
    (tmp_path / "less" / "log.txt").unlink()
    with pytest.raises(ArtifactError, match=r"log\.txt is missing"):
        verify(tmp_path / "less", task, quiet=True)
    with pytest.raises(ArtifactError, match="holds nothing to repeat a verdict with"):
        verify(run / "artifact", task, quiet=True)
    with pytest.raises(ArtifactError, match="is an evidence bundle"):
        load(run / "bundle")


def test_another_task_is_refused_with_what_differs(run: Path) -> None:
    _, task = small.make()
    fewer = task.select.batch(slice(0, 50))
    verify_split = task.verify.open("make another task")
    other = tt.Task.of("digits", train=task.train, select=fewer, verify=verify_split, fit=task.fit, labels=task.labels)
    with pytest.raises(TaskError, match=r"another task.*select has 50 samples, it had 300"):
        verify(run, other, quiet=True)


def test_figures_that_do_not_follow_from_the_samples_are_found(run: Path, tmp_path: Path) -> None:
    def flatter(evidence: dict[str, Any]) -> None:
        evidence["outcomes"]["chosen"] = [1.0] * 600

    found = verify(resealed(run, tmp_path / "flattered", flatter), small.make()[1], rounds=ROUNDS, quiet=True)
    assert found.claims[0].answer == "does not hold"
    assert found.answer == "does not hold"


def in_turn(evidence: dict[str, Any], *, shipped: int = 0, tested: int = 2) -> None:
    """As if the chosen one had been the first of two finalists, and the other its like."""
    row = evidence["finalists"][0]
    evidence["finalists"] = [row | {"shipped": place == shipped} for place in range(2)]
    for untested in evidence["finalists"][tested:]:
        untested["verdict"] = None


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda evidence: in_turn(evidence), "holds"),
        (lambda evidence: in_turn(evidence, shipped=1), "does not hold"),  # no faster than the one before it
        (lambda evidence: in_turn(evidence, tested=1), "does not hold"),  # the first passed, so the second was due
    ],
)
def test_what_is_shipped_must_follow_from_the_order(
    change: Callable[[dict[str, Any]], None], answer: str, run: Path, tmp_path: Path
) -> None:
    found = verify(resealed(run, tmp_path / "copy", change), small.make()[1], rounds=ROUNDS, quiet=True)
    claim = next(claim for claim in found.claims if claim.what == "the finalist that the rule ships")
    assert claim.answer == answer


def test_a_finalist_whose_samples_say_otherwise_is_found(run: Path, tmp_path: Path) -> None:
    def worsen(evidence: dict[str, Any]) -> None:
        in_turn(evidence)
        evidence["finalists"][1]["outcomes"] = {"accuracy": [0.0] * 600}

    found = verify(resealed(run, tmp_path / "copy", worsen), small.make()[1], rounds=ROUNDS, quiet=True)
    told = {claim.what: claim.answer for claim in found.claims}
    assert told["the finalist that the rule ships"] == "does not hold"
    assert told["the verdict follows from the recorded samples"] == "holds"


def test_on_another_machine_times_are_not_compared_and_gains_are(run: Path, tmp_path: Path) -> None:
    def elsewhere(evidence: dict[str, Any]) -> None:
        evidence["machine"] |= {"cpu": "Example 9000", "cores": 96}
        evidence["rows"][2]["latency"] |= {"low": 1e-9, "high": 1e-9}
        evidence["verdict"]["gain"] |= {"low": 99.0, "value": 100.0, "high": 101.0}

    found = verify(resealed(run, tmp_path / "elsewhere", elsewhere), small.make()[1], rounds=ROUNDS, quiet=True)
    assert "latency p50" not in {claim.what for claim in found.claims}
    assert any(note.startswith("Recorded on Example 9000, 96 cores; this is ") for note in found.notes)
    answers = {claim.what: claim.answer for claim in found.claims}
    assert answers["size: better than the best free baseline"] == "holds"
    assert answers["size: by as much"] == "does not hold"


HERE = "here"
NAMES = ("latency: better than the best free baseline", "latency: by as much", "the verdict", "latency p50")


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for latency, on a machine that takes a millisecond for a kilobyte."""
    model, task = small.make(width=64)
    folder = tmp_path_factory.mktemp("timed") / "digits"
    with pytest.MonkeyPatch.context() as patched:
        Machine(HERE).put(patched)
        goal = tt.Goal("latency_ms", keep=0.9)
        recipes = small.RECIPES[:1]
        made = tt.optimize(model, task, target=small.TARGET, goal=goal, run=folder, recipes=recipes, quiet=True)
    assert made.verdict.word == "PASS"
    assert 2 < made.verdict.gain.value < 4
    return folder


@pytest.mark.parametrize(
    ("machine", "answers"),
    [
        (Machine(HERE), "holds, holds, holds, holds"),
        (Machine(HERE, ms=2), "holds, holds, holds, does not hold"),  # the ratio is the same, and the time is not
        (Machine(HERE, ms=0.5), "holds, holds, holds, holds"),
        (Machine(HERE, slower={"int8": 1.05}), "holds, holds, holds, holds"),  # as much, to within a tenth
        (Machine(HERE, slower={"int8": 1.5}), "holds, does not hold, holds, does not hold"),
        (Machine(HERE, slower={"int8": 4}), "does not hold, does not hold, does not hold, does not hold"),
        (Machine("Another", ms=3), "holds, holds, holds, none"),
        (Machine("Another", slower={"int8": 4}), "does not hold, does not hold, does not hold, none"),
    ],
)
def test_each_claim_of_speed_holds_here_or_not(
    machine: Machine, answers: str, timed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = evidence_of(timed)["machine"] | ({} if machine.name == HERE else {"cpu": machine.name})
    monkeypatch.setattr(recheck, "race", machine.race)
    monkeypatch.setattr(recheck, "stamp", lambda: here)
    found = verify(timed, small.make()[1], rounds=ROUNDS, quiet=True)
    told = {claim.what: claim.answer for claim in found.claims}
    assert ", ".join(told.pop(name, "none") for name in NAMES) == answers
    assert set(told.values()) == {"holds"}, "the samples, the quality and the size are what they were"
    assert found.answer == ("does not hold" if "does not hold" in answers else "holds")


def test_on_a_busy_machine_what_is_slower_stays_open(timed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(HERE, ms=2, slower={"int8": 1.5})

    def busy(*args: Any, **named: Any) -> dict[str, Raced]:
        return {name: replace(one, others_cores=0.5) for name, one in machine.race(*args, **named).items()}

    monkeypatch.setattr(recheck, "race", busy)
    monkeypatch.setattr(recheck, "stamp", lambda: evidence_of(timed)["machine"])
    found = verify(timed, small.make()[1], rounds=ROUNDS, quiet=True)
    told = {claim.what: claim.answer for claim in found.claims}
    assert [told[name] for name in NAMES] == ["holds", "open", "holds", "open"]
    assert found.answer == "open"
    assert "verify again when it is quiet" in found.notes[-1]


def test_what_this_machine_cannot_run_leaves_claims_open_or_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recheck, "supported", lambda runtime, precision: "no fp32" if runtime != "eager" else None)
    with pytest.raises(RuntimeFailed, match=r"The chosen model of .* cannot run: no fp32"):
        verify(run, small.make()[1], quiet=True)
    monkeypatch.setattr(recheck, "supported", lambda _, precision: "no fp32" if precision == "fp32" else None)
    with pytest.raises(RuntimeFailed, match="The reference model"):
        verify(run, small.make()[1], quiet=True)


def test_two_runs_of_one_task_are_compared(run: Path) -> None:
    first = evidence_of(run)
    second = json.loads(json.dumps(first))
    second["machine"]["cores"] = 96
    second["goal"]["keep"] = 0.8
    second["recipe"][0]["settings"]["samples"] = 64
    changed = [1.0 - value if at < 9 else value for at, value in enumerate(second["outcomes"]["chosen"])]
    second["outcomes"]["chosen"] = changed
    told = {one.what: one for one in differences(first, second)}
    assert (told["goal: keep"].first, told["goal: keep"].second) == ("0.9", "0.8")
    assert told["int8: samples"].second == "64"
    assert told["verdict"].told == "the same"
    assert "other scores on 9 of 600 samples" in told["accuracy"].told
    assert told["latency p50"].told == "not compared: taken on two machines"
    assert told["machine: cores"].second == "96"
    assert "as fast" in next(one.told for one in differences(first, first) if one.what == "latency p50")
    second["task"]["data"] = "0"
    with pytest.raises(ArtifactError, match="different tasks"):
        differences(first, second)


def trimtab(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["trimtab", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(("answer", "code"), [("holds", 0), ("does not hold", 1), ("open", 2)])
def test_the_command_exits_by_the_worst_answer(
    answer: recheck.Answer, code: int, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    claims = (recheck.Claim("fine", "1", "1", "holds"), recheck.Claim("size", "1 kB", "2 kB", answer))
    monkeypatch.setattr(recheck, "verify", lambda *args, **_: Recheck(claims, stamp(), ("Busy.",)))
    assert trimtab(monkeypatch, "verify", str(run), "--task", SPEC) == code
    assert "2 kB" in capsys.readouterr().out
    assert trimtab(monkeypatch, "verify", str(run), "--task", SPEC, "--json") == code
    assert json.loads(capsys.readouterr().out)["answer"] == answer


def test_the_commands_name_what_is_missing(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trimtab(monkeypatch, "verify", str(run)) == 3
    assert "Say where the task is" in " ".join(capsys.readouterr().err.split())
    assert trimtab(monkeypatch, "diff", str(run), str(run / "artifact")) == 0
    assert "the same" in capsys.readouterr().out
    assert trimtab(monkeypatch, "diff", str(run), str(run / "original")) == 3
    assert "original" in capsys.readouterr().err


def test_goal_and_target_come_back_from_the_evidence(run: Path) -> None:
    assert cattrs.structure(evidence_of(run)["target"], Target) == small.TARGET
