"""Filters of differences between neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.functions.filters.given import ndimage, single
from volpatch.functions.operation import Operation


def sobel(patch: NDArray[Any]) -> NDArray[np.float32]:
    """Find edges: the magnitude of Sobel's derivatives along all axes.

    Parameters
    ----------
    patch : ndarray
        Booleans, integers or real numbers; mirrored at its ends.

    Returns
    -------
    ndarray
        float32, in the unit of the patch times that of Sobel's weights, not divided by their sum.
    """
    values = single(patch, "sobel")
    found: NDArray[np.float32] = ndimage("generic_gradient_magnitude")(values, ndimage("sobel"))
    return found


def laplace(patch: NDArray[Any]) -> NDArray[np.float32]:
    """Take the sum of second differences along all axes.

    Parameters
    ----------
    patch : ndarray
        Booleans, integers or real numbers; mirrored at its ends.

    Returns
    -------
    ndarray
        float32, in the unit of the patch, of either sign.
    """
    found: NDArray[np.float32] = ndimage("laplace")(single(patch, "laplace"))
    return found


OPERATIONS = (
    Operation(
        "sobel",
        sobel,
        "magnitude of edges",
        returns="float32",
        reach=lambda: 1,
        memory=(16, 0),
        speed=14,
    ),
    Operation(
        "laplace",
        laplace,
        "second differences",
        returns="float32",
        reach=lambda: 1,
        memory=(16, 0),
        speed=48,
    ),
)
