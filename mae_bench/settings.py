"""How cells are evaluated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """How cells are evaluated. ``limit`` 0 means all images, ``batch_size`` 0 means automatic; ``suite_view``
    forces the suite's view on every model; ``jackknife`` asks clean representations for values without each tenth
    of the images, which costs their separability ten times over; ``compiles`` has torch compile what it can of a model;
    ``memory_format`` is one of :data:`mae_bench.models.pool.MEMORY_FORMATS`; ``graphs`` has a GPU play back forward
    passes (:mod:`mae_bench.models.recorded`) and ``prefetch`` sends it images and clean features while it works on
    those before; neither changes a number.
    """

    device: str = "cpu"
    dtype: str = "float32"
    batch_size: int = 0
    seed: int = 0
    limit: int = 0
    threads: int = 1
    suite_view: bool = False
    jackknife: bool = False
    compiles: bool = False
    memory_format: str = "auto"
    graphs: bool = False
    prefetch: bool = True

    @property
    def arithmetic(self) -> str:
        """``dtype`` with what else was asked for that forward passes round by.

        >>> Settings(dtype="bfloat16", compiles=True).arithmetic
        'bfloat16 compiled'
        """
        return self.dtype + " compiled" * self.compiles + f" {self.memory_format}" * (self.memory_format != "auto")
