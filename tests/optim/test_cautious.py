from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from tests.optim.curve import compiled, follow, gradients, start
from tests.reference import optimizers as reference
from trimtab.errors import OptimizerError
from trimtab.optim.adaptive import AdamW, NAdamW
from trimtab.optim.cautious import Cautious, CautiousOptimizer, _mask_, _mask_by_pieces_
from trimtab.optim.flat import PIECE
from trimtab.optim.sgd import SGD

SETTINGS = Cautious(AdamW(lr=0.02, betas=(0.9, 0.99), weight_decay=0.1))


@dataclass(frozen=True)
class Wrapped:
    """AdamW masked as the others are, from outside."""

    compiled: bool = False

    def build(self, model):
        return CautiousOptimizer(SETTINGS.inner.build(model), compiled=self.compiled)


@pytest.mark.parametrize(
    "settings",
    [SETTINGS, compiled(SETTINGS), Wrapped(), Wrapped(compiled=True)],
    ids=["eager", "formula", "wrapped", "wrapped formula"],
)
def test_it_agrees_with_the_paper_for_100_steps(settings, monkeypatch):
    for name in ("flat.compiled", "cautious.for_any_shape"):
        monkeypatch.setattr(f"trimtab.optim.{name}", lambda formula: formula)
    x = start(30, 40)
    expected = reference.adamw(x, gradients(), 100, lr=0.02, decay=0.1, cautious=True)
    torch.testing.assert_close(follow(settings, x)[0], expected, rtol=1e-9, atol=1e-11)
    unmasked = reference.adamw(x, gradients(), 100, lr=0.02, decay=0.1)
    torch.testing.assert_close(follow(SETTINGS.inner, x)[0], unmasked, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(expected, unmasked, atol=1e-3)


@pytest.mark.parametrize("inner", [AdamW(), NAdamW(weight_decay=0)], ids=["AdamW", "NAdamW"])
def test_no_weight_moves_against_its_gradient(inner):
    x = start(50)  # a vector, which does not decay
    before, _ = follow(Cautious(inner), x, steps=5)
    after, _ = follow(Cautious(inner), x, steps=6)
    gradient = gradients()
    for _ in range(5):
        gradient(before)
    g = gradient(before)
    assert ((after - before) * g <= 0).all()
    assert ((after - before) == 0).any()


def test_what_decays_through_the_gradient_is_refused():
    with pytest.raises(OptimizerError, match="Cautious cannot mask SGD; it masks AdamW, NAdamW"):
        Cautious(SGD())


def test_piece_by_piece_is_as_all_at_once():
    for lay in (lambda w: w, lambda w: w.clone().repeat_interleave(2)[::2]):  # the second lies with gaps
        whole, old, g = (lay(start(3 * PIECE + 5, seed=seed)) for seed in range(3))
        pieces = lay(whole.clone())
        _mask_(whole, g, old, 0.9)
        _mask_by_pieces_(pieces, g, old.clone(), 0.9)
        torch.testing.assert_close(pieces, whole, rtol=1e-6, atol=1e-6)


def test_weights_laid_out_anew_keep_going():
    model = torch.nn.Conv2d(3, 4, 3)
    optimizer = SETTINGS.build(model)
    for step in range(2):
        model.weight.grad, model.bias.grad = start(4, 3, 3, 3, seed=step).float(), start(4).float()
        optimizer.step()
        model.to(memory_format=torch.channels_last)
    assert model.weight.isfinite().all()


def test_weights_of_several_pieces_take_the_steps_of_the_formula(monkeypatch):
    monkeypatch.setattr("trimtab.optim.flat.compiled", lambda formula: formula)
    x = start(2 * PIECE + 5).float()
    eager, formula = (follow(settings, x, steps=3)[0] for settings in (SETTINGS, compiled(SETTINGS)))
    torch.testing.assert_close(eager, formula, rtol=1e-5, atol=1e-6)
