"""The best widths by trying all of them: slow and obvious."""

from __future__ import annotations

from itertools import product

from trimtab.compress.allocate import Choice, Cost


def best_widths(choices: list[Choice], costs: list[Cost]) -> tuple[float, dict[str, int]]:
    """What the best widths within the limits lose, and these widths."""
    best: tuple[float, dict[str, int]] | None = None
    for widths in product(*(zip(one.widths, one.lost, strict=True) for one in choices)):
        gone = {one.group: one.size - width for one, (width, _) in zip(choices, widths, strict=True)}
        lost = sum(part for _, part in widths)
        if all(cost.total(gone) <= cost.limit for cost in costs) and (best is None or lost < best[0]):
            best = lost, {one.group: width for one, (width, _) in zip(choices, widths, strict=True)}
    assert best is not None
    return best
