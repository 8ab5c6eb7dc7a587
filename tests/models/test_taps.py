"""Tokens and heads, against forward passes written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import pytest
import torch
from timm.layers import Attention, AttentionRope, DiffAttention, PatchDropout
from timm.models.beit import Beit
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention
from timm.models.hiera import Hiera
from timm.models.mlp_mixer import MlpMixer
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn

from mae_bench.models import ModelError
from mae_bench.models.taps import KINDS, Features, Taps, taps_of

Build = Callable[..., Any]
WHOLE_MAPS = dict.fromkeys((1, 2), lambda scores: {"maps": scores.softmax(-1)})
"""Reads all of what both blocks of a small transformer attend to."""


def images(count: int = 5, seed: int = 0, channels: int = 1) -> Tensor:
    return torch.randn(count, channels, 28, 28, generator=torch.Generator().manual_seed(seed))


def captured(network: nn.Module, batch: Tensor, patches: bool = True) -> tuple[Features, Tensor, Taps]:
    taps = taps_of(network, batch[:2])
    with torch.no_grad(), taps.capture(patches) as features:
        logits = network(batch)
    return features, logits, taps


CLASS_TOKEN: dict[str, Any] = {"global_pool": "token"}
AVERAGE: dict[str, Any] = {"global_pool": "avg"}
VARIANTS = {
    "class-token": CLASS_TOKEN,
    "average": AVERAGE,
    "average-final-norm": {"global_pool": "avg", "fc_norm": False},
    "no-class-token": {"global_pool": "avg", "class_token": False},
    "registers": {"global_pool": "token", "reg_tokens": 3},
    "registers-average": {"global_pool": "avg", "reg_tokens": 3},
    "colour": {"global_pool": "token", "in_chans": 3},
}


@pytest.fixture(params=VARIANTS, scope="module")
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    return VARIANTS[request.param]


def test_tokens_are_those_of_a_forward_pass_by_hand(
    small_vit: Build, vit_by_hand: Build, variant: dict[str, Any]
) -> None:
    network = small_vit(**variant)
    batch = images(channels=variant.get("in_chans", 1))
    features, logits, taps = captured(network, batch)
    tokens, _, expected_logits = vit_by_hand(network, batch)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    assert taps.blocks == 2
    prefix = network.num_prefix_tokens
    for layer in range(taps.blocks + 1):
        expected = {"patch": tokens[layer][:, prefix:], "mean_patch": tokens[layer][:, prefix:].mean(1)}
        if network.cls_token is not None:
            expected["cls"] = tokens[layer][:, 0]
        assert {kind for at, kind in features.tokens if at == layer} == set(expected)
        for kind, values in expected.items():
            torch.testing.assert_close(features.tokens[layer, kind], values, rtol=1e-4, atol=1e-4)


def test_the_last_layer_is_what_the_head_reads(small_vit: Build, variant: dict[str, Any]) -> None:
    network = small_vit(**variant)
    features, logits, taps = captured(network, images(channels=variant.get("in_chans", 1)))
    read = features.tokens[taps.blocks + 1, "cls" if variant["global_pool"] == "token" else "mean_patch"]
    torch.testing.assert_close(read @ network.head.weight.T + network.head.bias, logits, rtol=1e-4, atol=1e-4)


def test_the_last_layer_follows_the_final_norm_for_every_token(small_vit: Build, vit_by_hand: Build) -> None:
    network = small_vit(**CLASS_TOKEN)
    features, _, _ = captured(network, images())
    final = vit_by_hand(network, images())[0][-1]
    torch.testing.assert_close(features.tokens[3, "patch"], final[:, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.tokens[3, "mean_patch"], final[:, 1:].mean(1), rtol=1e-4, atol=1e-4)


def test_where_the_head_reads_the_normalised_mean_no_other_token_has_a_last_layer(small_vit: Build) -> None:
    features, _, taps = captured(small_vit(**AVERAGE), images())
    assert {kind for layer, kind in features.tokens if layer == taps.blocks + 1} == {"mean_patch"}


def test_the_class_token_enters_the_first_block_the_same_for_every_image(small_vit: Build) -> None:
    features, _, _ = captured(small_vit(**CLASS_TOKEN), images())
    assert torch.equal(features.tokens[0, "cls"], features.tokens[0, "cls"][:1].expand(5, -1))
    assert not torch.equal(features.tokens[1, "cls"][0], features.tokens[1, "cls"][1])


def test_head_outputs_are_attention_times_values_before_the_projection(
    small_vit: Build, vit_by_hand: Build, variant: dict[str, Any]
) -> None:
    network = small_vit(**variant)
    batch = images(channels=variant.get("in_chans", 1))
    features, _, taps = captured(network, batch)
    _, heads, _ = vit_by_hand(network, batch)
    prefix = network.num_prefix_tokens
    assert taps.head_reason is None
    for block, outputs in enumerate(heads, start=1):
        expected = {"patch": outputs[:, prefix:], "mean_patch": outputs[:, prefix:].mean(1)}
        if network.cls_token is not None:
            expected["cls"] = outputs[:, 0]
        assert {kind for at, kind in features.heads if at == block} == set(expected)
        for kind, values in expected.items():
            torch.testing.assert_close(features.heads[block, kind], values, rtol=1e-4, atol=1e-4)
    assert {block for block, _ in features.heads} == {1, 2}


def test_heads_are_not_mixed_up(small_vit: Build) -> None:
    network = small_vit(**CLASS_TOKEN)
    before, _, _ = captured(network, images())
    with torch.no_grad():
        # rows of the joint projection: queries, keys, values, each split over the heads; this is head 1's values
        network.blocks[0].attn.qkv.weight[2 * 16 + 8 :] *= 2
    after, _, _ = captured(network, images())
    assert torch.equal(after.heads[1, "cls"][:, 0], before.heads[1, "cls"][:, 0])
    assert not torch.equal(after.heads[1, "cls"][:, 1], before.heads[1, "cls"][:, 1])


def test_fused_and_written_out_attention_leave_the_same_heads(small_vit: Build) -> None:
    network = small_vit(**CLASS_TOKEN)
    kept = []
    for fused in (False, True):
        for block in network.blocks:
            block.attn.fused_attn = fused
        kept.append(captured(network, images())[0].heads)
    for key in kept[0]:
        torch.testing.assert_close(kept[0][key], kept[1][key], rtol=1e-4, atol=1e-5)


def test_patch_tokens_are_kept_only_where_asked_for(small_vit: Build) -> None:
    network = small_vit(**CLASS_TOKEN)
    with_patches, _, _ = captured(network, images(), patches=True)
    without, _, _ = captured(network, images(), patches=False)
    assert {kind for _, kind in with_patches.tokens} == {kind for _, kind in with_patches.heads} == set(KINDS)
    assert {kind for _, kind in without.tokens} == {kind for _, kind in without.heads} == {"cls", "mean_patch"}
    for key, values in without.tokens.items():
        assert torch.equal(values, with_patches.tokens[key])


def test_pooled_features_keep_no_memory_but_their_own(small_vit: Build) -> None:
    features, _, _ = captured(small_vit(), images(), patches=False)
    for values in (*features.tokens.values(), *features.heads.values()):
        assert values.untyped_storage().nbytes() == values.nbytes


def test_layers_are_all_features_once(small_vit: Build) -> None:
    features, _, _ = captured(small_vit(), images())
    tokens = [key for layer in features.layers for key in layer.tokens]
    heads = [key for layer in features.layers for key in layer.heads]
    assert (sorted(tokens), sorted(heads)) == (sorted(features.tokens), sorted(features.heads))
    for layer in features.layers:
        assert len({place for place, _ in (*layer.tokens, *layer.heads)}) == 1
        assert all(layer.tokens[key] is features.tokens[key] for key in layer.tokens)
    assert Features().layers == []


def test_features_are_float32_whatever_the_pass_is_computed_in(small_vit: Build) -> None:
    network = small_vit(**CLASS_TOKEN)
    taps = taps_of(network, images())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), taps.capture(True) as features:
        network(images())
    assert {values.dtype for values in (*features.tokens.values(), *features.heads.values())} == {torch.float32}


def test_cnn_stages_are_spatial_means(small_resnet: Build) -> None:
    network = small_resnet()
    features, logits, taps = captured(network, images())
    expected = []
    with torch.no_grad():
        x = network.act1(network.bn1(network.conv1(images())))
        expected.append(x.mean((2, 3)))
        x = network.maxpool(x)
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            x = stage(x)
            expected.append(x.mean((2, 3)))
    assert taps.blocks == 5
    assert set(features.tokens) == {(layer, "mean_patch") for layer in range(1, 7)}
    for layer, values in enumerate(expected, start=1):
        torch.testing.assert_close(features.tokens[layer, "mean_patch"], values, rtol=1e-4, atol=1e-5)
    read = features.tokens[6, "mean_patch"]
    torch.testing.assert_close(read @ network.fc.weight.T + network.fc.bias, logits, rtol=1e-4, atol=1e-5)


def test_a_cnn_has_no_heads_and_says_so(small_resnet: Build) -> None:
    features, _, taps = captured(small_resnet(), images())
    assert not features.heads
    assert taps.reason is None
    assert taps.head_reason == "a convolutional network has no attention heads"


class Unknown(nn.Sequential):
    """Blocks and a head, but of no architecture that is known here."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(28 * 28, 8))


def mislabelled(network: Any) -> Any:
    """A CNN whose declared channels are not those of its stages."""
    network.feature_info = [{**stage, "num_chs": stage["num_chs"] + 1} for stage in network.feature_info]
    return network


def test_an_unknown_architecture_leaves_no_features_and_a_reason(small_resnet: Build) -> None:
    for network, name in ((Unknown(), "Unknown"), (mislabelled(small_resnet()), "ResNet")):
        features, logits, taps = captured(network.eval(), images())
        assert logits.shape == (5, 8)
        assert features.tokens == {}
        assert features.heads == {}
        assert taps.blocks == 0
        assert taps.reason == taps.head_reason == f"the layers of {name} are not tapped"


def test_a_cnn_with_several_outputs_for_a_head_is_unknown(small_resnet: Build) -> None:
    network = small_resnet()
    network.get_classifier = lambda: (network.fc, network.fc)
    assert taps_of(network, images()).reason == "the layers of ResNet are not tapped"


def test_the_last_layer_of_a_cnn_without_a_head_is_what_it_gives(small_resnet: Build) -> None:
    features, output, taps = captured(small_resnet(num_classes=0), images())
    assert torch.equal(features.tokens[taps.blocks + 1, "mean_patch"], output)


def test_attention_pooling_has_no_last_token(small_vit: Build) -> None:
    taps = taps_of(small_vit(global_pool="map"), images())
    assert taps.reason is not None
    assert "attention pooling" in taps.reason


def test_blocks_without_an_output_projection_have_tokens_but_no_heads(small_vit: Build) -> None:
    features, _, taps = captured(small_vit(block_fn=ParallelScalingBlock), images())
    assert (2, "cls") in features.tokens
    assert features.heads == {}
    assert taps.reason is None
    assert taps.head_reason == "the attention of VisionTransformer has no output projection to tap"


@pytest.mark.parametrize("architecture", ["vit", "average", "cnn", "unknown"])
def test_taps_do_not_change_the_logits(small_vit: Build, small_resnet: Build, architecture: str) -> None:
    network = {
        "vit": lambda: small_vit(**CLASS_TOKEN),
        "average": lambda: small_vit(**AVERAGE),
        "cnn": small_resnet,
        "unknown": Unknown,
    }[architecture]()
    with torch.no_grad():
        plain = network(images())
    assert torch.equal(captured(network, images())[1], plain)


@pytest.mark.parametrize("architecture", ["vit", "average", "cnn"])
@pytest.mark.parametrize("raises", [False, True])
def test_nothing_is_kept_after_the_capture(
    small_vit: Build, small_resnet: Build, architecture: str, raises: bool
) -> None:
    network = {
        "vit": lambda: small_vit(**CLASS_TOKEN),
        "average": lambda: small_vit(**AVERAGE),
        "cnn": small_resnet,
    }[architecture]()
    taps = taps_of(network, images())
    with torch.no_grad():
        if raises:
            with pytest.raises(RuntimeError, match="mid-way"), taps.capture(True) as features:  # noqa: PT012
                network(images())
                raise RuntimeError("mid-way")
        else:
            with taps.capture(True) as features:
                network(images())
        tokens, heads = dict(features.tokens), dict(features.heads)
        assert tokens
        network(images(seed=1))
    assert all(features.tokens[key] is tokens[key] for key in tokens)
    assert all(features.heads[key] is heads[key] for key in heads)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_forward_pass_that_raises_leaves_no_hook(small_vit: Build) -> None:
    network = small_vit(**CLASS_TOKEN)
    taps = taps_of(network, images())
    with pytest.raises(AssertionError, match="height"), taps.capture(True):
        network(torch.zeros(1, 1, 35, 28))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_trying_the_stages_of_a_cnn_leaves_no_hook(small_resnet: Build) -> None:
    network = small_resnet()
    taps_of(network, images())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_captures_follow_each_other_without_mixing(small_vit: Build) -> None:
    network = small_vit(**CLASS_TOKEN)
    taps = taps_of(network, images())
    kept = []
    for seed in (0, 1, 0):
        with torch.no_grad(), taps.capture(False) as features:
            network(images(seed=seed))
        kept.append(features.tokens[2, "cls"])
    assert torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[0], kept[1])


def test_batches_concatenate_to_what_one_pass_gives(small_vit: Build) -> None:
    network = small_vit(**CLASS_TOKEN)
    whole, _, taps = captured(network, images())
    parts = []
    for part in images().split(2):
        with torch.no_grad(), taps.capture(True) as features:
            network(part)
        parts.append(features)
    joined = Features.concatenated(parts)
    assert joined.tokens.keys() == whole.tokens.keys()
    assert joined.heads.keys() == whole.heads.keys()
    for key, values in whole.tokens.items():
        torch.testing.assert_close(joined.tokens[key], values, rtol=1e-4, atol=1e-5)
    for key, values in whole.heads.items():
        torch.testing.assert_close(joined.heads[key], values, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------- attention maps


@pytest.mark.parametrize(
    "changes", [{}, {"reg_tokens": 2}, {"qk_norm": True}, {"class_token": False, "global_pool": "avg"}]
)
def test_attention_is_what_the_written_out_softmax_gives(small_vit: Build, changes: dict[str, Any]) -> None:
    network, batch = small_vit(**changes), images(3)
    with torch.no_grad(), taps_of(network, batch).capture(patches=False, attention=WHOLE_MAPS) as features:
        fused = network(batch)
    seen: list[Tensor] = []
    for block in network.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        written_out = network(batch)
    torch.testing.assert_close(fused, written_out, rtol=1e-4, atol=1e-4)
    assert sorted(features.attention) == [(1, "maps"), (2, "maps")]
    for block, expected in enumerate(seen, start=1):
        found = features.attention[block, "maps"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.sum(-1), torch.ones(expected.shape[:-1]))


def test_maps_are_read_some_images_at_a_time_and_of_the_blocks_that_are_named(
    small_vit: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, batch = small_vit(), images(5)
    sizes: list[int] = []

    def own_share(scores: Tensor) -> dict[str, Tensor]:
        sizes.append(len(scores))
        return {"own": scores.softmax(-1).diagonal(dim1=2, dim2=3)}

    with torch.no_grad(), taps_of(network, batch).capture(patches=False, attention=WHOLE_MAPS) as whole:
        network(batch)
    monkeypatch.setattr("mae_bench.models.taps.PIECE", 2 * whole.attention[2, "maps"][0].nbytes)
    with torch.no_grad(), taps_of(network, batch).capture(patches=False, attention={2: own_share}) as features:
        network(batch)
    assert sizes == [2, 2, 1]
    assert list(features.attention) == [(2, "own")]
    torch.testing.assert_close(features.attention[2, "own"], whole.attention[2, "maps"].diagonal(dim1=2, dim2=3))


def test_attention_is_kept_only_where_asked_for_and_does_not_change_the_logits(small_vit: Build) -> None:
    network, batch = small_vit(), images()
    with torch.no_grad():
        plain = network(batch)
        with taps_of(network, batch).capture(patches=False, attention=WHOLE_MAPS) as features:
            assert torch.equal(network(batch), plain)
    assert features.attention
    assert not captured(network, batch)[0].attention
    assert all(not block.attn._forward_pre_hooks for block in network.blocks)


def test_who_has_no_attention_says_why(small_resnet: Build) -> None:
    network = small_resnet()
    taps = taps_of(network, images(2))
    assert taps.attention_reason == "a convolutional network has no attention heads"
    with torch.no_grad(), taps.capture(patches=False, attention=WHOLE_MAPS) as features:
        network(images())
    assert features.attention == {}


# --------------------------------------------------------------------------- dropped tokens


def hidden_of(count: int, images: int = 5, patches: int = 16, seed: int = 0) -> Tensor:
    order = torch.rand(images, patches, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return order.argsort(1) < count


@pytest.mark.parametrize("count", [1, 7, 15])
def test_dropped_tokens_are_not_in_the_sequence(small_vit: Build, variant: dict[str, Any], count: int) -> None:
    network, batch = small_vit(**variant), images(channels=variant.get("in_chans", 1))
    hidden, prefix = hidden_of(count), network.num_prefix_tokens
    taps = taps_of(network, batch)
    with torch.no_grad():
        whole = network.norm_pre(network._pos_embed(network.patch_embed(batch)))
        kept = [[*range(prefix), *(prefix + i for i in range(16) if not row[i])] for row in hidden.tolist()]
        tokens = torch.stack([image[rows] for image, rows in zip(whole, kept, strict=True)])
        for block in network.blocks:
            tokens = block(tokens)
        expected = network.forward_head(network.norm(tokens))
        with taps.capture(patches=True) as features, taps.dropping(hidden):
            logits = network(batch)
        after = network(batch)
        plain = small_vit(**variant)(batch)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.tokens[2, "patch"], tokens[:, prefix:], rtol=1e-4, atol=1e-4)
    assert features.tokens[0, "patch"].shape[1] == 16 - count
    assert torch.equal(after, plain)


def test_dropping_nothing_changes_nothing(small_vit: Build) -> None:
    network, batch = small_vit(), images()
    with torch.no_grad():
        plain = network(batch)
        with taps_of(network, batch).dropping(torch.zeros(5, 16, dtype=torch.bool)):
            assert torch.equal(network(batch), plain)


def test_images_lose_as_many_tokens_and_not_all(small_vit: Build) -> None:
    network = small_vit()
    taps = taps_of(network, images(2))
    uneven = hidden_of(3)
    uneven[0] = False
    for hidden, lost in ((uneven, r"\[0, 3\]"), (torch.ones(5, 16, dtype=torch.bool), r"\[16\]")):
        with pytest.raises(ValueError, match=rf"images lose {lost} of 16 tokens"), taps.dropping(hidden):
            pass
    with pytest.raises(RuntimeError, match="stop"), taps.dropping(hidden_of(3)):
        raise RuntimeError("stop")
    assert not network.norm_pre._forward_hooks


@pytest.mark.parametrize("tokens", [15, 17, 64])
def test_a_mask_of_another_grid_is_refused(small_vit: Build, tokens: int) -> None:
    taps = taps_of(small_vit(), images())
    hidden = torch.zeros(5, tokens, dtype=torch.bool)
    with (
        pytest.raises(ValueError, match=f"a mask of {tokens} tokens does not fit 4 x 4 patches"),
        taps.dropping(hidden),
    ):
        pytest.fail("the mask was taken")


def test_a_cnn_has_no_tokens_to_drop(small_resnet: Build) -> None:
    taps = taps_of(small_resnet(), images(2))
    with (
        pytest.raises(ModelError, match="cannot be dropped: a convolutional network has no tokens"),
        taps.dropping(hidden_of(3)),
    ):
        pass


def test_features_of_kept_tokens_are_means_over_them(small_vit: Build, variant: dict[str, Any]) -> None:
    network, batch = small_vit(**variant), images(channels=variant.get("in_chans", 1))
    hidden = hidden_of(9)
    features, _, taps = captured(network, batch)
    kept = taps.of_kept(features, hidden)
    assert kept.tokens.keys() == features.tokens.keys()
    for mine, whole in ((kept.tokens, features.tokens), (kept.heads, features.heads)):
        for (layer, kind), values in mine.items():
            if kind == "cls":
                assert torch.equal(values, whole[layer, kind])
            elif (layer, "patch") in whole:
                rows = [image[~row] for image, row in zip(whole[layer, "patch"], hidden, strict=True)]
                expected = torch.stack(rows)
                torch.testing.assert_close(values, expected if kind == "patch" else expected.mean(1))
            else:  # the head reads the norm of the mean
                last = torch.stack([i[~row].mean(0) for i, row in zip(whole[2, "patch"], hidden, strict=True)])
                torch.testing.assert_close(values, network.fc_norm(last))


# --------------------------------------------------------------------------- relatives of the vision transformer


TINY: dict[str, Any] = {
    "img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 8, "embed_dim": 16, "depth": 2, "num_heads": 2,
}  # fmt: skip


def distilled(**changes: Any) -> nn.Module:
    network: nn.Module = VisionTransformerDistilled(**(TINY | changes))
    return network


def beit(**changes: Any) -> nn.Module:
    network: nn.Module = Beit(**(TINY | changes))
    return network


def eva(**changes: Any) -> nn.Module:
    network: nn.Module = Eva(**(TINY | {"qkv_fused": True, "norm_layer": nn.LayerNorm} | changes))
    return network


class Gated(Attention):
    """Timm's attention with its gate."""

    def __init__(self, *args: Any, **changes: Any) -> None:
        super().__init__(*args, gated=True, **changes)


def gated_eva() -> nn.Module:
    network = eva(use_rot_pos_emb=True)
    for block in network.blocks:
        block.attn = EvaAttention(16, 2, norm_layer=nn.LayerNorm, scale_norm=True, gated=True)
    return network


def grouped_eva() -> nn.Module:
    network = eva(use_rot_pos_emb=True, num_heads=4)
    for block in network.blocks:
        block.attn = AttentionRope(16, 4, qkv_fused=False, num_kv_heads=2, norm_layer=nn.LayerNorm, scale_norm=True)
    return network


def vit(**changes: Any) -> nn.Module:
    network: nn.Module = VisionTransformer(**(TINY | changes))
    return network


RELATIVES: dict[str, Callable[[], nn.Module]] = {
    "scale-norm": partial(vit, scale_attn_norm=True),
    "scale-norm-registers": partial(vit, scale_attn_norm=True, reg_tokens=2, global_pool="avg"),
    "qk-norm": partial(vit, qk_norm=True),
    "differential": partial(vit, attn_layer="diff"),
    "differential-scale-norm": partial(vit, attn_layer="diff", scale_attn_norm=True, qk_norm=True),
    "distilled": distilled,
    "distilled-scale-norm": partial(distilled, scale_attn_norm=True),
    "beit": partial(beit, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.5),
    "beit-shared": partial(beit, use_shared_rel_pos_bias=True, global_pool="token"),
    "beit-both": partial(beit, use_rel_pos_bias=True, use_shared_rel_pos_bias=True, qkv_bias=False),
    "beit-plain": beit,
    "eva": partial(eva, use_rot_pos_emb=True),
    "eva-scale-norm": partial(eva, use_rot_pos_emb=True, scale_attn_inner=True, global_pool="token"),
    "eva-registers": partial(eva, use_rot_pos_emb=True, attn_type="rope", num_reg_tokens=2),
    "eva-post-norm": partial(eva, use_post_norm=True, qkv_fused=False),
}  # fmt: skip
if "gated" in signature(Attention).parameters:  # not in the oldest timm that is supported
    RELATIVES |= {
        "gated": partial(vit, attn_layer=Gated),
        "gated-scale-norm": partial(vit, attn_layer=Gated, scale_attn_norm=True, qk_norm=True),
        "eva-gated": gated_eva,
        "eva-grouped": grouped_eva,
    }


@pytest.fixture(params=RELATIVES)
def relative(request: pytest.FixtureRequest, scattered: Build) -> Any:
    return scattered(RELATIVES[request.param]())


def rotated(values: Tensor, rope: Tensor | None, prefix: int) -> Tensor:
    """(T, d) a head's queries or keys, each pair of features turned by the angle of its position."""
    if rope is None:
        return values
    turned = values.clone()
    sines, cosines = rope.chunk(2, -1)
    for t in range(prefix, len(values)):
        for j in range(0, values.shape[1], 2):
            sine, cosine = sines[t - prefix, j], cosines[t - prefix, j]
            turned[t, j] = values[t, j] * cosine - values[t, j + 1] * sine
            turned[t, j + 1] = values[t, j + 1] * cosine + values[t, j] * sine
    return turned


def heads_by_hand(
    attention: Any, tokens: Tensor, rope: Tensor | None, shared: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(B, T, heads, d) what the heads give for ``tokens`` (B, T, D), and (B, heads, T, T) what each token gives to each
    where that is one softmax, from the weights and one head of one image at a time.
    """
    heads = attention.num_heads
    if attention.qkv is None:
        q, k, v = (layer(tokens) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    else:
        q, k, v = attention.qkv(tokens).chunk(3, -1)
        if getattr(attention, "q_bias", None) is not None:
            q, v = q + attention.q_bias, v + attention.v_bias
    size = q.shape[-1] // heads
    groups = q.shape[-1] // k.shape[-1]
    normed = [getattr(attention, name, nn.Identity()) for name in ("q_norm", "k_norm")]
    prefix = getattr(attention, "num_prefix_tokens", 0)
    outputs = torch.zeros(*tokens.shape[:2], heads, size)
    maps = torch.zeros(len(tokens), heads, tokens.shape[1], tokens.shape[1])
    for image in range(len(tokens)):
        for h in range(heads):
            value = v[image, :, h // groups * size : (h // groups + 1) * size]
            halves = [(0, size)]
            if isinstance(attention, DiffAttention):  # two maps of half the features each, one taken from the other
                halves = [(0, size // 2), (size // 2, size)]
            each = []
            for start, stop in halves:
                query = normed[0](q[image, :, h * size + start : h * size + stop])
                key = normed[1](k[image, :, h // groups * size + start : h // groups * size + stop])
                query, key = rotated(query, rope, prefix), rotated(key, rope, prefix)
                score = query @ key.T / (stop - start) ** 0.5
                if getattr(attention, "relative_position_bias_table", None) is not None:
                    score = score + attention.relative_position_bias_table[attention.relative_position_index][..., h]
                if shared is not None:
                    score = score + shared[h]
                each.append(score.exp() / score.exp().sum(-1, keepdim=True) @ value)
                maps[image, h] = score.exp() / score.exp().sum(-1, keepdim=True)
            if len(each) == 2:
                first = (attention.lambda_q1 * attention.lambda_k1).sum().exp()
                second = (attention.lambda_q2 * attention.lambda_k2).sum().exp()
                each[0] = each[0] - (first - second + attention.lambda_init) * each[1]
            outputs[image, :, h] = each[0]
    return outputs, None if isinstance(attention, DiffAttention) else maps


def test_heads_are_read_before_any_norm_gate_or_projection(relative: Any) -> None:
    batch = images(2)
    seen: list[Tensor] = []
    handles = [b.attn.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for b in relative.blocks]
    features, _, taps = captured(relative, batch)
    for handle in handles:
        handle.remove()
    rope = getattr(relative, "rope", None)
    bias = getattr(relative, "rel_pos_bias", None)
    prefix = relative.num_prefix_tokens
    assert taps.reason is None
    assert taps.head_reason is None
    assert taps.prefix == prefix
    for number, (block, tokens) in enumerate(zip(relative.blocks, seen, strict=True), start=1):
        with torch.no_grad():
            expected, _ = heads_by_hand(
                block.attn, tokens, None if rope is None else rope.get_embed(), None if bias is None else bias()
            )
        for kind, values in (
            ("patch", expected[:, prefix:]), ("mean_patch", expected[:, prefix:].mean(1)), ("cls", expected[:, 0]),
        ):  # fmt: skip
            torch.testing.assert_close(features.heads[number, kind], values, rtol=1e-4, atol=1e-5)


def test_what_follows_the_heads_gives_the_logits(relative: Any) -> None:
    """That the tap is where it should be: the attention's own output from what was tapped, by its remaining parts."""
    given: list[tuple[Tensor, Tensor]] = []
    handles = [
        block.attn.register_forward_hook(lambda _, args, out: given.append((args[0], out))) for block in relative.blocks
    ]
    features, _, _ = captured(relative, images(2))
    for handle in handles:
        handle.remove()
    for number, (block, (tokens, output)) in enumerate(zip(relative.blocks, given, strict=True), start=1):
        attention, prefix = block.attn, relative.num_prefix_tokens
        heads = features.heads[number, "patch"]
        with torch.no_grad():
            if isinstance(attention, DiffAttention):
                heads = attention.sub_norm(heads) * (1 - attention.lambda_init)
            joined = heads.flatten(2)
            if hasattr(attention, "norm"):
                joined = attention.norm(joined)
            if getattr(attention, "gate", None) is not None:
                joined = joined * attention.gate(tokens).sigmoid()[:, prefix:]
            expected = attention.proj(joined)
        torch.testing.assert_close(output[:, prefix:], expected, rtol=1e-4, atol=1e-5)


def test_tokens_of_a_relative_are_the_outputs_of_its_blocks(relative: Any) -> None:
    batch, prefix = images(3), relative.num_prefix_tokens
    outputs: list[Tensor] = []
    handles = [block.register_forward_hook(lambda *args: outputs.append(args[2])) for block in relative.blocks]
    features, logits, taps = captured(relative, batch)
    for handle in handles:
        handle.remove()
    assert taps.grid == (4, 4)
    for layer, tokens in enumerate(outputs, start=1):
        assert torch.equal(features.tokens[layer, "cls"], tokens[:, 0])
        assert torch.equal(features.tokens[layer, "patch"], tokens[:, prefix:])
        assert tokens.shape[1] == prefix + 16
    with torch.no_grad():
        if isinstance(relative, VisionTransformerDistilled):
            last = relative.norm(outputs[-1])
            expected = (relative.head(last[:, 0]) + relative.head_dist(last[:, 1])) / 2
            torch.testing.assert_close(features.tokens[3, "cls"], last[:, 0])
        else:
            kind = "cls" if relative.global_pool == "token" else "mean_patch"
            expected = relative.head(features.tokens[3, kind])
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(logits, relative(batch))


def test_attention_of_a_relative_is_the_softmax_or_there_is_a_reason(relative: Any) -> None:
    batch = images(2)
    seen: list[Tensor] = []
    handles = [b.attn.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for b in relative.blocks]
    taps = taps_of(relative, batch)
    with torch.no_grad(), taps.capture(patches=False, attention=WHOLE_MAPS) as features:
        relative(batch)
    for handle in handles:
        handle.remove()
    name = type(relative).__name__
    if taps.attention_reason is not None:
        assert taps.attention_reason == f"the attention of {name} is not timm's plain one"
        assert features.attention == {}
        assert name == "Eva" or isinstance(relative.blocks[0].attn, DiffAttention)
        return
    bias = getattr(relative, "rel_pos_bias", None)
    for number, (block, tokens) in enumerate(zip(relative.blocks, seen, strict=True), start=1):
        with torch.no_grad():
            _, expected = heads_by_hand(block.attn, tokens, None, None if bias is None else bias())
        torch.testing.assert_close(features.attention[number, "maps"], expected, rtol=1e-4, atol=1e-6)


def test_a_distilled_vit_drops_patches_and_keeps_both_tokens(scattered: Build) -> None:
    network, batch, hidden = scattered(distilled()), images(), hidden_of(7)
    taps = taps_of(network, batch)
    with torch.no_grad():
        whole = network._pos_embed(network.patch_embed(batch))
        kept = [[0, 1, *(2 + i for i in range(16) if not row[i])] for row in hidden.tolist()]
        tokens = torch.stack([image[rows] for image, rows in zip(whole, kept, strict=True)])
        for block in network.blocks:
            tokens = block(tokens)
        with taps.capture(patches=True) as features, taps.dropping(hidden):
            logits = network(batch)
        torch.testing.assert_close(logits, network.forward_head(network.norm(tokens)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.tokens[2, "patch"], tokens[:, 2:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["beit", "eva"])
def test_blocks_that_place_patches_need_them_all(name: str) -> None:
    taps = taps_of(RELATIVES[name]().eval(), images())
    with pytest.raises(ModelError, match="may need the place of every patch"), taps.dropping(hidden_of(3)):
        pytest.fail("the tokens were dropped")


def test_a_vit_that_drops_patches_by_itself_says_so(small_vit: Build) -> None:
    network = small_vit()
    network.patch_drop = PatchDropout(0.5)
    assert taps_of(network, images()).token_reason == "VisionTransformer drops patches of its own"


class OwnPass(VisionTransformer):
    """A vision transformer with a forward pass of its own, which takes the images in another order."""

    def forward_features(self, images: Tensor, **_: Any) -> Tensor:
        tokens = self._pos_embed(self.patch_embed(images))
        normed: Tensor = self.norm(self.blocks(tokens.flip(0)))
        return normed


def test_a_vit_with_a_pass_of_its_own_is_read_as_stages(scattered: Build) -> None:
    features, _, taps = captured(scattered(OwnPass(**TINY)), images())
    assert taps.reason is None
    assert taps.head_reason == "the attention heads of OwnPass are not tapped"
    assert taps.token_reason == "OwnPass needs every token of its grid"
    assert {kind for _, kind in features.tokens} == {"mean_patch"}
    assert not features.heads


class OwnAttention(Attention):
    """An attention whose heads do something between the softmax and the projection."""

    def forward(self, tokens: Tensor, **named: Any) -> Tensor:
        output: Tensor = super().forward(tokens, **named)
        return output


def test_heads_of_an_unknown_attention_are_not_read(scattered: Build) -> None:
    features, _, taps = captured(scattered(vit(attn_layer=OwnAttention)), images())
    assert taps.head_reason == "where the heads of OwnAttention end is not known"
    assert taps.attention_reason == "the attention of VisionTransformer is not timm's plain one"
    assert features.heads == {}
    assert (2, "cls") in features.tokens


# --------------------------------------------------------------------------- the grid of the patches


class Patches(nn.Module):
    """A patch embedding that says nothing of its grid."""

    def __init__(self, count: int, **_: Any) -> None:
        super().__init__()
        self.num_patches = count
        self.proj = nn.Linear(784 // count, 16)

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.proj(images.reshape(len(images), self.num_patches, -1))
        return patches


@pytest.mark.parametrize(("count", "grid"), [(16, (4, 4)), (49, (7, 7)), (14, None), (56, None)])
def test_the_grid_of_an_own_patch_embedding_is_square_or_unknown(
    scattered: Build, count: int, grid: tuple[int, int] | None
) -> None:
    network = scattered(vit(embed_layer=lambda **_: Patches(count)))
    features, _, taps = captured(network, images())
    assert features.tokens[1, "patch"].shape == (5, count, 16)
    if grid is None:
        reason = "the patches of VisionTransformer form no grid that is known"
        assert (taps.attention_reason, taps.token_reason, taps.head_reason) == (reason, reason, None)
    else:
        assert (taps.grid, taps.attention_reason, taps.token_reason) == (grid, None, None)


@pytest.mark.parametrize(("height", "width", "grid"), [(28, 28, (4, 4)), (14, 42, (2, 6)), (42, 21, (6, 3))])
def test_the_grid_is_that_of_the_images_where_their_size_is_free(
    scattered: Build, height: int, width: int, grid: tuple[int, int]
) -> None:
    network = scattered(vit(dynamic_img_size=True))
    batch = torch.randn(5, 1, height, width, generator=torch.Generator().manual_seed(0))
    features, _, taps = captured(network, batch)
    assert taps.grid == grid
    assert features.tokens[1, "patch"].shape[1] == grid[0] * grid[1]
    with torch.no_grad(), taps.dropping(hidden_of(3, patches=grid[0] * grid[1])), taps.capture(True) as kept:
        network(batch)
    assert kept.tokens[1, "patch"].shape[1] == grid[0] * grid[1] - 3


def test_patches_that_are_not_square_count_by_the_embedding(scattered: Build) -> None:
    assert taps_of(scattered(vit(patch_size=(7, 14))), images()).grid == (4, 2)


# --------------------------------------------------------------------------- hierarchical transformers


def swin(kind: type = SwinTransformer) -> nn.Module:
    network: nn.Module = kind(
        img_size=32, patch_size=2, window_size=4, embed_dim=8, depths=(1, 2), num_heads=(1, 2), num_classes=8
    )
    return network


def hiera(**changes: Any) -> nn.Module:
    shape: dict[str, Any] = {
        "img_size": (32, 32), "embed_dim": 8, "stages": (1, 2), "q_pool": 1, "mask_unit_size": (4, 4),
        "mask_unit_attn": (True, False), "num_classes": 8,
    }  # fmt: skip
    network: nn.Module = Hiera(**(shape | changes))
    return network


def convnext_v2() -> nn.Module:
    network: nn.Module = ConvNeXt(
        depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), use_grn=True, ls_init_value=None, num_classes=8
    )
    return network


def pvt() -> nn.Module:
    network: nn.Module = PyramidVisionTransformerV2(
        depths=(1, 1, 1, 1), embed_dims=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), num_classes=8
    )
    return network


def mixer() -> nn.Module:
    network: nn.Module = MlpMixer(img_size=32, patch_size=8, num_blocks=2, embed_dim=16, num_classes=8)
    return network


WINDOWS = "the attention heads of {} see windows, not the whole image"
STAGED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "swin": (swin, WINDOWS.format("SwinTransformer"), "SwinTransformer needs every token of its grid"),
    "swin-v2": (
        partial(swin, SwinTransformerV2), WINDOWS.format("SwinTransformerV2"),
        "SwinTransformerV2 needs every token of its grid",
    ),
    "hiera": (
        hiera, "the attention heads in early stages of Hiera see mask units, not the whole image",
        "Hiera needs every token of its grid",
    ),
    "pvt": (
        pvt, "the attention heads of PyramidVisionTransformerV2 are not tapped",
        "PyramidVisionTransformerV2 needs every token of its grid",
    ),
    "mixer": (mixer, "MlpMixer has no attention heads", "MlpMixer needs every token of its grid"),
    "convnext-v2": (
        convnext_v2, "a convolutional network has no attention heads", "a convolutional network has no tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAGED)
def test_stages_are_means_over_all_their_positions(scattered: Build, name: str) -> None:
    build, head_reason, token_reason = STAGED[name]
    network: Any = scattered(build())
    batch = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs: list[Tensor] = []
    named = dict(network.named_modules())
    handles = [
        named[stage["module"]].register_forward_hook(lambda *args: outputs.append(args[2]))
        for stage in network.feature_info
    ]
    taps = taps_of(network, batch)
    outputs.clear()
    with torch.no_grad(), taps.capture(True, attention=WHOLE_MAPS) as features:
        logits = network(batch)
    for handle in handles:
        handle.remove()
    assert (taps.reason, taps.head_reason, taps.attention_reason) == (None, head_reason, head_reason)
    assert taps.token_reason == token_reason
    assert taps.blocks == len(outputs) == len(network.feature_info)
    assert not features.heads
    assert not features.attention
    assert set(features.tokens) == {(layer, "mean_patch") for layer in range(1, taps.blocks + 2)}
    for layer, (stage, output) in enumerate(zip(network.feature_info, outputs, strict=True), start=1):
        channels = stage["num_chs"]
        for image in range(3):
            axis = 0 if name in ("pvt", "convnext-v2") else output.ndim - 2
            columns = output[image].movedim(axis, 0).reshape(channels, -1)
            total = sum(columns[:, position] for position in range(columns.shape[1]))
            torch.testing.assert_close(
                features.tokens[layer, "mean_patch"][image], total / columns.shape[1], rtol=1e-4, atol=1e-5
            )
    read = features.tokens[taps.blocks + 1, "mean_patch"]
    torch.testing.assert_close(network.get_classifier()(read), logits, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(network(batch), logits)


def test_the_axis_of_channels_is_not_taken_for_a_position(scattered: Build) -> None:
    """A stage of as many rows as channels, (B, 8, 8, 8): only the network knows which is which."""
    network: Any = SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 1), num_classes=8
    )
    scattered(network)
    batch = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs: list[Tensor] = []
    handle = network.layers[0].register_forward_hook(lambda *args: outputs.append(args[2]))
    features, _, _ = captured(network, batch)
    handle.remove()
    assert outputs[-1].shape == (2, 8, 8, 8)
    torch.testing.assert_close(features.tokens[1, "mean_patch"], outputs[-1].mean((1, 2)))


def test_a_hiera_without_mask_units_still_has_no_tapped_heads(scattered: Build) -> None:
    network = scattered(hiera(mask_unit_attn=(False, False)))
    taps = taps_of(network, torch.zeros(2, 3, 32, 32))
    assert taps.head_reason == "the attention heads of Hiera are not tapped"
