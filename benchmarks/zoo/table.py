"""The benchmark's results as markdown, from the records of both halves."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
OURS = ("exports", "cut", "exact", "trains", "reloads", "onnxruntime")
THEIRS = ("cut", "runs", "same shape", "trains", "reloads", "onnxruntime")
LONGEST = 300


def finished(record: Record) -> bool:
    """Whether a record is of a run that came to its end, or was ended for taking too long."""
    return "ended" in record or "died" in record


def read_records(folder: Path, half: str) -> dict[str, Record]:
    """Each model's record; of several settings the one with most columns passed, then with most parameters gone."""
    best: dict[str, Record] = {}
    for path in sorted(folder.glob(f"{half}.*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["model"] not in best or _rank(record) > _rank(best[record["model"]]):
            best[record["model"]] = record
    return best


def passed(record: Record, column: str) -> bool:
    """Whether a column holds."""
    return record["columns"].get(column) is True


def all_passed(record: Record, columns: Iterable[str] | None = None) -> bool:
    """Whether all of these columns hold; without any named, all that were tried."""
    return all(passed(record, column) for column in columns or record["columns"])


def _rank(record: Record) -> tuple[int, float]:
    return sum(value is True for value in record["columns"].values()), -_after(record, "params")


def _after(record: Record, what: str) -> float:
    sizes = record.get(what, [])
    return sizes[1] / sizes[0] if len(sizes) == 2 and sizes[0] else 1.0


def totals(ours: Mapping[str, Record], theirs: Mapping[str, Record], models: Sequence[str]) -> list[str]:
    """Both halves over the models that export and that both tried: how many pass each column, and all of them."""
    exported = [model for model in models if model in ours and model in theirs and passed(ours[model], "exports")]
    num = max(len(exported), 1)

    def share(records: Mapping[str, Record], columns: Sequence[str]) -> str:
        good = sum(all_passed(records[model], columns) for model in exported)
        return f"{good} ({100 * good / num:.1f} %)"

    rows = [
        ("cut by 5 % of the parameters or more", share(ours, ["cut"]), share(theirs, ["cut"])),
        ("runs, output of the same shape", share(ours, ["exact"]), share(theirs, ["runs", "same shape"])),
        ("exact against the masked original, eval and train", share(ours, ["exact"]), "has no such check"),
        *((f"{text}", share(ours, [key]), share(theirs, [key])) for text, key in SHARED),
        ("**all of it**", f"**{share(ours, OURS)}**", f"**{share(theirs, THEIRS)}**"),
    ]
    lines = [f"| of {len(exported)} models | trimtab | Torch-Pruning 1.6.1 |", "|---|---|---|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


SHARED = (
    ("trains one step", "trains"),
    ("reloads bit-exact", "reloads"),
    ("runs in ONNX Runtime", "onnxruntime"),
)


def _marks(record: Record | None, columns: Sequence[str]) -> list[str]:
    return ["-" if record is None else "yes" if passed(record, column) else "**no**" for column in columns]


def _fall(record: Record | None, what: str) -> str:
    if record is None or len(record.get(what, [])) < 2:
        return "-"
    return f"{100 * (_after(record, what) - 1):+.0f} %"


def _size(record: Record | None) -> str:
    return f"{record['params'][0]:,.0f}" if record and record.get("params") else "-"


def rows(ours: Mapping[str, Record], theirs: Mapping[str, Record], models: Sequence[str]) -> list[str]:
    """One row per model."""
    head = ["model", "parameters", *OURS, "params", "MACs", "groups cut / left", *THEIRS, "params", "MACs", "setting"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for model in models:
        mine, other = ours.get(model), theirs.get(model)
        left = " / ".join(map(str, mine["groups"])) if mine and "groups" in mine else "-"
        cells = [model, _size(mine) if _size(mine) != "-" else _size(other), *_marks(mine, OURS)]
        cells += [_fall(mine, "params"), _fall(mine, "macs"), left, *_marks(other, THEIRS)]
        cells += [_fall(other, "params"), _fall(other, "macs"), other["setting"] if other else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def failures(records: Mapping[str, Record], models: Sequence[str], *, longest: int = LONGEST) -> list[str]:
    """Per model the first column that failed, and why."""
    lines = []
    for model in models:
        columns = records.get(model, {}).get("columns", {})
        failed = [(column, why) for column, why in columns.items() if why is not True]
        if failed:
            more = f"; also {', '.join(column for column, _ in failed[1:])}" if failed[1:] else ""
            text = re.sub(r"/\S*/site-packages/", "", " ".join(str(failed[0][1]).split()))
            why = text[:longest].replace("|", "\\|")
            lines.append(f"- {model}: {failed[0][0]}: `{why}`{more}")
    return lines or ["None."]


def reasons(ours: Mapping[str, Record], models: Sequence[str]) -> list[str]:
    """Why groups were left whole, over the models measured now, and what share of all their groups that is."""
    counted: Counter[str] = Counter()
    cut = left = 0
    for model in models:
        record = ours.get(model, {})
        if "groups" in record and "earlier" not in record:
            cut, left = cut + record["groups"][0], left + record["groups"][1]
        counted.update(_kind(why) for _, why in record.get("skipped", []))
    lines = [f"{cut:,} groups were cut and {left:,} left whole ({100 * left / max(cut + left, 1):.0f} %):", ""]
    lines += ["| why | groups |", "|---|---|"]
    return lines + [f"| {why} | {num:,} |" for why, num in counted.most_common(25)]


def _kind(why: str) -> str:
    # The names of nodes and groups in a reason are its own; what is left is of one kind.
    words = why.split(" (at ")[0].split()
    return " ".join("..." if any(c.isdigit() or c in "_#" for c in word) else word for word in words)
