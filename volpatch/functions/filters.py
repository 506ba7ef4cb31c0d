"""The ready-made functions themselves: one array in, one array of the same shape out.

Each acts on all axes of the array it is given and knows nothing of patches, so with a margin of at
least its reach and `window="crop"` the result equals the same filter on the whole volume, bit for
bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from volpatch.core.errors import SettingError

MODES = ("reflect", "nearest", "mirror", "constant", "wrap")


def identity(patch: NDArray[Any]) -> NDArray[Any]:
    """Give the patch back as it came.

    Parameters
    ----------
    patch : ndarray
        Any shape and dtype.

    Returns
    -------
    ndarray
        The same object.
    """
    return patch


def gaussian(
    patch: NDArray[Any],
    sigma: float | Sequence[float] = 1.0,
    truncate: float = 4.0,
    mode: str = "reflect",
) -> NDArray[np.float32]:
    """Smooth with a Gaussian, in float32.

    Parameters
    ----------
    patch : ndarray
        Booleans, integers or real numbers; integers beyond 2**24 are rounded to float32.
    sigma : float or sequence of float
        Standard deviation in voxels, one for all axes or one per axis; 0 leaves an axis alone.
    truncate : float
        Where the filter is cut off, in standard deviations: it reaches
        `int(truncate * sigma + 0.5)` voxels.
    mode : str
        What lies beyond the array's ends: one of `MODES`, as in `scipy.ndimage`.

    Returns
    -------
    ndarray
        float32, in the unit of the patch.
    """
    check_gaussian(sigma=sigma, truncate=truncate, mode=mode)
    values = _real(patch, "gaussian").astype(np.float32, copy=False)
    widths = _per_axis("gaussian", "sigma", sigma, values.ndim)
    filtered: NDArray[np.float32] = _ndimage_function("gaussian_filter")(
        values, widths, truncate=truncate, mode=mode
    )
    return filtered


def median(patch: NDArray[Any], size: int | Sequence[int] = 3) -> NDArray[Any]:
    """Take the median of a box around each voxel; the array is mirrored at its ends.

    Parameters
    ----------
    patch : ndarray
        Booleans, integers or real numbers.
    size : int or sequence of int
        Edge of the box in voxels, odd, one for all axes or one per axis; it reaches `size // 2`.

    Returns
    -------
    ndarray
        In the dtype of the patch (float32 for float16): a median of an odd number of values is
        one of them.
    """
    check_median(size=size)
    values = _real(patch, "median")
    if values.dtype == np.float16:  # scipy.ndimage has no half precision
        values = values.astype(np.float32)
    edges = _per_axis("median", "size", size, values.ndim)
    filtered: NDArray[Any] = _ndimage_function("median_filter")(values, edges)
    return filtered


def normalize(patch: NDArray[Any], epsilon: float = 1e-6) -> NDArray[np.float32]:
    """Shift and scale a patch to mean 0 and variance 1.

    Parameters
    ----------
    patch : ndarray
        Booleans, integers or real numbers.
    epsilon : float
        A patch whose standard deviation is at most this part of its largest magnitude counts as
        constant and becomes zeros.

    Returns
    -------
    ndarray
        float32, dimensionless; the sums are taken in float64.
    """
    check_normalize(epsilon=epsilon)
    values = _real(patch, "normalize")
    mean = float(values.mean(dtype=np.float64))
    centred = values.astype(np.float64)
    centred -= mean
    deviation = math.sqrt(float(np.mean(np.square(centred))))
    largest = max(abs(float(values.max())), abs(float(values.min())))
    if deviation <= epsilon * largest:
        return np.zeros(values.shape, np.float32)
    centred /= deviation
    return centred.astype(np.float32)


def check_gaussian(
    *, sigma: object = 1.0, truncate: object = 4.0, mode: object = "reflect"
) -> None:
    """Raise SettingError where `gaussian` could not use these values."""
    widths = _listed(sigma)
    if not widths or not all(_is_number(width) and width >= 0 for width in widths):
        raise _bad("gaussian", "sigma", sigma, "a positive number of voxels, or one per axis")
    if not any(widths):
        raise _bad("gaussian", "sigma", sigma, "greater than 0 along one axis at least")
    if not _is_number(truncate) or truncate <= 0:
        raise _bad("gaussian", "truncate", truncate, "a positive number of standard deviations")
    if mode not in MODES:
        raise _bad("gaussian", "mode", mode, "one of " + ", ".join(MODES))


def gaussian_reach(
    *, sigma: float | Sequence[float] = 1.0, truncate: float = 4.0, mode: str = "reflect"
) -> list[int] | int | None:
    """How far `gaussian` looks; around the whole volume where it is wrapped."""
    if mode == "wrap":
        return None
    reaches = [int(truncate * width + 0.5) for width in _listed(sigma)]
    return reaches if isinstance(sigma, Sequence) else reaches[0]


def check_median(*, size: object = 3) -> None:
    """Raise SettingError where `median` could not use this value."""
    edges = _listed(size)
    if not edges or not all(_is_integer(edge) and edge >= 1 and edge % 2 for edge in edges):
        raise _bad("median", "size", size, "an odd, positive number of voxels, or one per axis")


def median_reach(*, size: int | Sequence[int] = 3) -> list[int] | int:
    """How far `median` looks."""
    reaches = [edge // 2 for edge in _listed(size)]
    return reaches if isinstance(size, Sequence) else reaches[0]


def check_normalize(*, epsilon: object = 1e-6) -> None:
    """Raise SettingError where `normalize` could not use this value."""
    if not _is_number(epsilon) or not 0 <= epsilon < 1:
        raise _bad("normalize", "epsilon", epsilon, "a number from 0 to below 1")


def _bad(operation: str, name: str, value: object, wanted: str) -> SettingError:
    return SettingError(f"{operation}: {name}={value!r} must be {wanted}")


def _is_number(value: Any) -> TypeGuard[float]:
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return real and math.isfinite(value)


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]


def _per_axis(operation: str, name: str, value: Any, axes: int) -> list[Any]:
    values = _listed(value)
    if not isinstance(value, (list, tuple, np.ndarray)):
        return values * axes
    if len(values) != axes:
        raise _bad(operation, name, value, f"one number, or {axes}: a patch has {axes} axes")
    return values


def _real(patch: NDArray[Any], operation: str) -> NDArray[Any]:
    values = np.asarray(patch)
    if values.dtype.kind not in "biuf":
        raise SettingError(
            f"{operation} takes booleans, integers or real numbers, not {values.dtype}"
        )
    return values


def _ndimage_function(name: str) -> Callable[..., Any]:
    from scipy import ndimage  # slow to import, and not needed for --help or a user's function

    function: Callable[..., Any] = getattr(ndimage, name)
    return function
