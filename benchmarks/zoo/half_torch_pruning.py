"""Torch-Pruning's half: the same models and ratio, at its own best settings.

Group magnitude importance, no rounding, the layer that makes the output left whole. Three settings, of which the best
one counts: `plain`; `head_dims`, where it is told the number of heads of every attention and narrows the heads; and
`heads`, where it takes out whole heads. The numbers that attention modules keep beside their weights are then set to
what is left, as its own examples do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.steps import (
    TOLERANCE,
    Failed,
    Steps,
    check_agrees,
    check_cut,
    counted_macs,
    in_onnxruntime,
    num_params,
    train_one_step,
)

RATIO = 0.3
COLUMNS = ("cut", "runs", "same shape", "trains", "reloads", "onnxruntime")

FUSED = ("qkv", "query_key_value", "c_attn", "qkv_proj", "Wqkv", "in_proj")
QUERIES = ("q", "query", "q_proj", "q_lin", "query_proj", "to_q", "linear_q")
KEYS = ("k", "key", "k_proj", "k_lin", "key_proj", "to_k", "linear_k")
VALUES = ("v", "value", "v_proj", "v_lin", "value_proj", "to_v", "linear_v")
NUM_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
NUM_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
HEAD_DIM = ("head_dim", "attention_head_size", "key_value_proj_dim", "d_kv", "head_size")
WIDTH = ("all_head_size", "attn_dim", "inner_dim", "embed_dim", "split_size", "dim")


def warm_up() -> None:
    """Let PyTorch load what exporting needs, once for all models."""
    import torch_pruning  # noqa: F401 - loaded here, used later

    with torch.no_grad():
        torch.onnx.export(nn.Linear(2, 2), (torch.zeros(2, 2),), dynamo=True, verbose=False)


def measure(
    module: nn.Module, inputs: tuple[Tensor, ...], *, setting: str, record: dict[str, Any], save: Callable[..., None]
) -> None:
    """Fill `record` for one model at one setting; the module is changed."""
    steps = Steps(record, COLUMNS, save)
    record["params"] = [num_params(module)]
    record["macs"] = [counted_macs(module, inputs)]
    heads = _heads(module) if setting != "plain" else {}
    if setting != "plain" and not heads:
        record["columns"] = dict.fromkeys(COLUMNS, "no attention was found that it can be told of")
        save(record)
        return
    with torch.no_grad():
        shape = module(*inputs).shape
    steps.run("cut", lambda: _prune_(module, inputs, heads, setting))
    record["params"].append(num_params(module))
    if record["columns"]["cut"] is True:
        steps.run("cut", lambda: check_cut(*record["params"]))
    expected = steps.run("runs", lambda: _output(module, inputs))
    if expected is None:
        return
    record["macs"].append(counted_macs(module, inputs))
    steps.run("same shape", lambda: _same_shape(expected, shape))
    steps.run("trains", lambda: train_one_step(module, inputs))
    with tempfile.TemporaryDirectory() as folder:
        steps.run("reloads", lambda: _reload(module, inputs, expected, Path(folder) / "model.pt"))
        steps.run("onnxruntime", lambda: _onnxruntime(module, inputs, expected, Path(folder) / "model.onnx"))


def _prune_(module: nn.Module, inputs: tuple[Tensor, ...], heads: dict[nn.Module, int], setting: str) -> None:
    import torch_pruning as tp

    whole = setting == "heads"
    left = dict(heads)  # the pruner writes into it
    pruner = tp.pruner.BasePruner(
        module,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=RATIO,
        ignored_layers=_last_layers(module, inputs),
        in_channel_groups={},
        out_channel_groups={},
        num_heads=left,
        prune_num_heads=whole,
        prune_head_dims=not whole,
        head_pruning_ratio=RATIO if whole else 0.0,
    )
    pruner.step()
    for attention, projections in _attentions(module):
        if projections[0] in heads:
            _set_heads_(attention, projections, pruner.num_heads)


def _attentions(module: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """Modules with a fused projection, or with ones for queries, keys and values, in this order."""
    for part in module.modules():
        children = dict(part.named_children())
        fused = [children[name] for name in FUSED if name in children]
        split = [next((children[n] for n in names if n in children), None) for names in (QUERIES, KEYS, VALUES)]
        found = fused[:1] or split
        projections = [child for child in found if child is not None and hasattr(child, "weight")]
        if projections and len(projections) == len(found):
            yield part, projections


def _number(part: nn.Module, names: tuple[str, ...]) -> int | None:
    values = (getattr(part, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _width(projection: nn.Module) -> int:
    # nn.Linear, nn.Conv2d, and transformers' Conv1D, whose weight is [in, out]
    weight: Any = projection.weight
    return int(weight.shape[1] if type(projection).__name__ == "Conv1D" else weight.shape[0])


def _heads(module: nn.Module) -> dict[nn.Module, int]:
    """Each projection of an attention with the number of its heads."""
    heads: dict[nn.Module, int] = {}
    for part, projections in _attentions(module):
        num, dim = _number(part, NUM_HEADS), _number(part, HEAD_DIM)
        for place, projection in enumerate(projections):
            if len(projections) == 1:
                of = num or (_width(projection) // 3 // dim if dim else None)
            elif dim:
                of = _width(projection) // dim
            else:
                of = (place > 0 and _number(part, NUM_KEY_HEADS)) or num
            if of:
                heads[projection] = of
    return heads


def _set_heads_(attention: nn.Module, projections: list[nn.Module], num_heads: dict[nn.Module, int]) -> None:
    """Set the numbers that an attention keeps beside its weights to what is left of them."""
    num = num_heads[projections[0]]
    width = _width(projections[0]) // (3 if len(projections) == 1 else 1)
    for names, value in ((NUM_HEADS, num), (HEAD_DIM, width // num), (WIDTH, width)):
        for name in names:
            if isinstance(getattr(attention, name, None), int):
                setattr(attention, name, value)
    if len(projections) > 1 and projections[1] in num_heads:
        for name in NUM_KEY_HEADS:
            if isinstance(getattr(attention, name, None), int):
                setattr(attention, name, num_heads[projections[1]])
        if hasattr(attention, "num_key_value_groups"):
            attention.num_key_value_groups = num // num_heads[projections[1]]  # type: ignore[assignment]


def _last_layers(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[nn.Module]:
    """The last layer with weights that runs and is as wide as a dim of the output, and what a model calls its head."""
    called: list[nn.Module] = []
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
    leaves = [part for part in module.modules() if isinstance(part, kinds)]
    hooks = [leaf.register_forward_hook(lambda part, args, out: called.append(part)) for leaf in leaves]
    with torch.no_grad():
        shape = module(*inputs).shape
    for hook in hooks:
        hook.remove()
    last = [leaf for leaf in called if _width(leaf) in shape[1:]][-1:]
    named = getattr(module, "get_classifier", lambda: None)()
    listed = named if isinstance(named, (tuple, list)) else [named]
    return [*last, *(part for part in listed if isinstance(part, nn.Module))]


def _output(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        out: Tensor = module.eval()(*inputs)
    if not out.isfinite().all():
        raise Failed("the output is not finite")
    return out


def _same_shape(out: Tensor, shape: torch.Size) -> None:
    if out.shape != shape:
        raise Failed(f"the output is {tuple(out.shape)} where it was {tuple(shape)}")


def _reload(module: nn.Module, inputs: tuple[Tensor, ...], expected: Tensor, path: Path) -> None:
    torch.save(module, path)
    if not torch.equal(_output(torch.load(path, weights_only=False), inputs), expected):
        raise Failed("the loaded model gives other bits")


def _onnxruntime(module: nn.Module, inputs: tuple[Tensor, ...], expected: Tensor, path: Path) -> None:
    with torch.no_grad():
        torch.onnx.export(module.eval(), inputs, path, dynamo=True, verbose=False)
    check_agrees(in_onnxruntime(path, inputs), expected, tolerance=TOLERANCE, what="ONNX Runtime")
