"""Batches of tensors in memory."""

from __future__ import annotations

from torch import Tensor

from trimtab.core import Split


def gathered(split: Split, index: Tensor) -> Split:
    """The samples of `split` that `index`, int64 [B], selects: `split.batch`, in the layout it gives, and sooner.

    Brackets take 10 to 30 us more than `index_select`, which gives contiguous tensors whatever it is given.
    """
    return Split(tuple(_rows(x, index) for x in split.inputs), _rows(split.targets, index))


def _rows(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(0, index) if x.is_contiguous() else x[index]
