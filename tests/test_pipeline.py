"""The main path, end to end on real data: the result, the artifact, resuming, refusals."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import trimtab as tt
from tests import small
from trimtab.errors import ArtifactError, RunError, RuntimeFailed, RuntimeMissing, SealError
from trimtab.files import read_json, sha256
from trimtab.graph.fisher import FISHER_FILE
from trimtab.graph.save import load_graph


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    small.optimize(folder)
    return folder


def ended(folder: Path) -> list[str]:
    return [line.split(" ended ")[1] for line in (folder / "log.txt").read_text().splitlines() if " ended " in line]


def test_the_evidence_is_complete_and_consistent(run: Path) -> None:
    loaded = tt.load(run / "artifact")
    evidence = loaded.artifact.evidence
    verdict = loaded.artifact.verdict
    assert verdict.word in ("PASS", "FAIL", "INCONCLUSIVE")
    assert [row["role"] for row in evidence["rows"]] == ["reference", "best_free", "chosen"]
    outcomes = {role: np.array(values) for role, values in evidence["outcomes"].items()}
    assert verdict.drop.n == len(outcomes["chosen"]) == 600
    assert verdict.drop.diff == pytest.approx(outcomes["chosen"].mean() - outcomes["reference"].mean())
    assert len(evidence["trials"]) >= 3
    assert evidence["rows"][2]["latency"]["n"] == len(evidence["latency_samples"]["chosen"])
    assert {step["step"] for step in evidence["steps"]} >= {"original"}
    assert evidence["skipped"], "pruning lists what it could not cut"
    assert (run / "report.html").stat().st_size > 1000


def test_finalists_were_named_before_verify_and_tested_in_turn(run: Path) -> None:
    evidence = tt.load(run / "artifact").artifact.evidence
    rows = evidence["finalists"]
    assert [row["id"] for row in rows] == [trial["id"] for trial in read_json(run / "choice.json")]
    words = [row["verdict"]["word"] if row["verdict"] else "not tested" for row in rows]
    stop = next((place for place, word in enumerate(words) if word != "PASS"), len(words))
    assert words[stop + 1 :] == ["not tested"] * len(words[stop + 1 :])
    passed = rows[:stop] or rows[:1]
    best = max(passed, key=lambda row: row["verdict"]["gain"]["value"])
    assert [row["candidate"] for row in rows if row["shipped"]] == [best["candidate"]] == [evidence["rows"][2]["name"]]
    assert best["outcomes"]["accuracy"] == evidence["outcomes"]["chosen"]
    assert best["verdict"] == evidence["verdict"]
    times = (run / "log.txt").read_text()
    assert times.index(" ended choice") < times.index(" ended evidence")


def test_what_each_step_of_the_chosen_recipe_did_is_measured_though_it_was_not_tried(tmp_path: Path) -> None:
    model, task = small.make(width=64)
    recipe = tt.Recipe((tt.Prune(0.25), tt.Distill(epochs=1), tt.Quantize()))
    target = tt.Target(runtimes=("onnxruntime",), threads=1)
    made = tt.optimize(model, task, target=target, goal=small.GOAL, run=tmp_path, recipes=(recipe,), quiet=True)
    evidence = made.evidence
    assert {trial["recipe"] for trial in evidence["trials"]} == {"original", recipe.name}, "they are no candidates"
    rows = evidence["steps"]
    assert [row["step"] for row in rows] == ["original", "prune .25", "distill 1 epoch", "int8"]
    assert all(row["metric"] and row["latency_ms"] and row["size_bytes"] for row in rows)
    assert all(row["seconds"] > 0 for row in rows[1:])
    assert rows[1]["size_bytes"] < rows[0]["size_bytes"]


def test_the_artifact_gives_the_measured_answers_and_the_graph_its_bits(run: Path) -> None:
    loaded = tt.load(run / "artifact")
    _, task = small.make()
    verify = task.verify.open("the test")
    answers = loaded.run(verify.inputs[0].numpy())
    scores = (torch.from_numpy(answers).argmax(1) == verify.targets).float()
    assert scores.tolist() == loaded.artifact.evidence["outcomes"]["chosen"]
    built = load_graph(run / "built" / next(p.name for p in (run / "built").iterdir() if is_same(p, run)))
    x = verify.inputs[0][:7]
    assert torch.equal(loaded.graph(x), built(x))
    assert loaded.labels == tuple("0123456789")


def is_same(folder: Path, run: Path) -> bool:
    return (folder / "weights.safetensors").read_bytes() == (run / "artifact" / "weights.safetensors").read_bytes()


def test_an_ended_run_is_not_run_again(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "lock"}
    small.optimize(run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != "lock"} == before


def test_a_changed_missing_or_added_byte_is_refused(run: Path, tmp_path: Path) -> None:
    for name in sorted(str(p.relative_to(run / "artifact")) for p in (run / "artifact").rglob("*") if p.is_file()):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(run / "artifact", copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(ArtifactError):
            tt.load(copy)
    shutil.copytree(run / "artifact", tmp_path / "less")
    (tmp_path / "less" / "graph.json").unlink()
    with pytest.raises(ArtifactError, match=r"graph\.json is missing"):
        tt.load(tmp_path / "less")
    shutil.copytree(run / "artifact", tmp_path / "more")
    (tmp_path / "more" / "extra").write_text("x")
    with pytest.raises(ArtifactError, match="extra was added"):
        tt.load(tmp_path / "more")
    with pytest.raises(ArtifactError, match="is no artifact"):
        tt.load(tmp_path / "nowhere")
    manifest = json.loads((run / "artifact" / "manifest.json").read_text())
    shutil.copytree(run / "artifact", tmp_path / "future")
    (tmp_path / "future" / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(ArtifactError, match="format 99"):
        tt.load(tmp_path / "future")


def test_inputs_that_do_not_fit_the_artifact_are_refused(run: Path) -> None:
    loaded = tt.load(run / "artifact")
    with pytest.raises(RuntimeFailed, match="takes float32"):
        loaded.run(np.zeros((2, 63), dtype=np.float32))
    with pytest.raises(RuntimeFailed, match="input"):
        loaded.run()


def test_a_run_of_something_else_is_refused(run: Path) -> None:
    model, task = small.make()
    with pytest.raises(RunError, match="goal: the folder has"):
        tt.optimize(
            model, task, target=small.TARGET, goal=tt.Goal(keep=0.9), run=run, recipes=small.RECIPES, quiet=True
        )


def test_another_activation_or_metric_of_the_same_name_is_another_run(run: Path) -> None:
    """As many weights of the same names and shapes: the old artifact would be given for the new model."""
    model, task = small.make()
    other = nn.Sequential(*(nn.GELU() if isinstance(part, nn.ReLU) else part for part in model))
    strict = dataclasses.replace(task, metric=dataclasses.replace(task.metric, per_sample=lambda y, t: 0.0 * t))
    for changed, words in (((other, task), "model: the folder has"), ((model, strict), "code of metric accuracy: ")):
        with pytest.raises(RunError, match=words):
            tt.optimize(*changed, target=small.TARGET, goal=small.GOAL, run=run, recipes=small.RECIPES, quiet=True)


def test_verify_is_opened_by_the_verdict_and_nothing_else(tmp_path: Path) -> None:
    model, task = small.make()
    task.verify.open("peeking")
    recipes = (tt.Recipe((tt.Quantize(samples=64),)),)
    with pytest.raises(SealError, match="opened before, for 'peeking'"):
        tt.optimize(model, task, target=small.TARGET, run=tmp_path / "r", recipes=recipes, quiet=True)
    assert (tmp_path / "r" / "choice.json").exists(), "the whole search ran without the verify split"


def test_a_runtime_that_is_not_installed_names_the_command(tmp_path: Path) -> None:
    code = """
import sys, importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.split(".")[0] == "openvino" else real(name, *a)
import trimtab as tt
from tests import small
model, task = small.make()
try:
    tt.optimize(model, task, target=tt.Target(runtimes=("openvino",)), run=sys.argv[1])
except tt.TrimtabError as error:
    print(type(error).__name__, error)
"""
    root = Path(tt.__file__).parent.parent
    command = [sys.executable, "-c", code, str(tmp_path / "r")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout
    assert said.startswith(RuntimeMissing.__name__)
    assert "pip install" in said
    assert "trimtab[openvino]" in said
    assert not (tmp_path / "r").exists()


def test_nothing_better_is_a_fail_that_saves_the_nearest_miss(tmp_path: Path) -> None:
    model, task = small.make()
    recipes = (tt.Recipe((tt.Prune(ratio=0.9),)),)
    target, goal = small.TARGET, tt.Goal(keep=1.0)
    result = tt.optimize(model, task, target=target, goal=goal, run=tmp_path / "r", recipes=recipes, quiet=True)
    assert result.verdict.word == "FAIL"
    assert result.name.startswith("prune .9")
    end = result.evidence["search"]
    assert end["nearest_miss"]
    assert end["costliest"]["step"] == "prune .9"
    assert end["next"].startswith("Train after 'prune .9' to recover")
    assert tt.load(tmp_path / "r" / "artifact").run(task.select.inputs[0].numpy()).shape == (300, 10)


def test_what_is_sure_without_training_is_not_trained(tmp_path: Path) -> None:
    model, task = small.make()
    cut = tt.Prune(ratio=0.25, importance="obs")
    recipes = (tt.Recipe((cut,)), tt.Recipe((cut, tt.Distill(epochs=99))))
    goal = tt.Goal("size_bytes", keep=0.8)
    result = tt.optimize(model, task, target=small.TARGET, goal=goal, run=tmp_path / "r", recipes=recipes, quiet=True)
    assert result.verdict.word == "PASS"
    told = next(skip["why"] for skip in result.evidence["skipped"] if skip["what"] == recipes[1].name)
    assert "nothing to recover by training" in told
    assert not list((tmp_path / "r" / "built").glob("*distill*"))


@pytest.mark.slow
def test_the_training_hands_its_squares_to_the_recipes_and_the_artifact_ships_without(tmp_path: Path) -> None:
    model, task = small.make()
    recipes = (tt.Recipe((tt.Prune(ratio=0.25, importance="fisher"),)),)
    target, run = small.TARGET, tmp_path / "r"
    tt.optimize(model, task, target=target, goal=tt.Goal("size_bytes"), run=run, recipes=recipes, quiet=True)
    (plan,) = run.glob("built/*/plan.json")
    assert {cut["by"] for cut in read_json(plan)["plan"]["cuts"]} == {"fisher, the training's AdamW"}
    assert not list((run / "artifact").rglob(FISHER_FILE))


def kill_after(num: int, seconds: float, folder: Path) -> None:
    """Run the job, or go on with it; kill it so long after `num` steps have ended."""
    root = Path(tt.__file__).parent.parent
    command = [sys.executable, "-m", "tests.small", str(folder)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and num_ended(folder) < num:
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it was alive, and died of this"
    assert num_ended(folder) >= num


def num_ended(folder: Path) -> int:
    return len(ended(folder)) if (folder / "log.txt").exists() else 0


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_in_the_same_verdict(run: Path, tmp_path: Path) -> None:
    root = Path(tt.__file__).parent.parent
    folder = tmp_path / "killed"
    moments = random.Random(0)
    trained, measured, chosen = (ended(run).index(name) for name in ("original", "free", "choice"))
    # In the training, while the baselines are measured, and while recipes are tried; after each, more is to come than
    # can end in the second that it may go on.
    for low, high in ((trained, trained), (trained + 1, measured), (measured + 1, chosen - 3)):
        kill_after(moments.randint(low, high), moments.uniform(0.0, 1.0), folder)
    subprocess.run([sys.executable, "-m", "tests.small", str(folder)], cwd=root, check=True)
    repeated = [name for name, count in Counter(ended(folder)).items() if count > 1]
    assert not repeated, f"made again after it had ended: {repeated}"
    assert tt.load(folder / "artifact").artifact.verdict.word == tt.load(run / "artifact").artifact.verdict.word
    assert not list(folder.rglob(".*.part"))
    hashes = {sha256(place / "original" / "weights.safetensors") for place in (folder, run)}
    assert len(hashes) == 1, "resumed training must be bit-exact"
    assert read_json(folder / "run.json") == read_json(run / "run.json")


@pytest.mark.slow
def test_layers_that_a_runtime_runs_in_floats_all_the_same_are_listed(tmp_path: Path) -> None:
    model, task = small.make()
    recipes = (tt.Recipe((tt.WeightOnly("fp16"),)),)
    target = tt.Target(runtimes=("onnxruntime",))
    goal = tt.Goal("size_bytes", keep=0.9)
    artifact = tt.optimize(model, task, target=target, goal=goal, run=tmp_path / "run", recipes=recipes, quiet=True)
    (told,) = [skip for skip in artifact.evidence["skipped"] if skip["what"] == "fp16 in onnxruntime"]
    assert told["why"].startswith("3 of 3 layers run with weights unpacked to floats there")
    assert artifact.precision == "fp16"
