"""Which integer attributes of a user's modules follow a cut, e.g. `self.num_heads` after heads went.

A cut changes numbers of the graph (the sizes in a view, the end of a slice) and widths of tensors. An attribute of the
module that computed such a number, with the number's old value, may be where it came from. Which one it was, the
numbers do not always tell (4 heads of 4 channels): so there are options, best guess first, and whoever sets them
checks. Modules of one class run the same code: they share one choice. Cost: linear in the graph.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from trimtab.graph.calls import arguments

Values = tuple[int, ...]  # one for each owner
FRAME = re.compile(r'File "(.+)", line (\d+), in (\S+)\n\s*(.*)')
Derived = Callable[[nn.Module], Mapping[str, Any]]


@dataclass(frozen=True)
class Number:
    """A number in the arguments of a node, before and after the cut; `modules` computed it, innermost last."""

    node: str
    argument: str
    old: Any
    new: Any
    modules: tuple[str, ...]
    line: str


@dataclass(frozen=True)
class Attribute:
    """Attribute `name` (or its item) of all modules of one class, `owners`; every option has a value for each.

    settled: all that the owners hold and compute themselves points to the first option.
    """

    name: str
    item: int | None
    owners: tuple[str, ...]
    values: Values
    options: tuple[Values, ...]
    settled: bool

    def set_(self, module: nn.Module, option: int) -> None:
        """Give the owners in `module` the values of an option."""
        for owner, value in zip(self.owners, self.options[option], strict=True):
            part = module.get_submodule(owner)
            old = getattr(part, self.name)
            if self.item is None:
                setattr(part, self.name, value)
            elif old[self.item] != value:
                setattr(part, self.name, type(old)([*old[: self.item], value, *old[self.item + 1 :]]))

    def told(self, option: int) -> list[str]:
        """What an option changes, for people."""
        name = self.name if self.item is None else f"{self.name}[{self.item}]"
        changed = zip(self.owners, self.values, self.options[option], strict=True)
        return [f"{owner}.{name}".lstrip(".") + f" {old} -> {new}" for owner, old, new in changed if old != new]


def same_operations(graph: GraphModule, other: GraphModule) -> str | None:
    """Where the operations of `graph` differ from `other`'s, in words; None if they are the same in the same order."""
    ours, theirs = _operations(graph), _operations(other)
    for place in range(max(len(ours), len(theirs))):
        one, another = (names[place] if place < len(names) else "nothing more" for names in (ours, theirs))
        if one != another:
            return f"it has {one} where the class has {another}"
    return None


def _operations(graph: GraphModule) -> list[str]:
    return [str(node.target) if node.op == "call_function" else node.op for node in graph.graph.nodes]


def numbers(before: GraphModule, after: GraphModule) -> tuple[Number, ...]:
    """Every number in the arguments of two graphs of the same operations; `before` was captured just now."""
    old_places = {node: place for place, node in enumerate(before.graph.nodes)}
    new_places = {node: place for place, node in enumerate(after.graph.nodes)}
    found = []
    for old, new in zip(before.graph.nodes, after.graph.nodes, strict=True):
        ours, theirs = dict(_leaves(old, old_places)), dict(_leaves(new, new_places))
        for argument in dict.fromkeys((*ours, *theirs)):
            pair = (ours.get(argument), theirs.get(argument))
            found.append(Number(old.name, argument, *pair, _modules(old), _line(old)))
    return tuple(found)


def _leaves(node: Node, places: Mapping[Node, int]) -> Iterator[tuple[str, Any]]:
    if node.op != "call_function":
        return
    by_name = isinstance(node.target, torch._ops.OpOverload)
    given: Mapping[Any, Any] = arguments(node) if by_name else dict(enumerate(node.args))
    stack = [(str(name), value) for name, value in given.items()]
    while stack:
        name, value = stack.pop()
        if isinstance(value, list | tuple):
            stack += [(f"{name}[{item}]", part) for item, part in enumerate(value)]
        else:
            yield name, ("node", places[value]) if isinstance(value, Node) else value


def _modules(node: Node) -> tuple[str, ...]:
    # `model` is the name that capture gives to the whole.
    paths = [str(path).partition("@")[0] for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return tuple(path.removeprefix("model").removeprefix(".") for path in paths if path.startswith("model"))


def _line(node: Node) -> str:
    """The line that made a node, as `file:line, in function: code`."""
    frames = FRAME.findall(str(node.meta.get("stack_trace", "")))
    return "{}:{}, in {}: {}".format(*frames[-1]) if frames else ""


def attributes(
    like: nn.Module, changes: tuple[Number, ...], widths: Mapping[str, tuple[Values, Values]], derived: Derived
) -> list[Attribute]:
    """The integer attributes of `like` that may have to change, with what they may become.

    Args:
        like: the module before the cut.
        changes: `numbers` of its graph and of the cut graph.
        widths: name of each tensor -> its shape before and after.
        derived: (module) -> those of its attributes that follow from its weights, so that they are no question.
    """
    every = like.named_modules(remove_duplicate=False)
    layers = {path for path, part in every if type(part).__module__.startswith("torch.nn.") and derived(part)}
    own: dict[str, list[Number]] = {}
    within: dict[str, list[Number]] = {}
    for number in changes:
        if type(number.old) is int and type(number.new) is int:
            for path in number.modules:
                within.setdefault(path, []).append(number)
            inner = [path for path in number.modules if path not in layers]
            own.setdefault(inner[-1] if inner else "", []).append(number)
    held = _held(like, layers, widths)
    kinds: dict[tuple[type, str, int | None], dict[str, int]] = {}
    for path, part in like.named_modules():
        if path not in layers:
            for name, item, value in _integers(part, derived(part)):
                kinds.setdefault((type(part), name, item), {})[path] = value
    found = []
    for (_, name, item), values in kinds.items():
        evidence = [[[(n.old, n.new) for n in part.get(path, ())] for path in values] for part in (own, within)]
        evidence.append([held.get(path, []) for path in values])
        options, settled = _options(tuple(values.values()), *evidence)
        if len(options) > 1:
            found.append(Attribute(name, item, tuple(values), tuple(values.values()), options, settled))
    return found


def _integers(part: nn.Module, known: Iterable[str]) -> Iterator[tuple[str, int | None, int]]:
    for name, value in vars(part).items():
        if name in known:
            continue
        if type(value) is int and value > 1:
            yield name, None, value
        elif type(value) in (list, tuple):
            yield from ((name, item, one) for item, one in enumerate(value) if type(one) is int and one > 1)


def _held(
    like: nn.Module, layers: set[str], widths: Mapping[str, tuple[Values, Values]]
) -> dict[str, list[tuple[int, int]]]:
    """The widths, before and after, of what each module holds itself or in layers of its own."""
    plain = layers | {path for path, part in like.named_modules() if isinstance(part, nn.Sequential | nn.ModuleList)}
    held: dict[str, list[tuple[int, int]]] = {}
    for name, (before, after) in widths.items():
        path = name.rpartition(".")[0]
        while path in plain and path:
            path = path.rpartition(".")[0]
        held.setdefault(path, []).extend(zip(before, after, strict=False))
    return held


Pairs = list[list[tuple[int, int]]]  # for each owner: (old, new) of each number


def _options(values: Values, own: Pairs, within: Pairs, held: Pairs) -> tuple[tuple[Values, ...], bool]:
    """What an attribute may become, best guess first; and whether all near evidence agrees on the first."""
    near = [[*a, *b] for a, b in zip(own, held, strict=True)]
    agreed = _agreed(values, near)
    settled = agreed is not None and agreed != values
    guesses = [agreed, _agreed(values, own), *_each(values, own)]
    guesses += [*_multiples(values, own), _agreed(values, within), *_each(values, within), *_each(values, held), values]
    return tuple(dict.fromkeys(guess for guess in guesses if guess is not None)), settled


def _agreed(values: Values, evidence: Pairs) -> Values | None:
    """What all numbers of an owner that had the attribute's value became, if that is one value."""
    became = [{new for old, new in pairs if old == value} for value, pairs in zip(values, evidence, strict=True)]
    if any(len(news) > 1 for news in became):
        return None
    return tuple(next(iter(news), value) for value, news in zip(values, became, strict=True))


def _each(values: Values, evidence: Pairs) -> Iterable[Values]:
    """What the attribute becomes if it is behind one number of the owners' code, for each that fits all of them."""
    if len({len(pairs) for pairs in evidence}) == 1:
        for row in zip(*evidence, strict=True):
            if all(old == value for value, (old, _) in zip(values, row, strict=True)):
                yield tuple(new for _, new in row)


def _multiples(values: Values, evidence: Pairs) -> Iterable[Values]:
    """As `_each`, where the number was a multiple of the attribute."""
    if len({len(pairs) for pairs in evidence}) == 1:
        for row in zip(*evidence, strict=True):
            factors = {old // value if old % value == 0 else 1 for value, (old, _) in zip(values, row, strict=True)}
            factor = factors.pop()
            if not factors and factor > 1 and all(new % factor == 0 and new != old for old, new in row):
                yield tuple(new // factor for _, new in row)


def choices(attributes: list[Attribute], *, most: int) -> Iterator[tuple[int, ...]]:
    """Up to `most` ways to choose one option for each attribute, those with the best guesses first.

    >>> two = Attribute("n", None, ("",), (4,), ((2,), (4,)), settled=False)
    >>> list(choices([two, two], most=3))
    [(0, 0), (0, 1), (1, 0)]
    """
    start = (0,) * len(attributes)
    waiting, seen = [(0, start)], {start}
    for _ in range(most):
        if not waiting:
            return
        total, chosen = heapq.heappop(waiting)
        yield chosen
        for place, one in enumerate(attributes):
            later = (*chosen[:place], chosen[place] + 1, *chosen[place + 1 :])
            if later[place] < len(one.options) and later not in seen:
                seen.add(later)
                heapq.heappush(waiting, (total + 1, later))
