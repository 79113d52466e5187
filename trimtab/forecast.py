"""What a candidate will cost, before it is exported: by the staircase of its runtime, and by the bytes of its weights.

Layers are timed in the runtime as they are asked for, the largest first, and kept for every later run in one SQLite
file (`search/staircase.py`); where the time for that is over, the rest is counted by its multiply-accumulates. Of a
layer that is narrower than in the original the two measured widths about it tell. What lies between the layers shrinks
as the numbers that they give. How well: benchmarks/staircase.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from trimtab.compress.layertime import Layer, LayerTimes, Point, in_runtime
from trimtab.compress.prune import Prune
from trimtab.core import Precision, Quantity, Target
from trimtab.errors import PlanError
from trimtab.graph.cost import Contraction, Sizes, activations, contractions, macs, num_parameters
from trimtab.graph.dims import groups
from trimtab.graph.fold import fold_batchnorm, fold_weights
from trimtab.measure.machine import stamp
from trimtab.runtimes.alone import described
from trimtab.search.space import FREE_PRECISIONS
from trimtab.search.staircase import Staircase, predicted_ms, worth_keeping

STAIRCASE_FILE = "staircase.db"
# The part of a search that layers may be timed in, and what they may be timed in any, in seconds.
SHARE, LEAST_S = 0.1, 30.0
Served = tuple[str, Precision]


def staircase_file(run: Path) -> Path:
    """Where the times of layers are kept: beside the run's folder, for all runs there."""
    return run.resolve().parent / STAIRCASE_FILE


def served_in_floats(runtime: str, precision: Precision) -> Served:
    """Where the floats of what is served so are timed."""
    return runtime, precision if precision in FREE_PRECISIONS else "fp32"


def allowed_seconds(spent: float, *, tried: int, trials: int | None, minutes: float | None) -> float:
    """How long layers may be timed: a tenth of what the search will take, by its minutes, or by its pace so far.

    >>> allowed_seconds(100.0, tried=5, trials=40, minutes=None), allowed_seconds(1.0, tried=0, trials=9, minutes=5)
    (80.0, 30.0)
    """
    if minutes is not None:
        return SHARE * 60 * minutes
    return max(LEAST_S, SHARE * spent * max(1.0, (trials or 0) / max(1, tried)))


class _Late(Exception):
    """There is no time left to measure layers."""


class Forecast:
    """Of one model on one target: what versions of it will cost, as shares of what it costs itself.

    Args:
        original: the captured model.
        minimise: what counts.
        target: where it will run.
        file: keeps the times of layers; it is made if it is not there.
        seconds: how long layers may be timed in all, as of now.
    """

    def __init__(
        self,
        original: GraphModule,
        *,
        minimise: Quantity,
        target: Target,
        file: Path,
        seconds: Callable[[], float] = lambda: float("inf"),
        machine: dict[str, Any] | None = None,
    ) -> None:
        self._original, self._minimise, self._target, self._file = original, minimise, target, file
        self._machine = stamp() if machine is None else machine
        self._allowed, self._spent = seconds, 0.0
        self._sizes, self._activations = _narrowing(original), activations(original)
        self._layers = {one.node: one for one in contractions(self._sizes)}
        self._clocks: dict[Served, Callable[[Layer], float]] = {}
        self._times: dict[Served, LayerTimes] = {}

    def share(self, graph: GraphModule, served: Served, whole_ms: float) -> float:
        """What `graph` will cost in a runtime at a floating-point precision, as a share of the original's there.

        Args:
            graph: a version of the original, with weights of 32 bits.
            served: runtime and precision.
            whole_ms: what the original takes there.
        """
        if self._minimise != "latency_ms":
            return num_parameters(graph) / max(1, num_parameters(self._original))
        whole, own = self._layers_ms(self._original, served), self._layers_ms(graph, served)
        if not whole or own is None:
            return macs(graph) / max(1, macs(self._original))
        return predicted_ms(whole_ms, whole, own, rest=activations(graph) / max(1, self._activations)) / whole_ms

    def stairs(self, graph: GraphModule, served: Served) -> list[dict[str, Any]]:
        """The layers that take most of the original at the widths that were timed, in percent: rows of the page's plot.

        Nothing is timed for it; a layer that is known at one width alone is left out. pay: the widths that no wider one
        is as fast as. chosen: the nearest of the widths to that in `graph`.
        """
        times, now = self._timed(served), {one.node: one.macs() for one in _contractions(graph)}
        rows = []
        for one in times.contractions:
            known = list(self._known(times, one))
            if len(known) < 2:
                continue
            own, ms = now.get(one.node, 0), {round(100 * at.share, 1): at.ms for at in known}
            rows.append(
                {
                    "layer": one.node,
                    "widths": list(ms),
                    "ms": list(ms.values()),
                    "pay": list(worth_keeping(ms)),
                    "chosen": round(100 * min((abs(at.macs - own), at.share) for at in known)[1], 1),
                }
            )
        return sorted(rows, key=lambda row: -max(row["ms"]))

    def _layers_ms(self, graph: GraphModule, served: Served) -> float | None:
        """The sum over the layers; None if there was no time for any."""
        original = self._timed(served)
        known_ms, known_macs, unknown_macs = 0.0, 0, 0
        own = LayerTimes(Sizes(fold_batchnorm(graph)), self._clock(served))
        for one in sorted(own.contractions, key=lambda one: -one.macs()):
            own_macs, same = one.macs(), self._same(one)
            try:
                known_ms += original.at(same, own_macs) if same else own.of(one)
                known_macs += own_macs
            except _Late:
                unknown_macs += own_macs
        return known_ms * (1 + unknown_macs / known_macs) if known_macs else None

    def _known(self, times: LayerTimes, one: Contraction) -> Iterator[Point]:
        """The widths of a layer that were timed by any run."""
        allowed, self._allowed = self._allowed, lambda: 0.0
        try:
            for macs, share in times.widths(one):
                with suppress(_Late):
                    yield Point(macs, share, times.at(one, macs))
        finally:
            self._allowed = allowed

    def _same(self, one: Contraction) -> Contraction | None:
        """The original's layer that `one` is, at its width or narrower."""
        same = self._layers.get(one.node)
        return same if same and one.macs() <= same.macs() else None

    def _timed(self, served: Served) -> LayerTimes:
        if served not in self._times:
            self._times[served] = LayerTimes(self._sizes, self._clock(served))
        return self._times[served]

    def _clock(self, served: Served) -> Callable[[Layer], float]:
        if served not in self._clocks:
            runtime, precision = served
            told = described(runtime, precision, self._target.threads)
            stairs = Staircase(self._file, machine=self._machine, runtime=told)

            def kept(key: str, measure: Callable[[], float]) -> float:
                return stairs.ms(key, lambda: self._within(measure))

            self._clocks[served] = in_runtime(runtime, precision=precision, threads=self._target.threads, kept=kept)
        return self._clocks[served]

    def _within(self, measure: Callable[[], float]) -> float:
        if self._spent >= self._allowed():
            raise _Late
        began = time.perf_counter()
        try:
            return measure()
        finally:
            self._spent += time.perf_counter() - began


def _contractions(graph: GraphModule) -> tuple[Contraction, ...]:
    return contractions(Sizes(fold_batchnorm(graph)))


def _narrowing(graph: GraphModule) -> Sizes:
    """The sizes of `graph` as it is served, as functions of the channels that a cut may take."""
    folded, _ = fold_weights(fold_batchnorm(graph))
    try:
        plan = Prune(ratio=0.5).plan(folded)
    except PlanError:  # nothing can go
        return Sizes(folded)
    cut = {one.group for one in plan.cuts}
    return Sizes(folded, [group for group in groups(folded, means=plan.through_means).cuttable if group.name in cut])
