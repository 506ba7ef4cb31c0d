"""What planning has to know of a volume that is to be read."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from volpatch.storage.chunk_check import RUN_BYTES

# stored chunks that zarr keeps on their way from the store to the ring
CHUNKS_IN_FLIGHT = 4


@dataclass(frozen=True, slots=True)
class Volume:
    """What planning has to know of a source; all axes in their canonical order."""

    path: str
    level: int
    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    series: int | str | None = None
    remarks: tuple[str, ...] = ()
    in_turn: bool = False

    @property
    def reading_bytes(self) -> int:
        """Of what a read holds besides what it was asked for."""
        itemsize = np.dtype(self.dtype).itemsize
        if self.in_turn:  # a chunk both encoded and decoded, and its neighbours in a shard
            return 2 * math.prod(self.chunks) * itemsize + RUN_BYTES
        packed = 1 if self.shards else 2
        return CHUNKS_IN_FLIGHT * math.prod(self.shards or self.chunks) * packed * itemsize
