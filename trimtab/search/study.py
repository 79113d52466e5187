"""A run's folder: every step is committed when it ends, so a killed run goes on where it was.

`once` is the whole of resuming: a step that has ended is read, any other is made and committed atomically.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import cattrs

from trimtab.errors import RunError
from trimtab.files import LOCK_FILE, cannot_write, folder_atomic, locked, read_json, sweep_parts, write_json

T = TypeVar("T")
IDENTITY_FILE = "run.json"
LOG_FILE = "log.txt"
CHOICE = "choice"  # the step that names what is put before the verdict


class Study:
    """The steps of one run, in one folder that this process holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        """Whether the step `name` has ended."""
        return self._file(name).exists() or (self.folder / name).is_dir()

    def once(self, name: str, make: Callable[[], T], kind: type[T]) -> T:
        """The value of the step `name`: read if it has ended, else made and committed."""
        file = self._file(name)
        if not file.exists():
            write_json(file, cattrs.unstructure(make()))
            self.log(f"ended {name}")
        return self.read(name, kind)

    def read(self, name: str, kind: type[T]) -> T:
        """The value of the step `name`, which has ended."""
        return cattrs.structure(read_json(self._file(name)), kind)

    def once_folder(self, name: str, make: Callable[[Path], Any]) -> Path:
        """The folder of the step `name`, filled by `make` unless it has ended."""
        folder = self.folder / name
        if not folder.is_dir():
            with folder_atomic(folder) as scratch:
                make(scratch)
            self.log(f"ended {name}")
        return folder

    def log(self, text: str) -> None:
        """Add a line to the run's log."""
        try:
            with (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        except OSError as error:
            raise cannot_write(self.folder / LOG_FILE, error) from error

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"


@contextmanager
def study(folder: Path, identity: Mapping[str, Any], *, until: Mapping[str, Any] | None = None) -> Iterator[Study]:
    """Hold `folder` for the run that `identity` describes, new or resumed.

    Args:
        folder: of the run.
        identity: what must be the same all along.
        until: what may be another each time, until the run has chosen: how long to go on, say.

    Raises:
        RunError: the folder belongs to a run of something else, is held by a living process, or cannot be written.
    """
    _require_ours(folder)  # before a lock file is left in somebody else's folder
    with locked(folder):
        held = folder / IDENTITY_FILE
        whole = {**identity, **({"budget": dict(until)} if until else {})}
        before = _read_identity(held) if held.exists() else {}
        if before:
            _require_same(folder, {name: before[name] for name in before if name != "budget"}, dict(identity))
            _require_open(folder, before.get("budget", {}), dict(until or {}))
        if whole != before:
            write_json(held, whole)
        sweep_parts(folder)
        yield Study(folder)


def _read_identity(held: Path) -> dict[str, Any]:
    try:
        return dict(read_json(held))
    except ValueError as error:
        raise RunError(
            f"{held} is damaged: {error}. Choose another folder with --run FOLDER, or delete this one."
        ) from error


def _require_open(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if before != now and (folder / f"{CHOICE}.json").exists():
        raise RunError(
            f"{folder} has chosen, with {_listed(before)}, and the verify split was opened for that: with "
            f"{_listed(now)} it cannot go on. Choose another folder with --run FOLDER."
        )


def _listed(budget: Mapping[str, Any]) -> str:
    told = [f"{name}={value}" for name, value in budget.items() if value is not None]
    return ", ".join(told) or f"no {' or '.join(budget)} given"


def _require_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    differing = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    if differing:
        lines = "\n".join(
            f"  {key}: the folder has {before.get(key)!r}, this run has {now.get(key)!r}" for key in differing
        )
        raise RunError(
            f"{folder} holds a run of something else:\n{lines}\n"
            "Choose another folder with --run FOLDER, or delete this one to start anew."
        )


def _require_ours(folder: Path) -> None:
    try:
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise cannot_write(folder, error) from error
    # A process killed at its very start leaves these: the lock, and half of the identity.
    others = [name for name in names if name != LOCK_FILE and not name.startswith(f".{IDENTITY_FILE}.")]
    if others and IDENTITY_FILE not in names:
        raise RunError(
            f"{folder} is not empty and not a run's folder (it holds {', '.join(others[:3])}). "
            "Choose a new folder with --run FOLDER; nothing was changed."
        )
