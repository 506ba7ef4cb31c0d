"""Patches that are not computed: where a mask is empty, or by what is in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.buffers import PatchTables
from volpatch.core.blending import plain_number
from volpatch.core.errors import SettingError, blamed

Array = NDArray[Any]
Ints = NDArray[np.int64]
Skip = Callable[[Array], Any] | float


@dataclass(frozen=True)
class Cells:
    """How the cells of a mask may lie along one axis of a volume, in voxels.

    Cell i is [start + i * factor, start + (i + 1) * factor), for some factor from
    `smallest` to `largest`.

    Attributes
    ----------
    count : cells of the mask; there are no more.
    rest : whether the last one takes all that is left of the axis.
    """

    start: int
    smallest: int
    largest: int
    count: int
    rest: bool = False

    def under(self, starts: Ints, stops: Ints) -> Ints:
        """Cells [first, stop) that some voxel of each [start, stop) may lie in, (n, 2)."""
        first = (starts - self.start) // self.largest
        stop = (stops - 1 - self.start) // self.smallest + 1
        if self.rest:
            first, stop = np.minimum(first, self.count - 1), np.minimum(stop, self.count)
        return np.clip(np.stack([first, stop], axis=1), 0, self.count)

    def __str__(self) -> str:
        most = f" to {self.largest}" if self.largest > self.smallest else ""
        place = f" from voxel {self.start}" if self.start else ""
        return f"{self.smallest}{most}{place}"


def bare_cells(
    dim: str, size: int, cells: int, factor: int | None, what: str = "the mask"
) -> tuple[Cells, ...]:
    """How the cells of a mask without a place may lie: from voxel 0 to the end.

    Where their number divides the axis, they are equal. Else the mask may have been made
    with any factor k with ceil(size / k) = cells, the last cell being cut off, or with
    size // k = cells, what is left belonging to the last one.

    >>> [" or ".join(map(str, bare_cells("z", size, 4, None))) for size in (12, 11, 13)]
    ['3', '3', '3 or 4']
    """
    if not 1 <= cells <= size:
        raise SettingError(
            f"{what} has {cells} cells on {dim}, but the volume has {size} voxels there; it must "
            f"be as long or shorter (a coarser grid)"
        )
    if factor is not None:
        if factor < 1 or cells not in (-(-size // factor), size // factor):
            raise SettingError(
                f"mask_factor={factor} on {dim} would make {-(-size // max(1, factor))} cells of "
                f"{size} voxels, but the mask has {cells}; leave it out, or choose "
                f"{_show(_factors(size, cells))}"
            )
        return (Cells(0, factor, factor, cells, rest=True),)
    if size % cells == 0:
        return (Cells(0, size // cells, size // cells, cells, rest=True),)
    factors = _factors(size, cells)
    if not factors:
        raise SettingError(
            f"{what} has {cells} cells on {dim}, and no whole number of voxels makes that many "
            f"of {size}; make it of cells of 2, 3, ... voxels, or give it coordinates"
        )
    if cells <= factors[0]:
        # from each factor to the next, the cell of a voxel changes by one at most, so that the
        # cells of all factors together have no gap
        return (Cells(0, factors[0], factors[-1], cells, rest=True),)
    return tuple(Cells(0, k, k, cells, rest=True) for k in factors)


def _factors(size: int, cells: int) -> range:
    """All k with size // k = cells or ceil(size / k) = cells.

    >>> _factors(1000, 32), _factors(10, 8)
    (range(31, 33), range(2, 2))
    """
    most = size if cells == 1 else -(-size // (cells - 1)) - 1
    return range(size // (cells + 1) + 1, most + 1)


def _show(factors: range) -> str:
    return f"{factors[0]} to {factors[-1]}" if len(factors) > 1 else str(factors[0])


@dataclass(frozen=True)
class PatchFilter:
    """Says which patches of a region are skipped.

    Parameters
    ----------
    mask : anything with a shape that can be sliced. A patch is skipped when the mask is
        zero throughout its box, however its cells may lie.
    skip : predicate on the patch as the function would get it, or a number: patches whose
        largest value is below it are skipped; a NaN is no value.
    shape : of the volume along the patched axes.
    cells : how the mask's cells may lie, per axis.
    channels : whether the function is given a channel axis.
    """

    mask: Any
    skip: Skip | None
    shape: tuple[int, ...]
    cells: tuple[tuple[Cells, ...], ...] = ()
    channels: bool = False

    def describe(self, dims: Sequence[str]) -> str | None:
        """How the mask lies, for people."""
        if self.mask is None:
            return None
        words = [f"{d} {' or '.join(map(str, c))}" for d, c in zip(dims, self.cells, strict=True)]
        several = any(len(c) > 1 or c[0].smallest < c[0].largest for c in self.cells)
        hint = "; a patch is skipped where all of these say so, mask_factor= picks one"
        return f"cells of {', '.join(words)} voxels{hint if several else ''}"

    def kept(self, tables: PatchTables, row: int) -> NDArray[np.bool_] | None:
        """Whether the mask has anything in each patch of a row, (*lattice of the other axes)."""
        if self.mask is None:
            return None
        under = [
            _cells_under(tables, axis, size, cells)
            for axis, (size, cells) in enumerate(zip(self.shape, self.cells, strict=True))
        ]
        under[0] = under[0][:, row : row + 1]
        box = tuple(map(_hull, under))
        if any(part.start >= part.stop for part in box):
            return np.zeros([ranges.shape[1] for ranges in under[1:]], dtype=bool)
        found = _marked(np.asarray(self.mask[box]))
        for axis, (ranges, part) in enumerate(zip(under, box, strict=True)):
            before = (slice(None),) * axis
            cuts = [
                np.logical_or.reduce(
                    [
                        found[(*before, slice(a, max(a, b)))].any(axis)
                        for a, b in {(a, b) for a, b in np.maximum(one - part.start, 0).tolist()}
                    ]
                )
                for one in ranges.transpose(1, 0, 2)
            ]
            found = np.stack(cuts, axis)
        kept: NDArray[np.bool_] = found[0]
        return kept

    def skips(self, patch: Array) -> bool:
        """Whether a patch that was cut, (channels, *patch), is to be skipped."""
        if self.skip is None:
            return False
        if not callable(self.skip):
            # fmax passes over NaNs, and a NaN that is left is not at or above any number
            return not np.fmax.reduce(patch, axis=None) >= self.skip
        given = patch if self.channels else patch[0]
        try:
            return bool(self.skip(given.copy()))
        except BaseException as error:
            raise blamed(error, "skip", f"on a patch of shape {given.shape}") from error


def _cells_under(tables: PatchTables, axis: int, size: int, cells: Sequence[Cells]) -> Ints:
    """Mask cells [start, stop) under each patch along one axis, (ways to lie, patches, 2)."""
    n = len(tables.numbers[axis])
    first = int(tables.arrays.first[axis])
    starts = tables.arrays.starts[first : first + n]
    stops = np.minimum(starts + tables.arrays.patch[axis], size)
    return np.stack([one.under(starts, stops) for one in cells])


def _hull(ranges: Ints) -> slice:
    """All cells that are under any patch, and maybe some between them."""
    some = ranges[ranges[..., 0] < ranges[..., 1]]
    return slice(int(some[:, 0].min()), int(some[:, 1].max())) if len(some) else slice(0, 0)


def _marked(values: Array) -> NDArray[np.bool_]:
    """Where a mask is not zero; a NaN would be neither."""
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise SettingError("the mask holds NaN, which is neither yes nor no; fill it first")
    marked: NDArray[np.bool_] = values != 0
    return marked


def make_skips(
    mask: Any,
    skip: Any,
    shape: Sequence[int],
    cells: tuple[tuple[Cells, ...], ...] | None,
    *,
    channels: bool,
) -> PatchFilter | None:
    """What skips patches, or None where nothing does."""
    if mask is None and skip is None:
        return None
    skip = plain_number(skip)
    number = isinstance(skip, int | float) and not isinstance(skip, bool)
    if skip is not None and not callable(skip) and not number:
        raise SettingError(f"skip must be a function of a patch, or a number; got {skip!r}")
    if number and skip != skip:
        raise SettingError("skip is NaN, and no value is at or above it; give a number")
    if mask is not None:
        if cells is None:
            raise SettingError(
                f"the mask has shape {tuple(mask.shape)}, but the patched axes have {tuple(shape)} "
                f"voxels; it must have as many axes, each as long or shorter (a coarser grid)"
            )
        if mask.dtype.kind not in "biuf":
            raise SettingError(f"the mask holds {mask.dtype}; it takes bools or numbers")
        if isinstance(mask, np.ndarray):
            _marked(mask)  # others are looked at as they are read
    return PatchFilter(mask, skip, tuple(shape), cells or (), channels)
