"""How near the corruptions are to the published ones is held to bounds, as measured now and on the committed page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from mae_bench.cells import Level
from mae_bench.degradations import blur, cbar, noise, weather
from mae_bench.degradations.frost import LOOKS
from mae_bench.degradations.severity import SEVERITIES
from references import fidelity
from references.fidelity import DISTANCES, ERRORS, NAMES, RANDOM, SEVERITY, SIDES, SMALLEST, TEXTURES, photographs

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = Path(__file__).parent.parent.parent / "docs" / "fidelity.md"
QUICK = (1, 3, 5)

Row = Mapping[str, float]


@dataclass(frozen=True)
class Bound:
    """The largest mean error, in steps of 8 bits, of results given the same draws and of what is kept of them."""

    error: float = 0.001
    kept: float = 0.1


BOUNDS = {name: Bound() for name in NAMES} | {
    # single values may be any number of steps off
    "impulse_noise": Bound(error=0.01),
    "snow": Bound(error=0.01),
    "glass_blur": Bound(error=0.03),
    # cut to 8 bits by ImageMagick
    "motion_blur": Bound(error=0.51),
    # read at multiples of 1/32 pixel by OpenCV
    "elastic_transform": Bound(error=0.15, kept=1.0),
    # often whole but for the last bits
    "defocus_blur": Bound(kept=0.25),
    "brightness": Bound(kept=0.5),
    "saturate": Bound(kept=1.0),
}

LOOK_DIFFERENCES = {"mean": 4.0, "quantile": 12.0, "correlation": 0.1}
LOOK_RATIOS = {"deviation": 1.12, "octave": 1.16}
"""What textures of frost may differ by from the photographs: the larger ratio by the smaller."""


def errors_beyond(name: str, row: Row) -> list[str]:
    limits = dict.fromkeys(("mean", "border"), BOUNDS[name].error)
    limits |= dict.fromkeys(("kept mean", "kept border"), BOUNDS[name].kept)
    return [f"{column} is {row[column]:.4f}" for column, limit in limits.items() if row[column] > limit]


def distances_beyond(row: Row) -> list[str]:
    return [f"{column} is {row[column]:.2g}" for column in DISTANCES if column[:2] == "p:" and row[column] < SMALLEST]


def textures_beyond(row: Row) -> list[str]:
    far = [f"{column} is {row[column]} off" for column, limit in LOOK_DIFFERENCES.items() if row[column] > limit]
    return far + [
        f"{column} is {row[column]}" for column, limit in LOOK_RATIOS.items() if not 1 / limit < row[column] < limit
    ]


# ---- measured


def measured_errors(name: str, severity: int, images: Any) -> Row:
    raw, kept = fidelity.same_draws(name, severity, images)
    return dict(zip(ERRORS, (*astuple(raw), *astuple(kept)), strict=True))


def measured_distances(name: str, severity: int, table: int, seeds: int) -> Row:
    """At 32 pixels, or with the parameters of 224 pixels at 48, which takes a twentieth of the time."""
    image = photographs(32 if table == 32 else 48)[0]
    far = fidelity.other_draws(name, SEVERITIES[name].at(severity, table), image, seeds)
    return dict(zip(DISTANCES, astuple(far), strict=True))


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_same_draws_give_the_published_images_of_224_pixels(name: str) -> None:
    for severity in QUICK:
        images = photographs(224)[severity - 1 : severity]
        assert errors_beyond(name, measured_errors(name, severity, images)) == [], severity


@pytest.mark.parametrize("name", NAMES)
def test_same_draws_give_the_published_images_of_32_pixels_and_the_page_says_how_nearly(name: str) -> None:
    shown = tables_of(PAGE.read_text())["Same draws, 32 pixels"]
    for severity in QUICK:
        row = measured_errors(name, severity, photographs(32))
        assert errors_beyond(name, row) == [], severity
        for column in ("mean", "border", "kept mean", "kept border"):
            assert shown[name, str(severity)][column] == pytest.approx(row[column], abs=0.02), "write the page again"


@pytest.mark.thorough
@pytest.mark.parametrize("table", SIDES)
@pytest.mark.parametrize("name", RANDOM)
def test_other_draws_have_the_published_distribution(name: str, table: int) -> None:
    for severity in QUICK:
        assert distances_beyond(measured_distances(name, severity, table, 12 if table == 32 else 10)) == [], severity


# ---- the committed page


def tables_of(page: str) -> dict[str, dict[tuple[str, str], dict[str, float]]]:
    """By heading, and by the first two cells of a line: its other cells by column."""
    tables: dict[str, dict[tuple[str, str], dict[str, float]]] = {}
    for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        heading, *lines = part.splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
        if cells:
            columns = cells[0][2:]
            tables[heading] = {
                (name, which): dict(zip(columns, map(float, numbers), strict=True))
                for name, which, *numbers in cells[1:]
            }
    return tables


def faults_of(page: str) -> list[str]:
    """What of the page is missing or beyond a bound."""
    tables = tables_of(page)
    found = [f"{name}: no words" for name in NAMES if not re.search(rf"^\*\*{name}\*\*: \w", page, re.MULTILINE)]

    def look_up(start: str, name: str, which: str, beyond: Callable[[Row], list[str]]) -> None:
        headings = [heading for heading in tables if heading.startswith(start)]
        row = tables[headings[0]].get((name, which)) if headings else None
        faults = ["missing"] if row is None else beyond(row)
        found.extend(f"{start}: {name} {which}: {fault}" for fault in faults)

    for side, name, severity in product(SIDES, NAMES, SEVERITY):
        look_up(f"Same draws, {side}", name, str(severity), lambda row, name=name: errors_beyond(name, row))
        if name in RANDOM:
            look_up(f"Other draws, {side}", name, str(severity), distances_beyond)
    for side, look in product(SIDES, range(len(LOOKS))):
        look_up("Textures", f"look {look + 1}", f"{side} px", textures_beyond)
    return found


def test_page_names_every_corruption_and_severity_and_is_within_the_bounds() -> None:
    assert faults_of(PAGE.read_text()) == []


def changed(heading: str, name: str, which: str, column: str, value: str) -> str:
    """The committed page with another number in one place."""
    before, after = PAGE.read_text().split(f"## {heading}", 1)
    columns = {"Same": ERRORS, "Othe": DISTANCES, "Text": TEXTURES}[heading[:4]]
    cell = r"[^|]*\|"
    pattern = rf"(\| {name} *\| {which} *\|{cell * columns.index(column)})[^|]*"
    after, count = re.subn(pattern, rf"\g<1> {value} ", after, count=1)
    assert count == 1
    return f"{before}## {heading}{after}"


@pytest.mark.parametrize(
    ("heading", "name", "which", "column", "value"),
    [
        ("Same draws, 224", "contrast", "4", "mean", "0.0020"),
        ("Same draws, 32", "glass_blur", "2", "border", "0.0400"),
        ("Same draws, 224", "saturate", "5", "kept mean", "1.1000"),
        ("Same draws, 32", "caustic", "1", "kept border", "0.1500"),
        ("Other draws, 224", "perlin", "5", "p: fine", "9e-05"),
        ("Other draws, 32", "snow", "1", "p: mean", "0"),
        ("Other draws, 32", "sparkles", "3", "p: octaves", "1e-05"),
        ("Textures", "look 2", "32 px", "octave", "0.800"),
        ("Textures", "look 4", "224 px", "mean", "4.10"),
    ],
)
def test_number_beyond_its_bound_is_a_fault_of_the_page(
    heading: str, name: str, which: str, column: str, value: str
) -> None:
    known = faults_of(PAGE.read_text())
    (fault,) = set(faults_of(changed(heading, name, which, column, value))).difference(known)
    assert fault.startswith(f"{heading}: {name} {which}: {column} is ")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (r"\| fog +\| 4 .*\n", "Same draws, 224: fog 4: missing"),
        (r"\*\*spatter\*\*.*\n", "spatter: no words"),
        (r"## Other draws, 32(.|\n)*?(?=## )", "Other draws, 32: caustic 5: missing"),
        (r"\| look 3 .*\n", "Textures: look 3 224 px: missing"),
    ],
)
def test_what_is_missing_is_a_fault_of_the_page(line: str, fault: str) -> None:
    page = PAGE.read_text()
    assert fault not in faults_of(page)
    assert fault in faults_of(re.sub(line, "", page, count=1))


# ---- both measures see what is wrong


def test_wrong_border_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    filtered = blur.gaussian_filter
    monkeypatch.setattr(blur, "gaussian_filter", lambda images, sigma, *_: filtered(images, sigma, "mirror", 4.0))
    faults = errors_beyond("gaussian_blur", measured_errors("gaussian_blur", 5, photographs(32)))
    assert [fault.split(" is ")[0] for fault in faults] == ["mean", "border", "kept mean", "kept border"]


@pytest.mark.parametrize("name", NAMES)
def test_severity_of_another_step_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "Level", lambda value, severity: Level(value + 1, severity=severity))
    for severity in (1, 4):
        assert errors_beyond(name, measured_errors(name, severity, photographs(32)[:1])) != []


def test_snow_that_falls_once_only_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    fallen = weather.snow
    monkeypatch.setattr(weather, "snow", lambda images, mix, layer: fallen(images, mix, layer) - layer.flip(-2, -1))
    assert errors_beyond("snow", measured_errors("snow", 1, photographs(32))) != []


@pytest.mark.parametrize(
    ("name", "module", "draws", "wrong"),
    [
        ("gaussian_noise", noise, "random_normal", lambda drawn: 1.1 * drawn),
        ("gaussian_noise", noise, "random_normal", lambda drawn: drawn.roll(1, 1) / 2**0.5 + drawn / 2**0.5),
        ("motion_blur", blur, "random_uniform", lambda drawn: 0.5 * drawn),
        ("impulse_noise", noise, "random_uniform", lambda drawn: drawn**1.5),
        ("sparkles", cbar, "random_uniform", lambda drawn: 0.5 * drawn),
    ],
    ids=["too much", "not white", "half of all angles", "not uniform", "in one corner"],
)
def test_draws_of_another_distribution_are_seen(
    name: str, module: Any, draws: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = getattr(module, draws)
    monkeypatch.setattr(module, draws, lambda *arguments: wrong(drawn(*arguments)))
    assert distances_beyond(measured_distances(name, 3, 32, 48)) != []
