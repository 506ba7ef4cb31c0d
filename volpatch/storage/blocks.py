"""Blocks of a lazy array: a few stored chunks each, so that one holds little and none is split."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCK_BYTES = 32 * 2**20


def block_shape(
    shape: Sequence[int],
    unit: Sequence[int],
    itemsize: int,
    growing: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Multiples of what is stored as one, of 32 MiB at most, as near to a cube as can be.

    A unit that is bigger than that stays one block: a part of it cannot be read alone.

    Parameters
    ----------
    growing : axes along which units may be joined; without, all.

    >>> block_shape((1000, 1000, 1000), (64, 64, 64), 2)
    (256, 256, 256)
    >>> block_shape((1000, 1000, 1000), (1, 1000, 1000), 2), block_shape((9, 9), (3, 9), 8)
    ((16, 1000, 1000), (9, 9))
    """
    blocks = [min(edge, size) for edge, size in zip(unit, shape, strict=True)]
    axes = range(len(blocks)) if growing is None else growing
    while True:
        left = [axis for axis in axes if blocks[axis] < shape[axis]]
        if not left or math.prod(blocks) * itemsize * 2 > BLOCK_BYTES:
            return tuple(blocks)
        axis = min(left, key=blocks.__getitem__)
        blocks[axis] = min(blocks[axis] * 2, shape[axis])
