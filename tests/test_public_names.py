"""What ``import mae_bench`` offers, and that it costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import mae_bench


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_import_alone_brings_neither_torch_nor_pytest() -> None:
    code = (
        "import sys, mae_bench; print({'torch', 'pytest', '_pytest', 'numpy', 'pandas', 'timm'} & sys.modules.keys())"
    )
    assert fresh(code) == "set()"


def test_every_public_name_is_there_and_listed() -> None:
    assert sorted(mae_bench.__all__) == dir(mae_bench)
    assert len(set(mae_bench.__all__)) == len(mae_bench.__all__)
    namespace: dict[str, object] = {}
    exec("from mae_bench import *", namespace)
    assert set(mae_bench.__all__) <= namespace.keys()


@pytest.mark.parametrize("name", sorted(set(mae_bench.__all__) - {"__version__"}))
def test_public_name_is_the_thing_of_its_module(name: str) -> None:
    public = getattr(mae_bench, name)
    assert public.__name__ == name
    assert public.__doc__
    assert public is getattr(sys.modules[public.__module__], name)
    assert public.__module__.startswith("mae_bench.")


def test_names_are_loaded_when_first_used() -> None:
    code = """
import sys, mae_bench
before = {name for name in sys.modules if name.startswith("mae_bench.")}
mae_bench.Cell
print(before, "mae_bench.cells" in sys.modules, "torch" in sys.modules)
"""
    assert fresh(code) == "set() True False"


def test_version_is_that_of_the_installed_package() -> None:
    assert mae_bench.__version__ == version("mae_bench")


@pytest.mark.parametrize("name", ["Modle", "torch", "_nothing"])
def test_unknown_name_is_refused_by_name(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'mae_bench' has no attribute '{name}'"):
        getattr(mae_bench, name)
    assert not hasattr(mae_bench, name)
    with pytest.raises(ImportError, match=name):
        exec(f"from mae_bench import {name}")
