"""The parent's side of a serving process: start it, feed it, time it, and be sure that it is gone."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from trimtab.errors import RuntimeFailed, RuntimeMissing
from trimtab.runtimes import find_runtime
from trimtab.runtimes.base import read_signature

if TYPE_CHECKING:
    from trimtab.core import Precision
    from trimtab.runtimes.base import Array

TAIL_BYTES = 2000
QUIT_SECONDS = 5.0


class Served:
    """One exported folder, loaded in a fresh process; use it in a `with` block.

    Args:
        runtime: a name in `RUNTIMES`.
        folder: what that runtime's `export` wrote.
        precision: what to run in; the same as at export.
        threads: for one inference.
        exact: forbid reduced floats (OpenVINO would use bf16 for the rest of an int8 graph): for checking.
        startup_seconds: how long loading may take.

    Raises:
        GoalError: there is no such runtime.
        RuntimeMissing: it is not installed.
        RuntimeFailed: the folder is not its, or the process died or did not load in time.

    Example:
        with Served("onnxruntime", folder, precision="fp32", threads=1) as served:
            outputs = served.run((x,), batch_size=64)
    """

    def __init__(
        self,
        runtime: str,
        folder: Path,
        *,
        precision: Precision,
        threads: int,
        exact: bool = False,
        startup_seconds: float = 120.0,
    ) -> None:
        if missing := find_runtime(runtime).missing(serving=True):
            raise RuntimeMissing(missing)
        self.name = f"{runtime} {precision}"
        self._has_example = False
        self.signature = read_signature(folder)
        if self.signature.runtime != runtime:
            raise RuntimeFailed(f"{folder} was exported for {self.signature.runtime}, not for {runtime}.")
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process, closed by close()
        self._child = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-P", "-m", "trimtab.runtimes.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=_environment(threads),
        )
        order = {"runtime": runtime, "folder": str(folder.resolve()), "precision": precision}
        try:
            started = self._ask(order | {"threads": threads, "exact": exact}, timeout_s=startup_seconds)[0]
        except BaseException:
            self.close()
            raise
        self.loaded_s: float = started["loaded_s"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The serving process."""
        return self._child.pid

    def run(self, inputs: tuple[Array, ...], *, batch_size: int) -> Array:
        """The outputs [N, ...] for inputs [N, ...], computed `batch_size` at a time.

        Raises:
            RuntimeFailed: the inputs do not fit the model, or the process died.
        """
        self.signature.check(inputs)
        if batch_size < 1:
            raise RuntimeFailed(f"batch_size={batch_size} must be at least 1.")
        return self._ask({"do": "run", "batch_size": batch_size}, inputs)[1][0]

    def set_example(self, inputs: tuple[Array, ...]) -> None:
        """Give the batch, [B, ...] each, that `warm_up` and `time` run."""
        self.signature.check(inputs)
        self._ask({"do": "example"}, inputs)
        self._has_example = True

    def warm_up(self, num_calls: int = 10) -> None:
        """Run the example a few times without keeping the times."""
        self.time(num_calls)

    def time(self, num_calls: int) -> list[float]:
        """The latency of each of `num_calls` inferences on the example, in ms, as the serving process sees it."""
        if not self._has_example:
            raise RuntimeFailed("Nothing to time yet: call set_example(inputs) first.")
        if num_calls < 1:
            raise RuntimeFailed(f"num_calls={num_calls} must be at least 1.")
        return self._ask({"do": "time", "num_calls": num_calls})[0]["latencies_ms"]  # type: ignore[no-any-return]

    def stats(self) -> dict[str, Any]:
        """`peak_bytes` and `loaded_s` of the serving process, and whether it `imported_torch`."""
        return self._ask({"do": "stats"})[0]

    def peak_bytes(self) -> int:
        """The most memory that the serving process has held so far; ask before `run` hands it a whole split."""
        return int(self.stats()["peak_bytes"])

    def close(self) -> None:
        """End the serving process; nothing of it is left."""
        if self._child.stdin and not self._child.stdin.closed:
            # The child may be gone already, and what is buffered for it lost: then there is nothing to tell it.
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()
        try:
            self._child.wait(QUIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout:
            self._child.stdout.close()
        self._stderr.close()

    def _ask(
        self, message: dict[str, Any], arrays: tuple[Array, ...] = (), *, timeout_s: float | None = None
    ) -> tuple[dict[str, Any], tuple[Array, ...]]:
        from trimtab.runtimes.worker import receive, send

        assert self._child.stdin is not None, "a pipe"
        assert self._child.stdout is not None, "a pipe"
        if self._child.stdin.closed:
            raise RuntimeFailed(f"{self.name} was closed; start another Served.")
        try:
            send(self._child.stdin, message, arrays)
        except BrokenPipeError:
            raise self._died() from None
        ready, _, _ = select.select([self._child.stdout], [], [], timeout_s)
        if not ready:
            raise RuntimeFailed(
                f"{self.name} did not load within {timeout_s:g} s; give it longer with startup_seconds.{self._tail()}"
            )
        answer = receive(self._child.stdout)
        if answer is None:
            raise self._died()
        return answer

    def _died(self) -> RuntimeFailed:
        try:
            how = f"ended with code {self._child.wait(QUIT_SECONDS)}"
        except subprocess.TimeoutExpired:
            how = "stopped answering"
        return RuntimeFailed(f"The process that served {self.name} {how}.{self._tail()}")

    def _tail(self) -> str:
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - TAIL_BYTES))
        said = self._stderr.read().decode(errors="replace").strip()
        return f" Its last words:\n{said}" if said else " It said nothing."


def _environment(threads: int) -> dict[str, str]:
    # The child finds this very trimtab, however the parent found it; native pools obey these before any setter can.
    here = str(Path(__file__).parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return os.environ | counts | {"PYTHONPATH": os.pathsep.join(paths)}
