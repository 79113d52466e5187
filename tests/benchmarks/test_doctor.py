"""The benchmark of the doctor: its parts add up, and its tables say what was found."""

from __future__ import annotations

import pytest
from doctor import MODELS, text, timed

from tests.diagnose.test_examine import digits


def test_a_look_is_timed_part_by_part_and_told() -> None:
    found, parts = timed(*digits())
    assert next(iter(parts)) == "data"
    assert sum(parts.values()) == pytest.approx(found.seconds, rel=0.2)
    told = text({"digits": found}, {"digits": parts}, 9.0)
    assert f"The longest look took {found.seconds:.0f} s (under 60 s)." in told
    line = next(line for line in told.splitlines() if line.startswith("| digits | "))
    assert "onnxruntime yes" in line
    assert "places, up to" in told
    assert len(MODELS) == 8
