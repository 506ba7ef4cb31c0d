"""Rising whole numbers, kept as ranges."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import overload


class Numbers(Sequence[int]):
    """Rising whole numbers in the room that their gaps take.

    Parameters
    ----------
    ranges : iterable of range
        Rising, of step 1; those that touch become one.

    Examples
    --------
    >>> numbers = Numbers([range(0, 3), range(3, 5), range(9, 10**9)])
    >>> len(numbers), numbers[5], numbers.ranges
    (999999996, 9, [range(0, 5), range(9, 1000000000)])
    """

    def __init__(self, ranges: Iterable[range]) -> None:
        self.ranges: list[range] = []
        for one in ranges:
            if self.ranges and self.ranges[-1].stop == one.start:
                self.ranges[-1] = range(self.ranges[-1].start, one.stop)
            elif one:
                self.ranges.append(one)
        self._ends = list(itertools.accumulate(map(len, self.ranges)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[int]:
        return itertools.chain.from_iterable(self.ranges)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return [self[i] for i in places]
        at = bisect.bisect_right(self._ends, places)
        return self.ranges[at][places - (self._ends[at - 1] if at else 0)]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Numbers):
            return self.ranges == other.ranges
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Numbers({self.ranges})"
