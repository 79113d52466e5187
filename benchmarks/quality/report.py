"""Tables and plot of the cells: accuracy by ratio, what each cut leaves, and the best of ours beside the peer's best.

Which method is each side's best is chosen on `select` (the mean over seeds); what is compared is measured on `verify`,
seed by seed, because both sides cut the same original.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from quality.cells import ORIGINAL
from trimtab.measure.machine import stamp, versions

PEER = "Torch-Pruning"
PHASES = {"raw": "without recovery", "recovered": "with recovery"}
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Paired:
    """The best of ours minus the peer's best at one point, over the seeds that both have."""

    ours: str
    peer: str
    mean: float
    std: float
    wins: int
    n: int

    @property
    def interval(self) -> float:
        """Half the width of the 95 % interval of the mean, by Student's t."""
        from scipy.stats import t

        return float(t.ppf(0.975, self.n - 1)) * self.std / math.sqrt(self.n) if self.n > 1 else math.inf

    @property
    def word(self) -> str:
        """Whether the interval of the difference leaves zero out."""
        if self.mean - self.interval > 0:
            return "better"
        return "worse" if self.mean + self.interval < 0 else "no difference seen"


def accuracies(rows: Rows, net: str, method: str, ratio: float, phase: str, split: str = "verify") -> dict[int, float]:
    """Accuracy by seed."""
    return {
        row["seed"]: row[phase][split]
        for row in rows
        if (row["net"], row["method"], row["ratio"]) == (net, method, ratio) and phase in row
    }


def paired(rows: Rows, net: str, ratio: float, phase: str) -> Paired:
    """Our best against the peer's best, each chosen on `select`."""
    methods = dict.fromkeys(row["method"] for row in rows if row["net"] == net and row["method"] != ORIGINAL)

    def best(side: list[str]) -> str:
        return max(side, key=lambda name: mean(accuracies(rows, net, name, ratio, phase, "select").values()))

    # A method that has not seen every seed yet cannot be compared by its mean.
    counts = {name: len(accuracies(rows, net, name, ratio, phase)) for name in methods}
    whole = [name for name in methods if counts[name] == max(counts.values())]
    theirs = [name for name in whole if name.startswith(PEER)]
    ours, peer = best([name for name in whole if name not in theirs]), best(theirs)
    first, second = (accuracies(rows, net, name, ratio, phase) for name in (ours, peer))
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    spread = stdev(differences) if len(differences) > 1 else 0.0
    wins = sum(difference > 0 for difference in differences)
    return Paired(ours, peer, mean(differences), spread, wins, len(differences))


def accuracy_table(rows: Rows, net: str, phase: str) -> list[str]:
    """A row a method, a column a ratio: mean +- standard deviation over the seeds, in percent."""
    ratios = sorted({row["ratio"] for row in rows if row["net"] == net and row["method"] != ORIGINAL})
    methods = dict.fromkeys(row["method"] for row in rows if row["net"] == net and row["method"] != ORIGINAL)
    lines = [f"| {PHASES[phase]} | " + " | ".join(f"{ratio:g}" for ratio in ratios) + " |", "|---" * 5 + "|"]
    for method in ordered(methods):
        cells = [spread(accuracies(rows, net, method, ratio, phase).values()) for ratio in ratios]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def ordered(methods: Any) -> list[str]:
    """The peer's last; the others by name."""
    return sorted(methods, key=lambda name: (name.startswith(PEER), name))


def spread(values: Any) -> str:
    """Mean +- standard deviation, in percent.

    >>> spread([0.5, 0.6])
    '55.0 ± 7.1'
    """
    numbers = [100 * value for value in values]
    if not numbers:
        return "-"
    return f"{mean(numbers):.1f} ± {stdev(numbers) if len(numbers) > 1 else 0.0:.1f}"


def size_table(rows: Rows, net: str) -> list[str]:
    """Parameters and MACs that are left at each ratio, ours and the peer's; a range where methods differ."""
    ratios = sorted({row["ratio"] for row in rows if row["net"] == net})
    lines = ["| ratio | parameters | MACs | parameters, Torch-Pruning | MACs, Torch-Pruning |", "|---|---|---|---|---|"]
    for ratio in ratios:
        here = [row for row in rows if row["net"] == net and row["ratio"] == ratio]
        cells = [
            between([row[key] for row in here if row["method"].startswith(PEER) == theirs])
            for theirs in (False, True)
            for key in ("params", "macs")
        ]
        lines.append(f"| {ratio:g} | " + " | ".join(cells) + " |")
    return lines


def between(numbers: list[int]) -> str:
    """One number, or the least and the largest.

    >>> between([3, 3]), between([1000, 2500]), between([])
    ('3', '1,000 to 2,500', '-')
    """
    if not numbers:
        return "-"
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def paired_table(rows: Rows, nets: list[str]) -> list[str]:
    """The best of ours beside the peer's best at every point."""
    lines = [
        "| net | ratio | recovery | best of trimtab | best of Torch-Pruning | difference | 95 % | seeds won | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for net in nets:
        for ratio in sorted({row["ratio"] for row in rows if row["net"] == net and row["method"] != ORIGINAL}):
            for phase in PHASES:
                one = paired(rows, net, ratio, phase)
                difference = f"{100 * one.mean:+.2f} ± {100 * one.std:.2f} | ± {100 * one.interval:.2f}"
                lines.append(
                    f"| {net} | {ratio:g} | {'yes' if phase == 'recovered' else 'no'} | {one.ours} | "
                    f"{one.peer.removeprefix(PEER).strip()} | {difference} | {one.wins}/{one.n} | {one.word} |"
                )
    return lines


def write_report(rows: Rows, settings: dict[str, Any], root: Path) -> list[Path]:
    """Write the results, the page of the documentation and its plot; returns their paths."""
    if not any(row["method"] != ORIGINAL for row in rows):
        raise SystemExit("There is no cell to report yet: run without --report-only first.")
    nets = list(dict.fromkeys(row["net"] for row in rows))
    lines = ["# Accuracy against the share of channels cut, beside Torch-Pruning 1.6.1", "", *told(rows, settings), ""]
    for net in nets:
        original = spread(accuracies(rows, net, ORIGINAL, 0.0, "raw").values())
        lines += [f"## {net}", "", f"Test accuracy in percent; the original: {original}.", ""]
        lines += [line for phase in PHASES for line in (*accuracy_table(rows, net, phase), "")]
        lines += ["What is left:", "", *size_table(rows, net), ""]
    lines += ["## Paired: our best minus the peer's best", ""]
    lines += ["Each side's best method is chosen on the select split; the difference is on the test split.", ""]
    lines += paired_table(rows, nets)
    today = f"{datetime.date.today():%Y-%m-%d}"
    results = root / "benchmarks" / "results" / f"prune_quality_cpu_{today}.md"
    folder = root / "docs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    results.write_text("\n".join(lines) + "\n")
    picture, page = folder / "prune_quality.svg", folder / "prune_quality.md"
    plot(rows, nets, picture)
    page.write_text("\n".join(summary(rows, nets, results)) + "\n")
    return [results, page, picture]


def told(rows: Rows, settings: dict[str, Any]) -> list[str]:
    """How it was measured."""
    machine, seeds = stamp(), len({row["seed"] for row in rows})
    recovery, fits = settings["recovery"], settings["original"]
    originals = "; ".join(f"{net} {fit.epochs} epochs at {fit.lr:g}" for net, fit in fits.items())
    return [
        f"{machine['cpu']}, 1 thread, PyTorch {versions()['torch']}, fp32; {seeds} seeds, {len(rows)} cells. "
        f"Originals: {originals}, AdamW, batch {recovery.batch_size}, the 10,000 training images, one original a seed. "
        f"Cut: uniform, the same share of every group, widths to the nearest channel (Torch-Pruning was given the "
        f"same widths), the last layer left alone; importances from data see {settings['samples']} training images. "
        f"Recovery, the same for all: {recovery.epochs} epoch over {settings['images']:,} training images at "
        f"{recovery.lr:g}, labels only, the same order of data. Short on purpose: what is compared is what the cut "
        f"leaves, not how far training can go. Accuracy on {settings['test']:,} test images; mean ± standard deviation "
        "over seeds.",
    ]


def summary(rows: Rows, nets: list[str], results: Path) -> list[str]:
    """The page of the documentation: the plot, the comparison, where the rest is."""
    points = [paired(rows, net, ratio, phase) for net in nets for ratio in _ratios(rows, net) for phase in PHASES]
    words = Counter(point.word for point in points)
    return [
        "# Accuracy against the share of channels cut",
        "",
        f"![Accuracy by ratio, {' and '.join(nets)}, without and with recovery](prune_quality.svg)",
        "",
        f"At {len(points)} points, trimtab's best beside Torch-Pruning's best: {words['better']} better, "
        f"{words['no difference seen']} without a difference that {points[0].n} seeds show, {words['worse']} worse.",
        "",
        *paired_table(rows, nets),
        "",
        f"How it was measured, every method and what each cut leaves: [{results.name}]"
        f"(../../benchmarks/results/{results.name}). Made by `scripts/bench prune_quality`.",
    ]


def _ratios(rows: Rows, net: str) -> list[float]:
    return sorted({row["ratio"] for row in rows if row["net"] == net and row["method"] != ORIGINAL})


def plot(rows: Rows, nets: list[str], path: Path) -> None:
    """A panel for each net and phase: a line a method, the mean over seeds; bars are one standard deviation."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("The plot needs matplotlib: pip install matplotlib, then --report-only.") from error
    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "trimtab"
    methods = ordered(dict.fromkeys(row["method"] for row in rows if row["method"] != ORIGINAL))
    colours = pyplot.get_cmap("tab10").colors
    figure, axes = pyplot.subplots(len(PHASES), len(nets), figsize=(11, 8), sharex=True, squeeze=False)
    for column, net in enumerate(nets):
        for line, phase in enumerate(PHASES):
            axis = axes[line][column]
            for place, method in enumerate(methods):
                ratios = _ratios(rows, net)
                found = [list(accuracies(rows, net, method, ratio, phase).values()) for ratio in ratios]
                shift = 0.006 * (place - len(methods) / 2)
                theirs = method.startswith(PEER)
                axis.errorbar(
                    [ratio + shift for ratio in ratios],
                    [100 * mean(values) if values else math.nan for values in found],
                    yerr=[100 * stdev(values) if len(values) > 1 else 0.0 for values in found],
                    label=method,
                    color="black" if theirs else colours[place % 10],
                    linestyle=("--" if method.endswith("magnitude") else ":") if theirs else "-",
                    marker="s" if theirs else "o",
                    markersize=3.5,
                    linewidth=2 if "compensation" in method or theirs else 1.2,
                    elinewidth=0.8,
                )
            whole = mean(accuracies(rows, net, ORIGINAL, 0.0, "raw").values())
            axis.axhline(100 * whole, color="grey", linewidth=0.8)
            axis.set_title(f"{net}, {PHASES[phase]}", fontsize=11)
            axis.grid(alpha=0.25)
            axis.set_ylabel("test accuracy, %")
            axis.set_xticks(_ratios(rows, net))
            if line == len(PHASES) - 1:
                axis.set_xlabel("share of the channels cut")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(path, metadata={"Date": None})
