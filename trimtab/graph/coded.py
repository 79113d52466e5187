"""Tensors as one file, each written the shortest of four lossless ways: `weights.coded`.

    raw       its bytes
    zlib      its bytes, deflated
    sparse    where its zeros are, entropy-coded, and the other numbers
    palette   its few distinct values, once for each so many rows, and for each number which of them, entropy-coded

Han et al., "Deep Compression" (2016): weight sharing and a Huffman-coded file. Differs: nothing has to be said about a
tensor, since a palette is found by counting its distinct bit patterns, so what any method leaves (k-means palettes,
zeros, int8) is found; and the coder is rANS (`entropy.py`). Values that a float16 holds exactly are written as such.
Decoding gives the same bits. The file: 8 bytes of magic, the length of the header (8 bytes, little endian), the header
(JSON, deflated), then what each tensor takes, one after the other.
Cost: a sort of each tensor; see `entropy.py`. No palette is looked for where the first numbers show that there is none.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.errors import ArtifactError
from trimtab.graph.entropy import MAX_SYMBOLS, damaged, decode, encode, scaled_counts

MAGIC = b"TRIMTAB\x01"
PROBE = 1 << 16
MOST_ROWS_TRIED = 64
ZLIB_LEVEL = 6
_LENGTH = struct.Struct("<HHQ")
INTEGER = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class Coded:
    """A tensor as bytes, and what is needed beside them to make it again, as JSON."""

    coding: dict[str, Any]
    data: bytes


def code(tensor: Tensor) -> Coded:
    """The shortest form of a tensor.

    >>> weight = torch.randn(90, 90, generator=torch.Generator().manual_seed(0)).sign() / 2
    >>> coded = code(weight)
    >>> coded.coding["form"], len(coded.data) < 90 * 90 / 8 + 20
    ('palette', True)
    >>> torch.equal(decoded(coded, "float32", (90, 90)), weight)
    True
    """
    patterns = _patterns(tensor)
    raw = patterns.tobytes()
    forms = [Coded({"form": "raw"}, raw), Coded({"form": "zlib"}, zlib.compress(raw, ZLIB_LEVEL))]
    if 2 * np.count_nonzero(patterns) < len(patterns):
        forms.append(_sparse(patterns))
    num_rows, reals = len(tensor) if tensor.ndim else 1, tensor.dtype == torch.float32
    palettes = [_palette(patterns, rows, num_rows, reals=reals) for rows in _rows_to_try(tensor)]
    known = [palette for palette in palettes if palette is not None]
    if known:
        forms.append(min(known, key=_Palette.expected_bytes).coded())
    return min(forms, key=lambda form: len(form.data) + len(json.dumps(form.coding)))


def decoded(coded: Coded, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that was coded, bit for bit.

    Raises:
        ArtifactError: the data is damaged.
    """
    kind = getattr(torch, dtype)
    num, width = math.prod(shape), kind.itemsize
    match coded.coding:
        case {"form": "raw"}:
            raw = coded.data
        case {"form": "zlib"}:
            try:
                raw = zlib.decompress(coded.data)
            except zlib.error as error:
                raise damaged() from error
        case {"form": "sparse"}:
            raw = _from_sparse(coded.data, num, INTEGER[width]).tobytes()
        case {"form": "palette", "groups": int(groups), "entries": int(entries), "half": bool(half)}:
            raw = _from_palette(coded.data, num, groups, entries, INTEGER[width], half=half).tobytes()
        case _:
            raise ArtifactError(
                f"The weights are coded as {coded.coding}, which this trimtab does not know. Use the version that "
                "wrote them, or make the file anew."
            )
    if len(raw) != num * width:
        raise damaged()
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    # A copy of its own: where a tensor lies decides its alignment, and that which kernel rounds it.
    return flat.view(kind).reshape(shape).clone()


def tensors_to_coded(tensors: Mapping[str, Tensor]) -> bytes:
    """All tensors as the bytes of one file."""
    coded = {name: code(tensor) for name, tensor in tensors.items()}
    payload = b"".join(one.data for one in coded.values())
    entries = [
        [name, _dtype(tensors[name]), list(tensors[name].shape), len(one.data), one.coding]
        for name, one in coded.items()
    ]
    header = json.dumps({"crc32": zlib.crc32(payload), "tensors": entries}, separators=(",", ":")).encode()
    short = zlib.compress(header, 9)
    return b"".join([MAGIC, struct.pack("<Q", len(short)), short, payload])


def tensors_from_coded(data: bytes) -> dict[str, Tensor]:
    """What `tensors_to_coded` was given, bit for bit.

    Raises:
        ArtifactError: the data is damaged or of another format.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise ArtifactError(
            f"The coded weights begin with {data[:8]!r}; {MAGIC!r} was expected. The file is damaged or was written by "
            "another version: copy it again from its source, or make it anew."
        )
    at = len(MAGIC) + 8
    try:
        end = at + struct.unpack("<Q", data[len(MAGIC) : at])[0]
        header = json.loads(zlib.decompress(data[at:end]))
        payload = data[end:]
        if zlib.crc32(payload) != header["crc32"]:
            raise damaged()
        found, first = {}, 0
        for name, dtype, shape, size, coding in header["tensors"]:
            found[name] = decoded(Coded(coding, payload[first : first + size]), dtype, tuple(shape))
            first += size
    except (struct.error, zlib.error, ValueError, KeyError, AttributeError) as error:
        raise damaged() from error
    return found


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _patterns(tensor: Tensor) -> np.ndarray:
    """The bits of each number as an unsigned integer, flat."""
    flat = tensor.detach().contiguous().reshape(-1)
    width = flat.dtype.itemsize
    return flat.view(torch.uint8).numpy().view(INTEGER.get(width, np.uint8))


def _rows_to_try(tensor: Tensor) -> list[int]:
    """How many rows may have a palette in common: all, or a power of two that divides their number."""
    if tensor.dtype.itemsize not in INTEGER or tensor.numel() < 2:
        return []
    rows = len(tensor) if tensor.ndim else 1
    powers = [1 << k for k in range(MOST_ROWS_TRIED.bit_length()) if 1 << k < rows and rows % (1 << k) == 0]
    return [rows, *powers]


def _sparse(patterns: np.ndarray) -> Coded:
    """Where the numbers are that are not 0, entropy-coded, then those numbers."""
    there = (patterns != 0).astype(np.int64)
    counts = scaled_counts(there, 2)
    where = encode(there, counts)
    return Coded(
        {"form": "sparse"}, b"".join([_LENGTH.pack(*counts, len(where)), where, patterns[there == 1].tobytes()])
    )


def _from_sparse(data: bytes, num: int, kind: Any) -> np.ndarray:
    if len(data) < _LENGTH.size:
        raise damaged()
    *counts, size = _LENGTH.unpack(data[: _LENGTH.size])
    end = _LENGTH.size + size
    there = decode(data[_LENGTH.size : end], np.array(counts, np.uint16), num) == 1
    result = np.zeros(num, kind)
    if len(data) - end != int(there.sum()) * result.itemsize:
        raise damaged()
    result[there] = np.frombuffer(data[end:], kind)
    return result


@dataclass(frozen=True)
class _Palette:
    """Values [groups, entries], for each number the place of its value [N], and how often each place occurs."""

    table: np.ndarray
    half: bool
    symbols: np.ndarray
    counts: np.ndarray

    def expected_bytes(self) -> float:
        shares = np.bincount(self.symbols, minlength=len(self.counts)) / len(self.symbols)
        bits = -float(np.sum(shares * np.log2(self.counts / self.counts.sum(dtype=np.int64))))
        return self.table.nbytes + 2 * len(self.counts) + len(self.symbols) * bits / 8

    def coded(self) -> Coded:
        groups, entries = self.table.shape
        coding = {"form": "palette", "groups": groups, "entries": entries, "half": self.half}
        parts = [self.table.tobytes(), self.counts.astype("<u2").tobytes(), encode(self.symbols, self.counts)]
        return Coded(coding, b"".join(parts))


def _palette(patterns: np.ndarray, rows: int, num_rows: int, *, reals: bool, by_value: bool = True) -> _Palette | None:
    """The values of every `rows` rows; None if they are too many to gain by it."""
    groups = patterns.reshape(num_rows // rows, -1)
    if len(np.unique(groups[0][:PROBE])) > min(MAX_SYMBOLS, groups.shape[1] / 2):
        return None
    # In the order of their values, one table of frequencies fits all palettes: small values are frequent in each.
    by_value = by_value and reals and bool(np.isfinite(groups.view(np.float32)).all())
    ordered = groups.view(np.float32) if by_value else groups
    tables, places = [], []
    for group, order in zip(groups, ordered, strict=True):
        _, first, inverse = np.unique(order, return_index=True, return_inverse=True)
        if not np.array_equal(group[first][inverse], group):  # 0.0 equals -0.0, but their bits differ
            return _palette(patterns, rows, num_rows, reals=reals, by_value=False)
        tables.append(group[first])
        places.append(inverse)
    entries = max(map(len, tables))
    if entries > MAX_SYMBOLS:
        return None
    # Short ones are filled up with their last value.
    table = np.stack([np.pad(values, (0, entries - len(values)), mode="edge") for values in tables])
    symbols = np.concatenate(places)
    short = _as_half(table) if reals else None
    return _Palette(table if short is None else short, short is not None, symbols, scaled_counts(symbols, entries))


def _as_half(table: np.ndarray) -> np.ndarray | None:
    """The values as float16, if that holds them exactly."""
    with np.errstate(over="ignore", invalid="ignore"):
        short = table.view(np.float32).astype(np.float16)
    return short if np.array_equal(short.astype(np.float32).view(np.uint32), table) else None


def _from_palette(data: bytes, num: int, groups: int, entries: int, kind: Any, *, half: bool) -> np.ndarray:
    width = 2 if half else np.dtype(kind).itemsize
    ends = groups * entries * width, groups * entries * width + 2 * entries
    if groups < 1 or num % groups or len(data) < ends[1]:
        raise damaged()
    table = np.frombuffer(data[: ends[0]], np.float16 if half else kind)
    table = (table.astype(np.float32).view(np.uint32) if half else table).reshape(groups, entries)
    counts = np.frombuffer(data[ends[0] : ends[1]], "<u2")
    symbols = decode(data[ends[1] :], counts, num)
    return np.take_along_axis(table, symbols.reshape(groups, -1), 1).ravel()
