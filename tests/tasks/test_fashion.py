from __future__ import annotations

import hashlib
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from trimtab.errors import TaskError
from trimtab.tasks import fashion as room
from trimtab.tasks.check import check_model
from trimtab.tasks.fashion import SHA256, arrays_of, fashion, normalised, read_data, shifted

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_fashion_data.py"
SHIPPED = Path(room.__file__).with_name("fashion_mnist.npz")


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return read_data()


def test_the_shipped_file_is_the_one_that_the_code_names():
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == SHA256
    assert SHIPPED.stat().st_size < 7_000_000


def test_the_script_packs_the_arrays_to_the_same_bytes(arrays):
    pack = runpy.run_path(str(SCRIPT))["pack"]
    assert hashlib.sha256(pack(arrays)).hexdigest() == SHA256


def test_the_script_chooses_equally_many_of_each_class_and_no_image_twice():
    script = runpy.run_path(str(SCRIPT))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 4, (400, 1, 2), dtype=np.uint8)
    images[:, 0, 1] = np.arange(400) % 200
    labels = (np.arange(400) % 10).astype(np.uint8)
    taken: set[bytes] = set()
    first, second = (script["choose"](images, labels, taken, 5) for _ in range(2))
    assert np.bincount(labels[first]).tolist() == np.bincount(labels[second]).tolist() == [5] * 10
    assert len({images[index].tobytes() for index in (*first, *second)}) == 100


def test_splits_have_their_sizes_and_equal_classes(arrays):
    sizes = {name: len(arrays[f"{name}_images"]) for name in ("train", "select", "verify")}
    assert sizes == {"train": 10_000, "select": 2_000, "verify": 4_000}
    assert all(len(set(np.bincount(arrays[f"{name}_labels"]).tolist())) == 1 for name in sizes)


def test_no_image_occurs_twice(arrays):
    hashes = [image.tobytes() for name in ("train", "select", "verify") for image in arrays[f"{name}_images"]]
    assert len(set(hashes)) == len(hashes) == 16_000


def test_a_damaged_file_is_refused():
    with pytest.raises(TaskError, match=r"fashion_mnist\.npz is damaged"):
        arrays_of(SHIPPED.read_bytes()[:-1])


def test_the_licence_ships_beside_the_data():
    text = SHIPPED.with_name("FASHION_MNIST_LICENSE").read_text()
    assert "Zalando SE" in text
    assert "Permission is hereby granted, free of charge" in text


def test_the_network_fits_the_task_and_begins_equal_without_moving_the_global_generator():
    state = torch.get_rng_state()
    (first, task), (second, _) = fashion(), fashion()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    check_model(first, task)
    assert abs(float(task.train.inputs[0].mean())) < 0.01
    assert abs(float(task.train.inputs[0].std()) - 1) < 0.01


def test_augmentation_moves_each_image_as_a_slow_loop_would(arrays):
    images = arrays["train_images"][:64]
    x = normalised(images)
    (varied,) = shifted((x,), torch.Generator().manual_seed(3))
    possible = [variants(image) for image in images]
    for image, wanted in zip(varied, possible, strict=True):
        assert any(torch.allclose(image, one, atol=1e-6) for one in wanted)
    assert varied.shape == x.shape
    assert not torch.equal(varied, x)


def variants(image: np.ndarray) -> list[torch.Tensor]:
    """Every picture that augmentation may make of one."""
    size, most = 28, room.MAX_SHIFT
    padded = np.pad(image.astype(np.float32), most, constant_values=0)
    places = [(top, left) for top in range(2 * most + 1) for left in range(2 * most + 1)]
    return [normalised(padded[None, top : top + size, left : left + size])[0] for top, left in places]


def test_augmentation_follows_its_generator_alone(arrays):
    x = normalised(arrays["train_images"][:16])
    first, second, other = (shifted((x,), torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
