"""Graphs in bf16: close to fp32, BatchNorm intact, the original untouched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.nets import NETS, net
from tests.runtimes.quantized import quantized_graph
from trimtab.errors import PlanError
from trimtab.graph.capture import capture, get_tensor
from trimtab.graph.cast import cast


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("name", NETS)
def test_bf16_is_close_and_answers_in_fp32(name: str) -> None:
    module, x = net(name)
    graph = capture(module, (x,))
    with torch.no_grad():
        expected, answer = graph(x), cast(graph, torch.bfloat16)(x)
    assert answer.dtype == torch.float32
    assert 1e-5 < distance(expected, answer) < 2e-2


def test_the_graph_given_is_untouched() -> None:
    module, x = net("conv")
    graph = capture(module, (x,))
    with torch.no_grad():
        before, code = graph(x), graph.code
        cast(graph, torch.bfloat16)
        assert torch.equal(graph(x), before)
    assert graph.code == code
    assert {p.dtype for p in graph.parameters()} == {torch.float32}


def test_weights_are_bf16_and_batch_norms_vectors_fp32() -> None:
    module, x = net("resnet")
    low = cast(capture(module, (x,)), torch.bfloat16)
    dtypes = {name: value.dtype for name, value in low.state_dict().items()}
    assert {dtype for name, dtype in dtypes.items() if "conv" in name or "head" in name} == {torch.bfloat16}
    assert {dtype for name, dtype in dtypes.items() if "bn" in name} == {torch.float32}


def test_the_convolutions_really_compute_in_bf16() -> None:
    module, x = net("conv")
    low = cast(capture(module, (x,)), torch.bfloat16)
    computed = {str(node.target): node.meta["val"].dtype for node in low.graph.nodes if node.op == "call_function"}
    assert {computed[op] for op in ("aten.conv2d.default", "aten.relu.default", "aten.linear.default")} == {
        torch.bfloat16
    }


class Mixed(nn.Module):
    """Upcasts, makes constants inside, ties its weights and takes integers: all that casting has to see."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.back = nn.Linear(8, 7, bias=False)
        self.back.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        x = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.back(x + torch.ones(8)) * torch.arange(7)


def test_upcasts_constants_integers_and_tied_weights() -> None:
    torch.manual_seed(0)
    words = torch.randint(0, 7, (4, 3))
    graph = capture(Mixed(), (words,))
    low = cast(graph, torch.bfloat16)
    with torch.no_grad():
        assert distance(graph(words), low(words)) < 2e-2
    names = [str(node.target) for node in low.graph.nodes if node.op == "get_attr" and "weight" in str(node.target)]
    assert len({id(get_tensor(low, name)) for name in names}) == 1


def test_a_cast_graph_still_trains() -> None:
    module, x = net("conv")
    low = cast(capture(module, (x,)), torch.bfloat16).train()
    low(x).square().sum().backward()
    grads = [p.grad for p in low.parameters() if p.requires_grad]
    assert grads
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)


def test_a_quantized_graph_is_refused() -> None:
    with pytest.raises(PlanError, match="quantized graph cannot be cast"):
        cast(quantized_graph(), torch.bfloat16)
