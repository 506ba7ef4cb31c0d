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

A row of patches, elsewhere, are those that begin at the same plane: while one is computed, the
ring holds all that any of its patches needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.buffers import PatchTables, Ring
from volpatch.compute.compiled import compiled
from volpatch.core.blending import Mode

Array = NDArray[Any]

# numba has no such numbers; they travel as bits of the same size where they are only copied
_BITS: dict[Any, Any] = {
    np.dtype(np.float16): np.dtype(np.uint16),
    np.dtype(np.bool_): np.dtype(np.uint8),
}
FAR = np.iinfo(np.int64).max
_NO_RING = 2**62  # a length that no position is beyond
_ADD, _SELECT, _PRESENT, _NEAREST, _NEAREST_OF_ANY, _MAX, _MIN, _TOUCH = range(8)
_MODES = {
    Mode.ADD: _ADD,
    Mode.SELECT: _SELECT,
    Mode.PRESENT: _PRESENT,
    Mode.NEAREST: _NEAREST,
    Mode.MAX: _MAX,
    Mode.MIN: _MIN,
}


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
    _cut(
        source,
        target,
        ids,
        tables.lattice,
        tables.patch,
        tables.starts,
        tables.first,
        ring.corner,
        ring.planes,
        ring.steps,
        ring.channels,
        ring.channel_step,
    )


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
    number = _NEAREST_OF_ANY if sums.owner.size else _MODES[mode]
    _walk(sums, accumulator, tables, ids, flat, number, omit)


def touch(sums: Sums, tables: PatchTables, ids: NDArray[np.int64]) -> None:
    """Note that the patches `ids` are missing."""
    flat = as_numbers(sums.values.flat)
    _walk(sums, flat, tables, ids, flat[:0], _TOUCH, False)


def _walk(
    sums: Sums,
    accumulator: Array,
    tables: PatchTables,
    ids: NDArray[np.int64],
    values: Array,
    mode: int,
    omit: bool,
) -> None:
    ring = sums.values
    _blend(
        mode,
        omit,
        accumulator,
        sums.present,
        sums.touched,
        sums.nearest,
        sums.owner,
        values,
        ids,
        tables.lattice,
        tables.patch,
        tables.starts,
        tables.lo,
        tables.hi,
        tables.first,
        tables.shares,
        tables.first_share,
        ring.corner,
        ring.planes,
        ring.steps,
        ring.channels,
        ring.channel_step,
    )


@compiled
def _place(number: int, lattice: Array, index: Array) -> None:
    for axis in range(lattice.size - 1, -1, -1):
        index[axis] = number % lattice[axis]
        number //= lattice[axis]


@compiled
def _copy_lines(
    source: Array,
    base: int,
    top: int,
    planes: int,
    step: int,
    target: Array,
    there: int,
    count: int,
    width: int,
) -> None:
    """Copy the lines of one plane of one patch; all that does not change is out of the loop."""
    for k in range(count):
        p = top + k
        if p >= planes:
            p %= planes
        here = base + p * step
        line = source[here : here + width]
        out = target[there + k * width : there + (k + 1) * width]
        for i in range(width):
            out[i] = line[i]


@compiled
def _cut(
    source: Array,
    target: Array,
    ids: Array,
    lattice: Array,
    patch: Array,
    starts: Array,
    first: Array,
    origin: Array,
    planes: int,
    steps: Array,
    channels: int,
    channel_step: int,
) -> None:
    n = patch.size
    x, y = n - 1, n - 2
    face = patch[y] * patch[x]
    outer = 1
    for axis in range(y):
        outer *= patch[axis]
    index = np.zeros(n, np.int64)
    j = np.zeros(n, np.int64)
    there = 0
    for b in range(ids.size):
        _place(ids[b], lattice, index)
        for c in range(channels):
            j[:] = 0
            for _ in range(outer):
                base = c * channel_step + starts[first[x] + index[x]] - origin[x]
                for axis in range(y):
                    p = starts[first[axis] + index[axis]] - origin[axis] + j[axis]
                    if axis == 0:
                        p = p % planes
                    base += p * steps[axis]
                _copy_lines(
                    source,
                    base,
                    starts[first[y] + index[y]] - origin[y],
                    planes if y == 0 else _NO_RING,
                    steps[y],
                    target,
                    there,
                    patch[y],
                    patch[x],
                )
                there += face
                for axis in range(y - 1, -1, -1):
                    j[axis] += 1
                    if j[axis] < patch[axis]:
                        break
                    j[axis] = 0


@compiled
def _run_end(ids: Array, b: int, row: int, last: int) -> int:
    """End of the run of patches, from b on, that follow each other along the last axis."""
    end = b + 1
    while end < ids.size and ids[end] == ids[end - 1] + 1 and row + (end - b) < last:
        end += 1
    return end


@compiled
def _add_lines(
    accumulator: Array,
    base: int,
    top: int,
    planes: int,
    step: int,
    values: Array,
    there: int,
    width: int,
    start: int,
    stop: int,
    outer_weight: float,
    shares: Array,
    share_y: int,
    share_x: int,
    count: int,
) -> None:
    """Add the lines of one plane of one patch; all that does not change is out of the loop."""
    cast = accumulator.dtype.type
    if count <= 0:
        return
    part = shares[share_x : share_x + count]
    for k in range(start, stop):
        p = top + k
        if p >= planes:
            p %= planes
        here = base + p * step
        line = accumulator[here : here + count]
        value = values[there + k * width : there + k * width + count]
        weight = outer_weight * shares[share_y + k]
        for i in range(count):
            line[i] += cast(weight * part[i]) * cast(value[i])


@compiled
def _put_line(
    mode: int,
    omit: bool,
    accumulator: Array,
    present: Array,
    touched: Array,
    nearest: Array,
    owner: Array,
    number: int,
    here: int,
    values: Array,
    there: int,
    count: int,
    weight: float,
    shares: Array,
    share: int,
    squared: int,
    off: int,
) -> None:
    """Put one line of one patch where it belongs, in every mode but `_ADD`.

    `squared` and `off` say how far the line's first voxel is from the patch's centre: squared
    across the line, and doubled along it.
    """
    cast = accumulator.dtype.type
    if count <= 0:
        return
    if mode == _TOUCH:
        touched[here : here + count] = 1
        return
    line = accumulator[here : here + count]
    value = values[there : there + count]
    if mode == _SELECT:
        for i in range(count):
            line[i] = cast(value[i])
    elif mode == _PRESENT:
        part = shares[share : share + count]
        came = present[here : here + count]
        mark = touched[here : here + count]
        for i in range(count):
            if omit and value[i] != value[i]:
                mark[i] = 1
            else:
                line[i] += cast(weight * part[i]) * cast(value[i])
                came[i] += cast(weight * part[i])
    elif mode == _NEAREST:
        away = nearest[here : here + count]
        for i in range(count):
            d = off + 2 * i
            near = squared + d * d
            if near < away[i] and not (omit and value[i] != value[i]):
                line[i] = cast(value[i])
                away[i] = near
    elif mode == _NEAREST_OF_ANY:
        away = nearest[here : here + count]
        owns = owner[here : here + count]
        for i in range(count):
            d = off + 2 * i
            near = squared + d * d
            nearer = near < away[i] or (near == away[i] and number < owns[i])
            if nearer and not (omit and value[i] != value[i]):
                line[i] = cast(value[i])
                away[i] = near
                owns[i] = number
    else:
        mark = touched[here : here + count]
        for i in range(count):
            v = cast(value[i])
            if omit and v != v:
                continue
            better = v > line[i] if mode == _MAX else v < line[i]
            if better or v != v or mark[i] == 0:
                line[i] = v
            mark[i] = 1


@compiled
def _blend(
    mode: int,
    omit: bool,
    accumulator: Array,
    present: Array,
    touched: Array,
    nearest: Array,
    owner: Array,
    values: Array,
    ids: Array,
    lattice: Array,
    patch: Array,
    starts: Array,
    lo: Array,
    hi: Array,
    first: Array,
    shares: Array,
    first_share: Array,
    origin: Array,
    planes: int,
    steps: Array,
    channels: int,
    channel_step: int,
) -> None:
    n = patch.size
    x, y = n - 1, n - 2
    width = patch[x]
    size = 1
    for axis in range(n):
        size *= patch[axis]
    index = np.zeros(n, np.int64)
    j = np.zeros(n, np.int64)
    b = 0
    while b < ids.size:
        _place(ids[b], lattice, index)
        end = _run_end(ids, b, index[x], lattice[x])
        # planes, and lines within them, of which each patch of this row has a part
        top = first[y] + index[y]
        outer = 1
        for axis in range(y):
            outer *= max(0, hi[first[axis] + index[axis]] - lo[first[axis] + index[axis]])
        for c in range(channels):
            for axis in range(y):
                j[axis] = lo[first[axis] + index[axis]]
            for _ in range(outer):
                base = c * channel_step - origin[x]
                inside = 0
                outer_weight = 1.0
                outer_squared = 0
                for axis in range(y):
                    place = first[axis] + index[axis]
                    p = starts[place] - origin[axis] + j[axis]
                    if axis == 0:
                        p = p % planes
                    base += p * steps[axis]
                    inside = inside * patch[axis] + j[axis]
                    d = 2 * j[axis] - patch[axis] + 1
                    outer_squared += d * d
                    outer_weight *= shares[first_share[axis] + index[axis] * patch[axis] + j[axis]]
                row = starts[top] - origin[y]
                ring = planes if y == 0 else _NO_RING
                share_y = first_share[y] + index[y] * patch[y]
                for r in range(b, end):
                    place = first[x] + index[x] + (r - b)
                    here = base + starts[place] + lo[place]
                    there = (r * channels + c) * size + inside * patch[y] * width + lo[place]
                    share_x = first_share[x] + (index[x] + r - b) * width + lo[place]
                    count = hi[place] - lo[place]
                    if mode == _ADD:
                        _add_lines(
                            accumulator,
                            here,
                            row,
                            ring,
                            steps[y],
                            values,
                            there,
                            width,
                            lo[top],
                            hi[top],
                            outer_weight,
                            shares,
                            share_y,
                            share_x,
                            count,
                        )
                        continue
                    for k in range(lo[top], hi[top]):
                        d = 2 * k - patch[y] + 1
                        _put_line(
                            mode,
                            omit,
                            accumulator,
                            present,
                            touched,
                            nearest,
                            owner,
                            ids[r],
                            here + (row + k) % ring * steps[y],
                            values,
                            there + k * width,
                            count,
                            outer_weight * shares[share_y + k],
                            shares,
                            share_x,
                            outer_squared + d * d,
                            2 * lo[place] - width + 1,
                        )
                for axis in range(y - 1, -1, -1):
                    place = first[axis] + index[axis]
                    j[axis] += 1
                    if j[axis] < hi[place]:
                        break
                    j[axis] = lo[place]
        b = end
