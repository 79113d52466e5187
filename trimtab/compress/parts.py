"""What a method has settled so far, part by part, so that one that was killed goes on with the next part.

A part is a plan, a pass over calibration data, or a layer that was rounded or re-solved. Each is a file of its own,
written whole or not at all; a method computes from it what it would have computed had it just made it, so that the
result is the same, bit for bit. Cost: the bytes of the weights that were settled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cattrs
from safetensors.torch import load_file, save
from torch import Tensor, nn

from trimtab.core import Split, Tools
from trimtab.files import read_json, write_atomic, write_json
from trimtab.tasks.check import fingerprint_split, fingerprint_weights

T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """The parts of a step that have ended, and somebody to tell of progress. folder: keeps them; None: nothing is kept.

    >>> Parts().value("one", lambda: 1, int)
    1
    """

    folder: Path | None = None
    report: Callable[[int, int, str], None] | None = None

    @staticmethod
    def of(tools: Tools | None, graph: nn.Module, data: Split, settings: Any) -> Parts:
        """The parts of a step on `graph` and `data`; another graph, other data or settings have others.

        settings: something whose repr tells all of it.
        """
        if tools is None or tools.folder is None:
            return Parts(report=tools.report if tools else None)
        own = Parts(Path(tools.folder), tools.report)
        return own.inner(fingerprint_weights(graph, values=True), fingerprint_split(data), settings)

    def inner(self, *settings: Any) -> Parts:
        """Those of a step within this one."""
        if self.folder is None:
            return self
        words = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
        return Parts(self.folder / f"parts-{words}", self.report)

    def value(self, name: str, make: Callable[[], T], kind: type[T]) -> T:
        """The part `name`: read if it has ended, else made, and kept if it comes back from JSON as it was."""
        if self.folder is None:
            return make()
        file = self.folder / f"{name}.json"
        if not file.exists():
            value = make()
            if _comes_back(value, kind):
                write_json(file, cattrs.unstructure(value))
            return value
        return cattrs.structure(read_json(file), kind)

    def tensors(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The same of tensors by name; there may be none."""
        if self.folder is None:
            return dict(make())
        file = self.folder / f"{name}.safetensors"
        if not file.exists():
            made = {key: tensor.detach().contiguous() for key, tensor in make().items()}
            write_atomic(file, save(made))
            return made
        return load_file(file)

    def step(self, done: int, total: int, text: str) -> None:
        """Tell of progress, if anybody is to be told."""
        if self.report:
            self.report(done, total, text)


def _comes_back(value: Any, kind: Any) -> bool:
    """Whether JSON keeps all of it: of a field for floats that holds True it would not."""
    try:
        return repr(cattrs.structure(json.loads(json.dumps(cattrs.unstructure(value))), kind)) == repr(value)
    except Exception:  # noqa: BLE001 - somebody's own type, which cannot be made of JSON
        return False


NOTHING_KEPT = Parts()
