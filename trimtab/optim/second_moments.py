"""What an optimizer has seen of the gradients' squares by the end of a run, read out of its state: no step costs more.

Adam and its kin keep v, the running mean of the square of each weight's gradient, with a horizon of 1 / (1 - beta2)
steps. Where it is not kept, or not of each weight's gradient alone, there is none: SGD and Lion keep no squares,
Adafactor keeps rows and columns, SOAP turns a matrix first (its vectors count), Adagrad sums up the whole run,
Prodigy's are of gradients times a changing factor, Muon's hidden matrices have a momentum alone (the rest counts); and
where the decay was added to the gradient (Adam and RMSprop with `weight_decay`), the square is of the sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trimtab.optim.adamw8bit import dequantize


def second_moments(optimizer: torch.optim.Optimizer) -> dict[Tensor, Tensor]:
    """The mean square of each parameter's gradient, as the parameter, corrected for its start at zero.

    Parameters that it is not known of are left out.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> adam = torch.optim.Adam([weight])
        >>> weight.grad = torch.tensor([1.0, 2.0])
        >>> adam.step()
        >>> second_moments(adam)[weight]
        tensor([1., 4.])
    """
    found = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            mean = _mean(state, group)
            steps = float(state.get("step", group.get("step", 0)))
            if mean is not None and steps and mean.numel() == p.numel():
                beta = group["betas"][1] if "betas" in group else group["alpha"]
                found[p] = mean.reshape(p.shape) / (1 - beta**steps)
    return found


def _mean(state: dict[str, Any], group: dict[str, Any]) -> Tensor | None:
    """The running mean as it is kept, [elements] or as the parameter; None where the state is of something else."""
    decays_by_gradient = not group.get("decoupled_weight_decay", "alpha" not in group)
    if "d" in group or "left_basis" in state or "right_basis" in state:
        return None
    if group.get("weight_decay") and decays_by_gradient:
        return None
    if "v_max" in state:
        return dequantize(state["v"], state["v_max"], signed=False)
    return next((state[name] for name in ("exp_avg_sq", "square_avg", "v") if name in state), None)
