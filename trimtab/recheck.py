"""Does what an evidence bundle claims hold on this machine too? Quality and speed are measured again, claim by claim.

The files are the bundle's own, checked against their hashes; the data is the task's, checked against the hash of the
data that the verdict was given on. Nothing in a bundle is executed but the graphs that its runtimes load.
Cost: one race and one pass over the verify split, as the verdict itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cattrs
import numpy as np

from trimtab.artifact import Bundle, load_bundle
from trimtab.core import Drop, Goal, Held, Ratio, Split, Target, Task, Verdict
from trimtab.errors import RuntimeFailed, RuntimeMissing, TaskError
from trimtab.measure.machine import same_machine, stamp
from trimtab.measure.quality import Scores, graded, held_against
from trimtab.measure.stats import gain
from trimtab.measure.verdict import NOUN, hold, in_order, judge
from trimtab.prove import FINAL_ROUNDS
from trimtab.report import words
from trimtab.report.evidence import BEST_FREE, CHOSEN, REFERENCE
from trimtab.report.terminal import Progress
from trimtab.runtimes import find_runtime, supported
from trimtab.runtimes.evaluate import Exported, Raced, gain_over, measurements, race
from trimtab.runtimes.trial import arrays
from trimtab.tasks.check import check, fingerprint
from trimtab.tasks.resolve import BUILTIN, resolve

Answer = Literal["holds", "does not hold", "open"]
# A gain or a time found again to within this fraction is the same.
CLOSE = 0.1


@dataclass(frozen=True)
class Claim:
    """One thing that a bundle claims: as it was recorded, as it is here, and whether it holds."""

    what: str
    recorded: str
    here: str
    answer: Answer


@dataclass(frozen=True)
class Recheck:
    """What came of every claim, the machine, and what else is worth knowing."""

    claims: tuple[Claim, ...]
    machine: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def answer(self) -> Answer:
        """The worst of all answers."""
        found = {claim.answer for claim in self.claims}
        return "does not hold" if "does not hold" in found else "open" if "open" in found else "holds"


def verify(bundle: str | Path, task: Task, *, rounds: int = FINAL_ROUNDS, quiet: bool = False) -> Recheck:
    """Score and time the files of an evidence bundle again, on this machine.

    Args:
        bundle: the folder, or that of its run.
        task: the one that the verdict was given on.
        rounds: of the race.
        quiet: show no progress.

    Raises:
        ArtifactError: a file is missing, was added or has changed, or it is no bundle.
        TaskError: the task is another one.
        SealError: the task's verify split was opened before.
        RuntimeMissing, RuntimeFailed: this machine cannot run the files.
    """
    opened = load_bundle(bundle)
    evidence = opened.evidence
    _require_task(opened.path, evidence, task)
    check(task)
    goal, target = cattrs.structure(evidence["goal"], Goal), cattrs.structure(evidence["target"], Target)
    files, left_out = _runnable(opened)
    split = task.verify.open(f"verifying {opened.path}")
    with Progress(quiet=quiet, phases={"measuring again": 30}) as show:
        show.phase("measuring again")
        raced = race(files, arrays(split), target=target, rounds=rounds, minimise=goal.minimise, report=show.step)
    scored = {role: graded(task, goal, one.answers, split) for role, one in raced.items()}
    drops = held_against(task, goal, split, scored[REFERENCE], scored[CHOSEN])
    claims = [
        _arithmetic(evidence, task, goal, split),
        *_order(evidence, task, goal, split),
        *_quality(evidence, hold(drops)),
    ]
    if BEST_FREE in raced:
        found = gain_over(
            raced[BEST_FREE], raced[CHOSEN], files=(files[BEST_FREE], files[CHOSEN]), minimise=goal.minimise
        )
        busy = _busy(raced[CHOSEN]) and goal.minimise == "latency_ms"
        claims += [*_speed(evidence, found, goal, busy=busy), _verdict(evidence, drops, found, goal)]
    else:
        claims.append(Claim("better than the best free baseline", "", left_out, "open"))
    here = stamp()
    claims += _size_and_time(evidence, raced[CHOSEN], files[CHOSEN], target, here)
    return Recheck(tuple(claims), here, _notes(evidence, scored[CHOSEN][task.metric.name], raced[CHOSEN], here))


def task_of(bundle: str | Path, name: str | None) -> Task:
    """The task to verify a bundle with: the one that `name` stands for, or the built-in one that the bundle names.

    A bundle may come from anybody, so no other code that it names is run.

    Raises:
        TaskError: there is no such task, or no name, and the bundle's is not built in.
    """
    opened = load_bundle(bundle)
    held = opened.evidence["task"]["name"]
    if name is None and held not in BUILTIN:
        command = opened.evidence["reproduce"]["command"]
        raise TaskError(
            f"{opened.path} is of the task {held!r}, which is not built in; it was made by: {command}\n"
            "Say where the task is, e.g. trimtab verify BUNDLE --task FILE.py:FUNCTION."
        )
    return resolve(name or held)[1]


def _require_task(path: Path, evidence: Mapping[str, Any], task: Task) -> None:
    held = evidence["task"]
    if held["data"] == fingerprint(task):
        return
    counts = {"train": len(task.train), "select": len(task.select), "verify": len(task.verify)}
    differing = [
        f"{name} has {num:,} samples, it had {held[f'num_{name}']:,}"
        for name, num in counts.items()
        if num != held[f"num_{name}"]
    ]
    why = "; ".join(differing) or "the samples, the metric or the way of training differ"
    raise TaskError(
        f"{path} is the evidence of another task: it is of {held['name']!r}, and {task.name!r} was given ({why}). "
        "Give the very task that the bundle was made with: the same data, metric and Fit."
    )


def _runnable(bundle: Bundle) -> tuple[dict[str, Exported], str]:
    """The contenders that this machine can run; and if the best free baseline is not among them, why."""
    files, left_out = dict(bundle.contenders), ""
    for role, one in bundle.contenders.items():
        missing = find_runtime(one.runtime).missing(serving=True)
        why = missing or supported(one.runtime, one.precision)
        if why and role == BEST_FREE:
            left_out = why
            del files[role]
        elif why:
            raise (RuntimeMissing if missing else RuntimeFailed)(f"The {role} model of {bundle.path} cannot run: {why}")
    return files, left_out


def _arithmetic(evidence: Mapping[str, Any], task: Task, goal: Goal, split: Split) -> Claim:
    """Whether the recorded verdict follows from the recorded samples."""
    own = _recorded(evidence, CHOSEN, task), evidence["latency_blocks"][CHOSEN], evidence["verdict"]
    verdict, same = _judged_again(evidence, task, goal, split, *own)
    return Claim(
        "the verdict follows from the recorded samples",
        evidence["verdict"]["word"],
        verdict.word if same else f"{verdict.word}, with other figures",
        "holds" if same else "does not hold",
    )


def _judged_again(
    evidence: Mapping[str, Any],
    task: Task,
    goal: Goal,
    split: Split,
    scores: Scores,
    blocks: Sequence[float],
    recorded: Mapping[str, Any],
) -> tuple[Verdict, bool]:
    """The verdict on recorded scores and times, and whether it is the recorded one, figures and all.

    What a goal beside latency minimises was measured on the files, so its gain is taken as recorded.
    """
    drops = held_against(task, goal, split, _recorded(evidence, REFERENCE, task), scores)
    told = cattrs.structure(recorded["gain"], Ratio)
    best_free = np.array(evidence["latency_blocks"][BEST_FREE])
    again = gain(best_free, np.array(blocks)) if goal.minimise == "latency_ms" else told
    verdict = judge(drops, again, minimise=goal.minimise)
    words_told = (recorded["word"], *(bound["word"] for bound in recorded["bounds"]))
    found = (verdict.word, *(held.word for held in verdict.bounds))
    close = [bound["drop"]["low"] for bound in recorded["bounds"]] + [told.low, told.high]
    near = found == words_told and np.allclose([*(one.low for one in drops), again.low, again.high], close, atol=1e-9)
    return verdict, bool(near)


def _order(evidence: Mapping[str, Any], task: Task, goal: Goal, split: Split) -> list[Claim]:
    """Whether what was shipped follows from the order of the finalists and what was recorded of each tested one."""
    rows = evidence.get("finalists", ())
    if len(rows) < 2:
        return []
    tested = [row for row in rows if row["verdict"]]
    again = []
    for row in tested:
        scores = {name: np.array(values, dtype=np.float64) for name, values in row["outcomes"].items()}
        own = scores, row["latency_blocks"], row["verdict"]
        again.append(_judged_again(evidence, task, goal, split, *own))
    shipped, num_tested = in_order([verdict for verdict, _ in again])
    whole = num_tested == len(tested) and (len(tested) == len(rows) or again[-1][0].word != "PASS")
    follows = [place for place, row in enumerate(rows) if row["shipped"]] == [shipped]
    same = whole and follows and all(near for _, near in again) and tested[shipped]["verdict"] == evidence["verdict"]
    told = ", ".join(row["candidate"] for row in rows if row["shipped"])
    answer: Answer = "holds" if same else "does not hold"
    return [Claim("the finalist that the rule ships", told, tested[shipped]["candidate"], answer)]


def _recorded(evidence: Mapping[str, Any], role: str, task: Task) -> Scores:
    named = {task.metric.name: evidence["outcomes"][role], **evidence["more_outcomes"][role]}
    return {name: np.array(values, dtype=np.float64) for name, values in named.items()}


def _quality(evidence: Mapping[str, Any], held: Sequence[Held]) -> list[Claim]:
    claims = []
    for bound, own in zip(evidence["bounds"], held, strict=True):
        before = cattrs.structure(bound["verify"], Drop)
        told = "keeps" if bound["word"] == "PASS" else "is said to lose" if bound["word"] == "FAIL" else "may lose"
        same = own.word == bound["word"]
        answer: Answer = "holds" if same else "open" if own.word == "INCONCLUSIVE" else "does not hold"
        before_shown, own_shown = (
            f"{word}, {words.change(drop.diff, percent=bound['percent'])} "
            f"{words.interval(drop.low, drop.high, percent=bound['percent'])}"
            for word, drop in ((bound["word"], before), (own.word, own.drop))
        )
        claims.append(Claim(f"{bound['what']} {told} what was allowed", before_shown, own_shown, answer))
    return claims


def _speed(evidence: Mapping[str, Any], found: Ratio, goal: Goal, *, busy: bool) -> list[Claim]:
    """Whether it is better, and by as much; on a busy machine the latter stays open, as a ratio suffers there too."""
    told = cattrs.structure(evidence["verdict"]["gain"], Ratio)
    before, own = (f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]" for ratio in (told, found))
    as_much: Answer = "holds" if found.high >= (1 - CLOSE) * told.low else "open" if busy else "does not hold"
    claims = [Claim(f"{NOUN[goal.minimise]}: by as much", before, own, as_much)]
    if told.low > 1:
        better: Answer = "holds" if found.low > 1 else "does not hold" if found.high <= 1 else "open"
        claims.insert(0, Claim(f"{NOUN[goal.minimise]}: better than the best free baseline", before, own, better))
    return claims


def _verdict(evidence: Mapping[str, Any], drops: Sequence[Drop], found: Ratio, goal: Goal) -> Claim:
    recorded, here = evidence["verdict"]["word"], judge(drops, found, minimise=goal.minimise).word
    answer: Answer = "holds" if here == recorded else "open" if here == "INCONCLUSIVE" else "does not hold"
    return Claim("the verdict", recorded, here, answer)


def _size_and_time(
    evidence: Mapping[str, Any], raced: Raced, file: Exported, target: Target, here: Mapping[str, Any]
) -> list[Claim]:
    """The file's size; and its latency, if this is the machine that it was measured on."""
    row = next(row for row in evidence["rows"] if row["role"] == CHOSEN)
    named = {m.quantity: m for m in measurements(raced, file, target)}
    size, latency = named["size_bytes"], named["latency_ms"]
    equal = size.value == row["size"]["value"]
    claims = [
        Claim(
            "size on disk", words.size(row["size"]["value"]), words.size(size.value),
            "holds" if equal else "does not hold",
        )
    ]  # fmt: skip
    if same_machine(evidence["machine"], here):
        close = latency.low <= (1 + CLOSE) * row["latency"]["high"]
        shown = (words.milliseconds(row["latency"]["value"]), words.milliseconds(latency.value))
        claims.append(Claim("latency p50", *shown, "holds" if close else "open" if _busy(raced) else "does not hold"))
    return claims


def _busy(raced: Raced) -> bool:
    return raced.timing.disturbed or (raced.others_cores or 0.0) >= words.MANY_CORES


def _notes(evidence: Mapping[str, Any], scores: np.ndarray, raced: Raced, here: Mapping[str, Any]) -> tuple[str, ...]:
    before = np.array(evidence["outcomes"][CHOSEN], dtype=np.float64)
    differing = int(np.any((before != scores).reshape(len(scores), -1), axis=1).sum())
    told = [f"The chosen model scores otherwise than recorded on {differing:,} of {len(scores):,} samples."]
    if not same_machine(evidence["machine"], here):
        told.append(
            f"Recorded on {evidence['machine']['cpu']}, {evidence['machine']['cores']} cores; this is {here['cpu']}, "
            f"{here['cores']} cores. Times of two machines are not compared; ratios within each are."
        )
    if _busy(raced):
        told.append("The machine was busy with something else meanwhile: verify again when it is quiet.")
    return tuple(told)
