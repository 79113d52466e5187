"""How figures read, the same on the page and in the terminal: percent, points, milliseconds, megabytes, times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FRACTIONS = ("accuracy", "top-1", "top-5", "top1", "top5", "f1", "precision", "recall")
BETTER = {"latency_ms": "faster", "size_bytes": "smaller", "memory_bytes": "leaner in memory"}
WORSE = {"latency_ms": "slower", "size_bytes": "larger", "memory_bytes": "heavier in memory"}
# from so many cores on, what others did is told
MANY_CORES = 0.2
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
NOTHING = "\N{EN DASH}"


def is_fraction(evidence: Mapping[str, Any]) -> bool:
    """The metric is a share of samples, and reads best in percent."""
    task = evidence["task"]
    return bool(task.get("binary", str(task["metric"]).lower() in FRACTIONS))


def metric(value: float | None, *, percent: bool) -> str:
    """A metric's value.

    >>> metric(0.8963, percent=True), metric(0.8963, percent=False), metric(None, percent=True)
    ('89.6 %', '0.8963', '–')
    """
    if value is None:
        return NOTHING
    return f"{100 * value:.1f} %" if percent else significant(value, 4)


def change(value: float, *, percent: bool, unit: bool = False) -> str:
    """A metric's difference, in points of percent if it is a share.

    >>> change(-0.0031, percent=True, unit=True), change(0.25, percent=False)
    ('−0.3 points', '+0.25')
    """
    text = f"{100 * value:+.1f}" if percent else f"{value:+.3g}"
    return text.replace("-", MINUS) + (" points" if percent and unit else "")


def interval(low: float, high: float, *, percent: bool) -> str:
    """Both ends of a difference.

    >>> interval(-0.006, 0.001, percent=True)
    '[−0.6, +0.1]'
    """
    return f"[{change(low, percent=percent)}, {change(high, percent=percent)}]"


def significant(value: float, digits: int = 3) -> str:
    """That many significant digits, without exponent where people would not write one.

    >>> significant(0.18432), significant(36.5), significant(1234.5)
    ('0.184', '36.5', '1,234')
    """
    rounded = float(f"{value:.{digits}g}")
    return f"{value:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:#.{digits}g}"


def milliseconds(value: float | None) -> str:
    """A latency, e.g. `0.184 ms`."""
    return NOTHING if value is None else f"{significant(value)} ms"


def size(value: float | None) -> str:
    """Bytes in decimal units.

    >>> size(312_400), size(2_210_000), size(17)
    ('312 kB', '2.21 MB', '17 B')
    """
    if value is None:
        return NOTHING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= 0.9995 * scale:
            return f"{significant(value / scale)} {unit}"
    return f"{value:.0f} B"


def cost(value: float | None, quantity: str) -> str:
    """What a goal may minimise.

    >>> cost(0.18432, "latency_ms"), cost(312_400, "size_bytes")
    ('0.184 ms', '312 kB')
    """
    return milliseconds(value) if quantity == "latency_ms" else size(value)


def times(ratio: Mapping[str, Any] | None) -> str:
    """A gain, e.g. `2.9×`."""
    return NOTHING if ratio is None else factor(ratio["value"])


def factor(value: float) -> str:
    """How many times.

    >>> factor(2.913), factor(0.978), factor(12.3)
    ('2.9×', '0.98×', '12×')
    """
    digits = 0 if value >= 9.95 else 2 if value < 1.95 else 1
    return f"{value:.{digits}f}{TIMES}"


def compared(value: float, minimise: str) -> str:
    """A gain as words.

    >>> compared(2.913, "latency_ms"), compared(0.5, "size_bytes")
    ('2.9× faster', '2.0× larger')
    """
    return f"{factor(value)} {BETTER[minimise]}" if value >= 1 else f"{factor(1 / value)} {WORSE[minimise]}"


def duration(seconds: float) -> str:
    """A length of time for people.

    >>> duration(8.24), duration(75), duration(7322)
    ('8.2 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(125.4)
    '2:05'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def headline(evidence: Mapping[str, Any]) -> str:
    """The verdict in a few words."""
    verdict, name = evidence["verdict"], evidence["task"]["metric"]
    minimise = evidence["goal"]["minimise"]
    gain, drop = verdict["gain"], verdict["drop"]
    first = {held["word"]: held["drop"]["what"] or name for held in reversed(verdict.get("bounds", ()))}
    if verdict["word"] == "PASS":
        held = f"all {len(verdict['bounds'])} bounds hold" if len(verdict.get("bounds", ())) > 1 else f"{name} holds"
        return f"{compared(gain['value'], minimise).capitalize()}, and {held}."
    if "FAIL" in first or (not first and drop["high"] < -drop["margin"]):
        return f"Too much {first.get('FAIL', name)} is lost."
    if verdict["word"] == "FAIL":
        return f"Not {BETTER[minimise]} than the best free baseline."
    if "INCONCLUSIVE" in first or (not first and drop["low"] < -drop["margin"]):
        return f"It is not proven that {first.get('INCONCLUSIVE', name)} holds."
    return f"It is not proven to be {BETTER[minimise]}."


def sentence(evidence: Mapping[str, Any]) -> str:
    """The verdict in one sentence, with its figures."""
    verdict, percent = evidence["verdict"], is_fraction(evidence)
    drop, gain = verdict["drop"], verdict["gain"]
    chosen = next((row["name"] for row in evidence["rows"] if row["role"] == "chosen"), "The result")
    return (
        f"{chosen} is {compared(gain['value'], evidence['goal']['minimise'])} than the best free baseline; "
        f"on {drop['n']:,} samples that nothing was chosen by, {evidence['task']['metric']} changed by "
        f"{change(drop['diff'], percent=percent, unit=True)}, at worst by {change(drop['low'], percent=percent)} "
        f"with {100 * drop['confidence']:g} % confidence, where {change(-drop['margin'], percent=percent)} was allowed."
    )


def further_bounds(evidence: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Beyond the task's metric on all samples: the word on each bound, and how it changed."""
    told = []
    for bound in evidence.get("bounds", ())[1:]:
        drop, percent = bound["verify"], bound["percent"]
        text = (
            f"{bound['what']} changed by {change(drop['diff'], percent=percent, unit=True)}, at worst by "
            f"{change(drop['low'], percent=percent)}, {change(-drop['margin'], percent=percent)} allowed, "
            f"{drop['n']:,} samples"
        )
        told.append((bound["word"], text))
    return told


def disturbance(evidence: Mapping[str, Any]) -> str:
    """Which latencies were taken on a disturbed machine, and what others used of it, or nothing.

    >>> disturbance({"rows": [{"name": "a", "disturbed": True}, {"name": "b", "disturbed": False}]})
    'The machine was busy with something else while a was timed: its blocks disagree by more than they should.'
    """
    names = [row["name"] for row in evidence["rows"] if row.get("disturbed")]
    others = max((row.get("others_cores") or 0.0 for row in evidence["rows"]), default=0.0)
    told = []
    if names:
        told.append(
            f"The machine was busy with something else while {' and '.join(names)} was timed: its blocks disagree by "
            "more than they should."
        )
    if others >= MANY_CORES:
        told.append(
            f"Others kept {others:.1f} cores busy meanwhile; taken in turns, the ratios bear that, times do not."
        )
    jumps = sum(row.get("jumps") or 0 for row in evidence["rows"])
    leaps = sum(row.get("leaps") or 0 for row in evidence["rows"])
    if jumps:
        told.append(f"The clock went back in {jumps} blocks, which were timed again.")
    if leaps:
        told.append(
            f"The machine slept, or the clock leapt, in {leaps} calls: they are kept, and spoil means and tails."
        )
    return " ".join(told)
