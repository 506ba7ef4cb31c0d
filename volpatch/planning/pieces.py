"""One axis of a volume, cut into the edges of regions: what each piece needs of patches and chunks.

Whole numbers only. What is the same for all axes, such as the product over them, is the plan's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from volpatch.core.grid import AxisGrid

# of the pieces of an axis that are walked over: sums over a longer period are estimates
LONGEST_PERIOD = 2**14


@dataclass(frozen=True, slots=True)
class AxisPieces:
    """One axis of the output, cut into region edges.

    >>> AxisPieces(start=0, stop=100, edge=32).pieces
    4
    """

    start: int
    stop: int
    edge: int

    @property
    def pieces(self) -> int:
        return -(-(self.stop - self.start) // self.edge)

    def bounds(self, number: int) -> tuple[int, int]:
        first = self.start + number * self.edge
        return first, min(first + self.edge, self.stop)

    def total(self, axis: AxisGrid, value: Callable[[int, int], int], chunk: int = 1) -> int:
        """Sum of `value(start, stop)` over the pieces that patches of `axis` may touch.

        `value` depends on patches and chunks from the first patch that a piece touches to the
        last. Far from the axis' ends it repeats itself, and is not computed again.
        """
        count = axis.count
        if count == 0:
            return 0
        first, last = axis.start(0), axis.start(count - 1) + axis.patch
        # whatever lies before this place has whole chunks and regular patches only
        regular = min(axis.start(max(0, count - 2)), axis.size // chunk * chunk - axis.patch)
        low = max(0, (first - self.start) // self.edge)
        high = min(self.pieces, -(-(last - self.start) // self.edge))
        inner = max(low, -(-(first + axis.patch - self.start) // self.edge))
        outer = min(high, self.pieces - 1, (regular - self.start) // self.edge)
        if outer <= inner:
            return sum(value(*self.bounds(k)) for k in range(low, high))
        period = math.lcm(self.edge, axis.stride, chunk) // self.edge
        period = min(period, LONGEST_PERIOD, outer - inner)
        rounds, rest = divmod(outer - inner, period)
        walked = 0
        for k in range(inner, inner + period):
            walked += value(*self.bounds(k)) * (rounds + (k - inner < rest))
        return walked + sum(
            value(*self.bounds(k)) for k in (*range(low, inner), *range(outer, high))
        )

    def typical(self) -> Iterator[tuple[int, int]]:
        """Pieces from both ends and the middle: the largest is among them."""
        n = self.pieces
        return map(self.bounds, sorted({0, min(1, n - 1), n // 2, max(0, n - 2), n - 1}))


def needed(axis: AxisGrid, own: bool, start: int, stop: int) -> range:
    """Numbers of the patches that give a value to a voxel of [start, stop)."""
    return axis.owning(start, stop) if own else axis.touching(start, stop)


@dataclass(frozen=True, slots=True)
class Figures:
    """The most that any region needs along one axis.

    reach : voxels that are read; patches : that are computed; decoded : voxels of the
    stored chunks that the reach lies in.
    """

    reach: int
    patches: int
    decoded: int


@functools.lru_cache(maxsize=2**14)
def axis_figures(axis: AxisGrid, own: bool, piece: AxisPieces, chunk: int) -> Figures:
    ends = list(piece.typical())
    reaches = [reach_along(axis, own, *e) for e in ends]
    return Figures(
        max(b - a for a, b in reaches),
        max(len(needed(axis, own, *e)) for e in ends),
        max(aligned(*r, chunk, axis.size) for r in reaches),
    )


@functools.lru_cache(maxsize=2**14)
def ring_planes(axis: AxisGrid, own: bool, piece: AxisPieces, layer: int) -> int:
    """Planes that the input ring of a region holds."""
    reaches = (reach_along(axis, own, *ends) for ends in piece.typical())
    return min(max(b - a // layer * layer for a, b in reaches), axis.planes_held(layer))


def reach_along(axis: AxisGrid, own: bool, start: int, stop: int) -> tuple[int, int]:
    """Voxels [start, stop) that are read for the patches of a piece; may hang over."""
    numbers = needed(axis, own, start, stop)
    if not numbers:
        return start, start
    return axis.start(numbers[0]), axis.start(numbers[-1]) + axis.patch


def aligned(start: int, stop: int, chunk: int, size: int) -> int:
    """Voxels of the chunks that [start, stop) lies in."""
    stop = min(stop, size)
    return max(0, min(size, -(-stop // chunk) * chunk) - start // chunk * chunk)


def patches_needed(axis: AxisGrid, own: bool, start: int, stop: int) -> int:
    return len(needed(axis, own, start, stop))


def decoded_along(axis: AxisGrid, own: bool, chunk: int, start: int, stop: int) -> int:
    """Voxels of the stored chunks that are read for a piece."""
    first, last = reach_along(axis, own, start, stop)
    return aligned(first, last, chunk, axis.size) if first < last else 0


def largest_pieces(pieces: Sequence[AxisPieces]) -> list[int]:
    return [min(p.edge, p.stop - p.start) for p in pieces]
