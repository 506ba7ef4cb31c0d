"""Patches that are not computed: where a mask is empty, or by what is in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.errors import FunctionError, SettingError
from volpatch.recipe import plain_number
from volpatch.tables import Tables

Array = NDArray[Any]
Skip = Callable[[Array], Any] | float


@dataclass(frozen=True)
class Skips:
    """Says which patches of a region are skipped.

    Parameters
    ----------
    mask : array-like on the grid of the patched axes, or coarser; anything with a shape
        that can be sliced. A patch is skipped when the mask is zero throughout its box.
    skip : predicate on the patch as the function would get it, or a number: patches whose
        largest value is below it are skipped; a NaN is no value.
    shape : of the volume along the patched axes.
    channels : whether the function is given a channel axis.
    """

    mask: Any
    skip: Skip | None
    shape: tuple[int, ...]
    channels: bool = False

    def __post_init__(self) -> None:
        if self.mask is None:
            return
        shape = tuple(self.mask.shape)
        fits = len(shape) == len(self.shape) and all(
            1 <= m <= n for m, n in zip(shape, self.shape, strict=True)
        )
        if not fits:
            raise SettingError(
                f"the mask has shape {shape}, but the patched axes have {self.shape} voxels; it "
                f"must have as many axes, each as long or shorter (a coarser grid)"
            )

    def kept(self, tables: Tables, row: int) -> NDArray[np.bool_] | None:
        """Whether the mask has anything in each patch of a row, (*lattice of the other axes)."""
        if self.mask is None:
            return None
        ranges = [
            _mask_ranges(tables, axis, size, cells)
            for axis, (size, cells) in enumerate(zip(self.shape, self.mask.shape, strict=True))
        ]
        ranges[0] = ranges[0][row : row + 1]
        box = tuple(slice(int(r[:, 0].min()), int(r[:, 1].max())) for r in ranges)
        found: NDArray[np.bool_] = np.asarray(self.mask[box]) != 0
        for axis, (cells, part) in enumerate(zip(ranges, box, strict=True)):
            cuts = [
                found[(slice(None),) * axis + (slice(a - part.start, b - part.start),)].any(axis)
                for a, b in cells
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
        except (Exception, SystemExit) as error:
            raise FunctionError(
                f"skip raised {type(error).__name__} on a patch of shape {given.shape}: {error}"
            ) from error


def _mask_ranges(tables: Tables, axis: int, size: int, cells: int) -> NDArray[np.int64]:
    """Mask cells [start, stop) under each patch along one axis, (patches, 2)."""
    n = len(tables.numbers[axis])
    first = int(tables.first[axis])
    starts = tables.starts[first : first + n]
    stops = np.minimum(starts + tables.patch[axis], size)
    # voxel v lies in cell v * cells // size
    return np.stack([starts * cells // size, (stops - 1) * cells // size + 1], axis=1)


def make_skips(mask: Any, skip: Any, shape: Sequence[int], *, channels: bool) -> Skips | None:
    """What skips patches, or None where nothing does."""
    if mask is None and skip is None:
        return None
    skip = plain_number(skip)
    number = isinstance(skip, int | float) and not isinstance(skip, bool)
    if skip is not None and not callable(skip) and not number:
        raise SettingError(f"skip must be a function of a patch, or a number; got {skip!r}")
    if number and skip != skip:
        raise SettingError("skip is NaN, and no value is at or above it; give a number")
    if mask is not None and not hasattr(mask, "shape"):
        mask = np.asarray(mask)
    return Skips(mask, skip, tuple(shape), channels)
