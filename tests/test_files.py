"""Files: whole or absent, locked by the living alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trimtab.errors import ArtifactError, RunError
from trimtab.files import folder_atomic, locked, read_array, sweep_parts, write_array, write_atomic, write_json


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    code = f"""
import resource, signal
from pathlib import Path
from trimtab.errors import RunError
from trimtab.files import write_atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_atomic(Path({str(tmp_path)!r}) / "big", bytes(5000))
except RunError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Cannot write" in said
    assert "Nothing half-written" in said
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_in_the_middle_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "a", b"before")

    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "a", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


def test_an_unwritable_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Cannot write"):
        write_atomic(tmp_path / "file" / "inner", b"x")
    with pytest.raises(RunError, match="Cannot write"), locked(tmp_path / "file" / "run"):
        pass


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:

    def fill(*, fail: bool) -> None:
        with folder_atomic(tmp_path / "a") as scratch:
            (scratch / "x").write_text("x")
            assert not fail

    with pytest.raises(AssertionError):
        fill(fail=True)
    assert list(tmp_path.iterdir()) == []
    fill(fail=False)
    assert (tmp_path / "a" / "x").read_text() == "x"


def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".a.1234.part").write_text("half")
    (tmp_path / ".b.1234.part").mkdir()
    (tmp_path / "kept").write_text("")
    sweep_parts(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "kept"]


def test_the_lock_holds_against_the_living_and_not_against_the_dead(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from trimtab.files import locked
with locked(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"process {other.pid}"), locked(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_arrays_round_trip_and_others_are_refused(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_array(tmp_path / "x.npy", x)
    assert np.array_equal(read_array(tmp_path / "x.npy"), x)
    (tmp_path / "bad.npy").write_bytes(b"not an array")
    np.savez(tmp_path / "many.npz", x=x)
    for name in ("bad.npy", "none.npy"):
        with pytest.raises(ArtifactError, match="Cannot read an array"):
            read_array(tmp_path / name)
    with pytest.raises(ArtifactError, match="several arrays"):
        read_array(tmp_path / "many.npz")
