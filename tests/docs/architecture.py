"""The page of the architecture, from the imports that the package has: ``python -m docs.architecture --out FILE``."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

from tabulate import tabulate
from test_layers import FLOOR_OF, IMPORTS, PACKAGE

FLOORS = {
    0: "Values and small tools, which know nothing of images",
    1: "Images: suites, manifests, caches, random numbers",
    2: "Degradations",
    3: "Models",
    4: "Indicators",
    5: "Evaluation: a model on a suite under a degradation",
    6: "Results: on disk, compared, ranked, shown",
    7: "Where and how much runs",
    8: "What users touch: pytest, the command line, measurements",
}
HEAD = """# Architecture

The folders of `mae_bench/` read as the pipeline, and imports point down it: a module uses those below it or on its own
floor, never one above, and no two use each other in a circle. A test keeps it so, and another that this page is what
the imports are. Collection needs nothing that imports PyTorch, and pytest is imported by the plugin alone.
"""


def page() -> str:
    parts = [HEAD]
    for number in sorted(FLOORS, reverse=True):
        names = sorted(name for name, floor in FLOOR_OF.items() if floor == number and is_there(name))
        lines = [(f"`{name}`", summary(name), ", ".join(f"`{used}`" for used in uses(name)) or "-") for name in names]
        table = tabulate(lines, ["module", "what it is", "uses"], tablefmt="pipe", disable_numparse=True)
        parts.append(f"## {FLOORS[number]}\n\n{table}\n")
    return "\n".join(parts)


def is_there(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()


def summary(name: str) -> str:
    """The first sentence of its docstring."""
    path = PACKAGE / name / "__init__.py" if (PACKAGE / name).is_dir() else PACKAGE / f"{name}.py"
    said = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].replace("\n", " ")
    return said.replace("``", "`").replace("|", "\\|")


def uses(name: str) -> list[str]:
    """Modules of the package, or packages in it, that ``name`` imports from."""
    own = [module for module in IMPORTS if module.split(".")[1:2] == [name]]
    found = {used.split(".")[1] for module in own for used in IMPORTS[module] if used.startswith("mae_bench.")}
    return sorted(found - {name})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.parse_args().out.write_text(page())
