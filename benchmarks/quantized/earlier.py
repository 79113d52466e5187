"""Cells read back from a results file, for those that a later run does not judge again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from quantized.cells import CELLS
from quantized.table import RIVAL, SMALL, Row, place_of

NUMBER = re.compile(r"[\d.]+")


def read_earlier(path: Path) -> list[Row]:
    """The rows of the results file at `path`, with the digits that it shows; without cells that are no more."""
    keys = {(cell.name, cell.runtime): cell for cell in CELLS}
    text = path.read_text(encoding="utf-8")
    samples, bits = (re.search(pattern, text) for pattern in (r"(\d+) calibration samples", r"int8 have (\d+) bits"))
    if not (samples and bits):
        raise SystemExit(f"{path} holds no results of this benchmark.")
    common = {"samples": int(samples[1]), "bits": int(bits[1]), "earlier": path.name}
    rows: list[Row] = []
    for section in text.split("\n## ")[1:]:
        model, data, *tables = section.split("\n\n")
        here = {place_of(row): row for table in tables for row in _cells(table) if place_of(row) in keys}
        for table in tables:
            for place, times in _races(table):
                if place in here:
                    here[place]["times"] = times
        ours = {place: keys[place].ours for place in here}
        told = {"model": model.strip(), "data": data.strip().removesuffix(".")} | common
        rows += [row | told | {"ours": ours[place]} for place, row in here.items()]
    return rows


def _lines(table: str) -> tuple[list[str], list[list[str]]]:
    """The head of a table and its rows, cell by cell."""
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.strip().splitlines()]
    return lines[0], lines[2:]


def _cells(table: str) -> Iterator[Row]:
    """The rows of a table of qualities."""
    head, lines = _lines(table)
    if head[1:2] != ["file for"]:
        return
    for name, runtime, *shown in lines:
        *values, kilobytes, seconds = (float(value.strip("*").replace(",", "")) for value in shown)
        measures = dict(zip(head[2:], values, strict=False))
        quality = {name: value for name, value in measures.items() if name not in SMALL}
        small = {name: value for name, value in measures.items() if name in SMALL}
        sizes = {"bytes": 1000 * kilobytes, "seconds": seconds, "times": None}
        yield {"cell": name.removeprefix(RIVAL), "runtime": runtime, "quality": quality, **small, **sizes}


def _races(table: str) -> Iterator[tuple[tuple[str, str], Row]]:
    """Each file of a race with its latency, and what it gains over others."""
    head, lines = _lines(table)
    if not head[0].startswith("in "):
        return
    runtime = head[0].removeprefix("in ")
    names = {(cell.name, cell.runtime): cell.key for cell in CELLS}
    others = [names.get((told.removeprefix("times as fast as "), runtime)) for told in head[2:]]
    for name, ms, *gains in lines:
        told = {other: _safe(*_numbers(gain)) for other, gain in zip(others, gains, strict=True) if other and gain}
        yield (name, runtime), {"ms": _numbers(ms), "gains": told}


def _safe(value: float, low: float, high: float) -> list[float]:
    """A ratio whose lower end is the lowest that is shown so: rounding decides no race."""
    return [value, low - 0.0049, high]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(text)]
