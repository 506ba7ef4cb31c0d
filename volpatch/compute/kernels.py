"""Cut patches out of a buffer, and put them back by their shares.

Two loops over flat memory, compiled without any fastmath flag, so that the bits never
depend on how long a line is or on where a region ends:

    cut     buffer line -> batch line          cast on the way
    blend   batch line -> accumulator          in raster order of the patches

Buffers are rings along the first axis: plane p lives at p modulo the ring's length, so
that a slab can move through a volume without being copied. Arrays have any number of
axes; a line is a run along the last one, and all others are walked like an odometer.

    a ring of 4 planes, origin 0, that holds planes 6 to 9 of the volume

        place   0   1   2   3            a patch of planes 7, 8, 9 and rows 2 to 4
        plane   8   9   6   7
               row 0  ........           plane 7:  row 2  ..======..   <- a line: what the
               row 1  ........                     row 3  ..======..      compiled loops copy
               row 2  ..======..                   row 4  ..======..      or add in one go
               row 3  ..======..         plane 8:  row 2  ..======..
               row 4  ..======..         ...       (place 0: it wraps here)
                        ^    ^
                       lo    hi          the part of the line that counts in this box

What is done with a line depends on the kind of sums it comes to (`Added`, `Selected`, ...): each
kind has a loop of its own, and only those that are used are compiled.

A row of patches, elsewhere, are those that begin at the same plane: while one is computed, the
ring holds all that any of its patches needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.buffers import Patches, PatchTables, Ring, RingLayout
from volpatch.compute.compiled import compiled, compiled_by_kind, inner
from volpatch.core.blending import Mode

Array = NDArray[Any]

# numba has no such numbers; they travel as bits of the same size where they are only copied
_BITS: dict[Any, Any] = {
    np.dtype(np.float16): np.dtype(np.uint16),
    np.dtype(np.bool_): np.dtype(np.uint8),
}
FAR = np.iinfo(np.int64).max
_NO_RING = 2**62  # a length that no position is beyond


def as_numbers(array: Array) -> Array:
    """The same memory, seen as a dtype that the kernels know."""
    return array.view(_BITS[array.dtype]) if array.dtype in _BITS else array


def cut(ring: Ring, tables: PatchTables, ids: NDArray[np.int64], batch: Array) -> None:
    """Copy the patches `ids` out of the ring into `batch`, casting to its dtype.

    Parameters
    ----------
    ring : holds every plane of these patches.
    ids : (B,) patch numbers of this box, ascending.
    batch : (B, channels, *patch), C order; filled.
    """
    source, target = ring.flat, batch.reshape(-1)
    if source.dtype == target.dtype:
        source, target = as_numbers(source), as_numbers(target)
    arrays = tables.arrays
    _cut(source, target, ids, arrays, ring.layout, Odometer.of(arrays))


@dataclass(frozen=True, slots=True)
class Sums:
    """The accumulator of a region, and what is kept beside it where patches may be missing.

    values : ring of sums (or of selected values).
    present : flat, the shares that came; looked at only where one is missing.
    touched : flat bytes, 1 where a patch or a value is missing (with max and min: where
        there is any value).
    nearest : flat int64, squared distance (doubled voxels) to the centre selected so far.
    owner : flat int64, number of the patch selected so far, where patches may come in any
        order: of two that are as near it is the earlier one.
    """

    values: Ring
    present: Array
    touched: Array
    nearest: Array
    owner: Array

    @classmethod
    def new(cls, ring: Ring, mode: Mode, *, ordered: bool = True) -> Sums:
        """Sums for a ring of zeros, with as much beside it as the mode needs."""
        n, dtype = ring.flat.size, ring.flat.dtype
        marks = mode in (Mode.PRESENT, Mode.MAX, Mode.MIN)
        return cls(
            ring,
            np.zeros(n if mode is Mode.PRESENT else 1, np.result_type(dtype, np.float32)),
            np.zeros(n if marks else 1, np.uint8),
            np.full(n if mode is Mode.NEAREST else 1, FAR, np.int64),
            np.full(n if mode is Mode.NEAREST and not ordered else 0, FAR, np.int64),
        )


def blend(
    sums: Sums,
    tables: PatchTables,
    ids: NDArray[np.int64],
    values: Array,
    mode: Mode,
    *,
    omit: bool = False,
) -> None:
    """Blend the patches `ids` into the sums, in their order.

    Parameters
    ----------
    values : (B, channels, *patch), C order.
    mode : add share x value, select, or keep the largest or smallest.
    omit : leave NaNs out, as if their voxels were missing in that patch.
    """
    accumulator, flat = sums.values.flat, values.reshape(-1)
    if accumulator.dtype == flat.dtype:
        accumulator, flat = as_numbers(accumulator), as_numbers(flat)
    elif flat.dtype in _BITS:
        flat = flat.astype(np.float32 if flat.dtype == np.float16 else np.uint8)
    _walk(_target(sums, accumulator, mode, omit), sums, tables, ids, flat)


def touch(sums: Sums, tables: PatchTables, ids: NDArray[np.int64]) -> None:
    """Note that the patches `ids` are missing."""
    _walk(Touched(sums.touched), sums, tables, ids, sums.touched[:0])


def _walk(
    target: tuple[Any, ...],
    sums: Sums,
    tables: PatchTables,
    ids: NDArray[np.int64],
    values: Array,
) -> None:
    arrays = tables.arrays
    _blend(target, values, ids, arrays, sums.values.layout, Odometer.of(arrays))


# -- kinds of sums: what lines come to, flat ---------------------------------------------------


class Added(NamedTuple):
    """Sums of share x value."""

    values: Array


class Selected(NamedTuple):
    """The value of the one patch that comes to a voxel."""

    values: Array


class Weighed(NamedTuple):
    """Sums of share x value, of the shares that came, and marks where one did not."""

    values: Array
    present: Array
    touched: Array
    omit: bool


class Nearest(NamedTuple):
    """The value of the patch whose centre is nearest, the first of two as near."""

    values: Array
    away: Array
    omit: bool


class NearestOfAny(NamedTuple):
    """The same where patches come in any order."""

    values: Array
    away: Array
    owner: Array
    omit: bool


class Extreme(NamedTuple):
    """The largest value, or the smallest, and marks where there is any."""

    values: Array
    touched: Array
    largest: bool
    omit: bool


class Touched(NamedTuple):
    """Marks where a patch does not come."""

    touched: Array


def _target(sums: Sums, accumulator: Array, mode: Mode, omit: bool) -> tuple[Any, ...]:
    if mode is Mode.ADD:
        return Added(accumulator)
    if mode is Mode.SELECT:
        return Selected(accumulator)
    if mode is Mode.PRESENT:
        return Weighed(accumulator, sums.present, sums.touched, omit)
    if mode is not Mode.NEAREST:
        return Extreme(accumulator, sums.touched, mode is Mode.MAX, omit)
    if sums.owner.size:
        return NearestOfAny(accumulator, sums.nearest, sums.owner, omit)
    return Nearest(accumulator, sums.nearest, omit)


# -- the odometer: planes of patches, patch after patch ----------------------------------------


class Odometer(NamedTuple):
    """Which plane of which patch the loops are at.

    Attributes
    ----------
    position : of the patch in the lattice.
    at, low, high : the plane, and where planes begin and end, along all axes but the last two.
    """

    position: Array
    at: Array
    low: Array
    high: Array

    @classmethod
    def of(cls, patches: Patches) -> Odometer:
        n = patches.patch.size
        return cls(np.zeros(n, np.int64), *np.zeros((3, n - 2), np.int64))


class Lines(NamedTuple):
    """The lines of one plane of one patch, as far as they count.

    Attributes
    ----------
    base, row, planes, step : line k begins at base + (row + k) % planes * step.
    start, stop, length : the lines, and how many voxels of each.
    there, width : its values begin at there + k * width.
    weight, share_y, share_x : the share of a voxel is weight * shares[share_y + k] *
        shares[share_x + i].
    squared, half, off : how far voxels are from the patch's centre, doubled: squared over the
        axes before the lines', then 2 k - half and off + 2 i.
    number : of the patch.
    """

    base: int
    row: int
    planes: int
    step: int
    start: int
    stop: int
    length: int
    there: int
    width: int
    weight: float
    share_y: int
    share_x: int
    squared: int
    half: int
    off: int
    number: int


@inner
def _line(base: int, position: int, planes: int, step: int) -> int:
    """Where a line begins, of a ring that may wrap before it."""
    if position >= planes:
        position %= planes
    return base + position * step


@inner
def _find(number: int, patches: Patches, whole: bool, odometer: Odometer) -> int:
    """Go to the first plane of a patch, of all of it or of what counts; gives their number."""
    index, at, low, high = odometer
    for axis in range(index.size - 1, -1, -1):
        index[axis] = number % patches.lattice[axis]
        number //= patches.lattice[axis]
    planes = 1
    for axis in range(at.size):
        place = patches.first[axis] + index[axis]
        low[axis] = 0 if whole else patches.lo[place]
        high[axis] = patches.patch[axis] if whole else patches.hi[place]
        at[axis] = low[axis]
        planes *= max(0, high[axis] - low[axis])
    return planes


@inner
def _plane(patches: Patches, layout: RingLayout, odometer: Odometer) -> int:
    """Where the plane begins in memory, but for its lines and where they begin."""
    index, at = odometer.position, odometer.at
    base: int = -layout.origin[-1]
    for axis in range(at.size):
        p = patches.starts[patches.first[axis] + index[axis]] - layout.origin[axis] + at[axis]
        if axis == 0:
            p %= layout.planes
        base += p * layout.steps[axis]
    return base


@inner
def _advance(odometer: Odometer) -> None:
    """Go to the next plane; after the last one, to the first."""
    for axis in range(odometer.at.size - 1, -1, -1):
        odometer.at[axis] += 1
        if odometer.at[axis] < odometer.high[axis]:
            break
        odometer.at[axis] = odometer.low[axis]


@inner
def _copy_lines(
    source: Array,
    base: int,
    row: int,
    planes: int,
    step: int,
    target: Array,
    there: int,
    count: int,
    width: int,
) -> None:
    """Copy lines; all that does not change is out of the loop."""
    for k in range(count):
        here = _line(base, row + k, planes, step)
        line = source[here : here + width]
        out = target[there + k * width : there + (k + 1) * width]
        for i in range(width):
            out[i] = line[i]


@compiled
def _cut(
    source: Array,
    target: Array,
    ids: Array,
    patches: Patches,
    layout: RingLayout,
    odometer: Odometer,
) -> None:
    n = patches.patch.size
    x, y = n - 1, n - 2
    width, height = patches.patch[x], patches.patch[y]
    index = odometer.position
    there = 0
    for b in range(ids.size):
        planes = _find(ids[b], patches, True, odometer)
        row = patches.starts[patches.first[y] + index[y]] - layout.origin[y]
        begin = patches.starts[patches.first[x] + index[x]]
        ring = layout.planes if y == 0 else _NO_RING
        for c in range(layout.channels):
            for _ in range(planes):
                base = c * layout.channel_step + _plane(patches, layout, odometer) + begin
                _copy_lines(source, base, row, ring, layout.steps[y], target, there, height, width)
                there += height * width
                _advance(odometer)


@inner
def _run_end(ids: Array, b: int, row: int, last: int) -> int:
    """End of the run of patches, from b on, that follow each other along the last axis."""
    end = b + 1
    while end < ids.size and ids[end] == ids[end - 1] + 1 and row + (end - b) < last:
        end += 1
    return end


@compiled
def _blend(
    sums: Any,
    values: Array,
    ids: Array,
    patches: Patches,
    layout: RingLayout,
    odometer: Odometer,
) -> None:
    n = patches.patch.size
    x, y = n - 1, n - 2
    width, height = patches.patch[x], patches.patch[y]
    size = 1
    for axis in range(n):
        size *= patches.patch[axis]
    index = odometer.position
    b = 0
    while b < ids.size:
        planes = _find(ids[b], patches, False, odometer)
        end = _run_end(ids, b, index[x], patches.lattice[x])
        top = patches.first[y] + index[y]
        # a run plane by plane, so that what its patches share is in cache
        for c in range(layout.channels):
            for _ in range(planes):
                base = c * layout.channel_step + _plane(patches, layout, odometer)
                inside, weight, squared = 0, 1.0, 0
                for axis in range(y):
                    plane = odometer.at[axis]
                    inside = inside * patches.patch[axis] + plane
                    d = 2 * plane - patches.patch[axis] + 1
                    squared += d * d
                    share = patches.first_share[axis] + index[axis] * patches.patch[axis] + plane
                    weight *= patches.shares[share]
                for r in range(b, end):
                    place = patches.first[x] + index[x] + (r - b)
                    begin = patches.lo[place]
                    share_x = patches.first_share[x] + (index[x] + r - b) * width + begin
                    lines = Lines(
                        base + patches.starts[place] + begin,
                        patches.starts[top] - layout.origin[y],
                        layout.planes if y == 0 else _NO_RING,
                        layout.steps[y],
                        patches.lo[top],
                        patches.hi[top],
                        max(0, patches.hi[place] - begin),
                        (r * layout.channels + c) * size + inside * height * width + begin,
                        width,
                        weight,
                        patches.first_share[y] + index[y] * height,
                        share_x,
                        squared,
                        height - 1,
                        2 * begin - width + 1,
                        ids[r],
                    )
                    _put(sums, values, patches.shares, lines)
                _advance(odometer)
        b = end


# -- what is done with lines, for each kind of sums --------------------------------------------


@inner
def _add_lines(
    accumulator: Array,
    base: int,
    row: int,
    planes: int,
    step: int,
    values: Array,
    there: int,
    width: int,
    part: Array,
    column: Array,
    weight: float,
) -> None:
    """Add lines; all that does not change is out of the loop."""
    cast = accumulator.dtype.type
    count = part.size
    for k in range(column.size):
        here = _line(base, row + k, planes, step)
        line = accumulator[here : here + count]
        value = values[there + k * width : there + k * width + count]
        share = weight * column[k]
        for i in range(count):
            line[i] += cast(share * part[i]) * cast(value[i])


def _add(sums: Added, values: Array, shares: Array, at: Lines) -> None:
    _add_lines(
        sums.values,
        at.base,
        at.row + at.start,
        at.planes,
        at.step,
        values,
        at.there + at.start * at.width,
        at.width,
        shares[at.share_x : at.share_x + at.length],
        shares[at.share_y + at.start : at.share_y + at.stop],
        at.weight,
    )


def _select(sums: Selected, values: Array, shares: Array, at: Lines) -> None:
    accumulator, count = sums.values, at.length
    cast = accumulator.dtype.type
    for k in range(at.start, at.stop):
        here, there = _line(at.base, at.row + k, at.planes, at.step), at.there + k * at.width
        line, value = accumulator[here : here + count], values[there : there + count]
        for i in range(count):
            line[i] = cast(value[i])


def _weigh(sums: Weighed, values: Array, shares: Array, at: Lines) -> None:
    present, touched = sums.present, sums.touched
    accumulator, count = sums.values, at.length
    cast = accumulator.dtype.type
    part = shares[at.share_x : at.share_x + count]
    for k in range(at.start, at.stop):
        here, there = _line(at.base, at.row + k, at.planes, at.step), at.there + k * at.width
        line, value = accumulator[here : here + count], values[there : there + count]
        came, mark = present[here : here + count], touched[here : here + count]
        weight = at.weight * shares[at.share_y + k]
        for i in range(count):
            if sums.omit and value[i] != value[i]:
                mark[i] = 1
            else:
                line[i] += cast(weight * part[i]) * cast(value[i])
                came[i] += cast(weight * part[i])


def _take_nearest(sums: Nearest, values: Array, shares: Array, at: Lines) -> None:
    distances = sums.away
    accumulator, count = sums.values, at.length
    cast = accumulator.dtype.type
    for k in range(at.start, at.stop):
        here, there = _line(at.base, at.row + k, at.planes, at.step), at.there + k * at.width
        line, value = accumulator[here : here + count], values[there : there + count]
        away = distances[here : here + count]
        across = at.squared + (2 * k - at.half) * (2 * k - at.half)
        for i in range(count):
            d = at.off + 2 * i
            near = across + d * d
            if near < away[i] and not (sums.omit and value[i] != value[i]):
                line[i] = cast(value[i])
                away[i] = near


def _take_nearest_of_any(sums: NearestOfAny, values: Array, shares: Array, at: Lines) -> None:
    distances, owners = sums.away, sums.owner
    accumulator, count = sums.values, at.length
    cast = accumulator.dtype.type
    for k in range(at.start, at.stop):
        here, there = _line(at.base, at.row + k, at.planes, at.step), at.there + k * at.width
        line, value = accumulator[here : here + count], values[there : there + count]
        away, owner = distances[here : here + count], owners[here : here + count]
        across = at.squared + (2 * k - at.half) * (2 * k - at.half)
        for i in range(count):
            d = at.off + 2 * i
            near = across + d * d
            nearer = near < away[i] or (near == away[i] and at.number < owner[i])
            if nearer and not (sums.omit and value[i] != value[i]):
                line[i] = cast(value[i])
                away[i] = near
                owner[i] = at.number


def _take_extreme(sums: Extreme, values: Array, shares: Array, at: Lines) -> None:
    touched = sums.touched
    accumulator, count = sums.values, at.length
    cast = accumulator.dtype.type
    for k in range(at.start, at.stop):
        here, there = _line(at.base, at.row + k, at.planes, at.step), at.there + k * at.width
        line, value = accumulator[here : here + count], values[there : there + count]
        mark = touched[here : here + count]
        for i in range(count):
            v = cast(value[i])
            if sums.omit and v != v:
                continue
            better = v > line[i] if sums.largest else v < line[i]
            if better or v != v or mark[i] == 0:
                line[i] = v
            mark[i] = 1


def _mark(sums: Touched, values: Array, shares: Array, at: Lines) -> None:
    touched = sums.touched
    for k in range(at.start, at.stop):
        here = _line(at.base, at.row + k, at.planes, at.step)
        for i in range(here, here + at.length):
            touched[i] = 1


_put = compiled_by_kind(
    {
        Added: _add,
        Selected: _select,
        Weighed: _weigh,
        Nearest: _take_nearest,
        NearestOfAny: _take_nearest_of_any,
        Extreme: _take_extreme,
        Touched: _mark,
    }
)
