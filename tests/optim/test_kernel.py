from __future__ import annotations

import pytest
import torch

from tests.optim.curve import start
from trimtab.optim.cautious import CautiousAdamW
from trimtab.optim.kernel import LENGTH, compiled
from trimtab.optim.lion import LionOptimizer
from trimtab.optim.prodigy import ProdigyOptimizer
from trimtab.optim.schedule_free import ScheduleFreeAdamWOptimizer, ScheduleFreeSGDOptimizer

# the formula's class, and how many numbers it takes
FLAT = [
    (LionOptimizer, 4),
    (CautiousAdamW, 10),
    (ProdigyOptimizer, 10),
    (ScheduleFreeAdamWOptimizer, 10),
    (ScheduleFreeSGDOptimizer, 5),
]


def scale_(x, y, numbers):
    x.mul_(numbers[0]).add_(y)
    return (x.sum(),)


def test_lengths_of_none_and_one_need_no_compiler():
    for length in (0, 1):
        x, y = torch.ones(length), torch.full((length,), 2.0)
        assert compiled(scale_)(x, y, torch.tensor([3.0, 0.0])) == (5 * length,)
        assert x.tolist() == [5.0] * length


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # inside torch.compile
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("method", "count"), FLAT, ids=lambda one: getattr(one, "__name__", ""))
def test_one_kernel_does_as_the_formula_at_every_length(method, count, dtype):
    formula, numbers = method.formula_, torch.linspace(0.01, 0.1, count, dtype=dtype)
    for length in (3, 1, 2, 16, 17, 4097, LENGTH + 5):
        given = [start(length, seed=seed).to(dtype).abs() for seed in range(2 + len(method.slots))]
        given[0] -= 0.5
        expected = [one.clone() for one in given]
        sums = [kernel(*x, numbers) or () for kernel, x in ((compiled(formula), given), (formula, expected))]
        torch.testing.assert_close((given, sums[0]), (expected, sums[1]), rtol=1e-4, atol=1e-6)
