"""Rebuild trimtab/tasks/fashion_mnist.npz, byte for byte, from Debian's `dataset-fashion-mnist`.

    python scripts/make_fashion_data.py            # fetches the package with apt-get, unpacks it in a scratch folder
    python scripts/make_fashion_data.py FOLDER     # uses the *.gz files below FOLDER

10,000 `train` images come from the official training set; 2,000 `select` and 4,000 `verify` images from the official
test set. Each class has equally many. No image occurs twice, in one split or in two.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

SEED = b"trimtab 1"
PER_CLASS = {"train": 1000, "select": 200, "verify": 400}
OFFICIAL = {"train": "train", "select": "t10k", "verify": "t10k"}
TARGET = Path(__file__).parents[1] / "trimtab" / "tasks" / "fashion_mnist.npz"


def read_idx(folder: Path, name: str) -> np.ndarray:
    """The uint8 array of an idx file (magic 0x0000 08 ndim, big-endian sizes, data) somewhere below `folder`."""
    path = next(folder.rglob(f"{name}.gz"), None)
    if path is None:
        sys.exit(f"There is no {name}.gz below {folder}: give the folder that dataset-fashion-mnist was unpacked in.")
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def choose(images: np.ndarray, labels: np.ndarray, taken: set[bytes], per_class: int) -> np.ndarray:
    """Indices of `per_class` images of each class, none in `taken`, to which they are added.

    The order of seeded hashes is as good as a shuffle, and is the same in every version of every library.
    """
    keys = {hashlib.sha256(SEED + image.tobytes()).digest(): index for index, image in enumerate(images)}
    room = dict.fromkeys(range(10), per_class)
    chosen = []
    for key in sorted(keys.keys() - taken):
        label = int(labels[keys[key]])
        if room[label]:
            room[label] -= 1
            taken.add(key)
            chosen.append(keys[key])
    assert not any(room.values()), f"too few images: {room}"
    return np.array(chosen)


def subset(folder: Path) -> dict[str, np.ndarray]:
    """The arrays that ship: images [N, 28, 28] and labels [N] of each split, uint8."""
    taken: set[bytes] = set()
    arrays = {}
    for split, per_class in PER_CLASS.items():
        images = read_idx(folder, f"{OFFICIAL[split]}-images-idx3-ubyte")
        labels = read_idx(folder, f"{OFFICIAL[split]}-labels-idx1-ubyte")
        index = choose(images, labels, taken, per_class)
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[index], labels[index]
    return arrays


def pack(arrays: dict[str, np.ndarray]) -> bytes:
    """An npz of fixed time stamps; bzip2, because deflate's bytes differ between zlib and zlib-ng."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            file.writestr(info, member.getvalue(), zipfile.ZIP_BZIP2, 9)
    return buffer.getvalue()


def fetch(scratch: Path) -> Path:
    """Download Debian's package and unpack it in `scratch`."""
    subprocess.run(["apt-get", "download", "dataset-fashion-mnist"], cwd=scratch, check=True)
    package = next(scratch.glob("*.deb"))
    subprocess.run(["dpkg-deb", "-x", package.name, "."], cwd=scratch, check=True)
    return scratch


def main(arguments: list[str]) -> None:
    """Write the file and print its hash."""
    with tempfile.TemporaryDirectory() as scratch:
        data = pack(subset(Path(arguments[0]) if arguments else fetch(Path(scratch))))
    TARGET.write_bytes(data)
    print(f"{TARGET}: {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main(sys.argv[1:])
