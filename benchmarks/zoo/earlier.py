"""Records read back from a results file, for models that a later run did not come to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .table import OURS, THEIRS, Record

# What `rows` writes, in its order: model, parameters, ours, params, MACs, groups, theirs, params, MACs, setting.
_CELLS = 2 + len(OURS) + 3 + len(THEIRS) + 3
_FAILURE = re.compile(r"- (?P<model>\w+:\S+): (?P<column>[^:]+): `(?P<why>.*)`(?:; also .*)?")


def read_earlier(path: Path) -> dict[str, dict[str, Record]]:
    """The records of both halves, by half and model, as far as the results file at `path` tells of them."""
    text = path.read_text(encoding="utf-8")
    ours_failed, _, theirs_failed = text.partition("## What failed in trimtab")[2].partition("## What failed in")
    found = re.search(r"^commit (.*);", text, flags=re.MULTILINE)
    common = {"commit": found[1] if found else "unknown", "earlier": path.name}
    read: dict[str, dict[str, Record]] = {"trimtab": {}, "torch_pruning": {}}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not re.match(r"\| \w+:", line) or len(cells) != _CELLS:
            continue
        size = cells[1].replace(",", "")
        first, second = 2 + len(OURS), 2 + len(OURS) + 3 + len(THEIRS)
        halves = {
            "trimtab": (OURS, cells[2:first], cells[first : first + 2], ours_failed, "full"),
            "torch_pruning": (THEIRS, cells[first + 3 : second], cells[second : second + 2], theirs_failed, cells[-1]),
        }
        for half, (names, marks, falls, failed, setting) in halves.items():
            if "-" not in marks:
                columns = _columns(cells[0], names, marks, failed)
                late = {"died": "earlier"} if "did not end" in " ".join(map(str, columns.values())) else {}
                sizes = _sizes(size, *falls)
                given = {"half": half, "model": cells[0], "setting": setting, "ended": True}
                read[half][cells[0]] = given | {"columns": columns} | sizes | common | late
        if "/" in cells[first + 2] and cells[0] in read["trimtab"]:
            read["trimtab"][cells[0]]["groups"] = [int(num) for num in cells[first + 2].split("/")]
    return read


def _columns(model: str, names: Sequence[str], marks: Sequence[str], failed: str) -> dict[str, bool | str]:
    """Each column's mark, and of the first that failed also why."""
    whys = {match["column"]: match["why"].replace("\\|", "|") for match in _of(model, failed)}
    return {
        name: True if mark == "yes" else whys.get(name, "not reached") for name, mark in zip(names, marks, strict=True)
    }


def _of(model: str, failed: str) -> list[re.Match[str]]:
    return [match for match in map(_FAILURE.fullmatch, failed.splitlines()) if match and match["model"] == model]


def _sizes(size: str, params: str, macs: str) -> dict[str, list[float]]:
    """Before and after, from the size before (where it is known) and the falls in percent."""
    falls = {"params": (params, float(size) if size.isdigit() else 100.0), "macs": (macs, 100.0)}
    return {
        name: [before, before * (1 + float(fall.removesuffix(" %")) / 100)]
        for name, (fall, before) in falls.items()
        if fall != "-"
    } | ({"params": [float(size)]} if params == "-" and size.isdigit() else {})
