from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from trimtab.measure.energy import ESTIMATE, Counter, Metered, counters, counting, energy, gpu_counters, joules


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


class NVMLError(Exception):
    pass


def raising(error: Exception) -> Callable[..., None]:
    def call(*args: object) -> None:
        raise error

    return call


def pretend(monkeypatch: pytest.MonkeyPatch, devices: dict[str, list[int | None]]) -> SimpleNamespace:
    """A pynvml with these GPUs: UUID -> millijoules at each reading, None where it is not supported."""
    names = list(devices)
    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        opened=0,
        nvmlDeviceGetCount=lambda: len(names),
        nvmlDeviceGetHandleByIndex=lambda place: f"handle of {names[place]}",
        nvmlDeviceGetUUID=lambda handle: handle.removeprefix("handle of "),
    )

    def millijoules(handle: str) -> int:
        now = devices[handle.removeprefix("handle of ")].pop(0)
        if now is None:
            raise NVMLError("Not Supported")
        return now

    def opened() -> None:
        nvml.opened += 1

    nvml.nvmlInit, nvml.nvmlDeviceGetTotalEnergyConsumption = opened, millijoules
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml


def test_gpus_are_read_in_millijoules_and_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = pretend(monkeypatch, {"GPU-a": [5, 2_000_005], "GPU-b": [7, 1_000_007], "GPU-old": [None, None]})
    read = counting("cuda")
    before = read()
    assert before == {"GPU-a": Counter(5000), "GPU-b": Counter(7000)}, "one of them has no counter"
    assert joules(before, read()) == 3000.0
    assert nvml.opened == 1


def test_only_the_gpus_that_run_it_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"GPU-a": [5], "GPU-b": [7]})
    assert gpu_counters({"GPU-b"})() == {"GPU-b": Counter(7000)}


def test_a_block_in_which_the_driver_was_loaded_anew_or_a_gpu_went_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, {"GPU-a": [9000, 100, 100, 500, 500, None]})
    metered = Metered(lambda num: [1.0] * num, gpu_counters())
    for num_calls in (2, 4, 2):
        metered(num_calls)
    assert metered.block_joules == [0.1]


def test_without_package_driver_or_gpu_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = pretend(monkeypatch, {})
    assert gpu_counters()() == {}, "a driver, and no GPU"
    for name in ("nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID"):
        broken = pretend(monkeypatch, {"GPU-a": [5]})
        setattr(broken, name, raising(NVMLError("Driver Not Loaded")))
        assert gpu_counters()() == {}, name
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_counters()() == {}
    metered = Metered(lambda num: [1.0] * num, gpu_counters())
    assert metered(3) == [1.0] * 3
    assert metered.block_joules == []
    assert nvml.opened == 1


def test_what_runs_on_the_processor_is_not_charged_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = pretend(monkeypatch, {"GPU-a": [0, 1_000_000]})
    assert not {"GPU-a"} & set(counting("cpu")())
    assert nvml.opened == 0
    with pytest.raises(AssertionError, match="nothing is known to count on tpu"):
        counting("tpu")


def real() -> ModuleType:
    return pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed: no GPU's counter can be read")


def test_the_package_has_what_is_asked_of_it() -> None:
    with pytest.MonkeyPatch.context() as patch:
        asked = [name for name in vars(pretend(patch, {})) if name != "opened"]
    assert len(asked) == 6
    assert [name for name in asked if not callable(getattr(real(), name, None))] == []


def test_a_real_gpu_counts_what_it_takes() -> None:
    real()
    read = gpu_counters()
    before, began = read(), time.monotonic()
    if not before:
        pytest.skip("no NVIDIA GPU with an energy counter on this machine")
    time.sleep(2)
    taken = joules(before, read())
    assert taken is not None
    # Even an idle GPU takes some watts, and none takes kilowatts: microjoules or joules would be far off.
    assert 1 < taken / len(before) / (time.monotonic() - began) < 2000
