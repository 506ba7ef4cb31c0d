"""Blend patches that somebody else's loop makes: a data loader, a remote service."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from volpatch.compute.blend import ArraySink, Blender
from volpatch.compute.buffers import PatchTables
from volpatch.compute.rounding import warn_clipped
from volpatch.core.blending import BlendSpec, check_dtype
from volpatch.core.box import Box
from volpatch.core.errors import GridError, SettingError
from volpatch.core.grid import PatchGrid, check_grid
from volpatch.core.window import Window, windows_per_axis
from volpatch.storage.adapt import refuse_masked

Array = NDArray[Any]


class Merger:
    """Takes the patches of a grid in any order, and gives the blended volume.

    Patches that are added in raster order give the same bits as every other way of
    volpatch; in another order the last bits of sums may differ, and nothing else.

    Parameters
    ----------
    grid : PatchGrid
    window, dtype, reduce, nan_policy, fill_value
        As for `map_patches`.
    out : array-like, optional
        Where the result goes: an ndarray, a memmap, a zarr array; anything with a shape
        and a dtype that takes slices. Without, a new ndarray.

    Examples
    --------
    >>> import numpy as np
    >>> grid = PatchGrid((5, 6), 4, 2)
    >>> merger = Merger(grid)
    >>> for index, box in enumerate(grid):
    ...     merger.add(index, np.ones(box.shape, np.float32))
    >>> bool(np.allclose(merger.result(), 1))
    True
    """

    def __init__(
        self,
        grid: PatchGrid,
        *,
        window: Window | Sequence[Window] | None = None,
        dtype: DTypeLike | None = None,
        reduce: str = "mean",
        nan_policy: str = "propagate",
        fill_value: float | None = None,
        out: Any = None,
    ) -> None:
        check_grid(grid)
        wanted = None if dtype is None else check_dtype(dtype, "dtype")
        if out is not None:
            refuse_masked(out, "out")
            if not hasattr(out, "dtype"):
                raise SettingError(
                    f"out must be a NumPy array that is filled; got {type(out).__name__}"
                )
            own = check_dtype(out.dtype, "the dtype of out")
            if wanted not in (None, own):
                raise SettingError(f"out holds {own}, but dtype={wanted} was asked for")
            wanted = own
        unknown = np.dtype(np.float32)
        self.grid = grid
        self._blending = BlendSpec(
            grid,
            windows_per_axis(window, grid.ndim, reduce),
            unknown,
            unknown,
            dtype=wanted,
            reduce=reduce,
            nan_policy=nan_policy,
            fill_value=fill_value,
        )
        self._out = out
        self._added = np.zeros(len(grid), dtype=bool)
        self._blender: Blender | None = None
        self._channels: int | None = None

    def add(self, index: int | Sequence[int], patch: Array) -> None:
        """Add one patch ([channels,] *patch), by its number in raster order or its position.

        Raises
        ------
        GridError
            An index that the grid does not have, or a patch that was added before.
        SettingError
            A patch of another shape or dtype than wanted.
        """
        refuse_masked(patch, "the patch")
        self.add_batch([index], np.asarray(patch)[None])

    def add_batch(self, indices: Iterable[int | Sequence[int]], patches: Array) -> None:
        """Add patches (B, [channels,] *patch); see `add`."""
        numbers = [self._number(index) for index in indices]
        refuse_masked(patches, "the batch of patches")
        values = np.asarray(patches)
        values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
        channels = self._checked(values, len(numbers))
        for place, number in enumerate(numbers):
            if self._added[number] or number in numbers[:place]:
                raise GridError(
                    f"patch {number} at {self.grid[number]} was added before; each patch of the "
                    f"grid is added once"
                )
        if self._blender is None:
            self._begin(values.dtype.newbyteorder("="), channels)
        blender = self._blender
        if blender is not None:
            kind = blender.blending.known_result
            if values.dtype != kind or channels != self._channels:
                raise SettingError(
                    f"patches of {values.dtype} with {channels} channels do not go with those "
                    f"before, of {kind} with {self._channels}"
                )
            blender.add(np.array(numbers, dtype=np.int64), values)
        self._added[numbers] = True

    def _number(self, index: Any) -> int:
        grid = self.grid
        try:
            if hasattr(index, "__len__"):
                position = [range(n)[i] for n, i in zip(grid.lattice, index, strict=True)]
                if any(i < 0 for i in index):
                    raise IndexError
                return int(np.ravel_multi_index(position, grid.lattice))
            number = index.__index__()
            if not 0 <= number < len(grid):
                raise IndexError
            return int(number)
        except (IndexError, ValueError, TypeError, AttributeError):
            raise GridError(
                f"there is no patch {index!r} on this grid; it has {len(grid)} patches on a "
                f"lattice of {grid.lattice}, counted from 0"
            ) from None

    def _checked(self, values: Array, count: int) -> int | None:
        """Channels of a batch, None without; refuses what is no batch of patches."""
        patch = self.grid.patch
        has_channels = values.ndim == len(patch) + 2
        empty = has_channels and values.shape[1] == 0
        if empty or values.shape not in ((count, *patch), (count, *values.shape[1:2], *patch)):
            raise SettingError(
                f"patches must have the shape {(count, *patch)}, with channels "
                f"{(count, 'C', *patch)} and C from 1 on; got {values.shape}"
            )
        check_dtype(values.dtype, "the patches' dtype")
        return values.shape[1] if has_channels else None

    def _begin(self, dtype: np.dtype[Any], channels: int | None) -> None:
        blending = replace(self._blending, result_dtype=dtype, channels_out=channels)
        box = Box((0,) * self.grid.ndim, self.grid.shape)
        shape = (*(() if channels is None else (channels,)), *box.shape)
        if self._out is not None and tuple(self._out.shape) != shape:
            raise SettingError(f"out has shape {tuple(self._out.shape)}, the result has {shape}")
        self._channels = channels
        out = (
            np.zeros((channels or 1, *box.shape), blending.out_dtype) if self._out is None else None
        )
        self._result = out
        sink = (
            ArraySink(out, box)
            if out is not None
            else SlabSink(self._out, channels, self.grid.patch[0], blending.out_dtype)
        )
        tables = PatchTables.of(blending, box)
        self._blender = Blender(blending, box, tables, sink, planes=box.shape[0], ordered=False)

    def result(self) -> Any:
        """The blended volume ([channels,] *shape), or `out`.

        Raises
        ------
        GridError
            If a patch is missing; names it.
        """
        missing = np.flatnonzero(~self._added)
        if len(missing):
            first = int(missing[0])
            raise GridError(
                f"{len(missing)} of {len(self.grid)} patches were never added, first patch {first} "
                f"at {self.grid[first]}"
            )
        if self._blender is None:
            raise GridError("the grid has no patches, so there is nothing to merge")
        self._blender.hand_over(self.grid.shape[0])
        warn_clipped(self._blender.stats.clipped, self._blender.blending.out_dtype)
        if self._out is not None:
            return self._out
        return self._result if self._channels is not None else self._result[0]  # type: ignore[index]


@dataclass
class SlabSink:
    """Finished planes go into any array-like, slab by slab."""

    target: Any
    channels: int | None
    planes: int
    dtype: np.dtype[Any]
    first: int = 0
    takes_blocks = False

    def whole(self) -> None:
        """The target may be no array of ours."""

    def limit(self, plane: int) -> int:
        return int(min(plane + self.planes, self.target.shape[0 if self.channels is None else 1]))

    def rows(self, start: int, stop: int) -> Array:
        face = self.target.shape[1 if self.channels is None else 2 :]
        self.first = start
        self.slab = np.empty((self.channels or 1, stop - start, *face), self.dtype)
        return self.slab

    def done(self, stop: int) -> None:
        """Put the slab where it belongs."""
        if self.channels is None:
            self.target[self.first : stop] = self.slab[0]
        else:
            self.target[:, self.first : stop] = self.slab
