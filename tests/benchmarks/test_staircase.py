"""The table of the staircase benchmark."""

from __future__ import annotations

from typing import Any

import pytest
import staircase


def row(ratio: float, ms: float, layers_ms: float, macs: int) -> dict[str, Any]:
    sizes = {"macs": macs, "activations": 100}
    return {"ratio": ratio, "ms": ms, "spread": 0.02, "layers_ms": layers_ms, **sizes}


def model(pruned_ms: float) -> dict[str, Any]:
    rows = [row(0.0, 10.0, 8.0, 1000), row(0.5, pruned_ms, 4.0, 250)]
    return {"rows": rows, "seconds": 61.0, "shapes": 12}


def test_report_says_what_is_true() -> None:
    text = "\n".join(staircase.report({"MiniLM": model(6.25)}))
    assert "it is 4.0% on 1 of 7 models: there this holds" in text
    assert "By multiply-accumulates alone it would be 60.0%" in text
    assert "| MiniLM | 0.5 | 10.000 | 6.250 | 2% | -4.0% | -60.0% | 12 | 61 |" in text
    assert (
        "Not run: Fashion-MNIST CNN, MobileNetV2, OCR-CRNN, EfficientNet-Lite0, Whisper tiny, encoder, Silero VAD."
        in text
    )
    assert "it is 25.0% on 1 of 7 models: there this does not hold" in "\n".join(
        staircase.report({"MiniLM": model(8.0)})
    )


def test_nothing_to_report() -> None:
    with pytest.raises(SystemExit, match="no model to report"):
        staircase.report({})
