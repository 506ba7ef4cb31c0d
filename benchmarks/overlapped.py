"""The blend that people write for `map_overlap`: patches inside a block with a halo."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.setting import Setting

Array = NDArray[Any]


@dataclass(frozen=True)
class BlendBlock:
    """Blends all patches that touch a block, in the block with its halo.

    The halo is patch - stride where the stride divides the block; where it does not, or
    where the last patch was pulled back, patches begin further outside.
    """

    setting: Setting
    shape: tuple[int, ...]
    block: tuple[int, ...]
    func: Callable[[Array], Array]
    dtype: str

    def bounds(self, axis: int, number: int) -> tuple[int, int]:
        start = number * self.block[axis]
        return start, min(start + self.block[axis], self.shape[axis])

    def starts(self, axis: int, number: int) -> list[int]:
        """Of the patches that touch a block."""
        start, stop = self.bounds(axis, number)
        patch = self.setting.patch[axis]
        return [a for a in self.setting.starts(self.shape[axis], axis) if start - patch < a < stop]

    @property
    def depth(self) -> tuple[int, ...]:
        """Voxels of halo that hold every patch of every block."""
        depths = []
        for axis, (size, block) in enumerate(zip(self.shape, self.block, strict=True)):
            reach = [0]
            for number in range(-(-size // block)):
                start, stop = self.bounds(axis, number)
                touching = self.starts(axis, number)
                reach += [start - touching[0], touching[-1] + self.setting.patch[axis] - stop]
            depths.append(max(reach))
        return tuple(depths)

    def __call__(self, halo: Array, block_id: tuple[int, ...] | None = None) -> Array:
        if block_id is None or halo.size == 0:
            return halo.astype(self.dtype)
        bounds = [self.bounds(axis, number) for axis, number in enumerate(block_id)]
        begin = [max(0, a - d) for (a, _), d in zip(bounds, self.depth, strict=True)]
        window = self.setting.hann()
        total, weight = np.zeros(halo.shape, np.float32), np.zeros(halo.shape, np.float32)
        for corner in itertools.product(*(self.starts(i, n) for i, n in enumerate(block_id))):
            box = tuple(
                slice(a - b, a - b + p)
                for a, b, p in zip(corner, begin, self.setting.patch, strict=True)
            )
            total[box] += window * self.func(halo[box])
            weight[box] += window
        inner = tuple(slice(a - b, z - b) for (a, z), b in zip(bounds, begin, strict=True))
        out = total[inner] / weight[inner]
        if np.issubdtype(np.dtype(self.dtype), np.integer):
            out = np.rint(out)
        return out.astype(self.dtype)
