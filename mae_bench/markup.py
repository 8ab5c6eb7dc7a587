"""Text of others in tables and pages: a name is shown as it is written, and does nothing.

Names, docstrings, classes, paths and ids pass through here on their way to a terminal, to Markdown or to CSV. Numbers
that the harness writes need not.
"""

from __future__ import annotations

import re

_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
"""Letters, marks and signs that Unicode counts as printable and that draw nothing."""

_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
"""What spreadsheets take for the beginning of a formula, in both widths (OWASP, "CSV Injection")."""

# GitHub looks for mathematics and for people in the finished page, where it ends at an element's edge
_ELEMENTS = {c: f"<span>&#{ord(c)};</span>" for c in "$@"}
# parsers disagree on backslashes before a pipe and a tilde
_ENTITIES = {"|": "&#124;", "~": "&#126;", "<": "&lt;", ">": "&gt;", "&": "&amp;"}
_BACKSLASHES = {c: f"\\{c}" for c in "\\`*[]{}#!"}
_MARKDOWN = str.maketrans(_ELEMENTS | _ENTITIES | _BACKSLASHES)
_EMPHASIS = re.compile(r"(?<!\w)_++|_++(?!\w)")
"""Underscores but for those between letters or digits, which emphasise nothing."""
_LINK = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)

_ESCAPE = re.compile(r"\\(?:[\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U00(?:0[0-9a-f]|10)[0-9a-f]{4})")


def terminal_text(text: str) -> str:
    r"""``text`` on one line in which everything is seen and nothing steers a terminal: control and bidirectional
    characters, characters without width, line breaks, unusual white space and spaces at the ends are Python escapes.

    >>> print(terminal_text("mae_ft_s0"), terminal_text("\x1b[2Jmae\u202e\n"))
    mae_ft_s0 \x1b[2Jmae\u202e\n
    """
    shown = "".join(c if _is_seen(c) else _escaped(c) for c in text)
    return re.sub("^ +| +$", lambda spaces: r"\x20" * len(spaces[0]), shown)


def markdown_text(text: str) -> str:
    r"""Markdown that shows :func:`terminal_text` of ``text`` within a line or a cell of a table, and nothing else: no
    element, link, emphasis or formula begins in it, on GitHub either.

    >>> print(markdown_text("vit_base_patch16_224.augreg_in1k"), markdown_text("_a|b*"))
    vit_base_patch16_224.augreg_in1k \_a&#124;b\*
    """
    shown = terminal_text(text).translate(_MARKDOWN)
    shown = _EMPHASIS.sub(lambda run: r"\_" * len(run[0]), shown)
    return _LINK.sub(lambda sign: f"&#{ord(sign[0])};", shown)


def csv_text(text: str) -> str:
    r"""``text`` as a cell of CSV that no spreadsheet computes, on one line: after an apostrophe where it would be taken
    for a formula, begins with an apostrophe, or holds what is not seen; that and backslashes are then Python escapes.

    >>> print(csv_text("mae_ft_s0"), csv_text("=1+1"), csv_text("a\r\n\\b"))
    mae_ft_s0 '=1+1 'a\r\n\\b
    """
    if all(map(_is_seen, text)) and not text.lstrip().startswith((*_FORMULA, "'")):
        return text
    return "'" + "".join(c if _is_seen(c) and c != "\\" else _escaped(c) for c in text)


def csv_value(cell: str) -> str:
    r"""The text that :func:`csv_text` made ``cell`` of.

    >>> csv_value("'=1+1"), csv_value("mae_ft_s0")
    ('=1+1', 'mae_ft_s0')
    """
    if not cell.startswith("'"):
        return cell
    return _ESCAPE.sub(lambda escape: escape[0].encode().decode("unicode_escape"), cell[1:])


def _is_seen(character: str) -> bool:
    return character.isprintable() and not _BLANK.match(character)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
