"""The command line: ``mae-bench``, or ``python -m mae_bench``."""

from __future__ import annotations


def main() -> None: ...
