"""Compile loops once, and keep the machine code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numba
from numba.extending import overload

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile without the GIL, keeping machine code on disk where a folder allows it."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        made: F = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no place that numba could write its cache to
        made = numba.njit(**options)(function)
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
