"""The algebra of dimensions: every dim is a product of atoms, and an atom may be a product or a sum of smaller ones.

An *atom* is a variable with a size. A dim is a tuple of atoms, outermost first: flattening C, H, W gives the product
(C, H, W), a fused projection (3, heads, width). A *sum* lays dims end to end: the channels of a concatenation. Where
two dims must stay equal their atoms become one (union-find); where a reshape or a split shows structure, an atom is
refined into factors or into terms. So each slice of any tensor that belongs to channel i of an atom is plain index
arithmetic (`Place`). Atoms that must keep their size are frozen, with the reason.

Cost: nearly linear in the number of atoms; sizes are ints, or sympy expressions of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor

Size = Any  # an int, or a sympy expression of the batch
Dim = tuple[int, ...]  # atoms, outermost first; () is a dim of size 1
Dims = tuple[Dim, ...]
COUNTS_PARTS = "it counts parts that are laid end to end"


@dataclass(frozen=True)
class Block:
    """Where one occurrence of an atom lies in a dim.

    Channel i holds `inner` indices in a row, from offset + i * inner on, again at every combination of the steps of
    `outer`, which is a tuple of (count, stride).
    """

    offset: int
    outer: tuple[tuple[int, int], ...]
    inner: int

    def starts(self) -> Tensor:
        """The index at which channel 0 starts, once for each place in `outer`; [places]."""
        starts = torch.tensor([self.offset])
        for count, stride in self.outer:
            starts = (starts[:, None] + torch.arange(count) * stride).flatten()
        return starts


@dataclass(frozen=True)
class Place:
    """Where the channels of an atom of `size` lie in a dim of `width`: index arithmetic, no index is stored.

    >>> Place(size=2, width=6, blocks=(Block(offset=0, outer=(), inner=3),)).indices(1)
    (3, 4, 5)
    """

    size: int
    width: int
    blocks: tuple[Block, ...]

    @property
    def indices_of_one(self) -> int:
        """How many indices along the dim belong to each channel."""
        return sum(math.prod(count for count, _ in block.outer) * block.inner for block in self.blocks)

    def table(self) -> Tensor:
        """The indices along the dim that belong to each channel, [size, indices of a channel], rising in each row."""
        columns = []
        for block in self.blocks:
            first = (block.starts()[:, None] + torch.arange(block.inner)).flatten()
            columns.append(first + torch.arange(self.size)[:, None] * block.inner)
        return torch.cat(columns, dim=1).sort(dim=1).values

    def indices(self, channel: int) -> tuple[int, ...]:
        """The indices along the dim that belong to one channel."""
        return tuple(self.table()[channel].tolist())

    def mask(self, kept: Sequence[int]) -> Tensor:
        """False at the indices along the dim that belong to channels which are not kept; [width]."""
        gone = torch.ones(self.size, dtype=torch.bool)
        gone[list(kept)] = False
        mask = torch.ones(self.width, dtype=torch.bool)
        mask[self.table()[gone].flatten()] = False
        return mask


Key = TypeVar("Key")


def merged_masks(cuts: Iterable[tuple[Key, Place, Sequence[int]]]) -> dict[Key, Tensor]:
    """For each key, a dim in which several places may lie: True where nothing of any place goes.

    Args:
        cuts: (key, place, the channels of the place that are kept).
    """
    masks: dict[Key, Tensor] = {}
    for key, place, kept in cuts:
        mask = place.mask(kept)
        masks[key] = masks[key] & mask if key in masks else mask
    return masks


class Atoms:
    """Variables with sizes: equal ones are joined, and refined into factors or terms, as a graph is read."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._size: list[Size] = []
        self._parts: dict[int, Dim] = {}
        self._terms: dict[int, Dims] = {}
        self._frozen: dict[int, str] = {}

    def new(self, size: Size) -> Dim:
        """A dim of one new atom; () if `size` is 1. A size that is no number is frozen."""
        if size == 1:
            return ()
        atom = len(self._parent)
        self._parent.append(atom)
        self._size.append(size)
        if not isinstance(size, int):
            self._frozen[atom] = "its size is not a fixed number"
        return (atom,)

    def size(self, atom: int) -> Size:
        """The size of an atom."""
        return self._size[self._root(atom)]

    def width(self, dim: Dim) -> Size:
        """The size of a dim."""
        return math.prod(self.size(atom) for atom in dim)

    def factors(self, dim: Dim) -> Dim:
        """`dim` as a product of atoms, each of them a leaf or a sum."""
        roots = [self._root(atom) for atom in dim]
        return tuple(part for root in roots for part in (self.factors(self._parts.get(root, ())) or (root,)))

    def leaves(self, dim: Dim) -> Dim:
        """Every leaf that `dim` is made of, in order; one may come more than once."""
        return tuple(
            leaf
            for factor in self.factors(dim)
            for leaf in (
                tuple(inner for term in self._terms[factor] for inner in self.leaves(term))
                if factor in self._terms
                else (factor,)
            )
        )

    def why_frozen(self, atom: int) -> str | None:
        """Why a leaf must keep its size; None if it can be cut."""
        return self._frozen.get(self._root(atom))

    def is_frozen(self, dim: Dim) -> bool:
        """Whether every leaf of `dim` must keep its size."""
        return all(self.why_frozen(leaf) for leaf in self.leaves(dim))

    def freeze(self, dims: Iterable[Dim], why: str) -> None:
        """Let every leaf of `dims` keep its size."""
        for dim in dims:
            for leaf in self.leaves(dim):
                self._frozen.setdefault(leaf, why)

    def places(self, dim: Dim) -> dict[int, Place]:
        """Each leaf of `dim` with its place; a dim that is empty or whose size is no number has none."""
        if not all(isinstance(self.size(leaf), int) and self.size(leaf) for leaf in self.leaves(dim)):
            return {}
        blocks: dict[int, list[Block]] = {}
        for leaf, block in self._blocks(dim, Block(0, (), 1)):
            blocks.setdefault(leaf, []).append(block)
        width = self.width(dim)
        return {leaf: Place(self.size(leaf), width, tuple(found)) for leaf, found in blocks.items()}

    def squares(self, dim: Dim) -> set[int]:
        """Leaves that are two factors of one product: cutting a channel would take a row and a column."""
        inside = [set(self.leaves((factor,))) for factor in self.factors(dim)]
        found = {leaf for i, one in enumerate(inside) for other in inside[:i] for leaf in one & other}
        for factor in self.factors(dim):
            for term in self._terms.get(factor, ()):
                found |= self.squares(term)
        return found

    def unify(self, a: Dim, b: Dim) -> None:
        """State that index n of `a` and index n of `b` mean the same; frozen if their structures do not line up."""
        a, b = self.factors(a), self.factors(b)
        if a == b:
            return
        if len(a) == len(b) == 1 and self._size[a[0]] == self._size[b[0]]:
            self._unify_atoms(a[0], b[0])
            return
        parts = self.regroup(a, [self._size[atom] for atom in b])
        if parts is None:
            self.freeze((a, b), "two ways of splitting it do not line up")
            return
        for part, atom in zip(parts, b, strict=True):
            if len(part) > 1 and self._is_leaf(atom):
                self._refine(atom, part)
            else:
                self.unify(part, (atom,))  # of smaller factors, so this ends

    def regroup(self, dim: Dim, sizes: Sequence[Size]) -> Dims | None:
        """Read the product `dim` as dims of the given sizes, refining atoms as needed; None if no factors fit."""
        queue = list(reversed(self.factors(dim)))
        dims: list[Dim] = []
        for size in sizes:
            part: list[int] = []
            while size != 1:
                if not queue:
                    return None
                atom = self.factors((queue.pop(),))
                queue.extend(reversed(atom[1:]))
                head = atom[0]
                rest = exact_quotient(size, self._size[head])
                if rest is None:
                    if not self._factorize(head, size):
                        return None
                    head, *others = self.factors((head,))
                    queue.extend(reversed(others))
                    rest = exact_quotient(size, self._size[head])
                part.append(head)
                size = rest
            dims.append(tuple(part))
        return None if queue else tuple(dims)

    def split(self, dim: Dim, sizes: Sequence[int]) -> Dims | None:
        """Read `dim` as dims of the given sizes laid end to end, refining atoms as needed; None if none fit."""
        head, *others = self.factors(dim)
        rest = tuple(others)
        if len(sizes) == 1:
            return ((head, *rest),)
        found = [exact_quotient(size, self.width(rest)) for size in sizes]
        counts = [count for count in found if isinstance(count, int)]
        if len(counts) < len(sizes):
            return None
        if head in self._terms:
            pieces = self._cut_terms(self._flat_terms(head), counts)
        else:
            pieces = tuple(self.new(count) for count in counts)
            self._terms[head] = pieces
            if head in self._frozen:
                self.freeze(pieces, self._frozen[head])
        return None if pieces is None else tuple(piece + rest for piece in pieces)

    def sum(self, dims: Sequence[Dim]) -> Dim:
        """The dims laid end to end."""
        if len(dims) == 1:
            return dims[0]
        dim = self.new(sum(self.width(part) for part in dims))
        self._terms[dim[0]] = tuple(dims)
        return dim

    def _is_leaf(self, atom: int) -> bool:
        root = self._root(atom)
        return root not in self._parts and root not in self._terms

    def _unify_atoms(self, a: int, b: int) -> None:
        if self._is_leaf(a) or self._is_leaf(b):
            self._join(*((b, a) if self._is_leaf(a) else (a, b)))
            return
        ends = [self._ends(a), self._ends(b)]
        sizes = [end - start for start, end in pairwise(sorted({0, *ends[0], *ends[1]}))]
        parts, others = self.split((a,), sizes), self.split((b,), sizes)
        if parts is None or others is None:
            self.freeze(((a,), (b,)), "two ways of joining it do not line up")
            return
        for part, other in zip(parts, others, strict=True):
            self.unify(part, other)

    def _ends(self, atom: int) -> list[int]:
        ends = [0]
        for term in self._flat_terms(atom):
            ends.append(ends[-1] + self.width(term))
        return ends

    def _flat_terms(self, atom: int) -> Dims:
        """The terms of a sum, with sums among them flattened."""
        flat: list[Dim] = []
        for term in self._terms[atom]:
            factors = self.factors(term)
            flat.extend(self._flat_terms(factors[0]) if len(factors) == 1 and factors[0] in self._terms else (factors,))
        return tuple(flat)

    def _cut_terms(self, terms: Dims, sizes: Sequence[int]) -> Dims | None:
        queue = list(reversed(terms))
        pieces: list[Dim] = []
        for size in sizes:
            piece: list[Dim] = []
            while size:
                term = queue.pop()
                width = self.width(term)
                if width > size:
                    halves = self.split(term, (size, width - size))
                    if halves is None:
                        return None
                    queue.append(halves[1])
                    term, width = halves[0], size
                piece.append(term)
                size -= width
            pieces.append(self.sum(piece))
        return tuple(pieces)

    def _factorize(self, atom: int, size: Size) -> bool:
        """Refine an atom into the product of one of `size` and the rest; whether that was possible."""
        left = exact_quotient(self._size[atom], size)
        if left is None:
            return False
        if atom not in self._terms:
            self._refine(atom, self.new(size) + self.new(left))
            return True
        pieces = self.split((atom,), [left] * size) if isinstance(left, int) else None
        if pieces is None:
            return False
        for piece in pieces[1:]:
            self.unify(pieces[0], piece)
        count = self.new(size)
        self.freeze((count,), COUNTS_PARTS)
        del self._terms[atom]
        self._parts[atom] = count + pieces[0]
        return True

    def _blocks(self, dim: Dim, within: Block) -> Iterator[tuple[int, Block]]:
        factors = self.factors(dim)
        outer, inner = within.outer, within.inner * self.width(factors)
        for factor in factors:
            size = self.size(factor)
            inner //= size
            at = Block(within.offset, outer, inner)
            if factor in self._terms:
                yield from self._blocks_of_terms(self._terms[factor], at)
            else:
                yield factor, at
            outer = (*outer, (size, inner))

    def _blocks_of_terms(self, terms: Dims, at: Block) -> Iterator[tuple[int, Block]]:
        offset = at.offset
        for term in terms:
            yield from self._blocks(term, Block(offset, at.outer, at.inner))
            offset += self.width(term) * at.inner

    def _root(self, atom: int) -> int:
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def _join(self, a: int, leaf: int) -> None:
        self._parent[leaf] = a
        if leaf in self._frozen:
            self.freeze(((a,),), self._frozen[leaf])

    def _refine(self, atom: int, parts: Dim) -> None:
        self._parts[atom] = parts
        if atom in self._frozen:
            self.freeze((parts,), self._frozen[atom])


def exact_quotient(a: Size, b: Size) -> Size | None:
    """The quotient a / b if that is whole for every batch size, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    quotient = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    if sympy.fraction(quotient)[1] != 1:
        return None
    return int(quotient) if quotient.is_Integer else quotient
