"""How the search ended: whether what is shipped is a miss, what cost most, what to try next, of how many it is best."""

from __future__ import annotations

from typing import Any

from trimtab.report import words
from trimtab.report.parts import Evidence, facts, section

MISS = "nothing that was tested passed, and this came nearest"
UNDECIDED = "nothing that was tested passed for sure, and of this one the measurements do not decide"
NOTHING_MADE = "no candidate could be measured, so that this is the best free baseline itself"
# In a share, what rounds to no tenth of a point is nothing to tell.
LEAST_POINTS = 0.0005


def ended(evidence: Evidence) -> str:
    """What the search tells of its end as a card; empty for evidence of before, and while a run lasts."""
    found = evidence.get("search")
    if not found:
        return ""
    told = {
        **_short_of_pass(evidence),
        "cost most": _costliest(evidence, found),
        "to try next": found["next"],
        "chosen": "" if evidence.get("bounds") else _best_of(evidence, found),  # bounds tell it of each of them
    }
    kept = {name: text for name, text in told.items() if text}
    return section("ended", "How the search ended", facts(kept)) if kept else ""


def nearest_miss(evidence: Evidence) -> str:
    """In which way what is shipped is a miss; empty where the verdict is no FAIL."""
    found = evidence.get("search", {})
    if not found.get("nearest_miss"):
        return ""
    return MISS if found["candidates"] else NOTHING_MADE


def _short_of_pass(evidence: Evidence) -> dict[str, str]:
    """What to call that which is shipped although it did not pass, and why; empty texts where it did."""
    undecided = UNDECIDED if (evidence["verdict"] or {}).get("word") == "INCONCLUSIVE" else ""
    return {"nearest miss": nearest_miss(evidence), "not decided": undecided}


def told(evidence: Evidence) -> list[str]:
    """The same in lines for the terminal; none on PASS."""
    found = evidence.get("search")
    if not found or evidence["verdict"]["word"] == "PASS":
        return []
    lines = {
        **{name.capitalize(): text for name, text in _short_of_pass(evidence).items()},
        "Cost most": _costliest(evidence, found),
        "Next": found["next"],
    }
    return [f"{name}: {text.removesuffix('.')}." for name, text in lines.items() if text]


def _costliest(evidence: Evidence, found: dict[str, Any]) -> str:
    """The step after which the metric fell most on select."""
    most, percent = found["costliest"], words.is_fraction(evidence)
    if not most or (percent and most["metric_lost"] < LEAST_POINTS):
        return ""
    change = words.change(-most["metric_lost"], percent=percent, unit=True)
    return f"{most['step']}, {evidence['task']['metric']} {change} on select"


def _best_of(evidence: Evidence, found: dict[str, Any]) -> str:
    """Of how many recipes the choice is the best, which flatters what select told, and what both splits told."""
    percent, num = words.is_fraction(evidence), found["candidates"]
    select, verify = (words.change(found[f"{split}_diff"], percent=percent) for split in ("select", "verify"))
    if not num:
        return ""
    best = f"the best of {num} recipes, which flatters it on select" if num > 1 else "the one recipe that was measured"
    return f"{best}; {evidence['task']['metric']} {select} on select, {verify} on verify"
