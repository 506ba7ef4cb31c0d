"""A small number for each region, in the room that what was done takes."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from volpatch.core.numbers import Numbers

PAGE = 2**16
# regions of a run are done about in their order, by each of its processes
OPEN_PAGES = 16

Page = NDArray[np.uint8]


class RegionTable:
    """One byte for each region, 0 at first; a table of a billion regions begins with nothing.

    Bytes lie in pages. A page that no region has set is not there, and of those that are only the
    last few are open: the others are packed, which makes a page of equal states 100 bytes.

    Parameters
    ----------
    n : int
        Number of regions.
    states : int
        How many values there are.

    Examples
    --------
    >>> table = RegionTable(10**9, 3)
    >>> table[7], table[8] = 2, 1
    >>> table[7], table.tally, table.where(lambda states: states > 0)
    (2, [999999998, 1, 1], Numbers([range(7, 9)]))
    """

    def __init__(self, n: int, states: int) -> None:
        self._n = n
        self.tally = [n, *[0] * (states - 1)]
        self._open: OrderedDict[int, Page] = OrderedDict()
        self._packed: dict[int, bytes] = {}

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, region: int) -> int:
        page = self._page(region // PAGE)
        return 0 if page is None else int(page[region % PAGE])

    def __setitem__(self, region: int, state: int) -> None:
        number, place = divmod(region, PAGE)
        page = self._page(number)
        if page is None:
            page = self._keep(number, np.zeros(min(PAGE, self._n - number * PAGE), np.uint8))
        self.tally[int(page[place])] -= 1
        self.tally[state] += 1
        page[place] = state

    def _page(self, number: int) -> Page | None:
        if number in self._open:
            return self._open[number]
        if number not in self._packed:
            return None
        return self._keep(number, _unpacked(self._packed.pop(number)))

    def _keep(self, number: int, page: Page) -> Page:
        self._open[number] = page
        if len(self._open) > OPEN_PAGES:
            oldest, other = self._open.popitem(last=False)
            self._packed[oldest] = zlib.compress(other.tobytes(), 1)
        return page

    def _pages(self) -> Iterator[tuple[int, Page]]:
        """The pages that are there, with their first region."""
        for number in sorted([*self._open, *self._packed]):
            page = self._open.get(number)
            yield number * PAGE, _unpacked(self._packed[number]) if page is None else page

    def where(self, chosen: Callable[[Page], NDArray[np.bool_]]) -> Numbers:
        """The regions whose states are chosen."""
        untouched = bool(chosen(np.zeros(1, np.uint8))[0])

        def ranges() -> Iterator[range]:
            before = 0
            for first, page in self._pages():
                if untouched:
                    yield range(before, first)
                mask = np.concatenate(([False], chosen(page), [False]))
                edges = np.flatnonzero(mask[1:] != mask[:-1]) + first
                yield from map(range, edges[::2].tolist(), edges[1::2].tolist())
                before = first + len(page)
            if untouched:
                yield range(before, self._n)

        return Numbers(ranges())

    def count(self, numbers: range, chosen: Callable[[Page], NDArray[np.bool_]]) -> int:
        """How many of some regions (a range with a step above 0) have a state that is chosen."""
        untouched = bool(chosen(np.zeros(1, np.uint8))[0])
        total = len(numbers) if untouched else 0
        for first, page in self._pages():
            begin = max(numbers.start, first)
            begin += (numbers.start - begin) % numbers.step
            mine = page[begin - first : max(0, numbers.stop - first) : numbers.step]
            total += int(np.count_nonzero(chosen(mine))) - untouched * len(mine)
        return total


def table_bytes(n: int, *, mixed: bool) -> int:
    """About the most bytes that a table of `n` regions comes to hold.

    Parameters
    ----------
    mixed : bool
        Whether neighbours may end in different states, in any order; else a page of those that
        are done is packed to less than a hundredth.
    """
    return min(n, OPEN_PAGES * PAGE) + n // (3 if mixed else 64)


def _unpacked(packed: bytes) -> Page:
    return np.frombuffer(bytearray(zlib.decompress(packed)), np.uint8)
