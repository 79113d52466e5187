"""Optimizers that look at each element alone, run through the cache piece by piece.

A step on CPU is bound by memory. A formula of several whole-tensor operations reads and writes main memory once for
each; here all of them run on one piece of 2^18 elements, which stays in the cache, before the next (of smaller pieces
the calls of torch would cost more than the cache gives). With `compiled=True` torch.compile makes one loop of the
formula, for all sizes: a single pass, after seconds to a minute of compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trimtab.optim.base import Groups, dense
from trimtab.optim.kernel import compiled

PIECE = 1 << 18
Closure = Callable[[], Tensor]


class Flat(torch.optim.Optimizer):
    """The base: a method says which tensors it keeps (`slots`), its numbers for a step, and its formula twice.

    Numbers that a step changes are kept in the group, so that a state dict has all of them. The state of bf16 and fp16
    weights is fp32, and so is the arithmetic. `whole`: the formula needs all of a tensor's elements at once.
    """

    slots: ClassVar[tuple[str, ...]]
    whole: ClassVar[bool] = False

    def __init__(self, groups: Groups, defaults: dict[str, Any], *, compiled: bool) -> None:
        super().__init__(groups, defaults)
        self._compiled = compiled

    def numbers(self, group: dict[str, Any]) -> tuple[float, ...]:
        """Begin a step of `group`: count it, and give what the formula needs."""
        raise NotImplementedError

    def begin_state(self, slot: str, p: Tensor) -> Tensor:
        """A slot's tensor before the first step: zeros."""
        return torch.zeros_like(p, dtype=arithmetic(p))

    def check(self, given: list[Tensor]) -> None:
        """Refuse gradients before any work: none is."""

    def end(self, returned: list[Any]) -> None:
        """End a step, with what the formula returned of each piece: nothing is left to do."""

    @staticmethod
    def update_(p: Tensor, g: Tensor, *rest: Any) -> Any:
        """The formula in place on a piece: weights, gradient, the slots in order, then the numbers."""
        raise NotImplementedError

    @staticmethod
    def formula_(p: Tensor, g: Tensor, *rest: Any) -> Any:
        """The same, for torch.compile: the numbers come as one tensor of the state's dtype.

        What is small beside 1, as 1 - beta, is to be one of the numbers: here it would be rounded.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """One step; returns the closure's loss.

        Raises:
            OptimizerError: a gradient is sparse.
        """
        loss = run(closure)
        given = [(group, found) for group in self.param_groups if (found := list(gradients(group)))]
        if not given:
            return loss
        self.check([g for _, found in given for _, g in found])
        returned: list[Any] = []
        for group, found in given:
            numbers = self.numbers(group)
            for p, g in found:
                returned += self._advance(p, g, (_as_tensor(numbers, arithmetic(p)),) if self._compiled else numbers)
        self.end(returned)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave; the state keeps its own dtypes, whatever the weights' are."""
        super().load_state_dict(state_dict)
        restore_dtypes_(self, state_dict)

    def _advance(self, p: Tensor, g: Tensor, numbers: tuple[Any, ...]) -> list[Any]:
        state = self.state[p]
        if not state:
            state.update({slot: self.begin_state(slot, p) for slot in self.slots})
        tensors, strides = [p, g], p.stride()
        for slot in self.slots:
            if state[slot].stride() != strides:  # the weights were laid out anew, or the state came from a file
                state[slot] = torch.empty_like(p, dtype=state[slot].dtype).copy_(state[slot])
            tensors.append(state[slot])
        whole, *others = flat_all(tensors)
        kernel = compiled(self.formula_) if self._compiled else self.update_
        size = max(p.numel(), 1) if self._compiled or self.whole else piece_size(p)
        dtype, returned = arithmetic(p), []
        for piece, gradient, *rest in in_pieces((whole, *others), size):
            exact = piece if piece.dtype == dtype else piece.to(dtype)
            returned.append(kernel(exact, gradient if gradient.dtype == dtype else gradient.to(dtype), *rest, *numbers))
            if exact is not piece:
                piece.copy_(exact)
        if not shares_memory(whole, p):
            put_(p, whole, p)
        return returned


def run(closure: Closure | None) -> Tensor | None:
    """The closure's loss, with gradients; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def gradients(group: dict[str, Any]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """The group's parameters that have a gradient, and it.

    Raises:
        OptimizerError: one is sparse.
    """
    for p, name in zip(group["params"], group["param_names"], strict=True):
        if p.grad is not None:
            yield p, dense(name, p.grad)


def piece_size(p: Tensor) -> int:
    """The elements that go through a formula at a time; torch gives each thread an even share of them."""
    return PIECE * torch.get_num_threads() if p.device.type == "cpu" else max(p.numel(), 1)


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same elements of all of them, flat, a piece at a time, to be changed in place; all lie as the first does.

    Where one does not, or has gaps, the pieces are of a copy, which is put back after the last.
    """
    views = flat_all(tensors)
    yield from in_pieces(views, piece_size(tensors[0]))
    for view, tensor in zip(views, tensors, strict=True):
        if not shares_memory(view, tensor):
            put_(tensor, view, tensors[0])


def in_pieces(views: Sequence[Tensor], size: int) -> Iterable[tuple[Tensor, ...]]:
    """The same `size` elements of all the flat tensors, then the next; no operation at all where they fit in one."""
    if views[0].numel() <= size:
        return (tuple(views),)
    return zip(*(view.split(size) for view in views), strict=True)


def put_(tensor: Tensor, elements: Tensor, like: Tensor) -> None:
    """Undo `flat`: write the elements, in the order of `like`'s memory, into `tensor`."""
    order = order_of(like)
    tensor.copy_(elements.view([like.shape[dim] for dim in order]).permute(inverse(order)))


def fused_adamw_(p: Tensor, g: Tensor, m: Tensor, v: Tensor, step: float, **numbers: float) -> None:
    """AdamW's step on a piece, by torch's kernel. numbers: lr, beta1, beta2, weight_decay, eps."""
    torch._fused_adamw_([p], [g], [m], [v], [], [_counted(step, p.device)], **numbers, amsgrad=False, maximize=False)  # type: ignore[call-overload]


def fused_sgd_(p: Tensor, g: Tensor, *, lr: float, weight_decay: float) -> None:
    """SGD's step p <- p - lr (g + weight_decay p) on a piece, by torch's kernel."""
    torch._fused_sgd_(
        [p],
        [g],
        [],
        lr=lr,
        weight_decay=weight_decay,
        momentum=0.0,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


@lru_cache(maxsize=1)
def _counted(step: float, device: torch.device) -> Tensor:
    return torch.tensor(float(step), device=device)


@lru_cache(maxsize=2)
def _as_tensor(numbers: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    return torch.tensor(numbers, dtype=dtype)


def arithmetic(p: Tensor) -> torch.dtype:
    """What the state is kept in: float64 for float64 weights, else float32."""
    return torch.promote_types(p.dtype, torch.float32)


def shares_memory(view: Tensor, p: Tensor) -> bool:
    """Whether writing into `view`, made of `p`, is writing into `p`: not for copies, nor for weights kept otherwise."""
    return type(p) in (Tensor, nn.Parameter) and view.data_ptr() == p.data_ptr()


def order_of(p: Tensor) -> list[int]:
    """The dims of `p`, from the farthest apart in memory to the nearest."""
    return sorted(range(p.ndim), key=lambda dim: p.stride()[dim], reverse=True)


def inverse(order: list[int]) -> list[int]:
    """The permutation that undoes `order`."""
    return [order.index(dim) for dim in range(len(order))]


def flat_all(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The elements of each in the order of the first one's memory; in the usual case by one call of torch each."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return [tensor.view(-1) for tensor in tensors]
    return [flat(tensor, tensors[0]) for tensor in tensors]


def flat(tensor: Tensor, like: Tensor) -> Tensor:
    """The elements in the order of `like`'s memory: a view where `tensor` lies so too and without gaps, else a copy."""
    ordered = tensor if like.is_contiguous() else tensor.permute(order_of(like))
    return ordered.reshape(-1).contiguous()  # even gaps would stay, and torch's fused kernels do not look for them


def restore_dtypes_(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Undo what torch does on loading: it casts every state to its parameter's dtype."""
    saved = [key for group in state_dict["param_groups"] for key in group["params"]]
    here = [p for group in optimizer.param_groups for p in group["params"]]
    for key, p in zip(saved, here, strict=True):
        for slot, value in state_dict["state"].get(key, {}).items():
            if isinstance(value, Tensor):
                optimizer.state[p][slot] = value.detach().clone().to(p.device)
