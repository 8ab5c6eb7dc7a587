"""Small suites and networks that several test files share. Heavy imports are inside: many tests need none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mae_bench.suites import Suite

# a slow machine is no failure, so neither the deadline nor the health check that looks at the clock applies
settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Networks this small lose more to threads than they gain."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def scattered(one_thread: None) -> Callable[..., Any]:  # noqa: ARG001
    """Give a network random weights so large that its predictions and its activity vary from image to image."""
    import torch

    def scatter(module: nn.Module, seed: int = 0, scale: float = 0.3) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                gain = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(gain + scale * noise)
        return module.eval()

    return scatter


@pytest.fixture(scope="session")
def small_vit(scattered: Callable[..., Any]) -> Callable[..., Any]:
    """Builds timm ViTs of 16 patches, two blocks and two heads of eight features."""
    from timm.models.vision_transformer import VisionTransformer

    def build(seed: int = 0, **changes: Any) -> nn.Module:
        shape: dict[str, Any] = {
            "img_size": 28,
            "patch_size": 7,
            "in_chans": 1,
            "num_classes": 8,
            "embed_dim": 16,
            "depth": 2,
            "num_heads": 2,
            "global_pool": "token",
        }
        network: nn.Module = scattered(VisionTransformer(**(shape | changes)), seed)
        return network

    return build


@pytest.fixture(scope="session")
def small_resnet(scattered: Callable[..., Any]) -> Callable[..., Any]:
    """Builds timm ResNets of one basic block per stage."""
    from timm.models.resnet import BasicBlock, ResNet

    def build(seed: int = 0, **changes: Any) -> nn.Module:
        shape: dict[str, Any] = {"num_classes": 8, "in_chans": 1, "channels": (8, 8, 16, 16)}
        network: nn.Module = scattered(ResNet(BasicBlock, (1, 1, 1, 1), **(shape | changes)), seed, scale=0.1)
        return network

    return build


@pytest.fixture(scope="session")
def vit_by_hand() -> Callable[[Any, Tensor], tuple[list[Tensor], list[Tensor], Tensor]]:
    """The forward pass of a timm ViT written out from its weights.

    Gives the tokens (B, N, D) before the first block, after each block and after the final norm, the head
    outputs (B, N, heads, d) of each block before the output projection, and the logits.
    """
    import torch

    def normalised(x: Tensor, norm: Any) -> Tensor:
        if isinstance(norm, torch.nn.Identity):
            return x
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred**2).mean(-1, keepdim=True)
        return centred / (variance + norm.eps).sqrt() * norm.weight + norm.bias

    def linear(x: Tensor, layer: Any) -> Tensor:
        return x @ layer.weight.T + layer.bias

    def gelu(x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / 2**0.5)) / 2

    def embedded(model: Any, images: Tensor) -> Tensor:
        kernel, side = model.patch_embed.proj, model.patch_embed.patch_size[0]
        patches = [
            images[:, :, top : top + side, left : left + side].flatten(1)
            for top in range(0, images.shape[2], side)
            for left in range(0, images.shape[3], side)
        ]
        tokens = torch.stack(patches, 1) @ kernel.weight.flatten(1).T + kernel.bias
        prefix = [t for t in (model.cls_token, model.reg_token) if t is not None]
        tokens = torch.cat([*(t.expand(len(images), -1, -1) for t in prefix), tokens], 1)
        summed: Tensor = tokens + model.pos_embed
        return summed

    def forward(model: Any, images: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        with torch.no_grad():
            x = embedded(model, images)
            tokens, heads = [x], []
            for block in model.blocks:
                q, k, v = linear(normalised(x, block.norm1), block.attn.qkv).chunk(3, -1)
                each = []
                for h in range(block.attn.num_heads):
                    part = slice(h * block.attn.head_dim, (h + 1) * block.attn.head_dim)
                    score = q[..., part] @ k[..., part].transpose(1, 2) / block.attn.head_dim**0.5
                    weight = score.exp() / score.exp().sum(-1, keepdim=True)
                    each.append(weight @ v[..., part])
                heads.append(torch.stack(each, 2))
                x = x + linear(torch.cat(each, -1), block.attn.proj)
                x = x + linear(gelu(linear(normalised(x, block.norm2), block.mlp.fc1)), block.mlp.fc2)
                tokens.append(x)
            tokens.append(normalised(x, model.norm))
            if model.global_pool == "avg":
                pooled = normalised(tokens[-1][:, model.num_prefix_tokens :].mean(1), model.fc_norm)
            else:
                pooled = tokens[-1][:, 0]
            return tokens, heads, linear(pooled, model.head)

    return forward


@pytest.fixture(scope="session")
def random_suite() -> Callable[..., Suite]:
    """Builds suites of smooth random images of 8 to 28 pixels a side, none of them with a black pixel."""
    from PIL import Image

    from mae_bench.images import content_hash, stratified
    from mae_bench.suites import Suite, SuiteEntry

    def build(
        count: int,
        channels: int = 1,
        classes: tuple[str, ...] = ("a", "b", "c", "d", "e", "f", "g", "h"),
        reference_size: int = 28,
        name: str = "random_images",
    ) -> Suite:
        generator = np.random.default_rng(count)
        images = []
        for _ in range(count):
            shape = (3, 3) if channels == 1 else (3, 3, channels)
            coarse = generator.integers(1, 256, shape, dtype=np.uint8)
            side = tuple(int(length) for length in generator.integers(8, 29, 2))
            images.append(Image.fromarray(coarse).resize(side, Image.Resampling.BILINEAR))
        labels = [int(label) for label in generator.integers(0, len(classes), count)]
        hashes = [content_hash(f"{image.size}".encode() + image.tobytes()) for image in images]
        order, manifest = stratified(hashes, labels, classes)
        entry = SuiteEntry(name, reference_size, 0, True, "random images")
        mean = (0.5,) if channels == 1 else (0.5, 0.45, 0.4)
        return Suite(entry, manifest, mean, lambda position: images[order[position]])

    return build
