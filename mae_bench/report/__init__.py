"""The page of a run: one file that answers which model to trust, where each breaks, and whether today's change is real.

:func:`write_report` puts it beside the leaderboard of a run. It asks the network for nothing: scripts, styles, charts
and pictures are in it. Without a script every table and every chart is there; with it tables are sorted and searched,
and charts say what is under the pointer.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mae_bench.errors import BenchError

REPORT = "report.html"


class ReportError(BenchError):
    """A report that cannot be made."""


def write_report(
    run: Path, out: Path | None = None, data: Path | None = None, cells: Collection[str] | None = None
) -> Path:
    """Write the report of the run directory ``run`` to ``out``, by default into it. ``data`` is where the images of the
    suite lie, by default where they lay when it ran. Cells that were evaluated otherwise than ``cells``, by default the
    first, are left out.

    Raises:
        ReportError: no cell of the run is finished.
        StoreError: a file of the run is damaged, or the report cannot be written.
    """
    from mae_bench.report.contents import Contents
    from mae_bench.report.page import page
    from mae_bench.report.pictures import Pictures
    from mae_bench.store import RunDirectory, write_atomically

    contents = Contents.of(RunDirectory(run), cells)
    place = out or run / REPORT
    write_atomically(place, page(contents, Pictures.of(contents, data)).encode())
    return place
