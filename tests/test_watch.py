"""A run watched while it lasts: what is read of its folder, what is served and to whom, and the page in a browser."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from tests.report import sample
from tests.report.test_browser import CHROMIUM, DRIVER, browser  # noqa: F401 - a fixture
from trimtab.errors import RunError
from trimtab.files import write_json
from trimtab.watch import HOST, live_evidence, serving, state_token, watch


def begin(run: Path) -> None:
    """A run that has measured its free baselines."""
    whole = sample.evidence()
    write_json(
        run / "run.json", {"trimtab": "0.1.0", "task": "fashion", "target": whole["target"], "goal": whole["goal"]}
    )
    write_json(run / "task.json", whole["task"])
    write_json(run / "free.json", [{"trial": trial, "skipped": []} for trial in whole["trials"] if trial["free"]])
    log(run, "original", "free")


def log(run: Path, *names: str) -> None:
    with (run / "log.txt").open("a") as file:
        file.writelines(f"2026-01-01 10:00:0{place} ended {name}\n" for place, name in enumerate(names))


def add_trial(run: Path, place: int) -> None:
    write_json(
        run / "trials" / f"t{place}.json", {"trial": sample.trial(place), "skipped": [{"what": "x", "why": "y"}]}
    )
    log(run, f"trials/t{place}")


@contextlib.contextmanager
def served(run: Path) -> Iterator[str]:
    server = serving(run, port=0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def get(address: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
        return str(answer.read().decode())


def state(address: str, token: str = "") -> dict[str, Any]:
    return dict(json.loads(get(f"{address}state?token={token}")))


def test_what_is_known_grows_with_the_run_until_it_is_the_evidence(tmp_path: Path) -> None:
    begin(tmp_path)
    found = live_evidence(tmp_path)
    assert (found["verdict"], found["phase"], len(found["trials"])) == (None, "Searching", 5)
    add_trial(tmp_path, 7)
    found = live_evidence(tmp_path)
    assert found["trials"][-1]["candidate"] == "prune .3 (openvino bf16)"
    assert found["skipped"] == [{"what": "x", "why": "y"}]
    assert found["timeline"][-1]["kind"] == "timing trials"
    write_json(tmp_path / "choice.json", {})
    assert live_evidence(tmp_path)["phase"] == "Judging the choice"
    write_json(tmp_path / "evidence.json", sample.evidence())
    assert live_evidence(tmp_path)["verdict"]["word"] == "PASS"


def test_before_anything_is_measured_there_is_a_page_too(tmp_path: Path) -> None:
    begin(tmp_path)
    for name in ("free.json", "task.json", "log.txt"):
        (tmp_path / name).unlink()
    with served(tmp_path) as address:
        text = get(address)
    assert "Training and capture" in text
    assert "0 candidates measured so far" in text


def test_the_state_is_sent_once_and_only_to_this_machine(tmp_path: Path) -> None:
    begin(tmp_path)
    with served(tmp_path) as address:
        text = get(address)
        first = state_token(tmp_path)
        assert f'data-token="{first}"' in text
        assert "connect-src 'self'" in text
        assert state(address, first) == {"token": first}
        add_trial(tmp_path, 8)
        changed = state(address, first)
        assert changed["token"] == state_token(tmp_path) != first
        assert "prune .3 + int8" in changed["body"]
        assert len(changed["data"]["points"]) == 6
        for path, headers, code in (("etc/passwd", {}, 404), ("", {"Host": "evil.example"}, 403)):
            with pytest.raises(urllib.error.HTTPError, match=str(code)):
                get(address + path, **headers)


def test_it_listens_to_this_machine_alone(tmp_path: Path) -> None:
    begin(tmp_path)
    with serving(tmp_path, port=0) as server:
        bound = server.socket.getsockname()[0]
        assert ipaddress.ip_address(bound).is_loopback, bound
        assert server.server_address[0] == HOST
    with served(tmp_path) as address, contextlib.ExitStack() as stack:
        port = int(address.rpartition(":")[2].strip("/"))
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        # Who listens to all addresses, of which 127.0.0.2 is one, has the port there too; so it is free for others.
        other = stack.enter_context(socket.socket())
        other.bind(("127.0.0.2", port))


def test_what_cannot_be_watched_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run's folder"):
        watch(tmp_path)
    begin(tmp_path)
    with served(tmp_path) as address, pytest.raises(RunError, match="--port 0 takes any"):
        watch(tmp_path, port=int(address.rpartition(":")[2].strip("/")))


@pytest.mark.skipif(not (CHROMIUM.exists() and DRIVER.exists()), reason="no browser: apt-get install chromium")
def test_the_page_keeps_itself_up_to_date(browser: webdriver.Chrome, tmp_path: Path) -> None:  # noqa: F811
    begin(tmp_path)
    points = "return document.querySelectorAll('#tradeoff .scatterlayer .point').length"
    with served(tmp_path) as address:
        browser.get(address)
        assert browser.find_element("css selector", ".badge").text == "RUNNING"
        assert browser.execute_script(points) == 5
        browser.execute_script("document.querySelector('details').open = true")
        add_trial(tmp_path, 12)
        WebDriverWait(browser, 30).until(lambda page: page.execute_script(points) == 6)
        assert browser.execute_script("return document.querySelector('details').open"), "what was open stays open"
        assert "prune .5 + distill + int8" in browser.find_element("id", "sentence").text
        write_json(tmp_path / "evidence.json", sample.evidence())
        WebDriverWait(browser, 30).until(lambda page: page.find_element("css selector", ".badge").text == "PASS")
        assert browser.title.startswith("PASS")
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    lost = "return document.documentElement.classList.contains('lost')"
    WebDriverWait(browser, 30).until(lambda page: page.execute_script(lost))
