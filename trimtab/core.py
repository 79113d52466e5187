"""The words of trimtab as frozen values and Protocols; no behaviour beyond refusing nonsense.

Shapes: N samples, B batch, K classes. Units end the name: `latency_ms`, `size_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from trimtab.errors import GoalError, SealError, TaskError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.fx import GraphModule

    Means = NDArray[np.float64]
    Slice = Callable[[tuple[Tensor, ...], Tensor], Tensor]
    Pair = tuple[Tensor | tuple[Tensor, ...], Tensor]
    Loss = Callable[[Tensor, Tensor], Tensor]
    Augment = Callable[[tuple[Tensor, ...], torch.Generator], tuple[Tensor, ...]]

Word = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Quantity = Literal["latency_ms", "size_bytes", "memory_bytes"]
# Floats; then what a graph is quantized to: int8 static, int8 dynamic, and weights alone (w) in so many bits.
Precision = Literal["fp32", "bf16", "int8", "int8d", "int8w", "int4w", "nf4w", "fp8", "fp16"]
QUANTITIES: tuple[Quantity, ...] = ("latency_ms", "size_bytes", "memory_bytes")


@dataclass(frozen=True)
class Split:
    """N samples: the model's inputs, each [N, ...], and what it should answer, [N, ...]."""

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, index: Any) -> Split:
        """The samples that `index` (a slice or an index tensor) selects."""
        return Split(tuple(x[index] for x in self.inputs), self.targets[index])


class Sealed:
    """A split that can be read once, by the verdict, and never for choosing."""

    def __init__(self, split: Split) -> None:
        self._split = split
        self._opened_for: str | None = None

    def __len__(self) -> int:
        return len(self._split)

    def open(self, purpose: str) -> Split:
        """Break the seal.

        Raises:
            SealError: it was broken before.
        """
        if self._opened_for is not None:
            raise SealError(
                f"The verify split was opened before, for {self._opened_for!r}, and now again for {purpose!r}. "
                "A verdict is worth something only on data that nothing was chosen by: choose on `select`."
            )
        self._opened_for = purpose
        return self._split


@dataclass(frozen=True)
class Metric:
    """A quality of answers: the mean of one number per sample, or a function of the means of several. Larger is better.

    per_sample: (outputs [N, ...], targets [N, ...]) -> scores [N], 0 or 1 each if `binary`; statistics [N, D] if
    there is an `aggregate`. aggregate: means of the statistics [..., D] -> the metric [...], e.g. errors over words:
    `lambda m: 1 - m[..., 0] / m[..., 1]`. limits: (lowest, highest) that a score, or the aggregate, can be.
    """

    name: str
    per_sample: Loss
    binary: bool = False
    aggregate: Callable[[Means], Means] | None = None
    limits: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.binary and (self.aggregate or self.limits):
            raise TaskError(
                f"The metric {self.name!r} is declared binary, its scores being 0 or 1, and has "
                f"{'an aggregate' if self.aggregate else 'limits'} too. Give one of them."
            )
        if self.limits is not None and not self.limits[0] < self.limits[1]:
            raise TaskError(f"The limits of {self.name!r} must be (lowest, highest); got {self.limits}.")


@dataclass(frozen=True)
class Fit:
    """How to train: for `epochs` over `train`, by default with AdamW, warm-up and cosine decay.

    optimizer: a name in `trimtab.optim.OPTIMIZERS`, or settings such as `Lion(lr=1e-4)`. lr, weight_decay: None: the
    optimizer's own. schedule: a name in `trimtab.train.schedule.SCHEDULES`; None: the one that the optimizer wants.
    One that wants all data at once takes it in batches of `batch_size`, and an epoch is one step.
    precision: of the forward pass; "auto" times bf16 against fp32; "fp8" is emulated (`train/fp8.py`).
    compile: by torch.compile.
    accumulate: the parts that each batch is cut into, to need less memory; the gradient stays the batch's own.
    recompute: keep blocks' inputs alone and run them again in the backward pass, to need less memory: True for all,
    or how much a step may keep for its backward pass, as a fraction of what it would (0.5) or in bytes (2e9).
    prune_samples: the chance that an epoch leaves out a sample of small loss (`train/infobatch.py`), e.g. 0.5.
    clip: the largest norm that a gradient may have. nan: whether a batch of a loss or gradient that is no number
    stops the run or is left out.
    ema: end with the exponential average of the weights, of this decay, e.g. 0.99; or tail: with the mean of the
    weights of this last fraction of the steps, e.g. 0.25.
    """

    epochs: int = 10
    lr: float | None = None
    batch_size: int = 128
    weight_decay: float | None = None
    warmup: float = 0.1
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = "auto"
    compile: bool = False
    accumulate: int = 1
    recompute: float = False
    clip: float | None = None
    nan: Literal["stop", "skip"] = "stop"
    ema: float | None = None
    tail: float | None = None
    optimizer: Any = "adamw"  # Any, and no union with a Protocol, so that plans that hold a Fit go through JSON
    schedule: str | None = None
    prune_samples: float | None = None

    def __post_init__(self) -> None:
        wrong = self.lr is not None and self.lr <= 0
        if self.epochs < 1 or self.batch_size < 1 or wrong or not 0 <= self.warmup < 1:
            raise TaskError(f"Fit needs epochs >= 1, batch_size >= 1, lr > 0 and 0 <= warmup < 1; got {self}.")
        if not 1 <= self.accumulate <= self.batch_size:
            raise TaskError(
                f"Fit(accumulate={self.accumulate}) cuts a batch of {self.batch_size} into parts: give 1 to "
                f"{self.batch_size}."
            )
        if self.clip is not None and not self.clip > 0:
            raise TaskError(f"Fit(clip={self.clip:g}) is the largest norm of a gradient: give more than 0, e.g. 1.")
        if self.precision not in ("auto", "fp32", "bf16", "fp16", "fp8") or self.nan not in ("stop", "skip"):
            raise TaskError(
                "Fit takes precision 'auto', 'fp32', 'bf16', 'fp16' or 'fp8', and nan 'stop' or 'skip'; got "
                f"{self.precision!r} and {self.nan!r}."
            )
        if self.precision == "fp8" and self.compile:
            raise TaskError(
                "Fit(precision='fp8') is emulated, to see what it does, and cannot be compiled: leave one out."
            )
        if self.recompute < 0:
            raise TaskError(f"Fit(recompute={self.recompute:g}) is a budget of memory: give bytes, or a fraction.")
        if self.prune_samples and self.tail:
            raise TaskError("Fit(tail=...) counts steps from the end, and with prune_samples none knows it: take ema.")
        for name, value in (("ema", self.ema), ("tail", self.tail), ("prune_samples", self.prune_samples)):
            if value is not None and not 0 < value < 1 and not (name == "tail" and value == 1):
                raise TaskError(f"Fit({name}={value:g}) is out of range: give a fraction, more than 0 and less than 1.")
        if self.ema and self.tail:
            raise TaskError(f"Fit averages the weights in one way: give ema={self.ema:g} or tail={self.tail:g}.")


@dataclass(frozen=True)
class Task:
    """What must be done well: data in three splits, loss and metric.

    Each split is given as (inputs [N, ...] or a tuple of them, targets [N, ...]). `verify` is sealed: only the
    verdict reads it. `fit` says how to train a fresh model; leave it None if the model you bring is trained.
    `augment` varies a training batch: (inputs, generator) -> inputs. `labels` are the K class names. `metrics` are
    further ones that a goal's bounds may name, and so are `slices`: name -> ((inputs, targets) -> which samples, [N]).
    `weigh` is for a loss that is a mean over something else than the samples, e.g. over tokens that are no padding:
    (targets) -> how many; with it, a batch in parts (`Fit.accumulate`) gives the gradient of the whole.
    `show` is for the report: one sample's inputs, without the batch dim -> text, a picture [1 or 3, H, W], or a sound
    ([T], samples a second). Pictures that go in as they are need none.
    """

    name: str
    train: Split
    select: Split
    verify: Sealed
    loss: Loss
    metric: Metric
    fit: Fit | None = None
    augment: Augment | None = None
    labels: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    slices: Mapping[str, Slice] = field(default_factory=dict)
    weigh: Callable[[Tensor], Any] = len
    show: Callable[[tuple[Tensor, ...]], Any] | None = None

    @classmethod
    def of(cls, name: str, *, train: Pair, select: Pair, verify: Pair, **settings: Any) -> Task:
        """A task from (inputs, targets) pairs; classification by default (cross-entropy, accuracy)."""
        from trimtab.tasks.make import task_from_pairs

        return task_from_pairs(name, train, select, verify, **settings)


@dataclass(frozen=True)
class Target:
    """Where the model will run. `runtimes=None` allows every runtime that is installed.

    price_per_hour: of what one inference at a time keeps busy, in any currency, to tell the price of a million samples.
    watts: what the machine takes while it runs, to estimate energy where no counter can be read.
    """

    device: Literal["cpu"] = "cpu"
    runtimes: tuple[str, ...] | None = None
    batch_size: int = 1
    threads: int = 1
    price_per_hour: float | None = None
    watts: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("price_per_hour", self.price_per_hour), ("watts", self.watts)):
            if value is not None and not 0 < value < float("inf"):
                raise GoalError(
                    f"Target's {name}={value:g} must be more than zero; leave it out if you do not know it."
                )
        if self.device != "cpu":
            raise GoalError(f"Target device {self.device!r} is not supported yet; use 'cpu'.")
        if self.batch_size < 1 or self.threads < 1:
            raise GoalError(f"Target needs batch_size >= 1 and threads >= 1; got {self.batch_size}, {self.threads}.")


@dataclass(frozen=True)
class Bound:
    """One more thing that must stay true, beside the task's metric on all samples.

    metric: the name of one of the task's metrics; "" is its main one. slice: the name of one of the task's slices; ""
    is all samples. per_class: a bound for each class of the targets. keep, drop: as in `Goal`; None: the goal's own.
    """

    metric: str = ""
    slice: str = ""
    per_class: bool = False
    keep: float | None = None
    drop: float | None = None

    def __post_init__(self) -> None:
        if not (self.metric or self.slice or self.per_class):
            raise GoalError(
                "Bound() repeats the goal: name a metric, a slice or per_class=True; the bound of the task's metric on "
                "all samples is the goal's own keep or drop."
            )
        if self.keep is not None and self.drop is not None:
            raise GoalError(f"A bound has keep={self.keep:g} and drop={self.drop:g}: give one of them.")
        _require_bound(1.0 if self.keep is None else self.keep, self.drop)


def _require_bound(keep: float, drop: float | None) -> None:
    if not 0 < keep <= 1:
        raise GoalError(f"keep={keep:g} is not a fraction to keep: give 0 < keep <= 1, e.g. 0.99 to keep 99 %.")
    if drop is not None and not 0 <= drop < float("inf"):
        raise GoalError(f"drop={drop:g} must be zero or more: it is the loss of the metric that you accept.")


@dataclass(frozen=True)
class Goal:
    """What to minimise, and how much quality must stay.

    keep: the fraction of the metric that must stay (0.99: at most 1 % of it may be lost); `drop` states the
    allowed loss in the metric's own units instead. `confidence` is one-sided. `minutes` is the time of the search.
    `bounds` are what else must stay true: other metrics, slices, each class.
    """

    minimise: Quantity = "latency_ms"
    keep: float = 0.99
    drop: float | None = None
    confidence: float = 0.95
    minutes: float | None = None
    bounds: tuple[Bound, ...] = ()

    def __post_init__(self) -> None:
        if self.minimise not in QUANTITIES:
            raise GoalError(f"Cannot minimise {self.minimise!r}; choose one of {', '.join(QUANTITIES)}.")
        _require_bound(self.keep, self.drop)
        if not 0.5 < self.confidence < 1:
            raise GoalError(f"confidence={self.confidence:g} must lie between 0.5 and 1, e.g. 0.95.")
        if self.minutes is not None and self.minutes <= 0:
            raise GoalError(f"minutes={self.minutes:g} must be more than zero.")


@dataclass(frozen=True)
class Search:
    """How the space is searched, after the recipes that are tried first.

    storage: the database that keeps the trials, e.g. `postgresql://host/name` or `sqlite:////shared/trials.db`; every
    process that names it takes part in one search. None: a file in the run's folder. trials: at most so many
    candidates, those that are tried first included. seed: of what is tried. command: what the report names as the way
    to make the result again. Without `storage`, `trials` and `Goal.minutes` the recipes that are tried first are all.
    """

    storage: str | None = None
    trials: int | None = None
    seed: int = 0
    command: str = "trimtab.optimize(...)"

    def __post_init__(self) -> None:
        if self.trials is not None and self.trials < 1:
            raise GoalError(f"trials={self.trials} must be 1 or more: it is how many candidates are tried at most.")


@dataclass(frozen=True)
class Slot:
    """One decision of the search space: options by name, the first of them doing nothing where that is possible.

    ordered: whether they grow. when: (other slot, its options) that it is asked for at, any one of them; else always.
    """

    name: str
    options: tuple[str, ...]
    ordered: bool = False
    when: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def asked(self, picks: Mapping[str, str]) -> bool:
        """Whether it is to be decided, after the decisions in `picks`."""
        return not self.when or any(picks.get(slot) in options for slot, options in self.when)


@dataclass(frozen=True)
class Skip:
    """Something that was left alone, and why."""

    what: str
    why: str


class Plan(Protocol):
    """What a method decided: frozen, JSON-able data. `skipped` lists what it left alone."""

    @property
    def skipped(self) -> tuple[Skip, ...]: ...

    def rows(self) -> list[dict[str, Any]]:
        """The decisions as table rows, for people."""


@dataclass(frozen=True)
class Tools:
    """What an applying method may need beside the graph: data, the original to learn from, somebody to tell.

    `report(done, total, text)` is told of progress. `folder` may hold checkpoints of a long step.
    """

    task: Task | None = None
    original: GraphModule | None = None
    report: Callable[[int, int, str], None] | None = None
    folder: str | None = None


class Method(Protocol):
    """One technique: its fields are its settings. The graphs given to it are never changed. `plan` may take `tools`."""

    @property
    def name(self) -> str: ...

    def plan(self, graph: GraphModule, task: Task) -> Plan: ...

    def apply(self, graph: GraphModule, plan: Any, tools: Tools) -> GraphModule: ...


@dataclass(frozen=True)
class Recipe:
    """An ordered tuple of methods; the empty recipe is the model as it came."""

    methods: tuple[Method, ...] = ()

    @property
    def name(self) -> str:
        return " + ".join(method.name for method in self.methods) or "original"


@dataclass(frozen=True)
class Candidate:
    """A recipe, the runtime that serves it and the precision it is served in."""

    recipe: Recipe
    runtime: str
    precision: Precision = "fp32"

    @property
    def name(self) -> str:
        return f"{self.recipe.name} ({self.runtime} {self.precision})"


@dataclass(frozen=True)
class Measurement:
    """A number that was measured: the median of n, and its 95 % interval from the order statistics of blocks."""

    quantity: str
    value: float
    unit: str
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class Ratio:
    """How many times better than the baseline, from n paired blocks, with its interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Drop:
    """Candidate minus baseline, in the metric's units, on n paired samples, with the allowed loss `margin`.

    [low, high] is the two-sided interval whose lower end is the one-sided bound at `confidence`; where the margin is a
    share of the baseline's value, the error of that is in it. what: which metric, on which samples, the `share` of the
    split. p_lost: the smallest 1 - confidence at which all of the interval lies beyond the margin, or 1. reach: the
    most a sample can lose by the metric's limits, or 0. seen_low: the bound by what was seen, if `low` is further down.
    """

    baseline: float
    candidate: float
    diff: float
    low: float
    high: float
    margin: float
    n: int
    confidence: float
    method: str
    what: str = ""
    share: float = 1.0
    p_lost: float = 1.0
    reach: float = 0.0
    seen_low: float | None = None


@dataclass(frozen=True)
class Held:
    """Whether one bound holds: PASS, FAIL or INCONCLUSIVE, then with how many further samples would decide."""

    drop: Drop
    word: Word
    more_samples: int | None = None


@dataclass(frozen=True)
class Verdict:
    """PASS, FAIL or INCONCLUSIVE, with the intervals and the reason.

    drop: of the task's metric on all samples. bounds: every bound, that one first. more_samples: how many further
    verify samples would decide, if quality is what is open.
    """

    word: Word
    reason: str
    drop: Drop
    gain: Ratio
    more_samples: int | None = None
    bounds: tuple[Held, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One candidate as it was built, exported and measured on `select`; `also` has what the goal's bounds add."""

    id: str
    candidate: str
    recipe: str
    runtime: str
    precision: Precision
    select: Drop
    measurements: tuple[Measurement, ...]
    gain: Ratio | None
    seconds: float
    folder: str
    free: bool = False
    also: tuple[Drop, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: measured, or left out with the reason."""

    trial: Trial | None = None
    skipped: tuple[Skip, ...] = ()


@dataclass(frozen=True)
class Artifact:
    """The folder that ships: the runtime's file, graph, weights, recipe, plans and evidence, all hashed."""

    path: str
    name: str
    runtime: str
    precision: Precision
    verdict: Verdict
    evidence: Mapping[str, Any]
    hashes: Mapping[str, str]
