"""The benchmark of distillation: its student is ten times smaller, pictures vary as they should, the report adds up."""

from __future__ import annotations

import dataclasses
import doctest
from pathlib import Path

import distill
import pytest
import torch
from models import unlabelled
from models.loaded import Loaded
from PIL import Image
from torch import nn

from trimtab.core import Sealed, Task
from trimtab.files import read_json, write_json
from trimtab.tasks.fashion import FashionNet, fashion


def test_the_student_is_ten_times_smaller() -> None:
    large, small = (sum(p.numel() for p in net.parameters()) for net in (FashionNet(), distill.Student()))
    assert 9.8 < large / small < 11
    assert distill.Student()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_pictures_are_varied_by_the_generator_alone() -> None:
    x = torch.randn(4, 3, 32, 32)
    first, again, other = (unlabelled.varied((x,), torch.Generator().manual_seed(seed))[0] for seed in (0, 0, 1))
    assert first.shape == x.shape
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert first.isfinite().all()


def test_crops_are_squares_of_the_picture() -> None:
    image = Image.new("RGB", (300, 200), (255, 0, 0))
    found = unlabelled.crops(image, unlabelled.IMAGENET, num=3, seed=0)
    assert [crop.shape for crop in found] == [(3, 224, 224)] * 3
    assert found[0].amax() > 2


def test_the_report_tells_gain_interval_and_share(tmp_path: Path) -> None:
    for seed in range(3):
        row = {
            "seed": seed,
            "epochs": 6,
            "precision": "fp32",
            "teacher": 0.91,
            "alone": 0.85,
            "taught": 0.86 + seed / 500,
        }
        sizes = {"student_params": 10, "teacher_params": 100, "alone_seconds": 5.0, "taught_seconds": 9.0}
        write_json(tmp_path / f"fashion-{seed}.json", {**row, **sizes})
    figures = {"before": {"agreement": 0.2, "top-1": 0.1}, "after": {"agreement": 0.6, "top-1": 0.5}, "macs": 0.6}
    how = {"cut": "some", "params": 0.7, "seconds": 600.0, "epochs": 3, "images": 5, "lr": 0.001, "data": "photos"}
    write_json(tmp_path / "mobilenet-some-10.json", {**figures, **how})
    text = "\n".join(distill.report(tmp_path))
    assert "Gain +0.0120, 95 % from +0.0070 to +0.0170" in text
    assert "n = 3 seeds" in text
    assert "| some | 0.600 | 0.700 | 10.0 | 3 | 0.200 | 0.600 | 0.534 to 0.663 | 50 % |" in text


def test_students_are_compared_seed_by_seed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, task = fashion()
    few = dataclasses.replace(
        task, train=task.train.batch(slice(0, 100)), verify=Sealed(task.select.batch(slice(0, 50)))
    )
    monkeypatch.setattr(distill, "fashion", lambda: (net, few))
    monkeypatch.setattr(distill, "SEEDS", 2)
    settings = dataclasses.replace(distill.FASHION, epochs=1, batch_size=50, precision="fp32")
    distill.compare_students(tmp_path, settings)
    rows = [read_json(tmp_path / f"fashion-{seed}.json") for seed in range(2)]
    assert [row["seed"] for row in rows] == [0, 1]
    assert rows[0]["teacher"] == rows[1]["teacher"]
    assert all(row["taught_seconds"] > 0 for row in rows)


class Net(nn.Module):
    """[B, 3, 16, 16] -> [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean((2, 3)))


def test_a_cut_net_recovers_within_its_minutes_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(160, 3, 16, 16)
    y = net(x).argmax(1)
    task = Task.of("answer alike", train=(x[:64], y[:64]), select=(x[64:96], y[64:96]), verify=(x[96:], y[96:]))

    def quality(model: nn.Module) -> dict[str, float]:
        alike = float((model(x[96:]).argmax(1) == y[96:]).double().mean())
        return {"top-1": alike, "agreement": alike}

    monkeypatch.setattr(distill, "mobilenet", lambda: Loaded("net", net, task, quality, "noise"))
    monkeypatch.setattr(distill, "views", lambda: x[:96] + 0)
    cut = "40 % of the channels cut"
    distill.recover(tmp_path, cut, 0.02)
    found = read_json(tmp_path / "mobilenet-40-percent-of-the-channels-cut-0.02.json")
    assert found["cut"] == cut
    assert found["epochs"] >= 1
    assert found["macs"] < 0.9
    assert 0 <= found["after"]["agreement"] <= 1
    assert f"| {cut} |" in "\n".join(distill.report(tmp_path))
    distill.recover(tmp_path, cut, 0.02)  # kept: nothing is done again


def test_a_broken_off_clock_goes_on(tmp_path: Path) -> None:
    write_json(tmp_path / "seconds.json", {"seconds": 100.0})
    clock = distill.Clock(tmp_path / "seconds.json")
    clock.report(1, 2, "epoch 1/1")
    assert 100 <= distill.Clock(tmp_path / "seconds.json").seconds() < 110


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(distill).failed == 0
