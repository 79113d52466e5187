"""Low rank: a layer becomes two thinner ones, first into r channels, then out of them.

A linear layer or a convolution "by channel": W = U V by singular value decomposition (Denton et al. 2014), where V has
the kernel and U is 1 x 1; a convolution "by space": k x 1, then 1 x k (Jaderberg et al. 2014). By `weighted` the error
of the outputs is least and not that of the weights: with X'X = S S' the decomposition is of W S (Zhang et al. 2016;
Wang et al., "SVD-LLM", 2024). Differs: what a layer with a bias sees is centred first, and the bias makes up for the
mean of what is lost; by space, S is that of the columns, which is exact where neighbouring columns are not correlated.
Ranks by `macs` are those that lose least, summed over layers as shares of each layer's energy, for one price of a MAC.

Only where it makes the layer cheaper: r (inputs + outputs) < inputs x outputs. The result is compared with the original
that has the products for weights. Cost: a decomposition of each layer; by `weighted` a pass over the samples.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.fx import GraphModule

from trimtab.compress.calibration import MAX_FEATURES, batches, calibration, grams
from trimtab.compress.lowrank import Kind, Problem, Site, decomposed, features_of, put_in_, sites
from trimtab.compress.prune import as_graph
from trimtab.compress.tables import table
from trimtab.core import Skip, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import without_unread_
from trimtab.graph.compare import CHECK_BATCH, disagreement
from trimtab.graph.cost import macs
from trimtab.graph.shapes import example_inputs, refresh_shapes_

PRICE_STEPS = 60


@dataclass(frozen=True)
class Factor:
    """A layer that becomes two. energy: the share of its squared singular values that stays."""

    node: str
    weight: str
    shape: tuple[int, ...]
    kind: Kind
    rank: int
    full_rank: int
    energy: float
    macs_before: int
    macs_after: int


@dataclass(frozen=True)
class FactorizePlan:
    """Which layers become two; `samples` of the train split are used. macs: of the whole before."""

    factors: tuple[Factor, ...]
    skipped: tuple[Skip, ...]
    macs: int
    samples: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """One row per layer."""
        return [
            {
                "weight": one.weight,
                "kind": one.kind,
                "rank": one.rank,
                "of": one.full_rank,
                "energy": round(one.energy, 4),
                "macs before": one.macs_before,
                "macs after": one.macs_after,
            }
            for one in self.factors
        ]

    def __str__(self) -> str:
        """The rows as a table, what is left of the whole, and what was left alone."""
        after = self.macs - sum(one.macs_before - one.macs_after for one in self.factors)
        left = f"MACs of one sample {self.macs:,} to {after:,} ({after / self.macs:.1%} left)"
        return "\n".join([table(self.rows()), left, table([], self.skipped)]).rstrip()


@dataclass(frozen=True)
class Factorize:
    """Make two thinner layers of one, wherever that is cheaper.

    Args:
        energy: the share of each layer's squared singular values that stays; give it, or `macs`, or `ranks` alone.
        macs: the share of the whole graph's multiply-accumulates that is left.
        ranks: (weight, rank) of single layers.
        weighted: by the outputs on data instead of the weights.
        conv: "channel" (k x k, then 1 x 1) or "space" (k x 1, then 1 x k; two-dimensional kernels only).
        step: ranks are multiples of it.
        samples: of the train split, for `weighted`.

    >>> Factorize(energy=0.9).name, Factorize(macs=0.7, weighted=True).name
    ('low rank energy .9', 'low rank macs .7 weighted')
    """

    energy: float | None = None
    macs: float | None = None
    ranks: tuple[tuple[str, int], ...] = ()
    weighted: bool = False
    conv: Literal["channel", "space"] = "channel"
    step: int = 8
    samples: int = 256

    def __post_init__(self) -> None:
        given = [name for name in ("energy", "macs") if getattr(self, name) is not None]
        if len(given) + bool(self.ranks) != 1:
            raise PlanError(
                "Factorize needs one of energy, macs and ranks, e.g. Factorize(energy=0.9); got "
                f"energy={self.energy}, macs={self.macs}, ranks={self.ranks}."
            )
        for name in given:
            if not 0 < getattr(self, name) < 1:
                raise PlanError(
                    f"Factorize({name}={getattr(self, name):g}) is no share: give 0 < {name} < 1, e.g. 0.9."
                )
        if self.conv not in ("channel", "space") or self.step < 1:
            raise PlanError(
                f"Factorize(conv={self.conv!r}, step={self.step}): conv is 'channel' or 'space', step is 1 or more."
            )

    @property
    def name(self) -> str:
        how = [f"{name} {getattr(self, name):g}" for name in ("energy", "macs") if getattr(self, name) is not None]
        words = f"low rank {how[0].replace(' 0.', ' .') if how else f'of {len(self.ranks)} layers'}"
        words += " by space" if self.conv == "space" else ""
        return words + (" weighted" if self.weighted else "")

    def plan(self, graph: GraphModule | nn.Module, task: Task | None = None) -> FactorizePlan:
        """Choose the ranks.

        Args:
            graph: captured; or a module, which is captured with inputs of the task's select split.
            task: not needed for a graph, unless `weighted`.

        Raises:
            PlanError: no layer becomes cheaper; the budget cannot be met; a rank that was asked for is over the full
                one or makes its layer dearer; weights are not finite, or there are too few samples.
        """
        graph = as_graph(graph, task, method="Factorize")
        layers, skipped = sites(graph, self.conv)
        self._refuse_wrong_ranks(layers)
        problems, num = self._problems(graph, layers.values(), task, self.samples)
        if self.ranks:
            asked = dict(self.ranks)
            chosen = {problem.weight: asked.get(problem.weight) for problem in problems}
            why = dict.fromkeys(chosen, "ranks does not name it")
        elif self.energy is not None:
            chosen = {problem.weight: problem.rank_for(self.energy, self.step) for problem in problems}
            why = {p.weight: p.too_dear(self.energy, self.step) for p in problems}
        else:
            chosen = self._within_budget(graph, problems)
            why = dict.fromkeys(chosen, "the budget is met best where it stays whole")
        factors = [_factor(problem, rank) for problem in problems if (rank := chosen[problem.weight]) is not None]
        skipped += [Skip(name, why[name]) for name, rank in chosen.items() if rank is None]
        if not factors:
            reasons = "".join(f"\n  {skip.what}: {skip.why}" for skip in skipped)
            raise PlanError(f"No layer becomes cheaper by low rank: ask for less energy or a smaller step.{reasons}")
        return FactorizePlan(tuple(factors), tuple(skipped), macs(graph), num)

    def apply(self, graph: GraphModule, plan: FactorizePlan, tools: Tools | None = None) -> GraphModule:
        """A copy of `graph` with the planned layers in two, compared with the graph of their products.

        Raises:
            PlanError: the plan is for another graph, there is no task for its samples, or the comparison fails.
        """
        known, _ = sites(graph, self.conv)
        for one in plan.factors:
            site = known.get(one.weight)
            if site is None or (site.layer.node, site.shape, site.kind) != (one.node, tuple(one.shape), one.kind):
                raise PlanError(
                    f"This plan was made for another graph: {one.weight} should be a {one.kind} layer "
                    f"{tuple(one.shape)} at {one.node} and is {site.shape if site else 'none'}. Plan on the graph "
                    "that gets low rank."
                )
        chosen = [known[one.weight] for one in plan.factors]
        problems, _ = self._problems(graph, chosen, tools.task if tools else None, plan.samples)
        reference, result = copy.deepcopy(graph), copy.deepcopy(graph)
        for one, problem in zip(plan.factors, problems, strict=True):
            put_in_(reference, result, problem, one.rank)
        result.graph.eliminate_dead_code()
        result.recompile()
        refresh_shapes_(without_unread_(result))
        if (wrong := disagreement(reference, result, example_inputs(graph, batch_size=CHECK_BATCH))) is not None:
            raise PlanError(f"The two thin layers are not their product: {wrong}. Report the model.")
        return result

    def _refuse_wrong_ranks(self, layers: dict[str, Site]) -> None:
        for name, rank in self.ranks:
            if name not in layers:
                raise PlanError(
                    f"Factorize(ranks=...) names {name!r}, which is no layer that low rank fits; these are: "
                    f"{', '.join(layers) or 'none'}."
                )
            site = layers[name]
            if not 1 <= rank <= site.full_rank:
                raise PlanError(
                    f"Factorize(ranks=...): rank {rank} of {name!r} is over its full rank, {site.full_rank} of "
                    f"{site.shape}. Give 1 ... {site.dearest}, where it saves something."
                )
            if rank > site.dearest:
                raise PlanError(
                    f"Factorize(ranks=...): rank {rank} makes {name!r} dearer, {rank * site.macs_of_a_rank:,} MACs "
                    f"where it has {site.macs:,}. Give a rank of {site.dearest} or less, or leave it out."
                )

    def _problems(
        self, graph: GraphModule, layers: Iterable[Site], task: Task | None, samples: int
    ) -> tuple[list[Problem], int]:
        found = list(layers)
        seen: dict[str, Tensor] = {}
        num = 0
        if self.weighted:
            data = calibration(task, samples, purpose=f"Factorize ({self.name})")
            fits = [site.layer for site in found if features_of(graph, site) <= MAX_FEATURES]
            seen, num = grams(graph, fits, batches(data)), len(data)
        return [decomposed(graph, site, seen.get(site.layer.node)) for site in found], num

    def _within_budget(self, graph: GraphModule, problems: list[Problem]) -> dict[str, int | None]:
        """The ranks that lose the least energy for the MACs that may be left."""
        total = macs(graph)
        spare = self._allowed(total) - (total - sum(problem.macs for problem in problems))

        def at(price: float) -> list[tuple[int | None, int]]:
            return [problem.cheapest(price, self.step) for problem in problems]

        low, high = 0.0, 1e6 / total
        if sum(cost for _, cost in at(high)) > spare:
            least = (total - sum(p.macs for p in problems) + sum(cost for _, cost in at(high))) / total
            raise PlanError(
                f"Factorize(macs={self.macs:g}) cannot be met: with the least ranks {least:.3f} of the MACs are left. "
                "Give more, a smaller step, or Prune first."
            )
        for _ in range(PRICE_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if sum(cost for _, cost in at(middle)) <= spare else (middle, high)
        return {problem.weight: rank for problem, (rank, _) in zip(problems, at(high), strict=True)}

    def _allowed(self, total: int) -> float:
        assert self.macs is not None
        return self.macs * total


def _factor(problem: Problem, rank: int) -> Factor:
    site = problem.site
    costs = site.macs, rank * site.macs_of_a_rank
    kept = problem.kept(rank)
    return Factor(site.layer.node, problem.weight, site.shape, site.kind, rank, site.full_rank, kept, *costs)
