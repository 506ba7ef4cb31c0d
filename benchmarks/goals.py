"""The ratios that this project sets itself, and a run of ten minutes that measures them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from benchmarks import filters, in_memory, network, reading, startup, stores
from benchmarks.harness import Question, Row, Table
from benchmarks.store_contenders import LITTLE

COPY, DASK, SCIPY = "copy by tensorstore", "dask-image", "scipy, whole, no files"
LIMITED = f"volpatch, {filters.PEAK}"
LARGE = (1024,) * 3
FIRST, LATER = "run of 64³, nothing compiled", "run of 64³"


@dataclass(frozen=True)
class Goal:
    """A ratio of two contenders in one table, or a difference in seconds, and its bound.

    Attributes
    ----------
    title : how the table's title begins, and `also`, what else is in it.
    figure : "wall" or "cpu".
    """

    what: str
    title: str
    row: str
    other: str
    most: float
    figure: str = "wall"
    also: str = ""
    difference: bool = False

    def asks(self, title: str) -> bool:
        return title.startswith(self.title) and self.also in title

    def value(self, table: Table) -> float | None:
        row, other = table.row(self.row), table.row(self.other)
        if row is None or other is None:
            return None
        mine, theirs = _figure(row, self.figure), _figure(other, self.figure)
        return mine - theirs if self.difference else mine / theirs


def _figure(row: Row, figure: str) -> float:
    return row.median if figure == "wall" else row.median_cpu


_STORES, _GAUSSIAN, _MEMORY = "Zarr to Zarr, identity, ", "Zarr to Zarr, gaussian", "In memory, cut"
GOALS = (
    Goal("run at 50 % : copy", f"{_STORES}50 %: 512", "volpatch", COPY, 1.9),
    Goal("the same, 1024³", f"{_STORES}50 %: 1024", "volpatch", COPY, 1.9),
    Goal("run at 25 % : copy", f"{_STORES}25 %: 512", "volpatch", COPY, 1.6),
    Goal("gaussian : dask-image", f"{_GAUSSIAN}, sigma", "volpatch", DASK, 0.8),
    Goal("the same within its peak memory", f"{_GAUSSIAN}, sigma", LIMITED, DASK, 0.9),
    Goal("gaussian : scipy on the whole", f"{_GAUSSIAN}, sigma", "volpatch", SCIPY, 1.5, "cpu"),
    Goal("median : scipy on the whole", "Zarr to Zarr, median", "volpatch", SCIPY, 1.3, "cpu"),
    Goal("reading : files and numcodecs", "Reading", "volpatch", reading.NAMES[1], 1.2, "cpu"),
    Goal("in memory : MONAI", _MEMORY, "volpatch", "MONAI", 0.45, also="float32, 1 thread"),
    Goal("the same, two threads", _MEMORY, "volpatch", "MONAI", 0.45, also="float32, 2 threads"),
    Goal("network : network alone", "Torch module", "volpatch", "network alone", 1.05),
    Goal("first run less a later one, s", "Start-up", FIRST, LATER, 2.0, difference=True),
)
# beside those that a goal names: what the README compares with
PEERS = {"TorchIO", "tiler", "dask map_overlap", f"volpatch, {LITTLE}"}
# sizes at which all of it takes about ten minutes; a median takes long
QUICK: Sequence[tuple[ModuleType, Any]] = (
    (stores, replace(stores.FULL, shapes=((512,) * 3,), variants_up_to=0, runs=5)),
    (filters, replace(filters.FULL, shapes=((512,) * 3,), only="gaussian", runs=3)),
    (filters, replace(filters.FULL, shapes=((256,) * 3,), only="median", runs=3)),
    (reading, reading.FULL),
    (in_memory, replace(in_memory.FULL, settings=in_memory.FULL.settings[:1], dtypes=("float32",))),
    (network, network.FULL),
    (startup, replace(startup.FULL, names=("import volpatch", FIRST, LATER), runs=3)),
)


def questions() -> Iterator[Question]:
    """Those that a goal needs, with the contenders that it names."""
    for module, size in QUICK:
        for question in module.questions(size):
            goals = [goal for goal in GOALS if goal.asks(question.title)]
            names = PEERS | {question.base} | {name for g in goals for name in (g.row, g.other)}
            if goals:
                yield replace(question, jobs=[job for job in question.jobs if job.name in names])
    with tempfile.TemporaryDirectory(prefix="volpatch-bench-") as folder:
        question = stores.question(
            replace(stores.FULL, runs=1), LARGE, "identity, 50 %", {}, folder
        )
        names = PEERS | {"volpatch", COPY}
        yield replace(question, jobs=[job for job in question.jobs if job.name in names])


def report(tables: Sequence[Table]) -> str:
    """Each goal beside what was measured."""
    lines = ["| ratio | measured | goal | |", "| --- | ---: | ---: | --- |"]
    for goal in GOALS:
        values = [goal.value(table) for table in tables if goal.asks(table.title)]
        found = next((value for value in values if value is not None), None)
        told = "" if found is None else f"{found:.2f}"
        reached = "not measured" if found is None else "reached" if found <= goal.most else "missed"
        figure = f"{goal.what}{' (CPU)' if goal.figure == 'cpu' else ''}"
        lines.append(f"| {figure} | {told} | {goal.most:g} | {reached} |")
    return "\n".join(lines)
