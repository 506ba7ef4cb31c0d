"""A job as a file: what `plan -o job.json` saves and `run job.json` repeats exactly.

A job holds words, not objects: paths, names of functions, numbers. Every choice of the
planner is spelled out in it, so that the same regions come out on another machine. It
names code that will be imported, and is to be trusted like a script.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from volpatch.core.declared import check_names
from volpatch.core.errors import SettingError
from volpatch.core.grid import per_axis
from volpatch.core.options import JobOptions
from volpatch.core.words import reach_per_axis
from volpatch.functions.named import FunctionSpec
from volpatch.planning.identity import depends_of
from volpatch.planning.plan import Plan
from volpatch.storage.files import open_file

FORMAT = 1
_NONE = type(None)
_KEYS: dict[str, Any] = {
    "source": str,
    "level": int,
    "series": (int, str, _NONE),
    "source_shape": list,
    "source_dtype": str,
    "target": (str, _NONE),
    "function": (dict, _NONE),
    "finalize": (dict, _NONE),
    "options": dict,
}


def to_json(plan: Plan) -> dict[str, Any]:
    """A plan as plain lists, texts and numbers, with its figures beside them.

    Raises
    ------
    SettingError
        If the plan holds functions that have no name to be saved under.
    """
    blending, layout = plan.blending, plan.layout
    for window in blending.windows:
        if not isinstance(window, str):
            raise SettingError("a plan with a window function cannot be saved; name a window")
    bounds = zip(layout.dims, plan.roi.start, plan.roi.stop, strict=True)
    settled: JobOptions = {
        **_sizes(plan),
        "dtype": None if blending.dtype is None else str(blending.dtype),
        "input_dtype": str(blending.input_dtype),
        "mask": _json_option(plan, "mask", str),
        "mask_factor": _factor(plan),
        "skip": _json_option(plan, "skip", (int, float)),
        "channel_axis": None if layout.channel is None else layout.dims[layout.channel],
        "roi": ",".join(f"{d}={a}:{b}" for d, a, b in bounds),
        "chunks": _named(plan, plan.chunks),
        "shards": None if plan.shards is None else _named(plan, plan.shards),
        "region": _named(plan, plan.region),
        "memory_limit": plan.memory_limit,
        "func_memory": plan.func_memory or None,  # a trial may measure 0, which is no setting
        "workers": plan.workers,
        "depends_on": depends_of(plan.options),
    }
    return {
        "volpatch_job": FORMAT,
        "source": plan.source.path,
        "level": plan.source.level,
        "series": plan.source.series,
        "source_shape": list(plan.source.shape),
        "source_dtype": plan.source.dtype,
        "target": plan.target,
        "function": _function_json(plan.func, "func"),
        "finalize": _function_json(plan.finalize, "finalize"),
        "options": {**plan.options, **settled, "overlap": None},
        "figures": plan.to_json(),
    }


def _named(plan: Plan, values: Sequence[Any]) -> dict[str, Any]:
    """A value for each patched axis, by its name."""
    return dict(zip(plan.layout.patched_dims, values, strict=True))


def _sizes(plan: Plan) -> JobOptions:
    """What the grid is made of again: the reach alone, or the patches."""
    if (reach := plan.options["reach"]) is not None:
        return {"reach": _named(plan, reach_per_axis(plan.layout, reach))}
    grid = plan.blending.grid
    return {
        "patch": _named(plan, grid.patch),
        "stride": _named(plan, grid.stride),
        "edge": _named(plan, grid.edge),
        "offset": _named(plan, grid.offset),
        "window": _named(plan, plan.blending.windows),
    }


def _json_option(plan: Plan, name: str, kind: Any) -> Any:
    value = plan.options.get(name)
    if name == "mask" and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is not None and not isinstance(value, kind):
        raise SettingError(
            f"{name} cannot be saved with a plan; give a mask as a path, skip as a number"
        )
    return os.path.abspath(value) if isinstance(value, str) else value


def _factor(plan: Plan) -> Any:
    factor = plan.options["mask_factor"]
    if factor is None or isinstance(factor, Mapping):
        return factor
    dims = plan.layout.patched_dims
    return dict(zip(dims, map(int, per_axis(factor, len(dims), "mask_factor")), strict=True))


def _function_json(function: Any, what: str) -> dict[str, object] | None:
    if function is None:
        return None
    if not isinstance(function, FunctionSpec):
        raise SettingError(
            f"{what} cannot be saved with a plan as an object; give its name: 'module:function'"
        )
    return function.to_json()


def save(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write a plan as a job file."""
    text = json.dumps(to_json(plan), indent=2) + "\n"
    name = os.path.abspath(path)
    real = Path(os.path.realpath(name))
    for other in (plan.source.path, plan.target):
        if other is not None and real.is_relative_to(os.path.realpath(other)):
            raise SettingError(f"the job file {name!r} would be written into {other!r}")
    if os.path.lexists(name):
        try:
            load(name)
        except SettingError:
            raise SettingError(
                f"{name!r} exists and is no job file, so it is left alone; choose another name"
            ) from None
    temp = f"{name}.{os.getpid()}.tmp"
    try:
        Path(temp).write_text(text, encoding="utf-8")
        os.replace(temp, name)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temp)
        raise SettingError(f"the job file {name!r} cannot be written: {error}") from None


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check a job file."""
    name = os.fspath(path)
    try:
        with open_file(path) as file:
            job = json.loads(file.read().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise SettingError(f"{name!r} is no readable job file: {error}") from None
    if not isinstance(job, Mapping) or job.get("volpatch_job") != FORMAT:
        raise SettingError(
            f"{name!r} is no job file of this volpatch; `volpatch plan … -o {name}` makes one"
        )
    return checked(job, repr(name))


def checked(job: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A job with all its fields, or an error that names the one that cannot be as it is."""
    if not isinstance(job, Mapping):
        raise SettingError(f"{what} is damaged: it is no mapping, but {job!r}; plan again")
    whole = {**dict.fromkeys(_KEYS), **job}
    for key, kinds in _KEYS.items():
        if not isinstance(whole[key], kinds):
            raise SettingError(
                f"{what} is damaged: its {key!r} is {whole[key]!r}; plan again to make it anew"
            )
    check_names(whole["options"], JobOptions)
    return whole
