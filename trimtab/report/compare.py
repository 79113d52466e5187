"""What differs between two runs of one task, from their evidence: verdicts, answers, costs, machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trimtab.errors import ArtifactError
from trimtab.measure.machine import same_machine
from trimtab.measure.stats import non_inferiority
from trimtab.report import words

Evidence = Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """One thing, as it is in the first and in the second; `told` says what follows from it."""

    what: str
    first: str
    second: str
    told: str = ""


def differences(first: Evidence, second: Evidence) -> tuple[Difference, ...]:
    """Compare two runs: what was asked, what came of it, and, sample by sample, the chosen models' answers.

    Latencies are compared only if both were taken on one machine.

    Raises:
        ArtifactError: they are of different tasks.
    """
    one, other = first["task"], second["task"]
    if one["data"] != other["data"] or one["metric"] != other["metric"]:
        raise ArtifactError(
            f"These are of different tasks: {one['name']!r} ({one['metric']}, {one['num_verify']:,} verify samples) "
            f"and {other['name']!r} ({other['metric']}, {other['num_verify']:,}), with different data. Compare two "
            "runs of one."
        )
    found = [
        *_settings(first, second),
        _row("chosen", _chosen(first)["name"], _chosen(second)["name"]),
        _row("recipe", _recipe(first), _recipe(second)),
        _row("verdict", first["verdict"]["word"], second["verdict"]["word"]),
        _metric(first, second),
        *_costs(first, second),
        *_places(first, second),
    ]
    return tuple(found)


def _row(what: str, first: str, second: str, told: str = "") -> Difference:
    return Difference(what, first, second, told or ("" if first != second else "the same"))


def _chosen(evidence: Evidence) -> Evidence:
    return next(row for row in evidence["rows"] if row["role"] == "chosen")


def _recipe(evidence: Evidence) -> str:
    return " + ".join(step["method"] for step in evidence["recipe"]) or "original"


def _settings(first: Evidence, second: Evidence) -> list[Difference]:
    """What was asked otherwise; and the settings of methods that both recipes have and set otherwise."""
    rows = []
    for part in ("goal", "target"):
        for key in sorted(first[part].keys() | second[part].keys()):
            before, after = first[part].get(key), second[part].get(key)
            if before != after:
                rows.append(Difference(f"{part}: {key}", str(before), str(after)))
    if _recipe(first) == _recipe(second):
        for one, other in zip(first["recipe"], second["recipe"], strict=True):
            for key in sorted(one["settings"].keys() | other["settings"].keys()):
                before, after = one["settings"].get(key), other["settings"].get(key)
                if before != after:
                    rows.append(Difference(f"{one['method']}: {key}", str(before), str(after)))
    return rows


def _metric(first: Evidence, second: Evidence) -> Difference:
    """The chosen models' metric on verify; paired, sample by sample, where it is a mean of scores."""
    percent, rows = words.is_fraction(first), (_chosen(first), _chosen(second))
    one, other = (words.metric(row["metric"], percent=percent) for row in rows)
    before, after = (np.array(evidence["outcomes"]["chosen"], dtype=np.float64) for evidence in (first, second))
    if before.ndim != 1 or before.shape != after.shape:
        return Difference(first["task"]["metric"], one, other)
    confidence = first["goal"]["confidence"]
    drop = non_inferiority(before, after, margin=0.0, confidence=confidence, binary=bool(first["task"]["binary"]))
    told = (
        f"{words.change(drop.diff, percent=percent, unit=True)} "
        f"{words.interval(drop.low, drop.high, percent=percent)}, other scores on {int((before != after).sum()):,} of "
        f"{len(before):,} samples"
    )
    return Difference(first["task"]["metric"], one, other, told)


def _costs(first: Evidence, second: Evidence) -> list[Difference]:
    one, other = _chosen(first), _chosen(second)
    gains = [evidence["verdict"]["gain"] for evidence in (first, second)]
    had, has = ("{value:.2f}x [{low:.2f}, {high:.2f}]".format(**gain) for gain in gains)
    apart = gains[0]["high"] < gains[1]["low"] or gains[1]["high"] < gains[0]["low"]
    rows = [Difference("gain over the best free", had, has, "" if apart else "their intervals overlap")]
    same = same_machine(first["machine"], second["machine"])
    times = words.factor(one["latency"]["value"] / other["latency"]["value"])
    rows.append(
        Difference(
            "latency p50",
            words.milliseconds(one["latency"]["value"]),
            words.milliseconds(other["latency"]["value"]),
            f"{times} as fast" if same else "not compared: taken on two machines",
        )
    )
    for key, what in (("size", "size on disk"), ("memory", "peak memory")):
        before, after = one[key]["value"], other[key]["value"]
        ratio = f"{words.factor(after / before)} as much" if before != after else "the same"
        rows.append(Difference(what, words.size(before), words.size(after), ratio))
    return rows


def _places(first: Evidence, second: Evidence) -> list[Difference]:
    """Machine and versions, where they differ."""
    rows = []
    for part in ("machine", "versions"):
        for key in sorted(first[part].keys() | second[part].keys()):
            before, after = first[part].get(key, words.NOTHING), second[part].get(key, words.NOTHING)
            if before != after:
                rows.append(Difference(f"{part}: {key}", _plain(before), _plain(after)))
    return rows


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
