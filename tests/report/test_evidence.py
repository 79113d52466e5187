"""The evidence: rows and pictures from answers, steps from trials, all of it JSON."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from trimtab.core import (
    Drop,
    Fit,
    Goal,
    Held,
    Measurement,
    Metric,
    Precision,
    Ratio,
    Skip,
    Split,
    Target,
    Task,
    Trial,
    Verdict,
)  # fmt: skip
from trimtab.measure.speed import Timing
from trimtab.report.evidence import Contender, Story, assemble, steps
from trimtab.report.shown import NUM_EXAMPLES

DROP = Drop(0.8, 0.7, -0.1, -0.2, 0.05, 0.15, 60, 0.95, "exact")
NUM = 60
LABELS = ("ankle", "boot", "coat")


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """[N, 1, 4, 5], values from -1 to 3; [N] labels."""
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 3, (NUM, 1, 4, 5)).astype("float32"), np.arange(NUM) % 3


def task(**settings) -> Task:
    splits = {}
    for place, name in enumerate(("train", "select", "verify")):
        x, y = pictures()
        splits[name] = (x + place, y)
    return Task.of("shoes", **splits, **{"labels": LABELS, **settings})


def trial(recipe: str, runtime: str, ms: float, precision: Precision = "fp32") -> Trial:
    figures = (Measurement("latency_ms", ms, "ms", 9, ms, ms), Measurement("size_bytes", 1e4 * ms, "B", 1, 0, 0))
    return Trial("id", recipe, recipe, runtime, precision, DROP, figures, None, 1.0, "folder")


def contender(role: str, changed: list[int], *, gain: Ratio | None = None) -> Contender:
    """Right everywhere, but for the samples in `changed`, which get the next label."""
    _, y = pictures()
    answers = np.eye(3, dtype="float32")[np.where(np.isin(np.arange(NUM), changed), (y + 1) % 3, y)]
    scores = (answers.argmax(1) == y).astype(float)
    figures = tuple(Measurement(q, 2.0, u, 1, 1.0, 3.0) for q, u in
                    (("latency_ms", "ms"), ("size_bytes", "B"), ("memory_bytes", "B")))  # fmt: skip
    return Contender(
        role,
        f"the {role}",
        answers,
        {"accuracy": scores, "negative error": scores},
        figures,
        Timing((1.0, 2.0), (1.5,)),
        gain,
    )


def as_split(inputs: np.ndarray) -> Split:
    return Split((torch.from_numpy(inputs),), torch.from_numpy(pictures()[1]))


def evidence(job: Task, *, inputs: np.ndarray, story: Story | None = None) -> dict:
    told = story or Story(job, Target(), Goal(), (trial("original", "eager", 2.0),), (), (Skip("a", "b"),), "cmd", "r")
    verdict = Verdict("PASS", "it holds", DROP, Ratio(2.0, 1.9, 2.1, 24))
    chosen = contender("chosen", [4, 50, 51], gain=verdict.gain)
    trio = [contender("reference", [4]), contender("best_free", [4]), chosen]
    return assemble(told, trio, verdict, split=as_split(inputs))


def test_it_is_plain_json() -> None:
    found = evidence(task(), inputs=pictures()[0])
    assert json.loads(json.dumps(found, allow_nan=False))["verdict"]["word"] == "PASS"


def test_rows_hold_the_means_and_only_the_chosen_one_is_judged() -> None:
    rows = evidence(task(), inputs=pictures()[0])["rows"]
    assert [row["role"] for row in rows] == ["reference", "best_free", "chosen"]
    assert [row["metric"] for row in rows] == pytest.approx([59 / 60, 59 / 60, 57 / 60])
    assert [row["word"] for row in rows] == [None, None, "PASS"]
    assert [row["metric_low"] for row in rows] == [None, None, DROP.low]
    assert [row["gain"] and row["gain"]["value"] for row in rows] == [None, None, 2.0]
    assert rows[2]["latency"]["unit"] == "ms"


def test_the_task_is_described_with_its_counts() -> None:
    described = evidence(task(), inputs=pictures()[0])["task"]
    assert described == {
        "name": "shoes",
        "metric": "accuracy",
        "binary": True,
        "num_train": NUM,
        "num_select": NUM,
        "num_verify": NUM,
        "num_inputs": 1,
        "labels": list(LABELS),
        "data": "",
    }


def test_outcomes_and_latencies_are_kept_for_each() -> None:
    found = evidence(task(), inputs=pictures()[0])
    assert [at for at, right in enumerate(found["outcomes"]["chosen"]) if not right] == [4, 50, 51]
    assert found["latency_samples"] == {role: [1.0, 2.0] for role in ("reference", "best_free", "chosen")}
    assert found["skipped"] == [{"what": "a", "why": "b"}]
    assert found["paths"]["evidence"] == "r/artifact/evidence.json"


def test_changed_pictures_come_first_and_hold_the_pixels() -> None:
    x, y = pictures()
    shown = evidence(task(), inputs=x)["examples"]
    assert len(shown) == NUM_EXAMPLES
    changed = [one for one in shown if one["before"] != one["after"]]
    assert changed == shown[:2]
    assert [(one["label"], one["before"], one["after"]) for one in changed] == [
        (LABELS[y[at]], LABELS[y[at]], LABELS[(y[at] + 1) % 3]) for at in (50, 51)
    ]
    assert (shown[2]["label"], shown[2]["before"]) == (LABELS[0], LABELS[0])
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[0]["png"]))))
    assert image.shape == (4, 5)
    want = (x[50, 0] - x.min()) / (x.max() - x.min()) * 255
    assert np.abs(image - want).max() <= 0.51


def test_colour_pictures_keep_their_colours() -> None:
    x = np.repeat(pictures()[0], 3, axis=1)
    shown = evidence(task(), inputs=x)["examples"]
    assert Image.open(io.BytesIO(base64.b64decode(shown[0]["png"]))).mode == "RGB"


@pytest.mark.parametrize("shape", [(NUM, 20), (NUM, 2, 4, 5), (NUM, 4, 5)])
def test_what_is_no_picture_is_not_shown_as_one(shape: tuple[int, ...]) -> None:
    assert evidence(task(), inputs=np.zeros(shape, "float32"))["examples"] == []


def test_without_class_names_pictures_have_their_scores() -> None:
    error = Metric("negative error", lambda out, y: -(out[:, 0] - y).abs())
    job = task(labels=(), loss=torch.nn.functional.mse_loss, metric=error)
    found = evidence(job, inputs=pictures()[0])
    shown = found["examples"]
    assert [(one["label"], one["before"], one["after"], one["worse"]) for one in shown[:2]] == [
        ("", "negative error 1.000", "negative error 0.000", True)
    ] * 2
    assert all(one["before"] == one["after"] for one in shown[2:])
    assert found["task"]["binary"] is False


def test_constant_pictures_do_not_divide_by_zero() -> None:
    shown = evidence(task(), inputs=np.full((NUM, 1, 4, 5), 7.0, "float32"))["examples"]
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[0]["png"])))).max() == 0


def test_steps_take_their_figures_from_the_chosen_runtime() -> None:
    names = ["original", "prune .5", "prune .5 + distill"]
    trials = (trial("original", "openvino", 4.0), trial("original", "eager", 9.0), trial(names[2], "openvino", 1.0))
    metrics = {"original": 0.9, "prune .5": 0.6, "prune .5 + distill": 0.89}
    found = steps(names, metrics, {"prune .5": 2.0, "prune .5 + distill": 30.0}, trials, runtime="openvino")
    assert [row["step"] for row in found] == ["original", "prune .5", "distill"]
    assert [row["latency_ms"] for row in found] == [4.0, None, 1.0]
    assert [row["metric"] for row in found] == [0.9, 0.6, 0.89]
    assert [row["seconds"] for row in found] == [0.0, 2.0, 30.0]
    assert steps(["x"], {}, {}, (), runtime="eager")[0]["metric"] is None
    assert [row["alone"] for row in found] == [None, None, None]
    raced = (trials[0], replace(trials[2], gain=Ratio(3.0, 2.9, 3.1, 8)))
    found = steps(names, metrics, {}, raced, runtime="openvino", baseline_ms=6.0)
    assert [row["latency_ms"] for row in found] == [4.0, None, 2.0]
    both = ["original", "prune .5", "prune .5 + int8"]
    tried = (trials[0], trial("int8", "openvino", 2.5), trial("int8", "eager", 1.5))
    found = steps(both, {**metrics, "int8": 0.88}, {}, tried, runtime="openvino")
    assert found[2]["alone"] == {"metric": 0.88, "latency_ms": 2.5, "size_bytes": 25_000.0}
    assert found[1]["alone"] is None


def test_bounds_have_the_estimates_of_select_and_verify() -> None:
    main, night = (replace(DROP, what=what) for what in ("accuracy", "accuracy of night"))
    verdict = Verdict("FAIL", "lost", main, Ratio(2, 2, 2, 1), bounds=(Held(main, "FAIL"), Held(night, "PASS")))
    select = (replace(main, candidate=0.75), replace(night, candidate=0.65))
    own = replace(trial("int8", "eager", 1.0), candidate="the chosen", select=select[0], also=select[1:])
    story = Story(task(), Target(), Goal(), (own,), (), (), "cmd", "r")
    trio = [contender(role, []) for role in ("reference", "best_free", "chosen")]
    found = assemble(story, trio, verdict, split=as_split(pictures()[0]))["bounds"]
    assert [(one["what"], one["word"]) for one in found] == [("accuracy", "FAIL"), ("accuracy of night", "PASS")]
    assert [one["select"]["candidate"] for one in found] == [0.75, 0.65]
    assert [one["verify"]["candidate"] for one in found] == [0.7, 0.7]


def test_the_seeds_of_training_and_search_are_told_apart() -> None:
    trained = replace(task(), fit=Fit(seed=7))
    story = Story(trained, Target(), Goal(), (), (), (), "trimtab optimize t --seed 3", "r", seed=3)
    found = evidence(trained, inputs=pictures()[0], story=story)["reproduce"]
    assert found == {"command": "trimtab optimize t --seed 3", "training_seed": 7, "search_seed": 3}
    brought = replace(story, task=task(), seed=None)
    found = evidence(task(), inputs=pictures()[0], story=brought)["reproduce"]
    assert found == {"command": "trimtab optimize t --seed 3", "training_seed": None, "search_seed": None}
