"""Cut patches out of a buffer, add them back by their shares, round what is finished.

Three loops over flat memory, compiled by numba without any fastmath flag, so that the
bits never depend on how long a line is or on where a region ends:

    cut     buffer line -> batch line          cast on the way
    add     batch line * share -> accumulator  in raster order of the patches
    finish  accumulator -> output              round half to even, clip, count what was clipped

Buffers are rings along the first axis: plane p lives at p modulo the ring's length, so
that a slab can move through a volume without being copied. Arrays have any number of
axes; a line is a run along the last one, and all others are walked like an odometer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from volpatch.errors import SettingError
from volpatch.geometry import Box, PatchGrid
from volpatch.window import Window, axis_shares

Array = NDArray[Any]
F = TypeVar("F", bound=Callable[..., Any])

# numba has no such numbers; they travel as bits of the same size where they are only copied
_BITS: dict[Any, Any] = {
    np.dtype(np.float16): np.dtype(np.uint16),
    np.dtype(np.bool_): np.dtype(np.uint8),
}


def _compiled(function: F) -> F:
    """Compile without the GIL, keeping machine code on disk where a folder allows it."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no place that numba could write its cache to
        return numba.njit(**options)(function)  # type: ignore[no-any-return]


def as_numbers(array: Array) -> Array:
    """The same memory, seen as a dtype that the kernels know."""
    return array.view(_BITS[array.dtype]) if array.dtype in _BITS else array


@dataclass(frozen=True, slots=True)
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
        flat = np.empty(channels * planes * int(np.prod(face, dtype=np.int64)), dtype)
        if fill is not None:
            flat.fill(fill)
        return cls(flat, box.start, planes, face, channels)

    @property
    def array(self) -> Array:
        """(channels, planes, *face), a view."""
        return self.flat.reshape(self.channels, self.planes, *self.face)

    def runs(self, start: int, stop: int) -> list[tuple[int, Array]]:
        """Views of the planes [start, stop), in one piece or two, with their first plane."""
        first = (start - self.origin[0]) % self.planes
        until_wrap = min(stop - start, self.planes - first)
        pieces = [(start, self.array[:, first : first + until_wrap])]
        if until_wrap < stop - start:
            rest = stop - start - until_wrap
            pieces.append((start + until_wrap, self.array[:, :rest]))
        return pieces

    @property
    def steps(self) -> NDArray[np.int64]:
        """Elements from one voxel to the next, per axis."""
        lengths = np.array((*(self.face or (1,)), 1), dtype=np.int64)
        return np.cumprod(lengths[::-1])[::-1].astype(np.int64)

    @property
    def corner(self) -> NDArray[np.int64]:
        """The origin, with as many axes as the loops walk."""
        return np.array(self.origin if self.face else (*self.origin, 0), dtype=np.int64)

    @property
    def channel_step(self) -> int:
        return self.planes * int(np.prod(self.face, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Tables:
    """What the loops look up for the patches of one box: per axis, laid end to end.

    Patch `ids` count the patches of the box in raster order of its own sub-lattice.
    """

    numbers: tuple[range, ...]  # lattice numbers of the grid, per axis
    patch: NDArray[np.int64]
    lattice: NDArray[np.int64]
    starts: NDArray[np.int64]
    lo: NDArray[np.int64]  # the part of each patch that counts: inside of the box, and
    hi: NDArray[np.int64]  # with window="crop" its own part only
    first: NDArray[np.int64]  # where an axis begins in starts, lo, hi
    shares: NDArray[np.float64]
    first_share: NDArray[np.int64]

    @classmethod
    def of(cls, grid: PatchGrid, windows: Sequence[Window], box: Box) -> Tables:
        crop = windows[0] == "crop"
        numbers = relevant(grid, crop, box)
        starts, lo, hi, shares = [], [], [], []
        for axis, window, chosen, a, b in zip(
            grid.axes, windows, numbers, box.start, box.stop, strict=True
        ):
            at = np.array([axis.start(i) for i in chosen], dtype=np.int64)
            parts = [axis.own(i) if crop else axis.span(i) for i in chosen]
            starts.append(at)
            lo.append(np.array([max(p, a) for p, _ in parts], dtype=np.int64) - at)
            hi.append(np.array([min(q, b) for _, q in parts], dtype=np.int64) - at)
            # ones keep the arrays' layout the same; crop never looks at them
            weights = np.ones((len(at), axis.patch))
            shares.append((weights if crop else axis_shares(axis, window, chosen)).ravel())
        patch = list(grid.patch)
        if grid.ndim == 1:  # the loops walk lines: a signal is a column of lines of one voxel
            one = np.ones(1, dtype=np.int64)
            for column, value in ((starts, 0 * one), (lo, 0 * one), (hi, one)):
                column.append(value)
            shares.append(np.ones(1))
            patch.append(1)
        lengths = np.array([len(s) for s in starts], dtype=np.int64)
        share_lengths = np.array([len(s) for s in shares], dtype=np.int64)
        return cls(
            numbers,
            np.array(patch, dtype=np.int64),
            lengths,
            np.concatenate(starts),
            np.concatenate(lo),
            np.concatenate(hi),
            np.cumsum(lengths) - lengths,
            np.concatenate(shares),
            np.cumsum(share_lengths) - share_lengths,
        )

    def position(self, number: int) -> tuple[int, ...]:
        """Lattice position, in the whole grid, of patch `number` of this box."""
        where: list[int] = []
        for chosen in reversed(self.numbers):
            number, i = divmod(number, len(chosen))
            where.append(chosen[i])
        return tuple(reversed(where))


def relevant(grid: PatchGrid, crop: bool, box: Box) -> tuple[range, ...]:
    """Lattice numbers, per axis, of the patches that give a value to a voxel of `box`."""
    if not crop:
        return grid.touching(box)
    return tuple(a.owning(p, q) for a, p, q in zip(grid.axes, box.start, box.stop, strict=True))


def cut(ring: Ring, tables: Tables, ids: NDArray[np.int64], batch: Array) -> None:
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


def add(ring: Ring, tables: Tables, ids: NDArray[np.int64], values: Array, *, select: bool) -> None:
    """Add share x value of the patches `ids` to the ring, in their order.

    Parameters
    ----------
    values : (B, channels, *patch), C order; float32 or float64 or whole numbers.
    select : copy each patch's own part instead (window="crop"); dtypes must be equal.
    """
    accumulator, flat = ring.flat, values.reshape(-1)
    if select:
        accumulator, flat = as_numbers(accumulator), as_numbers(flat)
    elif flat.dtype in _BITS:
        flat = flat.astype(np.float32 if flat.dtype == np.float16 else np.uint8)
    (_select if select else _add)(
        accumulator,
        flat,
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


@_compiled
def _place(number: int, lattice: Array, index: Array) -> None:
    for axis in range(lattice.size - 1, -1, -1):
        index[axis] = number % lattice[axis]
        number //= lattice[axis]


@_compiled
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
    width = patch[n - 1]
    lines = 1
    for axis in range(n - 1):
        lines *= patch[axis]
    index = np.zeros(n, np.int64)
    j = np.zeros(n, np.int64)
    here = 0
    for b in range(ids.size):
        _place(ids[b], lattice, index)
        for c in range(channels):
            j[:] = 0
            for _ in range(lines):
                at = c * channel_step
                for axis in range(n):
                    p = starts[first[axis] + index[axis]] - origin[axis] + j[axis]
                    if axis == 0:
                        p = p % planes
                    at += p * steps[axis]
                line = source[at : at + width]
                out = target[here : here + width]
                for i in range(width):
                    out[i] = line[i]
                here += width
                for axis in range(n - 2, -1, -1):
                    j[axis] += 1
                    if j[axis] < patch[axis]:
                        break
                    j[axis] = 0


@_compiled
def _run_end(ids: Array, b: int, row: int, last: int) -> int:
    """End of the run of patches, from b on, that follow each other along the last axis."""
    end = b + 1
    while end < ids.size and ids[end] == ids[end - 1] + 1 and row + (end - b) < last:
        end += 1
    return end


@_compiled
def _add(
    accumulator: Array,
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
    cast = accumulator.dtype.type
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
                for axis in range(y):
                    place = first[axis] + index[axis]
                    p = starts[place] - origin[axis] + j[axis]
                    if axis == 0:
                        p = p % planes
                    base += p * steps[axis]
                    inside = inside * patch[axis] + j[axis]
                    outer_weight *= shares[first_share[axis] + index[axis] * patch[axis] + j[axis]]
                for k in range(lo[top], hi[top]):
                    # a whole row of patches per line: the line stays in the fastest cache
                    p = starts[top] - origin[y] + k
                    if y == 0:
                        p = p % planes
                    at = base + p * steps[y]
                    weight = outer_weight * shares[first_share[y] + index[y] * patch[y] + k]
                    for r in range(b, end):
                        place = first[x] + index[x] + (r - b)
                        from_, count = lo[place], hi[place] - lo[place]
                        if count > 0:
                            here = at + starts[place] + from_
                            there = (r * channels + c) * size
                            there += (inside * patch[y] + k) * width + from_
                            share = first_share[x] + (index[x] + r - b) * width + from_
                            line = accumulator[here : here + count]
                            value = values[there : there + count]
                            part = shares[share : share + count]
                            for i in range(count):
                                line[i] += cast(weight * part[i]) * cast(value[i])
                for axis in range(y - 1, -1, -1):
                    place = first[axis] + index[axis]
                    j[axis] += 1
                    if j[axis] < hi[place]:
                        break
                    j[axis] = lo[place]
        b = end


@_compiled
def _select(
    accumulator: Array,
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
    x = n - 1
    index = np.zeros(n, np.int64)
    j = np.zeros(n, np.int64)
    size = 1
    for axis in range(n):
        size *= patch[axis]
    for b in range(ids.size):
        _place(ids[b], lattice, index)
        lines = 1
        for axis in range(x):
            lines *= max(0, hi[first[axis] + index[axis]] - lo[first[axis] + index[axis]])
        place = first[x] + index[x]
        from_, count = lo[place], hi[place] - lo[place]
        if count <= 0:
            continue
        for c in range(channels):
            for axis in range(x):
                j[axis] = lo[first[axis] + index[axis]]
            for _ in range(lines):
                here = c * channel_step + starts[place] + from_ - origin[x]
                inside = 0
                for axis in range(x):
                    where = first[axis] + index[axis]
                    p = starts[where] - origin[axis] + j[axis]
                    if axis == 0:
                        p = p % planes
                    here += p * steps[axis]
                    inside = inside * patch[axis] + j[axis]
                there = (b * channels + c) * size + inside * patch[x] + from_
                line = accumulator[here : here + count]
                value = values[there : there + count]
                for i in range(count):
                    line[i] = value[i]
                for axis in range(x - 1, -1, -1):
                    where = first[axis] + index[axis]
                    j[axis] += 1
                    if j[axis] < hi[where]:
                        break
                    j[axis] = lo[where]


def finish(values: Array, out: Array) -> int:
    """Write finished values as the output dtype; gives the number of values clipped.

    On the way to whole numbers: round half to even, clip to the dtype's range, NaN to 0;
    values out of range and NaNs are counted. `values` and `out` have the same shape.
    """
    if out.dtype.kind not in "iu" or values.dtype == out.dtype:
        if out.dtype == np.bool_ and values.dtype != np.bool_:
            raise SettingError(
                f"values of {values.dtype} cannot become dtype bool without a threshold; "
                f"give one with finalize="
            )
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(out, values, casting="unsafe")
        return 0
    limits = np.iinfo(out.dtype)
    if values.dtype.kind in "iub":
        small, large = int(values.min(initial=0)), int(values.max(initial=0))
        if small >= limits.min and large <= limits.max:
            np.copyto(out, values, casting="unsafe")
            return 0
        values = values.astype(np.float64)
    if values.ndim < 2:
        values, out = values[None], out[None]
    clipped = 0
    kind = out.dtype.type
    for place in np.ndindex(values.shape[:-2]):
        clipped += _round(
            np.ascontiguousarray(values[place]),
            out[place],
            float(limits.min),
            float(limits.max),
            kind(limits.min),
            kind(limits.max),
        )
    return clipped


@_compiled
def _round(values: Array, out: Array, low: float, high: float, lowest: Any, highest: Any) -> int:
    clipped = 0
    for i in range(values.shape[0]):
        for k in range(values.shape[1]):
            v = np.rint(values[i, k])
            if v >= low and v < high:
                out[i, k] = v
            elif v >= high:
                out[i, k] = highest
                clipped += v > high
            elif v < low:
                out[i, k] = lowest
                clipped += 1
            else:
                out[i, k] = 0
                clipped += 1
    return clipped
