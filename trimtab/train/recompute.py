"""Activation checkpointing (Chen et al. 2016): a block keeps its input alone, and runs again in the backward pass.

A block is an element of an `nn.Sequential` or `nn.ModuleList` that has parts of its own; of nested ones, the outermost.
What differs from `torch.utils.checkpoint`: BatchNorm's statistics count each batch once.
Cost: one more forward pass; memory for the inputs of the blocks and the inside of one, instead of for everything.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from torch import nn
from torch.utils.checkpoint import checkpoint

from trimtab.errors import TaskError


@contextlib.contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Let each block of `model` run again in the backward pass, while the context lasts.

    Raises:
        TaskError: there is no block.
    """
    found = _blocks(model)
    if not found:
        raise TaskError(
            f"Fit(recompute=True) runs blocks again, and {type(model).__name__} has none: a block is an element of an "
            "nn.Sequential or nn.ModuleList that has parts of its own (a captured graph has no modules left). "
            "Put the layers into blocks, or leave recompute away and take accumulate=2 or more to save memory."
        )
    for block in found:
        contexts = functools.partial(_contexts, block)
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
    try:
        yield
    finally:
        for block in found:
            del block.forward


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
