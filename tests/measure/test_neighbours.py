from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.measure.neighbours import Ticks, others_cores, ticks


def fake(root: Path, machine: str, own: dict[int, tuple[int, int]]) -> Path:
    (root / "stat").write_text(f"cpu  {machine}\ncpu0 1 2 3\n")
    for pid, (user, system) in own.items():
        (root / str(pid)).mkdir(exist_ok=True)
        head = " ".join(["0"] * 10)
        (root / str(pid) / "stat").write_text(f"{pid} (a (odd) name) S {head} {user} {system} 0 0 20\n")
    return root


def test_what_is_busy_idle_and_ours_is_told_apart(tmp_path: Path) -> None:
    # user nice system idle iowait irq softirq steal, then guest times that user holds already
    root = fake(tmp_path, "10 20 30 400 50 1 2 3 9 9", {os.getpid(): (5, 6), 77: (7, 8)})
    assert ticks([77], root) == Ticks(total=516, busy=66, ours=26)


def test_a_process_that_is_gone_and_another_system_tell_nothing(tmp_path: Path) -> None:
    assert ticks([], tmp_path) is None
    root = fake(tmp_path, "1 1 1 1 1 1 1 1", {os.getpid(): (1, 1)})
    assert ticks([12], root) is None
    assert others_cores(None, Ticks(1, 1, 1), cores=2) is None
    assert others_cores(Ticks(1, 1, 1), Ticks(1, 1, 1), cores=2) is None


def test_others_are_what_is_busy_and_not_ours() -> None:
    before = Ticks(1000, 500, 100)
    assert others_cores(before, Ticks(1400, 700, 300), cores=2) == 0.0
    assert others_cores(before, Ticks(1400, 900, 200), cores=4) == pytest.approx(3.0)
    assert others_cores(before, Ticks(1400, 550, 200), cores=4) == 0.0, "ticks are rounded, never less than none"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_work_of_a_child_counts_as_ours_if_it_is_named() -> None:
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        alone, both = ticks([]), ticks([child.pid])
        child.communicate(b"\n")
    assert alone is not None
    assert both is not None
    assert both.ours - alone.ours >= 0.25 * os.sysconf("SC_CLK_TCK")
