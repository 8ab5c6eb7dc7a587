"""A terminal's screen, character by character: of a VT100 what pytest and the plugin use, and nothing else."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

_SIGN = re.compile(
    r"\x1b\[(?P<number>[0-9;]*)(?P<command>[A-Za-z])|\x1b\](?:[^\x07\x1b]*)(?:\x07|\x1b\\)|\x1b(?P<short>[D78])|.", re.S
)


class Screen:
    """``rows`` lines of ``columns`` characters; what leaves it at the top is kept in ``above``."""

    def __init__(self, rows: int = 24, columns: int = 80) -> None:
        self.rows, self.columns = rows, columns
        self.above: list[str] = []
        self.lines = [[" "] * columns for _ in range(rows)]
        self.row = self.column = 0
        self.saved = (0, 0)

    def feed(self, text: str) -> None:
        for sign in _SIGN.finditer(text):
            number, command, short = sign["number"], sign["command"], sign["short"]
            match command or short or sign[0]:
                case "\r":
                    self.column = 0
                case "\n" | "D" if sign[0] in ("\n", "\x1bD"):
                    self._down()
                case "7" if short:
                    self.saved = (self.row, self.column)
                case "8" if short:
                    self.row, self.column = self.saved
                case "A" if command:
                    self.row = max(0, self.row - int(number or 1))
                case "J" if command and not number:
                    self.lines[self.row][self.column :] = [" "] * (self.columns - self.column)
                    self.lines[self.row + 1 :] = [[" "] * self.columns for _ in range(self.rows - self.row - 1)]
                case "m" if command:
                    pass
                case character if len(sign[0]) == 1 and character.isprintable():
                    if self.column == self.columns:
                        self.column = 0
                        self._down()
                    self.lines[self.row][self.column] = character
                    self.column += 1
                case _ if sign[0].startswith("\x1b]"):
                    pass  # a title, or the progress of a window
                case _:
                    raise ValueError(f"what does a terminal make of {sign[0]!r}?")

    def _down(self) -> None:
        if self.row == self.rows - 1:
            self.above.append("".join(self.lines.pop(0)).rstrip())
            self.lines.append([" "] * self.columns)
        else:
            self.row += 1

    @property
    def text(self) -> str:
        """All that was ever on it and was not taken away."""
        return "\n".join([*self.above, *("".join(line).rstrip() for line in self.lines)]).rstrip()


def watched(command: Sequence[str], screen: Screen, environment: Mapping[str, str]) -> Iterator[str]:
    """What ``command`` shows on a terminal like ``screen``, after everything that it writes."""
    import fcntl
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", screen.rows, screen.columns, 0, 0))
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True)
    os.close(theirs)
    try:
        while True:
            select.select([ours], [], [])
            with suppress(OSError):  # by which Linux says that nobody writes any more
                if content := os.read(ours, 1 << 16):
                    screen.feed(content.decode())
                    yield screen.text
                    continue
            break
        process.wait()
    finally:
        process.kill()
        process.wait()
        os.close(ours)
