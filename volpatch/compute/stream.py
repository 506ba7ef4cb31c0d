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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.blend import Blender, Finalize, Sink, Stats, finalized, name_of
from volpatch.compute.buffers import Ring, Tables, relevant
from volpatch.compute.kernels import cut
from volpatch.compute.rounding import convert
from volpatch.core.errors import FunctionError, SettingError, blamed
from volpatch.core.grid import Box, PatchGrid
from volpatch.core.recipe import Recipe, rows_at_once

Array = NDArray[Any]
Read = Callable[[Box, Array], None]
Place = tuple[tuple[int, ...], Box]  # lattice position of a patch, and its voxels
Group = tuple[NDArray[np.int64], Array, NDArray[np.int64]]  # ids, patches, ids skipped
Skipped = tuple[Tables, int, NDArray[np.int64]]  # what ids refer to, lattice row, ids
_OPEN = nullcontext()


class Stopped(Exception):  # noqa: N818 - no error: somebody asked the region to end
    """Raised inside a region when the run was told to stop."""


class Holes(Protocol):
    """Which patches of a region are not to be computed."""

    def kept(self, tables: Tables, row: int) -> NDArray[np.bool_] | None:
        """Whether each patch of a row is wanted, by position alone; None: all are."""
        ...

    def skips(self, patch: Array) -> bool:
        """Whether a patch that was cut, (channels, *patch), is to be skipped."""
        ...


class Call(Protocol):
    """The user's function, with its answers checked: see `Caller`."""

    def __call__(self, recipe: Recipe, batch: Array, patch: Callable[[int], Place]) -> Array:
        """Values for a batch."""
        ...


@dataclass(frozen=True)
class Caller:
    """The user's function, with its answers checked.

    `gate` bounds how many calls of one process run at the same time. A function that counts
    on that may give back one buffer of its own each time, so it is copied before the next call.
    """

    function: Callable[[Array], Any]
    gate: AbstractContextManager[Any] | None = None

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
        with self.gate or _OPEN:
            try:
                result = self.function(given[0] if single else given)
            except BaseException as error:
                if self._refuses(error):
                    raise
                raise blamed(error, self.name, f"on {_where(patch, len(batch))}") from error
            if self.gate is not None and isinstance(result, np.ndarray):
                result = result.copy()
        problem = None
        if not _as_known(result, recipe, len(batch)):
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

    def _refuses(self, error: BaseException) -> bool:
        """Whether a ready-made operation refuses its settings, which no other patch will suit."""
        inner = getattr(self.function, "func", self.function)
        ours = str(getattr(inner, "__module__", "")).startswith("volpatch.functions.")
        return ours and isinstance(error, SettingError)


def _as_known(result: Any, recipe: Recipe, count: int) -> bool:
    """Whether a function returned just what it did before: most calls need no other look."""
    if type(result) is not np.ndarray or recipe.result_dtype is None:
        return False
    known = bool(result.dtype == recipe.result_dtype)
    return known and result.shape == _known_shape(recipe, count)


def _known_shape(recipe: Recipe, count: int) -> tuple[int, ...]:
    """Of what the function returns for `count` patches, once it is known."""
    batched = () if recipe.batch_size is None else (count,)
    own = () if recipe.channels_out is None else (recipe.channels_out,)
    return (*batched, *own, *recipe.grid.patch)


def _problem(result: Any, recipe: Recipe, count: int) -> tuple[str, str] | None:
    """What is wrong with what a function returned, and what was wanted; None if nothing."""
    if not isinstance(result, np.ndarray):
        tensor = hasattr(result, "cpu") or hasattr(result, "get")
        hint = " (a tensor becomes one by .cpu().numpy())" if tensor else ""
        kind = "None" if result is None else f"a {type(result).__module__}.{type(result).__name__}"
        return kind, f"a numpy array{hint}"
    if isinstance(result, np.ma.MaskedArray):
        return "a masked array", "a plain one (.filled(VALUE) says what masked voxels become)"
    if result.dtype.kind not in "biuf" or result.dtype.itemsize > 8:
        return f"dtype {result.dtype}", "real numbers of up to 64 bits"
    known = recipe.result_dtype
    if known is None:
        batched = () if recipe.batch_size is None else (count,)
        plain = (*batched, *recipe.grid.patch)
        channels = result.shape[len(batched) : len(batched) + 1]
        shapes = [plain, (*batched, *channels, *recipe.grid.patch)]
        wanted = f"{plain}, or the same with channels {(*batched, 'C', *recipe.grid.patch)}"
        if recipe.channels_out is not None:
            shapes = [_known_shape(recipe, count)]
            wanted = f"{shapes[0]}, as out_channels={recipe.channels_out} says"
    else:
        shapes = [_known_shape(recipe, count)]
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


def made_up(recipe: Recipe) -> Array:
    """A batch that looks like patches: random, positive, no two voxels alike to speak of."""
    shape = (recipe.batch_size or 1, recipe.channels_in or 1, *recipe.grid.patch)
    rng = np.random.default_rng(0)
    if recipe.input_dtype.kind == "f":
        return rng.uniform(0.5, 1.5, shape).astype(recipe.input_dtype)
    return rng.integers(1, 100, shape).astype(recipe.input_dtype)


def learn_made_up(recipe: Recipe, caller: Call, finalize: Finalize | None) -> Recipe:
    """The recipe with what one call on a made-up batch tells; nothing is read for it."""
    if recipe.complete:
        return recipe
    grid = recipe.grid
    position = (0,) * grid.ndim
    first = Box(position, grid.patch) if 0 in grid.lattice else grid.box(position)
    values = caller(recipe, made_up(recipe), lambda i: (position, first))
    return learn(recipe, values, finalize)


def narrow(recipe: Recipe, patch: Array, out: Array, place: Callable[[], Place]) -> None:
    """Write a patch (channels, *patch) as the function is given it; refuse what does not fit."""
    at = convert(patch, out)
    if at is None:
        return
    position, box = place()
    voxel = tuple(a + i for a, i in zip(box.start, at[1:], strict=True))
    raise SettingError(
        f"input_dtype={recipe.input_dtype} cannot hold {patch[at]}, at voxel {voxel} of patch "
        f"{position} at {box}; choose one that holds all values of the source, {patch.dtype}, "
        f"or scale and clip them in the function"
    )


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

    def __init__(self, recipe: Recipe, numbers: tuple[range, ...], read: Read, layer: int) -> None:
        self._recipe, self._read, self._layer = recipe, read, layer
        reach = reach_of(recipe.grid, numbers)
        self._end = reach.stop[0]
        self._loaded = reach.start[0]
        start = reach.start[0] // layer * layer
        planes = min(self._end - start, recipe.grid.axes[0].planes_held(layer))
        channels = recipe.channels_in or 1
        self._face = Box(reach.start[1:], reach.stop[1:])
        dtype = recipe.input_dtype if recipe.halves else recipe.source_dtype
        # whole layers from a layer's edge on: none wraps, so none is read in two pieces
        box = Box((start, *reach.start[1:]), reach.stop)
        self.ring = Ring.new(box, planes, channels, dtype)

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


class Stream:
    """One region on its way through memory. Use: `Stream(...).run()`.

    Parameters
    ----------
    recipe : may still lack what the function returns; `stream.recipe` has it afterwards.
    box : the region, in voxels of the patched axes.
    sink : where finished planes go; made from the recipe once it is complete.
    source : reads boxes of the volume, or is the volume, (channels, *shape) in C order.
    layer : thickness in which the source is read, in planes.
    holes : says which patches are skipped.
    tick : called with the number of patches after each call of the function.
    stop : set by others to end the region early with `Stopped`.
    """

    def __init__(
        self,
        recipe: Recipe,
        box: Box,
        caller: Call,
        sink: Callable[[Recipe], Sink],
        source: Read | Array,
        *,
        layer: int = 1,
        finalize: Finalize | None = None,
        holes: Holes | None = None,
        tick: Callable[[int], None] = lambda patches: None,
        stop: threading.Event | None = None,
    ) -> None:
        self.recipe, self.box, self.caller = recipe, box, caller
        self.finalize, self.holes, self.tick, self.stop = finalize, holes, tick, stop
        self.stats = Stats()
        self.numbers = relevant(recipe.grid, recipe.owns, box)
        self.tables = Tables.of(recipe, box, self._rows(0))
        self.input: RingInput | ArrayInput | None = None
        if all(len(n) for n in self.numbers):
            self.input = (
                RingInput(recipe, self.numbers, source, layer)
                if callable(source)
                else ArrayInput(source)
            )
        self._make_sink = sink
        self.blender: Blender | None = None

    def _rows(self, first: int) -> tuple[range, ...]:
        """Lattice numbers, per axis, of the patches of some rows from the row `first` on.

        A region may have any number of rows, so that what is looked up of them is made for
        a few of them at a time.
        """
        some = rows_at_once(self.recipe.grid.patch[0])
        return self.numbers[0][first : first + some], *self.numbers[1:]

    def _blender(self) -> Blender:
        """The region's accumulator, made when it is known what the function returns."""
        if self.blender is None:
            self.blender = Blender(
                self.recipe,
                self.box,
                self.tables,
                self._make_sink(self.recipe),
                finalize=self.finalize,
                stats=self.stats,
            )
        self.blender.tables = self.tables
        return self.blender

    def run(self) -> Stats:
        """Walk the region from its first plane to its last."""
        axis = self.recipe.grid.axes[0]
        source = self.input
        skipped: list[Skipped] = []  # before there is an accumulator
        for row, number in enumerate(self.numbers[0] if source is not None else ()):
            if number not in self.tables.numbers[0]:
                self.tables = Tables.of(self.recipe, self.box, self._rows(row))
            ids, missing = self._wanted(number - self.tables.numbers[0].start)
            if len(missing):
                skipped.append((self.tables, number, missing))
            if len(ids) and source is not None:
                start = axis.start(number)
                source.load(start, start + axis.patch, self.stats)
                self._compute(source.ring, number, ids, skipped)
            elif self.recipe.complete:
                self._skip(self._blender(), skipped)
            self.tick(len(missing))
        self.recipe = learn_made_up(self.recipe, self.caller, self.finalize)
        blender = self._blender()
        self._skip(blender, skipped)
        blender.hand_over(self.box.stop[0])
        return self.stats

    def _wanted(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Patches of a row of the tables that are to be cut, and those that are not."""
        per_row = int(np.prod(self.tables.lattice[1:]))
        ids = np.arange(row * per_row, (row + 1) * per_row)
        kept = None if self.holes is None else self.holes.kept(self.tables, row)
        return (ids, ids[:0]) if kept is None else (ids[kept.ravel()], ids[~kept.ravel()])

    def _skip(self, blender: Blender, skipped: list[Skipped]) -> None:
        for tables, number, missing in skipped:
            blender.hand_over(blender.first_plane(number))
            blender.tables = tables
            blender.skip(missing)
        blender.tables = self.tables
        skipped.clear()

    def _compute(
        self,
        source: Ring,
        number: int,
        row: NDArray[np.int64],
        skipped: list[Skipped],
    ) -> None:
        """Cut, call and blend the patches of one row of this region."""
        for ids, given, missing in self._groups(source, row):
            if len(missing):
                skipped.append((self.tables, number, missing))
            if self.recipe.complete:
                self._reach(number, skipped)
            if len(ids):
                self._call(number, ids, given, skipped)
            self.stats.patches += len(ids)
            self.tick(len(ids) + len(missing))

    def _reach(self, number: int, skipped: list[Skipped]) -> None:
        """Move the accumulator on to a row of patches."""
        blender = self._blender()
        self._skip(blender, skipped)
        blender.hand_over(blender.first_plane(number))

    def _call(
        self,
        number: int,
        ids: NDArray[np.int64],
        given: Array,
        skipped: list[Skipped],
    ) -> None:
        """Hand patches that were cut to the function, and blend what it makes of them."""
        function, blending = self.stats.clock("function"), self.stats.clock("blend")
        step = self.recipe.batch_size or 1
        for begin in range(0, len(ids), step):
            self._go_on()
            some = ids[begin : begin + step]
            with function:
                values = self.caller(
                    self.recipe,
                    given[begin : begin + step],
                    functools.partial(self._patch, some),
                )
            if not self.recipe.complete:
                self.recipe = learn(self.recipe, values, self.finalize)
                self._reach(number, skipped)
            with blending:
                self._blender().add(some, values)
            self.stats.calls += 1

    def _groups(self, source: Ring, row: NDArray[np.int64]) -> Iterator[Group]:
        """Patches of a row that are cut together, with the ids of those passed over."""
        recipe, clock = self.recipe, self.stats.clock
        size = min(recipe.together, len(row))
        group = np.empty((size, recipe.channels_in or 1, *recipe.grid.patch), recipe.input_dtype)
        if self.holes is not None:
            yield from self._chosen_groups(source, row, group, self.holes)
            return
        for begin in range(0, len(row), size):
            ids = row[begin : begin + size]
            given = group[: len(ids)]
            with clock("cut"):
                self._cut(source, ids, given)
            yield ids, given, row[:0]

    def _cut(self, source: Ring, ids: NDArray[np.int64], given: Array) -> None:
        """Fill `given` with patches as the function gets them."""
        recipe = self.recipe
        if not recipe.narrows:
            cut(source, self.tables, ids, given)
            return
        found = np.empty(given.shape, recipe.cut_dtype)
        cut(source, self.tables, ids, found)
        for i in range(len(ids)):
            narrow(recipe, found[i], given[i], functools.partial(self._patch, ids, i))

    def _chosen_groups(
        self, source: Ring, row: NDArray[np.int64], group: Array, holes: Holes
    ) -> Iterator[Group]:
        """The same where each patch is looked at before it is taken."""
        size = len(group)
        chosen: list[int] = []
        missing: list[int] = []
        for begin in range(len(row)):
            self._go_on()
            ids = row[begin : begin + 1]
            place = slice(len(chosen), len(chosen) + 1)
            with self.stats.clock("cut"):
                self._cut(source, ids, group[place])
            (missing if holes.skips(group[place][0]) else chosen).extend(ids)
            if len(chosen) == size or begin + 1 == len(row):
                yield np.array(chosen, np.int64), group[: len(chosen)], np.array(missing, np.int64)
                chosen, missing = [], []

    def _go_on(self) -> None:
        if self.stop is not None and self.stop.is_set():
            raise Stopped

    def _patch(self, ids: NDArray[np.int64], i: int) -> Place:
        position = self.tables.position(int(ids[i]))
        return position, self.recipe.grid.box(position)
