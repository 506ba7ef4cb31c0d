"""Blend patches over one region, and hand over the planes that are finished.

The accumulator is a ring of planes: it holds the planes that the current row of patches
reaches, and no others. Values are added in raster order of the patches, whatever the
region, so that no bit depends on it. Where patches were skipped, or NaNs left out, only
the voxels that such a hole touches are divided by the shares that came.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.buffers import PatchTables, Ring
from volpatch.compute.kernels import FAR, Sums, blend, touch
from volpatch.compute.rounding import round_to
from volpatch.core.blending import FINALIZE_PLANES, BlendSpec, Mode, is_numeric
from volpatch.core.box import Box
from volpatch.core.errors import FunctionError, blamed
from volpatch.core.grid import AxisGrid
from volpatch.core.window import counted

Array = NDArray[Any]
Finalize = Callable[[Array], Array]
PHASES = ("read", "cut", "function", "blend", "write")


class Clock:
    """Adds the time spent inside to one of some sums of seconds."""

    __slots__ = ("_begin", "_phase", "_seconds")

    def __init__(self, seconds: dict[str, float], phase: str) -> None:
        self._seconds, self._phase = seconds, phase

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._seconds[self._phase] += time.perf_counter() - self._begin


@dataclass(slots=True)
class Stats:
    """What a region did; sums over regions are made with `+=`."""

    patches: int = 0
    calls: int = 0
    clipped: int = 0
    voxels_read: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    def clock(self, phase: str) -> Clock:
        """Add the time spent inside to a phase."""
        return Clock(self.seconds, phase)

    def __iadd__(self, other: Stats) -> Stats:
        self.patches += other.patches
        self.calls += other.calls
        self.clipped += other.clipped
        self.voxels_read += other.voxels_read
        for phase, seconds in other.seconds.items():
            self.seconds[phase] += seconds
        return self


class Sink(Protocol):
    """Where finished planes go: an array in memory, or whole write units of a store."""

    def whole(self) -> Array | None:
        """(channels, *box), zeros, for all planes at once; None where they come one by one."""
        ...

    @property
    def takes_blocks(self) -> bool:
        """Whether `rows` gives all planes that a row of blocks owns, as often as asked."""
        ...

    def limit(self, plane: int) -> int:
        """End of the layer that `plane` lies in; rows are never asked beyond it."""
        ...

    def rows(self, start: int, stop: int) -> Array:
        """(channels, stop - start, *face) of the output dtype, to be filled in."""
        ...

    def done(self, stop: int) -> None:
        """All planes before `stop` have their final values."""
        ...


@dataclass(frozen=True)
class ArraySink:
    """Finished planes go into an array of the region's extent, (channels, *box.shape), of zeros."""

    array: Array
    box: Box

    takes_blocks = True

    def whole(self) -> Array | None:
        return self.array

    def limit(self, plane: int) -> int:
        return self.box.stop[0]

    def rows(self, start: int, stop: int) -> Array:
        first = self.box.start[0]
        return self.array[:, start - first : stop - first]

    def done(self, stop: int) -> None:
        """Nothing is left to do."""


class Blender:
    """The accumulator of one region. Patches come row by row, in raster order.

    Parameters
    ----------
    blending : complete, so that dtypes and channels are known.
    box : the region, in voxels of the patched axes.
    planes : of the ring; the patch's extent suffices where rows come in order.
    ordered : whether patches come in raster order.
    """

    def __init__(
        self,
        blending: BlendSpec,
        box: Box,
        tables: PatchTables,
        sink: Sink,
        *,
        finalize: Finalize | None = None,
        stats: Stats | None = None,
        planes: int | None = None,
        ordered: bool = True,
    ) -> None:
        self.blending, self.box, self.tables, self.sink = blending, box, tables, sink
        self.finalize, self.stats = finalize, stats if stats is not None else Stats()
        self.mode = blending.mode
        whole = self._whole()
        # values of blocks that own their voxels wait for no others: they are final at once
        self.placed = blending.by_blocks and finalize is None and sink.takes_blocks
        self.direct = self.placed or whole is not None
        if self.placed:
            ring = Ring.new(box, 0, blending.channels_out or 1, blending.accumulator)
        elif whole is None:
            planes = min(planes or blending.grid.patch[0], box.shape[0])
            ring = Ring.new(box, planes, blending.channels_out or 1, blending.accumulator, 0)
        else:
            face, channels = box.shape[1:], whole.shape[0]
            ring = Ring(whole.reshape(-1), box.start, box.shape[0], face, channels)
        self.sums = Sums.new(ring, self.mode, ordered=ordered)
        bounds = zip(blending.grid.axes[1:], box.start[1:], box.stop[1:], strict=True)
        self.covered = [covered(a, p, q) for a, p, q in bounds]  # of the face
        self.done = box.start[0]

    def _whole(self) -> Array | None:
        """The result itself where values can be added up in it: there is nothing to convert."""
        blending, whole = self.blending, self.sink.whole()
        plain = self.mode in (Mode.ADD, Mode.SELECT) and self.finalize is None
        if whole is None or not plain or not whole.flags.c_contiguous:
            return None
        return whole if whole.dtype == blending.accumulator else None

    def add(self, ids: NDArray[np.int64], values: Array) -> None:
        """Blend the values (B, [channels,] *patch), in C order, of the patches `ids`."""
        if self.blending.nan_policy == "raise" and values.dtype.kind == "f":
            self._refuse_nan(ids, values)
        if self.placed:
            self._place(ids, values)
        elif len(ids):
            blend(self.sums, self.tables, ids, values, self.mode, omit=self.blending.omits)

    def _place(self, ids: NDArray[np.int64], values: Array) -> None:
        """Round what each block owns to where it belongs."""
        tables, start = self.tables.arrays, self.box.start
        ndim = len(start)
        values = values.reshape(len(ids), -1, *self.blending.grid.patch)
        for number, value in zip(ids, values, strict=True):
            index = np.array(np.unravel_index(number, tables.lattice))[:ndim] + tables.first[:ndim]
            low, high, at = tables.lo[index], tables.hi[index], tables.starts[index]
            own = tuple(map(slice, low, high))
            (first, stop), *face = zip((at + low).tolist(), (at + high).tolist(), strict=True)
            there = tuple(slice(a - o, b - o) for (a, b), o in zip(face, start[1:], strict=True))
            out = self.sink.rows(first, stop)[(slice(None), slice(None), *there)]
            self.stats.clipped += round_to(value[(slice(None), *own)], out)

    def _refuse_nan(self, ids: NDArray[np.int64], values: Array) -> None:
        blending = self.blending
        ends = [(0, n) for n in blending.grid.patch]
        if blending.averages:  # where the window is 0 nothing counts
            ends = list(map(counted, blending.windows, blending.grid.patch))
        part: tuple[Any, ...] = (..., *(slice(*e) for e in ends))
        found = np.isnan(values[part])
        if not found.any():
            return
        bad = np.argwhere(found)[0]
        position = self.tables.position(int(ids[bad[0]]))
        box = blending.grid.box(position)
        inside = bad[len(bad) - box.ndim :]
        voxel = tuple(int(a + e + b) for a, (e, _), b in zip(box.start, ends, inside, strict=True))
        raise FunctionError(
            f"a NaN came back for patch {position} at {box}, at voxel {voxel}; "
            f"nan_policy='propagate' lets it pass, nan_policy='omit' leaves it out"
        )

    def skip(self, ids: NDArray[np.int64]) -> None:
        """Note that the patches `ids` are not there."""
        if len(ids) and self.mode is Mode.PRESENT:
            touch(self.sums, self.tables, ids)

    def first_plane(self, row: int) -> int:
        """First plane that patches of lattice row `row`, or of a later one, reach."""
        axis = self.blending.grid.axes[0]
        return axis.own(row)[0] if self.mode is Mode.SELECT else axis.start(row)

    def hand_over(self, upto: int) -> None:
        """Give the planes up to `upto` to the sink, and clear them for the next rows."""
        upto = min(upto, self.box.stop[0])
        while self.direct and self.done < upto:
            stop = min(upto, self.sink.limit(self.done))
            self._fill(self.sink.rows(self.done, stop), self.done, None)
            self.done = stop
            with self.stats.clock("write"):
                self.sink.done(stop)
        ring = self.sums.values
        while self.done < upto:
            planes = ring.planes if self.finalize is None else min(ring.planes, FINALIZE_PLANES)
            stop = min(upto, self.sink.limit(self.done), self.done + planes)
            with self.stats.clock("blend"):
                for start, piece in ring.runs(self.done, stop):
                    first = (start - ring.origin[0]) % ring.planes
                    at = (slice(None), slice(first, first + piece.shape[1]))
                    out = self.sink.rows(start, start + piece.shape[1])
                    bare = self._settled(piece, at)
                    self.stats.clipped += round_to(self._finalized(piece, start, bare), out)
                    piece[...] = 0
                    self._fill(out, start, bare)
            self.done = stop
            with self.stats.clock("write"):
                self.sink.done(stop)

    def _settled(self, piece: Array, at: tuple[slice, ...]) -> Array | None:
        """Divide where a hole was; gives the voxels without any value, clears the marks."""
        if self.mode in (Mode.ADD, Mode.SELECT):
            return None
        bare: Array
        shape = self.sums.values.array.shape
        if self.mode is Mode.NEAREST:
            nearest = self.sums.nearest.reshape(shape)[at]
            bare = nearest == FAR
            nearest[...] = FAR
            return bare
        marks = self.sums.touched.reshape(shape)[at]
        if self.mode is not Mode.PRESENT:
            bare = marks == 0
            marks[...] = 0
            return bare
        present = self.sums.present.reshape(shape)[at]
        hole = marks != 0
        bare = hole & (present == 0)
        if self.blending.averages:
            hole &= ~bare
            piece[hole] /= present[hole]
        present[...] = 0
        marks[...] = 0
        return bare

    def _finalized(self, piece: Array, start: int, bare: Array | None) -> Array:
        """What `finalize` makes of blended planes; it sees NaN where there is no value."""
        if self.finalize is None:
            return piece
        blending = self.blending
        given = piece.astype(blending.blended_dtype)
        if given.dtype.kind == "f":
            gaps = self._gaps(start, given.shape[1])
            if gaps is not None:
                given[:, gaps] = np.nan
            if bare is not None:
                given[bare] = np.nan
        block, channels = finalized(self.finalize, blending, given)
        if (block.dtype, channels) != (blending.final_dtype, blending.final_channels):
            raise FunctionError(
                f"finalize {name_of(self.finalize)} returned {channels} channels of {block.dtype}, "
                f"but {blending.final_channels} of {blending.final_dtype} before; it must be the "
                f"same for every block"
            )
        del given  # before another copy is made
        return self._without_gaps(block, start, bare)

    def _without_gaps(self, block: Array, start: int, bare: Array | None) -> Array:
        """A block with 0 where `fill_value` comes, so that no NaN there counts as clipped."""
        if block.dtype.kind != "f" or self.blending.out_dtype.kind == "f":
            return block
        gaps = self._gaps(start, block.shape[1])
        gone = np.zeros(block.shape[1:], bool) if gaps is None else gaps
        if bare is not None:
            gone = gone | bare.all(axis=0)
        return np.where(gone, block.dtype.type(0), block) if gone.any() else block

    def _fill(self, out: Array, start: int, bare: Array | None) -> None:
        """Put `fill_value` where no patch of the grid comes, or none that comes has a value."""
        gaps = self._gaps(start, out.shape[1])
        if gaps is not None:
            out[:, gaps] = self.blending.filling
        if bare is not None and bare.any():
            same = bare.shape == out.shape and not self.blending.finalizes
            where: Any = bare if same else (slice(None), bare.all(axis=0))
            out[where] = self.blending.filling

    def _gaps(self, start: int, planes: int) -> Array | None:
        """Voxels of some planes that no patch of the grid covers, (planes, *face); None: none."""
        masks = [covered(self.blending.grid.axes[0], start, start + planes), *self.covered]
        if all(mask.all() for mask in masks):
            return None
        gaps: Array = ~functools.reduce(np.logical_and.outer, masks)
        return gaps


def covered(axis: AxisGrid, start: int, stop: int) -> NDArray[np.bool_]:
    """Whether any patch covers each voxel of [start, stop) along one axis."""
    found = np.zeros(stop - start, dtype=bool)
    if axis.stride <= axis.patch and axis.count:
        last = axis.start(axis.count - 1) + axis.patch
        found[max(0, axis.start(0) - start) : max(0, last - start)] = True
        return found
    for number in axis.touching(start, stop):
        first = axis.start(number) - start
        found[max(0, first) : max(0, first + axis.patch)] = True
    return found


def finalized(finalize: Finalize, blending: BlendSpec, block: Array) -> tuple[Array, int | None]:
    """What `finalize` makes of a block (channels, *shape), and its number of channels."""
    spatial = block.shape[1:]
    given = block if blending.channels_out is not None else block[0]
    try:
        result = finalize(given)
    except BaseException as error:
        where = f"on a block of shape {given.shape}"
        raise blamed(error, f"finalize {name_of(finalize)}", where) from error
    shape = np.shape(result)
    channels = shape[: len(shape) - len(spatial)]
    if not isinstance(result, np.ndarray) or shape != (*channels[:1], *spatial) or 0 in shape:
        raise FunctionError(
            f"finalize {name_of(finalize)} returned {type(result).__name__} of shape {shape} for a "
            f"block of shape {given.shape}; it must be an array that keeps the axes {spatial}, "
            f"with at least one channel if any"
        )
    problem = None
    if np.ma.isMaskedArray(result):
        problem = "a masked array; .filled(VALUE) says what masked voxels become"
    elif not is_numeric(result.dtype):
        problem = f"dtype {result.dtype}; it must be real numbers of up to 64 bits"
    if problem:
        raise FunctionError(f"finalize {name_of(finalize)} returned {problem}")
    result = result.astype(result.dtype.newbyteorder("="), copy=False)
    return result.reshape(-1, *spatial), (channels[0] if channels else None)


def name_of(function: Any) -> str:
    """How a function is called in messages."""
    inner = getattr(function, "func", function)
    return getattr(inner, "__qualname__", None) or type(inner).__name__
