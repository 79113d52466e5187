"""What a race shows, what a gain is, which runtimes may be used, and that a wrong or half-written file is refused."""

from __future__ import annotations

import errno
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.fx import GraphModule

from tests.nets import net
from trimtab.core import Precision, Target
from trimtab.errors import GoalError, RuntimeFailed
from trimtab.graph.capture import capture
from trimtab.measure.energy import Counter, Read
from trimtab.measure.speed import Timing
from trimtab.runtimes import RUNTIMES
from trimtab.runtimes.base import exporting
from trimtab.runtimes.eager import Eager
from trimtab.runtimes.evaluate import (
    LEAST_STARTS,
    Exported,
    Raced,
    export_checked,
    gain_over,
    measurements,
    race,
    usable,
)


def children() -> set[str]:
    return {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


def graph_and_inputs(*, seed: int = 0) -> tuple[GraphModule, tuple[np.ndarray, ...]]:
    module, x = net("mlp", seed=seed)
    return capture(module, (x,)), (x.numpy(),)


@dataclass(frozen=True)
class Wrong(Eager):
    """Exports another model than the one it was given."""

    def export(
        self, graph: GraphModule, folder: Path, *, precision: Precision, batch_size: int, threads: int
    ) -> tuple[str, ...]:
        other, _ = graph_and_inputs(seed=1)
        return super().export(other, folder, precision=precision, batch_size=batch_size, threads=threads)


def test_a_file_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    graph, inputs = graph_and_inputs()
    with pytest.raises(RuntimeFailed, match="does not answer as the graph does: relative L2"):
        export_checked(graph, Wrong(), tmp_path, precision="fp32", inputs=inputs, target=Target())


def test_a_race_gives_each_its_latencies_memory_and_answers(tmp_path: Path) -> None:
    graph, inputs = graph_and_inputs()
    files = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        export_checked(graph, RUNTIMES["eager"], tmp_path / name, precision="fp32", inputs=inputs, target=Target())
        files[name] = Exported("eager", "fp32", tmp_path / name)
    told: list[str] = []
    raced = race(files, inputs, target=Target(), rounds=2, report=lambda done, total, text: told.append(text))
    assert set(raced) == set(told) == {"one", "two"}
    with torch.no_grad():
        want = graph(torch.from_numpy(inputs[0])).numpy()
    for name, own in raced.items():
        assert len(own.timing.samples_ms) == 20 * len(own.timing.block_medians)
        assert np.allclose(own.answers, want, atol=1e-6)
        found = {m.quantity: m for m in measurements(own, files[name], Target(price_per_hour=3.6, watts=10))}
        assert found["latency_ms"].low <= found["latency_ms"].value <= found["latency_ms"].high
        assert found["size_bytes"].value == sum(path.stat().st_size for path in (tmp_path / name).iterdir())
        assert found["memory_bytes"].value == own.peak_bytes > 10_000_000
        assert found["load_s"].value == own.loaded_s > 0
        p50 = found["latency_ms"].value
        assert found["latency_ms"].value <= found["latency_p95_ms"].value <= found["latency_p99_ms"].value
        assert found["throughput_per_s"].n == len(own.timing.samples_ms)
        assert found["price_per_million"].value == pytest.approx(p50)
        assert own.block_joules or found["energy_j"].value == pytest.approx(p50 / 100)
        assert own.others_cores is None or own.others_cores >= 0
        assert not {"energy_j", "price_per_million"} & {
            m.quantity for m in measurements(replace(own, block_joules=()), files[name], Target())
        }
    only = race(files, inputs, target=Target(), rounds=1, asked={"two"})
    assert (len(only["one"].answers), len(only["two"].answers)) == (1, len(want))
    before = children()
    with pytest.raises(RuntimeFailed, match="was exported for eager"):
        race(files | {"three": Exported("onnxruntime", "fp32", files["one"].folder)}, inputs, target=Target(), rounds=1)
    assert children() == before, "those that had started were ended"


def raced(ms: float, peak_bytes: int) -> Raced:
    blocks = tuple(ms * (1 + 0.001 * place) for place in range(8))
    return Raced(Timing(blocks, blocks), peak_bytes, np.zeros(1))


def test_a_gain_is_how_many_times_less_of_what_is_minimised(tmp_path: Path) -> None:
    for name, size in (("large", 3000), ("small", 1000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(size))
    files = (Exported("eager", "fp32", tmp_path / "large"), Exported("eager", "fp32", tmp_path / "small"))
    pair = (raced(4.0, 500), raced(2.0, 1000))
    assert gain_over(*pair, files=files, minimise="latency_ms").value == pytest.approx(2.0)
    assert gain_over(*pair, files=files, minimise="size_bytes").value == 3.0
    memory = gain_over(*pair, files=files, minimise="memory_bytes")
    assert (memory.value, memory.low, memory.high) == (0.5, 0.5, 0.5), "twice the memory is no gain"
    noisy = [
        replace(one, peaks=peaks) for one, peaks in zip(pair, ((500,) * 6, (499, 501, 498, 499, 502, 499)), strict=True)
    ]
    memory = gain_over(*noisy, files=files, minimise="memory_bytes")
    assert memory.low < 1 < memory.value, "a thousandth less is not told from nothing"
    assert memory.n == 6


def test_where_memory_counts_it_is_read_in_several_processes(tmp_path: Path) -> None:
    graph, inputs = graph_and_inputs()
    export_checked(graph, RUNTIMES["eager"], tmp_path, precision="fp32", inputs=inputs, target=Target())
    files = {"one": Exported("eager", "fp32", tmp_path)}
    before = children()
    own = race(files, inputs, target=Target(), rounds=1, minimise="memory_bytes", asked=())["one"]
    assert children() == before
    assert len(own.peaks) == LEAST_STARTS
    found = next(m for m in measurements(own, files["one"], Target()) if m.quantity == "memory_bytes")
    assert (found.low, found.high, found.n) == (min(own.peaks), max(own.peaks), LEAST_STARTS)
    assert found.low <= found.value <= found.high


NOTED = """
import os
import torch
from trimtab.runtimes.eager import Eager
load = Eager.load
def noting(self, folder, **settings):
    call = load(self, folder, **settings)
    def noted(inputs):
        with open(os.environ["NOTES"], "a") as notes:
            print(len(inputs[0]), torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], file=notes)
        return call(inputs)
    return noted
Eager.load = noting
"""


def test_what_is_timed_has_the_targets_batch_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The serving processes note each inference as they run it."""
    graph, inputs = graph_and_inputs()
    target = Target(batch_size=3, threads=2)
    (tmp_path / "file").mkdir()
    export_checked(graph, RUNTIMES["eager"], tmp_path / "file", precision="fp32", inputs=inputs, target=target)
    (tmp_path / "sitecustomize.py").write_text(NOTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    files = {"one": Exported("eager", "fp32", tmp_path / "file")}
    own = race(files, inputs, target=target, rounds=1, minimise="memory_bytes")["one"]
    *timed, answered = (tmp_path / "notes").read_text().splitlines()
    assert len(timed) >= len(own.timing.samples_ms) + 10 * LEAST_STARTS
    assert set(timed) == {"3 2 2"}, "samples, threads, threads of native pools"
    assert answered == f"{len(inputs[0])} 2 2", "the answers are not what is timed"


def test_a_race_counts_the_energy_of_the_targets_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, inputs = graph_and_inputs()
    export_checked(graph, RUNTIMES["eager"], tmp_path, precision="fp32", inputs=inputs, target=Target())
    devices: list[str] = []
    readings = count()

    def counting(device: str) -> Read:
        devices.append(device)
        return lambda: {"a": Counter(20_000_000 * next(readings))}

    monkeypatch.setattr("trimtab.runtimes.evaluate.counting", counting)
    own = race({"one": Exported("eager", "fp32", tmp_path)}, inputs, target=Target(), rounds=2, asked=())["one"]
    assert devices == ["cpu"]
    assert own.block_joules == (1.0,) * len(own.timing.block_medians), "20 J in each block of 20; no warm-up"


def test_which_runtimes_may_be_used() -> None:
    assert list(usable(Target(runtimes=("onnxruntime", "eager")))) == ["onnxruntime", "eager"]
    assert set(usable(Target())) == {name for name, runtime in RUNTIMES.items() if runtime.missing() is None}
    with pytest.raises(GoalError, match="no runtime 'tensorrt'; the runtimes are eager, inductor"):
        usable(Target(runtimes=("tensorrt",)))


@pytest.mark.parametrize("words", ["[Errno 28] No space left on device", "basic_ios::clear: iostream error"])
def test_a_full_disk_does_not_pass_for_a_graph_that_cannot_be_exported(words: str) -> None:
    with pytest.raises(OSError, match="native could not write its files") as caught, exporting("native"):
        raise RuntimeError(words)
    assert caught.value.errno == errno.EIO
    with pytest.raises(RuntimeFailed, match="native cannot export this graph"), exporting("native"):
        raise RuntimeError("unsupported operator")


FULL = """
import resource, sys
from pathlib import Path
from tests.runtimes.test_evaluate import graph_and_inputs
from trimtab.errors import RunError
from trimtab.files import folder_atomic
from trimtab.runtimes import RUNTIMES
graph, _ = graph_and_inputs()
RUNTIMES[sys.argv[1]].export(graph, Path(sys.argv[2]), precision="fp32", batch_size=1, threads=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), int(sys.argv[4])))
try:
    with folder_atomic(Path(sys.argv[3])) as scratch:
        RUNTIMES[sys.argv[1]].export(graph, scratch, precision="fp32", batch_size=1, threads=1)
except RunError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("runtime", "limit"),
    [
        ("eager", 3000),
        ("onnxruntime", 3000),
        ("openvino", 3000),
        pytest.param("inductor", 60000, marks=pytest.mark.slow),
    ],
)
def test_an_export_to_a_full_disk_is_told_as_such_and_leaves_nothing(runtime: str, limit: int, tmp_path: Path) -> None:
    if reason := RUNTIMES[runtime].missing():
        pytest.skip(reason)
    (tmp_path / "whole").mkdir()
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-c", FULL, runtime, str(tmp_path / "whole"), str(tmp_path / "runs" / "r"), str(limit)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.stdout.startswith("Cannot write"), done.stdout + done.stderr
    assert "Nothing half-written was left there. Free some space" in done.stdout
    assert list((tmp_path / "runs").iterdir()) == []
