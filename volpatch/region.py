"""Stream one region: read, cut, call, blend, hand over what is finished.

The region is walked along its first axis, one row of patches at a time. Two rings hold
all there is in memory, whatever the length of the region:

      read layers            patches of one row            finished planes
    source --> input ring --> cut --> function --> add --> accumulator ring --> sink
               patch + layer                               patch planes

A plane is finished when no later row of patches reaches it. The order in which values
are added at a voxel is the raster order of the grid, and does not depend on the region.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from volpatch.errors import FunctionError, VolpatchError
from volpatch.geometry import AxisGrid, Box, PatchGrid
from volpatch.kernels import Ring, Tables, add, cut, finish
from volpatch.recipe import Recipe

Array = NDArray[Any]
Read = Callable[[Box, Array], None]
Finalize = Callable[[Array], Array]
Place = tuple[tuple[int, ...], Box]  # lattice position of a patch, and its voxels
PHASES = ("read", "cut", "function", "blend", "write")


class Stopped(Exception):  # noqa: N818 - no error: somebody asked the region to end
    """Raised inside a region when the run was told to stop."""


@dataclass(slots=True)
class Stats:
    """What a region did; sums over regions are made with `+=`."""

    patches: int = 0
    calls: int = 0
    clipped: int = 0
    voxels_read: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to a phase."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - begin

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
class Caller:
    """The user's function, with its answers checked.

    `gate` bounds how many calls of one process run at the same time.
    """

    function: Callable[[Array], Any]
    gate: AbstractContextManager[Any] = field(default_factory=nullcontext)

    def __call__(self, recipe: Recipe, batch: Array, patch: Callable[[int], Place]) -> Array:
        """Values (B, *patch) or (B, channels, *patch) for a batch (B, channels, *patch).

        `patch(i)` says which patch is the i-th of the batch.

        Raises
        ------
        FunctionError
            Naming the patch, when the function raises, or gives back something that is no
            array of the expected shape and dtype.
        """
        given = batch if recipe.channels_in is not None else batch[:, 0]
        single = recipe.batch_size is None
        try:
            with self.gate:
                result = self.function(given[0] if single else given)
        except (Stopped, VolpatchError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            raise FunctionError(
                f"{self.name} raised {type(error).__name__} on {_where(patch, len(batch))}: "
                f"{error or 'no message'}"
            ) from error
        problem = _problem(result, recipe, len(batch))
        if problem:
            raise FunctionError(
                f"{self.name} returned {problem[0]} for {_where(patch, len(batch))}, "
                f"wanted {problem[1]}"
            )
        values = np.ascontiguousarray(result, result.dtype.newbyteorder("="))
        return values[None] if single else values

    @property
    def name(self) -> str:
        return f"the function {name_of(self.function)}"


def _problem(result: Any, recipe: Recipe, count: int) -> tuple[str, str] | None:
    """What is wrong with what a function returned, and what was wanted; None if nothing."""
    if not isinstance(result, np.ndarray):
        tensor = hasattr(result, "cpu") or hasattr(result, "get")
        hint = " (a tensor becomes one by .cpu().numpy())" if tensor else ""
        kind = "None" if result is None else f"a {type(result).__module__}.{type(result).__name__}"
        return kind, f"a numpy array{hint}"
    if result.dtype.kind not in "biuf" or result.dtype.itemsize > 8:
        return f"dtype {result.dtype}", "real numbers of up to 64 bits"
    known = recipe.result_dtype
    batched = () if recipe.batch_size is None else (count,)
    plain = (*batched, *recipe.grid.patch)
    if known is None:
        channels = result.shape[len(batched) : len(batched) + 1]
        shapes = [plain, (*batched, *channels, *recipe.grid.patch)]
        wanted = f"{plain}, or the same with channels {(*batched, 'C', *recipe.grid.patch)}"
    else:
        own = () if recipe.channels_out is None else (recipe.channels_out,)
        shapes = [(*batched, *own, *recipe.grid.patch)]
        wanted = str(shapes[0])
    if result.shape not in shapes or 0 in result.shape:
        return f"shape {result.shape}", wanted
    if known is not None and result.dtype.newbyteorder("=") != known:
        return f"dtype {result.dtype}", f"{known} as for other patches"
    return None


def learn(recipe: Recipe, values: Array, finalize: Finalize | None) -> Recipe:
    """The recipe with what a first answer (B, [channels,] *patch) of the function tells."""
    if recipe.result_dtype is None:
        has_channels = values.ndim == recipe.grid.ndim + 2
        channels = values.shape[1] if has_channels else None
        recipe = replace(recipe, result_dtype=values.dtype, channels_out=channels)
    if finalize is None or recipe.final_dtype is not None:
        return recipe
    block = values[:1].reshape(recipe.channels_out or 1, *recipe.grid.patch)
    final, channels = finalized(finalize, recipe, block.astype(recipe.blended_dtype))
    return replace(recipe, final_dtype=final.dtype, final_channels=channels)


def name_of(function: Any) -> str:
    """How a function is called in messages."""
    inner = getattr(function, "func", function)
    return getattr(inner, "__qualname__", None) or type(inner).__name__


def _where(patch: Callable[[int], Place], count: int) -> str:
    position, box = patch(0)
    if count == 1:
        return f"patch {position} at {box}"
    last, last_box = patch(count - 1)
    return f"the batch of patches {position} at {box} to {last} at {last_box}"


def padded_index(size: int, start: int, stop: int, mode: str) -> NDArray[np.int64]:
    """Where each voxel of [start, stop) comes from when an axis is padded; -1 for a constant.

    Agrees with `np.pad` of the whole axis, but never looks at more of it.

    >>> padded_index(4, 2, 8, "reflect").tolist()
    [2, 3, 2, 1, 0, 1]
    """
    index = np.arange(start, stop, dtype=np.int64)
    if mode == "constant":
        return np.where(index < size, index, -1)
    if mode == "edge" or size == 1:
        return np.minimum(index, size - 1)
    period = 2 * size if mode == "symmetric" else 2 * (size - 1)
    index %= period
    mirrored = period - 1 - index if mode == "symmetric" else period - index
    return np.where(index < size, index, mirrored)


def read_padded(read: Read, recipe: Recipe, box: Box, out: Array) -> int:
    """Fill `out` (channels, *box.shape) with the volume, padded where `box` hangs over.

    Returns the number of voxels that were read.
    """
    shape = recipe.grid.shape
    if all(stop <= size for stop, size in zip(box.stop, shape, strict=True)):
        read(box, out)
        return box.size
    indices = [
        padded_index(n, a, b, recipe.pad_mode)
        for n, a, b in zip(shape, box.start, box.stop, strict=True)
    ]
    if any((i < 0).all() for i in indices):
        out[...] = recipe.pad_value
        return 0
    inner = Box(
        tuple(int(i[i >= 0].min()) for i in indices), tuple(int(i.max()) + 1 for i in indices)
    )
    values = np.empty((out.shape[0], *inner.shape), out.dtype)
    read(inner, values)
    for axis, (index, first) in enumerate(zip(indices, inner.start, strict=True)):
        taken = np.take(values, np.maximum(index - first, 0), axis=axis + 1)
        if (index < 0).any():
            taken[(slice(None),) * (axis + 1) + (index < 0,)] = recipe.pad_value
        values = taken
    out[...] = values
    return inner.size


class ArrayInput:
    """Patches cut straight from a C-contiguous array in memory; nothing is copied first."""

    def __init__(self, array: Array) -> None:
        shape = array.shape[1:]
        origin = (0,) * len(shape)
        self.ring = Ring(array.reshape(-1), origin, shape[0], shape[1:], array.shape[0])

    def load(self, start: int, stop: int, stats: Stats) -> None:
        """Everything is there already."""


class RingInput:
    """The planes that the current row of patches needs, read in layers of source chunks."""

    def __init__(self, recipe: Recipe, tables: Tables, read: Read, layer: int) -> None:
        self._recipe, self._read, self._layer = recipe, read, layer
        reach = reach_of(recipe.grid, tables.numbers)
        self._end = reach.stop[0]
        self._loaded = reach.start[0]
        planes = min(self._end - self._loaded, ring_planes(recipe.grid.patch[0], layer))
        channels = recipe.channels_in or 1
        self._face = Box(reach.start[1:], reach.stop[1:])
        dtype = recipe.input_dtype if recipe.halves else recipe.source_dtype
        self.ring = Ring.new(reach, planes, channels, dtype)

    def load(self, start: int, stop: int, stats: Stats) -> None:
        """Make the planes [start, stop) present; those before `start` are given up."""
        self._loaded = max(self._loaded, start)
        size = self._recipe.grid.shape[0]
        while self._loaded < stop:
            border = (self._loaded // self._layer + 1) * self._layer
            border = self._end if self._loaded >= size else min(border, size, self._end)
            with stats.clock("read"):
                for first, piece in self.ring.runs(self._loaded, border):
                    box = Box(
                        (first, *self._face.start), (first + piece.shape[1], *self._face.stop)
                    )
                    stats.voxels_read += read_padded(self._read, self._recipe, box, piece)
            self._loaded = border


def reach_of(grid: PatchGrid, numbers: tuple[range, ...]) -> Box:
    """The box that the patches `numbers` cover; it may hang over the volume's far end."""
    first = tuple(a.start(n[0]) for a, n in zip(grid.axes, numbers, strict=True))
    last = tuple(a.start(n[-1]) + a.patch for a, n in zip(grid.axes, numbers, strict=True))
    return Box(first, last)


def ring_planes(patch: int, layer: int) -> int:
    """Planes that an input ring holds: a row of patches, and the rest of its last layer."""
    return patch + layer - 1


class Stream:
    """One region on its way through memory. Use: `Stream(...).run()`.

    Parameters
    ----------
    recipe : may still lack what the function returns; `stream.recipe` has it afterwards.
    box : the region, in voxels of the patched axes.
    sink : where finished planes go; made from the recipe once it is complete.
    source : reads boxes of the volume, or is the volume, (channels, *shape) in C order.
    layer : thickness in which the source is read, in planes.
    tick : called with the number of patches after each call of the function.
    stop : set by others to end the region early with `Stopped`.
    """

    def __init__(
        self,
        recipe: Recipe,
        box: Box,
        caller: Caller,
        sink: Callable[[Recipe], Sink],
        source: Read | Array,
        *,
        layer: int = 1,
        finalize: Finalize | None = None,
        tick: Callable[[int], None] = lambda patches: None,
        stop: threading.Event | None = None,
    ) -> None:
        self.recipe, self.box, self.caller = recipe, box, caller
        self.finalize, self.tick, self.stop = finalize, tick, stop
        self.stats = Stats()
        self.tables = Tables.of(recipe.grid, recipe.windows, box)
        bounds = zip(recipe.grid.axes, box.start, box.stop, strict=True)
        self.covered = [covered(a, p, q) for a, p, q in bounds]
        self.input: RingInput | ArrayInput | None = None
        if all(len(n) for n in self.tables.numbers):
            self.input = (
                RingInput(recipe, self.tables, source, layer)
                if callable(source)
                else ArrayInput(source)
            )
        self._make_sink = sink
        self.done = box.start[0]
        if recipe.complete or self.input is None:
            self._settle(recipe)

    def _settle(self, recipe: Recipe) -> None:
        """Make what depends on the function's dtype and channels."""
        self.recipe = recipe
        planes = min(recipe.grid.patch[0], self.box.shape[0])
        channels = recipe.channels_out or 1
        self.ring = Ring.new(self.box, planes, channels, recipe.accumulator, 0)
        self.sink = self._make_sink(recipe)

    def run(self) -> Stats:
        """Walk the region from its first plane to its last."""
        axis = self.recipe.grid.axes[0]
        per_row = int(np.prod(self.tables.lattice[1:]))
        source = self.input
        for row, number in enumerate(self.tables.numbers[0]):
            if source is None:
                break
            start = axis.start(number)
            source.load(start, start + axis.patch, self.stats)
            ids = range(row * per_row, (row + 1) * per_row)
            self._compute(source.ring, ids, axis.own(number)[0] if self.recipe.crop else start)
        self._hand_over(self.box.stop[0])
        return self.stats

    def _compute(self, source: Ring, row: range, first_plane: int) -> None:
        """Cut, call and add the patches of one row of this region, in batches.

        Neither this row nor a later one reaches a plane before `first_plane`.
        """
        recipe, clock = self.recipe, self.stats.clock
        size = recipe.batch_size or 1
        batch = np.empty(
            (min(size, len(row)), recipe.channels_in or 1, *recipe.grid.patch),
            recipe.input_dtype,
        )
        for begin in row[::size]:
            if self.stop is not None and self.stop.is_set():
                raise Stopped
            ids = np.arange(begin, min(begin + size, row.stop))
            given = batch[: len(ids)]
            with clock("cut"):
                cut(source, self.tables, ids, given)
            with clock("function"):
                values = self.caller(recipe, given, functools.partial(self._patch, ids))
            if not recipe.complete:
                recipe = learn(recipe, values, self.finalize)
                self._settle(recipe)
            self._hand_over(first_plane)
            with clock("blend"):
                add(self.ring, self.tables, ids, values, select=recipe.crop)
            self.stats.patches += len(ids)
            self.stats.calls += 1
            self.tick(len(ids))

    def _patch(self, ids: NDArray[np.int64], i: int) -> Place:
        position = self.tables.position(int(ids[i]))
        return position, self.recipe.grid.box(position)

    def _hand_over(self, upto: int) -> None:
        """Give the planes up to `upto` to the sink, and clear them for the next rows."""
        upto = min(upto, self.box.stop[0])
        while self.done < upto:
            stop = min(upto, self.sink.limit(self.done), self.done + self.ring.planes)
            with self.stats.clock("blend"):
                for start, piece in self.ring.runs(self.done, stop):
                    out = self.sink.rows(start, start + piece.shape[1])
                    self.stats.clipped += finish(self._finalized(piece), out)
                    piece[...] = 0
                    self._fill(out, start)
            self.done = stop
            with self.stats.clock("write"):
                self.sink.done(stop)

    def _finalized(self, piece: Array) -> Array:
        if self.finalize is None:
            return piece
        return finalized(self.finalize, self.recipe, piece.astype(self.recipe.blended_dtype))[0]

    def _fill(self, out: Array, start: int) -> None:
        """Put `fill` wherever no patch of the grid comes."""
        first = start - self.box.start[0]
        planes = self.covered[0][first : first + out.shape[1]]
        masks = [planes, *self.covered[1:]]
        if not all(mask.all() for mask in masks):
            bare = ~functools.reduce(np.logical_and.outer, masks)
            out[:, bare] = self.recipe.fill


def covered(axis: AxisGrid, start: int, stop: int) -> NDArray[np.bool_]:
    """Whether any patch covers each voxel of [start, stop) along one axis."""
    found = np.zeros(stop - start, dtype=bool)
    for number in axis.touching(start, stop):
        first = axis.start(number) - start
        found[max(0, first) : max(0, first + axis.patch)] = True
    return found


def finalized(finalize: Finalize, recipe: Recipe, block: Array) -> tuple[Array, int | None]:
    """What `finalize` makes of a block (channels, *shape), and its number of channels."""
    spatial = block.shape[1:]
    given = block if recipe.channels_out is not None else block[0]
    try:
        result = finalize(given)
    except (Exception, SystemExit) as error:
        raise FunctionError(
            f"finalize {name_of(finalize)} raised {type(error).__name__} on a block of shape "
            f"{given.shape}: {error or 'no message'}"
        ) from error
    shape = np.shape(result)
    channels = shape[: len(shape) - len(spatial)]
    if not isinstance(result, np.ndarray) or shape != (*channels[:1], *spatial):
        raise FunctionError(
            f"finalize {name_of(finalize)} returned {type(result).__name__} of shape {shape} for a "
            f"block of shape {given.shape}; it must be an array that keeps the axes {spatial}"
        )
    return result.reshape(-1, *spatial), (channels[0] if channels else None)


@dataclass(frozen=True)
class ArraySink:
    """Finished planes go into an array of the region's extent, (channels, *box.shape)."""

    array: Array
    box: Box

    def limit(self, plane: int) -> int:
        return self.box.stop[0]

    def rows(self, start: int, stop: int) -> Array:
        first = self.box.start[0]
        return self.array[:, start - first : stop - first]

    def done(self, stop: int) -> None:
        """Nothing is left to do."""
