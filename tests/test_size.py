"""Where bytes count, weights in few bits come first, alone and with cuts; the smallest file that passes ships."""

from __future__ import annotations

from pathlib import Path

import pytest

import trimtab as tt
from tests import small
from trimtab.core import Artifact

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    model, task = small.make(width=256)
    run = tmp_path_factory.mktemp("size") / "run"
    return tt.optimize(model, task, target=small.TARGET, goal=tt.Goal("size_bytes", keep=0.97), run=run, quiet=True)


def test_what_ships_is_smaller_than_integers_of_8_bits_could_make_it(result: Artifact) -> None:
    assert result.verdict.word == "PASS"
    assert result.verdict.gain
    assert result.verdict.gain.value > 5, "8 bits alone come to 4 at most"
    assert "nf4w" in result.name


def test_floats_and_integers_are_not_what_comes_first(result: Artifact) -> None:
    recipes = {trial["recipe"] for trial in result.evidence["trials"] if not trial["free"]}
    assert {"int8w", "nf4w by gptq"} <= recipes
    assert all(recipe.endswith(("int8w", "nf4w by gptq")) for recipe in recipes)
    assert Path(result.path).exists()
