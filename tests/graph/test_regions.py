import pytest
import torch
from torch import Tensor, nn

from trimtab.errors import CaptureError
from trimtab.graph.capture import capture
from trimtab.graph.dims import groups


class Careful(nn.Module):
    """Turns autocast off for a part of itself, and there once more."""

    def __init__(self, *, on: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.on = on

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(device_type=x.device.type, enabled=self.on):
            y = self.first(x.float())
            with torch.autocast(device_type=x.device.type, enabled=False):
                z = self.second(y.relu())
        return self.last(z + y)


def test_a_region_without_autocast_is_part_of_the_graph() -> None:
    torch.manual_seed(0)
    module, x = Careful(), torch.randn(5, 4)
    graph = capture(module, (x[:2],))
    assert torch.equal(graph(x), module(x))
    assert sorted(graph.state_dict()) == sorted(module.state_dict())
    assert {node.op for node in graph.graph.nodes} == {"placeholder", "get_attr", "call_function", "output"}
    assert all("val" in node.meta for node in graph.graph.nodes if node.op == "call_function")
    assert groups(graph).cuttable  # the algebra sees through


def test_it_trains_as_the_module_does() -> None:
    torch.manual_seed(0)
    module, x = Careful(), torch.randn(5, 4)
    graph = capture(module, (x,))
    module(x).square().sum().backward()
    graph(x).square().sum().backward()
    for name, weight in module.named_parameters():
        torch.testing.assert_close(dict(graph.named_parameters())[name].grad, weight.grad)


def test_a_region_with_autocast_on_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"turns autocast on within its own forward.*precision=\"bf16\""):
        capture(Careful(on=True), (torch.randn(2, 4),))
