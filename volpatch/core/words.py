"""The user's words for one volume, as the grid and the blending that they amount to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from volpatch.core.blending import BlendSpec, check_dtype
from volpatch.core.declared import table
from volpatch.core.errors import GridError, SettingError
from volpatch.core.grid import PatchGrid, per_axis, whole_number
from volpatch.core.layout import Layout, write_units
from volpatch.core.options import BlendOptions, Sizes
from volpatch.core.parse import by_axis, whole_counts
from volpatch.core.reach import reach_grid
from volpatch.core.window import Window, windows_per_axis

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


# what asks for patches that overlap, and is at odds with a function of which the reach is known
_OF_PATCHES = ("stride", "overlap", "window", "edge", "offset", "mask", "skip", "reduce")


def asks_for_patches(patch: Sizes | None, said: BlendOptions) -> str | None:
    """The first of the options that were given and belong to patches; None without any."""
    if patch is not None:
        return "patch"
    values: dict[str, Any] = {**said}
    for name, option in table(BlendOptions).items():
        # an array as a mask, or a window for each axis, is not to be compared
        if name in _OF_PATCHES and not (values[name] is None or _is(values[name], option.default)):
            return name
    return "nan_policy" if said["nan_policy"] == "omit" else None


def _is(value: Any, default: Any) -> bool:
    return isinstance(value, type(default)) and bool(value == default)


def blocks_with_reach(
    layout: Layout,
    reach: Sizes,
    patch: Sizes | None,
    said: BlendOptions,
    unit: Sequence[int] | None = None,
) -> PatchGrid:
    """The blocks of a function that looks so far to each side.

    Parameters
    ----------
    unit : what the output is written in, along the patched axes.
    """
    if (name := asks_for_patches(patch, said)) is not None:
        raise SettingError(
            f"reach computes every voxel once, in blocks that it chooses, so {name} has no meaning "
            f"beside it; leave one of them out"
        )
    shape = layout.patched_shape
    if unit is None:
        unit, _ = write_units(layout.patched_dims, shape, None, 1)
    return reach_grid(shape, reach_per_axis(layout, reach), unit)


def reach_per_axis(layout: Layout, reach: Sizes) -> tuple[int, ...]:
    """Voxels to each side, for each of the patched axes."""
    dims = layout.patched_dims
    given = per_axis(by_axis(reach, dims, "reach"), len(dims), "reach")
    sizes = [whole_number(size, f"reach on {dim}") for size, dim in zip(given, dims, strict=True)]
    if min(sizes) < 0:
        raise GridError(f"reach must not be negative, got {reach}")
    return tuple(sizes)


def blend_spec(
    layout: Layout,
    roi_shape: Sequence[int],
    source_dtype: Any,
    patch: Sizes | None,
    said: BlendOptions,
    *,
    finalizes: bool = False,
    result: Callable[[Any], Any] | None = None,
) -> BlendSpec:
    """The blending that the user's words for one volume amount to.

    Parameters
    ----------
    patch : None where nothing was said.
    said : whole, see `volpatch.core.declared.completed`.
    result : dtype of what the function gives for patches of a dtype, if that is known.
    """
    dims = layout.patched_dims
    if said["reach"] is not None:
        grid = blocks_with_reach(layout, said["reach"], patch, said)
        windows: tuple[Window, ...] = ("crop",) * grid.ndim
    else:
        size = patch_or_default(patch, layout)
        own = (said[name] for name in ("stride", "overlap", "edge", "offset"))
        grid = make_grid(layout, size, *own)
        windows = windows_per_axis(
            by_axis(said["window"], dims, "window"), grid.ndim, said["reduce"]
        )
    source = check_dtype(source_dtype, "the source's dtype")
    dtype, reduce = said["dtype"], said["reduce"]
    given = source
    if said["input_dtype"] is not None:
        given = check_dtype(said["input_dtype"], "input_dtype")
    return BlendSpec(
        grid,
        windows,
        source,
        given,
        channels_in=None if layout.channel is None else roi_shape[layout.channel],
        batch_size=whole_counts(said["batch_size"], None, "batch_size"),
        channels_out=whole_counts(said["out_channels"], None, "out_channels"),
        dtype=None if dtype is None else check_dtype(dtype, "dtype"),
        result_dtype=None if result is None else result(given),
        finalizes=finalizes,
        fill_value=said["fill_value"],
        pad_mode=said["pad_mode"],
        pad_value=said["pad_value"],
        reduce=reduce,
        nan_policy=said["nan_policy"],
        may_skip=said["mask"] is not None or said["skip"] is not None,
    )
