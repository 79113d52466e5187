"""The example: short enough to read in one go, and it runs as it stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import trimtab as tt

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.py"


def test_the_example_has_at_most_40_lines() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 40


@pytest.mark.slow
def test_the_example_ends_with_a_verdict(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, EXAMPLE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    verdict = tt.load(tmp_path / "runs" / "digits" / "artifact").artifact.verdict
    assert done.stdout.splitlines() == [f"{verdict.word} - {verdict.reason}", "Artifact: runs/digits/artifact"]
    assert verdict.word in ("PASS", "FAIL", "INCONCLUSIVE")
