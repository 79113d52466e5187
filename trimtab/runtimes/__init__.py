"""The runtimes that a model can be served in: export, load in a fresh process, check, time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.errors import GoalError
from trimtab.runtimes.base import Runtime, unsupported
from trimtab.runtimes.eager import Eager
from trimtab.runtimes.inductor import Inductor
from trimtab.runtimes.onnxruntime import OnnxRuntime
from trimtab.runtimes.openvino import OpenVino

if TYPE_CHECKING:
    from trimtab.core import Precision

RUNTIMES: dict[str, Runtime] = {
    "eager": Eager(),
    "inductor": Inductor(),
    "onnxruntime": OnnxRuntime(),
    "openvino": OpenVino(),
}


def find_runtime(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
        GoalError: there is none.
    """
    if name not in RUNTIMES:
        raise GoalError(f"There is no runtime {name!r}; the runtimes are {', '.join(RUNTIMES)}.")
    return RUNTIMES[name]


def supported(runtime: str, precision: Precision) -> str | None:
    """Why `runtime` cannot serve in `precision` on this machine, or None if it can; the runtime must be installed."""
    return unsupported(find_runtime(runtime), precision)
