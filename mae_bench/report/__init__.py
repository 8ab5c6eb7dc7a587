"""The page of a run: one file that answers which model to trust, where each breaks, and whether today's change is real.

:func:`mae_bench.report.page.write_report` puts it beside the leaderboard of a run. It asks the network for nothing:
scripts, styles, charts and pictures are in it. Without a script every table and every chart is there; with it tables
are sorted and searched, and charts say what is under the pointer.
"""

from __future__ import annotations

from mae_bench.errors import BenchError

REPORT = "report.html"


class ReportError(BenchError):
    """A report that cannot be made."""
