"""torchao's PT2E for x86, in an environment of its own: `python half_torchao.py MODEL.pt2 CALIBRATION.npz OUT.pt2`.

MODEL.pt2 is the model as torch.export saves it, for one sample; OUT.pt2 is what inductor makes of it ahead of time, its
weights frozen, for one thread. The settings are torchao's own defaults for this backend. It finds convolutions by the
class of their module, and knows no subclass of `nn.Conv2d` and no `relu6`: the graph it gets says `nn.Conv2d` and
`hardtanh`, or EfficientNet-Lite0 would stay in floats but for its last layer.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch._inductor
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)


def main() -> None:
    model_file, data_file, out = sys.argv[1:]
    torch.set_num_threads(1)
    with np.load(data_file) as file:
        columns = [torch.from_numpy(file[f"input{place}"]) for place in range(len(file.files))]
    rows = [tuple(column[place : place + 1] for column in columns) for place in range(len(columns[0]))]
    module = torch.export.load(model_file).module(check_guards=False)
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.relu6.default):
        node.target, node.args = torch.ops.aten.hardtanh.default, (node.args[0], 0.0, 6.0)
        node.meta["source_fn_stack"] = [(node.name, nn.Hardtanh)]
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default):
        node.meta["source_fn_stack"] = [(node.name, nn.Conv2d)]
    module.recompile()
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    with torch.no_grad():  # with gradients on, freezing is skipped without a word
        prepared = prepare_pt2e(module, quantizer)
        for row in rows:
            prepared(*row)
        program = torch.export.export(convert_pt2e(prepared), rows[0])
        torch._inductor.aoti_compile_and_package(
            program, package_path=out, inductor_configs={"freezing": True, "cpp.threads": 1}
        )


if __name__ == "__main__":
    main()
