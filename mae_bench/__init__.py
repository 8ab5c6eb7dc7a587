"""mae_bench: where does a vision model break, is the new one better, and what happens inside it?

Importing the package imports neither torch nor pytest; the names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mae_bench.cells import Cell, Level
    from mae_bench.models.classifier import Classifier
    from mae_bench.notebook import evaluate
    from mae_bench.pytest_plugin import model_fixture
    from mae_bench.results import Results
    from mae_bench.rows import ResultRow

    __version__: str

__all__ = ["Cell", "Classifier", "Level", "ResultRow", "Results", "__version__", "evaluate", "model_fixture"]

_HOMES = {
    "Cell": "mae_bench.cells",
    "Classifier": "mae_bench.models.classifier",
    "Level": "mae_bench.cells",
    "ResultRow": "mae_bench.rows",
    "Results": "mae_bench.results",
    "evaluate": "mae_bench.notebook",
    "model_fixture": "mae_bench.pytest_plugin",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mae_bench")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
