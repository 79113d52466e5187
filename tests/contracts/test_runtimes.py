"""What every runtime promises, one table row per runtime, precision and network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tests.nets import net
from tests.runtimes.quantized import quantized_graph
from trimtab.compress.dynamic import Dynamic
from trimtab.compress.weightonly import PRECISIONS, WeightOnly
from trimtab.core import Precision, Tools
from trimtab.errors import RuntimeFailed
from trimtab.graph.capture import capture
from trimtab.graph.modes import frozen_modes
from trimtab.graph.shapes import example_inputs
from trimtab.runtimes import RUNTIMES, supported
from trimtab.runtimes.check import TOLERANCE, compare, require_agreement
from trimtab.runtimes.formats import PACKED
from trimtab.runtimes.process import Served

BATCH_SIZE = 3


class TwoInputs(nn.Module):
    """([B, 4], [B, 6]) -> [B, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(6, 5)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.left(a) - torch.sigmoid(self.right(b))


slow = pytest.mark.slow
ROWS = [
    ("eager", "fp32", "resnet"),
    ("eager", "bf16", "conv"),
    ("onnxruntime", "fp32", "mlp"),
    ("onnxruntime", "fp32", "conv"),
    ("onnxruntime", "fp32", "resnet"),
    ("onnxruntime", "fp32", "two"),
    ("onnxruntime", "int8", "quantized"),
    ("openvino", "fp32", "mlp"),
    ("openvino", "fp32", "resnet"),
    ("openvino", "fp32", "two"),
    ("openvino", "bf16", "conv"),
    ("openvino", "int8", "quantized"),
    ("eager", "int4w", "conv"),
    ("onnxruntime", "int4w", "mlp"),
    ("onnxruntime", "int8d", "two"),
    ("onnxruntime", "nf4w", "conv"),
    ("openvino", "int4w", "two"),
    ("openvino", "nf4w", "mlp"),
    *(
        pytest.param((name, precision, "mlp"), marks=slow)
        for name in ("eager", "onnxruntime", "openvino")
        for precision in ("int8w", "nf4w", "fp8", "fp16")
        if precision != "nf4w" or name == "eager"
    ),
    ("inductor", "fp32", "conv"),
    pytest.param(("inductor", "fp32", "two"), marks=slow),
    pytest.param(("inductor", "bf16", "resnet"), marks=slow),
    pytest.param(("inductor", "int8", "quantized"), marks=slow),
    pytest.param(("inductor", "int8w", "conv"), marks=slow),
]


@dataclass(frozen=True)
class Row:
    """One exported and served network."""

    net: str
    graph: GraphModule
    runtime: str
    precision: Precision
    folder: Path
    files: tuple[str, ...]
    served: Served

    def inputs(self, size: int) -> tuple[Any, ...]:
        return tuple(x.numpy() for x in example_inputs(self.graph, batch_size=size, seed=size))

    def expected(self, inputs: tuple[Any, ...]) -> Any:
        with torch.no_grad():
            return frozen_modes(self.graph)(*map(torch.from_numpy, inputs)).numpy()


def packed(graph: GraphModule, precision: Precision) -> GraphModule:
    """The graph in that precision, if it is one of weights or of ranges found at run time."""
    method: WeightOnly | Dynamic = Dynamic(min_features=1)
    if precision != "int8d":
        method = WeightOnly(next(name for name, own in PRECISIONS.items() if own == precision))
    return method.apply(graph, method.plan(graph, None), Tools())  # type: ignore[arg-type]


def make_graph(name: str, precision: Precision) -> GraphModule:
    graph = float_graph(name)
    return packed(graph, precision) if precision == "int8d" or precision in PACKED else graph


def float_graph(name: str) -> GraphModule:
    if name == "quantized":
        return quantized_graph()
    if name == "two":
        torch.manual_seed(0)
        return capture(TwoInputs(), (torch.randn(2, 4), torch.randn(2, 6)))
    module, x = net(name)
    return capture(module, (x,))


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: "-".join(row))
def row(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Row]:
    runtime, precision, name = request.param
    if reason := RUNTIMES[runtime].missing() or supported(runtime, precision):
        pytest.skip(reason)
    graph = make_graph(name, precision)
    folder = tmp_path_factory.mktemp("exported")
    files = RUNTIMES[runtime].export(graph, folder, precision=precision, batch_size=BATCH_SIZE, threads=1)
    with Served(runtime, folder, precision=precision, threads=1, exact=precision != "bf16") as served:
        yield Row(name, graph, runtime, precision, folder, files, served)


def test_the_files_are_the_ones_that_export_names(row: Row) -> None:
    assert sorted(row.files) == sorted(path.name for path in row.folder.iterdir())
    assert all((row.folder / name).stat().st_size for name in row.files)


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_answers_are_the_graphs_for_any_number_of_samples(row: Row, size: int) -> None:
    inputs = row.inputs(size)
    for batch_size in (1, BATCH_SIZE, 64):
        answers = row.served.run(inputs, batch_size=batch_size)
        found = compare(row.expected(inputs), answers, runtime=row.runtime, precision=row.precision)
        assert found.relative_l2 <= TOLERANCE[row.precision], found
        assert answers.dtype == np.float32


def test_exporting_left_the_graph_alone(row: Row) -> None:
    fresh = make_graph(row.net, row.precision)
    assert row.graph.code == fresh.code
    after, before = row.graph.state_dict(), fresh.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in before.items())


def test_timing_gives_one_positive_latency_per_inference(row: Row) -> None:
    row.served.set_example(row.inputs(1))
    row.served.warm_up(3)
    times = row.served.time(11)
    assert len(times) == 11
    assert all(0 < ms < 60_000 for ms in times)


def test_memory_and_load_time_are_told_and_only_torch_runtimes_import_torch(row: Row) -> None:
    stats = row.served.stats()
    assert row.served.peak_bytes() > 10_000_000
    assert stats["loaded_s"] > 0
    assert stats["imported_torch"] == (row.runtime in ("eager", "inductor"))


def test_inputs_that_do_not_fit_are_refused_before_native_code_sees_them(row: Row) -> None:
    good = row.inputs(2)
    for bad in (
        (*good, good[0]),
        tuple(x[:, :-1] for x in good),
        tuple(x.astype(np.float64) for x in good),
        tuple(x[:0] for x in good),
        tuple(x[0, 0, ...] for x in good),
    ):
        with pytest.raises(RuntimeFailed, match=r"takes|same number"):
            row.served.run(bad, batch_size=2)
    assert len(row.served.run(good, batch_size=2)) == 2


def test_a_graph_is_served_in_what_it_is_quantized_to_and_nothing_else(row: Row, tmp_path: Path) -> None:
    wrong: Precision = "fp32" if row.precision == "int8" else "int8"
    with pytest.raises(RuntimeFailed, match="int8"):
        RUNTIMES[row.runtime].export(row.graph, tmp_path, precision=wrong, batch_size=1, threads=1)


def test_require_agreement_accepts_what_agrees(row: Row) -> None:
    inputs = row.inputs(5)
    agreement = require_agreement(row.graph, RUNTIMES[row.runtime], row.folder, precision=row.precision, inputs=inputs)
    assert (agreement.runtime, agreement.precision, agreement.n) == (row.runtime, row.precision, 5)
    assert 0 <= agreement.argmax <= 1


def test_every_runtime_has_a_row_in_each_of_its_precisions() -> None:
    rows = {tuple(getattr(row, "values", (row,))[0])[:2] for row in ROWS}
    assert rows == {(name, precision) for name, runtime in RUNTIMES.items() for precision in runtime.precisions}
