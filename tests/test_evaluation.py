"""The one loop, against a loop over single images written from the definitions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import ImageNetInfo
from torch import Tensor, nn

from mae_bench.cells import Level
from mae_bench.degradations import Setting, degradation
from mae_bench.evaluation import Evaluation, EvaluationError
from mae_bench.forward_pass import ForwardPassError
from mae_bench.images import BLOCK
from mae_bench.indicators.alignment import INDICATORS as ALIGNMENTS
from mae_bench.indicators.retention import INDICATORS as RETENTIONS
from mae_bench.models.classifier import Classifier
from mae_bench.models.pool import LoadedModel, Pool
from mae_bench.models.registry import ModelEntry
from mae_bench.models.taps import KINDS
from mae_bench.rows import IDENTITY, CellResult, ResultRow, identity_difference
from mae_bench.settings import Settings
from mae_bench.shard import Shard
from mae_bench.suites import LabelMap, StoredImages, Suite, SuiteError

Build = Callable[..., Any]

SEED = 3
HALF = ("random_patch", Level(0.5))
CELLS = [HALF, ("motion_blur", Level(7.0))]
TIMING = ("seconds", "images_per_second")
INDICATOR_FIELDS = (
    *(f"{name}_{kind}" for name in ALIGNMENTS for kind in ("cls", "mean_patch")),
    *RETENTIONS,
)


def loaded(module: nn.Module, name: str = "vit", channels: int = 1, **preprocessing: Any) -> LoadedModel:
    defaults: dict[str, Any] = {
        "mean": (0.45, 0.5, 0.4)[:channels],
        "std": (0.25, 0.3, 0.2)[:channels],
        "input_size": (channels, 28, 28),
        "crop_pct": 0.9,
    }
    model = Classifier(module, **(defaults | preprocessing))
    return Pool("cpu").load(ModelEntry(name), lambda: model)


def linear(outputs: int = 8, channels: int = 1, scale: float = 1.0) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(channels * 28 * 28, outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * scale)
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


def row_of(result: CellResult, *ignored: str) -> dict[str, Any]:
    return {name: value for name, value in result.row.to_dict().items() if name not in (*TIMING, *ignored)}


def values_of(result: CellResult) -> dict[tuple[str, int, int | None, str], float | None]:
    """Every indicator by name, layer, head and token kind; each may be recorded once."""
    values = {(r["indicator"], r["layer"], r["head"], r["token"]): r["value"] for r in result.indicators}
    assert len(values) == len(result.indicators)
    return values


def reasons_of(result: CellResult) -> dict[tuple[str, int, int | None, str], str | None]:
    return {(r["indicator"], r["layer"], r["head"], r["token"]): r["reason"] for r in result.indicators}


@pytest.fixture(scope="module")
def suite(random_suite: Build) -> Suite:
    """Two whole blocks and a short one."""
    built: Suite = random_suite(600)
    return built


@pytest.fixture(scope="module")
def small_suite(random_suite: Build) -> Suite:
    """One whole block and a short one, all of it probe."""
    built: Suite = random_suite(300)
    return built


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, as evaluations of one run share it: images are decoded once."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def evaluate(scratch: Path) -> Iterator[Build]:
    """Makes evaluations that are closed in the end."""
    made = []

    def build(suite: Suite, model: LoadedModel, **changes: Any) -> Evaluation:
        chosen = replace(Settings(batch_size=64, seed=SEED), **changes)
        made.append(Evaluation(suite, model, chosen, scratch, "run"))
        return made[-1]

    yield build
    for evaluation in made:
        evaluation.close()


@pytest.fixture(scope="module")
def vit(small_vit: Build) -> LoadedModel:
    return loaded(small_vit())


@pytest.fixture(scope="module")
def vit_cells(evaluate: Build, suite: Suite, vit: LoadedModel) -> Evaluation:
    made: Evaluation = evaluate(suite, vit)
    return made


# --- an evaluation by hand ---


def prepared(suite: Suite, model: LoadedModel) -> Tensor:
    transform = model.classifier.view.transform()
    shown = [torch.as_tensor(transform(suite.read(i))) for i in range(len(suite.manifest.ids))]
    return torch.stack(shown).float() / 255


def degraded_alone(suite: Suite, image: Tensor, position: int, name: str, level: Level) -> Tensor:
    """One image, degraded as a batch of its own."""
    word = int(suite.manifest.ids[position][:16], 16)
    key = torch.tensor([word - 2**64 if word >= 2**63 else word])
    changed: Tensor = degradation(name).apply(image[None], level, Setting(key, SEED, 28, suite.mean))
    return changed[0]


def forward_alone(model: LoadedModel, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.classifier(image[None]) for image in images])


def vit_features(by_hand: Build, model: LoadedModel, images: Tensor) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """(layer, kind) to tokens and (block, kind) to head outputs; patches of the probe alone."""
    network: Any = model.classifier.module
    mean = torch.tensor(model.classifier.mean)[:, None, None]
    std = torch.tensor(model.classifier.std)[:, None, None]
    tokens, heads, _ = by_hand(network, (images - mean) / std)
    if network.global_pool == "avg":
        tokens = tokens[:-1]
    found: list[dict[Any, Any]] = [{}, {}]
    for kept, first, layers in ((found[0], 0, tokens), (found[1], 1, heads)):
        for layer, values in enumerate(layers, start=first):
            body = values[:, network.num_prefix_tokens :].numpy()
            kept[layer, "cls"] = values[:, 0].numpy()
            kept[layer, "mean_patch"] = body.mean(1)
            kept[layer, "patch"] = body[: 2 * BLOCK]
    if network.global_pool == "avg":
        mean_patch = network.fc_norm(torch.as_tensor(found[0][2, "mean_patch"])).detach().numpy()
        found[0][3, "mean_patch"] = mean_patch
    return found[0], found[1]


def stage_features(model: LoadedModel, images: Tensor) -> tuple[dict[Any, Any], dict[Any, Any]]:
    network: Any = model.classifier.module
    with torch.no_grad():
        x = (images - model.classifier.mean[0]) / model.classifier.std[0]
        x = network.act1(network.bn1(network.conv1(x)))
        stages = [x]
        x = network.maxpool(x)
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            x = stage(x)
            stages.append(x)
    means = {(layer, "mean_patch"): x.mean((2, 3)).numpy() for layer, x in enumerate(stages, start=1)}
    means[6, "mean_patch"] = means[5, "mean_patch"]
    return means, {}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def alignment_by_hand(clean: np.ndarray, degraded: np.ndarray) -> dict[str, float]:
    """(images, tokens, width), means over the tokens of an image, then over images."""
    center = clean[: 2 * BLOCK].astype(np.float64).mean(0)
    total = dict.fromkeys(ALIGNMENTS, 0.0)
    for x, y in zip(clean.astype(np.float64), degraded.astype(np.float64), strict=True):
        for token in range(len(x)):
            a, b = x[token], y[token]
            total["alignment"] += cosine(a, b) / len(x)
            total["alignment_centered"] += cosine(a - center[token], b - center[token]) / len(x)
            total["correlation"] += cosine(a - a.mean(), b - b.mean()) / len(x)
    return {name: value / len(clean) for name, value in total.items()}


def retention_by_hand(clean: np.ndarray, degraded: np.ndarray, heads: list[int]) -> dict[str, float]:
    """(observations, heads, width), of the chosen heads together; the probe is the first two blocks of images."""
    overlap = was_active = newly = expected = 0.0
    probe = len(clean) if len(clean) > 600 else 2 * BLOCK  # patches are of the probe already
    for h in heads:
        threshold = np.quantile(np.abs(clean[:probe, h]), 0.75)
        for j in range(clean.shape[2]):
            was, is_now = np.abs(clean[:, h, j]) > threshold, np.abs(degraded[:, h, j]) > threshold
            overlap += (was & is_now).sum()
            newly += (is_now & ~was).sum()
            was_active += was.sum()
            expected += len(was) * was.mean() * is_now.mean()
    return {
        "retention": overlap / was_active,
        "retention_adjusted": (overlap - expected) / (was_active - expected),
        "newly_active": newly / was_active,
    }


def outcomes_by_hand(logits: Tensor, targets: np.ndarray, clean: Tensor) -> dict[str, float]:
    total = dict.fromkeys(("top1", "top5", "nll", "flip_rate", "clean"), 0.0)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, before, target in zip(logits.tolist(), clean.tolist(), targets.tolist(), strict=True):
        ranked = sorted(range(len(row)), key=lambda c: (-row[c], c))
        clean_prediction = before.index(max(before))
        log_sum = max(row) + math.log(sum(math.exp(value - max(row)) for value in row))
        confidence, hit = math.exp(max(row) - log_sum), ranked[0] == target
        bins.setdefault(min(math.ceil(confidence * 15), 15), []).append((confidence, hit))
        total["top1"] += hit
        total["top5"] += target in ranked[:5]
        total["nll"] += log_sum - row[target]
        total["flip_rate"] += ranked[0] != clean_prediction
        total["clean"] += clean_prediction == target
    n = len(logits)
    ece = sum(abs(sum(c for c, _ in members) - sum(h for _, h in members)) for members in bins.values()) / n
    result = {name: value / n for name, value in total.items()}
    return result | {"ece": ece, "retained": result["top1"] / result.pop("clean")}


class Subject:
    """A model, its cells as the package gives them, and what the reference needs, computed once."""

    def __init__(self, evaluation: Evaluation, features: Build) -> None:
        self.evaluation, self.suite, self.model = evaluation, evaluation.suite, evaluation.model
        self.features = features
        self.images = prepared(self.suite, self.model)
        self.run = cache(self.evaluation.run)
        self.pixels = cache(self._pixels)
        self.logits = cache(lambda *condition: forward_alone(self.model, self.pixels(*condition)))
        self.found = cache(lambda *condition: self.features(self.model, self.pixels(*condition)))

    def _pixels(self, name: str, level: Level) -> Tensor:
        if name == "clean":
            return self.images
        return torch.stack([degraded_alone(self.suite, x, i, name, level) for i, x in enumerate(self.images)])


CLEAN = ("clean", Level(0.0))


@pytest.fixture(scope="module")
def subject(vit_cells: Evaluation, vit_by_hand: Build) -> Subject:
    return Subject(vit_cells, lambda model, images: vit_features(vit_by_hand, model, images))


@pytest.fixture(scope="module")
def average_subject(evaluate: Build, suite: Suite, small_vit: Build, vit_by_hand: Build) -> Subject:
    model = loaded(small_vit(seed=1, global_pool="avg"), "average")
    return Subject(evaluate(suite, model), lambda model, images: vit_features(vit_by_hand, model, images))


@pytest.fixture(scope="module")
def cnn_subject(evaluate: Build, suite: Suite, small_resnet: Build) -> Subject:
    return Subject(evaluate(suite, loaded(small_resnet(), "cnn")), stage_features)


@pytest.fixture(
    scope="module", params=["subject", pytest.param("average_subject", marks=pytest.mark.thorough), "cnn_subject"]
)
def any_subject(request: pytest.FixtureRequest) -> Subject:
    made: Subject = request.getfixturevalue(request.param)
    return made


@pytest.mark.parametrize("condition", [CLEAN, *CELLS], ids=lambda condition: condition[0])
def test_a_row_is_that_of_a_loop_over_single_images(any_subject: Subject, condition: tuple[str, Level]) -> None:
    suite = any_subject.suite
    row = any_subject.run(*condition).row
    logits = any_subject.logits(*condition)
    expected = outcomes_by_hand(logits, suite.manifest.labels, any_subject.logits(*CLEAN))
    for name, value in expected.items():
        assert getattr(row, name) == pytest.approx(value, rel=1e-4, abs=1e-5), name
    # the laws above would hold of a model that sees nothing
    assert len(set(any_subject.run(*condition).prediction.tolist())) > 2
    assert condition == CLEAN or 0 < row.flip_rate < 1


@pytest.mark.parametrize("condition", [CLEAN, *CELLS], ids=lambda condition: condition[0])
def test_predictions_are_those_of_single_images(any_subject: Subject, condition: tuple[str, Level]) -> None:
    logits = any_subject.logits(*condition)
    top = logits.topk(2).values
    clear = (top[:, 0] - top[:, 1] > 1e-4).numpy()
    assert clear.mean() > 0.9
    predicted = any_subject.run(*condition).prediction
    assert (predicted[clear] == logits.argmax(1).numpy()[clear]).all()


@pytest.mark.parametrize("condition", CELLS, ids=lambda condition: condition[0])
def test_alignments_are_those_of_a_loop_over_images_and_tokens(
    any_subject: Subject, condition: tuple[str, Level]
) -> None:
    measured = values_of(any_subject.run(*condition))
    clean, degraded = any_subject.found(*CLEAN)[0], any_subject.found(*condition)[0]
    checked = 0
    for layer in range(any_subject.model.taps.blocks + 2):
        for kind in KINDS:
            key = (layer, kind)
            if key not in clean or key == (0, "cls"):
                assert all(measured[name, layer, None, kind] is None for name in ALIGNMENTS)
                continue
            x, y = ((v if kind == "patch" else v[:, None]) for v in (clean[key], degraded[key]))
            for name, value in alignment_by_hand(x, y).items():
                assert measured[name, layer, None, kind] == pytest.approx(value, abs=2e-5), (name, key)
                checked += 1
    assert checked >= 18
    assert {layer for _, layer, _, _ in measured} == set(range(any_subject.model.taps.blocks + 2))


@pytest.mark.parametrize("condition", CELLS, ids=lambda condition: condition[0])
@pytest.mark.parametrize("which", ["subject", "average_subject"])
def test_retentions_are_those_of_a_loop_over_heads_and_features(
    request: pytest.FixtureRequest, which: str, condition: tuple[str, Level]
) -> None:
    subject: Subject = request.getfixturevalue(which)
    measured = values_of(subject.run(*condition))
    clean, degraded = subject.found(*CLEAN)[1], subject.found(*condition)[1]
    for block in (1, 2):
        for kind in KINDS:
            x, y = (v.reshape(-1, *v.shape[-2:]) for v in (clean[block, kind], degraded[block, kind]))
            for head in (None, 0, 1):
                expected = retention_by_hand(x, y, [0, 1] if head is None else [head])
                for name, value in expected.items():
                    # one feature at its threshold may be counted otherwise after rounding
                    assert measured[name, block, head, kind] == pytest.approx(value, abs=2e-3), (name, block, head)


@pytest.mark.parametrize("condition", CELLS, ids=lambda condition: condition[0])
def test_a_row_holds_the_indicators_of_the_last_block(any_subject: Subject, condition: tuple[str, Level]) -> None:
    result = any_subject.run(*condition)
    measured, last = values_of(result), any_subject.model.taps.blocks
    for name in ALIGNMENTS:
        for kind in ("cls", "mean_patch"):
            assert getattr(result.row, f"{name}_{kind}") == measured[name, last, None, kind]
    for name in RETENTIONS:
        assert getattr(result.row, name) == measured[name, last, None, "mean_patch"]
    assert result.row.alignment_mean_patch is not None


def test_what_is_null_gives_a_reason_and_nothing_else_does(any_subject: Subject) -> None:
    for record in any_subject.run(*HALF).indicators:
        if record["value"] is None:
            assert record["reason"] not in (None, "", "few_blocks"), record
            assert (record["low"], record["high"]) == (None, None), record
        else:
            assert math.isfinite(record["value"]), record
            if record["indicator"].endswith("_flip_auc"):
                assert 0 <= record["low"] <= record["value"] <= record["high"] <= 1
                continue
            # three blocks are too few for an interval, which only means over images have
            assert (record["low"], record["high"]) == (None, None), record
            assert record["reason"] == ("few_blocks" if record["indicator"] in ALIGNMENTS else None), record


def test_reasons_say_what_is_missing(subject: Subject, average_subject: Subject, cnn_subject: Subject) -> None:
    assert reasons_of(subject.run(*HALF))["alignment", 0, None, "cls"] == "constant"
    assert reasons_of(average_subject.run(*HALF))["alignment", 3, None, "cls"] == "no cls token"
    reasons = reasons_of(cnn_subject.run(*HALF))
    assert reasons["alignment", 5, None, "cls"] == "no cls token"
    assert reasons["retention", 5, None, "mean_patch"] == "a convolutional network has no attention heads"


def test_retention_of_a_cnn_is_null(cnn_subject: Subject) -> None:
    row = cnn_subject.run(*HALF).row
    assert (row.retention, row.retention_adjusted, row.newly_active, row.alignment_cls) == (None, None, None, None)


def test_accuracies_carry_wilson_s_interval(subject: Subject) -> None:
    row, z = subject.run(*HALF).row, 1.959963984540054
    for p, low, high in ((row.top1, row.top1_low, row.top1_high), (row.top5, row.top5_low, row.top5_high)):
        center = (p + z * z / 1200) / (1 + z * z / 600)
        half = z * math.sqrt(p * (1 - p) / 600 + z * z / (4 * 600**2)) / (1 + z * z / 600)
        assert (low, high) == (pytest.approx(center - half), pytest.approx(center + half))


def test_near_ties_are_counted(evaluate: Build, small_suite: Suite) -> None:
    model = loaded(linear(scale=3e-5), "linear")
    row = evaluate(small_suite, model).run(*HALF).row
    images = prepared(small_suite, model)
    changed = torch.stack([degraded_alone(small_suite, x, i, *HALF) for i, x in enumerate(images)])
    top = forward_alone(model, changed).topk(2).values
    margins = top[:, 0] - top[:, 1]
    sure, possible = int((margins < 0.99e-4).sum()), int((margins < 1.01e-4).sum())
    assert 0 < sure <= row.near_ties <= possible < 300


# --- the clean cell and level zero ---


def test_the_clean_cell_keeps_all_and_has_no_indicators(subject: Subject) -> None:
    result = subject.evaluation.clean
    row = result.row
    assert (row.family, row.degradation, row.level, row.unit) == ("clean", "clean", 0.0, "none")
    assert (row.retained, row.flip_rate, row.status, row.n, row.n_expected) == (1, 0, "ok", 600, 600)
    assert all(getattr(row, name) is None for name in INDICATOR_FIELDS)
    assert subject.evaluation.run(*CLEAN) is result


@pytest.mark.parametrize("name", ["random_patch_uniform", "gaussian_blur", "center_block"])
def test_a_degradation_of_level_zero_changes_nothing(subject: Subject, name: str) -> None:
    result = subject.evaluation.run(name, Level(0.0))
    row, clean = result.row, subject.evaluation.clean.row
    assert (row.flip_rate, row.retained) == (0, 1)
    assert (row.top1, row.nll, row.ece) == (clean.top1, clean.nll, clean.ece)
    for (indicator, *place), value in values_of(result).items():
        if value is not None:
            assert value == pytest.approx(0 if indicator == "newly_active" else 1, abs=1e-5), place
    assert (row.retention, row.newly_active) == (1, 0)
    assert row.retention_adjusted == pytest.approx(1)


def test_a_model_that_is_never_right_when_clean_retains_nothing_definable(evaluate: Build, random_suite: Build) -> None:
    suite = random_suite(40, classes=("a", "b"))

    class Contrary(nn.Module):
        """Knows the labels and gives the other one."""

        def __init__(self) -> None:
            super().__init__()
            self.position = 0

        def forward(self, images: Tensor) -> Tensor:
            labels = torch.as_tensor(suite.manifest.labels)[self.position : self.position + len(images)]
            self.position += len(labels)
            wrong = torch.zeros(len(images), 2)
            wrong[torch.arange(len(labels)), 1 - labels] = 1
            return wrong

    model = loaded(Contrary(), "contrary")
    model.classifier.module.position = 0
    row = evaluate(suite, model).clean.row
    assert (row.top1, row.retained) == (0, None)


# --- batches, shards, subsets ---


@pytest.mark.parametrize("batch_size", [1, 7, 256, 512, 1024])
def test_rows_do_not_depend_on_the_batch_size(
    evaluate: Build, suite: Suite, vit: LoadedModel, subject: Subject, batch_size: int
) -> None:
    made = evaluate(suite, vit, batch_size=batch_size)
    for condition in (CLEAN, HALF):
        result, expected = made.run(*condition), subject.run(*condition)
        top = subject.logits(*condition).topk(2).values
        clear = (top[:, 0] - top[:, 1] > 1e-4).numpy()
        assert (result.prediction[clear] == expected.prediction[clear]).all()
        assert result.row.batch_size == batch_size
        row, other = row_of(result, "batch_size"), row_of(expected, "batch_size")
        ties = int((~clear).sum())
        for name, value in row.items():
            if isinstance(value, float) and name in RETENTIONS:
                # one feature at its threshold may be counted otherwise after rounding
                assert value == pytest.approx(other[name], abs=2e-3), name
            elif isinstance(value, float):
                assert value == pytest.approx(other[name], rel=1e-5, abs=ties / 600), name
            elif name != "near_ties":
                assert value == other[name], name


@pytest.fixture(scope="module", params=[64, 512])
def shards(
    request: pytest.FixtureRequest, evaluate: Build, suite: Suite, vit: LoadedModel
) -> tuple[Evaluation, CellResult, dict[tuple[int, int], Shard]]:
    made = evaluate(suite, vit, batch_size=request.param)
    ranges = [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3)]
    return made, made.run(*HALF), {(a, b): made.shard(*HALF, range(a, b)) for a, b in ranges}


@settings(max_examples=25)
@given(data=st.data())
def test_shards_merge_to_equal_bits(
    shards: tuple[Evaluation, CellResult, dict[tuple[int, int], Shard]], data: st.DataObject
) -> None:
    made, whole, parts = shards
    partition = data.draw(st.sampled_from([((0, 1), (1, 2), (2, 3)), ((0, 2), (2, 3)), ((0, 1), (1, 3))]))
    merged = Shard()
    for part in data.draw(st.permutations(partition)):
        merged.merge(parts[part])
    result = made.result(*HALF, merged, 1.0)
    assert row_of(result) == row_of(whole)
    assert result.indicators == whole.indicators
    assert result.block_sums == whole.block_sums
    assert np.array_equal(result.prediction, whole.prediction)


def test_shards_that_overlap_are_refused(
    shards: tuple[Evaluation, CellResult, dict[tuple[int, int], Shard]],
) -> None:
    merged = Shard()
    merged.merge(shards[2][0, 2])
    with pytest.raises(ValueError, match="block 1 was counted already"):
        merged.merge(shards[2][1, 3])


def test_a_shard_that_lacks_a_block_is_no_cell(
    shards: tuple[Evaluation, CellResult, dict[tuple[int, int], Shard]],
) -> None:
    made, _, parts = shards
    merged = Shard()
    merged.merge(parts[0, 1])
    merged.merge(parts[2, 3])
    # it would claim to be the first 600 images, and compare its hits with those of all 600 when clean
    with pytest.raises(ValueError, match="block"):
        made.result(*HALF, merged, 1.0)


def test_block_sums_add_up_to_the_row(subject: Subject) -> None:
    result = subject.run(*HALF)
    row, sums = result.row, result.block_sums
    assert sums["images"] == [256, 256, 88]
    assert sum(sums["hits"]) == round(row.top1 * 600)
    assert sum(sums["nll"]) / 600 == pytest.approx(row.nll)
    hit = result.prediction == subject.suite.manifest.labels
    assert sums["hits"] == [hit[:256].sum(), hit[256:512].sum(), hit[512:].sum()]
    for name in ("alignment_cls", "alignment_centered_mean_patch", "correlation_mean_patch"):
        assert sum(sums[name]) / 600 == pytest.approx(getattr(row, name))
    assert sum(sums["active_overlap"]) / sum(sums["active_clean"]) == pytest.approx(row.retention)
    switched_on = sum(sums["active_degraded"]) - sum(sums["active_overlap"])
    assert switched_on / sum(sums["active_clean"]) == pytest.approx(row.newly_active)


@pytest.mark.parametrize("limit", [1, 256, 512])
def test_a_subset_is_a_prefix_of_the_whole(
    evaluate: Build, suite: Suite, vit: LoadedModel, subject: Subject, limit: int
) -> None:
    part = evaluate(suite, vit, limit=limit)
    for condition in (CLEAN, HALF):
        result, whole = part.run(*condition), subject.run(*condition)
        assert (result.row.n, result.row.n_expected, result.row.status) == (512, 600, "partial")
        assert result.row.subset == "first 512 of 600"
        assert np.array_equal(result.prediction, whole.prediction[:512])
        for name, sums in result.block_sums.items():
            assert sums == whole.block_sums[name][:2], name


def test_a_limit_beyond_the_suite_is_all_of_it(evaluate: Build, suite: Suite, vit: LoadedModel) -> None:
    row = evaluate(suite, vit, limit=10_000).clean.row
    assert (row.n, row.status, row.subset) == (600, "ok", "first 600 of 600")


def test_degraded_pixels_do_not_depend_on_who_is_degraded_together(vit_cells: Evaluation) -> None:
    for name, level in (HALF, ("random_patch_uniform", Level(0.25)), ("stripes", Level(0.5))):
        whole = vit_cells.degraded(name, level, 0, 600)
        for start, stop in ((0, 1), (17, 300), (599, 600)):
            assert torch.equal(vit_cells.degraded(name, level, start, stop), whole[start:stop])


def test_the_seed_moves_what_is_hidden_and_stands_in_the_row(
    evaluate: Build, suite: Suite, vit: LoadedModel, subject: Subject
) -> None:
    other = evaluate(suite, vit, seed=SEED + 1)
    assert not torch.equal(other.degraded(*HALF, 0, 5), subject.evaluation.degraded(*HALF, 0, 5))
    assert (other.clean.row.seed, subject.run(*HALF).row.seed) == (SEED + 1, SEED)
    assert row_of(other.clean, "seed") == row_of(subject.run(*CLEAN), "seed")


# --- faults ---


class Poisoned(nn.Module):
    """A linear classifier whose logits are spoilt by ``poison(images, logits)``."""

    def __init__(self, poison: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.linear = linear()
        self.poison = poison

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images).clone()
        self.poison(images, logits)
        return logits


def poisoned(poison: Callable[[Tensor, Tensor], None]) -> LoadedModel:
    # pixels reach the network as they are, so that an image can be recognised there
    return loaded(Poisoned(poison), "poisoned", mean=(0.0,), std=(1.0,))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 255, 280])
def test_one_bad_logit_of_one_image_ends_the_cell(
    evaluate: Build, small_suite: Suite, value: float, position: int
) -> None:
    target = prepared(small_suite, loaded(linear()))[position]

    def poison(images: Tensor, logits: Tensor) -> None:
        logits[(images == target).flatten(1).all(1), 3] = value

    made = evaluate(small_suite, poisoned(poison))
    count = "1 of 44" if position >= 256 else "1 of 256"
    message = rf"cell poisoned-clean-0\.00 is invalid: {count} images .*{small_suite.manifest.ids[position]}; check"
    with pytest.raises(EvaluationError, match=message):
        made.run(*CLEAN)
    with pytest.raises(EvaluationError, match=r"--mae-dtype \(float32\)"):
        made.run(*HALF)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["column", "everything"])
def test_bad_logits_of_all_images_end_the_cell(evaluate: Build, small_suite: Suite, value: float, where: str) -> None:
    def poison(_: Tensor, logits: Tensor) -> None:
        logits[:, slice(2, 3) if where == "column" else slice(None)] = value

    with pytest.raises(EvaluationError, match=f"256 of 256 images .*{small_suite.manifest.ids[0]}"):
        _ = evaluate(small_suite, poisoned(poison)).clean


def test_bad_logits_of_a_degraded_cell_leave_the_others_alone(evaluate: Build, small_suite: Suite) -> None:
    def poison(images: Tensor, logits: Tensor) -> None:
        logits[images[:, 0, 14, 14] == 0] = math.nan  # the suite has no black pixel

    made = evaluate(small_suite, poisoned(poison))
    with pytest.raises(EvaluationError, match=r"cell poisoned-center_block-0\.25 is invalid: 256 of 256 images"):
        made.run("center_block", Level(0.25))
    with pytest.raises(EvaluationError, match=r"cell poisoned-center_block-0\.25 is invalid: 44 of 44 images"):
        made.shard("center_block", Level(0.25), range(1, 2))
    assert made.run("gaussian_blur", Level(1.0)).row.n == 300
    assert made.clean.row.n == 300


def test_overflow_in_half_precision_is_no_score(evaluate: Build, small_suite: Suite) -> None:
    model = loaded(linear(scale=1e5), "large")
    assert evaluate(small_suite, model).clean.row.n == 300
    with pytest.raises(EvaluationError, match=r"cell large-clean-0\.00 is invalid.*--mae-dtype \(float16\)"):
        _ = evaluate(small_suite, model, dtype="float16").clean


def test_a_clean_pass_no_better_than_chance_is_refused_but_where_images_were_chosen_to_be_misclassified(
    evaluate: Build, suite: Suite, vit: LoadedModel
) -> None:
    """Of a network with random weights, on noise."""
    made = evaluate(suite, vit)
    message = (
        r"'vit': clean top-1 \d+\.\d % of 600 images is no better than chance .*: its head is untrained.*label map"
    )
    with pytest.raises(EvaluationError, match=message):
        made.check_chance(made.clean)
    chosen = evaluate(replace(suite, entry=replace(suite.entry, adversarial=True)), vit)
    chosen.check_chance(chosen.clean)


def test_labels_that_a_model_gave_are_no_chance(evaluate: Build, suite: Suite, vit: LoadedModel) -> None:
    predicted = evaluate(suite, vit).clean.prediction
    agreeing = replace(suite, manifest=replace(suite.manifest, labels=predicted.copy()))
    made = evaluate(agreeing, vit)
    assert made.clean.row.top1 == 1
    made.check_chance(made.clean)


def test_logits_that_change_their_shape_end_the_cell(evaluate: Build, small_suite: Suite) -> None:
    class Growing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, : 8 + (len(images) > 2)]

    with pytest.raises(ForwardPassError, match=r"'growing' gave logits of shape \(64, 9\) for 64.*expected \(64, 8\)"):
        _ = evaluate(small_suite, loaded(Growing(), "growing")).clean


@pytest.mark.parametrize("outputs", [7, 9, 1000, 1001])
def test_a_wrong_class_count_names_both_and_the_remedy(
    evaluate: Build,
    small_suite: Suite,
    outputs: int,
    one_thread: None,  # noqa: ARG001
) -> None:
    message = rf"'vit' has {outputs} outputs but suite 'random_images' has 8 classes.*@model_fixture\(suite=\.\.\.\)"
    with pytest.raises(SuiteError, match=message):
        evaluate(small_suite, loaded(linear(outputs)))


def test_a_colour_suite_does_not_fit_a_grey_model(evaluate: Build, random_suite: Build) -> None:
    message = r"'vit' takes 1 channel\(s\) but suite 'random_images' has 3: give the model 3 input channels"
    with pytest.raises(EvaluationError, match=message):
        evaluate(random_suite(40, channels=3), loaded(linear()))


def test_a_grey_suite_fits_a_colour_model(evaluate: Build, random_suite: Build) -> None:
    suite = random_suite(40)
    model = loaded(linear(channels=3), channels=3)
    predicted = evaluate(suite, model).clean.prediction
    assert (predicted == forward_alone(model, prepared(suite, model).expand(-1, 3, -1, -1)).argmax(1).numpy()).all()


def test_a_colour_suite_fits_a_colour_model(evaluate: Build, random_suite: Build) -> None:
    suite = random_suite(40, channels=3)
    model = loaded(linear(channels=3), channels=3)
    result = evaluate(suite, model).run("random_patch_mean", Level(0.5))
    changed = [
        degraded_alone(suite, x, i, "random_patch_mean", Level(0.5)) for i, x in enumerate(prepared(suite, model))
    ]
    assert (result.prediction == forward_alone(model, torch.stack(changed)).argmax(1).numpy()).all()


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("random_patch", Level(1.5)),
        ("random_patch", Level(-0.1)),
        ("random_patch", Level(math.nan)),
        ("snow", Level(5.5, severity=True)),
        ("gaussian_blur", Level(-1.0)),
        ("gaussian_blur", Level(math.inf)),
        ("clean", Level(0.5)),
    ],
    ids=lambda value: str(value),
)
def test_a_level_outside_the_domain_is_refused(vit_cells: Evaluation, name: str, level: Level) -> None:
    with pytest.raises(ValueError, match=f"{name}: level {level} is outside its domain"):
        vit_cells.run(name, level)


class RunsOutOfMemory(nn.Module):
    """Takes no more than ``room`` images at once, as a GPU does."""

    def __init__(self, module: nn.Module, room: int) -> None:
        super().__init__()
        self.module, self.room, self.sizes = module, room, list[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        logits: Tensor = self.module(images)
        return logits


@pytest.mark.parametrize(("batch_size", "fits"), [(64, 16), (256, 32), (512, 64)])
def test_a_batch_too_large_for_memory_is_halved_and_the_row_says_so(
    evaluate: Build, suite: Suite, batch_size: int, fits: int
) -> None:
    network = RunsOutOfMemory(linear(), 600)
    cells = evaluate(suite, loaded(network), batch_size=batch_size)
    whole = cells.run(*HALF)
    network.room = fits + 5
    again = evaluate(suite, loaded(network), batch_size=batch_size)
    halved = again.run(*HALF)
    assert halved.row.batch_size == again.clean.row.batch_size == fits
    assert max(network.sizes[-20:]) <= fits
    assert (halved.prediction == whole.prediction).all()
    assert halved.row.top1 == whole.row.top1


def test_a_model_for_which_one_image_is_too_much_is_refused(evaluate: Build, suite: Suite) -> None:
    model = loaded(RunsOutOfMemory(linear(), 2))
    model.classifier.module.room = 0
    with pytest.raises(ForwardPassError, match="no memory left for a forward pass of a single image"):
        evaluate(suite, model).run(*HALF)


def test_salient_patches_are_hidden_by_the_reference_model_alone(
    evaluate: Build, suite: Suite, vit: LoadedModel, small_vit: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many images as the sample holds, or none, see the same patches hidden, whatever the model under test."""
    seer = Classifier(small_vit(patch_size=4, num_classes=0), mean=(0.4,), std=(0.3,), input_size=(1, 28, 28))
    monkeypatch.setattr("mae_bench.salience.pretrained_encoder", {"seer": seer}.__getitem__)
    seen = replace(suite, entry=replace(suite.entry, salience="seer"))
    level = Level(0.5)
    cells, other = evaluate(seen, vit), evaluate(seen, loaded(linear()), batch_size=17)
    top, bottom = (cells.degraded(name, level, 100, 400) for name in ("salient", "nonsalient"))
    torch.testing.assert_close(
        top, torch.cat([other.degraded("salient", level, i, i + 50) for i in range(100, 400, 50)])
    )
    clean = cells.degraded("clean", Level(0.0), 100, 400)
    hidden = [(part == 0).all(1) for part in (top, bottom)]
    assert not (hidden[0] & hidden[1]).any()
    assert (hidden[0] | hidden[1]).all()
    assert torch.equal(top.where(~hidden[0][:, None], clean), clean.where(~hidden[0][:, None], clean))
    # half of the attention falls on fewer patches where they are the most attended to
    assert hidden[0].float().mean() < hidden[1].float().mean()
    assert cells.run("salient", level).row.unit == "fraction of attention of seer"


def test_published_degraded_images_are_read_and_not_made(
    evaluate: Build, suite: Suite, vit: LoadedModel, scratch: Path
) -> None:
    from PIL import ImageOps

    asked = []

    def stored(name: str, severity: int) -> StoredImages:
        asked.append((name, severity))
        return StoredImages(f"{name} {severity}", lambda position: ImageOps.invert(suite.read(position)))

    entry = replace(suite.entry, stored=("imagenet_c", "c_extra"))
    cells = evaluate(replace(suite, entry=entry, stored=stored), vit)
    level = Level(4.0, severity=True)
    clean, read = cells.degraded("clean", Level(0.0), 0, 300), cells.degraded("fog", level, 0, 300)
    # resizing rounds, in each of its two passes
    assert float((read - (1 - clean)).abs().max()) <= 2.01 / 255
    assert cells.run("fog", level).row.condition == "fog-s4"
    assert set(asked) == {("fog", 4)}
    assert [*scratch.glob("stored-*")]
    cells.close()
    assert not [*scratch.glob("stored-*")]


def test_a_model_chooses_among_the_classes_of_a_masked_suite(evaluate: Build, suite: Suite) -> None:
    network = linear(outputs=12)
    mapped = replace(suite)
    label_map = LabelMap("eight of twelve", (1, 2, 4, 5, 7, 8, 10, 11), masked=True)
    object.__setattr__(mapped, "label_map", lambda *_: label_map)
    cells = evaluate(mapped, loaded(network))
    alone = evaluate(suite, loaded(Among(network, label_map.outputs)))
    assert (cells.run(*HALF).prediction == alone.run(*HALF).prediction).all()
    assert cells.clean.prediction.min() >= 0
    assert cells.clean.row.top1 == alone.clean.row.top1


class Among(nn.Module):
    """Some of the outputs of a network."""

    def __init__(self, module: nn.Module, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.module, self.outputs = module, list(outputs)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(images)[:, self.outputs]
        return logits


def test_an_unknown_degradation_is_answered_with_the_nearest(vit_cells: Evaluation) -> None:
    with pytest.raises(ValueError, match="unknown degradation 'random_pach': did you mean random_patch"):
        vit_cells.run("random_pach", Level(0.5))


# --- one clean pass, files, precision, views ---


def test_the_clean_pass_runs_once_for_all_cells(evaluate: Build, small_suite: Suite) -> None:
    model = loaded(linear(), "counted")
    seen = []
    model.classifier.module.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    made = evaluate(small_suite, model)
    assert sum(seen) == 0
    made.run(*HALF)
    assert sum(seen) == 600
    for condition in (CLEAN, ("gaussian_blur", Level(1.0)), ("border", Level(0.5))):
        made.run(*condition)
    assert made.clean.row.n == 300
    assert sum(seen) == 300 * 4


def test_the_clean_cell_is_the_same_whenever_it_is_asked_for(
    evaluate: Build, small_suite: Suite, vit: LoadedModel
) -> None:
    first, last = evaluate(small_suite, vit), evaluate(small_suite, vit)
    before = first.clean
    last.run(*HALF)
    assert row_of(before) == row_of(last.clean)


def files_below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_closing_removes_the_clean_features_and_keeps_the_images(
    small_suite: Suite, vit: LoadedModel, tmp_path: Path
) -> None:
    made = Evaluation(small_suite, vit, Settings(batch_size=64), tmp_path, "run")
    made.close()
    row = made.run(*HALF).row
    assert any(path.parts[0] != "decoded" for path in files_below(tmp_path))
    made.close()
    made.close()
    assert {path.parts[0] for path in files_below(tmp_path)} == {"decoded"}
    assert [path.name for path in tmp_path.iterdir()] == ["decoded"]
    assert row.n == 300


def test_a_clean_pass_that_failed_leaves_nothing_either(small_suite: Suite, tmp_path: Path) -> None:
    def poison(_: Tensor, logits: Tensor) -> None:
        logits[:] = math.nan

    made = Evaluation(small_suite, poisoned(poison), Settings(batch_size=64), tmp_path, "run")
    for condition in (CLEAN, HALF):
        with pytest.raises(EvaluationError):
            made.run(*condition)
    made.close()
    assert [path.name for path in tmp_path.iterdir()] == ["decoded"]


def test_evaluations_side_by_side_do_not_mix_their_features(
    evaluate: Build, suite: Suite, vit: LoadedModel, small_vit: Build, subject: Subject
) -> None:
    expected = subject.run(*HALF)
    one, other = evaluate(suite, vit), evaluate(suite, loaded(small_vit(seed=5), "other"))
    assert one.clean.row.weights_hash != other.clean.row.weights_hash
    other.run(*HALF)
    other.close()
    assert row_of(one.run(*HALF)) == row_of(expected)


def test_bfloat16_is_computed_and_recorded(evaluate: Build, suite: Suite, vit: LoadedModel, subject: Subject) -> None:
    lowered = evaluate(suite, vit, dtype="bfloat16")
    result, full = lowered.run(*HALF), subject.run(*HALF)
    assert (result.row.dtype, full.row.dtype) == ("bfloat16", "float32")
    assert identity_difference(result.row, subject.evaluation.identity(*HALF)) == ["dtype"]
    images = subject.evaluation.degraded(*HALF, 0, 64)
    low, high = lowered.logits(images), subject.evaluation.logits(images)
    assert low.dtype == torch.float32
    error = (low - high).abs().max() / high.abs().max()
    # eight bits of mantissa show, and no more than that
    assert 1e-5 < error < 0.1
    assert result.row.nll == pytest.approx(full.row.nll, rel=0.1)
    assert result.row.nll != full.row.nll
    assert (result.prediction == full.prediction).mean() > 0.8


def test_the_suite_s_view_is_forced_on_every_model(evaluate: Build, small_suite: Suite) -> None:
    one = loaded(linear(), "one", interpolation="bicubic", crop_pct=0.5)
    other = loaded(linear(), "other", interpolation="bilinear", crop_pct=1.0)
    own = [evaluate(small_suite, model) for model in (one, other)]
    forced = [evaluate(small_suite, model, suite_view=True) for model in (one, other)]
    assert not torch.equal(*(made.degraded(*HALF, 0, 50) for made in own))
    assert torch.equal(*(made.degraded(*HALF, 0, 50) for made in forced))
    rows = [made.clean.row for made in (*own, *forced)]
    assert rows[0].view != rows[1].view
    assert rows[2].view == rows[3].view == "28x28 bilinear center 1.0"
    assert "view" in identity_difference(rows[0], forced[0].identity(*CLEAN))


def test_a_model_that_cannot_take_the_suite_s_view_ends_in_a_clear_error(
    evaluate: Build, random_suite: Build, vit: LoadedModel
) -> None:
    with pytest.raises(EvaluationError, match=r"'vit'.*32.*--mae-view"):
        evaluate(random_suite(40, reference_size=32), vit, suite_view=True)


def test_a_model_without_taps_has_null_indicators_with_a_reason(evaluate: Build, small_suite: Suite) -> None:
    result = evaluate(small_suite, loaded(linear(), "plain")).run(*HALF)
    assert all(getattr(result.row, name) is None for name in INDICATOR_FIELDS)
    assert {r["reason"] for r in result.indicators} == {"the layers of Sequential are not tapped"}
    assert {r["value"] for r in result.indicators} == {None}
    assert {r["indicator"] for r in result.indicators} >= set(ALIGNMENTS)


# --- what a row says of itself ---


def test_a_finished_cell_is_recognised_before_it_is_run(subject: Subject) -> None:
    for condition in (CLEAN, *CELLS):
        identity = subject.evaluation.identity(*condition)
        assert set(identity) == set(IDENTITY) - {"schema_version"}
        assert identity_difference(subject.run(*condition).row, identity) == []
    assert identity_difference(subject.run(*HALF).row, subject.evaluation.identity("stripes", Level(0.25))) == [
        "degradation",
        "level",
    ]


def test_a_row_records_how_it_came_about(subject: Subject) -> None:
    result = subject.run(*HALF)
    row = result.row
    assert (row.suite, row.model, row.family, row.degradation) == ("random_images", "vit", "occlusion", "random_patch")
    assert (row.level, row.unit, row.condition) == (0.5, "fraction of area", "random_patch-0.50")
    assert (row.device, row.dtype, row.batch_size, row.threads, row.seed) == ("cpu", "float32", 64, 1, SEED)
    assert (row.classes, row.run_id, row.view) == (8, "run", "28x28 bilinear center 0.9")
    assert row.manifest_hash == subject.suite.manifest.hash
    assert row.parameters == sum(p.numel() for p in subject.model.classifier.module.parameters())
    assert row.seconds > 0
    assert row.images_per_second == pytest.approx(600 / row.seconds)
    assert ResultRow.from_dict(row.to_dict()) == row


def test_an_automatic_batch_size_is_recorded_as_what_it_was(
    evaluate: Build, small_suite: Suite, vit: LoadedModel
) -> None:
    row = evaluate(small_suite, vit, batch_size=0).clean.row
    assert row.batch_size > 0
    assert row_of(evaluate(small_suite, vit, batch_size=row.batch_size).clean) == row_of(
        evaluate(small_suite, vit, batch_size=0).clean
    )


def test_fewer_than_six_classes_have_no_top_five(evaluate: Build, random_suite: Build) -> None:
    suite = random_suite(40, classes=("a", "b", "c", "d", "e"))
    row = evaluate(suite, loaded(linear(5))).clean.row
    assert (row.top5, row.top5_low, row.top5_high) == (None, None, None)
    assert row.top1 is not None


def test_an_output_that_stands_for_no_class_is_wrong_and_told_apart(evaluate: Build, random_suite: Build) -> None:
    synsets = ImageNetInfo("imagenet-1k").label_names()
    suite = random_suite(60, classes=(synsets[5], synsets[700], synsets[999]))
    model = loaded(linear(1000))
    with torch.no_grad():
        model.classifier.module[1].bias[[5, 999]] += 12.0
    result = evaluate(suite, model).clean
    predicted = forward_alone(model, prepared(suite, model)).argmax(1).tolist()
    expected = [{5: 0, 700: 1, 999: 2}.get(output, -1 - output) for output in predicted]
    assert result.prediction.tolist() == expected
    assert min(expected) < 0 <= max(expected)
    hits = sum(p == label for p, label in zip(expected, suite.manifest.labels.tolist(), strict=True))
    assert result.row.top1 == hits / 60
    assert result.row.top5 is not None
