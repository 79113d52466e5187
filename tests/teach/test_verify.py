from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trimtab.errors import RunError, TaskError
from trimtab.teach.verify import Resumed, _difference, records_file, verify_resume

JOBS = Path(__file__).with_name("jobs.py")


@pytest.mark.slow
def test_a_task_that_resumes_is_equal_and_one_that_does_not_is_told(monkeypatch):
    monkeypatch.chdir(JOBS.parents[2])
    found = verify_resume("tests.teach.jobs:good", steps=5)
    assert found == Resumed(5, found.tensors, None)
    assert found.tensors > 10
    leaky = verify_resume("tests.teach.jobs:leaky", steps=5)
    assert leaky.difference is not None
    assert leaky.difference.startswith("step 5 differs in the inputs of its batch: `augment` must draw from the")


def written(folder: Path, name: str, *, record=(), tensors=()) -> Path:
    path, plain = folder / name, {"targets": "a", "inputs": "b", "generator": "c", "loss": "d"}
    lines = [{"step": step, **plain, **(dict(record) if step == 3 else {})} for step in range(4)]
    records_file(path).write_text("\n".join(json.dumps(line) for line in lines))
    save_file({"model.w": torch.tensor([1.0, float("nan")]), "optimizer.m.w": torch.zeros(2), **dict(tensors)}, path)
    return path


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, None),
        ({"record": {"targets": "x", "loss": "y"}}, "step 3 differs in the targets of its batch: the sampler"),
        ({"record": {"generator": "x"}}, "step 3 differs in the state of torch's generator"),
        ({"record": {"loss": "x"}}, "step 3 differs in its loss"),
        ({"tensors": {"optimizer.m.w": torch.tensor([0.0, 0.5])}}, r"tensor optimizer.m.w differs, by 0.5 at most"),
        ({"tensors": {"optimizer.m.w": torch.tensor([0.0, -0.0])}}, r"tensor optimizer.m.w differs, by 0 at most"),
        ({"tensors": {"average.w": torch.zeros(1)}}, "the tensor average.w is in one of the two alone"),
    ],
)
def test_the_first_difference_is_named(tmp_path, changed, says):
    found, tensors = _difference(written(tmp_path, "a", **changed), written(tmp_path, "b"), 2)
    assert tensors == 2
    assert found is None if says is None else says in found


def test_too_few_steps_and_a_process_that_fails_are_told(monkeypatch, tmp_path):
    monkeypatch.chdir(JOBS.parents[2])
    with pytest.raises(TaskError, match=r"steps=13 cannot be verified: .* has 24 steps.*Give 1 to 12"):
        verify_resume("tests.teach.jobs:good", steps=13)
    monkeypatch.setattr("trimtab.teach.verify.sys.executable", "/bin/false")
    with pytest.raises(RunError, match=r"ended with 1, and -9 was expected. It said:\nnothing"):
        verify_resume("tests.teach.jobs:good", steps=2)
