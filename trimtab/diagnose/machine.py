"""What this machine has, what is missing, and the command that brings it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from trimtab.core import Precision
from trimtab.measure.machine import stamp, versions
from trimtab.runtimes import RUNTIMES, supported


@dataclass(frozen=True)
class Finding:
    """One runtime: which precisions it serves here; or why it cannot be used, with the command that mends it."""

    runtime: str
    precisions: tuple[Precision, ...]
    missing: str | None
    unsupported: tuple[str, ...]


@dataclass(frozen=True)
class Diagnosis:
    """The state of this machine."""

    trimtab: str
    machine: dict[str, Any]
    versions: dict[str, str]
    runtimes: tuple[Finding, ...]


def doctor() -> Diagnosis:
    """Look at this machine: versions, the runtimes found, what is missing and the command for it."""
    return Diagnosis(version("trimtab"), stamp(), versions(), tuple(_finding(name) for name in RUNTIMES))


def _finding(name: str) -> Finding:
    runtime = RUNTIMES[name]
    missing = runtime.missing()
    if missing:
        return Finding(name, (), missing, ())
    reasons = {precision: supported(name, precision) for precision in runtime.precisions}
    usable = tuple(precision for precision, reason in reasons.items() if reason is None)
    return Finding(name, usable, None, tuple(reason for reason in reasons.values() if reason))
