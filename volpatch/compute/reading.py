"""Bring in what patches are cut from: an array that is there, or a ring of planes that moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.blend import Stats
from volpatch.compute.buffers import Ring
from volpatch.core.blending import BlendSpec
from volpatch.core.box import Box
from volpatch.core.grid import PatchGrid

Array = NDArray[Any]
Read = Callable[[Box, Array], None]


def padded_index(size: int, start: int, stop: int, mode: str) -> NDArray[np.int64]:
    """Where each voxel of [start, stop) comes from when an axis is padded; -1 for a constant.

    Agrees with `np.pad` of the whole axis, but never looks at more of it.

    >>> padded_index(4, 2, 8, "reflect").tolist()
    [2, 3, 2, 1, 0, 1]
    """
    index = np.arange(start, stop, dtype=np.int64)
    if mode == "constant":
        return np.where(index < size, index, -1)
    if mode == "edge" or size == 1:
        return np.minimum(index, size - 1)
    period = 2 * size if mode == "symmetric" else 2 * (size - 1)
    index %= period
    mirrored = period - 1 - index if mode == "symmetric" else period - index
    return np.where(index < size, index, mirrored)


def read_padded(read: Read, blending: BlendSpec, box: Box, out: Array) -> int:
    """Fill `out` (channels, *box.shape) with the volume, padded where `box` hangs over.

    Returns the number of voxels that were read.
    """
    shape = blending.grid.shape
    if all(stop <= size for stop, size in zip(box.stop, shape, strict=True)):
        read(box, out)
        return box.size
    indices = [
        padded_index(n, a, b, blending.pad_mode)
        for n, a, b in zip(shape, box.start, box.stop, strict=True)
    ]
    if any((i < 0).all() for i in indices):
        out[...] = blending.pad_value
        return 0
    inner = Box(
        tuple(int(i[i >= 0].min()) for i in indices), tuple(int(i.max()) + 1 for i in indices)
    )
    values = np.empty((out.shape[0], *inner.shape), out.dtype)
    read(inner, values)
    for axis, (index, first) in enumerate(zip(indices, inner.start, strict=True)):
        taken = np.take(values, np.maximum(index - first, 0), axis=axis + 1)
        if (index < 0).any():
            taken[(slice(None),) * (axis + 1) + (index < 0,)] = blending.pad_value
        values = taken
    out[...] = values
    return inner.size


class ArrayInput:
    """Patches cut straight from a C-contiguous array in memory; nothing is copied first."""

    def __init__(self, array: Array) -> None:
        shape = array.shape[1:]
        origin = (0,) * len(shape)
        self.ring = Ring(array.reshape(-1), origin, shape[0], shape[1:], array.shape[0])

    def load(self, start: int, stop: int, stats: Stats) -> None:
        """Everything is there already."""


class RingInput:
    """The planes that the current row of patches needs, read up to where stored chunks end.

    Parameters
    ----------
    blending : of the patches.
    reach : what all rows need; it may hang over the volume's far end.
    ring : for what one row needs and the rest of the layer that its last plane lies in.
    read : reads boxes of the volume.
    next_border : where the layer ends that a plane of the volume lies in.
    """

    def __init__(
        self,
        blending: BlendSpec,
        reach: Box,
        ring: Ring,
        read: Read,
        next_border: Callable[[int], int],
    ) -> None:
        self._blending, self._reach, self._read = blending, reach, read
        self._next_border, self.ring = next_border, ring
        self._loaded = reach.start[0]

    @classmethod
    def in_layers(
        cls, blending: BlendSpec, numbers: tuple[range, ...], read: Read, layer: int
    ) -> RingInput:
        """For the patches `numbers`, with layers of equal thickness."""
        reach = reach_of(blending.grid, numbers)
        start = reach.start[0] // layer * layer
        planes = min(reach.stop[0] - start, blending.grid.axes[0].planes_held(layer))
        dtype = blending.input_dtype if blending.halves else blending.source_dtype
        # whole layers from a layer's edge on: none wraps
        box = Box((start, *reach.start[1:]), reach.stop)
        ring = Ring.new(box, planes, blending.channels_in or 1, dtype)
        return cls(blending, reach, ring, read, lambda plane: (plane // layer + 1) * layer)

    def load(self, start: int, stop: int, stats: Stats) -> None:
        """Make the planes [start, stop) present; those before `start` are given up."""
        self._loaded = max(self._loaded, start)
        size, end = self._blending.grid.shape[0], self._reach.stop[0]
        while self._loaded < stop:
            padding = self._loaded >= size
            border = end if padding else min(end, size, self._next_border(self._loaded))
            with stats.clock("read"):
                if len(self.ring.runs(self._loaded, border)) > 1:
                    self._to_front(start)  # a layer in two pieces would be decoded twice
                ((_, piece),) = self.ring.runs(self._loaded, border)
                box = Box((self._loaded, *self._reach.start[1:]), (border, *self._reach.stop[1:]))
                stats.voxels_read += read_padded(self._read, self._blending, box, piece)
            self._loaded = border

    def _to_front(self, start: int) -> None:
        """Move the planes from `start` on to the beginning of the buffer."""
        planes = self.ring.array
        behind = (start - self.ring.origin[0]) % self.ring.planes
        for i in range(self._loaded - start):
            planes[:, i] = planes[:, behind + i]
        self.ring = replace(self.ring, origin=(start, *self.ring.origin[1:]))


def reach_of(grid: PatchGrid, numbers: tuple[range, ...]) -> Box:
    """The box that the patches `numbers` cover; it may hang over the volume's far end."""
    first = tuple(a.start(n[0]) for a, n in zip(grid.axes, numbers, strict=True))
    last = tuple(a.start(n[-1]) + a.patch for a, n in zip(grid.axes, numbers, strict=True))
    return Box(first, last)
