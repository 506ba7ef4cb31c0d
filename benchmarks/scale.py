"""Volumes nobody has: planning, one region of many, and what a region costs without work."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import volpatch
from benchmarks import data
from benchmarks.harness import Job, Question
from benchmarks.in_memory import same
from benchmarks.task import Figures, Task


@dataclass(frozen=True)
class Size:
    edges: Sequence[int] = (1000, 10_000, 100_000)
    tiny_regions: Sequence[int] = (10, 10, 10)  # of 16³ voxels
    region: tuple[int, int, int] = data.CHUNKS  # the one of many
    runs: int = 3


FULL = Size()
SMALL = Size((1000,), (2, 2, 3), (16, 32, 32), 1)
EDGE = 16  # of a tiny region
LIMIT = "4GiB"


def paper(folder: str, edge: int, chunks: Sequence[int]) -> Path:
    """A volume of which no chunk is stored."""
    import zarr

    path = Path(folder) / f"{edge}-{chunks[0]}.zarr"
    if not path.exists():
        zarr.create_array(path, shape=(edge,) * 3, chunks=tuple(chunks), dtype="u2")
    return path


def planning(folder: str, edge: int) -> Task:
    source = paper(folder, edge, data.CHUNKS)
    options: dict[str, Any] = {
        "func": "identity",
        "patch": 64,
        "memory_limit": LIMIT,
        "workers": 2,
        "missing": "fill",
    }

    def run() -> Any:
        plan = volpatch.plan(source, Path(folder) / "out", **options)
        plan.explain()
        return plan

    def check(plan: Any) -> Figures:
        return {"regions": f"{plan.n_regions:,}", "redundancy": f"{plan.redundancy:.2f}"}

    return Task(run, run, check)


def one_of_many(folder: str, edge: int, region: Sequence[int], *, warm: bool = True) -> Task:
    """A whole run that has one region to do: what a machine of many pays to take part."""
    source = paper(folder, edge, region)
    own = Path(tempfile.mkdtemp(dir=folder))
    regions = [-(-edge // r) for r in region]

    def run() -> Any:
        return volpatch.run(
            same,
            source,
            own / "out",
            patch=16,
            chunks=tuple(region),
            region=tuple(region),
            dtype="uint16",
            part=(0, regions[0] * regions[1] * regions[2]),
            workers=1,
            memory_limit=LIMIT,
            missing="fill",
            durability="process",
        )

    def clean() -> None:
        for path in own.iterdir():
            shutil.rmtree(path)

    def check(report: Any) -> Figures:
        return {"regions": f"{report.regions:,}", "redundancy": f"{report.redundancy:.2f}"}

    def warmed() -> None:
        run()
        clean()

    return Task(run, warmed, check, clean)


def regions(folder: str, counts: Sequence[int], durability: str, *, tiny: bool) -> Task:
    """The same volume in regions of 16³ voxels, or in one."""
    shape = tuple(EDGE * n for n in counts)
    source = data.store(Path(folder) / "tiny.zarr", shape, (EDGE,) * 3)
    own = Path(tempfile.mkdtemp(dir=folder))

    def run() -> Any:
        return volpatch.run(
            same,
            source,
            own / "out",
            patch=EDGE,
            overlap=0,
            window="constant",
            chunks=EDGE if tiny else shape,
            region=EDGE if tiny else shape,
            dtype="uint16",
            workers=1,
            memory_limit=LIMIT,
            durability=durability,
            overwrite=True,
        )

    def clean() -> None:
        for path in own.iterdir():
            shutil.rmtree(path)

    def check(report: Any) -> Figures:
        return {
            "regions": f"{report.regions:,}",
            "ms/region": 1e3 * report.seconds / max(1, report.regions),
        }

    def warmed() -> None:
        run()
        clean()

    return Task(run, warmed, check, clean)


def questions(size: Size) -> Iterator[Question]:
    with tempfile.TemporaryDirectory(prefix="volpatch-bench-") as folder:
        jobs = [
            Job(_power(edge), "benchmarks.scale:planning", {"folder": folder, "edge": edge}, 1)
            for edge in size.edges
        ]
        title = f"Planning on paper: patch 64³, 50 %, limit {LIMIT}"
        yield Question(title, jobs, "plans", runs=size.runs, base=_power(size.edges[0]))
        jobs = [
            Job(
                _power(edge),
                "benchmarks.scale:one_of_many",
                {"folder": folder, "edge": edge, "region": size.region},
                1,
            )
            for edge in size.edges
        ]
        of = " x ".join(map(str, size.region))
        title = f"A run of one region ({of}) of a volume, patch 16³, 50 %: begins, computes, ends"
        yield Question(title, jobs, "runs", runs=size.runs, base=_power(size.edges[0]))
        count = size.tiny_regions[0] * size.tiny_regions[1] * size.tiny_regions[2]
        jobs = [
            Job(
                f"{count:,} regions{told}" if tiny else f"one region{told}",
                "benchmarks.scale:regions",
                {
                    "folder": folder,
                    "counts": size.tiny_regions,
                    "durability": durability,
                    "tiny": tiny,
                },
                count,
            )
            for durability, told in (("process", ""), ("full", ", fsync"))
            for tiny in (True, False)
        ]
        shape = " x ".join(str(EDGE * n) for n in size.tiny_regions)
        title = f"Regions without work: {shape} uint16 in regions of {EDGE}³, identity, no overlap"
        yield Question(title, jobs, "regions", runs=size.runs, base="one region")


def _power(edge: int) -> str:
    voxels = edge**3
    return f"10^{len(str(voxels)) - 1} voxels"
