"""Where patches lie: boxes, the patches of one axis, and their product over all axes.

Only integers live here; nothing knows about data, arrays or stores. A grid is a
product of axes, so everything (starts, look-ups, counts) is answered per axis in
closed form and a grid of 10^15 patches costs as much as one of ten.

    size 11, patch 4, stride 3                edge="shift": the last one is pulled back
    |-------------------|                     edge="pad":   the last one hangs over the end
    0123                                      edge="drop":  what does not fit is left out
       3456
          6789
           789T                               starts 0 3 6 7
"""

from __future__ import annotations

import bisect
import functools
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any, Generic, TypeVar, overload

from volpatch.core import tables
from volpatch.core.box import Box
from volpatch.core.errors import GridError

EDGES = ("shift", "pad", "drop")
REACH = "reach"  # an edge that no user asks for: see `reach_grid`
PAD_MODES = ("reflect", "symmetric", "edge", "constant")
DEFAULT_OVERLAP = "50%"
AXIS_NAMES = "zyx"

MOST_VOXELS = 2**62  # along one axis: starts and stops are counted in 64 bits

_GRID_FIELDS = ("shape", "patch", "stride", "edge", "offset")

T = TypeVar("T")
Overlap = int | float | str


def axis_name(axis: int, ndim: int) -> str:
    """Name of an axis for messages: z, y, x for the last three, numbers before them.

    >>> [axis_name(i, 4) for i in range(4)]
    ['axis 0', 'z', 'y', 'x']
    """
    from_end = ndim - axis
    return AXIS_NAMES[-from_end] if from_end <= len(AXIS_NAMES) else f"axis {axis}"


def whole_number(value: object, what: str) -> int:
    """`value` as an int; bools and floats are refused, because 0.5 and True are slips."""
    if isinstance(value, bool):
        raise GridError(f"{what} must be a whole number of voxels, got {value!r}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise GridError(f"{what} must be a whole number of voxels, got {value!r}") from None
    if abs(number) > MOST_VOXELS:
        raise GridError(f"{what} is beyond what any volume has along an axis: {number:.3e} voxels")
    return number


def per_axis(value: Any, ndim: int, what: str) -> tuple[Any, ...]:
    """One value per axis, from a scalar or anything with as many values as there are axes."""
    if isinstance(value, str | Mapping) or not hasattr(value, "__len__"):
        return (value,) * ndim
    values = tuple(value)
    if len(values) != ndim:
        raise GridError(
            f"{what} has {len(values)} values, {values}, but there are {ndim} axes; "
            f"give one value, or one per axis"
        )
    return values


def stride_from_overlap(patch: int, overlap: Overlap, axis: str) -> int:
    """Stride of patches of size `patch` that share `overlap` with their neighbour.

    An int is voxels; a float below 1, or text such as "50%", is a fraction of the
    patch, in decimal arithmetic with halves rounded up: 7 % of 100 is 7, not 7.0000001.

    >>> stride_from_overlap(100, 0.07, "x"), stride_from_overlap(3, "50%", "x")
    (93, 1)
    """
    if isinstance(overlap, str) and re.fullmatch(r"[+-]?\d+", overlap.strip()):
        overlap = int(overlap)
    if not isinstance(overlap, str | float) or isinstance(overlap, bool):
        voxels = whole_number(overlap, f"overlap on {axis}")
        if not 0 <= voxels < patch:
            raise GridError(
                f"overlap {voxels} on {axis} is outside 0 to {patch - 1} for patch {patch}; "
                f"patches must move by at least one voxel"
            )
        return patch - voxels
    fraction = _fraction(overlap, axis)
    if not 0 <= fraction < 1:
        raise GridError(
            f"overlap {overlap} on {axis} must be at least 0 and less than 1 (100%) as a part of "
            f"the patch; whole voxels are written as an int, such as 32"
        )
    shared = int((patch * fraction).quantize(Decimal(1), rounding=ROUND_HALF_UP))
    return max(1, patch - shared)


def _fraction(overlap: str | float, axis: str) -> Decimal:
    text = str(overlap).strip()
    try:
        value = Decimal(text[:-1]) / 100 if text.endswith("%") else Decimal(text)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite():
        raise GridError(
            f"overlap {overlap!r} on {axis} is neither voxels (32) nor a part ('50%', 0.5)"
        )
    return value


class Listing(Sequence[T], Generic[T]):
    """A sequence computed on demand: as long as the grid, as small as a function."""

    __slots__ = ("_length", "_make")

    def __init__(self, length: int, make: Callable[[int], T]) -> None:
        self._length = length
        self._make = make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Listing[T]: ...
    def __getitem__(self, index: int | slice) -> T | Listing[T]:
        if isinstance(index, slice):
            chosen = range(self._length)[index]
            return Listing(len(chosen), lambda i: self._make(chosen[i]))
        return self._make(range(self._length)[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(repr(self[i]) for i in range(min(4, self._length)))
        return f"<{self._length} items: {shown}{', …' if self._length > 4 else ''}>"


@dataclass(frozen=True, slots=True)
class AxisGrid:
    """Patch positions along one axis, in voxels.

    >>> AxisGrid(size=11, patch=4, stride=3).starts
    (0, 3, 6, 7)
    >>> AxisGrid(size=11, patch=4, stride=3, edge="drop").starts
    (0, 3, 6)

    With edge="reach", the parts that patches own are blocks of `stride` voxels from 0 on, each
    with a margin of (patch - stride) / 2 around it. At the axis' ends a patch lies within all the
    same, with more of a margin on its other side. A rest no longer than a margin belongs to the
    last block.

    >>> axis = AxisGrid(size=50, patch=20, stride=16, edge="reach")
    >>> axis.starts, [axis.own(i) for i in range(axis.count)]
    ((0, 14, 30), [(0, 16), (16, 32), (32, 50)])
    """

    size: int
    patch: int
    stride: int
    edge: str = "shift"
    offset: int = 0
    name: str = field(default="axis", compare=False, repr=False)

    def __post_init__(self) -> None:
        for what in ("size", "patch", "stride", "offset"):
            value = whole_number(getattr(self, what), f"{what} on {self.name}")
            object.__setattr__(self, what, value)
            if value < (0 if what == "offset" else 1):
                least = "not be negative" if what == "offset" else "be at least 1"
                raise GridError(f"{what} on {self.name} must {least}, got {value}")
        if self.edge not in (*EDGES, REACH):
            raise GridError(f"edge must be one of {', '.join(EDGES)}; got {self.edge!r}")
        if self.edge == REACH:
            self._check_reach()
        if self.edge == "shift" and self.offset + self.patch > self.size:
            raise GridError(self._too_big())
        if self.offset >= self.size:
            raise GridError(
                f"offset {self.offset} on {self.name} lies beyond its {self.size} voxels"
            )

    def _check_reach(self) -> None:
        twice = self.patch - self.stride
        blocks = twice % 2 == 0 and 0 <= twice < 2 * self.stride and self.patch < self.size
        if self.offset or not (blocks or self.patch == self.size):
            raise GridError(
                f"blocks of {self.stride} on {self.name} with their margins cannot be patches of "
                f"{self.patch}: a margin is shorter than a block, and a patch than the axis, or "
                f"one patch is all of it"
            )

    def _too_big(self) -> str:
        after = f" after an offset of {self.offset}" if self.offset else ""
        room = self.size - self.offset
        fit = f"choose a patch from 1 to {room}" if room > 0 else "choose a smaller offset"
        return (
            f"patch {self.patch} on {self.name} does not fit its {self.size} voxels{after}; "
            f"{fit}, or edge='pad'"
        )

    @property
    def count(self) -> int:
        """Number of patches."""
        room = self.size - self.offset - self.patch
        if self.edge == REACH:
            return -(-(self.size - self._margin) // self.stride) if room else 1
        if self.edge == "drop":
            return room // self.stride + 1 if room >= 0 else 0
        count = max(0, -(-room // self.stride)) + 1
        # one that is pulled back is there also where its regular start would lie beyond the end
        return count if self.edge == "shift" else min(count, self._inside)

    @property
    def _margin(self) -> int:
        """Around a block, where edge="reach"."""
        return (self.patch - self.stride) // 2

    @property
    def _inside(self) -> int:
        """Number of regular starts that lie inside of the axis."""
        return -(-(self.size - self.offset) // self.stride)

    def start(self, number: int) -> int:
        """First voxel of patch `number` (0 <= number < count)."""
        if self.edge == REACH:
            return max(0, min(number * self.stride - self._margin, self.size - self.patch))
        regular = self.offset + number * self.stride
        return min(regular, self.size - self.patch) if self.edge == "shift" else regular

    def span(self, number: int) -> tuple[int, int]:
        """Voxels [start, stop) of patch `number`; with edge="pad" it may hang over."""
        start = self.start(number)
        return start, start + self.patch

    @property
    def starts(self) -> tuple[int, ...]:
        """First voxels of all patches, strictly increasing."""
        return tuple(self.start(i) for i in range(self.count))

    @property
    def padded(self) -> int:
        """Length of the axis with what the last patch hangs over."""
        return max(self.size, self.start(self.count - 1) + self.patch if self.count else 0)

    @property
    def regular(self) -> bool:
        """Whether every start is a whole number of strides after the first."""
        if self.edge == REACH:
            return self.count < 2
        return self.count < 2 or self.start(self.count - 1) == (
            self.offset + (self.count - 1) * self.stride
        )

    def touching(self, start: int, stop: int) -> range:
        """Numbers of the patches that share a voxel with [start, stop). O(1)."""
        if stop <= start:
            return range(0)
        count = self.count
        # patch i is there when start(i) > start - patch and start(i) < stop
        first = self._starting_at_or_after(start - self.patch + 1, count)
        last = self._starting_at_or_after(stop, count)
        return range(first, last)

    def _starting_at_or_after(self, voxel: int, count: int) -> int:
        """Number of the first patch whose start is at `voxel` or later; `count` if none."""
        first = -self._margin if self.edge == REACH and voxel > 0 else self.offset
        regular = max(0, -(-(voxel - first) // self.stride))
        if regular >= count:
            last_is_late = count > 0 and self.start(count - 1) >= voxel
            return count - 1 if last_is_late else count
        if regular == count - 1 and self.start(regular) < voxel:
            return count
        return regular

    def own(self, number: int) -> tuple[int, int]:
        """Voxels [start, stop) for which this patch's centre is the nearest.

        Ties go to the earlier patch; the outermost patches keep their margins. Together
        the own parts tile whatever the patches cover.
        """
        start = self.start(number)
        stop = start + self.patch
        lo = self._border(number - 1) if number > 0 else start
        hi = self._border(number) if number + 1 < self.count else stop
        return max(start, lo), min(stop, hi)

    @property
    def most_owned(self) -> int:
        """Length of the longest own part."""
        few = {*range(min(2, self.count)), *range(max(0, self.count - 2), self.count)}
        return max((b - a for a, b in map(self.own, few)), default=0)

    def _border(self, number: int) -> int:
        """First voxel nearer to the centre of patch `number` + 1 than to that of `number`."""
        if self.edge == REACH:
            return (number + 1) * self.stride
        return (self.start(number) + self.start(number + 1) + self.patch + 1) // 2

    def owning(self, start: int, stop: int) -> range:
        """Numbers of the patches whose own part shares a voxel with [start, stop)."""
        near = self.touching(start, stop)
        # own parts follow one another, so both of their ends rise with the number
        first = bisect.bisect_right(near, start, key=lambda i: self.own(i)[1])
        last = bisect.bisect_left(near, stop, key=lambda i: self.own(i)[0])
        return near[first:last]

    @property
    def most_visits(self) -> int:
        """Largest number of patches that share one voxel."""
        return _most_visits(self)

    def _count_most_visits(self) -> int:
        count = self.count
        deep = -(-self.patch // self.stride) + 1
        # visits only rise at a start: one from the regular middle and all near the end
        near_end = range(max(0, count - deep), count)
        candidates = {min(deep, count - 1), *near_end} if count else set()
        if self.edge == REACH:  # the first patch begins late
            candidates |= set(range(min(deep, count)))
        return max((self._visits(self.start(i)) for i in candidates), default=0)

    def _visits(self, voxel: int) -> int:
        return len(self.touching(voxel, voxel + 1))

    def planes_held(self, layer: int) -> int:
        """Planes that hold any one patch in whole layers, layers being aligned to voxel 0.

        >>> AxisGrid(size=512, patch=64, stride=32).planes_held(16)
        80
        """
        return layer * (-(-(self.patch - 1) // layer) + 1)

    @property
    def covered(self) -> int:
        """Number of voxels of the axis that at least one patch covers."""
        count = self.count
        if count == 0:
            return 0
        if self.stride <= self.patch:
            return min(self.size, self.start(count - 1) + self.patch) - self.offset
        last = self.start(count - 1)
        before = (count - 1) * self.patch
        overlap = max(0, self.start(count - 2) + self.patch - last) if count > 1 else 0
        return before - overlap + min(self.patch, self.size - last)


@functools.lru_cache(maxsize=1024)
def _most_visits(axis: AxisGrid) -> int:
    return axis._count_most_visits()


@dataclass(frozen=True, slots=True)
class PatchGrid(Sequence[Box]):
    """All patch positions over a volume. Knows no data; costs O(axes) memory.

    Parameters
    ----------
    shape : sequence of int
        Size of the volume per axis, in voxels, (z, y, x) last.
    patch : int or sequence of int
        Size that is cut out, per axis.
    stride, overlap : optional, give at most one
        Distance between patch starts, or what neighbours share: voxels (32), or a part
        of the patch (0.5, "50%"). Without either, half of the patch is shared.
    edge : {"shift", "pad", "drop"}
        What happens where the stride does not divide: the last patch is pulled back to
        end at the border, hangs over it, or is left out.
    offset : int or sequence of int
        Start of the first patch.

    Raises
    ------
    GridError
        A size, stride, overlap or edge that cannot be; the message names the axis.

    Examples
    --------
    >>> grid = PatchGrid((110, 512, 512), 64, overlap="50%")
    >>> len(grid), grid.lattice, grid.axes[0].starts
    (675, (3, 15, 15), (0, 32, 46))
    >>> grid[0].shape, grid.origins[-1], grid.centers[0]
    ((64, 64, 64), (46, 448, 448), (31.5, 31.5, 31.5))
    """

    shape: tuple[int, ...]
    patch: tuple[int, ...]
    stride: tuple[int, ...]
    edge: tuple[str, ...]
    offset: tuple[int, ...]
    axes: tuple[AxisGrid, ...] = field(compare=False, repr=False)

    def __init__(
        self,
        shape: int | Sequence[int],
        patch: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        *,
        overlap: Overlap | Sequence[Overlap] | None = None,
        edge: str | Sequence[str] = "shift",
        offset: int | Sequence[int] = 0,
    ) -> None:
        sizes = tuple(shape) if hasattr(shape, "__iter__") else (shape,)
        n = len(sizes)
        if n == 0:
            raise GridError("a grid needs at least one axis, got shape ()")
        names = [axis_name(i, n) for i in range(n)]
        patches = [
            _positive(p, f"patch on {a}")
            for p, a in zip(per_axis(patch, n, "patch"), names, strict=True)
        ]
        axes = tuple(
            AxisGrid(*values)
            for values in zip(
                sizes,
                patches,
                _strides(patches, stride, overlap, names),
                per_axis(edge, n, "edge"),
                per_axis(offset, n, "offset"),
                names,
                strict=True,
            )
        )
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "shape", tuple(a.size for a in axes))
        for name in ("patch", "stride", "edge", "offset"):
            object.__setattr__(self, name, tuple(getattr(a, name) for a in axes))

    @property
    def ndim(self) -> int:
        return len(self.axes)

    @property
    def lattice(self) -> tuple[int, ...]:
        """Number of patches per axis."""
        return tuple(a.count for a in self.axes)

    @property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """First voxels of the patches, per axis."""
        return tuple(a.starts for a in self.axes)

    def __len__(self) -> int:
        return math.prod(self.lattice)

    def position(self, number: int) -> tuple[int, ...]:
        """Lattice position of patch `number` in raster order (the last axis runs fastest)."""
        number = range(len(self))[operator.index(number)]
        where: list[int] = []
        for count in reversed(self.lattice):
            number, i = divmod(number, count)
            where.append(i)
        return tuple(reversed(where))

    def origin(self, position: Sequence[int]) -> tuple[int, ...]:
        """First voxel, per axis, of the patch at a lattice position."""
        return tuple(a.start(i) for a, i in zip(self.axes, position, strict=True))

    def box(self, position: Sequence[int]) -> Box:
        """Box of the patch at a lattice position; with edge="pad" it may hang over."""
        start = self.origin(position)
        return Box(start, tuple(s + p for s, p in zip(start, self.patch, strict=True)))

    def __getitem__(self, index: Any) -> Any:
        """Box of a patch, by its number in raster order or by its lattice position."""
        if isinstance(index, tuple):
            if len(index) != self.ndim:
                raise IndexError(f"a position on this grid has {self.ndim} numbers, got {index}")
            return self.box([range(n)[i] for n, i in zip(self.lattice, index, strict=True)])
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            return Listing(len(chosen), lambda i: self[chosen[i]])
        return self.box(self.position(index))

    def __iter__(self) -> Iterator[Box]:
        return (self[i] for i in range(len(self)))

    @property
    def origins(self) -> Listing[tuple[int, ...]]:
        """First voxel of every patch in raster order, computed on demand."""
        return Listing(len(self), lambda i: self.origin(self.position(i)))

    @property
    def centers(self) -> Listing[tuple[float, ...]]:
        """Centre of every patch, start + (patch - 1) / 2, in voxel indices."""
        return Listing(len(self), lambda i: self._center(self.position(i)))

    def _center(self, position: Sequence[int]) -> tuple[float, ...]:
        origin = self.origin(position)
        return tuple(s + (p - 1) / 2 for s, p in zip(origin, self.patch, strict=True))

    def touching(self, box: Box) -> tuple[range, ...]:
        """Lattice numbers, per axis, of the patches that share a voxel with `box`."""
        if not isinstance(box, Box) or box.ndim != self.ndim:
            raise GridError(f"touching takes a Box of {self.ndim} axes, as the grid has; got {box}")
        return tuple(
            a.touching(lo, hi) for a, lo, hi in zip(self.axes, box.start, box.stop, strict=True)
        )

    @property
    def most_visits(self) -> int:
        """Largest number of patches that share one voxel."""
        return math.prod(a.most_visits for a in self.axes)

    @property
    def visits_per_voxel(self) -> float:
        """Patch voxels per volume voxel, far from the border: 8.0 at half overlap in 3-D."""
        return math.prod(a.patch / a.stride for a in self.axes)

    @property
    def uncovered(self) -> int:
        """Number of voxels that no patch covers."""
        return math.prod(self.shape) - math.prod(a.covered for a in self.axes)

    def _repr_html_(self) -> str:
        rows: list[tuple[str, object]] = [(name, getattr(self, name)) for name in _GRID_FIELDS]
        rows += [
            ("patches", f"{len(self):,} on a lattice of {self.lattice}"),
            ("visits per voxel", f"{self.visits_per_voxel:.1f}, at most {self.most_visits:,}"),
            ("without a patch", f"{self.uncovered:,} voxels"),
        ]
        return tables.html(type(self).__name__, rows)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers; `PatchGrid.from_json` gives the same grid back."""
        return {name: list(getattr(self, name)) for name in _GRID_FIELDS}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PatchGrid:
        """The grid that `to_json` told of.

        Raises
        ------
        GridError
            The data are no grid's.
        """
        if not isinstance(data, Mapping) or set(data) != set(_GRID_FIELDS):
            raise GridError(f"a grid is told by {', '.join(_GRID_FIELDS)}; got {data!r}")
        return cls(**data)


def _positive(value: object, what: str) -> int:
    number = whole_number(value, what)
    if number < 1:
        raise GridError(f"{what} must be at least 1, got {number}")
    return number


def _strides(
    patch: Sequence[int], stride: Any, overlap: Any, names: Sequence[str]
) -> tuple[int, ...]:
    """One stride per axis, from whichever of stride and overlap was given."""
    if stride is not None and overlap is not None:
        raise GridError(
            f"stride {stride} and overlap {overlap} say the same thing twice; give only one"
        )
    if stride is not None:
        values = per_axis(stride, len(patch), "stride")
        return tuple(_positive(s, f"stride on {a}") for s, a in zip(values, names, strict=True))
    shares = per_axis(DEFAULT_OVERLAP if overlap is None else overlap, len(patch), "overlap")
    return tuple(stride_from_overlap(p, o, a) for p, o, a in zip(patch, shares, names, strict=True))


def check_grid(grid: object) -> None:
    """Refuse what is no grid, such as a shape that was given instead."""
    if not isinstance(grid, PatchGrid):
        raise GridError(f"wanted a PatchGrid(shape, patch, ...), got {grid!r}")
