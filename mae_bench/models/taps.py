"""Tokens and attention heads of a network, read by forward hooks while it classifies.

Token kinds: ``cls`` (the class token), ``mean_patch`` (mean over patch tokens, or the spatial mean of a CNN
stage) and ``patch`` (every patch token). Layer 0 is the input of the first block, layers 1 to L follow the
blocks or stages, layer L + 1 is what the head reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mae_bench.models import ModelError

KINDS = ("cls", "mean_patch", "patch")


@dataclass
class Features:
    """What one forward pass left behind.

    ``tokens[layer, kind]`` is (B, D), for ``patch`` (B, P, D); ``heads[block, kind]`` is the output of the
    heads before the output projection, (B, heads, d), for ``patch`` (B, P, heads, d). ``attention[block]`` is what each
    token gives to each, (B, heads, T, T), where it was asked for.
    """

    tokens: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    heads: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    attention: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def concatenated(cls, parts: list[Features]) -> Features:
        return cls(
            {key: torch.cat([part.tokens[key] for part in parts]) for key in parts[0].tokens},
            {key: torch.cat([part.heads[key] for part in parts]) for key in parts[0].heads},
            {key: torch.cat([part.attention[key] for part in parts]) for key in parts[0].attention},
        )


class Taps:
    """No tap: the base, and the reading of an architecture that is not known.

    ``reason``, ``head_reason``, ``attention_reason`` and ``token_reason`` say why there are no tokens, heads, attention
    maps, or tokens that can be dropped; None where there are. ``grid`` is (rows, columns) of the patches, ``prefix``
    the number of tokens before them.
    """

    blocks = 0
    prefix = 0
    grid = (0, 0)

    def __init__(self, reason: str) -> None:
        self.reason: str | None = reason
        self.head_reason: str | None = reason
        self.attention_reason: str | None = reason
        self.token_reason: str | None = reason

    @contextmanager
    def capture(self, patches: bool, attention: bool = False) -> Iterator[Features]:
        """Features of the forward passes run inside; ``patches`` asks for the ``patch`` kind too, ``attention`` for
        attention maps, where they can be had.
        """
        features = Features()
        handles: list[RemovableHandle] = []
        try:
            self._attach(features, patches, handles)
            if attention and self.attention_reason is None:
                self._attach_attention(features, handles)
            yield features
        finally:
            for handle in handles:
                handle.remove()

    def _attach(self, features: Features, patches: bool, handles: list[RemovableHandle]) -> None:
        """Register the hooks that fill ``features``."""

    def _attach_attention(self, features: Features, handles: list[RemovableHandle]) -> None:
        """Register the hooks that fill ``features.attention``."""

    @contextmanager
    def dropping(self, hidden: Tensor) -> Iterator[None]:
        """Forward passes inside go without the patch tokens where ``hidden`` (B, P) is True, as many for each image;
        what is kept stays in order, with its position embedding.

        Raises:
            ModelError: the model has no tokens that can be dropped.
            ValueError: the mask is of another grid, the images lose different numbers of tokens, or one loses all.
        """
        if self.token_reason is not None:
            raise ModelError(f"tokens cannot be dropped: {self.token_reason}")
        if hidden.shape[1] != self.grid[0] * self.grid[1]:
            rows, columns = self.grid
            raise ValueError(f"a mask of {hidden.shape[1]} tokens does not fit {rows} x {columns} patches")
        counts = hidden.sum(1)
        if bool((counts != counts[0]).any()) or int(counts[0]) == hidden.shape[1]:
            raise ValueError(
                f"images lose {sorted(set(counts.tolist()))} of {hidden.shape[1]} tokens: drop as many of each, not all"
            )
        handle = self._attach_dropping(hidden)
        try:
            yield
        finally:
            handle.remove()

    def _attach_dropping(self, hidden: Tensor) -> RemovableHandle:
        raise NotImplementedError

    def of_kept(self, features: Features, hidden: Tensor) -> Features:
        """``features`` of whole images restricted to the patch tokens that are not ``hidden`` (B, P); they hold the
        ``patch`` kind.
        """
        raise NotImplementedError


class TransformerTaps(Taps):
    """Taps of a timm ``VisionTransformer``, pooled by class token or by average."""

    def __init__(self, model: VisionTransformer) -> None:
        self.model = model
        self.blocks = len(model.blocks)
        self.reason = None
        self.prefix = model.num_prefix_tokens
        self.has_cls = model.cls_token is not None
        attentions = [getattr(block, "attn", None) for block in model.blocks]
        known = all(
            isinstance(getattr(a, "proj", None), nn.Linear) and isinstance(getattr(a, "num_heads", None), int)
            for a in attentions
        )
        self.head_reason = None if known else f"the attention of {type(model).__name__} has no output projection to tap"
        plain = all(type(a) is Attention for a in attentions)
        self.attention_reason = None if plain else f"the attention of {type(model).__name__} is not timm's plain one"
        self.grid: tuple[int, int] = tuple(model.patch_embed.grid_size)
        whole = (
            isinstance(model.patch_drop, nn.Identity) and self.grid[0] * self.grid[1] == model.patch_embed.num_patches
        )
        self.token_reason = None if whole else f"{type(model).__name__} drops patches of its own"

    def _attach(self, features: Features, patches: bool, handles: list[RemovableHandle]) -> None:
        def keep(layer: int, tokens: Tensor) -> None:
            if self.has_cls:
                features.tokens[layer, "cls"] = tokens[:, 0].float()
            body = tokens[:, self.prefix :].float()
            features.tokens[layer, "mean_patch"] = body.mean(1)
            if patches:
                features.tokens[layer, "patch"] = body

        def keep_heads(block: int, heads: int, outputs: Tensor) -> None:
            outputs = outputs.reshape(*outputs.shape[:-1], heads, -1).float()
            if self.has_cls:
                features.heads[block, "cls"] = outputs[:, 0]
            body = outputs[:, self.prefix :]
            features.heads[block, "mean_patch"] = body.mean(1)
            if patches:
                features.heads[block, "patch"] = body

        model = self.model
        handles.append(model.blocks[0].register_forward_pre_hook(lambda _, args: keep(0, args[0])))
        for index, block in enumerate(model.blocks, start=1):
            handles.append(block.register_forward_hook(lambda _, __, out, layer=index: keep(layer, out)))
            if self.head_reason is None:
                attention = block.attn
                handles.append(
                    attention.proj.register_forward_pre_hook(
                        lambda _, args, block=index, heads=attention.num_heads: keep_heads(block, heads, args[0])
                    )
                )
        last = self.blocks + 1
        if isinstance(model.fc_norm, nn.Identity):
            handles.append(model.norm.register_forward_hook(lambda _, __, out: keep(last, out)))
        elif model.global_pool == "avg":  # the head reads the normalised mean patch token, and no other

            def keep_pooled(pooled: Tensor) -> None:
                features.tokens[last, "mean_patch"] = pooled.float()

            handles.append(model.fc_norm.register_forward_hook(lambda _, __, out: keep_pooled(out)))

    def _attach_attention(self, features: Features, handles: list[RemovableHandle]) -> None:
        def keep(block: int, attention: nn.Module, tokens: Tensor) -> None:
            features.attention[block] = attention_map(attention, tokens)

        for index, block in enumerate(self.model.blocks, start=1):
            handles.append(
                block.attn.register_forward_pre_hook(lambda module, args, index=index: keep(index, module, args[0]))
            )

    def _attach_dropping(self, hidden: Tensor) -> RemovableHandle:
        prefix = self.prefix

        def drop(_: nn.Module, __: object, tokens: Tensor) -> Tensor:
            kept = _kept(tokens[:, prefix:], hidden)
            return torch.cat([tokens[:, :prefix], kept], dim=1)

        handle: RemovableHandle = self.model.norm_pre.register_forward_hook(drop)
        return handle

    def of_kept(self, features: Features, hidden: Tensor) -> Features:
        kept = Features(dict(features.tokens), dict(features.heads))
        for values in (kept.tokens, kept.heads):
            for layer in {layer for layer, kind in values if kind == "patch"}:
                body = _kept(values[layer, "patch"], hidden)
                values[layer, "patch"] = body
                values[layer, "mean_patch"] = body.mean(1)
        last = (self.blocks + 1, "mean_patch")
        if (self.blocks + 1, "patch") not in kept.tokens and last in kept.tokens:  # pooled before the last norm
            kept.tokens[last] = self.model.fc_norm(kept.tokens[self.blocks, "mean_patch"]).float()
        return kept


class StageTaps(Taps):
    """Taps of a timm CNN: the spatial mean of each stage, and what the classifier reads."""

    def __init__(self, stages: list[nn.Module], classifier: nn.Module) -> None:
        self.stages = stages
        self.classifier = classifier
        self.blocks = len(stages)
        self.reason = None
        self.head_reason = self.attention_reason = "a convolutional network has no attention heads"
        self.token_reason = "a convolutional network has no tokens"

    def _attach(self, features: Features, patches: bool, handles: list[RemovableHandle]) -> None:  # noqa: ARG002
        def keep(layer: int, values: Tensor) -> None:
            features.tokens[layer, "mean_patch"] = (
                values.flatten(2).float().mean(-1) if values.ndim == 4 else values.float()
            )

        for index, stage in enumerate(self.stages, start=1):
            handles.append(stage.register_forward_hook(lambda _, __, out, layer=index: keep(layer, out)))
        last = self.blocks + 1
        handles.append(self.classifier.register_forward_pre_hook(lambda _, args: keep(last, args[0])))


def attention_map(attention: nn.Module, tokens: Tensor) -> Tensor:
    """(B, heads, T, T) what timm's plain ``attention`` gives for its input ``tokens`` (B, T, D), computed beside it, so
    that its fused kernel stays in use; softmax in float32.
    """
    batch, count, _ = tokens.shape
    qkv = attention.qkv(tokens).reshape(batch, count, 3, attention.num_heads, -1)  # type: ignore[operator]
    queries, keys, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    queries, keys = attention.q_norm(queries), attention.k_norm(keys)  # type: ignore[operator]
    with torch.autocast(tokens.device.type, enabled=False):  # which would cast the product back down
        scores: Tensor = (queries.float() * attention.scale) @ keys.float().transpose(-2, -1)
        return scores.softmax(-1)


def _kept(values: Tensor, hidden: Tensor) -> Tensor:
    """(B, K, ...) those of ``values`` (B, P, ...) that are not ``hidden`` (B, P), in order."""
    return values[~hidden].reshape(len(hidden), -1, *values.shape[2:])


def taps_of(module: nn.Module, example: Tensor) -> Taps:
    """The taps that fit ``module``; ``example`` (B, C, H, W) is a batch to try them on."""
    if type(module).__name__ == "VisionTransformer" and isinstance(module, VisionTransformer):
        if module.attn_pool is not None:
            return Taps("a VisionTransformer with attention pooling has no fixed last token to read")
        return TransformerTaps(module)
    stages = _stages(module, example)
    if stages is not None:
        *blocks, classifier = stages
        return StageTaps(blocks, classifier)
    return Taps(f"the layers of {type(module).__name__} are not tapped")


def _stages(module: nn.Module, example: Tensor) -> list[nn.Module] | None:
    """The stages that timm names for ``module``, if each gives (B, C, h, w) with the channels it declares, and last
    its classifier.
    """
    info = getattr(module, "feature_info", None)
    named = dict(module.named_modules())
    classifier = getattr(module, "get_classifier", lambda: None)()
    if not info or not isinstance(classifier, nn.Linear):
        return None
    stages = [(named.get(stage["module"]), stage["num_chs"]) for stage in info]
    outputs: dict[int, object] = {}
    handles = [
        stage.register_forward_hook(lambda _, __, out, i=i: outputs.__setitem__(i, out))
        for i, (stage, _) in enumerate(stages)
        if stage is not None
    ]
    try:
        with torch.inference_mode():
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    for i, (_, channels) in enumerate(stages):
        out = outputs.get(i)
        if not isinstance(out, Tensor) or out.ndim != 4 or out.shape[1] != channels:
            return None
    return [*(stage for stage, _ in stages if stage is not None), classifier]
