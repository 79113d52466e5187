"""Checkpoints: one safetensors file, whole or absent, that knows its own hash and what it belongs to.

The header's metadata holds `note`, JSON of the step, of what the run is made of (`identity`) and of the optimizer's
values that are no tensors, and `sha256` over that and all tensors. All randomness of a step, its place in the shuffle
included, is seeded by its number (see loop.py), so no generator state and no place in the data is kept.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.errors import RunError
from trimtab.files import write_atomic
from trimtab.train.integers import named_tensors

FORMAT = "trimtab checkpoint 4"


class DamagedCheckpoint(RunError):
    """A checkpoint was truncated or altered; an older one may be whole."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after `step` steps; `identity` says of which model, data and settings.

    values: what the optimizer holds beside tensors, as JSON.
    """

    step: int
    precision: str
    identity: dict[str, str]
    tensors: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, versions: int = 1) -> None:
    """Write it, atomically; of the ones before, `versions - 1` stay (`files.older`).

    Raises:
        RunError: the disk is full or the folder cannot be written; the ones before are as they were.
    """
    described = {key: value for key, value in vars(checkpoint).items() if key != "tensors"}
    note = json.dumps(described, sort_keys=True)
    metadata = {"format": FORMAT, "note": note, "sha256": _hash(note, checkpoint.tensors)}
    write_atomic(path, save(checkpoint.tensors, metadata=metadata), versions=versions)


def load_checkpoint(path: Path, identity: dict[str, str]) -> Checkpoint:
    """Read it, if it is whole and of this run.

    Raises:
        DamagedCheckpoint: it was truncated or altered.
        RunError: it is of another model, data or settings: names the difference.
    """
    try:
        data = path.read_bytes()
        tensors = load(data)
    except (safetensors.SafetensorError, OSError) as error:
        raise DamagedCheckpoint(_damaged(path, str(error))) from error
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    metadata = json.loads(header)["__metadata__"] if b"__metadata__" in header else {}
    note = metadata.get("note", "")
    # The header is filled up with spaces, which no hash is over.
    whole = metadata.get("format") == FORMAT and metadata.get("sha256") == _hash(note, tensors)
    if not whole or not header.rstrip(b" ").endswith(b"}"):
        raise DamagedCheckpoint(_damaged(path, "its content does not match its hash"))
    value: dict[str, Any] = json.loads(note)
    _refuse_other(path, value["identity"], identity)
    return Checkpoint(**value, tensors=tensors)


def tensors_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Copies of the model's parameters and buffers and of the optimizer's state, by name."""
    tensors = {f"model.{name}": tensor for name, tensor in named_tensors(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors |= _leaves(f"optimizer.{key}.{name}", value)
    return {name: _copied(tensor) for name, tensor in tensors.items()}


def values_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """What the optimizer holds beside tensors: of each of its groups, and of each parameter."""
    left = ("params", "param_names")
    groups = [{key: value for key, value in group.items() if key not in left} for group in optimizer.param_groups]
    states = {name: optimizer.state.get(parameter, {}) for name, parameter in model.named_parameters()}
    return {"groups": groups, "state": {name: _plain(dict(state)) for name, state in states.items() if state}}


def restore_(model: nn.Module, optimizer: Optimizer, found: Checkpoint) -> None:
    """Put back what `tensors_of` and `values_of` took, into the very tensors that are there."""
    with torch.no_grad():
        for name, tensor in named_tensors(model).items():
            tensor.copy_(found.tensors[f"model.{name}"])
    parameters = dict(model.named_parameters())
    for name, plain in found.values["state"].items():
        for key, value in plain.items():
            filled = _filled(f"optimizer.{key}.{name}", value, found.tensors, parameters[name])
            optimizer.state[parameters[name]][key] = filled
    for group, values in zip(optimizer.param_groups, found.values["groups"], strict=True):
        # JSON knows no tuples
        group.update({k: tuple(v) if isinstance(group.get(k), tuple) else v for k, v in values.items()})


def _leaves(name: str, value: Any) -> dict[str, Tensor]:
    """The tensors in a value of a state, which is one, or a list, or a number."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, list):
        return {key: leaf for i, one in enumerate(value) for key, leaf in _leaves(f"{name}#{i}", one).items()}
    return {}


def _plain(value: Any) -> Any:
    """The value as JSON, with "tensor" in place of each tensor."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return "tensor" if isinstance(value, Tensor) else value


def _filled(name: str, value: Any, tensors: dict[str, Tensor], parameter: Tensor) -> Any:
    """What `_plain` made plain, with its tensors, laid out as the parameter where they have its shape."""
    if isinstance(value, list):
        return [_filled(f"{name}#{i}", one, tensors, parameter) for i, one in enumerate(value)]
    if value != "tensor":
        return value
    tensor = tensors[name]
    like = parameter if tensor.shape == parameter.shape else tensor
    return torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def describe_model(model: nn.Module) -> dict[str, str]:
    """What a checkpoint must share with a model: its tensors' shapes, and the values it begins from."""
    tensors = {name: _copied(tensor) for name, tensor in named_tensors(model).items()}
    shapes = "; ".join(f"{name} {list(tensor.shape)} {tensor.dtype}" for name, tensor in sorted(tensors.items()))
    return {"model": shapes, "first weights": _hash("", tensors)}


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _hash(note: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(note.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _damaged(path: Path, why: str) -> str:
    return f"The checkpoint {path} is damaged: {why}. Delete it to train from the beginning."


def _refuse_other(path: Path, was: dict[str, str], now: dict[str, str]) -> None:
    for key in now:
        if was.get(key) != now[key]:
            before, after = _difference(was.get(key, "nothing"), now[key])
            raise RunError(
                f"The checkpoint {path} is of another run: its {key} is {before}, and now it is {after}. "
                "Give the arguments it was made with, or another file, or delete it to train from the beginning."
            )


def _difference(was: str, now: str) -> tuple[str, str]:
    """The first entries that differ, where both are lists of entries; else the two."""
    before, after = was.split("; "), now.split("; ")
    for place in range(max(len(before), len(after))):
        pair = [entries[place] if place < len(entries) else "absent" for entries in (before, after)]
        if pair[0] != pair[1]:
            return pair[0], pair[1]
    return was, now
