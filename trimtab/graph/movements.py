"""Rules for ops that move values and do not compute: reshapes, permutations, concatenation, splits, slices, padding.

What a rule is, `rules.py` says.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch.fx import Node

from trimtab.graph.calls import arguments

if TYPE_CHECKING:
    from trimtab.graph.atoms import Dim, Dims
    from trimtab.graph.dims import Flow


def _listed(given: Any, ndim: int) -> list[int]:
    """The dims that an argument names, counted from the front; all if it names none."""
    dims = [given] if isinstance(given, int) else (given or range(ndim))
    return [dim % ndim for dim in dims]


def reshape(flow: Flow, node: Node, *, sizes: str | None = None, first: str | None = None) -> Dims | None:
    """Dims split, merge, come and go; argument `sizes` holds the new sizes, those of dim `first` onwards."""
    a = arguments(node)
    x = flow.first(node)
    out = flow.atoms.regroup(tuple(atom for dim in x for atom in dim), flow.shape(node))
    if out is None:
        return None
    start = a[first] % len(x) if first else 0
    if sizes is not None:
        _sizes(flow, node, sizes, out, start=start)
    return out


def _sizes(flow: Flow, node: Node, argument: str, out: Dims, *, start: int = 0) -> None:
    """An argument that lists the sizes of dims of `out`, from dim `start` on."""
    for item, size in enumerate(arguments(node)[argument]):
        if isinstance(size, int) and size != -1:
            flow.constant(node, argument, item, out[start + item])
        elif isinstance(size, Node):
            flow.atoms.freeze((out[start + item],), f"{node.name} takes a computed size for it")


def permute(flow: Flow, node: Node) -> Dims | None:
    """Dims change places."""
    x = flow.first(node)
    return tuple(x[dim] for dim in arguments(node)["dims"])


def transpose(flow: Flow, node: Node) -> Dims | None:
    """Two dims change places."""
    a = arguments(node)
    x = list(flow.first(node))
    x[a["dim0"]], x[a["dim1"]] = x[a["dim1"]], x[a["dim0"]]
    return tuple(x)


def reverse_dims(flow: Flow, node: Node) -> Dims | None:
    """All dims in the opposite order, or the last two."""
    x = flow.first(node)
    return tuple(reversed(x)) if "mT" not in str(node.target) else (*x[:-2], x[-1], x[-2])


def move_dims(flow: Flow, node: Node) -> Dims | None:
    """Some dims move to other places, the rest keep their order."""
    a = arguments(node)
    x = flow.first(node)
    sources, targets = _listed(a["source"], len(x)), _listed(a["destination"], len(x))
    rest = iter(dim for dim in range(len(x)) if dim not in sources)
    return tuple(x[sources[targets.index(d)] if d in targets else next(rest)] for d in range(len(x)))


def cat(flow: Flow, node: Node) -> Dims | None:
    """The joined dim is the sum of the tensors' dims, all others are tied."""
    a = arguments(node)
    # An empty vector may stand among the tensors and adds nothing.
    sources = [flow.dims[source] for source in a["tensors"] if flow.shape(source) != (0,)]
    if len({len(dims) for dims in sources}) != 1:
        return None
    joined = a["dim"] % len(sources[0])
    for dims in sources:
        for place, dim in enumerate(dims):
            if place != joined:
                flow.atoms.unify(sources[0][place], dim)
    parts = [dims[joined] for dims in sources if flow.atoms.width(dims[joined]) != 0]
    if all(isinstance(flow.atoms.width(part), int) for part in parts):
        whole = flow.atoms.sum(parts)
    else:
        flow.atoms.freeze(parts, f"{node.name} joins it with others")
        whole = flow.fresh(node, why=f"{node.name} joins it with others")[joined]
    return tuple(whole if place == joined else dim for place, dim in enumerate(sources[0]))


def stack(flow: Flow, node: Node) -> Dims | None:
    """A new dim counts the tensors; all others are tied."""
    a = arguments(node)
    sources = [flow.dims[source] for source in a["tensors"]]
    for dims in sources[1:]:
        for ours, theirs in zip(sources[0], dims, strict=True):
            flow.atoms.unify(ours, theirs)
    count = flow.atoms.new(len(sources))
    flow.atoms.freeze((count,), f"{node.name} stacks tensors along it")
    at = a["dim"] % (len(sources[0]) + 1)
    return (*sources[0][:at], count, *sources[0][at:])


def split(flow: Flow, node: Node) -> tuple[Dims, ...] | None:
    """A dim is read as dims of the given sizes laid end to end."""
    a = arguments(node)
    x = flow.first(node)
    d, sizes = a["dim"] % len(x), a["split_sizes"]
    if not all(isinstance(size, int) for size in sizes):
        return None
    pieces = flow.atoms.split(x[d], sizes)
    if pieces is None:
        return None
    for item, piece in enumerate(pieces):
        flow.constant(node, "split_sizes", item, piece)
    return tuple((*x[:d], piece, *x[d + 1 :]) for piece in pieces)


def pick(flow: Flow, node: Node) -> Dims | None:
    """One of a list of tensors."""
    source, place = node.args
    return flow.several[source][place] if source in flow.several else None  # type: ignore[index]


def unbind(flow: Flow, node: Node) -> tuple[Dims, ...] | None:
    """A dim is taken apart: it stays."""
    x = flow.first(node)
    d = arguments(node)["dim"] % len(x)
    flow.atoms.freeze((x[d],), f"{node.name} takes it apart")
    return ((*x[:d], *x[d + 1 :]),) * len(node.meta["val"])


def select(flow: Flow, node: Node) -> Dims | None:
    """One index of a dim, which stays."""
    x = flow.first(node)
    d = arguments(node)["dim"] % len(x)
    flow.atoms.freeze((x[d],), f"{node.name} takes one index of it")
    return (*x[:d], *x[d + 1 :])


def slices(flow: Flow, node: Node) -> Dims | None:
    """Some indices of a dim, start ... end: they become a term of it; or every step-th, which become a factor."""
    a = arguments(node)
    x = flow.first(node)
    d = a["dim"] % len(x)
    width, out = flow.atoms.width(x[d]), flow.shape(node)[d]
    if width == out and a["step"] == 1:
        return x
    if out == 0:
        return (*x[:d], flow.fresh(node, why=f"{node.name} takes nothing of it")[d], *x[d + 1 :])
    start, end, step = a["start"] or 0, a["end"], a["step"]
    counted = all(isinstance(number, int) for number in (width, out, start))
    if not counted or flow.atoms.is_frozen(x[d]):
        flow.atoms.freeze((x[d],), f"{node.name} takes a part of it")
        return (*x[:d], flow.fresh(node, why=f"{node.name} takes a part of it")[d], *x[d + 1 :])
    start = start + width if start < 0 else min(start, width)
    part = _strided(flow, node, x[d], start, step, out) if step > 1 else _part(flow, x[d], start, out)
    if part is None:
        return None
    if step == 1:
        if start:
            flow.constant(node, "start", None, x[d])
        if isinstance(end, int) and end <= width:
            flow.constant(node, "end", None, x[d])
    return (*x[:d], part, *x[d + 1 :])


def _part(flow: Flow, dim: Dim, start: int, length: int) -> Dim | None:
    ends = sorted({0, start, start + length, flow.atoms.width(dim)})
    pieces = flow.atoms.split(dim, [high - low for low, high in pairwise(ends)])
    return None if pieces is None else pieces[ends.index(start)]


def _strided(flow: Flow, node: Node, dim: Dim, start: int, step: int, length: int) -> Dim | None:
    if flow.atoms.width(dim) != length * step or start >= step:
        return None
    parts = flow.atoms.regroup(dim, (length, step))
    if parts is None:
        return None
    flow.atoms.freeze((parts[1],), f"{node.name} takes every {step}th")
    return parts[0]


def expand(flow: Flow, node: Node, *, sizes: str | None = "size") -> Dims | None:
    """Dims of size 1 are repeated, and new ones come in front: each is an atom that no weight has."""
    x = flow.first(node)
    shape = flow.shape(node)
    padded = ((),) * (len(shape) - len(x)) + x
    out = tuple(dim or flow.atoms.new(size) for dim, size in zip(padded, shape, strict=True))
    if sizes is not None:
        _sizes(flow, node, sizes, out)
    return out


def repeat(flow: Flow, node: Node) -> Dims | None:
    """Each dim is laid end to end a number of times, which stays."""
    x = flow.first(node)
    counts = arguments(node)[node.target._schema.arguments[1].name]  # type: ignore[union-attr]
    if not all(isinstance(count, int) for count in counts):
        return None
    ndim = max(len(x), len(counts))
    padded = ((),) * (ndim - len(x)) + x
    times = [flow.atoms.new(count) for count in (*(1,) * (ndim - len(counts)), *counts)]
    flow.atoms.freeze(times, f"{node.name} repeats by it")
    return tuple(count + dim for count, dim in zip(times, padded, strict=True))


def repeat_each(flow: Flow, node: Node) -> Dims | None:
    """Each index of a dim is repeated a number of times in a row, which stays."""
    a = arguments(node)
    x = flow.first(node)
    if not isinstance(a["repeats"], int) or a["dim"] is None:
        return None
    d, count = a["dim"] % len(x), flow.atoms.new(a["repeats"])
    flow.atoms.freeze((count,), f"{node.name} repeats by it")
    if isinstance(a["output_size"], int):
        flow.constant(node, "output_size", None, x[d] + count)
    return (*x[:d], x[d] + count, *x[d + 1 :])


def pad(flow: Flow, node: Node) -> Dims | None:
    """What is laid before and after a dim stays."""
    a = arguments(node)
    x = list(flow.first(node))
    for place, (before, after) in enumerate(zip(a["pad"][::2], a["pad"][1::2], strict=True)):
        d = len(x) - 1 - place
        if before == after == 0:
            continue
        constant = a.get("mode", "constant") == "constant" and min(before, after) >= 0
        if constant and not flow.atoms.is_frozen(x[d]):
            ends = [flow.atoms.new(size) if size else None for size in (before, after)]
            flow.atoms.freeze([end for end in ends if end], f"{node.name} pads with it")
            x[d] = flow.atoms.sum([dim for dim in (ends[0], x[d], ends[1]) if dim is not None])
        else:
            flow.atoms.freeze((x[d],), f"{node.name} pads it")
            x[d] = flow.fresh(node, why=f"{node.name} pads it")[d]
    return tuple(x)


def moved_along(flow: Flow, node: Node) -> Dims | None:
    """Indices of some dims change places: those stay."""
    x = flow.first(node)
    dims = _listed(arguments(node)["dims"], len(x))
    flow.atoms.freeze([x[dim] for dim in dims], f"{node.name} moves along it")
    return x


def index(flow: Flow, node: Node) -> Dims | None:
    """Rows picked by index tensors on dims that stand side by side; these stay, and the indices' dims come in."""
    a = arguments(node)
    x, indices = flow.first(node), a["indices"]
    places = [place for place, one in enumerate(indices) if one is not None]
    if not places or places != list(range(places[0], places[-1] + 1)):
        return None
    for place in places:
        flow.atoms.freeze((x[place], *flow.dims[indices[place]]), f"{node.name} picks from it")
    num_new = len(flow.shape(node)) - len(x) + len(places)
    new = flow.fresh(node, why=f"{node.name} picks from it")[places[0] : places[0] + num_new]
    return (*x[: places[0]], *new, *x[places[-1] + 1 :])


def index_select(flow: Flow, node: Node) -> Dims | None:
    """Some indices of a dim, which stays."""
    x = flow.first(node)
    d = arguments(node)["dim"] % len(x)
    why = f"{node.name} picks from it"
    flow.atoms.freeze((x[d],), why)
    return (*x[:d], flow.fresh(node, why=why)[d], *x[d + 1 :])


def gather(flow: Flow, node: Node) -> Dims | None:
    """An index along one dim, which stays, for every place in the others."""
    a = arguments(node)
    x, picked = flow.first(node), flow.dims[a["index"]]
    d = a["dim"] % len(x)
    flow.atoms.freeze((x[d], picked[d]), f"{node.name} picks from it")
    for place, (ours, theirs) in enumerate(zip(x, picked, strict=True)):
        if place != d:
            flow.atoms.unify(ours, theirs)
    return picked


def pixel_shuffle(flow: Flow, node: Node) -> Dims | None:
    """[.., C*r*r, H, W] -> [.., C, H*r, W*r]."""
    x, r = flow.first(node), arguments(node)["upscale_factor"]
    parts = flow.atoms.regroup(x[-3], (flow.atoms.width(x[-3]) // (r * r), r * r))
    if parts is None:
        return None
    why = f"{node.name} moves it into space"
    flow.atoms.freeze((parts[1], *x[-2:]), why)
    return (*x[:-3], parts[0], *flow.fresh(node, why=why)[-2:])


def pixel_unshuffle(flow: Flow, node: Node) -> Dims | None:
    """[.., C, H*r, W*r] -> [.., C*r*r, H, W]."""
    x, r = flow.first(node), arguments(node)["downscale_factor"]
    why = f"{node.name} moves space into it"
    inner = flow.atoms.new(r * r)
    flow.atoms.freeze((inner, *x[-2:]), why)
    return (*x[:-3], x[-3] + inner, *flow.fresh(node, why=why)[-2:])


def channel_shuffle(flow: Flow, node: Node) -> Dims | None:
    """[B, G*c, ...] -> [B, c*G, ...]."""
    x, groups = flow.first(node), arguments(node)["groups"]
    parts = flow.atoms.regroup(x[1], (groups, flow.atoms.width(x[1]) // groups))
    if parts is None:
        return None
    flow.atoms.freeze((parts[0],), f"{node.name} shuffles it")
    return (x[0], parts[1] + parts[0], *x[2:])


def windows(flow: Flow, node: Node) -> Dims | None:
    """Windows along a dim, which stays; a last dim for the window's width comes in."""
    x = flow.first(node)
    d = arguments(node)["dimension"] % len(x)
    why = f"{node.name} takes windows of it"
    flow.atoms.freeze((x[d],), why)
    new = flow.fresh(node, why=why)
    return (*x[:d], new[d], *x[d + 1 :], new[-1])


def image_to_columns(flow: Flow, node: Node) -> Dims | None:
    """[B, C, H, W] -> [B, C*k*k, positions]."""
    x = flow.first(node)
    kernel = arguments(node)["kernel_size"]
    why = f"{node.name} takes windows of it"
    inner = flow.atoms.new(kernel[0] * kernel[1])
    flow.atoms.freeze((inner, *x[2:]), why)
    return (x[0], x[1] + inner, flow.fresh(node, why=why)[2])
