"""Results too simple to be wrong: loop over the patches, sum weight x value, divide."""

from __future__ import annotations

from typing import Any

import numpy as np

from volpatch.core.grid import PatchGrid
from volpatch.core.window import sample


def padded(volume: np.ndarray, grid: PatchGrid, mode: str = "reflect") -> np.ndarray:
    """The volume as `np.pad` extends it to where the last patches end."""
    widths = [(0, axis.padded - axis.size) for axis in grid.axes]
    return np.pad(volume, widths, mode=mode)


def blend(
    volume: np.ndarray,
    grid: PatchGrid,
    window: Any,
    function: Any = lambda patch: patch,
    mode: str = "reflect",
) -> tuple[np.ndarray, np.ndarray]:
    """Blended volume and summed weight, both float64, of single-channel results."""
    windows = window if isinstance(window, tuple) else (window,) * grid.ndim
    source = padded(volume, grid, mode)
    total = np.zeros(source.shape)
    weight = np.zeros(source.shape)
    patch_weight = np.ones(())
    for one, n in zip(windows, grid.patch, strict=True):
        patch_weight = np.multiply.outer(patch_weight, sample(one, n))
    for box in grid:
        total[box.slices] += patch_weight * function(source[box.slices].copy())
        weight[box.slices] += patch_weight
    inside = tuple(slice(0, n) for n in grid.shape)
    with np.errstate(invalid="ignore"):
        return (total / weight)[inside], weight[inside]


def select(volume: np.ndarray, grid: PatchGrid, function: Any) -> np.ndarray:
    """Every voxel from the patch whose centre is nearest, ties to the earlier one."""
    out = np.zeros(grid.shape, dtype=function(volume[grid[0].slices].copy()).dtype)
    nearest = []
    for axis in grid.axes:
        owner = []
        for v in range(axis.size):
            there = [i for i, s in enumerate(axis.starts) if s <= v < s + axis.patch]
            owner.append(
                min(there, key=lambda i: (abs(v - axis.starts[i] - (axis.patch - 1) / 2), i))
            )
        nearest.append(np.array(owner))
    for position in np.ndindex(*grid.lattice):
        box = grid[position]
        result = function(padded(volume, grid)[box.slices].copy())
        mine = np.ix_(*(np.flatnonzero(n == p) for n, p in zip(nearest, position, strict=True)))
        local = np.ix_(
            *(
                np.flatnonzero(n == p) - s
                for n, p, s in zip(nearest, position, box.start, strict=True)
            )
        )
        out[mine] = result[local]
    return out
