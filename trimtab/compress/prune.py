"""Structured pruning: whole channels, heads and neurons go, so the model is smaller and faster in every runtime.

Which slices belong to one channel is read from the graph (`graph/dims.py`). How much a channel matters says one of six
measures (`importance.py`), how many go from each group `ratio`, one ranking over all groups, or a budget
(`allocate.py`); and the layers that read what went can be re-solved so that they give what they gave (`compensate.py`).

Cost: planning is one pass over the weights, or over the calibration samples; applying checks the cut by four forward
passes in float64 on three inputs, and compensates in one pass of two graphs over the samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.fx import GraphModule

from trimtab.compress.allocate import Budget, Cost, choice, knapsack, ranked_together
from trimtab.compress.calibration import DATA_FREE, calibration, layer_of, require_floats
from trimtab.compress.compensate import compensate_, solvable
from trimtab.compress.factors import Heads, disjoint
from trimtab.compress.importance import MEASURES, NEED_DATA, NO_VALUES, Scores, importances
from trimtab.compress.layertime import LayerTimes
from trimtab.compress.parts import Parts
from trimtab.compress.tables import table
from trimtab.core import Skip, Split, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.atoms import merged_masks
from trimtab.graph.capture import capture
from trimtab.graph.cost import Contraction, Gone, Product, Sizes, contractions, parameters
from trimtab.graph.dims import Group, Role, groups
from trimtab.graph.fold import fold_weights
from trimtab.graph.surgery import cut

FOLDED = "it is standardised or scaled over what goes, so it becomes a plain weight and trains as one from here on"
Allocation = Literal["uniform", "global", "measured"]
Importance = Literal["magnitude", "taylor", "bn_scale", "activation", "fisher", "obs"]


@dataclass(frozen=True)
class Slice:
    """A dim of a parameter or buffer, before and after; what it is used for as in `graph.dims.Use`."""

    parameter: str
    dim: int
    before: int
    after: int
    role: Role = "follower"


@dataclass(frozen=True)
class Cut:
    """What goes from one group: `kept` are the channels that stay, out of `size`.

    importance_lost: the share of the group's importance that goes, by the measure `by`. What is freed counts beside
    the cuts that stand before it in the plan, so that it adds up: numbers in parameters, multiply-accumulates of one
    sample, and, if they were measured, milliseconds of the contractions in eager PyTorch with one thread.
    """

    group: str
    size: int
    kept: tuple[int, ...]
    slices: tuple[Slice, ...]
    importance_lost: float
    by: str
    params_freed: int
    macs_freed: int
    ms_freed: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class PrunePlan:
    """Which channels stay in which group, which layers are re-solved on `samples`, and what was left alone.

    params, macs and ms are the original's. through_means: nothing could be cut but dims that a mean runs over, which
    goes on dividing by as many channels as before.
    """

    cuts: tuple[Cut, ...]
    skipped: tuple[Skip, ...]
    params: int
    macs: int
    compensated: tuple[str, ...] = ()
    samples: int = 0
    ms: float | None = field(default=None, compare=False)
    through_means: bool = False

    def rows(self) -> list[dict[str, Any]]:
        """One row per group."""
        return [
            {
                "group": one.group,
                "made by": _names(one, ("producer", "scale")),
                "read by": _names(one, ("consumer",)),
                "channels before": one.slices[0].before,
                "channels after": one.slices[0].after,
                "importance lost": round(one.importance_lost, 4),
                "importance by": one.by,
                "params freed": one.params_freed,
                "macs freed": one.macs_freed,
                "ms freed": None if one.ms_freed is None else round(one.ms_freed, 4),
            }
            for one in self.cuts
        ]

    def __str__(self) -> str:
        """The rows as a table, what is left of the whole, and what could not be cut and why."""
        params = self.params - sum(one.params_freed for one in self.cuts)
        macs = self.macs - sum(one.macs_freed for one in self.cuts)
        lines = [
            table(self.rows()),
            f"parameters {self.params:,} to {params:,} ({params / self.params:.1%} left)",
            f"MACs of one sample {self.macs:,} to {macs:,} ({macs / self.macs:.1%} left)",
        ]
        if self.ms:
            ms = self.ms - sum(one.ms_freed or 0.0 for one in self.cuts)
            lines.append(f"contractions, eager, one thread, one sample: {self.ms:.3g} ms to {ms:.3g} ms (measured)")
        if self.compensated:
            lines.append(f"re-solved on {self.samples} samples: {', '.join(self.compensated)}")
        return "\n".join([*lines, table([], self.skipped)]).rstrip()


@dataclass(frozen=True)
class Prune:
    """Cut channels: the share `ratio` of every group, or of all, or as many as a budget asks for.

    Args:
        ratio: the share that goes, between 0 and 1; give it or a budget.
        importance: which channels matter; `importance.py` tells of each. `bn_scale` falls back to magnitude, and
            the plan says so.
        allocation: "uniform" cuts every group by `ratio`; "global" the least channels of all groups; "measured" frees
            as many multiply-adds as uniform would, where the outputs move least, and needs importance="obs".
        budget: what may stay of the original's cost; the widths that lose least are found: by "obs" those that move
            the outputs least, as measured on the task's select split.
        round_to: kept widths become multiples of it in groups at least twice as wide, because runtimes work in such
            blocks.
        keep_min: a plan that would keep fewer channels of a group is refused.
        max_ratio: the most that goes from one group, if not all are cut alike.
        heads: where several groups are factors of one dim, as heads and their width: "whole" cuts the outermost,
            "inside" the innermost, "auto" whole heads if at least one goes.
        samples: of the train split, for importance and compensation.
        compensate: re-solve the layers that read what went; by default with "obs" alone, which counts on it.
        timed: measure milliseconds for the plan's table.

    >>> Prune(0.5).name, Prune(budget=Budget(macs=0.4), importance="taylor").name
    ('prune .5', 'prune to .4 macs by taylor')
    """

    ratio: float | None = None
    importance: Importance = "magnitude"
    allocation: Allocation = "uniform"
    budget: Budget | None = None
    round_to: int = 8
    keep_min: int = 1
    max_ratio: float = 0.9
    heads: Heads = "auto"
    samples: int = 256
    compensate: bool | None = None
    timed: bool = False

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.budget is None):
            raise PlanError(
                f"Prune needs one of ratio and budget; got ratio={self.ratio}, budget={self.budget}. "
                "Give Prune(0.5), or Prune(budget=Budget(macs=0.5))."
            )
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise PlanError(
                f"Prune(ratio={self.ratio:g}) is not a share of channels to cut: give 0 < ratio < 1, e.g. 0.5."
            )
        _require_one_of("importance", self.importance, MEASURES)
        _require_one_of("allocation", self.allocation, get_args(Allocation))
        _require_one_of("heads", self.heads, ("auto", "whole", "inside"))
        if self.budget is not None and self.allocation != "uniform":
            raise PlanError(
                f"Prune(budget=..., allocation={self.allocation!r}): a budget sets the widths itself. "
                "Leave allocation out."
            )
        if self.allocation == "measured" and self.importance != "obs":
            raise PlanError(
                f"Prune(allocation='measured', importance={self.importance!r}): how far the outputs move is measured "
                "with importance='obs' alone. Give that, or allocation='global'."
            )
        if self.round_to < 1 or self.keep_min < 1:
            raise PlanError(
                f"Prune needs round_to >= 1 and keep_min >= 1; got {self.round_to} and {self.keep_min}. "
                "round_to=1 keeps any width."
            )
        if not 0 < self.max_ratio < 1 or (self.allocation != "uniform" and self.ratio and self.ratio > self.max_ratio):
            raise PlanError(
                f"Prune(max_ratio={self.max_ratio:g}) is the most that goes from one group: give a share of at least "
                f"the ratio ({self.ratio}) and below 1, e.g. 0.9."
            )

    @property
    def name(self) -> str:
        """Name for people, e.g. in a recipe."""
        if self.budget is not None:
            words = "prune to " + ", ".join(f"{share:g} {what}" for what, share in self.budget.limits().items())
        else:
            words = f"prune {self.ratio:g}" + {"global": " globally", "measured": " as measured"}.get(
                self.allocation, ""
            )
        words += "" if self.importance == "magnitude" or self.allocation == "measured" else f" by {self.importance}"
        words += " compensated" if self._compensates and self.importance != "obs" else ""
        return words.replace(" 0.", " .")

    def plan(self, graph: GraphModule | nn.Module, task: Task | None = None) -> PrunePlan:
        """Choose the channels that stay.

        Args:
            graph: captured; or a module, which is captured with inputs of the task's select split.
            task: not needed for a graph by magnitude or bn_scale without compensation.

        Raises:
            PlanError: nothing can be cut, too few channels would stay, the budget cannot be met, weights or importance
                are not finite, or there are too few samples.
        """
        graph, folded = fold_weights(as_graph(graph, task, method="Prune"))
        found = groups(graph)
        through_means = not found.cuttable
        found = groups(graph, means=True) if through_means else found
        chosen, skipped = disjoint(found.cuttable, self._would_be_cut, self.heads)
        data = self._data(task)
        curves = self.budget is not None or self.allocation == "measured"
        scores = importances(graph, chosen, self.importance, task=task, data=data, curves=curves)
        sizes = Sizes(graph, chosen)
        kept = self._widths(sizes, chosen, scores)
        whole = [group for group in chosen if kept[group.name] == group.size]
        skipped += [Skip(f"{group.name} ({group.size})", self._why_whole()) for group in whole]
        left = [group for group in chosen if group not in whole]
        skips = (*found.skipped, *skipped, *(Skip(f"how {name} is computed", FOLDED) for name in folded))
        if not left:
            reasons = "".join(f"\n  {skip.what}: {skip.why}" for skip in skips)
            raise PlanError(
                f"Nothing can be cut from this graph by {self.name!r}. Raise the ratio, lower round_to, "
                f"or use a method that does not cut channels.{reasons}"
            )
        if any(scores[group.name].by == NO_VALUES for group in left):
            skips += (Skip("the choice of channels", "the weights have no values, so only the widths mean something"),)
        solved, unsolved = solvable(graph, left) if self._compensates else ((), ())
        draft = [_kept_channels(scores[group.name].values, kept[group.name]) for group in left]
        return _priced(
            sizes,
            left,
            draft,
            scores,
            PrunePlan((), (*skips, *unsolved), 0, 0, solved, self._num_samples(data), through_means=through_means),
            self.timed,
        )

    def apply(self, graph: GraphModule, plan: PrunePlan, tools: Tools | None = None) -> GraphModule:
        """A copy of `graph` without the channels that the plan leaves out; every cut is checked.

        Raises:
            PlanError: the plan is for another graph, the result is not the masked original, or there is no task to
                compensate on.
        """
        graph, _ = fold_weights(graph)
        known = {group.name: group for group in groups(graph, means=plan.through_means).cuttable}
        sizes = {name: group.size for name, group in known.items()}
        wrong = [one for one in plan.cuts if sizes.get(one.group) != one.size]
        if wrong:
            listed = ", ".join(f"{w.group}: {w.size} planned, {sizes.get(w.group, 'none')} found" for w in wrong)
            raise PlanError(f"This plan was made for another graph ({listed}). Plan on the graph that you cut.")
        pruned = cut(graph, {one.group: one.kept for one in plan.cuts}, means=plan.through_means)
        if not plan.compensated:
            return pruned
        if tools is None or tools.task is None:
            raise PlanError(
                "Compensation re-solves weights on the task's data; got no task. Give Tools(task=...), or plan with "
                "compensate=False."
            )
        data = calibration(tools.task, plan.samples, purpose="Compensation")
        outputs = _kept_outputs(graph, plan, known)
        parts = Parts.of(tools, graph, data, plan)
        return compensate_(pruned, graph, data, plan.compensated, outputs=outputs, parts=parts)

    @property
    def _compensates(self) -> bool:
        return self.importance == "obs" if self.compensate is None else self.compensate

    def _data(self, task: Task | None) -> Split | None:
        if self.importance in NEED_DATA:
            return calibration(task, self.samples, purpose=f"Prune(importance={self.importance!r})", instead=DATA_FREE)
        return calibration(task, self.samples, purpose="Compensation") if self._compensates else None

    def _num_samples(self, data: Split | None) -> int:
        return len(data) if data is not None and self._compensates else 0

    def _why_whole(self) -> str:
        if self.ratio is None or self.allocation != "uniform":
            return "what it would lose is worth more elsewhere"
        return f"cutting {self.ratio:g} of it, rounded to a multiple of {self.round_to}, leaves it whole"

    def _widths(self, sizes: Sizes, chosen: list[Group], scores: dict[str, Scores]) -> dict[str, int]:
        """How many channels each group keeps."""
        if self.allocation == "global":
            return self._ranked(chosen, scores)
        alike = {} if self.ratio is None else {group.name: self._num_kept(group) for group in chosen}
        if self.budget is None and self.allocation == "uniform":
            return alike
        if self.budget is None:
            cost = _cost("macs", sizes)
            costs = [replace(cost, limit=cost.total({group.name: group.size - alike[group.name] for group in chosen}))]
        else:
            limits = self.budget.limits()
            costs = [
                replace(cost, limit=limits[cost.name] * cost.total({})) for cost in (_cost(n, sizes) for n in limits)
            ]
        choices = [
            choice(group.name, scores[group.name].values, self._allowed(group), scores[group.name].curve)
            for group in chosen
        ]
        return knapsack(choices, costs) if choices else {}

    def _ranked(self, chosen: list[Group], scores: dict[str, Scores]) -> dict[str, int]:
        assert self.ratio is not None
        values = {group.name: scores[group.name].values for group in chosen}
        wanted = ranked_together(values, self.ratio) if chosen else {}
        return {
            group.name: min(self._allowed(group), key=lambda width: (abs(width - wanted[group.name]), -width))
            for group in chosen
        }

    def _would_be_cut(self, group: Group) -> bool:
        if self.ratio is None or self.allocation != "uniform":
            return len(self._allowed(group)) > 1
        share = math.floor((1 - self.ratio) * group.size + 0.5)
        return self.keep_min <= share and self._num_kept(group) < group.size

    def _step(self, group: Group) -> int:
        # The width is what a runtime sees: a group may be a factor of it, e.g. in a grouped convolution.
        factor = math.gcd(*(use.place.indices_of_one for use in group.uses if use.role == "producer")) or 1
        return self.round_to // math.gcd(self.round_to, factor) if group.size * factor >= 2 * self.round_to else 1

    def _allowed(self, group: Group) -> list[int]:
        """The widths that a group may have; its own size always."""
        step = self._step(group)
        least = max(self.keep_min, math.ceil((1 - self.max_ratio) * group.size - 1e-9))
        return sorted({group.size, *range(math.ceil(least / step) * step, group.size, step)})

    def _num_kept(self, group: Group) -> int:
        assert self.ratio is not None
        step, share = self._step(group), (1 - self.ratio) * group.size
        if math.floor(share + 0.5) < self.keep_min:
            most = 1 - (self.keep_min - 0.5) / group.size
            mend = f"Use a ratio of at most {math.floor(most * 100) / 100:g}" if most >= 0.01 else "Lower keep_min"
            raise PlanError(
                f"Ratio {self.ratio:g} leaves {math.floor(share + 0.5)} of the {group.size} channels of {group.name}; "
                f"at least {self.keep_min} must stay. {mend}."
            )
        num_steps = max(math.floor(share / step + 0.5), math.ceil(self.keep_min / step))
        return min(num_steps * step, group.size)


def as_graph(model: GraphModule | nn.Module, task: Task | None, *, method: str) -> GraphModule:
    """`model` as one graph: captured with inputs of the task's select split if it is not one already.

    Raises:
        PlanError: it is not, and there is no task; or it holds integers.
    """
    if isinstance(model, GraphModule):
        require_floats(model, method)
        return model
    if task is None:
        raise PlanError(
            f"{method} plans on a captured graph; got a {type(model).__name__} and no task to capture it with. "
            "Capture it first: capture(model, inputs); or give plan(model, task)."
        )
    return capture(model, task.select.batch(slice(0, 2)).inputs)


def _require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        listed = ", ".join(repr(one) for one in known)
        raise PlanError(f"Prune({name}={value!r}) is not known; use {'one of ' if len(known) > 1 else ''}{listed}.")


def _cost(name: str, sizes: Sizes) -> Cost:
    """One of what a budget limits, without its limit."""
    if name == "macs":
        return Cost(name, contractions(sizes), lambda term, gone: float(term.macs(gone)), 0.0)
    if name == "params":
        return Cost(name, tuple(parameters(sizes).values()), lambda term, gone: float(term.after(gone)), 0.0)
    times = LayerTimes(sizes)
    return Cost(name, times.contractions, times.of, 0.0)


def _kept_channels(importance: Tensor, num_kept: int) -> tuple[int, ...]:
    ranked = importance.argsort(descending=True, stable=True)
    return tuple(sorted(ranked[:num_kept].tolist()))


def _names(one: Cut, roles: tuple[Role, ...]) -> str:
    return ", ".join(dict.fromkeys(part.parameter for part in one.slices if part.role in roles))


def _priced(
    sizes: Sizes,
    chosen: list[Group],
    kept: list[tuple[int, ...]],
    scores: dict[str, Scores],
    draft: PrunePlan,
    timed: bool,  # noqa: FBT001 - private
) -> PrunePlan:
    """The draft with its cuts, each with what it loses and frees beside those before it."""
    prices = _Prices(sizes, LayerTimes(sizes) if timed else None)
    cuts, gone = [], dict.fromkeys((group.name for group in chosen), 0)
    whole = before = prices.total(gone)
    for group, channels in zip(chosen, kept, strict=True):
        gone[group.name] = group.size - len(channels)
        after = prices.total(gone)
        params, macs = before[0] - after[0], before[1] - after[1]
        ms = None if before[2] is None or after[2] is None else before[2] - after[2]
        values = scores[group.name].values
        total = float(values.sum())
        lost = 1 - float(values[list(channels)].sum()) / total if total else 0.0
        slices = _slices(group, gone)
        cuts.append(Cut(group.name, group.size, channels, slices, lost, scores[group.name].by, params, macs, ms))
        before = after
    params, macs, ms = whole
    return replace(draft, cuts=tuple(cuts), params=params, macs=macs, ms=ms)


def _slices(group: Group, gone: Gone) -> tuple[Slice, ...]:
    return tuple(
        Slice(
            use.name,
            use.dim,
            use.place.width,
            use.place.width - use.place.indices_of_one * gone[group.name],
            use.role,
        )
        for use in group.uses
    )


class _Prices:
    """Parameters, multiply-accumulates and milliseconds of a graph with some channels gone."""

    def __init__(self, sizes: Sizes, times: LayerTimes | None) -> None:
        self._products: tuple[Product, ...] = tuple(parameters(sizes).values())
        self._contractions: tuple[Contraction, ...] = contractions(sizes)
        self._times = times

    def total(self, gone: Gone) -> tuple[int, int, float | None]:
        """All three; milliseconds if they are measured."""
        params = sum(product.after(gone) for product in self._products)
        macs = sum(one.macs(gone) for one in self._contractions)
        return params, macs, self._times.ms(gone) if self._times else None


def _kept_outputs(graph: GraphModule, plan: PrunePlan, known: dict[str, Group]) -> dict[str, Tensor]:
    """For each layer to re-solve, True at its outputs that are still there."""
    masks = merged_masks(
        ((use.name, use.dim), use.place, one.kept) for one in plan.cuts for use in known[one.group].uses
    )
    nodes = {node.name: node for node in graph.graph.nodes}
    layers = [layer_of(graph, nodes[name]) for name in plan.compensated]
    return {
        layer.weight: masks[layer.weight, layer.output_dim]
        for layer in layers
        if layer is not None and (layer.weight, layer.output_dim) in masks
    }
