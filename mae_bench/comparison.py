"""A run against its baseline: the verdicts of all its cells together, what they amount to, and their tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

import numpy as np

from mae_bench.baseline import Baseline, Incomparable
from mae_bench.cells import Cell
from mae_bench.markup import markdown_text, terminal_text
from mae_bench.regression import Judgement, Rule, Shift, Verdict, certain_shifts, holm_additions
from mae_bench.rows import CellResult
from mae_bench.statistics import detectable_drop

COMPARISON = "comparison.json"
"""What a run keeps of its comparison, for its report."""
MOST_LINES = 100
"""Lines of a table in Markdown, so that a page stays within what a job's summary may hold."""


@dataclass(frozen=True)
class Difference:
    """What was known or done otherwise where the baseline was made: a field of rows, its value here and there."""

    field: str
    here: str
    there: str


@dataclass(frozen=True)
class Failures:
    """What fails: ``cells`` in their own tests, ``later`` once all are known, by Holm's later steps, and the run as a
    whole for ``reasons`` that are no cell's.
    """

    cells: list[Verdict]
    later: list[Verdict]
    reasons: list[str]

    def __bool__(self) -> bool:
        return bool(self.cells or self.later or self.reasons)


@dataclass
class Comparison:
    """Outcomes of comparing cells. ``verdicts`` are of collected cells, ``references`` of clean cells that ran only
    because others needed them: listed, never judged. ``family`` is how many cells the rule counted by which they were
    judged: whoever puts together what workers did may know fewer models than they.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    references: list[Verdict] = field(default_factory=list)
    incomparable: list[Incomparable] = field(default_factory=list)
    shifts: list[Shift] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    family: int = 0

    def add(
        self,
        result: CellResult,
        ids: Sequence[str],
        baseline: Baseline,
        rule: Rule,
        duplicate_of: np.ndarray | None = None,
    ) -> Comparison:
        """Compare ``result`` and keep the outcome; what was added is returned on its own. ``duplicate_of`` tells which
        of its images are copies, as in :meth:`mae_bench.baseline.Baseline.compare`.
        """
        outcome = baseline.compare(result, ids, rule, duplicate_of)
        if isinstance(outcome, Incomparable):
            added = Comparison(incomparable=[outcome], family=rule.cells)
        else:
            differing = baseline.differing(result.row).items()
            added = Comparison(
                verdicts=[outcome],
                shifts=baseline.shifts(result),
                differences=[Difference(name, here, there) for name, (here, there) in differing],
                family=rule.cells,
            )
        self.extend(added)
        return added

    def extend(self, other: Comparison) -> None:
        self.verdicts += other.verdicts
        self.references += other.references
        self.incomparable += other.incomparable
        self.shifts += other.shifts
        self.differences += [one for one in other.differences if one not in self.differences]
        self.family = max(self.family, other.family)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Comparison:
        return cls(
            [Verdict(**v) for v in record["verdicts"]],
            [Verdict(**v) for v in record["references"]],
            [Incomparable(**i) for i in record["incomparable"]],
            [Shift(**s) for s in record["shifts"]],
            [Difference(**d) for d in record["differences"]],
            record["family"],
        )

    # ----------------------------------------------------------------------- what it amounts to

    def failures(self, rule: Rule, strict: bool = False, gate_indicators: bool = False) -> Failures:
        """What fails by ``rule``; with ``strict`` inconclusive cells too, and with ``gate_indicators`` indicators that
        moved beyond the floor when all of the family are tested together.
        """
        failing: set[Judgement] = {"regression", "determinism fault"}
        if strict:
            failing.add("inconclusive")
        cells = [v for v in self.verdicts if v.judgement in failing]
        reasons = []
        if self.nothing_comparable:
            fields = ", ".join(sorted({i.field for i in self.incomparable if not i.new}))
            reasons.append(
                f"no cell is comparable with the baseline: they differ in {fields}; run as the baseline was, "
                "name another with --mae-baseline DIR, or none"
            )
        if gate_indicators and (moved := certain_shifts(self.shifts, self._whole(rule))):
            where = ", ".join(dict.fromkeys(s.cell for s in moved))
            reasons.append(f"{_counted(len(moved), 'indicator')} moved (--mae-gate-indicators) in {where}")
        return Failures(cells, [v for v in self.later(rule) if v not in cells], reasons)

    def later(self, rule: Rule) -> list[Verdict]:
        """Regressions that only Holm's later steps find, once the whole run is known."""
        return holm_additions(self.verdicts, self._whole(rule))

    @property
    def nothing_comparable(self) -> bool:
        """Whether cells stand in the baseline, yet not one could be compared."""
        return not self.verdicts and any(not cell.new for cell in self.incomparable)

    def _whole(self, rule: Rule) -> Rule:
        """``rule`` with the family in which the cells were judged."""
        return replace(rule, cells=max(rule.cells, self.family))

    # ----------------------------------------------------------------------- what is said of it

    def to_text(self, rule: Rule) -> str:
        """What the terminal shows: counts, cells that are not plainly fine, what could not be compared."""
        later = self.later(rule)
        faults = self._judged("determinism fault")
        shown = [v for v in self.verdicts if v.judgement not in ("unchanged", "pass") or v in later]
        parts = [self._counts()]
        parts += [terminal_text(sentence) for sentence in self._remarks()]
        if shown or any(v.judgement != "unchanged" for v in self.references):
            parts.append(verdict_table([*shown, *self.references], later, self.references))
        if faults:
            parts.append(remedy(faults))
        if later:
            parts.append(f"{len(later)} of these are regressions by {self._holm(rule)}.")
        parts += [terminal_text(sentence) for sentence in self._limits(rule)]
        other = [i for i in self.incomparable if not i.new]
        if other:
            more = f"\n... and {len(other) - 20} more" if len(other) > 20 else ""
            parts.append(_incomparable_table(other[:20]) + more)
        if self.shifts:
            parts.append(self._shift_table(rule))
        return "\n\n".join(parts)

    def to_markdown(self, rule: Rule, strict: bool = False, gate_indicators: bool = False) -> str:
        """What a job's summary shows: whether something failed and what, with every name as it is written.

        Tables end after :data:`MOST_LINES` lines; of regressions the largest drops come first.
        """
        later = self.later(rule)
        faults = self._judged("determinism fault")
        regressions = sorted([*self._judged("regression"), *later], key=lambda v: -v.drop)
        inconclusive = [v for v in self._judged("inconclusive") if v not in later]
        other = [i for i in self.incomparable if not i.new]
        changed = [v for v in self.references if v.judgement != "unchanged"]
        sentences = self._remarks() + self._limits(rule)
        parts = [f"**{self._headline(self.failures(rule, strict, gate_indicators), regressions)}**", self._counts()]
        parts += [markdown_text(sentence) for sentence in sentences]
        for title, cells in (
            ("Regressions", regressions),
            ("Determinism faults", faults),
            ("Inconclusive", inconclusive),
            ("Listed as references, not judged", changed),
        ):
            if cells:
                table = verdict_table(cells[:MOST_LINES], later, changed, markdown=True)
                parts += [f"### {title}", table + _rest(cells)]
                parts += [remedy(faults)] if cells is faults else []
                parts += [f"{len(later)} of these by {self._holm(rule)}."] if cells is regressions and later else []
        if other:
            parts += ["### Not comparable", _incomparable_table(other[:MOST_LINES], markdown=True) + _rest(other)]
        if self.shifts:
            title = f"<summary>Look here: {_counted(len(self.shifts), 'indicator')} moved</summary>"
            table = self._shift_table(rule, markdown=True) + _rest(self.shifts)
            parts.append(f"<details>\n{title}\n\n{table}\n\n</details>")
        return "\n\n".join(parts) + "\n"

    def _judged(self, judgement: Judgement) -> list[Verdict]:
        return [v for v in self.verdicts if v.judgement == judgement]

    def _headline(self, failures: Failures, regressions: Sequence[Verdict]) -> str:
        """Whether the comparison fails the run, and for what."""
        if not failures:
            return "Passed: no regression" if self.verdicts else "No cell was compared"
        inconclusive = [v for v in failures.cells if v.judgement == "inconclusive" and v not in regressions]
        found = [
            (len(regressions), "regression"),
            (len(self._judged("determinism fault")), "determinism fault"),
            (len(inconclusive), "inconclusive cell"),
        ]
        said = [_counted(count, noun) for count, noun in found if count]
        return "Failed: " + "; ".join(said + [markdown_text(reason) for reason in failures.reasons])

    def _counts(self) -> str:
        """How many cells have each judgement; faults are named where there are some."""
        counts = {name: len(self._judged(name)) for name in get_args(Judgement)}
        return ", ".join(f"{n} {name}" for name, n in counts.items() if n or name != "determinism fault")

    def _holm(self, rule: Rule) -> str:
        return f"Holm's later steps over the baseline's {self._whole(rule).cells} cells"

    def _remarks(self) -> list[str]:
        """In what this run is another than the baseline's, in sentences."""
        remarks = []
        changed = sorted({Cell.parse(v.cell).model for v in self.verdicts + self.references if v.note})
        if changed:
            remarks.append(f"Other weights than the baseline's under the same name: {', '.join(changed)}.")
        if self.differences:
            words = "; ".join(f"{d.field} {d.here} (baseline: {d.there})" for d in self.differences)
            remarks.append(
                f"Computed otherwise than the baseline: {words}. Differences are tested, not expected to be none."
            )
        return remarks

    def _limits(self, rule: Rule) -> list[str]:
        """What was not judged, and what could not have been seen, in sentences."""
        limits, rule = [], self._whole(rule)
        if len(self.verdicts) < rule.cells:
            limits.append(
                f"{len(self.verdicts)} of the {rule.cells} cells that the baseline holds of these models were judged; "
                "Holm's later steps wait for the others."
            )
        if self.verdicts:
            limits.append(self._planning(rule))
        new = [i for i in self.incomparable if i.new]
        if new:
            names = {what: sorted({i.here for i in new if i.field == what}) for what in ("model", "degradation")}
            listing = "; ".join(f"{what} {', '.join(found)}" for what, found in names.items() if found)
            limits.append(f"{len(new)} cells are new, the baseline lacks them: {listing}.")
        return limits

    def _planning(self, rule: Rule) -> str:
        """The smallest drop that this many images can show, for planning; it decides nothing."""
        images = max(v.images for v in self.verdicts)
        changed = [(v.lost + v.gained) / v.images for v in self.verdicts]
        discordance = max(0.02, sum(changed) / len(changed))
        drop = detectable_drop(images, discordance, rule.alpha / rule.cells)
        what = "none" if drop is None else f"{100 * drop:.1f} points"
        return (
            f"Smallest drop that {images:,} images show with 80 % power where {100 * discordance:.0f} % of outcomes "
            f"change: {what}."
        )

    def _shift_table(self, rule: Rule, markdown: bool = False) -> str:
        """Indicators that moved; their p-value is over all indicators of the family."""
        cells, shown = self._whole(rule).cells, _shown(markdown)
        lines = [
            (
                shown(s.cell),
                shown(s.indicator),
                f"{s.difference:+.3f}",
                f"[{s.low:+.3f}, {s.high:+.3f}]",
                f"{min(1.0, s.p_value * cells):.2g}",
            )
            for s in self.shifts[: MOST_LINES if markdown else None]
        ]
        return _table(lines, ["look here", "indicator", "change", "95 %", "p over all"], markdown)


def remedy(faults: Sequence[Verdict]) -> str:
    """What to do about determinism faults."""
    changed = _counted(sum(v.changed for v in faults), "prediction")
    return (
        f"Same weights, machine and libraries, yet {changed} in {_counted(len(faults), 'cell')} changed: either the "
        "model or a degradation is not deterministic, or its code changed. Find it, or update the baseline."
    )


def failure_text(verdicts: Sequence[Verdict], later: Sequence[Verdict] = ()) -> str:
    """What a failing test shows: the table of its cells, and what to do about faults."""
    faults = [v for v in verdicts if v.judgement == "determinism fault"]
    return "\n\n".join([verdict_table(verdicts, later), *([remedy(faults)] if faults else [])])


def verdict_table(
    verdicts: Iterable[Verdict],
    later: Sequence[Verdict] = (),
    references: Sequence[Verdict] = (),
    markdown: bool = False,
) -> str:
    """Cell, before, after, images lost and gained, p-value and verdict, one line per cell."""
    shown = _shown(markdown)
    lines = []
    for v in verdicts:
        judgement = "reference" if v in references else "regression (Holm)" if v in later else v.judgement
        fault = v.judgement == "determinism fault"
        notes = [f"{_counted(v.changed, 'prediction')} changed"] * fault + [v.note] * bool(v.note)
        lines.append(
            [
                shown(v.cell),
                f"{100 * v.before:.2f} %",
                f"{100 * v.after:.2f} %",
                f"{100 * (v.after - v.before):+.2f}",
                f"{v.lost} of {v.images}",
                f"{v.gained}",
                "-" if fault else f"{v.p_value:.2g}",
                f"{judgement} ({shown(', '.join(notes))})" if notes else judgement,
            ]
        )
    return _table(lines, ["cell", "before", "after", "points", "lost", "gained", "p", "verdict"], markdown)


def _incomparable_table(cells: Iterable[Incomparable], markdown: bool = False) -> str:
    shown = _shown(markdown)
    lines = [[shown(text) for text in (i.cell, i.field, i.here, i.there)] for i in cells]
    return _table(lines, ["not comparable", "differs in", "here", "baseline"], markdown)


def _table(lines: Sequence[Sequence[str]], headers: Sequence[str], markdown: bool) -> str:
    from tabulate import tabulate

    return tabulate(lines, headers=headers, tablefmt="github" if markdown else "simple", disable_numparse=True)


def _shown(markdown: bool) -> Callable[[str], str]:
    """How a name is written so that it is seen and does nothing."""
    return markdown_text if markdown else terminal_text


def _rest(lines: Sequence[object]) -> str:
    return f"\n\n... and {len(lines) - MOST_LINES} more" if len(lines) > MOST_LINES else ""


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + "s" * (count != 1)
