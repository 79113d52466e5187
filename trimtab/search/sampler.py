"""What is tried next, in a database that processes can share: first what was listed, then what promises most.

The storage is Optuna's (Akiba et al. 2019); what promises most is by a model of what has ended (`surrogate.py`), which
learns which options are good together, since gains do not multiply. Two costs are minimised: what the goal minimises,
as a share of the best free baseline's, and the quality lost, in units of what may be lost. Every proposal follows from
the seed, its number and what had ended before it, so that a search that was killed goes on as it would have.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.core import Slot
from trimtab.errors import RunError
from trimtab.search.surrogate import Seen, most_promising

STORAGE_FILE = "trials.db"
STUDY = "trimtab"
IDENTITY, SPACE, READY, WORKER = "identity", "space", "ready", "worker"
BESIDE = "beside"  # of what became known beside a proposal
SAME = "same as"  # of what was proposed again: the number of the one before
BY_FORECAST = "foreseen"  # of what was left out by a forecast: only its cost is known, if that
TABLES_TRIES = 5
WAIT_S, POLL_S, SQLITE_S = 30.0, 0.2, 60.0
# Beyond these a candidate's quality is of no interest; how far beyond the bound it is tells where to look.
LEAST_LOST, MOST_LOST = -1.0, 100.0


@dataclass(frozen=True)
class Proposal:
    """Candidate `number` of a search, as picks: slot -> option. worker: the process that has it."""

    number: int
    picks: dict[str, str]
    worker: str = ""


@dataclass(frozen=True)
class Result:
    """How a candidate ended: its two costs; or why it has none. rungs: the costs seen on the way."""

    costs: tuple[float, float] | None
    notes: dict[str, Any] = field(default_factory=dict)
    rungs: tuple[tuple[float, float], ...] = ()


def missing() -> str | None:
    """The command that installs what a search needs, or None if it is there."""
    if importlib.util.find_spec("optuna"):
        return None
    return "A search beyond the first recipes needs Optuna, which is not installed: pip install 'optuna>=5'"


class Sampler:
    """One search, in its storage, as one of its processes sees it.

    Args:
        url: of the database.
        identity: what is searched for; a storage of something else is refused.
        slots: the space.
        first: picks that are proposed before any is sampled.
        seed: of what is sampled.
        worker: this process's name; one that resumes another has its name.
        alone: whether no other process uses the storage.

    Raises:
        RunError: Optuna is not installed, or the storage cannot be reached or is of something else.
    """

    def __init__(
        self,
        url: str,
        identity: Mapping[str, Any],
        slots: Sequence[Slot],
        first: Sequence[Mapping[str, str]],
        *,
        seed: int,
        worker: str,
        alone: bool,
    ) -> None:
        if why := missing():
            raise RunError(why)
        import optuna

        self._url, self._slots, self._seed, self._worker, self._alone = url, tuple(slots), seed, worker, alone
        self._all = all_picks(self._slots)
        wanted = _plain({**identity, SPACE: [[slot.name, *slot.options] for slot in slots]})
        with _reached(self._url):
            self._study, new = _opened(url)
            self._study.sampler = optuna.samplers.RandomSampler(seed=seed)  # of a trial that two processes asked for
            if new:
                self._study.set_user_attr(IDENTITY, wanted)
                self._enqueue(first)
            elif self._found(IDENTITY) is None and not self._alone:
                self._wait(IDENTITY)
            held = self._found(IDENTITY)
            if held is None:  # its maker was killed before it could say what for
                self._study.set_user_attr(IDENTITY, wanted)
            else:
                _require_same(shown(url), held, wanted)
            if self._found(READY) is None and not self._alone:
                self._wait(READY)
            if self._found(READY) is None:
                self._enqueue(first)

    def ask(self) -> Proposal | None:
        """The next that nobody has tried, first of all what this process left undone; None if all have been tried."""
        with _reached(self._url):
            while True:
                trial = self._undone() or (self._next() if self._queued() else None)
                if trial is None and not self._enqueue_promising():
                    return None
                if trial and (own := self._taken(trial)):
                    return own

    def tell(self, proposal: Proposal, result: Result) -> None:
        """Commit how a candidate ended."""
        with _reached(self._url):
            values = None if result.costs is None else _within(result.costs)
            self._end(proposal.number, values, {**result.notes, "rungs": [list(point) for point in result.rungs]})

    def learn(self, picks: Mapping[str, str], result: Result) -> None:
        """Keep what became known beside a proposal; if it was known already, nothing happens."""
        import optuna

        with _reached(self._url):
            if self._twin(-1, picks) is None and result.costs is not None:
                ranges: dict[str, Any] = {
                    slot.name: optuna.distributions.IntDistribution(0, len(slot.options) - 1)
                    if slot.ordered
                    else optuna.distributions.CategoricalDistribution(slot.options)
                    for slot in self._slots
                    if slot.name in picks
                }
                self._study.add_trial(
                    optuna.trial.create_trial(
                        params=self._params(picks),
                        distributions=ranges,
                        values=_within(result.costs),
                        user_attrs={**result.notes, BESIDE: True, WORKER: self._worker},
                    )
                )

    def ended(self) -> list[tuple[Proposal, Result]]:
        """Every candidate that has ended, of all processes, in the order of their numbers; repetitions are left out."""
        with _reached(self._url):
            trials = [one for one in self._study.get_trials(deepcopy=False) if one.state.is_finished()]
        found = []
        for one in trials:
            notes = dict(one.user_attrs)
            if SAME in notes:
                continue
            rungs = tuple((float(x), float(y)) for x, y in notes.pop("rungs", ()))
            costs = (float(one.values[0]), float(one.values[1])) if one.values else None
            found.append((Proposal(one.number, self._picks(one), notes.pop(WORKER, "")), Result(costs, notes, rungs)))
        return found

    def _end(self, number: int, values: Sequence[float] | None, notes: Mapping[str, Any]) -> None:
        import optuna

        trial = self._trial(number)
        for name, value in notes.items():
            trial.set_user_attr(name, value)
        state = optuna.trial.TrialState.COMPLETE if values is not None else optuna.trial.TrialState.FAIL
        self._study.tell(number, values=values, state=state)

    def _trial(self, number: int) -> Any:
        import optuna

        ident = next(one._trial_id for one in self._study.get_trials(deepcopy=False) if one.number == number)
        return optuna.trial.Trial(self._study, ident)

    def _next(self) -> Any:
        trial = self._study.ask()
        trial.set_user_attr(WORKER, self._worker)
        return trial

    def _undone(self) -> Any:
        """What this process's predecessor was killed in."""
        import optuna

        for one in self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            if self._alone or one.user_attrs.get(WORKER) == self._worker:
                trial = optuna.trial.Trial(self._study, one._trial_id)
                trial.set_user_attr(WORKER, self._worker)
                return trial
        return None

    def _queued(self) -> bool:
        import optuna

        return bool(self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)))

    def _filled(self, trial: Any) -> dict[str, str]:
        """Its picks, as they were put into the queue; a kill in between changes none of them."""
        picks: dict[str, str] = {}
        for slot in self._slots:
            if not slot.asked(picks):
                continue
            if slot.ordered:
                picks[slot.name] = slot.options[trial.suggest_int(slot.name, 0, len(slot.options) - 1)]
            else:
                picks[slot.name] = trial.suggest_categorical(slot.name, slot.options)
        return picks

    def _taken(self, trial: Any) -> Proposal | None:
        """The proposal, if nobody else has it or had it; else the trial is ended.

        Its picks are written before the others' are read. So of two processes that draw the same at once, whichever
        writes last sees the other; where both do, both give it up, and go on after pauses of different lengths.
        """
        picks = self._filled(trial)
        before = self._twin(trial.number, picks)
        if before is None:
            return Proposal(trial.number, picks, self._worker)
        self._end(trial.number, before.values, {SAME: before.number})
        if not before.state.is_finished():
            time.sleep(POLL_S * random.Random(f"{self._worker} {trial.number}").random())
        return None

    def _twin(self, number: int, picks: Mapping[str, str]) -> Any:
        """The trial that ended with the same picks, or, for a trial that was begun, that somebody else is at."""
        params = self._params(picks)
        for one in self._study.get_trials(deepcopy=False):
            under_way = number >= 0 and not one.state.is_finished()
            if one.number != number and (one.values or under_way) and one.params == params:
                return one
        return None

    def _enqueue_promising(self) -> bool:
        """Put what promises most of what nobody has tried into the queue; False if there is nothing left."""
        trials = [one for one in self._study.get_trials(deepcopy=False) if SAME not in one.user_attrs]
        tried = {json.dumps(one.params, sort_keys=True) for one in trials}
        left = [p for p in self._all if json.dumps(self._params(p), sort_keys=True) not in tried]
        if left:
            seen = [self._seen(one) for one in trials if one.values or not one.state.is_finished()]
            picks = most_promising(self._slots, seen, left, seed=f"{self._seed} {len(trials)}")
            self._study.enqueue_trial(self._params(picks))
        return bool(left)

    def _seen(self, trial: Any) -> Seen:
        cost, loss = trial.values or (None, None)
        return Seen(self._picks(trial), cost, None if BY_FORECAST in trial.user_attrs else loss)

    def _enqueue(self, first: Sequence[Mapping[str, str]]) -> None:
        for picks in first:
            known = filled(self._slots, picks)
            if known is not None:
                self._study.enqueue_trial(self._params(known), skip_if_exists=True)
        self._study.set_user_attr(READY, value=True)

    def _params(self, picks: Mapping[str, str]) -> dict[str, Any]:
        return {
            s.name: s.options.index(picks[s.name]) if s.ordered else picks[s.name]
            for s in self._slots
            if s.name in picks
        }

    def _picks(self, trial: Any) -> dict[str, str]:
        return {slot: self._option(slot, value) for slot, value in trial.params.items()}

    def _option(self, slot: str, value: Any) -> str:
        options = next(one.options for one in self._slots if one.name == slot)
        return options[value] if isinstance(value, int) else str(value)

    def _found(self, attribute: str) -> Any:
        return self._study.user_attrs.get(attribute)

    def _wait(self, attribute: str) -> None:
        """Another process is making the storage ready; one that was killed in this is waited for in vain."""
        until = time.monotonic() + WAIT_S
        while self._found(attribute) is None and time.monotonic() < until:
            time.sleep(POLL_S)


def require_storage(url: str) -> None:
    """Refuse a storage that cannot be reached, before any work.

    Raises:
        RunError: it cannot.
    """
    with _reached(url):
        _storage(url)


def require_same_search(url: str, identity: Mapping[str, Any]) -> None:
    """Refuse a storage that holds a search of something else, as far as that is known before there is a space.

    Raises:
        RunError: it does, or cannot be reached.
    """
    with _reached(url):
        studies = [one for one in _storage(url).get_all_studies() if one.study_name == STUDY]
    for study in studies:
        if held := study.user_attrs.get(IDENTITY):
            _require_same(shown(url), {name: held[name] for name in held if name != SPACE}, _plain(identity))


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps(identity))  # type: ignore[no-any-return]


@contextmanager
def _reached(url: str) -> Iterator[None]:
    import optuna
    import sqlalchemy.exc

    try:
        yield
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise RunError(
            f"The storage {shown(url)} cannot be used: {reason}. Check the address, that the database runs "
            "and takes connections from here, and that its driver is installed (PostgreSQL: pip install "
            "'psycopg[binary]'). Then give the same command again: what had ended is kept in the run's folder."
        ) from error


def _within(costs: tuple[float, float]) -> tuple[float, float]:
    return costs[0], min(max(costs[1], LEAST_LOST), MOST_LOST)


def _opened(url: str) -> tuple[Any, bool]:
    """The study in the storage, and whether it was made just now."""
    import optuna

    storage = _storage(url)
    try:
        return optuna.create_study(storage=storage, study_name=STUDY, directions=["minimize", "minimize"]), True
    except optuna.exceptions.DuplicatedStudyError:
        return optuna.load_study(storage=storage, study_name=STUDY), False


def _storage(url: str) -> Any:
    """The storage, with its tables; two processes that make them at the same moment hinder each other."""
    import optuna
    import sqlalchemy.exc

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it reports every trial otherwise, as we do
    options: dict[str, Any] = {"pool_pre_ping": True}  # a server that was restarted meanwhile is connected to anew
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": SQLITE_S}
    url = _with_driver(url)
    for _ in range(TABLES_TRIES):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):  # PostgreSQL
            pass
        except sqlalchemy.exc.OperationalError as error:  # SQLite; so it calls what cannot be reached, too
            if "already exists" not in str(error):
                raise
        time.sleep(1)
    return optuna.storages.RDBStorage(url, engine_kwargs=options)


def _with_driver(url: str) -> str:
    """An address of PostgreSQL that names no driver, with the one that the project installs, if it is there."""
    scheme, separator, rest = url.partition("://")
    plain = scheme in ("postgresql", "postgres") and importlib.util.find_spec("psycopg")
    return f"postgresql+psycopg{separator}{rest}" if plain else url


def _require_same(where: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = [name for name in sorted({**before, **now}) if before.get(name) != now.get(name)]
    if differing:
        lines = "\n".join(
            f"  {name}: it has {before.get(name)!r}, this run has {now.get(name)!r}" for name in differing
        )
        raise RunError(f"The storage {where} holds a search of something else:\n{lines}\nGive another --storage.")


def filled(slots: Sequence[Slot], picks: Mapping[str, str]) -> dict[str, str] | None:
    """`picks` with every other slot that is asked at its first option; None if the slots do not have them.

    >>> filled([Slot("cut", ("-", ".5")), Slot("how", ("a", "b"), when=(("cut", (".5",)),))], {"cut": ".5"})
    {'cut': '.5', 'how': 'a'}
    """
    known: dict[str, str] = {}
    for slot in slots:
        if slot.asked(known):
            known[slot.name] = picks.get(slot.name, slot.options[0])
            if known[slot.name] not in slot.options:
                return None
    return known if set(picks) <= set(known) else None


def all_picks(slots: Sequence[Slot]) -> list[dict[str, str]]:
    """Every way to fill the slots; what is not asked is absent."""
    found: list[dict[str, str]] = [{}]
    for slot in slots:
        found = [
            {**picks, **({slot.name: option} if option is not None else {})}
            for picks in found
            for option in (slot.options if slot.asked(picks) else (None,))
        ]
    return found


def local(folder: Path) -> str:
    """The storage of a run that shares with nobody: a SQLite file in its folder."""
    return f"sqlite:///{(folder / STORAGE_FILE).resolve()}"


def shown(url: str) -> str:
    """The address without its password.

    >>> shown("postgresql://me:secret@host/trials"), shown("postgresql://host/trials?user=me&password=secret")
    ('postgresql://me:***@host/trials', 'postgresql://host/trials?user=me&password=***')
    """
    url = re.sub(r"([?&][^=&]*pass[^=&]*=)[^&]*", r"\1***", url, flags=re.IGNORECASE)
    scheme, separator, rest = url.partition("://")
    who, at, where = rest.rpartition("@")
    return f"{scheme}{separator}{who.partition(':')[0]}:***@{where}" if at and ":" in who else url
