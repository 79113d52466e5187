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
