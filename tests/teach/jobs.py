"""Tasks for processes of their own: one that can be resumed, and one that cannot."""

from __future__ import annotations

import dataclasses
import random

from torch import nn

from tests.train.toy import toy_net, toy_task
from trimtab.core import Task


def good() -> tuple[nn.Module, Task]:
    return toy_net(), toy_task()


def leaky() -> tuple[nn.Module, Task]:
    """`augment` draws from Python's own generator, which nobody seeds."""
    return toy_net(), dataclasses.replace(toy_task(), augment=lambda inputs, _: (inputs[0] + random.random(),))
