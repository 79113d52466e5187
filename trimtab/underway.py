"""A search under way: what has ended in it, and what a candidate is foreseen to cost and to keep by that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median
from typing import Any

from trimtab.attempt import HOPELESS, Job, Tried, attempt, built_graph
from trimtab.compress.build import Built, key
from trimtab.compress.recipes import FLOATS, NONE, RECOVERY, Space, first_picks, recipe_of
from trimtab.core import Recipe, Trial
from trimtab.forecast import Forecast, Served, served_in_floats
from trimtab.report.words import metric
from trimtab.runtimes.trial import Bench
from trimtab.search.clock import Clock
from trimtab.search.sampler import Proposal, Sampler
from trimtab.search.space import FREE_PRECISIONS, best_free, choose, cost

# What numbers of fewer bits may gain at most, where nothing was measured yet: a guess that only ranks.
BITS_GAIN = 2.0
UNTRAINED = {RECOVERY: NONE}


class OutOfTime(Exception):
    """The budget was spent in the middle of a candidate."""


@dataclass
class Exploration:
    """A search under way: what has ended, by recipe, in order."""

    job: Job
    bench: Bench
    original: Built
    free: list[Trial]
    clock: Clock
    ended: dict[str, Tried] = field(default_factory=dict)

    @cached_property
    def first(self) -> tuple[dict[str, str], ...]:
        """The picks that come first, unless recipes were given."""
        return first_picks(self.original.graph, self.job.goal.minimise)

    def trials(self) -> list[Trial]:
        """Of everything that has ended."""
        return [trial for tried in self.ended.values() for trial in tried.trials]

    def attempt(self, recipe: Recipe, *, only: Served | None = None, hopeless: float = HOPELESS) -> Tried:
        """Try a recipe, in every runtime worth trying or as `only` says, whatever it takes."""
        measured = [*self.free, *self.trials()]
        tried = attempt(self.job, self.bench, self.original, measured, recipe, only=only, hopeless=hopeless)
        self.ended[named(recipe, only)] = tried
        self._tell_best()
        return tried

    def watch(self) -> None:
        """End what is under way when the budget is spent; but something is always tried."""
        if self.ended and self.clock.left() < 0:
            raise OutOfTime

    def watched(self) -> Exploration:
        """The same search, ended in the middle of a candidate when the budget is spent."""
        return replace(self, job=replace(self.job, watch=self.watch))

    def unlimited(self) -> Exploration:
        """The same search, whatever time it takes."""
        return replace(self, job=replace(self.job, watch=None))

    def late(self) -> str:
        """Why nothing more is tried."""
        return f"the budget of {self.job.goal.minutes or 0:g} minutes was spent"

    def _tell_best(self) -> None:
        if trials := self.trials():
            best = choose(trials, self.job.chance)
            times = f", {best.gain.value:.2f}x" if best.gain else ""
            quality = metric(best.select.candidate, percent=self.job.task.metric.binary)
            self.job.show.best(f"{best.candidate}: {quality}{times}")


@dataclass(frozen=True)
class Sampling:
    """What the sampler's part of a search needs beside the search itself."""

    under_way: Exploration
    sampler: Sampler
    space: Space
    forecast: Forecast
    worker: str

    @cached_property
    def first(self) -> tuple[Recipe, ...]:
        """The recipes that come first, which are tried in every runtime worth trying."""
        return tuple(map(recipe_of, self.under_way.first))

    def free_cost(self, served: Served) -> float:
        """What the original costs in a runtime, at its precision if it is a free one; infinite if it failed there."""
        minimise = self.under_way.job.goal.minimise
        at = served_in_floats(*served)
        costs = (cost(one, minimise) for one in self.under_way.free if (one.runtime, one.precision) == at)
        return next(costs, float("inf"))

    def free_share(self, served: Served) -> float:
        """The same as a share of the best free baseline's cost."""
        job = self.under_way.job
        return self.free_cost(served) / cost(best_free(self.under_way.free, job.goal, job.target), job.goal.minimise)

    def in_floats(self, picks: Mapping[str, str]) -> Any:
        """The graph that `picks` give before its numbers are changed, which is what a forecast tells of."""
        recipe = recipe_of({**picks, "numbers": FLOATS})
        return built_graph(self.under_way.job, self.under_way.original, recipe)

    def forecast_of(self, graph: Any, served: Served) -> float:
        """What floats of `graph` will cost there, as a share of the original's there."""
        return self.forecast.share(graph, served_in_floats(*served), self.free_cost(served))

    def uncorrected(self, graph: Any, served: Served) -> float:
        """The same as a share of the best free baseline's cost."""
        return self.forecast_of(graph, served) * self.free_share(served)

    def recoveries(self) -> list[tuple[float, float]]:
        """What training recovered so far: of each the loss before and after, both in the same numbers."""
        ended = [(one.picks, result.costs[1], result.rungs) for one, result in self.sampler.ended() if result.costs]
        known = {tuple(picks.items()): loss for picks, loss, _ in ended}
        found = [(rungs[0][1], rungs[1][1]) for _, _, rungs in ended if len(rungs) > 1]
        for picks, loss, rungs in ended:
            before = known.get(tuple((picks | UNTRAINED).items()))
            if before is not None and not rungs and picks.get(RECOVERY, NONE) != NONE:  # the first ones climb no rungs
                found.append((before, loss))
        return found

    def predicted(self, graph: Any, proposal: Proposal) -> float:
        """The same, corrected by how far forecasts of such numbers were off in this runtime; at first guessed."""
        served = self.space.served(proposal.picks)
        numbers = proposal.picks.get("numbers", "")
        off = [
            result.notes["gain"] ** -1 / result.notes["forecast"]
            for other, result in self.sampler.ended()
            if other.worker == self.worker
            and "forecast" in result.notes
            and "gain" in result.notes
            and other.picks.get("numbers", "") == numbers
            and self.space.served(other.picks) == served
        ]
        guess = 1.0 if served[1] in FREE_PRECISIONS else 1 / BITS_GAIN
        return self.uncorrected(graph, served) * (median(off) if off else guess)


def named(recipe: Recipe, only: Served | None = None) -> str:
    """What names a candidate of a search: a recipe, or a recipe in one runtime."""
    return f"{key(recipe)} {' '.join(only)}" if only else key(recipe)
