"""What a case of `differential` must give, reckoned in the plainest way there is.

Nothing of volpatch is used. Every patch is cut from the whole padded volume and handed to the
function; weight and weight x value are summed in long double over all of them, then divided.
Beside each value stands how far from it a result may be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.differential import CALLABLE, FINALIZERS, SKIPS, Case, Mask, Quiet

Array = np.ndarray
Wide = np.longdouble
FLOOR = Wide(2) ** -20
SINGLE, DOUBLE = Wide(2) ** -24, Wide(2) ** -53
WINDOW_ERROR = 200  # of a weight in double precision, in units: sin and exp of rounded numbers


class Refused(Exception):  # noqa: N818 - what the case says cannot be
    """There is no such result: an error must say so."""


@dataclass(frozen=True)
class Expected:
    """The result of a case.

    Attributes
    ----------
    dims : names of its axes; "new" is the function's channels.
    low, high : between which each value must lie, in numbers that the dtype can hold.
    free : where nothing is asked for, as the blended values decide by a hair.
    touched : on the patched axes, which voxels a hole may have changed.
    misfits : how many values the dtype cannot hold, at least and at most.
    """

    dims: tuple[str, ...]
    dtype: np.dtype[Any]
    low: Array
    high: Array
    free: Array
    touched: Array
    misfits: tuple[int, int]

    def wrong(self, got: Array) -> Array:
        """Where a result of the right shape and dtype has another value."""
        value = got.astype(Wide)
        there = np.isnan(value) & np.isnan(self.low) & np.isnan(self.high)
        return ~(there | self.free | ((self.low <= value) & (value <= self.high)))


# -- grid ----------------------------------------------------------------------------------


def starts_of(size: int, patch: int, stride: int, edge: str, offset: int) -> list[int]:
    """First voxels of the patches along one axis."""
    if edge == "shift" and offset + patch > size:
        raise Refused(f"patch {patch} does not fit {size}")
    if offset >= size:
        raise Refused(f"offset {offset} beyond {size}")
    starts = []
    at = offset
    while at < size and (edge == "pad" or at + patch <= size):
        starts.append(at)
        if at + patch >= size:
            break
        at += stride
    if edge == "shift" and starts[-1] + patch < size:
        starts.append(size - patch)
    return starts


def weights_of(window: str, n: int) -> Array:
    """Weights of a patch along one axis, in long double."""
    place = np.arange(n, dtype=Wide)
    middle = Wide(n - 1) / 2
    if window in CALLABLE:
        weights = np.asarray(CALLABLE[window](n), dtype=Wide)
        positive = np.flatnonzero(weights)
        if not len(positive) or (weights[positive[0] : positive[-1]] == 0).any():
            raise Refused("zeros inside of the window")
    elif window == "hann":
        weights = np.sin(4 * np.arctan(Wide(1)) * (place + 1) / (n + 1)) ** 2
    elif window == "triangle":
        weights = 1 - abs(place - middle) * 2 / n
    elif window.startswith("gaussian"):
        sigma = float(window.partition(":")[2] or n / 8)
        weights = np.exp(-0.5 * ((place - middle) / sigma) ** 2)
    else:
        weights = np.ones(n)
    weights = weights.astype(Wide)
    return np.where(weights > 0, np.maximum(weights, FLOOR * weights.max()), 0)


@dataclass(frozen=True)
class Grid:
    """Patches of a case: starts and weights per axis."""

    sizes: tuple[int, ...]
    patch: tuple[int, ...]
    starts: tuple[list[int], ...]
    weights: tuple[Array, ...]

    @classmethod
    def of(cls, case: Case) -> Grid:
        starts = tuple(
            map(starts_of, case.sizes, case.patch, case.stride, case.edges, case.offsets)
        )
        grid = cls(case.sizes, case.patch, starts, tuple(map(weights_of, case.windows, case.patch)))
        if any(
            ((grid.visits(a) > 0) & (grid.along(a, grid.weights[a]) == 0)).any()
            for a in range(len(case.sizes))
        ):
            raise Refused("a voxel has no weight at all")
        return grid

    def along(self, axis: int, weights: Array) -> Array:
        """Sum of the weights of all patches at each voxel of an axis."""
        size, patch = self.sizes[axis], self.patch[axis]
        total = np.zeros(size + patch, Wide)
        for start in self.starts[axis]:
            total[start : start + patch] += weights
        return total[:size]

    def visits(self, axis: int) -> Array:
        return self.along(axis, np.ones(self.patch[axis], Wide))

    @property
    def padded(self) -> tuple[int, ...]:
        ends = ([0, *(s + p for s in own)] for own, p in zip(self.starts, self.patch, strict=True))
        return tuple(max(n, *e) for n, e in zip(self.sizes, ends, strict=True))

    @property
    def covered(self) -> Array:
        found = np.ones((), bool)
        for axis in range(len(self.sizes)):
            found = np.logical_and.outer(found, self.visits(axis) > 0)
        return found

    @property
    def most_visits(self) -> list[int]:
        return [int(self.visits(axis).max()) for axis in range(len(self.sizes))]

    def weight(self) -> Array:
        found = np.ones((), Wide)
        for one in self.weights:
            found = np.multiply.outer(found, one)
        return found

    def positions(self) -> list[tuple[int, ...]]:
        """Lattice positions in raster order."""
        return list(np.ndindex(*map(len, self.starts)))

    def start(self, position: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(own[i] for own, i in zip(self.starts, position, strict=True))


# -- masks ---------------------------------------------------------------------------------


def cell_sizes(size: int, cells: int, said: int | None) -> list[int]:
    """Every number of voxels that a cell of a bare mask can have."""
    if said is None and size % cells == 0:
        return [size // cells]
    sizes = range(1, size + 1) if said is None else [said]
    return [k for k in sizes if -(-size // k) == cells or size // k == cells]


def cells_under(mask: Mask, axis: int, size: int, start: int, stop: int) -> list[int]:
    """Cells that may share a voxel with [start, stop) along one axis."""
    cells = mask.shape[axis]
    if mask.first is not None and mask.factor is not None:
        k, first = mask.factor[axis], mask.first[axis]
        return [c for c in range(cells) if first + c * k < stop and first + (c + 1) * k > start]
    sizes = cell_sizes(size, cells, None if mask.factor is None else mask.factor[axis])
    if not sizes:
        raise Refused(f"no cell size takes {size} voxels to {cells} cells")
    found = set()
    for k in sizes:
        ends = [min(size, (c + 1) * k) for c in range(cells - 1)] + [size]
        found |= {c for c in range(cells) if c * k < stop and ends[c] > start}
    return sorted(found)


def is_marked(case: Case, start: tuple[int, ...]) -> bool:
    """Whether anything is marked under the patch that begins at `start`."""
    mask = case.mask
    if mask is None:
        return True
    cells = [
        cells_under(mask, axis, n, s, min(s + p, n))
        for axis, (n, s, p) in enumerate(zip(case.sizes, start, case.patch, strict=True))
    ]
    return bool((mask.values()[np.ix_(*cells)] != 0).any())


def full_mask(case: Case) -> Array:
    """A mask with a place, laid on the volume's voxels."""
    mask = case.mask
    assert mask is not None
    found = np.zeros(case.sizes, bool)
    under = [
        [cells_under(mask, axis, n, v, v + 1) for v in range(n)]
        for axis, n in enumerate(case.sizes)
    ]
    for voxel in np.ndindex(*case.sizes):
        here = [under[axis][v] for axis, v in enumerate(voxel)]
        found[voxel] = (mask.values()[np.ix_(*here)] != 0).any()
    return found


def is_skipped(case: Case, patch: Array) -> bool:
    """By what is in the patch."""
    if case.skip is None:
        return False
    if isinstance(case.skip, str):
        return bool(SKIPS[case.skip](patch.copy()))
    with np.errstate(invalid="ignore"):
        return not (patch.astype(Wide) >= case.skip).any()


# -- one volume ----------------------------------------------------------------------------


class Sums:
    """What the patches leave behind at each voxel, (channels, *sizes)."""

    def __init__(self, case: Case, grid: Grid, channels: int) -> None:
        shape = (channels, *grid.sizes)
        self.case, self.grid = case, grid
        self.weight = np.zeros(shape, Wide)
        self.sum = np.zeros(shape, Wide)
        self.size = np.zeros(shape, Wide)  # weight x magnitude
        self.count = np.zeros(shape, int)
        self.least = np.full(shape, np.inf, Wide)
        self.largest = np.full(shape, -np.inf, Wide)
        self.pick = np.full(shape, np.nan, Wide)  # nearest, largest or smallest
        self.away = np.full(shape, np.inf)
        self.touched = np.zeros(grid.sizes, bool)

    def here(self, start: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """A patch's part inside of the volume: in the volume, and in the patch."""
        stops = [
            min(s + p, n) for s, p, n in zip(start, self.grid.patch, self.grid.sizes, strict=True)
        ]
        return (
            tuple(slice(s, e) for s, e in zip(start, stops, strict=True)),
            tuple(slice(0, e - s) for s, e in zip(start, stops, strict=True)),
        )

    def miss(self, start: tuple[int, ...]) -> None:
        self.touched[self.here(start)[0]] = True

    def add(self, start: tuple[int, ...], values: Array) -> None:
        case = self.case
        there, inside = self.here(start)
        at = (slice(None), *there)
        value = values[(slice(None), *inside)].astype(Wide)
        weight = np.broadcast_to(self.grid.weight()[inside], value.shape)
        nans = np.isnan(value)
        counts = weight > 0
        if case.nan_policy == "raise" and np.isnan(values[:, self.grid.weight() > 0]).any():
            raise Refused("a NaN came back")
        if case.nan_policy == "omit":
            counts = counts & ~nans
            self.touched[there] |= nans.any(0)
        weight = np.where(counts, weight, 0)
        with np.errstate(invalid="ignore", over="ignore"):
            self.weight[at] += weight
            self.sum[at] += np.where(counts, weight * value, 0)
            self.size[at] += np.where(counts, weight * abs(value), 0)
        self.count[at] += counts
        self.least[at] = np.where(counts, np.fmin(self.least[at], value), self.least[at])
        self.largest[at] = np.where(counts, np.fmax(self.largest[at], value), self.largest[at])
        if case.crop:
            self._nearest(at, there, start, value, counts)
        elif case.reduce in ("max", "min"):
            old = self.pick[at]
            choose = np.maximum if case.reduce == "max" else np.minimum
            first = self.count[at] == 1
            self.pick[at] = np.where(counts, np.where(first, value, choose(old, value)), old)

    def _nearest(self, at: Any, there: Any, start: Any, value: Array, counts: Array) -> None:
        squares = [
            (2.0 * (np.arange(s.start, s.stop) - a) - p + 1) ** 2
            for s, a, p in zip(there, start, self.grid.patch, strict=True)
        ]
        away = np.zeros(())
        for one in squares:
            away = np.add.outer(away, one)
        nearer = counts & (away < self.away[at])
        self.pick[at] = np.where(nearer, value, self.pick[at])
        self.away[at] = np.where(nearer, away, self.away[at])

    def interval(self, result: np.dtype[Any]) -> tuple[Array, Array]:
        """Between which bounds each value lies; NaN where there is none."""
        case = self.case
        if case.crop or case.reduce in ("max", "min"):
            return self.pick, self.pick
        with np.errstate(invalid="ignore", divide="ignore"):
            if case.reduce == "sum":
                value, size = np.where(self.count > 0, self.sum, np.nan), self.size
            else:
                value, size = self.sum / self.weight, self.size / self.weight
                # the mean of values that are all alike is that value, to its last bit
                alike = (self.least == self.largest) & ~np.isnan(value)
                value = np.where(alike, self.least, value)
            slack = self._slack(result, size)
            slack = np.where(np.isfinite(value), slack, 0)
            return value - slack, value + slack

    def _slack(self, result: np.dtype[Any], size: Array) -> Array:
        per_axis = self.grid.most_visits
        most = math.prod(per_axis)
        single = most * magnitude(result) <= 2**22
        unit = SINGLE if single else DOUBLE
        info = np.finfo(np.float32 if single else np.float64)
        visits = self.grid.visits(0)
        for axis in range(1, len(per_axis)):
            visits = np.multiply.outer(visits, self.grid.visits(axis))
        if self.case.reduce == "sum":
            exact = result.kind in "biu" and size.max(initial=0) * unit <= 1
            slack = 0 * size if exact else visits * unit * size
            return np.where(size > Wide(info.max), np.inf, slack)  # beyond what can be summed
        steps = visits + 2 if single else visits + sum(per_axis) + len(per_axis)
        # one patch alone has a share of exactly 1
        steps = np.where(visits == 1, 1 if result.kind in "iu" and not single else 0, steps)
        # a hole divides by the shares that are left, which are sums themselves
        steps = np.where(self.touched, 2 * visits + 2 * len(per_axis) + 4, steps)
        total = self.grid.along(0, self.grid.weights[0])
        for axis in range(1, len(per_axis)):
            total = np.multiply.outer(total, self.grid.along(axis, self.grid.weights[axis]))
        left = np.where(self.weight > 0, self.weight / np.where(total > 0, total, 1), 1)
        # weights that are a little off show only where values differ
        off = WINDOW_ERROR * DOUBLE * np.maximum(self.largest - self.least, 0)
        return steps * unit * size + visits * Wide(info.smallest_subnormal) / left + off


def magnitude(result: np.dtype[Any]) -> int:
    if result.kind == "f":
        return 2**16 if result.itemsize <= 4 else 2**23
    if result.kind == "b":
        return 1
    info = np.iinfo(result)
    return max(int(info.max), -int(info.min))


def blended(case: Case, grid: Grid, volume: Array) -> tuple[Sums, np.dtype[Any], bool]:
    """Sums of one volume ([channels,] *sizes), the function's dtype, and if it gives channels."""
    given = np.dtype(case.input_dtype or case.dtype).newbyteorder("=")
    function = Quiet(case.function)
    made_up = np.ones((*volume.shape[: volume.ndim - len(grid.sizes)], *grid.patch), given)
    like = function(made_up)
    result = like.dtype.newbyteorder("=")
    several = like.ndim > len(grid.sizes)
    if case.out_channels not in (None, like.shape[0] if several else 0):
        raise Refused("other channels than were said")
    sums = Sums(case, grid, like.shape[0] if several else 1)
    extra = volume.ndim - len(grid.sizes)
    widths = [(0, 0)] * extra + [(0, p - n) for p, n in zip(grid.padded, grid.sizes, strict=True)]
    more = {"constant_values": case.pad_value} if case.pad_mode == "constant" else {}
    padded: Array = np.pad(volume, widths, mode=case.pad_mode, **more)  # type: ignore[call-overload]
    for position in grid.positions():
        start = grid.start(position)
        box = tuple(slice(s, s + p) for s, p in zip(start, grid.patch, strict=True))
        marked = is_marked(case, start)
        patch = as_given(padded[(..., *box)], given) if marked else made_up
        if not marked or is_skipped(case, patch):
            sums.miss(start)
            continue
        values = function(patch).astype(result)
        sums.add(start, values if several else values[None])
    return sums, result, several


def as_given(patch: Array, dtype: np.dtype[Any]) -> Array:
    """A patch in the function's dtype, rounded half to even; what does not fit is refused."""
    wide = patch.astype(Wide)
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.kind in "iu":
            wide = np.rint(wide)
            info = np.iinfo(dtype)
            fits = (wide >= Wide(info.min)) & (wide <= Wide(info.max))
        elif dtype.kind == "b":
            fits = (wide == 0) | (wide == 1)
        else:
            fits = np.isfinite(patch.astype(dtype)) | ~np.isfinite(wide)
        if not fits.all():
            raise Refused(f"{dtype} does not hold all of the volume")
        return (np.rint(patch) if patch.dtype.kind == "f" and dtype.kind in "iu" else patch).astype(
            dtype
        )


# -- the whole case ------------------------------------------------------------------------


def check_settings(case: Case, grid: Grid, result: np.dtype[Any]) -> None:
    if not grid.covered.all() and case.fill_value is None:
        raise Refused("voxels without a patch, and no fill")
    if case.mask is not None:
        for axis, (n, m) in enumerate(zip(case.sizes, case.mask.shape, strict=True)):
            cells_under(case.mask, axis, n, 0, n)
            if case.mask.first is None and m > n:
                raise Refused("a mask with more cells than voxels")
    averages = case.reduce == "mean" and not case.crop
    if result.kind in "biu" and averages and case.out_dtype is None:
        raise Refused("averaged labels")


def expected(case: Case) -> Expected:
    """The result of a case; raises `Refused` where it must be refused."""
    grid = Grid.of(case)
    channel = () if case.channel_axis is None else (case.channel_axis,)
    order = (*case.lead, *channel, *case.patched)
    chosen = {name: slice(a, b) for name, a, b in case.roi}
    volume = case.volume()
    volume = volume[tuple(chosen.get(d, slice(None)) if d not in case.patched else slice(None)
                          for d in case.dims)]  # fmt: skip
    volume = volume.transpose([case.dims.index(d) for d in order])
    n_lead = len(case.lead)
    parts = []
    touched = np.zeros(case.sizes, bool)
    several, dtype = False, np.dtype(np.float32)
    for place in np.ndindex(volume.shape[:n_lead]):
        sums, result, several = blended(case, grid, volume[place])
        check_settings(case, grid, result)
        *bounds, dtype = finished(case, grid, sums, result, several)
        parts.append(tuple(bounds))
        touched |= sums.touched
    arrays = [
        np.stack(a).reshape(*volume.shape[:n_lead], *a[0].shape) for a in zip(*parts, strict=True)
    ]
    dims = (*case.lead, *(("new",) if arrays[0].ndim > n_lead + len(case.patched) else ()),
            *case.patched)  # fmt: skip
    part = tuple(chosen.get(d, slice(None)) if d in case.patched else slice(None) for d in dims)
    wanted = placed(case, "new" in dims)
    arrays = [a[part].transpose([dims.index(d) for d in wanted]) for a in arrays]
    touched = touched[tuple(chosen.get(d, slice(None)) for d in case.patched)]
    low, high, free, sure, maybe = arrays
    return Expected(wanted, dtype, low, high, free, touched, (sure.sum(), maybe.sum()))


def placed(case: Case, several: bool) -> tuple[str, ...]:
    """Axes of the result: as they came, the function's channels right before the patched ones."""
    dims = [d for d in case.dims if d != case.channel_axis]
    if several:
        dims.insert(min(dims.index(d) for d in case.patched), "new")
    return tuple(dims)


def named_dims(case: Case, dims: tuple[str, ...]) -> tuple[str, ...]:
    """Axes of a result where axes have names: channels lie where c does in (t, c, z, y, x).

    They take the place of an axis c that is looped over, if it has but one index.
    """
    if "new" not in dims:
        return dims
    lengths = {
        **dict(zip(case.dims, case.shape, strict=True)),
        **{d: b - a for d, a, b in case.roi},
    }
    kept = [d for d in dims if d != "new" and not (d == "c" in case.lead and lengths[d] == 1)]
    later = [i for i, d in enumerate(kept) if d in "zyx" or (d in case.patched and d != "t")]
    kept.insert(min(later, default=len(kept)), "new")
    return tuple(kept)


def with_names(case: Case, dims: tuple[str, ...], values: Array) -> Array:
    """A result (*dims) in the order that it has where axes have names."""
    wanted = named_dims(case, dims)
    values = values[tuple(slice(None) if d in wanted else 0 for d in dims)]
    kept = [d for d in dims if d in wanted]
    return values.transpose([kept.index(d) for d in wanted])


def finished(
    case: Case, grid: Grid, sums: Sums, result: np.dtype[Any], several: bool
) -> tuple[Any, ...]:
    """Bounds after finalize, rounding and fill; where there are none, and what does not fit."""
    low, high = sums.interval(result)
    bare = (sums.count == 0) | ~grid.covered
    free = np.zeros(low.shape, bool)
    if case.finalize is None:
        dtype = np.dtype(case.out_dtype) if case.out_dtype else result
        if case.reduce == "sum" and not case.out_dtype and result.kind in "biu":
            dtype = np.dtype(np.uint64 if result.kind in "bu" else np.int64)
    else:
        bare = np.broadcast_to(bare.all(0), bare.shape)
        kind = result if case.crop else np.result_type(result, np.float32)
        low, high, free, dtype, several = finalized(case, kind, low, high, several)
        bare = np.broadcast_to(bare[:1], low.shape)
        dtype = np.dtype(case.out_dtype) if case.out_dtype else dtype
    if dtype.kind == "b" and result.kind != "b":
        raise Refused("no bool without a threshold")
    sure, maybe = misfits(low, high, dtype)
    low, high = as_dtype(low, dtype), as_dtype(high, dtype)
    fill = case.fill_value
    if fill is None:
        fill = math.nan if case.nan_policy == "omit" and result.kind == dtype.kind == "f" else 0
    filled = as_dtype(np.array(fill, Wide), dtype)
    low, high = np.where(bare, filled, low), np.where(bare, filled, high)
    found = (low, high, free & ~bare, sure & ~bare, maybe & ~bare)
    return *(a if several else a[0] for a in found), dtype


def misfits(low: Array, high: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Which values are surely, and which possibly, no such whole numbers."""
    if dtype.kind not in "iu":
        return np.zeros(low.shape, bool), np.zeros(low.shape, bool)
    info = np.iinfo(dtype)
    least, most = Wide(info.min), Wide(info.max)
    nan = np.isnan(low)
    sure = nan | (low >= most + 1) | (high <= least - 1)
    return sure, nan | (high > most) | (low < least)


def finalized(
    case: Case, kind: np.dtype[Any], low: Array, high: Array, several: bool
) -> tuple[Array, Array, Array, np.dtype[Any], bool]:
    """Bounds of what `finalize` makes of blended values; all that there are but one rise."""
    function = FINALIZERS[case.finalize or ""]
    if kind.kind in "biu":
        low, high = np.nan_to_num(low, nan=0), np.nan_to_num(high, nan=0)
    with np.errstate(all="ignore"):
        bounds = [b.astype(kind) for b in (low, high)]
        a, b = (function(x if several else x[0]) for x in bounds)
    free = np.zeros(a.shape, bool)
    if case.finalize == "brightest":  # any channel that may be the largest
        with np.errstate(invalid="ignore"):
            best = np.nanmax(np.where(np.isnan(bounds[0]), -np.inf, bounds[0]), axis=0)
            free = (bounds[1] >= best).sum(0) > 1
            free &= ~(bounds[0] == bounds[1]).all(0)
    dtype = a.dtype
    shape = a.shape if a.ndim == low.ndim else (1, *a.shape)
    spread = np.zeros(shape, Wide)
    if case.finalize == "total":  # its own sum is rounded
        info = np.finfo(np.result_type(kind, np.float32))
        with np.errstate(invalid="ignore", over="ignore"):
            spread = 4 * Wide(info.eps) * abs(bounds[0].astype(Wide)).sum(0).reshape(shape)
            spread = np.where(np.isfinite(spread), spread, 0)
    wide = [x.astype(Wide).reshape(shape) for x in (a, b)]
    return wide[0] - spread, wide[1] + spread, free.reshape(shape), dtype, a.ndim == low.ndim


def as_dtype(values: Array, dtype: np.dtype[Any]) -> Array:
    """In numbers that the dtype can hold: half to even, clipped, NaN as 0 for whole numbers."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            # NumPy takes long double to half by way of single precision, and so rounds twice
            return values.astype(np.float64).astype(dtype).astype(Wide)
    if dtype.kind == "b":
        return values
    info = np.iinfo(dtype)
    return np.clip(np.rint(np.nan_to_num(values, nan=0, posinf=np.inf, neginf=-np.inf)),
                   Wide(info.min), Wide(info.max))  # fmt: skip
