"""How an output was made: in its attributes, in its records, and as the line that repeats it.

Attributes are bytes of the output, the same after any number of parts and resumes. What differs
from one try to the next (the command, the time, the libraries) stands in the records alone.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from volpatch.compute.blend import name_of
from volpatch.core.declared import table
from volpatch.core.errors import SettingError
from volpatch.core.layout import Layout
from volpatch.core.options import JobOptions, VolumeOptions
from volpatch.functions.named import Func, FunctionSpec
from volpatch.planning.plan import Plan
from volpatch.storage.plan_file import PlanFile

_LIBRARIES = ("volpatch", "numpy", "numba", "scipy", "zarr", "numcodecs")
_MOST_TEXT = 4096  # of a command line: a notebook's kernel may have been started with a program


def shown_name(function: Func | None) -> str | None:
    """What a function is called, as far as that is the same on every machine."""
    if function is None:
        return None
    return function.short_target if isinstance(function, FunctionSpec) else name_of(function)


def attributes(plan: Plan) -> dict[str, Any]:
    """What the attributes of an output say of how it was made, as JSON values."""
    grid, func = plan.blending.grid, plan.func
    parameters = func.parameters if isinstance(func, FunctionSpec) else ()
    return {
        "source": plan.source.name,
        "function": shown_name(func),
        "parameters": dict(parameters),
        "finalize": shown_name(plan.finalize),
        "patch": list(grid.patch),
        "stride": list(grid.stride),
        "overlap": [p - s for p, s in zip(grid.patch, grid.stride, strict=True)],
        "window": [w if isinstance(w, str) else name_of(w) for w in plan.blending.windows],
        "edge": list(grid.edge),
    }


def made(plan: Plan) -> dict[str, Any]:
    """What the records say besides; it is neither compared nor hashed."""
    return {
        "by": _command_line()[:_MOST_TEXT],
        "source": plan.source.path,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {"python": sys.version.split()[0], **dict(_versions())},
    }


def _command_line() -> str:
    """How this process was started."""
    if os.path.basename(sys.argv[0] if sys.argv else "") == "volpatch":
        return shlex.join(["volpatch", *sys.argv[1:]])
    return shlex.join(sys.orig_argv)


def _versions() -> Iterator[tuple[str, str]]:
    for name in _LIBRARIES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def changed_versions(file: PlanFile) -> str:
    """Which libraries are no longer those that an output was made with, in words; maybe none."""
    made_with = (file.layout.get("made") or {}).get("versions") or {}
    changes = [
        f"{name} {made_with[name]} became {now}"
        for name, now in _versions()
        if made_with.get(name, now) != now
    ]
    return ", ".join(changes)


# -- the line that makes it again ----------------------------------------------------------


def command(file: PlanFile, target: str) -> str:
    """The line for a shell that makes an output again, byte for byte.

    Only what decides its bytes is said: regions, memory and workers are chosen anew.

    Raises
    ------
    SettingError
        It was made of something that no command can name.
    """
    job = file.job
    if file.writer is not None:
        raise SettingError(f"{target!r} was written by {file.writer}, which is no command")
    if job is None:
        raise SettingError(
            f"{target!r} was made with a mask or a window that is an object, which no command can "
            f"name; call volpatch.run as before"
        )
    words = ["volpatch", "run", job["source"], target]
    words += _function_words(job, file, target)
    for name, option in table(VolumeOptions).items():
        if job[name] != option.default:
            words += [option.command_name(name), str(job[name])]
    options, patched = job["options"], _patched(file, target)
    settled = _settled(file, patched)
    for name, option in table(JobOptions).items():
        value = options.get(name, option.default)
        if not option.decides or value in (None, option.default, settled.get(name)):
            continue
        for each in value if option.many else [value]:
            words += [option.command_name(name), _text(each, patched)]
    return shlex.join(words)


def _function_words(job: Mapping[str, Any], file: PlanFile, target: str) -> list[str]:
    words: list[str] = []
    for name in ("function", "finalize"):
        if job[name] is None and (made_of := file.identity.get(name)) is not None:
            shown = made_of.get("target") if isinstance(made_of, dict) else made_of
            raise SettingError(
                f"{target!r} was made with a {name} given as an object, {shown}, which no command "
                f"can name; call volpatch.run as before"
            )
    if file.identity.get("setup") is not None:
        raise SettingError(
            f"{target!r} was made with a setup given as an object, which no command can name; "
            f"call volpatch.run as before"
        )
    spec = FunctionSpec.from_json(job["function"])
    words += ["--factory" if spec.factory else "--apply", spec.target]
    for key, value in spec.parameters:
        words += ["--param", f"{key}={json.dumps(value)}"]
    if job["finalize"] is not None:
        words += ["--finalize", job["finalize"]["target"]]
    return words


def _patched(file: PlanFile, target: str) -> tuple[str, ...]:
    """Names of the patched axes, if they are those that sizes on a command line are for."""
    volume, patched = file.layout["volume"], tuple(file.identity["patched"])
    channel = file.identity["channel_axis"]
    said = Layout.of(volume["dims"], volume["shape"], (1,) * len(patched), channel).patched_dims
    if said != patched:
        raise SettingError(
            f"{target!r} was made of patches along {', '.join(patched)}, and sizes on a command "
            f"line are those of the last axes, {', '.join(said)}; call volpatch.run as before"
        )
    return patched


def _settled(file: PlanFile, patched: Sequence[str]) -> dict[str, Any]:
    """What options are where nobody said anything, in the words of a job."""
    volume = file.layout["volume"]
    extents = zip(volume["dims"], volume["shape"], strict=True)
    return {
        "roi": ",".join(f"{dim}=0:{size}" for dim, size in extents),
        "input_dtype": volume["dtype"],
        "offset": dict.fromkeys(patched, 0),
    }


def _text(value: Any, patched: Sequence[str]) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, Mapping):
        each = [str(value[dim]) for dim in patched]
        return each[0] if len(set(each)) == 1 else ",".join(each)
    return str(value)
