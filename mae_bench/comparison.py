"""A run against its baseline: the verdicts of all its cells together, what they amount to, and their tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mae_bench.baseline import Baseline, Incomparable
from mae_bench.cells import Cell
from mae_bench.evaluate import CellResult
from mae_bench.regression import Rule, Shift, Verdict, holm_additions
from mae_bench.statistics import detectable_drop


@dataclass
class Comparison:
    """Outcomes of comparing cells. ``verdicts`` are of collected cells, ``references`` of clean cells that ran only
    because others needed them: listed, never judged.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    references: list[Verdict] = field(default_factory=list)
    incomparable: list[Incomparable] = field(default_factory=list)
    shifts: list[Shift] = field(default_factory=list)

    def add(self, result: CellResult, ids: Sequence[str], baseline: Baseline, rule: Rule) -> Comparison:
        """Compare ``result`` and keep the outcome; what was added is returned on its own."""
        outcome = baseline.compare(result, ids, rule)
        judged = isinstance(outcome, Verdict)
        added = Comparison(
            verdicts=[outcome] if isinstance(outcome, Verdict) else [],
            incomparable=[outcome] if isinstance(outcome, Incomparable) else [],
            shifts=baseline.shifts(result) if judged else [],
        )
        self.extend(added)
        return added

    def extend(self, other: Comparison) -> None:
        self.verdicts += other.verdicts
        self.references += other.references
        self.incomparable += other.incomparable
        self.shifts += other.shifts

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Comparison:
        return cls(
            [Verdict(**v) for v in record["verdicts"]],
            [Verdict(**v) for v in record["references"]],
            [Incomparable(**i) for i in record["incomparable"]],
            [Shift(**s) for s in record["shifts"]],
        )

    def later(self, rule: Rule) -> list[Verdict]:
        """Regressions that only Holm's later steps find, once the whole run is known."""
        return holm_additions(self.verdicts, rule)

    @property
    def nothing_comparable(self) -> bool:
        """Whether cells stand in the baseline, yet not one could be compared."""
        return not self.verdicts and any(not cell.new for cell in self.incomparable)

    def to_text(self, rule: Rule) -> str:
        """What the terminal shows: counts, cells that are not plainly fine, what could not be compared."""
        from tabulate import tabulate

        counts = [
            f"{sum(v.judgement == name for v in self.verdicts)} {name}"
            for name in ("unchanged", "pass", "inconclusive", "regression")
        ]
        parts = [", ".join(counts)]
        later = self.later(rule)
        shown = [v for v in self.verdicts if v.judgement in ("regression", "inconclusive") or v in later]
        changed = sorted({Cell.parse(v.cell).model for v in self.verdicts + self.references if v.note})
        if changed:
            parts.append(f"Other weights than the baseline's under the same name: {', '.join(changed)}.")
        if shown or any(v.judgement != "unchanged" for v in self.references):
            parts.append(verdict_table([*shown, *self.references], later, self.references))
        if later:
            parts.append(
                f"{len(later)} of these are regressions by Holm's later steps over the baseline's {rule.cells} cells."
            )
        if len(self.verdicts) < rule.cells:
            parts.append(
                f"{len(self.verdicts)} of the {rule.cells} cells that the baseline holds of these models were judged; "
                "Holm's later steps wait for the others."
            )
        if self.verdicts:
            parts.append(self._planning(rule))
        new = [i for i in self.incomparable if i.new]
        other = [i for i in self.incomparable if not i.new]
        if new:
            names = {what: sorted({i.here for i in new if i.field == what}) for what in ("model", "degradation")}
            listing = "; ".join(f"{what} {', '.join(found)}" for what, found in names.items() if found)
            parts.append(f"{len(new)} cells are new, the baseline lacks them: {listing}.")
        if other:
            lines = [(i.cell, i.field, i.here, i.there) for i in other]
            table = tabulate(
                lines[:20], headers=["not comparable", "differs in", "here", "baseline"], disable_numparse=True
            )
            more = f"\n... and {len(lines) - 20} more" if len(lines) > 20 else ""
            parts.append(table + more)
        if self.shifts:
            shifts = [
                (s.cell, s.indicator, f"{s.difference:+.3f}", f"[{s.low:+.3f}, {s.high:+.3f}]") for s in self.shifts
            ]
            table = tabulate(shifts, headers=["look here", "indicator", "change", "95 %"], disable_numparse=True)
            parts.append(table)
        return "\n\n".join(parts)

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


def verdict_table(
    verdicts: Iterable[Verdict], later: Sequence[Verdict] = (), references: Sequence[Verdict] = ()
) -> str:
    """Cell, before, after, images lost and gained, p-value and verdict, one line per cell."""
    from tabulate import tabulate

    lines = []
    for v in verdicts:
        judgement = "reference" if v in references else "regression (Holm)" if v in later else v.judgement
        lines.append(
            [
                v.cell,
                f"{100 * v.before:.2f} %",
                f"{100 * v.after:.2f} %",
                f"{100 * (v.after - v.before):+.2f}",
                f"{v.lost} of {v.images}",
                f"{v.gained}",
                f"{v.p_value:.2g}",
                f"{judgement} ({v.note})" if v.note else judgement,
            ]
        )
    header = ["cell", "before", "after", "points", "lost", "gained", "p", "verdict"]
    return tabulate(lines, headers=header, disable_numparse=True)
