"""Measure contenders in turn on the same data; medians, ratios and memory side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.child import Apart
from benchmarks.task import Bench, Figures


@dataclass(frozen=True)
class Job:
    """One contender in a question: a function `module:name` that makes its task, and its words.

    Attributes
    ----------
    work : what a run does, in the question's unit; times are compared for the same work.
    copy : name of the job that is the plain copy to compare with.
    """

    name: str
    call: str
    words: Mapping[str, Any]
    work: float
    copy: str = ""


@dataclass(frozen=True)
class Question:
    """A table: its title, its contenders, the unit of their work; all times relative to `base`."""

    title: str
    jobs: Sequence[Job]
    unit: str = "visits"
    threads: int = 1
    runs: int = 3
    base: str = "volpatch"
    series: str = ""  # of questions that differ in size only
    size: float = 0


@dataclass(frozen=True)
class How:
    """Ways to measure, for all questions."""

    apart: bool = True  # every contender in a process of its own, warmed up
    runs: int | None = None
    limit: float | None = 600.0  # seconds, for one run


@dataclass
class Row:
    """What was measured of one contender, or why nothing was."""

    name: str
    work: float
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: float = 0.0
    before: float = 0.0
    figures: Figures = field(default_factory=dict)
    why_not: str = ""

    @property
    def done(self) -> bool:
        return bool(self.seconds) and not self.why_not

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def median_cpu(self) -> float:
        return statistics.median(self.cpu)

    def add(self, told: Figures) -> None:
        self.seconds.append(float(told["seconds"]))
        self.cpu.append(float(told["cpu"]))
        self.peak = max(self.peak, float(told["peak"]))
        self.before = float(told["before"])


@dataclass
class Table:
    """The answer to a question."""

    title: str
    unit: str
    base: str
    rows: list[Row]
    copies: dict[str, str]
    series: str = ""
    size: float = 0

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Table:
        return cls(**{**told, "rows": [Row(**row) for row in told["rows"]]})

    def row(self, name: str) -> Row | None:
        return next((r for r in self.rows if r.name == name and r.done), None)

    def ratio(self, row: Row, other: str) -> float | None:
        """How many times longer than `other` a contender takes for the same work."""
        base = self.row(other)
        if base is None or not base.work or not row.work:
            return None
        return (row.median / row.work) / (base.median / base.work)


def answer(question: Question, how: How) -> Table:
    """Run all contenders in turn.

    Taking turns lets a machine that slows down slow all of them. The result of the first
    run is checked.
    """
    rows = [Row(job.name, job.work) for job in question.jobs]
    benches: list[Bench | Apart] = []
    for job, row in zip(question.jobs, rows, strict=True):
        bench = (
            Apart(job.call, job.words, question.threads, how.limit)
            if how.apart
            else Bench(job.call, job.words, warm=False)
        )
        benches.append(bench)
        row.why_not = str(bench.start().get("why", ""))
    for number in range(how.runs or question.runs):
        for bench, row in zip(benches, rows, strict=True):
            if not row.why_not:
                _once(bench, row, check=number == 0)
    for bench in benches:
        bench.close()
    copies = {job.name: job.copy for job in question.jobs if job.copy}
    return Table(
        question.title,
        question.unit,
        question.base,
        rows,
        copies,
        question.series,
        question.size,
    )


def _once(bench: Bench | Apart, row: Row, *, check: bool) -> None:
    told = bench.run()
    if "why" in told:
        row.why_not = str(told["why"])
        return
    row.add(told)
    if check:
        row.figures = bench.check()
        row.why_not = str(row.figures.pop("why", ""))
    if not row.why_not:
        row.why_not = str(bench.clean().get("why", ""))


def markdown(table: Table) -> str:
    """The table as people and Markdown read it."""
    extra = list(dict.fromkeys(k for row in table.rows for k in row.figures if k != "error"))
    copies = bool(table.copies)
    head = ["", "median s", "min s", f"{_scale(table)[1]}{table.unit}/s", f"x {table.base}"]
    head += ["x copy"] * copies + ["peak MiB", "rise MiB", "cores", "error", *extra]
    lines = [head] + [_cells(table, row, extra, copies) for row in table.rows]
    plain = [head, *(line for line, row in zip(lines[1:], table.rows, strict=True) if row.done)]
    widths = [max(len(line[i]) for line in plain) for i in range(len(head))]
    widths[0] = max(len(line[0]) for line in lines)
    texts = []
    for number, line in enumerate(lines):
        cells = [c.ljust(widths[i]) if i == 0 else c.rjust(widths[i]) for i, c in enumerate(line)]
        texts.append("| " + " | ".join(cells) + " |")
        if number == 0:
            rules = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
            texts.append("| " + " | ".join(rules) + " |")
    return "\n".join([f"**{table.title}**", "", *texts])


def _scale(table: Table) -> tuple[float, str]:
    rates = [row.work / row.median for row in table.rows if row.seconds and row.median]
    top = max(rates, default=0)
    return (1e9, "G") if top > 2e9 else (1e6, "M") if top > 1e6 else (1, "")


def _cells(table: Table, row: Row, extra: Sequence[str], copies: bool) -> list[str]:
    if not row.done:
        return [row.name, row.why_not or "no run", *[""] * (7 + copies + len(extra))]
    ratios = [table.base] + [table.copies.get(row.name, "")] * copies
    mib = 2**20
    return [
        row.name,
        _digits(row.median),
        _digits(min(row.seconds)),
        _digits(row.work / row.median / _scale(table)[0]) if row.work else "",
        *(_optional(table.ratio(row, other)) for other in ratios),
        f"{row.peak / mib:,.0f}",
        f"{max(0.0, row.peak - row.before) / mib:,.0f}",
        f"{statistics.median(row.cpu or [0.0]) / max(row.median, 1e-9):.1f}",
        _error(row.figures.get("error", "")),
        *(_text(row.figures.get(key, "")) for key in extra),
    ]


def _digits(value: float) -> str:
    """Three digits that count.

    >>> _digits(0.01234), _digits(12.345), _digits(12345.6)
    ('0.0123', '12.3', '12,346')
    """
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 1e-3 else f"{value:.2g}"


def _optional(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _error(value: float | str) -> str:
    return value if isinstance(value, str) else "0" if value == 0 else f"{value:.1e}"


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else _digits(value)
