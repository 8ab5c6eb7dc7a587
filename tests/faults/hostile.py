"""Names that nobody gives a model, and that a harness must survive."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from hypothesis import strategies as st

NAMES = (
    "../../etc/passwd", "<script>alert(1)</script>", "a|b", '=HYPERLINK("http://a.b","c")', "a\r\nb\0c",
    "\x1b[2J\x1b]0;x\x07", "\u202egnp.exe", "$x^2$",
    # paths
    "..", ".", "/abs", "a/b", "a__b", "a_b", "a\\b", "..\\..\\windows", "C:", "~", "~root", "x" * 300, "\u00e9" * 300,
    "CON", "con", "nul.txt", "com1", "aux.", "name.", "name ", " name", "name", ".name", "-rf", "; rm -rf /", "*", "?",
    # names that are one on some disks, or for 32 bits of a hash
    "A", "a", "Mae_ft", "mae_ft", "\u00e9", "e\u0301", "\ufb01n", "fin", "\u212a", "k", "\u0130", "i", "\u00df", "ss",
    "a!!!!!!?\u52d9", "a!!!!??????????\u4e4d",
    # terminals, shells and formats
    "a\nb", "a\tb", "\x9b31m", "\x7f", "\udcff", "\ud800", "$(x)", "`x`", "%s", "%00", "{}", "{0.__class__}", "${x}",
    # characters that are not seen, and some that are of several
    "\u200bmae", "\ufeffmae", "\u2066mae", "\u00a0", "\u2028", "\u3164", "\U000e0041", "\U0001f642",
    "\U0001f469\u200d\U0001f4bb",
    # pages and tables
    "__init__", "_", "**a**", "~~a~~", "[x](javascript:alert(1))", "![x](http://a.b/c.png)", "http://a.b", "a@b.c",
    "&lt;", "&#124;", "<!--", "-->", "]]>", "\\", "\\|", '"', "a,b", "# a", "- a", "|---|", "</td></tr>", "+1+1",
    "-1+1", "@SUM(A1)", "'=1", "\t=1", " =1", "\uff1d1",
)  # fmt: skip

_PIECES = (
    *NAMES,
    "|",
    "`",
    "*",
    "_",
    "__",
    "[",
    "](x)",
    "<b>",
    "&",
    "#",
    "$",
    "/",
    "..",
    "=",
    "+",
    "-",
    "@",
    "'",
    " ",
    "\n",
)
TEXTS = st.lists(st.sampled_from(_PIECES) | st.text(st.characters(), max_size=2), max_size=6).map("".join)
"""Any text, and often what means something somewhere."""


def place(path: Path) -> tuple[str, ...]:
    """What ``path`` is to the least discerning disk: one that knows no case, joins characters that are written in two
    ways, and drops dots and spaces at the end of a name.
    """
    parts = (unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", part).casefold()) for part in path.parts)
    return tuple(part.rstrip(". ") for part in parts)
