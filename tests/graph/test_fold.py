"""Folding BatchNorm: the same answers in eval mode, and BatchNorm is gone only where that is right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.nets import NETS, net
from trimtab.graph.capture import capture
from trimtab.graph.dims import groups
from trimtab.graph.fold import fold_batchnorm, fold_weights
from trimtab.graph.save import load_graph, save_graph
from trimtab.graph.surgery import cut


def settled(module: nn.Module) -> nn.Module:
    """With statistics and scales that are not trivial, in eval mode."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and part.running_mean is not None:
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.3, 2.0)
            if part.affine:
                nn.init.uniform_(part.weight, -1.5, 1.5)
                nn.init.normal_(part.bias)
    return module.eval()


class Shared(nn.Module):
    """One convolution, two BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.conv(self.a(self.conv(x))))


class Watched(nn.Module):
    """What goes into the BatchNorm is used elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def images(*shape: int) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))


# name -> the module, an input, how many BatchNorms stay
CASES: dict[str, tuple[nn.Module, Tensor, int]] = {
    "conv2d": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), images(3, 6, 6), 0),
    "no bias": (nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)), images(3, 6, 6), 0),
    "no scale": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)), images(3, 6, 6), 0),
    "grouped": (nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8, eps=0.1)), images(4, 6, 6), 0),
    "conv1d": (nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)), images(3, 9), 0),
    "conv3d": (nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4)), images(2, 4, 4, 4), 0),
    "linear": (nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), images(6), 0),
    "twice": (nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)), images(3, 4, 4), 0),
    "first": (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 1)), images(3, 4, 4), 1),
    "after relu": (nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.BatchNorm2d(8)), images(3, 4, 4), 1),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 8, 2), nn.BatchNorm2d(8)), images(3, 4, 4), 1),
    "shared weight": (Shared(), images(3, 4, 4), 2),
    "another user": (Watched(), images(3, 4, 4), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_folding_keeps_the_answers(name: str) -> None:
    module, x, num_left = CASES[name]
    graph = capture(settled(module), (x,))
    folded = fold_batchnorm(graph)
    assert sum(node.target is torch.ops.aten.batch_norm.default for node in folded.graph.nodes) == num_left
    want = graph(x).detach()
    assert torch.allclose(folded(x), want, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("name", NETS)
def test_the_graph_that_was_given_is_untouched_and_the_copy_is_in_eval_mode_for_good(name: str) -> None:
    module, x = net(name)
    graph = capture(module, (x,))
    before = {key: value.clone() for key, value in graph.state_dict().items()}
    code = graph.code
    folded = fold_batchnorm(graph)
    assert graph.code == code
    assert all(torch.equal(value, before[key]) for key, value in graph.state_dict().items())
    want = folded(x)
    assert torch.equal(folded.train()(x), want)
    assert "batch_norm" not in folded.code


def test_what_was_folded_is_saved_and_loaded_bit_for_bit(tmp_path) -> None:
    module, x = net("resnet")
    folded = fold_batchnorm(capture(module, (x,)))
    save_graph(folded, tmp_path)
    assert torch.equal(load_graph(tmp_path)(x), folded(x))


def test_statistics_of_the_batch_are_not_folded() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)).eval()
    x = images(3, 4, 4)
    graph = capture(module, (x,))
    folded = fold_batchnorm(graph)
    assert "batch_norm" in folded.code
    assert torch.equal(folded(x), graph(x))


class Standardised(nn.Conv2d):
    """A convolution whose weights have mean 0 and variance 1 over the inputs of each filter, times a gain."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        w = nn.functional.batch_norm(self.weight.view(1, self.out_channels, -1), None, None, training=True)
        return nn.functional.conv2d(x, w.view_as(self.weight) * self.gain, self.bias)


def test_computed_weights_become_plain_ones_that_can_be_cut() -> None:
    module = nn.Sequential(Standardised(3, 8, 3), nn.ReLU(), Standardised(8, 4, 1), nn.Flatten(), nn.Linear(36, 2))
    x = torch.randn(4, 3, 5, 5)
    graph = capture(module.eval(), (x,))
    assert [group.size for group in groups(graph).cuttable] == [4]  # the 8 are standardised over by the next weights
    folded, names = fold_weights(graph)
    assert names == ("0.weight", "2.weight")
    torch.testing.assert_close(folded(x), graph(x))
    assert [group.name for group in groups(folded).cuttable] == ["0", "2"]
    assert "0.gain" not in dict(folded.named_parameters())
    cut(folded, {"0": (0, 1, 5), "2": (1, 2)})


def test_weights_that_are_only_moved_or_shared_stay_computed() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(nn.functional.linear(x, self.weight * 2), self.weight)

    graph = capture(Tied(), (torch.randn(4, 6),))
    assert fold_weights(graph) == (graph, ())
    plain = capture(nn.Sequential(nn.Linear(6, 3)), (torch.randn(4, 6),))
    assert fold_weights(plain) == (plain, ())


def test_a_weight_that_is_a_piece_of_a_parameter_is_folded() -> None:
    class Piece(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.Parameter(torch.randn(6, 4))
            self.last = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(nn.functional.linear(x, self.both[:3]))

    x = torch.randn(3, 4)
    graph = capture(Piece(), (x,))
    folded, names = fold_weights(graph)
    assert names == ("both",)
    assert torch.equal(folded(x), graph(x))
    assert folded.get_parameter("both").shape == (3, 4)
