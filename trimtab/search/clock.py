"""The time that a search has taken, over kills and resumptions."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import mean

from trimtab.files import read_json, write_json

CLOCK_FILE = "clock.json"
LEAST_LAP = 1.0  # seconds; what ends sooner was known, or foreseen, and tells nothing of what a candidate takes


class Clock:
    """Seconds of the search so far: what earlier processes committed in the run's folder, and this one's.

    Monotonic: a wall clock that is set, or jumps, changes nothing.
    """

    def __init__(self, folder: Path, minutes: float | None) -> None:
        self._file = folder / CLOCK_FILE
        self._before = float(read_json(self._file)["seconds"]) if self._file.exists() else 0.0
        self._began = time.monotonic()
        self._laps: list[float] = []
        self._last = self._before
        self._limit = None if minutes is None else 60 * minutes

    def spent(self) -> float:
        """Seconds of the search so far."""
        return self._before + time.monotonic() - self._began

    def left(self) -> float:
        """Seconds of the budget that are left; infinite if there is none."""
        return float("inf") if self._limit is None else self._limit - self.spent()

    def room(self) -> bool:
        """Whether one more candidate is begun: if half of what one took so far is left, so that misses balance."""
        return self.left() > (mean(self._laps) / 2 if self._laps else 0.0)

    def commit(self) -> None:
        """A candidate has ended: keep what was spent, for the process that goes on after this one."""
        spent = self.spent()
        if spent - self._last > LEAST_LAP:
            self._laps.append(spent - self._last)
        self._last = spent
        write_json(self._file, {"seconds": round(spent, 3)})
