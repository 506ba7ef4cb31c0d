"""Where centres of patches may lie: clear of what is excluded, in a mask, class by class."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.skip import Cells as Axis
from volpatch.core.box import Box
from volpatch.core.errors import SettingError
from volpatch.planning.masks import Positions, axis_cells, places_of
from volpatch.sampling.views import View, check_listed
from volpatch.storage.adapt import as_volume

Array = NDArray[Any]
Ints = NDArray[np.int64]

CELLS = 2**24  # of a mask that are looked at together
BLOCK_CELLS_LOG2 = 18  # of a mask, in one count
MOST_BLOCKS = 2**20


class Room:
    """Where patches may lie: inside of the volume, and clear of what is excluded."""

    def __init__(self, shape: tuple[int, ...], patch: tuple[int, ...], exclude: Any) -> None:
        boxes = [exclude] if isinstance(exclude, Box) else list(exclude or ())
        for box in boxes:
            if not isinstance(box, Box) or box.ndim != len(shape):
                raise SettingError(
                    f"exclude takes boxes over the {len(shape)} patched axes, such as "
                    f"Box({(0,) * len(shape)}, {shape}); got {box!r}"
                )
        self.shape, self.patch = shape, patch
        self.half = np.array(patch, np.int64) // 2
        self.low = self.half  # of centres
        self.high = np.array(shape, np.int64) - np.array(patch, np.int64) + self.half + 1
        self.boxes = [box for box in boxes if box.size]

    def __str__(self) -> str:
        return str(Box(tuple(self.low.tolist()), tuple(self.high.tolist())))

    def held(self, origins: Ints) -> NDArray[np.bool_]:
        """Whether each patch touches an excluded box."""
        found = np.zeros(len(origins), bool)
        for box in self.boxes:
            near = (origins < box.stop) & (origins + self.patch > box.start)
            found |= near.all(axis=1)
        return found

    def closed(self) -> Iterator[tuple[Ints, Ints]]:
        """Centres [start, stop) of the patches that touch each excluded box."""
        for box in self.boxes:
            start, stop = np.array([box.start, box.stop], np.int64)
            yield start - np.array(self.patch, np.int64) + self.half + 1, stop + self.half


class Cells:
    """The cells into which a mask and labels divide the volume; both may be coarse.

    What lies outside of an array that has a place of its own is not admissible.

    Attributes
    ----------
    edges : per axis, first voxels of the cells, and the axis' end.
    widths : per axis, how many admissible centres lie in each cell.
    box : the cells that have any.
    """

    def __init__(self, room: Room, where: Marks | None, balance: Marks | None) -> None:
        self._room = room
        self.views = [None if marks is None else marks.view for marks in (where, balance)]
        self.edges: list[Ints] = []
        self._index: list[list[Ints]] = []
        self._outside: list[NDArray[np.bool_]] = []
        for axis, n in enumerate(room.shape):
            given = [marks for marks in (where, balance) if marks is not None]
            self.edges.append(np.unique(np.concatenate([m.edges(axis, n) for m in given])))
            first = self.edges[-1][:-1]
            self._outside.append(np.zeros(len(first), bool))
            self._index.append([])
            for marks in (where, balance):
                index = first * 0 if marks is None else marks.index(axis, n, first)
                if marks is not None:
                    self._outside[-1] |= (index < 0) | (index >= marks.view.shape[axis])
                    index = np.clip(index, 0, marks.view.shape[axis] - 1)
                self._index[-1].append(index)
        self.widths = [
            np.diff(np.clip(e, low, high))
            for e, low, high in zip(self.edges, room.low, room.high, strict=True)
        ]
        inner = [np.flatnonzero(w) for w in self.widths]
        self.box = Box(tuple(int(i[0]) for i in inner), tuple(int(i[-1]) + 1 for i in inner))

    def read(self, box: Box) -> tuple[Array, NDArray[np.bool_]]:
        """Class of each cell of a box, and whether centres may lie in it."""
        mask, labels = (self._values(i, box) for i in range(2))
        allowed = np.ones(box.shape, bool) if mask is None else mask != 0
        for axis, outside in enumerate(self._outside):
            part = slice(box.start[axis], box.stop[axis])
            allowed[(slice(None),) * axis + (outside[part],)] = False
        for start, stop in self._room.closed():  # what is closed in part is drawn again
            cells = [
                (np.searchsorted(e, a), np.searchsorted(e, b, "right") - 1)
                for e, a, b in zip(self.edges, start, stop, strict=True)
            ]
            here = zip(cells, box.start, strict=True)
            allowed[tuple(slice(max(0, a - o), max(0, b - o)) for (a, b), o in here)] = False
        if labels is None:
            return np.zeros(box.shape, np.uint8), allowed
        if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
            raise SettingError(
                f"balance has the value {labels.min()}, but classes are numbers from 0; make "
                f"one of it, and take it out with where= if it is not to be drawn"
            )
        return labels.view(np.uint8) if labels.dtype.kind == "b" else labels, allowed

    def _values(self, which: int, box: Box) -> Array | None:
        """One array's values in the cells of a box."""
        view = self.views[which]
        if view is None:
            return None
        parts = [
            index[which][a:b] for index, a, b in zip(self._index, box.start, box.stop, strict=True)
        ]
        values = np.empty([int(p[-1] - p[0]) + 1 for p in parts], view.dtype)
        view.fill(tuple(slice(int(p[0]), int(p[-1]) + 1) for p in parts), values)
        for axis, part in enumerate(parts):
            if len(part) != values.shape[axis]:
                values = np.take(values, part - part[0], axis)
        return values

    def weights(self, box: Box) -> Ints:
        """Admissible centres in each cell of a box."""
        weights = np.ones((), np.int64)
        for width, a, b in zip(self.widths, box.start, box.stop, strict=True):
            weights = np.multiply.outer(weights, width[a:b])
        return weights

    def centre(self, cell: Sequence[int], rank: int) -> list[int]:
        """The centre number `rank` of a cell, in raster order."""
        sizes = [int(w[c]) for w, c in zip(self.widths, cell, strict=True)]
        inside = np.unravel_index(rank, sizes)
        low = (
            max(int(e[c]), int(lo))
            for e, c, lo in zip(self.edges, cell, self._room.low, strict=True)
        )
        return [a + int(i) for a, i in zip(low, inside, strict=True)]


@dataclass(frozen=True)
class Marks:
    """A mask or labels, and how their cells lie along the patched axes.

    Without a place of its own, voxel v lies in cell v * cells // voxels.
    """

    view: View
    cells: tuple[Axis | None, ...]

    @classmethod
    def of(
        cls,
        marks: Any,
        what: str,
        dims: Sequence[str],
        shape: Sequence[int],
        places: Sequence[Positions | None],
    ) -> Marks:
        """Marks on the grid of the patched axes `dims`, or coarser."""
        given = as_volume(marks, what)
        view = View.of(given, what)
        extra = len(view.shape) - len(shape)
        counts = view.shape[max(0, extra) :]
        own: Sequence[Positions | None] = (None,) * len(shape)
        if given.named and extra >= 0:
            own = places_of(given, view.dims[extra:])
        longer = any(
            m > n and (place is None or not place.certain)
            for m, n, place in zip(counts, shape, own, strict=False)
        )
        if extra < 0 or longer or math.prod(view.shape[:extra]) != 1:
            raise SettingError(
                f"{what} has shape {view.shape}, but the patched axes have {tuple(shape)} voxels; "
                f"it must have as many axes, each as long or shorter (a coarser grid)"
            )
        for count in counts:
            check_listed(count, f"cells of {what} along one axis")
        if what == "balance" and view.dtype.kind not in "biu":
            raise SettingError(f"balance must hold whole numbers, the classes; got {view.dtype}")
        cells = tuple(
            None
            if mine is None or not mine.certain
            else _one_way(what, dim, axis_cells(dim, n, place, m, mine, None, what))
            for dim, n, place, m, mine in zip(dims, shape, places, counts, own, strict=True)
        )

        def fill(selection: tuple[slice, ...], out: Array) -> None:
            view.fill((slice(0, 1),) * extra + selection, out[(None,) * extra])
            if what == "where" and out.dtype.kind == "f" and np.isnan(out).any():
                raise SettingError("where holds NaN, which is neither yes nor no; fill it first")

        borders = None if view.borders is None else view.borders[extra:]
        return cls(View(view.dims[extra:], counts, view.dtype, view.named, borders, fill), cells)

    def edges(self, axis: int, size: int) -> Ints:
        """First voxels of the cells inside of an axis, and its ends."""
        numbers = np.arange(self.view.shape[axis] + 1, dtype=np.int64)
        cells = self.cells[axis]
        if cells is None:
            return -(-numbers * size // self.view.shape[axis])
        ends: Ints = np.append(cells.start + cells.smallest * numbers, [0, size])
        return ends.clip(0, size)

    def index(self, axis: int, size: int, voxels: Ints) -> Ints:
        """Cells that voxels lie in; some that there are not, outside of a place."""
        cells = self.cells[axis]
        if cells is None:
            return voxels * self.view.shape[axis] // size
        return (voxels - cells.start) // cells.smallest


def _one_way(what: str, dim: str, ways: Sequence[Axis]) -> Axis | None:
    """How cells lie, where that is certain: there is no safe side for a patch that is drawn."""
    if ways[0].rest:
        return None  # the place says no more than that they begin where the volume does
    if len(ways) > 1:
        raise SettingError(
            f"the cells of {what} on {dim} may be {' or '.join(map(str, ways))} voxels long; give "
            f"it on the volume's grid, or with an origin of its own"
        )
    return ways[0]


class Census:
    """How many admissible centres of each class lie in each block of cells.

    Blocks depend on the shape alone, so the centre with a given number is the same one
    however mask and labels are stored. Reading goes by steps: several blocks, whole chunks.
    """

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        shape = [len(w) for w in cells.widths]
        self.edge = 2 ** (BLOCK_CELLS_LOG2 // len(shape))
        while math.prod(-(-n // self.edge) for n in shape) > MOST_BLOCKS:
            self.edge *= 2
        self.lattice = tuple(-(-n // self.edge) for n in shape)
        self.step = self._steps(shape)
        found: dict[int, list[tuple[int, int]]] = {}
        low, high = cells.box.start, cells.box.stop
        for corner in itertools.product(
            *(range(a // s * s, b, s) for a, b, s in zip(low, high, self.step, strict=True))
        ):
            self._count(self._within(corner, self.step), found)
        if not found:
            raise SettingError(
                f"no patch of {cells._room.patch} has its centre where it may be: of the centres "
                f"{cells._room} none is in the mask and clear of the excluded boxes; "
                f"choose a smaller patch, another mask or fewer boxes"
            )
        self.classes = sorted(found)
        self.counts = {label: np.array(sorted(pairs)).T for label, pairs in found.items()}

    def _steps(self, shape: Sequence[int]) -> list[int]:
        """Cells that are read together: blocks and chunks in whole, up to CELLS."""
        edge, steps = self.edge, []
        for axis in range(len(shape)):
            borders = [v.borders[axis] for v in self.cells.views if v is not None and v.borders]
            chunk = math.lcm(edge, *(int(np.diff(b).max()) for b in borders))
            steps.append(chunk if chunk <= 2**10 else edge)
        while math.prod(map(min, steps, shape)) > CELLS and max(steps) > edge:
            largest = steps.index(max(steps))
            steps[largest] = -(-steps[largest] // (2 * edge)) * edge
        while growing := [i for i, n in enumerate(shape) if steps[i] < n]:
            axis = min(growing, key=steps.__getitem__)
            wider = [2 * s if i == axis else s for i, s in enumerate(steps)]
            if math.prod(map(min, wider, shape)) > CELLS:
                break
            steps = wider
        return steps

    def _within(self, corner: Sequence[int], size: Sequence[int]) -> Box:
        """The part of a box of cells that has admissible centres."""
        box = self.cells.box
        start = tuple(max(a, c) for a, c in zip(box.start, corner, strict=True))
        stop = tuple(min(b, c + s) for b, c, s in zip(box.stop, corner, size, strict=True))
        return Box(start, stop)

    def _blocks(self, box: Box) -> Iterator[tuple[int, Box]]:
        e = self.edge
        spans = (range(a // e, -(-b // e)) for a, b in zip(box.start, box.stop, strict=True))
        for block in itertools.product(*spans):
            number = int(np.ravel_multi_index(block, self.lattice))
            yield number, self._within([b * e for b in block], [e] * len(block))

    def _count(self, box: Box, found: dict[int, list[tuple[int, int]]]) -> None:
        labels, allowed = self.cells.read(box)
        for number, block in self._blocks(box):
            part = inside(block, box)
            chosen = allowed[part]
            weights, values = self.cells.weights(block)[chosen], labels[part][chosen]
            for label, count in _tally(values, weights):
                found.setdefault(label, []).append((number, count))

    def draw(self, slots: Ints, rng: np.random.Generator) -> Ints:
        """A random centre for each slot, of the class whose turn it is."""
        turns = slots % len(self.classes)
        wanted: dict[tuple[int, ...], dict[tuple[int, int], list[tuple[int, int]]]] = {}
        for turn in np.unique(turns).tolist():
            label = self.classes[turn]
            blocks, counts = self.counts[label]
            ends = np.cumsum(counts)
            ranks = rng.integers(0, ends[-1], np.count_nonzero(turns == turn))
            which = np.searchsorted(ends, ranks, "right")
            ranks -= (ends - counts)[which]
            for slot, k, rank in zip(np.flatnonzero(turns == turn), which, ranks, strict=True):
                block = int(blocks[k])
                at = np.array(np.unravel_index(block, self.lattice)) * self.edge // self.step
                here = wanted.setdefault(tuple(at.tolist()), {})
                here.setdefault((block, label), []).append((int(slot), int(rank)))
        centres = np.empty((len(slots), len(self.lattice)), np.int64)
        for _, here in sorted(wanted.items()):
            self._find(here, centres)
        return centres

    def _find(self, wanted: dict[tuple[int, int], list[tuple[int, int]]], centres: Ints) -> None:
        """The centres with given ranks in blocks that are read together."""
        places = {}
        for block, _ in wanted:
            at = np.array(np.unravel_index(block, self.lattice)) * self.edge
            places[block] = self._within(at.tolist(), [self.edge] * len(at))
        box = Box(
            tuple(map(min, zip(*(p.start for p in places.values()), strict=True))),
            tuple(map(max, zip(*(p.stop for p in places.values()), strict=True))),
        )
        labels, allowed = self.cells.read(box)
        for (block, label), slots in wanted.items():
            place, part = places[block], inside(places[block], box)
            hits = np.argwhere(allowed[part] & (labels[part] == label))
            weights = self.cells.weights(place)[tuple(hits.T)]
            ends = np.cumsum(weights)
            for slot, rank in slots:
                k = int(np.searchsorted(ends, rank, "right"))
                cell = (hits[k] + place.start).tolist()
                centres[slot] = self.cells.centre(cell, rank - int(ends[k] - weights[k]))


def _tally(values: Array, weights: Ints) -> list[tuple[int, int]]:
    """Each value that is there, and the sum of its weights (exact below 2**53)."""
    if not values.size:
        return []
    if values.max() < 2**16:
        classes, where = np.arange(int(values.max()) + 1), values.astype(np.intp)
    else:
        classes, where = np.unique(values, return_inverse=True)
    sums = np.bincount(where, weights)
    return [(int(v), int(w)) for v, w in zip(classes, sums, strict=True) if w]


def inside(inner: Box, outer: Box) -> tuple[slice, ...]:
    """Slices of `inner` in an array that holds `outer`."""
    return tuple(
        slice(a - o, b - o) for a, b, o in zip(inner.start, inner.stop, outer.start, strict=True)
    )
