from __future__ import annotations

import pytest

from tests.report import sample
from trimtab.report import words


@pytest.mark.parametrize(
    ("value", "text"), [(0.999, "0.999"), (9.996, "10.0"), (99.96, "100"), (999.6, "1,000"), (0.00012, "0.000120")]
)
def test_significant_digits_at_their_edges(value: float, text: str) -> None:
    assert words.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(59.6, "1 min 0 s"), (9.97, "10 s"), (3599.9, "1 h 0 min"), (0.0, "0.0 s")]
)
def test_duration_at_its_edges(value: float, text: str) -> None:
    assert words.duration(value) == text


@pytest.mark.parametrize(("value", "text"), [(1.0, "1.00×"), (1.949, "1.95×"), (9.97, "10×"), (0.5, "0.50×")])
def test_factor_at_its_edges(value: float, text: str) -> None:
    assert words.factor(value) == text


def test_size_at_its_edges() -> None:
    assert words.size(None) == "–"
    assert words.size(999) == "999 B"
    assert words.size(999_600) == "1.00 MB"


def test_headlines_of_every_verdict() -> None:
    assert words.headline(sample.evidence()) == "2.9× faster, and accuracy holds."
    assert words.headline(sample.inconclusive()) == "It is not proven that accuracy holds."
    assert words.headline(sample.failed()) == "Not faster than the best free baseline."
    lost = sample.evidence()
    lost["verdict"] |= {"word": "FAIL", "drop": lost["verdict"]["drop"] | {"low": -0.05, "high": -0.03}}
    assert words.headline(lost) == "Too much accuracy is lost."
    slow = sample.evidence()
    slow["verdict"]["word"] = "INCONCLUSIVE"
    slow["goal"]["minimise"] = "size_bytes"
    assert words.headline(slow) == "It is not proven to be smaller."


def test_a_task_may_say_that_its_metric_is_a_share() -> None:
    evidence = sample.failed()
    assert not words.is_fraction(evidence)
    evidence["task"]["binary"] = True
    assert words.is_fraction(evidence)


def test_headlines_of_several_bounds_name_the_first_that_decides() -> None:
    found = sample.bounded()
    assert words.headline(found) == "Too much accuracy, shirt is lost."
    bounds = found["verdict"]["bounds"]
    found["verdict"] |= {"word": "INCONCLUSIVE", "bounds": bounds[:2]}
    assert words.headline(found) == "It is not proven that F1 of <coat> holds."
    found["verdict"] |= {"word": "PASS", "bounds": [bounds[0], bounds[0]]}
    assert words.headline(found) == "2.9× faster, and all 2 bounds hold."


def test_further_bounds_in_words() -> None:
    assert words.further_bounds(sample.evidence()) == []
    (word, text), (lost, _) = words.further_bounds(sample.bounded())
    assert (word, lost) == ("INCONCLUSIVE", "FAIL")
    assert text == "F1 of <coat> changed by −0.01, at worst by −0.03, −0.00899 allowed, 4,000 samples"


def test_what_others_used_of_the_machine_is_told_where_it_is_much() -> None:
    found = sample.bounded()
    assert words.disturbance(found).startswith("Others kept 0.2 cores busy meanwhile;")
    found["rows"][2]["others_cores"] = None
    assert words.disturbance(found) == ""


def test_a_clock_that_jumped_is_told() -> None:
    rows = [{"name": "a", "jumps": 2, "leaps": 0}, {"name": "b", "jumps": 1, "leaps": 4}]
    told = words.disturbance({"rows": rows})
    assert "went back in 3 blocks, which were timed again" in told
    assert "leapt, in 4 calls" in told
