"""Apply a blending to arrays in memory, with the loops that every other path uses."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.blend import ArraySink, Blender, Finalize, Stats
from volpatch.compute.buffers import PatchTables, Ring
from volpatch.compute.caller import Call, learn_made_up
from volpatch.compute.kernels import cut
from volpatch.compute.reading import Read, reach_of, read_padded
from volpatch.compute.skip import PatchFilter
from volpatch.compute.stream import Stream
from volpatch.core.blending import BlendSpec
from volpatch.core.box import Box
from volpatch.core.layout import Layout

Array = NDArray[Any]
PIECE_BYTES = 2**20  # of patches that are added at a time: they are in cache still


def map_box(
    caller: Call,
    volume: Array,
    origin: tuple[int, ...],
    blending: BlendSpec,
    box: Box,
    finalize: Finalize | None = None,
    patch_filter: PatchFilter | None = None,
    workers: int = 1,
    stats: Stats | None = None,
    views: bool = False,
) -> tuple[Array, BlendSpec]:
    """The blended result (channels, *box) of a part of a volume, and what was learnt.

    Parameters
    ----------
    volume : (channels, *extent), every voxel that patches touching `box` need.
    origin : where in the whole volume its first voxel lies.
    workers : threads, each with a slab of the box along the first axis.
    stats : what was done is added to it.
    views : patches may be views of the volume, read-only.
    """
    done = Stats() if stats is None else stats
    out: list[Array] = []

    def result(known: BlendSpec) -> Array:
        if not out:
            out.append(np.zeros((known.out_channels or 1, *box.shape), known.out_dtype))
        return out[0]

    whole = not any(origin) and volume.shape[1:] == blending.grid.shape
    source = volume if whole and _can_be_cut(volume, blending) else reader(volume, origin)
    stop = threading.Event()

    def compute(blending: BlendSpec, slab: Box) -> Stream:
        first, last = (end - box.start[0] for end in (slab.start[0], slab.stop[0]))
        stream = Stream(
            blending,
            slab,
            caller,
            lambda known: ArraySink(result(known)[:, first:last], slab),
            source,
            layer=blending.grid.patch[0],
            finalize=finalize,
            patch_filter=patch_filter,
            stop=stop,
            views=views,
        )
        stream.run()
        return stream

    slabs = _slabs(blending, box, workers)
    if len(slabs) == 1:
        stream = compute(blending, box)
        done += stream.stats
        return out[0], stream.blending
    blending = learn_made_up(blending, caller, finalize)
    result(blending)
    with ThreadPoolExecutor(len(slabs)) as threads:
        running = [threads.submit(compute, blending, slab) for slab in slabs]
        try:
            for one in as_completed(running):
                done += one.result().stats
        finally:
            stop.set()  # after an error the others need not go on
    return out[0], blending


def _slabs(blending: BlendSpec, box: Box, workers: int) -> list[Box]:
    """A box in at most as many slabs along its first axis, cut where rows of patches start.

    Rows of patches that reach over a cut are computed on both sides of it.
    """
    stride, planes = blending.grid.stride[0], box.shape[0]
    cuts = {round(planes * i / workers / stride) * stride for i in range(1, workers)}
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < planes), planes]
    first = box.start[0]
    return [
        Box((first + a, *box.start[1:]), (first + b, *box.stop[1:]))
        for a, b in itertools.pairwise(edges)
    ]


def map_lead(
    caller: Call,
    array: Array,
    origin: tuple[int, ...],
    lead: int,
    blending: BlendSpec,
    box: Box,
    finalize: Finalize | None = None,
    patch_filter: PatchFilter | None = None,
    workers: int = 1,
    stats: Stats | None = None,
    views: bool = False,
) -> Array:
    """`map_box` for every index of the first `lead` axes of (lead..., [channels,] *extent).

    The first answer of the function settles what the blending leaves open. The result has
    the axes (lead..., [channels,] *box).
    """
    counts, extent = array.shape[:lead], array.shape[array.ndim - blending.grid.ndim :]
    out: Array | None = None
    for place in np.ndindex(counts):
        volume = array[place].reshape(-1, *extent)
        part, blending = map_box(
            caller, volume, origin, blending, box, finalize, patch_filter, workers, stats, views
        )
        if out is None and math.prod(counts) == 1:
            out = part.reshape(*counts, *part.shape)  # no second copy of a large result
            break
        if out is None:
            out = np.empty((*counts, *part.shape), part.dtype)
        out[place] = part
    if out is None:  # an axis of length 0: what the function would return is known all the same
        blending = learn_made_up(blending, caller, finalize)
        out = np.empty((*counts, blending.out_channels or 1, *box.shape), blending.out_dtype)
    return out if blending.out_channels is not None else out.reshape(*counts, *box.shape)


def map_array(
    caller: Call,
    array: Array,
    layout: Layout,
    blending: BlendSpec,
    roi: Box,
    finalize: Finalize | None = None,
    patch_filter: PatchFilter | None = None,
    workers: int = 1,
    stats: Stats | None = None,
    views: bool = False,
) -> Array:
    """The blended result over `roi`, with the axes (lead..., [channels,] patched...)."""
    box = Box(layout.pick(roi.start, layout.patched), layout.pick(roi.stop, layout.patched))
    chosen = [slice(a, b) for a, b in zip(roi.start, roi.stop, strict=True)]
    for axis in layout.patched:
        chosen[axis] = slice(None)
    volume = array[tuple(chosen)].transpose(layout.order)
    origin = (0,) * blending.grid.ndim
    lead = len(layout.lead)
    return map_lead(
        caller, volume, origin, lead, blending, box, finalize, patch_filter, workers, stats, views
    )


def reader(volume: Array, origin: tuple[int, ...]) -> Read:
    """A way to read boxes of the whole volume from the part of it that is there."""

    def read(box: Box, out: Array) -> None:
        here = tuple(
            slice(a - o, b - o) for a, b, o in zip(box.start, box.stop, origin, strict=True)
        )
        out[...] = volume[(slice(None), *here)]

    return read


def _can_be_cut(volume: Array, blending: BlendSpec) -> bool:
    """Whether the kernels can cut straight from the array."""
    native = volume.dtype == blending.source_dtype
    inside = all(a.padded == a.size for a in blending.grid.axes)
    return volume.flags.c_contiguous and native and inside and not blending.halves


def cut_patches(
    read: Read, blending: BlendSpec, numbers: tuple[range, ...], out: Array | None = None
) -> Array:
    """The patches `numbers` (per axis) of a volume, (*lattice part, *patch)."""
    grid = blending.grid
    counts = tuple(len(n) for n in numbers)
    if out is None:
        out = np.empty((*counts, *grid.patch), blending.input_dtype)
    if 0 in counts:
        return out
    reach = reach_of(grid, numbers)
    ring = Ring.new(reach, reach.shape[0], 1, blending.source_dtype)
    read_padded(read, blending, reach, ring.array)
    ids = np.arange(int(np.prod(counts)))
    flat = out.reshape(len(ids), 1, *grid.patch)
    cut(ring, PatchTables.of(blending, reach, numbers), ids, flat)
    return out


def merge_box(
    patches: Array,
    blending: BlendSpec,
    numbers: tuple[range, ...],
    box: Box,
    result: Array | None = None,
    stats: Stats | None = None,
) -> Array:
    """Blend patches (*lattice part, *patch), those with `numbers` per axis, over `box`.

    `result` is filled in if there is one: (*box.shape), zeros of the output dtype; what was
    done is added to `stats`.
    """
    out = (np.zeros(box.shape, blending.out_dtype) if result is None else result)[None]
    tables = PatchTables.of(blending, box)
    blender = Blender(blending, box, tables, ArraySink(out, box), stats=stats)
    here = tuple(
        slice(mine.start - there.start, mine.stop - there.start)
        for mine, there in zip(tables.numbers, numbers, strict=True)
    )
    needed = patches[here]
    for row in range(tables.arrays.lattice[0]):
        blender.hand_over(blender.first_plane(tables.numbers[0][row]))
        for ids, values in _pieces(needed[row], row, blending):
            blender.add(ids, values)
    blender.hand_over(box.stop[0])
    blended: Array = out[0]
    return blended


def _pieces(
    row: Array, number: int, blending: BlendSpec
) -> Iterator[tuple[NDArray[np.int64], Array]]:
    """Ids and values of the patches (*lattice part, *patch) of a row, a few at a time.

    Views are copied; pieces are small enough to be in cache still when they are added.
    """
    grid = blending.grid
    *places, width = row.shape[: grid.ndim - 1] or (1,)
    row = row.reshape(*places, width, *grid.patch) if grid.ndim == 1 else row
    step = max(1, PIECE_BYTES // (math.prod(grid.patch) * blending.source_dtype.itemsize))
    first = number * math.prod(places) * width
    copy = np.empty((min(step, width), *grid.patch), blending.source_dtype)
    for place in np.ndindex(*places):
        for begin in range(0, width, step):
            values = row[place][begin : begin + step]
            if not values.flags.c_contiguous or values.dtype != copy.dtype:
                np.copyto(copy[: len(values)], values)
                values = copy[: len(values)]
            yield np.arange(first + begin, first + begin + len(values)), values
        first += width
