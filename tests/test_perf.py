"""Timings are of the work that was asked for, in turns; how long it takes is the machine's business."""

from __future__ import annotations

import pytest
import torch

from mae_bench import perf
from mae_bench.degradations import EVERY
from references import page

CPU = torch.device("cpu")


def test_pieces_of_work_take_turns_and_the_first_rounds_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    clock = iter(range(1000))
    monkeypatch.setattr(perf.time, "perf_counter", lambda: float(next(clock)))
    found = perf.timed({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, 8, CPU, 3)
    assert done == ["a", "b"] * 5
    assert [(t.name, t.median, t.low, t.high, t.images_per_second) for t in found] == [
        ("a", 1.0, 1.0, 1.0, 8.0),
        ("b", 1.0, 1.0, 1.0, 8.0),
    ]


def test_every_degradation_of_pixels_is_timed() -> None:
    found = perf.degradation_timings(CPU, images=1, side=32, rounds=1)
    names = [kind.name for kind in EVERY if kind.family not in ("clean", "token_drop")]
    assert [t.name.rsplit("-", 1)[0] for t in found] == names
    assert all(0 < t.low <= t.median <= t.high for t in found)


def test_the_page_holds_every_model_beside_the_yardstick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf, "ARCHITECTURES", ("test_vit", "resnet10t"))
    monkeypatch.setattr(perf, "YARDSTICK", "test_vit")
    monkeypatch.setattr(perf, "SIDE", 160)
    monkeypatch.setattr(perf, "degradation_timings", lambda *_, **__: [perf.Timing("fog-s3", 2, 0.5, 0.4, 0.6)])
    text = perf.page(CPU, images=1, rounds=1)
    lines = {cells[1].strip(): cells for line in text.splitlines() if len(cells := line.split("|")) > 3}
    assert float(lines["test_vit bfloat16"][5]) == 1
    assert "resnet10t bfloat16, channels last" in lines
    assert lines["fog-s3"][2].strip() == "4"
    assert lines["fog-s3"][4].strip() == "400.00 to 600.00"


def test_the_name_of_a_device_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    one = perf.Timing("test_vit bfloat16", 1, 0.5, 0.5, 0.5)
    monkeypatch.setattr(perf, "YARDSTICK", "test_vit")
    monkeypatch.setattr(perf, "forward_timings", lambda *_: [one])
    monkeypatch.setattr(perf, "degradation_timings", lambda *_, **__: [one])
    monkeypatch.setattr(perf.platform, "processor", lambda: "*fast*\n\n# <b>$x$")
    seen = page.read(perf.page(CPU, images=1, rounds=1))
    assert r"Timings on *fast*\n\n# <b>$x$" in seen.text.splitlines()
    assert set(seen.tags) == {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td"}
