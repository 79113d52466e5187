"""The peak memory of a process, as the operating system counted it."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from trimtab.errors import RuntimeFailed


def peak_rss_bytes(pid: int) -> int:
    """The most memory that process `pid` ever held resident, in bytes.

    /proc counts from the process's own start; `getrusage` may carry over what its parent held before `exec`, so it is
    used only where there is no /proc, and there only for the calling process.

    Raises:
        RuntimeFailed: the process has ended, or the system does not tell about other processes.
    """
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise RuntimeFailed(f"Process {pid} has ended, so its peak memory is gone: measure before closing it.")
    if pid == os.getpid():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    raise RuntimeFailed(
        f"The peak memory of process {pid} cannot be read: it has ended, or this system ({sys.platform}) has no /proc. "
        "Measure while it runs, or let the process measure itself."
    )
