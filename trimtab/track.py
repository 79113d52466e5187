"""A search or a training in TensorBoard or MLflow too: every trial as it ends, the verdict; the loss as it goes.

Follows a search's folder from outside, as `watch` does, so that the search waits for nobody; a training tells its
figures itself, about once a second. What was sent is noted: a run that is resumed goes on in the same place. The
packages are imported when they are asked for.
"""

from __future__ import annotations

import importlib.util
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from trimtab.core import Fit, Task
from trimtab.errors import RunError
from trimtab.files import read_json, write_json
from trimtab.report.evidence import CHOSEN
from trimtab.search.study import IDENTITY_FILE
from trimtab.teach.train import Log
from trimtab.watch import live_evidence

POLL_S = 2.0
TRACKERS = ("tensorboard", "mlflow")


class Tracker(Protocol):
    """Where trials go. `note` is what has to be known to go on there: it is kept in the run's folder."""

    note: dict[str, str]

    def settings(self, facts: Mapping[str, str]) -> None:
        """How a training was asked for."""

    def step(self, index: int, figures: Mapping[str, float]) -> None:
        """Where a training is."""

    def trial(self, place: int, facts: Mapping[str, str], figures: Mapping[str, float]) -> None:
        """One trial that has ended."""

    def verdict(self, facts: Mapping[str, str], figures: Mapping[str, float], page: Path) -> None:
        """The end of the run."""

    def close(self) -> None:
        """Write out what is still held."""


class TensorBoard:
    """Scalars over trials and the candidates' names as text, in `folder`."""

    def __init__(self, folder: Path, note: dict[str, str]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.note = note
        self._writer = SummaryWriter(log_dir=str(folder))

    def settings(self, facts: Mapping[str, str]) -> None:
        self._writer.add_text("settings", "\n\n".join(f"{name} = {value}" for name, value in facts.items()), 0)

    def step(self, index: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"train/{name}", value, index)
        self._writer.flush()

    def trial(self, place: int, facts: Mapping[str, str], figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"trial/{name}", value, place)
        self._writer.add_text("candidate", facts["candidate"], place)
        self._writer.flush()

    def verdict(self, facts: Mapping[str, str], figures: Mapping[str, float], page: Path) -> None:
        self._writer.add_text("verdict", f"{facts['verdict']}: {facts['reason']}", 0)
        for name, value in figures.items():
            self._writer.add_scalar(f"verdict/{name}", value, 0)

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run for the search, with a child for each trial: parameters, metrics, and the page as an artifact."""

    def __init__(self, uri: str | None, task: str, note: dict[str, str], kind: str = "search") -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self.note = note
        if "run" not in note:
            name = f"trimtab-{task}"
            known = self._client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else self._client.create_experiment(name)
            note["experiment"] = experiment
            note["run"] = self._client.create_run(experiment, run_name=kind).info.run_id

    def settings(self, facts: Mapping[str, str]) -> None:
        for name, value in facts.items():
            self._client.set_tag(self.note["run"], name, value)

    def step(self, index: int, figures: Mapping[str, float]) -> None:
        for name, number in figures.items():
            self._client.log_metric(self.note["run"], name, number, step=index)

    def trial(self, place: int, facts: Mapping[str, str], figures: Mapping[str, float]) -> None:
        tags = {"mlflow.parentRunId": self.note["run"]}
        run = self._client.create_run(self.note["experiment"], run_name=facts["candidate"], tags=tags).info.run_id
        for name, value in facts.items():
            self._client.log_param(run, name, value)
        for name, number in figures.items():
            self._client.log_metric(run, name, number)
            self._client.log_metric(self.note["run"], f"trial.{name}", number, step=place)
        self._client.set_terminated(run)

    def verdict(self, facts: Mapping[str, str], figures: Mapping[str, float], page: Path) -> None:
        for name, value in facts.items():
            self._client.set_tag(self.note["run"], name, value)
        for name, number in figures.items():
            self._client.log_metric(self.note["run"], name, number)
        if page.exists():
            self._client.log_artifact(self.note["run"], str(page))
        self.end()

    def end(self) -> None:
        """Say that the run is complete."""
        self._client.set_terminated(self.note["run"])

    def close(self) -> None:
        """Nothing is held."""


def require_trackers(names: Sequence[str]) -> None:
    """Refuse what is not known or not installed, before any work.

    Raises:
        RunError: with the command that brings it.
    """
    for name in names:
        kind = name.partition(":")[0]
        if kind not in TRACKERS:
            raise RunError(f"There is no tracker {kind!r}; give {' or '.join(TRACKERS)}, or KIND:WHERE.")
        if importlib.util.find_spec(kind) is None:
            raise RunError(f'{kind} is not installed, which --track {name} needs. Run: pip install "trimtab[{kind}]"')


@contextmanager
def tracked(run: str | Path, track: Sequence[str]) -> Iterator[None]:
    """Send every trial of the run in folder `run` to trackers while the block lasts, and what is left at its end.

    Args:
        run: the folder; it may not exist yet.
        track: "tensorboard" (into RUN/tensorboard) or "tensorboard:FOLDER"; "mlflow" (where MLflow is set up to) or
            "mlflow:URI".

    Raises:
        RunError: a tracker is not known or not installed.

    Example:
        with tracked("runs/digits", ["tensorboard"]):
            tt.optimize(model, task, run="runs/digits")
    """
    require_trackers(track)
    followers = [Follower(Path(run), name) for name in track]
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(POLL_S):
            for follower in followers:
                with suppress(Exception):  # told at the end, if it fails there too
                    follower.sync()

    thread = threading.Thread(target=follow, daemon=True)
    if followers:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if followers:
            thread.join()
        for follower in followers:
            _end(follower)


def _end(follower: Follower) -> None:
    """Send the rest. A tracker that is gone costs its log, and not the run."""
    try:
        follower.sync()
        follower.close()
    except Exception as error:  # noqa: BLE001 - a tracker may raise anything
        why = f"{type(error).__name__}: {error}"
        warnings.warn(f"not all was logged to {follower.name}: {why}", RuntimeWarning, stacklevel=2)


@contextmanager
def tracked_training(folder: str | Path, task: Task, settings: Fit, track: Sequence[str]) -> Iterator[Log | None]:
    """What `train` tells its figures to, while the block lasts; None where nothing is asked for.

    Args:
        folder: that `train` writes; what TensorBoard gets is beside it, in `<name>.tensorboard`.
        task: its name and its metric's.
        settings: told once.
        track: as for `tracked`.

    Raises:
        RunError: a tracker is not known or not installed.

    Example:
        with tracked_training("runs/digits", task, settings, ["mlflow"]) as log:
            train(model, task, settings=settings, output="runs/digits", log=log)
    """
    require_trackers(track)
    folder, trackers = Path(folder), list[Tracker]()
    notes = [folder.with_name(f"{folder.name}.tracked-{name.partition(':')[0]}.json") for name in track]

    def log(index: int, figures: Mapping[str, float]) -> None:
        if not trackers:  # not before: what is refused leaves nothing
            for name, file in zip(track, notes, strict=True):
                trackers.append(_of_training(name, folder, task, read_json(file) if file.exists() else {}))
                trackers[-1].settings({key: str(value) for key, value in vars(settings).items()})
                write_json(file, trackers[-1].note)
        for tracker in trackers:
            tracker.step(index, {_plain(name): value for name, value in figures.items()})

    try:
        yield log if track else None
    finally:
        for tracker in trackers:
            tracker.close()
    for tracker, file in zip(trackers, notes, strict=False):
        if isinstance(tracker, MLflow):
            tracker.end()
        file.unlink(missing_ok=True)  # a later training into the folder is another one


def _of_training(name: str, folder: Path, task: Task, note: dict[str, str]) -> Tracker:
    kind, _, where = name.partition(":")
    if kind == "tensorboard":
        return TensorBoard(Path(where) if where else folder.with_name(f"{folder.name}.tensorboard"), note)
    return MLflow(where or None, task.name, note, "training")


class Follower:
    """Sends what is new in a run's folder to one tracker."""

    def __init__(self, run: Path, name: str) -> None:
        self._run, self.name = run, name
        self._tracker: Tracker | None = None
        self._sent: set[str] = set()
        self._judged = False

    @property
    def _file(self) -> Path:
        return self._run / f"tracked-{self.name.partition(':')[0]}.json"

    def sync(self) -> None:
        """Send the trials that have ended since, and the verdict once there is one."""
        if not (self._run / IDENTITY_FILE).exists():
            return  # it has not begun
        evidence = live_evidence(self._run)
        if self._tracker is None:
            self._tracker = self._open(evidence)
        for place, trial in enumerate(evidence["trials"]):
            if trial["id"] not in self._sent:
                self._tracker.trial(place, *_of_trial(trial, evidence["task"]["metric"]))
                self._sent.add(trial["id"])
                self._keep()
        if evidence["verdict"] is not None and not self._judged:
            self._tracker.verdict(*_of_verdict(evidence), self._run / "report.html")
            self._judged = True
            self._keep()

    def close(self) -> None:
        """Write out what the tracker still holds."""
        if self._tracker is not None:
            self._tracker.close()

    def _open(self, evidence: Mapping[str, Any]) -> Tracker:
        before: dict[str, Any] = (
            read_json(self._file) if self._file.exists() else {"sent": [], "judged": False, "note": {}}
        )
        self._sent, self._judged = set(before["sent"]), before["judged"]
        kind, _, where = self.name.partition(":")
        if kind == "tensorboard":
            return TensorBoard(Path(where) if where else self._run / "tensorboard", before["note"])
        return MLflow(where or None, evidence["task"]["name"], before["note"])

    def _keep(self) -> None:
        assert self._tracker is not None
        write_json(self._file, {"sent": sorted(self._sent), "judged": self._judged, "note": self._tracker.note})


def _of_trial(trial: Mapping[str, Any], metric: str) -> tuple[dict[str, str], dict[str, float]]:
    facts = {name: str(trial[name]) for name in ("candidate", "recipe", "runtime", "precision", "free")}
    figures = {one["quantity"]: float(one["value"]) for one in trial["measurements"]}
    figures[_plain(metric)] = float(trial["select"]["candidate"])
    figures["seconds"] = float(trial["seconds"])
    if trial["gain"]:
        figures["gain"] = float(trial["gain"]["value"])
    return facts, figures


def _of_verdict(evidence: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, float]]:
    verdict = evidence["verdict"]
    chosen = next(row for row in evidence["rows"] if row["role"] == CHOSEN)
    facts = {"verdict": verdict["word"], "reason": verdict["reason"], "chosen": chosen["name"]}
    figures = {
        "gain": verdict["gain"]["value"],
        "change": verdict["drop"]["diff"],
        "change_low": verdict["drop"]["low"],
    }
    return facts, {name: float(value) for name, value in figures.items()}


def _plain(name: str) -> str:
    """A metric's name as both tools take it."""
    return "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in name)
