"""One search of two processes on a real PostgreSQL server, which the test starts for itself where one is installed.

Also as a user has it: by two commands, and by one whose server stops in the middle.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.search.test_sampler import SLOTS, costs
from tests.test_cli import JOB, SCRIPT
from trimtab.artifact import load_artifact
from trimtab.cli import EXIT_CODES, USER_ERROR
from trimtab.search.sampler import SAME, STUDY, WORKER, Result, Sampler, all_picks

if TYPE_CHECKING:
    import optuna

PLACES = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.get_exec_path())]
BIN = next((place for place in PLACES if (place / "initdb").exists() and (place / "postgres").exists()), None)
USER = "trimtab"
TRIALS = 6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BIN is None, reason="no PostgreSQL server: apt-get install postgresql"),
]


@dataclass
class Server:
    """A PostgreSQL server with its data in `folder`, reached by a socket there; `user` owns it."""

    folder: Path
    user: str | None
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@/postgres?host={self.folder}"

    def start(self) -> None:
        assert BIN is not None
        serve = [BIN / "postgres", "-D", self.folder / "data", "-k", self.folder, "-c", "listen_addresses=", "-F"]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(serve, user=self.user, cwd=self.folder, stdout=log, stderr=log)
        self._wait()

    def stop(self) -> None:
        """At once, whoever is still connected."""
        if self.process:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=60)
        self.process = None

    def _wait(self) -> None:
        import psycopg

        until = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url).close()
            except psycopg.OperationalError:
                assert time.monotonic() < until, "the server does not come up"
                time.sleep(0.1)
            else:
                return

    def num_ended(self) -> int:
        """The trials that have ended, as the tables have them; none before these are there."""
        import psycopg

        with psycopg.connect(self.url) as base:
            if base.execute("SELECT to_regclass('trials')").fetchone() == (None,):
                return 0
            found = base.execute("SELECT COUNT(*) FROM trials WHERE state IN ('COMPLETE', 'FAIL')").fetchone()
            return int(found[0]) if found else 0

    def ended(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that have ended, without repetitions that were given up."""
        import optuna
        from sqlalchemy.pool import NullPool

        url = self.url.replace("postgresql:", "postgresql+psycopg:")
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": NullPool})
        trials = optuna.load_study(study_name=STUDY, storage=storage).trials
        return [one for one in trials if one.state.is_finished() and SAME not in one.user_attrs]


@pytest.fixture
def server() -> Iterator[Server]:
    """One that runs, with an empty database."""
    pytest.importorskip("psycopg", reason="no driver: pip install 'psycopg[binary]'")
    assert BIN is not None
    # The server refuses to run as root, and another user cannot enter the test's own folder.
    as_root = os.geteuid() == 0
    owner = next((one.pw_name for one in pwd.getpwall() if one.pw_name in ("postgres", "nobody")), None)
    if as_root and owner is None:
        pytest.skip("PostgreSQL does not run as root, and there is no other user")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if as_root:
        shutil.chown(folder, owner)
    own = Server(folder, owner if as_root else None)
    begin = [BIN / "initdb", "-D", folder / "data", "-U", USER, "-A", "trust", "--no-sync"]
    subprocess.run(begin, check=True, user=own.user, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        own.start()
        yield own
    finally:
        own.stop()
        shutil.rmtree(folder)


def test_two_processes_that_begin_at_once_share_one_search(server: Server) -> None:
    command = [sys.executable, "-m", "tests.search.test_postgresql", server.url]
    both = [subprocess.Popen([*command, name], stdout=subprocess.DEVNULL) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    told = subprocess.run([*command, "c"], check=True, capture_output=True, text=True).stdout
    ended = json.loads(told.splitlines()[-1])
    picks = [str(sorted(one.items())) for _, one, _ in ended]
    assert sorted(picks) == sorted(str(sorted(one.items())) for one in all_picks(SLOTS)), "all of the space, once each"
    assert {worker for worker, *_ in ended} == {"a", "b"}
    assert all(found == pytest.approx(costs(one)) for _, one, found in ended)


def test_a_server_that_was_restarted_between_two_calls_is_not_noticed(server: Server) -> None:
    own = Sampler(server.url, {"task": "t"}, SLOTS, (), seed=0, worker="a", alone=False)
    proposal = own.ask()
    assert proposal
    server.stop()
    server.start()
    own.tell(proposal, Result((0.5, 0.5)))
    assert [(one.picks, result.costs) for one, result in own.ended()] == [(proposal.picks, (0.5, 0.5))]
    own._study._storage._backend.engine.dispose()


def optimize(home: Path, name: str, server: Server) -> subprocess.Popen[str]:
    """The command as a user gives it, with a folder of its own."""
    (home / "job.py").write_text(JOB)
    search = ["--minimise", "size_bytes", "--keep", "0.97", "--runtimes", "onnxruntime", "--trials", f"{TRIALS}"]
    command = [SCRIPT, "optimize", "job.py:digits", *search, "--storage", server.url, "--run", name]
    return subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_commands_on_one_database_share_one_search(server: Server, tmp_path: Path) -> None:
    both = [optimize(tmp_path, name, server) for name in "ab"]
    said = [process.communicate()[1] for process in both]
    assert {process.returncode for process in both} <= set(EXIT_CODES.values()), said
    trials = server.ended()
    tried = [str(sorted(one.params.items())) for one in trials]
    assert len(set(tried)) == len(tried) >= TRIALS, "no candidate is tried twice"
    workers = {name: json.loads((tmp_path / name / "worker.json").read_text()) for name in "ab"}
    assert {one.user_attrs[WORKER] for one in trials} == set(workers.values())
    for name in "ab":
        assert load_artifact(tmp_path / name / "artifact").artifact.verdict.word in EXIT_CODES


def test_a_database_that_stops_in_mid_search_ends_the_command_and_the_same_goes_on_later(
    server: Server, tmp_path: Path
) -> None:
    first = optimize(tmp_path, "run", server)
    while server.num_ended() < 2:
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.2)
    before = server.ended()
    server.stop()
    told = first.communicate()[1]
    assert first.returncode == USER_ERROR, told
    assert re.search(r"RunError: The storage postgresql://.* cannot be used: .* same command again", told)
    assert "Traceback" not in told
    run = tmp_path / "run"
    assert not (run / "artifact").exists()
    assert not (run / "choice.json").exists()
    assert not list(run.rglob(".*.part")), "nothing is half-written"
    server.start()
    again = optimize(tmp_path, "run", server)
    told = again.communicate()[1]
    assert again.returncode in EXIT_CODES.values(), told
    steps = [line.split(" ended ")[1] for line in (run / "log.txt").read_text().splitlines() if " ended " in line]
    assert len(set(steps)) == len(steps), "what had ended is not made again"
    trials = server.ended()
    assert [one.params for one in trials[: len(before)]] == [one.params for one in before]
    assert len({str(sorted(one.params.items())) for one in trials}) == len(trials) >= TRIALS
    assert len({one.user_attrs[WORKER] for one in trials}) == 1
    assert load_artifact(run / "artifact").artifact.verdict.word in EXIT_CODES


if __name__ == "__main__":
    _, address, name = sys.argv
    own = Sampler(address, {"task": "t"}, SLOTS, (), seed=0, worker=name, alone=False)
    while proposal := own.ask():
        time.sleep(0.05)  # so that neither is through before the other has begun
        own.tell(proposal, Result(costs(proposal.picks)))
    print(json.dumps([(proposal.worker, proposal.picks, result.costs) for proposal, result in own.ended()]))
