"""Filters of weights: means around a voxel, and what is made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.functions.filters.given import ndimage, per_axis, real, single
from volpatch.functions.operation import (
    MODE,
    SIZE,
    TRUNCATE,
    Operation,
    Parameter,
    Reach,
    box_reach,
    gaussian_reach,
    number,
    sigma,
)

Width = float | Sequence[float]
WAYS = ("division", "subtraction")


def gaussian(
    patch: NDArray[Any], sigma: Width = 1.0, truncate: float = 4.0, mode: str = "reflect"
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
    return _gaussian("gaussian", patch, sigma, truncate, mode)


def _gaussian(
    operation: str,
    patch: NDArray[Any],
    sigma: Width,
    truncate: float,
    mode: str = "reflect",
    name: str = "sigma",
) -> NDArray[np.float32]:
    values = single(patch, operation)
    widths = per_axis(operation, name, sigma, values.ndim)
    filtered: NDArray[np.float32] = ndimage("gaussian_filter")(
        values, widths, truncate=truncate, mode=mode
    )
    return filtered


def uniform(patch: NDArray[Any], size: int | Sequence[int] = 3) -> NDArray[np.float32]:
    """Take the mean of a box around each voxel; the array is mirrored at its ends.

    Parameters
    ----------
    patch : ndarray
        Booleans, integers or real numbers.
    size : int or sequence of int
        Edge of the box in voxels, odd, one for all axes or one per axis; it reaches `size // 2`.

    Returns
    -------
    ndarray
        float32, in the unit of the patch; each axis is rounded to it.
    """
    values = real(patch, "uniform")
    edges = per_axis("uniform", "size", size, values.ndim)
    means = values.astype(np.float32, copy=False)
    if _running_sums_are_exact(values.dtype, edges):
        filtered: NDArray[np.float32] = ndimage("uniform_filter")(means, edges)
        return filtered
    for axis, edge in enumerate(edges):
        if edge > 1:
            sums = ndimage("correlate1d")(means, np.ones(edge), axis, output=np.float64)
            means = np.divide(sums, edge, out=sums).astype(np.float32)
    return means.copy() if means is patch else means


def _running_sums_are_exact(dtype: np.dtype[Any], edges: Sequence[int]) -> bool:
    """Whether adding a voxel and taking another away, as scipy does, is the sum of those between.

    It is while all of them are multiples of one number, and their sums below 2**53 of it. A mean of
    unsigned integers is 0, or at least 1 over the voxels of the boxes so far; float32 has 24 bits.
    """
    if dtype.kind not in "bu" or dtype.itemsize > 2:
        return False
    finest = 24 + sum(math.log2(edge) for edge in edges[:-1])
    return finest + 8 * dtype.itemsize + math.log2(max(edges)) <= 53


def dog(
    patch: NDArray[Any],
    low_sigma: Width = 1.0,
    high_sigma: Width = 1.6,
    truncate: float = 4.0,
) -> NDArray[np.float32]:
    """Subtract a wide Gaussian from a narrow one: what is as large as between the two stays.

    Parameters
    ----------
    patch : ndarray
        Booleans, integers or real numbers.
    low_sigma, high_sigma : float or sequence of float
        Standard deviations in voxels, one for all axes or one per axis.
    truncate : float
        Where the filters are cut off, in standard deviations.

    Returns
    -------
    ndarray
        float32, in the unit of the patch, of either sign.
    """
    low = _gaussian("dog", patch, low_sigma, truncate, name="low_sigma")
    low -= _gaussian("dog", patch, high_sigma, truncate, name="high_sigma")
    return low


def _dog_reach(low_sigma: Any, high_sigma: Any, truncate: float) -> Reach:
    low, high = (gaussian_reach(width, truncate) for width in (low_sigma, high_sigma))
    if isinstance(low, int) and isinstance(high, int):
        return max(low, high)
    several = next(len(one) for one in (low, high) if isinstance(one, list))
    each_axis = [one if isinstance(one, list) else [one] * several for one in (low, high)]
    return [max(pair) for pair in zip(*each_axis, strict=False)]


def unsharp(
    patch: NDArray[Any], sigma: Width = 1.0, amount: float = 1.0, truncate: float = 4.0
) -> NDArray[np.float32]:
    """Sharpen: add to each voxel what smoothing takes from it.

    Parameters
    ----------
    patch : ndarray
        Booleans, integers or real numbers.
    sigma : float or sequence of float
        Standard deviation of the smoothing in voxels, one for all axes or one per axis.
    amount : float
        How much of the difference is added.
    truncate : float
        Where the Gaussian is cut off, in standard deviations.

    Returns
    -------
    ndarray
        float32, in the unit of the patch.
    """
    values = single(patch, "unsharp")
    sharp = _gaussian("unsharp", patch, sigma, truncate)
    np.subtract(values, sharp, out=sharp)
    sharp *= np.float32(amount)
    sharp += values
    return sharp


def background(
    patch: NDArray[Any], sigma: Width = 10.0, by: str = "division", truncate: float = 4.0
) -> NDArray[np.float32]:
    """Divide by, or subtract, a wide Gaussian: uneven light becomes even.

    Parameters
    ----------
    patch : ndarray
        Booleans, integers or real numbers.
    sigma : float or sequence of float
        Standard deviation in voxels, one for all axes or one per axis; several times what is to
        stay.
    by : {"division", "subtraction"}
    truncate : float
        Where the Gaussian is cut off, in standard deviations.

    Returns
    -------
    ndarray
        float32: around 1 and without a unit, 0 where the background is 0; or around 0 and in the
        unit of the patch.
    """
    values = single(patch, "background")
    wide = _gaussian("background", patch, sigma, truncate)
    if by == "subtraction":
        return np.subtract(values, wide, out=wide)
    there = wide != 0
    np.divide(values, wide, out=wide, where=there)
    return wide


OPERATIONS = (
    Operation(
        "gaussian",
        gaussian,
        "Gaussian smoothing",
        (sigma(), TRUNCATE, MODE),
        returns="float32",
        stored="source",
        reach=gaussian_reach,
        memory=(8, 0),
        speed=35,
    ),
    Operation(
        "uniform",
        uniform,
        "mean of a box around each voxel",
        (SIZE,),
        returns="float32",
        stored="source",
        reach=box_reach,
        memory=(24, 0),
        speed=55,
    ),
    Operation(
        "dog",
        dog,
        "difference of Gaussians: blobs and edges of one size",
        (
            sigma("low_sigma", 1.0, "standard deviation of the narrow one"),
            sigma("high_sigma", 1.6, "standard deviation of the wide one"),
            TRUNCATE,
        ),
        returns="float32",
        reach=_dog_reach,
        memory=(12, 0),
        speed=17,
    ),
    Operation(
        "unsharp",
        unsharp,
        "sharpening: what smoothing takes away, added",
        (sigma(), number("amount", 1.0, "how much of it"), TRUNCATE),
        returns="float32",
        stored="source",
        reach=lambda sigma, amount, truncate: gaussian_reach(sigma, truncate),
        memory=(12, 0),
        speed=38,
    ),
    Operation(
        "background",
        background,
        "division by a wide Gaussian, or subtraction of it",
        (
            sigma(default=10.0),
            Parameter(
                "by",
                "division",
                "division or subtraction (division)",
                lambda value: value in WAYS,
                "one of " + ", ".join(WAYS),
            ),
            TRUNCATE,
        ),
        returns="float32",
        reach=lambda sigma, by, truncate: gaussian_reach(sigma, truncate),
        memory=(13, 0),
        speed=9,
    ),
)
