"""The finalists: what was named before `verify` was opened, in which order, what each showed there, and what ships."""

from __future__ import annotations

from html import escape
from typing import Any

from trimtab.report import words
from trimtab.report.parts import Evidence, badge, changed, section, small, table

RULE = (
    "Named in this order before verify was opened. Each is tested only if all before it passed, so that together they "
    "pass wrongly no more often than one alone (fixed-sequence test). Of those that passed, the one that gains most is "
    "shipped."
)


def finalists(evidence: Evidence) -> str:
    """A row for each, if there were several."""
    rows = evidence.get("finalists", ())
    if len(rows) < 2:
        return ""
    percent = words.is_fraction(evidence)
    shown = [("main" if row["shipped"] else "", _cells(row, percent=percent)) for row in rows]
    headers = ("", "on select", "vs best free", "on verify", "vs best free there", "verdict")
    return section("finalists", "Finalists", table(headers, shown, caption="The finalists, in turn"), RULE)


def _cells(row: dict[str, Any], *, percent: bool) -> list[str]:
    verdict = row["verdict"]
    return [
        escape(row["candidate"]) + (small("shipped") if row["shipped"] else ""),
        changed(row["select"], percent=percent),
        escape(words.times(row["gain_on_select"])),
        changed(verdict["drop"], percent=percent) if verdict else "",
        escape(words.times(verdict["gain"])) if verdict else "",
        badge(verdict["word"]) + _more(verdict) if verdict else "not tested",
    ]


def _more(verdict: dict[str, Any]) -> str:
    more = verdict["more_samples"]
    return small(f"{more:,} more samples would decide") if more else ""


def told(evidence: Evidence) -> str:
    """The same in a line for the terminal; empty if there was only one."""
    rows = evidence.get("finalists", ())
    if len(rows) < 2:
        return ""
    return "Finalists, named before verify was opened: " + "; ".join(
        f"{row['candidate']} "
        + (f"{row['verdict']['word']} {words.times(row['verdict']['gain'])}" if row["verdict"] else "not tested")
        + (" (shipped)" if row["shipped"] else "")
        for row in rows
    )
