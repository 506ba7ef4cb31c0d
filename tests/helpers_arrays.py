"""Arrays that show what happens to them, and the function that does nothing."""

from __future__ import annotations

import numpy as np


def distinct(shape, dtype="float32", seed=0):
    """Values that tell every voxel from every other, none of them zero."""
    rng = np.random.default_rng(seed)
    n = int(np.prod(shape))
    if np.dtype(dtype).kind == "f":
        return (rng.permutation(n).reshape(shape) + 1.5).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(1, limits.max, shape, dtype=dtype, endpoint=True)


def identity(patch):
    return patch
