"""Silero VAD, which hears whether somebody speaks: spectrum, four convolutions, an LSTM; judged on prompts in noise.

The module hears a window of frames and starts from a silent state; modules are named as in the weight file but for the
cell, which runs as an LSTM over the window. The task needs no label: the target is the original's own probability.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.fetch import CACHE, Package, fetch, pinned
from models.loaded import Loaded
from trimtab.core import Metric, Task
from trimtab.train.loop import predict

WEIGHTS = Package(
    "silero-vad",
    "6.2.3",
    "silero_vad-6.2.3-py3-none-any.whl",
    "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
)
FILE = "silero_vad/data/silero_vad_16k.safetensors"
FILE_SHA256 = "c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1"
PROMPTS = Package(
    "asterisk-core-sounds-en-wav",
    "1.6.1-1",
    "asterisk-core-sounds-en-wav_1.6.1-1_all.deb",
    "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
)
PROMPT_FOLDER = "usr/share/asterisk/sounds/en_US_f_Allison"
RATE, CONTEXT, FRAME, NUM_FRAMES = 16_000, 64, 512, 96
STFT, HOP, BINS, PAD = 256, 128, 129, 64
# A frame is speech within 40 dB of the prompt's loudest, silence below 60 dB; between them it is not judged.
SPEECH_DB, SILENCE_DB = -40.0, -60.0
NUM_CALIBRATION, NUM_SELECT, NUM_JUDGED, BATCH = 64, 16, 100, 50


class SileroVAD(nn.Module):
    """Frames with the 64 samples before each, [B, F, 576] at 16 kHz -> logits [B, F] that somebody speaks."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * BINS, STFT, stride=HOP, bias=False)
        self.conv1, self.conv2 = nn.Conv1d(BINS, 128, 3, padding=1), nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3, self.conv4 = nn.Conv1d(64, 64, 3, stride=2, padding=1), nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        num = x.shape[1]
        spectrum = self.stft_conv(F.pad(x.flatten(0, 1)[:, None], (0, PAD), mode="reflect"))
        real, imaginary = spectrum[:, :BINS], spectrum[:, BINS:]
        y = (real.square() + imaginary.square()).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            y = F.relu(layer(y))
        y, _ = self.lstm(y.flatten(1).unflatten(0, (-1, num)))
        return self.final_conv(F.relu(y).mT)[:, 0]


def silero(cache: Path = CACHE, *, num_judged: int = NUM_JUDGED) -> Loaded:
    """The model, its task and its quality: the frames' AUC, and how near its probabilities are to the original's.

    Args:
        cache: where the packages are fetched to.
        num_judged: how many windows of 3 seconds, at most 100.

    Raises:
        FetchError: weights or prompts cannot be had, or are not those that were pinned.
    """
    module = trained(cache)
    frames, speech = windows(num_judged + NUM_CALIBRATION + NUM_SELECT, cache)
    cuts = (num_judged, NUM_CALIBRATION, NUM_SELECT)
    judged, learns, selects = frames.split(cuts)
    answers = [predict(module, x, batch_size=BATCH).sigmoid() for x in (judged, learns, selects)]
    task = Task.of(
        "hear as the original Silero VAD",
        train=(learns, answers[1]),
        select=(selects, answers[2]),
        verify=(judged, answers[0]),
        loss=F.binary_cross_entropy_with_logits,
        metric=Metric("frames", frames_alike, limits=(0.0, 1.0)),
    )

    def quality(model: nn.Module) -> dict[str, float]:
        outputs = predict(model, judged, batch_size=BATCH)
        known = speech[:num_judged] >= 0
        found = auc(outputs[known], speech[:num_judged][known] == 1)
        return {"AUC": found, "agreement": float(frames_alike(outputs, answers[0]).mean())}

    words = f"{num_judged} windows of {NUM_FRAMES} frames with spoken prompts in noise"
    return Loaded("Silero VAD", module, task, quality, words)


def trained(cache: Path = CACHE) -> SileroVAD:
    """The network with its weights, in eval mode."""
    weights = load_file(pinned(fetch(WEIGHTS, cache) / FILE, FILE_SHA256))
    module = SileroVAD()
    module.load_state_dict({renamed(name): tensor for name, tensor in weights.items()})
    return module.eval()


def renamed(name: str) -> str:
    """A name of the file as one of the module.

    >>> renamed("lstm_cell.weight_ih"), renamed("conv1.bias")
    ('lstm.weight_ih_l0', 'conv1.bias')
    """
    return f"lstm.{name.removeprefix('lstm_cell.')}_l0" if name.startswith("lstm_cell.") else name


def windows(num: int, cache: Path = CACHE) -> tuple[Tensor, Tensor]:
    """Frames [N, 96, 576], and for each 1 for speech, 0 for none, -1 for neither: [N, 96].

    A prompt stands at a random place of a window of 3 seconds; noise, white or falling with frequency, lies 5 to 25 dB
    under it.
    """
    folder = fetch(PROMPTS, cache) / PROMPT_FOLDER
    length = NUM_FRAMES * FRAME
    # 44 bytes of header; from three quarters of a second on, so that a window holds speech, to what leaves it silence
    fits = [path for path in sorted(folder.glob("*.wav")) if 0.75 < (path.stat().st_size - 44) / RATE < 2.2]
    sounds, labels = [], []
    for at in range(num):
        rng = np.random.default_rng(at)
        prompt = heard(fits[at * len(fits) // num])
        sound = np.zeros(length, np.float32)
        start = int(rng.integers(0, length - len(prompt)))
        sound[start : start + len(prompt)] = prompt
        power = sound.reshape(NUM_FRAMES, FRAME)
        loud = 10 * np.log10(np.square(power).mean(1) + 1e-12)
        loud -= loud.max()
        labels.append(np.where(loud > SPEECH_DB, 1, np.where(loud < SILENCE_DB, 0, -1)))
        noise = rng.normal(size=length)
        if rng.random() < 0.5:
            spectrum = np.fft.rfft(noise) / np.sqrt(np.arange(1, length // 2 + 2))
            noise = np.fft.irfft(spectrum, length)
        ratio = 10 ** (-rng.uniform(5, 25) / 20) * prompt.std() / noise.std()
        sounds.append(sound + (ratio * noise).astype(np.float32))
    return framed(torch.from_numpy(np.stack(sounds))), torch.from_numpy(np.stack(labels))


def framed(sound: Tensor) -> Tensor:
    """Samples [N, F * 512] -> frames with what was before each, [N, F, 576]."""
    return F.pad(sound, (CONTEXT, 0)).unfold(1, CONTEXT + FRAME, FRAME)


def heard(path: Path) -> np.ndarray:
    """The samples of a 16-bit mono file at 16 kHz, or at 8 kHz with zeros above 4 kHz; float32 within -1 to 1."""
    with wave.open(str(path)) as file:
        rate, data = file.getframerate(), file.readframes(file.getnframes())
    sound = np.frombuffer(data, "<i2").astype(np.float32) / 32768
    if rate == RATE:
        return sound
    return (np.fft.irfft(np.fft.rfft(sound), 2 * len(sound)) * 2).astype(np.float32)


def frames_alike(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 less the mean distance of a window's probabilities: logits and probabilities [N, F] -> [N]."""
    return 1 - (outputs.sigmoid() - targets).abs().mean(1)


def auc(scores: Tensor, positive: Tensor) -> float:
    """The chance that a positive scores above a negative; ties count half.

    >>> auc(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([False, False, True, True]))
    0.75
    """
    ordered = scores[~positive].double().sort().values
    above, up_to = (torch.searchsorted(ordered, scores[positive].double(), right=right) for right in (False, True))
    return float((above + up_to).double().mean() / (2 * len(ordered)))
