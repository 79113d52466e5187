"""The search's clock goes on where a killed process had committed it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.search import clock
from trimtab.search.clock import Clock


def test_time_adds_up_over_processes_and_a_jumping_wall_clock_changes_nothing(tmp_path: Path, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(clock.time, "time", lambda: 1 / 0)
    first = Clock(tmp_path, 2)
    now[0] += 30
    first.commit()
    now[0] += 50  # not committed: the process is killed here
    second = Clock(tmp_path, 2)
    now[0] = 185.0
    assert second.spent() == pytest.approx(35)
    assert second.left() == pytest.approx(85)
    assert Clock(tmp_path, None).left() == float("inf")


def test_a_candidate_is_begun_while_half_of_what_one_takes_is_left(tmp_path: Path, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    own = Clock(tmp_path, minutes=1)
    assert own.room()
    now[0] = 20.0
    own.commit()
    own.commit()  # one that was known took no time, and tells nothing
    now[0] = 49.0
    assert own.room()
    now[0] = 51.0
    assert not own.room(), "9 seconds are left, and one takes 20"
    assert own.left() == 9
    assert Clock(tmp_path, minutes=None).room()
