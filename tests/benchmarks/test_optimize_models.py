"""The table of real models that went the whole way, and the command that sends them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import optimize_models
import pytest

EVIDENCE: dict[str, Any] = {
    "machine": {"cpu": "A", "features": ["avx2"], "python": "3.11.7"},
    "versions": {"torch": "2", "onnxruntime": "1"},
    "verdict": {
        "word": "PASS",
        "reason": "Quality holds.",
        "drop": {"diff": -0.01, "low": -0.02, "margin": 0.05, "what": "cosine", "n": 300},
        "gain": {"value": 1.5, "low": 1.4, "high": 1.6},
    },
    "rows": [{"name": "eager fp32"}, {"name": "int8 (onnxruntime int8)"}],
    "timeline": [{"end_s": 7.0}, {"end_s": 90.4}],
}


def test_report_says_what_came_of_each_and_what_was_not_run() -> None:
    other = EVIDENCE | {"machine": {"cpu": "B", "features": ["avx2", "amx"], "python": "3.11.7"}}
    found = {"silero_vad": EVIDENCE, "ocr_crnn": other, "minilm_l6": EVIDENCE}
    text = "\n".join(optimize_models.report(found))
    assert "A, avx2; Python 3.11.7, torch 2, onnxruntime 1: silero_vad, minilm_l6.\n" in text
    assert "B, avx2, amx; Python 3.11.7, torch 2, onnxruntime 1: ocr_crnn.\n" in text
    row = "| silero_vad | PASS | int8 (onnxruntime int8) | 1.50 (1.40 ... 1.60) | cosine | -0.0100 (-0.0200; -0.050)"
    assert f"{row} | 300 | 90 |" in text
    assert "- silero_vad: Quality holds." in text
    assert "Not run: mobilenet_v2" in text


def test_what_is_no_verdict_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = iter([2, 3])
    seen: list[list[str]] = []

    def ran(command: list[str], *, check: bool) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        return subprocess.CompletedProcess(command, next(codes))

    monkeypatch.setattr(subprocess, "run", ran)
    optimize_models.run("silero_vad", tmp_path)
    assert "benchmarks/tasks.py:silero_vad" in seen[0][4]
    with pytest.raises(SystemExit, match="silero_vad ended with 3"):
        optimize_models.run("silero_vad", tmp_path)
    with pytest.raises(SystemExit, match="No run has ended"):
        optimize_models.report({})
