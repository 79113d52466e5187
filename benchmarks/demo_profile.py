"""Where an ended run's time goes, operator by operator: the original and the chosen file in the chosen's runtime.

    scripts/bench demo_profile runs/fashion

Times each operator with OpenVINO's own counters (which slow the whole down a little: the shares are what counts), the
fixed cost of a call with a model that does nothing, and writes benchmarks/results/demo_profile_cpu_DATE.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import cattrs
import numpy as np
import openvino
from openvino import opset13

from trimtab.core import Drop
from trimtab.measure.verdict import chance_to_pass

ROOT = Path(__file__).parent
CALLS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a run that has ended")
    run = parser.parse_args().run
    evidence = json.loads((run / "evidence.json").read_text())
    chosen = json.loads((run / "choice.json").read_text())
    free = next(t for t in evidence["trials"] if t["free"] and t["candidate"] == evidence["rows"][1]["name"])
    files = {"best free": free, "chosen": chosen}
    if any(trial["runtime"] != "openvino" for trial in files.values()):
        raise SystemExit(
            f"this profile reads OpenVINO's counters; the run chose {[t['runtime'] for t in files.values()]}"
        )
    lines = [
        "# Where the demo's time goes",
        "",
        f"{evidence['machine']['cpu']}, {evidence['machine']['cores']} cores, 1 thread, batch 1; OpenVINO "
        f"{evidence['versions']['openvino']}; the mean of {CALLS:,} calls per operator. Verdict of the run: "
        f"{evidence['verdict']['word']}, {evidence['verdict']['gain']['value']:.2f}x "
        f"[{evidence['verdict']['gain']['low']:.2f}, {evidence['verdict']['gain']['high']:.2f}] "
        f"over {free['candidate']}.",
        "",
        f"A call of a model that does nothing: {1000 * empty_call():.1f} us, in every figure of the run.",
    ]
    for name, trial in files.items():
        rows = profile(run / "files" / trial["folder"] / "model.xml", bf16=trial["precision"] != "fp32")
        total = sum(us for _, _, us in rows)
        lines += ["", f"## {name}: {trial['candidate']}, {total:.0f} us in operators", ""]
        lines += ["| operator | kernel | us | share |", "|---|---|---|---|"]
        lines += [f"| {op} | {kernel} | {us:.1f} | {us / total:.0%} |" for op, kernel, us in rows if us >= total / 100]
    lines += ["", *faster(evidence, chosen)]
    out = ROOT / "results" / f"demo_profile_cpu_{datetime.date.today():%Y-%m-%d}.md"
    out.parent.mkdir(exist_ok=True)
    out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def faster(evidence: dict[str, Any], chosen: dict[str, Any]) -> list[str]:
    """What gained more than the choice on `select`, and how likely its quality was to be proven."""
    num = evidence["task"]["num_verify"]
    trials = [t for t in evidence["trials"] if t["gain"] and t["gain"]["value"] > chosen["gain"]["value"]]
    lines = [
        "## What was faster, and why it was not put before the verdict",
        "",
        f"The chance that {num:,} verify samples prove the quality, by select; one of k recipes needs 1 - .2 / k.",
        "",
        "| trial | gain over the best free | change on select | chance |",
        "|---|---|---|---|",
    ]
    for trial in sorted([chosen, *trials], key=lambda t: t["gain"]["value"]):
        chance = chance_to_pass(cattrs.structure(trial["select"], Drop), num_verify=num)
        gain, diff = trial["gain"], trial["select"]["diff"]
        name = f"**{trial['candidate']}** (chosen)" if trial["id"] == chosen["id"] else trial["candidate"]
        interval = f"{gain['value']:.2f}x [{gain['low']:.2f}, {gain['high']:.2f}]"
        lines.append(f"| {name} | {interval} | {diff:+.4f} | {chance:.2f} |")
    return lines


def profile(file: Path, *, bf16: bool) -> list[tuple[str, str, float]]:
    """(operator, kernel, mean microseconds a call), in the order of execution."""
    core = openvino.Core()
    model = core.read_model(file)
    model.reshape({value: [1, *list(value.get_partial_shape())[1:]] for value in model.inputs})
    request = compiled(core, model, bf16=bf16, count=True).create_infer_request()
    x = np.random.default_rng(0).standard_normal([int(d) for d in model.inputs[0].shape]).astype(np.float32)
    spent: dict[tuple[str, str], float] = defaultdict(float)
    place = {node.get_friendly_name(): at for at, node in enumerate(model.get_ordered_ops())}
    for call in range(CALLS + 50):
        request.infer([x])
        if call >= 50:
            for info in request.get_profiling_info():
                operator = f"{place.get(info.node_name, '')} {info.node_type}"
                spent[operator, info.exec_type] += info.real_time.total_seconds()
    return [(op, kernel, 1e6 * seconds / CALLS) for (op, kernel), seconds in spent.items()]


def empty_call() -> float:
    """Median milliseconds of a call that only hands its input on."""
    import time

    x = opset13.parameter([1, 1, 28, 28], np.float32)
    core = openvino.Core()
    request = compiled(core, openvino.Model([opset13.relu(x)], [x]), bf16=False, count=False).create_infer_request()
    data, times = np.zeros((1, 1, 28, 28), np.float32), []
    for _ in range(CALLS):
        begun = time.perf_counter()
        request.set_input_tensor(0, openvino.Tensor(data, shared_memory=True))
        request.infer(share_outputs=True)
        times.append(time.perf_counter() - begun)
    return 1000 * float(np.median(times))


def compiled(core: Any, model: Any, *, bf16: bool, count: bool) -> Any:
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERF_COUNT": count,
    }
    return core.compile_model(model, "CPU", settings)


if __name__ == "__main__":
    main()
