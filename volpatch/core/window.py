"""How much a patch counts at each of its voxels, and its share among its neighbours.

A window is one weight per voxel of a patch along one axis. Dividing it by the sum of
the windows of all patches at each voxel gives *shares*, which sum to 1 there. Shares
are separable: the product of the per-axis shares of all patches at a voxel sums to 1
too, also where the last patch was pulled back. Blending is therefore a plain sum of
share x value, with no weight volume beside it and nothing to divide by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.core.errors import SettingError, interrupts, said
from volpatch.core.grid import AxisGrid, per_axis

WINDOWS = ("constant", "hann", "triangle", "gaussian", "crop")
Window = str | Callable[[int], Any]

# a narrow Gaussian underflows at its tails, and 0 / 0 would follow
FLOOR = 2.0**-20
SIGMA_PER_PATCH = 1 / 8
# of a Gaussian, in voxels: below it all but the nearest weights are at the floor anyway, and
# the nearest of an even patch, half a voxel away, would underflow too
NARROWEST = 0.02


def windows_per_axis(
    window: Window | Sequence[Window] | None, ndim: int, reduce: str = "mean"
) -> tuple[Window, ...]:
    """One checked window per axis, from one for all or one each.

    None is the default: Hann, and constant where values are not averaged.

    >>> windows_per_axis("crop", 2), windows_per_axis(None, 2)
    (('crop', 'crop'), ('hann', 'hann'))
    """
    if window is None:
        window = "hann" if reduce == "mean" else "constant"
    windows = per_axis(window, ndim, "window")
    for one in windows:
        if not callable(one):
            _parse(one)
    if "crop" in windows and any(one != "crop" for one in windows):
        raise SettingError(
            f"window='crop' selects one patch per voxel and does not mix with others, "
            f"got {windows}; use it on all axes or on none"
        )
    return windows


def _parse(window: object) -> tuple[str, float | None]:
    """Name and sigma of a window given as text, such as "hann" or "gaussian:8"."""
    name, _, sigma = str(window).partition(":")
    if not isinstance(window, str) or name not in WINDOWS or (sigma and name != "gaussian"):
        raise SettingError(
            f"window must be one of {', '.join(WINDOWS)} (or gaussian:SIGMA, or a function of "
            f"the patch size); got {window!r}"
        )
    if not sigma:
        return name, None
    try:
        value = float(sigma)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise SettingError(f"the sigma of window {window!r} must be a positive number of voxels")
    return name, value


def sample(window: Window, n: int) -> NDArray[np.float64]:
    """Weights of one patch along one axis.

    Parameters
    ----------
    window : str or callable
        "constant", "hann", "triangle", "gaussian" (sigma = n / 8), "gaussian:SIGMA" with
        sigma in voxels, or a function n -> n weights, finite and not negative, of a
        finite sum; 0 at its ends only.
    n : int
        Patch size in voxels.

    Returns
    -------
    (n,) float64, dimensionless. Sampled at voxel centres, so that no built-in window
    ever reaches zero and the faces of the volume are not dimmed. What is positive is at
    least 2**-20 of the largest, so that no product of shares vanishes.

    Examples
    --------
    >>> sample("hann", 5).round(2).tolist()
    [0.25, 0.75, 1.0, 0.75, 0.25]
    """
    if callable(window):
        try:
            values = np.asarray(window(n), dtype=np.float64)
        except BaseException as error:
            if interrupts(error):
                raise
            name = getattr(window, "__name__", repr(window))
            shown = f"{type(error).__name__}: {said(error)}"
            raise SettingError(f"window {name}({n}) failed: {shown}") from error
        return _checked(values, window, n)
    name, sigma = _parse(window)
    place = np.arange(n, dtype=np.float64)
    middle = (n - 1) / 2
    if name == "hann":
        weights = np.sin(np.pi * (place + 1) / (n + 1)) ** 2
    elif name == "triangle":
        weights = 1 - np.abs(place - middle) * 2 / n
    elif name == "gaussian":
        width = max(sigma or n * SIGMA_PER_PATCH, NARROWEST)
        weights = np.exp(-0.5 * ((place - middle) / width) ** 2)
    else:
        weights = np.ones(n)
    # the tails of a narrow Gaussian underflow to 0, and count nevertheless
    floored: NDArray[np.float64] = np.maximum(weights, FLOOR * weights.max())
    return floored


def _floored(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of a function, the positive ones no further apart than the built-in windows'."""
    positive = weights > 0  # before scaling, which may bring the smallest to 0
    peak = float(weights.max())
    if not 2.0**-500 < peak < 2.0**500:  # sums of several patches must not overflow either
        weights = np.ldexp(weights, -math.frexp(peak)[1])
        peak = float(weights.max())
    return np.where(positive, np.maximum(weights, FLOOR * peak), 0)


def _checked(values: Any, window: Callable[[int], Any], n: int) -> NDArray[np.float64]:
    weights = np.asarray(values, dtype=np.float64)
    name = getattr(window, "__name__", repr(window))
    if weights.shape != (n,):
        raise SettingError(f"window {name}({n}) gave shape {weights.shape}, wanted ({n},)")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise SettingError(f"window {name}({n}) must be finite and not negative, got {weights}")
    with np.errstate(over="ignore"):
        if not np.isfinite(weights.sum()):
            raise SettingError(
                f"the weights of window {name}({n}) sum to infinity, the largest is "
                f"{weights.max():g}; divide them by it"
            )
    if not weights.any():
        raise SettingError(
            f"window {name}({n}) leaves every voxel without any weight: all are 0; give positive "
            f"ones"
        )
    first, stop = _ends(weights)
    inside = np.flatnonzero(weights[first:stop] == 0)
    if len(inside):
        raise SettingError(
            f"window {name}({n}) is 0 at place {first + inside[0]}, between positive weights; only "
            f"at its ends may it be"
        )
    return _floored(weights)


def _ends(weights: NDArray[np.float64]) -> tuple[int, int]:
    """Places [start, stop) of the positive weights."""
    positive = np.flatnonzero(weights)
    return int(positive[0]), int(positive[-1]) + 1


def counted(window: Window, n: int) -> tuple[int, int]:
    """Voxels [start, stop) of a patch that count: all but those at its ends of weight 0."""
    return _ends(sample(window, n)) if callable(window) else (0, n)


def check_window(axis: AxisGrid, window: Window) -> None:
    """Refuse a window that cannot be, or that leaves a voxel under a patch without any weight."""
    start, stop = counted(window, axis.patch)
    bare = _first_bare(axis, start, stop)
    if bare is not None:
        raise SettingError(
            f"the window leaves voxel {bare} of {axis.name} without any weight: of its "
            f"{axis.patch} weights the first {start} and the last {axis.patch - stop} are 0, and "
            f"no other patch counts there; choose one that is positive at its ends"
        )


def _first_bare(axis: AxisGrid, start: int, stop: int) -> int | None:
    """First voxel under a patch that no patch counts at, if only [start, stop) of each does."""
    count = axis.count
    if count and start:
        return axis.offset  # only the first patch is there
    for number in {0, count - 1} if count and stop < axis.patch else ():
        bare = axis.start(number) + stop
        # of all steps to the next patch the first is the largest
        end = axis.start(number + 1) if number + 1 < count else axis.size
        if bare < end:
            return bare
    return None


def axis_shares(axis: AxisGrid, window: Window, numbers: range) -> NDArray[np.float64]:
    """Share of each voxel that each of the patches `numbers` owns, along one axis.

    Returns
    -------
    (len(numbers), patch) float64, dimensionless. Summed over all patches that cover it,
    every voxel of the axis gets 1; the part of a patch that hangs over the end gets 0.
    The values do not depend on which range of patches was asked for.

    Raises
    ------
    SettingError
        If a custom window leaves a covered voxel without any weight.
    """
    check_window(axis, window)
    if not len(numbers):
        return np.zeros((0, axis.patch))
    weights = sample(window, axis.patch)
    first, end = axis.start(numbers[0]), axis.start(numbers[-1]) + axis.patch
    total = np.zeros(end - first)
    for number in axis.touching(first, end):
        # in raster order and from zero, so that each sum has the same bits for any range
        start = axis.start(number) - first
        lo, hi = max(0, start), min(end - first, start + axis.patch)
        total[lo:hi] += weights[lo - start : hi - start]
    starts = np.array([axis.start(i) for i in numbers], dtype=np.int64)
    places = starts[:, None] + np.arange(axis.patch)
    inside = places < axis.size
    sums = total[places - first]
    shares: NDArray[np.float64] = np.zeros_like(sums)
    np.divide(weights, sums, out=shares, where=inside)
    return shares
