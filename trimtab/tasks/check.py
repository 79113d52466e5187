"""Refuse a task or a model that would waste hours: empty, overlapping, misfitting or non-finite."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.core import Sealed, Split, Task
from trimtab.errors import TaskError


def check(task: Task) -> None:
    """Refuse data that cannot give a true answer.

    Raises:
        TaskError: an empty split, lengths, shapes or kinds that differ, NaN or inf, labels that are no classes, or
            one sample in two splits.
    """
    splits = _splits(task)
    for name, split in splits.items():
        _check_split(task, name, split)
    _check_alike(splits)
    _check_overlap(splits)


def check_model(module: nn.Module, task: Task) -> None:
    """Refuse a model that the task's inputs or labels do not fit; the model is left as it was.

    Raises:
        TaskError: NaN or inf in a weight, a forward pass that fails, or a label without an output.
    """
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not _finite(tensor):
            raise TaskError(
                f"The model's {name} holds {_not_finite(tensor)}. Such a model cannot be compressed or judged: "
                "load the weights of an earlier checkpoint, or train with a smaller learning rate."
            )
    sample = task.select.batch(slice(0, 2))
    given = ", ".join(f"{tuple(x.shape)} {_kind(x)}" for x in sample.inputs)
    try:
        with evaluating(module), torch.inference_mode():
            outputs = module(*sample.inputs)
    except Exception as error:  # the user's forward may raise anything
        line = next(iter(str(error).strip().splitlines()), "")
        raise TaskError(
            f"The task's inputs do not fit the model: given {given}, {type(module).__name__} raised "
            f"{type(error).__name__}: {line}. Give inputs of the shape that the model's first layer expects, [N, ...]."
        ) from error
    if not isinstance(outputs, Tensor) or len(outputs) != len(sample):
        got = f"{tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise TaskError(
            f"{type(module).__name__} must return one tensor [{len(sample)}, ...] for inputs {given}; it returned "
            f"{got}. Wrap it in a module whose forward returns the tensor that the metric judges."
        )
    if _classifies(task):
        _check_outputs(task, outputs)


def fingerprint(task: Task) -> str:
    """SHA-256, in hex, of the data, the metric's name and `fit`: equal for equal tasks in any process."""
    digest = hashlib.sha256(f"{task.metric.name} {task.fit}".encode())
    digest.update(" ".join([*(metric.name for metric in task.metrics), *task.slices]).encode())
    for name, split in _splits(task).items():
        digest.update(f"{name} {fingerprint_split(split)}".encode())
    return digest.hexdigest()


def fingerprint_split(split: Split) -> str:
    """SHA-256, in hex, of the split's shapes, kinds and values."""
    digest = hashlib.sha256()
    for tensor in (*split.inputs, split.targets):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Hold every part of `module` in eval mode, then give each its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _splits(task: Task) -> dict[str, Split]:
    return {"train": task.train, "select": task.select, "verify": behind_the_seal(task.verify)}


def behind_the_seal(sealed: Sealed) -> Split:
    """What is sealed, to see whether it is valid."""
    # For validity and hashes alone: no figure that depends on the answers in it leaves this file, so nothing can be
    # chosen by it, and the seal stays whole for the verdict.
    return sealed._split


def _check_split(task: Task, name: str, split: Split) -> None:
    lengths = [len(x) for x in split.inputs]
    if not lengths or not all((*lengths, len(split.targets))):
        raise TaskError(f"The {name} split is empty: give at least one sample, as (inputs [N, ...], targets [N, ...]).")
    if set(lengths) != {len(split.targets)}:
        raise TaskError(
            f"The {name} split has {' and '.join(map(str, lengths))} inputs but {len(split.targets)} targets: "
            "they must pair up, sample by sample, along the first dim."
        )
    for what, tensor in [
        *((f"inputs[{place}]", x) for place, x in enumerate(split.inputs)),
        ("targets", split.targets),
    ]:
        if not _finite(tensor):
            bad = ~torch.isfinite(tensor).reshape(len(tensor), -1).all(1)
            raise TaskError(
                f"The {name} split's {what} hold {_not_finite(tensor)} in {int(bad.sum())} of {len(tensor)} samples, "
                f"the first at index {int(bad.nonzero()[0])}. Remove those samples, or fill in the gaps."
            )
    if _classifies(task):
        _check_labels(task, name, split.targets)


def _check_labels(task: Task, name: str, targets: Tensor) -> None:
    if targets.is_floating_point():
        raise TaskError(
            f"The {name} split's labels are {_kind(targets)}, and a classification's are whole numbers 0..K-1: "
            "convert them with .long(), or give the loss and metric of a task with real targets."
        )
    num = len(task.labels)
    bad = (targets < 0) | (targets >= num) if num else targets < 0
    if bad.any():
        expected = f"0..{num - 1} (there are {num} class names)" if num else "0 or more"
        raise TaskError(
            f"The {name} split has {int(bad.sum())} labels out of range: expected {expected}, got e.g. "
            f"{int(targets[bad][0])}. Number the classes from 0."
        )


def _check_outputs(task: Task, outputs: Tensor) -> None:
    num = outputs.shape[1] if outputs.ndim > 1 else 1
    largest = max(int(split.targets.max()) for split in _splits(task).values())
    if largest >= num:
        raise TaskError(
            f"The task has label {largest}, but the model has {num} outputs, for labels 0..{num - 1}. "
            "Give the model one output a class, and number the classes from 0."
        )


def _check_alike(splits: dict[str, Split]) -> None:
    def form(split: Split) -> str:
        return ", ".join(f"{tuple(x.shape[1:])} {_kind(x)}" for x in (*split.inputs, split.targets))

    forms = {name: form(split) for name, split in splits.items()}
    if len(set(forms.values())) > 1:
        told = "; ".join(f"{name}: {text}" for name, text in forms.items())
        raise TaskError(
            f"The splits' samples differ in shape or kind (inputs, then targets, without the N): {told}. "
            "Prepare all three in the same way."
        )


def _check_overlap(splits: dict[str, Split]) -> None:
    places = {name: {key: at for at, key in reversed([*enumerate(_hashes(split))])} for name, split in splits.items()}
    for first, second in combinations(splits, 2):
        common = places[first].keys() & places[second].keys()
        if common:
            at = min(places[second][key] for key in common)
            twin = next(places[first][key] for key in common if places[second][key] == at)
            raise TaskError(
                f"The splits {first} and {second} share {len(common)} of {len(splits[second])} samples, e.g. "
                f"{second}[{at}] is {first}[{twin}]. What is judged on data it was made with proves nothing: "
                f"remove them from one split."
            )


def _hashes(split: Split) -> list[bytes]:
    # A cryptographic hash costs no more than reading the bytes, and cannot mistake two samples for one.
    columns = [_bytes(x) for x in split.inputs]
    widths = [len(column) // len(split) for column in columns]
    hashes = []
    for at in range(len(split)):
        digest = hashlib.sha256()
        for column, width in zip(columns, widths, strict=True):
            digest.update(column[at * width : (at + 1) * width])
        hashes.append(digest.digest())
    return hashes


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _finite(tensor: Tensor) -> bool:
    # A sum is NaN or inf if any element is, in one pass without a mask; the mask settles an overflow.
    if not tensor.is_floating_point():
        return True
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _not_finite(tensor: Tensor) -> str:
    return "NaN" if tensor.isnan().any() else "inf"


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _classifies(task: Task) -> bool:
    return bool(task.labels) or task.loss is F.cross_entropy


def fingerprint_weights(module: nn.Module, *, values: bool, graph: str = "") -> str:
    """SHA-256, in hex, of what the module is made of, and of its weights: names and shapes, their values if asked.

    graph: what it computes, as text, where that is known; its parts do not tell what is done between them.
    """
    parts = re.sub(r" at 0x[0-9a-f]+", "", repr(module))
    digest = hashlib.sha256(f"{type(module).__name__} {parts} {graph}".encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if values:
            digest.update(_bytes(tensor))
    return digest.hexdigest()
