"""The table of formats is true, and a scheme that a runtime cannot run is refused with those that can."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from tests.compress.test_quantize import task_of
from tests.nets import net
from trimtab.compress.dynamic import Dynamic
from trimtab.compress.weightonly import WeightOnly
from trimtab.core import Precision, Tools
from trimtab.errors import RuntimeFailed
from trimtab.graph.capture import capture
from trimtab.runtimes import RUNTIMES, supported
from trimtab.runtimes.formats import FORMATS, PACKED, lacking


def test_every_precision_has_a_line_and_every_runtime_its_column() -> None:
    assert set(FORMATS) == set(get_args(Precision))
    assert {name for runtimes in FORMATS.values() for name in runtimes} == set(RUNTIMES)
    for name, runtime in RUNTIMES.items():
        assert runtime.precisions == tuple(p for p, runtimes in FORMATS.items() if name in runtimes)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("precision", FORMATS)
def test_what_a_runtime_lacks_it_says_with_those_that_have_it(runtime: str, precision: Precision) -> None:
    told = lacking(runtime, precision)
    assert (told is None) == (runtime in FORMATS[precision])
    if told:
        assert told.startswith(f"{runtime} has no {precision} here")
        assert told.endswith(f"{precision} runs in {', '.join(FORMATS[precision])}.")
        assert supported(runtime, precision) == told
        assert ("(" in told) == (precision in PACKED or precision in ("int8", "int8d"))


@pytest.mark.parametrize(
    ("runtime", "method", "words"),
    [
        (
            "inductor",
            WeightOnly("int4"),
            r"has no int4w here \(its compiler folds .* runs in eager, onnxruntime, openvino",
        ),
        ("openvino", Dynamic(), r"has no int8d here \(it reads no dynamic ranges .* int8d runs in onnxruntime\."),
        ("eager", Dynamic(), r"has no int8d here \(it would only simulate integers\)"),
    ],
)
def test_a_scheme_that_a_runtime_cannot_run_is_refused_before_any_work(
    runtime: str, method: WeightOnly | Dynamic, words: str, tmp_path: Path
) -> None:
    module, x = net("mlp")
    graph = capture(module, (x,))
    packed = method.apply(graph, method.plan(graph, task_of(x)), Tools())
    precision: Precision = "int8d" if isinstance(method, Dynamic) else "int4w"
    with pytest.raises(RuntimeFailed, match=words):
        RUNTIMES[runtime].export(packed, tmp_path, precision=precision, batch_size=1, threads=1)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_floats_is_told_which_method_makes_it_so(tmp_path: Path) -> None:
    module, x = net("mlp")
    graph = capture(module, (x,))
    for precision, method in (("int8", "Quantize"), ("int8d", "Dynamic"), ("nf4w", "WeightOnly")):
        with pytest.raises(RuntimeFailed, match=f"so it is not {precision}; apply {method} first"):
            RUNTIMES["onnxruntime"].export(graph, tmp_path, precision=precision, batch_size=1, threads=1)  # type: ignore[arg-type]


def test_the_page_about_quantization_has_this_table() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    names = table[0][2:]
    told = {
        row[0]: tuple(name for name, word in zip(names, row[2:], strict=True) if word == "yes") for row in table[2:]
    }
    assert told == {precision: runtimes for precision, runtimes in FORMATS.items() if precision not in ("fp32", "bf16")}
