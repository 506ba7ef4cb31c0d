"""What users call for volumes on disk: lay out a run, run it, go on with it, repair it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack, cast

from volpatch.core.declared import completed, part_of, takes
from volpatch.core.errors import SettingError, SourceError
from volpatch.core.options import (
    Conduct,
    JobOptions,
    PlanOptions,
    RetryOptions,
    RunOptions,
)
from volpatch.core.parse import parse_part
from volpatch.functions.named import Function, FunctionSpec, by_name
from volpatch.planning import job as jobs
from volpatch.planning.build import as_source, fitted, make_draft
from volpatch.planning.gone import stand_in
from volpatch.planning.identity import Carried
from volpatch.planning.masks import patch_filter_of, places_of
from volpatch.planning.plan import Plan
from volpatch.report.report import RunReport
from volpatch.running.lifecycle import Request, make_output, warn_of_incomparable
from volpatch.running.repair import repair
from volpatch.running.worker import Functions
from volpatch.storage.endings import check_ending
from volpatch.storage.locks import check_locks
from volpatch.storage.output import Output
from volpatch.storage.stores.local import check_target
from volpatch.storage.volume import Source

if TYPE_CHECKING:
    import xarray as xr


@takes(PlanOptions)
def plan(
    source: str | os.PathLike[str] | Source | xr.DataArray,
    target: str | os.PathLike[str] | None = None,
    *,
    func: Function | None = None,
    finalize: Function | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[PlanOptions],
) -> Plan:
    """Lay out a run without computing anything.

    Parameters
    ----------
    source : path, or what `open_volume` returned
        The volume.
    target : path, optional
        Where the output is to be.
    func, finalize : optional
        Never called; a ready-made operation's name tells the output's dtype, and named
        functions are saved with the plan.
    kwargs : mapping, optional
        Parameters of `func`.
    **options

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
    said = completed(options, PlanOptions)
    job = part_of(said, JobOptions)
    volume = as_source(source, said["level"], said["missing"], said["series"])
    function, final = by_name(func, kwargs), by_name(finalize)
    draft = make_draft(volume, target, function, final, job)
    places: tuple[str, ...] = ()
    with suppress(SettingError):  # of a function that is not on this machine the run will tell
        functions = {"function": function, "finalize": final, "skip": job["skip"]}
        places = Carried.of(functions, job).incomparable
    return fitted(replace(draft, incomparable=places))


@takes(RunOptions)
def run(
    func: Function | None,
    source: str | os.PathLike[str] | Source | xr.DataArray,
    target: str | os.PathLike[str],
    *,
    setup: Callable[[], Callable[..., Any]] | None = None,
    finalize: Function | None = None,
    kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[RunOptions],
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
        The volume.
    target : path
        The OME-Zarr to be made. It appears under its name when it is complete.
    setup : callable, optional
        Runs once per worker process and returns the function: load a model here.
    finalize : callable or name, optional
        Runs on blended blocks before they are rounded and written; pointwise.
    kwargs : mapping, optional
        Parameters of `func`: `kwargs={"sigma": 2}`.
    **options

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
    said = completed(options, RunOptions)
    function, volume = by_name(func, kwargs), _present(source, said, target)
    request = make_request(function, volume, target, setup, finalize, said)
    check_ending(target)
    return make_output(request)


def _present(source: Any, said: RunOptions, target: str | os.PathLike[str]) -> Source:
    """The volume; where it is gone, and a complete output was made of it, what stands for it."""
    try:
        return as_source(source, said["level"], said["missing"], said["series"])
    except SourceError:
        found = stand_in(source, said["level"], said["series"], target)
        if found is None:
            raise
        return found


def make_request(
    func: Function | None,
    volume: Source,
    target: str | os.PathLike[str],
    setup: Callable[[], Callable[..., Any]] | None,
    finalize: Function | None,
    said: RunOptions,
) -> Request:
    """What `run` was asked for, checked as far as it can be without computing anything.

    Parameters
    ----------
    said : whole, see `volpatch.core.declared.completed`.
    """
    check_locks()
    retries = said["retries"]
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise SettingError(f"retries must be a whole number from 0 on; got {retries!r}")
    check_target(os.fspath(target), overwrite=True, source_path=volume.path, exists=False)
    function, final = by_name(func), by_name(finalize)
    for spec in (function, final):
        if isinstance(spec, FunctionSpec):
            spec.check()
    job, overwrite = part_of(said, JobOptions), said["overwrite"]
    draft = make_draft(volume, target, function, final, job)
    patch_filter = patch_filter_of(job, draft.layout, places_of(volume, draft.layout.patched_dims))
    functions = {"function": function, "setup": setup, "finalize": final, "skip": job["skip"]}
    carried = Carried.of(functions, job)
    return Request(
        replace(draft, incomparable=carried.incomparable),
        Functions(function, setup, final, draft.concurrent_calls, patch_filter),
        volume,
        Output(os.fspath(target), durability=said["durability"], overwrite=overwrite),
        carried,
        overwrite=overwrite,
        part=parse_part(said["part"]),
        retries=retries,
        fail_fast=said["fail_fast"],
        progress=said["progress"],
        announce=said["announce"] or warn_of_incomparable,
    )


@takes(Conduct)
def run_job(
    job: Mapping[str, Any] | str | os.PathLike[str],
    *,
    target: str | os.PathLike[str] | None = None,
    **options: Unpack[Conduct],
) -> RunReport:
    """Run a job that was saved; the source must still be what was planned for.

    Parameters
    ----------
    job : path, or what it holds
        What `volpatch plan -o` saved.
    target : path, optional
        Another place than the job names.
    **options

    Returns
    -------
    RunReport
        As `run`, which raises what this does.
    """
    if isinstance(job, str | os.PathLike):
        job = jobs.load(job)
    else:
        job = jobs.checked(job, "the job")
    place = target or job["target"]
    if place is None:
        raise SettingError("the job names no target; plan again with one")
    said = completed({**_words_of(job), **options}, RunOptions)
    source = _present(job["source"], said, place)
    planned = (tuple(job["source_shape"]), job["source_dtype"])
    if (source.shape, str(source.dtype)) != planned:
        raise SourceError(
            f"{source.path} is now {source.shape} {source.dtype}, but the job was planned for "
            f"{planned[0]} {planned[1]}; plan again"
        )
    if job["function"] is None:
        raise SettingError("the job names no function; plan again with --apply or --factory")
    function = FunctionSpec.from_json(job["function"])
    finalize = None if job["finalize"] is None else FunctionSpec.from_json(job["finalize"])
    check_ending(place)
    return make_output(make_request(function, source, place, None, finalize, said))


def _words_of(job: Mapping[str, Any]) -> RunOptions:
    """What a job says, as `run` would be told."""
    words = {**job["options"], "level": job["level"], "series": job["series"]}
    return cast(RunOptions, words)


@takes(RetryOptions)
def retry(
    target: str | os.PathLike[str],
    func: Function | None = None,
    *,
    setup: Callable[[], Callable[..., Any]] | None = None,
    finalize: Function | None = None,
    **options: Unpack[RetryOptions],
) -> RunReport:
    """Compute again what failed in an output, or what is no longer as it was written.

    Parameters
    ----------
    target : path
        What `run` was given; or a finished output, also under another name.
    func, setup, finalize : optional
        Those that the run was given, where they were objects; what has a name is known.
    **options

    Returns
    -------
    RunReport

    Raises
    ------
    TargetError
        There is nothing to repair; or the function, the input or another thing is no longer
        what the output was made of.
    SettingError
        A function is needed that was given as an object.
    IncompleteError
        Some regions failed again, or there are others that were never computed.
    """
    asked = completed(options, RetryOptions)
    stage, ledger = Output(os.fspath(target)).opened()
    place, job, made_of = os.path.abspath(target), ledger.file.job, ledger.file.identity
    if ledger.file.writer is not None:
        raise SettingError(
            f"{place!r} was written by {ledger.file.writer}, which cannot be repeated "
            f"from its records; write it again"
        )
    if job is None:
        raise SettingError(
            f"{place!r} was made with a mask or a window that is an object, so the "
            f"run cannot be repeated from its records; call volpatch.run as before, which goes on"
        )
    job = jobs.checked(job, f"the plan of {place!r}")
    given = {"function": func, "setup": setup, "finalize": finalize}
    for name in ("function", "finalize"):
        if given[name] is None and job[name] is not None:
            given[name] = FunctionSpec.from_json(job[name])
    for name, value in given.items():
        if value is None and (made := made_of.get(name)) is not None:
            word = "func" if name == "function" else name
            shown = made.get("target") if isinstance(made, dict) else made
            raise SettingError(
                f"{place!r} was made with a {name} given as an object, "
                f"{shown}; pass the same one to volpatch.retry as {word}="
            )
    # what was measured or chosen then is in the plan, or is to suit this machine
    there = dict.fromkeys(("region", "func_memory", "memory_limit", "workers"))
    given_now = {name: value for name, value in asked.items() if name in options}
    said = completed({**_words_of(job), **there, **given_now}, RunOptions)
    source = as_source(job["source"], said["level"], said["missing"], said["series"])
    request = make_request(given["function"], source, target, setup, given["finalize"], said)
    return repair(request, stage, ledger)
