from __future__ import annotations

import torch

from trimtab.core import Split
from trimtab.train.batches import gathered


def test_gathered_is_what_brackets_give_in_values_and_layout():
    x, index = torch.randn(10, 3, 4, 5), torch.tensor([7, 0, 7, 3])
    for inputs in (x, x.to(memory_format=torch.channels_last), x[:, :2], x[:, 0, 0, 0]):
        split = Split((inputs, x), torch.arange(10))
        fast, plain = gathered(split, index), split.batch(index)
        for a, b in zip((*fast.inputs, fast.targets), (*plain.inputs, plain.targets), strict=True):
            assert torch.equal(a, b)
            assert a.stride() == b.stride()
