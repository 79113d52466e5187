"""A run's page while it lasts: read from its folder, served on this machine alone, brought up to date by itself.

Nothing is written and no lock is taken, so that the run does not notice. The page asks whether the state has changed
and gets the new sections; once the verdict is given it is the very page that the run leaves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from trimtab.attribute import timeline
from trimtab.errors import RunError
from trimtab.files import read_json
from trimtab.report.evidence import unfinished
from trimtab.report.html import body, page, plot_data, title
from trimtab.search.study import CHOICE, IDENTITY_FILE, LOG_FILE

HOST = "127.0.0.1"
PORT = 8700
OURS = ("127.0.0.1", "localhost")
PHASES = ((CHOICE, "Judging the choice"), ("free", "Searching"), ("original", "Measuring what is free"))


def live_evidence(run: Path) -> dict[str, Any]:
    """What is known of a run by now; its whole evidence once it has ended.

    Raises:
        RunError: it is no run's folder.
    """
    asked = _json(run / IDENTITY_FILE)
    if asked is None:
        raise RunError(f"{run} is no run's folder: it has no readable {IDENTITY_FILE}. Give the folder of --run.")
    if (ended := _json(run / "evidence.json")) is not None:
        return dict(ended)
    task = _json(run / "task.json") or {"name": asked["task"], "metric": "metric", "num_select": 0}
    outcomes = [*(_json(run / "free.json") or [])]
    files = sorted((run / "trials").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    outcomes += [one for path in files if (one := _json(path)) is not None]
    trials = [one["trial"] for one in outcomes if one["trial"]]
    skipped = [skip for one in outcomes for skip in one["skipped"]]
    found = unfinished(task, asked, trials, skipped)
    phase = next((words for name, words in PHASES if _ended(run, name)), "Training and capture")
    return found | {"phase": phase, "timeline": timeline(run / LOG_FILE)}


def _ended(run: Path, name: str) -> bool:
    return (run / f"{name}.json").exists() or (run / name).is_dir()


def _json(path: Path) -> Any:
    """What a file holds; None if it is not there. Files of a run are written whole."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def state_token(run: Path) -> str:
    """Differs whenever a step of the run has ended since."""
    files = [run / name for name in (LOG_FILE, "evidence.json", "free.json")] + sorted((run / "trials").glob("*.json"))
    told = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files if path.exists()]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def watch(run: str | Path, *, port: int = PORT, ready: Callable[[str], None] = print) -> None:
    """Serve the run's page on this machine until interrupted.

    Args:
        run: its folder.
        port: 0 takes any that is free.
        ready: is told the address.

    Raises:
        RunError: it is no run's folder, or the port is taken.
    """
    server = serving(Path(run), port=port)
    ready(f"http://{HOST}:{server.server_address[1]}/")
    with server:
        server.serve_forever()


def serving(run: Path, *, port: int = PORT) -> ThreadingHTTPServer:
    """The server of a run's page, which is yet to be started; it listens to this machine alone.

    Raises:
        RunError: as `watch`.
    """
    live_evidence(run)  # before an address is given out

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            asked = urlsplit(self.path)
            if host not in OURS:  # a name of somebody's own that leads here could read the page otherwise
                self.send_error(403, "only this machine is served")
            elif asked.path == "/":
                token = state_token(run)  # before what it names is read: what comes in between is told next time
                self._answer("text/html; charset=utf-8", page(live_evidence(run), token=token))
            elif asked.path == "/state":
                known = parse_qs(asked.query).get("token", [""])[0]
                self._answer("application/json", json.dumps(_state(run, known)))
            else:
                self.send_error(404)

        def _answer(self, kind: str, text: str) -> None:
            data = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: every look at the page would be a line."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise RunError(f"Cannot listen on port {port}: {error.strerror}. Give another, --port 0 takes any.") from error


def _state(run: Path, known: str) -> dict[str, Any]:
    """The sections as they are now, if they are not those that `known` names."""
    token = state_token(run)
    if token == known:
        return {"token": token}
    evidence = live_evidence(run)
    return {"token": token, "title": title(evidence), "body": body(evidence), "data": plot_data(evidence)}
