"""What other installed packages register by entry points: checked one by one, and named by whom it comes from."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from mae_bench.errors import BenchError

Thing = TypeVar("Thing")


class EntryPointError(BenchError):
    """Something registered by a package that cannot be used."""


@dataclass(frozen=True)
class Registered(Generic[Thing]):
    """A ``thing`` under the ``name`` of its entry point in ``group``, from ``distribution`` in ``version``."""

    group: str
    name: str
    distribution: str
    version: str
    thing: Thing

    @property
    def package(self) -> str:
        """Whom it comes from, as in ``acme-weather 1.2``."""
        return f"{self.distribution} {self.version}"

    def refusal(self, why: str) -> EntryPointError:
        """An error that says ``why`` it cannot be used, whose it is, and what to do."""
        return EntryPointError(
            f"entry point {self.name!r} in {self.group!r}, from package {self.package}: {why}; mend it, or uninstall "
            f"the package (python -m pip uninstall {self.distribution})"
        )


def registered(group: str, kind: type[Thing]) -> list[Registered[Thing]]:
    """What installed packages register in ``group``, sorted by name; each is a ``kind``, and no two share a name.

    Raises:
        EntryPointError: one cannot be loaded, or is something else; it is named with its package.
    """
    found: dict[str, Registered[Thing]] = {}
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        distribution, version = ("unknown", "") if point.dist is None else (point.dist.name, point.dist.version)
        one: Registered[Any] = Registered(group, point.name, distribution, version, None)
        try:
            thing = point.load()
        except Exception as error:
            raise one.refusal(f"{point.value} cannot be loaded ({type(error).__name__}: {error})") from error
        if not isinstance(thing, kind):
            raise one.refusal(f"{point.value} is a {type(thing).__name__}, not a {kind.__module__}.{kind.__name__}")
        if point.name in found:
            raise one.refusal(f"{found[point.name].package} registers one of that name too")
        found[point.name] = Registered(group, point.name, distribution, version, thing)
    return list(found.values())


def added(
    group: str, kind: type[Thing], taken: Container[str], unfit: Callable[[Thing, str, Collection[Thing]], str | None]
) -> dict[str, Thing]:
    """What installed packages register in ``group`` by name, each with its ``package`` filled in. Its name is its own,
    a plain one, and not among those ``taken``; ``unfit`` says why one of a package cannot stand beside those before it.

    Raises:
        EntryPointError: one cannot be used; it is named with its package and the remedy.
    """
    found: dict[str, Thing] = {}
    for one in registered(group, kind):
        called = getattr(one.thing, "name", None)
        if called != one.name:
            raise one.refusal(f"it is called {called!r} itself; the two names are to be one")
        if not re.fullmatch("[a-z][a-z0-9_]*", one.name):
            raise one.refusal(f"{one.name!r} is no name: write small letters, digits and underscores")
        if one.name in taken:
            what = group.partition(".")[2].removesuffix("s")
            article = "an" if what[0] in "aeiou" else "a"
            raise one.refusal(f"mae_bench has {article} {what} {one.name!r} itself; give it another name")
        if (why := unfit(one.thing, one.package, found.values())) is not None:
            raise one.refusal(why)
        found[one.name] = replace(one.thing, package=one.package)  # type: ignore[type-var]
    return found


def implementation(package: str, module: str, *functions: str) -> Any:
    """The ``module`` of a ``package`` that holds ``functions``.

    Raises:
        EntryPointError: it cannot be imported, or lacks one.
    """
    try:
        found = import_module(module)
    except Exception as error:
        raise EntryPointError(
            f"package {package}: its module {module!r} cannot be imported ({type(error).__name__}: {error}); mend or "
            "uninstall it"
        ) from error
    for name in functions:
        if not callable(getattr(found, name, None)):
            raise EntryPointError(
                f"package {package}: its module {module!r} has no function {name!r}; mend or uninstall it"
            )
    return found
