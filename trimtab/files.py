"""Files that are whole or absent: atomic writes, hashes, and a lock that a dead process does not keep."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import ArtifactError, RunError

LOCK_FILE = "lock"


def sha256(path: Path) -> str:
    """The file's SHA-256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes, *, versions: int = 1) -> None:
    """Write `data` so that `path` holds either all of it or what it held before.

    Args:
        path: of the file.
        data: all of it.
        versions: how many to keep; those before this one stay as `older(path, 1)`, `older(path, 2)`, ... If the
            process is killed between two renames, the newest may be `older(path, 1)`.

    Raises:
        RunError: the disk is full or the folder cannot be written; nothing half-written is left.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        for age in range(versions - 1, 0, -1):
            if older(path, age - 1).exists():
                older(path, age - 1).replace(older(path, age))
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:  # also where Ctrl-C came in between
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def older(path: Path, age: int) -> Path:
    """Where the version of `path` is that was written `age` versions before the newest; 0 is `path` itself."""
    return path.with_name(f"{path.name}.{age}") if age else path


def cannot_write(path: Path, error: OSError) -> RunError:
    """The error to raise where the system refused to write `path`."""
    return RunError(
        f"Cannot write {path}: {error.strerror or error}. Nothing half-written was left there. "
        "Free some space or choose a folder you can write to (--run FOLDER in a command), then do the same again."
    )


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON that a person can read, atomically."""
    write_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one array as .npy, atomically."""
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    write_atomic(path, data.getvalue())


def read_array(path: Path) -> np.ndarray:
    """The array in a .npy file.

    Raises:
        ArtifactError: there is no such file, or it holds no plain array.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(
            f"Cannot read an array from {path}: {error}. Write one with numpy.save(path, array)."
        ) from error
    if not isinstance(array, np.ndarray):
        raise ArtifactError(f"{path} holds several arrays (.npz); give one .npy file for each of the model's inputs.")
    return array


@contextlib.contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """Yield a scratch folder that becomes `path` if the block ends well, and vanishes if it does not."""
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        scratch.mkdir(parents=True)
        yield scratch
        for file in scratch.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            shutil.rmtree(path)
        scratch.rename(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sweep_parts(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder`."""
    for part in folder.rglob(".*.part"):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone; the system frees the lock when the process dies.

    Raises:
        RunError: another living process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a+")
    except OSError as error:
        raise cannot_write(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RunError(
                f"Another run (process {file.read().strip() or 'unknown'}) is using {folder}. "
                "Wait for it to end, or choose another folder with --run FOLDER."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
