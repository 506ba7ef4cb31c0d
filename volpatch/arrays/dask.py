"""Extract, merge and map patches of dask arrays, lazily, by `map_overlap`.

    extract      volume chunk + halo on the high side  ->  the patches that start in it
    merge        lattice chunk + the rows before it    ->  the voxels from its first patch on
    map_patches  volume chunk + halo on both sides     ->  the same voxels, blended

Every block is computed by the loops that also serve arrays in memory and stores, so the
bits are theirs. Building reads nothing and makes tasks by the chunk, not by the patch.
Chunks that are thinner than a halo are joined first, here and in the open: left to
itself `map_overlap` would move chunk borders, and results would no longer fit them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.blend import Finalize, Stats
from volpatch.compute.caller import Caller, learn_made_up
from volpatch.compute.inmemory import cut_patches, map_lead, merge_box, reader
from volpatch.compute.rounding import warn_clipped
from volpatch.compute.skip import PatchFilter
from volpatch.core.blending import BlendSpec
from volpatch.core.box import Box
from volpatch.core.errors import GridError
from volpatch.core.grid import AxisGrid, PatchGrid
from volpatch.core.layout import Layout
from volpatch.storage.adapt import checked

Array = NDArray[Any]
Chunks = tuple[tuple[int, ...], ...]


def join(sizes: Sequence[int], enough: Callable[[int, int], bool]) -> tuple[int, ...]:
    """Neighbouring chunks put together until each [start, stop) is enough.

    >>> join((1, 1, 1, 1, 1), lambda start, stop: stop - start >= 2)
    (2, 3)
    """
    joined: list[int] = []
    start = stop = 0
    for size in sizes:
        stop += size
        if enough(start, stop):
            joined.append(stop - start)
            start = stop
    if start < stop and joined:
        joined[-1] += stop - start
    elif start < stop:
        joined.append(stop - start)
    return tuple(joined)


def borders(sizes: Sequence[int]) -> tuple[int, ...]:
    """Where chunks begin and end.

    >>> borders((4, 4, 2))
    (0, 4, 8, 10)
    """
    return (0, *np.cumsum(sizes).tolist())


@dataclass(frozen=True)
class Blocks:
    """Where the blocks of the patched (or lattice) axes lie, and how much halo they have."""

    borders: tuple[tuple[int, ...], ...]
    before: tuple[int, ...]

    def place(self, block_id: Sequence[int]) -> tuple[Box, tuple[int, ...]]:
        """The core of a block, and where its first element with halo lies."""
        start = tuple(b[i] for b, i in zip(self.borders, block_id, strict=True))
        stop = tuple(b[i + 1] for b, i in zip(self.borders, block_id, strict=True))
        origin = tuple(max(0, a - n) for a, n in zip(start, self.before, strict=True))
        return Box(start, stop), origin


def _overlapped(
    name: str,
    function: Any,
    array: Any,
    sizes: Sequence[tuple[int, ...]],
    first: int,
    depth: Sequence[tuple[int, int]],
    **options: Any,
) -> Any:
    """`map_overlap` over the axes from `first` on, with the chunks and halos given."""
    import dask.array as da

    chunks = {first + i: s for i, s in enumerate(sizes)}
    # an axis of one chunk has no neighbour to get a halo from
    halo = {
        first + i: (d if len(s) > 1 else (0, 0))
        for i, (s, d) in enumerate(zip(sizes, depth, strict=True))
    }
    halo.update({axis: (0, 0) for axis in range(array.ndim) if axis not in halo})
    return da.map_overlap(  # type: ignore[no-untyped-call]
        function,
        array.rechunk(chunks),
        depth=halo,
        boundary="none",
        trim=False,
        allow_rechunk=False,
        token=f"volpatch-{name}",
        **options,
    )


# -- map -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class MapBlock:
    """What one task of `map_patches` does."""

    function: Callable[[Array], Any]
    blending: BlendSpec
    blocks: Blocks
    lead: int
    finalize: Finalize | None
    patch_filter: PatchFilter | None

    def __call__(self, block: Array, block_id: tuple[int, ...] | None = None) -> Array:
        n = self.blending.grid.ndim
        box, origin = self.blocks.place((block_id or ())[-n:])
        stats = Stats()
        out = map_lead(
            Caller(self.function),
            block,
            origin,
            self.lead,
            self.blending,
            box,
            self.finalize,
            self.patch_filter,
            stats=stats,
        )
        warn_clipped(stats.clipped, out.dtype)
        return out


def map_blocks(
    function: Callable[[Array], Any],
    array: Any,
    layout: Layout,
    blending: BlendSpec,
    finalize: Finalize | None,
    patch_filter: PatchFilter | None,
) -> Any:
    """The blended result of a dask array, (lead..., [channels,] patched...), lazily."""
    blending = learn_made_up(blending, Caller(function), finalize)
    array = checked(array).transpose(layout.order)
    lead, grid = len(layout.lead), blending.grid
    first = array.ndim - grid.ndim
    if layout.channel is not None:
        array = array.rechunk({lead: -1})
    halo = [a.patch - 1 for a in grid.axes]
    sizes = [
        join(s, lambda a, b, h=h: b - a >= max(1, h))  # type: ignore[misc]
        for s, h in zip(array.chunks[first:], halo, strict=True)
    ]
    blocks = Blocks(
        tuple(map(borders, sizes)),
        tuple(h if len(s) > 1 else 0 for h, s in zip(halo, sizes, strict=True)),
    )
    channels = blending.out_channels
    options: dict[str, Any] = {}
    if layout.channel is None and channels is not None:
        options["new_axis"] = lead
    elif layout.channel is not None and channels is None:
        options["drop_axis"] = lead
    own = () if channels is None else ((channels,),)
    out_chunks = (*array.chunks[:lead], *own, *sizes)
    return _overlapped(
        "map",
        MapBlock(function, blending, blocks, lead, finalize, patch_filter),
        array,
        sizes,
        first,
        [(h, h) for h in halo],
        chunks=out_chunks,
        dtype=blending.out_dtype,
        meta=np.empty((0,) * len(out_chunks), blending.out_dtype),
        **options,
    )


# -- extract -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExtractBlock:
    """What one task of `extract` does: the patches that start in its chunk."""

    blending: BlendSpec
    blocks: Blocks
    lead: int

    def __call__(self, block: Array, block_id: tuple[int, ...] | None = None) -> Array:
        grid = self.blending.grid
        box, origin = self.blocks.place((block_id or ())[self.lead : self.lead + grid.ndim])
        numbers = tuple(
            starting(a, p, q) for a, p, q in zip(grid.axes, box.start, box.stop, strict=True)
        )
        counts = tuple(len(n) for n in numbers)
        shape = (*block.shape[: self.lead], *counts, *grid.patch)
        out = np.empty(shape, self.blending.source_dtype)
        for place in np.ndindex(block.shape[: self.lead]):
            cut_patches(reader(block[place][None], origin), self.blending, numbers, out[place])
        return out


def starting(axis: AxisGrid, start: int, stop: int) -> range:
    """Numbers of the patches whose first voxel lies in [start, stop)."""
    near = axis.touching(start, stop)
    first = near.start
    while first < near.stop and axis.start(first) < start:
        first += 1
    return range(first, near.stop)


def extract_blocks(array: Any, blending: BlendSpec) -> Any:
    """The patches of a dask array, (lead..., *lattice, *patch), lazily."""
    import dask.array as da

    grid = blending.grid
    lead = array.ndim - grid.ndim
    if 0 in grid.lattice:
        shape = (*array.shape[:lead], *grid.lattice, *grid.patch)
        return da.zeros(shape, dtype=blending.source_dtype)
    array = checked(array)
    depth = [(a.patch - 1 if a.padded > a.size else 0, a.patch - 1) for a in grid.axes]
    sizes = [
        join(
            s,
            lambda p, q, a=a, d=d: q - p >= max(1, *d) and len(starting(a, p, q)) > 0,  # type: ignore[misc]
        )
        for s, a, d in zip(array.chunks[lead:], grid.axes, depth, strict=True)
    ]
    blocks = Blocks(
        tuple(map(borders, sizes)),
        tuple(d[0] if len(s) > 1 else 0 for d, s in zip(depth, sizes, strict=True)),
    )
    counts = [
        tuple(len(starting(a, p, q)) for p, q in itertools.pairwise(b))
        for a, b in zip(grid.axes, blocks.borders, strict=True)
    ]
    return _overlapped(
        "extract",
        ExtractBlock(blending, blocks, lead),
        array,
        sizes,
        lead,
        depth,
        chunks=(*array.chunks[:lead], *counts, *((p,) for p in grid.patch)),
        new_axis=list(range(array.ndim, array.ndim + grid.ndim)),
        dtype=blending.source_dtype,
        meta=np.empty((0,) * (array.ndim + grid.ndim), blending.source_dtype),
    )


# -- merge ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class MergeBlock:
    """What one task of `merge` does: the voxels from its first patch to the next block's."""

    blending: BlendSpec
    blocks: Blocks
    lead: int

    def __call__(self, block: Array, block_id: tuple[int, ...] | None = None) -> Array:
        grid, n = self.blending.grid, self.blending.grid.ndim
        core, origin = self.blocks.place((block_id or ())[self.lead : self.lead + n])
        ends = [voxels(a, p, q) for a, p, q in zip(grid.axes, core.start, core.stop, strict=True)]
        box = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
        numbers = tuple(range(o, q) for o, q in zip(origin, core.stop, strict=True))
        out = np.empty((*block.shape[: self.lead], *box.shape), self.blending.out_dtype)
        stats = Stats()
        for place in np.ndindex(block.shape[: self.lead]):
            out[place] = merge_box(block[place], self.blending, numbers, box, stats=stats)
        warn_clipped(stats.clipped, out.dtype)
        return out


def voxels(axis: AxisGrid, first: int, stop: int) -> tuple[int, int]:
    """Voxels that a block of the patches [first, stop) answers for."""
    start = axis.start(first) if first else 0
    return start, axis.start(stop) if stop < axis.count else axis.size


def merge_blocks(patches: Any, blending: BlendSpec) -> Any:
    """The volume that patches (lead..., *lattice, *patch) blend to, lazily."""
    grid = blending.grid
    n = grid.ndim
    lead = patches.ndim - 2 * n
    if 0 in grid.lattice:
        import dask.array as da

        shape, dtype = (*patches.shape[:lead], *grid.shape), blending.out_dtype
        return da.full(shape, blending.filling, dtype=dtype)  # type: ignore[no-untyped-call]
    patches = checked(patches).rechunk({lead + n + i: -1 for i in range(n)})
    # a patch reaches over this many patch starts after its own
    depth = [-(-a.patch // a.stride) for a in grid.axes]
    sizes = [
        join(s, lambda p, q, d=d: q - p >= d)  # type: ignore[misc]
        for s, d in zip(patches.chunks[lead : lead + n], depth, strict=True)
    ]
    blocks = Blocks(
        tuple(map(borders, sizes)),
        tuple(d if len(s) > 1 else 0 for d, s in zip(depth, sizes, strict=True)),
    )
    out = [
        tuple(b - a for a, b in (voxels(axis, p, q) for p, q in itertools.pairwise(bs)))
        for axis, bs in zip(grid.axes, blocks.borders, strict=True)
    ]
    return _overlapped(
        "merge",
        MergeBlock(blending, blocks, lead),
        patches,
        sizes,
        lead,
        [(d, 0) for d in depth],
        chunks=(*patches.chunks[:lead], *out),
        drop_axis=list(range(lead + n, lead + 2 * n)),
        dtype=blending.out_dtype,
        meta=np.empty((0,) * (lead + n), blending.out_dtype),
    )


def check_patches(shape: Sequence[int], grid: PatchGrid) -> int:
    """Number of leading axes of patches (lead..., *lattice, *patch) of a grid."""
    n = grid.ndim
    wanted = (*grid.lattice, *grid.patch)
    if len(shape) < 2 * n or tuple(shape[len(shape) - 2 * n :]) != wanted:
        raise GridError(
            f"patches of shape {tuple(shape)} do not belong to this grid: their last {2 * n} axes "
            f"must be its lattice {grid.lattice} and its patch {grid.patch}"
        )
    return len(shape) - 2 * n


def merge_spec(grid: PatchGrid, windows: Any, kind: Any, **options: Any) -> BlendSpec:
    """The blending for merging patches of a dtype that are there already."""
    blending = BlendSpec(grid, windows, kind, kind, **options)
    return replace(blending, result_dtype=kind)
