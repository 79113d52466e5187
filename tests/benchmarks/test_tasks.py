"""The real models are tasks that the command line takes by name."""

from __future__ import annotations

import pytest
import tasks
from models.loaded import Loaded

from tests.train.toy import toy_net, toy_task


@pytest.mark.parametrize("name", tasks.LOADERS)
def test_every_loader_is_a_task_by_its_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Loaded(name, toy_net(), toy_task(), lambda model: {}, "nothing")
    monkeypatch.setitem(tasks.LOADERS, name, lambda: made)
    assert getattr(tasks, name)() == (made.module, made.task)
