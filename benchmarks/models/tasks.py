"""Each real model as a task by name: `PYTHONPATH=benchmarks trimtab optimize models.tasks:mobilenet`.

Nothing is trained: the models come with their weights, and what they must keep is what the original answers.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from models.crnn import crnn as load_crnn
from models.efficientnet import efficientnet as load_efficientnet
from models.loaded import Loaded
from models.minilm import minilm as load_minilm
from models.mobilenet import mobilenet as load_mobilenet
from models.silero import silero as load_silero
from models.whisper import whisper_decoder as load_whisper_decoder
from models.whisper import whisper_encoder as load_whisper_encoder
from trimtab.core import Task

LOADERS: dict[str, Callable[[], Loaded]] = {
    "mobilenet": load_mobilenet,
    "efficientnet": load_efficientnet,
    "crnn": load_crnn,
    "minilm": load_minilm,
    "whisper_encoder": load_whisper_encoder,
    "whisper_decoder": load_whisper_decoder,
    "silero": load_silero,
}


def mobilenet() -> tuple[nn.Module, Task]:
    """MobileNetV2, judged by how often it answers as the original does."""
    return _task("mobilenet")


def efficientnet() -> tuple[nn.Module, Task]:
    """EfficientNet-Lite0, judged like MobileNetV2."""
    return _task("efficientnet")


def crnn() -> tuple[nn.Module, Task]:
    """The reader of text lines, judged by the frames that it reads as the original does."""
    return _task("crnn")


def minilm() -> tuple[nn.Module, Task]:
    """MiniLM, judged by the cosine with the original's embeddings."""
    return _task("minilm")


def whisper_encoder() -> tuple[nn.Module, Task]:
    """Whisper's encoder, judged by the cosine with the original's states."""
    return _task("whisper_encoder")


def whisper_decoder() -> tuple[nn.Module, Task]:
    """A step of Whisper's decoder, judged by the tokens that it tells as the original does."""
    return _task("whisper_decoder")


def silero() -> tuple[nn.Module, Task]:
    """Silero VAD, judged by how near its probabilities are to the original's."""
    return _task("silero")


def _task(name: str) -> tuple[nn.Module, Task]:
    loaded = LOADERS[name]()
    return loaded.module, loaded.task
