"""What the benchmark of optimizers trains: small problems of real data, each with a loss that is to be reached.

The data are in scikit-learn, in Python's own help, and in three Debian packages, fetched once by apt-get into
build/models and checked by SHA-256. R's files are read by rdata (`pip install rdata==1.1.0`), once.
"""

from __future__ import annotations

import gzip
import itertools
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models.fetch import CACHE, Package, fetch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.nn import functional as F

LETTERS = Package(
    "r-cran-mlbench",
    "2.1-3-1",
    "r-cran-mlbench_2.1-3-1_amd64.deb",
    "2f1127f7b5e7d08703b13b52ef1976a0c355a7660d6ac575e29b87b13921bc06",
)
FASHION = Package(
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
)
AUSTEN = Package(
    "r-cran-janeaustenr",
    "1.0.0-1",
    "r-cran-janeaustenr_1.0.0-1_all.deb",
    "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
)
R = "usr/lib/R/site-library"
HELP_BITS, AUSTEN_BITS = 2.3, 2.7
Loss = Callable[[nn.Module, Tensor | slice], Tensor]
Judge = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class Problem:
    """A model from a seed, its loss on some of `num` samples, and the loss on all of them that is to be reached."""

    said: str
    make: Callable[[int], nn.Module]
    loss: Loss
    num: int
    batch: int
    target: float
    most: int
    look: int = 5  # steps between two looks at the whole loss
    one_seed: bool = False  # nothing is drawn
    judge: Judge | None = None  # what is to be reached, where it is not the loss on all samples
    batches: bool = False  # methods on all data are not run: they would take as many gradients of all samples
    early: float = math.inf  # what has to be reached with a quarter of the gradients, or the run counts as a miss


def cancer() -> Problem:
    """Logistic regression with a ridge of 1 / (2 n); its lowest loss is known to ten digits."""
    data = load_breast_cancer()
    x, y = torch.tensor(data.data), torch.tensor(data.target).double()
    x = torch.cat([(x - x.mean(0)) / x.std(0, unbiased=False), torch.ones(len(x), 1)], 1)

    def loss(model: nn.Module, at: Tensor | slice) -> Tensor:
        (w,) = model.parameters()
        return F.binary_cross_entropy_with_logits((x[at] @ w)[:, 0], y[at]) + w.square().sum() / (2 * len(x))

    make = lambda seed: nn.ParameterList([nn.Parameter(torch.zeros(31, 1, dtype=torch.float64))])  # noqa: E731
    said = "breast cancer, logistic regression, all data, to within 1e-6 of the lowest loss"
    return Problem(said, make, loss, len(x), len(x), 0.0663940698 + 1e-6, 400, look=1, one_seed=True)


def digits(*, autoencoder: bool, dtype: torch.dtype = torch.float32) -> Problem:
    """A net of one hidden layer that names digits, or a deep autoencoder of them."""
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=dtype) / 16, torch.tensor(data.target)
    widths = (64, 128, 32, 8, 32, 128, 64) if autoencoder else (64, 128, 10)

    make = _nets(*widths, between=nn.Tanh if autoencoder else nn.ReLU)

    def loss(model: nn.Module, at: Tensor | slice) -> Tensor:
        return F.mse_loss(model(x[at]), x[at]) if autoencoder else F.cross_entropy(model(x[at]), y[at])

    said = "digits, deep autoencoder, to a squared error of 0.016" if autoencoder else "digits, MLP, to a loss of 0.02"
    most = 1500 if autoencoder else 300
    return Problem(f"{said} on the training data", make, loss, len(x), 128, 0.016 if autoencoder else 0.02, most)


def letters() -> Problem:
    """LetterRecognition: an MLP to 95 % of held-out letters; Frey and Slate 1991, from R's mlbench."""
    data = np.load(_kept("letters.npz", _read_letters))
    x, y = torch.tensor(data["x"]).float() / 7.5 - 1, torch.tensor(data["y"]).long()
    num = 16_000
    loss, errors = _classes((x[:num], y[:num]), (x[num:], y[num:]))
    said = "LetterRecognition, MLP of two layers of 128, to 95 % of 4,000 held-out letters"
    make = _nets(16, 128, 128, 26)
    return Problem(said, make, loss, num, 128, 0.05, 2000, look=50, judge=errors, batches=True)


def fashion() -> Problem:
    """Fashion-MNIST, all 60,000 pictures: a small convolutional net to 90 % of the test set."""
    (x, y), (held, named) = fashion_mnist()
    loss, errors = _classes((x, y), (held, named))

    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first, second = nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.Conv2d(16, 64, 3)
            parts = [nn.Unflatten(1, (1, 28, 28)), first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.Flatten()]
            net = nn.Sequential(*parts, nn.Linear(1600, 64), nn.ReLU(), nn.Linear(64, 10))
        return net.to(memory_format=torch.channels_last)  # a third faster on CPU

    said = "Fashion-MNIST, two convolutions and two linear layers, to 90 % of the 10,000 test pictures"
    return Problem(said, make, loss, len(x), 128, 0.1, 3000, look=125, judge=errors, batches=True, early=0.25)


def text() -> Problem:
    """Characters of Python's own help, to fixed bits per character."""
    from pydoc_data.topics import topics

    return _characters("Python's help", "".join(topics[name] for name in sorted(topics)), HELP_BITS)


def austen() -> Problem:
    """Characters of Jane Austen's six novels, from R's janeaustenr, to fixed bits per character."""
    written = _kept("austen.npz", _read_austen)
    return _characters("Jane Austen's novels", np.load(written)["codes"].tobytes().decode("ascii"), AUSTEN_BITS)


def _characters(what: str, written: str, bits: float) -> Problem:
    """Each character after the eight before it, by an MLP (Bengio et al. 2003)."""
    data = np.frombuffer(written.encode("ascii", "ignore"), dtype=np.uint8)
    known, codes = np.unique(data, return_inverse=True)
    rows = torch.tensor(codes).unfold(0, 9, 1)
    num, held = len(rows) * 19 // 20, min(len(rows) // 20, 50_000)

    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            table, first, last = nn.Embedding(len(known), 16), nn.Linear(128, 128), nn.Linear(128, len(known))
        return nn.Sequential(table, nn.Flatten(), first, nn.ReLU(), last)

    def loss(model: nn.Module, at: Tensor | slice) -> Tensor:
        some = rows[:num][at]
        return F.cross_entropy(model(some[:, :8]), some[:, 8])

    def judged(model: nn.Module) -> Tensor:
        some = rows[-held:][::4]
        return F.cross_entropy(model(some[:, :8]), some[:, 8]) / math.log(2)

    said = f"{what}, characters after the eight before, MLP, to {bits} bits a held-out character"
    return Problem(said, make, loss, num, 256, bits, 800, look=25, judge=judged, batches=True)


def _nets(*widths: int, between: type[nn.Module] = nn.ReLU) -> Callable[[int], nn.Module]:
    """Linear layers of these widths, drawn with the seed."""

    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), between())]
        return nn.Sequential(*parts[:-1])

    return make


def _classes(seen: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor]) -> tuple[Loss, Judge]:
    """The cross-entropy of some of the samples that are trained on, and the share of wrong names of those held out."""

    def loss(model: nn.Module, at: Tensor | slice) -> Tensor:
        return F.cross_entropy(model(seen[0][at]), seen[1][at])

    def errors(model: nn.Module) -> Tensor:
        named = torch.cat([model(some).argmax(1) for some in held[0].split(500)])  # so many stay in the cache
        return (named != held[1]).float().mean()

    return loss, errors


def fashion_mnist() -> list[tuple[Tensor, Tensor]]:
    """The whole of it, 60,000 to learn and 10,000 to test: pictures [N, 784] in [0, 1], and classes [N]."""
    folder = fetch(FASHION) / "usr/share/datasets/fashion-mnist"
    return [
        (
            idx(folder / f"{part}-images-idx3-ubyte.gz").reshape(-1, 784).float() / 255,
            idx(folder / f"{part}-labels-idx1-ubyte.gz").long(),
        )
        for part in ("train", "t10k")
    ]


def idx(path: Path) -> Tensor:
    """The bytes of an IDX file, without its head."""
    data = gzip.decompress(path.read_bytes())
    return torch.frombuffer(bytearray(data[4 + 4 * data[3] :]), dtype=torch.uint8)


def _kept(name: str, read: Callable[[], dict[str, Any]]) -> Path:
    """The arrays that `read` gives, in a file beside the packages."""
    place = CACHE / name
    if not place.exists():
        np.savez_compressed(place, **read())
    return place


def _read_letters() -> dict[str, Any]:
    import rdata

    table = rdata.read_rda(fetch(LETTERS) / R / "mlbench/data/LetterRecognition.rda")["LetterRecognition"]
    return {"x": table.iloc[:, 1:].to_numpy().astype("uint8"), "y": table.iloc[:, 0].cat.codes.to_numpy()}


def _read_austen() -> dict[str, Any]:
    """R keeps them in a lazy-load database: an index of offsets, and of each a length and compressed bytes."""
    import rdata

    folder = fetch(AUSTEN) / R / "janeaustenr/data"
    as_r = lambda data: rdata.conversion.convert(rdata.parser.parse_data(data))  # noqa: E731
    index = as_r((folder / "Rdata.rdx").read_bytes())["variables"]
    database = (folder / "Rdata.rdb").read_bytes()
    written = []
    for _, (at, length) in sorted(index.items()):
        book = zlib.decompress(database[at + 4 : at + length])
        if struct.unpack(">I", database[at : at + 4])[0] != len(book):
            raise ValueError(f"{folder / 'Rdata.rdb'} is not a database of R as it was in 2026.")
        written.append("\n".join(as_r(book)))
    return {"codes": np.frombuffer("\n".join(written).encode("ascii", "ignore"), dtype=np.uint8)}


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "cancer": cancer,
    "digits": lambda: digits(autoencoder=False),
    "autoencoder": lambda: digits(autoencoder=True),
    "letters": letters,
    "fashion": fashion,
    "text": text,
    "austen": austen,
}
