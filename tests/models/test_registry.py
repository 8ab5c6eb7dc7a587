"""Which models take part."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae_bench.cells import MARKS
from mae_bench.errors import BenchError
from mae_bench.models import ModelError
from mae_bench.models.registry import ModelEntry, Registry, first_seeds

HERE = Path("/project")


def names(entries: list[ModelEntry]) -> list[str]:
    return [entry.name for entry in entries]


def registry(*entries: ModelEntry) -> Registry:
    filled = Registry()
    for entry in entries:
        filled.add(entry, None)
    return filled


def test_two_fixtures_of_one_name_are_refused() -> None:
    filled = Registry()
    filled.add(ModelEntry("vit"), HERE / "one")
    with pytest.raises(ModelError, match=r"two models are called 'vit'.*/project/one.*/project/two.*rename"):
        filled.add(ModelEntry("vit"), HERE / "two")


def test_a_name_taken_by_another_definition_in_the_same_place_is_refused() -> None:
    filled = registry(ModelEntry("vit"))
    with pytest.raises(ModelError, match=r"'vit'.*a plugin.*rename"):
        filled.add(ModelEntry("vit", head=False), None)


def test_the_refused_model_does_not_replace_the_first() -> None:
    filled = registry(ModelEntry("vit", summary="first"))
    with pytest.raises(ModelError):
        filled.add(ModelEntry("vit", summary="second"), None)
    assert filled.get("vit").summary == "first"


def test_the_same_entry_may_be_found_twice() -> None:
    filled = registry(ModelEntry("vit"), ModelEntry("cnn"), ModelEntry("vit"))
    assert names(filled.models("imagefolder", HERE / "test_blur.py", full=False)) == ["vit", "cnn"]


def test_an_unknown_model_is_answered_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'mae_ft_so': did you mean mae_ft_s0\?.*supervised_s0"):
        registry(ModelEntry("mae_ft_s0"), ModelEntry("supervised_s0")).get("mae_ft_so")


def test_an_unknown_model_of_an_empty_registry_is_an_error_of_the_same_kind() -> None:
    with pytest.raises(ModelError, match=r"'vit'.*None is known"):
        Registry().get("vit")


@pytest.mark.parametrize("mark", MARKS)
def test_a_name_that_k_would_confuse_with_a_family_is_refused(mark: str) -> None:
    for name in (mark, f"my_{mark}_vit", mark.upper()):
        with pytest.raises(ModelError, match=rf"{name!r}.*-k {mark}.*rename the fixture"):
            ModelEntry(name)


@pytest.mark.parametrize("name", ["", "my vit", "vit\n", "vit\t2", "vit[0]", "vit]", "a/b", "a\\b", "test_x.py::vit"])
def test_a_name_that_breaks_node_ids_or_paths_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="must be free of white space, brackets, slashes, colons and chara") as caught:
        ModelEntry(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["vit", "vit_base_patch16_224.augreg_in1k", "mae-ft", "v2.1"])
def test_ordinary_names_are_taken_as_they_are(name: str) -> None:
    assert registry(ModelEntry(name)).get(name).name == name


def test_a_refusal_is_meant_for_the_person_at_the_keyboard() -> None:
    with pytest.raises(BenchError):
        ModelEntry("blur")


def test_a_bound_model_takes_part_in_its_suites_alone() -> None:
    filled = registry(ModelEntry("any"), ModelEntry("one", suites=("s1",)), ModelEntry("both", suites=("s1", "s2")))
    assert names(filled.models("s1", HERE, full=False)) == ["any", "one", "both"]
    assert names(filled.models("s2", HERE, full=False)) == ["any", "both"]
    assert names(filled.models("s3", HERE, full=False)) == ["any"]


def test_a_model_is_visible_to_the_tests_below_its_conftest() -> None:
    filled = Registry()
    filled.add(ModelEntry("everywhere"), None)
    filled.add(ModelEntry("here"), HERE)
    filled.add(ModelEntry("below"), HERE / "bench")
    assert names(filled.models("s", HERE / "bench" / "deep" / "test_blur.py", False)) == [
        "everywhere",
        "here",
        "below",
    ]
    assert names(filled.models("s", HERE / "test_blur.py", False)) == ["everywhere", "here"]
    # a folder whose name merely begins alike is another folder
    assert names(filled.models("s", HERE / "bench2" / "test_blur.py", False)) == ["everywhere", "here"]
    assert names(filled.models("s", Path("/other/test_blur.py"), False)) == ["everywhere"]


def test_an_encoder_has_no_cells_to_classify_in() -> None:
    filled = registry(ModelEntry("encoder", head=False), ModelEntry("vit"))
    for full in (False, True):
        assert names(filled.models("s", HERE, full)) == ["vit"]
    assert filled.get("encoder").head is False


def test_model_for_full_runs_joins_those_alone_and_gives_its_place_to_the_next_seed() -> None:
    filled = registry(
        ModelEntry("mae_s0", arm="mae", training_seed=0, full=True),
        ModelEntry("mae_s1", arm="mae", training_seed=1),
        ModelEntry("vit", full=True),
    )
    assert [entry.name for entry in filled.models("s", HERE, full=False)] == ["mae_s1"]
    assert [entry.name for entry in filled.models("s", HERE, full=True)] == ["mae_s0", "mae_s1", "vit"]


def test_one_training_seed_of_each_arm_unless_all_are_asked_for() -> None:
    filled = registry(
        ModelEntry("mae_s1", arm="mae", training_seed=1),
        ModelEntry("mae_s0", arm="mae", training_seed=0),
        ModelEntry("sup_s2", arm="sup", training_seed=2),
        ModelEntry("sup_s3", arm="sup", training_seed=3),
        ModelEntry("cnn"),
        ModelEntry("seeded", training_seed=7),
        ModelEntry("mae_published", arm="mae"),
    )
    assert names(filled.models("s", HERE, full=False)) == ["mae_s0", "sup_s2", "cnn", "seeded", "mae_published"]
    assert len(filled.models("s", HERE, full=True)) == 7


def test_the_first_training_seed_is_sought_among_the_models_that_take_part() -> None:
    filled = registry(
        ModelEntry("mae_s0", suites=("other",), arm="mae", training_seed=0),
        ModelEntry("mae_s1", arm="mae", training_seed=1),
    )
    assert names(filled.models("s", HERE, full=False)) == ["mae_s1"]


def test_first_seeds_takes_any_iterable() -> None:
    entries = (ModelEntry(f"s{seed}", arm="mae", training_seed=seed) for seed in (2, 0, 1))
    assert names(first_seeds(entries)) == ["s0"]
