"""A graph as two files: `graph.json` (the operations, to be read) and `weights.safetensors`; no pickle.

Loading gives back the same operations on the same bits, so the same outputs. Instead of the second file there may be
`weights.coded`, which is shorter where weights share few values (`coded.py`). A trained graph also has
`fisher.safetensors`, half as large as the weights (`fisher.py`); an artifact ships without it.
"""

from __future__ import annotations

import importlib
import json
import math
import operator
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from trimtab.errors import ArtifactError
from trimtab.files import write_atomic, write_json
from trimtab.graph.capture import get_tensor, set_tensor_
from trimtab.graph.coded import tensors_from_coded, tensors_to_coded
from trimtab.graph.fisher import attach_fisher_, load_fisher, save_fisher
from trimtab.graph.modes import TRAINING
from trimtab.graph.shapes import InputSpec, input_specs, refresh_shapes_

FORMAT = 2
GRAPH_FILE = "graph.json"
WEIGHTS_FILE = "weights.safetensors"
CODED_FILE = "weights.coded"
# Operator sets -> the module that registers them, if PyTorch does not do so by itself.
OPERATOR_SETS = {
    "aten": None,
    "quantized_decomposed": "torch.ao.quantization.fx._decomposed",
    "trimtab": "trimtab.graph.packed",
}
# What shape arithmetic is made of. A file names functions to call, so only these, by name, are ever looked up.
PLAIN = {
    f"{module.__name__.lstrip('_')}:{name}": getattr(module, name)
    for module, names in (
        (operator, "add sub mul floordiv truediv mod pow neg getitem eq ne lt le gt ge and_ or_ not_"),
        (math, "floor ceil trunc sqrt"),
        (torch, "sym_int sym_float sym_max sym_min sym_not sym_ite sym_sqrt"),
    )
    for name in names.split()
    if module is not torch or name in torch.__all__
}


def save_graph(graph: GraphModule, folder: Path, *, coded: bool = False) -> tuple[str, str]:
    """Write `graph` into `folder`; returns the two file names.

    Args:
        graph: left as it was.
        folder: made if it is not there.
        coded: each weight in its shortest lossless form (`weights.coded`), which takes longer to write and to open.

    Raises:
        ArtifactError: an operation or an argument has no form in JSON.
    """
    reads = dict.fromkeys(str(node.target) for node in graph.graph.nodes if node.op == "get_attr")
    names = [name for name in reads if name != TRAINING]
    first: dict[int, str] = {}
    same = {name: first.setdefault(id(get_tensor(graph, name)), name) for name in names}
    tensors = {name: get_tensor(graph, name).detach().contiguous() for name in names if same[name] == name}
    described = {
        "format": FORMAT,
        "inputs": [{"name": s.name, "shape": s.shape, "dtype": s.dtype, "high": s.high} for s in input_specs(graph)],
        "tensors": [{"name": name, "from": same[name]} | _role(graph, name) for name in names],
        "nodes": [_node_to_json(node) for node in graph.graph.nodes],
    }
    weights, other = (CODED_FILE, WEIGHTS_FILE) if coded else (WEIGHTS_FILE, CODED_FILE)
    write_atomic(folder / weights, tensors_to_coded(tensors) if coded else tensors_to_bytes(tensors))
    (folder / other).unlink(missing_ok=True)
    save_fisher(graph, folder)
    write_json(folder / GRAPH_FILE, described)
    return GRAPH_FILE, weights


def load_graph(folder: Path) -> GraphModule:
    """The graph that `save_graph` wrote, bit for bit, in eval mode.

    Raises:
        ArtifactError: the files are missing, damaged or of another format.
    """
    try:
        described = json.loads((folder / GRAPH_FILE).read_text(encoding="utf-8"))
        tensors = _read_tensors(folder)
        handed = load_fisher(folder)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ArtifactError(
            f"Cannot read the graph in {folder}: {error}. Restore the folder or make it anew."
        ) from error
    if described.get("format") != FORMAT:
        raise ArtifactError(
            f"{folder / GRAPH_FILE} has format {described.get('format')!r}; this trimtab reads {FORMAT}. "
            "Make the artifact anew with this version."
        )
    root = nn.Module()
    for entry in described["tensors"]:
        source = entry["from"]
        if entry["trains"] and not isinstance(tensors[source], nn.Parameter):
            tensors[source] = nn.Parameter(tensors[source], requires_grad=not entry.get("frozen", False))
        set_tensor_(root, entry["name"], tensors[source])
    # `high` and `frozen` are missing in files that were written before they were known.
    inputs = [InputSpec(s["name"], tuple(s["shape"]), s["dtype"], s.get("high", 1)) for s in described["inputs"]]
    specs = {spec.name: spec for spec in inputs}
    graph, made = Graph(), {}  # type: ignore[var-annotated]
    for entry in described["nodes"]:
        made[entry["name"]] = _node_from_json(graph, entry, made, specs)
    loaded = refresh_shapes_(GraphModule(root, graph, class_name="Graph").eval())
    attach_fisher_(loaded, handed)
    return loaded


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / CODED_FILE).exists():
        return tensors_from_coded((folder / CODED_FILE).read_bytes())
    # Copies: where a tensor lies in the file decides its alignment, and that which kernel rounds it.
    return {name: tensor.clone() for name, tensor in load_tensors(folder / WEIGHTS_FILE).items()}


def _role(graph: GraphModule, name: str) -> dict[str, bool]:
    tensor = get_tensor(graph, name)
    is_weight = isinstance(tensor, nn.Parameter)
    return {"trains": is_weight} | ({"frozen": True} if is_weight and not tensor.requires_grad else {})


def _node_to_json(node: Node) -> dict[str, Any]:
    target = _target_name(node.target) if node.op == "call_function" else str(node.target)
    entry = {"name": node.name, "op": node.op, "target": target, "args": [_to_json(arg) for arg in node.args]}
    return entry | ({"kwargs": {key: _to_json(arg) for key, arg in node.kwargs.items()}} if node.kwargs else {})


def _node_from_json(graph: Graph, entry: dict[str, Any], made: dict[str, Node], specs: dict[str, InputSpec]) -> Node:
    op = entry["op"]
    target = _target(entry["target"]) if op == "call_function" else entry["target"]
    args = tuple(_from_json(arg, made) for arg in entry["args"])
    kwargs = {key: _from_json(arg, made) for key, arg in entry.get("kwargs", {}).items()}
    node = graph.create_node(op, target, args, kwargs, name=entry["name"])
    if op == "placeholder":
        node.meta["spec"] = specs[entry["target"]]
    return node


def _target_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload) and target.namespace in OPERATOR_SETS:
        return str(target)
    for name, function in PLAIN.items():
        if function is target:
            return name
    raise ArtifactError(f"The operation {target} cannot be saved: only {', '.join(OPERATOR_SETS)} operators can.")


def _target(name: str) -> Any:
    if name in PLAIN:
        return PLAIN[name]
    namespace, _, rest = name.partition(".")
    operator_name, _, overload = rest.partition(".")
    if namespace not in OPERATOR_SETS:
        raise ArtifactError(
            f"The graph calls {name!r}, which is neither one of the {', '.join(OPERATOR_SETS)} operators nor shape "
            "arithmetic. It was not written by trimtab: do not trust it."
        )
    if registers := OPERATOR_SETS[namespace]:
        importlib.import_module(registers)
    try:
        return getattr(getattr(getattr(torch.ops, namespace), operator_name), overload)
    except AttributeError as error:
        raise ArtifactError(
            f"The graph calls {name!r}, which this PyTorch {torch.__version__} does not have."
        ) from error


def _to_json(arg: Any) -> Any:
    match arg:
        case Node():
            return {"node": arg.name}
        case None | bool() | int() | str():
            return arg
        case float():
            return arg if math.isfinite(arg) else {"float": str(arg)}
        case list() | tuple():
            return [_to_json(part) for part in arg]
        case slice():
            return {"slice": [_to_json(part) for part in (arg.start, arg.stop, arg.step)]}
        case torch.dtype() | torch.memory_format() | torch.layout():
            return {"torch": str(arg).removeprefix("torch.")}
        case torch.device():
            return {"device": str(arg)}
    raise ArtifactError(f"The argument {arg!r} of type {type(arg).__name__} cannot be saved as JSON.")


def _from_json(arg: Any, made: dict[str, Node]) -> Any:
    match arg:
        case {"node": name}:
            return made[name]
        case {"float": text}:
            return float(text)
        case {"slice": parts}:
            return slice(*(_from_json(part, made) for part in parts))
        case {"torch": name}:
            return getattr(torch, name)
        case {"device": name}:
            return torch.device(name)
        case list():
            return [_from_json(part, made) for part in arg]
    return arg
