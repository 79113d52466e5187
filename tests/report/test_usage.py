from __future__ import annotations

import ast
import shlex

import pytest

from trimtab.report.usage import usage_python, usage_shell


@pytest.mark.parametrize("path", ["runs/a", "my runs/b 1", 'odd "name"', "back\\slash", "it's"])
def test_snippets_carry_any_path_through(path: str) -> None:
    tree = ast.parse(usage_python(path, path + ".npy"))
    assert len(usage_python(path, path).splitlines()) == 3
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert texts == [path, path + ".npy"]
    assert shlex.split(usage_shell(path, "x.npy")) == ["trimtab", "run", path, "--input", "x.npy"]
