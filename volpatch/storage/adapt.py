"""What an array must be before anything is done with it: no mask, and blocks as it says.

Arrays come from anywhere, and lose silently what is not looked for: `numpy.asarray` drops a
mask, and assigning broadcasts a block of one plane to as many as a dask array promised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.core.errors import SettingError, SourceError

Array = NDArray[Any]


def is_dask(array: Any) -> bool:
    """Whether this is a dask array, without importing dask."""
    return type(array).__module__.startswith("dask.array")


def check_chunks(array: Any) -> None:
    """Refuse chunks of unknown size: where a block lies would be unknown."""
    if any(math.isnan(size) for sizes in array.chunks for size in sizes):
        raise SettingError(
            f"the dask array has chunks of unknown size {array.chunks}; "
            f"array.compute_chunk_sizes() finds them out"
        )


def refuse_masked(array: Any, what: str) -> None:
    """Refuse a masked array, also one in a list, behind dask or in a DataArray."""
    inner = array.variable._data if hasattr(array, "variable") else array
    parts = inner if isinstance(inner, list | tuple) else [getattr(inner, "_meta", inner)]
    if any(map(np.ma.isMaskedArray, parts)):
        filled = "dask.array.ma.filled(array, VALUE)" if is_dask(inner) else "array.filled(VALUE)"
        raise SettingError(
            f"{what} is a masked array, and its mask would be lost; {filled} gives the masked "
            f"voxels a value, and mask= leaves patches out"
        )


def refuse_lie(found: Any, shape: Sequence[int], dtype: np.dtype[Any], where: str) -> None:
    """Refuse values that have another shape or dtype than was said, or a mask."""
    if np.ma.isMaskedArray(found):
        raise SourceError(
            f"{where} came as a masked array, and its mask would be lost; "
            f".filled(VALUE) in what makes it, or dask.array.ma.filled(array, VALUE)"
        )
    if found.shape != tuple(shape) or found.dtype.newbyteorder("=") != dtype.newbyteorder("="):
        raise SourceError(
            f"{where} came as {found.shape} {found.dtype}, but the array says {tuple(shape)} "
            f"{dtype}; what made it (map_blocks?) must declare the chunks and dtype that it gives"
        )


@dataclass(frozen=True)
class CheckBlock:
    """Lets a block of a dask array pass if it is what the array says."""

    chunks: tuple[tuple[int, ...], ...]
    dtype: np.dtype[Any]

    def __call__(self, block: Any, block_id: tuple[int, ...] = ()) -> Array:
        sizes = [own[i] for own, i in zip(self.chunks, block_id, strict=True)]
        first = [sum(own[:i]) for own, i in zip(self.chunks, block_id, strict=True)]
        box = ", ".join(f"{a}:{a + n}" for a, n in zip(first, sizes, strict=True))
        values: Array = np.asanyarray(block)
        refuse_lie(values, sizes, self.dtype, f"block {tuple(block_id)} at [{box}]")
        return values


def checked(array: Any) -> Any:
    """A dask array whose blocks are looked at before anything is done with them."""
    return array.map_blocks(
        CheckBlock(array.chunks, array.dtype),
        dtype=array.dtype,
        meta=array._meta,
        token="volpatch-check",
    )
