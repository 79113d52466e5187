"""The command line: a command for each public function of pipeline and teach, with the same names and defaults."""

from __future__ import annotations

import json
import shlex
import sys
import traceback
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trimtab.errors import TrimtabError

EXIT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 2}
USER_ERROR, BROKEN = 3, 4
INTERRUPTED = 130
app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

TaskName = Annotated[
    str, typer.Argument(help="A built-in task (fashion), FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION.")
]
Price = Annotated[
    float | None, typer.Option(help="What the target costs an hour, to tell the price of a million samples.")
]
Storage = Annotated[
    str | None, typer.Option(help="Database of the trials, shared by all who name it, e.g. postgresql://...")
]
Runtimes = Annotated[list[str] | None, typer.Option(help="Runtime to allow; repeat for more (default: all).")]
Drop = Annotated[float | None, typer.Option(help="Allowed loss in the metric's own units, instead of --keep.")]


class Minimise(str, Enum):  # noqa: UP042 - typer shows the values of a str enum
    """What the goal can minimise."""

    latency_ms = "latency_ms"
    size_bytes = "size_bytes"
    memory_bytes = "memory_bytes"


class Importance(str, Enum):  # noqa: UP042 - typer shows the values of a str enum
    """Which channels matter: the measures of compress/importance.py."""

    magnitude = "magnitude"
    bn_scale = "bn_scale"
    taylor = "taylor"
    fisher = "fisher"
    activation = "activation"
    obs = "obs"


class Allocation(str, Enum):  # noqa: UP042 - typer shows the values of a str enum
    """How many channels go from each group."""

    uniform = "uniform"
    global_ = "global"
    measured = "measured"


class TrainPrecision(str, Enum):  # noqa: UP042 - typer shows the values of a str enum
    """What a training step's forward pass computes in."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    fp8 = "fp8"


@app.callback()
def root() -> None:
    """Bring a model; get back the cheapest version that keeps what must stay true, with the proof.

    Start with:  trimtab optimize fashion
    """


@app.command()
def optimize(
    task: TaskName,
    minimise: Annotated[Minimise, typer.Option(help="What to make small.")] = Minimise.latency_ms,
    keep: Annotated[float, typer.Option(help="Fraction of the metric that must stay, e.g. 0.99.")] = 0.99,
    drop: Drop = None,
    confidence: Annotated[float, typer.Option(help="One-sided confidence of the verdict.")] = 0.95,
    minutes: Annotated[float | None, typer.Option(help="Time of the search, which goes on until it is spent.")] = None,
    trials: Annotated[int | None, typer.Option(help="Candidates to try at most, the first ones included.")] = None,
    storage: Storage = None,
    seed: Annotated[int, typer.Option(help="Of what the search tries.")] = 0,
    runtimes: Runtimes = None,
    batch_size: Annotated[int, typer.Option(help="Batch size to be fast at.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of the serving process.")] = 1,
    price_per_hour: Price = None,
    watts: Annotated[
        float | None, typer.Option(help="What the target takes while it runs, to estimate energy without a counter.")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run (default: runs/TASK).")] = None,
    model: Annotated[
        Path | None, typer.Option(help="A saved model's folder (of train or prune) instead of the task's own.")
    ] = None,
    track: Annotated[
        list[str] | None, typer.Option(help="Send trials to tensorboard or mlflow too, or to KIND:WHERE; repeatable.")
    ] = None,
    *,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
) -> None:
    """Find the cheapest version of a task's model that keeps its quality, and prove it.

    TASK's function takes nothing and returns (model, task). A killed run goes on where it was: give the same command
    again. The exit code is 0 on PASS, 1 on FAIL, 2 on INCONCLUSIVE, 3 if the input cannot be used,
    4 if something broke.

    Examples:
      trimtab optimize fashion

      trimtab optimize mytask.py:make --keep 0.995 --minutes 60 --storage postgresql+psycopg://me:word@host/trials

      trimtab optimize mypackage.tasks:make --minimise size_bytes --drop 0.01
    """
    from trimtab.core import Goal, Search, Target
    from trimtab.pipeline import optimize as run_pipeline
    from trimtab.report.terminal import summary
    from trimtab.tasks.resolve import resolve
    from trimtab.teach.train import trained_by
    from trimtab.track import require_trackers, tracked

    require_trackers(track or ())
    goal = Goal(minimise.value, keep=keep, drop=drop, confidence=confidence, minutes=minutes)
    allowed = tuple(runtimes) if runtimes else None
    target = Target("cpu", allowed, batch_size, threads, price_per_hour, watts)
    search = Search(storage, trials, seed, _command(storage))
    fresh, described = resolve(task)
    started = trained_by(model, described) if model else (fresh, described)
    folder = run or Path("runs") / started[1].name
    with tracked(folder, track or ()):
        artifact = run_pipeline(*started, target=target, goal=goal, run=folder, quiet=quiet, search=search)
    summary(artifact.evidence, console=Console())
    raise typer.Exit(EXIT_CODES[artifact.verdict.word])


@app.command()
def prune(
    task: TaskName,
    ratio: Annotated[float | None, typer.Option(help="Share of the channels that goes, e.g. 0.4.")] = None,
    importance: Annotated[Importance, typer.Option(help="Which channels matter.")] = Importance.magnitude,
    allocation: Annotated[Allocation, typer.Option(help="Alike, the least, or as measured.")] = Allocation.uniform,
    macs: Annotated[float | None, typer.Option(help="Instead of a ratio: fraction of the MACs that may stay.")] = None,
    params: Annotated[float | None, typer.Option(help="Fraction of the parameters that may stay.")] = None,
    latency_ms: Annotated[float | None, typer.Option(help="Fraction of the layers' measured time.")] = None,
    round_to: Annotated[int, typer.Option(help="Kept widths become multiples of this.")] = 8,
    samples: Annotated[int, typer.Option(help="Training samples to calibrate on.")] = 256,
    output: Annotated[Path | None, typer.Option(help="Folder to write (default: runs/TASK-pruned).")] = None,
    *,
    compensate: Annotated[
        bool | None, typer.Option("--compensate/--no-compensate", help="Re-solve what is left (default: with obs).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, write nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
) -> None:
    """Cut channels out of a task's model, show what went and what could not, and write the smaller model.

    It is trained first if the task says how. tt.load(FOLDER).graph gives it back, to be trained on or exported.

    Examples:
      trimtab prune fashion --ratio 0.4 --dry-run

      trimtab prune mytask.py:make --macs 0.5 --importance obs --output smaller
    """
    from trimtab.compress.allocate import Budget
    from trimtab.compress.prune import Prune
    from trimtab.pipeline import prune as run_pipeline
    from trimtab.tasks.resolve import resolve

    limits = {"macs": macs, "params": params, "latency_ms": latency_ms}
    method = Prune(
        ratio,
        importance=importance.value,
        allocation=allocation.value,
        budget=Budget(**limits) if any(limit is not None for limit in limits.values()) else None,
        round_to=round_to,
        samples=samples,
        compensate=compensate,
        timed=True,
    )
    model, described = resolve(task)
    shrunk = run_pipeline(model, described, method, output=output, dry_run=dry_run, quiet=quiet)
    typer.echo(str(shrunk.plan))
    name = f"{described.metric.name} on select"
    if shrunk.after is None:
        typer.echo(f"{name}: {shrunk.before:.4g} before; nothing was written (dry run)")
    else:
        typer.echo(f"{name}: {shrunk.before:.4g} to {shrunk.after:.4g}\nwrote {shrunk.folder}")


@app.command()
def train(
    task: TaskName,
    until: Annotated[str | None, typer.Option(help="Stop once select reaches it, e.g. accuracy=0.9.")] = None,
    budget: Annotated[str | None, typer.Option(help="Stop when it is spent: 90s, 10m or 2h.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the task's.")] = None,
    lr: Annotated[float | None, typer.Option(help="The highest learning rate, instead of the task's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Instead of the task's.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="A name, e.g. lion; its own rate and schedule.")] = None,
    precision: Annotated[TrainPrecision | None, typer.Option(help="Of the forward pass.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write (default: runs/TASK-trained).")] = None,
    track: Annotated[list[str] | None, typer.Option(help="As for optimize: tensorboard, mlflow, KIND:WHERE.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting of Fit, e.g. recompute=0.5, ema=0.99.")
    ] = None,
    *,
    compile: Annotated[bool | None, typer.Option("--compile/--no-compile", help="By torch.compile.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
) -> None:
    """Train a task's model and write it to a folder.

    Stopped or killed, it goes on where it was: give the same command again. tt.load(FOLDER).graph gives the model, and
    trimtab optimize TASK --model FOLDER goes on from it.

    Examples:
      trimtab train fashion --until accuracy=0.85 --budget 10m

      trimtab train mytask.py:make --epochs 20 --optimizer lion --precision bf16 --output trained

      trimtab train mytask.py:make --set recompute=0.5 --set ema=0.99 --set clip=1
    """
    from dataclasses import replace

    from trimtab.core import Fit
    from trimtab.optim import find_optimizer
    from trimtab.tasks.resolve import resolve
    from trimtab.teach import train as teaching
    from trimtab.track import tracked_training

    goal, seconds = teaching.parse_until(until), teaching.seconds_of(budget)
    model, described = resolve(task)
    asked = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "precision": precision, "compile": compile}
    given = {name: getattr(value, "value", value) for name, value in asked.items() if value is not None}
    given = teaching.parse_settings(settings or ()) | given
    if optimizer is not None:
        find_optimizer(optimizer)
        # The task's rate, decay and schedule were for another one.
        given = {"optimizer": optimizer, "lr": None, "weight_decay": None, "schedule": None} | given
    chosen = replace(described.fit or Fit(), **given)  # type: ignore[arg-type]
    place = output or Path(f"runs/{described.name}-trained")
    with tracked_training(place, described, chosen, track or ()) as log:
        how: dict[str, Any] = {"settings": chosen, "until": goal, "budget": seconds, "quiet": quiet, "log": log}
        trained = teaching.train(model, described, output=place, **how)
    name = f"{described.metric.name} on select"
    typer.echo(f"{name}: {trained.metric:.4g} after {trained.steps} steps: {trained.why}\nwrote {trained.folder}")


@app.command()
def verify_resume(
    task: TaskName,
    steps: Annotated[int, typer.Option(help="Steps before the kill, and again after it.")] = 10,
) -> None:
    """Kill a task's training, resume it in a new process, and compare with one that was never stopped, bit for bit.

    The exit code is 0 if nothing differs and 1 if something does: the first thing is named.

    Example:
      trimtab verify-resume fashion
    """
    from trimtab.teach.verify import verify_resume as verify

    found = verify(task, steps=steps)
    if found.difference:
        typer.echo(f"differs: {found.difference}")
        raise typer.Exit(1)
    typer.echo(
        f"equal, bit for bit: killed after {found.steps} steps and resumed, as never stopped; {2 * found.steps} steps "
        f"with their samples, losses and random states, and {found.tensors} tensors were compared"
    )


@app.command()
def run(
    artifact: Annotated[Path, typer.Argument(help="The artifact's folder, as `optimize` printed it.")],
    input: Annotated[list[Path], typer.Option(help="A .npy file [B, ...]; repeat for a model of several inputs.")],
    output: Annotated[Path | None, typer.Option(help="Write the answers to this .npy file.")] = None,
) -> None:
    """Run an artifact on arrays, from the file that ships and in its runtime; every byte is checked first.

    Example:
      trimtab run runs/fashion/artifact --input runs/fashion/artifact/sample.npy
    """
    from trimtab.pipeline import run as run_artifact
    from trimtab.report.words import is_fraction

    loaded, answers = run_artifact(artifact, input=tuple(input), output=output)
    classifies = is_fraction(loaded.artifact.evidence) and answers.ndim == 2
    for place, answer in enumerate(answers):
        largest = int(answer.argmax())
        label = loaded.labels[largest] if largest < len(loaded.labels) else ""
        typer.echo(f"{place}: {largest} {label}".rstrip() if classifies else f"{place}: {answer.tolist()}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="The run's folder, or an artifact's.")],
    output: Annotated[
        Path | None, typer.Option(help="Where to write the page (default: report.html in the run's folder).")
    ] = None,
) -> None:
    """Write the page of a run that has ended, and print its table.

    Example:
      trimtab report runs/fashion
    """
    from trimtab.pipeline import rewrite_report
    from trimtab.report.terminal import summary

    path, evidence = rewrite_report(run, output=output)
    summary(evidence, console=Console())
    typer.echo(f"wrote {path}")


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    port: Annotated[int, typer.Option(help="Of this machine; 0 takes any that is free.")] = 8700,
) -> None:
    """Show a run's page in a browser while it lasts; it keeps itself up to date. Only this machine is served.

    Example:
      trimtab watch runs/fashion
    """
    from trimtab.watch import watch as serve

    serve(run, port=port, ready=lambda address: typer.echo(f"{address}  (Ctrl-C ends it; the run goes on)"))


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="The run's folder, or the folder bundle/ in it.")],
    task: Annotated[
        str | None, typer.Option(help="The task that the bundle was made with; a built-in one is found by its name.")
    ] = None,
    *,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress display.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Measure quality and speed of a run's files again, on this machine, and say claim by claim what holds here.

    Every byte of the bundle is checked first. The exit code is 0 if every claim holds, 1 if one does not, 2 if one is
    open, 3 if the bundle or the task cannot be used.

    Example:
      trimtab verify runs/fashion
    """
    import cattrs

    from trimtab.recheck import task_of
    from trimtab.recheck import verify as run_verify

    found = run_verify(bundle, task_of(bundle, task), quiet=quiet)
    if as_json:
        typer.echo(json.dumps({"answer": found.answer, **cattrs.unstructure(found)}, indent=1))
    else:
        shown = [(one.what, one.recorded, one.here, one.answer) for one in found.claims]
        _print_table(("claim", "recorded", "here", ""), shown)
        typer.echo("\n".join(("", *found.notes)))
    raise typer.Exit({"holds": 0, "does not hold": 1, "open": 2}[found.answer])


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="A run's folder, its bundle or its artifact.")],
    second: Annotated[Path, typer.Argument(help="Another one, of the same task.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Compare two runs of one task: what was asked, what came of it, and where.

    The chosen models' answers are compared sample by sample; latencies only if both runs were on one machine.

    Example:
      trimtab diff runs/monday runs/tuesday
    """
    import cattrs

    from trimtab.artifact import evidence_of
    from trimtab.report.compare import differences

    found = differences(evidence_of(first), evidence_of(second))
    if as_json:
        typer.echo(json.dumps(cattrs.unstructure(found), indent=1))
        return
    _print_table(("", str(first), str(second), ""), [(one.what, one.first, one.second, one.told) for one in found])


def _tell(part: str) -> None:
    typer.echo(f"looking at {part}", err=True)


def _print_table(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for header in headers:
        table.add_column(Text(header), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


@app.command()
def doctor(
    task: Annotated[
        str | None, typer.Argument(help="A task to look at, as for optimize; without it, the machine alone.")
    ] = None,
    minimise: Annotated[Minimise, typer.Option(help="What to make small.")] = Minimise.latency_ms,
    keep: Annotated[float, typer.Option(help="Fraction of the metric that must stay, e.g. 0.99.")] = 0.99,
    drop: Drop = None,
    runtimes: Runtimes = None,
    batch_size: Annotated[int, typer.Option(help="Batch size to be fast at.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of the serving process.")] = 1,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Show what this machine has; or, given a task, what could be done to its model here, before time is spent.

    Of a task: whether its data is sound and its model exports, which runtimes take it, where time and bytes are, which
    methods apply to which layers and why not, what they might gain, what could be proven at all, and what a search
    would need. The exit code is 3 if something stops it.

    Examples:
      trimtab doctor --json

      trimtab doctor mytask.py:make --runtimes onnxruntime --keep 0.995
    """
    import cattrs

    from trimtab.diagnose.machine import doctor as look

    if task is not None:
        from trimtab.core import Goal, Target
        from trimtab.diagnose.examine import examine
        from trimtab.report.examined import examined
        from trimtab.tasks.resolve import resolve

        target = Target("cpu", tuple(runtimes) if runtimes else None, batch_size, threads)
        goal = Goal(minimise.value, keep=keep, drop=drop)
        seen = examine(*resolve(task), target=target, goal=goal, report=_tell)
        if as_json:
            typer.echo(json.dumps(cattrs.unstructure(seen), indent=1))
        else:
            examined(seen, console=Console())
        raise typer.Exit(USER_ERROR if seen.problems else 0)
    found = look()
    if as_json:
        typer.echo(json.dumps(cattrs.unstructure(found), indent=1))
        return
    console = Console()
    machine = found.machine
    console.print(f"trimtab {found.trimtab} on {machine['cpu']}, {machine['cores']} cores")
    table = Table("runtime", "serves here", title="Runtimes", title_justify="left")
    for finding in found.runtimes:
        table.add_row(finding.runtime, ", ".join(finding.precisions) or "nothing")
    console.print(table)
    missing = [finding.missing for finding in found.runtimes if finding.missing]
    for line in (*missing, *(reason for finding in found.runtimes for reason in finding.unsupported)):
        # Plain and not wrapped: it holds commands to be copied.
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(", ".join(f"{name} {number}" for name, number in found.versions.items()))


def _command(storage: str | None) -> str:
    """The command line as it was given, but for the password of a database."""
    from trimtab.search.sampler import shown

    words = [word.replace(storage, shown(storage)) if storage else word for word in sys.argv[1:]]
    return shlex.join(["trimtab", *words])


def main() -> None:
    """Run the command line; the user's mistakes become one message and exit code 3, what nobody foresaw is 4."""
    try:
        # Left to itself, typer exits with 2 on a wrong flag, which here means INCONCLUSIVE.
        code = app(standalone_mode=False)
    except TrimtabError as error:
        code = _refuse(type(error).__name__, str(error))
    except typer.TyperException as error:
        told = f"{error.format_message().rstrip('.')}. See trimtab --help."
        code = _refuse("UsageError", told) if str(error) else USER_ERROR
    except Exception:  # noqa: BLE001 - Python would exit with 1, which here means FAIL
        traceback.print_exc()
        code = BROKEN
    if code == INTERRUPTED:
        Console(stderr=True).print("Stopped. What had ended is kept: give the same command again to go on.")
    sys.exit(code)


def _refuse(kind: str, why: str) -> int:
    # Not wrapped: a path or a command in it can be copied whole.
    Console(stderr=True).print(Text.assemble((kind, "bold red"), ": ", why), soft_wrap=True)
    return USER_ERROR
