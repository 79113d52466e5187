"""PyTorch's registry of what has a form in ONNX, read once in a process.

Its exporter reads and parses the source of some thousand functions at every export (torch 2.13, onnxscript 0.7): more
than half of the time that a small graph takes. A PyTorch that keeps its registry elsewhere reads it each time.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

READ = "from_torchlib"
_KEPT: dict[Hashable, Any] = {}
_LOCK = RLock()


@contextmanager
def registry_read_once() -> Iterator[None]:
    """Within the block, PyTorch's exporter is given a copy of the registry that was read before."""
    found = _registry()
    if found is None:
        yield
        return
    own = vars(found)[READ]

    def once(cls: type, /, *args: Hashable, **settings: Hashable) -> Any:
        asked = (cls, args, *sorted(settings.items()))
        if asked not in _KEPT:
            _KEPT[asked] = own.__get__(None, cls)(*args, **settings)
        return _copied(_KEPT[asked])

    with _LOCK:
        setattr(found, READ, classmethod(once))
        try:
            yield
        finally:
            setattr(found, READ, own)


def _registry() -> type | None:
    """Its class, where it is as this file knows it."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        return None
    return ONNXRegistry if READ in vars(ONNXRegistry) and hasattr(ONNXRegistry(), "functions") else None


def _copied(registry: Any) -> Any:
    """One of its own: what is registered in it for an export is not there in the next."""
    copy = type(registry)()
    vars(copy).update(vars(registry))
    copy.functions = {target: list(forms) for target, forms in registry.functions.items()}
    return copy
