"""The options ``--mae-x``, each also an ini key ``mae_x``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mae_bench.cells import near_name


@dataclass(frozen=True)
class Option:
    """A command-line option ``--mae-x`` that is also the ini key ``mae_x``. A ``kind`` is one of pytest's for ini keys,
    or ``path``, or ``place``, which may also be an address in an object store.
    """

    name: str
    kind: str
    default: Any
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"mae_{self.name.replace('-', '_')}"


OPTIONS = (
    Option("suite", "string", "fashion_mnist", "suite of images to evaluate on", "NAME"),
    Option("data", "path", None, "directory of the suite's images", "DIR"),
    Option("limit", "int", None, "images, rounded up to whole blocks of 256, at least two; 0 = all", "N"),
    Option("full", "bool", False, "every level and every training seed"),
    Option("model", "args", [], "add the pretrained timm models whose names match; repeatable", "GLOB"),
    Option(
        "weights",
        "args",
        [],
        "weights of a model: NAME=FILE; FILE alone for the one --mae-model, or as the MAE authors name it; repeatable",
        "FILE",
    ),
    Option("device", "string", "auto", "auto, cpu, cuda or cuda:i", "DEVICE"),
    Option(
        "dtype",
        "string",
        "auto",
        "of the forward pass; auto is bfloat16 on a GPU, float32 elsewhere",
        "TYPE",
        ("auto", "float32", "bfloat16", "float16"),
    ),
    Option("compile", "bool", False, "have torch compile what lies between the taps of a model"),
    Option("cuda-graphs", "bool", False, "have a GPU play back forward passes that are recorded once"),
    Option(
        "prefetch",
        "string",
        "stream",
        "how a GPU is sent images and clean features: while it works on those before, or when it is done",
        "HOW",
        ("stream", "none"),
    ),
    Option(
        "memory-format",
        "string",
        "auto",
        "of a model's weights; auto is channels_last for convolutional networks on a GPU, else as built",
        "FORMAT",
        ("auto", "contiguous", "channels_last"),
    ),
    Option("batch-size", "string", "auto", "images per forward pass, or auto", "N"),
    Option("seed", "int", 0, "of the degradations", "N"),
    Option("view", "string", "model", "resize and crop of the model, or one for all", "VIEW", ("model", "suite")),
    Option("run", "place", None, "run directory (default results/runs/<run id>), or s3://bucket/folder", "DIR"),
    Option("resume", "bool", False, "reuse the finished cells of the run directory"),
    Option("shard", "string", None, "of what is selected, run the K-th of N parts, in a run of its own", "K/N"),
    Option("baseline", "path", None, "committed results to compare with (default results/<suite>), or none", "DIR"),
    Option("update-baseline", "bool", False, "put the complete model-families of this run into the baseline"),
    Option("reason", "string", None, "why the baseline is updated; goes into its history", "TEXT"),
    Option("min-drop", "float", 0.3, "least drop in points that can be a regression", "P"),
    Option("tolerance", "float", 1.0, "points of top-1 that a passing cell surely has not lost", "P"),
    Option("strict", "bool", False, "inconclusive cells fail too"),
    Option("executor", "string", "local", "where cells run: here, or on a Ray cluster", "WHERE", ("local", "ray")),
    Option("ray-address", "string", None, "the Ray cluster to join (default: one is started on this machine)", "A"),
    Option("ray-cpus", "int", 1, "CPUs of a task on a Ray cluster, and threads of its cells", "N"),
    Option("cell-timeout", "float", 0.0, "seconds that a cell may take, a model's first with its clean pass", "S"),
    Option(
        "report", "string", "page", "what is written of the run: a page, report.html, or none", "WHAT", ("page", "none")
    ),
    Option(
        "sink",
        "args",
        [],
        "send the run to a tracker too: tensorboard[:DIR], wandb, mlflow[:URI], or one that a package adds; repeatable",
        "SINK",
    ),
    Option(
        "progress",
        "string",
        "auto",
        "while a run lasts: auto is a line on a terminal, unless CI is set, or -q or -s given",
        "WHAT",
        ("auto", "none"),
    ),
    Option("gate-indicators", "bool", False, "indicators that moved fail the run too"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mae_bench", "robustness benchmark (mae_bench)")
    kinds: dict[str, Any] = {"int": int, "float": float}
    for option in OPTIONS:
        flag, text = f"--mae-{option.name}", option.help
        if option.choices:
            text += f" ({', '.join(option.choices)})"
        if option.default not in (None, False, []):
            text += f"; default {option.default}"
        if option.kind == "bool":
            group.addoption(flag, dest=option.key, action="store_true", default=None, help=text)
        elif option.kind == "args":
            group.addoption(flag, dest=option.key, action="append", default=None, metavar=option.metavar, help=text)
        else:
            convert = kinds.get(option.kind, str)
            group.addoption(flag, dest=option.key, type=convert, default=None, metavar=option.metavar, help=text)
        kind: Any = "string" if option.kind in ("path", "place") else option.kind
        parser.addini(option.key, text, type=kind, default=None if option.kind != "args" else [])


def value_of(config: pytest.Config, option: Option) -> Any:
    """The command line's value, else the ini file's, else the default. Paths on the command line are relative
    to the working directory, those in an ini file to that file; an address in an object store stays a string.
    """
    given = config.getoption(option.key)
    base = config.invocation_params.dir
    if given is None:
        try:
            given = config.getini(option.key)
        except (pytest.UsageError, TypeError, ValueError) as error:
            raise pytest.UsageError(f"{option.key} in {config.inipath}: {error}") from error
        base = config.inipath.parent if config.inipath is not None else base
    if given is None or (option.kind in ("string", "path", "place") and given == ""):
        given = option.default
    if given is not None and option.choices and given not in option.choices:
        raise pytest.UsageError(f"--mae-{option.name} {given}: {near_name(str(given), option.choices)}")
    if option.kind == "place" and "://" in str(given):
        return str(given)
    if option.kind == "path" and "://" in str(given):
        raise pytest.UsageError(
            f"--mae-{option.name} {given}: give a folder; of an object store, one at which it is mounted"
        )
    if option.kind in ("path", "place") and given is not None and not (option.name == "baseline" and given == "none"):
        return base / Path(given).expanduser()
    return given
