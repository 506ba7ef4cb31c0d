"""What the loops look up: buffers that are rings of planes, and the patches of one box."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from volpatch.core.blending import BlendSpec, Mode, rows_at_once
from volpatch.core.box import Box
from volpatch.core.grid import PatchGrid
from volpatch.core.window import axis_shares, counted

Array = NDArray[Any]


class RingLayout(NamedTuple):
    """How compiled loops find a voxel of a ring: see `Ring`.

    Attributes
    ----------
    origin, steps : the ring's first voxel, and elements from one voxel to the next, per axis.
    planes : length of the ring.
    channels, channel_step : how many, and elements from one to the next.
    """

    origin: NDArray[np.int64]
    planes: int
    steps: NDArray[np.int64]
    channels: int
    channel_step: int


class Patches(NamedTuple):
    """What compiled loops look up of patches, laid end to end per axis.

    Attributes
    ----------
    patch, lattice : extent, and number of patches, per axis.
    starts : first voxel of each patch.
    lo, hi : the part of each patch that counts: inside of the box, and where own parts are
        selected, within that.
    first, first_share : where an axis begins in starts, lo and hi, and in shares.
    shares : of each voxel of each patch.
    """

    patch: NDArray[np.int64]
    lattice: NDArray[np.int64]
    starts: NDArray[np.int64]
    lo: NDArray[np.int64]
    hi: NDArray[np.int64]
    first: NDArray[np.int64]
    shares: NDArray[np.float64]
    first_share: NDArray[np.int64]


@dataclass(frozen=True)
class Ring:
    """A buffer of planes: flat memory, the volume voxel its origin stands for, its extent.

    `flat` holds (channels, planes, *face) in C order; plane p of the volume is at
    (p - origin[0]) modulo `planes`.
    """

    flat: Array
    origin: tuple[int, ...]
    planes: int
    face: tuple[int, ...]
    channels: int = 1

    @classmethod
    def new(
        cls, box: Box, planes: int, channels: int, dtype: np.dtype[Any], fill: Any = None
    ) -> Ring:
        face = box.shape[1:]
        flat = np.empty(channels * planes * math.prod(face), dtype)
        if fill is not None:
            flat.fill(fill)
        return cls(flat, box.start, planes, face, channels)

    @property
    def array(self) -> Array:
        """(channels, planes, *face), a view."""
        return self.flat.reshape(self.channels, self.planes, *self.face)

    def runs(self, start: int, stop: int) -> list[tuple[int, Array]]:
        """Views of the planes [start, stop), in one piece or two, with their first plane.

        Two where they wrap: in a ring of 4 planes from 0 on, planes 6 to 8 lie at 2, 3 and 0.

        >>> box = Box((0, 0), (100, 5))
        >>> pieces = Ring.new(box, 4, 1, np.dtype("u1")).runs(6, 9)
        >>> [(first, view.shape[1]) for first, view in pieces]
        [(6, 2), (8, 1)]
        """
        first = (start - self.origin[0]) % self.planes
        until_wrap = min(stop - start, self.planes - first)
        pieces = [(start, self.array[:, first : first + until_wrap])]
        if until_wrap < stop - start:
            rest = stop - start - until_wrap
            pieces.append((start + until_wrap, self.array[:, :rest]))
        return pieces

    @cached_property
    def layout(self) -> RingLayout:
        """For the loops, which walk lines: a signal is a column of lines of one voxel."""
        lengths = np.array((*(self.face or (1,)), 1), dtype=np.int64)
        steps = np.cumprod(lengths[::-1])[::-1].astype(np.int64)
        corner = np.array(self.origin if self.face else (*self.origin, 0), dtype=np.int64)
        channel_step = self.planes * math.prod(self.face)
        return RingLayout(corner, self.planes, steps, self.channels, channel_step)


@dataclass(frozen=True, slots=True)
class PatchTables:
    """What is looked up for the patches of one box, or of some rows of it.

    Patch `ids` count the patches of the box in raster order of its own sub-lattice.
    """

    numbers: tuple[range, ...]  # lattice numbers of the grid, per axis
    arrays: Patches

    @classmethod
    def of(
        cls, blending: BlendSpec, box: Box, numbers: tuple[range, ...] | None = None
    ) -> PatchTables:
        """PatchTables of the patches that give a value to a voxel of `box`, or of `numbers`."""
        grid, own = blending.grid, blending.mode is Mode.SELECT
        if numbers is None:
            numbers = relevant(grid, own, box)
        starts, lo, hi, shares = [], [], [], []
        for axis, window, chosen, a, b in zip(
            grid.axes, blending.windows, numbers, box.start, box.stop, strict=True
        ):
            n, part = len(chosen), axis.own if own else axis.span
            first, stop = counted(window, axis.patch) if blending.averages else (0, axis.patch)
            at = np.fromiter(map(axis.start, chosen), np.int64, n)
            starts.append(at)
            here = np.fromiter((max(part(i)[0], a) for i in chosen), np.int64, n) - at
            lo.append(np.maximum(here, first))
            here = np.fromiter((min(part(i)[1], b) for i in chosen), np.int64, n) - at
            hi.append(np.minimum(here, stop))
            weights = np.ones((n, axis.patch))  # the loops look one up also where all are alike
            if blending.averages:
                for some in _some(chosen, axis.patch):
                    place = some.start - chosen.start
                    weights[place : place + len(some)] = axis_shares(axis, window, some)
            shares.append(weights.ravel())
        patch = list(grid.patch)
        if grid.ndim == 1:  # the loops walk lines: a signal is a column of lines of one voxel
            one = np.ones(1, dtype=np.int64)
            for column, value in ((starts, 0 * one), (lo, 0 * one), (hi, one)):
                column.append(value)
            shares.append(np.ones(1))
            patch.append(1)
        lengths = np.array([len(s) for s in starts], dtype=np.int64)
        share_lengths = np.array([len(s) for s in shares], dtype=np.int64)
        arrays = Patches(
            np.array(patch, dtype=np.int64),
            lengths,
            np.concatenate(starts),
            np.concatenate(lo),
            np.concatenate(hi),
            np.cumsum(lengths) - lengths,
            np.concatenate(shares),
            np.cumsum(share_lengths) - share_lengths,
        )
        return cls(numbers, arrays)

    def position(self, number: int) -> tuple[int, ...]:
        """Lattice position, in the whole grid, of patch `number` of this box."""
        where: list[int] = []
        for chosen in reversed(self.numbers):
            number, i = divmod(number, len(chosen))
            where.append(chosen[i])
        return tuple(reversed(where))


def _some(numbers: range, patch: int) -> Iterator[range]:
    step = rows_at_once(patch)
    return (numbers[i : i + step] for i in range(0, len(numbers), step))


def relevant(grid: PatchGrid, own: bool, box: Box) -> tuple[range, ...]:
    """Lattice numbers, per axis, of the patches that give a value to a voxel of `box`."""
    if not own:
        return grid.touching(box)
    return tuple(a.owning(p, q) for a, p, q in zip(grid.axes, box.start, box.stop, strict=True))
