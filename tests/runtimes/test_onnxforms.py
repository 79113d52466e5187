import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.graph.capture import capture
from trimtab.runtimes.onnxfile import onnx_model
from trimtab.runtimes.onnxforms import onnx_forms

WINDOWS = (2, 4, 2, 6, 8)  # batch, windows, heads, tokens, width


class Attention(nn.Module):
    def __init__(self, *, causal: bool = False, mask: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.causal = causal
        self.register_buffer("mask", torch.randn(mask) if mask else None)

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.linear(x), x, 0.5 * x, attn_mask=self.mask, is_causal=self.causal)


class Clamps(nn.Module):
    """Limits that are buffers, infinite ones among them, one clamp on another."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("far", torch.tensor(torch.inf))
        self.register_buffer("near", torch.full((8,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.clamp(torch.clamp(self.linear(x), -self.far, self.far), -self.far, self.far)
        return torch.clamp(torch.clamp(y, min=-self.near), max=self.near)


class Branches(nn.Module):
    """One value clamped apart for each layer that reads it, between buffers that are infinite until they are set."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        for at in range(3):
            self.register_buffer(f"low{at}", torch.tensor(-torch.inf))
            self.register_buffer(f"high{at}", torch.tensor(torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        return sum(
            layer(torch.clamp(x, getattr(self, f"low{at}"), getattr(self, f"high{at}")))
            for at, layer in enumerate(self.layers)
        )


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (lambda: Attention(), WINDOWS),
        (lambda: Attention(causal=True), (2, 3, *WINDOWS[1:])),
        (lambda: Attention(mask=(6, 6)), WINDOWS),
        (lambda: Attention(mask=(4, 2, 6, 6)), WINDOWS),
        (lambda: Attention(mask=(1, 4, 1, 6, 6)), WINDOWS),
        (lambda: Attention(), (2, 6, 8)),
        (lambda: Attention(mask=(6, 6)), (2, 6, 8)),
        (lambda: Attention(mask=(1, 6, 6)), (2, 6, 8)),
        (Clamps, (2, 5, 8)),
        (Branches, (2, 5, 8)),
    ],
)
def test_what_onnx_has_no_form_of_is_rewritten_with_the_same_values(module, shape) -> None:
    torch.manual_seed(0)
    graph = capture(module(), (torch.randn(shape),))
    before = graph.code
    x = torch.randn(3, *shape[1:])  # another batch than it was captured with
    expected = graph(x)
    torch.testing.assert_close(onnx_forms(graph)(x), expected)
    session = onnxruntime.InferenceSession(onnx_model(graph).SerializeToString())
    got = session.run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(got, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert graph.code == before


def test_a_graph_without_such_operations_is_itself() -> None:
    graph = capture(Attention(), (torch.randn(2, 2, 6, 8),))
    assert onnx_forms(graph) is graph
