"""The strategies that are compared: our search, random search, a grid, and each family of methods alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from searched.cells import Cells, Ground
from searched.table import ALONE
from trimtab.attempt import Job, attempt, screened, serving
from trimtab.compress.recipes import FLOATS, NONE, STRUCTURE, Space, recipe_of, recipes_to_try, space_of
from trimtab.core import Search
from trimtab.errors import MetricError, PlanError
from trimtab.explore import Asked, explore
from trimtab.search.ending import lost
from trimtab.search.sampler import all_picks

Picks = dict[str, str]
# What a grid has of each decision: the first of these that the space has, all of them where it is not named.
GRID: dict[str, tuple[str, ...]] = {
    "channels cut": (NONE, "0.25", "0.5", "0.75"),
    "low rank": (NONE, "0.5"),
    "order": ("cut first",),
    "blocks dropped": (NONE, "1"),
    "epochs of recovery": (NONE, "2"),
    "numbers": (FLOATS, "int8", "int8 at run time", "weights in int8"),
    "precision of floats": ("fp32",),
}


def space(ground: Ground) -> Space:
    """The space that all strategies search, as the search itself makes it."""
    return space_of(ground.original.graph, serving(ground.job, ground.free), minimise=ground.job.goal.minimise)


def candidates(found: Space) -> list[Picks]:
    """All of it, the original as it came left out."""
    return [picks for picks in all_picks(found.slots) if recipe_of(picks).methods]


def grid(found: Space, allocation: str) -> list[Picks]:
    """A coarse regular part of the space, with one way to spread a cut."""
    options = {**GRID, "allocation": (allocation,)}
    return [
        picks
        for picks in candidates(found)
        if all(option in options[slot] for slot, option in picks.items() if slot in options)
    ]


def families(found: Space) -> dict[str, list[Picks]]:
    """Family -> what changes by it alone, with every recovery."""
    alone: dict[str, list[Picks]] = {slot: [] for slot in (*STRUCTURE, "numbers")}
    for picks in candidates(found):
        changed = [slot for slot in alone if picks.get(slot, NONE) not in (NONE, FLOATS)]
        if len(changed) == 1:
            alone[changed[0]].append(picks)
    return {f"{name}{ALONE}": own for name, own in alone.items() if own}


def ours(ground: Ground, name: str, *, seed: int, trials: int) -> Cells:
    """Our own search, as `optimize` runs it."""
    job = ground.job_of(name)
    asked = Asked(Search(trials=trials, seed=seed), {"model": ground.folder.name}, samples=True)
    first = recipes_to_try(None, ground.original.graph, job.goal.minimise)
    explore(job, ground.bench, ground.original, ground.free, first, asked)
    return _cells(job)


def listed(ground: Ground, name: str, found: Space, picks: list[Picks]) -> Cells:
    """One candidate after the other; what loses more than is allowed is not exported, as no volume comes of it."""
    job = ground.job_of(name, forgetful=True)
    for one in picks:
        recipe = recipe_of(one)
        try:
            _, drops = screened(job, ground.bench, ground.original, recipe)
        except (PlanError, MetricError):
            continue
        if lost(drops) <= 1:
            only = found.served(one)
            attempt(job, ground.bench, ground.original, ground.free, recipe, only=only, hopeless=0.0)
    return _cells(job)


def shuffled(picks: list[Picks], seed: int, most: int | None = None) -> list[Picks]:
    """Another order of the same, or the first `most` of it."""
    own = list(picks)
    random.Random(seed).shuffle(own)
    return own[:most]


def _cells(job: Job) -> Cells:
    assert isinstance(job.held, Cells)
    return job.held


def strategies(
    ground: Ground, *, seeds: int, trials: int, drawn: int, most: int
) -> Iterator[tuple[str, int, Callable[[Path], Cells]]]:
    """(name, seed, run) of each, dearest knowledge first: the grid, ours, random search, the families.

    Random search draws `drawn` candidates once and sees them in another order with each seed; families see `most`.
    """
    found = space(ground)
    for seed in range(seeds):
        yield "ours", seed, lambda run, seed=seed: ours(ground, run.name, seed=seed, trials=trials)
    rivals: Mapping[str, list[Picks]] = {
        "grid": grid(found, "measured"),
        "grid of even cuts": grid(found, "uniform"),
        "random": shuffled(candidates(found), 0, drawn),
        **{name: shuffled(own, 0, most) for name, own in families(found).items()},
    }
    for name, picks in rivals.items():
        for seed in range(seeds):
            order: Any = shuffled(picks, seed + 1)
            yield name, seed, lambda run, order=order: listed(ground, run.name, found, order)
