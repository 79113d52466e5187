"""Samples as people see them, with the answers before and after: pictures, text or sound as plain JSON values."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from trimtab.core import Split, Task
from trimtab.errors import TaskError
from trimtab.report import words

NUM_EXAMPLES = 48
LONGEST_TEXT, LONGEST_SECONDS = 400, 10.0
# Scores nearer to each other than this are the same answer.
SAME = 1e-6


def examples(
    task: Task, answers: Sequence[np.ndarray], scores: Sequence[np.ndarray], split: Split
) -> list[dict[str, Any]]:
    """Verify samples with the answers of the original and of the chosen one, those that changed most first.

    Args:
        task: says how a sample is shown; pictures need no telling. Without either, the list is empty.
        answers: of both models, [N, ...] each.
        scores: of both, by the task's metric, [N] each; [N, D] if it is an aggregate.
        split: the samples.
    """
    if task.show is None and not _are_pictures(split):
        return []
    named = _named(task, answers, split)
    told = named or _scored(task, answers, scores)
    changed = [before != after for _, before, after in told]
    moved = np.abs(scores[1] - scores[0]).reshape(len(split), -1).max(1)
    order = sorted(range(len(split)), key=lambda at: (not changed[at], 0.0 if named else -moved[at]))[:NUM_EXAMPLES]
    picture = _Pictures(split)
    found = []
    for at in order:
        label, before, after = told[at]
        shown = _shown_or_why(task, split, at) if task.show else {"png": picture.png(at)}
        found.append({**shown, "label": label, "before": before, "after": after, **_worse(named, scores, at)})
    return found


def check_show(task: Task) -> None:
    """Try the task's own function on a sample of `select`, before hours are spent.

    Raises:
        TaskError: it raised, or returned something else than text, a picture or a sound.
    """
    if task.show is not None:
        _shown(task, task.select, 0)


def _shown_or_why(task: Task, split: Split, at: int) -> dict[str, str]:
    """The sample; or why it cannot be shown, as a verdict is not lost for that."""
    try:
        return _shown(task, split, at)
    except TaskError as error:
        return {"text": str(error)}


def _are_pictures(split: Split) -> bool:
    x = split.inputs[0]
    return x.ndim == 4 and x.shape[1] in (1, 3) and x.is_floating_point()


def _named(task: Task, answers: Sequence[np.ndarray], split: Split) -> list[tuple[str, str, str]]:
    """What each sample is and what both models say, by name; empty if there are no class names."""
    if not task.labels or any(one.ndim != 2 or one.shape[1] != len(task.labels) for one in answers):
        return []
    old, new = (one.argmax(1) for one in answers)
    names = task.labels
    return [(names[int(split.targets[at])], names[int(old[at])], names[int(new[at])]) for at in range(len(split))]


def _scored(task: Task, answers: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> list[tuple[str, str, str]]:
    """The score of each sample before and after; of an aggregate, which has none a sample, the largest answers."""
    values = scores if scores[0].ndim == 1 else [one.reshape(len(one), -1).max(1) for one in answers]
    told = []
    for before, after in zip(*values, strict=True):
        same = abs(before - after) <= SAME * max(1.0, abs(before))
        texts = [
            f"{task.metric.name} {words.significant(float(value), 4)}" for value in (before, before if same else after)
        ]
        told.append(("", texts[0], texts[1]))
    return told


def _worse(named: Sequence[Any], scores: Sequence[np.ndarray], at: int) -> dict[str, bool]:
    return {} if named or scores[0].ndim > 1 else {"worse": bool(scores[1][at] < scores[0][at])}


def _shown(task: Task, split: Split, at: int) -> dict[str, str]:
    """What the task's own function makes of one sample.

    Raises:
        TaskError: it raised, or returned something else than text, a picture or a sound.
    """
    assert task.show is not None
    try:
        made = task.show(tuple(x[at] for x in split.inputs))
    except Exception as error:  # the user's function may raise anything
        raise TaskError(f"The task's show raised {type(error).__name__}: {error}. Mend it, or leave it out.") from error
    match made:
        case str():
            return {"text": made if len(made) <= LONGEST_TEXT else f"{made[:LONGEST_TEXT]} \N{HORIZONTAL ELLIPSIS}"}
        case Tensor() if made.ndim == 3 and made.shape[0] in (1, 3):
            return {"png": _png(_scaled(made.double().numpy()))}
        case (Tensor() as sound, int() as rate) if sound.ndim == 1:
            return {"wav": _wav(sound.double().numpy(), rate)}
    raise TaskError(
        f"The task's show must return text, a picture [1 or 3, H, W], or a sound ([T], samples a second); it returned "
        f"{type(made).__name__}{f' {tuple(made.shape)}' if isinstance(made, Tensor) else ''}."
    )


class _Pictures:
    """The first input as pictures, all on one scale of brightness."""

    def __init__(self, split: Split) -> None:
        x = split.inputs[0]
        self._x, self._low = x, float(x.min()) if x.numel() else 0.0
        self._range = max(float(x.max()) - self._low, 1e-9) if x.numel() else 1.0

    def png(self, at: int) -> str:
        return _png((self._x[at].numpy() - self._low) / self._range)


def _scaled(picture: np.ndarray) -> np.ndarray:
    return (picture - picture.min()) / max(float(np.ptp(picture)), 1e-9)


def _png(picture: np.ndarray) -> str:
    """[C, H, W] in 0 ... 1 -> base64 of a PNG."""
    levels = (picture.transpose(1, 2, 0) * 255).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _wav(sound: np.ndarray, rate: int) -> str:
    """[T] -> base64 of a WAV of 16 bits, at most ten seconds, as loud as it can be."""
    short = sound[: int(LONGEST_SECONDS * rate)]
    levels = (short / max(float(np.abs(short).max()), 1e-9) * 32767).round().astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(levels.tobytes())
    return base64.b64encode(file.getvalue()).decode()
