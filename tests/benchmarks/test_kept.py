"""Rows that stay beside a report."""

from __future__ import annotations

from pathlib import Path

from kept import kept


def test_what_is_measured_again_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    file, names = tmp_path / "rows.json", ("a", "b")
    first = kept(file, {"b": [{"x": 1}, {"x": 2}], "a": []}, names=names, libraries=["numpy"])
    assert list(first) == ["b"]
    assert "numpy" in first["b"].made
    again = kept(file, {"b": [{"x": 3}, {"x": 4}], "a": [{"x": 5}]}, names=names, libraries=["torch"])
    assert list(again) == ["a", "b"]
    assert again["b"].rows == [{"x": 3}, {"x": 4}]
    assert "torch" in again["b"].made
    assert kept(file, {}, names=names, libraries=[]) == again


def test_what_has_not_ended_does_not(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    whole = kept(file, {"a": [{"x": 1}, {"x": 2}]}, names="a", libraries=["numpy"])
    assert kept(file, {"a": [{"x": 7}]}, names="a", libraries=["numpy"]) == whole
    assert kept(file, {"a": [{"x": 7}, {"x": None}]}, names="a", libraries=["numpy"]) == whole
    assert kept(file, {"a": [{"x": 7}, {"x": 8}]}, names="a", libraries=["numpy"])["a"].rows == [{"x": 7}, {"x": 8}]
