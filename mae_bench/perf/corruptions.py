"""The 15 corruptions of ImageNet-C at severity 3 and 224 pixels, beside the package that most papers use."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from mae_bench.cells import Level
from mae_bench.degradations import CORRUPTIONS
from mae_bench.perf.conditions import Conditions
from mae_bench.perf.degradations import LEAST, OURS, SIDE, setting_of, smooth_images
from mae_bench.perf.measurement import FASTER, Findings, Measurement
from mae_bench.perf.peers import present
from mae_bench.perf.timing import Work, interleaved, ratio

SECTION = "corruptions"
PEER = "imagecorruptions"
SEVERITY = 3
NAMES = tuple(name for name, kind in CORRUPTIONS.items() if kind.family == "imagenet_c")
SUM = "all of them"


def measured(conditions: Conditions) -> Findings:
    findings = Findings()
    images = conditions.either(8, 1)
    batch = smooth_images(images, 3, SIDE).to(conditions.device)
    work = {(name, OURS): Work(_ours(name, batch), images) for name in NAMES}
    if conditions.device.type == "cpu":
        few = conditions.either(2, 1)
        pictures = [(255 * image).round().byte().movedim(0, -1).numpy() for image in batch[:few]]
        for module in present((PEER,), findings.notes).values():
            broken = {name: why for name in NAMES if (why := _why_broken(module, name, pictures[0]))}
            work |= {(name, PEER): Work(_peer(module, name, pictures), few) for name in NAMES if name not in broken}
            findings.notes += [f"{PEER}: {name} does not run: {why}" for name, why in broken.items()]
            findings.notes.append(
                f"{PEER} is as released, with pkg_resources, numpy.float_ and multichannel= given back to it "
                "where they are gone, without which it cannot be imported or lacks fog and glass blur"
            )
            if not present(("numba",), findings.notes):
                findings.notes.append("without numba the pixel loop of its glass blur is interpreted")
    named = {f"{name} {subject}": (name, subject) for name, subject in work}
    pieces = {label: work[key] for label, key in named.items()}
    timed = interleaved(pieces, conditions.clock, conditions.rounds, 0 if conditions.quick else LEAST)
    seconds = {named[label]: each for label, each in timed.items()}
    findings.measurements += [
        Measurement.rate(SECTION, _case(name), subject, each, _method(name, batch) * (subject == OURS))
        for (name, subject), each in seconds.items()
    ]
    both = [name for name in NAMES if (name, PEER) in seconds]
    findings.measurements += [
        Measurement.of(
            SECTION, _case(name), PEER, FASTER, ratio(seconds[name, PEER], seconds[name, OURS]), "each corruption"
        )
        for name in both
    ]
    if both:
        sums = [[sum(turn) for turn in zip(*(seconds[n, who] for n in both), strict=True)] for who in (PEER, OURS)]
        case = SUM if len(both) == len(NAMES) else f"the {len(both)} of {len(NAMES)} that {PEER} has"
        goal = "corruptions" if len(both) == len(NAMES) else ""
        findings.measurements.append(Measurement.of(SECTION, case, PEER, FASTER, ratio(*sums), goal))
    return findings


def _method(name: str, batch: Tensor) -> str:
    return CORRUPTIONS[name].method(Level(float(SEVERITY), severity=True), (SIDE, SIDE), batch.device, SIDE) or ""


def _case(name: str) -> str:
    return f"{name}-s{SEVERITY}"


def _ours(name: str, batch: Tensor) -> Callable[[], Tensor]:
    kind, level = CORRUPTIONS[name], Level(float(SEVERITY), severity=True)
    setting = setting_of(len(batch), batch.device)
    return lambda: kind.apply(batch, level, setting)


def _peer(module: Any, name: str, pictures: list[np.ndarray]) -> Callable[[], object]:
    def corrupted() -> list[np.ndarray]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [module.corrupt(picture, corruption_name=name, severity=SEVERITY) for picture in pictures]

    return corrupted


def _why_broken(module: Any, name: str, picture: np.ndarray) -> str:
    """What is said where the peer, which no longer fits all that it is built on, cannot corrupt an image; else
    nothing.
    """
    try:
        _peer(module, name, [picture])()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
