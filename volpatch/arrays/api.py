"""What users call for arrays: NumPy in gives NumPy out, dask dask, xarray xarray.

The only place that asks what kind of array it was given. Each verb takes the array
apart (data, names of axes), works on NumPy or dask, and puts the answer together again.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np
from numpy.typing import DTypeLike, NDArray

from volpatch.arrays import dask as lazy
from volpatch.compute.blend import Stats
from volpatch.compute.caller import Caller
from volpatch.compute.inmemory import cut_patches, map_array, merge_box, reader
from volpatch.compute.rounding import warn_clipped
from volpatch.core.axes import CHANNELS
from volpatch.core.blending import BlendSpec, check_dtype
from volpatch.core.box import Box
from volpatch.core.declared import completed, takes
from volpatch.core.errors import GridError, SettingError
from volpatch.core.grid import AxisGrid, PatchGrid, check_grid
from volpatch.core.layout import Layout, refuse_beside_grid
from volpatch.core.options import BlendOptions, Sizes
from volpatch.core.parse import parse_roi, whole_counts
from volpatch.core.window import Window, windows_per_axis
from volpatch.core.words import blend_spec, make_grid
from volpatch.functions.named import Function, by_name, loaded, operation_of, settle
from volpatch.planning.masks import patch_filter_of, places_of
from volpatch.storage.adapt import AnyVolume, as_array
from volpatch.storage.open import check_lazy

Array = NDArray[Any]
PATCH_SUFFIX = "_patch"
# where extract leaves the volume's coordinates and the order of its axes for merge to find
VOLUME_COORD = "volpatch_volume"
VOLUME_DIMS = "volpatch_dims"


@takes(BlendOptions)
def map_patches(
    func: Function,
    volume: Any,
    patch: Sizes | None = None,
    *,
    channel_axis: int | str | None = None,
    finalize: Function | None = None,
    roi: Any = None,
    workers: int = 1,
    concurrent_calls: int | None = None,
    copy: bool = True,
    kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[BlendOptions],
) -> Any:
    """Run a function over overlapping patches of an array and blend the results.

    Parameters
    ----------
    func : callable, name of a ready-made operation, or "module:function"
        `func(patch) -> patch`, or with `batch_size` `func(batch) -> batch` with a leading
        batch axis. It may return extra leading channels, and another dtype. It may write
        into what it is given, which is valid during the call only.
    volume : ndarray, dask array or DataArray
        Real numbers, any number of axes, (z, y, x) last; a masked array is refused.
    patch : int, sequence of int, or mapping by axis name, optional
        Patch size in voxels; a sequence patches the last axes, a number all of them (z, y
        and x of a DataArray). Every index of the other axes is processed on its own.
        Without one it is 64, or the axis where it is shorter.
    channel_axis : int or name, optional
        Axis that is handed whole to the function, before the patched axes.
    finalize : callable or name, optional
        Runs on blended blocks before they are rounded (argmax, threshold); pointwise.
    roi : slices, optional
        The part of the whole result that is wanted; the grid stays that of the volume.
    workers : int
        Threads for an array in memory: each cuts and blends a slab along the first patched
        axis, and computes the patches that reach into it.
    concurrent_calls : int, optional
        How many of them may be in the function at the same time: 1 unless more is said, as
        not every function can be called so; any number for a ready-made operation.
    copy : bool
        False hands patches out as views of the volume that cannot be written to, where they
        lie in memory as the function gets them: without batches, casts and padding.
    kwargs : mapping, optional
        Parameters of the function, as in `xarray.apply_ufunc`: `kwargs={"sigma": 2}`.
    **options

    Returns
    -------
    The kind of array that came in, of the volume's shape (of the roi's, with `roi`), with its
    axes in their order. The function's channels come right before the patched axes; where
    axes have names, where c belongs in (t, c, z, y, x), in the place of a c that is looped
    over and of which only one index is asked for.

    From dask the result is lazy: building it reads nothing (dtype and channels that are
    not declared are found by one call on a made-up patch), a slice computes only its
    patches, and there is a task for each chunk, not each patch. A chunk computes all
    patches that touch it, so those over a border are computed in several: about
    prod(1 + (patch - stride) / chunk) times the work. Rechunk to larger chunks to lower
    that, or go extract -> map_blocks -> merge, where every patch is computed once.

    Raises
    ------
    GridError, SettingError
        Settings that cannot be, before anything is computed.
    FunctionError
        The function raised, or gave back something unusable; names patch and box.
    SourceError
        A block of a dask array is of another shape or dtype than it says, or masked.

    Warns
    -----
    ClippedWarning
        Values did not fit `dtype`; tells how many, those of a lazy result block by block.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(30, dtype=np.float32).reshape(5, 6)
    >>> out = map_patches(lambda p: p + 1, image, patch=4, overlap="50%")
    >>> bool(np.allclose(out, image + 1))
    True
    """
    given = as_array(volume, "map_patches")
    shape = given.data.shape
    said, function, final = (
        completed(options, BlendOptions),
        by_name(func, kwargs),
        by_name(finalize),
    )
    sizes = patch if said["reach"] is None else said["reach"]
    layout = Layout.of(given.dims, shape, sizes, channel_axis, named=given.named)
    box = parse_roi(roi, given.dims, shape, given.names)
    dtype, operation = given.data.dtype, operation_of(function)
    settle(said, function, patch, dtype, len(layout.patched))
    blending = blend_spec(
        layout,
        box.shape,
        dtype,
        patch,
        said,
        finalizes=final is not None,
        result=None if operation is None else operation.result,
    )
    call, finish = loaded(function), None if final is None else loaded(final)
    places = places_of(given, layout.patched_dims)
    patch_filter = patch_filter_of(said, layout, places)
    workers = whole_counts(workers, 1, "workers")
    calls = whole_counts(concurrent_calls, None, "concurrent_calls")
    if not given.lazy:
        data = np.asarray(given.data)
        stats = Stats()
        at_once = calls or (1 if operation is None else workers)
        gate = threading.Semaphore(at_once) if at_once < workers else None
        result: Any = map_array(
            Caller(call, gate),
            data,
            layout,
            blending,
            box,
            finish,
            patch_filter,
            workers,
            stats,
            not copy,
        )
        warn_clipped(stats.clipped, result.dtype)
        return _labelled(result, given, layout, box)
    for name, count in (("workers", workers), ("concurrent_calls", calls or 1)):
        if count == 1:
            continue
        raise SettingError(
            f"{name}={count} is for arrays in memory; a dask array is computed by the workers "
            f"of dask's scheduler: dask.config.set(num_workers={count}), or a Client"
        )
    chosen = [slice(a, b) for a, b in zip(box.start, box.stop, strict=True)]
    whole = [slice(None) if i in layout.patched else s for i, s in enumerate(chosen)]
    result = lazy.map_blocks(call, given.data[tuple(whole)], layout, blending, finish, patch_filter)
    patched = tuple(chosen[i] for i in layout.patched)
    return _labelled(result[(..., *patched)], given, layout, box)


def _labelled(blended: Any, given: AnyVolume, layout: Layout, box: Box) -> Any:
    """The result (lead..., [channels,] patched...) as what came in, with its axes in order."""
    channels = blended.ndim > len(layout.lead) + len(layout.patched)
    own: tuple[int | None, ...] = (*layout.lead, *([None] if channels else []), *layout.patched)
    axes = layout.result_axes(channels, box.shape)
    # one index of an axis that gives way to the channels
    blended = blended[tuple(slice(None) if axis in axes else 0 for axis in own)]
    own = tuple(axis for axis in own if axis in axes)
    order = tuple(own.index(axis) for axis in axes)
    result = blended if order == tuple(range(len(order))) else blended.transpose(order)
    if not given.named:
        return result
    import xarray as xr

    volume = given.origin
    taken = [layout.dims[axis] for axis in axes if axis is not None]
    name = CHANNELS if CHANNELS not in taken else "channel"
    while name in taken:
        name += "_"
    dims = [name if axis is None else layout.dims[axis] for axis in axes]
    part = volume.isel(
        {d: slice(a, b) for d, a, b in zip(given.dims, box.start, box.stop, strict=True)}
    )
    kept = {
        key: coord
        for key, coord in part.coords.items()
        if set(coord.dims) <= set(taken) and not (channels and key == name)
    }
    return xr.DataArray(result, dims=dims, coords=kept, name=volume.name, attrs=volume.attrs)


def extract(
    volume: Any,
    patch: Sizes | PatchGrid,
    *,
    stride: Sizes | None = None,
    overlap: Any = None,
    edge: str | Sequence[str] | None = None,
    offset: Sizes | None = None,
    pad_mode: str = "reflect",
    pad_value: float = 0,
) -> Any:
    """All patches of an array.

    Parameters
    ----------
    volume : ndarray, dask array or DataArray
        (z, y, x) last; leading axes stay in front.
    patch : int, sequence, mapping by axis name, or PatchGrid
        As for `map_patches`; a grid has its own stride, overlap, edge and offset.
    stride, overlap, edge, offset, pad_mode, pad_value
        As for `map_patches`.

    Returns
    -------
    (lead..., *lattice, *patch) of the volume's dtype. From NumPy a read-only view without
    any copy where the starts are regular, else a copy; lazy from dask. A DataArray has the
    axes z_patch, y_patch, x_patch, z, y, x; coords say where each patch starts
    (`z_start`, in voxels) and where its centre lies (`z_patch`, in the volume's units).

    Raises
    ------
    GridError
        Sizes that do not fit the volume, or a grid of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(42.0).reshape(6, 7)
    >>> patches = extract(image, (3, 3), stride=(3, 2))
    >>> patches.shape, patches[1, 2].tolist()[0]
    ((2, 3, 3, 3), [25.0, 26.0, 27.0])
    """
    given = as_array(volume, "extract")
    layout, grid = grid_over(given, patch, stride, overlap, edge, offset)
    dtype = check_dtype(given.data.dtype, "the source's dtype")
    blending = BlendSpec(
        grid,
        ("constant",) * grid.ndim,
        dtype,
        dtype,
        fill_value=0,
        pad_mode=pad_mode,
        pad_value=pad_value,
    )
    data = given.data.transpose(layout.order)
    patches = lazy.extract_blocks(data, blending) if given.lazy else _extract_array(data, blending)
    if not given.named:
        return patches
    import xarray as xr

    dims = layout.patched_dims
    lead = [layout.dims[i] for i in layout.lead]
    coords = _coords_along(given.origin, lead)
    for dim, axis in zip(dims, grid.axes, strict=True):
        starts = np.asarray(axis.starts, dtype=np.int64)
        order = {VOLUME_DIMS: given.dims}
        coords[f"{dim}_start"] = (dim + PATCH_SUFFIX, starts, {}, order)
        coords[dim + PATCH_SUFFIX] = _centres(given.origin, dim, starts + (axis.patch - 1) / 2)
    names = [*lead, *(d + PATCH_SUFFIX for d in dims), *dims]
    return xr.DataArray(
        patches, dims=names, coords=coords, name=given.origin.name, attrs=given.origin.attrs
    )


def _coords_along(array: Any, dims: Sequence[str]) -> dict[str, Any]:
    """The coordinates that belong to some axes alone, or to none."""
    return {key: coord for key, coord in array.coords.items() if set(coord.dims) <= set(dims)}


def _centres(volume: Any, dim: str, centres: Array) -> tuple[Any, ...]:
    """Centres of patches as a coordinate, in the units of the volume's own."""
    if dim not in volume.coords or volume.coords[dim].dtype.kind not in "iuf":
        return dim + PATCH_SUFFIX, centres, {}
    own = volume.coords[dim]
    values = np.asarray(own.values, dtype=np.float64)
    step = values[1] - values[0] if len(values) > 1 else 1.0
    last = len(values) - 1
    inside = np.interp(np.minimum(centres, last), np.arange(len(values)), values)
    beyond = step * np.maximum(centres - last, 0)
    return dim + PATCH_SUFFIX, inside + beyond, dict(own.attrs), {VOLUME_COORD: own.values}


def grid_over(
    given: AnyVolume, patch: Any, stride: Any, overlap: Any, edge: Any, offset: Any
) -> tuple[Layout, PatchGrid]:
    """Roles of an array's axes, and the grid over the patched ones."""
    shape = given.data.shape
    if not isinstance(patch, PatchGrid):
        layout = Layout.of(given.dims, shape, patch, named=given.named)
        return layout, make_grid(layout, patch, stride, overlap, edge, offset)
    refuse_beside_grid(stride=stride, overlap=overlap, edge=edge, offset=offset)
    if tuple(shape[max(0, len(shape) - patch.ndim) :]) != patch.shape:
        raise GridError(
            f"the grid is for a volume of shape {patch.shape}, but the array has shape "
            f"{tuple(shape)}; make the grid for the array's last axes"
        )
    return Layout.of(given.dims, shape, patch.patch, named=given.named), patch


def _extract_array(array: Array, blending: BlendSpec) -> Array:
    grid = blending.grid
    lead = array.ndim - grid.ndim
    if all(a.regular and a.padded == a.size for a in grid.axes) and 0 not in grid.lattice:
        axes = tuple(range(lead, array.ndim))
        views = np.lib.stride_tricks.sliding_window_view(array, grid.patch, axis=axes)
        steps = tuple(slice(a.offset, a.start(a.count - 1) + 1, a.stride) for a in grid.axes)
        return views[(slice(None),) * lead + steps]
    out = np.empty((*array.shape[:lead], *grid.lattice, *grid.patch), array.dtype)
    out = out.astype(blending.source_dtype, copy=False)
    rest = tuple(range(a.count) for a in grid.axes[1:])
    for place in np.ndindex(array.shape[:lead]):
        read = reader(array[place][None], (0,) * grid.ndim)
        for row in range(grid.lattice[0]):
            cut_patches(read, blending, (range(row, row + 1), *rest), out[place][row : row + 1])
    return out


def merge(
    patches: Any,
    grid: PatchGrid,
    *,
    window: Window | Sequence[Window] | None = None,
    dtype: DTypeLike | None = None,
    reduce: str = "mean",
    nan_policy: str = "propagate",
    fill_value: float | None = None,
    chunks: Any = None,
) -> Any:
    """The volume that patches blend to; the inverse of `extract`.

    Parameters
    ----------
    patches : ndarray, dask array or DataArray
        (lead..., *lattice, *patch) of the grid.
    grid : PatchGrid
    window, dtype, reduce, nan_policy, fill_value
        As for `map_patches`; voxels that no patch covers need `fill_value`.
    chunks : optional
        Chunks of a lazy result; without, they follow the patches' lattice chunks.

    Returns
    -------
    (lead..., *shape). With dask a patch that is computed once serves all blocks it
    reaches.

    Raises
    ------
    GridError
        Patches of another grid, or voxels without a patch and no `fill_value`.
    SettingError
        Integer patches with a weighted window and no `dtype`.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(42.0).reshape(6, 7)
    >>> grid = PatchGrid(image.shape, 3, 2)
    >>> bool(np.allclose(merge(extract(image, grid), grid), image))
    True
    """
    check_grid(grid)
    given = _in_order(as_array(patches, "merge"))
    lead = lazy.check_patches(given.data.shape, grid)
    kind = check_dtype(given.data.dtype, "the patches' dtype")
    blending = lazy.merge_spec(
        grid,
        windows_per_axis(window, grid.ndim, reduce),
        kind,
        dtype=None if dtype is None else check_dtype(dtype, "dtype"),
        reduce=reduce,
        nan_policy=nan_policy,
        fill_value=fill_value,
    )
    if given.lazy:
        merged = lazy.merge_blocks(given.data, blending)
        merged = merged if chunks is None else merged.rechunk(chunks)
    else:
        counts = given.data.shape[:lead]
        merged = np.zeros((*counts, *grid.shape), blending.out_dtype)
        box = Box((0,) * grid.ndim, grid.shape)
        numbers = tuple(range(n) for n in grid.lattice)
        stats = Stats()
        for place in np.ndindex(counts):
            merge_box(np.asarray(given.data[place]), blending, numbers, box, merged[place], stats)
        warn_clipped(stats.clipped, merged.dtype)
    return _merged(merged, given, lead, grid)


def _in_order(given: AnyVolume) -> AnyVolume:
    """Patches with the axes (lead..., *_patch, ...) by their names, whatever their order."""
    lattice = [d for d in given.dims if d.endswith(PATCH_SUFFIX)]
    inner = [d.removesuffix(PATCH_SUFFIX) for d in lattice]
    if not given.named or not lattice or not set(inner) <= set(given.dims):
        return given
    lead = [d for d in given.dims if d not in lattice and d not in inner]
    return as_array(given.origin.transpose(*lead, *lattice, *inner), "merge")


def _merged(merged: Any, given: AnyVolume, lead: int, grid: PatchGrid) -> Any:
    """The merged volume as a DataArray, if the patches were one."""
    if not given.named:
        return merged
    import xarray as xr

    patches = given.origin
    dims = [*given.dims[:lead], *given.dims[len(given.dims) - grid.ndim :]]
    coords = _coords_along(patches, dims[:lead])
    order = dims
    for dim, axis in zip(dims[lead:], grid.axes, strict=True):
        centres = patches.coords.get(dim + PATCH_SUFFIX)
        if centres is None:
            continue
        values = centres.encoding.get(VOLUME_COORD)
        if values is not None and len(values) == axis.size:
            coords[dim] = (dim, values, dict(centres.attrs))
        starts = patches.coords.get(f"{dim}_start")
        before = () if starts is None else starts.encoding.get(VOLUME_DIMS, ())
        order = list(before) if set(before) == set(dims) else order
    volume = xr.DataArray(merged, dims=dims, coords=coords, name=patches.name, attrs=patches.attrs)
    return volume.transpose(*order)


def coverage(grid: PatchGrid, *, chunks: Any = "auto") -> Any:
    """How many patches cover each voxel, as a lazy dask array of int64.

    >>> coverage(PatchGrid((6, 6), 4, 1)).compute()[0].tolist()
    [1, 2, 3, 3, 2, 1]
    """
    import dask.array as da

    check_grid(grid)
    check_lazy(grid.shape, [one.name for one in grid.axes], "or take the grid of a part")
    try:
        sizes = da.core.normalize_chunks(  # type: ignore[no-untyped-call]
            chunks, grid.shape, dtype=np.int64
        )
    except (TypeError, ValueError) as error:
        raise SettingError(
            f"chunks={chunks!r} are none of dask's ({error}); give voxels, 'auto' or '64 MiB'"
        ) from None
    counts = []
    for number, (axis, own) in enumerate(zip(grid.axes, sizes, strict=True)):
        voxels = da.arange(axis.size, chunks=(own,), dtype=np.int64)
        count = functools.partial(_visits, axis)
        along = voxels.map_blocks(count, dtype=np.int64, meta=np.empty(0, np.int64))
        counts.append(along[(..., *(None for _ in range(number + 1, grid.ndim)))])
    total = counts[0]
    for one in counts[1:]:
        total = total * one
    return total


def _visits(axis: AxisGrid, voxels: Array) -> Array:
    """How many patches cover each of some voxels of an axis."""

    def begun(place: Array) -> Array:
        """Patches that start at a place or before it."""
        regular = np.clip((place - axis.offset) // axis.stride + 1, 0, max(0, axis.count - 1))
        last = axis.count > 0 and place >= axis.start(axis.count - 1)
        return np.where(last, axis.count, regular)

    return begun(voxels) - begun(voxels - axis.patch)
