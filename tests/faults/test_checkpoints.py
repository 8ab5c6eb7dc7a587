"""The wrong weights: a file gives the network exactly what is in it, or is refused with the tensors that are wrong."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from faults.reliability import Injection
from mae_bench.models import ModelError, zoo
from mae_bench.models.checkpoints import MAE_FINETUNED, Checkpoint, load_checkpoint, mae_finetuned
from mae_bench.models.classifier import Classifier
from mae_bench.models.pool import Pool
from mae_bench.models.registry import ModelEntry

pytestmark = pytest.mark.usefixtures("one_thread")

State = dict[str, Tensor]
NAME = "mae_ft_s0"


@pytest.fixture(scope="module")
def trained() -> State:
    """The weights of a bundled vision transformer, in float32."""
    return dict(zoo.bundled(NAME).state_dict())


def network() -> Any:
    model: Any = zoo.ARCHITECTURES["vit_28_patch4"].build(10).eval()
    model.pretrained_cfg = zoo.ARCHITECTURES["vit_28_patch4"].pretrained_cfg
    return model


def logits(model: nn.Module) -> Tensor:
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found: Tensor = model(images)
    return found


def function_of(state: State) -> Tensor:
    """What a network of these tensors makes of some images, put into it one by one."""
    model = network()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(state[name].float())
    return logits(model)


# --------------------------------------------------------------------------- files that are another


@dataclass(frozen=True)
class Case:
    """What is in the file, and the tensors that it is loaded to, or what is said of it."""

    content: Callable[[State], object]
    loaded: Callable[[State], State] | None = None
    said: str = ""


def changed(change: Callable[[str, Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: {name: change(name, tensor) for name, tensor in state.items()}


def only(*names: str) -> Callable[[Callable[[Tensor], Tensor]], Callable[[State], State]]:
    return lambda change: changed(lambda name, tensor: change(tensor) if name in names else tensor)


def same(state: State) -> State:
    return state


def averaged(state: State) -> State:
    return {name: tensor * 0.5 for name, tensor in state.items()}


def without_head(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


half = changed(lambda _, tensor: tensor.half())
brain = changed(lambda _, tensor: tensor.bfloat16())
double = changed(lambda _, tensor: tensor.double())
eighths = changed(lambda _, tensor: (tensor * 8).to(torch.int8))
transposed = changed(lambda _, tensor: tensor.T.contiguous() if tensor.ndim == 2 else tensor)
patches = only("patch_embed.proj.weight")(lambda tensor: tensor.repeat_interleave(2, 2).repeat_interleave(2, 3))
classes = only("head.weight", "head.bias")(lambda tensor: tensor[:7].clone())
sparse = only("head.weight")(lambda tensor: tensor.to_sparse())
unreal = only("head.weight")(lambda tensor: tensor.to("meta"))
claimed = only("head.weight")(lambda tensor: tensor[:1].expand(10**9, 64))

CASES: dict[str, Case] = {
    "in float16": Case(half, half),
    "in bfloat16": Case(brain, brain),
    "in float64": Case(double, double),
    "of a module in parallel": Case(lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}, same),
    "in another order": Case(lambda s: dict(reversed(s.items())), same),
    "beside its moving average": Case(lambda s: {"model": s, "model_ema": averaged(s)}, same),
    "a moving average alone": Case(lambda s: {"model_ema": averaged(s), "epoch": 3}, averaged),
    "under another key": Case(lambda s: {"teacher": s}, said="holds no state dict, neither bare nor under model"),
    "of another architecture": Case(
        lambda _: dict(zoo.bundled("cnn_s0").state_dict()),
        said=r"missing: cls_token, pos_embed, .*; unexpected: conv1\.weight, bn1\.weight",
    ),
    "of an encoder": Case(without_head, said=r"an encoder alone: head\.bias, head\.weight would stay random"),
    "without a tensor": Case(
        lambda s: {k: v for k, v in s.items() if k != "blocks.3.attn.qkv.bias"},
        said=r"missing: blocks\.3\.attn\.qkv\.bias$",
    ),
    "with tensors too many": Case(lambda s: s | {"mask_token": torch.zeros(3)}, said="unexpected: mask_token$"),
    "transposed": Case(
        transposed, said=r"of another shape: blocks\.0\.attn\.qkv\.weight \(64 x 192 instead of 192 x 64\), blocks"
    ),
    "of patches of 8": Case(
        patches, said=r"of another shape: patch_embed\.proj\.weight \(64 x 1 x 8 x 8 instead of 64 x 1 x 4 x 4\)$"
    ),
    "of 7 classes": Case(
        classes, said=r"head\.weight \(7 x 64 instead of 10 x 64\), head\.bias \(7 instead of 10\)$"
    ),
    "in integers": Case(eighths, said=r"of another shape: cls_token \(torch\.int8 1 x 1 x 64 instead of 1 x 1 x 64\)"),
    "sparse": Case(sparse, said=r"sparse, quantized or empty of values: head\.weight;"),
    "without values": Case(unreal, said=r"sparse, quantized or empty of values: head\.weight;"),
    "of a billion classes": Case(claimed, said=r"head\.weight \(1000000000 x 64 instead of 10 x 64\)$"),
    "of nothing": Case(lambda _: {}, said="missing: cls_token, pos_embed, "),
    "of no tensors": Case(lambda _: [1, 2], said="holds no state dict"),
}  # fmt: skip


ANOTHER = "loaded as it is, under another hash of weights, so that it is not taken for the model that it was"


def loaded(load: Callable[[Path], nn.Module], path: Path) -> tuple[nn.Module | None, str]:
    """The model in a file, or what is said of the file."""
    try:
        return load(path), ""
    except ModelError as error:
        return None, str(error)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_file_is_loaded_to_what_is_in_it_or_refused_by_name(
    name: str, trained: State, tmp_path: Path, journal: Callable[[Injection], None]
) -> None:
    case, path = CASES[name], tmp_path / "own.pth"
    torch.save(case.content(trained), path)
    model, said = loaded(of_user, path)
    if model is None:
        assert case.said
        assert re.search(case.said, said), said
        assert said.startswith(str(path))
        behaviour, silent = f"refused: {said.removeprefix(str(path)).strip(' :')}"[:200], False
    else:
        assert case.loaded is not None
        silent = not torch.equal(logits(model), function_of(case.loaded(trained)))
        behaviour = "loaded to the function of its tensors"
    journal(Injection("checkpoints", f"weights {name}", 1, behaviour, silent=int(silent)))


def test_square_matrix_the_wrong_way_round_is_another_model(
    trained: State, tmp_path: Path, journal: Callable[[Injection], None]
) -> None:
    """Nothing in the file tells; but what was measured with it is never taken for what was measured without."""
    turned = only("blocks.2.attn.proj.weight")(lambda tensor: tensor.T.contiguous())(trained)
    hashes = []
    for state in (trained, turned):
        torch.save(state, tmp_path / "own.pth")
        hashes.append(Classifier.of("own", load_checkpoint(network(), tmp_path / "own.pth")).weights_hash())
    journal(
        Injection(
            failure="checkpoints",
            what="weights with one square matrix transposed",
            count=1,
            behaviour=ANOTHER,
            silent=int(hashes[0] == hashes[1]),
        )
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_before_the_run(
    value: float, trained: State, tmp_path: Path, journal: Callable[[Injection], None]
) -> None:
    name = "blocks.1.mlp.fc1.weight"
    torch.save(trained | {name: torch.full_like(trained[name], value)}, tmp_path / "own.pth")
    with pytest.raises(ModelError, match=re.escape(name)):
        Pool("cpu").load(ModelEntry("own"), lambda: load_checkpoint(network(), tmp_path / "own.pth"))
    journal(
        Injection("checkpoints", f"a tensor of {value}", 1, "refused with the tensor before the first image is read")
    )


# --------------------------------------------------------------------------- files that are damaged


def flipped(content: bytes, bit: int) -> bytes:
    return content[: bit // 8] + bytes([content[bit // 8] ^ (1 << bit % 8)]) + content[bit // 8 + 1 :]


def of_user(path: Path) -> nn.Module:
    return load_checkpoint(network(), path)


def of_package(path: Path) -> nn.Module:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "WEIGHTS", path.parent)
        return zoo.bundled(path.stem)


def of_authors(path: Path) -> nn.Module:
    """A file of a published name, whose hash is known; the network that it is for is another."""
    return mae_finetuned("base", [path])


FILES = {"an archive of torch.save": of_user, "bundled safetensors": of_package, "a file of published hash": of_authors}


@pytest.fixture(params=FILES)
def whole(
    request: pytest.FixtureRequest, trained: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path]:
    """What kind of file it is, and where one lies that is whole."""
    if request.param == "bundled safetensors":
        for suffix in ("json", "safetensors"):
            (tmp_path / f"{NAME}.{suffix}").write_bytes((zoo.WEIGHTS / f"{NAME}.{suffix}").read_bytes())
        return request.param, tmp_path / f"{NAME}.safetensors"
    if request.param == "an archive of torch.save":
        torch.save({"model": trained}, tmp_path / "own.pth")
        return request.param, tmp_path / "own.pth"
    import hashlib

    published = MAE_FINETUNED["base"]
    path = tmp_path / published.name
    torch.save({"model": trained}, path)
    prefix = hashlib.md5(path.read_bytes()).hexdigest()[:6]
    monkeypatch.setitem(MAE_FINETUNED, "base", Checkpoint(published.url, prefix, published.architecture))
    return request.param, path


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.faults)])
@pytest.mark.parametrize("damage", ["one bit flipped", "cut"])
def test_damage_is_never_loaded(
    damage: str, count: int, whole: tuple[str, Path], trained: State, journal: Callable[[Injection], None]
) -> None:
    kind, path = whole
    content, expected = path.read_bytes(), function_of(trained)
    random = np.random.default_rng(count)
    seen: Counter[str] = Counter()
    for _ in range(count):
        if damage == "cut":
            path.write_bytes(content[: random.integers(len(content))])
        else:
            path.write_bytes(flipped(content, int(random.integers(8 * len(content)))))
        model, said = loaded(FILES[kind], path)
        if model is None:
            seen["refused"] += 1
            assert str(path) in said
        else:  # some bytes of an archive mean nothing
            seen["the same" if torch.equal(logits(model), expected) else "another"] += 1
    journal(
        Injection(
            failure="checkpoints",
            what=f"{kind}: {damage}",
            count=count,
            behaviour=f"{seen['refused']} refused, {seen['the same']} loaded to the function of the whole file",
            silent=seen["another"],
        )
    )


def test_bit_in_safetensors_of_a_user_makes_another_model(
    trained: State, tmp_path: Path, journal: Callable[[Injection], None]
) -> None:
    """They have no checksum of their own."""
    path = tmp_path / "own.safetensors"
    save_file(trained, path)
    content = path.read_bytes()
    before = Classifier.of("own", of_user(path)).weights_hash()
    path.write_bytes(flipped(content, 8 * len(content) - 100))
    journal(
        Injection(
            failure="checkpoints",
            what="safetensors of a user: one bit flipped",
            count=1,
            behaviour=ANOTHER,
            silent=int(before == Classifier.of("own", of_user(path)).weights_hash()),
        )
    )
