"""How far a function looks, found by trying: a piece with a margin against the whole box.

              box: f(box) is the truth
    +----------------------------------+
    |        piece: core + margin      |
    |        +----------------+        |     f(piece) must be the truth in the core,
    |        |    +------+    |        |     bit for bit
    |        |    | core |<-->|        |
    |        |    +------+ reach       |
    |        +----------------+        |
    +----------------------------------+

Five cores are compared: small ones in two opposite corners, of which one is there in two sizes,
and two in the middle. Pieces in the corners end where the box ends, as blocks of a run end where
the volume does. Neither in the last corner nor in the middle do both begin at even numbers, so
that a function that goes by blocks of 2 or 4 shows. And in the corners nothing may change when
the voxels beyond a piece are replaced by lower and higher ones than there are: pieces that happen
to have the same maximum all agree, and so do those around which nothing is to be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.caller import Caller, learn
from volpatch.core.blending import BlendSpec, plain_number
from volpatch.core.box import Box
from volpatch.core.errors import FunctionError, GridError, SettingError
from volpatch.core.grid import PatchGrid
from volpatch.sampling.census import inside

Array = NDArray[Any]
Sizes = tuple[int, ...]
CORES = 5
CORNERS = (0, 1)  # the opposite ones
SHORTEST = 16  # voxels of an axis along which a few voxels of reach can be told apart
_SEE = "see `volpatch guide filters`"


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much two results differ.

    Attributes
    ----------
    voxels, compared : int
        How many differ, of how many.
    largest : float or None
        The largest difference between numbers; None where a NaN is in all that differ.
    """

    voxels: int
    compared: int
    largest: float | None

    def __str__(self) -> str:
        if not self.voxels:
            return f"none of {self.compared:,} voxels here, but where lower or higher ones are near"
        by = "a NaN" if self.largest is None else f"{self.largest:.6g} at most"
        return f"{self.voxels:,} of {self.compared:,} voxels, by {by}"


@dataclass(frozen=True, slots=True)
class FoundReach:
    """The smallest reach with which a function gives what it gives on the whole box.

    Attributes
    ----------
    sizes : tuple of int
        Voxels to each side, per axis.
    whole : tuple of bool
        Whether that is the whole axis, because no less is exact.
    less : Difference or None
        With one voxel less along every axis; None where there is nothing to take away.
    """

    sizes: Sizes
    whole: tuple[bool, ...]
    less: Difference | None


@dataclass(frozen=True, slots=True)
class Side:
    """One axis of the box.

    Attributes
    ----------
    size : int
        Voxels.
    whole : bool
        Whether these are all voxels of the volume along it.
    """

    size: int
    whole: bool

    @property
    def cores(self) -> list[tuple[int, int]]:
        """[start, stop) of each core."""
        n = self.size
        corner, small, large = max(1, n // 16), max(1, n // 4), max(1, 3 * n // 8 - 1)
        middle, other = (n - small) // 2, (n - large) // 2
        if (other - middle) % 2 == 0:
            other = min(other + 1, n - large)
        longer = corner + (n >= SHORTEST)
        starts = (0, n - corner, n - longer, middle, other)
        sizes = (corner, corner, longer, small, large)
        return [(a, a + size) for a, size in zip(starts, sizes, strict=True)]

    def piece(self, core: tuple[int, int], reach: int) -> tuple[int, int]:
        """[start, stop) of a core with its margins, which end where the box ends.

        What a function makes up beyond an end, it makes up for the box too.
        """
        if reach > self.most:
            return 0, self.size
        return max(0, core[0] - reach), min(self.size, core[1] + reach)

    @property
    def most(self) -> int:
        """The largest reach that can be told from the whole axis; -1 where none can.

        Where the volume goes on, margins in the middle end before the box does; where it does
        not, the corners tell, and no more than half an axis is of use.
        """
        _, _, longer, *centre = self.cores
        inner = min(min(start, self.size - stop) for start, stop in centre) - 1
        return min(longer[0] - 1, self.size // 2 if self.whole else inner)


def find_reach(
    function: Callable[[Array], Any],
    box: Array,
    whole: Sequence[bool],
    origin: Sequence[int] | None = None,
) -> FoundReach:
    """The smallest reach with which a function of pieces gives, bit for bit, that of the box.

    A larger one is taken to be exact where a smaller one is. What the voxels of the box do not
    show is not found, as where a median has equal voxels all around.

    Parameters
    ----------
    function : callable
        Of an array of any size; gives one as large, perhaps with channels before its axes.
    box : ndarray
        The voxels to try it on.
    whole : sequence of bool
        Per axis, whether the box has all voxels of the volume.
    origin : sequence of int, optional
        Where the box lies, for messages.

    Returns
    -------
    FoundReach

    Raises
    ------
    FunctionError
        The function fails, is not the same twice, gives another shape than it got, or looks
        farther than the box can show.
    GridError
        The box is too small.
    SettingError
        All voxels of the box are equal.
    """
    sides = [Side(n, all_of) for n, all_of in zip(box.shape, whole, strict=True)]
    most = most_shown(sides)
    _check_content(box)
    trial = _Trial(function, box, sides, tuple(origin or (0,) * box.ndim))
    found = smallest(lambda reach: trial.exact((reach,) * box.ndim), most)
    if found is None:
        raise FunctionError(
            f"{trial.name} looks farther than {most} voxels to a side, or at the whole volume: no "
            f"reach up to {most}, which is what a box of {box.shape} voxels can show, is exact; "
            f"blend its patches instead, or pass what it takes from all voxels, such as their "
            f"maximum, as a parameter ({_SEE})"
        )
    sizes = [found] * box.ndim
    for axis, side in enumerate(sides):
        known = found <= side.most

        def exact(reach: int, axis: int = axis) -> bool:
            return trial.exact((*sizes[:axis], reach, *sizes[axis + 1 :]))

        less = smallest(exact, found - 1 if known else side.most)
        if less is not None:
            sizes[axis] = less
        elif not known:
            sizes[axis] = side.size - 1
    all_of = [size > side.most for size, side in zip(sizes, sides, strict=True)]
    fewer = [s if every else max(0, s - 1) for s, every in zip(sizes, all_of, strict=True)]
    less_by = None if fewer == sizes else trial.difference(tuple(fewer))
    return FoundReach(tuple(sizes), tuple(all_of), less_by)


def most_shown(sides: Sequence[Side]) -> int:
    """The largest reach that a box can show.

    Raises
    ------
    GridError
        The box is too small.
    """
    shape = tuple(side.size for side in sides)
    cut = [side for side in sides if not side.whole]
    if max(shape) < SHORTEST or any(side.size < SHORTEST for side in cut):
        raise GridError(
            f"a box of {shape} voxels is too small to tell how far a function looks: at least "
            f"{SHORTEST} are needed along an axis, unless the volume itself is shorter there, and "
            f"along one axis in any case; choose a larger roi, or a larger volume"
        )
    return min(side.most for side in cut) if cut else max(side.most for side in sides)


def smallest(exact: Callable[[int], bool], most: int) -> int | None:
    """The smallest number from 0 to `most` that is exact, doubled up to and then bisected.

    >>> smallest(lambda n: n >= 11, 40), smallest(lambda n: n >= 41, 40)
    (11, None)
    """
    low, high = -1, 0
    while high <= most and not exact(high):
        low = high
        high = most if low < most < 2 * low else max(1, 2 * low)
    if high > most:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if exact(middle) else (middle, high)
    return high


class _Trial:
    """A function, a box, and what the function makes of it."""

    def __init__(
        self, function: Callable[[Array], Any], box: Array, sides: list[Side], origin: Sizes
    ) -> None:
        self._caller, self._box, self._sides, self._origin = Caller(function), box, sides, origin
        self._known: dict[Sizes, bool] = {}
        grid = PatchGrid(box.shape, box.shape, box.shape)
        self._spec = BlendSpec(grid, ("crop",) * box.ndim, box.dtype, box.dtype)
        self._outliers = _outliers(box)
        start = (0,) * box.ndim
        self.truth = self._call(box, start).copy()  # it may give the same buffer each time
        self._spec = learn(self._spec, self.truth[None], None)
        again = _difference(self.truth, self._call(box, start))
        if again.voxels:
            raise FunctionError(
                f"{self.name} gives another result for the same array when it is called again: in "
                f"{again}; have it draw no random numbers (or always the same) and keep nothing "
                f"from one call to the next, then try again"
            )

    @property
    def name(self) -> str:
        return self._caller.name

    def exact(self, reach: Sizes) -> bool:
        """Whether all cores are those of the box; the small ones are tried first."""
        if reach not in self._known:
            same = not any(self._compare(i, reach).voxels for i in range(CORES))
            self._known[reach] = same and not any(self._sees_beyond(i, reach) for i in CORNERS)
        return self._known[reach]

    def difference(self, reach: Sizes) -> Difference:
        """By how much all cores together differ from the box."""
        found = [self._compare(i, reach) for i in range(CORES)]
        return Difference(
            sum(one.voxels for one in found),
            sum(one.compared for one in found),
            max((one.largest for one in found if one.largest is not None), default=None),
        )

    def _core(self, number: int, reach: Sizes) -> tuple[Box, Box]:
        """A core, and its piece."""
        cores = [side.cores[number] for side in self._sides]
        trios = zip(self._sides, cores, reach, strict=True)
        return _box(cores), _box([side.piece(core, size) for side, core, size in trios])

    def _compare(self, number: int, reach: Sizes) -> Difference:
        core, piece = self._core(number, reach)
        return self._against_truth(core, self._call(self._box[piece.slices], piece.start), piece)

    def _sees_beyond(self, number: int, reach: Sizes) -> bool:
        """Whether a core in a corner changes when voxels beyond its piece are replaced."""
        core, piece = self._core(number, reach)
        wider = tuple(size + max(size, 8) for size in reach)
        around = self._core(number, wider)[1]
        inner = inside(piece, around)
        given = self._outliers[around.slices].copy()
        given[inner] = self._box[piece.slices]
        try:
            values = self._call(given, around.start)
        except FunctionError:  # it need not take what is no value of the volume
            return False
        return self._against_truth(core, values, around).voxels > 0

    def _against_truth(self, core: Box, values: Array, piece: Box) -> Difference:
        return _difference(_part(self.truth, core.slices), _part(values, inside(core, piece)))

    def _call(self, values: Array, start: Sizes) -> Array:
        """What the function gives for a part of the box, with channels where it has some."""
        shape = values.shape
        spec = replace(self._spec, grid=PatchGrid(shape, shape, shape))
        ends = zip(start, shape, self._origin, strict=True)
        place = _box([(first + at, first + at + size) for first, size, at in ends])
        given = np.array(values, order="C")  # it may write into what it gets
        try:
            result = self._caller(spec, given[None, None], lambda _: ((0,) * len(shape), place))
        except FunctionError as error:
            if error.__cause__ is not None:  # it raised
                raise
            raise FunctionError(
                f"{error}; a function with a reach gives a value for each voxel of an array of any "
                f"size: have it do so, or blend its patches without one ({_SEE})"
            ) from None
        found: Array = result[0]
        return found


def _box(spans: Sequence[tuple[int, int]]) -> Box:
    return Box(tuple(a for a, _ in spans), tuple(b for _, b in spans))


def _part(values: Array, slices: Sequence[slice]) -> Array:
    """Of the last axes; channels may come before them."""
    part: Array = values[(..., *slices)]  # type: ignore[arg-type]
    return part


def _outliers(box: Array) -> Array:
    """As large an array of values below and above all of the box, as far as its dtype has any."""
    if box.dtype.kind == "b":
        return ~box
    kind = np.finfo(box.dtype) if box.dtype.kind == "f" else np.iinfo(box.dtype)
    numbers = box[np.isfinite(box)]
    low, high = (plain_number(n) for n in (numbers.min(initial=0), numbers.max(initial=0)))
    span = high - low or 1
    changed = np.full_like(box, max(plain_number(kind.min), low - span))
    changed[..., ::2] = min(plain_number(kind.max), high + span)
    return changed


def _difference(one: Array, other: Array) -> Difference:
    """Bit for bit, but for NaNs, which are all alike."""
    differ = one != other
    apart = None
    if one.dtype.kind == "f":
        differ |= np.signbit(one) != np.signbit(other)
        differ &= ~(np.isnan(one) & np.isnan(other))
    if differ.any():
        with np.errstate(invalid="ignore"):
            gaps = np.abs(one[differ].astype(np.float64) - other[differ].astype(np.float64))
        apart = None if np.isnan(gaps).all() else float(np.nanmax(gaps))
    return Difference(int(np.count_nonzero(differ)), differ.size, apart)


def _check_content(box: Array) -> None:
    first = box.flat[0]
    if bool(((box == first) | ((box != box) & (first != first))).all()):
        raise SettingError(
            f"all {box.size:,} voxels of the box are {first}, so that nothing shows how far the "
            f"function looks; choose a part with something in it, with roi="
        )
