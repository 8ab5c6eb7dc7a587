"""What the README and the committed results say is what the code makes of the committed outcomes."""

import re
from pathlib import Path

import pytest

from mae_bench.baseline import Baseline
from mae_bench.claims import findings, to_csv, to_markdown
from mae_bench.contrasts import Measured
from mae_bench.evidence import Evidence
from mae_bench.leaderboard import Leaderboard

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SUITES = sorted(path.parent.name for path in (ROOT / "results").glob("*/cells.csv"))


def committed(suite: str) -> Baseline:
    baseline = Baseline.load(ROOT / "results" / suite, suite)
    assert baseline is not None
    return baseline


@pytest.mark.parametrize("suite", SUITES)
def test_committed_leaderboards_follow_from_the_committed_outcomes(suite: str) -> None:
    baseline = committed(suite)
    board = Leaderboard.of(baseline.rows.values(), baseline.outcomes)
    folder = ROOT / "results" / suite
    assert board.to_markdown() == (folder / "leaderboard.md").read_text()
    assert board.to_csv() == (folder / "leaderboard.csv").read_text()


@pytest.mark.thorough  # reads every prediction
@pytest.mark.parametrize("suite", SUITES)
def test_committed_top1_is_the_share_of_right_predictions(suite: str) -> None:
    baseline = committed(suite)
    for cell, row in baseline.rows.items():
        if row.status == "not_applicable":
            assert (row.n, row.top1) == (0, None)
            continue
        right = sum(
            int(a == b) for a, b in zip(baseline.outcomes.prediction[cell], baseline.outcomes.labels, strict=True)
        )
        assert row.n == len(baseline.outcomes.labels)
        assert row.top1 == pytest.approx(right / row.n, abs=1e-6), cell


def test_the_readme_shows_the_committed_leaderboard() -> None:
    shown = re.search(r"<!-- leaderboard -->\n(.*?)\n<!-- /leaderboard -->", README, re.DOTALL)
    table = next(
        part for part in (ROOT / "results/fashion_mnist/leaderboard.md").read_text().split("\n\n") if part[0] == "|"
    )
    assert shown is not None
    assert shown.group(1) == table, "copy the first table of results/fashion_mnist/leaderboard.md between the marks"


@pytest.mark.thorough  # decides every contrast
def test_committed_claims_follow_from_the_committed_evidence() -> None:
    folder = ROOT / "results/fashion_mnist"
    measured = Measured.of(committed("fashion_mnist"), Evidence.load(folder / "evidence.npz"))
    found = findings(measured)
    assert to_csv(found) == (folder / "claims.csv").read_text()
    assert to_markdown(measured, found) == (folder / "claims.md").read_text()


def test_the_readme_quotes_the_committed_claims() -> None:
    """As ``contrast`` estimate [low, high], each as on the page of claims."""
    quoted = re.findall(r"`([a-z_]+-[a-z_-]+)`\s+([+-][\d.]+) (\[[^\]]+\])", README)
    assert len(quoted) >= 5
    page = (ROOT / "results/fashion_mnist/claims.md").read_text().splitlines()
    for name, estimate, interval in quoted:
        line = next(line for line in page if line.startswith(f"| `{name}`:"))
        assert [cell.strip() for cell in line.split("|")][3:5] == [estimate, interval], name


def test_continuous_integration_runs_the_readmes_test_command() -> None:
    commands = re.findall(r"^python -m pip install.*$", README, re.MULTILINE)
    assert len(commands) == 2
    assert commands[1] in [line.strip() for line in (ROOT / ".ci/run").read_text().splitlines()]
