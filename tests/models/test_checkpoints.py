"""Checkpoints in the layout of the MAE authors and of training scripts, whole, damaged and hostile."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mae_bench.models import ModelError, checkpoints
from mae_bench.models.checkpoints import (
    MAE_FINETUNED,
    MAE_PRETRAINED,
    load_checkpoint,
    mae_finetuned,
    mae_pretrained,
    pretrained,
    pretrained_encoder,
    state_of,
)
from mae_bench.models.classifier import Classifier

pytestmark = pytest.mark.usefixtures("one_thread")

DIMENSIONS = {"base": (768, 12, 16), "large": (1024, 24, 16), "huge": (1280, 32, 14)}
"""Width, blocks and side of a patch (MAE paper)."""
PARAMETERS = {"base": 86_567_656, "large": 304_326_632, "huge": 632_045_800}


def authors_state(size: str, head: bool = True, classes: int = 1000) -> dict[str, Tensor]:
    """Tensors named and shaped as the authors' script saves them, written out from the paper's dimensions; each holds
    one number, kept once, so that even the huge model is a small file.
    """
    width, blocks, side = DIMENSIONS[size]
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, (224 // side) ** 2 + 1, width),
        "patch_embed.proj.weight": (width, 3, side, side),
        "patch_embed.proj.bias": (width,),
    }
    layers = {"norm1": (), "attn.qkv": (3 * width, width), "attn.proj": (width, width), "norm2": ()}
    layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for block in range(blocks):
        for name, shape in layers.items():
            shapes[f"blocks.{block}.{name}.weight"] = shape or (width,)
            shapes[f"blocks.{block}.{name}.bias"] = (shape or (width,))[:1]
    norm = "fc_norm" if head else "norm"
    shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    if head:
        shapes |= {"head.weight": (classes, width), "head.bias": (classes,)}
    return {name: torch.tensor(0.01 * (i % 7)).expand(shape) for i, (name, shape) in enumerate(shapes.items())}


def saved(content: object, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder, and no network beside it."""

    def offline(*_: object, **__: object) -> None:
        raise OSError("there is no network in this test")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(checkpoints, "fetched", partial(checkpoints.fetched, opener=offline))
    return tmp_path / "hub" / "checkpoints"


def published(monkeypatch: pytest.MonkeyPatch, path: Path, size: str) -> None:
    """Make the file at ``path`` the one whose MD5 the authors published."""
    table = MAE_FINETUNED if path.name == MAE_FINETUNED[size].name else MAE_PRETRAINED
    prefix = hashlib.md5(path.read_bytes()).hexdigest()[:6]
    changed = checkpoints.Checkpoint(table[size].url, prefix, table[size].architecture)
    monkeypatch.setitem(table, size, changed)


# --------------------------------------------------------------------------- the authors' checkpoints


def test_addresses_and_hashes_are_those_published() -> None:
    assert {size: (c.url, c.md5_prefix) for size, c in MAE_FINETUNED.items()} == {
        "base": ("https://dl.fbaipublicfiles.com/mae/finetune/mae_finetuned_vit_base.pth", "1b25e9"),
        "large": ("https://dl.fbaipublicfiles.com/mae/finetune/mae_finetuned_vit_large.pth", "51f550"),
        "huge": ("https://dl.fbaipublicfiles.com/mae/finetune/mae_finetuned_vit_huge.pth", "2541f2"),
    }
    assert {size: (c.url, c.md5_prefix) for size, c in MAE_PRETRAINED.items()} == {
        "base": ("https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth", "8cad7c"),
        "large": ("https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_large.pth", "b8b06e"),
        "huge": ("https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_huge.pth", "9bdbb0"),
    }


@pytest.fixture(scope="module", params=DIMENSIONS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """A size, and the fine-tuned model of that size."""
    path = saved({"model": authors_state(request.param)}, tmp_path_factory.mktemp("mae") / "own.pth")
    return request.param, mae_finetuned(request.param, [path])


def test_a_fine_tuned_checkpoint_of_each_size_is_loaded_strictly(loaded: tuple[str, Any]) -> None:
    size, model = loaded
    state, found = authors_state(size), model.state_dict()
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert found[name].shape == value.shape
        assert found[name].dtype == torch.float32
        assert found[name].flatten()[-1] == value.flatten()[-1]
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[size]
    assert not any(value.is_meta for value in found.values())
    assert not model.training


def test_the_preprocessing_is_that_of_the_authors(loaded: tuple[str, Any]) -> None:
    """And not that of timm's architecture by itself: mean and std of 0.5, crop of 0.9."""
    classifier = Classifier.of("mae", loaded[1])
    view = classifier.view
    assert (classifier.mean, classifier.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (view.height, view.width, view.interpolation, view.crop_pct) == (224, 224, "bicubic", 0.875)
    assert view.crop_mode == "center"


def test_the_head_reads_the_normalised_mean_of_the_patches(loaded: tuple[str, Any]) -> None:
    size, model = loaded
    tokens = torch.randn(2, 5, DIMENSIONS[size][0], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = tokens[:, 1:].mean(1)
        normed = (mean - mean.mean(-1, keepdim=True)) / (mean.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        expected = (normed * model.fc_norm.weight + model.fc_norm.bias) @ model.head.weight.T + model.head.bias
        torch.testing.assert_close(model.forward_head(model.norm(tokens)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.thorough  # fills a whole model
def test_the_base_model_classifies_as_its_forward_pass_by_hand(tmp_path: Path, vit_by_hand: Callable[..., Any]) -> None:
    """With 86 million weights that differ from tensor to tensor, kept in half precision."""
    noise = torch.randn(2_400_000, generator=torch.Generator().manual_seed(0)).half() * 0.02
    state = {}
    for i, (name, value) in enumerate(authors_state("base").items()):
        state[name] = noise[97 * i :][: value.numel()].reshape(value.shape)
        if "norm" in name and name.endswith("weight"):
            state[name] = state[name] + 1
    model = mae_finetuned("base", [saved({"model": state}, tmp_path / "own.pth")])
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    _, _, expected = vit_by_hand(model, images)
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.thorough  # writes and reads models of every size
def test_the_published_name_tells_the_file_from_those_of_other_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = [saved({"model": authors_state(size)}, tmp_path / MAE_FINETUNED[size].name) for size in DIMENSIONS]
    for size, path in zip(DIMENSIONS, weights, strict=True):
        published(monkeypatch, path, size)
    for size, (width, _, _) in DIMENSIONS.items():
        assert mae_finetuned(size, weights).embed_dim == width


@pytest.mark.thorough  # writes and reads models of every size
def test_shapes_tell_files_of_any_name_apart(tmp_path: Path) -> None:
    weights = [saved({"model": authors_state(size)}, tmp_path / f"my_{i}.pth") for i, size in enumerate(DIMENSIONS)]
    weights.append(saved(nn.Linear(2, 2).state_dict(), tmp_path / "another_model.pth"))
    weights.append(saved({"model": authors_state("base", head=False)}, tmp_path / "encoder.pth"))
    for size, (width, _, _) in DIMENSIONS.items():
        assert mae_finetuned(size, weights).embed_dim == width
    assert mae_pretrained("base", weights).num_classes == 0


def test_two_files_of_one_size_are_refused(tmp_path: Path) -> None:
    weights = [saved({"model": authors_state("base")}, tmp_path / f"my_{i}.pth") for i in range(2)]
    with pytest.raises(ModelError, match=r"my_0\.pth and .*my_1\.pth are both of size base: give one of them"):
        mae_finetuned("base", weights)


def test_a_file_of_the_published_name_must_be_the_published_one(tmp_path: Path) -> None:
    path = saved({"model": authors_state("base")}, tmp_path / "mae_finetuned_vit_base.pth")
    found = hashlib.md5(path.read_bytes()).hexdigest()[:6]
    with pytest.raises(ModelError, match=f"its MD5 begins {found}, expected 1b25e9: .*another name"):
        mae_finetuned("base", [path])


@pytest.mark.parametrize("load", [mae_finetuned, mae_pretrained])
def test_a_file_in_the_cache_is_found(
    hub: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[[str], nn.Module]
) -> None:
    finetuned = load is mae_finetuned
    name = (MAE_FINETUNED if finetuned else MAE_PRETRAINED)["base"].name
    path = saved({"model": authors_state("base", head=finetuned)}, hub / name)
    with pytest.raises(ModelError, match="take it away"):
        load("base")
    published(monkeypatch, path, "base")
    assert load("base").embed_dim == 768


@pytest.mark.parametrize("size", DIMENSIONS)
def test_offline_the_address_and_the_remedies_are_named(hub: Path, tmp_path: Path, size: str) -> None:
    others = [
        saved({"model": authors_state(other)}, tmp_path / f"{other}.pth") for other in DIMENSIONS if other != size
    ]
    with pytest.raises(ModelError, match=rf"{others[0].name} is no such checkpoint of size {size}"):
        mae_finetuned(size, others[:1])
    with pytest.raises(ModelError, match="there is no network") as caught:
        mae_finetuned(size, others)
    for part in (MAE_FINETUNED[size].url, str(hub), "--mae-weights FILE"):
        assert part in str(caught.value)


def test_an_unknown_size_is_refused_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"unknown size 'lage' .*did you mean large\? Known: base, huge, large"):
        mae_finetuned("lage")


def test_an_own_fine_tuning_tells_the_number_of_classes(tmp_path: Path) -> None:
    content = {
        "model": authors_state("base", classes=7),
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 99,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(model="vit_base_patch16", blr=5e-4, layer_decay=0.65),
    }
    model: Any = mae_finetuned("base", [saved(content, tmp_path / "checkpoint-99.pth")])
    assert model.head.weight.shape == (7, 768)
    assert model.pretrained_cfg["num_classes"] == 7


def test_an_own_pretraining_loses_its_decoder(tmp_path: Path) -> None:
    state = authors_state("base", head=False)
    state |= {"mask_token": torch.zeros(1, 1, 512), "decoder_embed.weight": torch.zeros(512, 768)}
    model: Any = mae_pretrained("base", [saved({"model": state}, tmp_path / "checkpoint-799.pth")])
    assert model.state_dict().keys() == authors_state("base", head=False).keys()
    features = model.forward_head(torch.arange(2 * 3 * 768.0).reshape(2, 3, 768))
    assert torch.equal(features[:, 0], torch.tensor([0.0, 3 * 768.0]))  # the class token
    assert Classifier.of("mae", model).mean == (0.485, 0.456, 0.406)


def test_tensors_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    state = authors_state("base")
    del state["blocks.3.attn.qkv.bias"]
    del state["fc_norm.weight"]
    state["pos_embed"] = torch.zeros(1, 577, 768)
    state["blocks.0.norm1.weight"] = torch.zeros(768, dtype=torch.int64)
    state["norm.weight"] = torch.zeros(768)
    with pytest.raises(ModelError, match="does not fit VisionTransformer") as caught:
        mae_finetuned("base", [saved({"model": state}, tmp_path / "own.pth")])
    text = str(caught.value)
    assert "missing: blocks.3.attn.qkv.bias, fc_norm.weight; unexpected: norm.weight; of another shape: " in text
    assert "pos_embed (1 x 577 x 768 instead of 1 x 197 x 768)" in text
    assert "blocks.0.norm1.weight (torch.int64 768 instead of 768)" in text
    assert "own.pth" in text


def test_a_long_list_of_tensors_is_cut(tmp_path: Path) -> None:
    state = {name: value for name, value in authors_state("base").items() if not name.startswith("blocks.1")}
    with pytest.raises(ModelError, match=r"missing: (blocks\.1\.[\w.]+, ){5}blocks\.1\.[\w.]+ and 30 more$"):
        mae_finetuned("base", [saved({"model": state}, tmp_path / "own.pth")])


# --------------------------------------------------------------------------- a local file into a model


def tiny(**changes: Any) -> nn.Module:
    """timm's smallest vision transformer, made smaller."""
    torch.manual_seed(changes.pop("seed", 0))
    shape = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", **(shape | changes))
    return model


def differently_named(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in state.items()}


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "arch": "vit"},
    "model_ema": lambda state: {"model_ema": state},
    "parallel": differently_named,
    "parallel model": lambda state: {"model": differently_named(state)},
    "both": lambda state: {"model_ema": {}, "model": state},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_is_found_where_training_scripts_keep_it(tmp_path: Path, layout: str, legacy: bool) -> None:
    state = dict(tiny(seed=1).state_dict())
    path = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout](state), path, _use_new_zipfile_serialization=not legacy)
    model = tiny()
    assert load_checkpoint(model, path) is model
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_safetensors_are_loaded(tmp_path: Path) -> None:
    state = dict(tiny(seed=1).state_dict())
    save_file(state, tmp_path / "weights.safetensors")
    model = load_checkpoint(tiny(), tmp_path / "weights.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("make", [tiny, partial(tiny, global_pool="avg")])
def test_an_encoder_alone_is_refused_for_a_model_with_a_classifier(tmp_path: Path, make: Callable[..., Any]) -> None:
    path = saved(tiny(num_classes=0).state_dict(), tmp_path / "encoder.pth")
    with pytest.raises(ModelError, match=r"holds an encoder alone: head\.bias, head\.weight would stay random"):
        load_checkpoint(make(), path)
    load_checkpoint(tiny(num_classes=0), path)


def test_a_checkpoint_of_another_network_is_not_called_an_encoder(tmp_path: Path) -> None:
    path = saved({"stem.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(
        ModelError, match=r"does not fit VisionTransformer: missing: cls_token, .* more; unexpected: stem"
    ):
        load_checkpoint(tiny(), path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.pth: there is no such file"):
        load_checkpoint(tiny(), tmp_path / "none.pth")


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(3)], torch.zeros(3), {"model": {"a": 1}}, "text", None])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(ModelError, match=r"weights\.pth: holds no state dict"):
        state_of(saved(content, tmp_path / "weights.pth"))


# --------------------------------------------------------------------------- damaged and hostile files


def test_damage_is_refused_wherever_it_is(tmp_path: Path) -> None:
    whole = saved({"model": tiny().state_dict()}, tmp_path / "whole.pth").read_bytes()
    path = tmp_path / "damaged.pth"
    for content in (b"", b"text", whole[:100], whole[: len(whole) // 2], whole[:-1], whole[1:], bytes(4096)):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"damaged\.pth: no checkpoint that torch\.save wrote, or it is damaged"):
            load_checkpoint(tiny(), path)
    for content in (b"", whole, b"\xff" * 64):
        (tmp_path / "damaged.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match=r"damaged\.safetensors: not a safetensors file"):
            load_checkpoint(tiny(), tmp_path / "damaged.safetensors")


def rewritten(path: Path, **settings: Any) -> Path:
    """A checkpoint whose archive another program wrote."""
    content = {info.filename: zipfile.ZipFile(path).read(info) for info in zipfile.ZipFile(path).infolist()}
    with zipfile.ZipFile(path, "w", **settings) as archive:
        for name, record in content.items():
            archive.writestr(name, record)
    return path


def test_a_changed_weight_in_an_archive_is_noticed(tmp_path: Path) -> None:
    """Which torch.load reads as if nothing had happened."""
    path = saved({"model": tiny().state_dict()}, tmp_path / "weights.pth")
    content = bytearray(path.read_bytes())
    weights = tiny().state_dict()["head.weight"].numpy().tobytes()
    content[content.index(weights) + 10] ^= 1
    path.write_bytes(content)
    assert not torch.equal(
        torch.load(path, weights_only=True)["model"]["head.weight"], tiny().state_dict()["head.weight"]
    )
    with pytest.raises(ModelError, match=r"no checkpoint that torch\.save wrote, or it is damaged"):
        load_checkpoint(tiny(), path)


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    state = dict(tiny(seed=1).state_dict())
    torch.serialization.set_crc32_options(False)
    try:
        path = saved({"model": state}, tmp_path / "weights.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    model = load_checkpoint(tiny(), path)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_an_archive_that_would_grow_is_not_unpacked(tmp_path: Path) -> None:
    path = saved({"model": {"head.weight": torch.zeros(10**6)}}, tmp_path / "weights.pth")
    rewritten(path)
    assert state_of(path)["head.weight"].shape == (10**6,)
    rewritten(path, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**5
    with pytest.raises(ModelError, match="or it is damaged") as caught:
        state_of(path)
    assert "it is packed" in str(caught.value.__cause__)


def test_an_archive_of_one_record_under_many_names_is_not_read_again_and_again(tmp_path: Path) -> None:
    """A list of contents may name the same bytes a million times."""
    path = saved({"model": {"head.weight": torch.zeros(10**5)}}, tmp_path / "weights.pth")
    with zipfile.ZipFile(path, "a") as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
        archive.filelist += [entry] * 5
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="or it is damaged") as caught:
        state_of(path)
    assert "larger than its file" in str(caught.value.__cause__)


def test_names_of_tensors_are_texts(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no state dict"):
        state_of(saved({1: torch.zeros(3), "1": torch.ones(3)}, tmp_path / "weights.pth"))


@pytest.mark.parametrize("load", [partial(mae_finetuned, "base"), lambda paths: pretrained("convnextv2_atto", *paths)])
def test_a_head_of_more_classes_than_there_are_is_not_made_room_for(tmp_path: Path, load: Callable[..., Any]) -> None:
    state = authors_state("base") | {"head.weight": torch.zeros(1, dtype=torch.half).expand(10**9, 768)}
    state["head.fc.weight"] = state["head.weight"]
    with pytest.raises(
        ModelError, match=r"own\.pth: head\.(fc\.)?weight is for 1,000,000,000 classes, which no model has"
    ):
        load([saved({"model": state}, tmp_path / "own.pth")])


def test_a_head_without_a_shape_is_named(tmp_path: Path) -> None:
    state = authors_state("base") | {"head.weight": torch.tensor(1.0)}
    with pytest.raises(ModelError, match=r"head\.weight \(scalar instead of 1000 x 768\)"):
        mae_finetuned("base", [saved({"model": state}, tmp_path / "own.pth")])


def test_a_file_of_the_published_name_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"mae_finetuned_vit_base\.pth: there is no such file of weights"):
        mae_finetuned("base", [tmp_path / MAE_FINETUNED["base"].name])


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path, function: Callable[..., Any] = os.system) -> None:
        self.call = (function, (f"touch {canary}",))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self.call


class Extended(argparse.Namespace):
    """A namespace by inheritance only."""


class Forged:
    """Makes a namespace out of a payload."""

    def __init__(self, payload: Payload) -> None:
        self.payload = payload

    def __reduce__(self) -> tuple[Any, ...]:
        return argparse.Namespace, (), {"lr": self.payload}


def renamed(path: Path, name: str) -> Path:
    return path.rename(path.with_name(name))


def pickled(content: object, path: Path) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def legacy(content: object, path: Path) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def poisoned(content: object, path: Path) -> Path:
    """A checkpoint whose pickle was exchanged in its archive."""
    saved({"model": tiny().state_dict()}, path.with_suffix(".clean"))
    with zipfile.ZipFile(path.with_suffix(".clean")) as clean, zipfile.ZipFile(path, "w") as archive:
        for name in clean.namelist():
            archive.writestr(name, pickle.dumps(content, 2) if name.endswith("data.pkl") else clean.read(name))
    return path


WRITERS = {"zip": saved, "legacy": legacy, "pickle": pickled, "poisoned": poisoned}
PAYLOADS: dict[str, Callable[[Path], object]] = {
    "reduce": lambda canary: {"model": Payload(canary)},
    "eval": lambda canary: {"model": tiny().state_dict(), "args": Payload(canary, eval)},
    "exec": lambda canary: {"epoch": Payload(canary, exec), "model": {}},
    "beside weights": lambda canary: {"model": tiny().state_dict(), "args": Payload(canary)},
    "in a namespace": lambda canary: {"args": Forged(Payload(canary))},
    "kind of a namespace": lambda _: {"model": tiny().state_dict(), "args": Extended(lr=1)},
    "bare": Payload,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("forced", [False, True])
def test_a_pickle_is_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str, payload: str, forced: bool
) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary = tmp_path / "canary"
    path = WRITERS[writer](PAYLOADS[payload](canary), tmp_path / "hostile.pth")
    with pytest.raises(ModelError, match=r"hostile\.pth: (holds a Python object|no checkpoint that torch)"):
        load_checkpoint(tiny(), path)
    with pytest.raises(ModelError, match=r"hostile\.pth"):
        mae_finetuned("base", [path])
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_checkpoint(tiny(), renamed(path, "hostile.safetensors"))
    assert not canary.exists()


def test_the_object_is_named_in_words(tmp_path: Path) -> None:
    path = saved({"model": Payload(tmp_path / "canary")}, tmp_path / "hostile.pth")
    with pytest.raises(ModelError) as caught:
        state_of(path)
    assert re.fullmatch(
        r".*hostile\.pth: holds a Python object \(\w+\.system\), which could run code and is never loaded; write the "
        r"tensors alone, with torch\.save\(model\.state_dict\(\), FILE\)",
        str(caught.value),
    )


def test_namespaces_are_not_allowed_elsewhere_afterwards(tmp_path: Path) -> None:
    path = saved({"model": {}, "args": argparse.Namespace()}, tmp_path / "weights.pth")
    assert state_of(path) == {}
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(path, weights_only=True)


# --------------------------------------------------------------------------- timm's models by name


@pytest.fixture
def timm_weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What timm finds on its hub instead of weights: ``found`` is raised or given to the model."""
    answer: dict[str, Any] = {"asked": []}

    def load(model_id: str, **_: object) -> dict[str, Tensor]:
        answer["asked"].append(model_id)
        if isinstance(answer["found"], Exception):
            raise answer["found"]
        state: dict[str, Tensor] = answer["found"]
        return state

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load)
    return answer


def weights_of(name: str, classes: int, fill: float) -> dict[str, Tensor]:
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=classes).state_dict()
    return {key: torch.full(value.shape, fill, dtype=value.dtype) for key, value in state.items()}


def test_a_model_by_name_brings_its_weights_and_preprocessing(timm_weights: dict[str, Any]) -> None:
    timm_weights["found"] = weights_of("mobilenetv3_small_050", 1000, 0.25)
    model = pretrained("mobilenetv3_small_050.lamb_in1k")
    assert timm_weights["asked"] == ["timm/mobilenetv3_small_050.lamb_in1k"]
    assert all(bool((value == 0.25).all()) for value in model.parameters())
    assert not model.training
    assert model.pretrained_cfg["tag"] == "lamb_in1k"


@pytest.mark.parametrize("name", ["vit_base_patch16_224.mae", "vit_small_patch16_224.dino", "convnextv2_atto.fcmae"])
def test_a_model_that_was_only_pretrained_is_refused(timm_weights: dict[str, Any], name: str) -> None:
    with pytest.raises(ModelError, match=f"timm's '{name}' was only pretrained: it has no classifier") as caught:
        pretrained(name)
    assert "register it with the fixture mae_probe" in str(caught.value)
    assert timm_weights["asked"] == []


def test_an_encoder_by_name_has_no_classifier(timm_weights: dict[str, Any]) -> None:
    timm_weights["found"] = weights_of("convnextv2_atto", 0, 0.5)
    model: Any = pretrained_encoder("convnextv2_atto.fcmae")
    assert isinstance(model.get_classifier(), nn.Identity)
    assert all(bool((value == 0.5).all()) for value in model.parameters())


@pytest.mark.parametrize("load", [pretrained, pretrained_encoder])
def test_a_hub_that_cannot_be_reached_is_one_error(
    timm_weights: dict[str, Any], load: Callable[[str], nn.Module]
) -> None:
    timm_weights["found"] = ConnectionError("offline mode is enabled")
    with pytest.raises(ModelError, match="could not be loaded from timm/mobilenetv3_small_050") as caught:
        load("mobilenetv3_small_050.lamb_in1k")
    for part in ("ConnectionError: offline mode is enabled", "--mae-weights NAME=FILE"):
        assert part in str(caught.value)


def test_the_hubs_own_client_offline_is_one_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="could not be loaded from timm/mobilenetv3_small_050") as caught:
        pretrained("mobilenetv3_small_050.lamb_in1k")
    assert "--mae-weights NAME=FILE" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_bas_patch16_224", r"timm knows no model 'vit_bas_patch16_224': did you mean vit_base_patch16_224"),
        ("vit_base_patch16_224.mea", r"has no weights 'mea': did you mean \w+\? Known: augreg2_in21k_ft_in1k"),
        ("123456", r"timm knows no model '123456'; timm\.list_models"),
        ("vit_giant_patch14_224", r"timm publishes no weights for 'vit_giant_patch14_224': give a file"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        pretrained(name)


def test_a_file_takes_the_place_of_timms_weights_and_tells_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_file(weights_of("convnextv2_atto", 7, 0.5), path)
    for name in ("convnextv2_atto", "convnextv2_atto.fcmae", "convnextv2_atto.fcmae_ft_in1k"):
        model: Any = pretrained(name, path)
        assert model.get_classifier().weight.shape[0] == 7
        assert all(bool((value == 0.5).all()) for value in model.parameters())
    encoder = tmp_path / "encoder.safetensors"
    save_file(weights_of("convnextv2_atto", 0, 0.5), encoder)
    with pytest.raises(ModelError, match="holds an encoder alone"):
        pretrained("convnextv2_atto.fcmae", encoder)
    assert pretrained_encoder("convnextv2_atto.fcmae", encoder).num_classes == 0


def test_the_weights_of_both_heads_of_a_distilled_model_are_needed(tmp_path: Path) -> None:
    state = weights_of("deit_tiny_distilled_patch16_224", 3, 0.5)
    path = saved(state, tmp_path / "own.pth")
    model: Any = pretrained("deit_tiny_distilled_patch16_224", path)
    assert (len(model.head.weight), len(model.head_dist.weight)) == (3, 3)
    del state["head_dist.weight"]
    with pytest.raises(ModelError, match=r"missing: head_dist\.weight$"):
        pretrained("deit_tiny_distilled_patch16_224", saved(state, path))
