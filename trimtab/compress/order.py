"""Which method cannot follow which, and why: a recipe that would undo its own work is refused before any is done.

* After integers (`Quantize`, `QAT`, `Dynamic`, `WeightOnly`) nothing follows: what cuts, trains or shares needs floats.
* After a `Palette` nothing that gives each number a value of its own again.
* After `Sparsify` nothing that fills the zeros in. `Distill` and `FineTune` keep them (`zeros.py`).
"""

from __future__ import annotations

from trimtab.compress.distill import Distill
from trimtab.compress.dynamic import Dynamic
from trimtab.compress.factorize import Factorize
from trimtab.compress.finetune import FineTune
from trimtab.compress.palette import Palette
from trimtab.compress.prune import Prune
from trimtab.compress.qat import QAT
from trimtab.compress.quantize import Quantize
from trimtab.compress.sparsify import Sparsify
from trimtab.compress.weightonly import WeightOnly
from trimtab.core import Method, Recipe
from trimtab.errors import PlanError

INTEGERS = (Quantize, QAT, Dynamic, WeightOnly)


def refuse_order(recipe: Recipe) -> None:
    """Refuse a recipe whose order cannot work.

    Raises:
        PlanError: a method would undo one before it, or needs what that took away.
    """
    for place, later in enumerate(recipe.methods):
        for earlier in recipe.methods[:place]:
            if why := clash(earlier, later):
                raise PlanError(f"The recipe {recipe.name!r} cannot work: {later.name!r} after {earlier.name!r}: {why}")


def clash(earlier: Method, later: Method) -> str | None:
    """Why `later` cannot follow `earlier`, with the mend; None where it can.

    >>> clash(Prune(ratio=0.5), Quantize()) is None
    True
    """
    if isinstance(earlier, INTEGERS):
        mend = "QAT trains with the rounding in place" if isinstance(later, Distill | FineTune) else "put it before"
        return f"integers can no longer be cut, trained, shared or rounded again; {mend}."
    if isinstance(earlier, Palette):
        if isinstance(later, Distill | FineTune | QAT):
            return "training moves the shared numbers apart; Palette(epochs=...) trains them, or train before it."
        if isinstance(later, Factorize) or _solves(later):
            return "it gives each number a value of its own again; put the palette after it."
    if isinstance(earlier, Sparsify):
        if isinstance(later, QAT):
            return "its training fills the zeros in; take Quantize, which keeps them, or leave out the zeros."
        if isinstance(later, Factorize) or (isinstance(later, Prune) and _solves(later)):
            return "it fills the zeros in; put the zeros after it."
    return None


def _solves(method: Method) -> bool:
    """Whether layers are re-solved for what goes."""
    if not isinstance(method, Prune | Sparsify):
        return False
    return method.importance == "obs" if method.compensate is None else method.compensate
