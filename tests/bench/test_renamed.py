"""Modules can be imported under their former names, with a warning."""

from __future__ import annotations

import importlib
import sys

import pytest

from bench.renamed import MODULES, RenamedModules


@pytest.mark.parametrize("old", MODULES)
def test_a_renamed_module_exports_the_same_names(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    new = importlib.import_module(f"bench.{MODULES[old]}")
    public = next((name for name, value in vars(new).items() if getattr(value, "__module__", None) == new.__name__), "")
    known = sys.modules.get(f"bench.{old}")
    if known is not None and isinstance(known.__spec__.loader, RenamedModules):  # else a package of today has the name
        monkeypatch.delitem(sys.modules, f"bench.{old}")
    with pytest.warns(DeprecationWarning, match=f"bench.{old}.* is now bench.{MODULES[old]}"):
        former = importlib.import_module(f"bench.{old}")
        assert not public or getattr(former, public) is getattr(new, public)


def test_a_renamed_function_still_imports() -> None:
    with pytest.warns(DeprecationWarning, match="bench.data.ersst.read_anomalies is now"):
        from bench.data.ersst import read_anomalies
    assert read_anomalies.__module__ == "bench.data.ersst.anomalies"


def test_an_unknown_module_raises_module_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'bench\.nobodys'"):
        importlib.import_module("bench.nobodys")


def test_a_renamed_module_has_no_submodules() -> None:
    """Pickling looks for names such as `torch` in every module, which used to warn once for each object."""
    assert not hasattr(importlib.import_module("bench.data.sevir"), "torch")
