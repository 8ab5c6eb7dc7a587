"""The page in a real browser, from a file, without any network."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import HOSTILE, write_comparison, write_report

pytestmark = pytest.mark.browser

SIZES = {"phone": (390, 844), "tablet": (820, 1180), "desktop": (1366, 900)}
WAIT = "() => document.querySelectorAll('[data-chart]').length === document.querySelectorAll('[data-live]').length"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("there is no chromium: install Debian's package chromium, or Google Chrome")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens a report, and in the end says that nothing was asked for and nothing went wrong."""
    contexts, troubles, asked = [], [], []

    def open_page(report: Path, **options: Any) -> Any:
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri())
        if options.get("java_script_enabled", True):
            page.wait_for_function(WAIT)
        return page

    yield open_page
    assert troubles == []
    assert all(url.startswith(("file:", "data:")) for url in asked)
    assert len([url for url in asked if url.startswith("file:")]) == len(contexts)
    for context in contexts:
        context.close()


@pytest.fixture
def report(make_run: Callable[..., Path]) -> Path:
    return write_report(make_run(tuple(f"model{k}" for k in range(6))))


def column(page: Any, table: str, number: int) -> list[str]:
    found: list[str] = page.locator(f"#{table} tbody tr:not([hidden]) td:nth-child({number})").all_inner_texts()
    return found


def test_a_table_is_sorted_by_numbers_and_searched_by_keyboard(opened: Callable[..., Any], report: Path) -> None:
    page = opened(report)
    header = page.locator("#leaderboard th").all_inner_texts()
    clean = header.index("clean (%)") + 1
    button = page.locator(f"#leaderboard th:nth-child({clean}) button")
    button.focus()
    for down in (True, False):
        page.keyboard.press("Enter")
        values = [float(text.split()[0]) for text in column(page, "leaderboard", clean)]
        assert values == sorted(values, reverse=down)
    assert page.locator(f"#leaderboard th:nth-child({clean})").get_attribute("aria-sort") == "ascending"
    page.get_by_label("Search: fashion_mnist").fill("model3")
    assert column(page, "leaderboard", header.index("model") + 1) == ["model3"]
    page.get_by_label("Search: fashion_mnist").fill("")
    assert len(column(page, "leaderboard", 2)) == 6


def test_a_chart_says_what_is_under_the_pointer(opened: Callable[..., Any], report: Path) -> None:
    page = opened(report)
    mark = page.locator("#chart-curves-blur .mark-symbol path").first
    mark.scroll_into_view_if_needed()
    mark.hover(force=True)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert "gaussian_blur" in tip.inner_text()


def test_without_a_script_every_table_and_chart_is_there(opened: Callable[..., Any], report: Path) -> None:
    page = opened(report, java_script_enabled=False)
    assert page.locator("#leaderboard tbody tr").count() == 6
    charts = page.locator("[data-chart]")
    assert charts.count() == page.locator("[data-chart] svg").count() == 8
    for chart in charts.all():
        assert chart.locator("svg").bounding_box()["width"] > 100


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_nobody_is_kept_out(opened: Callable[..., Any], report: Path, scheme: str, size: str) -> None:
    """axe-core's checks, in light and in dark and on screens of every width; the page itself never scrolls sideways."""
    from axe_playwright_python.sync_playwright import Axe

    width, height = SIZES[size]
    page = opened(report, color_scheme=scheme, viewport={"width": width, "height": height})
    for summary in page.locator("summary").all():
        summary.click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_comparison_keeps_nobody_out(
    opened: Callable[..., Any], make_run: Callable[..., Path], scheme: str, size: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    width, height = SIZES[size]
    place = write_comparison(make_run(), "weak", "strong")
    page = opened(place, color_scheme=scheme, viewport={"width": width, "height": height})
    for summary in page.locator("summary").all():
        summary.click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_comparison_is_whole_without_a_script_and_sorted_with_one(
    opened: Callable[..., Any], make_run: Callable[..., Path]
) -> None:
    place = write_comparison(make_run(), "weak", "strong")
    for script in (False, True):
        page = opened(place, java_script_enabled=script)
        assert page.locator("#differences tbody tr").count() == 12
        charts = page.locator(".chart")
        assert charts.count() == page.locator(".chart svg").count() == 4
        for chart in charts.all():
            assert chart.locator("svg").bounding_box()["width"] > 100
    page.locator("#differences th:nth-child(5) button").click()
    points = [float(text) for text in column(page, "differences", 5)]
    assert points == sorted(points, reverse=True)


def test_a_hostile_name_does_nothing_in_a_comparison(opened: Callable[..., Any], make_run: Callable[..., Path]) -> None:
    page = opened(write_comparison(make_run((HOSTILE, "other")), "other", HOSTILE))
    assert page.title() == "fashion_mnist: is B better than A?"
    assert page.locator("img[src=x]").count() == 0
    assert "onerror=alert(1)" in page.locator("#differences").inner_text()


def test_a_hostile_name_does_nothing(opened: Callable[..., Any], make_run: Callable[..., Path]) -> None:
    page = opened(write_report(make_run((HOSTILE, "other"))))
    assert page.title() == "run: robustness on fashion_mnist"
    assert page.locator("img[src=x]").count() == 0
    assert "onerror=alert(1)" in page.locator("#leaderboard").inner_text()
