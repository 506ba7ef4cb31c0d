"""From a user's words to a plan, and to what its output looks like on disk."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from volpatch.core import resources as machine
from volpatch.core.axes import CHANNELS, has_positions
from volpatch.core.blending import BlendSpec
from volpatch.core.declared import part_of
from volpatch.core.errors import GridError, SettingError, SourceError
from volpatch.core.grid import per_axis, whole_number
from volpatch.core.layout import Layout, write_units
from volpatch.core.options import BlendOptions, JobOptions
from volpatch.core.parse import by_axis, parse_bytes, parse_roi, whole_counts
from volpatch.core.words import blend_spec, blocks_with_reach
from volpatch.functions.named import Func, operation_of, settle
from volpatch.functions.operation import Operation
from volpatch.planning.fit import fit
from volpatch.planning.inputs import absent_files
from volpatch.planning.masks import patch_filter_of, places_of
from volpatch.planning.plan import Plan, held_before
from volpatch.planning.provenance import attributes
from volpatch.planning.source import Volume
from volpatch.storage.adapt import Kind, kind_of, path_of
from volpatch.storage.codec import TargetSpec
from volpatch.storage.open import missing_of, open_source, source_of, with_missing
from volpatch.storage.volume import Source


def as_source(
    source: Any, level: int = 0, missing: str = "auto", series: int | str | None = None
) -> Source:
    """The stored volume behind a path, or behind what `open_volume` returned."""
    kind = kind_of(source)
    if kind is Kind.PATH:
        return open_source(source, level=level, series=series, missing=missing)
    if kind is Kind.ZARR and (path := path_of(source)) is not None:
        return open_source(path, level=level, series=series, missing=missing)
    found = source if kind is Kind.STORED else None
    if kind is Kind.XARRAY:
        found = source_of(source)
    if found is None:
        shown = kind.value if kind is not Kind.OTHER else type(source).__qualname__
        raise SourceError(
            f"run and plan take a path or what open_volume returned, got {shown}"
            f"{_WAYS.get(kind, '')}"
        )
    if series not in (None, found.series):
        raise SettingError(
            f"series={series!r} is for a path, and {found.path} is open already, with "
            f"series={found.series!r}; pass series to open_volume"
        )
    return with_missing(found, missing)


_IN_MEMORY = "; map_patches computes it where it is, and to_zarr writes what it gives"
_WAYS = {
    Kind.NUMPY: _IN_MEMORY,
    Kind.SEQUENCE: _IN_MEMORY,
    Kind.DASK: ", which is computed as it is read; go map_patches, then to_zarr",
    Kind.XARRAY: " that was sliced, computed or made otherwise; roi= takes a part of a volume, and "
    "for what was computed go map_patches, then to_zarr",
    Kind.DATASET: "; give one of its variables, as open_volume returns it",
    Kind.ZARR: " that is no folder on a local disk; map_patches takes it, then to_zarr",
    Kind.HDF5: "; map_patches takes it, then to_zarr",
}


def make_draft(
    source: Source,
    target: str | os.PathLike[str] | None,
    func: Func | None,
    finalize: Func | None,
    options: JobOptions,
) -> Plan:
    """The plan as far as the user's words make it; regions are still to be chosen.

    Parameters
    ----------
    options : whole, see `volpatch.core.declared.completed`.
    """
    patch = options["patch"]
    sizes = patch if options["reach"] is None else options["reach"]
    layout = Layout.of(source.dims, source.shape, sizes, options["channel_axis"])
    names = {CHANNELS: source.channel_names} if source.channel_names else None
    roi = parse_roi(options["roi"], source.dims, source.shape, names)
    blend = part_of(options, BlendOptions)
    settle(blend, func, patch, source.dtype, len(layout.patched))
    operation = operation_of(func)
    blending = blend_spec(
        layout,
        roi.shape,
        source.dtype,
        patch,
        blend,
        finalizes=finalize is not None,
        result=None if operation is None else operation.result,
    )
    memory = options["memory_limit"]
    box = [roi.shape[i] for i in layout.patched]
    chunks, shards = write_units(
        layout.patched_dims,
        box,
        layout.pick(source.chunks, layout.patched),
        blending.out_dtype.itemsize,
        chunks=options["chunks"],
        shards=options["shards"],
    )
    if blend["reach"] is not None:
        grid = blocks_with_reach(layout, blend["reach"], patch, blend, shards or chunks)
        blending = replace(blending, grid=grid)
    volume = Volume(
        source.path,
        source.level,
        source.name,
        source.dims,
        source.shape,
        str(source.dtype),
        source.chunks,
        source.shards,
        source.series,
        (*source.remarks, *absent_files(source)),
        source.in_turn,
    )
    draft = Plan(
        source=volume,
        target=None if target is None else os.path.abspath(target),
        layout=layout,
        blending=blending,
        roi=roi,
        chunks=chunks,
        shards=shards,
        region=tuple(shards or chunks),
        read_layer=1,
        workers=whole_counts(options["workers"], machine.processors(), "workers"),
        backend=options["backend"],
        memory_limit=machine.default_memory_limit() if memory is None else parse_bytes(memory),
        func_memory=_func_memory(options["func_memory"], operation, blending),
        concurrent_calls=whole_counts(options["concurrent_calls"], None, "concurrent_calls"),
        free_disk=_free_disk(target),
        held=held_before(machine.resident_bytes()),
        options={**options, "reach": blend["reach"], "missing": missing_of(source)},
        func=func,
        finalize=finalize,
    )
    patch_filter = patch_filter_of(options, layout, places_of(source, layout.patched_dims))
    if patch_filter is not None:
        draft = replace(draft, mask=patch_filter.describe(layout.patched_dims))
    target_spec(draft, source)  # refuses chunks, shards and codecs that cannot be
    return draft


def _func_memory(
    said: int | str | None, operation: Operation | None, blending: BlendSpec
) -> int | None:
    """Bytes of a call, where somebody knows them."""
    if said is not None:
        return parse_bytes(said, "func_memory")
    if operation is None:
        return None
    voxels = math.prod(blending.grid.patch) * (blending.channels_in or 1)
    return operation.call_bytes(voxels * (blending.batch_size or 1), blending.input_dtype)


def fitted(draft: Plan, region: Sequence[int] | None = None) -> Plan:
    """The draft with its regions chosen; `region` fixes them, else what the user said."""
    return fit(
        draft,
        region=asked_region(draft) if region is None else region,
        fewer_workers=draft.options["workers"] is None,
    )


def asked_region(draft: Plan) -> tuple[int, ...] | None:
    """The extent of a region that the user asked for, in voxels along the patched axes."""
    region, dims = draft.options["region"], draft.layout.patched_dims
    if region is None:
        return None
    edges = per_axis(by_axis(region, dims, "region"), len(dims), "region")
    return tuple(
        min(whole_number(r, "region"), -(-n // u) * u)
        for r, n, u in zip(edges, draft.box.shape, draft.unit, strict=True)
    )


def _free_disk(target: str | os.PathLike[str] | None) -> int | None:
    if target is None:
        return None
    folder = Path(os.path.abspath(target)).parent
    with suppress(OSError):
        return shutil.disk_usage(folder).free
    return None


def target_spec(plan: Plan, source: Source) -> TargetSpec:
    """What the output of a plan looks like on disk."""
    layout, roi, axes = plan.layout, plan.roi, plan.out_axes
    _check_channels(plan)

    def per_dim(values: Sequence[Any], other: Any) -> tuple[Any, ...]:
        return tuple(other if axis is None else values[axis] for axis in axes)

    def pieces(patched: Sequence[int]) -> tuple[int, ...]:
        sizes: dict[int | None, int] = dict(zip(layout.patched, patched, strict=True))
        return tuple(sizes.get(axis, 1) for axis in axes)

    origin = [o + s * a for o, s, a in zip(source.origin, source.spacing, roi.start, strict=True)]
    return TargetSpec(
        shape=plan.out_shape,
        dtype=str(plan.blending.out_dtype),
        dims=per_dim(source.dims, CHANNELS),
        chunks=pieces(plan.chunks),
        shards=None if plan.shards is None else pieces(plan.shards),
        codec=plan.options["codec"],
        name=source.name,
        spacing=per_dim(source.spacing, 1.0),
        origin=per_dim(origin, 0.0),
        units=per_dim(source.units, None),
        attributes=attributes(plan),
        channel_names=_channel_names(plan, source),
    )


def _channel_names(plan: Plan, source: Source) -> tuple[str, ...] | None:
    """Names of the output's channels, where they are those of the source."""
    looped = [axis for axis in plan.layout.lead if plan.layout.dims[axis] == CHANNELS]
    if source.channel_names is None or not looped or looped[0] not in plan.out_axes:
        return None
    return source.channel_names[plan.roi.start[looped[0]] : plan.roi.stop[looped[0]]]


def _check_channels(plan: Plan) -> None:
    """Refuse channels beside another axis that is neither time nor space: there is one such."""
    if None not in plan.out_axes:
        return
    dims, shape = plan.layout.dims, plan.roi.shape
    others = [a for a in plan.out_axes if a is not None and a in plan.layout.lead]
    for axis in others:
        dim = dims[axis]
        if has_positions(dim):
            continue
        choice = f", or choose one with roi='{CHANNELS}=0'" if dim == CHANNELS else ""
        raise GridError(
            f"the function returns channels, and the volume has an axis {dim} of {shape[axis]} "
            f"that is looped over, but an OME-Zarr has one axis besides t, z, y and x; hand it "
            f"whole to the function with channel_axis={dim!r}{choice}"
        )
