"""Measured rows stay as JSON beside their report, each part with its day and machine: one is measured again alone."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimtab.files import read_json, write_json
from trimtab.measure.machine import stamp, versions

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """What was measured of one model. made: the day, the machine, and the versions of what ran."""

    made: str
    rows: list[Row]


def cells(
    work: Path, names: Iterable[str], measure: Callable[[str], Any], *, wanted: Collection[str]
) -> dict[str, Any]:
    """What ended of `names`, each in a file of its own in `work`; those `wanted` that have not are measured first."""
    for name in wanted:
        file = work / f"{name}.json"
        if not file.exists():
            write_json(file, measure(name))
            print(name, read_json(file), flush=True)
    files = {name: work / f"{name}.json" for name in names}
    return {name: read_json(file) for name, file in files.items() if file.exists()}


def kept(
    file: Path, found: Mapping[str, list[Row]], *, names: Iterable[str], libraries: Iterable[str]
) -> dict[str, Part]:
    """The parts in `file`, in the order of `names`, those of `found` in place of what was there; `file` is written.

    A part with fewer rows than the one that was there, or with more values that are None, does not take its place: it
    has not ended yet.
    """
    parts = {name: Part(**part) for name, part in read_json(file).items()} if file.exists() else {}
    for name, rows in found.items():
        old = parts.get(name)
        if rows and (old is None or (rows != old.rows and ended(rows, old.rows))):
            parts[name] = Part(here(libraries), rows)
    parts = {name: parts[name] for name in names if name in parts}
    write_json(file, {name: asdict(part) for name, part in parts.items()})
    return parts


def ended(rows: list[Row], before: list[Row]) -> bool:
    """Whether as much was measured as before: rows, and values in them."""
    unknown, unknown_before = (sum(value is None for row in some for value in row.values()) for some in (rows, before))
    return len(rows) >= len(before) and unknown <= unknown_before


def here(libraries: Iterable[str]) -> str:
    """Today, this machine, and the versions of what ran."""
    return f"{datetime.date.today()}, {place(stamp(), versions(libraries))}"


def place(machine: Mapping[str, Any], used: Mapping[str, Any]) -> str:
    """A machine and the versions of what ran there."""
    told = ", ".join(f"{name} {version}" for name, version in used.items())
    return f"{machine['cpu']}, {', '.join(machine['features'])}; Python {machine['python']}, {told}"
