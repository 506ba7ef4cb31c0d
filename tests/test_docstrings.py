"""Every example in a docstring runs and says the truth."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

from tests.helpers_package import FILES, module_name

MODULES = [name for name in map(module_name, FILES) if not name.endswith("__main__")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0
