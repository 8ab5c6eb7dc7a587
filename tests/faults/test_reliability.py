"""The page says of every failure what was injected most, and adds up."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from faults.reliability import Injection, injections, page


def test_page_adds_up_the_largest_of_each_and_keeps_the_order_of_failures(tmp_path: Path) -> None:
    tried = [
        Injection("parsers", "a flip", 1500, "refused"),
        Injection("kill", "SIGKILL", 200, "kept", lost=1),
        Injection("kill", "SIGKILL", 3, "kept"),
        Injection("parsers", "a flip", 40, "refused", silent=7),
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(asdict(one)) + "\n" for one in tried))
    text = page(injections(log))
    assert "**1,700 injections: 1 lost something finished, 0 changed a result without a word.**" in text
    assert text.index("## A process is killed") < text.index("## A file is anything at all")
    assert text.count("## ") == 2


def test_failure_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="'fire' is no failure: name one of kill"):
        Injection("fire", "flames", 1, "burns")
