"""The figures of the page beside the trade-off: what each step and layer cost and gained, and how the run went.

Each section says in a table or a sentence what its plot shows, so that nothing is lost to somebody who does not see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from trimtab.report import words
from trimtab.report.parts import Evidence, figure, section, small, table

SHOWN_LAYERS, SHOWN_BARS, SHOWN_STAIRS = 40, 24, 6
# Of the time of the layer that takes most: what takes less does not matter, and would lie on the axis.
LEAST_STAIR = 0.03
HOW = {"trained": " The scales were trained.", "at run time": " Ranges of what goes in are found for every batch."}
STATES = {"int8": "on integers", "float": "in floating point"}


def waterfall(evidence: Evidence) -> str:
    """Quality and time, step by step, from the original to the chosen one."""
    if len(_steps(evidence)) < 2:
        return ""
    metric = evidence["task"]["metric"]
    told = "; ".join(_told(evidence, one) for one in _steps(evidence))
    return section(
        "waterfall",
        "Where quality and time went",
        f'<div class="two">{figure("waterfall-metric", f"{metric} after each step: {told}", css="low")}'
        f"{figure('waterfall-latency', f'Latency after each step: {told}', css='low')}</div>",
        f"First {metric} on select, then latency p50 in the chosen runtime. Each bar is what one step changed; the "
        "table above has the figures.",
    )


def _steps(evidence: Evidence) -> list[Mapping[str, Any]]:
    """The steps that were measured; one that was not, as training follows it, is named with the one after it."""
    found: list[Mapping[str, Any]] = []
    names: list[str] = []
    for step in evidence["steps"]:
        names.append(step["step"])
        if step["metric"] is not None:
            found.append({**step, "step": " + ".join(names)})
            names = []
    return found


def _told(evidence: Evidence, step: Mapping[str, Any]) -> str:
    value = words.metric(step["metric"], percent=words.is_fraction(evidence))
    return f"{step['step']} {value}" + (f", {words.milliseconds(step['latency_ms'])}" if step["latency_ms"] else "")


def layers(evidence: Evidence) -> str:
    """What each step did to each layer, where it is known."""
    found = evidence.get("layers", ())
    if not found:
        return ""
    ranked = sorted(found, key=lambda one: -(one["macs_freed"] or 0))[:SHOWN_LAYERS]
    rows = [
        (
            "",
            [
                escape(one["layer"]) + small(one["step"]),
                escape(one["what"]),
                f"{one['macs_freed']:,}" if one["macs_freed"] else "",
                escape(words.milliseconds(one["ms_freed"])) if one["ms_freed"] else "",
                f"{one['lost']:.3g}" if one["lost"] is not None else "",
            ],
        )
        for one in ranked
    ]
    headers = ("layer", "what was done", "MACs freed", "time freed (eager)", "lost (share)")
    shown = table(headers, rows, caption="What was done to each layer")
    rest = f" The {SHOWN_LAYERS} that freed most of {len(found)}." if len(found) > SHOWN_LAYERS else ""
    return section(
        "layers",
        "What was done to each layer",
        f"{_freed_figure(evidence)}<details><summary>Show {len(ranked)}</summary>{shown}</details>",
        "From the plans of the chosen recipe, for one sample. Lost: the share of a group's importance or of a weight's "
        "squared singular values; of a block that went, how much it changed what it got."
        f"{rest}{_of_no_layer(evidence)}",
    )


def _of_no_layer(evidence: Evidence) -> str:
    """Names the steps that have no row, as training has none: it moves all weights at once."""
    told = {one["step"] for one in evidence["layers"]}
    steps = [step["step"] for step in evidence["steps"][1:] if step["step"] not in told]
    return f" Of {' and '.join(steps)} no plan says what it did to single layers." if steps else ""


def _freed_figure(evidence: Evidence) -> str:
    found = _freed(evidence)
    if not found:
        return ""
    unit = found["unit"]
    by_step = ", ".join(f"{step['name']} {_amount(step['total'], unit)}" for step in found["steps"])
    most = _amount(sum(step["values"][0] for step in found["steps"]), unit)
    shown = f" The {SHOWN_BARS} layers of most." if found["num"] > SHOWN_BARS else ""
    return figure(
        "layers-freed",
        f"{unit} freed in each layer, by step: {by_step}; most: {found['layers'][0]}, {most}",
        css="bars",
        caption=f"Where {'time (in eager)' if unit == 'ms' else unit} went, layer by layer: {by_step}.{shown}",
    )


def _amount(value: float, unit: str) -> str:
    return words.milliseconds(value) if unit == "ms" else f"{value:,.0f}"


def _freed(evidence: Evidence) -> dict[str, Any]:
    """The layers that most was freed in, the most first, and of each step how much in each of them; or nothing.

    In milliseconds where they were measured for all, else in multiply-accumulates. num: of layers in all.
    """
    rows = [one for one in evidence.get("layers", ()) if one["macs_freed"]]
    measured = all(one["ms_freed"] for one in rows)
    unit, key = ("ms", "ms_freed") if measured else ("MACs", "macs_freed")
    cells: dict[tuple[str, str], float] = {}
    sums, totals = dict[str, float](), dict[str, float]()
    for one in rows:
        at, value = (one["layer"], one["step"]), one[key]
        cells[at] = cells.get(at, 0) + value
        for held, name in zip((sums, totals), at, strict=True):
            held[name] = held.get(name, 0) + value
    layers = sorted(sums, key=lambda name: -sums[name])[:SHOWN_BARS]
    steps = [
        {"name": step, "total": total, "values": [cells.get((layer, step), 0) for layer in layers]}
        for step, total in totals.items()
    ]
    return {"unit": unit, "layers": layers, "steps": steps, "num": len(sums)} if rows else {}


def coverage_map(evidence: Evidence) -> str:
    """Which layers run on integers, one square each, in graph order."""
    found = evidence.get("coverage")
    if not found:
        return ""
    squares = "".join(
        f'<li class="{escape(one["state"])}" tabindex="0" '
        f'title="{escape(one["layer"])}: {STATES[one["state"]]}{escape(_because(one))}">'
        f"<span>{escape(one['layer'])}: {STATES[one['state']]}</span></li>"
        for one in found["layers"]
    )
    counts = {state: sum(one["state"] == state for one in found["layers"]) for state in STATES}
    legend = "".join(
        f'<li><i class="{state}"></i>{STATES[state]}: {count}</li>' for state, count in counts.items() if count
    )
    kinds = ", ".join(f"{kind} {count}" for kind, count in {**found["running"], **found["floating"]}.items())
    note = f"As planned, in graph order; the file as {found['runtime']} itself tells it: {kinds}." if kinds else ""
    note += HOW.get(found.get("how", ""), "")
    return section(
        "coverage", "What runs on integers", f'<ul class="legend">{legend}</ul><ol class="map">{squares}</ol>', note
    )


def _because(one: Mapping[str, Any]) -> str:
    return f" ({one['why']})" if one["why"] else ""


def sensitivity(evidence: Evidence) -> str:
    """How far the outputs move if one layer alone is quantized."""
    found = evidence.get("sensitivity", ())
    if not found:
        return ""
    most = found[0]
    label = f"How far quantizing each layer alone moves the outputs; most: {most['layer']}, {most['error']:.2g}"
    trained = (evidence.get("coverage") or {}).get("how") == "trained"
    begun = " With the scales that training began with." if trained else ""
    return section(
        "sensitivity",
        "Which layers are sensitive to integers",
        figure("sensitivity-bars", label, css="bars"),
        "How far the outputs would move if this layer alone were quantized, as a share of how they vary: a first-order "
        f"estimate on a few select samples. The {min(len(found), SHOWN_BARS)} largest of {len(found)}.{begun}",
    )


def staircase(evidence: Evidence) -> str:
    """Measured time against width, for the layers that mattered."""
    found = _stairs(evidence)
    if not found:
        return ""
    names = ", ".join(one["layer"] for one in found)
    return section(
        "staircase",
        "Time against width",
        figure("staircase-plot", f"Measured time of {names} at each width that was measured"),
        "Measured in the chosen runtime on this machine, in floating point, at the points; a ring marks the measured "
        "width that is nearest to the chosen one. A cross is a width that does not pay: a wider one is as fast.",
    )


def _stairs(evidence: Evidence) -> list[Mapping[str, Any]]:
    """The layers that mattered, the dearest first."""
    found = evidence.get("staircase", ())
    least = LEAST_STAIR * max((max(one["ms"]) for one in found), default=0.0)
    return [one for one in found if max(one["ms"]) >= least][:SHOWN_STAIRS]


def serving(evidence: Evidence) -> str:
    """Other batch sizes and threads, and the cold start: the chosen file beside the best free baseline."""
    found = evidence.get("profile")
    if not found or not found["cases"]:
        return ""
    rows = []
    cases = {(case["threads"], case["batch_size"], case["role"]): case for case in found["cases"]}
    for threads, size in sorted({key[:2] for key in cases}):
        free, own = cases[threads, size, "best_free"], cases[threads, size, "chosen"]
        here = (threads, size) == (evidence["target"]["threads"], evidence["target"]["batch_size"])
        cells = [
            f"{size}" + small(f"{threads} thread{'s' if threads > 1 else ''}"),
            *(escape(words.milliseconds(case["latency"]["value"])) for case in (free, own)),
            *(escape(words.significant(case["throughput"]["value"])) for case in (free, own)),
            escape(words.factor(free["latency"]["value"] / own["latency"]["value"])),
        ]
        rows.append(("main" if here else "", cells))
    starts = [
        f"{name} {words.duration(sum(found['cold_start_s'][role]) / len(found['cold_start_s'][role]))}"
        for role, name in (("best_free", "the best free baseline"), ("chosen", "the chosen one"))
    ]
    headers = ("batch", "latency, best free", "latency, chosen", "samples/s, best free", "samples/s, chosen", "times")
    return section(
        "serving",
        "At other batch sizes and threads",
        table(headers, rows, caption="Latency and throughput at other batch sizes and threads"),
        f"In turns; what the verdict is about stands out. From no process to the first answer: {' and '.join(starts)}.",
    )


def timeline(evidence: Evidence) -> str:
    """What the run did when."""
    found = evidence.get("timeline", ())
    if not found:
        return ""
    whole = max(one["end_s"] for one in found)
    sums: dict[str, float] = {}
    for one in found:
        sums[one["kind"]] = sums.get(one["kind"], 0.0) + one["end_s"] - one["start_s"]
    told = ", ".join(f"{kind} {words.duration(seconds)}" for kind, seconds in sums.items())
    return section(
        "timeline",
        "How the time was spent",
        figure("timeline-plot", f"Timeline of the run: {told}", css="low"),
        f"{words.duration(whole)} in all: {told}.",
    )


def plot_data(evidence: Evidence) -> dict[str, Any]:
    """What `page.js` draws of these sections."""
    percent = words.is_fraction(evidence)
    scale = 100 if percent else 1
    steps = _steps(evidence)
    return {
        "steps": [{"name": one["step"], "metric": scale * one["metric"], "ms": one["latency_ms"]} for one in steps]
        if len(steps) > 1
        else [],
        "metric": evidence["task"]["metric"],
        "freed": _freed(evidence),
        "sensitivity": list(evidence.get("sensitivity", ()))[:SHOWN_BARS],
        "staircase": _stairs(evidence),
        "timeline": list(evidence.get("timeline", ())),
    }
