"""Text of others in tables and pages: shown as it is written, whatever it is."""

from __future__ import annotations

import csv
import io
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mae_bench.markup import csv_text, csv_value, markdown_text, terminal_text
from references import page

PIECES = (
    "|", "\\", "\\|", "`", "``", "*", "**", "_", "__", "[", "](x)", "![", "<b>", "<!--", "-->", "<a@b.c>", "&amp;",
    "&#124;", "&", "#", "~~", "$", "$$", "http://a.b/", "www.a.b", "a@b.c", " ", "  ", "\n", "\r\n", "\t", "\0",
    "\x1b[31m", "\u202e", "\u200b", "\u3164", "\ud800", "{: .x }", "'", '"', "=", "+", "-", "@", ",", ";", "\\n",
    "\\x41", "a", "Z", "é", "中", "7",
)  # fmt: skip
TEXT = st.lists(st.sampled_from(PIECES) | st.text(st.characters(), max_size=2), max_size=10).map("".join)
"""Any text, and often what means something somewhere."""

FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"

EVERYDAY = (
    "mae_ft_s0", "supervised_ep_s2", "vit_base_patch16_224.augreg_in1k", "gaussian_blur-2.00", "fashion_mnist",
    "random_patch_uniform-0.50", "T-shirt/top", "Ankle boot", "28 bilinear center 1.0", "NVIDIA H100 80GB HBM3",
    "Flüsse", "", "0.5",
)  # fmt: skip


@pytest.mark.parametrize("name", EVERYDAY)
def test_everyday_names_stay_as_they_are(name: str) -> None:
    assert terminal_text(name) == markdown_text(name) == csv_text(name) == csv_value(name) == name


# --------------------------------------------------------------------------- terminal


@given(TEXT)
def test_nothing_of_a_text_steers_a_terminal_or_is_unseen(text: str) -> None:
    shown = terminal_text(text)
    assert all(unicodedata.category(c)[0] not in "CZ" or c == " " for c in shown)
    assert shown == shown.strip()
    assert len(shown.splitlines()) <= 1
    shown.encode()


@given(TEXT.map(lambda text: text.replace("\\", "")))
def test_what_is_shown_tells_which_text_it_is(text: str) -> None:
    """All texts without a backslash look different."""
    assert terminal_text(text).encode("latin-1", "backslashreplace").decode("unicode_escape") == text


@pytest.mark.parametrize(
    ("unseen", "shown"),
    [
        ("\u200b", r"\u200b"), ("\u202e", r"\u202e"), ("\ufeff", r"\ufeff"), ("\u00ad", r"\xad"), ("\u3164", r"\u3164"),
        ("\u2800", r"\u2800"), ("\ufe0f", r"\ufe0f"), ("\u034f", r"\u034f"), ("\U000e0100", r"\U000e0100"),
    ],
)  # fmt: skip
def test_what_draws_nothing_is_seen(unseen: str, shown: str) -> None:
    assert terminal_text(f"a{unseen}b") == f"a{shown}b"


# --------------------------------------------------------------------------- Markdown


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("[a](b)", r"\[a\](b)"),
        ("{: .a }", r"\{: .a \}"),
        ("__init__", r"\_\_init\_\_"),
        ("_a", r"\_a"),
        ("a__b_", r"a__b\_"),
        ("http://a.b", "http&#58;//a.b"),
        ("www.a.b", "www&#46;a.b"),
        ("a:b.c/d", "a:b.c/d"),
        ("a@b", "a<span>&#64;</span>b"),
        ("a|b", "a&#124;b"),
    ],
)
def test_what_has_a_meaning_in_some_dialect_is_escaped(text: str, source: str) -> None:
    assert markdown_text(text) == source


@given(TEXT, TEXT)
@example("a\\", "|")
@example("*", "*")
@example("_a", "b_")
@example("[", "](javascript:x)")
@example("`", "`")
@example("<!--", "-->")
def test_a_table_shows_texts_and_nothing_else(one: str, other: str) -> None:
    source = f"| a | b |\n|---|---|\n| {markdown_text(one)} | {markdown_text(other)} |\n| 1 | 2 |\n"
    seen = page.read(source)
    assert seen.tables == [[["a", "b"], [terminal_text(one), terminal_text(other)], ["1", "2"]]]
    assert seen.tags == ["table", "thead", "tr", "th", "th", "tbody", *["tr", "td", "td"] * 2]


@given(TEXT, TEXT)
@example("*", "*")
@example("a_", "_b")
@example("#", "#")
def test_a_line_shows_texts_and_nothing_else(one: str, other: str) -> None:
    seen = page.read(f"## of {markdown_text(one)}\n\nA model, {markdown_text(one)}, and {markdown_text(other)}, too")
    heading = f"of {terminal_text(one)}".rstrip()
    assert seen.text == f"{heading}\nA model, {terminal_text(one)}, and {terminal_text(other)}, too\n"
    assert seen.tags == ["h2", "p"]


@given(TEXT)
def test_no_text_becomes_a_link_or_a_formula_on_github(text: str) -> None:
    """Which finds links in the source, and formulas and people in what is seen of one element."""
    source = markdown_text(text)
    assert not re.search(r"https?://|ftp://|www\.|[$@]", source, re.IGNORECASE)
    assert source.count("<") == source.count("<span>&#36;</span>") + source.count("<span>&#64;</span>") + source.count(
        "</"
    )


# --------------------------------------------------------------------------- CSV


def table(texts: list[str]) -> bytes:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow(map(csv_text, texts))
    return file.getvalue().encode()


def cells(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(), newline="")))


@given(st.lists(TEXT, min_size=2, max_size=4))
@example(["a\r\nb", "\0"])
@example(["'", "''=1"])
@example(["=a\\x41", "\\n"])
@example(["\ud800", "\udcff"])
def test_texts_come_back_from_a_file_of_csv(texts: list[str]) -> None:
    content = table(texts)
    (line,) = cells(content)
    assert [csv_value(cell) for cell in line] == texts
    assert len(content.decode().splitlines()) == 1


@given(TEXT, st.sampled_from(["", " ", "\t", "\r", "\n", "\0", "\u00a0", "\u200b"]), st.sampled_from(FORMULA))
def test_no_cell_begins_like_a_formula(text: str, space: str, sign: str) -> None:
    for each in (text, space + sign + text):
        cell = csv_text(each)
        assert not re.match(rf"\s*[{re.escape(FORMULA)}]|[\t\r\n\0]", cell)
        assert csv_value(cell) == each


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "-1+1", "'tis", '@SUM(1)"'])
def test_an_apostrophe_is_all_that_a_formula_gets(text: str) -> None:
    assert csv_text(text) == f"'{text}"


@given(TEXT)
def test_cells_of_others_can_be_read(cell: str) -> None:
    assert csv_value(cell) == cell or cell.startswith("'")
