"""The page of the command line, from the program itself: ``python -m docs.commands --out FILE``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tabulate import tabulate
from typer import Context
from typer.main import get_command

from mae_bench.cli import app

HEAD = """# Command line

`mae-bench COMMAND --help` says the same in a terminal; `mae-bench --install-completion` has your shell complete
commands, options and names. Evaluation itself is pytest's: `pytest --help` lists every `--mae-` option.
"""


def page() -> str:
    return "\n".join([HEAD, *(section(path, command) for path, command in leaves("mae-bench", get_command(app)))])


def leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Commands that do something, by what is typed."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from leaves(f"{path} {name}", inner)


def section(path: str, command: Any) -> str:
    context = Context(command, info_name=path)
    records = [found for parameter in command.params if (found := parameter.get_help_record(context))]
    lines = [(f"`{name}`", text.replace("|", "\\|").replace("<", "&lt;")) for name, text in records]
    options = tabulate(lines, ["", "meaning"], tablefmt="pipe", disable_numparse=True) + "\n" if lines else ""
    usage = command.get_usage(context).removeprefix("Usage: ")
    return f"## {path}\n\n```console\n{usage}\n```\n\n{described(command.help)}\n\n{options}"


def described(text: str) -> str:
    """What a help says, its examples as something to type."""
    parts = []
    for paragraph in text.split("\n\n"):
        is_typed = paragraph.startswith(("mae-bench ", "pytest "))
        parts.append(f"```console\n{paragraph}\n```" if is_typed else paragraph)
    return "\n\n".join(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.parse_args().out.write_text(page())
