from __future__ import annotations

import pytest
import torch

from tests.optim.curve import compiled, follow, gradients, start
from tests.reference import optimizers as reference
from trimtab.optim.lion import Lion

SETTINGS = Lion(lr=0.01, betas=(0.9, 0.97), weight_decay=0.1)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize("settings", [SETTINGS, compiled(SETTINGS)], ids=["pieces", "formula"])
def test_it_agrees_with_the_paper_for_100_steps(settings, monkeypatch):
    monkeypatch.setattr("trimtab.optim.flat.compiled", lambda formula: formula)
    x = start(30, 40)
    expected = reference.lion(x, gradients(), 100, lr=0.01, beta1=0.9, beta2=0.97, decay=0.1)
    torch.testing.assert_close(follow(settings, x)[0], expected, **CLOSE)
