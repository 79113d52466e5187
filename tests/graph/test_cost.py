"""Costs: agree with torch's own counter, and a cut costs what was said before it was made."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.graph.test_dims import Forward
from tests.graph.test_rules import ROWS
from tests.nets import NETS, net
from trimtab.graph.capture import capture
from trimtab.graph.cost import Sizes, activations, contractions, macs, macs_of_nodes, num_parameters, parameters
from trimtab.graph.dims import Group, groups
from trimtab.graph.surgery import cut

RECURRENT = {"lstm", "gru"}


@functools.cache
def row(name: str) -> tuple[GraphModule, tuple[int, ...]]:
    torch.manual_seed(0)
    given = ROWS[name]
    module = Forward(given.forward, **given.parts()).eval()
    return capture(module, (torch.randn(3, *given.shape),)), given.shape


def counted_by_torch(graph: GraphModule, x: Tensor) -> int:
    # attention as two matrix products: its fused kernel for CPUs is not counted
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        graph(x)
    return counter.get_total_flops() // 2 // len(x)


def test_activations_are_what_one_sample_makes_and_no_weight_or_mask() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Conv2d(1, 4, 3, padding=1), nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x) * self.scale.exp()
            return y * (y > 0)

    graph = capture(Masked().eval(), (torch.randn(2, 1, 5, 5),))
    assert activations(graph) == 3 * 4 * 5 * 5


@pytest.mark.parametrize("name", NETS)
def test_agrees_with_torch_on_whole_nets(name: str) -> None:
    module, x = net(name)
    graph = capture(module, (x,))
    assert macs(graph) == counted_by_torch(graph, x) > 0
    assert num_parameters(graph) == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", [name for name in ROWS if name not in RECURRENT])
def test_agrees_with_torch_on_every_kind_of_layer(name: str) -> None:
    graph, shape = row(name)
    assert macs(graph) == counted_by_torch(graph, torch.randn(2, *shape))


def test_recurrent_layers_use_each_matrix_once_a_step() -> None:
    graph, _ = row("lstm")
    steps, layers = 7, [(8, 10), (20, 10)]
    rnn = sum(2 * 4 * hidden * (given + hidden) for given, hidden in layers)
    assert macs(graph) == steps * (6 * 8 + rnn + 20 * 3)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bij,jk->bik", [(2, 5, 6), (6, 4)]),
        ("bij,jk,kl->bil", [(2, 5, 6), (6, 4), (4, 3)]),
        ("b...j,jk->b...k", [(2, 5, 3, 6), (6, 4)]),
    ],
)
def test_einsum_two_at_a_time(equation: str, shapes: list[tuple[int, ...]]) -> None:
    parts = {f"w{place}": nn.Embedding(*shape) for place, shape in enumerate(shapes[1:])}
    module = Forward(lambda m, x: torch.einsum(equation, x, *(m.get_submodule(name).weight for name in parts)), **parts)
    x = torch.randn(*shapes[0])
    graph = capture(module.eval(), (x,))
    assert macs(graph) == counted_by_torch(graph, x)


def test_a_causal_attention_counts_in_full() -> None:
    def attend(m: nn.Module, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(m.a(x), x, x, is_causal=True).mean(1)

    graph = capture(Forward(attend, a=nn.Linear(6, 6)).eval(), (torch.randn(2, 7, 6),))
    assert macs_of_nodes(graph) == {"linear": 7 * 6 * 6, "scaled_dot_product_attention": 2 * 7 * 7 * 6}


def one_of_each_dim(found: tuple[Group, ...]) -> list[Group]:
    """Groups that share no index of any tensor, as a plan's do."""
    taken: set[tuple[str, int, int]] = set()
    chosen = []
    for group in found:
        own = {(use.name, use.dim, i) for use in group.uses for i in use.place.table().flatten().tolist()}
        if not own & taken:
            chosen.append(group)
            taken |= own
    return chosen


@pytest.mark.parametrize("name", [*NETS, *(name for name in ROWS if name != "gru")])
def test_a_cut_costs_what_was_said_before(name: str) -> None:
    graph = capture(net(name)[0], (net(name)[1],)) if name in NETS else row(name)[0]
    chosen = one_of_each_dim(groups(graph).cuttable)
    kept = {group.name: tuple(range(group.size - max(1, group.size // 3))) for group in chosen}
    gone = {group.name: group.size - len(kept[group.name]) for group in chosen}
    pruned = cut(graph, kept)
    said = {one.node: one.macs(gone) for one in contractions(Sizes(graph, chosen))}
    assert said == macs_of_nodes(pruned)
    numbers = {key: product.after(gone) for key, product in parameters(Sizes(graph, chosen)).items()}
    assert numbers == {key: p.numel() for key, p in pruned.named_parameters()}
    assert any(one.groups() for one in contractions(Sizes(graph, chosen))) == bool(chosen)


def test_tied_weights_count_once() -> None:
    module = Forward(lambda m, x: m.b(torch.relu(m.a(x))), a=nn.Linear(6, 6), b=nn.Linear(6, 6))
    module.b.weight = module.a.weight
    graph = capture(module.eval(), (torch.randn(2, 6),))
    assert num_parameters(graph) == 6 * 6 + 2 * 6
