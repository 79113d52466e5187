"""Files at other batch sizes and threads: every case in turns, each with what it took."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import trimtab as tt
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes import profile as module
from trimtab.runtimes.evaluate import Exported
from trimtab.runtimes.profile import profile


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    graph = tt.capture(nn.Linear(6, 3), (torch.randn(2, 6),))
    made = {}
    for role in ("best_free", "chosen"):
        folder: Path = tmp_path_factory.mktemp(role)
        RUNTIMES["onnxruntime"].export(graph, folder, precision="fp32", batch_size=1, threads=1)
        made[role] = Exported("onnxruntime", "fp32", folder)
    return made


def test_every_case_has_both_files_and_cold_starts(files: dict[str, Exported], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "num_cores", lambda: 2)
    told: list[str] = []
    inputs = (np.zeros((5, 6), "float32"),)
    found = profile(files, inputs, target=tt.Target(batch_size=4), report=lambda *now: told.append(now[2]))
    assert [(case.threads, case.batch_size, case.role) for case in found.cases] == [
        (threads, size, role) for threads in (1, 2) for size in (1, 4, 8, 32) for role in ("best_free", "chosen")
    ]
    assert told[1] == "batches of 4 on 1 threads"
    for case in found.cases:
        assert case.latency.value > 0
        assert case.throughput.value == pytest.approx(1000 * case.batch_size / case.latency.value, rel=0.9)
    assert {role: len(seconds) for role, seconds in found.cold_start_s.items()} == {"best_free": 2, "chosen": 2}
    assert min(min(seconds) for seconds in found.cold_start_s.values()) > 0.01, "a process cannot start sooner"


def test_what_would_take_too_long_is_left_out(files: dict[str, Exported], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "num_cores", lambda: 1)
    monkeypatch.setattr(module, "MOST_CALL_MS", 0.0)
    assert profile(files, (np.zeros((5, 6), "float32"),), target=tt.Target()).cases == ()
