"""The benchmark of optimizers: what a run gives, and which rate counts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from models.fetch import CACHE
from optimizers import GO_ON, MULTIPLES, best_of, cells_in, even, keep, profile, run, seeds_of, settings_of
from problems import FASHION, PROBLEMS, cancer

from trimtab.optim import OPTIMIZERS


def test_a_run_counts_gradients_and_a_miss_is_infinite() -> None:
    gradients, seconds = run(cancer(), settings_of("lbfgs", 1.0), 0)
    assert 10 < gradients < 60
    assert seconds > 0
    problem = cancer()
    assert run(replace(problem, most=3), settings_of("sgd", 1.0), 0) == [math.inf, math.inf]
    gradients, _ = run(replace(problem, early=1.0), settings_of("adamw", 1000.0), 0)
    assert gradients < math.inf
    assert run(replace(problem, early=0.06), settings_of("adamw", 1000.0), 0) == [math.inf, math.inf]


def test_cells_are_kept_and_found_again(tmp_path: Path) -> None:
    cells = {"p adam 1 0": [9.0, 1.0], "p adam 1 1": [math.inf, math.inf]}
    keep(tmp_path / "cells.json", cells)
    assert cells_in(tmp_path / "cells.json") == cells
    assert cells_in(tmp_path / "none.json") == {}


def test_the_rate_of_the_lowest_median_counts_and_misses_are_infinite() -> None:
    cells = {"p adam 1 0": [9.0, 1.0], "p adam 1 1": [math.inf, math.inf]}
    cells |= {"p adam 10 0": [7.0, 3.0], "p adam 10 1": [8.0, 2.0]}
    cells |= {"p adam 100 0": [1.0, 1.0]}  # out after the first seed
    assert best_of(cells, "p", "adam") == (10.0, [7.0, 8.0], [3.0, 2.0])
    assert best_of(cells, "p", "sgd") is None
    cells |= {f"p {name} 1 0": [math.inf, math.inf] for name in OPTIMIZERS if name != "adam"}
    assert profile(cells, ["p"])["adam"] == [1.0]
    assert profile(cells, ["p"])["sgd"] == [math.inf]


def test_all_are_compared_on_the_seeds_that_all_have_ended() -> None:
    def ran(name: str, seed: int) -> dict[str, list[float]]:
        rates = MULTIPLES[:GO_ON] if seed else MULTIPLES
        return {f"cancer {name} {rate:g} {seed}": [9.0, 1.0] for rate in rates}

    cells = {key: run for seed in range(2) for name in OPTIMIZERS for key, run in ran(name, seed).items()}
    more = {f"cancer {name} 1 2": [1.0, 1.0] for name in OPTIMIZERS} | ran("adam", 2) | {"digits adam 1 0": [1.0, 1.0]}
    assert seeds_of(cells | more, "cancer") == 2
    assert seeds_of(cells | more, "digits") == 0
    assert even(cells | more) == cells


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_through_every_problem(name: str) -> None:
    needed = {"letters": "letters.npz", "austen": "austen.npz", "fashion": FASHION.archive}
    for place, make in PROBLEMS.items():
        if place in needed and not (CACHE / needed[place]).exists():
            continue  # its data comes with another package
        problem = replace(make(), most=2, target=1e9, look=1)
        gradients = run(problem, settings_of(name, 1.0), 0)[0]
        assert gradients == math.inf if problem.batches and OPTIMIZERS[name].full_batch else gradients >= 1
