"""The benchmark of pruned quality: nets, cells, tables; and one small cell from cut to figures."""

from __future__ import annotations

import dataclasses
import doctest
from pathlib import Path
from typing import Any

import prune_quality
import pytest
import torch
from quality import cells, report
from quality.cells import Cell, Progress, cells_in, kept
from quality.nets import NETS, RECOVERY, fresh, resized
from quality.peer import widths
from torch import nn

from trimtab.graph.capture import capture


def row(method: str, seed: int, accuracy: float, *, ratio: float = 0.5, select: float | None = None) -> dict[str, Any]:
    found = {"select": accuracy if select is None else select, "verify": accuracy}
    cell = {"net": "N", "seed": seed, "method": method, "ratio": ratio, "params": 100, "macs": 1000}
    return {**cell, "raw": found, "recovered": found}


ROWS = [
    *(row("original", seed, 0.9, ratio=0.0) for seed in (0, 1, 2)),
    *(row("magnitude", seed, accuracy, select=0.7) for seed, accuracy in enumerate((0.60, 0.70, 0.80))),
    *(row("obs", seed, 0.9, select=0.6) for seed in (0, 1, 2)),
    *(row("Torch-Pruning magnitude", seed, accuracy) for seed, accuracy in enumerate((0.50, 0.61, 0.69))),
]


def test_the_best_is_chosen_on_select_and_compared_seed_by_seed() -> None:
    one = report.paired(ROWS, "N", 0.5, "raw")
    assert (one.ours, one.peer) == ("magnitude", "Torch-Pruning magnitude")
    assert one.mean == pytest.approx(0.10)
    assert one.std == pytest.approx(0.01)
    assert (one.wins, one.n, one.word) == (3, 3, "better")
    assert one.interval == pytest.approx(4.303 * 0.01 / 3**0.5, rel=1e-3)


def test_a_method_without_all_seeds_is_not_compared() -> None:
    rows = [*ROWS, row("lucky", 0, 0.99)]
    assert report.paired(rows, "N", 0.5, "raw").ours == "magnitude"


def test_words_of_a_difference() -> None:
    assert dataclasses.replace(report.paired(ROWS, "N", 0.5, "raw"), mean=-0.1).word == "worse"
    assert report.Paired("a", "b", 0.01, 0.1, 2, 3).word == "no difference seen"
    assert report.Paired("a", "b", 0.5, 0.0, 1, 1).word == "no difference seen"


def test_tables() -> None:
    assert report.accuracy_table(ROWS, "N", "raw")[0] == "| without recovery | 0.5 |"
    assert "| magnitude | 70.0 ± 10.0 |" in report.accuracy_table(ROWS, "N", "raw")
    assert report.accuracy_table(ROWS, "N", "raw")[-1].startswith("| Torch-Pruning magnitude")
    assert report.size_table(ROWS, "N")[2:] == ["| 0 | 100 | 1,000 | - | - |", "| 0.5 | 100 | 1,000 | 100 | 1,000 |"]
    assert report.paired_table(ROWS, ["N"])[2].startswith("| N | 0.5 | no | magnitude | magnitude | +10.00 ± 1.00 |")


def test_no_cells_no_report(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no cell to report"):
        report.write_report([ROWS[0]], {}, tmp_path)


def test_cells_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell, folder = Cell("N", 3, "obs + compensation", 0.4), tmp_path / "N" / "seed3"
    assert not kept(folder, cell)
    cell.keep(folder, {"params": 7})
    assert kept(folder, cell)
    (folder / "peer.json").write_text("{}")
    assert cells_in(tmp_path) == [
        {"net": "N", "seed": 3, "method": "obs + compensation", "ratio": 0.4, "params": 7},
    ]
    Progress(total=10, done=4).told(cell)
    assert capsys.readouterr().out.startswith("5/10 N seed 3 obs-compensation-0.4, 0 min left")


def test_nets_are_seeded_and_of_the_stated_size() -> None:
    assert sum(p.numel() for p in fresh("ResNet-20", 0).parameters()) == 272_186
    for net in NETS:
        first, again, other = (next(fresh(net, seed).parameters()) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_a_smaller_net_is_built_from_its_weights() -> None:
    small = NETS["ResNet-20"]
    thin = small((4, 6, 8), repeats=3).eval()  # type: ignore[call-arg]
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(resized(fresh("ResNet-20", 0), thin.state_dict())(x), thin(x))


def test_the_peer_is_asked_for_the_nearest_channel() -> None:
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Conv2d(16, 64, 3), nn.Linear(64, 10))
    for ratio, expected in ((0.2, (13, 51, 8)), (0.4, (10, 38, 6)), (0.8, (3, 13, 2))):
        asked = widths(net, ratio)
        kept_ = tuple(int(part.weight.shape[0] * (1 - asked[part])) for part in net)  # type: ignore[union-attr]
        assert kept_ == expected


def test_one_cell_from_cut_to_figures(tmp_path: Path) -> None:
    data = prune_quality.load()
    tiny = dataclasses.replace(
        data,
        select=data.select.batch(slice(0, 40)),
        verify=data.verify.batch(slice(0, 60)),
        recovery=dataclasses.replace(data.recovery, train=data.recovery.train.batch(slice(0, 640))),
    )
    net = NETS["ResNet-20"]((6, 8, 8), repeats=1)  # type: ignore[call-arg]
    graph = capture(net, tiny.verify.batch(slice(0, 2)).inputs)
    pruned = prune_quality.by_us(graph, "magnitude", 0.4, tiny.task)
    cell = Cell("ResNet-20", 0, "magnitude", 0.4)
    prune_quality.judge(tmp_path, cell, pruned, tiny, recover=RECOVERY, cut_seconds=1.0)
    (found,) = [cells.read_json(path) for path in tmp_path.glob("*.json")]
    assert found["params"] == sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in net.parameters())
    assert 0 <= found["raw"]["verify"] <= 1
    assert found["recovered"].keys() == found["raw"].keys()
    assert all(0 <= value <= 1 for value in found["recovered"].values())
    assert found["macs"] > 0


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(cells).failed == doctest.testmod(report).failed == 0
    assert doctest.testmod(report).attempted == 2
