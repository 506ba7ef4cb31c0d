"""Every patch at stride 1, mean-subtracted in batches and averaged back.

The other ways hold all patches at once, or loop over them in Python; each is timed at
the largest size that fits its memory (or its patience), and compared for each visit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import volpatch
from benchmarks import data
from benchmarks.harness import Job, Question
from benchmarks.task import CannotError, Figures, Task

Array = NDArray[Any]


@dataclass(frozen=True)
class Size:
    images: Sequence[int] = (1000, 3162, 10_038)
    patch: int = 39
    batch: int = 256  # 1.5 MB: the patches are still in cache when they are added
    volume: int = 128
    cube: int = 8
    cubes: int = 1024
    most_bytes: int = 4 * 2**30  # for a contender that holds everything
    loops: int = 40_000  # patches, for a contender that loops in Python
    runs: int = 1


FULL = Size()
SMALL = Size((24,), 5, 16, 12, 4, 16, 2**20, 400)


def less_means(batch: Array) -> Array:
    """Patches, each less its mean."""
    flat = batch.reshape(len(batch), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    return batch


def streamed(array: Array, patch: int, batch: int, workers: int = 1) -> Array:
    out: Array = volpatch.map_patches(
        less_means, array, patch, stride=1, window="constant", batch_size=batch, workers=workers
    )
    return out


def fancy(array: Array, patch: int, batch: int) -> Array:
    """Index arrays both ways, everything at once: what people write first."""
    own = np.arange(array.size).reshape(array.shape)
    views = np.lib.stride_tricks.sliding_window_view(own, (patch,) * array.ndim)
    index = views.reshape(-1, patch**array.ndim)
    patches = less_means(array.reshape(-1)[index])
    total = np.bincount(index.reshape(-1), patches.reshape(-1), minlength=array.size)
    count = np.bincount(index.reshape(-1), minlength=array.size)
    return (total / count).reshape(array.shape).astype(array.dtype)


def torch_fold(array: Array, patch: int, batch: int) -> Array:
    """unfold and fold; everything at once."""
    import torch
    from torch.nn.functional import fold, unfold

    if array.ndim != 2:
        raise CannotError("images only")
    torch.set_num_threads(1)
    with torch.inference_mode():
        columns = unfold(torch.from_numpy(array)[None, None], patch)
        columns -= columns.mean(dim=1, keepdim=True)
        total = fold(columns, array.shape, patch)
        columns.fill_(1)
        out: Array = (total / fold(columns, array.shape, patch))[0, 0].numpy()
    return out


def scikit_learn(array: Array, patch: int, batch: int) -> Array:
    from sklearn.feature_extraction.image import (
        extract_patches_2d,
        reconstruct_from_patches_2d,
    )

    if array.ndim != 2:
        raise CannotError("images only")
    patches = less_means(extract_patches_2d(array, (patch, patch)))
    out: Array = reconstruct_from_patches_2d(patches, array.shape)
    return out


def numpy_loop(array: Array, patch: int, batch: int) -> Array:
    total, count = np.zeros(array.shape, np.float32), np.zeros(array.shape, np.float32)
    for corner in np.ndindex(*(n - patch + 1 for n in array.shape)):
        box = tuple(slice(a, a + patch) for a in corner)
        total[box] += array[box] - array[box].mean()
        count[box] += 1
    out: Array = total / count
    return out


@dataclass(frozen=True)
class Way:
    run: Callable[[Array, int, int], Array]
    bytes_per_visit: float = 0.0  # of what it holds at once
    loops: bool = False


WAYS = {
    "volpatch": Way(streamed),
    "volpatch, 2 threads": Way(functools.partial(streamed, workers=2)),
    "fancy indexing": Way(fancy, 8 + 4 + 8 + 8),
    "torch unfold + fold": Way(torch_fold, 8),
    "scikit-learn": Way(scikit_learn, 8, loops=True),
    "NumPy loop": Way(numpy_loop, loops=True),
}


def largest(way: Way, n: int, ndim: int, patch: int, size: Size) -> int:
    """The edge of the largest image or volume, up to n, that a way can do."""
    patches = (n - patch + 1) ** ndim
    if way.bytes_per_visit:
        patches = min(patches, int(size.most_bytes / way.bytes_per_visit / patch**ndim))
    if way.loops:
        patches = min(patches, size.loops)
    return int(patches ** (1 / ndim) + 1e-6) + patch - 1


def task(name: str, ndim: int, n: int, patch: int, batch: int) -> Task:
    way = WAYS[name].run
    array = data.image(n) if ndim == 2 else data.volume((n,) * 3)
    tiny = np.ascontiguousarray(array[(slice(2 * patch),) * ndim])

    def check(result: Array) -> Figures:
        """Against shares of patches written out, on a corner that is small enough."""
        corner = np.ascontiguousarray(array[(slice(3 * patch),) * ndim])
        inner = (slice(None, 2 * patch),) * ndim if n > 3 * patch else (slice(None),) * ndim
        slow = numpy_loop(corner, patch, batch)
        return {
            "error": float(np.abs(result[inner] - slow[inner]).max()),
            "edge": f"{n:,}",
        }

    return Task(lambda: way(array, patch, batch), lambda: way(tiny, patch, batch), check)


def questions(size: Size) -> Iterator[Question]:
    cases = [(2, n, size.patch, size.batch) for n in size.images]
    cases.append((3, size.volume, size.cube, size.cubes))
    for ndim, n, patch, batch in cases:
        jobs = []
        for name, way in WAYS.items():
            edge = largest(way, n, ndim, patch, size)
            words = {"name": name, "ndim": ndim, "n": edge, "patch": patch, "batch": batch}
            work = (edge - patch + 1) ** ndim * patch**ndim
            jobs.append(Job(name, "benchmarks.dense:task", words, work))
        of = " x ".join([f"{n:,}"] * ndim)
        title = f"Dense: all {' x '.join([str(patch)] * ndim)} patches at stride 1 of {of}, float32"
        count = (n - patch + 1) ** ndim
        title += f", less their means, averaged back; {count:,} patches, 1 thread unless said"
        yield Question(title, jobs, runs=size.runs)
