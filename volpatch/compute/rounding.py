"""Turn finished values into the output's dtype: round half to even, clip, count."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.compiled import compiled
from volpatch.core.errors import ClippedWarning, SettingError

Array = NDArray[Any]


def round_to(values: Array, out: Array) -> int:
    """Write finished values as the output dtype; gives the number of values clipped.

    On the way to whole numbers: round half to even, clip to the dtype's range, NaN to 0;
    values out of range and NaNs are counted. `values` and `out` have the same shape.
    """
    if out.dtype.kind not in "iu" or values.dtype == out.dtype:
        if out.dtype == np.bool_ and values.dtype != np.bool_:
            raise SettingError(
                f"values of {values.dtype} cannot become dtype bool without a threshold; "
                f"give one with finalize="
            )
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(out, values, casting="unsafe")
        return 0
    limits = np.iinfo(out.dtype)
    if values.dtype.kind in "iub":  # without floats: they lose the last bits of 64
        own = np.iinfo(np.uint8 if values.dtype.kind == "b" else values.dtype)
        low, high = max(limits.min, own.min), min(limits.max, own.max)
        beyond = np.count_nonzero(values < low) + np.count_nonzero(values > high)
        np.copyto(out, np.clip(values, low, high) if beyond else values, casting="unsafe")
        return int(beyond)
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    if values.ndim < 2:
        values, out = values[None], out[None]
    clipped = 0
    kind = out.dtype.type
    loop = _round_short if out.dtype.itemsize <= 2 else _round
    for place in np.ndindex(values.shape[:-2]):
        clipped += loop(
            np.ascontiguousarray(values[place]),
            out[place],
            float(limits.min),
            float(limits.max),
            kind(limits.min),
            kind(limits.max),
        )
    return clipped


def warn_clipped(count: int, dtype: np.dtype[Any], stacklevel: int = 3) -> None:
    """Tell how many values of a result did not fit its dtype, if any; `run` reports them."""
    if count:
        limits = np.iinfo(dtype)
        warnings.warn(
            f"{count} values did not fit {dtype}: those beyond {limits.min} to {limits.max} were "
            f"clipped, and NaN became 0; choose another dtype=, or settle them in the function "
            f"or in finalize=",
            ClippedWarning,
            stacklevel=stacklevel,
        )


def convert(values: Array, out: Array) -> tuple[int, ...] | None:
    """Write values as another dtype, rounded half to even where that has whole numbers only.

    Returns
    -------
    The index of a value that the dtype cannot hold, if there is one: beyond its range, a NaN
    among whole numbers, another than 0 and 1 for bool.
    """
    if out.dtype.kind == "f":
        with np.errstate(over="ignore"):
            np.copyto(out, values, casting="unsafe")
        beyond = np.isinf(out) & np.isfinite(values)
    elif out.dtype.kind == "b":
        np.copyto(out, values != 0)
        beyond = (values != 0) & (values != 1)
    elif not round_to(values, out):
        return None
    else:
        limits = np.iinfo(out.dtype)
        whole = np.rint(values) if values.dtype.kind == "f" else values
        beyond = ~((whole >= limits.min) & (whole <= limits.max))
    found = np.argwhere(beyond)
    return tuple(found[0].tolist()) if len(found) else None


@compiled
def _round_short(
    values: Array, out: Array, low: float, high: float, lowest: Any, highest: Any
) -> int:
    """`_round` for up to 16 bits: floats hold their limits, and there is nothing to jump over."""
    kind = values.dtype.type
    least, most, zero = kind(low), kind(high), kind(0)
    clipped = 0
    for i in range(values.shape[0]):
        line, to = values[i], out[i]
        beyond = np.int32(0)
        for k in range(line.size):
            v = np.rint(line[k])
            inside = v if v >= least else (zero if v != v else least)
            inside = min(inside, most)
            beyond += np.int32(inside != v)
            to[k] = np.int32(inside)
        clipped += int(beyond)
    return clipped


@compiled
def _round(values: Array, out: Array, low: float, high: float, lowest: Any, highest: Any) -> int:
    clipped = 0
    for i in range(values.shape[0]):
        for k in range(values.shape[1]):
            v = np.rint(values[i, k])
            if v >= low and v < high:
                out[i, k] = v
            elif v >= high:
                out[i, k] = highest
                # 64 bits have a limit that no float is: the next one is beyond it
                clipped += v > high or high == 2.0**63 or high == 2.0**64
            elif v < low:
                out[i, k] = lowest
                clipped += 1
            else:
                out[i, k] = 0
                clipped += 1
    return clipped
