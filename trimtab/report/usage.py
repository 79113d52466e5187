"""How to use an artifact, as text that a person may paste and a test executes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from trimtab.artifact import sample_name
from trimtab.report.words import is_fraction


def usage(evidence: Mapping[str, Any]) -> tuple[str, str]:
    """Three lines of Python and one of shell that answer the artifact's own sample inputs."""
    artifact, task = evidence["paths"]["artifact"], evidence["task"]
    samples = tuple(f"{artifact}/{sample_name(place)}" for place in range(task.get("num_inputs", 1)))
    return usage_python(artifact, *samples, classifies=is_fraction(evidence)), usage_shell(artifact, *samples)


def usage_python(artifact: str, *samples: str, classifies: bool = True) -> str:
    """Three lines of Python that answer the inputs in `samples`, an .npy file of [B, ...] for each of the model's.

    >>> print(usage_python("runs/a", "x.npy"))
    import numpy as np, trimtab as tt
    model = tt.load("runs/a")
    print(model.run(np.load("x.npy")).argmax(1))
    """
    arrays = ", ".join(f"np.load({_quoted(sample)})" for sample in samples)
    return (
        "import numpy as np, trimtab as tt\n"
        f"model = tt.load({_quoted(artifact)})\n"
        f"print(model.run({arrays}){'.argmax(1)' if classifies else ''})"
    )


def usage_shell(artifact: str, *samples: str) -> str:
    """One line of shell that does the same.

    >>> usage_shell("runs/my run", "x.npy")
    "trimtab run 'runs/my run' --input x.npy"
    """
    return shlex.join(["trimtab", "run", artifact, *(part for sample in samples for part in ("--input", sample))])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
