"""A half-open box of voxels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from volpatch.core.errors import GridError


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open box of voxels, `start` up to but not including `stop`, per axis.

    >>> Box((0, 4), (2, 8)).shape
    (2, 4)
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop) or any(
            a > b for a, b in zip(self.start, self.stop, strict=True)
        ):
            raise GridError(f"no box goes from {self.start} to {self.stop}")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def ndim(self) -> int:
        return len(self.start)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True)) + "]"
