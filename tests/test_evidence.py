"""Evidence: what goes in comes out, and damaged files are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.cells import Cell
from mae_bench.evidence import Evidence, Training, Trajectories
from mae_bench.indicators.profile import column
from mae_bench.representation import Representation
from mae_bench.rows import CellResult
from mae_bench.store import RunDirectory, StoreError

VALUES = st.floats(-10, 10, width=32)


def tables(values: st.SearchStrategy[tuple[float, ...]]) -> st.SearchStrategy[Any]:
    """By model, condition and column."""
    columns = (column("a", 1, "cls"), column("b", 10, "patch", 3), column("c_d", 0, "mean_patch"))
    conditions = ("clean-0.00", "random_patch-0.50", "gaussian_blur-2.00")
    named = st.dictionaries(st.sampled_from(columns), values, min_size=1)
    of_model = st.dictionaries(st.sampled_from(conditions), named, min_size=1)
    return st.dictionaries(st.sampled_from(("mae", "vit-b", "cnn")), of_model)


TABLES = tables(st.tuples(VALUES, VALUES | st.just(np.nan), VALUES | st.just(np.nan)))
REPLICATES = tables(st.tuples(*[VALUES] * 10))


IDENTITY = {"suite": "s", "weights_hash": "w"}
TRAININGS = st.tuples(st.none() | st.just("arm"), st.none() | st.integers(0, 9), st.sampled_from(("", "w")))


def saved(evidence: Evidence, path: Path) -> Evidence:
    path.write_bytes(evidence.to_bytes())
    return Evidence.load(path)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    TABLES,
    REPLICATES,
    st.dictionaries(st.sampled_from(("x", "y")), TRAININGS),
    st.dictionaries(
        st.sampled_from(("x", "y")),
        st.dictionaries(
            st.sampled_from((0.2, 0.8)),
            st.dictionaries(st.just("clean-0.00"), st.tuples(*[st.integers(0, 99)] * 2), min_size=1),
            min_size=1,
        ),
        min_size=1,
    ),
)
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory,
    values: Any,
    replicates: Any,
    trained: dict[str, tuple[str | None, int | None, str]],
    correct: Any,
) -> None:
    trainings = {k: Training(*v) for k, v in trained.items()}
    evidence = Evidence("s", trainings, values, replicates, Trajectories(300, correct))
    path = tmp_path_factory.mktemp("evidence") / "evidence.npz"
    loaded = saved(evidence, path)
    assert (loaded.suite, loaded.trainings) == (evidence.suite, evidence.trainings)
    assert loaded.trajectories == evidence.trajectories
    np.testing.assert_equal(loaded.values, values)
    assert loaded.replicates == replicates
    assert loaded.to_bytes() == evidence.to_bytes()


def record(indicator: str, layer: int, value: float | None, head: int | None = None, **more: Any) -> dict[str, Any]:
    return {"indicator": indicator, "layer": layer, "head": head, "token": "cls", "value": value, "low": None,
            "high": None, "reason": None} | more  # fmt: skip


def test_evidence_is_what_runs_left(tmp_path: Path, cell_result: Callable[..., CellResult]) -> None:
    for name, value in (("one", 0.25), ("two", 0.75)):
        run = RunDirectory(tmp_path / name)
        records = [record("alignment", 1, value, low=0.1, high=0.9), record("alignment", 2, None)]
        run.write_cell(cell_result("mae-random_patch-0.50", [1, 2], indicators=records, **IDENTITY))
        heads = [record("attention_distance", 1, 0.5, head=0), record("retention", 1, 0.5, head=0)]
        parts = {column("attention_distance", 1, "cls"): [value + group for group in range(10)]}
        run.write_representation(Cell.parse("mae-clean-0.00"), Representation(IDENTITY, heads, parts))
        of_sample = [record("alignment", 1, 0.9, low=0.8, high=1.0), record("fisher_ratio", 1, value)]
        run.write_representation(Cell.parse("mae-random_patch-0.50"), Representation(IDENTITY, of_sample))
        (run.path / "models").mkdir()
        (run.path / "models" / "mae.json").write_text(
            '{"name": "mae", "arm": "mae_ft", "training_seed": 3, "weights_hash": "w"}'
        )
    evidence = Evidence.of("s", [RunDirectory(tmp_path / name) for name in ("one", "two")])
    assert evidence.value("mae", "random_patch-0.50", column("alignment", 1, "cls")) == 0.75
    of_cell = evidence.values["mae"]["random_patch-0.50"]
    assert of_cell[column("alignment", 1, "cls")] == (0.75, 0.1, 0.9)  # of all images, not of the sample
    assert evidence.layers("mae", "random_patch-0.50", "fisher_ratio", "cls") == {1: 0.75}
    assert evidence.intervals("mae", "random_patch-0.50", "alignment", "cls") == {1: (0.1, 0.9)}
    assert evidence.intervals("mae", "random_patch-0.50", "fisher_ratio", "cls") == {}
    without = evidence.without(3)
    assert without.layers("mae", "clean-0.00", "attention_distance", "cls") == {1: 3.75}
    assert without.layers("mae", "random_patch-0.50", "alignment", "cls") == {}
    assert without.models("mae_ft") == {3: "mae"}
    assert evidence.heads("mae", "clean-0.00", "attention_distance", "cls") == {(1, 0): 0.5}
    assert evidence.heads("mae", "clean-0.00", "retention", "cls") == {}
    assert evidence.layers("mae", "random_patch-0.50", "alignment", "cls") == {1: 0.75}
    assert evidence.trainings == {"mae": Training("mae_ft", 3, "w")}
    assert evidence.models("mae_ft") == {3: "mae"}
    assert evidence.models("supervised") == {}
    assert evidence.value("cnn", "clean-0.00", "x") is None


def trained(path: Path, name: str = "mae", **changes: Any) -> RunDirectory:
    """A run that evaluated a model."""
    run = RunDirectory(path)
    (run.path / "models").mkdir(parents=True, exist_ok=True)
    model = {"name": name, "arm": "mae_ft", "training_seed": 3, "weights_hash": "w"} | changes
    (run.path / "models" / f"{name}.json").write_text(json.dumps(model))
    return run


def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path, cell_result: Callable[..., CellResult]) -> None:
    whole = {**IDENTITY, "n_expected": 2}
    run = trained(tmp_path / "one")
    run.write_cell(cell_result("mae-random_patch-0.50", [1, 2], **whole))
    assert Evidence.of("s", [run]).models("mae_ft") == {3: "mae"}
    with pytest.raises(StoreError, match=r"mae-random_patch-0\.50 is of suite s, not other: name other runs"):
        Evidence.of("other", [run])
    with pytest.raises(StoreError, match=r"mae is .* in another run: name runs of one"):
        Evidence.of("s", [run, trained(tmp_path / "two", weights_hash="v")])
    with pytest.raises(StoreError, match="mae and other are both of arm 'mae_ft', seed 3: give one another seed"):
        Evidence.of("s", [run, trained(tmp_path / "three", "other")])
    stale = Representation({"suite": "s", "weights_hash": "v"}, [])
    run.write_representation(Cell.parse("mae-clean-0.00"), stale)
    with pytest.raises(StoreError, match=r"mae-clean-0\.00 was evaluated with other weights .*: remove it"):
        Evidence.of("s", [run])
    unknown = RunDirectory(tmp_path / "unknown")
    unknown.write_cell(cell_result("mae-random_patch-0.50", [1, 2], **whole))
    with pytest.raises(StoreError, match=r"mae\.json is missing, so the arm of mae-random_patch-0\.50 is not known"):
        Evidence.of("s", [unknown])
    part = trained(tmp_path / "part")
    part.write_cell(cell_result("mae-random_patch-0.50", [1, 2], **IDENTITY, n_expected=10))
    with pytest.raises(StoreError, match=r"is of 2 of 10 images: evaluate with --mae-limit 0"):
        Evidence.of("s", [part])


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04"])
def test_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "evidence.npz"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"evidence\.npz: not a file of evidence") as caught:
        Evidence.load(path)
    assert "make it again" in str(caught.value)


def test_other_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "evidence.npz"
    path.write_bytes(Evidence("s").to_bytes())
    monkeypatch.setattr("mae_bench.evidence.EVIDENCE_VERSION", 2)
    with pytest.raises(StoreError, match="version 1, this mae_bench reads 2: make it again with mae-bench claims"):
        Evidence.load(path)


def test_a_model_takes_the_place_of_an_arm() -> None:
    trainings = {"a": Training("supervised", 1), "b": Training("supervised", 0), "c": Training(None, None, "w")}
    evidence = Evidence("s", trainings, {"c": {"clean-0.00": {"a|1||cls": (1.0, np.nan, np.nan)}}})
    other = evidence.in_arm("c", "supervised")
    assert other.models("supervised") == {0: "c"}
    assert other.trainings["c"].weights == "w"
    assert other.values is evidence.values
    assert evidence.models("supervised") == {0: "b", 1: "a"}
    with pytest.raises(StoreError, match=r"knows no model 'd': .*Known: a, b, c"):
        evidence.in_arm("d", "supervised")
