"""Names and the conditions that they stand for."""

from __future__ import annotations

import pytest

from mae_bench.cells import FAMILIES, GROUPS
from mae_bench.degradations import BUILT_IN
from mae_bench.degradations.ladders import conditions, ladder
from mae_bench.degradations.selection import SelectionError, selected
from mae_bench.suites import SUITES, suite_entry

SMALL = suite_entry("fashion_mnist")


def named(*names: str, suite: str = "fashion_mnist") -> list[str]:
    return [f"{kind.name}-{level}" for kind, level in selected(names, suite_entry(suite))]


@pytest.mark.parametrize("suite", SUITES)
def test_without_names_it_is_the_default_matrix_clean_first(suite: str) -> None:
    found = selected(None, SUITES[suite])
    assert found[0][0].name == "clean"
    assert set(found) == set(conditions(SUITES[suite]))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "clean"])
def test_a_family_is_all_that_the_full_matrix_has_of_it(family: str) -> None:
    found = selected([family], SMALL)
    assert found[1:] == [one for one in conditions(SMALL, full=True) if one[0].family == family]


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_is_all_corruptions_that_carry_its_mark(group: str) -> None:
    of_group = {kind.name for kind in BUILT_IN if kind.group == group} - {"saturate"}  # which changes no grey image
    assert {kind.name for kind, _ in selected([group], SMALL)[1:]} == of_group


def test_a_degradation_is_its_whole_ladder() -> None:
    assert selected(["box_blur"], SMALL)[1:] == [
        (kind, level) for kind in BUILT_IN if kind.name == "box_blur" for level in ladder(kind, 28)
    ]


def test_a_blur_alone_is_the_plain_kernel_and_with_a_severity_the_corruption() -> None:
    assert named("gaussian_blur")[1] == "gaussian_blur-0.50"
    (_, plain), (kind, level) = selected(["gaussian_blur-2.00", "gaussian_blur-s3"], SMALL)[1:]
    assert (plain.severity, kind.family, level.severity) == (False, "c_extra", True)


def test_a_level_need_not_be_on_the_ladder_and_nothing_is_there_twice() -> None:
    assert named("gaussian_blur-0.77", "fog-s2.50", "clean", "gaussian_blur-0.77") == [
        "clean-0.00",
        "gaussian_blur-0.77",
        "fog-s2.50",
    ]
    assert named("blur", "box_blur-1.75", "blur") == named("blur")


@pytest.mark.parametrize(
    ("name", "suite", "words"),
    [
        ("gausian_blur", "fashion_mnist", "'gausian_blur': did you mean gaussian_blur?"),
        ("gausian_blur-2.00", "fashion_mnist", "did you mean gaussian_blur?"),
        ("oclusion", "fashion_mnist", "did you mean occlusion?"),
        ("gaussian_blur-2", "fashion_mnist", "'2' is not a level"),
        ("fog-0.50", "fashion_mnist", "its levels are from s1 to s5"),
        ("random_patch-1.50", "fashion_mnist", "outside its domain, 0 to 1"),
        ("saturate", "fashion_mnist", "suite 'fashion_mnist' has no cells of 'saturate'"),
        ("salient-0.50", "fashion_mnist", "has no cells of 'salient-0.50'"),
        ("occlusion", "imagenet_c", "has no cells of 'occlusion': it has clean, imagenet_c, c_extra"),
        ("fog-s2.50", "imagenet_c", "has no cells of 'fog-s2.50'"),
        ("", "fashion_mnist", "unknown degradation ''"),
    ],
)
def test_what_stands_for_nothing_is_refused(name: str, suite: str, words: str) -> None:
    with pytest.raises(SelectionError) as refused:
        named(name, suite=suite)
    assert words in str(refused.value)
