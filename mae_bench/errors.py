"""The one kind of error that is meant for the person at the keyboard."""

from __future__ import annotations


class BenchError(ValueError):
    """Something given to the benchmark cannot be used; the message names the thing, the place and the remedy.

    Edges (the pytest plugin, the command line) show the message without a traceback.
    """
