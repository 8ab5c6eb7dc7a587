"""A cached file is used as it was written, for what it was written for, or not at all."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mae_bench.cached import FORMAT, MAGIC, OVERHEAD, kept, key, stamped

# tmp_path is shared by the examples of one law on purpose: each overwrites the same file
LAW = settings(derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(max_size=20)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "cached"
    path.write_bytes(content)
    return path


@LAW
@given(st.binary(max_size=60), texts, st.binary(max_size=9))
def test_what_is_kept_is_what_was_stamped(tmp_path: Path, content: bytes, identity: str, beyond: bytes) -> None:
    path = written(tmp_path, stamped(content, identity) + beyond)
    assert kept(path, identity, len(beyond)) == content


@LAW
@given(st.binary(max_size=60), texts, st.data())
def test_nothing_is_kept_of_a_file_that_changed_anywhere(
    tmp_path: Path, content: bytes, identity: str, data: st.DataObject
) -> None:
    whole = stamped(content, identity)
    damaged = data.draw(
        st.one_of(
            st.builds(lambda i, bit: whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :],
                      st.integers(0, len(whole) - 1), st.integers(0, 7)),
            st.integers(0, len(whole) - 1).map(lambda i: whole[:i]),
            st.binary(min_size=1, max_size=9).map(lambda more: whole + more),
            st.binary(max_size=99).filter(lambda other: other != whole),
        )
    )  # fmt: skip
    assert kept(written(tmp_path, damaged), identity) is None


@LAW
@given(st.binary(max_size=20), texts, texts)
def test_nothing_is_kept_for_something_else(tmp_path: Path, content: bytes, identity: str, other: str) -> None:
    path = written(tmp_path, stamped(content, identity))
    assert kept(path, other) == (content if other == identity else None)


def test_what_belongs_to_the_content_does_not_pass_for_identity(tmp_path: Path) -> None:
    whole = stamped(b"bc", "a")
    moved = whole[:12] + struct.pack("<Q", 1) + whole[20:OVERHEAD] + b"c"
    assert kept(written(tmp_path, moved), "ab") is None


def test_what_another_version_wrote_is_not_kept(tmp_path: Path) -> None:
    whole = stamped(b"content", "identity")
    assert whole[:12] == MAGIC + struct.pack("<I", FORMAT)
    for other in (FORMAT - 1, FORMAT + 1):
        assert kept(written(tmp_path, MAGIC + struct.pack("<I", other) + whole[12:]), "identity") is None


@pytest.mark.parametrize("declared", [2**62, 2**64 - 1])
def test_no_memory_is_taken_for_a_length_that_a_file_does_not_have(declared: int, tmp_path: Path) -> None:
    whole = stamped(b"content", "identity")
    assert kept(written(tmp_path, whole[:12] + struct.pack("<Q", declared) + whole[20:]), "identity") is None


def test_what_is_missing_or_a_folder_is_not_kept(tmp_path: Path) -> None:
    assert kept(tmp_path / "absent", "") is None
    assert kept(tmp_path, "") is None


def test_files_of_two_identities_are_named_apart() -> None:
    assert len({key(f"{i}") for i in range(1000)}) == 1000
    assert all(
        len(key(name)) == 16 and set(key(name)) <= set("0123456789abcdef") for name in ("", "a\udcff/b", "\u00e9")
    )
