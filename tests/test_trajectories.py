"""Checkpoints along trainings: counted rightly, once, and only on the images they were counted on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mae_bench.cells import Level
from mae_bench.errors import BenchError
from mae_bench.evaluation import Evaluation
from mae_bench.models.pool import Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.models.zoo import ARCHITECTURES, load_weights, save_weights
from mae_bench.settings import Settings
from mae_bench.suites import Suite
from mae_bench.trajectories import conditions, evaluated

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = Settings()


@pytest.fixture(scope="module")
def suite(random_suite: Callable[..., Suite]) -> Suite:
    return random_suite(260, classes=tuple("abcdefghij"))


@pytest.fixture(scope="module")
def few_images(random_suite: Callable[..., Suite]) -> Suite:
    return random_suite(20, classes=tuple("abcdefghij"))


def network() -> nn.Module:
    """Random weights, but for a bias that looks trained."""
    made = ARCHITECTURES["vit_28_patch4"].build(10)
    nn.init.constant_(made.head.bias, 0.01)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, share in enumerate(("0.2", "0.8")):
        torch.manual_seed(seed)
        save_weights(network(), f"mae_ft_s0@{share}", "vit_28_patch4", tmp_path)
    return tmp_path


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Level]]:
    """Three conditions stand for the default matrix."""
    some = [("clean", Level(0.0)), ("random_patch", Level(0.5)), ("token_drop", Level(0.5))]
    monkeypatch.setattr("mae_bench.trajectories.conditions", lambda _: some)
    return some


def test_conditions_are_those_of_the_default_matrix(suite: Suite) -> None:
    assert len(conditions(suite)) == 1 + 3 * (4 + 9 + 1)


@pytest.mark.thorough  # evaluates every checkpoint twice
def test_counts_are_those_of_cells(suite: Suite, folder: Path, few: list[tuple[str, Level]], tmp_path: Path) -> None:
    found = evaluated(folder, suite, SETTINGS, tmp_path / "scratch", lambda _: None)
    assert found.images == 260
    assert found.correct.keys() == {"mae_ft_s0"}
    for share, counts in found.correct["mae_ft_s0"].items():
        path = folder / f"mae_ft_s0@{share}.safetensors"
        model = Pool("cpu").load(ModelEntry("x"), lambda path=path: load_weights(path))
        evaluation = Evaluation(suite, model, SETTINGS, tmp_path / "other", "run")
        labels = suite.manifest.labels
        right = {f"{name}-{level}": evaluation.run(name, level).prediction == labels for name, level in few}
        assert counts == {c: (r[:256].sum(), r[256:].sum()) for c, r in right.items()}
        evaluation.close()


@pytest.mark.usefixtures("few")
def test_finished_checkpoints_are_not_evaluated_again(few_images: Suite, folder: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def again() -> Any:
        said.clear()
        return evaluated(folder, few_images, SETTINGS, tmp_path / "scratch", said.append)

    first = again()
    assert len(said) == 2
    assert again() == first
    assert said == []
    torch.manual_seed(9)
    save_weights(network(), "mae_ft_s0@0.8", "vit_28_patch4", folder)
    again()
    assert [text.split(":")[0] for text in said] == ["mae_ft_s0@0.8"]
    record = json.loads((folder / "correct.json").read_text())
    assert record["images"] == 20


@pytest.mark.usefixtures("few")
def test_other_images_are_refused(suite: Suite, few_images: Suite, folder: Path, tmp_path: Path) -> None:
    evaluated(folder, few_images, SETTINGS, tmp_path / "scratch", lambda _: None)
    with pytest.raises(BenchError, match=r"is of 20 images of manifest .*, not of 260 .*: use the same limit"):
        evaluated(folder, suite, SETTINGS, tmp_path / "scratch", lambda _: None)


WHOLE = {"manifest": "m", "images": 20, "checkpoints": {"a@0.2": {"sha256": "x", "correct": {"clean-0.00": [3]}}}}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        json.dumps(WHOLE)[:-9],
        json.dumps(WHOLE | {"images": "20"}),
        json.dumps(WHOLE | {"checkpoints": {"a@0.2": {"sha256": "x"}}}),
        json.dumps(WHOLE | {"checkpoints": {"a@0.2": {"correct": {"clean-0.00": [0.5]}}}}),
        json.dumps(WHOLE | {"checkpoints": [3]}),
        "\udc80",
    ],
)
def test_a_damaged_record_is_named_with_its_remedy(few_images: Suite, folder: Path, content: str) -> None:
    (folder / "correct.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        BenchError, match=r"correct\.json: cannot be read .*remove it to have the checkpoints"
    ) as caught:
        evaluated(folder, few_images, SETTINGS, folder / "scratch", lambda _: None)
    assert str(folder) in str(caught.value)


def test_empty_folder_is_named(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="holds no checkpoint <model>@<share>") as caught:
        evaluated(tmp_path, suite, SETTINGS, tmp_path, lambda _: None)
    assert str(tmp_path) in str(caught.value)
