"""A realistic piece of evidence, made up but consistent, for the tests of page and terminal."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from trimtab.tasks.fashion import LABELS

Evidence = dict[str, Any]
REFERENCE = 0.8990
MARGIN = 0.00899
# recipe, runtime, precision, metric on select, latency in ms, size in bytes, seconds
TRIALS: list[tuple[str, str, str, float, float, int, float]] = [
    ("original", "eager", "fp32", 0.8990, 1.934, 1_063_000, 4.1),
    ("original", "inductor", "fp32", 0.8990, 1.102, 1_480_000, 31.0),
    ("original", "onnxruntime", "fp32", 0.8990, 0.871, 1_058_000, 5.2),
    ("original", "openvino", "fp32", 0.8990, 0.842, 1_071_000, 5.9),
    ("original", "openvino", "bf16", 0.8985, 0.613, 1_071_000, 5.7),
    ("int8", "onnxruntime", "int8", 0.8970, 0.402, 291_000, 8.0),
    ("int8", "openvino", "int8", 0.8965, 0.371, 312_000, 8.3),
    ("prune .3", "openvino", "bf16", 0.8790, 0.468, 542_000, 6.4),
    ("prune .3 + int8", "openvino", "int8", 0.8765, 0.302, 171_000, 8.1),
    ("prune .5", "openvino", "bf16", 0.8420, 0.352, 288_000, 6.2),
    ("prune .3 + distill + int8", "openvino", "int8", 0.8985, 0.298, 171_000, 34.2),
    ("prune .5 + distill", "openvino", "bf16", 0.8970, 0.349, 288_000, 33.7),
    ("prune .5 + distill + int8", "openvino", "int8", 0.8960, 0.211, 96_400, 35.1),
    ("prune .7 + distill + int8", "openvino", "int8", 0.8845, 0.154, 58_200, 29.8),
]
CHOSEN, BEST_FREE = 12, 4
MACHINE = {
    "cpu": "AMD EPYC 9B14",
    "architecture": "x86_64",
    "cores": 2,
    "features": ["avx2", "avx512f", "avx512_vnni", "avx512_bf16"],
    "memory_bytes": 25_276_514_304,
    "os": "Linux-6.18.44-x86_64-with-glibc2.36",
    "python": "3.11.7",
}


def measurement(quantity: str, value: float, unit: str, spread: float = 0.0, n: int = 1) -> Evidence:
    low, high = value * (1 - spread), value * (1 + spread)
    return {"quantity": quantity, "value": value, "unit": unit, "n": n, "low": low, "high": high}


def drop(candidate: float, n: int, *, width: float = 0.004) -> Evidence:
    diff = candidate - REFERENCE
    return {
        "baseline": REFERENCE,
        "candidate": candidate,
        "diff": diff,
        "low": diff - width,
        "high": diff + width,
        "margin": MARGIN,
        "n": n,
        "confidence": 0.95,
        "method": "Tango score interval, half-pair corrected",
    }


def ratio(value: float) -> Evidence:
    return {"value": value, "low": value * 0.96, "high": value * 1.05, "n": 24}


def measurements(latency_ms: float, size: int) -> tuple[Evidence, Evidence, Evidence]:
    return (
        measurement("latency_ms", latency_ms, "ms", 0.03, 480),
        measurement("size_bytes", float(size), "B"),
        measurement("memory_bytes", 38e6 + 6 * size, "B"),
    )


def trial(place: int) -> Evidence:
    recipe, runtime, precision, metric, latency_ms, size, seconds = TRIALS[place]
    best = TRIALS[BEST_FREE][4]
    return {
        "id": f"t{place:02d}",
        "candidate": f"{recipe} ({runtime} {precision})",
        "recipe": recipe,
        "runtime": runtime,
        "precision": precision,
        "select": drop(metric, 2000, width=0.0062 if recipe != "original" else 0.001),
        "measurements": list(measurements(latency_ms, size)),
        "gain": ratio(best / latency_ms),
        "seconds": seconds,
        "folder": f"files/t{place:02d}",
        "free": recipe == "original",
        "skipped": [],
        "steps": [],
    }


def row(role: str, place: int, metric: float) -> Evidence:
    recipe, runtime, precision, _, latency_ms, size, _ = TRIALS[place]
    latency, file_size, memory = measurements(latency_ms, size)
    return {
        "role": role,
        "name": f"{recipe} ({runtime} {precision})",
        "metric": metric,
        "metric_low": None,
        "metric_high": None,
        "latency": latency,
        "size": file_size,
        "memory": memory,
        "gain": None if role == "reference" else ratio(TRIALS[BEST_FREE][4] / latency_ms),
        "word": "PASS" if role == "chosen" else None,
    }


def png(picture: np.ndarray) -> str:
    """[H, W] bytes -> base64 of a PNG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def garment(kind: int, rng: np.random.Generator) -> np.ndarray:
    """Something like a garment, 28 x 28: torso, sleeves or legs, and a little weave."""
    y, x = np.mgrid[0:28, 0:28]
    body = (np.abs(x - 14) < 5 + kind % 3) & (y > 3) & (y < 26)
    sleeves = (np.abs(x - 14) < 11) & (y > 4) & (y < 9 + 3 * (kind % 4))
    gap = (np.abs(x - 14) < 2) & (y > 10) if kind % 5 == 1 else np.zeros_like(body)
    level = 120 + 15 * (kind % 8) + rng.normal(0, 12, (28, 28))
    return np.where((body | sleeves) & ~gap, np.clip(level, 60, 255), 0).astype(np.uint8)


def examples() -> list[dict[str, str]]:
    rng = np.random.default_rng(0)
    changed = [(6, 6, 0), (4, 2, 4), (2, 4, 6), (0, 6, 0), (6, 4, 6), (3, 3, 4), (9, 7, 9)]
    same = [(kind % 10, kind % 10, kind % 10) for kind in range(17)]
    return [
        {"png": png(garment(label, rng)), "label": LABELS[label], "before": LABELS[before], "after": LABELS[after]}
        for label, before, after in [*same[:5], *changed, *same[5:]]
    ]


def latency_samples() -> dict[str, list[float]]:
    rng = np.random.default_rng(1)
    middles = {"reference": TRIALS[0][4], "best_free": TRIALS[BEST_FREE][4], "chosen": TRIALS[CHOSEN][4]}
    return {role: (ms * (0.97 + rng.gamma(1.2, 0.03, 480))).tolist() for role, ms in middles.items()}


def layers() -> list[Evidence]:
    cuts = [
        ("features.0", 32, 16, 112_896, 0.06),
        ("features.3", 64, 32, 2_709_504, 0.2),
        ("features.6", 128, 64, 0, 0.31),
    ]
    rows = [
        {
            "step": "prune .5",
            "layer": name,
            "what": f"{size} to {kept} channels",
            "macs_freed": macs,
            "ms_freed": 0.02,
            "lost": lost,
        }
        for name, size, kept, macs, lost in cuts
    ]
    return rows + [
        {"step": "int8", "layer": name, "what": "weights in 8 bits", "macs_freed": None, "ms_freed": None, "lost": None}
        for name, *_ in cuts
    ]


def coverage() -> Evidence:
    names = ["conv2d", *(f"conv2d_{place}" for place in range(1, 14)), "linear"]
    kept = {
        "conv2d": "alone this layer moves the outputs by 0.11",
        "linear": "alone this layer moves the outputs by 0.09",
    }
    layers = [
        {"layer": name, "state": "float" if name in kept else "int8", "why": kept.get(name, "")} for name in names
    ]
    return {"runtime": "openvino", "layers": layers, "running": {"Convolution": 13}, "floating": {"MatMul": 1}}


def sensitivity() -> list[Evidence]:
    return [{"layer": f"conv2d_{place}" if place else "linear", "error": 0.11 * 0.8**place} for place in range(15)]


def staircase() -> list[Evidence]:
    widths = list(range(5, 101, 5))
    shown = {"widths": widths, "pay": [20, 45, 70, 95, 100], "chosen": 50}
    return [
        {**shown, "layer": name, "ms": [scale * (1 + width // 25) for width in widths]}
        for name, scale in (("features.3", 0.02), ("features.6", 0.035))
    ]


def timeline() -> list[Evidence]:
    kinds = [
        "training and capture",
        "exporting",
        "free baselines",
        "compressing",
        "screening",
        "exporting",
        "timing trials",
    ]
    rows, at = [], 0.0
    for place, kind in enumerate([*kinds, *kinds[3:] * 3, "verdict"]):
        rows.append({"kind": kind, "what": f"step {place}", "start_s": at, "end_s": at + 3 + 7 * (place % 4)})
        at = rows[-1]["end_s"]
    return rows


def profile() -> Evidence:
    cases = [
        {
            "role": role,
            "batch_size": size,
            "threads": threads,
            "latency": measurement("latency_ms", ms * size**0.8 / threads**0.5, "ms"),
            "throughput": measurement("throughput_per_s", 1000 * size**0.2 * threads**0.5 / ms, "1/s"),
        }
        for threads in (1, 2)
        for size in (1, 8, 32)
        for role, ms in (("best_free", TRIALS[BEST_FREE][4]), ("chosen", TRIALS[CHOSEN][4]))
    ]
    return {"cases": cases, "cold_start_s": {"best_free": [0.4, 0.5], "chosen": [0.3, 0.3]}}


def many(num: int = 500) -> Evidence:
    """The same run, had it tried hundreds of candidates."""
    found = evidence()
    rng = np.random.default_rng(2)
    for place in range(len(TRIALS), num):
        own = trial(5 + place % 9)
        name = f"prune .{rng.integers(10, 99)} + distill + int8 number {place} (openvino int8)"
        change = float(rng.normal(0, 0.006))
        own |= {
            "id": f"t{place}",
            "candidate": name,
            "select": drop(min(0.92, own["select"]["candidate"] + change), 2000),
        }
        own["measurements"][0] = measurement("latency_ms", 0.2 * float(rng.gamma(4, 0.3)) + 0.1, "ms", 0.03, 480)
        found["trials"].append(own)
    return found


def spoken() -> Evidence:
    """A run whose samples are text and sound, with scores instead of classes."""
    found = evidence()
    found["task"] |= {"labels": [], "metric": "BLEU", "binary": False}
    texts = ["the cat sat on <the> mat", "a long sentence " * 12]
    wav = base64.b64encode(b"RIFF$\0\0\0WAVEfmt ").decode()
    found["examples"] = [
        {"text": text, "label": "", "before": "BLEU 0.8300", "after": "BLEU 0.4100", "worse": True} for text in texts
    ]
    found["examples"] += [
        {"wav": wav, "label": "", "before": "BLEU 0.4", "after": "BLEU 0.5", "worse": False},
        {"text": "the same", "label": "", "before": "BLEU 1", "after": "BLEU 1", "worse": False},
    ]
    return found


def finalists() -> list[Evidence]:
    """Three that were named, of which the second is shipped, as the third lost too much."""
    verdicts = [
        (10, "PASS", drop(0.8990, 4000, width=0.0036)),
        (CHOSEN, "PASS", drop(0.8964, 4000, width=0.0036)),
        (13, "FAIL", drop(0.8801, 4000, width=0.0041)),
    ]
    rows = []
    for place, word, own in verdicts:
        one = trial(place)
        verdict = {"word": word, "reason": "", "drop": own, "gain": one["gain"], "more_samples": None}
        rows.append({name: one[name] for name in ("id", "candidate", "select")} | {"gain_on_select": one["gain"]})
        rows[-1] |= {"shipped": place == CHOSEN, "verdict": verdict}
    return rows


def search() -> Evidence:
    """How the search ended: what none beats, the cheapest first, and what cost most."""
    return {
        "candidates": 8,
        "pareto": ["t13", "t12", "t10", "t03"],
        "nearest_miss": False,
        "select_diff": TRIALS[CHOSEN][3] - REFERENCE,
        "verify_diff": 0.8964 - REFERENCE,
        "costliest": {"step": "prune .5", "metric_lost": 0.057},
        "next": "",
    }


def evidence() -> Evidence:
    """Evidence of a run that passed."""
    final = drop(0.8964, 4000, width=0.0036)
    gain = ratio(TRIALS[BEST_FREE][4] / TRIALS[CHOSEN][4])
    return {
        "format": 1,
        "trimtab": "0.1.0",
        "task": {
            "name": "fashion",
            "metric": "accuracy",
            "num_train": 10_000,
            "num_select": 2000,
            "num_verify": 4000,
            "num_inputs": 1,
            "labels": list(LABELS),
        },
        "target": {"device": "cpu", "runtimes": None, "batch_size": 1, "threads": 1},
        "goal": {"minimise": "latency_ms", "keep": 0.99, "drop": None, "confidence": 0.95, "minutes": None},
        "machine": MACHINE,
        "versions": {"trimtab": "0.1.0", "torch": "2.13.0+cpu", "onnxruntime": "1.32.0", "openvino": "2026.4.1"},
        "verdict": {
            "word": "PASS",
            "reason": "Quality holds: the metric changed by -0.0026 (at worst -0.0062 with 95 % confidence).",
            "drop": final,
            "gain": gain,
            "more_samples": None,
        },
        "rows": [
            row("reference", 0, REFERENCE),
            row("best_free", BEST_FREE, 0.8986),
            row("chosen", CHOSEN, 0.8964) | {"metric_low": final["low"], "metric_high": final["high"]},
        ],
        "trials": [trial(place) for place in range(len(TRIALS))],
        "finalists": finalists(),
        "steps": [
            {"step": "original", "metric": 0.8990, "latency_ms": 0.842, "size_bytes": 1.071e6, "seconds": 58.0},
            {"step": "prune .5", "metric": 0.8420, "latency_ms": 0.352, "size_bytes": 288_000.0, "seconds": 2.1},
            {"step": "distill", "metric": 0.8970, "latency_ms": 0.349, "size_bytes": 288_000.0, "seconds": 27.4},
            {
                "step": "int8",
                "metric": 0.8960,
                "latency_ms": 0.211,
                "size_bytes": 96_400.0,
                "seconds": 3.6,
                "alone": {"metric": 0.8980, "latency_ms": 0.421, "size_bytes": 357_000.0},
            },
        ],
        "skipped": [
            {
                "what": "original (inductor bf16)",
                "why": "its answers differ from the graph's by more than bf16 explains",
            },
            {"what": "prune .7", "why": "accuracy on select fell to 41.2 %: hopeless without distillation"},
            {"what": "features.0", "why": "its input channels are the model's own input"},
        ],
        "layers": layers(),
        "coverage": coverage(),
        "sensitivity": sensitivity(),
        "staircase": staircase(),
        "timeline": timeline(),
        "profile": profile(),
        "search": search(),
        "latency_samples": latency_samples(),
        "examples": examples(),
        "reproduce": {
            "command": "trimtab optimize fashion --keep 0.99 --seed 3",
            "training_seed": 0,
            "search_seed": 3,
        },
        "paths": {
            "artifact": "runs/fashion/artifact",
            "evidence": "runs/fashion/artifact/evidence.json",
            "report": "runs/fashion/report.html",
        },
    }


def minimising(quantity: str) -> Evidence:
    """The same run, had its goal been the size on disk or the peak memory."""
    found = evidence()
    found["goal"]["minimise"] = quantity

    def cost(place: int) -> float:
        return next(m["value"] for m in found["trials"][place]["measurements"] if m["quantity"] == quantity)

    best = min(cost(place) for place, one in enumerate(found["trials"]) if one["free"])
    for place, one in enumerate(found["trials"]):
        one["gain"] = exactly(best / cost(place))
    found["verdict"]["gain"] = found["rows"][2]["gain"] = exactly(best / cost(CHOSEN))
    found["search"]["pareto"] = ["t13", "t12", "t10", "t02"]
    return found


def exactly(gain: float) -> Evidence:
    return {"value": gain, "low": gain, "high": gain, "n": 1}


def inconclusive() -> Evidence:
    """The same run, had the verify split been too small."""
    found = evidence()
    low = {**found["verdict"]["drop"], "low": -0.0131, "high": 0.0079, "n": 500}
    found["verdict"] |= {
        "word": "INCONCLUSIVE",
        "drop": low,
        "more_samples": 640,
        "reason": "Quality is open: the change lies within the margin, but its interval crosses it. "
        "About 640 more verify samples would decide.",
    }
    found["rows"][2] |= {"word": "INCONCLUSIVE", "metric_low": -0.0131, "metric_high": 0.0079}
    found["search"]["next"] = "Bring about 640 more verify samples: nothing has to be made again."
    tested, untested = found["finalists"][1:]
    tested["verdict"] |= {"word": "INCONCLUSIVE", "drop": low, "more_samples": 640}
    found["finalists"] = [tested, untested | {"verdict": None}]
    return found


def failed() -> Evidence:
    """A run of a real-valued metric that found nothing faster, of a model without pictures."""
    found = evidence()
    found["task"] |= {"metric": "negative error", "name": "house prices", "labels": []}
    found["verdict"] |= {
        "word": "FAIL",
        "gain": ratio(0.83),
        "reason": "Not faster than the best free baseline: latency 0.83x [0.80, 0.87].",
    }
    found["rows"][2] |= {"word": "FAIL", "gain": ratio(0.83)}
    bare = {key: [] for key in ("finalists", "layers", "sensitivity", "staircase", "timeline")} | {
        "coverage": None,
        "profile": None,
    }
    found["search"] |= {
        "nearest_miss": True,
        "costliest": {"step": "prune .5", "metric_lost": 0.057},
        "next": "Give the search more time (--minutes) or more runtimes: what was found is no cheaper for sure.",
    }
    return found | {"examples": [], "steps": [], "skipped": [], "latency_samples": {}, **bare}


def bounded() -> Evidence:
    """The same run with two more bounds, one of them lost, and what serving costs."""
    found = evidence()
    main = found["verdict"]["drop"] | {"what": "accuracy", "share": 1.0, "p_lost": 1.0}
    shirt = main | {"what": "accuracy, shirt", "diff": -0.06, "low": -0.09, "high": -0.03, "n": 400, "share": 0.1}
    f1 = main | {"what": "F1 of <coat>", "diff": -0.01, "low": -0.03, "high": 0.01, "method": "paired BCa bootstrap"}
    told = [(main, "PASS", None), (f1, "INCONCLUSIVE", 2300), (shirt, "FAIL", None)]
    found["verdict"] |= {
        "word": "FAIL",
        "reason": "Quality is lost: accuracy, shirt.",
        "bounds": [{"drop": drop, "word": word, "more_samples": more} for drop, word, more in told],
    }
    found["bounds"] = [
        {
            "what": drop["what"],
            "percent": drop is not f1,
            "select": drop | {"diff": -0.001, "n": 2000} if drop is not f1 else None,
            "verify": drop,
            "word": word,
            "more_samples": more,
        }
        for drop, word, more in told
    ]
    found["search"] |= {"nearest_miss": True, "next": "Recover for longer (--minutes), or take less away."}
    for place, row in enumerate(found["rows"]):
        row["others_cores"] = 0.1 * place
        row["more"] = {
            "throughput_per_s": measurement("throughput_per_s", 1234.0, "1/s"),
            "energy_j": measurement("energy_j", 0.0123, "J (estimate: stated power times time)"),
        }
    return found
