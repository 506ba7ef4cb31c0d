"""Patches and parameters as the filters take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.core.errors import SettingError
from volpatch.functions.operation import listed


def real(patch: NDArray[Any], operation: str) -> NDArray[Any]:
    """The patch, if it is of numbers that filters take."""
    values = np.asarray(patch)
    if values.dtype.kind not in "biuf":
        raise SettingError(
            f"{operation} takes booleans, integers or real numbers, not {values.dtype}"
        )
    return values


def single(patch: NDArray[Any], operation: str) -> NDArray[np.float32]:
    """The patch in float32."""
    return real(patch, operation).astype(np.float32, copy=False)


def per_axis(operation: str, name: str, value: Any, axes: int) -> list[Any]:
    """One value for each axis of a patch."""
    values = listed(value)
    if not isinstance(value, (list, tuple, np.ndarray)):
        return values * axes
    if len(values) != axes:
        raise SettingError(
            f"{operation}: {name}={value!r} must be one number, or {axes}: a patch has {axes} axes"
        )
    return values


def ndimage(name: str) -> Callable[..., Any]:
    """A function of scipy.ndimage."""
    from scipy import ndimage  # slow to import, and not needed for --help or a user's function

    function: Callable[..., Any] = getattr(ndimage, name)
    return function
