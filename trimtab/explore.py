"""The search itself: the recipes that come first, then what the sampler proposes, until the budget is spent.

A proposal that learns goes up rungs: what it is without recovery, after a short one, in full; only those among the best
third at a rung go on (`search/halving.py`). Everything is committed as it ends, here and in the storage.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trimtab.attempt import HOPELESS, Job, Tried, attempt, failed, screened
from trimtab.compress.build import Built, key
from trimtab.compress.distill import Distill
from trimtab.compress.recipes import LR, NUMBERS, SHORT, Space, default_picks, recipe_of, space_of
from trimtab.core import Method, Recipe, Search, Skip, Trial
from trimtab.errors import GoalError, MetricError, PlanError, RunError
from trimtab.graph.cost import macs
from trimtab.report.words import metric
from trimtab.runtimes import supported
from trimtab.runtimes.formats import FORMATS
from trimtab.runtimes.trial import Bench
from trimtab.search.clock import Clock
from trimtab.search.ending import lost
from trimtab.search.halving import promoted
from trimtab.search.sampler import Proposal, Result, Sampler, all_picks, local, missing, shown
from trimtab.search.space import LEARNING, best_free, choose, gained

# What numbers of fewer bits may gain at most, where nothing was measured yet: a guess that only ranks.
BITS_GAIN = 2.0


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

    def trials(self) -> list[Trial]:
        """Of everything that has ended."""
        return [trial for tried in self.ended.values() for trial in tried.trials]

    def attempt(self, recipe: Recipe, *, hopeless: float = HOPELESS) -> Tried:
        """Try a recipe, whatever it takes."""
        measured = [*self.free, *self.trials()]
        tried = attempt(self.job, self.bench, self.original, measured, recipe, hopeless=hopeless)
        self.ended[key(recipe)] = tried
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


def require_search(search: Search, recipes: tuple[Recipe, ...] | None) -> None:
    """Refuse what cannot be searched, before any work.

    Raises:
        GoalError: both recipes and a search were given.
        RunError: Optuna is not installed.
    """
    if search.storage is None and search.trials is None:
        return
    if recipes is not None:
        raise GoalError("Give either recipes, which are all tried, or a Search with storage or trials; not both.")
    if why := missing():
        raise RunError(why)


def explore(
    job: Job, bench: Bench, original: Built, free: list[Trial], listed: Sequence[Recipe], asked: Asked
) -> list[Tried]:
    """Try the listed recipes, then what is sampled, as the goal's minutes and the search's trials allow.

    Raises:
        RunError: the storage cannot be reached, or is of another search.
    """
    own = Exploration(job, bench, original, free, Clock(job.held.folder, job.goal.minutes)).watched()
    if asked.search.storage is None:
        _listed(own, listed[: asked.search.trials])
    if asked.samples and (asked.search.storage or job.held.has("worker") or _time_left(own, asked)):
        if why := missing():
            own.ended["search"] = Tried(Recipe(), skipped=(Skip("a search beyond the first recipes", why),))
        else:
            _sampled(own, asked)
    if not own.trials():
        _nearest_miss(own)
    return list(own.ended.values())


@dataclass(frozen=True)
class Asked:
    """How to search, and for what: `identity` is what a shared storage must agree on. samples: not the list alone."""

    search: Search
    identity: Mapping[str, Any]
    samples: bool


def _time_left(under_way: Exploration, asked: Asked) -> bool:
    limited = under_way.job.goal.minutes is not None or asked.search.trials is not None
    return limited and under_way.clock.left() > 0


def _listed(under_way: Exploration, recipes: Sequence[Recipe]) -> None:
    """One recipe after the other, until all are tried or the budget is spent."""
    job = under_way.job
    for place, recipe in enumerate(recipes):
        before = job.held.has(f"screens/{key(recipe)}")  # what a killed run had ended costs nothing
        late = Skip(recipe.name, under_way.late())
        if not before and (under_way.clock.left() < 0 or job.held.has("choice")) and job.goal.minutes is not None:
            under_way.ended[key(recipe)] = Tried(recipe, skipped=(late,))
            continue
        job.show.trial(place, len(recipes), recipe.name)
        try:
            under_way.attempt(recipe)
        except OutOfTime:
            under_way.ended[key(recipe)] = Tried(recipe, skipped=(late,))
        under_way.clock.commit()


def _sampled(under_way: Exploration, asked: Asked) -> None:
    """Go on with the sampler, in the run's own storage or in one that is shared."""
    job, search = under_way.job, asked.search
    space = space_of(under_way.original.graph, _precisions(under_way.free))
    worker = job.held.once("worker", lambda: uuid.uuid4().hex, str)
    url = search.storage or local(job.held.folder)
    sampler = Sampler(
        url, asked.identity, space.slots, default_picks(), seed=search.seed, worker=worker, alone=search.storage is None
    )
    _replay(under_way, sampler, worker)
    if job.held.has("choice"):
        return
    _tell_space(job, space, url)
    while under_way.clock.left() > 0:
        done = len(sampler.ended())
        if search.trials is not None and done >= search.trials:
            break
        if (proposal := sampler.ask()) is None:
            job.show.note("every recipe of the space has been tried")
            break
        job.show.trial(done, search.trials or max(done + 1, len(default_picks())), recipe_of(proposal.picks).name)
        sampler.tell(proposal, _result(under_way, sampler, proposal))
        under_way.clock.commit()
    _adopt(under_way, sampler, worker)


def _replay(under_way: Exploration, sampler: Sampler, worker: str) -> None:
    """What this run had ended before it was killed: read again from its folder."""
    for proposal, result in sampler.ended():
        recipe = recipe_of(proposal.picks)
        if proposal.worker != worker or not recipe.methods or key(recipe) in under_way.ended:
            continue
        if why := result.notes.get("why"):
            under_way.ended[key(recipe)] = Tried(recipe, skipped=(Skip(recipe.name, why),))
        else:
            under_way.attempt(recipe)


def _result(under_way: Exploration, sampler: Sampler, proposal: Proposal) -> Result:
    """Try a proposal, as far up the rungs as it gets."""
    began, recipe = under_way.clock.spent(), recipe_of(proposal.picks)
    rungs: list[tuple[float, float]] = []
    if not recipe.methods:
        return Result((1.0, 0.0), {"recipe": recipe.name})
    notes: dict[str, Any] = {"recipe": recipe.name, "key": key(recipe)}
    try:
        why = None if proposal.picks in default_picks() else _stopped(under_way, sampler, recipe, rungs)
        tried = None if why else under_way.attempt(recipe)
    except OutOfTime:
        tried, why = None, under_way.late()
    except (PlanError, MetricError) as error:
        told = failed(under_way.job.held, recipe.name, key(recipe), error) if isinstance(error, MetricError) else None
        tried, why = None, told.why if told else str(error)
    if why:
        under_way.ended[key(recipe)] = Tried(recipe, skipped=(Skip(recipe.name, why),))
        notes["why"] = why
    notes["seconds"] = round(under_way.clock.spent() - began, 3)
    if tried is None:
        return Result(rungs[-1] if rungs else None, notes, tuple(rungs))
    return _costs(under_way, tried, notes, tuple(rungs))


def _costs(
    under_way: Exploration, tried: Tried, notes: dict[str, Any], rungs: tuple[tuple[float, float], ...]
) -> Result:
    if tried.trials:
        best = max(tried.trials, key=gained)
        notes |= {"gain": gained(best), "chance": under_way.job.chance(best), "candidate": best.candidate}
        return Result((1 / gained(best), lost((best.select, *best.also))), notes, rungs)
    if tried.skipped:
        notes["why"] = tried.skipped[-1].why
    if not tried.screen:
        return Result(rungs[-1] if rungs else None, notes, rungs)
    graph, drops = screened(under_way.job, under_way.bench, under_way.original, tried.recipe)
    return Result((_predicted(under_way, graph, tried.recipe), lost(drops)), notes, rungs)


def _stopped(under_way: Exploration, sampler: Sampler, recipe: Recipe, rungs: list[tuple[float, float]]) -> str | None:
    """Climb the cheap rungs; why it ended there, or None if the whole recipe is worth its time."""
    rungs_below = cheaper_first(recipe)
    for rung, cheaper in enumerate(rungs_below):
        under_way.job.show.step(rung, len(rungs_below) + 1, f"a cheaper look: {cheaper.name}")
        graph, drops = screened(under_way.job, under_way.bench, under_way.original, cheaper)
        own = (_predicted(under_way, graph, recipe), lost(drops))
        others = [result.rungs[rung] for _, result in sampler.ended() if len(result.rungs) > rung]
        rungs.append(own)
        if not promoted(own, others):
            return (
                f"{cheaper.name} loses {own[1]:.2g} times what is allowed on select at a predicted cost of "
                f"{own[0]:.2f}: not among the best third of the {len(others) + 1} that came so far"
            )
    return None


def cheaper_first(recipe: Recipe) -> tuple[Recipe, ...]:
    """What is measured before a recipe that learns: without recovery, then after a short one; numbers stay whole.

    >>> [one.name for one in cheaper_first(recipe_of({"channels cut": "0.5", "epochs of recovery": "4"}))]
    ['prune .5 by obs', 'prune .5 by obs + distill 1 epoch']
    """
    learning = next((at for at, method in enumerate(recipe.methods) if method.name.startswith(LEARNING)), None)
    if learning is None:
        return ()
    cut: tuple[Method, ...] = recipe.methods[:learning]
    short = Distill(epochs=int(SHORT), lr=LR)
    same = recipe.methods[learning] == short
    return (Recipe(cut), *(() if same else (Recipe((*cut, short)),)))


def _predicted(under_way: Exploration, graph: Any, recipe: Recipe) -> float:
    """What the recipe will cost as a share of the best free baseline, before anything is exported."""
    share = macs(graph) / max(1, macs(under_way.original.graph))
    fewer_bits = any(method == own for method in recipe.methods for _, own in NUMBERS.values())
    return share / BITS_GAIN if fewer_bits else share


def _precisions(free: Sequence[Trial]) -> tuple[str, ...]:
    """What the runtimes at hand serve in, the free precisions included."""
    runtimes = dict.fromkeys(trial.runtime for trial in free)
    return tuple(
        precision
        for precision, able in FORMATS.items()
        if any(name in able and supported(name, precision) is None for name in runtimes)
    )


def _tell_space(job: Job, space: Space, url: str) -> None:
    lines = [f"searching {len(all_picks(space.slots)):,} recipes; the trials are kept in {shown(url)}"]
    lines += [f"  {row['decision']}: {row['options']} (asked {row['asked']})" for row in space.rows()]
    lines += [f"  left out, {skip.what}: {skip.why}" for skip in space.skipped]
    job.show.note("\n".join(lines))


def _adopt(under_way: Exploration, sampler: Sampler, worker: str) -> None:
    """Where another process found something better, make and measure it here too: times are compared on one machine."""
    likely = [
        (result.notes["gain"], proposal)
        for proposal, result in sampler.ended()
        if proposal.worker != worker and result.notes.get("chance", 0.0) >= 0.5
    ]
    trials = under_way.trials()
    own = gained(choose(trials, under_way.job.chance)) if trials else 0.0
    better = [(gain, proposal.number, proposal) for gain, proposal in likely if gain > own]
    if not better:
        return
    recipe = recipe_of(max(better)[2].picks)
    under_way.job.show.note(f"another process found {recipe.name}; it is made here too")
    under_way.unlimited().attempt(recipe)


def _nearest_miss(under_way: Exploration) -> None:
    """If nothing had a chance, what came nearest is exported all the same: the best effort is always saved."""
    looked_at = [tried for tried in under_way.ended.values() if tried.screen]
    if looked_at:
        nearest = min(looked_at, key=lambda tried: lost(tried.screen))
        under_way.unlimited().attempt(nearest.recipe, hopeless=0.0)


def chosen(job: Job, free: list[Trial], ended: Sequence[Tried]) -> Trial:
    """What is put before the verdict."""
    trials = [trial for tried in ended for trial in tried.trials]
    return choose(trials, job.chance) if trials else best_free(free, job.goal, job.target)
