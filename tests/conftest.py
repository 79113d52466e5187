"""Settings that all tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # The nets are small: a second thread gains nothing, and costs tenfold where something else runs beside it.
    torch.set_num_threads(1)
