"""An entropy coder for symbols that occur unequally often: range asymmetric numeral systems (rANS), in NumPy.

Duda, "Asymmetric numeral systems" (2013); many interleaved coders as in Giesen, "Interleaved entropy coders" (2014).
A symbol of probability p costs log2(1 / p) bits, whatever p is, where a Huffman code (Han et al. 2016) pays a whole
bit at least: for weights of which 90 % are zero that is half of the file. Differs: the coders are as many as there are
8,192 symbols, each step of all of them is one NumPy operation; probabilities are counts, scaled to 2^14 in all.
Cost: some 15 million symbols a second with 1,024 coders, a tenth of a second at worst where there is one; 4 bytes each.
"""

from __future__ import annotations

import numpy as np

from trimtab.errors import ArtifactError

SCALE_BITS = 14
MAX_SYMBOLS = 1 << 12
SYMBOLS_PER_LANE, MAX_LANES = 8192, 1024
LOW = 1 << 16  # a state lies in [2^16, 2^32); it moves by words of 16 bits


def scaled_counts(symbols: np.ndarray, num_symbols: int) -> np.ndarray:
    """How often each symbol occurs, uint16 [num_symbols], as shares of 2^14; at least 1 for each.

    >>> scaled_counts(np.array([0, 0, 0, 2]), 3).tolist()
    [12287, 1, 4096]
    """
    counts = np.bincount(symbols, minlength=num_symbols)
    total = 1 << SCALE_BITS
    scaled = np.maximum(1, np.floor(counts * (total / max(1, counts.sum())))).astype(np.int64)
    # What rounding took or gave too much goes to or comes from the most frequent, which feel it least.
    for place in np.argsort(-counts, kind="stable"):
        change = total - int(scaled.sum())
        scaled[place] = max(1, int(scaled[place]) + change)
    return scaled.astype(np.uint16)


def encode(symbols: np.ndarray, counts: np.ndarray) -> bytes:
    """The bytes from which `decode` makes the symbols again.

    Args:
        symbols: integers from 0 to K - 1, [N].
        counts: as `scaled_counts` gives them, [K].

    >>> counts = scaled_counts(np.array([0, 0, 1]), 2)
    >>> decode(encode(np.array([0, 0, 1]), counts), counts, 3).tolist()
    [0, 0, 1]
    """
    num, lanes = len(symbols), _num_lanes(len(symbols))
    freq, start = counts.astype(np.uint64), _starts(counts)
    states = np.full(lanes, LOW, np.uint64)
    words: list[np.ndarray] = []
    for first in range((num - 1) // lanes * lanes, -1, -lanes):
        now = symbols[first : first + lanes]
        f, x = freq[now], states[: len(now)]
        full = x >= f << np.uint64(32 - SCALE_BITS)
        words.append((x[full] & np.uint64(0xFFFF)).astype("<u2"))
        x = np.where(full, x >> np.uint64(16), x)
        states[: len(now)] = (x // f << np.uint64(SCALE_BITS)) + x % f + start[now]
    return b"".join([states.astype("<u4").tobytes(), *(some.tobytes() for some in reversed(words))])


def decode(data: bytes, counts: np.ndarray, num: int) -> np.ndarray:
    """The N symbols that were encoded, int64 [N].

    Raises:
        ArtifactError: the data is not what `encode` made of `num` symbols with these counts.
    """
    lanes = _num_lanes(num)
    freq, start = counts.astype(np.uint64), _starts(counts)
    if int(freq.sum()) != 1 << SCALE_BITS or len(data) < 4 * lanes or len(data) % 2:
        raise damaged()
    symbol_at = np.repeat(np.arange(len(counts)), counts)
    states = np.frombuffer(data, "<u4", lanes).astype(np.uint64)
    words, at = np.frombuffer(data, "<u2", offset=4 * lanes).astype(np.uint64), 0
    found = np.empty(num, np.int64)
    for first in range(0, num, lanes):
        x = states[: min(lanes, num - first)]
        low = x & np.uint64((1 << SCALE_BITS) - 1)
        now = found[first : first + lanes] = symbol_at[low.astype(np.int64)]
        x = freq[now] * (x >> np.uint64(SCALE_BITS)) + low - start[now]
        empty = (x < LOW).nonzero()[0]
        if at + len(empty) > len(words):
            raise damaged()
        x[empty] = x[empty] << np.uint64(16) | words[at : at + len(empty)]
        at += len(empty)
        states[: len(x)] = x
    if at != len(words) or (states != LOW).any():
        raise damaged()
    return found


def damaged() -> ArtifactError:
    """The error for coded data that cannot be right."""
    return ArtifactError("The coded weights are damaged: they do not decode. Copy the file again from its source.")


def _num_lanes(num: int) -> int:
    return min(MAX_LANES, max(1, num // SYMBOLS_PER_LANE))


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts.astype(np.uint64))[:-1]]).astype(np.uint64)
