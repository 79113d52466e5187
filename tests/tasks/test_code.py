from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import small
from trimtab.core import Metric
from trimtab.tasks.code import fingerprints_of_code, told_by
from trimtab.tasks.metrics import f1

ROOM = """
LIMIT = {limit}

def helper(y):
    return y {sign} 1

def score(y, t, scale={scale}):
    # {remark}
    return helper(y).clamp(max=LIMIT) * scale
"""


def score(folder: Path, *, limit: float = 2.0, sign: str = "+", scale: int = 3, remark: str = "") -> Callable[..., Any]:
    """A function of a file of its own, loaded anew."""
    scope: dict[str, Any] = {"__name__": "room"}
    text = ROOM.format(limit=limit, sign=sign, scale=scale, remark=remark)
    exec(compile(text, folder / "room.py", "exec"), scope)
    return scope["score"]


@pytest.mark.parametrize("change", [{"limit": 3.0}, {"sign": "-"}, {"scale": 4}])
def test_another_constant_helper_or_default_is_another_function(tmp_path: Path, change: dict[str, Any]) -> None:
    assert told_by(score(tmp_path)) == told_by(score(tmp_path, remark="said otherwise"))
    assert told_by(score(tmp_path)) != told_by(score(tmp_path, **change))


def test_what_is_closed_over_counts_and_what_may_change_meanwhile_does_not() -> None:
    def above(limit: float, seen: list[int]) -> Callable[[Tensor], Tensor]:
        def own(y: Tensor) -> Tensor:
            seen.append(1)
            return y > limit

        return own

    assert told_by(above(1.0, [])) == told_by(above(1.0, [1, 2]))
    assert told_by(above(1.0, [])) != told_by(above(2.0, []))
    assert told_by(functools.partial(torch.clamp, min=0)) != told_by(functools.partial(torch.clamp, min=1))


def test_it_has_no_address_in_it_and_ends_where_functions_call_each_other() -> None:
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n > 0 and even(n - 1)

    class Judge:
        def __call__(self, y: Tensor, t: Tensor) -> Tensor:
            return y

    for value in (even, Judge(), Judge().__call__, torch.relu, torch.nn.functional.cross_entropy, {1: object()}):
        assert "0x" not in told_by(value)


def test_a_task_is_told_by_its_metric_and_not_by_its_data() -> None:
    _, task = small.make(width=8)
    own = dataclasses.replace(task, metric=Metric("accuracy", lambda y, t: (y.argmax(1) == t).float(), binary=True))
    other = dataclasses.replace(task, metric=Metric("accuracy", lambda y, t: (y.argmax(1) != t).float(), binary=True))
    others = [other, *(dataclasses.replace(task, metric=f1(positive)) for positive in (3, 4))]
    told = [fingerprints_of_code(one) for one in (own, *others)]
    assert len({tuple(one.items()) for one in told}) == 4
    assert [name for name in told[0] if told[0][name] != told[1].get(name)] == ["code of metric accuracy"]
    assert told[0] == fingerprints_of_code(dataclasses.replace(own, train=task.select))


def test_of_a_file_in_another_folder_the_code_is_the_same() -> None:
    def reader(path: str) -> Callable[[], str]:
        return lambda: path

    assert told_by(reader("/home/one/data.csv")) == told_by(reader("/srv/other/data.csv"))
    assert told_by(reader("/home/one/data.csv")) != told_by(reader("/home/one/more.csv"))
    assert len({told_by(reader(text)) for text in ("/", "", "/a", "a", "data.csv", "/home/one/data.csv")}) == 6
