"""Tokens and attention heads of a network, read by forward hooks while it classifies.

Token kinds: ``cls`` (the class token), ``mean_patch`` (mean over patch tokens, or over the positions of a stage) and
``patch`` (every patch token). Layer 0 is the input of the first block, layers 1 to L follow the blocks or stages, layer
L + 1 is what the head reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from timm.layers import AttentionRope, DiffAttention
from timm.models.beit import Attention as BeitAttention
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mae_bench.models import ModelError
from mae_bench.models.probes import Probed

KINDS = ("cls", "mean_patch", "patch")
POOLED = ("cls", "mean_patch")
"""Kinds of which there is one in an image."""
TRANSFORMERS = (VisionTransformer, VisionTransformerDistilled, Beit, Eva)
"""Those whose blocks pass on one sequence: class token, further tokens, patches."""
AFTER_HEADS = {
    Attention.forward: "norm",
    AttentionRope.forward: "norm",
    EvaAttention.forward: "norm",
    DiffAttention.forward: "sub_norm",
    BeitAttention.forward: "proj",
}
"""The part of each of timm's attentions that takes what the heads give, before any norm, gate or projection."""
PIECE = 1 << 19
"""Bytes of attention scores that a processor makes and reads at a time, so that they stay in its cache."""
Reading = Callable[[Tensor], Mapping[str, Tensor]]
"""What is read from attention scores (B, heads, T, T), whose softmax over the last axis is the attention map, by name:
(B, ...) each.
"""


@dataclass
class Features:
    """What one forward pass left behind.

    ``tokens[layer, kind]`` is (B, D), for ``patch`` (B, P, D); ``heads[block, kind]`` is the output of the
    heads before the output projection, (B, heads, d), for ``patch`` (B, P, heads, d). ``attention[block, name]`` is
    what was read under that name from the attention scores of a block, (B, ...).
    """

    tokens: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    heads: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    attention: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    @classmethod
    def concatenated(cls, parts: list[Features]) -> Features:
        return cls(
            {key: torch.cat([part.tokens[key] for part in parts]) for key in parts[0].tokens},
            {key: torch.cat([part.heads[key] for part in parts]) for key in parts[0].heads},
            {key: torch.cat([part.attention[key] for part in parts]) for key in parts[0].attention},
        )

    def window(self, images: slice) -> Features:
        """Tokens and heads of some of the images."""
        return Features(
            {key: value[images] for key, value in self.tokens.items()},
            {key: value[images] for key, value in self.heads.items()},
        )

    def clone(self) -> Features:
        """The same in memory of its own."""
        return Features(
            {key: value.clone() for key, value in self.tokens.items()},
            {key: value.clone() for key, value in self.heads.items()},
            {key: value.clone() for key, value in self.attention.items()},
        )

    @property
    def patches(self) -> Features:
        """Tokens and heads of the ``patch`` kind alone."""
        return self._where(lambda key: key[1] == "patch")

    @property
    def pooled(self) -> Features:
        """Tokens and heads without the ``patch`` kind."""
        return self._where(lambda key: key[1] != "patch")

    @property
    def layers(self) -> list[Features]:
        """Tokens and heads of each layer by themselves."""

        def of(layer: int) -> Features:
            return self._where(lambda key: key[0] == layer)

        return [of(layer) for layer in sorted({layer for layer, _ in (*self.tokens, *self.heads)})]

    def _where(self, chosen: Callable[[tuple[int, str]], bool]) -> Features:
        return Features(
            {key: value for key, value in self.tokens.items() if chosen(key)},
            {key: value for key, value in self.heads.items() if chosen(key)},
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

    def untapped(self) -> list[nn.Module]:
        """Modules inside which nothing is tapped, so that each can be compiled for itself; compiled code does not see a
        hook that comes later.
        """
        return []

    @contextmanager
    def capture(self, patches: bool, attention: Mapping[int, Reading] | None = None) -> Iterator[Features]:
        """Features of the forward passes run inside; ``patches`` asks for the ``patch`` kind too, ``attention`` says by
        block, the first of which is 1, what is to be read from attention scores, where they can be had. They are not
        kept, for all of them together are gigabytes.
        """
        features = Features()
        handles: list[RemovableHandle] = []
        try:
            self._attach(features, patches, handles)
            if attention and self.attention_reason is None:
                self._attach_attention(features, attention, handles)
            yield features
        finally:
            for handle in handles:
                handle.remove()

    def _attach(self, features: Features, patches: bool, handles: list[RemovableHandle]) -> None:
        """Register the hooks that fill ``features``."""

    def _attach_attention(
        self, features: Features, readings: Mapping[int, Reading], handles: list[RemovableHandle]
    ) -> None:
        """Register the hooks that fill ``features.attention``."""

    @contextmanager
    def dropping(self, hidden: Tensor, kept: int | None = None) -> Iterator[None]:
        """Forward passes inside go without the patch tokens where ``hidden`` (B, P) is True, as many for each image;
        what is kept stays in order, with its position embedding. Who knows how many are ``kept`` of each spares a GPU
        from being waited for.

        Raises:
            ModelError: the model has no tokens that can be dropped.
            ValueError: the mask is of another grid, the images lose different numbers of tokens, or one loses all.
        """
        if self.token_reason is not None:
            raise ModelError(f"tokens cannot be dropped: {self.token_reason}")
        if hidden.shape[1] != self.grid[0] * self.grid[1]:
            rows, columns = self.grid
            raise ValueError(f"a mask of {hidden.shape[1]} tokens does not fit {rows} x {columns} patches")
        handle = self._attach_dropping(hidden, kept_of_each(hidden) if kept is None else kept)
        try:
            yield
        finally:
            handle.remove()

    def _attach_dropping(self, hidden: Tensor, kept: int) -> RemovableHandle:
        raise NotImplementedError

    def of_kept(self, features: Features, hidden: Tensor, kept: int | None = None) -> Features:
        """``features`` of whole images restricted to the patch tokens that are not ``hidden`` (B, P); they hold the
        ``patch`` kind.
        """
        raise NotImplementedError


class TransformerTaps(Taps):
    """Taps of one of timm's ``TRANSFORMERS``, pooled by class token or by average; ``example`` is a batch to embed."""

    def __init__(self, model: VisionTransformer | Beit | Eva, example: Tensor) -> None:
        self.model = model
        self.blocks = len(model.blocks)
        self.reason = None
        self.prefix = model.num_prefix_tokens
        self.has_cls = model.cls_token is not None
        name = type(model).__name__
        attentions = [getattr(block, "attn", None) for block in model.blocks]
        self.head_reason = next((reason for a in attentions if (reason := _headless(a, name)) is not None), None)
        mapped = all(_runs_as(a, Attention) or _runs_as(a, BeitAttention) for a in attentions)
        self.attention_reason = None if mapped else f"the attention of {name} is not timm's plain one"
        self.token_reason = None
        if not isinstance(model, VisionTransformer):
            self.token_reason = f"the blocks of {name} may need the place of every patch"
        elif not isinstance(model.patch_drop, nn.Identity):
            self.token_reason = f"{name} drops patches of its own"
        grid = _grid(model.patch_embed, example)
        if grid is None:
            unknown = f"the patches of {name} form no grid that is known"
            self.attention_reason, self.token_reason = self.attention_reason or unknown, self.token_reason or unknown
        self.grid = grid or (0, 0)

    def untapped(self) -> list[nn.Module]:
        return [block.mlp for block in self.model.blocks if isinstance(getattr(block, "mlp", None), nn.Module)]

    def _attach(self, features: Features, patches: bool, handles: list[RemovableHandle]) -> None:
        def keep(layer: int, tokens: Tensor) -> None:
            if self.has_cls:
                features.tokens[layer, "cls"] = _alone(tokens[:, 0])
            body = tokens[:, self.prefix :].float()
            features.tokens[layer, "mean_patch"] = body.mean(1)
            if patches:
                features.tokens[layer, "patch"] = body

        def keep_heads(block: int, heads: int, outputs: Tensor) -> None:
            # (B, heads, T, d) where what follows treats each head alone, else (B, T, heads * d)
            outputs = outputs.transpose(1, 2) if outputs.ndim == 4 else outputs.reshape(*outputs.shape[:2], heads, -1)
            outputs = outputs.float()
            if self.has_cls:
                features.heads[block, "cls"] = _alone(outputs[:, 0])
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
                follows = getattr(attention, AFTER_HEADS[type(attention).forward])
                handles.append(
                    follows.register_forward_pre_hook(
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

    def _attach_attention(
        self, features: Features, readings: Mapping[int, Reading], handles: list[RemovableHandle]
    ) -> None:
        def read(
            block: int, attention: nn.Module, tokens: Tensor, bias: Tensor | None = None, qkv: Tensor | None = None
        ) -> None:
            values = read_attention(readings[block], attention, tokens, bias, qkv)
            features.attention |= {(block, name): value for name, value in values.items()}

        for index in readings:
            attention = self.model.blocks[index - 1].attn
            if isinstance(attention, Attention):  # which calls its projection, so that it need not be made again
                handles.append(
                    attention.qkv.register_forward_hook(
                        lambda _, args, out, index=index, attention=attention: read(index, attention, args[0], qkv=out)
                    )
                )
                continue
            handles.append(
                attention.register_forward_pre_hook(
                    lambda module, args, named, index=index: read(
                        index, module, args[0], named.get("shared_rel_pos_bias")
                    ),
                    with_kwargs=True,
                )
            )

    def _attach_dropping(self, hidden: Tensor, kept: int) -> RemovableHandle:
        prefix = self.prefix

        def drop(_: nn.Module, __: object, tokens: Tensor) -> Tensor:
            return torch.cat([tokens[:, :prefix], not_hidden(tokens[:, prefix:], hidden, kept)], dim=1)

        handle: RemovableHandle = self.model.norm_pre.register_forward_hook(drop)
        return handle

    def of_kept(self, features: Features, hidden: Tensor, kept: int | None = None) -> Features:
        count = kept_of_each(hidden) if kept is None else kept
        left = Features(dict(features.tokens), dict(features.heads))
        for values in (left.tokens, left.heads):
            for layer in {layer for layer, kind in values if kind == "patch"}:
                body = not_hidden(values[layer, "patch"], hidden, count)
                values[layer, "patch"] = body
                values[layer, "mean_patch"] = body.mean(1)
        last = (self.blocks + 1, "mean_patch")
        if (self.blocks + 1, "patch") not in left.tokens and last in left.tokens:  # pooled before the last norm
            left.tokens[last] = self.model.fc_norm(left.tokens[self.blocks, "mean_patch"]).float()
        return left


class StageTaps(Taps):
    """Taps of a timm network of stages, a CNN or a hierarchical transformer: the mean over the positions of each stage,
    and what the classifier reads. ``stages`` come with the axes of their positions.
    """

    def __init__(
        self, model: nn.Module, stages: list[tuple[nn.Module, tuple[int, ...]]], classifier: nn.Module
    ) -> None:
        self.stages = stages
        self.classifier = classifier
        self.blocks = len(stages)
        self.prefix = getattr(model, "num_prefix_tokens", 0)
        self.reason = None
        name = type(model).__name__
        sequences = any(positions == (1,) for _, positions in stages)
        local = _local_heads(model)
        kind = name if sequences else "a convolutional network"
        self.head_reason = self.attention_reason = local or f"{kind} has no attention heads"
        self.token_reason = "a convolutional network has no tokens"
        if local or sequences:
            self.token_reason = f"{name} needs every token of its grid"

    def untapped(self) -> list[nn.Module]:
        return [stage for stage, _ in self.stages]

    def _attach(self, features: Features, patches: bool, handles: list[RemovableHandle]) -> None:  # noqa: ARG002
        def keep(layer: int, values: Tensor, positions: tuple[int, ...]) -> None:
            if positions == (1,):
                values = values[:, self.prefix :]
            if positions:
                values = values.flatten(positions[0], positions[-1]).float().mean(positions[0])
            features.tokens[layer, "mean_patch"] = values.float()

        for index, (stage, positions) in enumerate(self.stages, start=1):
            handles.append(
                stage.register_forward_hook(lambda _, __, out, layer=index, at=positions: keep(layer, out, at))
            )
        last = self.blocks + 1
        handles.append(
            self.classifier.register_forward_pre_hook(
                lambda _, args: keep(last, args[0], (2, 3) if args[0].ndim == 4 else ())
            )
        )


def _local_heads(model: nn.Module) -> str | None:
    """Why the attention heads of a network of stages are not read; None where it has none."""
    name = type(model).__name__
    attentions = [part for part in model.modules() if hasattr(part, "num_heads") or hasattr(part, "heads")]
    if any(getattr(part, "use_mask_unit_attn", False) for part in attentions):
        return f"the attention heads in early stages of {name} see mask units, not the whole image"
    if any("Window" in type(part).__name__ for part in attentions):
        return f"the attention heads of {name} see windows, not the whole image"
    return f"the attention heads of {name} are not tapped" if attentions else None


def read_attention(
    reading: Reading,
    attention: Attention | BeitAttention,
    tokens: Tensor,
    bias: Tensor | None = None,
    qkv: Tensor | None = None,
) -> dict[str, Tensor]:
    """What ``reading`` finds in the scores (B, heads, T, T), float32, that timm's plain ``attention``, or that of Beit,
    gives for its input ``tokens`` (B, T, D). They are computed beside it, so that its fused kernel stays in use, some
    images at a time. ``bias`` (heads, T, T) is the position bias that the blocks of a Beit share, ``qkv`` (B, T, 3 D)
    what is known of its projection.
    """
    batch, count, _ = tokens.shape
    of_beit = isinstance(attention, BeitAttention)
    if qkv is None:
        qkv = attention.qkv(tokens)
        if of_beit and attention.q_bias is not None:
            qkv = qkv + torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    queries, keys, _ = qkv.reshape(batch, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    if not of_beit:
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    several = batch if tokens.is_cuda else max(1, PIECE // (4 * attention.num_heads * count**2))
    with torch.autocast(tokens.device.type, enabled=False):  # which would cast the product back down
        if of_beit and attention.relative_position_bias_table is not None:
            own = attention.relative_position_bias_table[attention.relative_position_index].permute(2, 0, 1).float()
            bias = own if bias is None else own + bias.float()
        pieces = []
        for some, others in zip(torch.split(queries, several), torch.split(keys, several), strict=True):
            scores: Tensor = (some.float() * attention.scale) @ others.float().transpose(-2, -1)
            pieces.append(reading(scores if bias is None else scores + bias.float()))
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _alone(values: Tensor) -> Tensor:
    """``values`` in float32 and in memory of their own: a view would keep the tokens of all patches with it."""
    return values.to(torch.float32, copy=True)


def not_hidden(values: Tensor, hidden: Tensor, kept: int) -> Tensor:
    """(B, kept, ...) those of ``values`` (B, P, ...) that are not ``hidden`` (B, P), in order.

    >>> not_hidden(torch.tensor([[1, 2, 3]]), torch.tensor([[False, True, False]]), 2)
    tensor([[1, 3]])
    """
    places = hidden.int().argsort(dim=1, stable=True)[:, :kept]
    return values.gather(1, places.reshape(*places.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:]))


def kept_of_each(hidden: Tensor) -> int:
    """How many tokens ``hidden`` (B, P) leaves of each image.

    Raises:
        ValueError: the images lose different numbers, or one loses all.
    """
    counts = set(hidden.sum(1).tolist())
    if len(counts) > 1 or hidden.shape[1] in counts:
        raise ValueError(f"images lose {sorted(counts)} of {hidden.shape[1]} tokens: drop as many of each, not all")
    return int(hidden.shape[1] - counts.pop())


def taps_of(module: nn.Module, example: Tensor) -> Taps:
    """The taps that fit ``module``, those of its encoder where it is a probe; ``example`` (B, C, H, W) is a batch to
    try them on.
    """
    if isinstance(module, Probed):
        module = module.encoder
    name = type(module).__name__
    if any(_runs_as(module, kind) for kind in TRANSFORMERS):
        if getattr(module, "attn_pool", None) is not None:
            return Taps(f"a {name} with attention pooling has no fixed last token to read")
        return TransformerTaps(module, example)
    stages = _stages(module, example)
    if stages is not None:
        return StageTaps(module, *stages)
    return Taps(f"the layers of {name} are not tapped")


def _runs_as(module: object, kind: type[nn.Module]) -> bool:
    """Whether ``module`` is of ``kind``, with none of the methods that make its forward pass replaced."""
    passes = ("forward", "forward_features", "forward_head", "_pos_embed")
    return isinstance(module, kind) and all(getattr(type(module), p, 0) is getattr(kind, p, 0) for p in passes)


def _headless(attention: nn.Module | None, model: str) -> str | None:
    """Why what the heads of ``attention`` give cannot be read; None where it can."""
    if attention is None:
        return f"the attention of {model} has no output projection to tap"
    if getattr(type(attention), "forward", None) not in AFTER_HEADS:
        return f"where the heads of {type(attention).__name__} end is not known"
    return None


def _grid(patch_embed: nn.Module, example: Tensor) -> tuple[int, int] | None:
    """(rows, columns) of the patches into which ``patch_embed`` cuts the images of ``example``, if that can be told."""
    with torch.inference_mode():
        patches = patch_embed(example)
    if patches.ndim == 4:  # left unflattened, (B, rows, columns, D), for images of any size
        return patches.shape[1], patches.shape[2]
    count = patches.shape[1]
    rows, columns = getattr(patch_embed, "grid_size", None) or (0, 0)
    if rows * columns == count:
        return rows, columns
    height, width = example.shape[2:]
    rows = round((count * height / width) ** 0.5)  # of square patches
    columns = count // max(rows, 1)
    return (rows, columns) if rows * columns == count and rows * width == columns * height else None


def _stages(module: nn.Module, example: Tensor) -> tuple[list[tuple[nn.Module, tuple[int, ...]]], nn.Module] | None:
    """The stages that timm names for ``module`` with the axes of their positions, if each gives as many channels as it
    declares, and its classifier.
    """
    info = getattr(module, "feature_info", None)
    named = dict(module.named_modules())
    classifier = getattr(module, "get_classifier", lambda: None)()
    if not info or not isinstance(classifier, nn.Linear | nn.Identity):
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
    last = getattr(module, "output_fmt", None) == "NHWC"
    found = []
    for i, (stage, channels) in enumerate(stages):
        positions = _positions(outputs.get(i), channels, last)
        if stage is None or positions is None:
            return None
        found.append((stage, positions))
    return found, classifier


def _positions(values: object, channels: int, channels_last: bool) -> tuple[int, ...] | None:
    """The axes of ``values`` that are positions: of (B, C, H, W), (B, H, W, C) or (B, N, C) with C ``channels``."""
    if not isinstance(values, Tensor) or values.ndim not in (3, 4):
        return None
    if values.ndim == 4 and values.shape[1] == channels and not channels_last:
        return 2, 3
    if values.shape[-1] == channels:
        return (1, 2) if values.ndim == 4 else (1,)
    return None
