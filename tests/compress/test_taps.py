"""What is read at a position is what the graph computes there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.compress.distill import Distill
from trimtab.compress.objectives import SelfAttention
from trimtab.compress.taps import attention_map, attention_taps, value_relations, value_tap, with_taps
from trimtab.core import Fit, Task, Tools
from trimtab.errors import PlanError
from trimtab.graph.capture import capture


class Attention(nn.Module):
    """Tokens [B, T, 8] -> [B, 3]; explicit: with a softmax of its own instead of the fused operation."""

    def __init__(self, *, heads: int = 2, causal: bool = False, explicit: bool = False) -> None:
        super().__init__()
        self.heads, self.causal, self.explicit = heads, causal, explicit
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        if self.explicit:
            y = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.head(y.transpose(1, 2).flatten(2).mean(1))


def test_a_value_is_read_beside_the_output_and_the_graph_stays_as_it_was():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    graph, x = capture(module, (torch.randn(2, 4),)), torch.randn(5, 4)
    code = graph.code
    tap = value_tap(graph, "tanh", whose="graph")
    assert tap.shape == (None, 6)
    output, value = with_taps(graph, [tap])(x)
    assert torch.equal(output, graph(x))
    assert torch.equal(value, module[:2](x))
    assert graph.code == code


@pytest.mark.parametrize("causal", [False, True])
def test_attention_times_values_is_what_the_operation_gives(causal):
    q, k, v = torch.randn(3, 2, 4, 5, 6)
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.testing.assert_close(attention_map(q, k, None, None, causal=causal).exp() @ v, fused, atol=1e-5, rtol=1e-4)
    mask = torch.rand(5, 5) > 0.4
    mask[:, 0] = True
    fused = F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], attn_mask=mask, scale=0.3, enable_gqa=True)
    shared = attention_map(q, k[:, :2], mask, 0.3).exp() @ v[:, :2].repeat_interleave(2, dim=1)
    torch.testing.assert_close(shared, fused, atol=1e-5, rtol=1e-4)
    added = torch.randn(5, 5)
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=added)
    torch.testing.assert_close(attention_map(q, k, added, None).exp() @ v, fused, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(value_relations(v).exp().sum(-1), torch.ones(2, 4, 5))


def test_fused_and_explicit_attention_are_read_alike():
    torch.manual_seed(0)
    fused, x = Attention().eval(), torch.randn(3, 7, 8)
    explicit = Attention(explicit=True).eval()
    explicit.load_state_dict(fused.state_dict())
    read = []
    for module, name in ((fused, "scaled_dot_product_attention"), (explicit, "softmax")):
        graph = capture(module, (x,))
        taps = attention_taps(graph, name, whose="graph")
        assert taps[0].shape == (None, 2, 7, 7)
        read.append(with_taps(graph, taps)(x)[1])
    torch.testing.assert_close(*read, atol=1e-5, rtol=1e-4)


def test_a_student_with_fewer_heads_learns_to_look_where_its_teacher_looks():
    torch.manual_seed(0)
    x, y = torch.randn(96, 6, 8), torch.arange(96) % 3
    parts = {name: (x[at], y[at]) for name, at in {"train": slice(64), "select": slice(64, 80)}.items()}
    task = Task.of("tokens", **parts, verify=(x[80:], y[80:]), fit=Fit(batch_size=16, precision="fp32"))
    teacher, student = Attention(heads=4), capture(Attention(heads=2), (x[:2],))
    method = Distill(
        epochs=6, lr=1e-2, objectives=(SelfAttention(at=("scaled_dot_product_attention",)),), teacher=teacher
    )
    learned = method.apply(student, method.plan(student, task), Tools(task=task))

    @torch.no_grad()
    def loss(graph: nn.Module) -> float:
        read = []
        for one in (graph, capture(teacher, (x[:2],))):
            taps = attention_taps(one, "scaled_dot_product_attention", whose="graph")
            read.append(with_taps(one, taps)(x[64:80])[1:])
        return sum(float(method.objectives[0].loss(s, t)) for s, t in zip(*read, strict=True))

    assert loss(learned) < 0.8 * loss(student)


def test_what_has_no_value_for_each_sample_is_refused():
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.table(torch.arange(4))).mean(1)

    graph = capture(Positions(), (torch.randn(2, 4, 3),))
    with pytest.raises(PlanError, match=r"The graph's 'embedding' has no value \[B, ...\] for a batch: it is \[4, 3\]"):
        value_tap(graph, "embedding", whose="graph")
    with pytest.raises(PlanError, match=r"The teacher has no position 'add_1'; near it: add"):
        value_tap(graph, "add_1", whose="teacher")
