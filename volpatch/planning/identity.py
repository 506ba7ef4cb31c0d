"""What determines the bytes of an output, as plain values that can be compared.

Not in here, because they change no bit: regions, workers, backend, memory, batch size, logs.
What cannot be seen from here (the weights of a model, a library underneath, a helper of another
file's helper) is told with `func_version=` and `depends_on=`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volpatch.compute.skip import PatchFilter
from volpatch.core.declared import table
from volpatch.core.errors import SettingError
from volpatch.core.options import JobOptions
from volpatch.core.window import Window, sample
from volpatch.functions.named import FunctionSpec
from volpatch.planning.carried import Walk, carried_by, named_words
from volpatch.planning.inputs import fingerprint
from volpatch.planning.plan import Plan
from volpatch.storage.codec import TargetSpec
from volpatch.storage.files import open_file
from volpatch.storage.plan_file import digest
from volpatch.storage.volume import Source

# raised when the way patches are cut, blended or encoded changes any bit
BLENDING_VERSION = 2
# functions that calls changed (one that counts them, say), by their digest -> as they were before
_before_calls: dict[str, Any] = {}


@dataclass(frozen=True)
class Carried:
    """What the functions of a run and the files that they read are, taken before any call.

    Attributes
    ----------
    words : of "function", "setup", "finalize" and "skip", JSON values.
    incomparable : places in them that another process could not compare.
    depends : paths of the files that they read, by their number.
    files : SHA-256 of these.
    functions : those that were looked into; calls may change them.
    contents : what was found in them.
    """

    words: dict[str, Any]
    incomparable: tuple[str, ...]
    depends: dict[str, str]
    files: dict[str, str]
    functions: dict[str, Any]
    contents: dict[str, Any]

    @classmethod
    def of(cls, functions: Mapping[str, Any], options: JobOptions) -> Carried:
        """Take them.

        Parameters
        ----------
        functions : by their names, as in `words`; None for one that there is not.
        options : of the job; with `func_version` the functions are not looked into.
        """
        depends = {str(n): path for n, path in enumerate(depends_of(options), 1)}
        files = {number: file_digest(path) for number, path in depends.items()}
        named: dict[str, Any] = {
            name: function
            if function is None or isinstance(function, int | float)
            else named_words(function)
            for name, function in functions.items()
        }
        looked_into = {} if options["func_version"] is not None else functions
        held = {
            # held, as its file may be another one when it is looked at again
            name: function.named() if isinstance(function, FunctionSpec) else function
            for name, function in looked_into.items()
            if isinstance(named[name], dict)
        }
        contents, places = _contents(held)
        contents = _before_calls.get(digest(contents), contents)
        words = {**named, **{name: {**found, **named[name]} for name, found in contents.items()}}
        return cls(words, places, depends, files, held, contents)

    def called(self) -> None:
        """Remember what calls made of the functions, which changes nothing of what they are."""
        now, _ = _contents(self.functions)
        if now != self.contents:
            _before_calls[digest(now)] = self.contents


def _contents(functions: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    found = {name: carried_by(function, name) for name, function in functions.items()}
    places = tuple(place for _, incomparable in found.values() for place in incomparable)
    return {name: words for name, (words, _) in found.items()}, places


def depends_of(options: JobOptions) -> list[str]:
    """Absolute paths of the files that the function reads, in the order given."""
    given = options["depends_on"] or ()
    if isinstance(given, str | os.PathLike):
        raise SettingError(
            f"depends_on must be a list of paths, also of one; write [{os.fspath(given)!r}]"
        )
    if not isinstance(given, Sequence) or not all(isinstance(p, str | os.PathLike) for p in given):
        raise SettingError(f"depends_on must be paths of files; got {given!r}")
    return [os.path.abspath(path) for path in given]


def identity(
    plan: Plan,
    spec: TargetSpec,
    carried: Carried,
    patch_filter: PatchFilter | None,
    source: dict[str, Any],
) -> dict[str, Any]:
    """Everything that determines the bytes of a run's output, as JSON values.

    Parameters
    ----------
    plan, spec : of the run; the blending must be complete.
    carried : by the functions.
    patch_filter : what skips patches.
    source : the `fingerprint` of the input.
    """
    blending, grid = plan.blending, plan.blending.grid
    found = {
        **_as_they_are(plan.options),
        "blending": BLENDING_VERSION,
        "source": source,
        "grid": grid.to_json(),
        "window": [_window(w, n) for w, n in zip(blending.windows, grid.patch, strict=True)],
        "input_dtype": str(blending.input_dtype),
        "result_dtype": str(blending.result_dtype),
        "roi": [list(plan.roi.start), list(plan.roi.stop)],
        "channel_axis": plan.layout.channel,
        "patched": list(plan.layout.patched_dims),
        "batches": blending.batch_size is not None,
        "mask": None if patch_filter is None else _mask(patch_filter),
        **carried.words,
        "depends_on": carried.files,
        "output": spec.to_json(),
    }
    return dict(json.loads(json.dumps(found)))


def _as_they_are(options: JobOptions) -> dict[str, Any]:
    """Those options that decide bytes by what they are, and by nothing that is made of them."""
    names = [name for name, option in table(JobOptions).items() if option.decides == name]
    return {name: _number(options.get(name)) for name in names}


def _window(window: Window, patch: int) -> Any:
    """A window by name, or by the weights that a function gives."""
    return window if isinstance(window, str) else sample(window, patch).tolist()


def _mask(patch_filter: PatchFilter) -> Any:
    if patch_filter.mask is None:
        return None
    stored = getattr(patch_filter.mask, "source", None)
    if isinstance(stored, Source):
        values: Any = fingerprint(stored)[0]
    else:
        values = Walk().array(np.asarray(patch_filter.mask))["array"]
    return [values, [list(map(str, one)) for one in patch_filter.cells]]


def _number(value: Any) -> Any:
    """A number as text, 2 and 2.0 alike: they make the same bytes. What is none as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    whole = isinstance(value, float) and value.is_integer() and math.copysign(1, value) == 1
    return repr(int(value) if whole else value)


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    checksum = hashlib.sha256()
    try:
        with open_file(path) as file:
            while block := file.read(2**20):
                checksum.update(block)
    except OSError as error:
        raise SettingError(
            f"{os.fspath(path)!r}, which the result depends on, cannot be read: {error}"
        ) from error
    return checksum.hexdigest()
