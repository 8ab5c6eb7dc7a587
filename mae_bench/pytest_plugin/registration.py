"""Models as pytest fixtures: ``@model_fixture`` and what finds them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, overload

import pytest

from mae_bench.errors import BenchError
from mae_bench.models import ModelError
from mae_bench.models.registry import ModelEntry
from mae_bench.pytest_plugin.harness import HARNESS, Harness, fail
from mae_bench.suites import suite_entry


@overload
def model_fixture(function: Callable[..., Any], /) -> Any: ...
@overload
def model_fixture(
    *,
    suite: str | tuple[str, ...] | None = None,
    head: bool = True,
    arm: str | None = None,
    training_seed: int | None = None,
    full: bool = False,
) -> Callable[[Callable[..., Any]], Any]: ...
def model_fixture(
    function: Callable[..., Any] | None = None,
    /,
    *,
    suite: str | tuple[str, ...] | None = None,
    head: bool = True,
    arm: str | None = None,
    training_seed: int | None = None,
    full: bool = False,
) -> Any:
    """Register the function, in a conftest.py or a plugin, as a model of the matrix and as a pytest fixture.

    It returns (or yields, to clean up afterwards) a timm model or a :class:`mae_bench.Classifier`. The model is
    built when its first cell runs and freed after its last. Fixtures that it asks for should be of session scope,
    since it outlives the test that built it. One model is held at a time: of two that one test asks for, the first
    is released, and its clean-up has run, before the test begins.

    Args:
        suite: name or names of the suites it belongs to; by default whichever is selected.
        head: False for an encoder, which joins representation items only.
        arm, training_seed: repeated trainings of one recipe; only the first seed of an arm runs without
            ``--mae-full``.
        full: True for a model that runs with ``--mae-full`` alone.

    Raises:
        ModelError: the function's name contains a family's name, or a suite is unknown.

    >>> @model_fixture(suite="fashion_mnist")
    ... def tiny():
    ...     "Shown in the leaderboard."
    >>> tiny.mae_entry.suites
    ('fashion_mnist',)
    """
    register = functools.partial(_register, suite=suite, head=head, arm=arm, training_seed=training_seed, full=full)
    return register if function is None else register(function)


def _register(
    function: Callable[..., Any],
    *,
    suite: str | tuple[str, ...] | None,
    head: bool,
    arm: str | None,
    training_seed: int | None,
    full: bool,
) -> Any:
    suites = (suite,) if isinstance(suite, str) else suite
    for name in suites or ():
        suite_entry(name)
    summary = (inspect.getdoc(function) or "").partition("\n")[0]
    entry = ModelEntry(function.__name__, suites, head, arm, training_seed, full, summary)
    signature = inspect.signature(function)
    own_request = "request" in signature.parameters

    @functools.wraps(function)
    def load(request: pytest.FixtureRequest, **needed: Any) -> object:
        if own_request:
            needed["request"] = request
        harness = request.config.stash[HARNESS]
        try:
            return harness.executor.load(entry, lambda: function(**needed)).returned
        except BenchError as error:
            fail(error)

    if not own_request:
        request = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY)
        signature = signature.replace(parameters=[*signature.parameters.values(), request])
    load.__signature__ = signature  # type: ignore[attr-defined]
    fixture: Any = pytest.fixture(load)
    fixture.mae_entry = entry
    return fixture


class Discovery:
    """Finds model fixtures in conftest files and plugins as pytest registers them."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness

    def pytest_plugin_registered(self, plugin: object) -> None:
        file = getattr(plugin, "__file__", None)
        is_conftest = file is not None and Path(file).name == "conftest.py"
        for value in list(vars(plugin).values()) if hasattr(plugin, "__dict__") else []:
            # statically, since asking `pytest.mark` for an attribute makes a mark, and a lazy module an import
            entry = inspect.getattr_static(value, "mae_entry", None)
            if isinstance(entry, ModelEntry):
                try:
                    self.harness.registry.add(entry, Path(file).parent if is_conftest and file else None)
                except ModelError as error:
                    raise pytest.UsageError(str(error)) from error
