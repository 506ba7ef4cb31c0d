"""Every 39 x 39 patch of an image, mean-subtracted in batches and averaged back.

The other way is the one people write first: index arrays for all patches, one fancy index
to take them and one scatter to put them back. It is timed at the largest size whose
arrays fit in its memory, and compared patch by patch.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

PATCH = 39
BATCH = 256  # 1.5 MB: the patches are still in cache when they are added
FANCY_BYTES = 4 * 2**30
# per patch and pixel: an index array, the patches, their result, and what bincount makes of it
FANCY_BYTES_PER_VISIT = 8 + 4 + 4 + 8


def image(n: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n, n), dtype=np.float32)


def subtract_means(batch: np.ndarray) -> np.ndarray:
    """(patches, 39, 39), each less its mean; as a matrix product, which reads the batch once."""
    flat = batch.reshape(len(batch), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    return batch


def streamed(array: np.ndarray, patch: int, batch: int) -> np.ndarray:
    import volpatch

    return volpatch.map_patches(
        subtract_means, array, patch, stride=1, window="constant", batch_size=batch
    )


def fancy(array: np.ndarray, patch: int, batch: int) -> np.ndarray:
    """Index arrays both ways, everything at once."""
    rows, columns = (n - patch + 1 for n in array.shape)
    corner = np.arange(rows)[:, None] * array.shape[1] + np.arange(columns)
    inside = np.arange(patch)[:, None] * array.shape[1] + np.arange(patch)
    index = corner.reshape(-1, 1) + inside.reshape(1, -1)
    patches = array.reshape(-1)[index]
    subtract_means(patches)
    total = np.bincount(index.reshape(-1), patches.reshape(-1), minlength=array.size)
    count = np.bincount(index.reshape(-1), minlength=array.size)
    return (total / count).reshape(array.shape).astype(array.dtype)


WAYS = {"volpatch": streamed, "fancy": fancy}


def measure(way: str, n: int, patch: int, batch: int) -> None:
    """In a process of its own: seconds, processor seconds, and peak bytes, on stdout."""
    WAYS[way](image(3 * patch), patch, batch)  # compiles
    array = image(n)
    begin, used = time.perf_counter(), time.process_time()
    WAYS[way](array, patch, batch)
    seconds, cores = time.perf_counter() - begin, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(seconds, cores, peak)


def main(n: int = 10_038, patch: int = PATCH, runs: int = 1, batch: int = BATCH) -> str:
    visits_that_fit = FANCY_BYTES / FANCY_BYTES_PER_VISIT
    largest = int((visits_that_fit / patch**2) ** 0.5) + patch - 1
    lines = [
        f"{patch} x {patch} patches at stride 1, mean-subtracted, averaged back; one core",
        f"  {'':<10}{'image':>8}{'patches':>14}{'s':>9}{'Gvisit/core s':>15}{'ns/patch':>10}"
        f"{'peak GiB':>10}",
    ]
    each = {}
    for way, size in (("volpatch", n), ("fancy", min(n, largest))):
        call = f"from benchmarks.dense import measure; measure({way!r}, {size}, {patch}, {batch})"
        one_core = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
        told = [
            subprocess.run(
                [sys.executable, "-c", call],
                cwd=Path(__file__).parents[1],
                env={**os.environ, **one_core},
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()
            for _ in range(runs)
        ]
        seconds, cores, peak = map(float, sorted(told, key=lambda t: float(t[1]))[runs // 2])
        patches = (size - patch + 1) ** 2
        each[way] = cores / patches
        rate = patches * patch**2 / cores / 1e9
        lines.append(
            f"  {way:<10}{size:>8}{patches:>14,}{seconds:>9.2f}"
            f"{rate:>15.2f}{1e9 * each[way]:>10.0f}{peak / 2**30:>10.2f}"
        )
    lines.append(f"  fancy indexing takes {each['fancy'] / each['volpatch']:.1f} x per patch")
    return "\n".join(lines)
