"""The end of a run: verdicts of all its cells, settled together, and the tables that are printed."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mae_bench.errors import BenchError
from mae_bench.pytest_plugin.harness import Harness

if TYPE_CHECKING:
    from mae_bench.comparison import Comparison
    from mae_bench.labelled_images import LabelledImages
    from mae_bench.leaderboard import Leaderboard
    from mae_bench.outcomes import Outcomes
    from mae_bench.regression import Verdict
    from mae_bench.rows import CellResult
    from mae_bench.store import RunDirectory


def said(report: pytest.TestReport, key: str) -> dict[str, Any]:
    said: dict[str, Any] = next((json.loads(str(value)) for name, value in report.user_properties if name == key), {})
    return said


def shown(path: Path) -> str:
    """``path`` as a terminal may be given it."""
    from mae_bench.markup import terminal_text

    return terminal_text(str(path))


class Gate:
    """Gathers verdicts, from this process or from workers, settles them when all have come, and prints tables."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.comparisons: dict[str, dict[str, Any]] = {}
        self.notes: dict[str, str] = {}
        self.redone: list[str] = []
        self.claims: list[str] = []
        self.sections: list[tuple[str, str]] = []
        self.passed: dict[str, list[pytest.TestReport]] = {}
        self.settled: tuple[RunDirectory, LabelledImages, list[CellResult], Leaderboard, Outcomes] | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed and (claim := said(report, "mae_claim")):
            self.claims.append(claim["claim"])
        if report.when == "call" and (note := said(report, "mae_representation").get("note")):
            self.redone.append(note)
        told = said(report, "mae_cell")
        if report.when == "call" and told:
            self.harness.began = True  # though the controller of workers may not know whose cells these are
            # a cell counts once, however many tests run it
            self.notes[told["cell"]] = self.notes.get(told["cell"]) or told["note"]
            if comparison := said(report, "mae_comparison"):
                self.comparisons[told["cell"]] = comparison
                if report.passed:
                    self.passed.setdefault(told["cell"], []).append(report)

    # before those who write down what failed: --lf, junit, the terminal
    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        harness = self.harness
        failures = []
        try:
            harness.release_unless(None)
            if harness.lost:
                failures = [harness.lost]
            elif harness.began and (harness.run_path / "images.json").exists():
                failures = self._settle(session) + self._contradictions()
        except BenchError as error:
            failures = [str(error)]
        try:
            self._report()
        except BenchError as error:
            failures.append(str(error))
        self.sections += [("mae_bench: failed", failure) for failure in failures]
        if failures and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for title, text in self.sections:
            terminalreporter.section(title)
            terminalreporter.write_line(text)

    def pytest_unconfigure(self) -> None:
        """When workers have ended too, let go of what only a running session needs."""
        self.harness.end()

    def _settle(self, session: pytest.Session) -> list[str]:
        """Merge the run, write and show its leaderboard, compare; the reasons why the run fails as a whole."""
        from mae_bench.comparison import Comparison
        from mae_bench.history import in_continuous_integration
        from mae_bench.results import Results
        from mae_bench.store import RunDirectory, of_one_setting
        from mae_bench.tables import write_representation_table

        harness = self.harness
        run = RunDirectory(harness.run_path)
        images = run.images()
        assert images is not None
        self._tell_how_to_go_on(run)
        self._tell_of_copies(run, images.ids)
        stored = run.cells()
        write_representation_table(run)
        results = of_one_setting(stored, self.notes)
        if not results:
            return []
        found = Results(results, images, {})
        found.write_tables(run)
        if len(results) < len(stored):
            left = f"{len(stored) - len(results)} cells in {harness.place} were evaluated with other settings"
            self.sections.append(("mae_bench: left out", f"{left} and are in no table below"))
        board, outcomes = found.leaderboard, found.outcomes
        self.settled = (run, images, results, board, outcomes)
        self.sections.append(
            ("mae_bench: leaderboard", f"{board.caption}\n\n{board.to_text()}\n\nResults: {harness.place}")
        )
        if notes := [*filter(None, self.notes.values()), *self.redone]:
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
            for _, record in sorted(self.comparisons.items()):  # whichever worker ended first
                comparison.extend(Comparison.from_dict(record))
            failures = self._compare(comparison, results, images.ids, session)
        if harness.options["update-baseline"]:
            self.sections.append(("mae_bench: baseline updated", self._update(run, results, images)))
            return []
        return failures

    def _report(self) -> None:
        """Write the page of what was settled."""
        if self.settled is None or self.harness.options["report"] == "none":
            return
        from mae_bench.report import REPORT
        from mae_bench.report.contents import Contents
        from mae_bench.report.page import write_report

        contents = Contents.around(*self.settled)
        write_report(contents, self.harness.run_path / REPORT, self.harness.options["data"])
        self.sections.append(("mae_bench: report", f"{self.harness.place}/{REPORT}"))

    def _tell_of_copies(self, run: RunDirectory, ids: list[str]) -> None:
        """Warn of images that are the same, or nearly the same, to some model."""
        models = run.models().values()
        copies = sorted({tuple(pair) for model in models for pair in model.get("copies", [])})
        alike = sorted({tuple(pair) for model in models for pair in model.get("alike", [])})
        for pairs, what in (
            (copies, "images are copies of others, by file or by pixels, and have no vote of their own"),
            (alike, "pairs of images look the same and are not; both vote"),
        ):
            if pairs:
                named = "; ".join(f"{ids[one]} and {ids[other]}" for one, other in pairs[:3])
                self.sections.append(("mae_bench: copies", f"{len(pairs)} {what}, such as {named}"))

    def _tell_how_to_go_on(self, run: RunDirectory) -> None:
        """Where planned cells have no result, say how many, and the command that gives them one."""
        unfinished, plan = run.unfinished(), run.plan()
        if plan is None or not unfinished:
            return
        counts = [
            f"{len(left)} of {len(planned)} {what}"
            for left, planned, what in (
                (unfinished.cells, plan.cells, "cells"),
                (unfinished.representations, plan.representations, "representations"),
            )
            if left
        ]
        given = list(self.harness.config.invocation_params.args)
        more = [] if self.harness.options["run"] else ["--mae-run", str(run.path)]
        more += [] if self.harness.options["resume"] else ["--mae-resume"]
        command = shlex.join(["pytest", *map(str, given), *more])
        text = f"{' and '.join(counts)} have no result. What is finished is kept; go on with\n\n    {command}"
        self.sections.append(("mae_bench: not finished", text))

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

    def _compare(
        self, comparison: Comparison, results: list[CellResult], ids: list[str], session: pytest.Session
    ) -> list[str]:
        """Say how the run compares, have the cells fail that only Holm's later steps find, and give the reasons why it
        fails as a whole.
        """
        from mae_bench.comparison import COMPARISON, Comparison
        from mae_bench.store import RunDirectory, cell_of, write_atomically

        harness = self.harness
        baseline, rule = harness.baseline, harness.rule
        assert baseline is not None
        collected = {v.cell for v in comparison.verdicts} | {i.cell for i in comparison.incomparable}
        for result in results:
            if result.row.family == "clean" and cell_of(result.row).id not in collected:
                comparison.references += Comparison().add(result, ids, baseline, rule).verdicts
        strict, gated = harness.options["strict"], harness.options["gate-indicators"]
        run = RunDirectory(harness.run_path)
        write_atomically(run.path / COMPARISON, json.dumps(comparison.to_dict()).encode())
        differs = [asdict(one) for one in comparison.differences]
        run.write_manifest((run.manifest() or {}) | {"baseline": {"path": str(baseline.path), "differs": differs}})
        self.sections.append((f"mae_bench: against {shown(baseline.path)}", comparison.to_text(rule)))
        if harness.options["update-baseline"]:
            return []
        markdown = comparison.to_markdown(rule, strict, gated)
        write_atomically(run.path / "comparison.md", markdown.encode())
        if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
            self._append(Path(summary), f"## {harness.suite.name} against its baseline\n\n{markdown}\n")
        failures = comparison.failures(rule, strict, gated)
        for one in failures.later:
            self._fail_later(one, session)
        if failures.later and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return failures.reasons

    def _fail_later(self, verdict: Verdict, session: pytest.Session) -> None:
        """Report that a test which had passed fails after all, so that --lf, junit and the terminal say so too."""
        from mae_bench.comparison import failure_text

        terminal: Any = session.config.pluginmanager.getplugin("terminalreporter")
        for before in self.passed.get(verdict.cell, []):
            if terminal is not None and before in terminal.stats.get("passed", []):
                terminal.stats["passed"].remove(before)
            report = pytest.TestReport(
                before.nodeid,
                before.location,
                before.keywords,
                "failed",
                failure_text([verdict], [verdict]),
                "call",
                user_properties=before.user_properties,
            )
            session.config.hook.pytest_runtest_logreport(report=report)

    def _append(self, path: Path, text: str) -> None:
        try:
            with path.open("a") as file:
                file.write(text)
        except OSError as error:
            raise BenchError(f"{path}, which GITHUB_STEP_SUMMARY names, cannot be written to ({error})") from error

    def _update(self, run: RunDirectory, results: list[CellResult], images: LabelledImages) -> str:
        from mae_bench.baseline import Baseline, change_table, changes, save, updated
        from mae_bench.history import locked
        from mae_bench.leaderboard import Leaderboard, default_conditions
        from mae_bench.store import write_together

        harness = self.harness
        path, reason = harness.baseline_path, harness.options["reason"] or ""
        assert path is not None
        full = harness.options["full"]
        expected = {(r.row.model, r.row.family): default_conditions(r.row.family, harness.suite, full) for r in results}
        with locked(path):  # another update may have come first
            before = Baseline.load(path, harness.suite.name)
            replacement, put_in, refused = updated(before, path, results, expected, images)
            save(replacement, put_in, reason, run.run_id, harness.root(harness.config), run.path)
            after = Baseline.load(path, harness.suite.name)  # as anyone will read it, to the digits on disk
            assert after is not None
            board = Leaderboard.of(after.rows.values(), after.outcomes)
            pages = {"leaderboard.md": board.to_markdown(), "leaderboard.csv": board.to_csv()}
            write_together({path / name: page.encode() for name, page in pages.items()})
        lines = [f"written to {shown(path)}: {', '.join(put_in)}", *(f"left as it was: {reason}" for reason in refused)]
        return "\n\n".join(["\n".join(lines), change_table(changes(before, after))])
