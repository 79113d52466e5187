"""What the benchmark of searches counts, and what it says of it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import cattrs
import pytest
from search_cost import rows_of
from searched import cells, table

from trimtab.core import Drop, Measurement, Outcome, Ratio, Slot, Trial
from trimtab.files import write_json

BOUNDS = {"MiniLM": "97% of the original's quality to keep", "MobileNetV2": "all of it to keep"}


def trial(gain: float, lost: float) -> Outcome:
    drop = Drop(0.9, 0.9 - 0.1 * lost, -0.1 * lost, -1.0, 1.0, 0.1, 300, 0.95, "given")
    size = Measurement("latency_ms", 1.0, "ms", 1, 1.0, 1.0)
    ratio = Ratio(gain, gain, gain, 1)
    return Outcome(Trial("a", "a", "a", "eager", "fp32", drop, (size,), ratio, 1.0, "a"))


def test_a_cell_is_made_once_and_has_ended_for_who_asked(tmp_path: Path) -> None:
    made: list[str] = []

    def make() -> int:
        made.append("now")
        return 3

    one, other = (cells.Cells(tmp_path / name, tmp_path) for name in ("one", "other"))
    assert [own.once("screens/x", make, int) for own in (one, one, other)] == [3, 3, 3]
    assert len(made) == 1
    late = cells.Cells(tmp_path / "late", tmp_path)
    assert not late.has("screens/x"), "it is there, but this strategy has not asked for it"
    late.once("screens/x", make, int)
    assert late.has("screens/x")
    assert [name for name, _ in late.used] == ["screens/x"]
    assert not cells.Cells(tmp_path / "rival", tmp_path, forgetful=True).has("screens/x")


def test_evaluations_are_graphs_scored_and_further_files(tmp_path: Path) -> None:
    for name, gain, lost in (
        ("a-1-eager-fp32", 2.0, 0.5),
        ("a-1-inductor-fp32", 4.0, 0.5),
        ("b-2-eager-fp32", 4.0, -1),
    ):
        write_json(tmp_path / "trials" / f"{name}.json", cattrs.unstructure(trial(gain, lost)))
        write_json(tmp_path / cells.SECONDS / f"trials {name}.json", 1.0)
        write_json(tmp_path / cells.SECONDS / f"files {name}.json", 2.0)
    names = ("screens/a-1", "trials/a-1-eager-fp32", "trials/a-1-inductor-fp32", "screens/b-2", "trials/b-2-eager-fp32")
    steps = cells.curve(tmp_path, [(name, 0.0) for name in names])
    assert [step.evaluations for step in steps] == [1, 1, 2, 3, 3]
    assert [step.seconds for step in steps] == [0, 3, 6, 6, 9]
    assert [step.hypervolume for step in steps] == pytest.approx([0, 0.25, 0.375, 0.375, 0.75])


def rows(strategy: str, *steps: tuple[int, float, float]) -> dict[str, Any]:
    names = ("evaluations", "seconds", "hypervolume")
    return {"strategy": strategy, "seed": 0, "steps": [dict(zip(names, step, strict=True)) for step in steps]}


def test_report_says_whether_the_aim_is_met() -> None:
    whole = rows("grid", (1, 5.0, 0.1), (40, 200.0, 0.5))
    fast, slow = rows("ours", (4, 9.0, 0.4), (8, 30.0, 0.55)), rows("ours", (9, 9.0, 0.4), (20, 30.0, 0.55))
    text = "\n".join(table.report({"MiniLM": table.Part("now", [whole, fast, slow])}, BOUNDS))
    assert (
        "- Grid: 0.500 after 40 evaluations, should be reached in at most a quarter of them (10): this holds for 1 of 2"
        in text
    )
    assert "Ours has it, by seed, at 8 (30 s), at 20 (30 s); the grid took 200 s." in text
    assert "| ours | 2 | 14 (8 ... 20) | 30 | 0.550 | 0.475 (0.400 ... 0.550) | 14 (8 ... 20) |" in text
    assert "After 10 evaluations, as shares of 0.500: ours 95 (80 ... 110) %, grid 20 %." in text
    assert "Not run: MobileNetV2." in text
    assert "97% of the original's quality to keep. Measured now." in text
    better = rows("grid of even cuts", (30, 100.0, 0.6))
    text = "\n".join(table.report({"MiniLM": table.Part("now", [whole, better, slow])}, BOUNDS))
    first, second = (line for line in text.splitlines() if "evaluations, should" in line)
    assert first.startswith("- Grid of even cuts: 0.600 after 30 evaluations"), "the better comes first"
    assert first.endswith("this does not hold. Ours ended at 0.550.")
    assert second.startswith("- Grid: 0.500 after 40 evaluations")
    nothing = table.aim([rows("grid", (9, 1.0, 0.0)), slow])
    assert nothing[0] == "- Grid: nothing within the bound in 9 evaluations. Ours ended at 0.550."
    assert "this does not hold" in "\n".join(table.report({"MiniLM": table.Part("now", [whole, slow])}, BOUNDS))
    assert "The aim is not decided" in "\n".join(table.report({"MiniLM": table.Part("now", [whole])}, BOUNDS))


def test_the_page_says_what_was_not_run_or_less_often() -> None:
    whole, own, cut = (
        rows("grid", (9, 1.0, 0.5)),
        rows("ours", (9, 1.0, 0.4)),
        rows("channels cut alone", (9, 1.0, 0.4)),
    )
    text = "\n".join(table.page({"MiniLM": [whole, own, own], "MobileNetV2": [own, cut]}, BOUNDS, "results.md"))
    assert "- Run with fewer seeds than the 2 of others: grid (1)." in text
    assert "- Not run here: grid." in text, "families that a model does not have are not told"
    assert "Ours has it" not in text
    assert not table.less_run([whole, own], ["grid", "ours"])


def test_what_was_foreseen_of_floats_is_read_from_the_storage_and_told(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "ours 0" / "trials.db"
    file.parent.mkdir(parents=True)
    told = [("eager fp32", 0.5, 2.5), ("eager bf16", 0.6, 2.0), ("eager int8", 0.9, 4.0), ("eager fp32", 0.3, None)]
    with closing(sqlite3.connect(file)) as base:
        base.execute("CREATE TABLE trial_user_attributes (trial_id, key, value_json)")
        for number, (served, forecast, gain) in enumerate(told):
            notes = {"served": served, "forecast": forecast} | ({} if gain is None else {"gain": gain})
            for key, value in notes.items():
                base.execute("INSERT INTO trial_user_attributes VALUES (?, ?, ?)", (number, key, json.dumps(value)))
        base.commit()
    write_json(tmp_path / "curves" / "ours 0.json", rows("ours", (1, 1.0, 0.5)))
    write_json(tmp_path / "curves" / "grid 0.json", rows("grid", (1, 1.0, 0.5)))
    found = rows_of(tmp_path)
    assert {row["strategy"]: row["foreseen"] for row in found} == {"grid": [], "ours": [(0.5, 0.4), (0.6, 0.5)]}
    (line,) = table.foreseen(found)
    assert "foreseen for 2 " in line
    assert "measures, is 22 %, 0 are within 10 %, the largest is 25 %" in line
    assert line in table.page({"MiniLM": found}, BOUNDS, "results.md")
    assert table.foreseen(rows_of(tmp_path / "nothing")) == []


def test_the_grid_is_part_of_the_space_and_families_change_one_thing() -> None:
    from searched.strategies import families, grid

    from trimtab.compress.recipes import CUTS, EPOCHS, Space

    cut = Slot("channels cut", CUTS, ordered=True)
    how = Slot("allocation", ("measured", "uniform"), when=(("channels cut", CUTS[1:]),))
    again = Slot("epochs of recovery", EPOCHS, ordered=True, when=(("channels cut", CUTS[1:]),))
    found = Space(
        (cut, how, again, Slot("numbers", ("floats", "int8"))), serving={"fp32": ("eager",), "int8": ("eager",)}
    )
    assert len(grid(found, "measured")) == 3 * 2 * 2 + 1
    alone = families(found)
    assert {name: len(own) for name, own in alone.items()} == {"channels cut alone": 6 * 2 * 4, "numbers alone": 1}
