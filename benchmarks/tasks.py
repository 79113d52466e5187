"""The real models as tasks: `trimtab optimize benchmarks/tasks.py:mobilenet_v2`, or doctor, or prune.

Each function fetches what it needs (`models/`), and gives the trained model and a task whose targets are the model's
own answers, so that what is kept is the agreement with the original.
"""

from __future__ import annotations

from collections.abc import Callable

from models.crnn import crnn
from models.efficientnet import efficientnet
from models.loaded import Loaded
from models.minilm import minilm
from models.mobilenet import mobilenet
from models.silero import silero
from models.whisper import whisper_decoder, whisper_encoder
from torch import nn

from trimtab.core import Task

LOADERS: dict[str, Callable[[], Loaded]] = {
    "mobilenet_v2": mobilenet,
    "efficientnet_lite0": efficientnet,
    "ocr_crnn": crnn,
    "minilm_l6": minilm,
    "whisper_tiny_encoder": whisper_encoder,
    "whisper_tiny_decoder": whisper_decoder,
    "silero_vad": silero,
}


def mobilenet_v2() -> tuple[nn.Module, Task]:
    """Images [B, 3, 224, 224] -> logits [B, 1000]."""
    return _given("mobilenet_v2")


def efficientnet_lite0() -> tuple[nn.Module, Task]:
    """Images [B, 3, 224, 224] -> logits [B, 1000]."""
    return _given("efficientnet_lite0")


def ocr_crnn() -> tuple[nn.Module, Task]:
    """Pictures of lines -> logits of letters [B, T, K]."""
    return _given("ocr_crnn")


def minilm_l6() -> tuple[nn.Module, Task]:
    """Tokens and their mask [B, T] -> embeddings [B, 384]."""
    return _given("minilm_l6")


def whisper_tiny_encoder() -> tuple[nn.Module, Task]:
    """Mel spectrograms -> states [B, T, 384]."""
    return _given("whisper_tiny_encoder")


def whisper_tiny_decoder() -> tuple[nn.Module, Task]:
    """Tokens and states -> logits of the next tokens [B, T, V]."""
    return _given("whisper_tiny_decoder")


def silero_vad() -> tuple[nn.Module, Task]:
    """Frames of sound -> logits of speech [B, T]."""
    return _given("silero_vad")


def _given(name: str) -> tuple[nn.Module, Task]:
    loaded = LOADERS[name]()
    return loaded.module, loaded.task
