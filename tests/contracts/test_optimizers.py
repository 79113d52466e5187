"""What every optimizer promises, one table row each: how low it gets, and that its state comes back bit for bit."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.optim.problems import PROBLEMS, solve
from trimtab.errors import OptimizerError
from trimtab.optim import OPTIMIZERS
from trimtab.optim.base import Optimizer, changed

STEPS = {"quadratic": 300, "rosenbrock": 1000, "factorization": 300, "logistic": 400, "digits": 60}
BEST = 1e-10  # the lowest loss is known to 10 digits


@dataclass(frozen=True)
class Row:
    """For each problem (learning rate, how near to the lowest loss it must come); `steps`, where not as in STEPS.

    The rates are the best of 1 and 3 times powers of ten, without weight decay, with warm-up and cosine unless the
    optimizer wants a constant one. Rosenbrock's valley is for methods that follow a curve: most of the others crawl.
    """

    quadratic: tuple[float, float]
    rosenbrock: tuple[float, float]
    factorization: tuple[float, float]
    logistic: tuple[float, float]
    digits: tuple[float, float]
    steps: int | None = None


ROWS: dict[str, Row] = {
    "adafactor": Row((0.3, 1e-4), (3.0, 0.5), (0.1, 1e-12), (3.0, 1e-4), (0.1, 0.1)),
    "adagrad": Row((1.0, 1e-4), (3.0, 0.1), (1.0, 1e-12), (3.0, 2e-6), (0.1, 0.2)),
    "adam": Row((1.0, 1e-12), (1.0, 1e-10), (1.0, 1e-10), (1.0, BEST), (0.03, 5e-3)),
    "adamw": Row((1.0, 1e-12), (1.0, 1e-10), (1.0, 1e-10), (1.0, BEST), (0.03, 5e-3)),
    "adamw8bit": Row((1.0, 1e-12), (1.0, 1e-10), (1.0, 1e-10), (1.0, BEST), (0.03, 5e-3)),
    "cautious_adamw": Row((1.0, 1e-12), (1.0, 1e-7), (1.0, 1e-12), (1.0, BEST), (0.03, 1e-2)),
    "conjugate_gradient": Row((1.0, 1e-12), (1.0, 1e-12), (1.0, 1e-12), (1.0, BEST), (1.0, 1e-6), steps=12),
    "gradient_descent": Row((1.0, 1e-12), (1.0, 0.5), (1.0, 1e-12), (1.0, BEST), (1.0, 0.1), steps=20),
    "lbfgs": Row((1.0, 1e-12), (1.0, 1e-12), (1.0, 1e-10), (1.0, BEST), (1.0, 1e-6), steps=3),
    "lion": Row((0.1, 2e-4), (0.03, 5e-3), (0.3, 5e-4), (0.1, 1e-4), (0.01, 0.1)),
    "muon": Row((1.0, 1e-12), (1.0, 1e-10), (0.1, 2e-8), (1.0, BEST), (0.1, 1e-3)),
    "nadamw": Row((1.0, 1e-10), (0.1, 0.05), (1.0, 1e-12), (1.0, 3e-10), (0.03, 0.1)),
    "nesterov": Row((1.0, 1e-12), (1.0, 1e-10), (1.0, 1e-12), (1.0, BEST), (1.0, 1e-4), steps=20),
    "prodigy": Row((1.0, 1e-11), (3.0, 1e-5), (1.0, 1e-10), (1.0, BEST), (1.0, 0.4)),
    "radam": Row((3.0, 1e-10), (0.03, 3.0), (3.0, 1e-10), (3.0, BEST), (0.3, 1e-2)),
    "rmsprop": Row((0.1, 1e-6), (3.0, 0.05), (0.1, 1e-12), (0.3, 1e-7), (0.01, 0.2)),
    "schedule_free_adamw": Row((0.3, 1e-7), (0.3, 0.01), (0.3, 5e-6), (1.0, 3e-5), (0.1, 5e-3)),
    "schedule_free_sgd": Row((3.0, 1e-4), (0.01, 0.1), (3.0, 5e-5), (3.0, 3e-4), (1.0, 0.1)),
    "sgd": Row((1.0, 1e-10), (0.001, 0.01), (1.0, 1e-12), (3.0, BEST), (0.3, 0.2)),
    "soap": Row((0.3, 1e-7), (0.03, 1e-10), (0.3, 3e-6), (0.3, 3e-8), (0.03, 5e-3)),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small gain nothing from more threads, and lose much where other work runs beside the tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=OPTIMIZERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def without_decay(settings: Optimizer, lr: float) -> Optimizer:
    inner = getattr(settings, "inner", settings)
    decays = any(field.name == "weight_decay" for field in dataclasses.fields(inner))
    return changed(settings, lr=lr, weight_decay=0.0 if decays else None)


def toy(*, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A convolution, an embedding, a norm and a layer of 1 output: [B] integers -> [B, 1]."""

    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 12)
            self.conv = nn.Conv1d(3, 5, 2)
            self.norm = nn.LayerNorm(15)
            self.hidden = nn.Linear(15, 6)
            self.last = nn.Linear(6, 1)

        def forward(self, index: Tensor) -> Tensor:
            x = self.norm(self.conv(self.table(index).reshape(-1, 3, 4)).flatten(1))
            return self.last(torch.tanh(self.hidden(x)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Toy().to(dtype)


def walk(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Steps on data that the step's number decides."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        index, noise = torch.randint(7, (8,), generator=generator), torch.randn(8, 1, generator=generator)

        def closure(index: Tensor = index, noise: Tensor = noise) -> Tensor:
            optimizer.zero_grad()
            loss = F.mse_loss(model(index).float(), noise)
            loss.backward()
            return loss

        optimizer.step(closure)


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    a, b = dict(one.named_parameters()), dict(other.named_parameters())
    return all(torch.equal(p, b[key]) for key, p in a.items())


def leaves(value: Any) -> list[Any]:
    """The tensors and numbers in nested dicts and lists, in order."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key])]
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, list | tuple) else [value]


def test_every_optimizer_has_a_row_and_the_table_is_sorted() -> None:
    assert list(OPTIMIZERS) == sorted(OPTIMIZERS) == sorted(ROWS)


def test_the_page_is_true() -> None:
    page = (Path(__file__).parents[2] / "docs/optimizers.md").read_text(encoding="utf-8")
    rows = [[cell.strip(" `") for cell in line.split("|")[1:6]] for line in page.splitlines() if line.startswith("| `")]
    assert rows == [
        [name, type(one).__name__, f"{one.lr:g}", one.schedule, "all" if one.full_batch else "mini"]
        for name, one in OPTIMIZERS.items()
    ]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_it_comes_near_the_lowest_loss(name: str, problem: str) -> None:
    row = ROWS[name]
    lr, near = getattr(row, problem)
    assert solve(PROBLEMS[problem](), without_decay(OPTIMIZERS[name], lr), row.steps or STEPS[problem]) <= near


def test_settings_are_frozen_values(name: str) -> None:
    settings = OPTIMIZERS[name]
    assert settings == type(settings)()
    assert hash(settings) == hash(type(settings)())
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, field.name, None)
    assert isinstance(settings.build(toy()), torch.optim.Optimizer)


def test_a_setting_out_of_range_is_refused(name: str) -> None:
    with pytest.raises(OptimizerError, match=r"\(lr=-1\) is out of range; give lr > 0. The default is"):
        changed(OPTIMIZERS[name], lr=-1)


def test_the_state_comes_back_bit_for_bit(name: str) -> None:
    model = toy()
    optimizer = OPTIMIZERS[name].build(model)
    walk(model, optimizer, range(3))
    other = copy.deepcopy(model)
    again = OPTIMIZERS[name].build(other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before, after = leaves(optimizer.state_dict()), leaves(again.state_dict())
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        assert type(a) is type(b)
        assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else a == b
    walk(model, optimizer, range(3, 6))
    walk(other, again, range(3, 6))
    assert same_bits(model, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dtypes_may_be_mixed(name: str, dtype: torch.dtype) -> None:
    model = toy()
    model.last.to(dtype)
    model.hidden.register_forward_hook(lambda module, args, output: output.to(dtype))
    settings = OPTIMIZERS[name]
    # Steps that bf16, of 8 bits, can see; Prodigy finds its own, from a first guess.
    if not settings.full_batch:
        settings = changed(settings, d0=0.02) if name == "prodigy" else changed(settings, lr=0.02)
    optimizer = settings.build(model)
    before = copy.deepcopy(model)
    walk(model, optimizer, range(2))
    for (key, p), old in zip(model.named_parameters(), before.parameters(), strict=True):
        assert p.dtype == old.dtype
        assert p.isfinite().all(), key
        assert not torch.equal(p, old), key


def test_frozen_parameters_and_those_without_a_gradient_stay(name: str) -> None:
    model = toy()
    model.unused = nn.Linear(3, 3)
    model.hidden.requires_grad_(False)
    before = copy.deepcopy(model)
    walk(model, OPTIMIZERS[name].build(model), range(2))
    assert same_bits(model.hidden, before.hidden)
    assert same_bits(model.unused, before.unused)
    assert not same_bits(model.last, before.last)


def test_sparse_complex_and_nothing_are_refused(name: str) -> None:
    model = toy()
    model.table = nn.Embedding(7, 12, sparse=True)
    with pytest.raises(OptimizerError, match=r"table gives sparse gradients.*sparse=False"):
        OPTIMIZERS[name].build(model)
    with pytest.raises(OptimizerError, match=r"weight is torch.complex64.*view_as_real"):
        OPTIMIZERS[name].build(nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(OptimizerError, match="Linear has no parameter to train"):
        OPTIMIZERS[name].build(nn.Linear(2, 2).requires_grad_(False))
