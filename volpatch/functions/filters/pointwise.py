"""Functions that look at nothing around a voxel, or at the patch as a whole."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.functions.filters.given import real
from volpatch.functions.operation import Operation, Parameter, is_number, number


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


def threshold(patch: NDArray[Any], value: float = 0) -> NDArray[np.bool_]:
    """Tell which voxels are above a value.

    Parameters
    ----------
    patch : ndarray
        Booleans, integers or real numbers; a NaN is not above anything.
    value : float
        In the unit of the patch.

    Returns
    -------
    ndarray
        bool.
    """
    return np.asarray(real(patch, "threshold") > value)


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
    values = real(patch, "normalize")
    mean = float(values.mean(dtype=np.float64))
    centred = values.astype(np.float64)
    centred -= mean
    deviation = math.sqrt(float(np.mean(np.square(centred))))
    largest = max(abs(float(values.max())), abs(float(values.min())))
    if deviation <= epsilon * largest:
        return np.zeros(values.shape, np.float32)
    centred /= deviation
    return centred.astype(np.float32)


OPERATIONS = (
    Operation(
        "identity",
        identity,
        "the volume as it is: a test of the whole way",
        reach=lambda: 0,
        memory=(0, 0),
    ),
    Operation(
        "threshold",
        threshold,
        "which voxels are above a value",
        (number("value", 0, "the value, in the unit of the volume"),),
        returns="bool",
        reach=lambda value: 0,
        memory=(1, 0),
        speed=1000,
    ),
    Operation(
        "normalize",
        normalize,
        "mean 0 and variance 1 in every patch",
        (
            Parameter(
                "epsilon",
                1e-6,
                "relative deviation up to which a patch counts as constant (1e-6)",
                lambda value: is_number(value) and 0 <= value < 1,
                "a number from 0 to below 1",
            ),
        ),
        returns="float32",
        speed=30,
    ),
)
