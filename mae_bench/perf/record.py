"""A run as data: on what it was made, and every measurement with its band."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mae_bench.machine import cores, machine
from mae_bench.perf import SECTIONS, PerfError
from mae_bench.perf.conditions import Conditions
from mae_bench.perf.measurement import UNITS, Findings, Measurement

SCHEMA = 1
OWN = "mae_bench"
LIBRARIES = (
    OWN, "torch", "torchvision", "timm", "kornia", "numpy", "scipy", "pillow", "pytest", "pytest-xdist",
    "opencv-python-headless", "opencv-python", "scikit-image", "imagecorruptions", "numba",
)  # fmt: skip
"""Distributions whose versions a run depends on."""


@dataclass(frozen=True)
class Record:
    """Sections with what they found, and where: two records can be compared where :meth:`surroundings` are the same."""

    machine: str
    device: str
    cores: int
    rounds: int
    quick: bool
    versions: dict[str, str]
    load: float
    sections: dict[str, Findings] = field(default_factory=dict)

    @classmethod
    def begun(cls, conditions: Conditions) -> Record:
        """A record of this machine, as yet without sections."""
        device = conditions.device
        return cls(
            machine=machine(str(device)),
            device=device.type,
            cores=cores(),
            rounds=conditions.rounds,
            quick=conditions.quick,
            versions=versions(),
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        )

    @property
    def measurements(self) -> list[Measurement]:
        return [measurement for findings in self.sections.values() for measurement in findings.measurements]

    def surroundings(self) -> dict[str, object]:
        """What a ratio may depend on beside the code that is measured."""
        libraries = {name: known for name, known in self.versions.items() if name != OWN}
        return {"machine": self.machine, "device": self.device, "quick": self.quick} | libraries

    def with_section(self, name: str, findings: Findings) -> Record:
        """The record with ``findings`` in the place of what the section held."""
        sections = self.sections | {name: findings}
        return replace(self, sections={one: sections[one] for one in SECTIONS if one in sections})

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA} | asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Record:
        """Raises:
        PerfError: the file cannot be read, or is no record.
        """
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise PerfError(
                f"{path} is no record of mae-bench perf ({error}): name the .json that it wrote beside its page"
            ) from error

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Record:
        if record.get("schema") != SCHEMA:
            raise ValueError(f"schema {record.get('schema')}, not {SCHEMA}")
        known = {one.name: record[one.name] for one in fields(cls)}
        sections = {
            name: Findings([_measurement(each) for each in findings["measurements"]], list(findings["notes"]))
            for name, findings in record["sections"].items()
        }
        unknown = sections.keys() - set(SECTIONS)
        if unknown:
            raise ValueError(f"there is no section {min(unknown)!r}")
        return cls(**known | {"sections": sections})


def _measurement(record: Mapping[str, Any]) -> Measurement:
    measurement = Measurement(**{**record, "values": tuple(record["values"])})
    if measurement.unit not in UNITS:
        raise ValueError(f"there is no unit {measurement.unit!r}")
    return measurement


def versions() -> dict[str, str]:
    """Version of Python and of each of :data:`LIBRARIES` that is installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
