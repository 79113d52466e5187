from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.measure.energy import ESTIMATE, Counter, Metered, counters, energy, joules


def package(root: Path, name: str, now: int, most: int = 10_000_000) -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{now}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder


def test_packages_are_read_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 5)
    package(tmp_path, "intel-rapl:1", 7)
    package(tmp_path, "intel-rapl:0:0", 3)
    (tmp_path / "dtpm").mkdir()
    assert counters(tmp_path) == {"intel-rapl:0": Counter(5, 10_000_000), "intel-rapl:1": Counter(7, 10_000_000)}
    assert counters(tmp_path / "none") == {}


def test_a_counter_that_may_not_be_read_is_none(tmp_path: Path) -> None:
    folder = package(tmp_path, "intel-rapl:0", 5)
    (folder / "energy_uj").unlink()
    (folder / "energy_uj").symlink_to(tmp_path / "gone")
    assert counters(tmp_path) == {}


def test_joules_over_packages_and_over_the_end_of_a_counter() -> None:
    before = {"a": Counter(9_000_000, 10_000_000), "b": Counter(0, 10_000_000)}
    after = {"a": Counter(500_000, 10_000_000), "b": Counter(250_000, 10_000_000)}
    assert joules(before, after) == pytest.approx(1.5 + 0.25)


def test_each_block_is_metered_for_one_inference(tmp_path: Path) -> None:
    now = iter([0, 400_000, 1_000_000, 3_000_000])

    def read() -> dict[str, Counter]:
        return {"a": Counter(next(now), 10_000_000)}

    metered = Metered(lambda num: [1.0] * num, read)
    assert metered(4) == [1.0] * 4
    metered(10)
    assert metered.block_joules == pytest.approx([0.1, 0.2])
    lost = iter([{"a": Counter(1, 10)}, {}])
    gone = Metered(lambda num: [1.0] * num, lambda: next(lost))
    assert gone(2) == [1.0, 1.0]
    assert gone.block_joules == [], "the package went in the middle of the block"
    silent = Metered(lambda num: [1.0] * num, dict)
    silent(3)
    assert silent.block_joules == []


def test_energy_is_counted_or_an_estimate_that_says_so_or_nothing() -> None:
    counted = energy((0.2, 0.4, 0.3), latency_ms=1.0, batch_size=2, watts=50)
    assert counted is not None
    assert (counted.value, counted.low, counted.high, counted.unit, counted.n) == (0.15, 0.1, 0.2, "J", 3)
    stated = energy((), latency_ms=4.0, batch_size=2, watts=50)
    assert stated is not None
    assert (stated.value, stated.unit) == (0.1, ESTIMATE)
    assert "estimate" in ESTIMATE
    assert energy((), latency_ms=4.0, batch_size=2, watts=None) is None
