"""Nothing that the package reads can make it run what it reads: shown from its source, and once with the environment
variable that takes torch's guard away.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mae_bench

PACKAGE = Path(mae_bench.__file__).parent
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}

MACHINES = {
    "_pickle", "cPickle", "cloudpickle", "code", "codeop", "dill", "joblib", "jsonpickle", "marshal", "pickle", "runpy",
    "shelve", "torch.package", "yaml",
}  # fmt: skip
"""Modules that make objects of what they read, or run it. ``pickletools``, which lists opcodes, is none of them."""
BUILTINS = {"__import__", "compile", "eval", "exec"}
METHODS = {
    "hub.load", "jit.load", "load_pickle", "load_state_dict_from_url", "os.popen", "os.system", "PackageImporter",
    "pd.eval", "pickle.load", "pickle.loads", "read_pickle", "to_pickle", "yaml.load",
}  # fmt: skip
"""Ends of names whose functions do so."""
GUARDS = {
    "load": {"np": "allow_pickle", "numpy": "allow_pickle", "torch": "weights_only"},
    "read_array": {"np.lib.format": "allow_pickle", "numpy.lib.format": "allow_pickle", "format": "allow_pickle"},
}
"""Functions that are safe only with an argument, by the end of their name and by what is before it."""
SAFE = {"allow_pickle": False, "weights_only": True}


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def complaints(source: str) -> Iterator[str]:
    """What in a source runs, or could run, what it is given."""
    for node in ast.walk(ast.parse(source)):
        for name in imported(node):
            if name in MACHINES or name.split(".")[0] in MACHINES:
                yield f"line {node.lineno} imports {name}"  # type: ignore[attr-defined]
            if name.rpartition(".")[2] in ("read_array", "load") and name.split(".")[0] in ("numpy", "torch"):
                yield f"line {node.lineno} imports {name}, whose calls cannot be told"  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            yield from (f"line {node.lineno} {complaint}" for complaint in of_call(node))


def of_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    owner, _, name = called.rpartition(".")
    arguments = {keyword.arg: keyword.value for keyword in node.keywords}
    if called in BUILTINS or f"{owner.rpartition('.')[2]}.{name}" in METHODS or name in METHODS:
        yield f"calls {called}"
    shell = arguments.get("shell")
    if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
        yield f"calls {called} with a shell"
    guard = GUARDS.get(name, {}).get(owner)
    value = arguments.get(guard) if guard else None
    if guard and not (isinstance(value, ast.Constant) and value.value is SAFE[guard]):
        yield f"calls {called} without {guard}={SAFE[guard]}"


@pytest.mark.parametrize("name", SOURCES)
def test_source_runs_nothing_that_it_reads(name: str) -> None:
    assert list(complaints(SOURCES[name])) == []


BAD = """
import pickle
import torch.package as t
from dill import loads
from numpy.lib.format import read_array
def f():
    import joblib
    np.load(path)
    np.load(path, allow_pickle=True)
    np.load(path, allow_pickle=flag)
    np.lib.format.read_array(file)
    torch.load(path, map_location="cpu")
    torch.load(path, weights_only=1)
    torch.jit.load(path)
    torch.hub.load("x", "y")
    torch.hub.load_state_dict_from_url(url)
    eval(text)
    exec(text)
    compile(text, "", "exec")
    __import__(text)
    yaml.load(text)
    pd.read_pickle(path)
    os.system(text)
    subprocess.run(text, shell=True)
    subprocess.run(text, shell=flag)
"""
GOOD = """
import pickletools
import numpy as np
from torch import nn
np.load(path, allow_pickle=False)
np.lib.format.read_array(file, allow_pickle=False)
torch.load(path, weights_only=True)
model.eval()
torch.compile(model)
json.loads(text)
re.compile(text)
Baseline.load(path)
subprocess.run([text], shell=False)
"""


def test_what_is_forbidden_is_seen_and_what_is_not_is_let_be() -> None:
    lines = {int(complaint.split()[1]) for complaint in complaints(BAD)}
    expected = {number for number, line in enumerate(BAD.splitlines(), start=1) if line.strip()}
    assert lines == expected - {BAD.splitlines().index("def f():") + 1}
    assert list(complaints(GOOD)) == []


HOSTILE = """
import os, pickle, sys
from pathlib import Path

import numpy as np
import torch

folder = Path(sys.argv[1])

class Payload:
    def __reduce__(self):
        return Path.touch, (folder / "canary",)

torch.save({"model": Payload()}, folder / "zip.pth")
torch.save({"model": Payload()}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
(folder / "batch").write_bytes(pickle.dumps({b"data": Payload()}, protocol=2))
np.save(folder / "fog.npy", np.array([Payload()], dtype=object), allow_pickle=True)

from mae_bench.errors import BenchError
from mae_bench.models.checkpoints import state_of
from mae_bench.suites.batches import read_batches
from mae_bench.suites.cifar_c import _array

for name, read in (
    ("zip.pth", state_of),
    ("legacy.pth", state_of),
    ("batch", lambda path: read_batches([path])),
    ("fog.npy", lambda path: _array(path, (1,))),
):
    try:
        read(folder / name)
    except BenchError as error:
        print(name, "is refused")
"""


@pytest.mark.thorough  # starts an interpreter
def test_environment_takes_no_guard_away(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(tmp_path)],
        env=os.environ | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    refused = ["zip.pth", "legacy.pth", "batch", "fog.npy"]
    assert run.stdout.splitlines() == [f"{each} is refused" for each in refused]
    assert not (tmp_path / "canary").exists()
