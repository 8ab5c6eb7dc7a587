"""A record as a page that people read: each figure beside its goal, then every measurement by section."""

from __future__ import annotations

from tabulate import tabulate

from mae_bench.markup import markdown_text
from mae_bench.perf.goals import GOALS, Goal
from mae_bench.perf.measurement import PREDICTIONS, RATE, Findings, Measurement
from mae_bench.perf.record import Record

TITLES = {
    "degradations": (
        "Degradations of pixels",
        "Images per second on one thread; in brackets how many times as fast mae_bench is as a peer, or how many times "
        "as long as a copy of the batch it takes.",
    ),
    "corruptions": (
        "The 15 corruptions of ImageNet-C",
        "At severity 3 on images of 224 pixels; in brackets how many times as fast mae_bench is.",
    ),
    "engine": (
        "A cell beside the forward pass",
        "The same images in the same batches; in brackets multiples of the time of the pure forward pass, the network "
        "alone on batches that lie ready.",
    ),
    "options": (
        "Options of the forward pass",
        "Predictions that differ from those in float32, and in brackets multiples of the time of a cell in float32.",
    ),
    "harness": ("The harness", "What a cell costs beside its images."),
    "collection": ("Collection", "Of a matrix by pytest."),
    "memory": (
        "Resident memory",
        "By the number of images that are evaluated; of the bundled model where none is named.",
    ),
    "workers": ("Two workers", "Of pytest-xdist against one."),
}


def page(record: Record, chart: str | None = None, no_chart: str = "") -> str:
    """Markdown of ``record``; ``chart`` is the file name of its picture, or ``no_chart`` says why there is none."""
    libraries = ", ".join(f"{name} {known}" for name, known in record.versions.items())
    quick = " This was a quick run: small, and no more than a sign of life." if record.quick else ""
    clock = "CUDA events" if record.device == "cuda" else "processor time on one thread"
    picture = f"![ratios beside the goals]({chart})" if chart else markdown_text(no_chart)
    parts = [
        f"# Performance on {markdown_text(record.machine)}",
        f"Made by `mae-bench perf --device {record.device}`: medians of {record.rounds} interleaved rounds by {clock}, "
        "with their noise bands: the exact 90 % interval of a median, which of up to seven rounds reaches from the "
        f"least to the greatest.{quick}",
        f"{markdown_text(libraries)}; {record.cores} cores, load {record.load:.1f} when it began.",
        f"## Goals\n\n{goals_table(record)}",
        reasons(record),
        picture,
        *(_section(name, findings) for name, findings in record.sections.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def goals_table(record: Record) -> str:
    """Every goal of the record's kind of device: the figure on which it is decided, and the verdict."""
    lines = []
    for key, goal in GOALS.items():
        if goal.on != record.device:
            continue
        measured = [measurement for measurement in record.measurements if measurement.goal == key]
        if not measured:
            lines.append((goal.figure, bound(goal), "-", "not measured"))
            continue
        worst = goal.worst(measured)
        value = f"{number(worst.value)}{_band(worst)}" if goal.bound else ("yes" if worst.value else "no")
        lines.append((goal.figure, bound(goal), _unit(value, worst), goal.verdict(worst)))
    return tabulate(lines, headers=["figure", "goal", "measured", ""], tablefmt="github", disable_numparse=True)


def reasons(record: Record) -> str:
    """What is known to stand in the way of each goal that is missed."""
    lines = []
    for key, goal in GOALS.items():
        measured = [measurement for measurement in record.measurements if measurement.goal == key]
        if goal.why and measured and not goal.is_met(goal.worst(measured).value):
            lines.append(f"* {goal.figure}: {goal.why}")
    return "What is missed, and what stands in the way:\n\n" + "\n".join(lines) if lines else ""


def bound(goal: Goal) -> str:
    """The goal's bound in words.

    >>> bound(Goal("", "", 1.8, at_least=True)), bound(Goal("", "", 3, unit="s"))
    ('at least 1.8', 'at most 3 s')
    """
    if not goal.bound:
        return "no"
    return f"at {'least' if goal.at_least else 'most'} {goal.bound:g} {goal.unit}".strip()


def number(value: float) -> str:
    """Three or four digits, and no more than anybody can have measured.

    >>> number(1.0349), number(12.345), number(0.0412), number(15234.5)
    ('1.035', '12.3', '0.0412', '15,234')
    """
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.3f}" if value >= 1 else f"{value:.3g}"


def _band(measurement: Measurement) -> str:
    if measurement.low == measurement.high:
        return ""
    return f" ({number(measurement.low)} to {number(measurement.high)})"


def _unit(value: str, measurement: Measurement) -> str:
    return f"{value} {measurement.unit}" if measurement.unit in ("s", "ms", "MB") else value


def _section(name: str, findings: Findings) -> str:
    title, legend = TITLES[name]
    parts = [f"## {title}", legend]
    cases = list(dict.fromkeys(measurement.case for measurement in findings.measurements))
    # a table for cases that have the same subjects in common
    tables: dict[tuple[str, ...], list[str]] = {}
    for case in cases:
        subjects = tuple(dict.fromkeys(m.subject for m in findings.measurements if m.case == case))
        tables.setdefault(subjects, []).append(case)
    for subjects, rows in tables.items():
        by_subject = name == "engine"  # few cases of many loops
        lines, columns = (subjects, rows) if by_subject else (rows, subjects)
        body = [
            (
                markdown_text(line),
                *(_cell(findings, *((column, line) if by_subject else (line, column))) for column in columns),
            )
            for line in lines
        ]
        headers = ["", *map(markdown_text, columns)]
        parts.append(tabulate(body, headers=headers, tablefmt="github", disable_numparse=True))
    if findings.notes:
        parts.append("\n".join(f"* {markdown_text(note)}" for note in findings.notes))
    return "\n\n".join(parts)


def _cell(findings: Findings, case: str, subject: str) -> str:
    """What was measured of a subject in a case: the amount, and the ratio in brackets behind it."""
    here = [m for m in findings.measurements if (m.case, m.subject) == (case, subject)]
    return " ".join(map(_text, sorted(here, key=lambda measurement: measurement.is_ratio)))


def _text(measurement: Measurement) -> str:
    if measurement.unit == RATE:
        return f"{number(measurement.value)} {measurement.method}".strip()
    if measurement.unit == PREDICTIONS:
        return f"{measurement.value:,.0f} changed"
    if measurement.unit == "modules":
        return "imported" if measurement.value else "not imported"
    if measurement.is_ratio:
        low, high = number(measurement.low), number(measurement.high)
        return f"[{number(measurement.value)}, {low} to {high}]"
    return _unit(f"{number(measurement.value)}{_band(measurement)}", measurement)
