"""Who else used the processor while something was timed: what disturbs a machine, told apart from what is measured."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Ticks:
    """Processor time so far, in the system's ticks: all of it, what was busy (or stolen by a host), and our share."""

    total: int
    busy: int
    ours: int


def ticks(pids: Iterable[int], root: Path = PROC) -> Ticks | None:
    """The time so far of the whole machine and of this process and `pids`; None where the system does not tell."""
    try:
        fields = [int(x) for x in (root / "stat").read_text().splitlines()[0].split()[1:9]]
        ours = sum(_own(root / str(pid) / "stat") for pid in (os.getpid(), *pids))
    except OSError:
        return None
    idle = fields[3] + fields[4]
    return Ticks(sum(fields), sum(fields) - idle, ours)


def others_cores(before: Ticks | None, after: Ticks | None, *, cores: int) -> float | None:
    """How many cores others kept busy between two readings; None where it is not known.

    >>> others_cores(Ticks(0, 0, 0), Ticks(200, 150, 100), cores=2)
    0.5
    """
    if before is None or after is None or after.total <= before.total:
        return None
    others = (after.busy - before.busy) - (after.ours - before.ours)
    return max(0.0, others / (after.total - before.total) * cores)


def _own(path: Path) -> int:
    # The name in parentheses may hold blanks; user and system time are the 14th and 15th field.
    fields = path.read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
