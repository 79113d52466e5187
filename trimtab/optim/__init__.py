"""The optimizers: frozen settings, one table of them, and what they build."""

from __future__ import annotations

from trimtab.errors import OptimizerError
from trimtab.optim.adaptive import Adafactor, Adagrad, Adam, AdamW, NAdamW, RAdam, RMSprop
from trimtab.optim.base import Optimizer
from trimtab.optim.lbfgs import LBFGS
from trimtab.optim.lion import Lion
from trimtab.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from trimtab.optim.sgd import SGD

OPTIMIZERS: dict[str, Optimizer] = {
    "adafactor": Adafactor(),
    "adagrad": Adagrad(),
    "adam": Adam(),
    "adamw": AdamW(),
    "lbfgs": LBFGS(),
    "lion": Lion(),
    "nadamw": NAdamW(),
    "radam": RAdam(),
    "rmsprop": RMSprop(),
    "schedule_free_adamw": ScheduleFreeAdamW(),
    "schedule_free_sgd": ScheduleFreeSGD(),
    "sgd": SGD(),
}


def find_optimizer(name: str) -> Optimizer:
    """The settings of that name, at their defaults.

    Raises:
        OptimizerError: there is none.

    Example:
        >>> find_optimizer("adamw").lr
        0.003
    """
    if name not in OPTIMIZERS:
        raise OptimizerError(f"There is no optimizer {name!r}; the optimizers are {', '.join(OPTIMIZERS)}.")
    return OPTIMIZERS[name]
