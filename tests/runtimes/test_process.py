"""Serving processes: they fail loudly, and nothing of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.nets import net
from trimtab.errors import GoalError, RuntimeFailed
from trimtab.graph.capture import capture
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.process import Served

X = (np.zeros((2, 16), np.float32),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    module, x = net("mlp")
    RUNTIMES["onnxruntime"].export(capture(module, (x,)), folder, precision="fp32", batch_size=1, threads=1)
    return folder


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def ends(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(pid)


def serve(folder: Path, **settings: float) -> Served:
    return Served("onnxruntime", folder, precision="fp32", threads=1, **settings)


def test_leaving_the_block_ends_the_process_and_leaves_no_zombie(folder: Path) -> None:
    before = children()
    with serve(folder) as served:
        assert str(served.pid) in children() - before
        assert served.loaded_s > 0
    assert children() == before
    assert not Path(f"/proc/{served.pid}").exists()
    with pytest.raises(RuntimeFailed, match="was closed"):
        served.run(X, batch_size=1)
    served.close()


def test_several_processes_serve_side_by_side(folder: Path) -> None:
    with serve(folder) as one, serve(folder) as two:
        assert one.pid != two.pid
        assert np.array_equal(one.run(X, batch_size=1), two.run(X, batch_size=2))


def test_a_killed_process_is_reported(folder: Path) -> None:
    before = children()
    with serve(folder) as served:
        os.kill(served.pid, signal.SIGKILL)
        with pytest.raises(RuntimeFailed, match="onnxruntime fp32 ended with code -9"):
            served.run(X, batch_size=1)
    assert children() == before


def test_a_damaged_file_is_reported_with_the_runtimes_own_words(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "signature.json").write_bytes((folder / "signature.json").read_bytes())
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    before = children()
    with pytest.raises(RuntimeFailed, match=r"(?s)ended with code 1.*last words:.*model.onnx"):
        serve(tmp_path)
    assert children() == before


def test_loading_that_takes_too_long_is_given_up(folder: Path) -> None:
    before = children()
    with pytest.raises(RuntimeFailed, match=r"did not load within 0\.001 s; give it longer with startup_seconds"):
        serve(folder, startup_seconds=0.001)
    assert children() == before


def test_a_folder_of_another_runtime_or_of_nothing_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailed, match="was exported for onnxruntime, not for eager"):
        Served("eager", folder, precision="fp32", threads=1)
    with pytest.raises(RuntimeFailed, match="holds no exported model"):
        serve(tmp_path)
    with pytest.raises(GoalError, match="There is no runtime 'tflite'"):
        Served("tflite", folder, precision="fp32", threads=1)


def test_timing_needs_an_example_and_a_count(folder: Path) -> None:
    with serve(folder) as served:
        with pytest.raises(RuntimeFailed, match="call set_example"):
            served.time(3)
        served.set_example(X)
        with pytest.raises(RuntimeFailed, match="num_calls=0"):
            served.time(0)
        with pytest.raises(RuntimeFailed, match="batch_size=0"):
            served.run(X, batch_size=0)
        assert len(served.time(3)) == 3


def test_the_thread_count_reaches_the_process(folder: Path) -> None:
    with Served("onnxruntime", folder, precision="fp32", threads=2) as served:
        environment = Path(f"/proc/{served.pid}/environ").read_bytes().split(b"\0")
    assert b"OMP_NUM_THREADS=2" in environment


PARENT = """
import sys
from pathlib import Path
import numpy as np
from trimtab.runtimes.process import Served
with Served("onnxruntime", Path(sys.argv[1]), precision="fp32", threads=1) as served:
    served.set_example((np.zeros((2, 16), np.float32),))
    print(served.pid, flush=True)
    served.time(int(sys.argv[2])) if int(sys.argv[2]) else sys.stdin.read()
"""


@pytest.mark.parametrize("num_calls", [0, 50_000_000], ids=["idle", "busy"])
def test_the_process_dies_with_its_parent(folder: Path, num_calls: int) -> None:
    command = [sys.executable, "-c", PARENT, str(folder), str(num_calls)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        time.sleep(0.3)
        parent.kill()
    assert ends(pid)


def test_interrupting_the_group_leaves_the_process_to_its_parent(folder: Path) -> None:
    with serve(folder) as served:
        os.kill(served.pid, signal.SIGINT)
        assert len(served.run(X, batch_size=2)) == 2
