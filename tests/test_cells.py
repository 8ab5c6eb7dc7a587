import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mae_bench.cells import Cell, Level, near_name

LAW = settings(max_examples=60, deadline=None, derandomize=True)

levels = st.one_of(
    st.integers(0, 10**7).map(lambda hundredths: Level(hundredths / 100)),
    st.integers(100, 500).map(lambda hundredths: Level(hundredths / 100, severity=True)),
)
characters = st.characters(exclude_characters="[]", exclude_categories=["Cs"])
# dashes are what the id itself is cut at; among all of Unicode a single text strategy would hardly draw one
models = st.lists(st.one_of(st.sampled_from(["-", "a-b", "-0.50", "s3"]), characters), min_size=1).map("".join)
degradations = st.from_regex(r"[a-z0-9]+(_[a-z0-9]+)*", fullmatch=True)


@LAW
@given(levels)
def test_level_survives_being_written_and_read(level: Level) -> None:
    assert Level.parse(str(level)) == level


@LAW
@example("00.50")
@example("12345678901234567890.00")
@example(f"{'9' * 400}.00")
@given(
    st.one_of(
        st.from_regex(r"s\d(\.\d\d)?|\d+\.\d\d|[0-9]{1,3}\.[0-9]{2}", fullmatch=True),
        st.text("0123456789s.-+e_ \n\u0660\uff13", max_size=6),
    )
)
def test_only_one_text_stands_for_a_level(text: str) -> None:
    """Two ids of one cell would be two tests and two rows."""
    try:
        level = Level.parse(text)
    except ValueError:
        return
    assert str(level) == text


@pytest.mark.parametrize(
    "text",
    ["", "s", "s0", "s6", "s10", "s5.50", "s2.00", "s2.5", "S1", "0.5", "1", ".50", "0.500", "-0.50", "nan", "1e0"],
)
def test_what_is_no_level_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a level: write s1 to s5, or a number with two decimals") as caught:
        Level.parse(text)
    assert repr(text) in str(caught.value)


@LAW
@given(models, degradations, levels)
def test_cell_survives_being_written_and_read(model: str, degradation: str, level: Level) -> None:
    cell = Cell(model, degradation, level)
    assert Cell.parse(cell.id) == cell


@LAW
@given(st.sets(st.builds(Cell, models, degradations, levels), max_size=20))
def test_different_cells_have_different_ids(cells: set[Cell]) -> None:
    assert len({cell.id for cell in cells}) == len(cells)


@LAW
@given(models, degradations, levels)
def test_id_is_model_then_condition(model: str, degradation: str, level: Level) -> None:
    cell = Cell(model, degradation, level)
    assert cell.id == model + "-" + cell.condition
    assert Cell.parse("other-" + cell.condition).condition == cell.condition


@pytest.mark.parametrize("text", ["", "-", "--", "model", "model-0.50", "-blur-0.50", "model--0.50", "model-blur-"])
def test_incomplete_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not the id of a cell: expected model-degradation-level") as caught:
        Cell.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["model-blur-strong", "model-blur-0.5", "model-blur-s6"])
def test_id_with_a_bad_level_is_refused_naming_the_level(text: str) -> None:
    with pytest.raises(ValueError, match="is not a level") as caught:
        Cell.parse(text)
    assert repr(text.rsplit("-", 1)[1]) in str(caught.value)


def test_cells_sort_by_model_then_degradation_then_strength() -> None:
    # 10 px after 2 px: strength is a number, not its spelling
    ids = ["a-blur-2.00", "a-blur-10.00", "a-mask-0.10", "b-blur-0.50"]
    assert [cell.id for cell in sorted(Cell.parse(text) for text in reversed(ids))] == ids


@pytest.mark.parametrize("typo", ["gausian_blur", "gaussian_blurr", "gaussian-blur", "aussian_blur"])
def test_near_name_suggests_the_name_that_was_meant(typo: str) -> None:
    hint = near_name(typo, ["stripes", "gaussian_blur", "border"])
    assert hint == "did you mean gaussian_blur? Known: border, gaussian_blur, stripes"


def test_near_name_lists_what_is_known_where_nothing_is_near() -> None:
    assert near_name("xyzzy", ["stripes", "border"]) == "Known: border, stripes"
    assert near_name("xyzzy", []) == "None is known"


@LAW
@given(st.text(max_size=10), st.lists(degradations, max_size=5))
def test_near_name_always_lists_every_known_name(name: str, known: list[str]) -> None:
    hint = near_name(name, iter(known))
    assert all(other in hint for other in known)
