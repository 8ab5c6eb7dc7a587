"""A page of the documentation as what its reader would do: write the files that it shows, type its commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml
from markdown_it import MarkdownIt

WORKFLOW = "workflow"


@dataclass(frozen=True)
class Block:
    """A fence: its ``language``, the ``title`` that names a file, its ``text``, and the ``remark`` in the comment
    before it, which says how it is to be taken. A comment that begins with :data:`WORKFLOW` is a block of its own.
    """

    language: str
    title: str = ""
    text: str = ""
    remark: str = ""


def blocks(page: str) -> Iterator[Block]:
    """The fences of a page in Markdown, those in lists and admonitions too.

    >>> list(blocks("<!-- exits 1 -->\\n\\n```sh\\nfalse\\n```"))
    [Block(language='sh', title='', text='false\\n', remark='exits 1')]
    """
    remark = ""
    for token in MarkdownIt("commonmark").parse(page):
        if token.type == "html_block":
            found = re.fullmatch(r"<!-- (.*) -->\s*", token.content)
            remark = found[1] if found else ""
            if remark.startswith(WORKFLOW):
                yield Block(WORKFLOW, remark=remark.removeprefix(WORKFLOW).strip())
                remark = ""
        elif token.type == "fence":
            language, _, rest = token.info.partition(" ")
            title = re.search(r'title="([^"]*)"', rest)
            yield Block(language, title[1] if title else "", token.content, remark)
            remark = ""


def listed(page: str) -> list[str]:
    """Commands in the tables of a page whose last column is called *type*."""
    found = []
    for table in re.findall(r"^\|[^\n]*\| type \|\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE):
        for line in table.splitlines():
            found += re.findall(r"`((?:mae-bench|pytest) [^`]+)`", line.strip("|").split("|", 1)[1])
    return found


@dataclass(frozen=True)
class Reader:
    """One who does in ``folder`` what a page says. Where something is typed that this machine does not have, another
    text stands ``instead``.
    """

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)

    def follow(self, page: str) -> None:
        """A block with a title is a file. ``sh`` is typed and exits with 0, or what its remark says. ``text`` lists
        parts of lines, with ``...`` for anything between, that what was typed last has printed in this order.

        Raises:
            AssertionError: a command ends otherwise, or a line was not printed.
        """
        printed = ""
        for block in blocks(page):
            if block.title:
                path = self.folder / block.title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
            elif block.language == "sh":
                reader = self.collecting() if block.remark == "collected" else self
                printed = reader.type(block.text, exit_status(block.remark))
            elif block.language == WORKFLOW:
                printed = self.run_workflow(exit_status(block.remark))
            elif block.language == "text":
                assert_printed(printed, block.text)

    def collecting(self) -> Reader:
        """One whose pytest lists tests and runs none."""
        return replace(self, environment={**self.environment, "PYTEST_ADDOPTS": "--co -q"})

    def type(self, text: str, expected: int = 0) -> str:
        """What the commands of ``text`` print; they exit with ``expected``, and all but the last with 0.

        Raises:
            AssertionError: one exits otherwise.
        """
        for there, here in self.instead.items():
            text = text.replace(there, here)
        done = subprocess.run(
            [*on_one_core(), "bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == expected, f"{text}exits with {done.returncode}:\n{done.stdout[-6000:]}"
        return done.stdout

    def run_workflow(self, expected: int) -> str:
        """What the commands of the one workflow of GitHub Actions print and put into its job's summary, in a clone of
        what is committed.

        Raises:
            AssertionError: the last exits with another than ``expected``, or one before it not with 0.
        """
        place = Path(tempfile.mkdtemp(dir=self.folder.parent))
        subprocess.run(["git", "clone", "-q", self.folder, place / "clone"], check=True)
        (path,) = (place / "clone" / ".github" / "workflows").iterdir()
        (job,) = yaml.safe_load(path.read_text())["jobs"].values()
        steps = [step for step in job["steps"] if "run" in step]
        summary = place / "summary.md"
        told = {"CI": "true", "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
        printed = ""
        for step in steps:
            environment = {**self.environment, **told, **step.get("env", {})}
            reader = replace(self, folder=place / "clone", environment=environment)
            printed += reader.type(step["run"], expected if step is steps[-1] else 0)
        return printed + summary.read_text()


def on_one_core() -> list[str]:
    """What binds a command to a core, each worker of pytest-xdist's to its own: where others share the machine, idle
    threads of PyTorch would be in their way.
    """
    if shutil.which("taskset") is None:
        return []
    cores = sorted(os.sched_getaffinity(0))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return ["taskset", "-c", str(cores[-1 - worker % len(cores)])]


def exit_status(remark: str) -> int:
    """What ``exits N`` says, or 0.

    >>> exit_status("exits 2"), exit_status("in a checkout")
    (2, 0)
    """
    return int(remark.removeprefix("exits ")) if remark.startswith("exits ") else 0


def assert_printed(printed: str, patterns: str) -> None:
    """Raises:
    AssertionError: a line of ``patterns`` is not printed after those before it.
    """
    lines = iter(printed.splitlines())
    for pattern in patterns.splitlines():
        wanted = re.compile(".*".join(map(re.escape, pattern.split("..."))))
        assert any(wanted.search(line) for line in lines), f"not printed: {pattern}\n{printed[-6000:]}"
