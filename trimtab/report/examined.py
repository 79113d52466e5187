"""What a look at a task found, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from trimtab.diagnose.examine import Examination
from trimtab.diagnose.families import Family
from trimtab.report import words

SHOWN_PLACES, SHOWN_REASONS = 12, 6


def examined(found: Examination, *, console: Console) -> None:
    """Print an examination: problems first, then data, runtimes, where the time is, what could be done, the cost."""
    for name, texts, style in (("problem", found.problems, "bold red"), ("warning", found.warnings, "yellow")):
        for text in texts:
            console.print(Text.assemble((f"{name}: ", style), text), soft_wrap=True)
    told = ", ".join(
        f"{key} {value:,}" if isinstance(value, int) else f"{key}: {value}" for key, value in found.data.items()
    )
    console.print(Text(f"data: {told}"), soft_wrap=True)
    if not found.places or not found.peaks:
        return
    kinds = ", ".join(f"{name} {count}" for name, count in found.operations)
    console.print(
        Text(f"graph: {found.params:,} parameters, {found.macs:,} multiply-accumulates a sample; {kinds}"),
        soft_wrap=True,
    )
    console.print(_runtimes(found), _places(found), _families(found))
    for family in found.families:
        if family.skipped:
            console.print(Text(f"{family.name} leaves alone: {reasons(family)}"), soft_wrap=True)
    if found.needs:
        console.print(
            Text(
                f"a search over the default recipes takes at most about {words.duration(found.needs.seconds)}, "
                f"of which training {words.duration(found.needs.training_s)}, and "
                f"{words.size(found.needs.memory_bytes)} of memory while it trains"
            ),
            soft_wrap=True,
        )
    console.print(
        Text(f"looked for {words.duration(found.seconds)}; predictions rank, they prove nothing", style="dim")
    )


def reasons(family: Family) -> str:
    """Why layers are left alone, the most frequent reason first, each with an example and how many it is of."""
    grouped: dict[str, list[str]] = {}
    for skip in family.skipped:
        grouped.setdefault(skip.why, []).append(skip.what)
    ranked = sorted(grouped.items(), key=lambda item: -len(item[1]))
    told = [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} ({why})"
        for why, names in ranked[:SHOWN_REASONS]
    ]
    rest = len(ranked) - SHOWN_REASONS
    return "; ".join([*told, *([f"{rest} more reasons, see --json"] if rest > 0 else [])])


def _table(title: str, headers: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), header_style="dim"
    )
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def _runtimes(found: Examination) -> Table:
    table = _table("\nWhich runtimes take it, in fp32", ("runtime", "takes it", ""))
    for one in found.runtimes:
        word = "-" if one.takes is None else "yes" if one.takes else "no"
        table.add_row(one.runtime, word, escape(one.why) or f"exported in {words.duration(one.seconds)}")
    return table


def _places(found: Examination) -> Table:
    assert found.peaks is not None
    total = sum(place.ms for place in found.places) or 1.0
    table = _table(
        f"\nWhere the time is: {words.milliseconds(total)} in eager, operation by operation; this machine does "
        f"{2e-9 * found.peaks.macs_per_s:.0f} GFLOP/s and {1e-9 * found.peaks.bytes_per_s:.0f} GB/s at best",
        ("operation", "time", "share", "MACs", "bytes", "bound by", "of the best possible"),
    )
    ranked = sorted(found.places, key=lambda place: -place.ms)
    for place in ranked[:SHOWN_PLACES]:
        table.add_row(
            place.node,
            words.milliseconds(place.ms),
            f"{place.ms / total:.0%}",
            f"{place.macs:,}",
            words.size(place.bytes),
            place.bound,
            f"{min(1.0, place.roof_ms / place.ms):.0%}" if place.ms else "",
        )
    rest = ranked[SHOWN_PLACES:]
    if rest:
        own = sum(place.ms for place in rest)
        table.add_row(f"{len(rest)} more", words.milliseconds(own), f"{own / total:.0%}", "", "", "", "")
    return table


def _families(found: Examination) -> Table:
    table = _table("\nWhat could be done, by prediction", ("family", "layers", "faster", "smaller", ""))
    for one in found.families:
        spans = [
            f"{words.factor(span[0])} to {words.factor(span[1])}" if span else "" for span in (one.latency, one.size)
        ]
        left_out = f"not tried by the search: {one.unsearched}" if one.layers and one.unsearched else ""
        table.add_row(one.name, str(len(one.layers)), *spans, escape("; ".join(filter(None, (one.why, left_out)))))
    return table
