"""A stored cell that is of something else than what is asked for, or damaged, is run again and named; all others are
reused without a forward pass.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from faults.reliability import Injection
from mae_bench.cells import Cell
from mae_bench.rows import IDENTITY
from mae_bench.store import RunDirectory

if TYPE_CHECKING:
    from conftest import Project

Journal = Callable[[Injection], None]

PLACE = ("model", "degradation", "level")
"""What the path of a cell's file says too: another one there is damage."""
READ = ("schema_version",)
"""What is brought up to date when a file is read."""
SEAL = ("sha256", "schema_version")
MUTATED = tuple(name for name in IDENTITY if name not in PLACE + READ)


def altered(value: Any) -> Any:
    """Another value of the same type."""
    return value + 1 if isinstance(value, int | float) else f"{value}x"


def resumed(project: Project, *arguments: object) -> pytest.RunResult:
    """The run, gone on with; the log holds its forward passes alone."""
    (project.path / "log.txt").unlink(missing_ok=True)
    return project.run("--mae-run", "run", "--mae-resume", "--mae-baseline", "none", *arguments)


def forwards(project: Project) -> int:
    return sum(line.startswith("forward") for line in project.log)


def notes(result: pytest.RunResult) -> dict[str, str]:
    """Why cells were run again, by their id, as is said at the end."""
    return dict(re.findall(r"^(\S+) was run again: (.*)$", result.stdout.str(), re.MULTILINE))


def finished(project: Project, *models: str) -> dict[str, Any]:
    """The rows of a finished run of ``models`` and one family, but for clean cells."""
    project.matrix("blur", models=models)
    project.run("--mae-run", "run", "--mae-baseline", "none").assert_outcomes(passed=12 * len(models))
    return {name: row for name, row in project.rows().items() if "clean" not in name}


@pytest.mark.parametrize("count", [8, pytest.param(15, marks=pytest.mark.faults)])
def test_cell_that_differs_in_a_field_of_its_identity_is_run_again_and_the_field_is_named(
    project: Project, journal: Journal, count: int
) -> None:
    assert len(MUTATED) == 15
    models = ("bright", "dim")[: 1 if count == 8 else 2]
    rows = finished(project, *models)
    run = RunDirectory(project.path / "run")
    mutated = dict(zip(Random(0).sample(sorted(rows), count), MUTATED, strict=False))
    for name, field in mutated.items():
        result = run.read_cell(Cell.parse(name))
        assert result is not None
        change = {field: altered(getattr(result.row, field)), "top1": 0.125}
        run.write_cell(replace(result, row=replace(result.row, **change)))
    result = resumed(project)
    assert result.ret == 0
    said = notes(result)
    values = {name: rows[name][field] for name, field in mutated.items()}
    wanted = {name: f"{mutated[name]} {here} here, {altered(here)} stored" for name, here in values.items()}
    assert said == wanted
    assert rows.items() <= project.rows().items()
    # the clean pass of each model, and the mutated
    assert forwards(project) == len(models) + count

    result = resumed(project)
    assert result.ret == 0
    assert notes(result) == {}
    assert forwards(project) == 0
    journal(
        Injection(
            "stale",
            f"a stored cell differs in one field: {', '.join(MUTATED)}",
            len(mutated),
            "the cell is run again, the field is named with both values, and nothing else is run; without a difference "
            "there is no forward pass",
            lost=sum(project.rows()[name] != rows[name] for name in mutated),
            silent=len(wanted.items() - said.items()),
        )
    )


def seed(project: Project, patch: pytest.MonkeyPatch) -> tuple[str, ...]:  # noqa: ARG001
    return ("--mae-seed", "1")


def dtype(project: Project, patch: pytest.MonkeyPatch) -> tuple[str, ...]:  # noqa: ARG001
    return ("--mae-dtype", "bfloat16")


def view(project: Project, patch: pytest.MonkeyPatch) -> tuple[str, ...]:  # noqa: ARG001
    return ("--mae-view", "suite")


def subset(project: Project, patch: pytest.MonkeyPatch) -> tuple[str, ...]:  # noqa: ARG001
    return ("--mae-limit", "512")


def weights_hash(project: Project, patch: pytest.MonkeyPatch) -> tuple[str, ...]:  # noqa: ARG001
    project.write("wrong.json", json.dumps({"bright-gaussian_blur-6.00": [0, 1]}))
    return ()


def preprocessing(project: Project, patch: pytest.MonkeyPatch) -> tuple[str, ...]:  # noqa: ARG001
    networks = (project.path / "networks.py").read_text()
    project.write("networks.py", networks.replace("mean=(0, 0, 0)", "mean=(0.1, 0, 0)"))
    return ()


def manifest_hash(project: Project, patch: pytest.MonkeyPatch) -> tuple[str, ...]:  # noqa: ARG001
    if not (project.path / "others").exists():
        project.images(folder="others", per_class=200, seed=1)
    return ("--mae-data", "others")


def degradation_version(project: Project, patch: pytest.MonkeyPatch) -> tuple[str, ...]:  # noqa: ARG001
    from mae_bench import evaluation

    known = evaluation.degradation
    patch.setattr(evaluation, "degradation", lambda *which: replace(known(*which), version=7))
    return ()


def indicator_version(project: Project, patch: pytest.MonkeyPatch) -> tuple[str, ...]:  # noqa: ARG001
    patch.setattr("mae_bench.evaluation.INDICATOR_VERSION", 77)
    return ()


def torch_version(project: Project, patch: pytest.MonkeyPatch) -> tuple[str, ...]:  # noqa: ARG001
    patch.setattr("torch.__version__", "1.2.3")
    return ()


def mae_bench_version(project: Project, patch: pytest.MonkeyPatch) -> tuple[str, ...]:  # noqa: ARG001
    patch.setattr("mae_bench.evaluation.software", lambda: "9.9")
    return ()


CHANGES = (
    seed,
    weights_hash,
    dtype,
    view,
    subset,
    preprocessing,
    manifest_hash,
    degradation_version,
    indicator_version,
    torch_version,
    mae_bench_version,
)
"""Each changes what it is called, in the project or with the arguments that it gives."""


@pytest.mark.parametrize("count", [1, pytest.param(len(CHANGES), marks=pytest.mark.faults)])
def test_change_of_what_a_cell_is_of_is_noticed_there_and_back(
    project: Project, journal: Journal, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    project.matrix("blur", models=("bright",), per_class=5 if count == 1 else 200)
    few = ("-k", "gaussian_blur-1.00")
    resumed(project, *few).assert_outcomes(passed=1, deselected=11)
    before = project.rows()
    networks = (project.path / "networks.py").read_text()
    silent = lost = 0
    for change in CHANGES[:count]:
        field = change.__name__
        with monkeypatch.context() as patch:
            arguments = change(project, patch)
            changed = notes(resumed(project, *few, *arguments))
            assert project.run("--mae-run", field, "--mae-baseline", "none", *few, *arguments).ret == 0
            lost += project.rows() != project.rows(field)
        (project.path / "wrong.json").unlink(missing_ok=True)
        project.write("networks.py", networks)
        back = notes(resumed(project, *few))
        lost += project.rows() != before
        for said in (changed, back):
            assert said.keys() == before.keys(), field
            silent += not all(re.search(rf"\b{field} \S.* here, \S.* stored", words) for words in said.values())
    journal(
        Injection(
            "stale",
            f"a run is gone on with after a change, and after going back: {', '.join(c.__name__ for c in CHANGES)}",
            2 * count,
            "the cells are run again, as in a new run, and the field is named with both values",
            lost=lost,
            silent=silent,
        )
    )


def older(content: bytes) -> bytes:
    """A file as the first schema had it: without a seal, and without what was recorded later."""
    record = json.loads(content)
    row = {**record["row"], "schema_version": 1}
    for name in ("machine", "libraries", "distinct"):
        del row[name]
    return json.dumps({name: value for name, value in record.items() if name not in SEAL} | {"row": row}).encode()


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=pytest.mark.faults)])
def test_damaged_cell_is_run_again_and_said(project: Project, journal: Journal, times: int) -> None:
    rows = finished(project, "bright")
    folder, random = project.path / "run/cells/bright", Random(times)
    damages: list[Callable[[bytes], bytes]] = [
        lambda content: content[: random.randrange(1, len(content))],
        lambda content: content[:200] + b"\0" * 64 + content[264:],
        lambda content: content.replace(b'"top1": 1.0', b'"top1": 0.5'),
        lambda content: content.replace(b'"row"', b'"raw"'),
        lambda _: b"",
        lambda _: b"[]",
        lambda _: random.randbytes(100),
        lambda _: (folder / "clean-0.00.json").read_bytes(),
    ]
    lost = silent = 0
    for _ in range(times):
        of_older_schema, *files = random.sample(sorted(folder.glob("*_blur*.json")), 1 + len(damages))
        for file, damage in zip(files, damages, strict=True):
            file.write_bytes(damage(file.read_bytes()))
        of_older_schema.write_bytes(older(of_older_schema.read_bytes()))
        result = resumed(project)
        assert result.ret == 0
        said = notes(result)
        assert said.pop(f"bright-{of_older_schema.stem}") == "it is of schema 1, which does not say on which machine"
        damaged = {f"bright-{file.stem}" for file in files}
        assert said.keys() == damaged
        lost += sum(project.rows()[name] != row for name, row in rows.items())
        silent += sum(not said[name].startswith("its file is damaged (") for name in damaged)
    assert notes(resumed(project)) == {}
    assert forwards(project) == 0
    journal(
        Injection(
            "stale",
            "the file of a stored cell is cut, changed, empty, of another cell, or something else",
            times * len(damages),
            "the cell is run again, which is said with what is wrong with the file, and the file is replaced",
            lost=lost,
            silent=silent,
        )
    )
