from __future__ import annotations

import sys

import pytest
from torch import nn

from trimtab.core import Task
from trimtab.errors import TaskError
from trimtab.tasks.resolve import BUILTIN, resolve

GOOD = """
import numpy as np
from torch import nn
from trimtab.core import Task
from neighbour import WIDTH

def job():
    x = np.arange(90, dtype="float32").reshape(30, 3)
    y = np.arange(30) % 3
    return nn.Linear(WIDTH, 3), Task.of("mine", train=(x[:10], y[:10]), select=(x[10:20], y[10:20]),
                                  verify=(x[20:], y[20:]))

def overlapping():
    x, y = np.ones((4, 3), "float32"), np.arange(4) % 3
    return nn.Linear(3, 3), Task.of("mine", train=(x, y), select=(x, y), verify=(x, y))

def broken():
    return 1 / 0

def number():
    return 7

def swapped():
    return job()[::-1]

NOT_A_FUNCTION = 3
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "neighbour.py").write_text("WIDTH = 3\n")
    path = tmp_path / "my_job.py"
    path.write_text(GOOD)
    yield path
    sys.modules.pop("neighbour", None)


def test_a_built_in_name():
    assert list(BUILTIN) == ["fashion"]
    model, task = resolve("fashion")
    assert isinstance(model, nn.Module)
    assert (task.name, len(task.labels)) == ("fashion", 10)


def test_a_function_of_a_file_that_imports_its_neighbour(file):
    before = list(sys.path)
    model, task = resolve(f"{file}:job")
    assert isinstance(model, nn.Linear)
    assert isinstance(task, Task)
    assert sys.path == before


def test_a_function_of_a_package():
    assert resolve("trimtab.tasks.fashion:fashion")[1].name == "fashion"


def test_an_unknown_name_lists_what_is_built_in_and_what_is_close():
    with pytest.raises(TaskError, match=r"no task 'fashon'\. Did you mean 'fashion'\? Built in: fashion"):
        resolve("fashon")
    with pytest.raises(TaskError, match=r"no task 'xyz'\. Built in: fashion"):
        resolve("xyz")


def test_a_file_without_a_function_says_how_to_name_one(file):
    with pytest.raises(TaskError, match=r"name its function too: .*my_job\.py:FUNCTION"):
        resolve(str(file))


def test_a_missing_file(tmp_path):
    with pytest.raises(TaskError, match=r"There is no file .*absent\.py"):
        resolve(f"{tmp_path}/absent.py:job")


def test_a_missing_module():
    with pytest.raises(TaskError, match=r"There is no module 'no_such\.module': Python cannot find 'no_such'"):
        resolve("no_such.module:job")


def test_a_missing_function_lists_those_that_are_there(file):
    with pytest.raises(TaskError, match=r"no function 'jobs' in .* It has: broken, job, number, overlapping, swapped"):
        resolve(f"{file}:jobs")
    with pytest.raises(TaskError, match="no function 'NOT_A_FUNCTION'"):
        resolve(f"{file}:NOT_A_FUNCTION")


def test_a_function_that_raises_is_told_with_its_line(file):
    with pytest.raises(
        TaskError, match=r"broken raised an error: ZeroDivisionError: division by zero at .*my_job\.py:18"
    ):
        resolve(f"{file}:broken")


def test_a_bad_task_keeps_its_own_error(file):
    with pytest.raises(TaskError, match="share 1 of 4"):
        resolve(f"{file}:overlapping")


@pytest.mark.parametrize(("name", "got"), [("number", "int"), ("swapped", r"\(Task, Linear\)")])
def test_anything_but_a_model_and_a_task_is_refused(file, name, got):
    with pytest.raises(TaskError, match=f"must return .nn.Module, trimtab.Task.; it returned {got}"):
        resolve(f"{file}:{name}")


def test_a_file_that_cannot_be_imported(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def job(:\n")
    with pytest.raises(TaskError, match="failed while it was imported: SyntaxError"):
        resolve(f"{path}:job")


def test_a_module_that_misses_another_says_which(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TaskError, match="No module named 'no_such_library'"):
        resolve("needs_more:job")
