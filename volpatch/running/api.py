"""What users call for volumes on disk: lay out a run, run it, go on with it, mend it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

from volpatch.core.errors import SettingError, SourceError
from volpatch.core.options import JobOptions, plain
from volpatch.core.parse import parse_part
from volpatch.functions.named import FunctionSpec
from volpatch.planning import job as jobs
from volpatch.planning.build import Function, as_source, fitted, make_draft, named
from volpatch.planning.gone import stand_in
from volpatch.planning.identity import Carried
from volpatch.planning.masks import places_of, skips_of
from volpatch.planning.plan import Plan
from volpatch.report.progress import Progress
from volpatch.report.report import RunReport
from volpatch.running.lifecycle import Request, execute, warn_of_incomparable
from volpatch.running.repair import mend
from volpatch.running.status import find
from volpatch.running.worker import Functions
from volpatch.storage.endings import check_ending
from volpatch.storage.output import WorkTree
from volpatch.storage.stores.local import Durability, check_target
from volpatch.storage.volume import Source

if TYPE_CHECKING:
    import xarray as xr


def plan(
    source: str | os.PathLike[str] | Source | xr.DataArray,
    target: str | os.PathLike[str] | None = None,
    *,
    level: int = 0,
    series: int | str | None = None,
    func: Function | None = None,
    finalize: Function | None = None,
    **options: Unpack[JobOptions],
) -> Plan:
    """Lay out a run without computing anything.

    Parameters
    ----------
    source : path, or what `open_volume` returned
        The volume. `level` picks a resolution where there are several, `series` an image of
        a TIFF file: its number, or "all" to stack those that are alike.
    target : path, optional
        Where the output is to be.
    func, finalize : optional
        Never called; a ready-made operation's name tells the output's dtype, and named
        functions are saved with the plan.
    **options
        patch (default 64, or the axis where it is shorter), stride or overlap, window,
        edge, batch_size, dtype, out_channels, missing, roi, chunks, shards, codec, region,
        memory_limit, func_memory, workers, backend, …: see `volpatch.core.options`.

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
    if target is not None:
        check_ending(target)
    options = plain(options)
    volume = as_source(source, plain(level), options.get("missing", "auto"), plain(series))
    functions = {"function": named(func), "finalize": named(finalize)}
    draft = make_draft(volume, target, functions["function"], functions["finalize"], options)
    places: tuple[str, ...] = ()
    with suppress(SettingError):  # of a function that is not on this machine the run will tell
        carried = Carried.of({**functions, "skip": options.get("skip")}, options)
        places = carried.incomparable
    return fitted(replace(draft, incomparable=places))


def run(
    func: Function | None,
    source: str | os.PathLike[str] | Source | xr.DataArray,
    target: str | os.PathLike[str],
    *,
    level: int = 0,
    series: int | str | None = None,
    setup: Callable[[], Callable[..., Any]] | None = None,
    finalize: Function | None = None,
    overwrite: bool = False,
    part: str | tuple[int, int] | None = None,
    retries: int = 0,
    fail_fast: bool = False,
    durability: Durability = "full",
    progress: str = "none",
    announce: Callable[[Plan], None] = warn_of_incomparable,
    **options: Unpack[JobOptions],
) -> RunReport:
    """Run a function over overlapping patches of a stored volume, into a stored volume.

    A run that was ended, by whatever, goes on where it was when it is called again with the
    same words: what is done is not computed twice, and the bytes come out the same. Where the
    output is complete already, nothing is computed, and neither is `setup` called.

    Parameters
    ----------
    func : callable, name of a ready-made operation, "module:function", or None with `setup`
        As in `map_patches`.
    source : path, or what `open_volume` returned
        The volume; `level` picks a resolution where there are several, `series` an image of
        a TIFF file: its number, or "all" to stack those that are alike.
    target : path
        The OME-Zarr to be made. It appears under its name when it is complete.
    setup : callable, optional
        Runs once per worker process and returns the function: load a model here.
    finalize : callable or name, optional
        Runs on blended blocks before they are rounded and written; pointwise.
    overwrite : bool
        Start over, also where an unfinished run could go on, and replace an earlier output of
        volpatch once the new one is complete.
    part : "i/n" or (int, int), optional
        Compute every n-th region, from i (from 0) on. Any number of processes, on any
        machines that share the disk, may do so at any time; the last one publishes.
    retries : int
        How often a region is tried again after the function failed on it.
    fail_fast : bool
        End at the first failure, instead of computing all other regions first.
    durability : {"full", "process"}
        What finished writes survive: a power cut, or only the death of the process.
    progress : {"none", "auto", "bar", "log"}
        How far the run is, told on stderr.
    announce : callable, optional
        Is given the final plan before the first region starts. Without it a warning tells
        of a function that cannot be compared, so that no other process could go on.
    **options
        As for `plan`.

    Returns
    -------
    RunReport
        `report.complete` says whether the target is there now, which a part may leave to others;
        `report.already` whether it was before, made by the same job.

    Raises
    ------
    VolpatchError
        Before anything is written: settings, source, target or function that cannot be, or
        the output of another job, finished or not (the message names the fields that differ).
    IncompleteError
        Some regions failed; all others are done and kept. The target does not exist yet. Or it
        was complete, and lacks objects now.
    RunError
        The disk is full, workers died one after the other, the input changed. What is done
        is kept.

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
    request = make_request(
        func,
        _present(source, level, options.get("missing", "auto"), series, target),
        target,
        level=level,
        series=series,
        setup=setup,
        finalize=finalize,
        overwrite=overwrite,
        part=part,
        retries=retries,
        fail_fast=fail_fast,
        durability=durability,
        progress=progress,
        announce=announce,
        options=options,
    )
    check_ending(target)
    return execute(request)


def _present(
    source: Any,
    level: int,
    missing: str,
    series: int | str | None,
    target: str | os.PathLike[str],
) -> Source:
    """The volume; where it is gone, and a complete output was made of it, what stands for it."""
    try:
        return as_source(source, level, missing, series)
    except SourceError:
        found = stand_in(source, level, series, target)
        if found is None:
            raise
        return found


def make_request(
    func: Function | None,
    source: str | os.PathLike[str] | Source | xr.DataArray,
    target: str | os.PathLike[str],
    *,
    level: int = 0,
    series: int | str | None = None,
    setup: Callable[[], Callable[..., Any]] | None = None,
    finalize: Function | None = None,
    part: str | tuple[int, int] | None = None,
    retries: int = 0,
    durability: Durability = "full",
    options: JobOptions,
    **more: Any,
) -> Request:
    """What `run` was asked for, checked as far as it can be without computing anything."""
    if durability not in ("full", "process"):
        raise SettingError(f"durability must be 'full' or 'process'; got {durability!r}")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise SettingError(f"retries must be a whole number from 0 on; got {retries!r}")
    Progress(0, more.get("progress", "none"))  # refuses a mode that there is not
    options = plain(options)
    volume = as_source(source, plain(level), options.get("missing", "auto"), plain(series))
    check_target(os.fspath(target), overwrite=True, source_path=volume.path, exists=False)
    function, final = named(func), named(finalize)
    for spec in (function, final):
        if isinstance(spec, FunctionSpec):
            spec.check()
    draft = make_draft(volume, target, function, final, options)
    holes = skips_of(options, draft.layout, places_of(volume, draft.layout.patched_dims))
    functions = {"function": function, "setup": setup, "finalize": final}
    carried = Carried.of({**functions, "skip": options.get("skip")}, options)
    return Request(
        replace(draft, incomparable=carried.incomparable),
        Functions(function, setup, final, draft.concurrent_calls, holes),
        volume,
        WorkTree(os.fspath(target), durability=durability, overwrite=more.get("overwrite", False)),
        carried,
        part=parse_part(part),
        retries=retries,
        **more,
    )


def run_job(
    job: Mapping[str, Any] | str | os.PathLike[str],
    *,
    target: str | os.PathLike[str] | None = None,
    **how: Any,
) -> RunReport:
    """Run a job that was saved; the source must still be what was planned for.

    Parameters
    ----------
    job : path, or what it holds
        What `volpatch plan -o` saved.
    target : path, optional
        Another place than the job names.
    **how
        overwrite, part, retries, fail_fast, durability, progress, announce: see `run`.
    """
    if isinstance(job, str | os.PathLike):
        job = jobs.load(job)
    else:
        job = jobs.checked(job, "the job")
    place = target or job["target"]
    if place is None:
        raise SettingError("the job names no target; plan again with one")
    missing = job["options"].get("missing", "auto")
    source = _present(job["source"], job["level"], missing, job["series"], place)
    planned = (tuple(job["source_shape"]), job["source_dtype"])
    if (source.shape, str(source.dtype)) != planned:
        raise SourceError(
            f"{source.path} is now {source.shape} {source.dtype}, but the job was planned for "
            f"{planned[0]} {planned[1]}; plan again"
        )
    if job["function"] is None:
        raise SettingError("the job names no function; plan again with --apply or --factory")
    function: Function = FunctionSpec.from_json(job["function"])
    finalize = None if job["finalize"] is None else FunctionSpec.from_json(job["finalize"])
    options: JobOptions = job["options"]
    return run(
        function,
        source,
        place,
        finalize=finalize,
        **how,
        **options,
    )


def retry(
    target: str | os.PathLike[str],
    func: Function | None = None,
    *,
    setup: Callable[[], Callable[..., Any]] | None = None,
    finalize: Function | None = None,
    **how: Any,
) -> RunReport:
    """Compute again what failed in an output, or what is no longer as it was written.

    Parameters
    ----------
    target : path
        What `run` was given; or a finished output, also under another name.
    func, setup, finalize : optional
        Those that the run was given, where they were objects; what has a name is known.
    **how
        retries, fail_fast, durability, progress, announce, workers, memory_limit, backend:
        see `run`.

    Returns
    -------
    RunReport

    Raises
    ------
    TargetError
        There is nothing to mend; or the function, the input or another thing is no longer
        what the output was made of.
    SettingError
        A function is needed that was given as an object.
    IncompleteError
        Some regions failed again, or there are others that were never computed.
    """
    place = find(target)
    job, made_of = place.file.job, place.file.identity
    if job is None:
        raise SettingError(
            f"{str(place.target)!r} was made with a mask or a window that is an object, so the "
            f"run cannot be repeated from its records; call volpatch.run as before, which goes on"
        )
    job = jobs.checked(job, f"the plan of {str(place.target)!r}")
    given = {"function": func, "setup": setup, "finalize": finalize}
    for name in ("function", "finalize"):
        if given[name] is None and job[name] is not None:
            given[name] = FunctionSpec.from_json(job[name])
    for name, value in given.items():
        if value is None and (made := made_of.get(name)) is not None:
            word = "func" if name == "function" else name
            shown = made.get("target") if isinstance(made, dict) else made
            raise SettingError(
                f"{str(place.target)!r} was made with a {name} given as an object, "
                f"{shown}; pass the same one to volpatch.retry as {word}="
            )
    # what was measured or chosen then is in the plan, or is to suit this machine
    settled_there = dict.fromkeys(("region", "func_memory", "memory_limit", "workers"))
    options = {**job["options"], **settled_there}
    options.update({name: how.pop(name) for name in _HERE if name in how})
    request = make_request(
        given["function"],
        job["source"],
        target,
        level=job["level"],
        series=job["series"],
        setup=setup,
        finalize=given["finalize"],
        options=options,  # type: ignore[arg-type]
        **how,
    )
    return mend(request, place)


# of resources, those that may be other ones when a run goes on
_HERE = ("workers", "memory_limit", "backend")
