"""Integer weights: what they hold, that rounding by chance is right on average, that training resumes bit by bit."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from tests.train.toy import FIT, toy_net, toy_task
from trimtab.core import Fit
from trimtab.errors import CaptureError, RunError, TaskError
from trimtab.graph.capture import capture
from trimtab.train.integers import LOW, START, TOP, IntegerWeight, float_weights_, integer_weights_, named_tensors
from trimtab.train.loop import fit, predict, score, training


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    a, b = named_tensors(one), named_tensors(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def held(*channels: list[float]) -> IntegerWeight:
    """Two numbers a channel, in units of the channel's scale; the first channels say what the scale is."""
    return IntegerWeight(torch.tensor(channels).to(torch.int8), torch.ones(len(channels), 1))


def test_a_weight_is_the_nearest_integers_and_reads_as_floats():
    values = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    weight = IntegerWeight.of(values)
    assert (weight.levels.dtype, weight.scale.shape, weight.dtype) == (torch.int8, (6, 1, 1, 1), torch.float32)
    assert ((weight.floats() - values).abs() <= weight.scale / 2 + 1e-7).all()
    assert (weight.levels.abs().amax((1, 2, 3)) == START).all()
    assert torch.equal(weight + 1, weight.floats() + 1)
    assert "IntegerWeight(tensor" in repr(weight)


@pytest.mark.parametrize("seed", range(2))
def test_rounding_by_chance_is_right_on_average(seed):
    generator, num = torch.Generator().manual_seed(seed), 1500
    values = 100 * (2 * torch.rand(5, 7, generator=generator) - 1)
    values[:, 0] = 100  # keeps every channel's scale at 1
    weight, total = held(*[[0.0] * 7] * 5), torch.zeros(5, 7, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(num):
            weight.write_(values)
            assert ((weight.levels == values.floor()) | (weight.levels == values.ceil())).all()
            total += weight.levels
    chance = values.double() - values.double().floor()
    error = (total / num - values).abs()
    # Five standard errors of the mean of `num` draws; exact where the value is an integer.
    assert (error <= 5 * (chance * (1 - chance) / num).sqrt() + 1e-9).all()
    assert error.mean() < 0.015


def test_updates_far_below_a_step_add_up():
    weight = nn.Parameter(held([100.0] + [0.0] * 500))
    optimizer = torch.optim.SGD([weight], lr=0.02)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(100):
            weight.grad = torch.tensor([[0.0] + [-1.0] * 500])
            optimizer.step()
    moved = weight.detach().floats()[0, 1:]
    assert moved.mean() == pytest.approx(2, abs=0.2), "100 steps of 0.02; rounding to the nearest would stay at 0"


def test_a_scale_doubles_when_a_weight_leaves_and_halves_exactly_when_all_are_small():
    weight = held([100.0, 3.0], [100.0, 3.0], [100.0, 3.0])
    weight.write_(torch.tensor([[300.0, 3.0], [100.0, 3.0], [LOW - 1.0, 3.0]]))
    assert weight.scale.flatten().tolist() == [4, 1, 0.5]
    assert weight.levels[1].tolist() == [100, 3], "a channel that did not move is not rounded"
    assert weight.levels[2].tolist() == [2 * LOW - 2, 6]
    assert weight.levels.abs().max() <= TOP
    zero = IntegerWeight.of(torch.zeros(1, 2))
    for _ in range(50):
        zero.write_(torch.zeros(1, 2))
    assert torch.equal(zero.floats(), torch.zeros(1, 2))
    zero.write_(torch.full((1, 2), 0.5))
    assert torch.allclose(zero.floats(), torch.full((1, 2), 0.5), rtol=0.02)


def test_answers_and_gradients_are_those_of_the_same_floats():
    model = integer_weights_(toy_net()).train()
    plain = float_weights_(copy.deepcopy(model))
    x = toy_task().train.inputs[0][:8]
    gradients = []
    for one in (model, plain):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            one(x).square().sum().backward()
        gradients.append([p.grad for p in one.parameters()])
    assert all(type(g) is Tensor for g in gradients[0])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert not any(isinstance(p, IntegerWeight) for p in plain.parameters())
    assert torch.equal(predict(model, x), predict(plain, x))


def test_biases_and_norms_stay_floats_and_tied_weights_stay_tied():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "frozen": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    model["frozen"].requires_grad_(requires_grad=False)
    integer_weights_(model)
    assert model["b"].weight is model["a"].weight
    integer = [name for name, p in model.named_parameters() if isinstance(p, IntegerWeight)]
    assert integer == ["a.weight"]
    assert isinstance(model["a"].weight, nn.Parameter)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_trains_and_leaves_the_model_and_the_global_generator_alone(precision):
    task, model = toy_task(), integer_weights_(toy_net())
    settings, state = Fit(epochs=3, lr=1e-2, batch_size=16, precision=precision), torch.random.get_rng_state()
    trained = fit(model, task, settings)
    assert torch.equal(state, torch.random.get_rng_state())
    assert same_bits(model, integer_weights_(toy_net()))
    assert isinstance(trained[0].weight, IntegerWeight)
    assert score(trained, task.select, task.metric).mean() > 0.9
    assert same_bits(trained, fit(model, task, settings))
    assert not same_bits(trained, fit(model, task, Fit(epochs=3, lr=1e-2, batch_size=16, precision=precision, seed=1)))


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    task, file = toy_task(), tmp_path / "run.safetensors"
    whole = fit(integer_weights_(toy_net()), task)

    def stop(done: int, total: int, text: str) -> None:
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(integer_weights_(toy_net()), task, report=stop, checkpoint=file)
    kept = load_file(file)
    assert kept["model.0.weight.levels"].dtype == torch.int8
    with pytest.raises(RunError, match=r"its model is .*, and now it is"):
        fit(toy_net(), task, checkpoint=file)
    assert same_bits(whole, fit(integer_weights_(toy_net()), task, checkpoint=file))


def test_a_state_dict_and_a_file_give_the_same_bits_back(tmp_path):
    trained = fit(integer_weights_(toy_net()), toy_task())
    fresh = integer_weights_(toy_net(seed=1))
    fresh.load_state_dict(trained.state_dict())
    assert same_bits(fresh, trained)
    save_file(named_tensors(trained), tmp_path / "weights.safetensors")
    other = integer_weights_(toy_net(seed=2))
    with torch.no_grad():
        for name, tensor in load_file(tmp_path / "weights.safetensors").items():
            named_tensors(other)[name].copy_(tensor)
    assert same_bits(other, trained)


def test_what_lives_between_two_steps_is_a_quarter():
    def living() -> int:
        """Bytes of every tensor that Python holds, each storage once."""
        gc.collect()
        tensors = [
            t for t in gc.get_objects() if issubclass(type(t), Tensor) and type(t) not in (IntegerWeight, FakeTensor)
        ]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    def grown(model: nn.Module) -> int:
        before = living()
        with training(model, toy_task(), FIT) as steps:
            next(steps)
            next(steps)
            return living() - before

    plain, integer = toy_net(width=64), integer_weights_(toy_net(width=64))
    weights = [p for p in plain.parameters() if p.ndim > 1]
    floats, scales = sum(4 * p.numel() for p in weights), sum(4 * len(p) for p in weights)
    parts = [p for p in integer.parameters() if isinstance(p, IntegerWeight)]
    assert sum(p.levels.nbytes + p.scale.nbytes for p in parts) == floats // 4 + scales < 0.27 * floats
    # Gradients and moments are the same both ways; no copy of the weights in floats stays.
    assert abs(grown(integer) - grown(plain)) < floats // 100


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad])
@pytest.mark.parametrize("how", [{"foreach": True}, {"foreach": False}])
def test_any_optimizer_writes_through_rounding(make, how):
    model = integer_weights_(toy_net())
    optimizer = make(model.parameters(), lr=1e-2, **how)
    x, losses = toy_task().train, []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(12):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x.inputs[0]), x.targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert model[0].weight.levels.dtype == torch.int8


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_fused_step_is_that_of_floats_to_a_level_in_any_layout(layout):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3))
    integer = integer_weights_(copy.deepcopy(model))
    plain = float_weights_(copy.deepcopy(integer))
    for one in (integer, plain):
        one.to(memory_format=layout)
        one(torch.randn(2, 4, 8, 8).to(memory_format=layout).sin()).square().sum().backward()
    for p, q in zip(integer.parameters(), plain.parameters(), strict=True):
        q.grad = torch.empty_like(q).copy_(p.grad)
    for one in (integer, plain):
        torch.optim.AdamW(one.parameters(), lr=0.02, fused=True).step()
    weight, floats = integer[2].weight, plain[2].weight
    assert ((weight.detach().floats() - floats.detach()).abs() <= weight.scale * 1.001).all()


def test_what_is_not_finite_does_not_hide_behind_integers():
    model = integer_weights_(toy_net())
    with torch.no_grad():
        model[0].weight.mul_(float("nan"))
    assert model[0].weight.detach().floats().isnan().all()
    with pytest.raises(TaskError, match="The loss became nan"):
        fit(model, toy_task())


def test_what_cannot_become_integers_is_refused():
    with pytest.raises(TaskError, match="BatchNorm1d has no trainable float32 weight of two or more dims"):
        integer_weights_(nn.BatchNorm1d(3))
    with pytest.raises(TaskError, match="what is integers already stays so"):
        integer_weights_(integer_weights_(nn.Linear(2, 2, bias=False)))
    broken = nn.Linear(2, 2)
    nn.init.constant_(broken.weight, float("inf"))
    with pytest.raises(TaskError, match="The weight weight holds NaN or inf"):
        integer_weights_(broken)


def test_capture_asks_for_ordinary_weights():
    model, x = integer_weights_(toy_net()), toy_task().train.inputs[0][:2]
    with pytest.raises(CaptureError, match=r"0\.weight is an IntegerWeight.*float_weights_"):
        capture(model, (x,))
    assert torch.allclose(capture(float_weights_(model), (x,))(x), predict(model, x), atol=1e-5)
