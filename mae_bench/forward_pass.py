"""Forward passes of a model over its inputs, as large as memory allows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from mae_bench import memory
from mae_bench.cells import Level
from mae_bench.degradations import degradation
from mae_bench.degradations.occlusion import dropped_tokens, hidden_tokens
from mae_bench.errors import BenchError
from mae_bench.images import BLOCK
from mae_bench.indicators.attention import attention_values
from mae_bench.inputs import Inputs
from mae_bench.models.pool import LoadedModel
from mae_bench.models.recorded import Forward, Recorded, on_gpu
from mae_bench.models.taps import Features
from mae_bench.reference import CleanSide, Reference
from mae_bench.representation import ATTENTION_IMAGES, Collector
from mae_bench.shard import Part, windows

STACKED = 4096
"""Numbers of an image up to which what several layers give is looked at together."""


class ForwardPassError(BenchError):
    """A model that cannot be passed through."""


class ForwardPass:
    """What ``model`` makes of ``inputs``, block by block."""

    def __init__(self, model: LoadedModel, inputs: Inputs) -> None:
        self.model = model
        self.inputs = inputs
        self.device = inputs.device
        graphs = inputs.settings.graphs
        self.network: Forward = (
            Recorded(self._pass_through, partial(on_gpu, self.device)) if graphs else self._pass_through
        )

    def parts(
        self, name: str, level: Level, blocks: range, reference: Reference, collector: Collector | None
    ) -> Iterator[Part]:
        """Parts of blocks after their forward pass; several blocks share one where it is large. With ``collector``
        features are those that a representation needs, and it is given attention maps.

        Raises:
            ForwardPassError: there is no memory for a single image.
        """
        inputs = self.inputs
        remaining = list(blocks)
        while remaining:
            together = max(1, inputs.batch_size // BLOCK)
            group, remaining = remaining[:together], remaining[together:]
            begin = group[0] * BLOCK
            last = min(
                (group[-1] + 1) * BLOCK, inputs.images if group[-1] in inputs.blocks else len(inputs.suite.manifest.ids)
            )
            patches = reference.in_probe(begin) or (collector is not None and group[0] in inputs.sample.blocks)
            while begin < last:
                end = min(begin + inputs.batch_size, last)
                maps = collector is not None and begin < ATTENTION_IMAGES
                found, why = None, ""
                try:
                    found = self._forward_part(name, level, begin, end, reference, patches, maps)
                except (MemoryError, OSError, RuntimeError) as error:
                    if not memory.ran_out(error):
                        raise
                    why = str(error)
                if found is None:  # only here: what the pass held is free once the error is gone
                    self._halve(end - begin, why)
                    continue
                logits, features, side = found
                if collector is not None and features.attention:
                    collector.add_attention(
                        {key: values[: ATTENTION_IMAGES - begin] for key, values in features.attention.items()}
                    )
                for start, stop in windows(begin, end):
                    window = slice(start - begin, stop - begin)
                    own = features.window(window)
                    if not reference.in_probe(start) and collector is None:
                        own = own.pooled
                    yield Part(start, logits[window], own, None if side is None else side.window(window))
                begin = end

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, outputs) in float32 of ``images`` (B, C, H, W) in [0, 1].

        Raises:
            ForwardPassError: the model's logits change their shape.
        """
        dtype: torch.dtype = getattr(torch, self.inputs.settings.dtype)
        lowered = torch.autocast(self.device.type, dtype) if dtype != torch.float32 else nullcontext()
        with torch.inference_mode(), lowered:
            logits: Tensor = self.model.classifier(images)
        if logits.shape != (len(images), self.model.outputs):
            raise ForwardPassError(
                f"model {self.model.entry.name!r} gave logits of shape {tuple(logits.shape)} for {len(images)} images; "
                f"expected ({len(images)}, {self.model.outputs})"
            )
        return logits.float()

    def clear(self) -> None:
        """Let go of recorded passes, and of the memory that they hold."""
        if isinstance(self.network, Recorded):
            self.network.clear()

    def _forward_part(
        self, name: str, level: Level, start: int, stop: int, reference: Reference, patches: bool, maps: bool
    ) -> tuple[Tensor, Features, CleanSide | None]:
        """Logits, features and clean side of the images that one forward pass takes; logits are NaN where features are
        not finite.
        """
        taps = self.model.taps
        hidden = self._hidden_tokens(name, level, start, stop)
        images = self.inputs.degraded(name, level, start, stop)
        kept = 0 if hidden is None else hidden.shape[1] - dropped_tokens(level.value, hidden.shape[1])
        if hidden is None:
            logits, features = self.network(images, patches, maps)
        else:
            with taps.dropping(hidden, kept):
                logits, features = self._pass_through(images, patches, False)
        side = None if hidden is None else self._side_of_kept(reference, images, hidden, kept, patches)
        return logits, features, side

    def _pass_through(self, images: Tensor, patches: bool, maps: bool) -> tuple[Tensor, Features]:
        """Logits and features of ``images`` (B, C, H, W)."""
        taps = self.model.taps
        reading = partial(attention_values, prefix=taps.prefix, grid=taps.grid)
        readings = dict.fromkeys(range(1, taps.blocks + 1), reading) if maps else None
        with taps.capture(patches, readings) as features:
            logits = self.logits(images)
        # an image whose features are not finite has no outcome, however finite what the network made of them
        return logits.masked_fill(~_finite(features, logits)[:, None], torch.nan), features

    def _halve(self, images: int, why: str) -> None:
        """Go on with half of the ``images`` for which memory ran out; ``why`` is what was said of it.

        Raises:
            ForwardPassError: it was a single one.
        """
        if images == 1:
            raise ForwardPassError(
                f"model {self.model.entry.name!r}: {self.device} has no memory left for a forward pass of a single "
                f"image ({why}); use another device, a smaller model, or --mae-dtype bfloat16"
            )
        self.inputs.at_once = images // 2
        self.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _hidden_tokens(self, name: str, level: Level, start: int, stop: int) -> Tensor | None:
        """(B, P) which tokens the degradation takes away; None where it changes pixels."""
        if not degradation(name, level.severity).on_tokens or level.value == 0:
            return None
        return hidden_tokens(level.value, self.inputs.setting(start, stop), self.model.taps.grid)

    def _side_of_kept(
        self, reference: Reference, images: Tensor, hidden: Tensor, kept: int, patches: bool
    ) -> CleanSide:
        """The clean side of images that lose tokens: a mean over the kept ones depends on which they are, so the clean
        forward pass is made again beside the degraded one.
        """
        with self.model.taps.capture(patches=True) as features:
            self.logits(images)
        with torch.inference_mode():
            left = self.model.taps.of_kept(features, hidden, kept)
        return reference.side_of_kept(left if patches else left.pooled, hidden)


def _finite(features: Features, logits: Tensor) -> Tensor:
    """(B,) whether all ``features`` of an image have a finite length, without which they have no direction either."""
    alike: dict[torch.Size, list[Tensor]] = {}  # pooled ones together, of which there are many small ones
    for values in (*features.tokens.values(), *features.heads.values(), *features.attention.values()):
        alike.setdefault(values.shape, []).append(values.flatten(1))
    finite = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
    for shape, each in alike.items():
        # to stack what is large would take longer than to look at it
        for stack in [torch.stack(each)] if shape.numel() < STACKED * len(logits) else each:
            finite &= torch.isfinite(torch.linalg.vector_norm(stack, dim=-1)).reshape(-1, len(logits)).all(0)
    return finite
