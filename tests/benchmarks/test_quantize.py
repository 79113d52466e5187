"""The benchmark of quantization: its measures, and its table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import quantize
import torch

from trimtab.compress.quantize import Quantize


def row(cell: str, kl: float, accuracy: float) -> dict[str, Any]:
    found = {"model": "Fashion-MNIST", "cell": cell, "data": "4,000 pictures", "seconds": 3.2, "bits": 8}
    return {**found, "bytes": 250_400, "quality": {"accuracy": accuracy}, "KL": kl, "relative error": kl / 10}


def test_report_marks_the_best_int8() -> None:
    rows = [row("default", 0.002, 0.89), row("original fp32", 0.0, 0.90), row("rounding learned", 0.001, 0.89)]
    lines = quantize.report(rows)
    assert "| | accuracy | KL | relative error | kB | seconds |" in lines
    assert "| original fp32 | 0.900 | 0.00000 | 0.00000 | 250 | 3 |" in lines
    assert "| rounding learned | **0.890** | **0.00100** | **0.00010** | 250 | 3 |" in lines
    assert lines.index("4,000 pictures.") < lines.index("| | accuracy | KL | relative error | kB | seconds |")


def test_nothing_to_report() -> None:
    with pytest.raises(SystemExit, match="no cell to report"):
        quantize.report([])


def test_divergence_is_zero_for_the_original_and_agrees_with_a_known_one() -> None:
    logits = torch.randn(5, 4)
    assert quantize.divergence("MobileNetV2", logits, logits) == {"KL": 0.0, "relative error": 0.0}
    even, sure = torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])
    want = float(torch.nn.functional.kl_div(sure.log_softmax(1), even.softmax(1), reduction="sum"))
    assert quantize.divergence("MobileNetV2", even, sure)["KL"] == pytest.approx(want)
    assert quantize.divergence("MiniLM", sure, 2 * sure) == {"relative error": 1.0}


def test_files_are_asked_sample_by_sample() -> None:
    asked: list[tuple[int, ...]] = []

    def answer(row: tuple[np.ndarray, ...]) -> np.ndarray:
        asked.append(row[0].shape)
        return 2 * row[0]

    x = torch.randn(3, 4)
    assert torch.equal(quantize.Served(answer)(x), 2 * x)
    assert asked == [(1, 4)] * 3


def test_every_setting_is_one_that_quantize_knows() -> None:
    assert all(Quantize(samples=quantize.SAMPLES, **settings).samples == 64 for settings in quantize.OURS.values())
    names = [quantize.file_name(cell) for cell in (quantize.ORIGINAL, *quantize.OURS, *quantize.ORT, *quantize.NNCF)]
    assert len(set(names)) == len(names)
