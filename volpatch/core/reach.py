"""Blocks with margins, for functions that look a known number of voxels to each side."""

from __future__ import annotations

import math
from collections.abc import Sequence

from volpatch.core.grid import REACH, PatchGrid

MOST_BLOCK = 2**22  # voxels of a block that is computed in one go, margins apart


def reach_grid(shape: Sequence[int], reach: Sequence[int], unit: Sequence[int]) -> PatchGrid:
    """Blocks with margins, for a function that looks `reach` voxels to each side.

    Each voxel is taken from the block that owns it, so the result is that of the function on the
    whole volume. Blocks are multiples of the units that the output is written in, or equal parts
    of them, so that regions share none; and so large that margins cost little.

    Parameters
    ----------
    shape, reach, unit : sequence of int
        Voxels per axis.

    >>> reach_grid((512, 512, 512), (8, 8, 8), (64, 128, 128)).stride
    (128, 128, 256)
    """
    blocks = [max(1, min(u, n)) for u, n in zip(unit, shape, strict=True)]
    for axis, (block, margin) in enumerate(zip(blocks, reach, strict=True)):
        # a margin is shorter than a block
        blocks[axis] = min(shape[axis], block * (margin // block + 1))

    def cost(axis: int) -> float:
        return (2 * reach[axis] + 1) / blocks[axis]

    while (
        halves := [i for i, b in enumerate(blocks) if b % 2 == 0 and b // 2 > 2 * reach[i]]
    ) and (math.prod(blocks) > MOST_BLOCK):
        blocks[min(halves, key=cost)] //= 2
    while (rest := [i for i, b in enumerate(blocks) if b < shape[i]]) and (
        2 * math.prod(blocks) <= MOST_BLOCK
    ):
        axis = max(rest, key=lambda i: (cost(i), i))
        blocks[axis] = min(shape[axis], 2 * blocks[axis])
    patch = [b + 2 * r for b, r in zip(blocks, reach, strict=True)]
    whole = [p >= n for p, n in zip(patch, shape, strict=True)]
    return PatchGrid(
        tuple(shape),
        tuple(n if all_of else p for n, p, all_of in zip(shape, patch, whole, strict=True)),
        tuple(n if all_of else b for n, b, all_of in zip(shape, blocks, whole, strict=True)),
        edge=REACH,
    )
