"""The command line: what it lists, what it refuses, and that asking for help costs nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from mae_bench.cli import app, main
from mae_bench.models.zoo import WEIGHTS, bundled
from mae_bench.suites import fashion_mnist
from mae_bench.training.recipes import RECIPES, Recipe


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fresh(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def same_threads() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_models_are_listed_with_their_size() -> None:
    result = run("models")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    names = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
    assert names
    for name in names:
        assert f"{sum(p.numel() for p in bundled(name).parameters()):,}" in lines[name]
        assert (" % " in lines[name].replace("75 % masked", "")) is ("pretrained" not in name)
    # a heading, a rule, and the models
    assert len(lines) == len(names) + 2


HELP = [
    ("--help",),
    *(
        (command, "--help")
        for command in (
            "models",
            "suites",
            "degradations",
            "claims",
            "compare",
            "export",
            "figures",
            "gather",
            "merge",
            "perf",
            "plan",
            "query",
            "selfcheck",
            "verify",
        )
    ),
    ("train", "--help"),
    *(("train", command, "--help") for command in ("pretrain", "finetune", "probe", "supervised", "cnn", "search")),
]


@pytest.mark.parametrize("arguments", HELP)
def test_help_is_at_hand(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_module_is_the_program() -> None:
    result = fresh("-m", "mae_bench", "--help")
    assert result.returncode == 0, result.stderr
    assert all(word in result.stdout for word in ("mae-bench", "models", "train"))


def test_help_waits_for_no_network_library() -> None:
    code = """
import sys
from mae_bench.cli import app
try:
    app(["--help"])
except SystemExit as end:
    assert not end.code
print({"torch", "timm", "lightly", "pandas"} & sys.modules.keys())
"""
    result = fresh("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "set()"


def test_installed_command_is_this_one() -> None:
    [script] = entry_points(group="console_scripts", name="mae-bench")
    assert script.load() is main


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("modles",), "modles"),
        (("train", "mae_ft"), "mae_ft"),
        (("train", "search"), "arm"),
        (("train", "search", "cnn"), "no rate is searched for 'cnn': name mae_ft or supervised"),
        (("train", "supervised", "--equal", "steps"), "--equal"),
        (("train", "finetune", "--threads", 0), "--threads"),
        (("train", "finetune", "--thread", 1), "--thread"),
        (("train", "pretrain", "--suite", "cifar10"), "name their folder with --data"),
        (("train", "pretrain", "--suite", "cifar"), "did you mean cifar10?"),
        (("train", "cnn", "--seed", 4), "no recipe of arm 'cnn' with seed 4"),
        (("degradations", "--preview", "a.pdf"), "name a .png or .svg file"),
    ],
)
def test_wrong_usage_is_named(arguments: tuple[object, ...], what: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert what in result.stderr.lower()


class Uninstalled:
    """An importer that knows of no lightly."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name.split(".")[0] == "lightly":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_missing_extra_is_named_with_its_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "lightly" or name in (
            "mae_bench.training.arms",
            "mae_bench.training.compute",
            "mae_bench.training.masked_autoencoder",
        ):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Uninstalled, *sys.meta_path])
    result = run("train", "cnn", "--data", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert 'mae-bench train cnn: lightly is not installed: pip install "mae-bench[train]"' in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stands in for the training loop, which needs the extra: reads the images and notes what it was asked for."""
    import torch

    calls: list[tuple[Any, ...]] = []

    def train(recipe: Recipe, data: Path, out: Path, report: Any) -> None:
        calls.append((recipe, data, out, torch.get_num_threads()))
        report("reading")
        fashion_mnist.training_images(data)

    module: Any = ModuleType("mae_bench.training.arms")
    module.train = module.search = train
    monkeypatch.setitem(sys.modules, "mae_bench.training.arms", module)
    monkeypatch.setattr("mae_bench.training.arms", module, raising=False)
    return calls


@pytest.mark.usefixtures("same_threads")
def test_missing_data_is_named_with_the_way_to_get_it(trained: list[tuple[Any, ...]], tmp_path: Path) -> None:
    result = run("train", "finetune", "--data", tmp_path / "nowhere")
    assert len(trained) == 1
    assert result.exit_code == 2
    assert (
        f"mae-bench train finetune: {tmp_path / 'nowhere' / 'train-images-idx3-ubyte.gz'} is missing" in result.stderr
    )
    assert "install Debian's package dataset-fashion-mnist" in result.stderr
    assert "--data" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.usefixtures("same_threads")
@pytest.mark.parametrize(
    ("arguments", "recipe"),
    [
        (("pretrain", "--seed", 1), "mae_pretrained_s1"),
        (("finetune",), "mae_ft_s0"),
        (("probe", "--seed", 2), "mae_probe_s2"),
        (("supervised",), "supervised_s0"),
        (("supervised", "--equal", "epochs"), "supervised_ep_s0"),
        (("finetune", "--suite", "cifar10"), "cifar10_mae_ft_s0"),
        (("cnn",), "cnn_s0"),
        (("search", "supervised"), "supervised_s0"),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_options_reach_the_training(
    trained: list[tuple[Any, ...]], tmp_path: Path, threads: int, arguments: tuple[object, ...], recipe: str
) -> None:
    out = tmp_path / "out"
    result = run("train", *arguments, "--data", tmp_path, "--out", out, "--threads", threads)
    assert trained == [(RECIPES[recipe], tmp_path, out, threads)]
    assert result.stdout == "reading\n"


def test_suites_are_listed() -> None:
    from mae_bench.suites import SUITES

    result = run("suites")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()[2:]] == list(SUITES)
    assert "imagenet_c c_extra" in result.stdout


def test_degradations_are_listed_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from mae_bench import figures
    from mae_bench.degradations import BUILT_IN

    monkeypatch.setattr(figures, "every", lambda: BUILT_IN[:6])  # to draw all of them takes its time
    result = run("degradations", "--preview", tmp_path / "new" / "strip.png", "--position", 3)
    assert result.exit_code == 0, result.stderr
    listed = [tuple(line.split()[:2]) for line in result.stdout.splitlines()[2:-1]]
    assert listed == [(kind.name, kind.family) for kind in BUILT_IN if kind.family != "clean"]
    with Image.open(tmp_path / "new" / "strip.png") as image:
        assert min(image.size) > 500
        assert len(image.convert("L").getcolors(256) or ()) > 50


def test_image_beyond_the_suite_cannot_be_shown(tmp_path: Path) -> None:
    result = run("degradations", "--preview", tmp_path / "strip.png", "--position", 10_000)
    assert result.exit_code == 2
    assert "--position 10000: the suite has 10000 images, from 0 on" in result.stderr


RUN = Path(__file__).parent / "data" / "schema_1" / "run"


def test_runs_are_merged_and_verified(tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merged = run("merge", RUN, "--out", out)
    assert (merged.exit_code, merged.stdout) == (0, f"{out}: 4 cells, 2 representations\n"), merged.stderr
    again = run("merge", RUN, "--out", out)
    assert again.exit_code == 2
    assert again.stderr == f"mae-bench merge: {out}: is not empty; name a new directory, or remove it\n"
    whole = run("verify", out)
    assert (whole.exit_code, whole.stdout) == (0, f"{out}: 4 cells, 2 representations, no findings\n")
    cell = out / "cells" / "vit" / "clean-0.00.json"
    cell.write_bytes(cell.read_bytes()[:-1])
    spoilt = run("verify", out)
    assert spoilt.exit_code == 1
    findings = spoilt.stdout.splitlines()
    assert findings[0].startswith(f"{cell}: not a cell that can be read")
    assert findings[-1] == f"{out}: 3 cells, 2 representations, {len(findings) - 1} findings"


def test_folder_that_is_no_run_is_neither_merged_nor_verified(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for arguments in (("verify", folder), ("merge", folder, "--out", tmp_path / "out")):
        result = run(*arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"mae-bench {arguments[0]}: {folder}: ")
    assert run("merge", "--out", tmp_path / "out").exit_code == 2


def test_finding_stays_on_its_line_and_steers_no_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "cells" / "v\n\x1b[2J"
    folder.mkdir(parents=True)
    (folder / "clean-0.00.json").write_text("{}")
    result = run("verify", tmp_path / "run")
    assert result.exit_code == 1
    assert "\x1b" not in result.stdout
    assert [line for line in result.stdout.splitlines() if r"v\n\x1b[2J" in line]


@pytest.mark.train
@pytest.mark.usefixtures("same_threads")
def test_training_itself_names_the_missing_data_before_it_writes(tmp_path: Path) -> None:
    pytest.importorskip("lightly")
    result = run("train", "pretrain", "--data", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{tmp_path / 'train-images-idx3-ubyte.gz'} is missing" in result.stderr
    assert not (tmp_path / "out").exists()
