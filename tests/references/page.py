"""What a reader sees of a Markdown page: a parser of Markdown, then one of HTML, and no regular expression."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

from markdown_it import MarkdownIt

_PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@dataclass
class Page:
    """``text`` (with the source's line breaks), the cells of each row of each table, and the tags in order.

    A tag with attributes is named with them. A ``span`` without is no tag: it looks like what is in it.
    """

    text: str = ""
    tables: list[list[list[str]]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()
        self.in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "span" or attrs:
            self.page.tags.append(" ".join([tag, *(f"{name}={value}" for name, value in attrs)]))
        match tag:
            case "table":
                self.page.tables.append([])
            case "tr":
                self.page.tables[-1].append([])
            case "th" | "td":
                self.page.tables[-1][-1].append("")
                self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("th", "td")

    def handle_comment(self, data: str) -> None:
        self.page.tags.append(f"comment={data}")

    def handle_decl(self, decl: str) -> None:
        self.page.tags.append(f"declaration={decl}")

    def handle_pi(self, data: str) -> None:
        self.page.tags.append(f"instruction={data}")

    def handle_data(self, data: str) -> None:
        self.page.text += data
        if self.in_cell:
            self.page.tables[-1][-1][-1] += data


def read(markdown: str) -> Page:
    """The page that ``markdown`` becomes, HTML in it included.

    >>> page = read("a *b* <i>c</i>")
    >>> page.text, page.tags
    ('a b c\\n', ['p', 'em', 'i'])
    >>> read("|a|b|\\n|-|-|\\n|1|2|").tables
    [[['a', 'b'], ['1', '2']]]
    """
    reader = _Reader()
    reader.feed(_PARSER.render(markdown))
    reader.close()
    return reader.page
