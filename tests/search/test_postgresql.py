"""One search of two processes on a real PostgreSQL server, which the test starts for itself where one is installed."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.search.test_sampler import SLOTS, costs
from trimtab.search.sampler import Result, Sampler, all_picks

PLACES = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.get_exec_path())]
BIN = next((place for place in PLACES if (place / "initdb").exists() and (place / "postgres").exists()), None)
USER = "trimtab"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BIN is None, reason="no PostgreSQL server: apt-get install postgresql"),
]


@pytest.fixture
def url() -> Iterator[str]:
    """The address of an empty database, reached by a socket in a folder of its own."""
    pytest.importorskip("psycopg", reason="no driver: pip install 'psycopg[binary]'")
    assert BIN is not None
    # The server refuses to run as root, and another user cannot enter the test's own folder.
    as_root = os.geteuid() == 0
    owner = next((one.pw_name for one in pwd.getpwall() if one.pw_name in ("postgres", "nobody")), None)
    if as_root and owner is None:
        pytest.skip("PostgreSQL does not run as root, and there is no other user")
    user = owner if as_root else None
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if as_root:
        shutil.chown(folder, owner)
    begin = [BIN / "initdb", "-D", folder / "data", "-U", USER, "-A", "trust", "--no-sync"]
    subprocess.run(begin, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)
    serve = [BIN / "postgres", "-D", folder / "data", "-k", folder, "-c", "listen_addresses=", "-F"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(serve, user=user, cwd=folder, stdout=log, stderr=log)
    try:
        yield f"postgresql+psycopg://{USER}@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # at once, whoever is still connected
        server.wait(timeout=60)
        shutil.rmtree(folder)


def wait_for(url: str) -> None:
    import psycopg

    until = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(url.replace("+psycopg", "")).close()
        except psycopg.OperationalError:
            assert time.monotonic() < until, "the server does not come up"
            time.sleep(0.1)
        else:
            return


def test_two_processes_that_begin_at_once_share_one_search(url: str) -> None:
    wait_for(url)
    command = [sys.executable, "-m", "tests.search.test_postgresql", url]
    both = [subprocess.Popen([*command, name], stdout=subprocess.DEVNULL) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    told = subprocess.run([*command, "c"], check=True, capture_output=True, text=True).stdout
    ended = json.loads(told.splitlines()[-1])
    picks = [str(sorted(one.items())) for _, one, _ in ended]
    assert sorted(picks) == sorted(str(sorted(one.items())) for one in all_picks(SLOTS)), "all of the space, once each"
    assert {worker for worker, *_ in ended} == {"a", "b"}
    assert all(found == pytest.approx(costs(one)) for _, one, found in ended)


if __name__ == "__main__":
    _, address, name = sys.argv
    own = Sampler(address, {"task": "t"}, SLOTS, (), seed=0, worker=name, alone=False)
    while proposal := own.ask():
        time.sleep(0.05)  # so that neither is through before the other has begun
        own.tell(proposal, Result(costs(proposal.picks)))
    print(json.dumps([(proposal.worker, proposal.picks, result.costs) for proposal, result in own.ended()]))
