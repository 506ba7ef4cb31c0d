"""How a volume is cut into patches, as every contender is told."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.task import CannotError

Array = NDArray[Any]


@dataclass(frozen=True)
class Setting:
    """Patches, their distances, and the threads a contender may use."""

    patch: tuple[int, ...]
    stride: tuple[int, ...]
    threads: int = 1

    @property
    def overlap(self) -> tuple[int, ...]:
        return tuple(p - s for p, s in zip(self.patch, self.stride, strict=True))

    def starts(self, size: int, axis: int) -> list[int]:
        """Where patches begin along an axis; the last is pulled back."""
        last = size - self.patch[axis]
        regular = list(range(0, last + 1, self.stride[axis]))
        return regular if regular[-1] == last else [*regular, last]

    def corners(self, shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        return itertools.product(*(self.starts(n, axis) for axis, n in enumerate(shape)))

    def boxes(self, shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
        for corner in self.corners(shape):
            yield tuple(slice(a, a + p) for a, p in zip(corner, self.patch, strict=True))

    def hann(self) -> Array:
        """A full window, not 0 anywhere."""
        out = np.ones((), np.float32)
        for n in self.patch:
            out = np.multiply.outer(out, np.hanning(n + 2)[1:-1].astype(np.float32))
        return out

    def one_size(self, name: str) -> tuple[int, int]:
        """Patch and stride of a library that knows cubes only."""
        if len(set(self.patch)) > 1:
            raise CannotError(f"cubes only ({name} takes one patch size)")
        return self.patch[0], self.stride[0]
