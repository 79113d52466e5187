"""Every error that trimtab raises on purpose.

TrimtabError
├── TaskError       the task cannot be used: missing, empty, overlapping, labels or values out of range
│   └── MetricError its metric raised, or is not what it declares: NaN, no score a sample, beyond its limits
├── GoalError       the goal or the target makes no sense: keep > 1, unknown quantity, no threads
├── CaptureError    the model cannot become one graph: names the line that breaks it
├── OptimizerError an optimizer cannot do what was asked: a setting out of range, sparse gradients, nothing to train
├── PlanError       a method cannot do what was asked of it, or a cut failed its check
├── RuntimeMissing  a runtime is not installed: names the pip command
├── RuntimeFailed   a runtime refused the file, or its answers are not the graph's
├── RunError        the run's folder cannot be used: locked, of another task or version, unwritable
├── ArtifactError   an artifact is damaged, altered or of another format
└── SealError       the verify split was asked for a second time
"""

from __future__ import annotations


class TrimtabError(Exception):
    """The root: catch this to catch everything that trimtab raises on purpose."""


class TaskError(TrimtabError):
    """The task cannot be used as it is."""


class MetricError(TaskError):
    """The task's metric raised, or returned something else than it declares."""


class GoalError(TrimtabError):
    """The goal or the target makes no sense."""


class CaptureError(TrimtabError):
    """The model cannot become one graph."""


class OptimizerError(TrimtabError):
    """An optimizer cannot do what was asked of it."""


class PlanError(TrimtabError):
    """A method cannot do what was asked of it."""


class RuntimeMissing(TrimtabError):
    """A runtime is not installed."""


class RuntimeFailed(TrimtabError):
    """A runtime refused the file, or its answers are not the graph's."""


class RunError(TrimtabError):
    """The run's folder cannot be used."""


class ArtifactError(TrimtabError):
    """An artifact is damaged, altered or of another format."""


class SealError(TrimtabError):
    """The verify split was asked for a second time."""
