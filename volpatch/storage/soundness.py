"""Whether what a plan or a record holds can be what it is taken for.

Their checksums tell of damage. This is for what has a good checksum all the same and was never
written by volpatch: it is told as damage too, before anything is counted by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from volpatch.core import resources as machine
from volpatch.core.errors import SettingError
from volpatch.storage.codec import DTYPES, TargetSpec

_ENDS = ("done", "skipped", "empty")  # states in which a region may end
_MOST = 2**63
Check = Callable[[Any], bool]


def is_count(value: Any, least: int = 0) -> bool:
    """Whether a value is a whole number of things.

    >>> is_count(3), is_count(True), is_count(-1), is_count(2**70)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < _MOST


def _is_number(value: Any) -> bool:
    """A region or a unit: those that there are not are passed over by whoever counts them."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST


def _is_size(value: Any) -> bool:
    return is_count(value, 1)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_time(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) < _MOST and math.isfinite(value)


def _is_key(value: Any) -> bool:
    """Whether a text names an object inside of an output."""
    if not isinstance(value, str) or "\0" in value:
        return False
    path = PurePosixPath(value)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _list_of(*checks: Check) -> Check:
    """A check for lists whose items pass a check; or are lists of items, each with its own."""

    def check(values: Any) -> bool:
        if not isinstance(values, list):
            return False
        if len(checks) == 1:
            return all(map(checks[0], values))
        return all(
            isinstance(item, list)
            and len(item) == len(checks)
            and all(check(part) for check, part in zip(checks, item, strict=True))
            for item in values
        )

    return check


def _maybe(check: Check) -> Check:
    return lambda value: value is None or check(value)


# -- plans ---------------------------------------------------------------------------------


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and value in DTYPES


def _is_countable(value: Any) -> bool:
    """Whether there is memory to count that many things: a byte each."""
    return is_count(value, 1) and value <= machine.memory_granted()


def _is_output(value: Any) -> bool:
    try:
        return is_count(TargetSpec.from_json(value).n_units, 1)
    except (SettingError, TypeError, ValueError, AttributeError, OverflowError):
        return False


_RESULT: Mapping[str, Check] = {
    "result_dtype": _maybe(_is_dtype),
    "channels_out": _maybe(_is_size),
    "final_dtype": _maybe(_is_dtype),
    "final_channels": _maybe(_is_size),
}
_LAYOUT: Mapping[str, Check] = {
    "regions": _is_countable,
    "patches": is_count,
    "region": _list_of(_is_size),
    "result": lambda value: isinstance(value, dict) and _first_bad(value, _RESULT) is None,
    "func_memory": is_count,
    "resident": is_count,
    "input": lambda value: isinstance(value, list),
}


def bad_field(plan: Mapping[str, Any]) -> str | None:
    """The field of a plan that cannot be as it is; None where all can."""
    if not isinstance(plan["identity"], dict):
        return "identity"
    if not _is_output(plan["identity"].get("output")):
        return "identity.output"
    if not isinstance(plan["layout"], dict):
        return "layout"
    if (name := _first_bad(plan["layout"], _LAYOUT)) is not None:
        return f"layout.{name}"
    return None if isinstance(plan["job"], dict | None) else "job"


def _first_bad(values: Mapping[str, Any], checks: Mapping[str, Check]) -> str | None:
    for name, check in checks.items():
        if name not in values or not check(values[name]):
            return name
    return None


# -- records -------------------------------------------------------------------------------


def _is_pairs(value: Any) -> bool:
    """Whether a list holds pairs of a file's number and how it looks."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and is_count(pair[0]) for pair in value
    )


_EVENTS: Mapping[str, Mapping[str, Check]] = {
    "log": {},
    "start": {"region": _is_number},
    "layer": {
        "region": _is_number,
        "of": _is_size,
        "units": _list_of(_is_number, is_count, _is_text),
        "patches": is_count,
        "clipped": is_count,
        "time": _is_time,
    },
    "failed": {"region": _is_number, "error": _is_text},
    "done": {"region": _is_number, "state": lambda value: _is_text(value) and value in _ENDS},
    "input": {"files": _is_pairs},
    "commit": {"files": _list_of(_is_key, is_count, _is_text), "time": _is_time},
}


def is_event(value: Any) -> bool:
    """Whether a record tells of something that may have happened."""
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return False
    checks = _EVENTS.get(value["kind"])
    placed = "region" not in value or _is_number(value["region"])
    return checks is not None and placed and _first_bad(value, checks) is None


_NOTE: Mapping[str, Check] = {
    "region": is_count,
    "patch": _list_of(is_count),
    "start": _list_of(is_count),
    "stop": _list_of(is_count),
}


def is_note(value: Any) -> bool:
    """Whether a note tells which patch is in a call."""
    if not isinstance(value, dict) or _first_bad(value, _NOTE) is not None:
        return False
    return len(value["patch"]) == len(value["start"]) == len(value["stop"]) > 0
