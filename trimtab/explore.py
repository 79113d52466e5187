"""The search itself: the recipes that come first, then what the sampler proposes, until the budget is spent.

A proposal is a recipe, the runtime that serves it and the precision. One that is foreseen to be slower is not tried.
One that learns goes up rungs: what it is without recovery, after a short one, in full; only those go on that are within
the bound, among the best third at a rung, or of a loss that recovery brings back, if recoveries so far leave them a
chance (`search/halving.py`). Everything is committed as it ends, here and in the storage.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from textwrap import wrap
from typing import Any

from trimtab.attempt import Job, Tried, failed, nothing_to_recover, screened, serving, worthwhile
from trimtab.compress.build import Built, key
from trimtab.compress.recipes import (
    Known,
    Space,
    cheaper_first,
    recipe_of,
    settled,
    space_of,
)
from trimtab.compress.tables import WIDEST, table
from trimtab.core import Recipe, Search, Skip, Trial
from trimtab.errors import GoalError, PlanError, RunError, TaskError
from trimtab.forecast import Forecast, Served, allowed_seconds, staircase_file
from trimtab.measure.verdict import chance_of_all
from trimtab.runtimes.trial import Bench
from trimtab.search.clock import Clock
from trimtab.search.ending import lost
from trimtab.search.halving import ETA, beyond_recovery, comes_back, promoted
from trimtab.search.sampler import (
    BESIDE,
    BY_FORECAST,
    Proposal,
    Result,
    Sampler,
    all_picks,
    local,
    missing,
    require_same_search,
    require_storage,
    shown,
)
from trimtab.search.space import (
    gained,
    surely_gains,
    unrecovered,
    worth_adopting,
)
from trimtab.search.study import CHOICE
from trimtab.underway import UNTRAINED, Exploration, OutOfTime, Sampling, named

# From this cost on, as a share of the best free baseline's, a candidate is not tried: beyond the forecast's error.
SLOWER = 1.15
# Forecasts that ended proposals, for each candidate that may be tried: where most are slower, the search ends.
FORESEEN = 10


def require_search(search: Search, recipes: tuple[Recipe, ...] | None) -> None:
    """Refuse what cannot be searched, before any work.

    Raises:
        GoalError: both recipes and a search were given.
        RunError: Optuna is not installed, or the storage cannot be reached.
    """
    if search.storage is None and search.trials is None:
        return
    if recipes is not None:
        raise GoalError("Give either recipes, which are all tried, or a Search with storage or trials; not both.")
    if why := missing():
        raise RunError(why)
    if search.storage:
        require_storage(search.storage)


def require_shared(asked: Asked) -> None:
    """Refuse a storage of another search, before any work.

    Raises:
        RunError: it holds one, or cannot be reached.
    """
    if asked.search.storage:
        require_same_search(asked.search.storage, asked.identity)


def explore(
    job: Job, bench: Bench, original: Built, free: list[Trial], listed: Sequence[Recipe], asked: Asked
) -> list[Tried]:
    """Try the listed recipes, then what is sampled, as the goal's minutes and the search's trials allow.

    Once the run has chosen, nothing more is tried, though time be left: what had ended is read again.

    Raises:
        RunError: the storage cannot be reached, or is of another search.
    """
    own = Exploration(job, bench, original, free, Clock(job.held.folder, job.goal.minutes)).watched()
    space = _space(own) if _goes_on(own, asked) and not missing() else None
    if space and not job.held.has(CHOICE):
        _tell_space(job, space, _url(own, asked))
    if asked.search.storage is None:
        _listed(own, listed[: asked.search.trials], settle=asked.samples)
    if _goes_on(own, asked):
        if why := missing():
            own.ended["search"] = Tried(Recipe(), skipped=(Skip("a search beyond the first recipes", why),))
        else:
            _sampled(own, asked, space or _space(own))
    if not own.trials():
        _nearest_miss(own)
    return list(own.ended.values())


@dataclass(frozen=True)
class Asked:
    """How to search, and for what: `identity` is what a shared storage must agree on. samples: not the list alone."""

    search: Search
    identity: Mapping[str, Any]
    samples: bool


def _settled(under_way: Exploration, recipe: Recipe) -> Skip | None:
    """Why one of the first recipes is left out, by what those before it showed; None if it is to be tried."""
    known: list[Known] = []
    for picks in under_way.first:
        if (one := recipe_of(picks)) == recipe:
            why = settled(picks, known)
            return Skip(recipe.name, why) if why else None
        tried = under_way.ended.get(key(one))
        if tried and tried.screen:
            chance = chance_of_all(tried.screen, num_verify=len(under_way.job.task.verify))
            known.append(Known(picks, chance, any(map(surely_gains, tried.trials))))
    return None


def _goes_on(under_way: Exploration, asked: Asked) -> bool:
    """Whether anything is sampled beyond the listed recipes, or was before this process began."""
    began = asked.search.storage or under_way.job.held.has("worker")
    return asked.samples and bool(began or _time_left(under_way, asked))


def _time_left(under_way: Exploration, asked: Asked) -> bool:
    trials = asked.search.trials
    tried = sum(bool(one.screen) for one in under_way.ended.values())
    left = under_way.job.goal.minutes is not None if trials is None else trials > tried
    return left and not under_way.job.held.has(CHOICE) and under_way.clock.room()


def _listed(under_way: Exploration, recipes: Sequence[Recipe], *, settle: bool) -> None:
    """One recipe after the other, until all are tried or the budget is spent.

    settle: leave out what others of them make needless.
    """
    job = under_way.job
    for place, recipe in enumerate(recipes):
        before = job.held.has(f"screens/{key(recipe)}")  # what a killed run had ended costs nothing
        late = Skip(recipe.name, under_way.late())
        if settle and (needless := _settled(under_way, recipe)):
            under_way.ended[key(recipe)] = Tried(recipe, skipped=(needless,))
            continue
        if not before and (not under_way.clock.room() or job.held.has(CHOICE)) and job.goal.minutes is not None:
            under_way.ended[key(recipe)] = Tried(recipe, skipped=(late,))
            continue
        job.show.trial(place, len(recipes), recipe.name)
        try:
            under_way.attempt(recipe)
        except OutOfTime:
            under_way.ended[key(recipe)] = Tried(recipe, skipped=(late,))
        under_way.clock.commit()


def _space(under_way: Exploration) -> Space:
    job = under_way.job
    return space_of(under_way.original.graph, serving(job, under_way.free), minimise=job.goal.minimise)


def _url(under_way: Exploration, asked: Asked) -> str:
    return asked.search.storage or local(under_way.job.held.folder)


def _sampled(under_way: Exploration, asked: Asked, space: Space) -> None:
    """Go on with the sampler, in the run's own storage or in one that is shared."""
    job, search = under_way.job, asked.search
    worker = job.held.once("worker", lambda: uuid.uuid4().hex, str)
    url, first, alone = _url(under_way, asked), under_way.first, search.storage is None
    sampler = Sampler(url, asked.identity, space.slots, first, seed=search.seed, worker=worker, alone=alone)
    own = Sampling(under_way, sampler, space, _forecast(under_way, search), worker)
    _replay(own)
    if not job.held.has(CHOICE):
        _propose(own, search)
    if search.storage:
        _adopt(own)


def _propose(own: Sampling, search: Search) -> None:
    """Try what the sampler gives out, until the budget is spent."""
    under_way, sampler, job = own.under_way, own.sampler, own.under_way.job
    while under_way.clock.room():
        ended = sampler.ended()
        done = sum(BY_FORECAST not in result.notes and BESIDE not in result.notes for _, result in ended)
        if search.trials is not None and (done >= search.trials or len(ended) >= FORESEEN * search.trials):
            break
        if (proposal := sampler.ask()) is None:
            job.show.note("every candidate of the space has been tried")
            break
        name = f"{recipe_of(proposal.picks).name} ({' '.join(own.space.served(proposal.picks))})"
        job.show.trial(done, search.trials or max(done + 1, len(own.first)), name)
        sampler.tell(proposal, _result(own, proposal))
        under_way.clock.commit()


def _forecast(under_way: Exploration, search: Search) -> Forecast:
    job = under_way.job
    return Forecast(
        under_way.original.graph,
        minimise=job.goal.minimise,
        target=job.target,
        file=staircase_file(job.held.folder),
        seconds=lambda: allowed_seconds(
            under_way.clock.spent(), tried=len(under_way.ended), trials=search.trials, minutes=job.goal.minutes
        ),
    )


def _replay(own: Sampling) -> None:
    """What this run had ended before it was killed: read again from its folder."""
    under_way = own.under_way
    for proposal, result in own.sampler.ended():
        recipe = recipe_of(proposal.picks)
        only = None if recipe in own.first else own.space.served(proposal.picks)
        name = named(recipe, only)
        if proposal.worker != own.worker or not recipe.methods or name in under_way.ended:
            continue
        if why := result.notes.get("why"):
            under_way.ended[name] = Tried(recipe, skipped=(Skip(recipe.name, why),))
        else:
            _tried(under_way, recipe, only)


def _tried(under_way: Exploration, recipe: Recipe, only: Served | None) -> Tried:
    """Try it; where there is nothing to recover by training, the same without."""
    tried = under_way.attempt(recipe, only=only)
    less = unrecovered(recipe)
    return under_way.attempt(less, only=only) if only and less and not tried.stages else tried


def _result(own: Sampling, proposal: Proposal) -> Result:
    """Try a proposal, as far up the rungs as it gets."""
    under_way, recipe, served = own.under_way, recipe_of(proposal.picks), own.space.served(proposal.picks)
    began = under_way.clock.spent()
    rungs: list[tuple[float, float]] = []
    notes: dict[str, Any] = {"recipe": recipe.name, "key": key(recipe), "served": " ".join(served)}
    if not recipe.methods:
        return _of_original(own, served, notes)
    first = recipe in own.first
    only = None if first else served

    def untried(costs: tuple[float, float] | None, skip: Skip) -> Result:
        under_way.ended[named(recipe, only)] = Tried(recipe, skipped=(skip,))
        return Result(costs, notes | {BY_FORECAST: True, "why": skip.why})

    if first and (needless := _settled(under_way, recipe)):
        return untried(None, needless)
    if not first and (same := _same_without(own, proposal, recipe)):
        return untried(*same)
    tried, why = None, None
    try:
        if not first and (foreseen := _refused(own, recipe, served) or _slower(own, proposal)) is not None:
            share, why = foreseen
            # at best as good as the original, at a higher cost
            return untried((share, 0.0), Skip(f"{recipe.name} ({' '.join(served)})", why))
        why = None if first else _stopped(own, proposal, recipe, rungs)
        tried = None if why else _tried(under_way, recipe, only)
    except OutOfTime:
        why = under_way.late()
    except (PlanError, TaskError) as error:
        told = failed(under_way.job.held, recipe.name, key(recipe), error) if isinstance(error, TaskError) else None
        why = told.why if told else str(error)
    if why:
        under_way.ended[named(recipe, only)] = Tried(recipe, skipped=(Skip(recipe.name, why),))
        notes["why"] = why
    notes["seconds"] = round(under_way.clock.spent() - began, 3)
    if tried is None:
        return Result(rungs[-1] if rungs else None, notes, tuple(rungs))
    return _costs(own, proposal, tried, notes, tuple(rungs))


def _same_without(own: Sampling, proposal: Proposal, recipe: Recipe) -> tuple[tuple[float, float], Skip] | None:
    """The costs without recovery, and why it is not trained; None if they are not known, or training may recover."""
    needless = nothing_to_recover(own.under_way.job, recipe)
    twin = {**proposal.picks, **UNTRAINED}
    known = (result.costs for one, result in own.sampler.ended() if (one.picks, one.worker) == (twin, own.worker))
    costs = next(known, None) if needless else None
    return (costs, needless) if costs and needless else None


def _of_original(own: Sampling, served: Served, notes: dict[str, Any]) -> Result:
    """The model as it came in a runtime: it was measured as a free baseline."""
    there = [one for one in own.under_way.free if (one.runtime, one.precision) == served]
    if not there:
        return Result(None, notes | {"why": "it does not run there"})
    return Result((own.free_share(served), lost((there[0].select, *there[0].also))), notes)


def _costs(
    own: Sampling, proposal: Proposal, tried: Tried, notes: dict[str, Any], rungs: tuple[tuple[float, float], ...]
) -> Result:
    under_way = own.under_way
    if not tried.screen:
        if tried.skipped:
            notes["why"] = tried.skipped[-1].why
        return Result(rungs[-1] if rungs else None, notes, rungs)
    _, drops = screened(under_way.job, under_way.bench, under_way.original, tried.recipe)
    graph = own.in_floats({**proposal.picks, **({} if tried.recipe == recipe_of(proposal.picks) else UNTRAINED)})
    served = own.space.served(proposal.picks)
    for trial in tried.trials:
        at: Served = (trial.runtime, trial.precision)
        picks = own.space.served_as(proposal.picks, *at)
        if at != served and picks:
            own.sampler.learn(picks, _measured(own, trial, graph, {**notes, "served": " ".join(at)}, ()))
    for trial in tried.trials:
        if (trial.runtime, trial.precision) == served:
            return _measured(own, trial, graph, notes, rungs)
    if tried.skipped:
        notes["why"] = tried.skipped[-1].why
    return Result((own.predicted(graph, proposal), lost(drops)), notes, rungs)


def _measured(
    own: Sampling, trial: Trial, graph: Any, notes: dict[str, Any], rungs: tuple[tuple[float, float], ...]
) -> Result:
    forecast = own.uncorrected(graph, (trial.runtime, trial.precision))
    chance = own.under_way.job.chance(trial)
    told = {"gain": gained(trial), "chance": chance, "candidate": trial.candidate, "forecast": forecast}
    return Result((1 / gained(trial), lost((trial.select, *trial.also))), {**notes, **told}, rungs)


def _refused(own: Sampling, recipe: Recipe, served: Served) -> tuple[float, str] | None:
    """What serving the recipe there costs at least, and why it is not worth it by what was measured; None if it is."""
    under_way = own.under_way
    precisions, left_out = worthwhile(under_way.job, [*under_way.free, *under_way.trials()], recipe, served)
    if precisions:
        return None
    return max(1.0, own.free_share(served)), "; ".join(f"{skip.what}: {skip.why}" for skip in left_out)


def _slower(own: Sampling, proposal: Proposal) -> tuple[float, str] | None:
    """How many times slower than the original in its runtime, or than the best free baseline, it is foreseen to be.

    None if it is not: then it is worth trying. What it takes away is built for this, nothing is scored or trained.
    """
    graph = own.in_floats({**proposal.picks, **UNTRAINED})
    changed = graph is not own.under_way.original.graph
    share = own.forecast_of(graph, own.space.served(proposal.picks)) if changed else 0.0
    if share <= 1 and (share := own.predicted(graph, proposal)) <= SLOWER:
        return None
    return share, f"foreseen to cost {share:.2f} times the original there, or the best free baseline"


def _stopped(own: Sampling, proposal: Proposal, recipe: Recipe, rungs: list[tuple[float, float]]) -> str | None:
    """Climb the cheap rungs; why it ended there, or None if the whole recipe is worth its time."""
    rungs_below, under_way = cheaper_first(recipe, eta=ETA), own.under_way
    for rung, cheaper in enumerate(rungs_below):
        under_way.job.show.step(rung, len(rungs_below) + 1, f"a cheaper look: {cheaper.name}")
        graph, drops = screened(under_way.job, under_way.bench, under_way.original, cheaper)
        reached = (own.predicted(graph, proposal), lost(drops))
        others = [result.rungs[rung] for _, result in own.sampler.ended() if len(result.rungs) > rung]
        rungs.append(reached)
        loses = f"{cheaper.name} loses {reached[1]:.2g} times what is allowed on select"
        recoveries = own.recoveries()
        if why := beyond_recovery(reached[1], recoveries):
            return f"{loses}, and {why}"
        if reached[1] > 1 and not comes_back(reached[1], recoveries) and not promoted(reached, others):
            return (
                f"{loses} at a predicted cost of {reached[0]:.2f}: not among the best third of the {len(others) + 1} "
                "that came so far"
            )
    return None


def _tell_space(job: Job, space: Space, url: str) -> None:
    """The space as a table, before the first candidate: each decision, its options and when it is asked."""
    lines = [f"searching {len(all_picks(space.slots)):,} candidates; the trials are kept in {shown(url)}"]
    job.show.note("\n".join([*lines, table(list(_space_rows(space)), space.skipped)]))


def _space_rows(space: Space) -> Iterator[dict[str, str]]:
    """Rows of `table`; what is too wide for a column goes on in the next row."""
    for row in space.rows():
        columns = {"decision": row["decision"], "options": row["options"], "when asked": row["asked"]}
        for cells in zip_longest(*(wrap(text, WIDEST) for text in columns.values()), fillvalue=""):
            yield dict(zip(columns, cells, strict=True))


def _adopt(own: Sampling) -> None:
    """Where another process found something better, make and measure it here too: times are compared on one machine."""
    job = own.under_way.job

    def better() -> list[dict[str, str]]:
        notes = [(one.picks, result.notes) for one, result in own.sampler.ended() if one.worker != own.worker]
        found = [
            # one that had nothing to recover was measured without training
            (told["gain"], told["chance"], picks if told["candidate"].startswith(told["recipe"]) else picks | UNTRAINED)
            for picks, told in notes
            if "gain" in told
        ]
        return worth_adopting(found, own.under_way.trials(), job.chance)

    # kept, so that one that resumes has the same trials, whatever others have found since
    for picks in job.held.once("adopted", better, list[dict[str, str]]):
        recipe = recipe_of(picks)
        job.show.note(f"another process found {recipe.name}; it is made here too")
        own.under_way.unlimited().attempt(recipe, only=own.space.served(picks))


def _nearest_miss(under_way: Exploration) -> None:
    """If nothing had a chance, what came nearest is exported all the same: the best effort is always saved."""
    looked_at = [tried for tried in under_way.ended.values() if tried.screen]
    if looked_at:
        nearest = min(looked_at, key=lambda tried: lost(tried.screen))
        under_way.unlimited().attempt(nearest.recipe, hopeless=0.0)
