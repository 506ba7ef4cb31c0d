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
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.blend import Blender, Finalize, Sink, Stats
from volpatch.compute.buffers import PatchTables, Ring, relevant
from volpatch.compute.caller import Call, Place, learn, learn_made_up, narrow
from volpatch.compute.kernels import cut
from volpatch.compute.reading import ArrayInput, Read, RingInput
from volpatch.compute.skip import PatchFilter
from volpatch.core.blending import BlendSpec, rows_at_once
from volpatch.core.box import Box

Array = NDArray[Any]
Ints = NDArray[np.int64]
_NONE: Ints = np.empty(0, np.int64)


class Stopped(Exception):  # noqa: N818 - no error: somebody asked the region to end
    """Raised inside a region when the run was told to stop."""


class Row(NamedTuple):
    """A row of patches: those that begin at the same plane, in raster order.

    Attributes
    ----------
    tables : what the loops look up of it, and of some rows beside it.
    number : along the first axis of the lattice.
    """

    tables: PatchTables
    number: int


# row, patches, what the function made of them if it was called, and patches that are skipped
Answer = tuple[Row, Ints, Array | None, Ints]


class Stream:
    """One region on its way through memory. Use: `Stream(...).run()`.

    A plane is handed to the sink when no row that is left touches it:

        source   | . . [===ring===] . . . . . . |     planes that the row's patches need
        rows          (patch)(patch)(patch)           cut -> function -> blend
        sums     | = = = [~~~ring~~~] . . . . . |     planes that are not finished yet
        sink     | = = =                              finished, rounded, written

    Parameters
    ----------
    blending : may still lack what the function returns; `stream.blending` has it afterwards.
    box : the region, in voxels of the patched axes.
    sink : where finished planes go; made from the blending once it is complete.
    source : reads boxes of the volume, or is the volume, (channels, *shape) in C order.
    layer : thickness in which the source is read, in planes.
    patch_filter : says which patches are skipped.
    tick : called with the number of patches after each call of the function.
    stop : set by others to end the region early with `Stopped`.
    views : hand out patches as they lie in memory, read-only, where they lie in one piece.
    """

    def __init__(
        self,
        blending: BlendSpec,
        box: Box,
        caller: Call,
        sink: Callable[[BlendSpec], Sink],
        source: Read | Array,
        *,
        layer: int = 1,
        finalize: Finalize | None = None,
        patch_filter: PatchFilter | None = None,
        tick: Callable[[int], None] = lambda patches: None,
        stop: threading.Event | None = None,
        views: bool = False,
    ) -> None:
        self.blending, self.box, self.caller = blending, box, caller
        self.finalize, self.patch_filter, self.tick, self.stop = finalize, patch_filter, tick, stop
        as_they_are = blending.batch_size is None and blending.cut_dtype == blending.source_dtype
        self.views = views and as_they_are and patch_filter is None and not blending.narrows
        self.stats = Stats()
        self.numbers = relevant(blending.grid, blending.owns, box)
        self._tables = PatchTables.of(blending, box, self._rows(0))
        self.input: RingInput | ArrayInput | None = None
        if all(len(n) for n in self.numbers):
            self.input = (
                RingInput.in_layers(blending, self.numbers, source, layer)
                if callable(source)
                else ArrayInput(source)
            )
        self._make_sink, self._adding = sink, self.stats.clock("blend")

    def run(self) -> Stats:
        """Walk the region from its first plane to its last."""
        blender: Blender | None = None
        early: list[Answer] = []  # skipped before it is known what the function returns
        for answer in self._answers():
            _, ids, values, missing = answer
            if blender is None and (values is not None or self.blending.complete):
                if values is not None:
                    self.blending = learn(self.blending, values, self.finalize)
                blender = self._accumulator(early)
            if blender is None:
                early.append(answer)
            else:
                self._blend(blender, answer)
            self.tick(len(ids) + len(missing))
        if blender is None:
            self.blending = learn_made_up(self.blending, self.caller, self.finalize)
            blender = self._accumulator(early)
        blender.hand_over(self.box.stop[0])
        return self.stats

    def _answers(self) -> Iterator[Answer]:
        """What the function answers to each batch of each row, and what it was not asked.

        Every row begins with what a mask leaves out of it, if only nothing: planes that no row
        needs any more are handed over before the next call, not after it.
        """
        source, axis = self.input, self.blending.grid.axes[0]
        tables = self._tables
        function = self.stats.clock("function")
        step = self.blending.batch_size or 1
        for i, number in enumerate(self.numbers[0] if source is not None else ()):
            if number not in tables.numbers[0]:
                tables = PatchTables.of(self.blending, self.box, self._rows(i))
            row = Row(tables, number)
            wanted, missing = self._wanted(row)
            yield row, _NONE, None, missing
            if source is None or not len(wanted):
                continue
            start = axis.start(number)
            source.load(start, start + axis.patch, self.stats)
            for ids, given, missing in self._groups(source.ring, row, wanted):
                if len(missing):
                    yield row, _NONE, None, missing
                for begin in range(0, len(ids), step):
                    self._go_on()
                    some = ids[begin : begin + step]
                    place = functools.partial(self._patch, row, some)
                    with function:
                        values = self.caller(self.blending, given[begin : begin + step], place)
                    yield row, some, values, _NONE

    def _accumulator(self, early: Iterable[Answer]) -> Blender:
        """Made when it is known what the function returns, and told what was skipped before."""
        blender = Blender(
            self.blending,
            self.box,
            self._tables,
            self._make_sink(self.blending),
            finalize=self.finalize,
            stats=self.stats,
        )
        for answer in early:
            self._blend(blender, answer)
        return blender

    def _blend(self, blender: Blender, answer: Answer) -> None:
        """Add values to the accumulator, or mark where there are none."""
        row, ids, values, missing = answer
        if values is None:
            blender.tables = row.tables
            blender.hand_over(blender.first_plane(row.number))
            blender.skip(missing)
        else:
            with self._adding:
                blender.add(ids, values)
            self.stats.patches += len(ids)
            self.stats.calls += 1

    def _rows(self, first: int) -> tuple[range, ...]:
        """Lattice numbers, per axis, of the patches of some rows from the row `first` on.

        A region may have any number of rows, so that what is looked up of them is made for
        a few of them at a time.
        """
        some = rows_at_once(self.blending.grid.patch[0])
        return self.numbers[0][first : first + some], *self.numbers[1:]

    def _wanted(self, row: Row) -> tuple[Ints, Ints]:
        """Patches of a row that are to be cut, and those that a mask leaves out."""
        tables = row.tables
        number = row.number - tables.numbers[0].start
        per_row = int(np.prod(tables.arrays.lattice[1:]))
        ids = np.arange(number * per_row, (number + 1) * per_row)
        kept = None if self.patch_filter is None else self.patch_filter.kept(tables, number)
        return (ids, ids[:0]) if kept is None else (ids[kept.ravel()], ids[~kept.ravel()])

    def _groups(self, ring: Ring, row: Row, wanted: Ints) -> Iterator[tuple[Ints, Array, Ints]]:
        """Patches of a row that are cut together, with the ids of those passed over."""
        blending, clock = self.blending, self.stats.clock
        if self.views:
            for i in range(len(wanted)):
                ids = wanted[i : i + 1]
                yield ids, self._view(ring, row, ids), _NONE
            return
        size = min(blending.together, len(wanted))
        group = np.empty(
            (size, blending.channels_in or 1, *blending.grid.patch), blending.input_dtype
        )
        if self.patch_filter is not None:
            yield from self._chosen_groups(ring, row, wanted, group, self.patch_filter)
            return
        for begin in range(0, len(wanted), size):
            ids = wanted[begin : begin + size]
            given = group[: len(ids)]
            with clock("cut"):
                self._cut(ring, row, ids, given)
            yield ids, given, _NONE

    def _chosen_groups(
        self, ring: Ring, row: Row, wanted: Ints, group: Array, patch_filter: PatchFilter
    ) -> Iterator[tuple[Ints, Array, Ints]]:
        """The same where each patch is looked at before it is taken."""
        size = len(group)
        chosen: list[int] = []
        missing: list[int] = []
        for begin in range(len(wanted)):
            self._go_on()
            ids = wanted[begin : begin + 1]
            place = slice(len(chosen), len(chosen) + 1)
            with self.stats.clock("cut"):
                self._cut(ring, row, ids, group[place])
            (missing if patch_filter.skips(group[place][0]) else chosen).extend(ids)
            if len(chosen) == size or begin + 1 == len(wanted):
                yield np.array(chosen, np.int64), group[: len(chosen)], np.array(missing, np.int64)
                chosen, missing = [], []

    def _view(self, ring: Ring, row: Row, ids: Ints) -> Array:
        """A patch (1, channels, *patch) where it lies; a copy where the ring wraps within it."""
        _, box = self._patch(row, ids, 0)
        pieces = ring.runs(box.start[0], box.stop[0])
        if len(pieces) > 1:
            given = np.empty((1, ring.channels, *box.shape), ring.flat.dtype)
            self._cut(ring, row, ids, given)
            return given
        face = zip(box.start[1:], box.stop[1:], ring.origin[1:], strict=True)
        part = (slice(None), slice(None), *(slice(a - o, b - o) for a, b, o in face))
        view: Array = pieces[0][1][part][None]
        view.flags.writeable = False
        return view

    def _cut(self, ring: Ring, row: Row, ids: Ints, given: Array) -> None:
        """Fill `given` with patches as the function gets them."""
        blending = self.blending
        if not blending.narrows:
            cut(ring, row.tables, ids, given)
            return
        found = np.empty(given.shape, blending.cut_dtype)
        cut(ring, row.tables, ids, found)
        for i in range(len(ids)):
            narrow(blending, found[i], given[i], functools.partial(self._patch, row, ids, i))

    def _go_on(self) -> None:
        if self.stop is not None and self.stop.is_set():
            raise Stopped

    def _patch(self, row: Row, ids: Ints, i: int) -> Place:
        position = row.tables.position(int(ids[i]))
        return position, self.blending.grid.box(position)
