"""NNCF's quantizer, in an environment of its own: `python half_nncf.py MODEL.onnx CALIBRATION.npz PRESET OUT.xml`.

Presets: "performance", "mixed", "transformer" (mixed, with the model type "transformer"), each with bias correction by
layers, which is the most accurate; "transformer-fast" has the fast one, which is NNCF's default.
NNCF 3.4.0 ends with a KeyError at some embeddings (MiniLM's): those that it names are left in floats.
"""

from __future__ import annotations

import sys
from typing import Any

import nncf
import numpy as np
import openvino


def main() -> None:
    model_file, data_file, preset, out = sys.argv[1:]
    model = openvino.Core().read_model(model_file)
    names = [port.get_any_name() for port in model.inputs]
    with np.load(data_file) as file:
        columns = [file[f"input{place}"] for place in range(len(names))]
    rows = [
        {name: column[place : place + 1] for name, column in zip(names, columns, strict=True)}
        for place in range(len(columns[0]))
    ]
    settings: dict[str, Any] = {"model_type": nncf.ModelType.TRANSFORMER} if "transformer" in preset else {}
    kind = nncf.QuantizationPreset.PERFORMANCE if preset == "performance" else nncf.QuantizationPreset.MIXED
    settings |= {"preset": kind, "subset_size": len(rows), "fast_bias_correction": preset.endswith("fast")}
    openvino.save_model(quantized(model, nncf.Dataset(rows), settings), out, compress_to_fp16=False)


def quantized(model: openvino.Model, data: nncf.Dataset, settings: dict[str, Any]) -> openvino.Model:
    """The quantized model, without the embeddings at which NNCF fails."""
    ignored: list[str] = []
    while True:
        try:
            return nncf.quantize(model.clone(), data, ignored_scope=nncf.IgnoredScope(names=ignored), **settings)
        except KeyError as error:
            name = str(error.args[0]).partition(" ")[2]
            if not name or name in ignored:
                raise
            print(f"left in floats, as NNCF fails at it: {name}", flush=True)
            ignored.append(name)


if __name__ == "__main__":
    main()
