"""Compile loops once, and keep the machine code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numba
from numba.extending import overload

F = TypeVar("F", bound=Callable[..., Any])


_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
_NO_DOOR: dict[str, Any] = {"no_cpython_wrapper": True}


def compiled(function: F) -> F:
    """Compile without the GIL, keeping machine code on disk where a folder allows it."""
    try:
        made: F = numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # no place that numba could write its cache to
        made = numba.njit(**_OPTIONS)(function)
    return made


def inner(function: F) -> F:
    """Compile what only compiled code calls: kept with its callers, and with no door to Python."""
    made: F = numba.njit(**_OPTIONS, **_NO_DOOR)(function)
    return made


def compiled_by_kind(ways: Mapping[type, Callable[..., None]]) -> Callable[..., None]:
    """One name, for compiled code, of loops that differ by the type of their first argument.

    Parameters
    ----------
    ways : mapping of a NamedTuple's class to a function
        All with the same arguments; each is compiled where a caller needs it.
    """

    def put(sums: Any, values: Any, shares: Any, at: Any) -> None:
        raise NotImplementedError  # the way is found while a caller is compiled

    def way(sums: Any, values: Any, shares: Any, at: Any) -> Callable[..., None]:
        return ways[sums.instance_class]

    # `strict` would compare annotations too
    overload(put, jit_options={"nogil": True, "error_model": "numpy"}, strict=False)(way)
    return put
