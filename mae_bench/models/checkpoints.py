"""Weights from files into timm's models, strictly: the MAE authors' checkpoints by size, timm's own by name, and a
user's. No pickle is executed on the way.
"""

from __future__ import annotations

import argparse
import difflib
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from mae_bench.cells import near_name
from mae_bench.models import ModelError
from mae_bench.models.classifier import heads_of
from mae_bench.models.download import check_md5, fetched

PREPROCESSING: dict[str, object] = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
}
"""How the MAE authors evaluate: resized to 256, cropped to 224; not what timm's architecture says by itself."""
STATE_KEYS = ("model", "state_dict", "model_ema")
"""Where training scripts keep a state dict; the first that is there is read."""
LISTED = 6
"""Tensors of a kind that an error names."""
OUTPUTS = 100_000
"""More than any published set of classes has: a head that claims to have more is not made room for."""


@dataclass(frozen=True)
class Checkpoint:
    """A file of the MAE authors (He et al. 2022, arXiv 2111.06377; github.com/facebookresearch/mae, CC BY-NC 4.0), the
    first digits of its MD5 as published, and the timm architecture that it fits.
    """

    url: str
    md5_prefix: str
    architecture: str

    @property
    def name(self) -> str:
        """Of the file."""
        return self.url.rpartition("/")[2]


ARCHITECTURES = {"base": "vit_base_patch16_224", "large": "vit_large_patch16_224", "huge": "vit_huge_patch14_224"}
ADDRESS = "https://dl.fbaipublicfiles.com/mae"
MAE_FINETUNED = {
    size: Checkpoint(f"{ADDRESS}/finetune/mae_finetuned_vit_{size}.pth", md5_prefix, ARCHITECTURES[size])
    for size, md5_prefix in (("base", "1b25e9"), ("large", "51f550"), ("huge", "2541f2"))
}
MAE_PRETRAINED = {
    size: Checkpoint(f"{ADDRESS}/pretrain/mae_pretrain_vit_{size}.pth", md5_prefix, ARCHITECTURES[size])
    for size, md5_prefix in (("base", "8cad7c"), ("large", "b8b06e"), ("huge", "9bdbb0"))
}
PUBLISHED_NAMES = {checkpoint.name for table in (MAE_FINETUNED, MAE_PRETRAINED) for checkpoint in table.values()}


def mae_finetuned(size: str, weights: Sequence[Path] = ()) -> nn.Module:
    """The masked autoencoder that its authors fine-tuned on ImageNet-1k, or one that was fine-tuned by their script.

    Args:
        size: ``base``, ``large`` or ``huge``.
        weights: files among which that of this size is looked for, by its published name or else by its shapes; those
            of other sizes are left for others. Without one it is downloaded into torch.hub's folder of checkpoints.

    Raises:
        ModelError: there is no such size; it cannot be fetched; the file is not the published one whose name it has, is
            no checkpoint, or its tensors are not those of the architecture.
    """
    path, state = _file_of(MAE_FINETUNED, size, weights)
    classes = outputs(state, ["head.weight"], path) or 1000
    return _mae(MAE_FINETUNED[size], path, state, "avg", classes)


def mae_pretrained(size: str, weights: Sequence[Path] = ()) -> nn.Module:
    """The encoder of the masked autoencoder that its authors pretrained on ImageNet-1k, or of one that was pretrained
    by their script, whose decoder is left out: features (B, D) are the normalised class token, which their linear probe
    reads.

    Args, Raises: as those of :func:`mae_finetuned`.
    """
    path, state = _file_of(MAE_PRETRAINED, size, weights)
    encoder = {key: value for key, value in state.items() if not key.startswith("decoder_") and key != "mask_token"}
    return _mae(MAE_PRETRAINED[size], path, encoder, "token", 0)


def load_checkpoint(model: nn.Module, path: Path) -> nn.Module:
    """``model``, a timm model, with the weights of a local file: ``.safetensors``, or what ``torch.save`` wrote of a
    state dict, bare or under one of ``STATE_KEYS``; a prefix ``module.`` is taken off.

    Raises:
        ModelError: the file is no checkpoint, holds an encoder alone while the model has a classifier, or its tensors
            are not those of the model; they are named.
    """
    load_state(model, state_of(path), path)
    return model


def pretrained(name: str, *weights: Path) -> nn.Module:
    """timm's model ``name`` (``architecture.tag``) with its pretrained weights, or with those of the file in
    ``weights`` that is not named as the MAE authors name theirs, which also tells the number of classes.

    Raises:
        ModelError: timm knows no such model, or publishes it without a classifier, which would be random; its weights
            cannot be had; or the file does not fit.
    """
    config = _config(name)
    for path in (path for path in weights if path.name not in PUBLISHED_NAMES):
        state = state_of(path)
        heads = (config.classifier,) if isinstance(config.classifier, str) else config.classifier or ()
        classes = outputs(state, [f"{head}.weight" for head in heads], path) or 1000
        model: nn.Module = timm.create_model(name, num_classes=classes)
        load_state(model, state, path)
        return model.eval()
    if config.num_classes == 0:
        raise ModelError(
            f"timm's {name!r} was only pretrained: it has no classifier, and a new one would be random; register it "
            f"with the fixture mae_probe, or give fine-tuned weights with --mae-weights {name}=FILE"
        )
    return _published(name, {})


def pretrained_encoder(name: str, weights: Path | None = None) -> nn.Module:
    """timm's model ``name`` without a classifier: features (B, D); ``weights`` is a file of an encoder.

    Raises:
        ModelError: timm knows no such model, its weights cannot be had, or the file does not fit.
    """
    _config(name)
    if weights is not None:
        model: nn.Module = timm.create_model(name, num_classes=0)
        return load_checkpoint(model, weights).eval()
    return _published(name, {"num_classes": 0})


def state_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, where possible left on disk until they are read.

    Raises:
        ModelError: there is no such file, it is no checkpoint or a damaged one, or it holds Python objects; none is
            executed.
    """
    _check_exists(path)
    found: object = _safe(path) if path.suffix == ".safetensors" else _unpickled(path)
    if isinstance(found, Mapping):
        found = next((found[key] for key in STATE_KEYS if isinstance(found.get(key), Mapping)), found)
    if not isinstance(found, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()
    ):
        raise ModelError(
            f"{path}: holds no state dict, neither bare nor under {', '.join(STATE_KEYS)}; write one with "
            "torch.save(model.state_dict(), FILE)"
        )
    special = [key for key, value in found.items() if not _is_plain(value)]
    if special:
        raise ModelError(
            f"{path}: sparse, quantized or empty of values: {_listed(special)}; write plain tensors, with "
            "torch.save(model.state_dict(), FILE)"
        )
    whole = all(key.startswith("module.") for key in found)
    return {key.removeprefix("module.") if whole else key: value for key, value in found.items()}


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file of weights")


def _is_plain(tensor: Tensor) -> bool:
    """Whether its values lie one beside the other in memory."""
    return tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def outputs(state: Mapping[str, Tensor], heads: Iterable[str], path: Path) -> int | None:
    """How many classes the first of the tensors called ``heads`` that is in ``state`` is for; None where none is.

    Raises:
        ModelError: more than :data:`OUTPUTS`.
    """
    name = next((name for name in heads if name in state and state[name].ndim), None)
    if name is None:
        return None
    classes = len(state[name])
    if classes > OUTPUTS:
        raise ModelError(f"{path}: {name} is for {classes:,} classes, which no model has (at most {OUTPUTS:,})")
    return classes


def _safe(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a safetensors file ({error})") from error


def _unpickled(path: Path) -> object:
    try:
        packed = zipfile.is_zipfile(path)
        if packed:
            _check_archive(path)
        # the MAE authors' script keeps its arguments beside the weights; a namespace only holds what it is given
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    except Exception as error:  # a damaged or hostile file may raise anything
        objects = re.search(r"GLOBAL (\S+)", str(error))
        if objects is None:
            raise ModelError(f"{path}: no checkpoint that torch.save wrote, or it is damaged; get it again") from error
        raise ModelError(
            f"{path}: holds a Python object ({objects[1][:80]}), which could run code and is never loaded; write the "
            "tensors alone, with torch.save(model.state_dict(), FILE)"
        ) from error


def _check_archive(path: Path) -> None:
    """torch.save puts records into an archive as they are, and a checksum of each, which torch.load does not look at.

    Raises:
        ValueError: records are packed, together larger than the file, or not what their checksums are of.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("it is packed")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("it is larger than its file")
        # all of them are 0 where torch was told to leave them out
        damaged = archive.testzip() if any(record.CRC for record in records) else None
        if damaged is not None:
            raise ValueError(f"{damaged} is damaged")


def _file_of(table: Mapping[str, Checkpoint], size: str, weights: Sequence[Path]) -> tuple[Path, dict[str, Tensor]]:
    """The file of ``table`` that has this size, and its tensors."""
    if size not in table:
        raise ModelError(f"unknown size {size!r} of a masked autoencoder: {near_name(size, table)}")
    checkpoint = table[size]
    named = [path for path in weights if path.name == checkpoint.name]
    if named:
        _check_exists(named[0])
        check_md5(named[0], checkpoint.md5_prefix, "get it again, or give a file of your own another name")
        return named[0], state_of(named[0])
    others = {path: state_of(path) for path in weights if path.name not in PUBLISHED_NAMES}
    with torch.device("meta"):
        embedding = timm.create_model(checkpoint.architecture).patch_embed.proj.weight.shape
    fitting = [
        (path, state)
        for path, state in others.items()
        if getattr(state.get("patch_embed.proj.weight"), "shape", None) == embedding
        and ("head.weight" in state) == (table is MAE_FINETUNED)
    ]
    if len(fitting) > 1:
        raise ModelError(f"{fitting[0][0]} and {fitting[1][0]} are both of size {size}: give one of them")
    if fitting:
        return fitting[0]
    if len(others) == len(weights) == 1:
        (path,) = others
        raise ModelError(f"{path} is no such checkpoint of size {size}: its tensors are those of another network")
    path = fetched(checkpoint.url, checkpoint.md5_prefix, Path(torch.hub.get_dir()) / "checkpoints")
    return path, state_of(path)


def _mae(checkpoint: Checkpoint, path: Path, state: Mapping[str, Tensor], pool: str, classes: int) -> nn.Module:
    with torch.device("meta"):  # nothing to draw, and no second copy of the weights
        model: nn.Module = timm.create_model(checkpoint.architecture, global_pool=pool, num_classes=classes)
    load_state(model, state, path, assign=True)
    model.pretrained_cfg = {  # type: ignore[assignment]
        **PREPROCESSING,
        "architecture": checkpoint.architecture,
        "tag": path.stem,
        "num_classes": classes,
    }
    return model.float().eval()


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: Path, assign: bool = False) -> None:
    """Give ``model`` the tensors of ``state``, which come from the file at ``path``.

    Args:
        assign: take them as they are instead of copying them, as a model on the meta device needs it.

    Raises:
        ModelError: the tensors are not those of the model; they are named.
    """
    expected = model.state_dict()
    heads = {id(head) for head in heads_of(model)}
    of_head = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if id(module) in heads
        for part, _ in module.named_parameters()
    }
    missing = [key for key in expected if key not in state]
    if of_head and of_head <= set(missing) and 2 * len(missing) < len(expected):
        raise ModelError(
            f"{path} holds an encoder alone: {_listed(sorted(of_head))} would stay random; register it with the "
            "fixture mae_probe, or give fine-tuned weights"
        )
    others = [
        f"{key} ({_described(state[key])} instead of {_described(value)})"
        for key, value in expected.items()
        if key in state
        and (state[key].shape != value.shape or state[key].is_floating_point() != value.is_floating_point())
    ]
    faults = {
        "missing": missing,
        "unexpected": [key for key in state if key not in expected],
        "of another shape": others,
    }
    if any(faults.values()):
        found = "; ".join(f"{kind}: {_listed(keys)}" for kind, keys in faults.items() if keys)
        raise ModelError(f"{path} does not fit {type(model).__name__}: {found}")
    model.load_state_dict(state, strict=True, assign=assign)


def _described(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f"{tensor.dtype} "
    return f"{kind}{' x '.join(map(str, tensor.shape)) or 'scalar'}"


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return ", ".join(key[:120] for key in keys[:LISTED]) + more


def _config(name: str) -> timm.models.PretrainedCfg:
    """timm's record of the model ``name``."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise ModelError(f"timm knows no model {architecture!r}{_close(architecture, timm.list_models())}")
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in known:
        raise ModelError(f"timm's {architecture!r} has no weights {tag!r}: {near_name(tag, known)}")
    return timm.get_pretrained_cfg(name)


def _close(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    return f": did you mean {' or '.join(close)}?" if close else "; timm.list_models('*WORD*') finds names"


def _published(name: str, changes: dict[str, int]) -> nn.Module:
    """timm's model with the weights that timm downloads."""
    config = timm.get_pretrained_cfg(name)
    source = config.hf_hub_id or config.url
    if not source:
        raise ModelError(f"timm publishes no weights for {name!r}: give a file with --mae-weights NAME=FILE")
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, **changes)
    except Exception as error:  # of the hub's client, of urllib or of timm
        raise ModelError(
            f"the weights of timm's {name!r} could not be loaded from {source} ({type(error).__name__}: {error}): "
            "load them once where there is a network and copy the cache, or give a file with --mae-weights NAME=FILE"
        ) from error
    return model.eval()
