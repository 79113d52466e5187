"""The rules behind a verdict, beside their alternatives: how quality is bounded, and which trials are put forward.

    scripts/bench verdict_rules

The first table is summed exactly over all outcomes; the others are simulated, with their seed below. Four minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from scipy.special import ndtri
from scipy.stats import binom

from trimtab.core import Drop, Metric, Ratio, Trial
from trimtab.measure.proportions import tango
from trimtab.measure.stats import held_by, non_inferiority
from trimtab.measure.verdict import chance_to_pass, in_order, judge
from trimtab.search.space import FINALISTS, finalists

CONFIDENCE, MARGIN, SEED = 0.95, 0.009, 0
SIZES = (100, 200, 500, 1000, 2000, 4000)
MARGINS, EXTRA = (0.005, 0.009, 0.02, 0.05), (0.0, 0.002, 0.01, 0.05)
NUM_SELECT, NUM_CANDIDATES, NUM_WORLDS = 2000, 6, 2000
BASES, NUM_TABLES = (0.6, 0.9), 400_000  # how often the baseline is right; tables drawn for each case
Counts = np.ndarray


def pass_rate(num: int, *, margin: float, loss_rate: float, drop: float, taken: float) -> float:
    """P(the bound clears the margin) at P(loss) = loss_rate, P(win) = loss_rate - drop, with `taken` pairs taken."""
    quantile = float(ndtri(CONFIDENCE))
    total, least = 0.0, 0
    for losses in range(int(binom.ppf(1 - 1e-12, num, loss_rate)) + 1):
        # more losses need more wins, so the search goes on from where it was
        while least + losses <= num and tango(least - taken, losses, num, -margin) < quantile:
            least += 1
        if least + losses > num:
            break
        win_rate = max(loss_rate - drop, 0.0) / (1 - loss_rate)
        total += binom.pmf(losses, num, loss_rate) * binom.sf(least - 1, num - losses, win_rate)
    return float(total)


def level_table() -> None:
    """The worst false PASS rate over margins and discordance, and the power where nothing is lost."""
    print(f"false PASS rate at a nominal {1 - CONFIDENCE:.0%}, worst of {len(MARGINS) * len(EXTRA)} cases; power at a")
    print(f"true change of 0, margin {MARGIN:g}, 0.5 % won and 0.5 % lost\n")
    print("| n | Tango | minus half a pair | power, Tango | power, minus half a pair |\n|---|---|---|---|---|")
    for num in SIZES:
        cells = []
        for taken in (0.0, 0.5):
            cases = [(m, m + more) for m in MARGINS for more in EXTRA]
            rates = [pass_rate(num, margin=m, loss_rate=rate, drop=m, taken=taken) for m, rate in cases]
            cells.append(max(rates))
        cells += [pass_rate(num, margin=MARGIN, loss_rate=0.005, drop=0.0, taken=taken) for taken in (0.0, 0.5)]
        print(f"| {num} | " + " | ".join(f"{100 * cell:.1f} %" for cell in cells) + " |")


def mcnemar_passes(wins: Counts, losses: Counts, num: int, *, margin: float, mid: bool) -> Counts:
    """Whether the interval that belongs to McNemar's exact test clears the margin, from pairs [...].

    Given the m discordant pairs, wins are Binomial(m, p); the exact (Clopper-Pearson) or mid-p bound of p makes that of
    the change, (2 p - 1) m / num. So it clears the margin if p = (1 - margin num / m) / 2 can be excluded.
    """
    discordant = wins + losses
    least = (1 - margin * num / np.maximum(discordant, 1)) / 2
    at = np.clip(least, 0, 1)
    as_many = binom.pmf(wins, discordant, at) * (0.5 if mid else 1.0) + binom.sf(wins, discordant, at)
    return (least <= 0) | (as_many <= 1 - CONFIDENCE)


def newcombe_low(wins: Counts, losses: Counts, both: Counts, num: int, *, confidence: float = CONFIDENCE) -> Counts:
    """Newcombe's lower bound of the change of a paired proportion (Stat. Med. 17, 2635, 1998, method 10).

    >>> round(float(newcombe_low(*np.array([6.0, 16.0, 59.0]), 161, confidence=0.975)), 4)
    -0.1186
    """
    neither = num - wins - losses - both
    after, before = wins + both, losses + both
    z = float(ndtri(confidence))
    root = np.sqrt(1.0 * after * (num - after) * before * (num - before))
    product = 1.0 * both * neither - 1.0 * wins * losses
    product = np.where(product > 0, np.maximum(product - num / 2, 0), product)
    phi = np.divide(product, root, out=np.zeros_like(root), where=root > 0)
    down = after / num - wilson(after, num, -z)
    up = wilson(before, num, z) - before / num
    return (after - before) / num - np.sqrt(down**2 - 2 * phi * down * up + up**2)


def wilson(hits: Counts, num: int, z: float) -> Counts:
    """Wilson's bound of a proportion: the lower one for a negative z."""
    share = hits / num
    middle, half = share + z * z / (2 * num), z * np.sqrt(share * (1 - share) / num + (z / (2 * num)) ** 2)
    return (middle + half) / (1 + z * z / num)


def others(num: int, *, margin: float, loss_rate: float, win_rate: float, base: float, seed: int) -> Counts:
    """How often the exact and the mid-p McNemar interval and Newcombe's clear the margin, in simulated tables."""
    rates = [win_rate, loss_rate, base - loss_rate, 1 - base - win_rate]
    wins, losses, both, _ = np.random.default_rng((seed, num)).multinomial(num, rates, NUM_TABLES).T
    return np.array(
        [
            np.mean(mcnemar_passes(wins, losses, num, margin=margin, mid=False)),
            np.mean(mcnemar_passes(wins, losses, num, margin=margin, mid=True)),
            np.mean(newcombe_low(wins, losses, both, num) >= -margin),
        ]
    )


def others_table() -> None:
    """The cases of `level_table` for the intervals that are not taken."""
    print(f"\nthe same cases, {NUM_TABLES:,} tables each, seed {SEED}, for a baseline that is right in 60 or 90 %:")
    print("the worst false PASS; the worst where wins and losses are ten or more on average; the power\n")
    names = ("McNemar exact", "mid-p", "Newcombe")
    heads = [f"{what}{name}" for what in ("", "ten or more, ", "power, ") for name in names]
    print(f"| n | {' | '.join(heads)} |\n" + "|---" * (1 + len(heads)) + "|")
    for num in SIZES:
        found = {
            (more, m, base): others(num, margin=m, loss_rate=m + more, win_rate=more, base=base, seed=SEED)
            for m in MARGINS
            for more in EXTRA
            for base in BASES
        }
        many = [rates for (more, _, _), rates in found.items() if more * num >= 10]
        cells = [*np.max(list(found.values()), 0), *(np.max(many, 0) if many else [np.nan] * 3)]
        cells += list(others(num, margin=MARGIN, loss_rate=0.005, win_rate=0.005, base=0.9, seed=SEED))
        print(f"| {num} | " + " | ".join(f"{100 * x:.1f} %" if np.isfinite(x) else "-" for x in cells) + " |")


@cache
def held(wins: int, losses: int, num: int) -> Drop:
    """The interval of a candidate with that many discordant pairs."""
    first, second = np.zeros(num), np.zeros(num)
    second[:wins] = 1
    first[wins : wins + losses] = 1
    return non_inferiority(first, second, margin=MARGIN, confidence=CONFIDENCE, binary=True)


def likely(threshold: float, num_verify: int) -> Callable[[Drop], bool]:
    return lambda drop: chance_to_pass(drop, num_verify=num_verify) >= threshold


def made(place: int, drop: Drop, gain: float) -> Trial:
    """A trial of a recipe of its own."""
    ratio = Ratio(gain, gain, gain, 8)
    return Trial(str(place), str(place), str(place), "eager", "fp32", drop, (), ratio, 0.0, "")


def choice_table(num_verify: int) -> None:
    """Put the fastest trial forward that a rule on `select` admits; what the verdict on `verify` then says."""
    rng = np.random.default_rng(SEED)
    rules: dict[str, Callable[[Drop], bool]] = {
        "estimate within the margin": lambda drop: drop.diff >= -drop.margin,
        "interval within the margin": lambda drop: drop.low >= -drop.margin,
        **{f"chance to pass >= {threshold:g}": likely(threshold, num_verify) for threshold in (0.5, 0.8, 0.95)},
    }
    several = {f"finalists, at most {most}": most for most in (1, 2, FINALISTS, NUM_CANDIDATES)}
    best = "(the fastest that passes, seen afterwards)"
    passed: dict[str, list[float]] = {name: [] for name in (*rules, *several, best)}
    for _ in range(NUM_WORLDS):
        drops, gains = np.sort(rng.uniform(0, 0.02, NUM_CANDIDATES)), 1 + np.sort(rng.uniform(0, 3, NUM_CANDIDATES))
        seen, true = sampled(rng, drops, (NUM_SELECT, num_verify))
        for name, rule in rules.items():
            admitted = [at for at, drop in enumerate(seen) if rule(drop)]
            chances = [chance_to_pass(drop, num_verify=num_verify) for drop in seen]
            pick = max(admitted) if admitted else int(np.argmax(chances))
            passed[name].append(gains[pick] if true[pick].low >= -MARGIN else 0.0)
        for name, most in several.items():
            passed[name].append(shipped(seen, true, gains, most=most, num_verify=num_verify))
        passed[best].append(max((g for g, drop in zip(gains, true, strict=True) if drop.low >= -MARGIN), default=0.0))
    print(f"\n{NUM_WORLDS:,} worlds of {NUM_CANDIDATES} trials, the faster the worse; {NUM_SELECT:,} select samples,")
    print(f"{num_verify:,} verify samples, margin {MARGIN:g}, seed {SEED}; a trial that fails gains nothing (1x)\n")
    print("| rule on select | PASS | mean gain of a PASS | mean gain of all |\n|---|---|---|---|")
    for name, found in passed.items():
        row = np.array(found)
        of_pass, of_all = row[row > 0].mean(), np.maximum(row, 1).mean()
        print(f"| {name} | {100 * np.mean(row > 0):.0f} % | {of_pass:.2f}x | {of_all:.2f}x |")


def sampled(rng: np.random.Generator, drops: np.ndarray, sizes: Sequence[int]) -> list[list[Drop]]:
    """What trials with these true losses show on splits of these sizes."""
    wins = rng.uniform(0.002, 0.02, len(drops))
    rates = [(win, win + drop, 1 - 2 * win - drop) for win, drop in zip(wins, drops, strict=True)]
    return [[held(*map(int, rng.multinomial(num, rate)[:2]), num) for rate in rates] for num in sizes]


def shipped(seen: Sequence[Drop], true: Sequence[Drop], gains: np.ndarray, *, most: int, num_verify: int) -> float:
    """The gain of what is shipped of the finalists, of which there are at most so many; 0 if none passes."""
    trials = [made(place, drop, gains[place]) for place, drop in enumerate(seen)]
    named = finalists(trials, lambda trial: chance_to_pass(trial.select, num_verify=num_verify), most=most)
    verdicts = [judge((true[int(one.id)],), one.gain, minimise="latency_ms") for one in named]
    place, _ = in_order(verdicts)
    return verdicts[place].gain.value if verdicts[place].word == "PASS" else 0.0


def wrong_table(num_worlds: int = 10_000) -> None:
    """How often something is shipped that loses the margin, as many finalists as are allowed."""
    print(
        f"\n{num_worlds:,} worlds of {NUM_CANDIDATES} trials, margin {MARGIN:g}, seed {SEED}: shipped though it loses"
    )
    print("the margin. First, all do; second, the slowest loses nothing and the others do\n")
    print("| finalists, at most | verify | all lose the margin | all but the slowest |\n|---|---|---|---|")
    gains = np.linspace(1.5, 4, NUM_CANDIDATES)
    at_margin = np.full(NUM_CANDIDATES, MARGIN), np.r_[0.0, np.full(NUM_CANDIDATES - 1, MARGIN)]
    for num_verify in (4000, 1000):
        rng = np.random.default_rng(SEED)
        wrong = {most: np.zeros(2) for most in (1, FINALISTS, NUM_CANDIDATES)}
        for _ in range(num_worlds):
            for case, drops in enumerate(at_margin):
                seen, true = sampled(rng, drops, (NUM_SELECT, num_verify))
                for most, counts in wrong.items():
                    found = shipped(seen, true, gains, most=most, num_verify=num_verify)
                    counts[case] += found in gains[drops >= MARGIN]
        for most, counts in wrong.items():
            print(f"| {most} | {num_verify:,} | " + " | ".join(f"{100 * n / num_worlds:.1f} %" for n in counts) + " |")


def rare_table(margin: float = 0.05, num_tasks: int = 1000) -> None:
    """A loss at the margin, all of it in a few samples that lose all: PASS with and without a metric's limits."""
    rng = np.random.default_rng(SEED)
    metrics = [Metric("likeness", lambda y, t: y, limits=limits) for limits in (None, (0.0, 1.0))]
    print(
        f"\n{num_tasks:,} tasks, seed {SEED}, margin {margin:g}, scores 0 to 1: {margin:.0%} of the samples lose all,"
    )
    print("the others next to nothing; power where all lose up to 0.01\n")
    print(
        "| n | false PASS, no limits | false PASS, limits | power, no limits | power, limits |\n|---|---|---|---|---|"
    )
    for num in (5, 20, 50, 100, 300, 1000):
        passed = np.zeros((2, 2))
        for _ in range(num_tasks):
            rare = np.where(rng.random(num) < margin, 1.0, rng.uniform(0, 1e-3, num))
            for row, lost in enumerate((rare, rng.uniform(0, 1e-2, num))):
                scores = np.ones(num), 1 - lost
                drops = [
                    held_by(metric, *scores, margin=margin, confidence=CONFIDENCE, num_resamples=199)
                    for metric in metrics
                ]
                passed[row] += [drop.low >= -margin for drop in drops]
        print(f"| {num} | " + " | ".join(f"{100 * share:.1f} %" for share in passed.ravel() / num_tasks) + " |")


if __name__ == "__main__":
    level_table()
    others_table()
    choice_table(4000)
    choice_table(1000)
    wrong_table()
    rare_table()
