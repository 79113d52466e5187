"""Retrieval without a download: the first paragraph of a docstring has to find the rest of it among 600.

The texts are those of Python's own standard library, read from the source files; nothing is imported. They follow the
Python version, so results name the hash of the texts that were used.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

NUM_JUDGED = 600
MIN_QUERY, MIN_TEXT = 4, 12  # words
LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "ensurepip"}
WITH_DOCSTRING = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module


@dataclass(frozen=True)
class Pair:
    """The first paragraph of a docstring, and the others; white space made plain."""

    query: str
    text: str


@functools.cache
def pairs() -> tuple[Pair, ...]:
    """All docstrings with at least two paragraphs, in an order that only their text decides."""
    found: dict[str, Pair] = {}
    texts = set()
    for docstring in _docstrings(Path(sysconfig.get_path("stdlib"))):
        first, _, rest = docstring.partition("\n\n")
        pair = Pair(" ".join(first.split()), " ".join(rest.split()))
        long_enough = len(pair.query.split()) >= MIN_QUERY and len(pair.text.split()) >= MIN_TEXT
        # The like twice has no single right answer.
        if long_enough and pair.query not in found and pair.text not in texts:
            found[pair.query] = pair
            texts.add(pair.text)
    return tuple(sorted(found.values(), key=lambda pair: hashlib.sha256(pair.query.encode()).digest()))


def judged(num: int = NUM_JUDGED) -> list[Pair]:
    """Those that quality is measured on: the first of the 600."""
    return list(pairs()[: min(num, NUM_JUDGED)])


def spare() -> list[str]:
    """Texts of the others, to calibrate on."""
    return [part for pair in pairs()[NUM_JUDGED:] for part in (pair.query, pair.text)]


def fingerprint(used: list[Pair]) -> str:
    """The first 12 hex digits of the SHA-256 of the texts."""
    return hashlib.sha256("\n".join(f"{pair.query}\t{pair.text}" for pair in used).encode()).hexdigest()[:12]


def mean_reciprocal_rank(queries: Tensor, texts: Tensor) -> float:
    """Mean of 1 / rank of each query's own text among all, by inner product; of equals, the own text is the last.

    Args:
        queries: [N, D].
        texts: [N, D], in the same order.

    >>> import torch
    >>> mean_reciprocal_rank(torch.eye(2), torch.tensor([[1.0, 0.0], [2.0, 1.0]]))
    0.75
    """
    scores = queries @ texts.T
    ranks = (scores >= scores.diagonal()[:, None]).sum(1)
    return float((1 / ranks.double()).mean())


def _docstrings(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.py")):
        if LEFT_OUT & set(path.relative_to(folder).parts):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, WITH_DOCSTRING) and (text := ast.get_docstring(node)):
                yield text
