"""The command line as a user has it: what it prints works, exit codes say the verdict, bad input is one message."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import trimtab as tt
from trimtab import cli
from trimtab.cli import EXIT_CODES, USER_ERROR, main
from trimtab.compress.recipes import default_picks
from trimtab.core import Search
from trimtab.files import locked, read_json, write_json
from trimtab.runtimes import RUNTIMES
from trimtab.search.clock import CLOCK_FILE

SCRIPT = str(Path(sys.executable).with_name("trimtab"))
OPTIONS = ["--runtimes", "onnxruntime", "--minutes", "0.02", "--keep", "0.97"]
JOB = """
from dataclasses import replace

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import trimtab as tt


def digits():
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
    train, select, verify = ((x[part], y[part]) for part in torch.arange(1797).split([897, 300, 600]))
    fit = tt.Fit(epochs=6, lr=3e-3, batch_size=64, precision="fp32")
    task = tt.Task.of("digits", train=train, select=select, verify=verify, fit=fit, labels=tuple("0123456789"))
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)), task


def endless():
    model, task = digits()
    return model, replace(task, fit=replace(task.fit, epochs=100_000))


def small(model=None, *, seed=0, **changed):
    rng = np.random.default_rng(seed)
    splits = ("train", "select", "verify")
    data = {name: (rng.normal(size=(20, 8)).astype("float32"), np.arange(20) % 3) for name in splits}
    return model or nn.Linear(8, 3), tt.Task.of("small", **{**data, **changed}, labels=("a", "b", "c"))


def overlapping():
    _, task = small()
    return small(verify=(task.select.inputs[0], task.select.targets))


def empty():
    return small(verify=(np.zeros((0, 8), "float32"), np.zeros(0, int)))


def label_without_a_name():
    return small(train=(small()[1].train.inputs[0], np.arange(20) % 4))


def label_without_an_output():
    return small(nn.Linear(8, 2))


def poisoned(value):
    x = small()[1].train.inputs[0].clone()
    x[7, 0] = value
    return small(train=(x, np.arange(20) % 3))


def nan_in_data():
    return poisoned(float("nan"))


def inf_in_data():
    return poisoned(float("inf"))


def nan_in_weights():
    model = nn.Linear(8, 3)
    model.weight.data[0, 0] = float("nan")
    return small(model)


def inf_in_weights():
    model = nn.Linear(8, 3)
    model.bias.data[0] = float("inf")
    return small(model)


def misfit():
    return small(nn.Linear(9, 3))


def small_untrained():
    return small(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)))


class Moody(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x):
        if x.mean() > 0:
            return self.layer(x)
        return -self.layer(x)


class Exotic(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x):
        return self.layer(torch.special.bessel_j0(x))


def exotic():
    return small(Exotic())


def data_dependent():
    return small(Moody())
"""


@dataclass(frozen=True)
class Said:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


Trimtab = Callable[..., Said]


def spawn(*args: str, cwd: Path) -> Said:
    done = subprocess.run([SCRIPT, *args], capture_output=True, text=True, cwd=cwd, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def trimtab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Trimtab:
    """Runs a command line in this process, in a folder that holds job.py alone."""
    (tmp_path / "job.py").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def call(*args: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["trimtab", *args])
        with pytest.raises(SystemExit) as stopped:
            main()
        return Said(int(stopped.value.code or 0), *capfd.readouterr())

    return call


def test_what_nobody_foresaw_is_no_verdict(trimtab: Trimtab, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> int:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(cli, "app", broken)
    said = trimtab("optimize", "fashion")
    assert said.code == 4
    assert "ZeroDivisionError: of all things" in said.err


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(said: Said, words: str) -> None:
    assert said.code == USER_ERROR
    kind = said.err.partition(": ")[0]
    assert kind == "UsageError" or issubclass(getattr(tt.errors, kind), tt.TrimtabError), said.err
    assert words in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


# --- the whole way, once -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """A run that a user made, in `home`."""

    home: Path
    said: Said

    @property
    def run(self) -> Path:
        return self.home / "my runs" / "one"

    @property
    def command(self) -> list[str]:
        return ["optimize", "job.py:digits", *OPTIONS, "--run", "my runs/one"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    home = tmp_path_factory.mktemp("home")
    (home / "job.py").write_text(JOB)
    command = Whole(home, Said(0, "", "")).command
    return Whole(home, spawn(*command, cwd=home))


def test_optimize_tells_of_progress_and_prints_the_table_and_where_everything_is(whole: Whole) -> None:
    assert f"trial 1 of {len(default_picks('latency_ms', linear=True, residual=True))}: int8" in whole.said.err
    assert "best so far" in whole.said.err
    assert "Traceback" not in whole.said.err
    out = whole.said.out
    for words in ("accuracy", "latency p50", "size", "verdict", "eager fp32", "best free:"):
        assert words in out
    for name in ("artifact", "evidence", "report"):
        line = next(line for line in out.splitlines() if line.startswith(f"{name} "))
        assert (whole.home / line.removeprefix(name).strip()).exists()


def test_the_printed_snippets_run_as_they_stand_and_agree(whole: Whole) -> None:
    lines = whole.said.out.splitlines()
    at = lines.index("Use it from Python:") + 1
    python = "\n".join(lines[at : at + 3])
    shell = lines[lines.index("or from the shell:") + 1]
    assert shell.startswith("trimtab run ")
    env = os.environ | {"PATH": f"{Path(SCRIPT).parent}:{os.environ['PATH']}"}
    both = [
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=whole.home, env=env).stdout
        for command in ([sys.executable, "-c", python], ["sh", "-c", shell])
    ]
    from_python = both[0].strip().strip("[]").split()
    from_shell = [line.split()[1:] for line in both[1].splitlines()]
    assert len(from_python) == 5
    assert from_shell == [[number, number] for number in from_python], "the class, and its name, which is the digit"


def test_the_exit_code_is_the_verdict_and_an_ended_search_is_not_run_again(
    whole: Whole, trimtab: Trimtab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = tt.load(whole.run / "artifact").artifact.verdict.word
    assert whole.said.code == EXIT_CODES[word]
    assert word in whole.said.out
    for place, (word, code) in enumerate({"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 2}.items()):
        home = tmp_path / str(place)
        shutil.copytree(whole.home, home)
        run = home / "my runs" / "one"
        shutil.rmtree(run / "artifact")
        proof = read_json(run / "evidence.json")
        proof["verdict"]["word"] = proof["rows"][2]["word"] = word
        write_json(run / "evidence.json", proof)
        write_json(run / CLOCK_FILE, {"seconds": 0.0})  # a choice is final, though there were time for more
        log = (run / "log.txt").read_text()
        monkeypatch.chdir(home)
        said = trimtab(*whole.command)
        assert said.code == code, said.err
        assert word in said.out
        assert (run / "log.txt").read_text().removeprefix(log).split()[2:] == ["ended", "artifact"]


def test_the_report_says_the_command_as_it_was_typed(whole: Whole) -> None:
    reproduce = read_json(whole.run / "evidence.json")["reproduce"]
    assert reproduce["command"] == f"trimtab optimize job.py:digits {' '.join(OPTIONS)} --run 'my runs/one'"
    assert reproduce["search_seed"] == 0, "as no --seed says another"


def test_run_writes_the_answers(whole: Whole, trimtab: Trimtab, tmp_path: Path) -> None:
    artifact = whole.run / "artifact"
    said = trimtab("run", str(artifact), "--input", str(artifact / "sample.npy"), "--output", "out/answers.npy")
    assert said.code == 0
    answers = np.load(tmp_path / "out" / "answers.npy")
    loaded = tt.load(artifact)
    assert np.array_equal(answers, loaded.run(np.load(artifact / "sample.npy")))
    assert said.out.splitlines() == [f"{place}: {digit} {digit}" for place, digit in enumerate(answers.argmax(1))]


def test_run_refuses_what_it_cannot_run(whole: Whole, trimtab: Trimtab, tmp_path: Path) -> None:
    artifact, sample = str(whole.run / "artifact"), str(whole.run / "artifact" / "sample.npy")
    np.save(tmp_path / "wide.npy", np.zeros((2, 65), np.float32))
    (tmp_path / "text.npy").write_text("no array")
    refused(trimtab("run", "nowhere", "--input", sample), "nowhere is no artifact")
    refused(trimtab("run", artifact, "--input", "nothing.npy"), "Cannot read an array from nothing.npy")
    refused(trimtab("run", artifact, "--input", "text.npy"), "Cannot read an array from text.npy")
    refused(trimtab("run", artifact, "--input", "wide.npy"), "is float32 [2, 65]; the model takes float32 [B, 64]")
    refused(trimtab("run", artifact, "--input", sample, "--input", sample), "takes 1 input(s)")
    refused(trimtab("run", artifact, "--input", sample, "--output", "job.py/x.npy"), "Cannot write job.py/x.npy")
    shutil.copytree(artifact, tmp_path / "damaged")
    with (tmp_path / "damaged" / "weights.safetensors").open("r+b") as file:
        file.write(b"\0")
    refused(trimtab("run", "damaged", "--input", sample), "weights.safetensors has changed since it was measured")


def test_report_rewrites_the_page_and_leaves_the_artifact_whole(whole: Whole, trimtab: Trimtab, tmp_path: Path) -> None:
    shutil.copytree(whole.run, tmp_path / "run")
    page = tmp_path / "run" / "report.html"
    before = page.read_bytes()
    page.unlink()
    said = trimtab("report", "run")
    assert said.code == 0
    assert "wrote run/report.html" in said.out
    assert "best free:" in said.out
    assert page.read_bytes() == before
    page.unlink()
    assert trimtab("report", "run/artifact").code == 0
    assert page.read_bytes() == before
    assert tt.load(tmp_path / "run" / "artifact").artifact.name
    assert trimtab("report", "run", "--output", "elsewhere/page.html").code == 0
    assert (tmp_path / "elsewhere" / "page.html").read_bytes() == before
    shutil.rmtree(tmp_path / "run" / "artifact")
    refused(trimtab("report", "run"), "is no artifact")


def test_a_run_of_another_task_or_goal_is_refused_and_left_alone(whole: Whole, trimtab: Trimtab) -> None:
    before = {path: path.read_bytes() for path in whole.run.rglob("*") if path.is_file() and path.name != "lock"}
    other = trimtab("optimize", "job.py:small", "--run", str(whole.run))
    refused(other, "holds a run of something else")
    assert "task: the folder has 'digits', this run has 'small'" in other.err
    refused(trimtab("optimize", "job.py:digits", "--keep", "0.5", "--run", str(whole.run)), "goal: the folder has")
    assert {p: p.read_bytes() for p in whole.run.rglob("*") if p.is_file() and p.name != "lock"} == before


def test_a_run_of_another_version_is_refused(whole: Whole, trimtab: Trimtab, tmp_path: Path) -> None:
    identity = read_json(whole.run / "run.json")
    write_json(tmp_path / "old" / "run.json", identity | {"trimtab": "0.0.1"})
    said = trimtab("optimize", "job.py:digits", *OPTIONS, "--run", "old")
    refused(said, f"trimtab: the folder has '0.0.1', this run has '{identity['trimtab']}'")
    assert said.err.count("the folder has") == 1


# --- what the flags reach ------------------------------------------------------------------------------------------

ADDRESS = "postgresql://me:secret@host/trials"


@pytest.mark.parametrize(
    ("flags", "reached"),
    [
        ([], {}),
        (["--storage", ADDRESS], {"storage": ADDRESS}),
        (["--trials", "7"], {"trials": 7}),
        (["--seed", "5"], {"seed": 5}),
        (["--track", "tensorboard", "--track", "mlflow:logs"], {"track": ["tensorboard", "mlflow:logs"]}),
    ],
)
def test_each_flag_of_the_search_reaches_it_and_the_others_stay_as_they_are(
    flags: list[str], reached: dict[str, Any], trimtab: Trimtab, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}

    @contextmanager
    def tracked(run: Path, track: Sequence[str]) -> Iterator[None]:
        found.update(run=run, track=list(track), under_way=True)
        yield
        found.update(under_way=False)

    def optimize(*_: object, search: Search, run: Path, **__: object) -> SimpleNamespace:
        assert found["under_way"], "what is tracked is the search"
        assert found["run"] == run == Path("runs/small")
        found.update(search=search)
        return SimpleNamespace(evidence={}, verdict=SimpleNamespace(word="INCONCLUSIVE"))

    monkeypatch.setattr("trimtab.pipeline.optimize", optimize)
    monkeypatch.setattr("trimtab.track.require_trackers", lambda names: None)
    monkeypatch.setattr("trimtab.track.tracked", tracked)
    monkeypatch.setattr("trimtab.report.terminal.summary", lambda evidence, console: None)
    said = trimtab("optimize", "job.py:small", *flags)
    assert said.code == EXIT_CODES["INCONCLUSIVE"], said.err
    wanted = {"storage": None, "trials": None, "seed": 0, "track": []} | reached
    command = shlex.join(["trimtab", "optimize", "job.py:small", *(flag.replace("secret", "***") for flag in flags)])
    search = {"command": command} | {name: value for name, value in wanted.items() if name != "track"}
    assert found == {
        "run": Path("runs/small"),
        "under_way": False,
        "track": wanted["track"],
        "search": Search(**search),
    }


# --- bad input -----------------------------------------------------------------------------------------------------

BAD = {
    "no such task": (["nonsense"], "TaskError: There is no task 'nonsense'. Built in: fashion"),
    "nearly a task": (["fashon"], "Did you mean 'fashion'?"),
    "no such file": (["absent.py:job"], "TaskError: There is no file absent.py"),
    "no such function": (["job.py:nothing"], "TaskError: There is no function 'nothing' in job.py. It has:"),
    "no such module": (["absent.module:job"], "TaskError: There is no module 'absent.module'"),
    "overlap": (["job.py:overlapping"], "TaskError: The splits select and verify share 20 of 20 samples"),
    "empty": (["job.py:empty"], "TaskError: The verify split is empty"),
    "label without a name": (
        ["job.py:label_without_a_name"],
        "5 labels out of range: expected 0..2 (there are 3",
    ),
    "label without an output": (
        ["job.py:label_without_an_output"],
        "The task has label 2, but the model has 2",
    ),
    "nan in data": (["job.py:nan_in_data"], "inputs[0] hold NaN in 1 of 20 samples, the first at index 7"),
    "inf in data": (["job.py:inf_in_data"], "inputs[0] hold inf in 1 of 20 samples, the first at index 7"),
    "nan in weights": (["job.py:nan_in_weights"], "TaskError: The model's weight holds NaN"),
    "inf in weights": (["job.py:inf_in_weights"], "TaskError: The model's bias holds inf"),
    "misfit": (["job.py:misfit"], "inputs do not fit the model: given (2, 8) float32, Linear raised"),
    "data-dependent": (["job.py:data_dependent"], "in forward: if x.mean() > 0"),
    "keep above 1": (["job.py:small", "--keep", "1.5"], "GoalError: keep=1.5 is not a fraction to keep"),
    "keep 0": (["job.py:small", "--keep", "0"], "GoalError: keep=0 is not a fraction to keep"),
    "keep below 0": (["job.py:small", "--keep", "-1"], "GoalError: keep=-1 is not a fraction to keep"),
    "drop below 0": (["job.py:small", "--drop", "-0.1"], "GoalError: drop=-0.1 must be zero or more"),
    "confidence": (["job.py:small", "--confidence", "1"], "GoalError: confidence=1 must lie between"),
    "minutes": (["job.py:small", "--minutes", "0"], "GoalError: minutes=0 must be more than zero"),
    "threads": (["job.py:small", "--threads", "0"], "GoalError: Target needs batch_size >= 1 and threads >= 1"),
    "unknown runtime": (["job.py:small", "--runtimes", "tensorrt"], "GoalError: There is no runtime 'tensorrt'"),
    "unwritable": (["job.py:small", "--run", "job.py/run"], "RunError: Cannot write job.py/run: Not a directory"),
    "a file as the run": (["job.py:small", "--run", "job.py"], "RunError: Cannot write job.py: Not a directory"),
    "somebody's folder": (["job.py:small", "--run", "."], "not a run's folder (it holds job.py)"),
    "no task": ([], "UsageError: Missing argument 'task'. See trimtab --help."),
    "unknown flag": (["job.py:small", "--speed"], "UsageError: No such option: --speed"),
    "no number": (["job.py:small", "--keep", "much"], "UsageError: Invalid value for '--keep'"),
    "no quantity": (["job.py:small", "--minimise", "joy"], "UsageError: Invalid value for '--minimise'"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_message_and_leaves_nothing(what: str, trimtab: Trimtab, tmp_path: Path) -> None:
    args, words = BAD[what]
    refused(trimtab("optimize", *args), words)
    assert names(tmp_path) == ["job.py"]


def test_data_dependent_control_flow_names_the_mend(trimtab: Trimtab) -> None:
    assert "torch.where" in trimtab("optimize", "job.py:data_dependent").err


def test_a_model_that_no_allowed_runtime_takes_is_told_with_the_reasons(trimtab: Trimtab) -> None:
    said = trimtab("optimize", "job.py:exotic", "--runtimes", "onnxruntime", "--quiet")
    refused(said, "RuntimeFailed: The model runs in none of the runtimes that the target allows.")
    assert "original (onnxruntime fp32): ONNX cannot export this graph" in said.err
    assert "bessel_j0" in said.err
    assert set(re.findall(r"original \((\w+)", said.err)) == {"onnxruntime"}  # what was not allowed was not tried


CHILD = """
import resource, sys, importlib.util
{}
sys.argv = ["trimtab", *sys.argv[1:]]
from trimtab.cli import main
main()
"""
WITHOUT_OPENVINO = """
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.split(".")[0] == "openvino" else real(name, *a)
"""
FULL_DISK = "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))"


def in_child(setting: str, *args: str, cwd: Path) -> Said:
    command = [sys.executable, "-B", "-c", CHILD.format(setting), *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


def test_a_runtime_that_is_not_installed_names_the_whole_command(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    said = in_child(WITHOUT_OPENVINO, "optimize", "job.py:small", "--runtimes", "openvino", cwd=tmp_path)
    refused(said, 'pip install "trimtab[openvino]"')
    assert names(tmp_path) == ["job.py"]
    told = in_child(WITHOUT_OPENVINO, "doctor", "--json", cwd=tmp_path)
    missing = {runtime["runtime"]: runtime["missing"] for runtime in json.loads(told.out)["runtimes"]}
    assert 'pip install "trimtab[openvino]"' in missing["openvino"]
    assert 'pip install "trimtab[openvino]"' in in_child(WITHOUT_OPENVINO, "doctor", cwd=tmp_path).out


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    said = in_child(FULL_DISK, "optimize", "job.py:digits", *OPTIONS, "--run", "r", "--quiet", cwd=tmp_path)
    refused(said, "RunError: Cannot write r/")
    assert "File too large. Nothing half-written was left there. Free some space" in said.err
    assert names(tmp_path / "r") == ["lock", "log.txt", "run.json", "task.json"]  # what was whole before it was full
    assert read_json(tmp_path / "r" / "run.json")["task"] == "digits"
    assert read_json(tmp_path / "r" / "task.json")["name"] == "digits"


def test_a_second_run_in_the_folder_and_an_interrupt_are_told_plainly(trimtab: Trimtab, tmp_path: Path) -> None:
    command = ["optimize", "job.py:endless", *OPTIONS, "--run", "r"]  # still at work when the second has been refused
    with subprocess.Popen([SCRIPT, *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        assert "training" in first.stderr.readline()
        second = trimtab(*command)
        first.send_signal(signal.SIGINT)
        rest = first.stderr.read()
    refused(second, f"RunError: Another run (process {first.pid}) is using r.")
    assert first.returncode == 130
    assert "Stopped. What had ended is kept: give the same command again to go on." in rest
    assert "Traceback" not in rest
    assert not [name for name in names(tmp_path / "r") if name.endswith(".part")]


def test_a_lock_that_is_held_leaves_the_folder_as_it_was(trimtab: Trimtab, tmp_path: Path) -> None:
    with locked(tmp_path / "r"):
        refused(trimtab("optimize", "job.py:small", "--run", "r"), f"Another run (process {os.getpid()})")
        assert names(tmp_path) == ["job.py", "r", "r/lock"]


# --- help and doctor -----------------------------------------------------------------------------------------------


def test_help_teaches_with_examples(trimtab: Trimtab) -> None:
    top = trimtab("--help")
    assert top.code == 0
    assert "trimtab optimize fashion" in top.out
    for command in ("optimize", "train", "verify-resume", "run", "report", "doctor"):
        assert command in top.out
        own = trimtab(command, "--help")
        assert own.code == 0
        examples = own.out.partition("Example")[2]
        assert f"trimtab {command} " in examples
    whole_text = " ".join(trimtab("optimize", "--help").out.split())
    assert "0 on PASS, 1 on FAIL, 2 on INCONCLUSIVE, 3" in whole_text
    assert "returns (model, task)" in whole_text


def test_the_module_is_the_command_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trimtab", "run", "nowhere", "--input", "x.npy"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == USER_ERROR
    assert "nowhere" in done.stderr


def test_without_a_command_it_shows_the_help(trimtab: Trimtab) -> None:
    said = trimtab()
    assert said.code == USER_ERROR
    assert "trimtab optimize fashion" in said.out
    assert said.err == ""


def test_doctor_names_every_runtime_and_the_versions(trimtab: Trimtab) -> None:
    told = json.loads(trimtab("doctor", "--json").out)
    assert [runtime["runtime"] for runtime in told["runtimes"]] == list(RUNTIMES)
    assert told["versions"]["torch"]
    assert told["machine"]["cores"] >= 1
    said = trimtab("doctor")
    assert said.code == 0
    assert all(name in said.out for name in (*RUNTIMES, "torch", f"trimtab {told['trimtab']}"))


def test_doctor_looks_at_a_task_before_time_is_spent_on_it(trimtab: Trimtab, tmp_path: Path) -> None:
    before = names(tmp_path)
    said = trimtab("doctor", "job.py:digits", "--runtimes", "onnxruntime", "--batch-size", "4")
    assert said.code == 0
    assert all(
        words in said.out for words in ("onnxruntime", "Where the time is", "low rank", "a search over the default")
    )
    assert "looking at runtimes\n" in said.err
    told = json.loads(trimtab("doctor", "job.py:digits", "--runtimes", "onnxruntime", "--json").out)
    assert told["params"] == 64 * 256 + 256 + 256 * 10 + 10
    assert {family["name"] for family in told["families"]} >= {"prune", "int8"}
    assert names(tmp_path) == before, "nothing was written"
    refused(trimtab("doctor", "job.py:digits", "--runtimes", "tpu"), "tpu")
    refused(trimtab("doctor", "job.py:digits", "--keep", "2"), "keep=2")


# --- pruning alone -------------------------------------------------------------------------------------------------


def test_a_dry_run_of_prune_shows_the_plan_and_writes_nothing(trimtab: Trimtab, tmp_path: Path) -> None:
    before = names(tmp_path)
    said = trimtab("prune", "job.py:digits", "--ratio", "0.5", "--dry-run")
    assert said.code == 0
    assert names(tmp_path) == before
    lines = said.out.splitlines()
    assert lines[0].split("  ")[0] == "group"
    assert lines[1].split()[:6] == ["0", "0.weight", "2.weight", "256", "128", lines[1].split()[5]]
    assert any("eager, one thread, one sample" in line for line in lines)
    assert "  2 (10): it is the model's output" in lines
    assert lines[-1].endswith("nothing was written (dry run)")
    assert "training" in said.err


def test_prune_writes_a_model_that_loads(trimtab: Trimtab, tmp_path: Path) -> None:
    said = trimtab("prune", "job.py:digits", "--macs", "0.5", "--importance", "obs", "--output", "small one", "--quiet")
    assert said.code == 0
    assert said.err == ""
    assert said.out.splitlines()[-1] == "wrote small one"
    loaded = tt.load(tmp_path / "small one")
    (stage,), graph = loaded.plans, loaded.graph
    (cut,) = stage["plan"]["cuts"]
    assert graph.get_parameter("0.weight").shape == (len(cut["kept"]), 64)
    assert stage["settings"]["importance"] == "obs"
    assert stage["plan"]["compensated"] == ["linear_1"]
    again = trimtab("prune", "job.py:digits", "--ratio", "0.5", "--output", "small one")
    refused(again, "small one exists already, and nothing is overwritten. Remove it, or choose another folder.")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "Prune needs one of ratio and budget"),
        (["--ratio", "0.5", "--macs", "0.5"], "Prune needs one of ratio and budget"),
        (["--ratio", "1.5"], "give 0 < ratio < 1"),
        (["--macs", "0.001"], "The budget cannot be met"),
        (["--ratio", "0.5", "--importance", "obs", "--samples", "3"], "16 calibration samples or more; got 3"),
        (["--ratio", "0.5", "--importance", "luck"], "Invalid value for '--importance'"),
    ],
)
def test_prune_refuses_what_makes_no_sense(trimtab: Trimtab, options: list[str], words: str) -> None:
    refused(trimtab("prune", "job.py:small_untrained", *options, "--dry-run", "--quiet"), words)


# --- training alone ------------------------------------------------------------------------------------------------


def test_train_writes_a_model_that_loads(trimtab: Trimtab, tmp_path: Path) -> None:
    said = trimtab("train", "job.py:digits", "--epochs", "2", "--until", "accuracy=0.1", "--output", "t", "--quiet")
    assert (said.code, said.err) == (0, "")
    assert "after 14 steps: accuracy 0.1 was reached\nwrote t" in said.out
    assert tt.load(tmp_path / "t").graph.get_parameter("0.weight").shape == (256, 64)
    refused(trimtab("train", "job.py:digits", "--output", "t"), "t exists already, and nothing is overwritten")
    refused(trimtab("train", "job.py:digits", "--until", "accuracy"), "Cannot read --until accuracy: give METRIC=VALUE")
    refused(trimtab("train", "job.py:digits", "--budget", "10"), "Cannot read --budget 10: give a number and s, m or h")
    refused(trimtab("train", "job.py:digits", "--lr", "0"), "lr > 0")
    refused(trimtab("train", "job.py:digits", "--set", "clip=0"), "Fit(clip=0) is the largest norm of a gradient")
    refused(trimtab("optimize", "job.py:digits", "--model", "nowhere"), "nowhere")
    refused(
        trimtab("train", "job.py:digits", "--optimizer", "lino"), "There is no optimizer 'lino'; the optimizers are"
    )


@pytest.mark.slow
def test_optimize_goes_on_from_a_model_that_train_wrote(trimtab: Trimtab, tmp_path: Path) -> None:
    given = ("--optimizer", "lion", "--lr", "0.001", "--epochs", "3", "--output", "t", "--quiet")
    said = trimtab("train", "job.py:digits", *given)
    assert said.code == 0, said.err
    said = trimtab("optimize", "job.py:digits", "--model", "t", *OPTIONS, "--run", "r")
    proof = read_json(tmp_path / "r" / "evidence.json")
    assert said.code == EXIT_CODES[proof["verdict"]["word"]], said.err
    assert "training" not in said.err, "it was trained before"
    x, y = (array[897 + 300 :] for array in load_digits(return_X_y=True))
    classes = tt.load(tmp_path / "t").graph(torch.tensor(x, dtype=torch.float32) / 16).argmax(1).numpy()
    assert proof["rows"][0]["metric"] == pytest.approx((classes == y).mean(), abs=0.005)


def test_verify_resume_refuses_what_it_cannot_do(trimtab: Trimtab) -> None:
    refused(trimtab("verify-resume", "job.py:digits", "--steps", "500"), "steps=500 cannot be verified")
