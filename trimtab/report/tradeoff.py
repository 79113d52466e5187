"""The trade-off: what the goal minimises against the metric, a point for each candidate, and the front of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from trimtab.measure.verdict import NOUN
from trimtab.report import words
from trimtab.report.parts import Evidence, figure, section

AXES = {
    "latency_ms": "latency p50, ms (log scale)",
    "size_bytes": "size on disk (log scale)",
    "memory_bytes": "peak memory (log scale)",
}
# What is measured has an interval; the bytes of a file are what they are.
BARS = {"latency_ms": "95 % interval of the latency", "memory_bytes": "the peaks of several processes"}


def tradeoff(evidence: Evidence) -> str:
    """The plot, which `page.js` draws."""
    points = _points(evidence)
    if not points:
        return ""
    metric, minimise = evidence["task"]["metric"], evidence["goal"]["minimise"]
    noun = NOUN[minimise]
    bars = f"{BARS[minimise]}, and the interval" if minimise in BARS else "the interval"
    label = f"{metric} against {noun} of every candidate; the table All candidates below holds the same figures."
    line = (
        "The line joins those that none beats, by gain over the best free baseline and by the bound that suffers most."
        if _front_of_search(evidence, points)
        else "The line joins those that none beats."
    )
    return section(
        "trade-off",
        f"{noun.capitalize()} against {metric}",
        figure(
            "tradeoff",
            label,
            caption="Every candidate that was built, exported and measured, on the "
            f"{evidence['task']['num_select']:,} select samples. Up and left is better. Bars: {bars} of "
            f"the difference to the model as it came. {line}",
        ),
    )


def plot_data(evidence: Evidence) -> dict[str, Any]:
    """What `page.js` draws of it."""
    points, minimise = _points(evidence), evidence["goal"]["minimise"]
    scale = 100 if words.is_fraction(evidence) else 1
    drop = evidence["trials"][0]["select"] if evidence["trials"] else (evidence["verdict"] or {}).get("drop")
    front = _front_of_search(evidence, points) or pareto((point["x"], point["y"]) for _, point in points)
    return {
        "points": [point for _, point in points],
        "front": front,
        "allowed": scale * (drop["baseline"] - drop["margin"]) if drop else None,
        "bytes": minimise != "latency_ms",
        "x_title": AXES[minimise],
        "y_title": f"{evidence['task']['metric']} on select",
    }


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of (cost, metric) that no other beats in both, cheapest first.

    >>> pareto([(2.0, 90.0), (1.0, 80.0), (3.0, 85.0), (1.0, 70.0)])
    [(1.0, 80.0), (2.0, 90.0)]
    """
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def row_name(place: int) -> str:
    """The id of a candidate's row in the table, which its point leads to."""
    return f"candidate-{place}"


def chosen(evidence: Evidence) -> str | None:
    """The name of the candidate that is shipped; None while the run lasts."""
    return next((row["name"] for row in evidence["rows"] if row["role"] == "chosen"), None)


def _front_of_search(evidence: Evidence, points: Sequence[tuple[str, Evidence]]) -> list[tuple[float, float]]:
    """The front that the search found, if the plot bears it out: no point in it may beat one of the front's.

    That search compares gains of one race, and the bound that suffers most, where the plot has the costs as they were
    measured and the task's metric alone. Where the two disagree, or there is no such part, the list is empty.
    """
    found = {identity: (point["x"], point["y"]) for identity, point in points}
    named = evidence.get("search", {}).get("pareto", ())
    front = sorted(found[identity] for identity in named if identity in found)
    fits = len(front) == len(named) and set(front) <= set(pareto(found.values()))
    return front if fits else []


def _points(evidence: Evidence) -> list[tuple[str, dict[str, Any]]]:
    """The id of each trial that was measured in what the goal minimises, and its point."""
    percent, best, minimise = words.is_fraction(evidence), chosen(evidence), evidence["goal"]["minimise"]
    best_free = next((row["name"] for row in evidence["rows"] if row["role"] == "best_free"), None)
    scale, points = (100 if percent else 1), []
    for place, trial in enumerate(evidence["trials"]):
        cost = next((m for m in trial["measurements"] if m["quantity"] == minimise), None)
        if cost is None:
            continue
        select = trial["select"]
        kind = "chosen" if trial["candidate"] == best else "free" if trial["free"] else "tried"
        point = {
            "kind": kind,
            "row": row_name(place),
            "label": "chosen" if kind == "chosen" else "best free" if trial["candidate"] == best_free else "",
            "x": cost["value"],
            "x_low": cost["low"],
            "x_high": cost["high"],
            "y": scale * select["candidate"],
            "y_low": scale * (select["baseline"] + select["low"]),
            "y_high": scale * (select["baseline"] + select["high"]),
            "text": f"<b>{escape(trial['candidate'])}</b><br>"
            f"{escape(words.metric(select['candidate'], percent=percent))}, "
            f"{escape(words.cost(cost['value'], minimise))}, {escape(words.times(trial['gain']))} vs best free",
        }
        points.append((trial["id"], point))
    return points
