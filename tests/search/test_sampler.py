"""The sampler on a made-up space: the given ones first, then a sequence that the seed decides; storages."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trimtab.core import Slot
from trimtab.errors import RunError

pytest.importorskip("optuna")

from trimtab.search.sampler import (
    SAME,
    STORAGE_FILE,
    Proposal,
    Result,
    Sampler,
    all_picks,
    filled,
    local,
    require_storage,
    shown,
)

SLOTS = (
    Slot("cut", ("-", "1", "2", "3"), ordered=True),
    Slot("how", ("even", "uneven"), when=(("cut", ("1", "2", "3")),)),
    Slot("numbers", ("floats", "int8", "int4")),
)
FIRST = ({"numbers": "int8"}, {"cut": "2", "how": "even", "numbers": "floats"}, {"cut": "9"})


def sampler(folder: Path, **changed) -> Sampler:
    settings = {"seed": 0, "worker": "a", "alone": True, "identity": {"task": "t"}, "slots": SLOTS, "first": FIRST}
    return Sampler(local(folder), **(settings | changed))


def costs(picks) -> tuple[float, float]:
    """Fewer channels are cheaper and lose more; the two ways to save bits do not add up."""
    cut = int(picks["cut"].replace("-", "0"))
    return 1 / (1 + cut + 2 * (picks["numbers"] != "floats")), 0.3 * cut * (1 + (picks["numbers"] == "int4"))


def run(one: Sampler, num: int) -> list[dict[str, str]]:
    found = []
    while len(found) < num and (proposal := one.ask()):
        found.append(proposal.picks)
        one.tell(proposal, Result(costs(proposal.picks), {"recipe": str(len(found))}, rungs=((1.0, 2.0),)))
    return found


def test_first_come_the_given_ones_and_then_nothing_twice_until_the_space_is_empty(tmp_path: Path) -> None:
    found = run(sampler(tmp_path), 100)
    assert found[:2] == [{"cut": "-", "numbers": "int8"}, FIRST[1]], "one whose option is not in the space is left out"
    everything = all_picks(SLOTS)
    assert len(found) == len(everything) == 3 * 2 * 3 + 3
    assert all(picks in found for picks in everything)
    assert all(("how" in picks) == (picks["cut"] != "-") for picks in found)


def test_the_seed_decides_the_sequence_and_a_killed_search_goes_on_with_it(tmp_path: Path) -> None:
    for name in ("whole", "killed", "other"):
        (tmp_path / name).mkdir()
    whole = run(sampler(tmp_path / "whole"), 13)
    found = run(sampler(tmp_path / "killed"), 11)
    undone = sampler(tmp_path / "killed").ask()
    assert undone
    assert undone.picks == whole[11]
    found += run(sampler(tmp_path / "killed"), 2)
    assert found == whole
    assert run(sampler(tmp_path / "other", seed=1), 13) != whole


@pytest.mark.parametrize("at", [3, 12])
def test_one_that_was_killed_between_two_of_its_picks_is_the_same_proposal(tmp_path: Path, monkeypatch, at) -> None:
    import optuna

    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    slots = (*SLOTS, Slot("order", tuple("abcdefgh")))
    whole = run(sampler(tmp_path / "whole", slots=slots), at + 1)
    run(sampler(tmp_path / "killed", slots=slots), at)
    suggest = optuna.trial.Trial.suggest_categorical

    def killed(trial: optuna.trial.Trial, name: str, options: tuple[str, ...]) -> str:
        if name == "order":
            raise KeyboardInterrupt
        return suggest(trial, name, options)

    with monkeypatch.context() as patched:
        patched.setattr(optuna.trial.Trial, "suggest_categorical", killed)
        with pytest.raises(KeyboardInterrupt):
            sampler(tmp_path / "killed", slots=slots).ask()
    again = sampler(tmp_path / "killed", slots=slots).ask()
    assert again
    assert again.picks == whole[at]


def test_what_has_ended_is_told_with_its_costs_notes_and_rungs(tmp_path: Path) -> None:
    one = sampler(tmp_path)
    first = one.ask()
    assert first
    one.tell(first, Result((0.5, 20.0), {"gain": 2.0}, rungs=((0.4, 1.0),)))
    second = one.ask()
    assert second
    one.tell(second, Result(None, {"why": "it failed"}))
    (known, result), (_, failure) = sampler(tmp_path).ended()
    assert known == Proposal(0, {"cut": "-", "numbers": "int8"}, "a")
    assert result.costs == (0.5, 20.0), "how far beyond the bound it is tells where to look"
    assert result.notes["gain"] == 2.0
    assert result.rungs == ((0.4, 1.0),)
    assert failure.costs is None
    assert failure.notes["why"] == "it failed"


def test_two_that_share_a_storage_try_different_things(tmp_path: Path) -> None:
    several = [sampler(tmp_path, worker=name, alone=False) for name in "abcd"]
    proposals = [one.ask() for one in several]
    assert len({str(proposal.picks) for proposal in proposals if proposal}) >= 3
    assert [proposal.worker for proposal in proposals if proposal] == list("abcd")
    assert proposals[1]
    several[1].tell(proposals[1], Result((0.5, 0.5)))
    assert [proposal.number for proposal, _ in several[0].ended()] == [1]
    again = sampler(tmp_path, worker="c", alone=False).ask()
    assert again == proposals[2], "what it had left undone, and not what the others have"


def test_what_another_process_is_at_is_not_begun_again(tmp_path: Path) -> None:
    one, other = (sampler(tmp_path, worker=name, alone=False) for name in "ab")
    mine = one.ask()
    assert mine
    for _ in range(2):  # as if the estimator drew the same
        other._study.enqueue_trial(other._params(mine.picks))
    theirs = other.ask()
    assert theirs
    assert theirs.picks != mine.picks
    one.tell(mine, Result((0.5, 0.5)))
    assert [proposal for proposal, _ in other.ended()] == [mine]


def drawn_twice(folder: Path) -> tuple[Sampler, Sampler, dict[str, str]]:
    """Two processes' samplers, and the picks that each of them will be given next."""
    one, other = (sampler(folder, worker=name, alone=False, first=()) for name in "ab")
    picks = list(all_picks(SLOTS))[3]
    for _ in range(2):
        one._study.enqueue_trial(one._params(picks))
    return one, other, picks


def test_of_two_that_draw_the_same_at_once_the_last_to_write_gives_it_up(tmp_path: Path) -> None:
    one, other, picks = drawn_twice(tmp_path)
    earlier = other._next()
    mine = one._taken(one._next())
    assert mine
    assert (mine.picks, mine.number) == (picks, earlier.number + 1)
    assert other._taken(earlier) is None
    one.tell(mine, Result((0.5, 0.5)))
    assert [proposal for proposal, _ in one.ended()] == [mine]


def test_what_both_gave_up_is_tried_in_the_end(tmp_path: Path) -> None:
    one, other, _ = drawn_twice(tmp_path)
    trials = [own._next() for own in (one, other)]
    for own, trial, twin in zip((one, other), trials, reversed(trials), strict=True):
        own._filled(trial)
        own._end(trial.number, None, {SAME: twin.number})
    assert one.ended() == []
    while proposal := one.ask():
        one.tell(proposal, Result(costs(proposal.picks)))
    assert len(one.ended()) == len(list(all_picks(SLOTS)))


@pytest.mark.parametrize("gentlest", ["first", "last"])
def test_where_all_that_was_tried_loses_far_too_much_what_is_gentler_comes_next(tmp_path: Path, gentlest: str) -> None:
    """Nothing is within the bound yet, so only how far beyond it each is tells where to look."""
    cuts = "0123456789" if gentlest == "first" else "9876543210"
    slots = (Slot("cut", tuple(cuts), ordered=True),)
    for seed in range(5):
        folder = tmp_path / f"{seed}"
        folder.mkdir()
        own = sampler(folder, slots=slots, first=[{"cut": cut} for cut in "987"], seed=seed)
        for _ in range(3):
            proposal = own.ask()
            assert proposal
            cut = int(proposal.picks["cut"])
            own.tell(proposal, Result((1 - cut / 12, 1.0 * cut**2)))
        following = own.ask()
        assert following
        assert int(following.picks["cut"]) <= 4, "81, 64 and 49 times what is allowed were lost at 9, 8 and 7"


def test_a_storage_of_something_else_is_refused(tmp_path: Path) -> None:
    sampler(tmp_path)
    with pytest.raises(RunError, match=r"holds a search of something else:\n  task: it has 't', this run has 'u'"):
        sampler(tmp_path, identity={"task": "u"})
    with pytest.raises(RunError, match="space: it has"):
        sampler(tmp_path, slots=SLOTS[:1])


@pytest.mark.parametrize("url", ["sqlite:////nowhere/at/all/trials.db", "nonsense", "postgresql+none://a:word@b/c"])
def test_a_storage_that_cannot_be_reached_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(RunError, match="cannot be used") as refused:
        Sampler(url, {}, SLOTS, FIRST, seed=0, worker="a", alone=False)
    assert "same command" in str(refused.value)
    assert "word" not in str(refused.value).replace("password", "")


@contextmanager
def gone_after(num: int) -> Iterator[list[str]]:
    """No database takes more than `num` statements and commits from here on. Yields what was sent."""
    import sqlalchemy

    sent: list[str] = []

    def count(statement: str) -> None:
        sent.append(statement)
        if len(sent) > num:
            raise sqlalchemy.exc.OperationalError(statement, {}, Exception("server closed the connection"))

    def on_statement(connection, cursor, statement, parameters, context, executemany) -> None:
        count(statement)

    def on_commit(connection) -> None:
        count("COMMIT")

    hooks = [("before_cursor_execute", on_statement), ("commit", on_commit)]
    for name, hook in hooks:
        sqlalchemy.event.listen(sqlalchemy.engine.Engine, name, hook)
    try:
        yield sent
    finally:
        for name, hook in hooks:
            sqlalchemy.event.remove(sqlalchemy.engine.Engine, name, hook)


def through(one: Sampler) -> None:
    """Try all of the space; of what is cut, the same in integers becomes known beside it."""
    while proposal := one.ask():
        one.tell(proposal, Result(costs(proposal.picks), {"gain": 2.0}, rungs=((1.0, 2.0),)))
        if proposal.picks == {"cut": "1", "numbers": "floats"}:
            beside = proposal.picks | {"numbers": "int8"}
            one.learn(beside, Result(costs(beside)))


@pytest.mark.parametrize("alone", [True, False])
def test_a_database_that_goes_away_at_any_statement_ends_it_and_the_same_search_goes_on(
    tmp_path: Path, alone: bool
) -> None:
    slots = (Slot("cut", ("-", "1"), ordered=True), Slot("numbers", ("floats", "int8")))
    settings = {"slots": slots, "first": [{"cut": "1"}], "alone": alone}
    new, everything = tmp_path / STORAGE_FILE, sorted(map(str, all_picks(slots)))
    sampler(tmp_path, **settings)
    shutil.copy(new, tmp_path / "copy")
    undisturbed = sampler(tmp_path, **settings)
    with gone_after(10**6) as whole:
        through(undisturbed)
    for share in (0.07, 0.21, 0.34, 0.52, 0.68, 0.81, 0.99):
        shutil.copy(tmp_path / "copy", new)
        own = sampler(tmp_path, **settings)
        lost = pytest.raises(RunError, match=r"cannot be used: .*server closed the connection")
        with gone_after(int(share * len(whole))), lost as refused:
            through(own)
        told = "Check the address, that the database runs.* same command again.* kept in the run's folder"
        assert re.search(told, str(refused.value))
        resumed = sampler(tmp_path, **settings)
        before = resumed.ended()
        through(resumed)
        found = resumed.ended()
        assert [one for one in found if one in before] == before
        assert sorted(str(one.picks) for one, _ in found) == everything, "all of the space, once each"
        assert all(result.costs == pytest.approx(costs(one.picks)) for one, result in found), "nothing half-written"


def test_an_address_of_postgresql_that_names_no_driver_means_the_one_at_hand(monkeypatch) -> None:
    pytest.importorskip("psycopg", reason="no driver: pip install 'psycopg[binary]'")
    import optuna

    asked: list[str] = []
    monkeypatch.setattr(optuna.storages, "RDBStorage", lambda url, **_: asked.append(url))
    addresses = ["postgresql://me:word@host/trials", "postgres://host/trials", "postgresql+other://host/trials"]
    for address in (*addresses, "sqlite:////a/b.db"):
        require_storage(address)
    assert asked[:2] == ["postgresql+psycopg://me:word@host/trials", "postgresql+psycopg://host/trials"]
    assert asked[2:] == ["postgresql+other://host/trials", "sqlite:////a/b.db"]


def test_picks_are_filled_up_or_refused() -> None:
    assert filled(SLOTS, {}) == {"cut": "-", "numbers": "floats"}
    assert filled(SLOTS, {"how": "even"}) is None, "it is not asked there"
    assert shown("sqlite:////a/b.db") == "sqlite:////a/b.db"


@pytest.mark.parametrize(
    ("kind", "told"),
    [("IntegrityError", "duplicate key value"), ("OperationalError", "table trial_system_attributes already exists")],
)
def test_tables_that_another_process_makes_at_the_same_moment_are_waited_for(
    tmp_path: Path, monkeypatch, kind: str, told: str
) -> None:
    import optuna
    import sqlalchemy.exc

    made = []

    class Racing(optuna.storages.RDBStorage):
        def __init__(self, url, **settings) -> None:
            made.append(url)
            if len(made) < 3:
                raise getattr(sqlalchemy.exc, kind)("CREATE TABLE", {}, Exception(told))
            super().__init__(url, **settings)

    monkeypatch.setattr(optuna.storages, "RDBStorage", Racing)
    monkeypatch.setattr("trimtab.search.sampler.time.sleep", lambda _: None)
    assert sampler(tmp_path).ask() is not None
    assert len(made) == 3
