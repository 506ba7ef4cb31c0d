"""Filters that choose one of the values around a voxel; in the dtype of the patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.functions.filters.given import ndimage, per_axis, real
from volpatch.functions.operation import (
    SIZE,
    Operation,
    Parameter,
    box_reach,
    is_number,
    twice_box_reach,
)

Size = int | Sequence[int]


def _in_boxes(operation: str, of: str, patch: NDArray[Any], size: Size, *more: Any) -> NDArray[Any]:
    values = real(patch, operation)
    dtype = values.dtype.newbyteorder("=")
    # scipy.ndimage has no half precision, and values that were chosen fit into it again
    values = values.astype(np.float32 if dtype == np.float16 else dtype, copy=False)
    edges = per_axis(operation, "size", size, values.ndim)
    chosen: NDArray[Any] = ndimage(of)(values, *more, size=edges)
    return chosen.astype(dtype, copy=False)


def median(patch: NDArray[Any], size: Size = 3) -> NDArray[Any]:
    """Take the median of a box around each voxel; the array is mirrored at its ends.

    Parameters
    ----------
    patch : ndarray
        Booleans, integers or real numbers; where NaNs are near, the result is not defined.
    size : int or sequence of int
        Edge of the box in voxels, odd, one for all axes or one per axis; it reaches `size // 2`.

    Returns
    -------
    ndarray
        In the dtype of the patch: a median of an odd number of values is one of them.
    """
    return _in_boxes("median", "median_filter", patch, size)


def percentile(patch: NDArray[Any], size: Size = 3, percentile: float = 50) -> NDArray[Any]:
    """Take a percentile of a box around each voxel; parameters as for `median`.

    Parameters
    ----------
    patch : ndarray
    size : int or sequence of int
    percentile : float
        From 0 to 100; 50 is the median.

    Returns
    -------
    ndarray
        In the dtype of the patch.
    """
    return _in_boxes("percentile", "percentile_filter", patch, size, percentile)


def minimum(patch: NDArray[Any], size: Size = 3) -> NDArray[Any]:
    """Take the smallest value of a box around each voxel; parameters as for `median`."""
    return _in_boxes("minimum", "minimum_filter", patch, size)


def maximum(patch: NDArray[Any], size: Size = 3) -> NDArray[Any]:
    """Take the largest value of a box around each voxel; parameters as for `median`."""
    return _in_boxes("maximum", "maximum_filter", patch, size)


def opening(patch: NDArray[Any], size: Size = 3) -> NDArray[Any]:
    """Take what is bright and smaller than a box away: the maximum of minima.

    Parameters as for `median`; it reaches `2 * (size // 2)`.
    """
    return _in_boxes("opening", "grey_opening", patch, size)


def closing(patch: NDArray[Any], size: Size = 3) -> NDArray[Any]:
    """Fill what is dark and smaller than a box: the minimum of maxima.

    Parameters as for `median`; it reaches `2 * (size // 2)`.
    """
    return _in_boxes("closing", "grey_closing", patch, size)


def tophat(patch: NDArray[Any], size: Size = 3) -> NDArray[Any]:
    """Keep only what is bright and smaller than a box: a patch less its opening.

    Parameters as for `median`; it reaches `2 * (size // 2)`.
    """
    return _in_boxes("tophat", "white_tophat", patch, size)


OPERATIONS = (
    Operation(
        "median", median, "median of a box", (SIZE,), reach=box_reach, memory=(0, 1), speed=2
    ),
    Operation(
        "percentile",
        percentile,
        "percentile of a box",
        (
            SIZE,
            Parameter(
                "percentile",
                50,
                "from 0 to 100 (50)",
                lambda value: is_number(value) and 0 <= value <= 100,
                "a number from 0 to 100",
            ),
        ),
        reach=lambda size, percentile: box_reach(size),
        memory=(0, 1),
        speed=2,
    ),
    Operation(
        "minimum",
        minimum,
        "smallest value of a box",
        (SIZE,),
        reach=box_reach,
        memory=(0, 1),
        speed=28,
    ),
    Operation(
        "maximum",
        maximum,
        "largest value of a box",
        (SIZE,),
        reach=box_reach,
        memory=(0, 1),
        speed=28,
    ),
    Operation(
        "opening",
        opening,
        "without what is bright and smaller than a box",
        (SIZE,),
        reach=twice_box_reach,
        memory=(0, 2),
        speed=15,
    ),
    Operation(
        "closing",
        closing,
        "without what is dark and smaller than a box",
        (SIZE,),
        reach=twice_box_reach,
        memory=(0, 2),
        speed=15,
    ),
    Operation(
        "tophat",
        tophat,
        "only what is bright and smaller than a box",
        (SIZE,),
        reach=twice_box_reach,
        memory=(0, 2),
        speed=15,
    ),
)
