from __future__ import annotations

import pytest
import torch

from tests.optim.curve import follow, gradients, start
from tests.reference import optimizers as reference
from trimtab.errors import OptimizerError
from trimtab.optim.soap import SOAP


@pytest.mark.parametrize(
    ("settings", "sides"),
    [({}, "LR"), ({"one_sided": True}, "R"), ({"largest": 8}, "R"), ({"largest": 7}, "")],
    ids=str,
)
def test_it_agrees_with_the_paper_for_100_steps(settings, sides):
    """The gradient's noise differs by row, so that there are bases worth the name."""
    x = start(9, 8)
    loud = torch.linspace(1, 3, 9, dtype=torch.float64)[:, None] * torch.linspace(1, 4, 8, dtype=torch.float64)

    class Loud:
        def __init__(self):
            self.gradient = gradients()

        def __call__(self, x):
            return loud * self.gradient(x)

    ours = SOAP(lr=0.02, weight_decay=0.1, every=5, **settings)
    expected = reference.soap(x, Loud(), 100, lr=0.02, decay=0.1, every=5, sides=sides)
    reached, _ = follow(ours, x, gradient=Loud())
    torch.testing.assert_close(reached, expected, rtol=1e-6, atol=1e-8)


def test_a_convolution_counts_as_a_matrix_and_a_vector_has_no_basis():
    x = start(4, 3, 2, 2)
    image, _ = follow(SOAP(), x, gradient=lambda w: w.sin(), steps=12)
    matrix, optimizer = follow(SOAP(), x.reshape(4, 12), gradient=lambda w: w.sin(), steps=12)
    assert torch.equal(image.reshape(4, 12), matrix)
    assert {key for key in next(iter(optimizer.state.values())) if key.endswith("basis")} == {
        "left_basis",
        "right_basis",
    }
    _, optimizer = follow(SOAP(), start(7), steps=2)
    assert set(next(iter(optimizer.state.values()))) == {"step", "exp_avg", "exp_avg_sq"}


def test_settings_that_make_no_sense():
    with pytest.raises(OptimizerError, match="SOAP needs every >= 1"):
        SOAP(every=0)
