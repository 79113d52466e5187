"""The report: one HTML page, complete in itself, that shows the verdict, what it rests on and how to repeat it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from importlib import resources
from string import Template
from typing import Any

import numpy as np

from trimtab.measure.verdict import NOUN
from trimtab.report import words
from trimtab.report.ended import ended, nearest_miss
from trimtab.report.examples import examples
from trimtab.report.figures import coverage_map, layers, sensitivity, serving, staircase, timeline, waterfall
from trimtab.report.figures import plot_data as more_plot_data
from trimtab.report.finalists import finalists
from trimtab.report.parts import Evidence, badge, changed, facts, section, small, table
from trimtab.report.tradeoff import chosen, row_name, tradeoff
from trimtab.report.tradeoff import plot_data as tradeoff_data
from trimtab.report.usage import usage

SERVING = {
    "throughput_per_s": "samples a second",
    "load_s": "loading, s",
    "energy_j": "energy a sample, J",
    "price_per_million": "price of a million",
}
BEST = {"latency_ms": "fastest", "size_bytes": "smallest", "memory_bytes": "leanest in memory"}
ROLES = {"reference": "as it came", "best_free": "best free baseline", "chosen": "chosen"}


def page(evidence: Evidence, *, token: str = "") -> str:
    """The report as one self-contained HTML page that makes no request of any kind.

    Args:
        evidence: format 1, as `trimtab.report.evidence.assemble` makes it. Parts that are empty are left out.
        token: names the state that is shown, of a page that asks its own server for the next one.
    """
    from plotly.offline import get_plotlyjs

    plotly = get_plotlyjs()
    assert "</script" not in plotly.lower(), "plotly.js would end its own script element"
    return Template(_part("page.html")).substitute(
        title=escape(title(evidence)),
        version=escape(str(evidence["trimtab"])),
        task=escape(f"{evidence['task']['name']} on {_target(evidence)}"),
        css=_part("page.css"),
        js=_part("page.js"),
        plotly=plotly,
        data=_inline_json(plot_data(evidence)),
        body=body(evidence),
        live=f' data-token="{escape(token)}"' if token else "",
        connect="; connect-src 'self'" if token else "",
        promise="It is kept up to date by this machine." if token else "It asks nothing of any network.",
    )


def title(evidence: Evidence) -> str:
    """What the window is called."""
    word = evidence["verdict"]["word"] if evidence["verdict"] else "searching"
    return f"{word}: {evidence['task']['name']} - trimtab"


def body(evidence: Evidence) -> str:
    """The page's sections as HTML."""
    sections = (
        _verdict,
        _rows,
        ended,
        _bounds,
        finalists,
        tradeoff,
        _steps,
        waterfall,
        layers,
        coverage_map,
        sensitivity,
        staircase,
        _spread,
        serving,
        examples,
        _skipped,
        timeline,
        _trials,
        _machine,
        _reproduce,
    )
    return "\n".join(filter(None, (make(evidence) for make in sections)))


def _part(name: str) -> str:
    return resources.files("trimtab.report").joinpath(name).read_text(encoding="utf-8")


def _inline_json(value: Any) -> str:
    """JSON that no text in it can break out of a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _target(evidence: Evidence) -> str:
    target = evidence["target"]
    threads = "1 thread" if target["threads"] == 1 else f"{target['threads']} threads"
    return f"{target['device']}, batch size {target['batch_size']}, {threads}"


def _running(evidence: Evidence) -> str:
    """What stands in the verdict's place while the run lasts."""
    trials = [trial for trial in evidence["trials"] if not trial["free"]]
    free = len(evidence["trials"]) - len(trials)
    best = max((trial for trial in trials if trial["gain"]), key=lambda trial: trial["gain"]["value"], default=None)
    told = f"{len(trials)} candidates measured so far, beside {free} free baselines."
    if best:
        value = words.metric(best["select"]["candidate"], percent=words.is_fraction(evidence))
        told += f" The {BEST[evidence['goal']['minimise']]}: {best['candidate']}, {words.times(best['gain'])}, {value}."
    return (
        '<section class="verdict" aria-labelledby="verdict" aria-live="polite"><span class="badge INCONCLUSIVE">RUNNING'
        f'</span><h1 id="verdict">{escape(evidence.get("phase", "Searching"))}</h1><p class="lead" id="sentence">'
        f"{escape(told)}</p></section>"
    )


def _verdict(evidence: Evidence) -> str:
    if evidence["verdict"] is None:
        return _running(evidence)
    verdict, percent = evidence["verdict"], words.is_fraction(evidence)
    word, gain, drop = verdict["word"], verdict["gain"], verdict["drop"]
    why = "" if word == "PASS" else f'<p class="callout {escape(word)}">{escape(verdict["reason"])}</p>'
    rows = {row["role"]: row for row in evidence["rows"]}
    tiles = [
        (words.factor(gain["value"]), f"vs best free baseline [{gain['low']:.2f}, {gain['high']:.2f}]"),
        (
            words.change(drop["diff"], percent=percent),
            f"{_points(evidence)} {words.interval(drop['low'], drop['high'], percent=percent)}",
        ),
    ]
    if {"reference", "chosen"} <= rows.keys():
        old, new = rows["reference"], rows["chosen"]
        for key, label in (("latency", "latency vs the model as it came"), ("size", "on disk vs the model as it came")):
            tiles.append((words.factor(old[key]["value"] / new[key]["value"]), label))
    miss = '<span class="badge miss">nearest miss</span>' if nearest_miss(evidence) else ""
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(label)}</span></li>" for value, label in tiles)
    return (
        f'<section class="verdict" aria-labelledby="verdict">{badge(word)}{miss}<h1 id="verdict">'
        f'{escape(words.headline(evidence))}</h1><p class="lead" id="sentence">{escape(words.sentence(evidence))}</p>'
        f'{why}<ul class="tiles">{items}</ul></section>'
    )


def _points(evidence: Evidence) -> str:
    return f"points of {evidence['task']['metric']}" if words.is_fraction(evidence) else str(evidence["task"]["metric"])


def _rows(evidence: Evidence) -> str:
    if not evidence["rows"]:
        return ""
    percent, task = words.is_fraction(evidence), evidence["task"]
    headers = ("", task["metric"], f"latency p50 (bs {evidence['target']['batch_size']})", "size", "peak memory")
    rows = []
    for row in evidence["rows"]:
        within = row["metric_low"] is not None and row["metric_high"] is not None
        span = words.interval(row["metric_low"], row["metric_high"], percent=percent) if within else ""
        latency = row["latency"]
        cells = [
            f"{escape(row['name'])}{small(ROLES.get(row['role'], row['role']))}",
            escape(words.metric(row["metric"], percent=percent)) + (small(span) if span else ""),
            escape(words.milliseconds(latency["value"]))
            + small(f"[{words.significant(latency['low'])}, {words.significant(latency['high'])}]"),
            escape(words.size(row["size"]["value"])),
            escape(words.size(row["memory"]["value"])),
            escape(words.times(row["gain"])),
            badge(row["word"]) if row["word"] else "",
        ]
        rows.append(("main" if row["role"] == "chosen" else "", cells))
    note = (
        f"Measured on {task['num_verify']:,} verify samples, opened once, and on the exported files in fresh "
        "processes, in turns. In brackets: the interval of the difference to the model as it came, and of the latency."
    )
    return section(
        "result",
        "Result",
        table((*headers, "vs best free", "verdict"), rows, caption="The result in three rows"),
        note,
    )


def _bounds(evidence: Evidence) -> str:
    bounds = evidence.get("bounds", ())
    if not bounds:
        return ""
    rows = [("main" if place == 0 else "", _bound(bound)) for place, bound in enumerate(bounds)]
    tried = len({trial["recipe"] for trial in evidence["trials"] if not trial["free"]})
    confidence = 100 * evidence["goal"]["confidence"]
    return section(
        "bounds",
        "What had to stay true",
        table(("", "allowed", "on select", "on verify", "verdict"), rows, caption="What had to stay true"),
        f"Changes against the model as it came, with their one-sided {confidence:g} % bounds. On select the chosen one "
        f"is the best of {tried} recipes, which flatters it; verify was opened once, for what had been named before, "
        "so that its figures need no correction for that. PASS needs every bound; that one of several is lost is said "
        "by Holm's procedure.",
    )


def _bound(bound: Evidence) -> list[str]:
    percent, verify = bound["percent"], bound["verify"]
    more = f"{bound['more_samples']:,} more samples would decide" if bound["more_samples"] else ""
    return [
        escape(bound["what"]) + small(f"{verify['n']:,} verify samples"),
        escape(words.change(-verify["margin"], percent=percent)),
        changed(bound["select"], percent=percent) if bound["select"] else "",
        changed(verify, percent=percent),
        badge(bound["word"]) + (small(more) if more else ""),
    ]


def _steps(evidence: Evidence) -> str:
    if not evidence["steps"]:
        return ""
    percent, metric = words.is_fraction(evidence), evidence["task"]["metric"]
    slowest = max((step["latency_ms"] or 0 for step in evidence["steps"]), default=0) or 1
    alone = any(step.get("alone") for step in evidence["steps"])
    rows, before = [], None
    for step in evidence["steps"]:
        latency = step["latency_ms"]
        bar = f'<span class="bar" style="width:{100 * (latency or 0) / slowest:.0f}%" aria-hidden="true"></span>'
        cells = [
            escape(step["step"]),
            escape(words.metric(step["metric"], percent=percent)) + _step_change(step, before, percent=percent),
            escape(words.milliseconds(latency)) + _step_times(step, before, "latency_ms") + (bar if latency else ""),
            escape(words.size(step["size_bytes"])) + _step_times(step, before, "size_bytes"),
            escape(words.duration(step["seconds"])),
        ]
        if alone:
            cells.append(_step_alone(step, evidence["steps"][0], percent=percent))
        rows.append(("", cells))
        before = step
    headers = ("step", metric, "latency", "size", "took", *(("by itself",) if alone else ()))
    return section(
        "steps",
        "What each step cost and gained",
        table(headers, rows, caption="What each step cost and gained"),
        "Measured on select after each step of the chosen recipe, each compared with the step before it."
        + " By itself: what a step makes of the original without those before it, where that was tried. " * alone
        + "Gains by themselves do not multiply to the gain together." * alone,
    )


def _step_alone(step: Evidence, original: Evidence, *, percent: bool) -> str:
    """What the step changes by itself on the original: metric, latency, size."""
    own = step.get("alone")
    if not own:
        return ""
    times = [(key, _step_times(own, original, key)) for key in ("latency_ms", "size_bytes")]
    said = [f"{name} {found}" for (_, found), name in zip(times, ("latency", "size"), strict=True) if found]
    return f'<span class="own">{", ".join([_step_change(own, original, percent=percent), *said])}</span>'


def _step_change(step: Evidence, before: Evidence | None, *, percent: bool) -> str:
    if before is None or step["metric"] is None or before["metric"] is None:
        return ""
    diff = step["metric"] - before["metric"]
    css = _css(diff, least=0.0005 if percent else 1e-9)
    return f'<span class="{css}">{escape(words.change(diff, percent=percent))}</span>'


def _step_times(step: Evidence, before: Evidence | None, key: str) -> str:
    if before is None or not step[key] or not before[key]:
        return ""
    ratio = before[key] / step[key]
    return f'<span class="{_css(ratio - 1, least=0.015)}">{escape(words.factor(ratio))}</span>'


def _css(better: float, *, least: float) -> str:
    return "same" if abs(better) < least else "better" if better > 0 else "worse"


def _spread(evidence: Evidence) -> str:
    samples = evidence["latency_samples"]
    if not samples:
        return ""
    names = {row["role"]: row["name"] for row in evidence["rows"]}
    more = {row["role"]: row.get("more", {}) for row in evidence["rows"]}
    serving = [name for name in SERVING if any(name in own for own in more.values())]
    rows = []
    for role, values in samples.items():
        cells = [escape(names.get(role, role))]
        cells += [escape(words.milliseconds(float(np.percentile(values, q)))) for q in (50, 95, 99)]
        cells += [f"{len(values):,}", *(_served(more.get(role, {}), name) for name in serving)]
        rows.append(("main" if role == "chosen" else "", cells))
    headers = ("", "p50", "p95", "p99", "calls", *(SERVING[name] for name in serving))
    return section(
        "latencies",
        "Every latency that was measured",
        '<figure><div class="plot low" id="spread" role="img" aria-label="Box plot of the latencies in the table '
        f'below"></div></figure>{table(headers, rows, caption="Latency percentiles")}',
        f"In turns, after warm-up, nothing dropped. {words.disturbance(evidence)}".strip(),
    )


def _served(more: Evidence, name: str) -> str:
    found = more.get(name)
    if not found:
        return ""
    value = words.significant(found["value"])
    return escape(value) + (small("estimate") if "estimate" in found["unit"] else "")


def _skipped(evidence: Evidence) -> str:
    items = "".join(
        f"<li>{escape(skip['what'])}<span>{escape(skip['why'])}</span></li>" for skip in evidence["skipped"]
    )
    return items and section("skipped", "What was left out, and why", f'<ul class="skips">{items}</ul>')


def _trials(evidence: Evidence) -> str:
    if not evidence["trials"]:
        return ""
    percent, memory = words.is_fraction(evidence), evidence["goal"]["minimise"] == "memory_bytes"
    rows = []
    for trial in evidence["trials"]:
        named = {m["quantity"]: m["value"] for m in trial["measurements"]}
        select = trial["select"]
        cells = [
            escape(trial["candidate"]) + (small("free baseline") if trial["free"] else ""),
            escape(words.metric(select["candidate"], percent=percent))
            + small(words.interval(select["low"], select["high"], percent=percent)),
            escape(words.milliseconds(named.get("latency_ms"))),
            escape(words.size(named.get("size_bytes"))),
            *([escape(words.size(named.get("memory_bytes")))] if memory else []),
            escape(words.times(trial["gain"])),
            escape(words.duration(trial["seconds"])),
        ]
        css = "main" if trial["candidate"] == chosen(evidence) else ""
        rows.append((css, cells))
    costs = ("latency", "size", *(("peak memory",) if memory else ()))
    headers = ("candidate", evidence["task"]["metric"], *costs, "vs best free", "took")
    shown = table(headers, rows, caption="All candidates", names=[row_name(place) for place in range(len(rows))])
    note = "Measured on select, in the order in which they were tried."
    return section(
        "trials", "All candidates", f"<details><summary>Show all {len(rows)}</summary>{shown}</details>", note
    )


def _machine(evidence: Evidence) -> str:
    machine = {
        ("memory" if key == "memory_bytes" else key): (words.size(value) if key == "memory_bytes" else value)
        for key, value in evidence["machine"].items()
        if value not in (None, [], "")
    }
    return (
        '<div class="two">'
        + section("machine", "Machine", facts(machine))
        + section("versions", "Versions", facts(evidence["versions"]))
        + "</div>"
    )


def _reproduce(evidence: Evidence) -> str:
    if evidence["verdict"] is None:
        return ""
    paths, reproduce = evidence["paths"], evidence["reproduce"]
    python, shell = usage(evidence)
    blocks = (
        ("Make it again", f"{reproduce['command']}{_seeds(reproduce)}"),
        ("Use it from Python", python),
        ("Use it from the shell", shell),
    )
    code = "".join(f"<h3>{title}</h3><pre><code>{escape(text)}</code></pre>" for title, text in blocks)
    goal, drop, task = evidence["goal"], evidence["verdict"]["drop"], evidence["task"]
    allowed = (
        f"keep {100 * goal['keep']:.4g} % of the {task['metric']}"
        if goal["drop"] is None
        else f"lose at most {goal['drop']:g} of the {task['metric']}"
    )
    how = {
        "goal": f"least {NOUN[goal['minimise']]}, {allowed}",
        "target": _target(evidence),
        "data": f"{task['num_train']:,} train, {task['num_select']:,} select, {task['num_verify']:,} verify",
        "test": f"{drop['method']}, paired, {100 * drop['confidence']:g} % one-sided",
        **paths,
    }
    return section("reproduce", "Use and reproduce", f"{code}<h3>How it was judged</h3>{facts(how)}")


def _seeds(reproduce: Mapping[str, Any]) -> str:
    """The seeds as a comment after the command; evidence of before names that of the training alone, as `seed`."""
    named = {"training": reproduce.get("training_seed", reproduce.get("seed")), "search": reproduce.get("search_seed")}
    told = [f"of the {what} {seed}" for what, seed in named.items() if seed is not None]
    return f"    # seed {', '.join(told)}" if told else ""


def plot_data(evidence: Evidence) -> dict[str, Any]:
    """What `page.js` draws."""
    return {
        "percent": words.is_fraction(evidence),
        "samples": [
            {"role": role, "name": ROLES.get(role, role), "ms": [round(value, 5) for value in values]}
            for role, values in evidence["latency_samples"].items()
            if values
        ],
        **tradeoff_data(evidence),
        **more_plot_data(evidence),
    }
