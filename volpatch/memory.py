"""Apply a recipe to an array in memory, with the loops that every other path uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.blender import ArraySink, Finalize
from volpatch.geometry import Box
from volpatch.layout import Layout
from volpatch.recipe import Recipe
from volpatch.region import Caller, Holes, Read, Stream

Array = NDArray[Any]


def map_array(
    function: Callable[[Array], Any],
    array: Array,
    layout: Layout,
    recipe: Recipe,
    roi: Box,
    finalize: Finalize | None = None,
    holes: Holes | None = None,
) -> Array:
    """The blended result over `roi`, with the axes (lead..., channels, patched...).

    The first answer of the function settles what the recipe leaves open.
    """
    box = Box(layout.pick(roi.start, layout.patched), layout.pick(roi.stop, layout.patched))
    lead = [range(roi.start[i], roi.stop[i]) for i in layout.lead]
    counts = tuple(len(r) for r in lead)
    out: list[Array] = []

    for place in np.ndindex(counts):
        index = tuple(r[i] for r, i in zip(lead, place, strict=True))
        volume = array[
            layout.selection(index, roi, Box((0,) * len(box.start), layout.patched_shape))
        ]
        volume = volume.transpose(layout.order).reshape(-1, *layout.patched_shape)

        def sink(known: Recipe, place: tuple[int, ...] = place) -> ArraySink:
            if not out:
                channels = known.out_channels or 1
                out.append(np.empty((*counts, channels, *box.shape), known.out_dtype))
            return ArraySink(out[0][place], box)

        stream = Stream(
            recipe,
            box,
            Caller(function),
            sink,
            _source(volume, recipe),
            layer=recipe.grid.patch[0],
            finalize=finalize,
            holes=holes,
        )
        stream.run()
        recipe = stream.recipe
    if recipe.out_channels is None:
        return out[0].reshape(*counts, *box.shape)
    return out[0]


def _source(volume: Array, recipe: Recipe) -> Array | Read:
    """The volume itself where the kernels can cut from it, else a way to read from it."""
    native = volume.dtype == recipe.source_dtype
    inside = all(a.padded == a.size for a in recipe.grid.axes)
    if volume.flags.c_contiguous and native and inside and not recipe.halves:
        return volume

    def read(box: Box, out: Array) -> None:
        out[...] = volume[(slice(None), *box.slices)]

    return read
