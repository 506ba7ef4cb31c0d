"""A region read, beside its files read and decoded with numcodecs and nothing else."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import data
from benchmarks.harness import Job, Question
from benchmarks.task import Figures, Task


@dataclass(frozen=True)
class Size:
    shape: tuple[int, int, int] = (512, 512, 512)
    chunks: tuple[int, int, int] = data.CHUNKS
    runs: int = 7


FULL = Size()
SMALL = Size((24, 40, 40), (12, 20, 20), 1)
NAMES = ("volpatch", "files and numcodecs alone", "zarr")


def task(name: str, shape: Sequence[int], chunks: Sequence[int], folder: str) -> Task:
    """One layer of chunks, whole in y and x, as a region reads it; a copy of its own first."""
    source = data.store(Path(folder) / "reading.zarr", shape, chunks, codec=True)
    layer = tuple(slice(0, n) for n in (chunks[0], *shape[1:]))
    out = np.empty((chunks[0], *shape[1:]), np.uint16)
    layers = shape[0] // chunks[0]

    def ours() -> Any:
        from volpatch.storage.open import open_source

        volume = open_source(source)
        for k in range(layers):
            volume.read((slice(k * chunks[0], (k + 1) * chunks[0]), *layer[1:]), out)
        return out

    def alone() -> Any:
        from numcodecs import blosc

        room = np.empty(chunks, np.uint16)
        places = [range(-(-n // c)) for n, c in zip(shape, chunks, strict=True)]
        for place in itertools.product(range(layers), *places[1:]):
            content = (source / "c" / "/".join(map(str, place))).read_bytes()
            blosc.decompress(content[:-4], room)
        return None

    def by_zarr() -> Any:
        import zarr

        array = zarr.open_array(source, mode="r")
        for k in range(layers):
            out[...] = array[(slice(k * chunks[0], (k + 1) * chunks[0]), *layer[1:])]
        return out

    run = dict(zip(NAMES, (ours, alone, by_zarr), strict=True))[name]

    def check(result: Any) -> Figures:
        if result is None:
            return {}
        last = slice((layers - 1) * chunks[0], layers * chunks[0])
        import zarr

        wanted = zarr.open_array(source, mode="r")[last]
        return {"error": float(np.abs(result.astype(float) - wanted).max())}

    return Task(run, run, check)


def questions(size: Size) -> Iterator[Question]:
    with tempfile.TemporaryDirectory(prefix="volpatch-bench-") as folder:
        words = {"shape": size.shape, "chunks": size.chunks, "folder": folder}
        jobs = [
            Job(
                name, "benchmarks.reading:task", {"name": name, **words}, np.prod(size.shape).item()
            )
            for name in NAMES
        ]
        text = " x ".join(map(str, size.shape))
        yield Question(
            f"Reading layer by layer: {text} uint16, Blosc zstd 1", jobs, "voxel", runs=size.runs
        )
