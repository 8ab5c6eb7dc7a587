"""File names made from any text: everyday names stay, others are told apart on every disk, none leaves its folder."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae_bench.degradations import BUILT_IN
from mae_bench.degradations.ladders import ladder
from mae_bench.file_names import LONGEST, file_name
from mae_bench.models.zoo import WEIGHTS

LAW = settings(max_examples=100, derandomize=True)
ANY = st.text(max_size=130) | st.text("aA.-_~ /\\\0\ud800é", max_size=8)
EVERYDAY = re.compile(r"[a-z0-9_.-]+")


@LAW
@given(st.lists(ANY, unique=True, max_size=6))
def test_names_stay_apart_where_case_is_not_told_too(names: list[str]) -> None:
    assert len({file_name(name).casefold() for name in names}) == len(names)


@LAW
@given(ANY)
def test_name_is_a_file_in_its_folder_on_every_system(name: str) -> None:
    made = file_name(name)
    assert made.isascii()
    assert made.isprintable()
    assert " " not in made
    assert made[0] not in ".-"
    assert made[-1] != "."
    assert len(made) <= LONGEST
    for flavour in (PurePosixPath, PureWindowsPath):
        assert flavour("run", "cells", made).parts == ("run", "cells", made)
    # what Windows takes for a device keeps no file, whatever its suffix
    assert made.split(".")[0] not in (
        "con",
        "prn",
        "aux",
        "nul",
        *(f"{port}{i}" for port in ("com", "lpt") for i in range(10)),
    )


@LAW
@given(ANY)
def test_name_stays_as_it_is_where_it_is_an_everyday_one(name: str) -> None:
    made = file_name(name)
    assert (made == name) is ("~" not in made)
    assert EVERYDAY.fullmatch(name) if made == name else re.fullmatch(r"[a-z0-9_]*~[0-9a-f]{16}", made)
    assert file_name(made) == made if made == name else file_name(made) != made


def test_names_of_bundled_models_and_conditions_are_everyday_ones() -> None:
    models = [path.stem for path in WEIGHTS.glob("*.safetensors")]
    conditions = [f"{kind.name}-{level}" for kind in BUILT_IN for level in ladder(kind, 224)]
    timm = ["vit_base_patch16_224.augreg_in1k", "deit3_base_patch16_224.fb_in22k_ft_in1k"]
    assert models
    assert conditions
    assert [file_name(name) for name in (*models, *conditions, *timm)] == [*models, *conditions, *timm]


@pytest.mark.parametrize(
    ("name", "readable"),
    [
        ("", ""), (".", ""), ("..", ""), ("../../etc/passwd", "etc_passwd"), ("/abs", "abs"), ("a/b", "a_b"),
        ("a__b/", "a_b"), ("ViT", "vit"), ("con", "con"), ("nul.tar.gz", "nul_tar_gz"), ("com1", "com1"), ("-rf", "rf"),
        (".hidden", "hidden"), ("end.", "end"), ("a~1", "a_1"), ("größe", "gr_e"), ("\ud800", ""),
        ("x" * 101, "x" * 60),
    ],
)  # fmt: skip
def test_other_names_become_what_is_readable_and_a_hash(name: str, readable: str) -> None:
    assert re.fullmatch(rf"{readable}~[0-9a-f]{{16}}", file_name(name))


@pytest.mark.parametrize("name", ["x" * 100, "com", "com10", "console", "a.b-c_d", "0", "_"])
def test_names_at_the_border_stay(name: str) -> None:
    assert file_name(name) == name


def test_longest_name_finds_room_on_disk(tmp_path: Path) -> None:
    path = tmp_path / f"{file_name('x' * LONGEST)}.json"
    path.touch()
    assert path.exists()
