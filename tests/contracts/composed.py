"""The four networks on which methods follow one another, and a task for each: small, of the kinds that ship."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from models.decoder import Decoder
from models.minilm import Layer
from torch import Tensor, nn
from torch.nn import functional as F

from trimtab.core import Fit, Metric, Task

FIT = Fit(epochs=1, batch_size=16, precision="fp32")
NUM, CLASSES, TOKENS, LETTERS = 32, 5, 12, 3


class Residual(nn.Module):
    """Two convolutions with BatchNorm beside a shortcut: [B, C, H, W] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class CNN(nn.Module):
    """[B, 3, 8, 8] -> [B, 5]: a stem, three blocks of one shape, global pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Residual(16), Residual(16), Residual(16))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Encoder(nn.Module):
    """Tokens [B, 8] and a mask [B, 8] -> [B, 5]: BERT's layers, each as MiniLM has it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 32)
        self.layers = nn.ModuleList(Layer(32, 48, 4, 1e-12) for _ in range(3))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, mask.bool())
        return self.head((x * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))


class Reader(nn.Module):
    """Lines [B, 1, 8, 32] -> logits [B, 8, 5]: convolutions, two bidirectional LSTMs beside shortcuts, for CTC."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.lstms = nn.ModuleList(nn.LSTM(16, 8, bidirectional=True, batch_first=True) for _ in range(2))
        self.mix = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).mean(2).mT
        for lstm, mix in zip(self.lstms, self.mix, strict=True):
            x = x + mix(lstm(x)[0])
        return self.head(x)


def decoder() -> nn.Module:
    """Tokens [B, 8] -> logits [B, 8, 12]: rotary positions, grouped queries, gated feed-forward, tied head."""
    return Decoder(hidden=32, layers=3, heads=4, key_heads=2, wide=48, vocabulary=TOKENS, length=8)


def ctc(outputs: Tensor, targets: Tensor) -> Tensor:
    """CTC of logits [B, T, K] and letters [B, L], of which 0 is the blank."""
    num, frames, _ = outputs.shape
    lengths = torch.full((num,), frames), torch.full((num,), targets.shape[1])
    return F.ctc_loss(outputs.log_softmax(2).transpose(0, 1), targets, *lengths, zero_infinity=True)


def next_token(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.transpose(1, 2), targets)


def first_alike(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of places whose likeliest class is the target: [B]."""
    num = targets.shape[1]
    return (outputs.argmax(2)[:, :num] == targets).float().mean(1)


@dataclass(frozen=True)
class Kind:
    """A network, what it takes, and what its answers are held against."""

    module: nn.Module
    task: Task
    example: tuple[Tensor, ...]


NAMES = ("cnn", "encoder", "reader", "decoder")


def kind(name: str) -> Kind:
    """A seeded network in eval mode, with BatchNorm statistics that are not trivial."""
    torch.manual_seed(0)
    module = {"cnn": CNN, "encoder": Encoder, "reader": Reader, "decoder": decoder}[name]()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    num = 3 * NUM
    tokens = torch.randint(1, TOKENS, (num, 8))
    mask = torch.ones(num, 8, dtype=torch.int64)
    mask[: num // 2, 6:] = 0
    classes = torch.randint(0, CLASSES, (num,))
    inputs: tuple[Tensor, ...]
    loss: Callable[[Tensor, Tensor], Tensor] | None
    inputs, targets, loss = {
        "cnn": ((torch.randn(num, 3, 8, 8),), classes, None),
        "encoder": ((tokens, mask), classes, None),
        "reader": ((torch.randn(num, 1, 8, 32),), torch.randint(1, CLASSES, (num, LETTERS)), ctc),
        "decoder": ((tokens,), tokens.roll(-1, 1), next_token),
    }[name]
    splits = [
        (tuple(x[part] for x in inputs), targets[part])
        for part in (slice(0, NUM), slice(NUM, 2 * NUM), slice(2 * NUM, None))
    ]
    own = {} if loss is None else {"loss": loss, "metric": Metric("places", first_alike)}
    task = Task.of(name, train=splits[0], select=splits[1], verify=splits[2], fit=FIT, **own)
    return Kind(module.eval(), task, tuple(x[:4] for x in inputs))
