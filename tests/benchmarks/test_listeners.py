"""Loaders of what reads lines and hears speech: names and sizes of their files, data as they say, figures in reach."""

from __future__ import annotations

import doctest
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from models import crnn, silero
from torch import nn

from trimtab.graph.capture import capture


def test_crnn_has_the_names_and_size_of_its_file() -> None:
    with torch.device("meta"):
        net = crnn.CRNN()
    names = net.state_dict()
    assert sum(p.numel() for p in net.parameters()) == 3_781_345
    assert names["FeatureExtraction.ConvNet.18.weight"].shape == (256, 256, 2, 2)
    assert names["FeatureExtraction.ConvNet.15.running_var"].shape == (256,)
    assert names["SequenceModeling.1.rnn.weight_hh_l0_reverse"].shape == (1024, 256)
    assert names["Prediction.weight"].shape == (97, 256)
    assert len(crnn.LETTERS) == len(set(crnn.LETTERS)) == 96


def test_crnn_is_captured() -> None:
    torch.manual_seed(0)
    net, x = crnn.CRNN(hidden=16, num_classes=7).eval(), torch.randn(2, 1, 64, 40)
    assert net(x).shape == (2, 9, 7)
    torch.testing.assert_close(capture(net, (x,))(x), net(x))


def test_readings_drop_repeats_and_blanks() -> None:
    classes = [0, 11, 11, 0, 11, 45, 45, 0]
    logits = nn.functional.one_hot(torch.tensor([classes]), 97).float()
    assert crnn.decoded(logits) == [crnn.LETTERS[10] * 2 + crnn.LETTERS[44]]
    assert crnn.frames_alike(logits, torch.tensor([classes])) == 1
    assert crnn.frame_loss(20 * logits, torch.tensor([classes])) < 1e-5
    assert crnn.error_rate(["", "ab"], ["xy", "ab"]) == 0.5


def test_texts_have_known_letters_alone_and_a_fixed_order() -> None:
    lines = crnn.texts(50)
    assert lines == crnn.texts(50)
    assert len(set(lines)) == 50
    assert all(crnn.LONGEST // 2 < len(line) <= crnn.LONGEST and set(line) <= set(crnn.LETTERS) for line in lines)


def test_silero_has_the_names_and_size_of_its_file_and_is_captured() -> None:
    torch.manual_seed(0)
    net, x = silero.SileroVAD().eval(), torch.randn(2, 3, 576)
    assert sum(p.numel() for p in net.parameters()) == 309_633
    assert {"stft_conv.weight", "conv4.bias", silero.renamed("lstm_cell.bias_hh")} < net.state_dict().keys()
    torch.testing.assert_close(capture(net, (x,))(x), net(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net(x)[:, :2], net(x[:, :2]))


def test_a_frame_begins_with_the_end_of_the_one_before() -> None:
    sound = torch.arange(3 * 512.0)[None]
    frames = silero.framed(sound)
    assert frames.shape == (1, 3, 576)
    assert torch.equal(frames[0, 0, :64], torch.zeros(64))
    assert torch.equal(frames[0, 2], torch.arange(1024.0 - 64, 1536.0))


def test_sound_at_half_the_rate_is_heard_at_the_full_one(tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 50 * np.arange(800) / 8000)
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes((tone * 16000).astype("<i2").tobytes())
    sound = silero.heard(tmp_path / "tone.wav")
    wanted = np.sin(2 * np.pi * 50 * np.arange(1600) / 16000) * 16000 / 32768
    np.testing.assert_allclose(sound, wanted, atol=1e-3)


def test_auc_counts_pairs() -> None:
    scores, positive = torch.tensor([0.0, 1.0, 1.0, 2.0]), torch.tensor([False, True, False, True])
    pairs = [(p, n) for p in scores[positive] for n in scores[~positive]]
    wanted = sum(1.0 if p > n else 0.5 * float(p == n) for p, n in pairs) / len(pairs)
    assert silero.auc(scores, positive) == wanted


@pytest.mark.slow
def test_silero_tells_speech_from_noise() -> None:
    loaded = silero.silero(num_judged=30)
    figures = loaded.quality(loaded.module)
    assert figures["AUC"] > 0.97
    assert figures["agreement"] == 1


@pytest.mark.slow
def test_the_crnn_reads_lines() -> None:
    lines = crnn.rendered(crnn.texts(12))
    with torch.inference_mode():
        read = crnn.decoded(crnn.trained()(torch.stack([line.image for line in lines])))
    assert crnn.error_rate(read, [line.text for line in lines]) < 0.15


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(crnn).failed == 0
    assert doctest.testmod(silero).failed == 0
