"""What a plan says of a tensor: integers, learned steps packed and back, what fits."""

from __future__ import annotations

import pytest
import torch

from trimtab.compress.scales import ActivationScale, WeightScale, fits, levels, simulated, with_steps

WEIGHT = torch.tensor([[0.26, -1.0, 0.74], [3.0, 1.4, -0.2]])
SCALE = WeightScale("layer", "weight", (0.5, 1.0), bits=3)


def test_integers_are_the_nearest_and_stay_within_their_bits() -> None:
    integers, rows = levels(WEIGHT, SCALE)
    assert integers.tolist() == [[1, -2, 1], [3, 1, 0]]
    assert rows.tolist() == [[0.5], [1.0]]
    assert levels(100 * WEIGHT, SCALE)[0].abs().max() == 3


def test_steps_are_packed_and_added() -> None:
    steps = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 1.0, -1.0]])
    learned = with_steps(SCALE, steps)
    assert isinstance(learned.steps, str)
    assert torch.equal(levels(WEIGHT, learned)[0], levels(WEIGHT, SCALE)[0] + steps)
    assert with_steps(learned, torch.zeros(2, 3)) == SCALE
    big = with_steps(SCALE, (torch.rand(200, 300, generator=torch.Generator().manual_seed(0)) < 0.1).float())
    assert len(big.steps) < 200 * 300 / 8 * 1.5, "rare steps must stay small"


@pytest.mark.parametrize(("shape", "fitting"), [((2, 3), True), ((2, 4), False), ((3, 2), False)])
def test_a_scale_fits_weights_of_its_sizes_alone(shape: tuple[int, int], fitting: bool) -> None:
    learned = with_steps(SCALE, torch.ones(2, 3))
    assert fits(learned, torch.zeros(shape)) is fitting
    assert fits(SCALE, torch.zeros(shape)) is (shape[0] == 2)


def test_simulated_agrees_with_torchs_own_pair() -> None:
    scale = ActivationScale("x", 0.1, 30, -3.0, 22.5)
    x = torch.linspace(-5, 30, 701) + 0.007
    assert torch.allclose(simulated(x, scale), torch.fake_quantize_per_tensor_affine(x, 0.1, 30, 0, 255))
    assert x.min() < -4, "the value itself stays"
