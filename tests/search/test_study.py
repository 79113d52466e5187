"""The run's folder: what has ended is never made again; a folder of something else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.core import Skip
from trimtab.errors import RunError
from trimtab.search.study import study

IDENTITY = {"task": "t", "trimtab": "0.1.0"}


def test_what_has_ended_is_read_and_not_made_again(tmp_path: Path) -> None:
    made = []

    def make() -> Skip:
        made.append(1)
        return Skip("a", "b")

    for _ in range(2):
        with study(tmp_path / "run", IDENTITY) as held:
            assert held.once("steps/one", make, Skip) == Skip("a", "b")
            folder = held.once_folder("two", lambda scratch: (scratch / "x").write_text("x"))
            assert (folder / "x").read_text() == "x"
            assert held.has("two")
            assert not held.has("three")
    assert len(made) == 1
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("ended steps/one") == log.count("ended two") == 1


def test_a_step_that_fails_is_not_committed(tmp_path: Path) -> None:
    def fail(scratch: Path) -> None:
        (scratch / "half").write_text("half")
        raise ZeroDivisionError

    with study(tmp_path / "run", IDENTITY) as held:
        with pytest.raises(ZeroDivisionError):
            held.once_folder("two", fail)
        assert not held.has("two")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["lock", "run.json"]


@pytest.mark.parametrize("change", [{"task": "other"}, {"trimtab": "0.0.9"}])
def test_a_folder_of_another_task_or_version_is_refused(tmp_path: Path, change: dict[str, str]) -> None:
    with study(tmp_path, IDENTITY):
        pass
    key, value = next(iter(change.items()))
    words = f"{key}: the folder has '{IDENTITY[key]}', this run has '{value}'"
    with pytest.raises(RunError, match=words), study(tmp_path, IDENTITY | change):
        pass


def test_a_run_may_be_given_more_time_until_it_has_chosen(tmp_path: Path) -> None:
    for minutes in (1, 2):
        with study(tmp_path, IDENTITY, until={"minutes": minutes}) as held:
            assert held.once("worker", lambda minutes=minutes: f"{minutes}", str) == "1"
    with study(tmp_path, IDENTITY, until={"minutes": 2}) as held:
        held.once("choice", lambda: "this", str)
    with study(tmp_path, IDENTITY, until={"minutes": 2}) as held:
        assert held.has("choice"), "as it was left"
    words = "has chosen, with minutes=2, .* with minutes=3 it cannot go on"
    with pytest.raises(RunError, match=words), study(tmp_path, IDENTITY, until={"minutes": 3}):
        pass
    words = "with no minutes given it cannot go on"
    with pytest.raises(RunError, match=words), study(tmp_path, IDENTITY, until={"minutes": None}):
        pass
    words = "holds a run of something else"
    with pytest.raises(RunError, match=words), study(tmp_path, IDENTITY | {"task": "u"}, until={"minutes": 3}):
        pass


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match=r"not a run's folder.*thesis\.tex"), study(tmp_path, IDENTITY):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"], "not even a lock is left"


def test_a_run_killed_at_its_very_start_can_be_started_again(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("1")
    (tmp_path / ".run.json.1234.part").write_text('{"ta')
    with study(tmp_path, IDENTITY):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "run.json"]


def test_a_damaged_identity_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match="is damaged"), study(tmp_path, IDENTITY):
        pass


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with study(tmp_path, IDENTITY), pytest.raises(RunError, match="Another run"), study(tmp_path, IDENTITY):
        pass
