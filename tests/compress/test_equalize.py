"""Equalization: the function stays, the channels' ranges come together, and what cannot be scaled is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from tests.graph.test_dims import Forward
from tests.nets import NETS, net
from trimtab.compress.calibration import batches, watch_outputs
from trimtab.compress.equalize import equalized, find_factors
from trimtab.compress.quantize import Quantize
from trimtab.compress.sensitivity import relative_error
from trimtab.core import Split, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture
from trimtab.graph.fold import fold_batchnorm


def task_with(x: Tensor) -> Task:
    third = len(x) // 3
    y = torch.arange(third) % 3
    train, select, verify = x.split(third)
    return Task.of("t", train=(train, y), select=(select, y), verify=(verify, y))


def both(module: nn.Module, x: Tensor) -> tuple[GraphModule, GraphModule, tuple[tuple[str, ...], ...]]:
    """The folded graph, the equalized one, and who takes the factors of each space: makers, or a multiplied value."""
    graph = fold_batchnorm(capture(module.eval(), (x,)))
    factors = find_factors(graph, batches(Split((x,), torch.arange(len(x)))))
    return graph, equalized(graph, factors), tuple(one.producers or (f"x {one.multiplied}",) for one in factors)


def relative(found: Tensor, want: Tensor) -> float:
    return ((found - want).norm() / want.norm()).item()


@torch.no_grad()
def uneven_(conv: nn.Module, spread: float = 30.0) -> None:
    """Make the output channels of a layer differ in size, up to `spread` times."""
    weight, bias = conv.get_parameter("weight"), conv.get_parameter("bias")
    sizes = spread ** -torch.linspace(0, 1, len(weight))
    weight *= sizes.reshape(-1, *[1] * (weight.ndim - 1))
    bias *= sizes


class Inverted(nn.Module):
    """Widen, depthwise, narrow, added to what came in: [B, 6, 8, 8] -> [B, 3]."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.stem, self.activation = nn.Conv2d(6, 8, 1), activation
        self.widen, self.depthwise = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.narrow, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.activation(self.depthwise(self.activation(self.widen(x))))
        return self.head((x + self.narrow(y)).mean((2, 3)))


def inverted(activation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    module = Inverted(activation)
    for layer in (module.stem, module.widen, module.depthwise, module.narrow):
        uneven_(layer)
    return module.eval()


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6()])
def test_the_function_stays_and_every_space_is_found(activation: nn.Module) -> None:
    x = torch.randn(48, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    graph, scaled, producers = both(inverted(activation), x)
    assert producers == (("conv2d", "conv2d_3"), ("conv2d_1",), ("conv2d_2",))
    assert relative(scaled(x), graph(x)) < 1e-5
    assert relative(scaled(-x), graph(-x)) < (1e-5 if isinstance(activation, nn.ReLU) else 1e-2)


def test_channels_that_only_a_depthwise_layer_reads_become_equal() -> None:
    x = torch.randn(48, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    graph, scaled, _ = both(inverted(nn.ReLU()), x)
    ranges: list[Tensor] = []
    data = [Split((x,), torch.arange(len(x)))]
    for one in (graph, scaled):
        watch_outputs(one, ["relu"], data, lambda node, value: ranges.append(value.amax((0, 2, 3))))
    live = ranges[0] > 0
    assert ranges[0].max() > 10 * ranges[0][live].min()
    assert torch.allclose(ranges[1], ranges[0].max() * live, rtol=1e-4)


def test_a_channel_that_reaches_the_limit_of_relu6_stays() -> None:
    module = inverted(nn.ReLU6())
    with torch.no_grad():
        module.get_parameter("widen.bias")[3] = 7.0
    x = torch.randn(48, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    graph = fold_batchnorm(capture(module, (x,)))
    factors = find_factors(graph, batches(Split((x,), torch.arange(48))))
    values = next(one.values for one in factors if one.producers == ("conv2d_1",))
    assert values[3] == 1
    assert max(values) > 2
    assert relative(equalized(graph, factors)(x), graph(x)) < 1e-5


class FeedForward(nn.Module):
    """A feed-forward block after a LayerNorm with two loud channels: [B, T, 16] -> [B, T, 16].

    post: the residual sum, too, reads what the norm gives.
    """

    def __init__(self, *, post: bool) -> None:
        super().__init__()
        self.post = post
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        with torch.no_grad():
            self.norm.weight[:2] *= 60
            self.up.weight[:, :2] /= 60

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return (y if self.post else x) + self.down(nn.functional.gelu(self.up(y)))


@pytest.mark.parametrize("post", [False, True])
def test_loud_channels_of_a_layer_norm_move_into_the_weights_that_read_it(post: bool) -> None:
    torch.manual_seed(0)
    module, x = FeedForward(post=post).eval(), torch.randn(96, 5, 16)
    graph, scaled, producers = both(module, x)
    # GELU is not linear in a channel's size, and the sum is an output.
    assert producers == (("x layer_norm" if post else "layer_norm",), ("x gelu",))
    assert relative(scaled(x), graph(x)) < 1e-5
    task = task_with(x)
    errors = []
    for equalize in (False, True):
        method = Quantize(samples=32, weight_bits=8, equalize=equalize)
        plan = method.plan(graph, task)
        errors.append(relative(method.apply(graph, plan, Tools())(x), graph(x)))
    assert errors[1] < 0.5 * errors[0]


def test_none_takes_what_moves_the_outputs_of_select_less() -> None:
    taken = []
    for name in ("mlp", "conv", "resnet"):
        module, x = net(name)
        graph = capture(module, (x,))
        task = task_with(torch.randn(96, *x.shape[1:], generator=torch.Generator().manual_seed(0)))
        plans, errors = {}, {}
        for equalize in (False, True, None):
            method = Quantize(samples=32, weight_bits=8, equalize=equalize)
            plans[equalize] = method.plan(graph, task)
            errors[equalize] = relative_error(graph, method.apply(graph, plans[equalize], Tools()), task.select)
        assert errors[None] == min(errors.values())
        taken.append(bool(plans[None].factors))
    assert set(taken) == {True, False}, "each is the better for some net"


def test_uneven_channels_lose_less() -> None:
    module = inverted(nn.ReLU())
    x = torch.randn(192, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    graph, task = capture(module, (x,)), task_with(x)
    errors = []
    for equalize in (False, True):
        method = Quantize(samples=64, weight_bits=8, equalize=equalize)
        errors.append(relative(method.apply(graph, method.plan(graph, task), Tools())(x), graph(x)))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("name", NETS)
def test_other_nets_stay_the_same(name: str) -> None:
    module, x = net(name)
    graph, scaled, _ = both(module, torch.cat([x] * 4))
    assert relative(scaled(x), graph(x)) < 1e-5


def test_what_other_operations_read_is_left_alone() -> None:
    twice = Forward(lambda m, x: m.b(torch.relu(m.a(m.a(x)))), a=nn.Linear(6, 6), b=nn.Linear(6, 3))
    given = Forward(lambda m, x: m.b(torch.relu(m.a(x)) + x), a=nn.Linear(6, 6), b=nn.Linear(6, 3))
    for module in (twice, given):
        assert both(module, torch.randn(32, 6))[2] == ()


def test_convolutions_that_read_what_cannot_be_scaled_are_left_alone() -> None:
    layers = {"a": nn.Conv2d(6, 6, 1), "b": nn.Conv2d(6, 6, 1), "c": nn.Linear(6, 3)}
    module = Forward(lambda m, x: m.c(torch.sigmoid(m.b(torch.sigmoid(m.a(x))).mean((2, 3)))), **layers)
    assert both(module, torch.randn(32, 6, 4, 4))[2] == (("x sigmoid_1",),)


def test_factors_for_another_graph_are_refused() -> None:
    x = torch.randn(96, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    method = Quantize(samples=32, equalize=True)
    plan = method.plan(capture(inverted(nn.ReLU()), (x,)), task_with(x))
    module, y = net("mlp")
    with pytest.raises(PlanError, match="was made for another graph"):
        method.apply(capture(module, (y,)), plan, Tools())
