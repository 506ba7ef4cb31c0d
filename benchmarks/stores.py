"""Zarr to Zarr, identity: what blending costs on top of a plain chunk-by-chunk copy."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import volpatch
from benchmarks.harness import alternate, table

CHUNKS = (64, 128, 128)


def make_source(path: Path, n: int) -> None:
    """A uint16 volume of smooth structure plus noise, written slab by slab."""
    import zarr

    array = zarr.create_array(path, shape=(n, n, n), chunks=CHUNKS, dtype="u2")
    rng = np.random.default_rng(1)
    y, x = np.ogrid[:n, :n]
    plane = 2000 + 800 * np.sin(y / 31.0) * np.cos(x / 47.0)
    for start in range(0, n, CHUNKS[0]):
        stop = min(start + CHUNKS[0], n)
        slab = rng.standard_normal((stop - start, n, n), dtype=np.float32) * 40
        array[start:stop] = slab + plane


def blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    steps = (range(0, n, c) for n, c in zip(shape, CHUNKS, strict=True))
    for corner in itertools.product(*steps):
        yield tuple(slice(a, a + c) for a, c in zip(corner, CHUNKS, strict=True))


def copy(source: Path, target: Path, workers: int, *, durable: bool) -> None:
    """The limit: every chunk read and written once by zarr, with the codec volpatch writes."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    shutil.rmtree(target, ignore_errors=True)
    given = zarr.open_array(source, mode="r")
    made = zarr.create_array(
        target,
        shape=given.shape,
        chunks=CHUNKS,
        dtype=given.dtype,
        compressors=[ZstdCodec(), Crc32cCodec()],
    )

    def one(box: tuple[slice, ...]) -> None:
        made[box] = given[box]
        if durable:
            key = "/".join(str(s.start // c) for s, c in zip(box, CHUNKS, strict=True))
            with open(target / "c" / key, "rb") as file:
                os.fsync(file.fileno())

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, blocks(given.shape)))


def main(n: int = 768, patch: int = 64, runs: int = 3, workers: int = 2) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.zarr", Path(folder) / "out.zarr"
        make_source(source, n)

        def run(overlap: str, durability: str) -> None:
            volpatch.run(
                lambda p: p,
                source,
                target,
                patch=patch,
                overlap=overlap,
                dtype="uint16",
                chunks=CHUNKS,
                workers=workers,
                overwrite=True,
                durability=durability,
            )

        texts = []
        for durability in ("full", "process"):
            durable = durability == "full"
            timings = alternate(
                {
                    "copy": lambda durable=durable: copy(
                        source, Path(folder) / "copy.zarr", workers, durable=durable
                    ),
                    "volpatch 50 %": lambda d=durability: run("50%", d),
                    "volpatch 25 %": lambda d=durability: run("25%", d),
                },
                runs,
            )
            title = (
                f"Zarr to Zarr, identity: {n}^3 uint16, patch {patch}, {workers} workers, "
                f"durability {durability}"
            )
            texts.append(table(title, timings, n**3 / 1e6, "Mvoxel/s", against="copy"))
    return "\n".join(texts)
