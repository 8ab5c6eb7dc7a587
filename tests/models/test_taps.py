"""Tokens and heads, against forward passes written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor, nn

from mae_bench.models import ModelError
from mae_bench.models.taps import KINDS, Features, Taps, taps_of

Build = Callable[..., Any]


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


def test_a_cnn_without_a_linear_head_is_unknown(small_resnet: Build) -> None:
    assert taps_of(small_resnet(num_classes=0), images()).reason == "the layers of ResNet are not tapped"


def test_a_relative_of_the_vit_with_other_tokens_is_unknown() -> None:
    from timm.models.deit import VisionTransformerDistilled

    network = VisionTransformerDistilled(
        img_size=28, patch_size=7, in_chans=1, num_classes=8, embed_dim=16, depth=1, num_heads=2
    )
    features, _, taps = captured(network.eval(), images())
    assert features.tokens == {}
    assert taps.reason == "the layers of VisionTransformerDistilled are not tapped"


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
    with torch.no_grad(), taps_of(network, batch).capture(patches=False, attention=True) as features:
        fused = network(batch)
    seen: list[Tensor] = []
    for block in network.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        written_out = network(batch)
    torch.testing.assert_close(fused, written_out, rtol=1e-4, atol=1e-4)
    assert sorted(features.attention) == [1, 2]
    for block, expected in enumerate(seen, start=1):
        torch.testing.assert_close(features.attention[block], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(features.attention[block].sum(-1), torch.ones(expected.shape[:-1]))


def test_attention_is_kept_only_where_asked_for_and_does_not_change_the_logits(small_vit: Build) -> None:
    network, batch = small_vit(), images()
    with torch.no_grad():
        plain = network(batch)
        with taps_of(network, batch).capture(patches=False, attention=True) as features:
            assert torch.equal(network(batch), plain)
    assert features.attention
    assert not captured(network, batch)[0].attention
    assert all(not block.attn._forward_pre_hooks for block in network.blocks)


def test_who_has_no_attention_says_why(small_resnet: Build) -> None:
    network = small_resnet()
    taps = taps_of(network, images(2))
    assert taps.attention_reason == "a convolutional network has no attention heads"
    with torch.no_grad(), taps.capture(patches=False, attention=True) as features:
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
    taps = taps_of(small_vit(), torch.zeros(5, 3, 32, 32))
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
