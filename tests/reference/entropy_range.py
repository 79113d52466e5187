"""The range by least KL divergence, bin by bin in plain Python (Migacz 2017; zeros do not count, both ends shrink)."""

from __future__ import annotations

import math

from trimtab.compress.observers import BINS, CANDIDATES, LEAST, SMOOTH


def entropy_range(values: list[float]) -> tuple[float, float]:
    """Values hold a positive or a negative number at least."""
    low, high = min(0.0, *values), max(0.0, *values)
    width = (high - low) / BINS
    histogram = [0] * BINS
    for value in values:
        if value != 0:
            histogram[min(BINS - 1, int((value - low) / width))] += 1
    shrinks = [1 + (LEAST - 1) * place / (CANDIDATES - 1) for place in range(CANDIDATES)]
    best = min(shrinks, key=lambda shrink: divergence(histogram, low, width, low * shrink, high * shrink))
    return low * best, high * best


def divergence(histogram: list[int], low: float, width: float, least: float, most: float) -> float:
    scale = (most - least) / 255
    zero = round(-least / scale)
    bins = [place for place in range(BINS) if least <= low + width * (place + 0.5) <= most]
    members: dict[int, list[int]] = {}
    for place in bins:
        level = min(255, max(0, round((low + width * (place + 0.5)) / scale) + zero))
        members.setdefault(level, []).append(place)
    spread = [SMOOTH] * BINS
    for places in members.values():
        filled = [place for place in places if histogram[place]]
        for place in filled:
            spread[place] += sum(histogram[other] for other in places) / len(filled)
    clipped = [0] * BINS
    for place, count in enumerate(histogram):
        clipped[min(bins[-1], max(bins[0], place))] += count
    total, whole = sum(clipped), sum(spread)
    return sum(p / total * math.log(p / total * whole / q) for p, q in zip(clipped, spread, strict=True) if p)
