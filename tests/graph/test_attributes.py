"""Which integers of a module follow a cut: the options, their order, and how they are set."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.graph.attributes import Attribute, attributes, choices, numbers, same_operations
from trimtab.graph.capture import capture
from trimtab.graph.rebuild import derived


class Heads(nn.Module):
    """[B, 6] -> [B, 2]; `same` has the value of `count` and nothing to do with it."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.count, self.size, self.same = count, [9, size], 4
        self.first, self.last = nn.Linear(6, count * size), nn.Linear(count * size, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).view(-1, self.count, self.size[1]).transpose(1, 2)
        return self.last(y.flatten(1))


def found(before: tuple[int, int], after: tuple[int, int]) -> dict[str, Attribute]:
    like, smaller = Heads(*before), Heads(*after)
    graphs = [capture(module, (torch.randn(2, 6),)) for module in (like, smaller)]
    assert same_operations(*graphs) is None
    pairs = zip(like.named_parameters(), smaller.parameters(), strict=True)
    widths = {name: (tuple(old.shape), tuple(new.shape)) for (name, old), new in pairs}
    changed = attributes(like, numbers(*graphs), widths, derived)
    return {one.name: one for one in changed}


def test_a_number_that_is_there_once_settles_it() -> None:
    one = found((4, 5), (3, 5))
    assert one.keys() == {"count", "same"}
    assert (one["count"].options, one["count"].settled) == (((3,), (4,)), True)
    one = found((4, 5), (4, 2))
    assert (one["size"].item, one["size"].options) == (1, ((2,), (5,)))


def test_equal_numbers_leave_it_open() -> None:
    one = found((4, 4), (4, 3))
    assert {name: set(part.options) for name, part in one.items()} == {name: {(3,), (4,)} for name in one}
    assert one.keys() == {"count", "size", "same"}
    assert not any(part.settled for part in one.values())


def test_nothing_is_asked_where_nothing_changed() -> None:
    assert found((4, 4), (4, 4)) == {}


def test_an_option_is_set_in_every_owner_and_told() -> None:
    module = nn.ModuleList([Heads(4, 5), Heads(3, 5)])
    item = Attribute("size", 1, ("0", "1"), (5, 5), ((2, 5), (5, 5)), settled=True)
    item.set_(module, 0)
    assert [part.size for part in module] == [[9, 2], [9, 5]]
    assert item.told(0) == ["0.size[1] 5 -> 2"]
    whole = Attribute("count", None, ("1",), (3,), ((1,), (3,)), settled=True)
    whole.set_(module, 0)
    assert [part.count for part in module] == [4, 1]
    assert whole.told(0) == ["1.count 3 -> 1"]
    assert whole.told(1) == []


def test_choices_begin_with_the_best_and_end() -> None:
    one = Attribute("n", None, ("",), (4,), ((2,), (3,), (4,)), settled=False)
    listed = list(choices([one, one], most=100))
    assert len(listed) == len(set(listed)) == 9
    assert listed[0] == (0, 0)
    assert [sum(choice) for choice in listed] == sorted(sum(choice) for choice in listed)
    assert list(choices([], most=3)) == [()]


def test_other_operations_are_told() -> None:
    x = torch.randn(2, 6)
    heads, other = capture(Heads(2, 2), (x,)), capture(nn.Linear(6, 2), (x,))
    assert same_operations(heads, other) == "it has get_attr where the class has aten.linear.default"
    more = capture(nn.Sequential(nn.Linear(6, 2), nn.ReLU()), (x,))
    assert same_operations(other, more) == "it has output where the class has aten.relu.default"
