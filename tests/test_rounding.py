"""Values become whole numbers as NumPy's rounding and clipping say, and are counted."""

import numpy as np
import pytest

from volpatch.compute.rounding import round_to

ODD = (np.nan, np.inf, -np.inf, -0.5, 0.5, 1.5, 2.5, -1.5)


@pytest.mark.parametrize("floats", ["f2", "f4", "f8"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"])
def test_values_are_rounded_half_to_even_clipped_and_counted(dtype, floats):
    limits = np.iinfo(dtype)
    spread = min(float(limits.max), float(np.finfo(floats).max) / 8)
    values = np.random.default_rng(0).normal(0, spread, (3, 40, 50)).astype(floats)
    near = (limits.min - 0.5, limits.min - 0.6, limits.max + 0.4, limits.max + 0.5)
    with np.errstate(over="ignore"):
        odd = np.array([*ODD, *near], "f8").astype(floats)
    values[0, 0, : odd.size] = odd
    out = np.empty(values.shape, dtype)
    clipped = round_to(values, out)
    wanted = [
        [0, True]
        if np.isnan(v)
        else [limits.max, True]
        if v > limits.max
        else [limits.min, True]
        if v < limits.min
        else [int(v), False]
        for v in np.rint(values.astype("f8")).ravel().tolist()
    ]
    assert out.ravel().tolist() == [value for value, _ in wanted]
    assert clipped == sum(beyond for _, beyond in wanted)
