"""How often the proof lets through what it should not, and how its power grows: 1,000 simulated tasks a cell.

    scripts/bench verdict_calibration [--tasks 1000] [--jobs 2] [--only NAME ...]
    scripts/bench verdict_calibration --again "overlap, 0 to 1" 10000 [--tasks 20000]
    scripts/bench verdict_calibration --kept [--tasks 1000] [--only "even loss"]
    scripts/bench verdict_calibration --again "even loss" 5000 --share 0.8 [--tasks 20000]

A cell is a kind of metric, a number of verify samples and a true drop. Each task draws its samples from a population
whose true drop is known exactly, as the population is a table of rows with probabilities. The margin is what the worst
population loses: there a PASS is false, and may happen to 5 %. Four more tables: a margin that is a share of what the
samples show, several bounds at once, the best of many picked on `select`, and other intervals of a mean. Writes
benchmarks/results/verdict_calibration_DATE.md and docs/benchmarks/verdict_calibration.svg. Half an hour on one core.
With --again, one cell alone with seeds of its own, in verdict_calibration_again_DATE.md: of many cells at 5 %, some
come out above it by chance, and fresh tasks tell which do in truth. With --kept, the first of the further tables
alone, in verdict_calibration_kept_DATE.md; of some metrics only, with a seed of its own, in
verdict_calibration_kept_again_DATE.md; one cell of it, with --again and --share, in
verdict_calibration_kept_cell_DATE.md.
"""

from __future__ import annotations

import argparse
import datetime
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import binom, binomtest, t

from trimtab.measure.corpus import bca
from trimtab.measure.machine import stamp, versions
from trimtab.measure.proportions import p_lost, tango
from trimtab.measure.resample import resampled_means
from trimtab.measure.stats import Kept, non_inferiority
from trimtab.measure.verdict import hold, holm

ROOT = Path(__file__).parents[1]
SIZES = (100, 300, 1000, 3000, 10_000)
CONFIDENCE, SEED, RESAMPLES, NUM_TASKS = 0.95, 0, 499, 1000
# the share of the margin that is truly lost: at the bound, half of it, nothing
DROPS = (1.0, 0.5, 0.0)
Floats = np.ndarray
Aggregate = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Population:
    """Rows of a baseline and a candidate, [K, D] each, how likely each is [K], and what the candidate truly loses."""

    first: Floats
    second: Floats
    chances: Floats
    drop: float


@dataclass(frozen=True)
class Kind:
    """A kind of metric: how much worse a candidate of badness b is, as a table of joint rows."""

    name: str
    aggregate: Aggregate | None
    table: Callable[[float], tuple[Floats, Floats, Floats]]

    def population(self, badness: float) -> Population:
        """The population of a candidate that is worse by `badness`."""
        first, second, chances = self.table(badness)
        before, after = chances @ first, chances @ second
        drop = before - after if self.aggregate is None else self.aggregate(before) - self.aggregate(after)
        return Population(first, second, chances, float(np.squeeze(drop)))

    def badness(self, worst: float, share: float) -> float:
        """How bad a candidate is that loses `share` of what one of badness `worst` loses."""
        wanted, low = share * self.population(worst).drop, 0.0
        while self.population(low).drop > wanted:  # the rungs of a ladder may differ, so that 0 is not yet even
            low -= worst / 4
            assert low > -10 * worst, f"{self.name} cannot lose so little"
        return float(brentq(lambda b: self.population(b).drop - wanted, low, worst, xtol=1e-12)) if share < 1 else worst


def joint(values: Floats, chances: Floats, moves: Mapping[int, float], badness: float) -> tuple[Floats, Floats, Floats]:
    """Two models with the same ladder of values [K, ...]: most samples stay, some climb, some more fall by `badness`.

    moves: how many rungs -> the chance to climb by so many, and as much to fall, where there is room for both; the
    chance to fall is that and its share of badness, where there is room below.
    """
    total = sum(moves.values())
    rows: list[tuple[Floats, Floats, float]] = []
    for at, chance in enumerate(chances):
        left = 1.0
        for rungs, rate in moves.items():
            up = rate if rungs <= at < len(values) - rungs else 0.0
            down = max(up + badness * rate / total, 0.0) if at >= rungs else 0.0
            for to, share in ((at + rungs, up), (at - rungs, down)):
                if share:
                    rows.append((values[at], values[to], chance * share))
                left -= share
        rows.append((values[at], values[at], chance * left))
    first, second, weights = (np.array(part, dtype=float) for part in zip(*rows, strict=True))
    return first, second, weights


def accuracy(badness: float) -> tuple[Floats, Floats, Floats]:
    return np.array([1.0, 1, 0, 0]), np.array([1.0, 0, 1, 0]), np.array([0.87 - badness, 0.02 + badness, 0.02, 0.09])


def ranks(badness: float) -> tuple[Floats, Floats, Floats]:
    values = 1 / np.arange(10, 0, -1)
    return joint(values, binom.pmf(np.arange(10), 9, 0.75), {1: 0.05, 3: 0.02}, badness)


def overlap(badness: float) -> tuple[Floats, Floats, Floats]:
    """A score from 0 to 1 a sample, such as an overlap: many small changes."""
    values = np.linspace(0, 1, 31)
    return joint(values, binom.pmf(np.arange(31), 30, 0.8), {1: 0.3, 3: 0.05}, badness)


def rare(badness: float) -> tuple[Floats, Floats, Floats]:
    """The same score, where few samples change, by amounts that vary: the hardest for a bootstrap."""
    values = np.linspace(0, 1, 31)
    return joint(values, binom.pmf(np.arange(31), 30, 0.8), {1: 0.004, 6: 0.003, 18: 0.001}, badness)


def log_loss(badness: float) -> tuple[Floats, Floats, Floats]:
    """Log-likelihood a sample: skewed, a few samples lose much."""
    values = -np.geomspace(8, 0.01, 25)
    chances = np.exp(-0.5 * np.arange(25)[::-1] ** 0.8)
    return joint(values, chances / chances.sum(), {1: 0.2, 4: 0.05, 10: 0.01}, badness)


def f1(badness: float) -> tuple[Floats, Floats, Floats]:
    """One class of 20 %: rows are (true positive, false positive, false negative)."""
    right, wrong, said, calm = [1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]
    pairs = [
        (right, right, 0.16 - badness), (right, wrong, 0.008 + badness), (wrong, right, 0.008), (wrong, wrong, 0.024),
        (calm, calm, 0.765), (calm, said, 0.01), (said, calm, 0.01), (said, said, 0.015),
    ]  # fmt: skip
    return tuple(np.array(part, dtype=float) for part in zip(*pairs, strict=True))  # type: ignore[return-value]


def characters(badness: float) -> tuple[Floats, Floats, Floats]:
    """Lines of 10, 20 and 40 characters: rows are (errors, length)."""
    parts = []
    for length, share in ((10, 0.3), (20, 0.4), (40, 0.3)):
        values = np.array([[errors, length] for errors in range(9, -1, -1)], dtype=float)
        parts.append(joint(values, share * binom.pmf(np.arange(10)[::-1], 9, 0.08), {1: 0.06, 3: 0.01}, badness))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))  # type: ignore[return-value]


def texts(badness: float) -> tuple[Floats, Floats, Floats]:
    """Texts of 20 to 80 tokens: rows are (summed loss, tokens)."""
    parts = []
    for length, share in ((20, 0.4), (40, 0.4), (80, 0.2)):
        values = np.array([[length * loss, length] for loss in np.linspace(5.0, 2.0, 13)])
        parts.append(joint(values, share * binom.pmf(np.arange(13), 12, 0.6), {1: 0.25, 2: 0.1}, badness))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))  # type: ignore[return-value]


def auc_rows(badness: float) -> tuple[Floats, Floats, Floats]:
    """Scores on a ladder of 25, a quarter of the samples positive: rows are (score, is positive)."""
    parts = []
    for positive, share, centre, worse in ((1.0, 0.25, 0.62, badness), (0.0, 0.75, 0.4, 0.0)):
        values = np.stack([np.arange(25.0), np.full(25, positive)], 1)
        parts.append(joint(values, share * binom.pmf(np.arange(25), 24, centre), {1: 0.12}, worse))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))  # type: ignore[return-value]


def placements(rows: Floats, weights: Floats) -> Floats:
    """DeLong's statistics of each row: its share of the AUC among the other class, [K, 5]."""
    score, positive = rows[:, 0], rows[:, 1] > 0
    above = (score[:, None] > score) + 0.5 * (score[:, None] == score)
    p, n = weights * positive, weights * ~positive
    won, held = above @ n / n.sum(), p @ above / p.sum()
    auc = float(p @ won / p.sum())
    return np.stack([won * positive, positive, held * ~positive, ~positive, np.full(len(rows), auc)], 1)


def of_auc(m: Floats) -> Floats:
    return m[..., 0] / m[..., 1] + m[..., 2] / m[..., 3] - m[..., 4]


def auc(badness: float) -> tuple[Floats, Floats, Floats]:
    first, second, chances = auc_rows(badness)
    return placements(first, chances), placements(second, chances), chances


def share_right(m: Floats) -> Floats:
    return 1 - m[..., 0] / m[..., 1]


def of_f1(m: Floats) -> Floats:
    return 2 * m[..., 0] / (2 * m[..., 0] + m[..., 1] + m[..., 2])


def of_texts(m: Floats) -> Floats:
    return -np.exp(m[..., 0] / m[..., 1])


def even(badness: float) -> tuple[Floats, Floats, Floats]:
    """Scores of any size, of which all lose the same: the change is known well, and a share of their mean is not."""
    first = np.linspace(0, 1, 31).repeat(2)
    return first, first - badness + np.tile([-0.02, 0.02], 31), np.full(62, 1 / 62)


# the last number is the badness at the bound
KINDS = (
    (Kind("accuracy", None, accuracy), 0.01),
    (Kind("MRR", None, ranks), 0.15),
    (Kind("overlap, 0 to 1", None, overlap), 0.15),
    (Kind("overlap, few change", None, rare), 0.02),
    (Kind("log-likelihood", None, log_loss), 0.15),
    (Kind("F1", of_f1, f1), 0.01),
    (Kind("character error rate", share_right, characters), 0.05),
    (Kind("perplexity", of_texts, texts), 0.1),
    (Kind("AUC", of_auc, auc), 0.2),
)


# of a share: each with the shares, and how bad a candidate may be at most for one to be found that keeps them exactly
KEPT = (
    (Kind("even loss", None, even), (0.8, 0.9, 0.98), 0.5),
    (KINDS[0][0], (0.8, 0.9, 0.98), 0.2),
    (KINDS[1][0], (0.8, 0.9, 0.98), 4.0),
    (KINDS[5][0], (0.9, 0.98), 0.05),
    (KINDS[7][0], (0.9, 0.98), 0.5),
)
KEPT_SIZES = (1000, 5000)


@dataclass(frozen=True)
class Cell:
    """Of the tasks of one cell: how many PASS, how many FAIL."""

    num: int
    share: float
    passed: int
    failed: int
    tasks: int


def cell(kind: Kind, worst: float, num: int, share: float, tasks: int, *, seed: int = SEED) -> Cell:
    """Simulate `tasks` tasks with `num` samples, where `share` of the margin is truly lost."""
    margin = kind.population(worst).drop
    rng = np.random.default_rng((seed, num, round(100 * share)))
    drawn = _drawn(kind, kind.badness(worst, share), rng)
    words = [one(kind, *drawn(num), margin, place) for place in range(tasks)]
    return Cell(num, share, words.count("PASS"), words.count("FAIL"), tasks)


def _drawn(kind: Kind, badness: float, rng: np.random.Generator) -> Callable[[int], tuple[Floats, Floats]]:
    """A function from a number of samples to the statistics of both models on so many fresh ones."""
    # An AUC's placements depend on the samples drawn, so that its rows are made from them.
    table = auc_rows(badness) if kind.name == "AUC" else kind.table(badness)
    first, second, chances = table
    chances = chances / chances.sum()

    def draw(num: int) -> tuple[Floats, Floats]:
        counts = rng.multinomial(num, chances)
        rows = [first, second]
        if kind.name == "AUC":
            rows = [placements(one, counts.astype(float)) for one in rows]
        return np.repeat(rows[0], counts, axis=0), np.repeat(rows[1], counts, axis=0)

    return draw


def one(kind: Kind, first: Floats, second: Floats, margin: float | Kept, seed: int) -> str:
    """The word on the quality of one simulated task."""
    drop = non_inferiority(
        first,
        second,
        margin=margin,
        confidence=CONFIDENCE,
        binary=kind.name == "accuracy",
        aggregate=kind.aggregate,
        seed=seed,
        num_resamples=RESAMPLES,
    )
    return hold([drop])[0].word


def alternatives(kind: Kind, worst: float, num: int, tasks: int) -> tuple[int, int, int]:
    """Of the tasks at the bound: false PASSes by Student's t, by the plain BCa bootstrap, and by the rule in use."""
    margin = kind.population(worst).drop
    rng = np.random.default_rng((SEED, num))
    drawn = _drawn(kind, worst, rng)
    quantile, counts = t.ppf(CONFIDENCE, num - 1), np.zeros(3, int)
    for seed in range(tasks):
        first, second = drawn(num)
        delta = second - first
        mean = float(delta.mean())
        means = resampled_means(delta[:, None], seed=seed, num_resamples=RESAMPLES)[:, 0]
        low = bca(means, mean, delta - mean, confidence=CONFIDENCE)[0]
        counts[0] += mean - quantile * delta.std(ddof=1) / math.sqrt(num) >= -margin
        counts[1] += low >= -margin
        counts[2] += one(kind, first, second, margin, seed) == "PASS"
    return int(counts[0]), int(counts[1]), int(counts[2])


def alternatives_table(tasks: int) -> list[str]:
    lines = [
        f"## False PASS of other intervals of a mean, {tasks:,} tasks",
        "",
        "| metric | n | Student's t | BCa bootstrap | the rule in use |",
        "|---|---|---|---|---|",
    ]
    for kind, worst in KINDS:
        if kind.aggregate is None and kind.name != "accuracy":
            for num in SIZES[:1]:
                shown = [share_of(count, tasks) for count in alternatives(kind, worst, num, tasks)]
                lines.append(f"| {kind.name} | {num:,} | " + " | ".join(shown) + " |")
    return lines


def kept_badness(kind: Kind, worst: float, share: float) -> float:
    """How bad a candidate is that keeps exactly `share`."""

    def missed(badness: float) -> float:
        found = kind.population(badness)
        before = found.chances @ found.first
        value = before if kind.aggregate is None else kind.aggregate(before)
        return found.drop - (1 - share) * abs(float(np.squeeze(value)))

    return float(brentq(missed, 0.0, worst, xtol=1e-12))


def kept_drawn(kind: Kind, worst: float, share: float, num: int, seed: int) -> Callable[[int], tuple[Floats, Floats]]:
    """`_drawn`, where exactly `share` is kept."""
    return _drawn(kind, kept_badness(kind, worst, share), np.random.default_rng((seed, num, round(100 * share))))


def kept_cell(kind: Kind, worst: float, share: float, num: int, tasks: int, *, seed: int = SEED) -> tuple[int, int]:
    """False PASSes where exactly `share` is kept: by the rule in use, and if the margin were known."""
    drawn = kept_drawn(kind, worst, share, num, seed)
    counts = [0, 0]
    for place in range(tasks):
        first, second = drawn(num)
        value = first.mean(0) if kind.aggregate is None else kind.aggregate(first.mean(0))
        for at, margin in enumerate((Kept(share), (1 - share) * abs(float(np.squeeze(value))))):
            counts[at] += one(kind, first, second, margin, place) == "PASS"
    return counts[0], counts[1]


def kept_table(tasks: int, only: Sequence[str] = (), *, seed: int = SEED) -> list[str]:
    """The margin is a share of what the samples show of the baseline, and errs as they do."""
    lines = [
        f"## False PASS where exactly a share is kept, {tasks:,} tasks",
        "",
        "What may be lost is taken from the samples, and so is not known. Taking it for known lets through what the "
        "last column says.",
        "",
        "| metric | share kept | n | false PASS | if the margin were taken for known |",
        "|---|---|---|---|---|",
    ]
    for kind, shares, worst in KEPT:
        for share in () if only and kind.name not in only else shares:
            for num in KEPT_SIZES:
                found = kept_cell(kind, worst, share, num, tasks, seed=seed)
                lines.append(f"| {kind.name} | {share:g} | {num:,} | {' | '.join(share_of(x, tasks) for x in found)} |")
    return lines


def kept_again_table(kind: Kind, worst: float, share: float, num: int, tasks: int) -> list[str]:
    """One cell of a share that is kept, with fresh seeds; and what Student's t makes of the same tasks, and of others.

    Student's t of candidate - share * baseline has no bootstrap and next to no error at such sizes: where it passes as
    often, it is the tasks that were drawn and not the rule.
    """
    assert kind.aggregate is None, "Student's t is of a mean"
    by_t: dict[int, int] = {}

    def once(seed: int, num_tasks: int) -> int:
        by_t[seed] = students(kind, worst, share, num, num_tasks, seed=seed)
        drawn = kept_drawn(kind, worst, share, num, seed)
        return sum(one(kind, *drawn(num), Kept(share), place) == "PASS" for place in range(num_tasks))

    lines = fresh_table(f"{kind.name}, {share:g} kept, n = {num:,}", once, tasks)
    many, before = 100 * NUM_TASKS, 2 * NUM_TASKS
    other = students(kind, worst, share, num, many, seed=SEED + 1 + len(by_t))
    first = students(kind, worst, share, num, before, seed=SEED)
    here, there, then = (
        share_of(*pair, digits=2) for pair in ((sum(by_t.values()), tasks), (other, many), (first, before))
    )
    return [
        *lines,
        "",
        f"Student's t of candidate - {share:g} * baseline lets through {here} of these tasks, {there} of {many:,} "
        f"others, and {then} of the first {before:,} of seed {SEED}.",
    ]


def students(kind: Kind, worst: float, share: float, num: int, tasks: int, *, seed: int) -> int:
    """Of the tasks of `kept_cell` with that seed: how many Student's t lets through."""
    drawn, quantile, passed = kept_drawn(kind, worst, share, num, seed), t.ppf(CONFIDENCE, num - 1), 0
    for _ in range(tasks):
        first, second = drawn(num)
        left = second - Kept(share).weight(float(first.mean())) * first
        passed += float(left.mean()) >= quantile * float(left.std(ddof=1)) / math.sqrt(num)
    return passed


def share_of(count: int, tasks: int, *, digits: int = 1) -> str:
    return f"{100 * count / tasks:.{digits}f} %"


def cell_tables(results: Mapping[str, Sequence[Cell]], tasks: int) -> list[str]:
    error = 1.96 * math.sqrt(0.05 * 0.95 / tasks)
    lines = [
        f"## False PASS and power, {tasks:,} tasks a cell",
        "",
        "True drop at the bound: a PASS is false, and may come in at most 5 %; a FAIL would be as false. The "
        f"simulation's own binomial error (95 %) is {100 * error:.1f} points at 5 %. Where less is lost, a quarter of "
        "the tasks tells how often it PASSes.",
        "",
        "| metric | n | false PASS (true drop = margin) | false FAIL | PASS at half the margin | PASS at no drop |",
        "|---|---|---|---|---|---|",
    ]
    for name, cells in results.items():
        for num in sorted({c.num for c in cells}):
            at = {c.share: c for c in cells if c.num == num}
            shown = [share_of(count, at[1.0].tasks) for count in (at[1.0].passed, at[1.0].failed)]
            shown += [share_of(at[share].passed, at[share].tasks) for share in (0.5, 0.0)]
            lines.append(f"| {name} | {num:,} | " + " | ".join(shown) + " |")
    worst = max((c.passed / tasks, name, c.num) for name, cells in results.items() for c in cells if c.share == 1)
    over = [
        (name, c.num)
        for name, cells in results.items()
        for c in cells
        if c.share == 1 and c.passed / tasks > 0.05 + error
    ]
    lines += ["", f"Worst false PASS: {100 * worst[0]:.1f} % ({worst[1]}, n = {worst[2]:,})."]
    lines.append(f"Cells above 5 % by more than that error: {len(over)} {over or ''}".rstrip() + ".")
    return lines


def quick(wins: int, losses: int, num: int, margin: float) -> tuple[bool, float]:
    """Whether a binary metric's lower bound clears the margin, and its p-value of being lost: no root to search for."""
    passes = tango(wins - 0.5, losses, num, -margin) >= float(ndtri(CONFIDENCE))
    return passes, p_lost(wins, losses, num, margin=margin)


def several_table(tasks: int, classes: int = 10, num: int = 400, margin: float = 0.03) -> list[str]:
    """One bound for each of ten classes."""
    rng = np.random.default_rng(SEED)
    lines = [
        f"## {classes} bounds at once (one a class, {num} samples each, margin {margin:g}), {tasks:,} tasks",
        "",
        "| classes whose true drop is the margin | all PASS | some FAIL, by Holm | some FAIL, uncorrected |",
        "|---|---|---|---|",
    ]
    for broken in (1, classes):
        passed = failed = naive = 0
        for _ in range(tasks):
            rates = [(0.02, 0.02 + margin * (at < broken)) for at in range(classes)]
            pairs = [rng.multinomial(num, [win, loss, 1 - win - loss])[:2] for win, loss in rates]
            found = [quick(int(win), int(loss), num, margin) for win, loss in pairs]
            p_values = [p_value for _, p_value in found]
            passed += all(passes for passes, _ in found)
            failed += any(holm(p_values, alpha=1 - CONFIDENCE))
            naive += min(p_values) <= 1 - CONFIDENCE
        shown = " | ".join(share_of(count, tasks) for count in (passed, failed, naive))
        lines.append(f"| {broken} of {classes} | {shown} |")
    return lines


def winner_table(tasks: int, num: int = 2000, margin: float = 0.01) -> list[str]:
    """The best of k candidates on select, every one of them truly at the margin."""
    rng = np.random.default_rng(SEED)
    lines = [
        f"## The best of many, picked on select ({num:,} samples each split, margin {margin:g}), {tasks:,} tasks",
        "",
        "Every candidate truly loses the margin, so that every PASS is false.",
        "",
        "| candidates | PASS if select were the proof | PASS on verify | mean change told by select | by verify |",
        "|---|---|---|---|---|",
    ]
    for many in (1, 3, 10, 30):
        on_select = on_verify = 0
        told = np.zeros(2)
        for _ in range(tasks):
            pairs = rng.multinomial(num, [0.01, 0.01 + margin, 0.98 - margin], size=many)[:, :2]
            best = pairs[np.argmax(pairs[:, 0] - pairs[:, 1])]
            again = rng.multinomial(num, [0.01, 0.01 + margin, 0.98 - margin])[:2]
            on_select += quick(int(best[0]), int(best[1]), num, margin)[0]
            on_verify += quick(int(again[0]), int(again[1]), num, margin)[0]
            told += np.array([best[0] - best[1], again[0] - again[1]]) / num / tasks
        shares = f"{share_of(on_select, tasks)} | {share_of(on_verify, tasks)}"
        lines.append(f"| {many} | {shares} | {100 * told[0]:+.2f} points | {100 * told[1]:+.2f} points |")
    return lines


def fresh_table(what: str, once: Callable[[int, int], int], tasks: int) -> list[str]:
    """One cell at the bound, with fresh seeds, a thousand tasks each; and whether it is above 5 % in truth.

    Args:
        what: the cell, in words.
        once: (seed, number of tasks) -> how many of them PASS.
        tasks: in all.
    """
    seeds = range(SEED + 1, SEED + 1 + max(1, tasks // NUM_TASKS))
    each = min(tasks, NUM_TASKS)
    counts = [once(seed, each) for seed in seeds]
    passed, total = sum(counts), each * len(seeds)
    low, high = (100 * x for x in binomtest(passed, total).proportion_ci(0.95, method="exact"))
    word = "above 5 %: the interval lets through too much" if low > 100 * (1 - CONFIDENCE) else "not above 5 %"
    return [
        f"## {what}, true drop = margin, {total:,} fresh tasks",
        "",
        f"False PASS {100 * passed / total:.2f} % (exact 95 % interval {low:.2f} to {high:.2f} %): {word}.",
        "",
        f"By seed ({seeds[0]} to {seeds[-1]}): {', '.join(share_of(count, each) for count in counts)}.",
    ]


def again_table(kind: Kind, worst: float, num: int, tasks: int) -> list[str]:
    """One cell of the large table, with fresh seeds."""

    def once(seed: int, num_tasks: int) -> int:
        return cell(kind, worst, num, 1.0, num_tasks, seed=seed).passed

    return fresh_table(f"{kind.name}, n = {num:,}", once, tasks)


def plot(results: Mapping[str, Sequence[Cell]], path: Path) -> None:
    """Power against the number of samples, one line a metric, as an SVG; false PASS dotted below."""
    width, height, left, top = 760, 420, 60, 20
    colours = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#4d4d4d")

    def x(num: int) -> float:
        return left + (width - left - 190) * math.log10(num / SIZES[0]) / math.log10(SIZES[-1] / SIZES[0])

    def y(share: float) -> float:
        return top + (height - 70) * (1 - share)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="13" role="img"><title>PASS against the number of verify samples</title>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for share in (0, 0.05, 0.25, 0.5, 0.75, 1):
        dash = ' stroke-dasharray="6 3" stroke="#a00"' if share == 0.05 else ' stroke="#ddd"'
        parts.append(f'<line x1="{left}" x2="{width - 190}" y1="{y(share):.0f}" y2="{y(share):.0f}"{dash}/>')
        parts.append(f'<text x="{left - 8}" y="{y(share) + 4:.0f}" text-anchor="end">{100 * share:g} %</text>')
    for num in SIZES:
        parts.append(f'<text x="{x(num):.0f}" y="{height - 28}" text-anchor="middle">{num:,}</text>')
    parts.append(
        f'<text x="{(left + width - 190) / 2:.0f}" y="{height - 8}" text-anchor="middle">verify samples</text>'
    )
    for place, (name, cells) in enumerate(results.items()):
        colour = colours[place % len(colours)]
        for share, dash in ((0.0, ""), (1.0, ' stroke-dasharray="2 4"')):
            points = " ".join(f"{x(c.num):.1f},{y(c.passed / c.tasks):.1f}" for c in cells if c.share == share)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="{width - 180}" y="{top + 16 + 20 * place}" fill="{colour}">{name}</text>')
    below = top + 30 + 20 * len(results)
    parts.append(f'<text x="{width - 180}" y="{below}">solid: PASS, nothing lost</text>')
    parts.append(f'<text x="{width - 180}" y="{below + 18}">dotted: false PASS</text></svg>')
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def head(asked: str, seconds: float) -> list[str]:
    found = ", ".join(f"{name} {number}" for name, number in versions(["trimtab", "numpy", "scipy"]).items())
    return [
        "# Is the proof what it says?",
        "",
        f"{stamp()['cpu']}; {found}; confidence {CONFIDENCE:g} one-sided, {RESAMPLES} resamples, {asked}; "
        f"{seconds:.0f} s on a shared machine.",
        "",
    ]


def write(name: str, lines: Sequence[str]) -> None:
    text = "\n".join(lines) + "\n"
    print(text)
    day = datetime.date.today()
    (ROOT / "benchmarks" / "results" / f"{name}_{day:%Y-%m-%d}.md").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=NUM_TASKS)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--only", nargs="*", help="kinds of metric; the results say which were left out")
    parser.add_argument("--again", nargs=2, metavar=("KIND", "N"), help="this one cell, with fresh seeds")
    parser.add_argument("--kept", action="store_true", help="only the table of margins that are shares")
    parser.add_argument("--share", type=float, help="with --again: of a margin that is a share, the one to be kept")
    chosen = parser.parse_args()
    began, results = time.perf_counter(), {}
    if chosen.kept:
        seed = SEED + 1 if chosen.only else SEED
        table = kept_table(chosen.tasks, chosen.only or (), seed=seed)
        name = f"verdict_calibration_kept{'_again' if chosen.only else ''}"
        write(name, [*head(f"seed {seed}", time.perf_counter() - began), *table])
        return
    if chosen.again:
        name, num = chosen.again[0], int(chosen.again[1])
        if chosen.share is None:
            kind, worst = next(pair for pair in KINDS if pair[0].name == name)
            table = again_table(kind, worst, num, chosen.tasks)
        else:
            kind, worst = next((kind, worst) for kind, _, worst in KEPT if kind.name == name)
            table = kept_again_table(kind, worst, chosen.share, num, chosen.tasks)
        top = head(f"seeds from {SEED + 1} on", time.perf_counter() - began)
        write("verdict_calibration_again" if chosen.share is None else "verdict_calibration_kept_cell", [*top, *table])
        return
    with ProcessPoolExecutor(chosen.jobs) as pool:
        asked = {
            kind.name: [
                pool.submit(cell, kind, worst, num, share, chosen.tasks if share == 1 else chosen.tasks // 4)
                for num in reversed(SIZES)
                for share in DROPS
            ]
            for kind, worst in KINDS
            if not chosen.only or kind.name in chosen.only
        }
        tables = [
            pool.submit(make, chosen.tasks) for make in (kept_table, several_table, winner_table, alternatives_table)
        ]
        for name, cells in asked.items():
            results[name] = sorted((one.result() for one in cells), key=lambda found: (found.num, -found.share))
            print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        lines = cell_tables(results, chosen.tasks)
        for table in tables:
            lines += ["", *table.result()]
        left_out = [kind.name for kind, _ in KINDS if kind.name not in results]
        lines += ["", f"Left out of this run: {', '.join(left_out)}."] if left_out else []
    picture = "![PASS against the number of verify samples](../../docs/benchmarks/verdict_calibration.svg)"
    top = head(f"seed {SEED}, {chosen.jobs} processes", time.perf_counter() - began)
    write("verdict_calibration", [*top, picture, "", *lines])
    plot(results, ROOT / "docs" / "benchmarks" / "verdict_calibration.svg")


if __name__ == "__main__":
    main()
