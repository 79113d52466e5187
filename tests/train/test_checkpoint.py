from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.train.toy import FIT, same_weights, toy_net, toy_task
from trimtab.core import Fit
from trimtab.errors import RunError
from trimtab.train.keep import Keep
from trimtab.train.loop import fit, training

ROOT = Path(__file__).parents[2]


class Killed(Exception):
    pass


def interrupted(path: Path, *, after: int, settings: Fit = FIT) -> None:
    """A run that is stopped right after `after` steps."""
    with pytest.raises(Killed):
        stopping(path, after, settings)


def stopping(path: Path, after: int, settings: Fit) -> None:
    with training(toy_net(), toy_task(settings=settings), checkpoint=path) as steps:
        for step in steps:
            if step.index + 1 == after:
                raise Killed


@pytest.mark.parametrize("after", [1, 5, 6, 7, 17, 23, 24])
def test_a_run_stopped_anywhere_ends_bit_identical(tmp_path, after):
    path = tmp_path / "fit.safetensors"
    interrupted(path, after=after)
    assert path.exists() == (after >= 6)
    assert same_weights(fit(toy_net(), toy_task(), checkpoint=path), fit(toy_net(), toy_task()))


def test_a_run_stopped_twice_goes_on_from_where_it_was(tmp_path):
    path = tmp_path / "fit.safetensors"
    interrupted(path, after=8)
    interrupted(path, after=20)
    with training(toy_net(), toy_task(), checkpoint=path) as steps:
        assert next(steps).index == 18
    assert same_weights(fit(toy_net(), toy_task(), checkpoint=path), fit(toy_net(), toy_task()))


def test_a_finished_run_is_read_back_without_a_step(tmp_path):
    path = tmp_path / "fit.safetensors"
    finished, told = fit(toy_net(), toy_task(), checkpoint=path), []
    again = fit(toy_net(), toy_task(), checkpoint=path, report=lambda *args: told.append(args))
    assert same_weights(finished, again)
    assert told == []


def test_a_process_killed_by_the_system_resumes_bit_identical(tmp_path):
    path = tmp_path / "fit.safetensors"
    command = [sys.executable, "-m", "tests.train.toy", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line.split()[0]) >= 9:
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    whole = fit(toy_net(), toy_task())
    resumed = toy_net()
    found = {key: tensor for key, tensor in safetensors.torch.load_file(path).items() if key.startswith("model.")}
    resumed.load_state_dict({key.removeprefix("model."): tensor for key, tensor in found.items()})
    assert same_weights(whole, resumed)


def test_the_precision_that_was_measured_is_kept_by_a_resumed_run(tmp_path):
    path, auto = tmp_path / "fit.safetensors", dataclasses.replace(FIT, precision="auto")
    interrupted(path, after=8, settings=auto)
    with safetensors.safe_open(path, framework="pt") as file:
        assert '"precision": "fp32"' in file.metadata()["note"] or '"precision": "bf16"' in file.metadata()["note"]
    fit(toy_net(), toy_task(settings=auto), checkpoint=path)


def test_no_checkpoint_is_written_after_a_loss_of_nan(tmp_path):
    path, task, count = tmp_path / "fit.safetensors", toy_task(), iter(range(1000))

    def failing(model, inputs, targets):
        return task.loss(model(*inputs), targets) * (float("nan") if next(count) == 5 else 1)

    with pytest.raises(Exception, match="became nan at step 5"):
        fit(toy_net(), task, objective=failing, checkpoint=path)
    assert not path.exists()


def refused(path: Path, says: str, model=None, task=None, **given) -> None:
    with pytest.raises(RunError, match=says):
        fit(toy_net() if model is None else model, task or toy_task(), **given, checkpoint=path)


def test_a_checkpoint_of_another_run_is_refused_naming_the_difference(tmp_path):
    path = tmp_path / "fit.safetensors"
    interrupted(path, after=6)
    refused(
        path, r"its model is 0\.weight \[8, 1, 3, 3\] torch\.float32, and now it is 0\.weight \[9, ", toy_net(width=9)
    )
    refused(path, "its first weights is", toy_net(seed=1))
    refused(path, "its data is", task=toy_task(seed=1))
    refused(path, "its fit is epochs=4, and now it is epochs=5", settings=dataclasses.replace(FIT, epochs=5))
    other = lambda model, inputs, targets: model(*inputs).sum()  # noqa: E731
    refused(path, "its objective is task_loss", objective=other)


def test_a_truncated_checkpoint_is_detected(tmp_path):
    path = tmp_path / "fit.safetensors"
    interrupted(path, after=6)
    data = path.read_bytes()
    for size in (0, 4, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        refused(path, "is damaged: .* Delete it to train from the beginning")


@given(st.integers(0, 10**9), st.integers(1, 255))
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_altered_byte_is_detected(tmp_path, place, change):
    path = tmp_path / "fit.safetensors"
    if not (tmp_path / "whole").exists():
        interrupted(path, after=6)
        path.rename(tmp_path / "whole")
    data = bytearray((tmp_path / "whole").read_bytes())
    data[place % len(data)] ^= change
    path.write_bytes(data)
    refused(path, "is damaged")


def test_a_checkpoint_is_no_pickle_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "fit.safetensors"
    fit(toy_net(), toy_task(), checkpoint=Keep(path, versions=1))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    tensors = safetensors.torch.load_file(path)
    assert {key.split(".")[0] for key in tensors} == {"model", "optimizer"}
    assert tensors["optimizer.exp_avg.5.weight"].shape == tensors["model.5.weight"].shape


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    path = tmp_path / "fit.safetensors"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        with pytest.raises(RunError, match=r"Cannot write .*Nothing half-written was left"):
            fit(toy_net(), toy_task(), checkpoint=path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
