"""int8 weights in inductor's form: the same values, in another operation, as bytes."""

from __future__ import annotations

import pytest
import torch

from tests.compress.test_quantize import task_of
from tests.nets import net
from trimtab.compress.weightonly import WeightOnly
from trimtab.core import Tools
from trimtab.graph.capture import capture
from trimtab.graph.packed import holds_packed
from trimtab.runtimes.inductorpacked import dequantized


@pytest.mark.parametrize(("name", "group_size"), [("conv", None), ("mlp", 8)])
def test_the_form_changes_and_the_values_do_not(name: str, group_size: int | None) -> None:
    module, x = net(name)
    graph = capture(module, (x,))
    method = WeightOnly("int8", group_size=group_size)
    packed = method.apply(graph, method.plan(graph, task_of(x)), Tools())
    given = packed.code
    found = dequantized(packed)
    assert packed.code == given
    assert holds_packed(packed)
    assert not holds_packed(found)
    with torch.no_grad():
        assert torch.allclose(found(x), packed(x), atol=1e-6)
    weights = [tensor for tensor in found.state_dict().values() if tensor.dtype == torch.int8]
    assert len(weights) == len(method.plan(graph, task_of(x)).weights)
    assert sum(weight.numel() for weight in weights) == sum(
        row.numel() for row in packed.state_dict().values() if row.dtype == torch.int8
    )
