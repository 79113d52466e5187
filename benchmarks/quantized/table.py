"""The results of the benchmark of quantization as Markdown: every cell, and what became of its aims."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quantized.cells import CELLS, NAIVE, ORIGINAL, TAUGHT, Cell, cells_of
from trimtab.measure.machine import stamp, versions

SMALL = ("KL", "relative error")
RIVAL = "*rival:* "
SLOWER = 0.97  # times the best rival's speed: within 3 %
Row = dict[str, Any]


def report(rows: list[Row]) -> list[str]:
    """Every cell, by model, as lines."""
    if not rows:
        raise SystemExit("There is no cell to report yet: run without --report-only first.")
    lines = ["# Real models in 8 and 4 bits: the file as its runtime runs it", "", conditions(rows)]
    for model, here in by_model(rows).items():
        lines += ["", f"## {model}", "", f"{here[0]['data']}.", "", *table(here)]
        for runtime in dict.fromkeys(row["runtime"] for row in here if row["times"]):
            lines += ["", *latencies([row for row in here if row["runtime"] == runtime and row["times"]])]
    return lines


def conditions(rows: list[Row]) -> str:
    """On what, with what, how often."""
    used = versions(["torch", "onnxruntime", "openvino"])
    told = ", ".join(f"{name} {version}" for name, version in used.items())
    again = told_earlier(rows)
    return (
        f"{stamp()['cpu']}, {', '.join(stamp()['features'])}; 1 thread; {told}, Python {stamp()['python']}. One run "
        f"each, no randomness; {rows[0]['samples']} calibration samples of the train split, the same for all; weights "
        f"of static int8 have {rows[0]['bits']} bits. Seconds are of the wall clock, other work beside them. Bold: the "
        f"best of a column, the original left out.{again}"
    )


def told_earlier(rows: list[Row]) -> str:
    """How many rows are of an earlier run, and which races are not; nothing if all are of this one."""
    old = [row["earlier"] for row in rows if "earlier" in row]
    if not old:
        return ""
    anew = dict.fromkeys(f"{row['model']} in {row['runtime']}" for row in rows if row["times"] and "n" in row["times"])
    races = f", but for the races of {', '.join(anew)}" if anew else ""
    return f" {len(old)} rows are those of an earlier run, {old[0]}{races}."


def by_model(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each model in the order of the cells; of models that somebody has quantized."""
    order = {(cell.name, cell.runtime): place for place, cell in enumerate(CELLS)}
    known = sorted((row for row in rows if place_of(row) in order), key=lambda row: order[place_of(row)])
    models = dict.fromkeys(row["model"] for row in rows if not is_original(row))
    return {model: [row for row in known if row["model"] == model] for model in models}


def place_of(row: Row) -> tuple[str, str]:
    return row["cell"], row["runtime"]


def measures(row: Row) -> dict[str, float]:
    """The figures that say how much is left of the model."""
    return row["quality"] | {name: row[name] for name in SMALL if name in row}


def table(rows: list[Row]) -> list[str]:
    """A row for each cell; the best of each column in bold."""
    names = list(measures(rows[0]))
    best = {name: best_of(rows, name) for name in names}
    lines = ["| | file for | " + " | ".join(names) + " | kB | seconds |", "|---" * (len(names) + 4) + "|"]
    for row in rows:
        shown = []
        for name, value in measures(row).items():
            text = f"{value:.5f}" if name in SMALL else f"{value:.3f}"
            shown.append(f"**{text}**" if row["cell"] != ORIGINAL and value == best[name] else text)
        shown += [f"{row['bytes'] / 1000:,.0f}", f"{row['seconds']:.0f}"]
        who = "" if row["ours"] else RIVAL
        lines.append(f"| {who}{row['cell']} | {row['runtime']} | " + " | ".join(shown) + " |")
    return lines


def best_of(rows: list[Row], name: str) -> float | None:
    """The best value of a column, the original left out."""
    values = [measures(row)[name] for row in rows if row["cell"] != ORIGINAL]
    return (min if name in SMALL else max)(values, default=None)


def latencies(rows: list[Row]) -> list[str]:
    """The race in one runtime: milliseconds, and how many times faster than each rival."""
    others = [row for row in rows if is_original(row) or not row["ours"]]
    heads = [f"times as fast as {row['cell']}" for row in others]
    lines = [f"| in {rows[0]['runtime']} | ms | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    for row in rows:
        ms = row["times"]["ms"]
        against = [gain_over(row, cell_of(other).key) for other in others]
        lines.append(f"| {row['cell']} | {ms[0]:.2f} [{ms[1]:.2f}, {ms[2]:.2f}] | " + " | ".join(against) + " |")
    return lines


def is_original(row: Row) -> bool:
    return bool(row["cell"] == ORIGINAL)


def cell_of(row: Row) -> Cell:
    return next(cell for cell in CELLS if (cell.name, cell.runtime) == place_of(row))


def gain_over(row: Row, other: str) -> str:
    """The ratio of latencies with its 95 % interval."""
    if other not in row["times"]["gains"]:
        return ""
    value, low, high = row["times"]["gains"][other]
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def page(rows: list[Row], source: str) -> list[str]:
    """The best of ours beside the best of the rivals, and each aim with what came of it."""
    lines = [
        "# Quantization beside other quantizers",
        "",
        "The best file of each side by each measure, 8 bits or fewer, as its runtime runs it; of latencies the fastest "
        "in that runtime, with the 95 % interval of the ratio of paired blocks. No training, no labels.",
        "",
        "| model | measure | original | best of trimtab | best of the rivals | difference |",
        "|---|---|---|---|---|---|",
    ]
    models = by_model(rows)
    for model, here in models.items():
        lines += [line for name in measures(here[0]) if (line := compared(model, name, here))]
    races = []
    for model, here in models.items():
        for runtime in dict.fromkeys(row["runtime"] for row in here):
            races += raced(model, runtime, [row for row in here if row["runtime"] == runtime and row["times"]])
    if races:
        lines += ["", "| model | runtime | trimtab's file | best rival's file | trimtab is faster by | within 3 % |"]
        lines += ["|---" * 6 + "|", *races]
    absent = [f"* {model}: {', '.join(names)}" for model, here in models.items() if (names := missing(model, here))]
    lines += ["", "Not measured yet, for want of time on this machine:", "", *absent] if absent else []
    link = f"[{source}](../../benchmarks/results/{source})"
    return [*lines, "", f"Conditions, every setting, sizes and seconds: {link}. Made by `scripts/bench quantize`."]


def missing(model: str, rows: list[Row]) -> list[str]:
    """What of a model has no cell, or no latency where it should have one."""
    there = {place_of(row) for row in rows}
    cells = [f"{cell.name} ({cell.runtime})" for cell in cells_of(model) if (cell.name, cell.runtime) not in there]
    return cells + (["latencies"] if not any(row["times"] for row in rows) else [])


def sides_of(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """What trimtab made, without its plainest setting and what was trained, and what the rivals made."""
    made = [row for row in rows if row["cell"] not in (ORIGINAL, NAIVE) and not row["cell"].startswith(TAUGHT)]
    return [row for row in made if row["ours"]], [row for row in made if not row["ours"]]


def compared(model: str, name: str, rows: list[Row]) -> str | None:
    """The line of one measure of a model; None if a side has no file."""
    pick: Callable[..., Row] = min if name in SMALL else max
    sides = sides_of(rows)
    if not all(sides):
        return None
    digits = 5 if name in SMALL else 3
    ours, theirs = (pick(side, key=lambda row: measures(row)[name]) for side in sides)
    told = [f"{measures(row)[name]:.{digits}f} ({row['cell']}, {row['runtime']})" for row in (ours, theirs)]
    difference = measures(ours)[name] - measures(theirs)[name]
    before = f"| {model} | {name} | {measures(rows[0])[name]:.{digits}f} |"
    return f"{before} {told[0]} | {told[1]} | {difference:+.{digits}f} |"


def raced(model: str, runtime: str, rows: list[Row]) -> list[str]:
    """The line of one race: our fastest int8 file against the rivals' fastest."""
    sides = sides_of(rows)
    if not all(sides):
        return []
    ours, theirs = (min(side, key=lambda row: row["times"]["ms"][0]) for side in sides)
    _, low, high = ours["times"]["gains"][cell_of(theirs).key]
    word = "yes" if low >= SLOWER else "no" if high < SLOWER else "not decided"
    told = [f"{row['times']['ms'][0]:.2f} ms ({row['cell']})" for row in (ours, theirs)]
    return [f"| {model} | {runtime} | {told[0]} | {told[1]} | {gain_over(ours, cell_of(theirs).key)} | {word} |"]
