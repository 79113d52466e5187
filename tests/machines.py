"""Machines that do not exist: a race on one takes no time, and a file takes it as long as it is large.

And a search of a small model on such a machine, as its processes see it, one proposal after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.fx import GraphModule

import trimtab as tt
from tests import small
from trimtab import attempt, explore, prove
from trimtab.attempt import Job, bench_of, free_baselines, serving
from trimtab.compress.build import Built
from trimtab.compress.recipes import space_of
from trimtab.forecast import Forecast
from trimtab.graph.capture import capture
from trimtab.graph.cost import num_parameters
from trimtab.graph.save import save_graph
from trimtab.measure.machine import stamp
from trimtab.measure.size import size_bytes
from trimtab.measure.speed import Timing
from trimtab.report.terminal import Progress
from trimtab.runtimes import RUNTIMES, evaluate, supported, trial
from trimtab.runtimes.evaluate import Exported, Raced
from trimtab.search.clock import Clock
from trimtab.search.sampler import Result, Sampler, local
from trimtab.search.study import Study
from trimtab.train.loop import fit
from trimtab.underway import Exploration, Sampling

BLOCKS = (0.999, 1.0, 1.001)
EAGER = tt.Target(runtimes=("eager",))
FASTER = tt.Goal("latency_ms", keep=0.9, minutes=9)


class ByParameters(Forecast):
    """Foresees by the numbers that are left, and times no layer; `times` is how far it is off."""

    times = 1.0

    def share(self, graph: Any, served: Any, whole_ms: float) -> float:
        return self.times * num_parameters(graph) / num_parameters(self._original)


@dataclass(frozen=True)
class Machine:
    """ms: of a kilobyte. slower: precision -> how many times as long that takes."""

    name: str
    ms: float = 1.0
    slower: Mapping[str, float] = field(default_factory=dict)

    def race(
        self,
        contestants: Mapping[str, Exported],
        inputs: tuple[np.ndarray, ...],
        *,
        asked: Collection[str] | None = None,
        **_: Any,
    ) -> dict[str, Raced]:
        """What `runtimes.evaluate.race` returns; the answers are the files' own."""
        return {name: self._raced(one, inputs, asked is None or name in asked) for name, one in contestants.items()}

    def _raced(self, one: Exported, inputs: tuple[np.ndarray, ...], asked: bool) -> Raced:
        call = RUNTIMES[one.runtime].load(one.folder, precision=one.precision, threads=1, exact=False)
        ms = self.ms * size_bytes(one.folder) / 1e3 * self.slower.get(one.precision, 1.0)
        medians = tuple(ms * block for block in BLOCKS)
        return Raced(Timing(medians, medians), 1, call(inputs if asked else tuple(x[:1] for x in inputs)))

    def put(self, patched: pytest.MonkeyPatch) -> None:
        """From now on everything is measured on this machine, which lacks bf16; what is exported is taken as right."""
        patched.setattr(trial, "race", self.race)
        patched.setattr(prove, "race", self.race)
        patched.setattr(prove, "profile", lambda *_, **__: {})
        patched.setattr(evaluate, "require_agreement", lambda *_, **__: None)
        patched.setattr(attempt, "stamp", lambda: {**stamp(), "cpu": self.name})
        patched.setattr(attempt, "supported", lambda *at: "no bf16" if "bf16" in at else supported(*at))
        patched.setattr(explore, "Forecast", ByParameters)


@cache
def digits() -> GraphModule:
    """A small model that has learned; not to be changed."""
    model, task = small.make(width=64)
    return capture(fit(model, task), task.select.batch(slice(0, 2)).inputs)


def begun(folder: Path, first: Sequence[Mapping[str, str]], *, storage: str = "", worker: str = "a") -> Sampling:
    """A search of `digits` on the machine that was put up, whose free baselines are measured; `first` comes first."""
    (_, task), graph = small.make(), digits()
    folder.mkdir()
    job = Job(task, EAGER, FASTER, Study(folder), Progress(quiet=True), "")
    original = Built(graph, job.held.once_folder("original", lambda path: save_graph(graph, path)), ())
    bench = bench_of(job, original)
    free, _ = free_baselines(job, bench, original, ("eager",))
    under_way = Exploration(job, bench, original, free, Clock(folder, FASTER.minutes)).watched()
    space = space_of(graph, serving(job, free), minimise=FASTER.minimise)
    sampler = Sampler(storage or local(folder), {}, space.slots, first, seed=0, worker=worker, alone=not storage)
    forecast = ByParameters(graph, minimise=FASTER.minimise, target=EAGER, file=folder.parent / "stairs.db")
    return Sampling(under_way, sampler, space, forecast, worker)


def next_of(own: Sampling) -> Result:
    """How the next proposal ends, which is told to the storage."""
    proposal = own.sampler.ask()
    assert proposal
    result = explore._result(own, proposal)
    own.sampler.tell(proposal, result)
    return result
