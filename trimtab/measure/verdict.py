"""The verdict: PASS, FAIL or INCONCLUSIVE, from bounds of quality and a gain; and what would decide what is open."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import ndtr, ndtri

from trimtab.core import Drop, Held, Quantity, Ratio, Verdict, Word
from trimtab.measure.means import enough, unseen

MOST_TIMES_MORE = 1000
# Chances to pass: from the first on something bolder is worth a look; from the second on nothing is left to recover.
LIKELY, SURE = 0.5, 0.95
NOUN = {"latency_ms": "latency", "size_bytes": "size", "memory_bytes": "peak memory"}
NOT_BETTER = {"latency_ms": "Not faster", "size_bytes": "Not smaller", "memory_bytes": "No less memory"}


def samples_to_decide(drop: Drop, *, num_bounds: int = 1) -> int | None:
    """How many further samples would decide, if difference and discordance stay as they are.

    The half-width falls as 1/sqrt(N), so N = n (half-width / |diff + margin|)^2; and a loss that may not be among the N
    has to be rare enough. To be lost among several bounds takes a wider interval, see `hold`.

    Returns:
        0 if it is decided already; None if it would take over 1,000 times as many, as the difference sits on the
        margin.
    """
    if drop.low >= -drop.margin or (num_bounds == 1 and drop.high < -drop.margin):
        return 0
    room = drop.diff + drop.margin
    alpha = 1 - drop.confidence
    wider = 1.0 if room > 0 else float(ndtri(1 - alpha / num_bounds) / ndtri(1 - alpha))
    width = drop.diff - _seen_low(drop) if room > 0 else wider * (drop.high - drop.diff)
    if abs(room) * math.sqrt(MOST_TIMES_MORE) <= width:
        return None
    rare = enough(room / drop.reach, confidence=drop.confidence) if 0 < room < drop.reach else 0.0
    if rare > MOST_TIMES_MORE * drop.n:
        return None
    return max(1, math.ceil(max(drop.n * (width / room) ** 2, rare)) - drop.n)


def _seen_low(drop: Drop) -> float:
    return drop.low if drop.seen_low is None else drop.seen_low


def chance_to_pass(drop_on_select: Drop, *, num_verify: int) -> float:
    """The predictive probability that a verify split of `num_verify` samples shows non-inferiority.

    With s = (diff - low) sqrt(n) / z the spread of one sample, and a flat prior, the difference on verify is
    Normal(diff, s^2 (1/n + 1/m)); it passes above -margin + h, where h is z s / sqrt(m) or, if that is more, what a
    loss that m samples can miss would take. So the chance is Phi((diff + margin - h) / (s sqrt(1/n + 1/m))). The best
    of many candidates is a little overrated.
    """
    drop = drop_on_select
    quantile = float(ndtri(drop.confidence))
    spread = (drop.diff - _seen_low(drop)) * math.sqrt(drop.n) / quantile
    room = drop.diff + drop.margin
    missed = drop.reach * unseen(num_verify, confidence=drop.confidence)
    if spread <= 0:
        return float(room >= missed)
    needed = max(quantile * spread / math.sqrt(num_verify), missed)
    return float(ndtr((room - needed) / (spread * math.sqrt(1 / drop.n + 1 / num_verify))))


def chance_of_all(drops: Sequence[Drop], *, num_verify: int) -> float:
    """The chance that every bound passes, as if they were independent; they often rise and fall together, so at least.

    A bound on a slice has its share of the `num_verify` samples.
    """
    return math.prod(chance_to_pass(drop, num_verify=max(2, round(drop.share * num_verify))) for drop in drops)


def hold(drops: Sequence[Drop]) -> tuple[Held, ...]:
    """Which of k bounds hold.

    That all of them hold needs no correction: to be wrong in that, one must be wrong in the very bound that is broken
    (an intersection-union test, Berger 1982). That this or that one is lost does, as k chances to be wrong add up:
    a bound FAILs if Holm's procedure (Scand. J. Stat. 6, 1979) still finds it lost among all k.

    >>> sure = Drop(0.9, 0.7, -0.2, -0.3, -0.1, 0.05, 500, 0.95, "given", p_lost=0.001)
    >>> doubtful = Drop(0.9, 0.8, -0.1, -0.14, -0.06, 0.05, 500, 0.95, "given", p_lost=0.04)
    >>> [held.word for held in hold([doubtful])], [held.word for held in hold([doubtful, doubtful, sure])]
    (['FAIL'], ['INCONCLUSIVE', 'INCONCLUSIVE', 'FAIL'])
    """
    lost = holm([drop.p_lost for drop in drops], alpha=1 - drops[0].confidence)
    return tuple(_held(drop, lost=own, num_bounds=len(drops)) for drop, own in zip(drops, lost, strict=True))


def holm(p_values: Sequence[float], *, alpha: float) -> list[bool]:
    """Which of k hypotheses are rejected, so that one that is true is among them with probability alpha at most.

    From the smallest p-value on, the j-th is rejected while p <= alpha / (k - j + 1).

    >>> holm([0.04, 0.001, 0.03], alpha=0.05)
    [False, True, False]
    """
    rejected = [False] * len(p_values)
    for place, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        if p_values[at] > alpha / (len(p_values) - place):
            break
        rejected[at] = True
    return rejected


def _held(drop: Drop, *, lost: bool, num_bounds: int) -> Held:
    if drop.low >= -drop.margin:
        return Held(drop, "PASS")
    if lost:
        return Held(drop, "FAIL")
    more = samples_to_decide(drop, num_bounds=num_bounds)
    return Held(drop, "INCONCLUSIVE", None if more is None else math.ceil(more / drop.share))


def judge(drops: Sequence[Drop], gain: Ratio, *, minimise: Quantity) -> Verdict:
    """The verdict: PASS needs every bound of quality and a gain over the best free baseline, all for sure.

    Args:
        drops: one for each bound, that of the task's metric on all samples first.
        gain: over the best free baseline.
        minimise: what the gain is in.
    """
    bounds = hold(drops)
    words = [held.word for held in bounds]
    times = f"{gain.value:.2f}x [{gain.low:.2f}, {gain.high:.2f}]"
    more = None
    word: Word
    if "FAIL" in words:
        word, reason = "FAIL", f"Quality is lost: {_told(bounds, 'FAIL')}."
    elif gain.high <= 1:
        word, reason = "FAIL", f"{NOT_BETTER[minimise]} than the best free baseline: {NOUN[minimise]} {times}."
    elif "INCONCLUSIVE" in words:
        more = _more(bounds)
        word, reason = "INCONCLUSIVE", _open_reason(bounds, more)
    elif gain.low > 1:
        word = "PASS"
        reason = (
            f"Quality holds: {_told(bounds, 'PASS')}; {NOUN[minimise]} is {times} better than the best free baseline."
        )
    else:
        word = "INCONCLUSIVE"
        reason = (
            f"Quality holds, but the gain over the best free baseline is not proven: {NOUN[minimise]} {times}. "
            "Measure longer, or on a quieter machine."
        )
    return Verdict(word=word, reason=reason, drop=drops[0], gain=gain, more_samples=more, bounds=bounds)


def in_order(verdicts: Sequence[Verdict]) -> tuple[int, int]:
    """Which of the candidates that were named in an order is shipped, and how many of them were tested.

    The next is tested only if all before it passed, each at the full level: a false PASS among them takes one on the
    first whose quality or gain does not hold in truth, so all together err no more often than one alone (fixed-sequence
    test; Maurer, Hothorn and Lehmacher 1995; Westfall and Krishen 2001). Of those that passed, the one that gains most
    is shipped; the first of all if it did not pass.

    Args:
        verdicts: at least one, in the order that was named before any sample was seen.
    """
    passed = 0
    while passed < len(verdicts) and verdicts[passed].word == "PASS":
        passed += 1
    shipped = max(range(passed), key=lambda place: verdicts[place].gain.value, default=0)
    return shipped, min(passed + 1, len(verdicts))


def _more(bounds: Sequence[Held]) -> int | None:
    """How many samples would decide all that is open; None if one of them no number would."""
    needed = [held.more_samples for held in bounds if held.word == "INCONCLUSIVE"]
    return None if None in needed else max(more for more in needed if more is not None)


def _told(bounds: Sequence[Held], word: Word) -> str:
    """The bounds of that word: the first in full, how many others."""
    own = [held.drop for held in bounds if held.word == word]
    drop = own[0]
    text = (
        f"{drop.what or 'the metric'} changed by {drop.diff:+.3g} (at worst {drop.low:+.3g} with "
        f"{100 * drop.confidence:g} % confidence, {-drop.margin:+.3g} allowed, {drop.n:,} samples)"
    )
    if len(own) == 1:
        return text
    rest = f"{len(own) - 1} more bound{'s' if len(own) > 2 else ''}"
    return f"{text}, and so {'does' if len(own) == 2 else 'do'} {rest}" if word == "PASS" else f"{text}, and {rest}"


def _open_reason(bounds: Sequence[Held], more: int | None) -> str:
    drop = next(held.drop for held in bounds if held.word == "INCONCLUSIVE")
    side = "within" if drop.diff >= -drop.margin else "beyond"
    mend = (
        f"About {more:,} more verify samples would decide."
        if more
        else "The change sits on the margin, where no number of samples decides: allow more, or ask for less."
    )
    return (
        f"Quality is open: {_told(bounds, 'INCONCLUSIVE')}; the change lies {side} the margin, but its interval "
        f"crosses it. {mend}"
    )
