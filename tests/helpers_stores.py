"""Volumes on disk: made, read back, compared."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import zarr


def distinct(shape, dtype="uint16", seed=0):
    n = int(np.prod(shape))
    if np.dtype(dtype).kind == "b":
        return np.random.default_rng(seed).random(shape) > 0.5
    top = 2000 if np.dtype(dtype) == np.float16 else min(250, n) if "8" in str(dtype) else n
    return (np.random.default_rng(seed).permutation(n).reshape(shape) % top + 1).astype(dtype)


def store(path, volume, chunks=16, dims=None, **options):
    chunks = tuple(min(c, n) for c, n in zip(np.broadcast_to(chunks, volume.ndim), volume.shape,
                                             strict=True))  # fmt: skip
    array = zarr.create_array(
        path,
        shape=volume.shape,
        dtype=volume.dtype,
        chunks=tuple(map(int, chunks)),
        dimension_names=dims or "tczyx"[-volume.ndim :],
        **options,
    )
    array[...] = volume
    return path


def image(target):
    return zarr.open_array(f"{target}/scale0/image", mode="r")[...]


def same(got, wanted):
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    assert got.tobytes() == wanted.tobytes()


def objects(target):
    """Checksum of every stored object of the image."""
    base = Path(target) / "scale0" / "image" / "c"
    return {
        str(p.relative_to(base)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(base.rglob("*"))
        if p.is_file()
    }
