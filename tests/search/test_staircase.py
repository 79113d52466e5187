"""The staircase: measured once, kept for each machine and runtime; the predictor; the widths that pay."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trimtab.errors import RunError
from trimtab.search.staircase import Staircase, predicted_ms, worth_keeping

HERE = {"cpu": "Example 9000", "cores": 2, "features": ["avx2"], "architecture": "x86_64", "memory_bytes": 1}


def never() -> float:
    raise AssertionError("measured again")


def test_a_layer_is_measured_once_and_kept_for_the_next_process(tmp_path: Path) -> None:
    file = tmp_path / "new" / "staircase.db"
    assert Staircase(file, machine=HERE, runtime="eager").ms("conv [1, 2]", lambda: 0.25) == 0.25
    again = Staircase(file, machine=HERE | {"os": "updated"}, runtime="eager")
    assert again.ms("conv [1, 2]", never) == 0.25
    assert len(again) == 1


@pytest.mark.parametrize(("machine", "runtime"), [(HERE | {"cores": 4}, "eager"), (HERE, "openvino")])
def test_another_machine_or_runtime_has_its_own_times(tmp_path: Path, machine: dict, runtime: str) -> None:
    file = tmp_path / "staircase.db"
    Staircase(file, machine=HERE, runtime="eager").ms("linear", lambda: 1.0)
    other = Staircase(file, machine=machine, runtime=runtime)
    assert len(other) == 0
    assert other.ms("linear", lambda: 2.0) == 2.0
    assert Staircase(file, machine=HERE, runtime="eager").ms("linear", never) == 1.0


def test_who_measures_the_same_layer_at_once_gets_what_was_kept_first(tmp_path: Path) -> None:
    file = tmp_path / "staircase.db"
    one, other = (Staircase(file, machine=HERE, runtime="eager") for _ in range(2))
    assert one.ms("linear", lambda: 2 * other.ms("linear", lambda: 1.0)) == 1.0
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda at: one.ms("conv", lambda: float(at)), range(16)))
    assert len(set(told)) == 1
    assert len(one) == 2


def test_a_measurement_that_fails_leaves_nothing(tmp_path: Path) -> None:
    stairs = Staircase(tmp_path / "staircase.db", machine=HERE, runtime="eager")
    with pytest.raises(AssertionError, match="measured again"):
        stairs.ms("linear", never)
    assert len(stairs) == 0


def test_what_is_no_staircase_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database, but long enough to be one " * 50)
    with pytest.raises(RunError, match=r"notes\.txt cannot be used: .*Delete the file, or choose another"):
        Staircase(file, machine=HERE, runtime="eager")
    with pytest.raises(RunError, match="cannot be made"):
        Staircase(file / "below.db", machine=HERE, runtime="eager")
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as base:
        base.execute("CREATE TABLE times (a TEXT)")
    base.close()
    with pytest.raises(RunError, match="no such column"):
        len(Staircase(foreign, machine=HERE, runtime="eager"))


def test_the_whole_shrinks_with_its_layers_and_its_rest() -> None:
    assert predicted_ms(10.0, 6.0, 6.0) == 10.0
    assert predicted_ms(10.0, 6.0, 3.0) == 7.0
    assert predicted_ms(10.0, 6.0, 3.0, rest=0.5) == 5.0
    assert predicted_ms(10.0, 12.0, 6.0) == 5.0, "the runtime fuses"


def test_widths_pay_that_are_faster_than_all_wider_ones() -> None:
    stairs = {32: 0.5, 40: 1.0, 48: 1.0, 56: 1.5, 64: 1.4}
    assert worth_keeping(stairs) == (32, 48, 64)
    assert worth_keeping({8: 1.0, 16: 1.01}) == (16,)
    assert worth_keeping({8: 1.0, 16: 1.01}, slack=0.0) == (8, 16)
