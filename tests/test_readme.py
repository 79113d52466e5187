"""The documents say what is so: snippets run, links lead somewhere, the READMEs agree, figures come from a script."""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import trimtab as tt
from tests import small
from tests.house.test_house import ORDER
from tests.report import sample

ROOT = Path(__file__).parents[1]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
DOCUMENTS = [ENGLISH, CHINESE, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "docs" / "layout.md", *DECISIONS]
BLOCK = re.compile(r"(?ms)^(?:<!-- (?P<mark>tested(?:: slow)?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$")
PUBLIC_HOSTS = {"keepachangelog.com", "semver.org"}


@dataclass(frozen=True)
class Snippet:
    """A code block; `mark` says whether it is tested, and whether that takes long."""

    mark: str
    language: str
    code: str


def snippets(path: Path = ENGLISH) -> list[Snippet]:
    found = BLOCK.finditer(path.read_text(encoding="utf-8"))
    return [Snippet(block["mark"] or "", block["language"], block["code"]) for block in found]


def with_mark(mark: str, language: str) -> list[str]:
    return [one.code for one in snippets() if (one.mark, one.language) == (mark, language)]


def ids(code: str) -> str:
    return code.splitlines()[0]


def shell(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What a reader would see who pastes `code`, with the virtual environment active."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", code]
    environment = os.environ | {"PATH": path, "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the artifact that the README speaks of, and the examples."""
    folder = tmp_path_factory.mktemp("reader")
    model, task = small.make()
    with contextlib.chdir(folder):
        tt.optimize(
            model, task, target=small.TARGET, goal=small.GOAL, run="runs/digits", recipes=small.RECIPES[:1], quiet=True
        )
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__", "runs"))
    return folder


@pytest.mark.parametrize("code", with_mark("tested", "python"), ids=ids)
def test_python_snippets_run(code: str, folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("code", with_mark("tested", "bash"), ids=ids)
def test_shell_snippets_run(code: str, folder: Path) -> None:
    done = shell(code, folder)
    assert done.returncode == 0, done.stderr
    for word in ("0: ", "wrote runs/digits/report.html", "onnxruntime"):
        assert word in done.stdout
    assert (folder / "answers.npy").exists()


@pytest.mark.slow
def test_slow_python_snippets_run_one_after_the_other(tmp_path: Path) -> None:
    make = runpy.run_path(str(ROOT / "examples" / "digits.py"))["digits"]
    model, task = make()
    verify = task.verify.open("the test")
    names: dict[str, Any] = {"model": model, "make": make}
    for name, split in (("train", task.train), ("select", task.select), ("verify", verify)):
        names |= {f"x_{name}": split.inputs[0], f"y_{name}": split.targets}
    with contextlib.chdir(tmp_path):
        for code in with_mark("tested: slow", "python"):
            exec(compile(code, "README.md", "exec"), names)
            assert names["result"].verdict.word in ("PASS", "FAIL", "INCONCLUSIVE")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["digits", "mine"]


@pytest.mark.slow
@pytest.mark.parametrize("code", with_mark("tested: slow", "bash"), ids=ids)
def test_slow_shell_snippets_end_with_what_they_promise(code: str, folder: Path) -> None:
    done = shell(code, folder)
    if "trimtab prune" in code:
        assert done.returncode == 0, done.stderr
        assert "nothing was written (dry run)" in done.stdout
        assert "wrote runs/smaller" in done.stdout
        return
    if "trimtab train" in code:
        assert done.returncode == 0, done.stderr
        assert "wrote runs/trained" in done.stdout
        assert "equal, bit for bit: killed after 10 steps and resumed" in done.stdout
        return
    assert done.returncode in (0, 1, 2), done.stderr
    assert ("PASS", "FAIL", "INCONCLUSIVE")[done.returncode] in done.stdout


def test_every_snippet_is_tested_or_a_make_target() -> None:
    targets = set(re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text()))
    untested = [one for one in snippets() if not one.mark and one.language != "text"]
    assert [one.language for one in untested] == ["bash"]
    named = re.findall(r"(?m)^make (\w+)", untested[0].code)
    assert named == ["demo", "test"]
    assert set(named) <= targets
    assert (len(with_mark("tested", "python")), len(with_mark("tested", "bash"))) == (2, 1)


def test_both_readmes_have_the_same_shape() -> None:
    def shape(path: Path) -> tuple[list[str], list[str], set[str]]:
        text = path.read_text(encoding="utf-8")
        prose = BLOCK.sub("", text)
        own_links = {link for link in links(prose) if not link.startswith("README")}
        headings = re.findall(r"(?m)^(#+) ", prose)
        exit_codes = re.findall(r"(?m)^\| *[^|]+ \| ([0-3]) \|", prose)
        return headings, exit_codes, own_links

    assert shape(ENGLISH) == shape(CHINESE)
    for here, there in zip_longest(snippets(ENGLISH), snippets(CHINESE)):
        assert here == there
    assert demo_part(ENGLISH) == demo_part(CHINESE)


def demo_part(path: Path) -> str:
    found = re.findall(r"(?s)<!-- demo -->\n(.*?)<!-- /demo -->", path.read_text(encoding="utf-8"))
    assert len(found) == 1
    return str(found[0])


def test_the_demo_part_is_what_a_run_printed() -> None:
    part = demo_part(ENGLISH)
    assert part.startswith("```text\n$ trimtab optimize fashion\n")
    assert re.search(r"(?m)^(PASS|FAIL|INCONCLUSIVE)  ", part)
    assert "best free: " in part
    flat = " ".join(part.split())  # long names push words to the next line
    for word in ("machine ", "versions ", "torch ", "paired samples", "paired blocks", "n = "):
        assert word in flat


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in links(path.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            assert link.split("/")[2] in PUBLIC_HOSTS, link
        else:
            assert (path.parent / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_document_names_the_machine_it_was_written_on(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    absolute = re.findall(r"(?:^|[\s\"'(`=,:])(/[A-Za-z][\w.-]*/[\w./-]*)", text, flags=re.MULTILINE)
    assert absolute == [], "absolute paths"
    hosts = set(re.findall(r"\w+://([^/\s)\"']+)", text))
    assert hosts <= PUBLIC_HOSTS
    assert not re.search(r"localhost|(?:\d{1,3}\.){3}\d{1,3}", text)


def test_the_files_that_documents_name_exist() -> None:
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:trimtab|tests|scripts|docs|examples)/[\w./-]+)", text):
            assert (ROOT / name).exists(), f"{path.name} names {name}"


def test_the_commands_and_flags_that_documents_name_exist(tmp_path: Path) -> None:
    known = shell("trimtab --help", tmp_path).stdout
    for path in DOCUMENTS:
        for command, rest in re.findall(
            r"(?:`|^\$ |^)trimtab ([\w-]+)([^`\n]*)", path.read_text("utf-8"), re.MULTILINE
        ):
            assert re.search(rf"(?m)^│ {command} ", known), f"{path.name} names `trimtab {command}`"
            flags = re.findall(r"--[a-z][\w-]*", rest)
            told = shell(f"trimtab {command} --help", tmp_path).stdout if flags else ""
            assert all(flag in told for flag in flags), f"{path.name}: {command} {flags}"


def test_what_is_said_to_be_planned_is_not_there_yet() -> None:
    there = {path.stem for path in (ROOT / "trimtab").glob("*.py")}
    for path, begin, told in ((ENGLISH, "Planned, and", "predicted latencies"), (CHINESE, "已列入计划", "预测")):
        planned = path.read_text(encoding="utf-8").split(begin)[1].split("\n\n")[0]
        assert "HTTP" in planned
        assert told not in planned or "forecast" not in there


def test_the_page_on_the_search_says_which_recipes_a_forecast_may_end() -> None:
    text = " ".join((ROOT / "docs" / "search.md").read_text(encoding="utf-8").split())
    assert "The space is printed as a table before anything is tried" in text
    assert "Without either there are no proposals" in text
    assert "A proposal that is foreseen to be slower is not tried**" in text
    assert "The recipes that come first are tried, whatever a forecast would say of them" in text


def test_the_layout_lists_the_rooms_in_their_order() -> None:
    headings = re.findall(r"(?m)^## (.+)$", (ROOT / "docs" / "layout.md").read_text())
    assert [re.split(r", | and ", heading) for heading in headings] == ORDER


def test_decisions_are_numbered_and_fit_a_page() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    for path in DECISIONS:
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {path.name[:4]}: ")
        assert len(text.splitlines()) <= 60
        assert "\n## Evidence" in text or "\n## What was found" in text


def test_the_picture_is_small_enough_to_load_fast() -> None:
    path = ROOT / "docs" / "images" / "report.png"
    assert path.stat().st_size < 400_000
    with Image.open(path) as picture:
        assert picture.size[0] == 1280
        assert 1000 < picture.size[1] <= 1530


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "make_readme.py"))


def test_make_readme_shows_what_the_terminal_shows(script: dict[str, Any]) -> None:
    evidence = sample.evidence()
    part = script["demo"](evidence)
    assert part.count("```") == 4
    assert evidence["verdict"]["word"] in part
    assert f"n = {evidence['verdict']['drop']['n']:,} paired samples" in part
    assert "\x1b" not in part
    assert all(line == line.rstrip() for line in part.splitlines())
    assert all(len(line) <= script["COLUMNS"] for line in part.splitlines() if "--" not in line)


def test_make_readme_replaces_the_marked_part_alone(script: dict[str, Any]) -> None:
    text = "a\n<!-- demo -->\nold \\1\n<!-- /demo -->\nz\n"
    assert script["inserted"](text, "new \\1") == "a\n<!-- demo -->\nnew \\1\n<!-- /demo -->\nz\n"
    with pytest.raises(SystemExit, match="once each"):
        script["inserted"]("no markers", "new")


def test_make_readme_refuses_absolute_paths(script: dict[str, Any]) -> None:
    evidence = sample.evidence()
    evidence["paths"]["artifact"] = str(ROOT / "runs" / "fashion" / "artifact")
    with pytest.raises(SystemExit, match="absolute path"):
        script["demo"](evidence)
