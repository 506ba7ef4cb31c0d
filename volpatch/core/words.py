"""The user's words for one volume, as the grid and the blending that they amount to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from volpatch.core.blending import BlendSpec, check_dtype
from volpatch.core.grid import PatchGrid
from volpatch.core.layout import Layout
from volpatch.core.options import BlendOptions, Sizes
from volpatch.core.parse import by_axis, whole_counts
from volpatch.core.window import windows_per_axis

DEFAULT_PATCH = 64


def patch_or_default(patch: Sizes | None, layout: Layout) -> Sizes:
    """The patch that was asked for; 64 voxels, or the axis where it is shorter, without one."""
    if patch is not None:
        return patch
    return tuple(max(1, min(DEFAULT_PATCH, n)) for n in layout.patched_shape)


def make_grid(
    layout: Layout, patch: Any, stride: Any, overlap: Any, edge: Any, offset: Any
) -> PatchGrid:
    """The grid over the patched axes that sizes, or mappings by axis name, amount to."""
    dims = layout.patched_dims
    return PatchGrid(
        layout.patched_shape,
        by_axis(patch, dims, "patch"),
        by_axis(stride, dims, "stride"),
        overlap=by_axis(overlap, dims, "overlap"),
        edge=by_axis("shift" if edge is None else edge, dims, "edge"),
        offset=by_axis(0 if offset is None else offset, dims, "offset"),
    )


def blend_spec(
    layout: Layout,
    roi_shape: Sequence[int],
    source_dtype: Any,
    patch: Sizes,
    said: BlendOptions,
    *,
    finalizes: bool = False,
) -> BlendSpec:
    """The blending that the user's words for one volume amount to.

    Parameters
    ----------
    said : whole, see `volpatch.core.declared.completed`.
    """
    dims = layout.patched_dims
    grid = make_grid(layout, patch, said["stride"], said["overlap"], said["edge"], said["offset"])
    source = check_dtype(source_dtype, "the source's dtype")
    dtype, input_dtype, reduce = said["dtype"], said["input_dtype"], said["reduce"]
    return BlendSpec(
        grid,
        windows_per_axis(by_axis(said["window"], dims, "window"), grid.ndim, reduce),
        source,
        source if input_dtype is None else check_dtype(input_dtype, "input_dtype"),
        channels_in=None if layout.channel is None else roi_shape[layout.channel],
        batch_size=whole_counts(said["batch_size"], None, "batch_size"),
        channels_out=whole_counts(said["out_channels"], None, "out_channels"),
        dtype=None if dtype is None else check_dtype(dtype, "dtype"),
        finalizes=finalizes,
        fill_value=said["fill_value"],
        pad_mode=said["pad_mode"],
        pad_value=said["pad_value"],
        reduce=reduce,
        nan_policy=said["nan_policy"],
        may_skip=said["mask"] is not None or said["skip"] is not None,
    )
