"""How long planning takes, and how much memory: a decoder of 1.2 billion parameters without weights, and MiniLM.

The decoder lives on the meta device: its widths are planned, no value is read. MiniLM (random weights; only its sizes
matter here) is planned and cut, with the check of the cut. Each runs in a process of its own, from import to plan.
Writes benchmarks/results/prune_plan_cpu_DATE.md; `--only decoder` runs one, and prints JSON.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from trimtab.compress.prune import Prune
from trimtab.graph.capture import capture
from trimtab.measure.machine import stamp, versions

ROOT = Path(__file__).parent.parent
RATIO, LENGTH, RUNS = 0.3, 64, 3
MINILM: dict[str, int | float] = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "vocab_size": 30_522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
LIMITS = {"decoder": (60, 4.0), "minilm": (20, None)}


def measure(name: str) -> dict[str, float]:
    """Seconds of each step and peak memory of this process in GB."""
    started = time.perf_counter()
    if name == "decoder":
        from models.decoder import Decoder

        with torch.device("meta"):
            module, inputs = Decoder(length=LENGTH).eval(), (torch.zeros(2, LENGTH, dtype=torch.long),)
    else:
        from models.minilm import SentenceEncoder

        module = SentenceEncoder(MINILM).eval()
        inputs = (torch.zeros(2, LENGTH, dtype=torch.long), torch.ones(2, LENGTH, dtype=torch.long))
    parameters = sum(p.numel() for p in module.parameters())
    graph = capture(module, inputs)
    captured = time.perf_counter()
    method = Prune(RATIO)
    plan = method.plan(graph)
    planned = time.perf_counter()
    found = {"parameters": parameters, "groups": len(plan.cuts), "capture_s": captured - started}
    found |= {"plan_s": planned - captured, "both_s": planned - started}
    if name != "decoder":
        method.apply(graph, plan)
        found["cut_s"] = time.perf_counter() - planned
    return found | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def table(runs: dict[str, list[dict[str, float]]]) -> str:
    """One row per model: the median run by its time, and the slowest."""
    rows = [
        "| model | parameters | groups cut | capture | plan | both, slowest | cut and check | peak memory | limit |"
    ]
    rows.append("|---|---|---|---|---|---|---|---|---|")
    for name, found in runs.items():
        middle = sorted(found, key=lambda run: run["both_s"])[len(found) // 2]
        seconds, gigabytes = LIMITS[name]
        limit = f"{seconds} s" + (f", {gigabytes:g} GB" if gigabytes else "")
        cut = f"{middle['cut_s']:.1f} s" if "cut_s" in middle else "no weights"
        rows.append(
            f"| {name} | {middle['parameters'] / 1e6:,.0f} M | {middle['groups']:.0f} | {middle['capture_s']:.1f} s | "
            f"{middle['plan_s']:.1f} s | {max(run['both_s'] for run in found):.1f} s | {cut} | "
            f"{middle['peak_gb']:.2f} GB | {limit} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Run each model in fresh processes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=tuple(LIMITS))
    only = parser.parse_args().only
    if only:
        print("JSON" + json.dumps(measure(only)))
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in LIMITS}
    for turn in range(RUNS):
        for name, found in runs.items():
            print(f"run {turn + 1} of {RUNS}: {name}", file=sys.stderr)
            command = [sys.executable, __file__, "--only", name]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found.append(json.loads(next(line for line in said.splitlines() if line.startswith("JSON"))[4:]))
    today = datetime.date.today()
    machine = stamp()
    lines = [
        "# Planning at size",
        "",
        f"`Prune({RATIO})`, {LENGTH} tokens; {RUNS} runs in fresh processes, in turns; the median, and the slowest. "
        "The limits are what planning must keep to.",
        "",
        f"{machine['cpu']}, {machine['cores']} cores; {', '.join(f'{k} {v}' for k, v in versions().items())}",
        "",
        table(runs),
        "",
    ]
    path = ROOT / "benchmarks" / "results" / f"prune_plan_cpu_{today}.md"
    path.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
