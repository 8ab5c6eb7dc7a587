"""Representations of cells against passes over single images, and token_drop as a degradation of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mae_bench.cells import Level
from mae_bench.degradations.occlusion import hidden_tokens
from mae_bench.evaluation import Evaluation, EvaluationError
from mae_bench.images import BLOCK
from mae_bench.indicators.attention import attention_values, uniform_distance
from mae_bench.indicators.profile import column
from mae_bench.indicators.separability import separability_profile
from mae_bench.models.classifier import Classifier
from mae_bench.models.pool import LoadedModel, Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.representation import (
    ATTENTION,
    ATTENTION_IMAGES,
    SEPARABILITY,
    Representation,
    RepresentationError,
    Sample,
)
from mae_bench.settings import Settings
from mae_bench.suites import Suite

Build = Callable[..., Any]
CLEAN, HALF, BLUR, DROP = (
    ("clean", Level(0.0)),
    ("random_patch", Level(0.5)),
    ("gaussian_blur", Level(2.0)),
    ("token_drop", Level(0.5)),
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def suite(random_suite: Build) -> Suite:
    """950 images of eight classes: three whole blocks and a short one, more than a hundred a class."""
    result: Suite = random_suite(950)
    return result


def loaded(module: Any, name: str = "vit", head: bool = True) -> LoadedModel:
    model = Classifier(module, mean=(0.45,), std=(0.25,), input_size=(1, 28, 28), crop_pct=1.0)
    return Pool("cpu").load(ModelEntry(name, head=head), lambda: model)


@pytest.fixture(scope="module")
def vit(small_vit: Build) -> LoadedModel:
    return loaded(small_vit())


@pytest.fixture(scope="module")
def two_classes(random_suite: Build) -> Suite:
    """The smallest that can be parted, and a sample that passes one by one are not long for."""
    result: Suite = random_suite(220, classes=("a", "b"))
    return result


@pytest.fixture
def evaluate(tmp_path: Path, suite: Suite) -> Iterator[Build]:
    made: list[Evaluation] = []

    def build(
        model: LoadedModel, represented: tuple[str, ...] = (), suite: Suite = suite, **settings: Any
    ) -> Evaluation:
        evaluation = Evaluation(suite, model, Settings(**settings), tmp_path / "scratch", "run", represented)
        made.append(evaluation)
        return evaluation

    yield build
    for evaluation in made:
        evaluation.close()


def values_of(representation: Representation) -> dict[tuple[str, int, int | None, str], float | None]:
    values = {(r["indicator"], r["layer"], r["head"], r["token"]): r["value"] for r in representation.records}
    assert len(values) == len(representation.records)
    return values


def forwards(model: LoadedModel) -> tuple[list[int], Any]:
    """A list that grows by the images of each forward pass, and the hook that does so."""
    seen: list[int] = []
    return seen, model.classifier.register_forward_hook(lambda _, __, out: seen.append(len(out)))


# --------------------------------------------------------------------------- the sample


def test_sample_is_the_first_hundred_of_each_class(suite: Suite) -> None:
    sample = Sample.of(suite)
    seen: dict[int, int] = {}
    expected = []
    for position, label in enumerate(suite.manifest.labels.tolist()):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= 100:
            expected.append(position)
    assert sample.positions.tolist() == expected
    assert sample.labels.tolist() == suite.manifest.labels[expected].tolist()
    assert list(sample.blocks) == list(range(expected[-1] // BLOCK + 1))
    places = []
    for block in range(4):
        inside, place = sample.window(block * BLOCK, min(len(suite.manifest.ids), (block + 1) * BLOCK))
        assert sample.positions[place].tolist() == (inside + block * BLOCK).tolist()
        places += list(range(*place.indices(len(expected))))
    assert places == list(range(len(expected)))


# --------------------------------------------------------------------------- against single passes


def tokens_by_hand(evaluation: Evaluation, condition: tuple[str, Level]) -> dict[tuple[int, str], Tensor]:
    """Pooled tokens of the sample, one image at a time."""
    rows: dict[tuple[int, str], list[Tensor]] = {}
    for position in evaluation.sample.positions.tolist():
        image = evaluation.degraded(*condition, position, position + 1)
        with torch.inference_mode(), evaluation.model.taps.capture(patches=False) as features:
            evaluation.model.classifier(image)
        for key, values in features.tokens.items():
            rows.setdefault(key, []).append(values[0])
    return {key: torch.stack(values) for key, values in rows.items()}


@pytest.mark.parametrize("condition", [CLEAN, HALF])
def test_separability_is_that_of_the_samples_tokens(
    evaluate: Build, small_vit: Build, two_classes: Suite, condition: tuple[str, Level]
) -> None:
    evaluation = evaluate(loaded(small_vit(num_classes=2)), suite=two_classes)
    found = values_of(evaluation.represent(*condition))
    clean, seen = (tokens_by_hand(evaluation, c) for c in (CLEAN, condition))
    for layer, kind in ((1, "cls"), (2, "cls"), (0, "mean_patch"), (2, "mean_patch"), (3, "cls")):
        other = None if condition == CLEAN else seen[layer, kind]
        expected = separability_profile(clean[layer, kind], evaluation.sample.labels, other)
        for name in SEPARABILITY:
            assert found[name, layer, None, kind] == pytest.approx(getattr(expected, name), abs=0.02), (name, layer)


def test_class_token_before_the_first_block_is_null_and_says_why(evaluate: Build, vit: LoadedModel) -> None:
    records = evaluate(vit, limit=512).represent(*CLEAN).records
    null = {r["reason"] for r in records if (r["layer"], r["token"]) == (0, "cls") and r["value"] is None}
    assert null == {"constant"}
    assert all((r["value"] is None) == (r["reason"] is not None) for r in records if r["indicator"] in SEPARABILITY)


def test_attention_is_the_mean_over_the_leading_images(evaluate: Build, vit: LoadedModel) -> None:
    evaluation = evaluate(vit, limit=512)
    found = values_of(evaluation.represent(*HALF))
    images = evaluation.degraded(*HALF, 0, ATTENTION_IMAGES)
    whole = dict.fromkeys(range(1, vit.taps.blocks + 1), lambda scores: {"scores": scores})
    with torch.inference_mode(), vit.taps.capture(patches=False, attention=whole) as features:
        vit.classifier(images)
    grid = vit.taps.grid
    for (block, _), scores in features.attention.items():
        expected = {name: v.double().mean(0) for name, v in attention_values(scores, vit.taps.prefix, grid).items()}
        expected["attention_distance_ratio"] = expected["attention_distance"] / uniform_distance(grid)
        for name in ATTENTION:
            for head, value in enumerate(expected[name].tolist()):
                assert found[name, block, head, "patch"] == pytest.approx(value, abs=1e-5)
            assert found[name, block, None, "patch"] == pytest.approx(float(expected[name].mean()), abs=1e-5)


@pytest.mark.thorough  # makes ten replicates of every layer
def test_replicates_are_the_values_without_a_tenth_of_the_images(evaluate: Build, vit: LoadedModel) -> None:
    evaluation = evaluate(vit, limit=512, jackknife=True)
    made = evaluation.represent(*CLEAN)
    tokens = evaluation.clean_tokens("cls")[2]
    labels = evaluation.sample.labels
    rank = {int(label): 0 for label in labels}
    group = []
    for label in labels.tolist():
        group.append(rank[label] // 2 % 10)
        rank[label] += 1
    for g in (0, 7):
        expected = separability_profile(tokens, labels, left_out=torch.tensor(group) == g)
        for name in SEPARABILITY:
            assert made.replicates[column(name, 2, "cls")][g] == pytest.approx(getattr(expected, name)), name
    images = evaluation.degraded(*CLEAN, 0, ATTENTION_IMAGES)
    whole = {1: lambda scores: {"scores": scores}}
    with torch.inference_mode(), vit.taps.capture(patches=False, attention=whole) as features:
        vit.classifier(images)
    values = attention_values(features.attention[1, "scores"], vit.taps.prefix, vit.taps.grid)
    distance = values["attention_distance"].mean(1)
    kept = [i for i in range(ATTENTION_IMAGES) if i % 10 != 7]
    found = made.replicates[column("attention_distance", 1, "patch")][7]
    assert found == pytest.approx(float(distance[kept].mean()), abs=1e-5)
    for record in made.records:
        if record["indicator"] in SEPARABILITY and record["value"] is not None:
            assert record["low"] <= record["value"] <= record["high"], record
    assert Representation.from_dict(made.to_dict()) == made
    assert not evaluation.represent(*HALF).replicates
    assert not evaluate(vit, limit=512).represent(*CLEAN).replicates


def test_classes_too_small_for_tenths_have_no_replicates(tmp_path: Path, random_suite: Build, vit: LoadedModel) -> None:
    few = random_suite(8 * 19)  # eight classes
    evaluation = Evaluation(few, vit, Settings(jackknife=True), tmp_path, "run")
    try:
        made = evaluation.represent(*CLEAN)
    finally:
        evaluation.close()
    assert not any(name.startswith("separability") for name in made.replicates)
    assert made.value("separability", 1, "cls") is not None


@pytest.fixture(scope="module")
def represented(two_classes: Suite, small_vit: Build, tmp_path_factory: pytest.TempPathFactory) -> Representation:
    evaluation = Evaluation(
        two_classes, loaded(small_vit(num_classes=2)), Settings(), tmp_path_factory.mktemp("scratch"), "run"
    )
    try:
        return evaluation.represent(*CLEAN)
    finally:
        evaluation.close()


def test_value_is_asked_for_by_name(evaluate: Build, vit: LoadedModel) -> None:
    made = evaluate(vit, limit=512).represent(*HALF)
    values = values_of(made)
    for key in (("separability", 2, "cls", None), ("attention_distance", 1, "patch", 0), ("retention", 2, "cls", None)):
        indicator, layer, token, head = key
        assert made.value(indicator, layer, token, head) == values[indicator, layer, head, token] is not None
    assert made.value("separability", 0, "cls") is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("separable", 1, "cls"), "the representation has no indicator separable: name one of separability, "),
        (("separability", 4, "cls"), "separability has no layer 4: name one of 0, 1, 2, 3"),
        (("attention_distance", 0, "patch"), "attention_distance has no layer 0: name one of 1, 2"),
        (("attention_distance", 1, "cls"), "attention_distance, layer 1 has no token cls: name one of patch"),
        (
            ("attention_distance", 1, "patch", 9),
            "attention_distance, layer 1, token patch has no head 9: name one of None, 0, 1",
        ),
        (("separability", 1, "cls", 0), "separability, layer 1, token cls has no head 0: name one of None"),
    ],
)
def test_layer_or_head_that_does_not_exist_is_named_with_those_that_do(
    represented: Representation, asked: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(RepresentationError) as caught:
        represented.value(*asked)
    assert str(caught.value).startswith(message)


def test_intervals_hold_their_value(evaluate: Build, vit: LoadedModel) -> None:
    for record in evaluate(vit, limit=512).represent(*BLUR).records:
        if record["low"] is not None:
            assert record["low"] <= record["value"] <= record["high"]


# --------------------------------------------------------------------------- whatever else runs


@pytest.mark.thorough  # represents four times
def test_limit_and_batch_do_not_change_what_the_sample_says(evaluate: Build, vit: LoadedModel) -> None:
    whole = values_of(evaluate(vit, limit=0).represent(*HALF))
    for settings in ({"limit": 512}, {"limit": 512, "batch_size": 7}, {"limit": 0, "batch_size": 512}):
        other = values_of(evaluate(vit, **settings).represent(*HALF))
        for key, value in whole.items():
            if key[0] in (*SEPARABILITY, *ATTENTION):
                assert other[key] == (None if value is None else pytest.approx(value, abs=0.02)), key


@pytest.mark.parametrize("limit", [0, 512])
def test_one_forward_pass_feeds_the_cell_and_its_representation(
    evaluate: Build, vit: LoadedModel, suite: Suite, limit: int
) -> None:
    alone = evaluate(vit, limit=limit)
    expected_row, expected = alone.run(*HALF).row, alone.represent(*HALF)
    seen, hook = forwards(vit)
    both = evaluate(vit, ("random_patch-0.50",), limit=limit)
    row, representation = both.run(*HALF).row, both.represent(*HALF)
    hook.remove()
    beyond = both.sample.blocks.stop * BLOCK
    assert sum(seen) == 2 * max(both.images, min(beyond, len(suite.manifest.ids)))  # clean and degraded, once each
    assert values_of(representation) == values_of(expected)
    for name, value in row.to_dict().items():
        if name not in ("seconds", "images_per_second"):
            assert value == getattr(expected_row, name), name


def test_representation_has_the_profile_of_its_cell(evaluate: Build, vit: LoadedModel) -> None:
    evaluation = evaluate(vit, limit=0)
    assert evaluation.sample.blocks.stop == len(evaluation.blocks)  # so both are of the same images
    of_cell = {
        (r["indicator"], r["layer"], r["head"], r["token"]): r["value"] for r in evaluation.run(*BLUR).indicators
    }
    found = values_of(evaluation.represent(*BLUR))
    shared = {key: value for key, value in of_cell.items() if not key[0].endswith("flip_auc")}
    assert shared.items() <= found.items()


def test_record_keeps_all(evaluate: Build, vit: LoadedModel) -> None:
    made = evaluate(vit, limit=512).represent(*BLUR)
    assert Representation.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert made.identity["degradation"] == "gaussian_blur"
    for other in ({}, {**made.to_dict(), "mood": "good"}):
        with pytest.raises(ValueError, match="not a representation"):
            Representation.from_dict(other)


# --------------------------------------------------------------------------- who takes part


def test_encoder_is_represented_and_classifies_nothing(evaluate: Build, small_vit: Build) -> None:
    encoder = loaded(small_vit(num_classes=0), "encoder", head=False)
    evaluation = evaluate(encoder, ("clean-0.00", "random_patch-0.50"), limit=512)
    for condition in (CLEAN, HALF, DROP):
        values = values_of(evaluation.represent(*condition))
        assert values["separability", 2, None, "mean_patch"] is not None
        assert ("alignment", 2, None, "cls") in values or condition == CLEAN
    with pytest.raises(EvaluationError, match="registered with head=False: it joins representation items only"):
        evaluation.run(*HALF)
    assert evaluation.identity(*HALF)["label_map"] == "no classifier"


def test_cnn_has_stages_but_no_attention(evaluate: Build, small_resnet: Build) -> None:
    records = evaluate(loaded(small_resnet(), "cnn"), limit=512).represent(*HALF).records
    by_name: dict[str, set[str | None]] = {}
    for record in records:
        by_name.setdefault(record["indicator"], set()).add(record["reason"])
    assert None in by_name["separability"]
    assert by_name["attention_distance"] == {"a convolutional network has no attention heads"}


# --------------------------------------------------------------------------- token_drop


@pytest.mark.parametrize(("pool", "level"), [("token", 0.5), ("avg", 0.1), ("avg", 0.9)])
def test_token_drop_is_a_forward_pass_without_the_tokens(
    evaluate: Build, small_vit: Build, pool: str, level: float
) -> None:
    network = small_vit(global_pool=pool)
    model = loaded(network)
    evaluation = evaluate(model, limit=512)
    result = evaluation.run("token_drop", Level(level))
    hidden = hidden_tokens(level, evaluation.inputs.setting(0, 512), model.taps.grid)
    images = evaluation.degraded("clean", Level(0.0), 0, 512)
    prefix = network.num_prefix_tokens
    predictions, cosines = [], []
    with torch.inference_mode():
        for image, row in zip(images, hidden, strict=True):
            kept = [*range(prefix), *(prefix + i for i in range(16) if not row[i])]
            normalised = ((image - 0.45) / 0.25)[None]
            tokens = whole = network.norm_pre(network._pos_embed(network.patch_embed(normalised)))
            tokens = whole[:, kept]
            for block in network.blocks:
                tokens, whole = block(tokens), block(whole)
            logits = network.forward_head(network.norm(tokens))
            predictions.append(int(logits.argmax()))
            one, other = whole[0, [i for i in kept if i >= prefix]].mean(0), tokens[0, prefix:].mean(0)
            cosines.append(float(torch.cosine_similarity(one, other, dim=0)))
    assert (result.prediction == np.array(predictions)).mean() > 0.995  # rounding may turn a tie
    assert result.row.alignment_mean_patch == pytest.approx(np.mean(cosines), abs=1e-4)
    assert result.row.family == "token_drop"
    values = {(r["indicator"], r["layer"], r["token"]): r["value"] for r in result.indicators if r["head"] is None}
    assert 0 <= values["retention", 2, "patch"] <= 1
    assert values["alignment_centered", 2, "patch"] is not None
    assert values["alignment", 3, "mean_patch"] is not None


def test_tokens_dropped_at_a_level_are_dropped_at_a_higher_one(evaluate: Build, vit: LoadedModel) -> None:
    setting = evaluate(vit, limit=512).inputs.setting(0, 100)
    lower = torch.zeros(100, 16, dtype=torch.bool)
    for level in (0.1, 0.25, 0.5, 0.75, 0.9, 1.0):
        hidden = hidden_tokens(level, setting, (4, 4))
        assert bool((hidden | lower).equal(hidden))
        assert hidden.sum(1).unique().tolist() == [min(round(16 * level), 15)]
        lower = hidden


def test_token_drop_of_level_zero_changes_nothing(evaluate: Build, vit: LoadedModel) -> None:
    evaluation = evaluate(vit, limit=512)
    assert (evaluation.run("token_drop", Level(0.0)).prediction == evaluation.clean.prediction).all()


def test_token_drop_is_the_same_however_it_is_batched(evaluate: Build, vit: LoadedModel) -> None:
    results = [evaluate(vit, limit=0, batch_size=size).run(*DROP) for size in (64, 50, 512)]
    for other in results[1:]:
        assert (other.prediction == results[0].prediction).mean() > 0.998
        for name in ("alignment_mean_patch", "alignment_centered_mean_patch", "retention", "retention_adjusted"):
            assert getattr(other.row, name) == pytest.approx(getattr(results[0].row, name), abs=1e-4)


@pytest.mark.parametrize(
    ("represented", "batch_size"), [(("token_drop-0.50",), 64), ((), 1024), (("token_drop-0.50",), 1024)]
)
def test_token_drop_beyond_the_probe_images_is_the_same_however_it_is_run(
    evaluate: Build, vit: LoadedModel, represented: tuple[str, ...], batch_size: int
) -> None:
    """Patch tokens are compared on the probe images alone, though the sample, or a large batch, asks for more."""
    expected = evaluate(vit, limit=0).run(*DROP)
    assert expected.row.n > 2 * BLOCK
    other = evaluate(vit, represented, limit=0, batch_size=batch_size).run(*DROP)
    assert (other.prediction == expected.prediction).mean() > 0.998
    by_name = {(r["indicator"], r["layer"], r["head"], r["token"]): r["value"] for r in other.indicators}
    for record in expected.indicators:
        if not record["indicator"].endswith("flip_auc"):
            value = by_name[record["indicator"], record["layer"], record["head"], record["token"]]
            assert value == (None if record["value"] is None else pytest.approx(record["value"], abs=1e-4))


def test_model_without_tokens_has_no_such_cell(evaluate: Build, small_resnet: Build) -> None:
    evaluation = evaluate(loaded(small_resnet(), "cnn"), limit=512)
    result = evaluation.run(*DROP)
    assert (result.row.status, result.row.n, result.row.top1) == ("not_applicable", 0, None)
    assert result.reason == "a convolutional network has no tokens"
    records = evaluation.represent(*DROP).records
    assert {r["value"] for r in records} == {None}


# --------------------------------------------------------------------------- flips


def test_flips_are_foretold_as_by_counting_pairs(evaluate: Build, vit: LoadedModel) -> None:
    """An AUC is the share of pairs of a flipped and an unflipped image of which the flipped one is aligned worse."""
    evaluation = evaluate(vit, limit=512)
    result = evaluation.run(*HALF)
    [record] = [r for r in result.indicators if r["indicator"] == "alignment_flip_auc"]
    with torch.inference_mode(), vit.taps.capture(patches=False) as clean:
        vit.classifier(evaluation.degraded(*CLEAN, 0, 512))
    with torch.inference_mode(), vit.taps.capture(patches=False) as degraded:
        vit.classifier(evaluation.degraded(*HALF, 0, 512))
    scores = torch.cosine_similarity(clean.tokens[2, "mean_patch"], degraded.tokens[2, "mean_patch"]).numpy()
    flipped = result.prediction != evaluation.clean.prediction
    worse = scores[flipped][:, None] < scores[~flipped][None]
    assert record["value"] == pytest.approx(float(worse.mean()), abs=1e-3)
    assert record["low"] <= record["value"] <= record["high"]
