"""CIFAR's images in the batches that they were published in: dictionaries that Python 2 pickled, or plain records.

A pickle is a program. Here it is read and never run: texts, numbers, lists and dictionaries are taken as they lie
there, and of an object there is no more than the description of a call that nobody makes.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mae_bench.suites import SuiteError

PIXELS = 3 * 32 * 32
"""Bytes of an image: its red, then its green, then its blue channel, each row by row."""
BINARY = ".bin"
"""Suffix of the batches that hold plain records: a byte for each label, then the pixels."""
RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
NAMES = {*RECONSTRUCT, "numpy ndarray", "numpy dtype", "_codecs encode"}
"""What a pickled array of bytes names, and no more."""


def batch_file(folders: Iterable[Path], name: str) -> Path | None:
    """The batch called ``name``, pickled or as records, in the first of ``folders`` that has it."""
    files = (folder / f"{name}{suffix}" for folder in folders for suffix in ("", BINARY))
    return next((file for file in files if file.is_file()), None)


def read_batches(
    paths: Sequence[Path], dataset: str = "CIFAR-10", key: str = "labels", classes: int = 10, coarse: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 in batches of a CIFAR ``dataset``.

    Args:
        paths: of pickled batches, and of records where the suffix is :data:`BINARY`.
        key: what the labels are called in a pickled batch.
        classes: how many there are.
        coarse: labels of another kind that a record has before the label.

    Raises:
        SuiteError: a file is not what was published.
    """
    images, labels = [], []
    for path in paths:
        try:
            content = path.read_bytes()
            data, own = _recorded(content, coarse) if path.suffix == BINARY else _pickled(content, key)
            if len(own) != len(data) or not own:
                raise ValueError(f"holds {len(data)} images and {len(own)} labels")
            if not 0 <= min(own) <= max(own) < classes:
                raise ValueError(f"has labels from {min(own)} to {max(own)}")
        # a damaged pickle ends early, pops what is not there, adds to what takes no more, or has an odd escape
        except (OSError, LookupError, TypeError, AttributeError, ValueError, DeprecationWarning) as error:
            raise SuiteError(f"{path}: not a batch of {dataset} ({error}); get it again from its source") from error
        images.append(data.reshape(-1, 3, 32, 32))
        labels.append(np.array(own, dtype=np.int64))
    return np.concatenate(images), np.concatenate(labels)


def _recorded(content: bytes, coarse: int) -> tuple[np.ndarray, list[int]]:
    """Pixels (N, PIXELS) and labels of plain records."""
    width = coarse + 1 + PIXELS
    if len(content) % width:
        raise ValueError(f"its {len(content)} bytes are no records of {width}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, width)
    return records[:, coarse + 1 :], records[:, coarse].tolist()


@dataclass(frozen=True)
class _Name:
    """Module and name of what a pickle would import."""

    text: str

    def __post_init__(self) -> None:
        if self.text not in NAMES:
            raise ValueError(f"it asks for {self.text.replace(' ', '.')[:80]}, which is no part of an array")


@dataclass
class _Call:
    """A call that a pickle asks for, and the state that it has for what would come of it."""

    function: str
    arguments: tuple[Any, ...]
    state: object = None


BYTE = _Call("numpy dtype", ("u1", False, True), (3, "|", None, None, None, -1, -1, 0))
"""The description of NumPy's unsigned bytes."""


def _pickled(content: bytes, key: str) -> tuple[np.ndarray, list[int]]:
    """Pixels (N, PIXELS) and labels of a pickled dictionary."""
    batch = _description(content)
    if not isinstance(batch, dict) or not {"data", key} <= batch.keys():
        raise ValueError(f"holds no dictionary of data and {key}")
    labels = batch[key]
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError(f"its {key} are no list of numbers")
    return _table(batch["data"]), labels


def _table(described: object) -> np.ndarray:
    """The array (N, PIXELS) of bytes whose making is described."""
    match described:
        case _Call(function, arguments, (1, (int(rows), int(columns)), dtype, bool(fortran), str(pixels))):
            if function not in RECONSTRUCT or arguments != (_Name("numpy ndarray"), (0,), "b") or dtype != BYTE:
                raise ValueError("its data are no bytes")
            if columns != PIXELS or len(pixels) != rows * columns:
                raise ValueError(f"holds {len(pixels)} bytes for an array of shape {rows} x {columns}")
            flat = np.frombuffer(pixels.encode("latin-1"), dtype=np.uint8)
            return flat.reshape(rows, columns, order="F" if fortran else "C")
    raise ValueError("its data are no table")


def _called(function: object, arguments: object) -> str | _Call:
    match function, arguments:
        case _Name("_codecs encode"), (str(text), "latin1"):  # how Python 3 pickles bytes for Python 2
            return text
        case _Name(name), tuple(given):
            return _Call(name, given)
    raise ValueError("it calls what is no name")


def _made_of(items: list[Any], kind: str) -> Any:
    """Keys of a dictionary are texts, in turn with its values."""
    if kind != "DICT":
        return items if kind == "LIST" else tuple(items)
    if not all(type(key) is str for key in items[::2]):
        raise ValueError("it has keys that are no texts")
    return dict(zip(items[::2], items[1::2], strict=True))


def _description(content: bytes) -> Any:
    """What a pickle describes, byte strings as texts of Latin-1 characters. As these are never copied, nothing becomes
    larger than the file.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: it is damaged, or asks for what is no part of an array.
    """
    stack: list[Any] = []
    outside: list[list[Any]] = []  # a mark begins a stack of its own
    memo: dict[int, Any] = {}
    opcodes: Iterable[tuple[pickletools.OpcodeInfo, Any, Any]] = pickletools.genops(content)
    for opcode, argument, position in opcodes:
        match opcode.name:
            case "BININT1" | "BININT2" | "BININT" | "INT" | "LONG" | "LONG1" | "LONG4":
                stack.append(argument)
            case "SHORT_BINSTRING" | "BINSTRING" | "STRING" | "SHORT_BINUNICODE" | "BINUNICODE" | "UNICODE":
                stack.append(argument)
            case "SHORT_BINBYTES" | "BINBYTES":
                stack.append(argument.decode("latin-1"))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BINPUT" | "LONG_BINPUT" | "PUT" | "MEMOIZE":
                memo[len(memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[argument])
            case "MARK":
                outside.append(stack)
                stack = []
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_TUPLE":
                stack.append(_made_of([], opcode.name.removeprefix("EMPTY_")))
            case "LIST" | "DICT" | "TUPLE":
                items, stack = stack, outside.pop()
                stack.append(_made_of(items, opcode.name))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(opcode.name[-1]))]
                stack.append(tuple(reversed(items)))
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items, stack = stack, outside.pop()
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1].update(_made_of([key, value], "DICT"))
            case "SETITEMS":
                items, stack = stack, outside.pop()
                stack[-1].update(_made_of(items, "DICT"))
            case "GLOBAL":
                stack.append(_Name(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_Name(f"{module:s} {name:s}"))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_called(function, arguments))
            case "BUILD":
                state = stack.pop()
                stack[-1].state = state
            case "PROTO" | "FRAME":
                pass
            case "STOP" if len(stack) == 1 and not outside and position + 1 == len(content):
                return stack[0]
            case name:
                raise ValueError(f"it has {name} at byte {position}, where none is in an array")
    raise ValueError("it has no end")
