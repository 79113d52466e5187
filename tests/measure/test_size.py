from __future__ import annotations

from pathlib import Path

from trimtab.measure.size import size_bytes


def test_size_of_a_file_and_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "deep" / "b").write_bytes(b"123")
    assert size_bytes(tmp_path / "a") == 5
    assert size_bytes(tmp_path) == 8
