from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from tests.report import sample
from trimtab.report.terminal import Progress, seconds_left, summary


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(width: int = 120) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=width, force_terminal=False), file


def printed(evidence: sample.Evidence, width: int = 120) -> str:
    console, file = plain(width)
    summary(evidence, console=console)
    return file.getvalue()


def test_summary_has_the_three_rows() -> None:
    lines = printed(sample.evidence()).splitlines()
    assert re.split(r"\s{2,}", lines[0].strip()) == [
        "accuracy",
        "latency p50 (bs 1)",
        "size",
        "vs best free",
        "verdict",
    ]
    assert re.split(r"\s{2,}", lines[1].strip())[:4] == ["original (eager fp32)", "89.9 %", "1.93 ms", "1.06 MB"]
    assert lines[2].startswith("best free: original (openvino bf16)")
    assert "1.00×" in lines[2]
    assert re.split(r"\s{2,}", lines[3].strip()) == [
        "prune .5 + distill + int8 (openvino int8)",
        "89.6 % [−0.6, +0.1]",
        "0.211 ms",
        "96.4 kB",
        "2.9×",
        "PASS",
    ]


def test_summary_says_where_and_how() -> None:
    text = printed(sample.evidence())
    for line in (
        "artifact  runs/fashion/artifact",
        "evidence  runs/fashion/artifact/evidence.json",
        "report    runs/fashion/report.html",
        'model = tt.load("runs/fashion/artifact")',
        "trimtab run runs/fashion/artifact --input runs/fashion/artifact/sample.npy",
    ):
        assert line in text.splitlines()


def test_long_commands_are_never_broken() -> None:
    evidence = sample.evidence()
    evidence["paths"]["artifact"] = "runs/" + "deep/" * 40 + "artifact"
    lines = printed(evidence, width=40).splitlines()
    assert any(line.startswith("trimtab run") and line.endswith("sample.npy") for line in lines)


@pytest.mark.parametrize("make", [sample.inconclusive, sample.failed])
def test_summary_says_why_not(make: Callable[[], sample.Evidence]) -> None:
    evidence = make()
    text = " ".join(printed(evidence).split())
    assert evidence["verdict"]["word"] in text
    assert evidence["verdict"]["reason"] in text


def test_summary_names_a_miss_what_cost_most_and_what_to_try_next() -> None:
    text = " ".join(printed(sample.failed()).split())
    assert (
        "Nearest miss: nothing that was tested passed, and this came nearest. Cost most: prune .5, negative error "
        "−0.057 on select. Next: Give the search more time (--minutes) or more runtimes: what was found is no cheaper "
        "for sure."
    ) in text
    opened = " ".join(printed(sample.inconclusive()).split())
    assert "Cost most: prune .5, accuracy −5.7 points on select. Next: Bring about 640 more verify samples" in opened
    assert "Nearest miss" not in opened
    assert (
        "Not decided: nothing that was tested passed for sure, and of this one the measurements do not decide. Cost"
    ) in opened
    for evidence in (sample.evidence(), {key: part for key, part in sample.failed().items() if key != "search"}):
        assert not any(word in printed(evidence) for word in ("Nearest miss", "Not decided", "Cost most", "Next:"))


def test_summary_fits_80_columns() -> None:
    assert max(len(line) for line in printed(sample.evidence(), width=80).splitlines()) <= 80


def test_names_are_not_markup() -> None:
    evidence = sample.evidence()
    evidence["rows"][2]["name"] = "[red]odd[/red]"
    assert "[red]odd[/red]" in printed(evidence)


def test_plain_progress_is_one_line_per_event() -> None:
    console, file = plain()
    clock = Clock()
    with Progress(console=console, clock=clock) as show:
        show.phase("training")
        clock.now = 62
        show.trial(0, 9, "prune .3")
        show.best("prune .3 [x]: 88.0 %")
        show.best("prune .3 [x]: 88.0 %")
    assert file.getvalue().splitlines() == [
        "[0:00] training",
        "[1:02] search",
        "[1:02] trial 1 of 9: prune .3",
        "[1:02] best so far: prune .3 [x]: 88.0 %",
    ]


def test_plain_progress_tells_of_steps_only_after_a_silence() -> None:
    console, file = plain()
    clock = Clock()
    with Progress(console=console, clock=clock) as show:
        show.phase("training")
        for done in range(1, 13):
            clock.now += 1
            show.step(done, 12, "epoch")
    assert file.getvalue().splitlines() == ["[0:00] training", "[0:05] epoch (5 of 12)", "[0:10] epoch (10 of 12)"]


def test_quiet_progress_is_silent_everywhere() -> None:
    for terminal in (False, True):
        file = io.StringIO()
        with Progress(console=Console(file=file, force_terminal=terminal), quiet=True) as show:
            show.phase("training")
            show.trial(0, 1, "a")
            show.step(1, 1, "b")
            show.best("c")
        assert file.getvalue() == ""


def test_live_progress_shows_phase_trial_best_and_time_left() -> None:
    file = io.StringIO()
    clock = Clock()
    with Progress(console=Console(file=file, width=100, force_terminal=True), clock=clock) as show:
        show.phase("training")
        clock.now = 60
        show.trial(3, 9, "prune .5 + int8")
        show.step(1, 4, "distilling")
        show.best("prune .3: 1.9x")
        clock.now = 70
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    for part in ("✓ training  1 min 0 s", "trial 4 of 9: prune .5 + int8", "1:10 spent", "left", "distilling", "1.9x"):
        assert part in text
    assert text.rstrip().endswith("✓ search  10 s")


def test_interrupted_progress_does_not_claim_the_phase_ended() -> None:
    file = io.StringIO()

    def interrupted() -> None:
        with Progress(console=Console(file=file, force_terminal=True)) as show:
            show.phase("training")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "✓ training" not in file.getvalue()


def test_time_left_follows_the_pace() -> None:
    assert seconds_left(100, 0, 0) == 100
    assert seconds_left(100, 50, 100) > seconds_left(100, 50, 50) == 50
    assert seconds_left(100, 100, 300) == 0


def test_summary_names_the_finalists_in_their_order() -> None:
    text = " ".join(printed(sample.evidence()).split())
    assert (
        "Finalists, named before verify was opened: prune .3 + distill + int8 (openvino int8) PASS 2.1×; "
        "prune .5 + distill + int8 (openvino int8) PASS 2.9× (shipped); prune .7 + distill + int8 (openvino int8) FAIL"
    ) in text
    assert "not tested" in printed(sample.inconclusive())
    assert "Finalists" not in printed(sample.failed())
