"""The end of a run: verdicts of all its cells, settled together, and the tables that are printed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from mae_bench.errors import BenchError
from mae_bench.pytest_plugin.harness import Harness

if TYPE_CHECKING:
    from mae_bench.comparison import Comparison
    from mae_bench.rows import CellResult


def said(report: pytest.TestReport, key: str) -> dict[str, Any]:
    said: dict[str, Any] = next((json.loads(str(value)) for name, value in report.user_properties if name == key), {})
    return said


class Gate:
    """Gathers verdicts, from this process or from workers, settles them when all have come, and prints tables."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.comparisons: dict[str, dict[str, Any]] = {}
        self.notes: dict[str, str] = {}
        self.claims: list[str] = []
        self.sections: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed and (claim := said(report, "mae_claim")):
            self.claims.append(claim["claim"])
        told = said(report, "mae_cell")
        if report.when == "call" and told:
            self.harness.began = True  # though the controller of workers may not know whose cells these are
            # a cell counts once, however many tests run it
            self.notes[told["cell"]] = self.notes.get(told["cell"]) or told["note"]
            if comparison := said(report, "mae_comparison"):
                self.comparisons[told["cell"]] = comparison

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        harness = self.harness
        failures = []
        try:
            harness.release_unless(None)
            if harness.began and (harness.run_path / "images.json").exists():
                failures = self._settle() + self._contradictions()
        except BenchError as error:
            failures = [str(error)]
        self.sections += [("mae_bench: failed", failure) for failure in failures]
        if failures and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for title, text in self.sections:
            terminalreporter.section(title)
            terminalreporter.write_line(text)

    def _settle(self) -> list[str]:
        """Merge the run, write and show its leaderboard, compare; the reasons why the run fails as a whole."""
        from mae_bench.baseline import in_continuous_integration
        from mae_bench.comparison import Comparison
        from mae_bench.executors.local import images_of, remove_scratch
        from mae_bench.leaderboard import Leaderboard
        from mae_bench.store import Outcomes, RunDirectory, of_one_setting, write_atomically

        harness = self.harness
        run = RunDirectory(harness.run_path)
        remove_scratch(run)
        images = images_of(run)
        assert images is not None
        stored = run.cells()
        run.merge_representations()
        results = of_one_setting(stored, self.notes)
        if not results:
            return []
        run.merge(*images, results)
        if len(results) < len(stored):
            left = f"{len(stored) - len(results)} cells in {run.path} were evaluated with other settings"
            self.sections.append(("mae_bench: left out", f"{left} and are in no table below"))
        board = Leaderboard.of([r.row for r in results], Outcomes.of(harness.suite.name, results, *images))
        write_atomically(run.path / "leaderboard.md", board.to_markdown().encode())
        self.sections.append(("mae_bench: leaderboard", f"{board.caption}\n\n{board.to_text()}\n\nResults: {run.path}"))
        if notes := [note for note in self.notes.values() if note]:
            self.sections.append(("mae_bench: not resumed", "\n".join(notes)))
        if harness.baseline_path is None:
            return []
        failures = []
        if harness.baseline is None and not harness.options["update-baseline"]:
            self.sections.append(("mae_bench: baseline", harness.how_to_make_a_baseline()))
            if in_continuous_integration():
                failures.append("where CI is set a missing baseline fails; --mae-baseline none runs without one")
        elif harness.baseline is not None:
            comparison = Comparison()
            for record in self.comparisons.values():
                comparison.extend(Comparison.from_dict(record))
            failures = self._compare(comparison, results, images[0])
        if harness.options["update-baseline"]:
            self.sections.append(("mae_bench: baseline updated", self._update(results, images)))
            return []
        return failures

    def _contradictions(self) -> list[str]:
        """How cells of this run contradict claims that a worker decided before another had evaluated the cells."""
        harness = self.harness
        if not self.claims or not harness.config.pluginmanager.has_plugin("dsession"):
            return []
        from mae_bench.claims import contradicted
        from mae_bench.contrasts import contrast_named
        from mae_bench.store import RunDirectory

        assert harness.baseline is not None
        run, rows = RunDirectory(harness.run_path), harness.baseline.rows
        asked = (contradicted(contrast_named(name), rows, harness.evidence, run, self.notes) for name in self.claims)
        return list(dict.fromkeys(words for words in asked if words is not None))

    def _compare(self, comparison: Comparison, results: list[CellResult], ids: list[str]) -> list[str]:
        from mae_bench.comparison import Comparison
        from mae_bench.store import cell_of

        baseline, rule = self.harness.baseline, self.harness.rule
        assert baseline is not None
        collected = {v.cell for v in comparison.verdicts} | {i.cell for i in comparison.incomparable}
        for result in results:
            if result.row.family == "clean" and cell_of(result.row).id not in collected:
                comparison.references += Comparison().add(result, ids, baseline, rule).verdicts
        self.sections.append((f"mae_bench: against {baseline.path}", comparison.to_text(rule)))
        failures = []
        if later := comparison.later(rule):
            failures.append(f"regressions by Holm's later steps: {', '.join(v.cell for v in later)}")
        if comparison.nothing_comparable:
            fields = ", ".join(sorted({i.field for i in comparison.incomparable}))
            failures.append(
                f"no cell is comparable with {baseline.path}: they differ in {fields}; run as the baseline was, "
                "name another with --mae-baseline DIR, or none"
            )
        if comparison.shifts and self.harness.options["gate-indicators"]:
            failures.append(f"{len(comparison.shifts)} indicators moved (--mae-gate-indicators)")
        return failures

    def _update(self, results: list[CellResult], images: tuple[list[str], Any, list[str]]) -> str:
        from mae_bench.baseline import Baseline, save, updated
        from mae_bench.leaderboard import Leaderboard, default_conditions
        from mae_bench.store import write_atomically

        harness = self.harness
        path = harness.baseline_path
        assert path is not None
        full = harness.options["full"]
        expected = {(r.row.model, r.row.family): default_conditions(r.row.family, harness.suite, full) for r in results}
        replacement, put_in, refused = updated(harness.baseline, path, results, expected, images)
        save(replacement)
        baseline = Baseline.load(path, harness.suite.name)  # as anyone will read it, to the digits on disk
        assert baseline is not None
        board = Leaderboard.of(baseline.rows.values(), baseline.outcomes)
        write_atomically(path / "leaderboard.md", board.to_markdown().encode())
        write_atomically(path / "leaderboard.csv", board.to_csv().encode())
        lines = [f"written to {path}: {', '.join(put_in)}", *(f"left as it was: {reason}" for reason in refused)]
        return "\n".join(lines)
