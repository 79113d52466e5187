"""Which family of methods applies to which layers of a graph and why not, and what it might gain at best and at least.

Predictions, made from where the time is (`roofline.py`), by Amdahl's law: what a family does not touch stays as slow as
it is. They rank families and rule some out; what a model takes is measured in its runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import GraphModule, Node

from trimtab.compress.blocks import blocks
from trimtab.compress.lowrank import sites
from trimtab.compress.packing import fixed_layers
from trimtab.compress.prune import Prune, PrunePlan
from trimtab.compress.recipes import AT_RUN_TIME, BLOCKS, CUTS, FIRST_CUTS, RANKS, Space, space_of
from trimtab.compress.sharing import ShareBlocks
from trimtab.core import Quantity, Skip, Target
from trimtab.diagnose.roofline import Place
from trimtab.errors import PlanError
from trimtab.graph.cost import COUNTED, Sizes, contractions
from trimtab.graph.dims import groups
from trimtab.graph.fold import fold_weights
from trimtab.runtimes import RUNTIMES, supported
from trimtab.runtimes.formats import FORMATS

RATIOS = float(FIRST_CUTS[0]), float(FIRST_CUTS[-1])
RANKS_KEPT = (0.5, 0.25)
# What integer arithmetic may gain where multiplications bound: four times with dot products of bytes, else two.
BYTE_PRODUCTS = ("avx_vnni", "avx512_vnni", "amx_int8", "i8mm", "asimddp")
LINEAR = tuple(target for target in COUNTED if str(target).split(".")[1] in ("linear", "addmm", "mm", "matmul"))
# How many times as fast convolutions are whose weights ONNX Runtime unpacks at every call: measured on MobileNetV2.
UNPACKED = 0.4
Range = tuple[float, float]


@dataclass(frozen=True)
class Family:
    """What a family of methods could do: to which layers, why not to others, and how many times less time and size.

    why: why it does not apply at all, or what to know. unsearched: why the search does not try it; empty if it does.
    """

    name: str
    layers: tuple[str, ...] = ()
    skipped: tuple[Skip, ...] = ()
    latency: Range | None = None
    size: Range | None = None
    why: str = ""
    unsearched: str = ""


@dataclass(frozen=True)
class Whole:
    """The graph with the time and bytes of its operations, and where it will run."""

    graph: GraphModule
    places: Mapping[str, Place]
    target: Target
    features: Sequence[str]

    @property
    def ms(self) -> float:
        return sum(place.ms for place in self.places.values())

    @property
    def weight_bytes(self) -> int:
        return max(1, sum(parameter.numel() * parameter.element_size() for parameter in self.graph.parameters()))

    def faster(self, times: Mapping[str, float]) -> float:
        """How many times less time if the operations in `times` take so many times less."""
        left = sum(place.ms / times.get(place.node, 1.0) for place in self.places.values())
        return self.ms / left if left else 1.0

    def smaller(self, layers: Sequence[str], times: float) -> float:
        """How many times fewer bytes of weights if those of `layers` take so many times fewer."""
        own = sum(self.places[layer].weight_bytes for layer in layers if layer in self.places)
        return self.weight_bytes / (self.weight_bytes - own * (1 - 1 / times))


def families(
    graph: GraphModule,
    places: Sequence[Place],
    target: Target,
    features: Sequence[str],
    *,
    minimise: Quantity = "latency_ms",
) -> tuple[Family, ...]:
    """What each family could do to `graph`; one that refuses says why, and so does one that the search does not try.

    Args:
        graph: captured, with weights of 32 bits.
        places: its operations, from `roofline`.
        target: which runtimes are allowed.
        features: the processor's, from `stamp`.
        minimise: what the search would be for, as it does not try the same for each goal.
    """
    whole = Whole(graph, {place.node: place for place in places}, target, features)
    space = space_of(graph, _serving(target), minimise=minimise)
    found = (_tried(name, make, whole) for name, make in FAMILIES.items())
    return tuple(replace(one, unsearched=_unsearched(one.name, space)) for one in found)


def _unsearched(name: str, space: Space) -> str:
    """Why the search's space does not have a family, or nothing."""
    if name in BY_HAND:
        return BY_HAND[name]
    slot, options = IN_SPACE[name]
    if any(own.name == slot and set(options) & set(own.options) for own in space.slots):
        return ""
    return next(skip.why for skip in space.skipped if skip.what in (slot, *options))


def _serving(target: Target) -> dict[str, tuple[str, ...]]:
    """Precision -> the allowed runtimes that have it here."""
    able = {
        precision: tuple(name for name, why in _refusals(target, precision).items() if why is None)
        for precision in FORMATS
    }
    return {precision: names for precision, names in able.items() if names or precision == "fp32"}


def _refusals(target: Target, precision: Any) -> dict[str, str | None]:
    """Of each allowed runtime that a precision is known for: why it does not run here; None if it does."""
    allowed = target.runtimes or tuple(RUNTIMES)
    names = [name for name in FORMATS[precision] if name in allowed]
    return {name: RUNTIMES[name].missing() or supported(name, precision) for name in names}


def _tried(name: str, make: Callable[[Whole], Family], whole: Whole) -> Family:
    try:
        return make(whole)
    except PlanError as error:
        return Family(name, why=str(error).splitlines()[0])


def _prune(whole: Whole) -> Family:
    plans = list(_prune_plans(whole.graph))
    fewer = [_narrowed(whole.graph, plan) for plan in plans]
    # What lies between contractions is narrower as well, but for what reads or is read by what cannot be cut.
    everywhere = dict.fromkeys(whole.places, 1 / (1 - RATIOS[1])) | fewer[-1]
    gains = [whole.faster(times) for times in (*fewer, everywhere)]
    sizes = [plan.params / max(1, plan.params - sum(cut.params_freed for cut in plan.cuts)) for plan in plans]
    names = tuple(cut.group for cut in plans[-1].cuts)
    note = f"{RATIOS[0]:.0%} to {RATIOS[1]:.0%} of each group's channels; quality is what decides how many"
    return Family("prune", names, plans[-1].skipped, _range(gains), _range(sizes), note)


def _prune_plans(graph: GraphModule) -> Iterator[PrunePlan]:
    """At both ends, the gentle one first, which cuts nothing where groups are narrow.

    Raises:
        PlanError: the bold one cuts nothing either.
    """
    with suppress(PlanError):
        yield Prune(ratio=RATIOS[0]).plan(graph)
    yield Prune(ratio=RATIOS[1]).plan(graph)


def _narrowed(graph: GraphModule, plan: PrunePlan) -> dict[str, float]:
    """How many times fewer multiplications each operation has after the cuts."""
    folded, _ = fold_weights(graph)
    gone = {cut.group: cut.size - len(cut.kept) for cut in plan.cuts}
    cuttable = groups(folded, means=plan.through_means).cuttable
    own = [group for group in cuttable if group.name in gone]
    return {one.node: one.macs() / max(1, one.macs(gone)) for one in contractions(Sizes(folded, own))}


def _int8(whole: Whole) -> Family:
    if why := _no_runtime(whole.target, "int8"):
        return Family("int8", why=why)
    found, skipped = fixed_layers(whole.graph, "int8", COUNTED)
    names = tuple(layer.node for layer in found)
    times = 4.0 if set(BYTE_PRODUCTS) & set(whole.features) else 2.0
    most = {name: 4.0 if whole.places[name].bound == "memory" else times for name in names if name in whole.places}
    slow = "" if times == 4 else "; this processor has no products of bytes (VNNI), so that int8 may gain little"
    note = f"of layers with a weight of their own; the rest, and how it is laid out, stays{slow}"
    return Family("int8", names, skipped, (1.0, whole.faster(most)), (1.0, whole.smaller(names, 4.0)), note)


def _in_4_bits(whole: Whole) -> Family:
    return _weight_only(whole, "weights in 4 bits", "int4w", 8.0)


def _in_8_bits(whole: Whole) -> Family:
    return _weight_only(whole, "weights in 8 or 16 bits", "int8w", 4.0)


def _weight_only(whole: Whole, family: str, precision: Any, times: float) -> Family:
    """times: how many times fewer bytes a weight takes at best, where its scales hardly count."""
    if why := _no_runtime(whole.target, precision):
        return Family(family, why=why)
    found, skipped = fixed_layers(whole.graph, precision.removesuffix("w"), COUNTED)
    names = tuple(layer.node for layer in found)
    if not names:
        return Family(family, (), skipped, why="the model has no layer with a weight of its own")
    targets = {node.name: node.target for node in whole.graph.graph.nodes}
    bound = [name for name in names if name in whole.places and whole.places[name].bound == "memory"]
    speed = (
        whole.faster({name: UNPACKED for name in names if targets[name] not in LINEAR}),
        whole.faster({name: min(4.0, times) for name in bound if targets[name] in LINEAR}),
    )
    note = (
        "faster only where reading the weights of linear layers is what takes the time; "
        "slower where a runtime unpacks those of convolutions at every call"
    )
    return Family(family, names, skipped, speed, (1.0, whole.smaller(names, times)), note)


def _low_rank(whole: Whole) -> Family:
    found, skipped = sites(whole.graph, "channel")
    if not found:
        return Family("low rank", (), tuple(skipped), why="no layer becomes cheaper as two")
    gains, sizes = [], []
    for share in RANKS_KEPT:
        times: dict[str, float] = {}
        saved = 0
        for site in found.values():
            rank = max(1, round(share * site.full_rank))
            cost = rank * site.macs_of_a_rank / site.macs
            if cost < 1:
                times[site.layer.node] = 1 / cost
                saved += round((1 - cost) * whole.places[site.layer.node].weight_bytes)
        gains.append(whole.faster(times))
        sizes.append(whole.weight_bytes / (whole.weight_bytes - saved))
    least, most = RANKS_KEPT[1], RANKS_KEPT[0]
    note = f"at {most:.0%} to {least:.0%} of full rank; two small calls for one, which short layers feel"
    names = tuple(site.layer.node for site in found.values())
    return Family("low rank", names, tuple(skipped), _range(gains), _range(sizes), note)


def _drop_blocks(whole: Whole) -> Family:
    found, skipped = blocks(whole.graph)
    if not found:
        return Family("drop blocks", (), tuple(skipped), why="the model has no residual block, which could go whole")
    nodes = {node.name: node for node in whole.graph.graph.nodes}
    inside = [_between(nodes[block.skip], nodes[block.branch]) for block in found]
    by_time = sorted(inside, key=lambda names: -sum(whole.places[n].ms for n in names if n in whole.places))
    num = max(1, len(found) // 4)
    gains = [whole.faster(dict.fromkeys(_union(some), 1e9)) for some in (by_time[-1:], by_time[:num])]
    sizes = [whole.smaller(tuple(_union(some)), 1e9) for some in (by_time[-1:], by_time[:num])]
    note = f"the cheapest block alone, to the dearest {num} of {len(found)}"
    names = tuple(block.name for block in found)
    return Family("drop blocks", names, tuple(skipped), _range(gains), _range(sizes), note)


def _share(whole: Whole) -> Family:
    plan = ShareBlocks(num=1).plan(whole.graph)
    names = tuple(block for group in plan.groups for block in group.blocks)
    left = plan.params - sum(group.numbers * (len(group.blocks) - 1) for group in plan.groups)
    note = "blocks of the same shapes use one's weights: smaller, never faster"
    return Family("share blocks", names, plan.skipped, None, (1.0, plan.params / max(1, left)), note)


def _palette(whole: Whole) -> Family:
    found, skipped = fixed_layers(whole.graph, "a palette", COUNTED)
    names = tuple(layer.node for layer in found)
    sizes = (whole.smaller(names, 4.0), whole.smaller(names, 8.0))
    return Family("palette", names, skipped, None, sizes, "16 to 256 values for each weight: a smaller file to keep")


def _no_runtime(target: Target, precision: Any) -> str:
    """Why no runtime that is allowed and installed runs a precision, or nothing."""
    reasons = _refusals(target, precision).values()
    if None in reasons:
        return ""
    told = "; ".join(filter(None, reasons)) or f"{precision} runs in {', '.join(FORMATS[precision])}"
    return f"none of the allowed runtimes has {precision} here: {told}"


def _between(skip: Node, branch: Node) -> set[str]:
    """The operations from a block's input to its branch's end."""
    seen, queue = set(), [branch]
    while queue:
        node = queue.pop()
        if node is not skip and node.name not in seen and node.op == "call_function":
            seen.add(node.name)
            queue += node.all_input_nodes
    return seen


def _union(parts: Sequence[set[str]]) -> set[str]:
    return set().union(*parts)


def _range(values: Sequence[float]) -> Range:
    return min(values), max(values)


FAMILIES: dict[str, Callable[[Whole], Family]] = {
    "prune": _prune,
    "int8": _int8,
    "weights in 4 bits": _in_4_bits,
    "weights in 8 or 16 bits": _in_8_bits,
    "low rank": _low_rank,
    "drop blocks": _drop_blocks,
    "share blocks": _share,
    "palette": _palette,
}
# Where the search's space has a family: the slot, and the options of it that are the family's.
IN_SPACE: dict[str, tuple[str, tuple[str, ...]]] = {
    "prune": ("channels cut", CUTS[1:]),
    "int8": ("numbers", ("int8", "int8, learned rounding", "int8, trained", AT_RUN_TIME)),
    "weights in 4 bits": ("numbers", ("weights in int4", "weights in nf4")),
    "weights in 8 or 16 bits": ("numbers", ("weights in int8", "weights in fp16")),
    "low rank": ("low rank", RANKS[1:]),
    "drop blocks": ("blocks dropped", BLOCKS[1:]),
}
# What the search does not try, and how it is asked for.
BY_HAND = {
    "share blocks": "ask for it by hand: recipes=(tt.Recipe((ShareBlocks(num=1),)),)",
    "palette": "ask for it by hand: Palette(), then tt.save(..., coded=True), as the files of runtimes gain nothing",
}
