"""The terminal's side: progress while a run lasts, and the three-row table at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trimtab.report import words
from trimtab.report.ended import told as ended
from trimtab.report.finalists import told
from trimtab.report.usage import usage

SEARCH = "search"
# seconds each phase is expected to take; only their proportions matter once work has been done
PHASES: Mapping[str, float] = MappingProxyType({"training": 60, "free baselines": 30, SEARCH: 120, "verdict": 25})
PRUNE_PHASES: Mapping[str, float] = MappingProxyType({"training": 60, "planning": 5, "applying": 15})
STYLE = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}
PRIOR_SECONDS = 20.0
QUIET_SECONDS = 5.0
NARROW = 110


def seconds_left(planned_s: float, done_s: float, elapsed_s: float) -> float:
    """Time left, from the plan and the pace so far; the plan counts like `PRIOR_SECONDS` of work at its own pace.

    >>> seconds_left(100, 0, 0), seconds_left(120, 60, 140)
    (100.0, 120.0)
    """
    pace = (elapsed_s + PRIOR_SECONDS) / (done_s + PRIOR_SECONDS)
    return float(max(planned_s - done_s, 0.0) * pace)


class Progress:
    """Shows phase, trial, best so far, time spent and left: live on a terminal, else one plain line per event.

    Args:
        quiet: show nothing.
        console: where to; standard error by default, so that output can be piped.
        phases: name -> seconds it is expected to take, in order.
        clock: seconds, monotonic.

    >>> with Progress(console=Console(width=80)) as show:
    ...     show.trial(0, 2, "prune .5")
    [0:00] search
    [0:00] trial 1 of 2: prune .5
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        console: Console | None = None,
        phases: Mapping[str, float] = PHASES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._quiet, self._phases, self._clock = quiet, phases, clock
        self._started = self._phase_started = self._told = self._said = clock()
        self._phase = self._trial = self._step = self._best = ""
        self._fraction = self._step_fraction = 0.0
        self._left = sum(phases.values())
        live = self._console.is_terminal and not quiet
        # few redraws: on a small machine they share the cores with what is being timed
        self._live = (
            Live(get_renderable=self._render, console=self._console, refresh_per_second=2, transient=True)
            if live
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        if kind is None:
            self._end_phase()

    def phase(self, name: str) -> None:
        """A phase begins; the one before it has ended."""
        self._end_phase()
        self._phase, self._phase_started = name, self._clock()
        self._trial = self._step = ""
        self._fraction = self._step_fraction = 0.0
        self._reckon()
        self._say(name)

    def trial(self, index: int, total: int, name: str) -> None:
        """Trial `index` (from 0) of `total` begins."""
        if self._phase != SEARCH:
            self.phase(SEARCH)
        self._trial, self._step = f"trial {index + 1} of {total}: {name}", ""
        self._fraction, self._step_fraction = index / max(total, 1), 0.0
        self._reckon()
        self._say(self._trial)

    def step(self, done: int, total: int, text: str) -> None:
        """`done` of `total` steps of what `text` says are done."""
        self._step, self._step_fraction = text, done / max(total, 1)
        if not self._trial:
            self._fraction = max(self._fraction, min(self._step_fraction, 0.95))
            self._reckon()
        if self._clock() - self._said >= QUIET_SECONDS:
            self._say(f"{text} ({done} of {total})")

    def note(self, text: str) -> None:
        """Something to be read once, of any number of lines."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        for line in () if self._live else text.splitlines():
            self._say(line)

    def best(self, text: str) -> None:
        """The best candidate so far."""
        if text != self._best:
            self._best = text
            self._say(f"best so far: {text}")

    def warn(self, text: str) -> None:
        """Something that the user may want to mend before time is spent."""
        if self._quiet:
            return
        if self._live:
            self._live.console.print(Text.assemble(("warning: ", "yellow"), text))
        else:
            self._say(f"warning: {text}")

    def _reckon(self) -> None:
        names = list(self._phases)
        at = names.index(self._phase) if self._phase in names else 0
        done = sum(self._phases[name] for name in names[:at]) + self._phases.get(self._phase, 0.0) * self._fraction
        now = self._clock()
        self._left, self._told = seconds_left(sum(self._phases.values()), done, now - self._started), now

    def _end_phase(self) -> None:
        if self._live and self._phase:
            took = words.duration(self._clock() - self._phase_started)
            self._live.console.print(Text.assemble(("✓ ", "green"), self._phase, (f"  {took}", "dim")))
        self._phase = ""

    def _say(self, text: str) -> None:
        self._said = self._clock()
        if not self._quiet and not self._live:
            self._console.print(
                f"[{words.clock(self._said - self._started)}] {text}", markup=False, highlight=False, soft_wrap=True
            )

    def _render(self) -> RenderableType:
        now = self._clock()
        left = max(self._left - (now - self._told), 0.0)
        remaining = f"about {words.clock(left)} left" if left >= 1 else "nearly done"
        top = Table.grid(expand=True)
        top.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        top.add_column(justify="right", no_wrap=True)
        top.add_row(
            Text.assemble((self._phase or "starting", "bold"), f"  {self._trial}"),
            Text(f"{words.clock(now - self._started)} spent, {remaining}", style="dim"),
        )
        bar = Table.grid(expand=True, padding=(0, 1))
        bar.add_column(width=24)
        bar.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        bar.add_row(ProgressBar(total=1.0, completed=self._step_fraction, width=24), Text(self._step, style="dim"))
        lines: list[RenderableType] = [top, bar]
        if self._best:
            lines.append(Text.assemble(("best so far  ", "dim"), self._best, no_wrap=True, overflow="ellipsis"))
        return Group(*lines)


def summary(evidence: Mapping[str, Any], *, console: Console) -> None:
    """Print the table, the verdict with its reason, where everything is, and how to use it."""
    verdict, paths = evidence["verdict"], evidence["paths"]
    console.print(_table(evidence, width=console.width), Text())
    console.print(Text.assemble((verdict["word"], STYLE[verdict["word"]]), "  ", words.sentence(evidence)))
    for word, text in words.further_bounds(evidence):
        console.print(Text.assemble(("  ", ""), (word, STYLE[word]), "  ", text))
    if several := told(evidence):
        console.print(Text(several))
    if verdict["word"] != "PASS":
        console.print(Text(verdict["reason"]))
    for line in ended(evidence):
        console.print(Text(line))
    if busy := words.disturbance(evidence):
        console.print(Text(busy, style="yellow"))
    console.print()
    for name in ("artifact", "evidence", "report"):
        console.print(f"{name:<9} {paths[name]}", markup=False, highlight=False, soft_wrap=True)
    for title, code in zip(("Use it from Python:", "or from the shell:"), usage(evidence), strict=True):
        console.print(f"\n{title}", style="dim")
        console.print(code, markup=False, highlight=False, soft_wrap=True)


def _table(evidence: Mapping[str, Any], *, width: int) -> Table:
    percent = words.is_fraction(evidence)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    gap = "\n" if width < NARROW else " "
    latency = f"latency p50{gap}(bs {evidence['target']['batch_size']})"
    for header in ("", evidence["task"]["metric"], latency, "size", f"vs best{gap}free", "verdict"):
        table.add_column(header, overflow="fold", no_wrap=bool(header))
    for row in evidence["rows"]:
        shown = words.metric(row["metric"], percent=percent)
        if row["metric_low"] is not None and row["metric_high"] is not None:
            shown += gap + words.interval(row["metric_low"], row["metric_high"], percent=percent)
        prefix = "best free: " if row["role"] == "best_free" else ""
        table.add_row(
            escape(prefix + row["name"]),
            escape(shown),
            words.milliseconds(row["latency"]["value"]),
            words.size(row["size"]["value"]),
            "" if row["gain"] is None else words.times(row["gain"]),
            Text(row["word"], style=STYLE[row["word"]]) if row["word"] else "",
            style="bold" if row["role"] == "chosen" else "",
        )
    return table
