"""One cell of the experiment: kept as a JSON file when it has ended, so that a run goes on where it stopped."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trimtab.files import read_json, write_json

ORIGINAL = "original"


@dataclass(frozen=True)
class Cell:
    """A net of a seed, cut by a method at a ratio."""

    net: str
    seed: int
    method: str
    ratio: float

    @property
    def slug(self) -> str:
        """Its name as a file.

        >>> Cell("FashionNet", 0, "obs + compensation", 0.4).slug
        'obs-compensation-0.4'
        """
        return "-".join([*self.method.replace("+", " ").split(), f"{self.ratio:g}"])

    def keep(self, folder: Path, found: dict[str, Any]) -> None:
        """Write what was found: the cell has ended."""
        write_json(folder / f"{self.slug}.json", {**asdict(self), **found})


def kept(folder: Path, cell: Cell) -> bool:
    """Whether the cell has ended."""
    return (folder / f"{cell.slug}.json").exists()


def cells_in(work: Path) -> list[dict[str, Any]]:
    """All cells that have ended, in a fixed order."""
    return [read_json(path) for path in sorted(work.glob("*/seed*/*.json")) if path.name != "peer.json"]


@dataclass
class Progress:
    """Says on one line what ended, and how long the rest will take at the pace so far."""

    total: int
    done: int
    began: float = field(default_factory=time.monotonic)
    here: int = 0

    def told(self, cell: Cell) -> None:
        self.done, self.here = self.done + 1, self.here + 1
        left = (time.monotonic() - self.began) / self.here * (self.total - self.done)
        print(f"{self.done}/{self.total} {cell.net} seed {cell.seed} {cell.slug}, {left / 60:.0f} min left", flush=True)
