from __future__ import annotations

import os
import subprocess
import sys

import pytest

from trimtab.errors import RuntimeFailed
from trimtab.measure.memory import peak_rss_bytes

MIB = 1 << 20
HOLD = "held = bytearray(64 << 20); del held; print('ready', flush=True); input()"


def test_peak_of_another_process_remembers_what_was_freed() -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    peak = peak_rss_bytes(child.pid)
    child.communicate(b"\n")
    assert 64 * MIB < peak < 256 * MIB


def test_own_peak() -> None:
    assert peak_rss_bytes(os.getpid()) > MIB


def test_a_process_that_ended_is_an_error() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(RuntimeFailed, match="has ended"):
        peak_rss_bytes(child.pid)
