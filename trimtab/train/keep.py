"""A run's checkpoints over time: how often, how many, in the background, and which one a resumed run goes on from."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trimtab.errors import TaskError
from trimtab.files import older
from trimtab.train.checkpoint import Checkpoint, DamagedCheckpoint, load_checkpoint, save_checkpoint

# What a shell says of a process that ended by signal 15.
ENDED_BY_SIGTERM = 128 + signal.SIGTERM
MOST_SECONDS = 300.0


@dataclass(frozen=True)
class Keep:
    """Where and how a run's state is kept.

    Args:
        path: the file of the newest checkpoint; the ones before it are beside it, as `path.1`, `path.2`, ...
        every: steps from one to the next; default: an epoch, or five minutes where an epoch takes longer.
        versions: how many there are at most.
        background: write while the next steps are taken, from a copy: training waits for the copying alone. Killed,
            the run may lose one interval more.
    """

    path: Path
    every: int | None = None
    versions: int = 2
    background: bool = False

    def __post_init__(self) -> None:
        if self.versions < 1 or (self.every is not None and self.every < 1):
            raise TaskError(f"Keep needs versions >= 1 and every >= 1 step; got {self}.")


class Keeper:
    """Writes and reads the checkpoints of one run, while a `with` lasts."""

    def __init__(self, keep: Keep, identity: dict[str, str]) -> None:
        self._keep, self._identity = keep, identity
        self._worker = ThreadPoolExecutor(1, "checkpoint") if keep.background else None
        self._pending: Future[None] | None = None
        self._saved, self._wrote = 0, time.monotonic()

    def found(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None if there is none at all.

        Raises:
            DamagedCheckpoint: there are some, and all are damaged.
            RunError: it is of another run.
        """
        damaged: DamagedCheckpoint | None = None
        for path in [older(self._keep.path, age) for age in range(self._keep.versions)]:
            if path.exists():
                try:
                    checkpoint = load_checkpoint(path, self._identity)
                except DamagedCheckpoint as error:
                    damaged = damaged or error
                    continue
                if damaged:
                    warnings.warn(
                        f"{str(damaged).partition(' Delete')[0]} The run goes on from the one before it, {path}, "
                        f"of step {checkpoint.step}.",
                        stacklevel=2,
                    )
                self._saved = checkpoint.step
                return checkpoint
        if damaged:
            raise damaged
        return None

    def due(self, step: int, *, epoch_ended: bool) -> bool:
        """Whether the state after `step` steps is to be written."""
        if self._keep.every:
            return step % self._keep.every == 0
        return epoch_ended or time.monotonic() - self._wrote >= MOST_SECONDS

    def save(self, step: int, make: Callable[[], Checkpoint]) -> None:
        """Write the state after `step` steps, unless it is written already.

        Raises:
            RunError: it could not be written; in the background, this tells of the one before.
        """
        if step == self._saved:
            return
        self._settle()
        checkpoint = make()
        if self._worker:
            self._pending = self._worker.submit(self._write, checkpoint)
        else:
            self._write(checkpoint)
        self._saved, self._wrote = step, time.monotonic()

    def close(self) -> None:
        """Wait for what is being written.

        Raises:
            RunError: it could not be written.
        """
        if self._worker:
            self._worker.shutdown(wait=True)
        self._settle()

    def _write(self, checkpoint: Checkpoint) -> None:
        save_checkpoint(self._keep.path, checkpoint, versions=self._keep.versions)

    def _settle(self) -> None:
        pending, self._pending = self._pending, None
        if pending:
            pending.result()


@contextlib.contextmanager
def terminating() -> Iterator[Callable[[], bool]]:
    """Put SIGTERM off while the context lasts; yields what says whether it came.

    Only in the main thread, and only where nobody else looks after the signal.
    """
    came: list[int] = []
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
