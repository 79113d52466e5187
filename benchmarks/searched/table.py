"""The results of the benchmark of searches as Markdown and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from kept import Part, Row

OURS, GRID, RANDOM, ALONE = "ours", "grid", "random", " alone"
AIM = 0.25


def by_strategy(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The runs of each, ours first, then the grid and random search."""
    found: dict[str, list[Row]] = {name: [] for name in (OURS, GRID, RANDOM)}
    for row in rows:
        if row["steps"]:
            found.setdefault(row["strategy"], []).append(row)
    return {name: own for name, own in found.items() if own}


def reached(row: Row, volume: float) -> Row | None:
    """The first step with this hypervolume; None if it was never reached."""
    return next((step for step in row["steps"] if step["hypervolume"] >= volume - 1e-9), None)


def of_grids(rows: Sequence[Row]) -> dict[str, Row]:
    """How each grid ended, whose order changes nothing of that; the one that reached more first."""
    ends = {name: own[0]["steps"][-1] for name, own in by_strategy(rows).items() if name.startswith(GRID)}
    return dict(sorted(ends.items(), key=lambda end: -end[1]["hypervolume"]))


def of_grid(rows: Sequence[Row]) -> Row | None:
    """How the grid ended that reached more."""
    return next(iter(of_grids(rows).values()), None)


def report(parts: dict[str, Part], bounds: Mapping[str, str]) -> list[str]:
    """Every strategy on every model, and whether the aim is met; bounds: title -> what has to stay."""
    if not parts:
        raise SystemExit("There is no strategy to report yet: run without --report-only first.")
    lines = [
        "# What a search costs",
        "",
        "1 thread, one sample at a time. Served by ONNX Runtime alone. Seconds are by the clock, on a machine that "
        "other work may have kept busy. All strategies search one space on the same cells. An evaluation is a graph "
        "that was scored, a cheap look included, or a further file of it that was raced. The hypervolume is the share "
        "of the square between no cost and the best free baseline's, and between no loss on select and all that is "
        "allowed, that what was measured dominates. Several seeds: the mean, with lowest and highest. Random search "
        "and the families see one draw from their candidates, in another order with each seed.",
    ]
    for title, part in parts.items():
        told = [*aim(part.rows), *foreseen(part.rows)]
        made = f"{bounds[title]}. Measured {part.made}."
        lines += ["", f"## {title}", "", made, "", *told, "", *table(part.rows)]
    missing = [title for title in bounds if title not in parts]
    return [*lines, "", f"Not run: {', '.join(missing)}."] if missing else lines


def aim(rows: Sequence[Row]) -> list[str]:
    """Whether ours has each grid's hypervolume in a quarter of its evaluations."""
    whole, own = of_grid(rows), by_strategy(rows).get(OURS)
    if whole is None or own is None:
        return ["- The aim is not decided: ours and the grid have to end first."]
    return [
        *(_aim(name, end, own) for name, end in of_grids(rows).items()),
        f"- After {quarter(whole)} evaluations, as shares of {whole['hypervolume']:.3f}: "
        f"{', '.join(early_shares(rows, whole))}.",
    ]


def _aim(name: str, whole: Row, own: Sequence[Row]) -> str:
    ends = spread([row["steps"][-1]["hypervolume"] for row in own], "{:.3f}")
    title = f"- {name[0].upper()}{name[1:]}"
    if not whole["hypervolume"]:
        return f"{title}: nothing within the bound in {whole['evaluations']} evaluations. Ours ended at {ends}."
    limit, hits = AIM * whole["evaluations"], [reached(row, whole["hypervolume"]) for row in own]
    held = sum(step is not None and step["evaluations"] <= limit for step in hits)
    word = "holds" if held == len(own) else "does not hold" if not held else f"holds for {held} of {len(own)} seeds"
    if any(hits):
        came = ("never" if one is None else f"at {one['evaluations']} ({one['seconds']:.0f} s)" for one in hits)
        told = f"has it, by seed, {', '.join(came)}; the grid took {whole['seconds']:.0f} s"
    else:
        told = f"ended at {ends}"
    return (
        f"{title}: {whole['hypervolume']:.3f} after {whole['evaluations']} evaluations, should be "
        f"reached in at most a quarter of them ({limit:.0f}): this {word}. Ours {told}."
    )


def foreseen(rows: Sequence[Row]) -> list[str]:
    """How far the costs of candidates in floats were from what was foreseen before they were made; nothing if none."""
    pairs = [pair for row in rows for pair in row.get("foreseen", ())]
    if not pairs:
        return []
    errors = sorted(abs(forecast / cost - 1) for forecast, cost in pairs)
    near = sum(error <= 0.1 for error in errors)
    return [
        f"- What floats cost was foreseen for {len(errors)} that were measured then: the median error, before what the "
        f"search corrects by what it measures, is {100 * median(errors):.0f} %, {near} are within 10 %, the largest is "
        f"{100 * errors[-1]:.0f} %."
    ]


def less_run(rows: Sequence[Row], names: Iterable[str]) -> list[str]:
    """Which of the strategies were not run, and which with fewer seeds than others; nothing if all were alike.

    Families that a model has no candidates of are not told.
    """
    seeds = {name: len(own) for name, own in by_strategy(rows).items()}
    missing = [name for name in names if name not in seeds and not name.endswith(ALONE)]
    fewer = [f"{name} ({count})" for name, count in seeds.items() if count < max(seeds.values())]
    told = [f"Not run here: {', '.join(missing)}."] if missing else []
    if fewer:
        told.append(f"Run with fewer seeds than the {max(seeds.values())} of others: {', '.join(fewer)}.")
    return [f"- {' '.join(told)}"] if told else []


def quarter(whole: Row) -> int:
    """The evaluations that the aim allows, in whole ones."""
    return round(AIM * whole["evaluations"])


def early_shares(rows: Sequence[Row], whole: Row) -> list[str]:
    """What each strategy has after a quarter of the grid's evaluations, as a share of all that the grid finds."""
    limit = quarter(whole)
    shares = {
        name: [at(row, limit) / whole["hypervolume"] for row in own] if whole["hypervolume"] else [0.0]
        for name, own in by_strategy(rows).items()
    }
    return [f"{name} {spread([100 * one for one in own], '{:.0f}')} %" for name, own in shares.items()]


def table(rows: Sequence[Row]) -> list[str]:
    """A row for each strategy."""
    whole = of_grid(rows)
    limit = quarter(whole) if whole else None
    early_on = f"after {limit or '-'} evaluations"
    lines = [
        f"| strategy | seeds | evaluations | seconds | hypervolume | {early_on} | the grid's after |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, own in by_strategy(rows).items():
        last = [row["steps"][-1] for row in own]
        early = [at(row, limit) for row in own] if limit else []
        hit = [reached(row, whole["hypervolume"]) for row in own] if whole else []
        count = sum(step is not None for step in hit)
        told = spread([step["evaluations"] for step in hit if step], "{:.0f}") if count else "never"
        cells = [
            name,
            f"{len(own)}",
            spread([step["evaluations"] for step in last], "{:.0f}"),
            spread([step["seconds"] for step in last], "{:.0f}"),
            spread([step["hypervolume"] for step in last], "{:.3f}"),
            spread(early, "{:.3f}") if early else "",
            told + (f", {count} of {len(own)}" if count and count < len(own) else ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def at(row: Row, evaluations: int) -> float:
    """The hypervolume after so many evaluations."""
    return max((step["hypervolume"] for step in row["steps"] if step["evaluations"] <= evaluations), default=0.0)


def spread(values: Sequence[float], form: str) -> str:
    """The mean, with lowest and highest where they differ."""
    low, middle, high = (form.format(own) for own in (min(values), mean(values), max(values)))
    return middle if low == high else f"{middle} ({low} ... {high})"


def page(found: dict[str, list[Row]], bounds: Mapping[str, str], results: str) -> list[str]:
    """What came of the aim, under the picture."""
    names = dict.fromkeys(name for rows in found.values() for name in by_strategy(rows) if name != OURS)
    rivals = ", ".join(
        f"{name} search" if name == RANDOM else f"a {name}" if name.startswith(GRID) else name for name in names
    )
    lines = [
        "# What a search costs",
        "",
        "![Hypervolume against evaluations and seconds, by strategy](search_cost.svg)",
        "",
        f"Our search is held against {rivals or 'nothing yet'}, on the same candidates. The hypervolume is what the "
        "measured candidates dominate, as a share of all that could be gained within the bound.",
    ]
    for title, rows in found.items():
        lines += ["", f"**{title}**, {bounds[title]}", "", *aim(rows), *foreseen(rows), *less_run(rows, names)]
    told = f"Every strategy, and how it was measured: [{results}](../../benchmarks/results/{results})."
    return [*lines, "", f"{told} Made by `scripts/bench search_cost`."]


def plot(found: dict[str, list[Row]], file: Path) -> None:
    """A row of two panels a model: against evaluations, and against seconds; every seed a line."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "trimtab"
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(len(found), 2, figsize=(9.0, 3.3 * len(found)), squeeze=False)
    names = list(dict.fromkeys(name for rows in found.values() for name in by_strategy(rows)))
    for panels, (title, rows) in zip(grid, found.items(), strict=True):
        whole = of_grid(rows)
        for panel, x in zip(panels, ("evaluations", "seconds"), strict=True):
            for name, own in by_strategy(rows).items():
                look = {"color": f"C{names.index(name)}", "linewidth": 2.2 if name == OURS else 1.1}
                for place, row in enumerate(own):
                    xs, ys = [step[x] for step in row["steps"]], [step["hypervolume"] for step in row["steps"]]
                    panel.step([0, *xs], [0.0, *ys], where="post", label=None if place else name, alpha=0.8, **look)
            if whole:
                panel.axhline(whole["hypervolume"], color="grey", linewidth=0.8, linestyle="--")
                if x == "evaluations":
                    panel.axvline(AIM * whole[x], color="grey", linewidth=0.8, linestyle=":")
            panel.set(title=title, xlabel=x, ylabel="hypervolume", xlim=(0, None), ylim=(0, None))
            panel.grid(alpha=0.3)
    handles: dict[str, Any] = {}
    for panel in grid.flat:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=3, fontsize=9)
    figure.tight_layout(rect=(0, (0.03 + 0.08 * math.ceil(len(handles) / 3)) / len(found), 1, 1))
    figure.savefig(file, metadata={"Date": None})
