"""The staircase: how long each layer shape takes on the real runtime, measured once a machine, and what follows.

Times fall in steps, not in proportion, as channels go: kernels work in blocks. They are kept in an SQLite file, for
each machine and runtime apart, so a shape that any run has measured costs nothing more; several processes may share the
file. Cost: one row of some hundred bytes for each shape.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trimtab.errors import RunError
from trimtab.measure.machine import LATENCY_KEYS

TABLE = """CREATE TABLE IF NOT EXISTS times (
    machine TEXT NOT NULL, runtime TEXT NOT NULL, layer TEXT NOT NULL, ms REAL NOT NULL,
    PRIMARY KEY (machine, runtime, layer))"""
WAIT_SECONDS = 60.0


class Staircase:
    """The times of layers on one machine in one runtime, kept in `file`.

    Args:
        file: an SQLite file; it is made if it is not there.
        machine: the stamp of this machine (`measure.machine.stamp`).
        runtime: what the times are of, with all that decides them, e.g. "onnxruntime 1.32.0 fp32 1 thread".

    Raises:
        RunError: the file cannot be opened, or is not such a file.
    """

    def __init__(self, file: Path, *, machine: Mapping[str, Any], runtime: str) -> None:
        self.file = file
        self._machine, self._runtime = machine_key(machine), runtime
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{file} cannot be made: {error}. Choose another place for the staircase.") from error
        with self._open() as base:
            base.execute(TABLE)

    def ms(self, layer: str, measure: Callable[[], float]) -> float:
        """Milliseconds of `layer`, a name of its operation and sizes: kept ones, or else those that `measure` gives.

        If two processes measured it meanwhile, both get what was kept first.
        """
        known = self._read(layer)
        if known is None:
            ms = measure()
            with self._open() as base:
                base.execute("INSERT OR IGNORE INTO times VALUES (?, ?, ?, ?)", (*self._of(layer), ms))
            known = self._read(layer)
        assert known is not None, "written above"
        return known

    def __len__(self) -> int:
        """How many layers are kept for this machine and runtime."""
        with self._open() as base:
            count = base.execute(
                "SELECT COUNT(*) FROM times WHERE machine = ? AND runtime = ?", (self._machine, self._runtime)
            )
            return int(count.fetchone()[0])

    def _of(self, layer: str) -> tuple[str, str, str]:
        return self._machine, self._runtime, layer

    def _read(self, layer: str) -> float | None:
        with self._open() as base:
            found = base.execute(
                "SELECT ms FROM times WHERE machine = ? AND runtime = ? AND layer = ?", self._of(layer)
            ).fetchone()
        return float(found[0]) if found else None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            base = sqlite3.connect(self.file, timeout=WAIT_SECONDS)
            try:
                with base:
                    yield base
            finally:
                base.close()
        except sqlite3.Error as error:
            raise RunError(
                f"The staircase in {self.file} cannot be used: {error}. Delete the file, or choose another."
            ) from error


def machine_key(machine: Mapping[str, Any]) -> str:
    """A short name of the machines whose latencies may be compared with those of `machine`.

    >>> machine_key({"cpu": "A", "cores": 2, "os": "x"}) == machine_key({"cpu": "A", "cores": 2, "os": "y"})
    True
    """
    deciding = json.dumps([machine.get(key) for key in LATENCY_KEYS])
    return hashlib.sha256(deciding.encode()).hexdigest()[:16]


def predicted_ms(original_ms: float, layers_ms: float, cut_layers_ms: float, *, rest: float = 1.0) -> float:
    """The latency of a smaller version of a model, from that of the original and the staircase's times of both.

    What the original takes beyond its layers is the rest, which shrinks to the share `rest`. Where the layers alone add
    up to more than the original, as they do in a runtime that fuses, all of it shrinks as they do.

    Args:
        original_ms: the whole original, measured.
        layers_ms: the sum over its layers.
        cut_layers_ms: the same of the smaller version.
        rest: the share that stays of what lies between the layers.

    >>> predicted_ms(10.0, 8.0, 4.0), predicted_ms(10.0, 20.0, 5.0)
    (6.0, 2.5)
    """
    assert layers_ms > 0, "no layer was timed"
    if layers_ms >= original_ms:
        return original_ms * cut_layers_ms / layers_ms
    return cut_layers_ms + rest * (original_ms - layers_ms)


def worth_keeping(times: Mapping[float, float], *, slack: float = 0.02) -> tuple[float, ...]:
    """Of some widths those that pay, ascending: narrower than every width that is as fast, give or take `slack`.

    A width is left out if a wider one, which holds more of the model, takes at most (1 + slack) times as long.

    >>> worth_keeping({64: 1.0, 60: 1.1, 48: 0.8, 47: 0.8})
    (48, 64)
    """
    kept: list[float] = []
    fastest = float("inf")
    for width in sorted(times, reverse=True):
        if times[width] * (1 + slack) < fastest:
            kept.append(width)
            fastest = times[width]
    return tuple(reversed(kept))
