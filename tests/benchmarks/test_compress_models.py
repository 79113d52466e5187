"""The benchmark of real models: its tables, and a run and a race on a small net; each real model as a task by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import compress_models
import pytest
import tasks
from combined.cells import FAST, ORIGINAL, SMALL, Cell, cells_of, parts_of
from combined.table import page, report
from kept import Part
from models.loaded import Loaded

import trimtab as tt
from tests.compress.test_quantize import task_of
from tests.nets import net


def row(cell: str, coded: int, gain: float) -> dict[str, Any]:
    times = {
        "best": "openvino-bf16",
        "ms": {"openvino-bf16": [4.0, 3.9, 4.1]},
        "gain": [gain, gain - 0.1, gain + 0.1, 8],
    }
    return {
        "model": "Net",
        "cell": cell,
        "data": "100 samples",
        "seconds": 3.0,
        "macs": 0.8,
        "quality": {"AUC": 0.98},
        "alike": [0.95, -0.05, -0.08, -0.02, 100],
        "coded": coded,
        "files": {"openvino-bf16": 2_000_000},
        "times": times | ({"gain": None} if cell == ORIGINAL else {}),
    }


def test_report_says_alone_and_together() -> None:
    rows = [row(ORIGINAL, 1200, 1.0), row("int8", 400, 1.5), row("pruned by .1", 1000, 1.2), row(FAST, 350, 1.6)]
    refused = {"model": "Net", "cell": "one block shared", "data": "100 samples", "refused": "no twins", "times": None}
    text = "\n".join(report({"silero_vad": Part("today, here", [*rows, refused])}))
    assert (
        "| int8 | 0.980 | 0.950 (0.920 ... 0.980) | 0.800 | 3.00 | 2.00 | openvino-bf16 | 4.00 | 1.50 (1.40 ... 1.60)"
        in text
    )
    assert (
        "- combined for speed (pruned by .1, int8): 1.20 x 3.00 = 3.60 times smaller, coded alone, 3.43 together."
        in text
    )
    assert "- combined for speed (pruned by .1, int8): 1.20 x 1.50 = 1.80 times faster alone, 1.60 together." in text
    assert "| one block shared | refused: no twins |" in text
    assert "100 samples. Measured today, here." in text
    assert "Not run: palette of 4 bits, .4 zeros, combined for size" in text
    assert "| Net | combined for speed | 0.950 (0.920 ... 0.980) | 3.43 | 1.60 (1.50 ... 1.70) |" in "\n".join(
        page({"silero_vad": rows}, "x.md")
    )


def test_what_was_not_raced_is_said() -> None:
    rows = [row(ORIGINAL, 1200, 1.0), row(SMALL, 100, 1.0) | {"times": None}]
    text = "\n".join(report({"silero_vad": Part("today, here", rows)}))
    assert "| 12.00 | 2.00 | not raced |" in text
    assert "times faster" not in text


def test_nothing_to_report() -> None:
    with pytest.raises(SystemExit, match="no cell to report"):
        report({})


@pytest.mark.parametrize("model", tasks.LOADERS)
def test_the_parts_of_a_combination_stand_alone_too(model: str) -> None:
    for cell in cells_of(model, 64):
        if len(cell.methods) > 1:
            assert len(parts_of(model, cell)) == len(cell.methods)


@pytest.mark.slow
def test_a_run_and_a_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = net("conv")
    loaded = Loaded("Net", module, task_of(x), lambda model: {"first": float(model(x)[0, 0].detach())}, "128 samples")
    cells = [Cell(ORIGINAL, ()), Cell("pruned", (tt.Prune(ratio=0.5),)), Cell("shared", (tt.ShareBlocks(9),))]
    monkeypatch.setattr(compress_models, "LOADERS", {"silero_vad": lambda: loaded})
    monkeypatch.setattr(compress_models, "cells_of", lambda model, samples: cells)
    monkeypatch.setattr(compress_models, "SERVED", ("onnxruntime",))
    monkeypatch.setattr(compress_models, "ROUNDS", 3)
    compress_models.run("silero_vad", tmp_path)
    compress_models.timed("silero_vad", tmp_path)
    original, pruned, shared = compress_models.rows_of(tmp_path, "silero_vad")
    assert original["alike"][1] == 0
    assert pruned["macs"] < 1
    assert pruned["coded"] < original["coded"]
    assert len(pruned["times"]["gain"]) == 4
    assert "ShareBlocks" in shared["refused"]
