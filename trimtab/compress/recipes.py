"""The recipes that are tried: a few by default, and the space that a search goes on in, as slots that are filled.

A slot is one decision; some are asked only after others (`Slot.when`). `recipe_of` makes a recipe of what was picked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from torch.fx import GraphModule

from trimtab.compress.blocks import DropBlocks, blocks
from trimtab.compress.distill import Distill
from trimtab.compress.dynamic import Dynamic
from trimtab.compress.factorize import Factorize
from trimtab.compress.finetune import FineTune
from trimtab.compress.lowrank import sites
from trimtab.compress.order import refuse_order
from trimtab.compress.prune import Prune
from trimtab.compress.qat import QAT
from trimtab.compress.quantize import Quantize
from trimtab.compress.weightonly import WeightOnly
from trimtab.core import Method, Recipe, Skip, Slot
from trimtab.graph.cost import macs_of_nodes
from trimtab.graph.dims import groups
from trimtab.measure.verdict import LIKELY, SURE

NONE = "-"
CUTS = (NONE, "0.125", "0.25", "0.375", "0.5", "0.625", "0.75")
# The cuts of the first recipes, gentle to bold.
FIRST_CUTS = ("0.25", "0.5", "0.75")
RANKS = (NONE, "0.7", "0.5", "0.35")
BLOCKS = (NONE, "1", "2")
EPOCHS = (NONE, "1", "2", "4")
SHORT = "1"
FLOATS = "floats"
AT_RUN_TIME = "int8 at run time"
# what makes numbers of fewer bits -> the precision that a runtime has to have
NUMBERS: dict[str, tuple[str, Method | None]] = {
    FLOATS: ("fp32", None),
    "int8": ("int8", Quantize()),
    "int8, learned rounding": ("int8", Quantize(rounding="learned")),
    "int8, trained": ("int8", QAT(epochs=2)),
    AT_RUN_TIME: ("int8d", Dynamic()),
    "weights in int8": ("int8w", WeightOnly("int8")),
    "weights in int4": ("int4w", WeightOnly("int4", rounding="gptq")),
    "weights in nf4": ("nf4w", WeightOnly("nf4", rounding="gptq")),
    "weights in fp16": ("fp16", WeightOnly("fp16")),
}
FOR_LINEAR = ("int8d", "int8w", "int4w")
LINEAR_SHARE = 0.5
# What is smaller and hardly faster, so that only the goal SIZE asks for it; and the numbers that it begins with.
FOR_SIZE, SIZE = ("nf4w", "fp16"), "size_bytes"
SMALL, SMALLEST = "weights in int8", "weights in nf4"
# Of slots: "runtime of" and then a precision, as each has runtimes of its own.
RUNTIME, PRECISION = "runtime of", "precision of floats"
RECOVERY = "epochs of recovery"
# The slots that take something away; what they lose may be recovered by training.
STRUCTURE = ("channels cut", "low rank", "blocks dropped")


@dataclass(frozen=True)
class Space:
    """The slots, in the order in which they are filled, and what is left out of them for this model and target.

    serving: precision -> the runtimes at hand that have it.
    """

    slots: tuple[Slot, ...]
    skipped: tuple[Skip, ...] = ()
    serving: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def served(self, picks: Mapping[str, str]) -> tuple[str, Any]:
        """The runtime and the precision that `picks` are served in."""
        precision = NUMBERS[picks.get("numbers", FLOATS)][0]
        names = [option for slot, option in picks.items() if slot.startswith(RUNTIME)]
        return (names or self.serving[precision])[0], picks.get(PRECISION, precision)

    def served_as(self, picks: Mapping[str, str], runtime: str, precision: str) -> dict[str, str] | None:
        """`picks` with what serves them changed; None if the space does not have it."""
        changed = {slot: option for slot, option in picks.items() if slot != PRECISION}
        changed |= {slot: runtime for slot in picks if slot.startswith(RUNTIME)}
        named = {slot.name: slot for slot in self.slots}
        if PRECISION in named and named[PRECISION].asked(changed):
            changed[PRECISION] = precision
        there = all(option in named[slot].options for slot, option in changed.items())
        return changed if there and self.served(changed) == (runtime, precision) else None

    def rows(self) -> list[dict[str, Any]]:
        """One row for each slot, for people."""
        return [
            {
                "decision": slot.name,
                "options": ", ".join(slot.options),
                "asked": " or ".join(f"{name} is {_briefly(options)}" for name, options in slot.when) or "always",
            }
            for slot in self.slots
        ]


def _briefly(options: tuple[str, ...]) -> str:
    return ", ".join(options) if len(options) < 3 else f"{options[0]} ... {options[-1]}"


def recipes_to_try(asked: tuple[Recipe, ...] | None, graph: GraphModule, minimise: str) -> tuple[Recipe, ...]:
    """Those that were asked for, else those of the first picks for this graph and what is minimised.

    Raises:
        PlanError: the order of one cannot work.
    """
    for recipe in asked or ():
        refuse_order(recipe)
    return tuple(map(recipe_of, first_picks(graph, minimise))) if asked is None else asked


def first_picks(graph: GraphModule, minimise: str) -> tuple[dict[str, str], ...]:
    """The default picks for this graph and what is minimised."""
    return default_picks(minimise, linear=mostly_linear(graph), residual=bool(blocks(graph)[0]))


def default_picks(minimise: str, *, linear: bool, residual: bool) -> tuple[dict[str, str], ...]:
    """The picks that come first for what is minimised: those in few bits, those without training, gentle cuts first.

    Channels go by "obs", which re-solves the layers that read them (docs/benchmarks/prune_quality.md): where there is a
    residual stream, from where the outputs move least, which spares it; from a chain of layers evenly, which hardly
    loses more there and is faster (docs/decisions/0017). Most recipes are left out by what others showed (`settled`).
    Integers are what makes models faster, of linear layers also with ranges that are found at run time; where bytes
    count, weights alone lose less in as few bits, or have fewer.

    linear: whether most of the model is linear layers, as `mostly_linear` tells. residual: whether it has residual
    blocks.
    """
    alone, with_cuts = ("int8", AT_RUN_TIME) if linear else ("int8",), ("int8", FLOATS)
    spread = "measured" if residual else "uniform"
    if minimise == SIZE:
        alone, with_cuts = (SMALL, SMALLEST), (SMALLEST, SMALL)
    stems = [
        {"channels cut": cut, "allocation": spread, RECOVERY: epochs, "numbers": numbers}
        for numbers, epochs, cut in product(with_cuts, (NONE, "2"), FIRST_CUTS)
    ]
    return (*({"numbers": numbers} for numbers in alone), *stems)


@dataclass(frozen=True)
class Known:
    """What is known of a recipe that was tried: its chance to pass, and whether it gains for sure."""

    picks: Mapping[str, str]
    chance: float
    gains: bool


def settled(picks: Mapping[str, str], known: Sequence[Known]) -> str | None:
    """Why one of the first recipes is left out by what others of them showed; None if it is to be tried.

    Either one that takes no less away keeps the quality for sure, and gains (integers stand for floats where they
    alone gain, too); or one that takes no more away, and trains no less, is not likely to keep it (8 bits take nothing
    away where they alone keep it for sure); or its numbers alone gain nothing.
    """
    integers_gain = any(one.gains for one in known if set(one.picks) == {"numbers"})
    alone = {one.picks["numbers"]: one.chance for one in known if set(one.picks) == {"numbers"}}
    free = (FLOATS, *(numbers for numbers, chance in alone.items() if chance >= SURE and numbers != SMALLEST))
    for other in known:
        name = recipe_of(other.picks).name
        comparable = integers_gain or other.picks["numbers"] == picks["numbers"]
        if comparable and other.gains and other.chance >= SURE and _no_less_taken(other.picks, picks):
            return f"{name} takes no less away, gains, and keeps the quality with a chance of {other.chance:.2f}"
        no_more = _no_less_taken(picks, other.picks, free)
        if other.chance < LIKELY and no_more and _trained(other.picks) >= _trained(picks):
            return f"{name} takes no more away, and keeps the quality with a chance of {other.chance:.2f} only"
        if other.picks == {"numbers": picks["numbers"]} and other.chance >= LIKELY and not other.gains:
            return f"{name} alone gains nothing for sure"
    return None


def _no_less_taken(more: Mapping[str, str], less: Mapping[str, str], free: Sequence[str] = (FLOATS,)) -> bool:
    """Whether the first takes as much away as the second, or more, both in channels and in bits.

    Numbers of two kinds in fewer bits lose in different ways: only weights in 4 bits surely take more than in 8.
    free: the numbers that take nothing away.
    """
    cuts = [CUTS.index(picks.get("channels cut", NONE)) for picks in (more, less)]
    numbers = more["numbers"], less["numbers"]
    fewer_bits = numbers[1] in (*free, numbers[0]) or numbers == (SMALLEST, SMALL)
    return cuts[0] >= cuts[1] and fewer_bits


def _trained(picks: Mapping[str, str]) -> int:
    return EPOCHS.index(picks.get(RECOVERY, NONE))


def space_of(graph: GraphModule, serving: Mapping[str, tuple[str, ...]], *, minimise: str) -> Space:
    """What can be done to `graph`, and in which of the runtimes at hand; `serving`: precision -> those that have it.

    The slots never depend on data, so that every process of a shared search has the same.
    """
    skipped: list[Skip] = []

    def possible(name: str, found: Collection[Any], why: str) -> bool:
        if not found:
            skipped.append(Skip(name, why))
        return bool(found)

    slots: list[Slot] = []
    cut = possible("channels cut", groups(graph).cuttable, "no channels can go")
    if cut:
        slots += [
            Slot("channels cut", CUTS, ordered=True),
            Slot("allocation", ("measured", "uniform"), when=(("channels cut", CUTS[1:]),)),
        ]
    thin = possible("low rank", sites(graph, "channel")[0], "no layer becomes cheaper as two")
    if thin:
        slots.append(Slot("low rank", RANKS, ordered=True))
    if cut and thin:
        # Asked where both are done; a slot is asked at any of its conditions, so it hangs on the later one alone.
        slots.append(Slot("order", ("cut first", "low rank first"), when=(("low rank", RANKS[1:]),)))
    if possible("blocks dropped", blocks(graph)[0], "the model has no residual block"):
        slots.append(Slot("blocks dropped", BLOCKS, ordered=True))
    changed = tuple((slot.name, slot.options[1:]) for slot in slots if slot.name in STRUCTURE)
    if changed:
        slots.append(Slot(RECOVERY, EPOCHS, ordered=True, when=changed))
    numbers, left_out = _numbers(graph, serving, minimise)
    return Space((*slots, Slot("numbers", numbers), *_serving(numbers, serving)), (*skipped, *left_out), serving)


def _serving(numbers: tuple[str, ...], serving: Mapping[str, tuple[str, ...]]) -> list[Slot]:
    """Where there is a choice: the runtime of each kind of numbers, and the precision of what stays in floats."""
    slots: list[Slot] = []
    for precision in dict.fromkeys(NUMBERS[name][0] for name in numbers):
        own = tuple(name for name in numbers if NUMBERS[name][0] == precision)
        if len(runtimes := serving[precision]) > 1:
            kind = FLOATS if own == (FLOATS,) else precision
            slots.append(Slot(f"{RUNTIME} {kind}", runtimes, when=(("numbers", own),)))
    if both := tuple(name for name in serving["fp32"] if name in serving.get("bf16", ())):
        chosen = (f"{RUNTIME} {FLOATS}", both) if len(serving["fp32"]) > 1 else ("numbers", (FLOATS,))
        slots.append(Slot(PRECISION, ("fp32", "bf16"), when=(chosen,)))
    return slots


def _numbers(graph: GraphModule, serving: Collection[str], minimise: str) -> tuple[tuple[str, ...], list[Skip]]:
    linear = mostly_linear(graph)
    kept, skipped = [], []
    for name, (precision, _) in NUMBERS.items():
        if precision not in serving:
            skipped.append(Skip(name, f"no runtime at hand has {precision}"))
        elif precision in FOR_SIZE and minimise != SIZE:
            skipped.append(Skip(name, f"it makes files smaller and hardly anything faster, and the goal is {minimise}"))
        elif minimise != SIZE and precision in FOR_LINEAR and not linear:
            skipped.append(Skip(name, "it is for linear layers, which are less than half of this model"))
        else:
            kept.append(name)
    return tuple(kept), skipped


def mostly_linear(graph: GraphModule) -> bool:
    """Whether at least half of the multiply-accumulates are those of linear layers."""
    macs = macs_of_nodes(graph)
    targets = {node.name: str(node.target) for node in graph.graph.nodes}
    linear = sum(own for node, own in macs.items() if "linear" in targets[node] or "mm" in targets[node])
    return linear >= LINEAR_SHARE * sum(macs.values())


def recipe_of(picks: Mapping[str, str]) -> Recipe:
    """The recipe that `picks` (slot -> option) stand for.

    >>> recipe_of({"channels cut": "0.5", "epochs of recovery": "2", "numbers": "int8"}).name
    'prune .5 by obs + distill 2 epochs + int8'
    """
    methods: list[Method] = []
    if (ratio := picks.get("channels cut", NONE)) != NONE:
        allocation: Any = picks.get("allocation", "uniform")
        methods.append(Prune(ratio=float(ratio), importance="obs", allocation=allocation))
    if (share := picks.get("low rank", NONE)) != NONE:
        thinner = Factorize(macs=float(share), weighted=True)
        methods.insert(0 if picks.get("order") == "low rank first" else len(methods), thinner)
    if (num := picks.get("blocks dropped", NONE)) != NONE:
        methods.insert(0, DropBlocks(num=int(num)))
    if methods and (epochs := picks.get(RECOVERY, NONE)) != NONE:
        methods.append(Distill(epochs=int(epochs)))
    method = NUMBERS[picks.get("numbers", FLOATS)][1]
    return Recipe((*methods, *((method,) if method else ())))


def cheaper_first(recipe: Recipe, *, eta: float) -> tuple[Recipe, ...]:
    """What is measured before a recipe that learns: without recovery, then after a short one, if it learns long.

    eta: from how many times the short one on; before others the look would cost much of the whole.

    >>> [one.name for one in cheaper_first(recipe_of({"channels cut": "0.5", "epochs of recovery": "4"}), eta=3)]
    ['prune .5 by obs', 'prune .5 by obs + distill 1 epoch']
    """
    learning = next((at for at, one in enumerate(recipe.methods) if isinstance(one, Distill | FineTune)), None)
    if learning is None:
        return ()
    cut: tuple[Method, ...] = recipe.methods[:learning]
    short = Distill(epochs=int(SHORT))
    long = getattr(recipe.methods[learning], "epochs", 0) >= eta * short.epochs
    return (Recipe(cut), *((Recipe((*cut, short)),) if long else ()))
