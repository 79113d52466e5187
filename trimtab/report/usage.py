"""How to use an artifact, as text that a person may paste and a test executes."""

from __future__ import annotations

import shlex


def usage_python(artifact: str, sample: str) -> str:
    """Three lines of Python that answer the inputs in `sample`, an .npy file of [B, ...].

    >>> print(usage_python("runs/a", "x.npy"))
    import numpy as np, trimtab as tt
    model = tt.load("runs/a")
    print(model.run(np.load("x.npy")).argmax(1))
    """
    return (
        "import numpy as np, trimtab as tt\n"
        f"model = tt.load({_quoted(artifact)})\n"
        f"print(model.run(np.load({_quoted(sample)})).argmax(1))"
    )


def usage_shell(artifact: str, sample: str) -> str:
    """One line of shell that does the same.

    >>> usage_shell("runs/my run", "x.npy")
    "trimtab run 'runs/my run' --input x.npy"
    """
    return f"trimtab run {shlex.quote(artifact)} --input {shlex.quote(sample)}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
