"""What users call for volumes on disk: lay out a run, and run it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from numpy.typing import NDArray

from volpatch import machine
from volpatch.arrays import make_recipe, skips_of
from volpatch.errors import GridError, SettingError, SourceError
from volpatch.fitting import fit
from volpatch.forms import by_axis, parse_bytes, parse_roi, whole_counts
from volpatch.functions import FunctionSpec
from volpatch.geometry import per_axis
from volpatch.layout import Layout, write_units
from volpatch.options import BlendOptions, JobOptions, Sizes, check_names
from volpatch.planner import BACKENDS, Plan, Volume
from volpatch.runner import RunReport, execute
from volpatch.storage.opening import missing_of, open_source, source_of, with_missing
from volpatch.storage.puts import Durability, check_target
from volpatch.storage.source import Source
from volpatch.storage.target import TargetSpec
from volpatch.work import Functions, Trial

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[Any]
Function = Callable[..., Any] | FunctionSpec | str
DEFAULT_PATCH = 64


def plan(
    source: str | os.PathLike[str] | Source | xr.DataArray,
    target: str | os.PathLike[str] | None = None,
    *,
    level: int = 0,
    func: Function | None = None,
    finalize: Function | None = None,
    **options: Unpack[JobOptions],
) -> Plan:
    """Lay out a run without computing anything.

    Parameters
    ----------
    source : path, or what `open_volume` returned
        The volume. `level` picks a resolution where there are several.
    target : path, optional
        Where the output is to be.
    func, finalize : optional
        Never called; a ready-made operation's name tells the output's dtype, and named
        functions are saved with the plan.
    **options
        patch (default 64, or the axis where it is shorter), stride or overlap, window,
        edge, batch_size, dtype, out_channels, missing, roi, chunks, shards, codec, region,
        memory_limit, func_memory, workers, backend, …: see `volpatch.options`.

    Returns
    -------
    Plan
        `print(plan.explain())` shows regions, redundancy, traffic and memory term by term.

    Raises
    ------
    MemoryLimitError
        Nothing fits; the message names the largest term and a setting that fits.
    GridError, SettingError, SourceError
        Something that cannot be.
    """
    volume = as_source(source, level, options.get("missing", "auto"))
    draft = _draft(volume, target, _named(func), _named(finalize), options)
    return _fitted(draft)


def run(
    func: Function | None,
    source: str | os.PathLike[str] | Source | xr.DataArray,
    target: str | os.PathLike[str],
    *,
    level: int = 0,
    setup: Callable[[], Callable[..., Any]] | None = None,
    finalize: Function | None = None,
    overwrite: bool = False,
    durability: Durability = "full",
    progress: str = "none",
    announce: Callable[[Plan], None] = lambda plan: None,
    **options: Unpack[JobOptions],
) -> RunReport:
    """Run a function over overlapping patches of a stored volume, into a stored volume.

    Parameters
    ----------
    func : callable, name of a ready-made operation, "module:function", or None with `setup`
        As in `map_patches`.
    source : path, or what `open_volume` returned
        The volume; `level` picks a resolution where there are several.
    target : path
        The OME-Zarr to be made. It appears under its name when it is complete.
    setup : callable, optional
        Runs once per worker process and returns the function: load a model here.
    finalize : callable or name, optional
        Runs on blended blocks before they are rounded and written; pointwise.
    overwrite : bool
        Replace an earlier output of volpatch, once the new one is complete.
    durability : {"full", "process"}
        What finished writes survive: a power cut, or only the death of the process.
    progress : {"none", "auto", "bar", "log"}
        How far the run is, told on stderr.
    announce : callable, optional
        Is given the final plan before the first region starts.
    **options
        As for `plan`.

    Returns
    -------
    RunReport

    Raises
    ------
    VolpatchError
        Before anything is written for settings, source, target and function that cannot
        be; during the run when the function fails. The target then does not exist.

    Examples
    --------
    >>> import numpy as np, tempfile, tifffile
    >>> folder = tempfile.mkdtemp()
    >>> tifffile.imwrite(f"{folder}/in.tif", np.ones((20, 30, 30), np.uint8))
    >>> report = run("gaussian", f"{folder}/in.tif", f"{folder}/out.zarr", patch=16)
    >>> report.stats.clipped
    0
    """
    if (func is None) == (setup is None):
        raise SettingError("give one of func and setup: the function, or what makes it")
    if durability not in ("full", "process"):
        raise SettingError(f"durability must be 'full' or 'process'; got {durability!r}")
    volume = as_source(source, level, options.get("missing", "auto"))
    check_target(os.fspath(target), overwrite=overwrite, source_path=volume.path)
    function, final = _named(func), _named(finalize)
    for spec in (function, final):
        if isinstance(spec, FunctionSpec):
            spec.check()
    draft = _draft(volume, target, function, final, options)

    def settle(draft: Plan, trial: Trial) -> tuple[Plan, TargetSpec]:
        memory = trial.func_memory if draft.func_memory is None else draft.func_memory
        known = replace(
            draft,
            recipe=trial.recipe,
            func_memory=memory,
            resident=trial.resident,
            parent=machine.resident_bytes(),
        )
        plan = _fitted(known)
        return plan, target_spec(plan, volume)

    return execute(
        draft,
        Functions(function, setup, final, draft.calls, skips_of(options, draft.layout)),
        volume,
        settle=settle,
        overwrite=overwrite,
        durability=durability,
        announce=announce,
        progress=progress,
    )


def as_source(source: Any, level: int = 0, missing: str = "auto") -> Source:
    """The stored volume behind a path, or behind what `open_volume` returned."""
    if isinstance(source, Source):
        return with_missing(source, missing)
    if isinstance(source, str | os.PathLike):
        return open_source(source, level=level, missing=missing)
    found = source_of(source) if hasattr(source, "encoding") else None
    if found is None:
        raise SourceError(
            f"run and plan take a path or what open_volume returned, got a "
            f"{type(source).__module__}.{type(source).__name__} that was sliced, computed or made "
            f"otherwise; use roi= for a part of a volume, or map_patches for an array"
        )
    return with_missing(found, missing)


def _named(function: Function | None) -> Callable[..., Any] | FunctionSpec | None:
    return FunctionSpec.parse(function) if isinstance(function, str) else function


def _patch_or_default(patch: Sizes | None, source: Source) -> Sizes:
    if patch is not None:
        return patch
    layout = Layout.of(source.dims, source.shape, DEFAULT_PATCH)
    return tuple(min(DEFAULT_PATCH, n) for n in layout.patched_shape)


def _draft(
    source: Source,
    target: str | os.PathLike[str] | None,
    function: Any,
    finalize: Any,
    options: JobOptions,
) -> Plan:
    """The plan as far as the user's words make it; regions are still to be chosen."""
    check_names(options, JobOptions)
    patch = _patch_or_default(options.get("patch"), source)
    layout = Layout.of(source.dims, source.shape, patch, options.get("channel_axis"))
    roi = parse_roi(options.get("roi"), source.dims, source.shape, source.channel_names)
    blend: Any = {k: v for k, v in options.items() if k in BlendOptions.__annotations__}
    if blend.get("dtype") is None:
        blend["dtype"] = _operation_dtype(function, source)
    recipe = make_recipe(
        layout, roi.shape, source.dtype, patch, finalizes=finalize is not None, **blend
    )
    backend = options.get("backend", "threads")
    if backend not in BACKENDS:
        raise SettingError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    memory, func_memory = options.get("memory_limit"), options.get("func_memory")
    box = [roi.shape[i] for i in layout.patched]
    chunks, shards = write_units(
        layout.patched_dims,
        box,
        layout.pick(source.chunks, layout.patched),
        recipe.out_dtype.itemsize,
        chunks=options.get("chunks"),
        shards=options.get("shards"),
    )
    volume = Volume(
        source.path,
        source.level,
        source.name,
        source.dims,
        source.shape,
        str(source.dtype),
        source.chunks,
        source.shards,
    )
    draft = Plan(
        source=volume,
        target=None if target is None else os.path.abspath(target),
        layout=layout,
        recipe=recipe,
        roi=roi,
        chunks=chunks,
        shards=shards,
        region=tuple(shards or chunks),
        read_layer=1,
        workers=whole_counts(options.get("workers"), machine.processors(), "workers"),
        backend=backend,
        memory_limit=machine.default_memory_limit() if memory is None else parse_bytes(memory),
        func_memory=None if func_memory is None else parse_bytes(func_memory, "func_memory"),
        calls=whole_counts(options.get("calls"), None, "calls"),
        free_disk=_free_disk(target),
        words={
            "options": {**options, "missing": missing_of(source)},
            "function": function,
            "finalize": finalize,
        },
    )
    target_spec(draft, source)  # refuses chunks, shards and codecs that cannot be
    return draft


def _operation_dtype(function: Any, source: Source) -> Any:
    """Ready-made operations are intensity operations: they give back the source's dtype."""
    operation = function.operation if isinstance(function, FunctionSpec) else None
    if operation is None:
        return None
    return source.dtype if operation.dtype == "source" else operation.dtype


def _fitted(draft: Plan) -> Plan:
    """The draft with its regions chosen, and the words that repeat exactly this plan."""
    options = draft.words["options"]
    dims = draft.layout.patched_dims
    region = options.get("region")
    if region is not None:
        region = per_axis(by_axis(region, dims, "region"), len(dims), "region")
        region = tuple(
            min(r, -(-n // u) * u)
            for r, n, u in zip(region, draft.box.shape, draft.unit, strict=True)
        )
    return fit(draft, region=region, fewer_workers=options.get("workers") is None)


def _free_disk(target: str | os.PathLike[str] | None) -> int | None:
    if target is None:
        return None
    folder = Path(os.path.abspath(target)).parent
    with suppress(OSError):
        return shutil.disk_usage(folder).free
    return None


def target_spec(plan: Plan, source: Source) -> TargetSpec:
    """What the output of a plan looks like on disk."""
    layout, roi = plan.layout, plan.roi
    channels = plan.recipe.out_channels
    if channels is not None and "c" in [layout.dims[i] for i in layout.lead]:
        raise GridError(
            "the function returns channels, and the volume has an axis c that is looped over; hand "
            "it whole to the function with channel_axis='c', or choose one with roi='c=0'"
        )
    axes = [*layout.lead, *([None] if channels is not None else []), *layout.patched]

    def per_dim(values: Sequence[Any], other: Any) -> tuple[Any, ...]:
        return tuple(other if axis is None else values[axis] for axis in axes)

    ones = (1,) * (len(axes) - len(layout.patched))
    origin = [o + s * a for o, s, a in zip(source.origin, source.spacing, roi.start, strict=True)]
    grid = plan.recipe.grid
    return TargetSpec(
        shape=plan.out_shape,
        dtype=str(plan.recipe.out_dtype),
        dims=per_dim(source.dims, "c"),
        chunks=(*ones, *plan.chunks),
        shards=None if plan.shards is None else (*ones, *plan.shards),
        codec=plan.words["options"].get("codec", "zstd"),
        name=source.name,
        spacing=per_dim(source.spacing, 1.0),
        origin=per_dim(origin, 0.0),
        units=per_dim(source.units, None),
        attributes={
            "source": source.name,
            "function": _name_of(plan.words.get("function")),
            "patch": list(grid.patch),
            "stride": list(grid.stride),
            "window": [w if isinstance(w, str) else _name_of(w) for w in plan.recipe.windows],
            "edge": list(grid.edge),
        },
    )


def _name_of(function: Any) -> str | None:
    if function is None or isinstance(function, str):
        return function
    return (
        function.target
        if isinstance(function, FunctionSpec)
        else getattr(function, "__qualname__", type(function).__name__)
    )
