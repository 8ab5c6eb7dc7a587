import math
from itertools import pairwise

import pytest
import torch

from mae_bench.cells import MARKS, Level
from mae_bench.degradations import DEGRADATIONS, blur, degradation
from mae_bench.degradations.ladders import GRIDS, levels
from mae_bench.suites import SUITES

NAMES = list(DEGRADATIONS)
DEGRADING = [name for name in NAMES if name != "clean"]


@pytest.mark.parametrize("size", GRIDS)
@pytest.mark.parametrize("name", DEGRADING)
def test_ladder_has_five_rising_levels(name: str, size: int) -> None:
    ladder = levels(name, size, full=True)
    assert len(ladder) == 5
    assert all(low.value < high.value for low, high in pairwise(ladder))
    assert ladder[0].value > 0


@pytest.mark.parametrize("size", GRIDS)
@pytest.mark.parametrize("name", DEGRADING)
def test_default_is_the_low_the_middle_and_the_top_level(name: str, size: int) -> None:
    ladder = levels(name, size, full=True)
    assert levels(name, size) == (ladder[0], ladder[2], ladder[4])


@pytest.mark.parametrize("size", GRIDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_level_is_in_the_domain_and_survives_its_id(name: str, size: int) -> None:
    for level in levels(name, size, full=True):
        degradation(name).check(level)
        # a third decimal would be lost in the cell's id
        assert Level.parse(str(level)) == level


@pytest.mark.parametrize("size", GRIDS)
def test_clean_has_one_level(size: int) -> None:
    assert levels("clean", size) == levels("clean", size, full=True) == (Level(0.0),)


@pytest.mark.parametrize("size", [0, 27, 64, 256])
@pytest.mark.parametrize("name", NAMES)
def test_size_without_ladders_is_refused_with_those_that_have(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=rf"no ladder for images of {size} px") as caught:
        levels(name, size)
    assert all(str(known) in str(caught.value) for known in GRIDS)


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_has_ladders(name: str) -> None:
    for other in NAMES:
        assert levels(other, SUITES[name].reference_size)


@pytest.mark.parametrize("size", GRIDS)
def test_grid_divides_its_image(size: int) -> None:
    # else cells would differ in area
    assert size % GRIDS[size] == 0


@pytest.mark.parametrize("size", GRIDS)
@pytest.mark.parametrize("name", [name for name in NAMES if DEGRADATIONS[name].family == "occlusion"])
def test_occlusion_levels_hide_different_numbers_of_cells(name: str, size: int) -> None:
    hidden = [round(level.value * GRIDS[size] ** 2) for level in levels(name, size, full=True)]
    assert len(set(hidden)) == 5
    assert min(hidden) > 0
    assert max(hidden) < GRIDS[size] ** 2


@pytest.mark.parametrize("name", NAMES)
def test_no_name_contains_a_mark_that_its_cells_do_not_carry(name: str) -> None:
    """``-k MARK`` must select exactly the cells that carry the mark."""
    carried = {DEGRADATIONS[name].family}
    assert {mark for mark in MARKS if mark in name} <= carried


def deviation(name: str, pixels: float) -> float:
    """Standard deviation along x of what a blur makes of a single point, in pixels."""
    point = torch.zeros(1, 1, 101, 101)
    point[0, 0, 50, 50] = 1
    blurred = {
        "gaussian_blur": blur.gaussian_blur,
        "box_blur": blur.box_blur,
        "defocus_blur": blur.defocus_blur,
        "motion_blur": lambda images, length: blur.motion_blur(images, length, torch.zeros(1)),
    }[name](point, pixels)
    weights = blurred[0, 0].double().sum(dim=0)
    return math.sqrt(float((weights * (torch.arange(101) - 50) ** 2).sum()))


@pytest.mark.parametrize("size", GRIDS)
@pytest.mark.parametrize("name", [name for name in NAMES if DEGRADATIONS[name].family == "blur"])
def test_blurs_of_one_rung_are_matched_by_the_deviation_of_their_kernels(name: str, size: int) -> None:
    for level, sigma in zip(levels(name, size, full=True), levels("gaussian_blur", size, full=True), strict=True):
        # below a pixel no two kernels can be matched on the pixel grid; above, a fifth is left to the rim of a kernel
        if sigma.value >= 1:
            assert deviation(name, level.value) == pytest.approx(sigma.value, rel=0.2)
