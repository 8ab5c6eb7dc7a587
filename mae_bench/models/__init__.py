"""Models: how they are registered, loaded one at a time, wrapped with their preprocessing, and tapped."""

from __future__ import annotations

from mae_bench.errors import BenchError


class ModelError(BenchError):
    """A model that cannot be registered, loaded or evaluated."""
