"""What a training leaves of its gradients with the model: the diagonal of the empirical Fisher matrix.

It is kept beside the weights, not among them: on a module under a name of its own, on a graph in `meta`, in a folder
as `fisher.safetensors`. Copies of the model carry it along, so a reader asks `why_not` first: it is of the weights that
the training ended with, and of no others. Two bytes a weight, in bfloat16: ranks need no more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn
from torch.fx import GraphModule

from trimtab.files import write_atomic

FISHER_FILE = "fisher.safetensors"
_KEY = "trimtab.fisher"


@dataclass(frozen=True)
class Fisher:
    """The mean square of one sample's gradient, for each weight.

    squares: name -> bfloat16, as the weight. weights: name -> SHA-256 of the weight. by: who kept it, for people.
    """

    squares: Mapping[str, Tensor]
    weights: Mapping[str, str]
    by: str

    def __deepcopy__(self, memo: dict[int, Any]) -> Fisher:
        return self  # it is never changed, and models are copied often

    def why_not(self, model: nn.Module) -> str | None:
        """Why it says nothing of `model`; None if it does: every weight is what it was, bit for bit."""
        tensors = dict(model.named_parameters(remove_duplicate=False))
        for name, digest in self.weights.items():
            if name not in tensors:
                return f"the model has no {name} any more"
            if tensors[name].shape != self.squares[name].shape or _hash(tensors[name]) != digest:
                return f"{name} has changed since the training"
        return None


def fisher(model: nn.Module, squares: Mapping[str, Tensor], by: str) -> Fisher:
    """Of the model as it is now, from the mean square of one sample's gradient, by the parameter's name."""
    named = dict(model.named_parameters())
    kept = {name: square.to(torch.bfloat16, memory_format=torch.contiguous_format) for name, square in squares.items()}
    return Fisher(kept, {name: _hash(named[name]) for name in kept}, by)


def attach_fisher_(model: nn.Module, found: Fisher | None) -> None:
    """Leave it with the model; None takes away what there was."""
    kept_with(model).pop(_KEY, None)
    if found is not None:
        kept_with(model)[_KEY] = found


def fisher_of(model: nn.Module) -> Fisher | None:
    """What `attach_fisher_` left, also with what the model was copied from."""
    return kept_with(model).get(_KEY)


def save_fisher(model: nn.Module, folder: Path) -> None:
    """Write what the model has to `folder`, if it is of its weights; else nothing is left there."""
    found = fisher_of(model)
    if found is None or found.why_not(model):
        (folder / FISHER_FILE).unlink(missing_ok=True)
        return
    note = json.dumps({"weights": dict(found.weights), "by": found.by}, sort_keys=True)
    write_atomic(folder / FISHER_FILE, tensors_to_bytes(dict(found.squares), metadata={"note": note}))


def load_fisher(folder: Path) -> Fisher | None:
    """What `save_fisher` wrote, if it did.

    Raises:
        OSError, ValueError, SafetensorError: it is damaged.
    """
    path = folder / FISHER_FILE
    if not path.exists():
        return None
    with safetensors.safe_open(path, framework="pt") as file:
        note = json.loads((file.metadata() or {}).get("note", "{}"))
        squares = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    if not isinstance(note.get("weights"), dict) or note["weights"].keys() != squares.keys() or "by" not in note:
        raise ValueError(f"{FISHER_FILE} does not say which weights it is of")
    return Fisher(squares, note["weights"], note["by"])


def kept_with(model: nn.Module) -> dict[str, Any]:
    """What stays with a model, also when it is copied, and is no part of it."""
    # torch.fx copies a graph's `meta`, and no other attribute.
    return model.meta if isinstance(model, GraphModule) else model.__dict__


def _hash(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous()
    return hashlib.sha256(plain.reshape(-1).view(torch.uint8).numpy().data).hexdigest()
