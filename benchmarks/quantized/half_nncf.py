"""NNCF's quantizer, in an environment of its own: `python half_nncf.py MODEL.onnx CALIBRATION.npz PRESET OUT.xml`.

The best of its settings for accuracy: the model type "transformer" where the preset says so, bias correction by layers.
"""

from __future__ import annotations

import sys

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
    settings = {"model_type": nncf.ModelType.TRANSFORMER} if preset == "transformer" else {}
    kind = nncf.QuantizationPreset.PERFORMANCE if preset == "performance" else nncf.QuantizationPreset.MIXED
    quantized = nncf.quantize(
        model, nncf.Dataset(rows), preset=kind, subset_size=len(rows), fast_bias_correction=False, **settings
    )
    openvino.save_model(quantized, out, compress_to_fp16=False)


if __name__ == "__main__":
    main()
