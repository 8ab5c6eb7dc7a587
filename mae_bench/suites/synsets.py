"""ImageNet's classes by WordNet id: the published lists."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from mae_bench.errors import BenchError

SYNSET = re.compile(r"n\d{8}")


@cache
def published_synsets(name: str) -> tuple[str, ...]:
    """The classes of ``imagenet`` (1,000), ``imagenet_a`` or ``imagenet_r`` (200 each, all among the thousand), sorted:
    a position among the thousand is the output of a model. The lists are timm's, which is not imported for them.

    >>> len(published_synsets("imagenet")), published_synsets("imagenet")[207]
    (1000, 'n02099601')
    """
    timm = find_spec("timm")
    if timm is None or timm.origin is None:
        raise BenchError("timm, which has the lists of ImageNet's classes, is missing: install mae_bench again")
    return tuple((Path(timm.origin).parent / "data" / "_info" / f"{name}_synsets.txt").read_text().split())
