"""The optimizers: frozen settings, one table of them, and what they build."""

from __future__ import annotations

from trimtab.errors import OptimizerError
from trimtab.optim.adamw8bit import AdamW8bit
from trimtab.optim.adaptive import Adafactor, Adagrad, Adam, AdamW, NAdamW, RAdam, RMSprop
from trimtab.optim.base import Optimizer
from trimtab.optim.cautious import Cautious
from trimtab.optim.conjugate_gradient import ConjugateGradient
from trimtab.optim.gradient_descent import GradientDescent
from trimtab.optim.lbfgs import LBFGS
from trimtab.optim.lion import Lion
from trimtab.optim.muon import Muon
from trimtab.optim.nesterov import Nesterov
from trimtab.optim.prodigy import Prodigy
from trimtab.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from trimtab.optim.sgd import SGD
from trimtab.optim.soap import SOAP

OPTIMIZERS: dict[str, Optimizer] = {
    "adafactor": Adafactor(),
    "adagrad": Adagrad(),
    "adam": Adam(),
    "adamw": AdamW(),
    "adamw8bit": AdamW8bit(),
    "cautious_adamw": Cautious(),
    "conjugate_gradient": ConjugateGradient(),
    "gradient_descent": GradientDescent(),
    "lbfgs": LBFGS(),
    "lion": Lion(),
    "muon": Muon(),
    "nadamw": NAdamW(),
    "nesterov": Nesterov(),
    "prodigy": Prodigy(),
    "radam": RAdam(),
    "rmsprop": RMSprop(),
    "schedule_free_adamw": ScheduleFreeAdamW(),
    "schedule_free_sgd": ScheduleFreeSGD(),
    "sgd": SGD(),
    "soap": SOAP(),
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
