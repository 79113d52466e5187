"""Which runtime runs which precision, written by hand; a runtime's `precisions` are its column of this table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimtab.core import Precision

FORMATS: dict[Precision, tuple[str, ...]] = {
    "fp32": ("eager", "inductor", "onnxruntime", "openvino"),
    "bf16": ("eager", "inductor", "openvino"),
    "int8": ("inductor", "onnxruntime", "openvino"),
    "int8d": ("onnxruntime",),
    "int8w": ("eager", "inductor", "onnxruntime", "openvino"),
    "int4w": ("eager", "onnxruntime", "openvino"),
    "nf4w": ("eager", "onnxruntime", "openvino"),
    "fp8": ("eager", "onnxruntime", "openvino"),
    "fp16": ("eager", "onnxruntime", "openvino"),
}
PACKED: tuple[Precision, ...] = ("int8w", "int4w", "nf4w", "fp8", "fp16")
WHY: dict[tuple[str, Precision], str] = {
    ("eager", "int8"): "it would only simulate integers",
    ("eager", "int8d"): "it would only simulate integers",
    ("openvino", "int8d"): "it reads no dynamic ranges from a file; it finds them by itself for int8w and int4w",
    ("inductor", "int8d"): "its compiler has no form for ranges found at run time that it takes ahead of time",
}
WHY |= {
    ("inductor", precision): "its compiler folds such weights back into fp32; it leaves int8w alone"
    for precision in PACKED
    if precision != "int8w"
}


def precisions_of(runtime: str) -> tuple[Precision, ...]:
    """What a runtime has in general.

    >>> precisions_of("inductor")
    ('fp32', 'bf16', 'int8', 'int8w')
    """
    return tuple(precision for precision, runtimes in FORMATS.items() if runtime in runtimes)


def lacking(runtime: str, precision: Precision) -> str | None:
    """Why a runtime does not have a precision, with those that do; None if it has."""
    able = FORMATS.get(precision, ())
    if runtime in able:
        return None
    why = WHY.get((runtime, precision))
    told = f" ({why})" if why else ""
    instead = f"{precision} runs in {', '.join(able)}" if able else "no runtime has it"
    return f"{runtime} has no {precision} here{told}; it has {', '.join(precisions_of(runtime))}. {instead}."
