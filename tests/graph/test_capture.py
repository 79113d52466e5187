"""Capture: same answers in both modes, any batch, same names, weights copied; refusals name the user's line."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.nets import NETS, net
from trimtab.errors import CaptureError
from trimtab.graph.capture import capture


@pytest.mark.parametrize("name", NETS)
def test_same_answers_for_any_batch(name: str) -> None:
    module, x = net(name)
    graph = capture(module, (x,))
    for batch in (1, 3, 4):
        assert torch.equal(graph(x[:batch]), module(x[:batch]))


@pytest.mark.parametrize("name", NETS)
def test_train_mode_switches_batchnorm_and_dropout(name: str) -> None:
    module, x = net(name)
    graph = capture(module, (x,)).train()
    module = copy.deepcopy(module).train()
    torch.manual_seed(1)
    want = module(x)
    torch.manual_seed(1)
    assert torch.equal(graph(x), want)
    assert not torch.equal(graph.eval()(x), want)
    buffers = dict(module.named_buffers())
    for key, value in graph.named_buffers():
        assert torch.equal(value, buffers[key]), f"running statistics differ: {key}"


@pytest.mark.parametrize("name", NETS)
def test_names_are_kept_and_weights_are_copies(name: str) -> None:
    module, x = net(name)
    graph = capture(module, (x,))
    assert [key for key, _ in graph.named_parameters()] == [key for key, _ in module.named_parameters()]
    with torch.no_grad():
        for weight in graph.parameters():
            weight.zero_()
    assert all(weight.abs().sum() > 0 for weight in module.parameters())


def test_trains_and_compiles() -> None:
    module, x = net("conv")
    graph = capture(module, (x,)).train()
    graph(x).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in graph.parameters())
    compiled = torch.compile(graph.eval(), backend="eager")
    assert torch.equal(compiled(x), graph(x))
    torch.manual_seed(0)
    a = compiled(x)
    graph.train()
    assert not torch.equal(compiled(x), a), "the compiled graph must follow train()"


def test_shapes_are_on_every_node() -> None:
    module, x = net("conv")
    graph = capture(module, (x,))
    conv = next(node for node in graph.graph.nodes if node.name == "conv2d")
    assert tuple(conv.meta["val"].shape)[1:] == (8, 12, 12)
    assert isinstance(conv.meta["val"].shape[0], torch.SymInt)
    assert all("val" in node.meta for node in graph.graph.nodes if node.op != "output")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.b(self.a(x) + y)


def test_tied_weights_stay_tied_and_two_inputs_share_the_batch() -> None:
    module, x, y = Tied(), torch.randn(2, 4), torch.randn(2, 4)
    graph = capture(module, (x, y))
    assert len(list(graph.parameters())) == 3
    assert torch.equal(graph(x[:1], y[:1]), module(x[:1], y[:1]))


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line that breaks it
            return x
        return -x


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, 16).cos()


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + 1


def test_data_dependent_control_flow_is_refused_with_its_line() -> None:
    with pytest.raises(CaptureError, match=r"test_capture\.py:\d+, in forward: if x\.sum\(\) > 0") as caught:
        capture(Branches(), (torch.randn(4, 16),))
    assert "torch.where" in str(caught.value)


def test_a_fixed_batch_size_is_refused_with_the_mend() -> None:
    with pytest.raises(CaptureError, match="fixes the batch size"):
        capture(FixedBatch(), (torch.randn(4, 16),))


def test_cumulative_batchnorm_averages_are_refused() -> None:
    module = nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4, momentum=None))
    with pytest.raises(CaptureError, match=r"1 is a BatchNorm1d with momentum=None.*momentum = 0\.1"):
        capture(module, (torch.randn(4, 16),))


def test_two_outputs_are_refused() -> None:
    with pytest.raises(CaptureError, match="returns 2 tensors"):
        capture(TwoOutputs(), (torch.randn(4, 16),))


class Rescales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.layer.weight.div_(2)
        return self.layer(x)


def test_a_model_that_writes_into_its_weights_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"writes into its own weight 'layer\.weight'.*outside forward"):
        capture(Rescales(), (torch.randn(2, 4),))


def test_weights_are_in_plain_order_whatever_they_were() -> None:
    module = nn.Conv2d(8, 8, 3, groups=8).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 6, 6)
    graph = capture(module, (x,))
    assert graph.get_parameter("weight").stride() == (9, 9, 3, 1)
    assert torch.equal(graph.get_parameter("weight"), module.weight)
