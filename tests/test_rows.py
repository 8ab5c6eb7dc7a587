import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.rows import IDENTITY, SCHEMA_VERSION, ResultRow, identity_difference, upgrade

LAW = settings(max_examples=50, deadline=None, derandomize=True)

# annotations are text under ``from __future__ import annotations``
TYPES = {field.name: str(field.type).removesuffix(" | None") for field in dataclasses.fields(ResultRow)}
NULLABLE = {field.name for field in dataclasses.fields(ResultRow) if str(field.type).endswith("| None")}
FIELDS = tuple(TYPES)


def record(**changes: Any) -> dict[str, Any]:
    """A complete row as it stands on disk, every value different from its neighbours'."""
    values: dict[str, Any] = {}
    for number, (name, kind) in enumerate(TYPES.items()):
        values[name] = {"str": f"text {number}", "int": number, "float": number + 0.5, "Status": "ok"}[kind]
    return values | {"schema_version": SCHEMA_VERSION} | changes


def row(**changes: Any) -> ResultRow:
    return ResultRow(**record(**changes))


def altered(name: str) -> Any:
    """Another value that the field could hold."""
    value = record()[name]
    return value + "x" if isinstance(value, str) else value + 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [name for name, kind in TYPES.items() if kind == "float"])
def test_number_that_is_not_finite_is_refused_naming_the_field(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name!r} is {value}: a result that is not finite is not a result"):
        row(**{name: value})


@pytest.mark.parametrize(
    "value",
    [np.float64(0.5), np.float32(0.5), np.int64(3), np.str_("a"), True, np.True_, [0.5], {"a": 1}, 1j, b"a"],
    ids=lambda value: f"{type(value).__module__}.{type(value).__name__}",
)
@pytest.mark.parametrize("name", ["top1", "n", "model", "level", "schema_version"])
def test_value_that_is_not_a_plain_scalar_is_refused_naming_field_and_type(name: str, value: Any) -> None:
    # a NumPy scalar kills an xdist worker, and a bool would come back from CSV as a word
    with pytest.raises(ValueError, match=rf"{name!r} holds {type(value).__name__}, not a plain str, int or float"):
        row(**{name: value})


def test_status_is_one_of_three_words() -> None:
    for status in ("ok", "partial", "not_applicable"):
        assert row(status=status).status == status
    for status in ("", "OK", "error", None):
        with pytest.raises(ValueError, match=r"'status' is .*, not one of ok, partial, not_applicable"):
            row(status=status)


@pytest.mark.parametrize("name", sorted(NULLABLE))
def test_null_is_what_is_not_applicable(name: str) -> None:
    assert getattr(row(**{name: None}), name) is None


@LAW
@given(st.sets(st.sampled_from(sorted(NULLABLE))), st.floats(0, 1), st.text())
def test_row_survives_json(nulls: set[str], value: float, text: str) -> None:
    before = row(**dict.fromkeys(nulls), seconds=value, preprocessing=text)
    assert ResultRow.from_dict(json.loads(json.dumps(before.to_dict()))) == before


def test_row_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        row().top1 = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "schema_version"])
def test_missing_field_is_named(name: str) -> None:
    stored = record()
    del stored[name]
    with pytest.raises(ValueError, match=rf"row lacks the fields {name}$"):
        ResultRow.from_dict(stored)


def test_all_missing_fields_are_named() -> None:
    stored = record()
    del stored["top1"], stored["model"]
    with pytest.raises(ValueError, match=r"row lacks the fields model, top1$"):
        ResultRow.from_dict(stored)


def test_all_unknown_fields_are_named() -> None:
    with pytest.raises(ValueError, match=r"row has unknown fields colour, zeal$"):
        ResultRow.from_dict(record(zeal=1, colour="red"))


@pytest.mark.parametrize("version", [0, -1, SCHEMA_VERSION + 1, "1", None, 1.0])
def test_unknown_schema_version_is_refused_with_a_remedy(version: Any) -> None:
    for read in (upgrade, ResultRow.from_dict):
        with pytest.raises(ValueError, match=r"schema .* is not known here.*mae_bench version that wrote it") as caught:
            read(record(schema_version=version))
        assert repr(version) in str(caught.value)


def test_record_without_schema_version_is_refused() -> None:
    stored = record()
    del stored["schema_version"]
    with pytest.raises(ValueError, match="schema None is not known here"):
        ResultRow.from_dict(stored)


def test_reading_does_not_change_the_record() -> None:
    stored = record()
    ResultRow.from_dict(stored)
    assert stored == record()


def test_row_has_the_same_identity_as_itself() -> None:
    assert identity_difference(row(), row().to_dict()) == []


@pytest.mark.parametrize("name", FIELDS)
def test_single_change_differs_in_identity_exactly_where_the_field_belongs_to_it(name: str) -> None:
    if name == "status":
        changed: Any = "partial"
    elif name == "schema_version":
        changed = SCHEMA_VERSION + 1
    else:
        changed = altered(name)
    expected = [name] if name in IDENTITY else []
    assert identity_difference(row(), record(**{name: changed})) == expected


def test_identity_holds_all_that_decides_a_cells_numbers() -> None:
    """The fields by which a cell is told from another, as stated for the stored results."""
    stated = {
        "manifest_hash", "label_map", "model", "weights_hash", "preprocessing", "degradation", "degradation_version",
        "level", "seed", "dtype", "device", "view", "subset", "schema_version", "indicator_version", "torch_version",
        "mae_bench_version",
    }  # fmt: skip
    assert stated <= set(IDENTITY) <= set(FIELDS)


@LAW
@given(st.sets(st.sampled_from([name for name in IDENTITY if name != "schema_version"])))
def test_every_changed_identity_field_is_named_once(names: set[str]) -> None:
    difference = identity_difference(row(), record(**{name: altered(name) for name in names}))
    assert sorted(difference) == sorted(names)


def test_what_an_expectation_does_not_state_is_not_compared() -> None:
    assert identity_difference(row(), {"seed": record()["seed"]}) == []
    assert identity_difference(row(), {"seed": altered("seed")}) == ["seed"]
