"""The volumes of all benchmarks: seeded, smooth structure plus noise, made slab by slab."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
CHUNKS = (64, 128, 128)
SLAB = 64


def slabs(shape: Sequence[int], dtype: str) -> Iterator[tuple[int, Array]]:
    """First plane and voxels of each slab: 2000 +- 1600 of structure, noise of 40."""
    rng = np.random.default_rng(1)
    z, y, x = (
        np.arange(n, dtype=np.float32).reshape(-1, *(1,) * (2 - i)) for i, n in enumerate(shape)
    )
    face = 800 * np.sin(y / 31) * np.cos(x / 47)
    for start in range(0, shape[0], SLAB):
        own = z[start : start + SLAB]
        slab = rng.standard_normal((len(own), *shape[1:]), dtype=np.float32)
        slab *= 40
        slab += face + (2000 + 800 * np.sin(own / 17))
        yield start, slab.astype(dtype, copy=False)


def volume(shape: Sequence[int], dtype: str = "float32") -> Array:
    """A volume in memory."""
    out = np.empty(tuple(shape), dtype)
    for start, slab in slabs(shape, dtype):
        out[start : start + len(slab)] = slab
    return out


def image(n: int) -> Array:
    """An image of n x n pixels, float32."""
    return volume((1, n, n))[0]


def store(
    path: Path, shape: Sequence[int], chunks: Sequence[int] = CHUNKS, *, codec: bool = False
) -> Path:
    """A uint16 volume as a Zarr array, unless it is there; with our codec, or zarr's own."""
    import zarr

    from volpatch.core.options import DEFAULT_CODEC
    from volpatch.storage.compressors import Codec

    if (path / "zarr.json").exists():
        return path
    chunks = tuple(min(c, n) for c, n in zip(chunks, shape, strict=True))
    codecs: Any = Codec.parse(DEFAULT_CODEC).for_metadata(2) if codec else "auto"
    array = zarr.create_array(
        path, shape=tuple(shape), chunks=chunks, dtype="u2", compressors=codecs
    )
    for start, slab in slabs(shape, "uint16"):
        array[start : start + len(slab)] = slab
    return path
