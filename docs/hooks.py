"""What the site does to its pages: names that docstrings give a role are shown as code."""

import re
from typing import Any

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):(?=<code>)")


def on_page_content(html: str, **_: Any) -> str:
    """The role goes, and with it the path before a name that begins with a tilde."""
    return re.sub(r"<code>~[\w.]+\.(?=\w+</code>)", "<code>", ROLE.sub("", html))
