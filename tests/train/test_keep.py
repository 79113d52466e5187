from __future__ import annotations

import dataclasses
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import safetensors

from tests.train.toy import FIT, same_weights, toy_net, toy_task
from trimtab.errors import RunError, TaskError
from trimtab.files import older
from trimtab.train.keep import ENDED_BY_SIGTERM, Keep, terminating
from trimtab.train.loop import fit, training

ROOT = Path(__file__).parents[2]


def taken(path: Keep | Path, steps: int) -> int:
    """Train for `steps` steps; returns which was the first."""
    with training(toy_net(), toy_task(), checkpoint=path) as iterator:
        return list(itertools.islice(iterator, steps))[0].index  # noqa: RUF015 - all are taken


def step_of(path: Path) -> int:
    with safetensors.safe_open(path, framework="pt") as file:
        note = file.metadata()["note"]
    return int(note.partition('"step": ')[2].partition(",")[0])


@pytest.mark.parametrize("background", [False, True])
def test_the_last_versions_are_kept_at_the_interval(tmp_path, background):
    keep = Keep(tmp_path / "c", every=4, versions=3, background=background)
    taken(keep, 18)
    assert [step_of(older(keep.path, age)) for age in range(3)] == [16, 12, 8]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c", "c.1", "c.2"]
    assert taken(keep, 1) == 16
    assert same_weights(fit(toy_net(), toy_task(), checkpoint=keep), fit(toy_net(), toy_task()))
    assert step_of(keep.path) == 24


def test_where_an_epoch_takes_long_a_checkpoint_is_written_within_it(tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr("trimtab.train.keep.time.monotonic", lambda: next(clock))
    assert taken(tmp_path / "c", 4) == 0
    assert step_of(tmp_path / "c") == 3, "a look takes 100 s here, and each step has one"
    assert same_weights(fit(toy_net(), toy_task(), checkpoint=tmp_path / "c"), fit(toy_net(), toy_task()))


@pytest.mark.parametrize("harm", ["truncated", "altered", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_said_aloud(tmp_path, harm):
    path = tmp_path / "c"
    taken(path, 13)
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    {"truncated": lambda: path.write_bytes(data[:900]), "altered": lambda: path.write_bytes(data), "gone": path.unlink}[
        harm
    ]()
    if harm == "gone":  # killed between two renames
        assert taken(path, 1) == 6
        return
    with pytest.warns(UserWarning, match=r"is damaged: .* goes on from the one before it, .*c\.1, of step 6\."):
        resumed = fit(toy_net(), toy_task(), checkpoint=path)
    assert same_weights(resumed, fit(toy_net(), toy_task()))


def test_where_all_are_damaged_the_run_is_refused(tmp_path):
    path = tmp_path / "c"
    taken(path, 13)
    for file in (path, older(path, 1)):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"c is damaged: .* Delete it to train from the beginning"):
        taken(path, 1)


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_is_told_and_leaves_the_checkpoints_before(tmp_path, background):
    keep = Keep(tmp_path / "c", background=background)
    taken(keep, 13)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        with pytest.raises(RunError, match=r"Cannot write .*Nothing half-written was left"):
            taken(keep, 12)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def child(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.train.toy", str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_sigterm_saves_and_exits_cleanly_wherever_it_comes(tmp_path):
    path = tmp_path / "c"
    with child(path) as process:
        line = process.stdout.readline()
        assert int(line.split()[0]) < 6  # in the first epoch: nothing was saved yet
        process.terminate()
        assert process.stderr.read() == ""
    assert process.returncode == ENDED_BY_SIGTERM == 143
    assert 0 < step_of(path) < 6
    assert same_weights(fit(toy_net(), toy_task(), checkpoint=path), fit(toy_net(), toy_task()))


@pytest.mark.slow
def test_sigkill_at_random_moments_loses_at_most_the_interval(tmp_path):
    moments, path = random.Random(0), tmp_path / "c"
    for _ in range(4):
        with child(path) as process:
            process.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(moments.uniform(0.05, 1.0))
            os.kill(process.pid, signal.SIGKILL)
    assert same_weights(fit(toy_net(), toy_task(), checkpoint=path), fit(toy_net(), toy_task()))
    assert not [file for file in tmp_path.iterdir() if file.name not in ("c", "c.1") and ".part" not in file.name]


def test_sigterm_is_left_to_whoever_looks_after_it():
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with terminating() as asked:
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
            assert not asked()
    finally:
        signal.signal(signal.SIGTERM, handler)
    found: list[object] = []
    with terminating():
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        thread = threading.Thread(target=lambda: found.append(fit(toy_net(), toy_task(), dataclasses.replace(FIT))))
        thread.start()
        thread.join()
    assert signal.getsignal(signal.SIGTERM) == handler
    assert len(found) == 1


def signalled_in_the_body(path: Path) -> None:
    with training(toy_net(), toy_task(), checkpoint=path) as steps:
        next(steps)
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_in_the_last_steps_body_ends_the_process_too(tmp_path):
    with pytest.raises(SystemExit) as end:
        signalled_in_the_body(tmp_path / "c")
    assert end.value.code == ENDED_BY_SIGTERM


def test_keep_refuses_nonsense(tmp_path):
    for wrong in ({"versions": 0}, {"every": 0}):
        with pytest.raises(TaskError, match="Keep needs versions >= 1 and every >= 1 step"):
            Keep(tmp_path / "c", **wrong)
