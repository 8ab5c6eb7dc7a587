"""A profile tells of the package's own functions and of operators, and of nobody's folders."""

from __future__ import annotations

import pytest

from mae_bench.perf import PerfError
from mae_bench.perf.profile import profile_text


def test_an_unknown_subject_is_refused_and_the_known_are_named() -> None:
    with pytest.raises(PerfError, match="'resnet' cannot be profiled: name one of bundled, vit224"):
        profile_text("resnet")


@pytest.mark.thorough
def test_a_profile_names_functions_and_operators_and_no_folder() -> None:
    text = profile_text("bundled", images=512, top=40)
    assert text.startswith("mae_ft_s0, random_patch-0.50, 512 images of 28 pixels\n")
    for name in ("mae_bench/indicators/alignment.py", "vision_transformer.py", "aten::addmm", "torch._C._nn.linear"):
        assert name in text
    assert " /" not in text
