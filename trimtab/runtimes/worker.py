"""The process that serves one exported folder: `python -m trimtab.runtimes.worker`, driven by `process.py`.

It answers JSON lines on stdin with JSON lines on stdout; arrays follow their line as raw bytes. It imports the runtime
that it serves and no other, and ends when stdin closes, whatever it is doing, so it never outlives its parent.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trimtab.runtimes import find_runtime

Array = NDArray[Any]


def send(stream: IO[bytes], message: dict[str, Any], arrays: tuple[Array, ...] = ()) -> None:
    """Write one message, and the arrays behind it."""
    described = [{"dtype": x.dtype.str, "shape": x.shape} for x in arrays]
    stream.write(json.dumps(message | {"arrays": described}).encode() + b"\n")
    for x in arrays:
        stream.write(np.ascontiguousarray(x).data.cast("B") if x.size else b"")
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], tuple[Array, ...]] | None:
    """The next message and its arrays, or None where the other side is gone."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    message = json.loads(line)
    arrays = []
    for described in message.pop("arrays"):
        x = np.empty(described["shape"], described["dtype"])
        data = stream.read(x.nbytes)
        if len(data) != x.nbytes:
            return None
        x.reshape(-1).view(np.uint8)[:] = np.frombuffer(data, np.uint8)
        arrays.append(x)
    return message, tuple(arrays)


def in_batches(call: Callable[[tuple[Array, ...]], Array], inputs: tuple[Array, ...], batch_size: int) -> Array:
    """The outputs for all samples, computed `batch_size` at a time."""
    starts = range(0, len(inputs[0]), batch_size)
    return np.concatenate([call(tuple(x[at : at + batch_size] for x in inputs)) for at in starts])


def latencies_ms(call: Callable[[tuple[Array, ...]], Array], inputs: tuple[Array, ...], num_calls: int) -> list[float]:
    """The time of each of `num_calls` calls, one after another."""
    ticks = np.zeros((num_calls, 2), np.int64)
    gc.collect()
    gc.disable()
    for tick in ticks:
        tick[0] = time.perf_counter_ns()
        call(inputs)
        tick[1] = time.perf_counter_ns()
    gc.enable()
    return [float(ms) for ms in (ticks[:, 1] - ticks[:, 0]) / 1e6]


def peak_bytes() -> int:
    """The most memory that this process has held (VmHWM), in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def serve(source: IO[bytes], sink: IO[bytes]) -> None:
    """Load what the first message names, then answer until told to quit."""
    first = receive(source)
    if first is None:
        return
    order, example = first
    start = time.perf_counter()
    runtime = find_runtime(order["runtime"])
    call = runtime.load(
        Path(order["folder"]), precision=order["precision"], threads=order["threads"], exact=order["exact"]
    )
    loaded_s = time.perf_counter() - start
    # What is loaded stays: looking through all of it before every block took torch 0.1 s.
    gc.collect()
    gc.freeze()
    send(sink, {"loaded_s": loaded_s})
    while (message := receive(source)) is not None:
        order, inputs = message
        match order["do"]:
            case "example":
                example = inputs
                send(sink, {})
            case "run":
                send(sink, {}, (in_batches(call, inputs, order["batch_size"]),))
            case "time":
                send(sink, {"latencies_ms": latencies_ms(call, example, order["num_calls"])})
            case "stats":
                stats = {"peak_bytes": peak_bytes(), "loaded_s": loaded_s, "imported_torch": "torch" in sys.modules}
                send(sink, stats)
            case "quit":
                return


def end_with_parent() -> None:
    """End this process as soon as nobody can write to its stdin any more, even in the middle of a call."""
    poll = select.poll()
    poll.register(sys.stdin.fileno(), 0)

    def watch() -> None:
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Keep stdout for the protocol: whatever libraries print goes to stderr."""
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Ctrl-C reaches the whole process group; the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    serve(sys.stdin.buffer, sink)


if __name__ == "__main__":
    main()
