"""The size of what ships, on disk."""

from __future__ import annotations

from pathlib import Path


def size_bytes(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size
