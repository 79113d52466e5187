"""Activation checkpointing (Chen et al. 2016): a block keeps its input alone, and runs again in the backward pass.

A block is an element of an `nn.Sequential` or `nn.ModuleList` that has parts of its own; of nested ones, the outermost.
What differs from `torch.utils.checkpoint`: BatchNorm's statistics count each batch once. With a budget, a forward pass
is measured (`measured`), and blocks are taken until what is kept fits, those of the fewest FLOPs for each byte first.
Cost: one more forward pass of these blocks; memory for their inputs and the inside of one, instead of for everything.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from trimtab.errors import TaskError


@dataclass(frozen=True)
class Kept:
    """What a forward pass keeps for its backward pass.

    sizes: bytes of each piece of memory. owners: by piece, the blocks that keep it; -1 is the rest of the model.
    inputs: by block, the pieces that it must keep to run again. flops: by block, of running again.
    """

    sizes: tuple[int, ...]
    owners: tuple[frozenset[int], ...]
    inputs: tuple[frozenset[int], ...]
    flops: tuple[int, ...]

    def num_bytes(self, again: frozenset[int] = frozenset()) -> int:
        """Bytes that are kept where the blocks `again` run again."""
        needed = {piece for block in again for piece in self.inputs[block]}
        needed |= {piece for piece, owners in enumerate(self.owners) if owners - again}
        return sum(self.sizes[piece] for piece in needed)


@contextlib.contextmanager
def recomputing(
    model: nn.Module, budget: float = 0.0, forward: Callable[[nn.Module], Tensor] | None = None
) -> Iterator[None]:
    """Let blocks of `model` run again in the backward pass, while the context lasts.

    Args:
        model: its blocks' `forward` is wrapped.
        budget: 0: all blocks; else those that `blocks_for` names.
        forward: (model) -> the loss of a batch; needed with a budget.

    Raises:
        TaskError: there is no block, or the budget cannot be met.
    """
    found = _blocks(model)
    if not found:
        raise TaskError(
            f"Fit(recompute=...) runs blocks again, and {type(model).__name__} has none: a block is an element of an "
            "nn.Sequential or nn.ModuleList that has parts of its own (a captured graph has no modules left). "
            "Put the layers into blocks, or leave recompute away and take accumulate=2 or more to save memory."
        )
    if budget:
        assert forward is not None
        chosen = blocks_for(measured(model, forward), budget)
        found = [block for place, block in enumerate(found) if place in chosen]
    for block in found:
        contexts = functools.partial(_contexts, block)
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
    try:
        yield
    finally:
        for block in found:
            del block.forward


def blocks_for(kept: Kept, budget: float) -> frozenset[int]:
    """The blocks to run again, so that at most `budget` is kept: the fewest FLOPs for each byte first.

    Args:
        kept: of a batch.
        budget: a fraction below 1 of what is kept without, or bytes.

    Raises:
        TaskError: all blocks together do not free enough; names what is least.

    Example:
        >>> own = frozenset({0}), frozenset({1}), frozenset({-1})
        >>> kept = Kept((100, 40, 10), own, inputs=(frozenset(), frozenset({2})), flops=(9, 1))
        >>> sorted(blocks_for(kept, 110)), sorted(blocks_for(kept, 0.1))
        ([1], [0, 1])
    """
    before = kept.num_bytes()
    most = budget * before if budget < 1 else budget
    again: frozenset[int] = frozenset()
    while (now := kept.num_bytes(again)) > most:
        left = [block for block in range(len(kept.flops)) if block not in again]
        freed = {block: now - kept.num_bytes(again | {block}) for block in left}
        useful = [block for block in left if freed[block] > 0]
        if not useful:
            raise TaskError(
                f"Fit(recompute={budget:g}) asks that a step keeps at most {most:,.0f} bytes for its backward pass. "
                f"Without it keeps {before:,}, and with every block that helps run again still {now:,}: give at least "
                f"that, or {now / before + 5e-4:.3f} of it, or make the parts of a batch smaller: accumulate=2 or more."
            )
        again |= {min(useful, key=lambda block: (kept.flops[block] / freed[block], -freed[block], block))}
    return again


def measured(model: nn.Module, forward: Callable[[nn.Module], Tensor]) -> Kept:
    """What the forward pass of a copy of `model` keeps, piece by piece of memory; weights and buffers do not count.

    Args:
        model: left as it was; random numbers are drawn, and put back.
        forward: (model) -> the loss.
    """
    trial = copy.deepcopy(model).train()
    blocks = _blocks(trial)
    alive = {_memory(tensor) for tensor in (*trial.parameters(), *trial.buffers())}
    pieces: dict[int, tuple[int, Tensor]] = {}  # the tensors are held, so that no memory is used twice
    owners: dict[int, set[int]] = {}
    inputs: list[set[int]] = [set() for _ in blocks]
    flops, inside = [0] * len(blocks), -1

    def piece(tensor: Tensor) -> int | None:
        key = _memory(tensor)
        if key in alive:
            return None
        pieces.setdefault(key, (len(pieces), tensor))
        return pieces[key][0]

    def pack(tensor: Tensor) -> Tensor:
        if (place := piece(tensor)) is not None:
            owners.setdefault(place, set()).add(inside)
        return tensor

    def enters(block: int, _: nn.Module, given: tuple[Any, ...]) -> None:
        nonlocal inside
        inside = block
        places = [piece(tensor) for tensor in given if isinstance(tensor, Tensor)]
        inputs[block] |= {place for place in places if place is not None}
        flops[block] -= counter.get_total_flops()

    def leaves(block: int, *_: object) -> None:
        nonlocal inside
        inside = -1
        flops[block] += counter.get_total_flops()

    for place, block in enumerate(blocks):
        block.register_forward_pre_hook(functools.partial(enters, place))
        block.register_forward_hook(functools.partial(leaves, place))
    with (
        torch.random.fork_rng(devices=[]),
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        forward(trial)
    held = sorted(pieces.values(), key=lambda pair: pair[0])
    return Kept(
        tuple(tensor.untyped_storage().nbytes() for _, tensor in held),
        tuple(frozenset(owners.get(place, ())) for place in range(len(held))),
        tuple(frozenset(own) for own in inputs),
        tuple(flops),
    )


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _blocks(model: nn.Module) -> list[nn.Module]:
    if isinstance(model, nn.Sequential | nn.ModuleList):
        own = [part for part in model if any(True for _ in part.children())]
        if own:
            return own
    return [block for part in model.children() for block in _blocks(part)]


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager]:
    return contextlib.nullcontext(), _buffers_kept(block)


@contextlib.contextmanager
def _buffers_kept(block: nn.Module) -> Iterator[None]:
    kept = [(buffer, buffer.clone()) for buffer in block.buffers()]
    try:
        yield
    finally:
        for buffer, before in kept:
            buffer.data.copy_(before)  # .data: autograd need not know, the values are those that it saw
