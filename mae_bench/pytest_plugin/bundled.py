"""Bundled models as a plugin (``-p``), and a test of each family: what ``mae-bench run`` has pytest collect where there
is no folder of tests.
"""

from __future__ import annotations

from typing import Any

import pytest

from mae_bench.degradations import families
from mae_bench.models import bundled_names
from mae_bench.pytest_plugin.items import BoundCell
from mae_bench.pytest_plugin.registration import model_fixture


def _model(name: str) -> Any:
    def build() -> object:
        from mae_bench.models.zoo import bundled

        return bundled(name)

    build.__name__ = name
    build.__doc__ = "Bundled with mae_bench; `mae-bench models` says how it was made."
    return model_fixture(suite="fashion_mnist")(build)


def _test(family: str) -> Any:
    def test(cell: BoundCell) -> None:
        cell.check()

    test.__name__ = f"test_{family}"
    return getattr(pytest.mark, family)(test)


# pytest finds fixtures and tests as what a module holds by their names
globals().update({name: _model(name) for name in bundled_names()})
globals().update({f"test_{family}": _test(family) for family in families()})
