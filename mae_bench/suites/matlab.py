"""MATLAB's files (level 5, "MAT-File Format", The MathWorks) as far as a table of numbers and texts needs them. What is
nested deeper is passed over, so that no file is too deep, and nothing is unpacked beyond a limit.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice

MOST = 1 << 24
"""Bytes of a file, and of a packed element in it."""
HEADER = 128
BYTE_ORDERS = {b"IM": ("<", "le"), b"MI": (">", "be")}
NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
"""How each kind of number is stored, in the letters of :mod:`struct`."""
TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-{}", 16: "utf-8", 17: "utf-16-{}", 18: "utf-32-{}"}
"""How each kind of characters is stored."""
MATRIX, PACKED = 14, 15
"""Kinds of elements."""
STRUCTURE, CHARACTERS = 2, 4
"""Classes of a matrix; those above are numbers."""
FIELDS = 1 << 14
"""Bytes of the names of the fields of a structure."""


def structures(content: bytes, variable: str, fields: Sequence[str]) -> list[tuple[float | str, ...]]:
    """The values of ``fields`` of each structure in the array called ``variable``, in MATLAB's order.

    Raises:
        ValueError: ``content`` is no such file, larger than :data:`MOST` or damaged; or it has no such array, or a
            field is no single number or row of characters.
    """
    order = content[HEADER - 2 : HEADER]
    if order not in BYTE_ORDERS or len(content) > MOST:
        raise ValueError("it is no file of MATLAB's level 5, or too large")
    try:
        for kind, element in _elements(content[HEADER:], order):
            for inner, matrix in _elements(_unpacked(element), order) if kind == PACKED else [(kind, element)]:
                if inner == MATRIX and matrix and _header(matrix, order)[1] == variable:
                    return _table(matrix, order, fields)
    except (struct.error, zlib.error, LookupError) as error:
        raise ValueError(f"it is damaged ({error})") from error
    raise ValueError(f"it has no {variable}")


def _unpacked(element: bytes) -> bytes:
    machine = zlib.decompressobj()
    content = machine.decompress(element, MOST)
    if not machine.eof:
        raise ValueError(f"it unpacks to more than {MOST} bytes, or is cut short")
    return content


def _elements(content: bytes, order: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and bytes of each element."""
    place = 0
    while place < len(content):
        kind, size = struct.unpack_from(f"{BYTE_ORDERS[order][0]}2I", content, place)
        if kind >> 16:  # a small one has its size beside its kind, and its bytes where the size would be
            kind, size, start, following = kind & 0xFFFF, kind >> 16, place + 4, place + 8
        else:
            start = place + 8
            following = start + size + (0 if kind == PACKED else -size % 8)
        if start + size > min(following, len(content)):
            raise ValueError("an element goes on beyond its end")
        yield kind, content[start : start + size]
        place = following


def _header(matrix: bytes, order: bytes) -> tuple[int, str, tuple[int, ...], Iterator[tuple[int, bytes]]]:
    """Class, name and shape of a matrix, and what it holds."""
    elements = _elements(matrix, order)
    (_, flags), (_, shape), (_, name) = islice(elements, 3)
    letter = BYTE_ORDERS[order][0]
    (of_class,) = struct.unpack_from(f"{letter}I", flags)
    return of_class & 0xFF, name.decode("latin-1"), struct.unpack(f"{letter}{len(shape) // 4}i", shape), elements


def _table(matrix: bytes, order: bytes, fields: Sequence[str]) -> list[tuple[float | str, ...]]:
    of_class, name, shape, elements = _header(matrix, order)
    if of_class != STRUCTURE:
        raise ValueError(f"{name} is no array of structures")
    (_, length), (_, joined) = islice(elements, 2)
    (width,) = struct.unpack(f"{BYTE_ORDERS[order][0]}i", length)
    if width < 1 or len(joined) > FIELDS:
        raise ValueError(f"the fields of {name} have no names")
    names = [joined[i : i + width].partition(b"\0")[0].decode() for i in range(0, len(joined), width)]
    places = [names.index(field) for field in fields]
    rows = []
    while row := list(islice(elements, len(names))):
        rows.append(tuple(_value(row[place][1], order) for place in places))
    if len(rows) != math.prod(shape):
        raise ValueError(f"{name} has {len(rows)} structures for an array of shape {shape}")
    return rows


def _value(matrix: bytes, order: bytes) -> float | str:
    of_class, _, shape, elements = _header(matrix, order)
    if of_class < CHARACTERS or len(shape) != 2 or shape[0] != 1:
        raise ValueError("a field is neither a number nor a text")
    ((kind, content),) = islice(elements, 1)
    letter, name = BYTE_ORDERS[order]
    if of_class == CHARACTERS:
        return content.decode(TEXTS[kind].format(name))
    (number,) = struct.unpack(letter + NUMBERS[kind], content)
    return float(number)
