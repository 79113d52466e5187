"""The user's own functions as a hash: a run that goes on with another metric of the same name is another run.

By bytecode, constants, defaults, and what they close over or look up by name in their own file, as far as that is plain
and cannot change meanwhile. So a hash is good within one version of Python, and what other files do is not seen.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

from trimtab.core import Task

PLAIN = (str, bytes, int, float, complex, bool, type(None))
DEEPEST = 6


def fingerprints_of_code(task: Task) -> dict[str, str]:
    """What a task judges and trains by -> SHA-256, in hex, of its code: the same wherever the source is the same."""
    parts: dict[str, Any] = {"the loss": task.loss, "augment": task.augment, "weigh": task.weigh}
    parts |= {f"slice {name}": slice_of for name, slice_of in task.slices.items()}
    for metric in (task.metric, *task.metrics):
        parts[f"metric {metric.name}"] = (metric.per_sample, metric.aggregate, metric.binary, metric.limits)
    return {f"code of {name}": fingerprint_of(part) for name, part in parts.items()}


def fingerprint_of(value: Any) -> str:
    """SHA-256, in hex, of what tells `value` from others."""
    return hashlib.sha256(told_by(value).encode()).hexdigest()


def told_by(value: Any, module: str = "", depth: int = 0) -> str:
    """What tells `value` from others, without an address in memory. Of what may change meanwhile, the type alone.

    Of an absolute path, such as that of the code's own file, the last name counts: it lies elsewhere on other machines.
    module: functions of this one are looked into; of others the name tells.

    >>> told_by(lambda y: y + 1) == told_by(lambda y: y + 1), told_by(lambda y: y + 1) == told_by(lambda y: y + 2)
    (True, False)
    """
    if isinstance(value, PLAIN):
        return _plainly(value)
    if isinstance(value, FunctionType) and depth < DEEPEST and value.__module__ == (module or value.__module__):
        return _of_function(value, depth)
    inside: tuple[Any, ...] = ()
    match value:
        case tuple():
            inside = value
        case frozenset():
            return f"{sorted(told_by(one, module, depth + 1) for one in value)}"
        case CodeType():
            inside = (value.co_code, value.co_names, value.co_consts)
        case functools.partial():
            inside = (value.func, value.args, tuple(value.keywords.items()))
        case MethodType():
            inside = (value.__func__, type(value.__self__).__qualname__)
        case _:
            return getattr(value, "__qualname__", type(value).__qualname__)
    return f"({', '.join(told_by(one, module, depth + 1) for one in inside)})"


def _plainly(value: Any) -> str:
    path = Path(value) if isinstance(value, str) else Path()
    # "/" or "/a" are hardly paths: such constants count as they are.
    return f"a path to {path.name!r}" if path.is_absolute() and len(path.parts) > 2 else repr(value)


def _of_function(function: FunctionType, depth: int) -> str:
    code = function.__code__
    around = tuple(function.__globals__[name] for name in code.co_names if name in function.__globals__)
    held = tuple(cell.cell_contents for cell in function.__closure__ or ())
    inside = (code, function.__defaults__ or (), held, around)
    return f"{function.__qualname__} {told_by(inside, function.__module__, depth + 1)}"
