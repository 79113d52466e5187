"""The results of the benchmark of real models as Markdown and as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from kept import Part, Row

from combined.cells import FAST, ORIGINAL, SMALL, cells_of, parts_of


def report(parts: dict[str, Part]) -> list[str]:
    """Every cell of every model, and what the steps of a combination gain alone and together."""
    if not parts:
        raise SystemExit("There is no cell to report yet: run without --report-only first.")
    lines = [
        "# Real models, each method alone and combined",
        "",
        "1 thread, one sample at a time; one run, no randomness, no training. Alike: the task's metric against the "
        "original's answers on the judged samples, with one-sided 95 % bounds on each side by what was seen. Coded: "
        "the file of weights of `tt.save(..., coded=True)`. File: that of the best runtime. Faster: than the "
        "original's best free file, in turns with it, 95 %. Seconds are of the processor.",
    ]
    for name, part in parts.items():
        rows = part.rows
        lines += ["", f"## {rows[0]['model']}", "", f"{rows[0]['data']}. Measured {part.made}.", ""]
        lines += [*table(rows), *together(name, rows)]
        missing = [cell.name for cell in cells_of(name, 64) if cell.name not in {row["cell"] for row in rows}]
        lines += ["", f"Not run: {', '.join(missing)}."] if missing else []
    return lines


def table(rows: list[Row]) -> list[str]:
    """A row for each cell of a model."""
    whole = rows[0]
    names = list(whole["quality"])
    kl = " KL |" if "KL" in whole else ""
    figures = "MACs | coded, times smaller | file, MB | best runtime | ms | faster | s"
    lines = [
        f"| | {' | '.join(names)} | alike |{kl} {figures} |",
        f"|{'---|' * (len(names) + 9 + bool(kl))}",
    ]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['cell']} | refused: {row['refused']} |{' |' * (len(names) + 7 + bool(kl))}")
            continue
        cells = [row["cell"], *(f"{row['quality'][name]:.3f}" for name in names), alike(row)]
        cells += [f"{row['KL']:.4f}"] if kl else []
        cells += [f"{row['macs']:.3f}", f"{whole['coded'] / row['coded']:.2f}", *speed(row), f"{row['seconds']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def alike(row: Row) -> str:
    """The metric against the original's answers, with its interval."""
    value, diff, low, high, _ = row["alike"]
    first = value - diff
    return f"{value:.3f} ({first + low:.3f} ... {min(first + high, 1.0):.3f})"


def speed(row: Row) -> list[str]:
    """Megabytes of the best runtime's file, that runtime, its milliseconds, how many times faster."""
    times = row["times"]
    if not times:
        files = row["files"].values()
        return [f"{min(files) / 1e6:.2f}" if files else "", "not raced", "", ""]
    ratio = times["gain"]
    told = f"{ratio[0]:.2f} ({ratio[1]:.2f} ... {ratio[2]:.2f})" if ratio else "1"
    return [f"{row['files'][times['best']] / 1e6:.2f}", times["best"], f"{times['ms'][times['best']][0]:.2f}", told]


def together(name: str, rows: list[Row]) -> list[str]:
    """What the steps of each combination gain alone, their product, and what they gain together."""
    by = {row["cell"]: row for row in rows if "refused" not in row}
    lines: list[str] = []
    for cell in cells_of(name, 64):
        if cell.alone or cell.name not in by or cell.name == ORIGINAL:
            continue
        parts = [by[part] for part in parts_of(name, cell) if part in by]
        sizes = {"smaller, coded": [by[ORIGINAL]["coded"] / row["coded"] for row in (*parts, by[cell.name])]}
        for what, gains in (sizes | {"faster": [faster(row) for row in (*parts, by[cell.name])]}).items():
            known = [gain for gain in gains if gain]
            if len(known) == len(cell.methods) + 1:
                alone = " x ".join(f"{value:.2f}" for value in known[:-1])
                product = math.prod(known[:-1])
                steps = ", ".join(parts_of(name, cell))
                told = f"{alone} = {product:.2f} times {what} alone, {known[-1]:.2f} together."
                lines.append(f"- {cell.name} ({steps}): {told}")
    return ["", *lines] if lines else []


def faster(row: Row) -> float | None:
    """How many times faster than the best free file, if it was raced."""
    return row["times"]["gain"][0] if row["times"] and row["times"]["gain"] else None


def page(found: dict[str, list[Row]], results: str) -> list[str]:
    """The combinations of every model in one table, under the picture."""
    lines = [
        "# Real models, each method alone and combined",
        "",
        "![Size and agreement with the original, by model and method](compress_models.svg)",
        "",
        "| model | | alike | coded, times smaller | faster than the best free file |",
        "|---|---|---|---|---|",
    ]
    for rows in found.values():
        for row in rows:
            if row["cell"] in (FAST, SMALL) and "refused" not in row:
                size = f"{rows[0]['coded'] / row['coded']:.2f}"
                lines.append(
                    f"| {row['model']} | {row['cell']} | {alike(row)} | {size} | {speed(row)[3] or 'not raced'} |"
                )
    told = f"Every cell, and how it was measured: [{results}](../../benchmarks/results/{results})."
    return [*lines, "", f"{told} Made by `scripts/bench compress_models`."]


def plot(found: dict[str, list[Row]], file: Path) -> None:
    """A panel a model: how many times smaller, against how alike the answers are."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "trimtab"
    from matplotlib import pyplot

    columns = min(3, len(found))
    figure, grid = pyplot.subplots(
        math.ceil(len(found) / columns),
        columns,
        figsize=(4.4 * columns, 3.4 * math.ceil(len(found) / columns)),
        squeeze=False,
    )
    for panel in grid.flat[len(found) :]:
        panel.set_visible(False)
    for panel, (name, rows) in zip(grid.flat, found.items(), strict=False):
        done = [row for row in rows if "refused" not in row]
        order = [cell.name for cell in cells_of(name, 64)]
        for row in done:
            place = order.index(row["cell"])
            value, diff, low, high, _ = row["alike"]
            first, size = value - diff, done[0]["coded"] / row["coded"]
            bars = [[max(value - first - low, 0)], [max(min(first + high, 1.0) - value, 0)]]
            mark = "*" if row["cell"] in (FAST, SMALL) else "o"
            panel.errorbar(
                size, value, yerr=bars, fmt=mark, color=f"C{place}", label=row["cell"], capsize=2, markersize=7
            )
        panel.set(title=rows[0]["model"], xlabel="times smaller, coded", ylabel="alike", xscale="log")
        ticks = [1, 2, 4, 8, 16]
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    names: dict[str, Any] = {}
    for panel in grid.flat:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            names.setdefault(label, handle)
    figure.legend(names.values(), names.keys(), loc="lower center", ncols=3, fontsize=8)
    figure.tight_layout(rect=(0, 0.16 if len(found) <= columns else 0.1, 1, 1))
    figure.savefig(file, metadata={"Date": None})
