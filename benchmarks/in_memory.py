"""In memory: what cutting and blending cost, through the ordinary function path."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import volpatch
from benchmarks import contenders, data
from benchmarks.harness import Job, Question
from benchmarks.setting import Setting
from benchmarks.task import CannotError, Figures, Task

Sizes = tuple[int, int, int]


@dataclass(frozen=True)
class Size:
    shape: Sizes
    settings: Sequence[tuple[Sizes, Sizes]]
    threads: Sequence[int] = (1, 2)
    dtypes: Sequence[str] = ("float32",)
    most_bytes: int = 6 * 2**30  # of patches that a contender holds all at once
    runs: int = 5


FULL = Size(
    (256, 256, 256),
    [((64, 64, 64), (32, 32, 32)), ((32, 32, 32), (8, 8, 8)), ((16, 128, 128), (8, 64, 64))],
    dtypes=("float32", "uint16"),
)
SMALL = Size((40, 40, 40), [((16, 16, 16), (8, 8, 8))], runs=1)


def same(patch: Any) -> Any:
    return patch


def less_mean(patch: Any) -> Any:
    return patch - patch.mean()


def checked(result: Any, array: np.ndarray) -> Figures:
    """The largest difference, a voxel away from the faces, where some windows are 0."""
    if result.shape != array.shape:
        return {"why": f"wrong result: its shape is {tuple(result.shape)}"}
    inner = (slice(1, -1),) * array.ndim
    difference = np.asarray(result[inner], np.float32) - np.asarray(array[inner], np.float32)
    return {"error": float(np.abs(difference).max())}


def not_the_mean(name: str, setting: Setting) -> Figures:
    """How far a contender that says "average" is from the mean of patches that disagree."""
    edge = 3 * setting.patch[0]
    small = data.volume((edge,) * 3)
    told = contenders.WHOLE[name](small, setting, less_mean)()
    mean = volpatch.map_patches(
        less_mean, small, setting.patch, stride=setting.stride, window="constant"
    )
    return {"off the mean": f"up to {float(np.abs(told - mean).max()):.0f}"}


def whole(
    name: str,
    shape: Sizes,
    patch: Sizes,
    stride: Sizes,
    threads: int,
    dtype: str,
    most_bytes: int,
) -> Task:
    """Cut, identity, merge."""
    setting = Setting(tuple(patch), tuple(stride), threads)
    adapter = contenders.WHOLE[name]
    if name.startswith("patchify"):
        needed = visits(shape, patch, stride) * np.dtype(dtype).itemsize
        if needed > most_bytes:
            raise CannotError(f"needs all patches at once ({needed / 2**30:.0f} GiB)")
    array = data.volume(shape, dtype)
    tiny = data.volume([2 * p for p in patch], dtype)

    def check(result: Any) -> Figures:
        figures = checked(result, array)
        if name.startswith("empatches") and dtype == "float32":
            figures.update(not_the_mean(name, setting))
        return figures

    return Task(adapter(array, setting, same), adapter(tiny, setting, same), check)


def merging(name: str, shape: Sizes, patch: Sizes, stride: Sizes, threads: int) -> Task:
    """Blend patches that are there, as views of the volume."""
    setting = Setting(tuple(patch), tuple(stride), threads)
    adapter = contenders.MERGING[name]
    array = data.volume(shape)
    tiny = data.volume([2 * p for p in patch])
    return Task(
        adapter(array, setting), adapter(tiny, setting), lambda result: checked(result, array)
    )


def visits(shape: Sequence[int], patch: Sequence[int], stride: Sequence[int]) -> int:
    setting = Setting(tuple(patch), tuple(stride))
    counts = (len(setting.starts(n, axis)) for axis, n in enumerate(shape))
    return math.prod(counts) * math.prod(patch)


def questions(size: Size) -> Iterator[Question]:
    for number, (patch, stride) in enumerate(size.settings):
        work = visits(size.shape, patch, stride)
        words = {"shape": size.shape, "patch": patch, "stride": stride}
        what = f"{text(size.shape)}, patch {text(patch)}, stride {text(stride)}"
        for threads in size.threads:
            told = f"{threads} thread{'s' * (threads > 1)}"
            for dtype in size.dtypes if number == 0 and threads == 1 else size.dtypes[:1]:
                jobs = [
                    Job(
                        name,
                        "benchmarks.in_memory:whole",
                        {
                            "name": name,
                            **words,
                            "threads": threads,
                            "dtype": dtype,
                            "most_bytes": size.most_bytes,
                        },
                        work,
                    )
                    for name in contenders.WHOLE
                ]
                title = f"In memory, cut + identity + merge: {what}, {dtype}, {told}"
                yield Question(title, jobs, threads=threads, runs=size.runs)
        jobs = [
            Job(
                name,
                "benchmarks.in_memory:merging",
                {"name": name, **words, "threads": 1},
                work,
            )
            for name in contenders.MERGING
        ]
        yield Question(f"In memory, merge only: {what}, float32, 1 thread", jobs, runs=size.runs)


def text(sizes: Sequence[int]) -> str:
    return f"{sizes[0]}³" if set(sizes) == {sizes[0]} else " x ".join(map(str, sizes))
