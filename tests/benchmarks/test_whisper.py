"""Whisper: its file is read as it is written, both halves have its names and are captured, sentences are understood."""

from __future__ import annotations

import doctest
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from models import ctranslate, sequences, whisper

from trimtab.graph.capture import capture


def name(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def written(path: Path, *, version: int = 6, kind: int = 4) -> Path:
    """A file of one variable [2, 3] in fp16."""
    numbers = np.arange(6, dtype="<f2").tobytes()
    shape = struct.pack("<BII", 2, 2, 3) + struct.pack("<BI", kind, len(numbers))
    head = struct.pack("<I", version) + name("WhisperSpec") + struct.pack("<II", 3, 1)
    path.write_bytes(head + name("encoder/conv1/weight") + shape + numbers + struct.pack("<I", 0))
    return path


def test_a_file_of_weights_is_read(tmp_path: Path) -> None:
    found = ctranslate.read_weights(written(tmp_path / "model.bin"))
    assert list(found) == ["encoder/conv1/weight"]
    assert torch.equal(found["encoder/conv1/weight"], torch.arange(6.0).view(2, 3))


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ctranslate.FormatError, match=r"is of version 5 of CTranslate2's format; 6 was expected"):
        ctranslate.read_weights(written(tmp_path / "old.bin", version=5))
    with pytest.raises(ctranslate.FormatError, match=r"encoder/conv1/weight in .* is of kind 9; known are 0, 1"):
        ctranslate.read_weights(written(tmp_path / "odd.bin", kind=9))


def test_both_halves_have_the_names_and_sizes_of_the_file() -> None:
    with torch.device("meta"):
        halves = whisper.Encoder(), whisper.Decoder()
    encoder, decoder = (half.state_dict() for half in halves)
    assert sum(p.numel() for half in halves for p in half.parameters()) == 37_764_864
    assert encoder["layer.3.self_attention.linear_0.weight"].shape == (1152, 384)
    assert decoder["layer.0.attention.linear_1.bias"].shape == (768,)
    assert "layer.0.attention.linear_2.weight" in decoder
    assert "layer.0.self_attention.linear_2.weight" not in decoder


def test_both_halves_are_captured_and_do_not_look_ahead() -> None:
    torch.manual_seed(0)
    encoder = whisper.Encoder(8, 2, 1, length=6).eval()
    decoder = whisper.Decoder(8, 2, 1, vocabulary=20).eval()
    mel, tokens = torch.randn(2, 80, 12), torch.randint(20, (2, 5))
    states = encoder(mel)
    assert states.shape == (2, 6, 8)
    torch.testing.assert_close(capture(encoder, (mel,))(mel), states)
    logits = decoder(tokens, states)
    torch.testing.assert_close(capture(decoder, (tokens, states.detach()))(tokens, states), logits)
    changed = tokens.clone()
    changed[:, 3:] = 7
    torch.testing.assert_close(decoder(changed, states)[:, :3], logits[:, :3])


def test_a_tone_is_loud_in_its_band_alone() -> None:
    bands = whisper.mel_bands()
    assert bands.shape == (80, 201)
    assert (bands >= 0).all()
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    mel = whisper.log_mel(tone)
    assert mel.shape == (80, 3000)
    # 1 kHz is the 25th bin of 40 Hz.
    assert int(mel[:, 50].argmax()) == int(bands[:, 25].argmax())
    assert torch.equal(mel[:, 200:], mel.min().expand(80, 2800))


def test_words_are_compared_without_marks() -> None:
    assert whisper.plain_words("It's Mrs. Dash-wood!") == ["it's", "missus", "dash", "wood"]
    assert sorted(whisper.letters().values()) == list(range(256))


def test_examples_in_docstrings() -> None:
    for module in (ctranslate, sequences, whisper):
        assert doctest.testmod(module).failed == 0


@pytest.mark.slow
def test_whisper_writes_down_a_sentence() -> None:
    whole = whisper.trained()
    mels, wanted = whisper.spoken(num=1)
    assert [len(words) for words in wanted] == [8]
    tokens = whole.written(whole.encoder, whole.decoder, mels)
    assert whole.text(tokens[0]) == " He might even have been made amiable himself."
    assert whisper.word_error_rate(whole, tokens, wanted) == 0


@pytest.mark.slow
@pytest.mark.parametrize("load", [whisper.whisper_encoder, whisper.whisper_decoder])
def test_a_half_is_judged_beside_the_original_other_half(load) -> None:
    loaded = load(num_judged=1, num_calibration=1)
    assert loaded.quality(loaded.module) == pytest.approx({"words": 1.0, "agreement": 1.0})
    outputs = loaded.module(*(x[:1] for x in loaded.task.train.inputs))
    assert 0 < float(loaded.task.loss(outputs, loaded.task.train.targets[:1]).detach()) < 10
