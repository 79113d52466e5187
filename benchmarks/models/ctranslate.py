"""Weights in CTranslate2's binary format, version 6: names, shapes and raw numbers one after another, little endian.

u32 version; the specification's name; u32 its revision; u32 count; for each variable its name, u8 rank, u32 dims, u8
kind, u32 bytes, the numbers; u32 count of aliases, each two names. A name: u16 length, the bytes, a closing zero.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

VERSION = 6
KINDS = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}


class FormatError(Exception):
    """The file is not what was expected."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Every variable by its name; float16 becomes float32, which holds the same numbers.

    Raises:
        FormatError: another version, or a kind of number that is not known.
    """
    reader = _Reader(path.read_bytes())
    version = reader.number("I")
    if version != VERSION:
        raise FormatError(f"{path} is of version {version} of CTranslate2's format; {VERSION} was expected.")
    reader.name()
    reader.number("I")
    found = {}
    for _ in range(reader.number("I")):
        name, rank = reader.name(), reader.number("B")
        shape = [reader.number("I") for _ in range(rank)]
        kind, size = reader.number("B"), reader.number("I")
        if kind not in KINDS:
            raise FormatError(f"{name} in {path} is of kind {kind}; known are {', '.join(map(str, KINDS))}.")
        array = np.frombuffer(reader.take(size), KINDS[kind]).reshape(shape)
        found[name] = torch.from_numpy(array.astype(np.float32) if kind in (0, 4) else array.copy())
    return found


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> int:
        return int(struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0])

    def name(self) -> str:
        return self.take(self.number("H")).rstrip(b"\0").decode()
