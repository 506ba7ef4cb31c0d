"""Compile loops once, and keep the machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile without the GIL, keeping machine code on disk where a folder allows it."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        made: F = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no place that numba could write its cache to
        made = numba.njit(**options)(function)
    return made
