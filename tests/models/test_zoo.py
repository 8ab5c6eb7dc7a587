"""Models that ship with the package: whole, recorded, trained; and what is said of files that are not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mae_bench.models import ModelError, zoo
from mae_bench.models.classifier import Classifier
from mae_bench.models.zoo import ARCHITECTURES, Card, bundled, cards, digest, load_weights, save_weights
from mae_bench.suites import suite_entry

SHIPPED = sorted(path.stem for path in zoo.WEIGHTS.glob("*.safetensors"))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def first_images() -> tuple[torch.Tensor, np.ndarray]:
    """The first 512 images of the bundled suite, (512, 1, 28, 28) in [0, 1], and their labels."""
    suite = suite_entry("fashion_mnist").load(None)
    pixels = np.stack([np.asarray(suite.read(i)) for i in range(512)])
    return torch.from_numpy(pixels)[:, None].float() / 255, suite.manifest.labels[:512]


def test_there_are_models() -> None:
    assert {"mae_ft_s0", "supervised_s0", "cnn_s0"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_model_is_recorded_and_classifies(name: str, first_images: tuple[torch.Tensor, np.ndarray]) -> None:
    model = bundled(name)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    parameters = sum(p.numel() for p in model.parameters())
    assert 0.25e6 < parameters < 0.35e6

    record = json.loads((zoo.WEIGHTS / f"{name}.json").read_text())
    assert record["recipe"]["name"] == name
    assert record["parameters"] == parameters
    assert record["sha256"] == digest(zoo.WEIGHTS / f"{name}.safetensors")
    if "curve" in record:
        steps = [point["step"] for point in record["curve"]]
        assert steps == sorted(set(steps))
        assert not steps or steps[-1] == record["steps"]
    card = (zoo.WEIGHTS / f"{name}.md").read_text()
    assert card.startswith(f"# {name}\n")
    assert f"{parameters:,} parameters" in card
    if "validation_top1" not in record:  # an encoder
        assert model.get_classifier().__class__ is nn.Identity
        return
    assert f"{100 * record['validation_top1']:.2f} %" in card

    images, labels = first_images
    classifier = Classifier.of(name, model)
    view = classifier.view
    assert (classifier.channels, view.height, view.width, view.crop_pct) == (1, 28, 28, 1.0)
    with torch.inference_mode():
        logits = classifier(images)
    assert logits.shape == (512, 10)
    assert bool(torch.isfinite(logits).all())
    top1 = float((logits.argmax(1).numpy() == labels).mean())
    assert top1 >= 0.75
    # what was measured on the held-out training images holds on others, within four standard errors of 512
    assert top1 == pytest.approx(record["validation_top1"], abs=4 * (0.9 * 0.1 / 512) ** 0.5)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_model_is_rebuilt_tensor_by_tensor(name: str) -> None:
    stored, loaded = load_file(zoo.WEIGHTS / f"{name}.safetensors"), bundled(name).state_dict()
    assert stored.keys() == loaded.keys()
    for key, tensor in stored.items():
        assert bool((tensor.double() == loaded[key].double()).all()), key
        assert bool(torch.isfinite(tensor.double()).all()), key


def test_models_of_one_architecture_are_not_one_model() -> None:
    hashes = {name: Classifier.of(name, bundled(name)).weights_hash() for name in SHIPPED}
    assert len(set(hashes.values())) == len(SHIPPED)


def test_every_model_has_a_card() -> None:
    found = cards()
    assert [card.name for card in found] == SHIPPED
    for card in found:
        assert card.architecture in ARCHITECTURES
        assert card.arm
        assert (card.validation_top1 is None) is (card.arm == "mae_pretrained")
        assert card.validation_top1 is None or 0.75 < card.validation_top1 < 1
        assert card.summary


# --------------------------------------------------------------------------- weights in a folder of one's own


def scattered(name: str, classes: int = 10, seed: int = 0) -> nn.Module:
    """An architecture with random weights and running statistics."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[name].build(classes).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) * 0.2)
    return model


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("classes", [10, 7])
def test_saved_weights_come_back_in_half_precision(weights: Path, architecture: str, classes: int) -> None:
    model = scattered(architecture, classes)
    path = save_weights(model, "mine", architecture, weights)
    assert path == weights / "mine.safetensors"
    loaded = load_weights(weights / "mine.safetensors")
    halved = {key: value.half().float() if value.is_floating_point() else value
              for key, value in model.state_dict().items()}  # fmt: skip
    assert loaded.state_dict().keys() == halved.keys()
    assert all(bool((loaded.state_dict()[key] == value).all()) for key, value in halved.items())
    model.load_state_dict(halved)
    images = torch.rand(2, *ARCHITECTURES[architecture].input_size)
    with torch.inference_mode():
        assert loaded(images).shape == (2, classes)
        assert torch.equal(loaded(images), model(images))


def test_unknown_name_is_refused_with_the_nearest(weights: Path) -> None:
    for name in ("mae_ft_s0", "cnn_s0"):
        (weights / f"{name}.safetensors").touch()
    with pytest.raises(ModelError, match=r"unknown bundled model 'mae_ft_s1': did you mean mae_ft_s0\? Known: cnn_s0"):
        bundled("mae_ft_s1")
    with pytest.raises(ModelError, match="unknown bundled model 'xyz': Known: cnn_s0, mae_ft_s0"):
        bundled("xyz")


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(1000), b"\x80\x04\x95", b"PK\x03\x04"])
def test_file_that_holds_no_tensors_is_refused_with_a_remedy(weights: Path, content: bytes) -> None:
    path = weights / "mine.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"not a safetensors file \(.*install mae_bench again") as caught:
        load_weights(weights / "mine.safetensors")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_file_is_refused(weights: Path, kept: float) -> None:
    path = save_weights(scattered("vit_28_patch4"), "mine", "vit_28_patch4", weights)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_weights(weights / "mine.safetensors")


def test_renamed_pickle_is_not_executed(weights: Path) -> None:
    """What torch.save writes is code; it must not run, whatever the file is called."""

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (weights / "canary",)

    torch.save({"head.weight": Trap()}, weights / "mine.safetensors")
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_weights(weights / "mine.safetensors")
    assert not (weights / "canary").exists()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"architecture": "vit_28_patch8"}, r"unknown architecture 'vit_28_patch8': did you mean vit_28_patch4\?"),
        ({"architecture": "xyz"}, "unknown architecture 'xyz': Known: resnet_28, vit_28_patch4, vit_32_patch4"),
        ({"author": "me"}, "unknown architecture None"),
        (None, "unknown architecture None"),
    ],
)
def test_unknown_architecture_is_refused_with_the_nearest(
    weights: Path, metadata: dict[str, str] | None, message: str
) -> None:
    save_file({"head.weight": torch.zeros(10, 64)}, weights / "mine.safetensors", metadata=metadata)
    with pytest.raises(ModelError, match=message) as caught:
        load_weights(weights / "mine.safetensors")
    assert str(weights / "mine.safetensors") in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "missing"),
    [
        ("vit_28_patch4", "blocks.3.attn.qkv.weight"),
        ("vit_28_patch4", "pos_embed"),
        ("vit_28_patch4", "head.weight"),
        ("vit_28_patch4", "head.bias"),
        ("resnet_28", "fc.weight"),
        ("resnet_28", "layer2.0.bn1.running_mean"),
    ],
)
def test_missing_tensor_is_named(weights: Path, architecture: str, missing: str) -> None:
    state = {key: value.clone() for key, value in scattered(architecture).state_dict().items() if key != missing}
    save_file(state, weights / "mine.safetensors", metadata={"architecture": architecture})
    with pytest.raises(ModelError, match=rf"does not fit \w+: missing: {re.escape(missing)}$") as caught:
        load_weights(weights / "mine.safetensors")
    assert str(weights / "mine.safetensors") in str(caught.value)


def test_tensor_too_many_is_named(weights: Path) -> None:
    state = dict(scattered("vit_28_patch4").state_dict()) | {"decoder.weight": torch.zeros(3)}
    save_file(state, weights / "mine.safetensors", metadata={"architecture": "vit_28_patch4"})
    with pytest.raises(ModelError, match=r"does not fit VisionTransformer: unexpected: decoder\.weight$"):
        load_weights(weights / "mine.safetensors")


def test_tensor_of_another_shape_is_named(weights: Path) -> None:
    state = dict(scattered("vit_28_patch4").state_dict()) | {"pos_embed": torch.zeros(1, 50, 32)}
    save_file(state, weights / "mine.safetensors", metadata={"architecture": "vit_28_patch4"})
    with pytest.raises(
        ModelError, match=r"does not fit .* of another shape: pos_embed \(1 x 50 x 32 instead of 1 x 50 x 64\)"
    ):
        load_weights(weights / "mine.safetensors")


def test_weights_of_another_architecture_are_refused(weights: Path) -> None:
    save_weights(scattered("resnet_28"), "mine", "vit_28_patch4", weights)
    with pytest.raises(ModelError, match="does not fit VisionTransformer: missing: cls_token"):
        load_weights(weights / "mine.safetensors")


def test_cards_are_those_of_the_weights_that_are_there(weights: Path) -> None:
    assert cards() == []
    for path in ("cnn_s0.json", "cnn_s0.safetensors", "mae_ft_s0.json"):
        shutil.copy(Path(zoo.__file__).parent / "weights" / path, weights)
    [card] = cards()
    record = json.loads((weights / "cnn_s0.json").read_text())
    assert card == Card(
        "cnn_s0", "cnn", 0, "resnet_28", record["parameters"], record["validation_top1"], record["recipe"]["summary"]
    )


def test_weights_that_are_not_those_of_their_record_are_refused(weights: Path) -> None:
    for suffix in ("json", "safetensors"):
        shutil.copy(Path(zoo.__file__).parent / "weights" / f"cnn_s0.{suffix}", weights)
    bundled("cnn_s0")
    path = save_weights(scattered("resnet_28"), "cnn_s0", "resnet_28", weights)
    with pytest.raises(ModelError, match="the file was changed; install mae_bench again") as caught:
        bundled("cnn_s0")
    assert str(path) in str(caught.value)
    assert digest(path)[:12] in str(caught.value)
    (weights / "cnn_s0.json").unlink()
    with pytest.raises(ModelError, match=r"cnn_s0\.json is missing, so cnn_s0\.safetensors cannot be checked"):
        bundled("cnn_s0")


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "[" * 100_000, '{"sha256": 7}', '{"parameters": "many"}', "\u202e",
        '{"parameters": 1, "validation_top1": NaN,"recipe": {"arm": "", "seed": 0, "architecture": "","summary": ""}}',
    ],
    ids=["empty", "cut", "list", "null", "deep", "number", "text", "mark", "nan"],
)  # fmt: skip
def test_record_that_is_none_is_named(weights: Path, content: str) -> None:
    shutil.copy(Path(zoo.__file__).parent / "weights" / "cnn_s0.safetensors", weights)
    (weights / "cnn_s0.json").write_text(content)
    for ask in (cards, lambda: bundled("cnn_s0")):
        with pytest.raises(ModelError, match="install mae_bench again") as caught:
            ask()
        assert str(weights / "cnn_s0") in str(caught.value)


@pytest.mark.parametrize("shape", [(), (10**12, 0), (100_001, 0), (7, 65)])
def test_head_that_the_file_only_claims_to_have_is_not_made_room_for(weights: Path, shape: tuple[int, ...]) -> None:
    state = dict(scattered("vit_28_patch4").state_dict()) | {"head.weight": torch.zeros(shape)}
    save_file(state, weights / "mine.safetensors", metadata={"architecture": "vit_28_patch4"})
    with pytest.raises(ModelError, match=r"head\.weight"):
        load_weights(weights / "mine.safetensors")


def test_encoder_comes_back_without_a_classifier(weights: Path) -> None:
    model = scattered("vit_28_patch4", classes=0)
    path = save_weights(model, "encoder", "vit_28_patch4", weights)
    loaded = load_weights(path)
    images = torch.rand(2, 1, 28, 28)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model.half().float()(images))
