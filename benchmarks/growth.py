"""Peak memory against the size of the volume, along z and across (y, x), under one limit."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks import data
from benchmarks.harness import Job, Question
from benchmarks.store_contenders import Order, Sizes

NAMES = (
    "volpatch",
    "copy",
    "dask map_overlap",
    "cubed map_overlap",
    "patchly",
    "MONAI ZarrAvgMerger",
)


@dataclass(frozen=True)
class Size:
    """Volumes along z, and across; peers that take minutes stop at `slow_voxels`."""

    along: Sequence[Sizes] = tuple((n, 256, 256) for n in (128, 512, 2048, 8192))
    across: Sequence[Sizes] = tuple((128, n, n) for n in (256, 512, 1024, 2048))
    slow_voxels: int = 128 * 512 * 512
    patch: int = 64
    chunks: Sizes = data.CHUNKS
    block: Sizes = (128, 256, 256)
    workers: int = 2
    memory_limit: str = "400MiB"


FULL = Size()
SMALL = Size(
    along=((24, 32, 32), (48, 32, 32)),
    across=((24, 40, 40),),
    slow_voxels=24 * 32 * 32,
    patch=16,
    chunks=(24,) * 3,
    block=(24,) * 3,
    memory_limit="4GiB",  # in a process that holds much else
)
SLOW = ("patchly", "MONAI ZarrAvgMerger")


def questions(size: Size) -> Iterator[Question]:
    with tempfile.TemporaryDirectory(prefix="volpatch-bench-") as folder:
        for direction, shapes in (("along z", size.along), ("across (y, x)", size.across)):
            for shape in shapes:
                yield question(size, direction, shape, folder)
                source = Path(folder) / ("x".join(map(str, shape)) + ".zarr")
                shutil.rmtree(source, ignore_errors=True)


def question(size: Size, direction: str, shape: Sizes, folder: str) -> Question:
    order = Order(
        shape=shape,
        patch=size.patch,
        overlap=0.5,
        dtype="uint16",
        function="identity",
        chunks=size.chunks,
        shards=None,
        block=size.block,
        workers=size.workers,
        memory_limit=size.memory_limit,
    )
    voxels = shape[0] * shape[1] * shape[2]
    jobs = []
    for name in NAMES:
        # cubed wants a limit for each worker
        limit = f"{_bytes(size.memory_limit) // size.workers}B" if "cubed" in name else None
        own = order if limit is None else replace(order, memory_limit=limit)
        call = "benchmarks.stores:task"
        if name in SLOW and voxels > size.slow_voxels:
            call = "benchmarks.growth:too_slow"
        jobs.append(Job(name, call, {"name": name, "folder": folder, **asdict(own)}, voxels))
    title = (
        f"Peak memory {direction}: {' x '.join(map(str, shape))} uint16, identity, 50 %, limit "
        f"{size.memory_limit}, {size.workers} workers"
    )
    series = f"Peak memory {direction}"
    return Question(title, jobs, unit="voxel", runs=1, series=series, size=voxels)


def too_slow(**_: object) -> None:
    from benchmarks.task import CannotError

    raise CannotError("takes minutes; see the smaller volumes")


def _bytes(text: str) -> int:
    from volpatch.core.parse import parse_bytes

    return int(parse_bytes(text))
