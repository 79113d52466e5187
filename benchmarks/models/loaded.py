"""What a loader gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from trimtab.core import Task


@dataclass(frozen=True)
class Loaded:
    """A trained model, a task to calibrate on without labels, and its quality.

    quality: a module that takes the model's inputs -> figures by name; larger is better.
    data: what the quality was measured on, in words, with the hash of what is not pinned by a package.
    """

    name: str
    module: nn.Module
    task: Task
    quality: Callable[[nn.Module], dict[str, float]]
    data: str
