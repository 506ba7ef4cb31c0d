"""What determines the bytes of an output, as plain values that can be compared.

Not in here, because they change no bit: regions, workers, backend, memory, batch size, logs.
What cannot be seen from here (the weights of a model, a library underneath) is told with
`version=` and `depends=`.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import re
from contextlib import suppress
from typing import Any

import numpy as np

from volpatch.errors import SettingError
from volpatch.functions import FunctionSpec
from volpatch.holes import Skips
from volpatch.inputs import fingerprint
from volpatch.ledger import digest
from volpatch.planner import Plan
from volpatch.storage.codec import TargetSpec
from volpatch.storage.files import open_file
from volpatch.storage.source import Source
from volpatch.window import Window, sample

# raised when the way patches are cut, blended or encoded changes any bit
BLENDING_VERSION = 1


def identity(
    plan: Plan,
    spec: TargetSpec,
    functions: tuple[Any, Any, Any],
    holes: Skips | None,
    source: dict[str, Any],
) -> dict[str, Any]:
    """Everything that determines the bytes of a run's output, as JSON values.

    Parameters
    ----------
    plan, spec : of the run; the recipe must be complete.
    functions : the function, its setup and finalize.
    holes : what skips patches.
    source : the `fingerprint` of the input.
    """
    recipe, grid, options = plan.recipe, plan.recipe.grid, plan.words["options"]
    function, setup, finalize = map(function_identity, functions)
    found = {
        "blending": BLENDING_VERSION,
        "source": source,
        "grid": grid.to_json(),
        "window": [_window(w, n) for w, n in zip(recipe.windows, grid.patch, strict=True)],
        "input_dtype": str(recipe.input_dtype),
        "result_dtype": str(recipe.result_dtype),
        "roi": [list(plan.roi.start), list(plan.roi.stop)],
        "channel_axis": plan.layout.channel,
        "patched": list(plan.layout.patched_dims),
        "batches": recipe.batch_size is not None,
        "fill": repr(recipe.fill),
        "pad_mode": recipe.pad_mode,
        "pad_value": repr(recipe.pad_value),
        "reduce": recipe.reduce,
        "nan": recipe.nan,
        "mask": None if holes is None else _mask(holes),
        "skip": None if holes is None else function_identity(holes.skip),
        "function": function,
        "setup": setup,
        "finalize": finalize,
        "version": options.get("version"),
        "depends": {os.path.basename(p): file_digest(p) for p in options.get("depends") or ()},
        "missing": options.get("missing", "auto"),
        "output": spec.to_json(),
    }
    return dict(json.loads(json.dumps(found)))


def _window(window: Window, patch: int) -> Any:
    """A window by name, or by the weights that a function gives."""
    return window if isinstance(window, str) else sample(window, patch).tolist()


def _mask(holes: Skips) -> Any:
    if holes.mask is None:
        return None
    stored = getattr(holes.mask, "source", None)
    if isinstance(stored, Source):
        values: Any = fingerprint(stored)[0]
    else:
        values = _value(np.asarray(holes.mask))
    return [values, [list(map(str, one)) for one in holes.cells]]


def function_identity(function: Any) -> Any:
    """A function by module, name, hash of its source, and parameters; numbers as they are.

    >>> function_identity(FunctionSpec.parse("gaussian", {"sigma": 2}))["target"]
    'gaussian'
    """
    if function is None or isinstance(function, int | float):
        return function
    if isinstance(function, FunctionSpec):
        operation = function.operation
        named = operation.function if operation else function.named()
        return {**function.to_json(), "code": code_digest(named)}
    inner, words = function, []
    while isinstance(inner, functools.partial):
        given = sorted(inner.keywords.items())
        words.append([[_value(v) for v in inner.args], [[k, _value(v)] for k, v in given]])
        inner = inner.func
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    bound = getattr(inner, "__self__", None if named is inner else inner)
    return {
        "target": f"{named.__module__}:{named.__qualname__}",
        "code": code_digest(named),
        "parameters": words,
        "state": None if bound is None or inspect.ismodule(bound) else _state(bound),
    }


def _state(instance: Any) -> Any:
    """What an object that is called carries along, as far as it shows."""
    held = getattr(instance, "__dict__", {})
    return [[name, _value(value)] for name, value in sorted(held.items())]


def _value(value: Any) -> Any:
    """A value as something that can be compared with that of another process."""
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        array = np.ascontiguousarray(value)
        return [list(array.shape), str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()]
    # an address is another one in every process
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def code_digest(function: Any) -> str | None:
    """Hash of the file that a function was written in, else of its code; None for builtins."""
    with suppress(TypeError, OSError):
        path = inspect.getsourcefile(function)
        if path is not None and os.path.isfile(path):
            return file_digest(path)
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    return digest([code.co_code.hex(), _value(code.co_consts), list(code.co_names)])


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
