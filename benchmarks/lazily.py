"""On dask arrays: building the graph, and computing it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import volpatch
from benchmarks import data
from benchmarks.harness import Job, Question
from benchmarks.in_memory import checked, same, text, visits
from benchmarks.overlapped import BlendBlock
from benchmarks.setting import Setting
from benchmarks.task import Figures, Task

NAMES = ("volpatch", "volpatch extract -> merge", "dask map_overlap")


@dataclass(frozen=True)
class Size:
    shape: tuple[int, int, int] = (384, 384, 384)
    chunks: tuple[int, int, int] = (128, 128, 128)
    patch: int = 64
    threads: int = 2
    runs: int = 3


FULL = Size()
SMALL = Size((32, 32, 32), (16, 16, 16), 8, 1, 1)


def task(
    name: str,
    shape: tuple[int, int, int],
    chunks: tuple[int, int, int],
    patch: int,
    threads: int,
) -> Task:
    import dask
    import dask.array as da

    shape, chunks = tuple(shape), tuple(chunks)  # type: ignore[assignment]
    setting = Setting((patch,) * 3, (patch // 2,) * 3)
    array = data.volume(shape)

    def build(volume: Any) -> Any:
        lazy = da.from_array(volume, chunks=chunks)
        if name == "volpatch":
            return volpatch.map_patches(
                same, lazy, patch, stride=setting.stride, dtype="float32", window="hann"
            )
        if name.startswith("volpatch"):
            grid = volpatch.PatchGrid(volume.shape, patch, setting.stride)
            patches = volpatch.extract(lazy, grid)
            return volpatch.merge(patches.map_blocks(same, dtype="float32"), grid)
        blend = BlendBlock(setting, volume.shape, chunks, same, "float32")
        return da.map_overlap(
            blend,
            lazy,
            depth=dict(enumerate(blend.depth)),
            boundary="none",
            trim=False,
            allow_rechunk=False,
            dtype="float32",
            chunks=lazy.chunks,
            meta=np.empty((0, 0, 0), np.float32),
        )

    def run(volume: Any) -> Any:
        with dask.config.set(scheduler="threads", num_workers=threads):
            return build(volume).compute()

    def check(result: Any) -> Figures:
        begin = time.perf_counter()
        graph = build(array)
        seconds = time.perf_counter() - begin
        tasks = f"{len(dict(graph.__dask_graph__())):,}"
        return {**checked(result, array), "build s": seconds, "tasks": tasks}

    tiny = data.volume([2 * c for c in chunks])
    return Task(lambda: run(array), lambda: run(tiny), check)


def questions(size: Size) -> Iterator[Question]:
    work = visits(size.shape, (size.patch,) * 3, (size.patch // 2,) * 3)
    words = {
        "shape": size.shape,
        "chunks": size.chunks,
        "patch": size.patch,
        "threads": size.threads,
    }
    jobs = [Job(name, "benchmarks.lazily:task", {"name": name, **words}, work) for name in NAMES]
    title = (
        f"Lazily on dask, identity: {text(size.shape)} float32 in chunks of {text(size.chunks)}, "
        f"patch {size.patch}³, 50 %, {size.threads} threads"
    )
    yield Question(title, jobs, runs=size.runs)
