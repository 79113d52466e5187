from __future__ import annotations

import pytest
import torch
from torch import nn

from trimtab.errors import OptimizerError
from trimtab.optim import OPTIMIZERS, find_optimizer
from trimtab.optim.adaptive import Adam
from trimtab.optim.base import decay_groups, dense
from trimtab.optim.sgd import SGD


def test_biases_and_norm_scales_do_not_decay():
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    groups = decay_groups(model, 0.5)
    assert [(group["weight_decay"], [name for name, _ in group["params"]]) for group in groups] == [
        (0.5, ["0.weight"]),
        (0.0, ["0.bias", "1.weight", "1.bias"]),
    ]
    assert len(decay_groups(nn.Linear(2, 1, bias=False), 0.5)) == 1


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(OptimizerError, match=r"There is no optimizer 'adamv'; the optimizers are .*adamw"):
        find_optimizer("adamv")
    assert find_optimizer("sgd") is OPTIMIZERS["sgd"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Adam(betas=(0.9, 1.0)), r"Adam\(betas=\(0.9, 1.0\)\) is out of range; give two betas in \[0, 1\)"),
        (lambda: Adam(eps=0), r"Adam\(eps=0\) is out of range; give eps > 0. The default is 1e-08"),
        (lambda: SGD(weight_decay=-1), "give weight_decay >= 0"),
        (lambda: SGD(momentum=0), "nothing to look ahead with"),
    ],
)
def test_settings_that_make_no_sense(make, says):
    with pytest.raises(OptimizerError, match=says):
        make()


def test_a_sparse_gradient_is_refused_by_name():
    assert dense("w", torch.ones(2)).sum() == 2
    with pytest.raises(OptimizerError, match=r"The gradient of w is torch.sparse_coo.*sparse=False"):
        dense("w", torch.ones(2).to_sparse())
