"""What is done to each model: every method alone, and combinations written by hand."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.compress.dynamic import Dynamic
from trimtab.compress.factorize import Factorize
from trimtab.compress.palette import Palette
from trimtab.compress.prune import Prune
from trimtab.compress.quantize import Quantize
from trimtab.compress.sharing import ShareBlocks
from trimtab.compress.sparsify import Sparsify
from trimtab.compress.weightonly import WeightOnly
from trimtab.core import Method

ORIGINAL, FAST, SMALL = "original", "combined for speed", "combined for size"
COMPACT = ("mobilenet_v2", "efficientnet_lite0")  # depthwise: a palette for a tensor costs them nearly all, zeros much
CONVOLUTIONAL = (*COMPACT, "ocr_crnn", "silero_vad")


@dataclass(frozen=True)
class Cell:
    """A recipe by name; alone: it is one method."""

    name: str
    methods: tuple[Method, ...]

    @property
    def key(self) -> str:
        return "-".join(self.name.split())

    @property
    def alone(self) -> bool:
        return len(self.methods) == 1


def cells_of(model: str, samples: int) -> list[Cell]:
    """The cells of a model, `samples` of which calibrate; what a run that is stopped should have said first.

    >>> [cell.name for cell in cells_of("silero_vad", 64)][:2]
    ['original', 'int8']
    """
    integers: Method = Quantize(samples=samples) if model in CONVOLUTIONAL else Dynamic()
    prune = Prune(ratio=0.1, importance="obs", allocation="measured", samples=samples)
    zeros = Sparsify(0.4, importance="activation", samples=samples, compensate=True)
    rows, named = (1, "a 4-bit palette a row") if model in COMPACT else (None, "palette of 4 bits")
    palette = Palette(4, rows=rows, weighted=True, compensate=model in COMPACT, samples=samples)
    small: tuple[Method, ...] = (prune, palette) if model in COMPACT else (prune, zeros, palette)
    return [
        Cell(ORIGINAL, ()),
        Cell("int8" if model in CONVOLUTIONAL else "int8, ranges at run time", (integers,)),
        Cell("pruned by .1", (prune,)),
        Cell(FAST, (prune, integers)),
        Cell(named, (palette,)),
        Cell(".4 zeros", (zeros,)),
        Cell(SMALL, small),
        Cell("low rank, .85 of the MACs", (Factorize(macs=0.85, weighted=True, samples=samples),)),
        Cell("int8 weights", (WeightOnly("int8"),)),
        Cell("one block shared", (ShareBlocks(1),)),
    ]


def parts_of(model: str, combined: Cell) -> list[str]:
    """The names of the cells that do alone what `combined` does together."""
    own = {cell.methods[0]: cell.name for cell in cells_of(model, 64) if cell.alone}
    return [own[method] for method in combined.methods if method in own]
