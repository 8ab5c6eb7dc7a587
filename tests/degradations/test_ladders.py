import math
from itertools import pairwise

import pytest
import torch

from mae_bench.cells import MARKS, Level
from mae_bench.degradations import BUILT_IN, CORRUPTIONS, DEGRADATIONS, Degradation, blur, degradation
from mae_bench.degradations.ladders import GRIDS, conditions, ladder, levels
from mae_bench.suites import SUITES, SuiteEntry

DEGRADING = [kind for kind in BUILT_IN if kind.family != "clean"]
GREY = SuiteEntry("grey", 28, 0, True, "", grey=True)
SMALL = SuiteEntry("small", 32, 0, False, "")
NATURAL = SuiteEntry("natural", 224, 0, False, "", salience="vit_small_patch16_224.dino")
STORED = SuiteEntry("stored", 224, 0, False, "", stored=("imagenet_c", "c_extra"))


def named(kind: Degradation) -> str:
    return f"{kind.family}-{kind.name}"


def by_name(suite: SuiteEntry, full: bool = False) -> dict[tuple[str, str], list[str]]:
    """Levels of a suite's matrix by family and name."""
    found: dict[tuple[str, str], list[str]] = {}
    for kind, level in conditions(suite, full):
        found.setdefault((kind.family, kind.name), []).append(str(level))
    return found


@pytest.mark.parametrize("size", GRIDS)
@pytest.mark.parametrize("kind", DEGRADING, ids=named)
def test_ladder_has_five_rising_levels(kind: Degradation, size: int) -> None:
    rungs = ladder(kind, size)
    assert len(rungs) == 5
    assert all(low.value < high.value for low, high in pairwise(rungs))
    assert rungs[0].value > 0


@pytest.mark.parametrize("size", GRIDS)
@pytest.mark.parametrize("kind", BUILT_IN, ids=named)
def test_every_level_is_in_the_domain_and_survives_its_id(kind: Degradation, size: int) -> None:
    for level in ladder(kind, size):
        kind.check(level)
        # a third decimal would be lost in the cell's id
        assert Level.parse(str(level)) == level


@pytest.mark.parametrize("suite", [GREY, SMALL, NATURAL, STORED], ids=lambda suite: suite.name)
def test_clean_has_one_level(suite: SuiteEntry) -> None:
    assert levels(degradation("clean"), suite) == levels(degradation("clean"), suite, full=True) == (Level(0.0),)


@pytest.mark.parametrize("size", [0, 27, 64, 256])
@pytest.mark.parametrize("kind", BUILT_IN, ids=named)
def test_size_without_ladders_is_refused_with_those_that_have(kind: Degradation, size: int) -> None:
    with pytest.raises(ValueError, match=rf"no ladder for images of {size} px") as caught:
        levels(kind, SuiteEntry("odd", size, 0, True, ""))
    assert all(str(known) in str(caught.value) for known in GRIDS)


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_has_ladders(name: str) -> None:
    found = conditions(SUITES[name])
    assert len(found) > 10
    assert set(found) <= set(conditions(SUITES[name], full=True))


@pytest.mark.parametrize("suite", [GREY, SMALL], ids=lambda suite: suite.name)
def test_default_is_low_middle_and_top_and_the_middle_severity(suite: SuiteEntry) -> None:
    for (family, name), found in by_name(suite).items():
        kind = degradation(name, severity=family in ("imagenet_c", "c_extra"))
        rungs = [str(level) for level in ladder(kind, suite.reference_size)]
        assert found == (["s3"] if kind.by_severity else rungs[:1] if family == "clean" else rungs[::2])


def test_natural_images_are_corrupted_at_every_severity() -> None:
    """No mCE is defined without all of them."""
    found = by_name(NATURAL)
    assert [name for family, name in found if family == "imagenet_c"] == [
        kind.name for kind in BUILT_IN if kind.family == "imagenet_c"
    ]
    assert len(found["imagenet_c", "snow"]) == len(found["c_extra", "spatter"]) == 5
    assert len(found["blur", "gaussian_blur"]) == 3


def test_full_runs_hold_everything_and_others_neither_cbar_nor_geometry() -> None:
    assert {kind for kind, _ in conditions(NATURAL, full=True)} == set(BUILT_IN)
    assert {kind.family for kind, _ in conditions(NATURAL)} == {k.family for k in BUILT_IN} - {"cbar", "geometry"}


def test_what_a_suite_cannot_show_has_no_cells_there() -> None:
    whole = {kind for kind, _ in conditions(GREY, full=True)}
    assert set(BUILT_IN) - whole == {CORRUPTIONS["saturate"], DEGRADATIONS["salient"], DEGRADATIONS["nonsalient"]}
    assert CORRUPTIONS["saturate"] in {kind for kind, _ in conditions(SMALL)}


@pytest.mark.parametrize("full", [False, True])
def test_a_stored_suite_holds_what_is_stored_at_every_severity_and_nothing_else(full: bool) -> None:
    found = by_name(STORED, full)
    assert {family for family, _ in found} == {"clean", "imagenet_c", "c_extra"}
    assert len(found) == 1 + 15 + 4
    assert all(found[key] == ["s1", "s2", "s3", "s4", "s5"] for key in found if key[0] != "clean")


@pytest.mark.parametrize("size", GRIDS)
def test_grid_divides_its_image(size: int) -> None:
    # else cells would differ in area
    assert size % GRIDS[size] == 0


@pytest.mark.parametrize("size", GRIDS)
@pytest.mark.parametrize("kind", [kind for kind in BUILT_IN if kind.family == "occlusion"], ids=named)
def test_occlusion_levels_hide_different_numbers_of_cells(kind: Degradation, size: int) -> None:
    hidden = [round(level.value * GRIDS[size] ** 2) for level in ladder(kind, size)]
    assert len(set(hidden)) == 5
    assert min(hidden) > 0
    assert max(hidden) < GRIDS[size] ** 2


@pytest.mark.parametrize("kind", BUILT_IN, ids=named)
def test_no_name_contains_a_mark_that_its_cells_do_not_carry(kind: Degradation) -> None:
    """``-k MARK`` must select exactly the cells that carry the mark."""
    assert {mark for mark in MARKS if mark in kind.name} <= set(kind.marks)


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
@pytest.mark.parametrize("name", [kind.name for kind in BUILT_IN if kind.family == "blur"])
def test_blurs_of_one_rung_are_matched_by_the_deviation_of_their_kernels(name: str, size: int) -> None:
    sigmas = ladder(degradation("gaussian_blur"), size)
    for level, sigma in zip(ladder(degradation(name), size), sigmas, strict=True):
        # below a pixel no two kernels can be matched on the pixel grid; above, a fifth is left to the rim of a kernel
        if sigma.value >= 1:
            assert deviation(name, level.value) == pytest.approx(sigma.value, rel=0.2)
