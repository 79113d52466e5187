"""Where a number was measured: the machine's stamp, and the versions of what ran."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

FEATURES = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)
LATENCY_KEYS = ("cpu", "architecture", "cores", "features", "memory_bytes")  # of a stamp: what decides latencies
PACKAGES = (
    "trimtab",
    "torch",
    "numpy",
    "scipy",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "safetensors",
    "optuna",
    "plotly",
)


def stamp() -> dict[str, Any]:
    """The machine: cpu, cores, the instructions that decide speed, memory_bytes, os and Python."""
    model, flags = cpu(_read(Path("/proc/cpuinfo")))
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": num_cores(),
        "features": flags,
        "memory_bytes": _memory_bytes(_read(Path("/proc/meminfo"))),
        "os": platform.platform(),
        "python": platform.python_version(),
    }


def same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two stamps are of machines whose latencies may be compared: the same processor, cores and memory.

    >>> same_machine({"cpu": "A", "cores": 2}, {"cpu": "A", "cores": 4})
    False
    """
    return all(one.get(key) == other.get(key) for key in LATENCY_KEYS)


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The installed version of each of `packages`; those that are not installed are left out. Imports nothing."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu(cpuinfo: str) -> tuple[str, list[str]]:
    r"""The model and the known features that the text of /proc/cpuinfo names.

    >>> cpu("model name : Example 9000\nflags : fpu avx2 avx512_vnni")
    ('Example 9000', ['avx2', 'avx512_vnni'])
    """
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    present = set((fields.get("flags") or fields.get("features") or "").split())
    return fields.get("model name", ""), [name for name in FEATURES if name in present]


def num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _memory_bytes(meminfo: str) -> int | None:
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
