"""From the name that a command line gives to a model and its task."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from trimtab.core import Task
from trimtab.errors import TaskError, TrimtabError
from trimtab.tasks.fashion import fashion

BUILTIN: dict[str, Callable[[], tuple[nn.Module, Task]]] = {"fashion": fashion}
FORMS = "a built-in name, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION"


def resolve(name: str) -> tuple[nn.Module, Task]:
    """The model and task that `name` stands for.

    Args:
        name: a built-in name, `file.py:function` or `package.module:function`; the function takes no arguments and
            returns (nn.Module, Task).

    Raises:
        TaskError: there is no such task, file, module or function, or it failed, or returned something else.
    """
    if name in BUILTIN:
        return BUILTIN[name]()
    place, colon, function = name.rpartition(":")
    if not colon:
        raise TaskError(_no_such_task(name))
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    return _returned(name, _function(module, place, function))


def _no_such_task(name: str) -> str:
    close = difflib.get_close_matches(name, BUILTIN)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    if name.endswith(".py"):
        hint = f" To use a file, name its function too: {name}:FUNCTION."
    return f"There is no task {name!r}.{hint} Built in: {', '.join(BUILTIN)}. Give {FORMS}."


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TaskError(f"There is no file {path} (looked in {Path.cwd()}). Give {FORMS}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # The file may import its neighbours, as it can when Python runs it.
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's file may raise anything
        raise _failed(f"The file {path} failed while it was imported", error) from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _from_package(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(f"{error.name}.")):
            raise TaskError(
                f"There is no module {place!r}: Python cannot find {error.name!r}. Install it, or run from the folder "
                f"that holds it with python -m. Give {FORMS}."
            ) from error
        raise _failed(f"The module {place} failed while it was imported", error) from error
    except Exception as error:  # the user's module may raise anything
        raise _failed(f"The module {place} failed while it was imported", error) from error


def _function(module: ModuleType, place: str, name: str) -> Callable[[], Any]:
    function: Callable[[], Any] | None = getattr(module, name, None)
    if not callable(function):
        own = [
            key for key, value in inspect.getmembers(module, inspect.isfunction) if value.__module__ == module.__name__
        ]
        raise TaskError(f"There is no function {name!r} in {place}. It has: {', '.join(own) or 'none'}.")
    return function


def _returned(name: str, function: Callable[[], Any]) -> tuple[nn.Module, Task]:
    try:
        value = function()
    except TrimtabError:
        raise
    except Exception as error:  # the user's function may raise anything
        raise _failed(f"{name} raised an error", error) from error
    match value:
        case (nn.Module() as model, Task() as task):
            return model, task
    got = f"({', '.join(type(part).__name__ for part in value)})" if isinstance(value, tuple) else type(value).__name__
    raise TaskError(
        f"{name} must return (nn.Module, trimtab.Task); it returned {got}. Make the task with trimtab.Task.of(...)."
    )


def _failed(what: str, error: Exception) -> TaskError:
    # The last frame is where it broke, which is what its author has to see.
    frame = inspect.getinnerframes(error.__traceback__)[-1] if error.__traceback__ else None
    where = f" at {frame.filename}:{frame.lineno}" if frame else ""
    return TaskError(f"{what}: {type(error).__name__}: {error}{where}. Mend it there; it must run on its own.")
