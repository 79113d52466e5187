"""How a task's own function shows a sample: text, pictures and sound; and what is refused."""

from __future__ import annotations

import base64
import io
import re
import wave
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trimtab.core import Metric, Split, Task
from trimtab.errors import TaskError
from trimtab.report.shown import LONGEST_SECONDS, check_show, examples
from trimtab.tasks.metrics import f1

NUM = 6


def shown(show: Callable[[tuple[Tensor, ...]], Any], **settings: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    data = {name: (rng.normal(size=(NUM, 5)).astype("float32"), np.arange(NUM) % 2) for name in ("a", "b", "c")}
    task = Task.of("t", train=data["a"], select=data["b"], verify=data["c"], show=show, **settings)
    answers = [np.zeros((NUM, 3), "float32"), np.zeros((NUM, 3), "float32")]
    scores = [np.linspace(0, 1, NUM), np.linspace(0, 1, NUM)]
    scores[1][3] -= 0.2
    scores[1][4] += 0.5
    return examples(task, answers, scores, Split((torch.from_numpy(data["c"][0]),), torch.from_numpy(data["c"][1])))


def test_text_comes_with_the_scores_those_that_moved_most_first() -> None:
    found = shown(lambda inputs: f"starts with {float(inputs[0][0]):.1f}", metric=Metric("BLEU", lambda y, t: y[:, 0]))
    assert [(one["before"], one["after"], one["worse"]) for one in found[:3]] == [
        ("BLEU 0.8000", "BLEU 1.300", False),
        ("BLEU 0.6000", "BLEU 0.4000", True),
        ("BLEU 0.000", "BLEU 0.000", False),
    ]
    assert all(one["text"].startswith("starts with ") for one in found)


def test_a_long_text_is_cut() -> None:
    assert len(shown(lambda _: "x" * 5000)[0]["text"]) < 500


def test_a_picture_is_a_png_and_a_sound_a_wav_of_some_seconds() -> None:
    picture = base64.b64decode(shown(lambda _: torch.rand(3, 4, 7))[0]["png"])
    assert Image.open(io.BytesIO(picture)).size == (7, 4)
    with wave.open(io.BytesIO(base64.b64decode(shown(lambda _: (torch.randn(99_000), 8000))[0]["wav"]))) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (8000, LONGEST_SECONDS * 8000)
        levels = np.frombuffer(sound.readframes(80_000), "<i2")
    assert 32_000 < np.abs(levels).max() <= 32_767


@pytest.mark.parametrize(
    ("show", "words"),
    [
        (lambda _: 1 / 0, "show raised ZeroDivisionError"),
        (lambda _: 7, "must return text, a picture .* it returned int"),
        (lambda _: torch.zeros(2, 4, 4), r"it returned Tensor \(2, 4, 4\)"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_and_told_after(show: Callable[..., Any], words: str) -> None:
    rng = np.random.default_rng(0)
    names = ("train", "select", "verify")
    data = {name: (rng.normal(size=(NUM, 5)).astype("float32"), np.arange(NUM) % 2) for name in names}
    with pytest.raises(TaskError, match=words):
        check_show(Task.of("t", **data, show=show))
    assert re.search(words, shown(show)[0]["text"])


def test_a_metric_of_the_whole_is_shown_by_the_answers() -> None:
    rng = np.random.default_rng(0)
    data = (rng.normal(size=(4, 5)).astype("float32"), np.arange(4) % 2)
    other = (rng.normal(size=(4, 5)).astype("float32"), np.arange(4) % 2)
    third = (rng.normal(size=(4, 5)).astype("float32"), np.arange(4) % 2)
    task = Task.of("t", train=data, select=other, verify=third, show=lambda _: "a", metric=f1(1))
    answers = [np.eye(4, 2, dtype="float32"), np.eye(4, 2, dtype="float32")]
    answers[1][2] = 3.0
    statistics = [np.zeros((4, 3)), np.zeros((4, 3))]
    found = examples(task, answers, statistics, Split((torch.zeros(4, 5),), torch.zeros(4).long()))
    assert [one["before"] != one["after"] for one in found] == [True, False, False, False]
    assert "worse" not in found[0]
