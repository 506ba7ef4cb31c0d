"""What one worker process does: load the functions once, try them once, compute regions.

A worker is made from picklable things only (paths, plans, names of functions), so that
the same object serves threads of this process and processes of their own.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.blend import Stats, name_of
from volpatch.compute.buffers import PatchTables, Ring, relevant
from volpatch.compute.caller import Caller, Place, learn, made_up, narrow
from volpatch.compute.kernels import Sums, blend, cut, touch
from volpatch.compute.reading import Read, read_padded
from volpatch.compute.rounding import round_to
from volpatch.compute.skip import PatchFilter
from volpatch.compute.stream import Stopped, Stream
from volpatch.core import resources as machine
from volpatch.core.blending import BlendSpec, Mode
from volpatch.core.box import Box
from volpatch.core.errors import FunctionError, SourceError, blamed
from volpatch.core.grid import PatchGrid
from volpatch.functions.named import Func, FunctionSpec, loaded
from volpatch.planning.plan import Plan
from volpatch.running.inflight import InFlight
from volpatch.storage.codec import TargetSpec
from volpatch.storage.layers import LayerWriter, Unit, unit_ranges
from volpatch.storage.output import Site
from volpatch.storage.records import Recorder
from volpatch.storage.volume import Source

Array = NDArray[Any]
Tick = Callable[[int], None]
TICK_SECONDS = 0.1
# looked at before a volume counts as skipped throughout: patches, and parts of a mask, which
# are so many patches wide
TRIAL_PATCHES = 256
TRIAL_LOOKS = 2**14
TRIAL_WIDTH = 256


@dataclass(frozen=True)
class Functions:
    """The user's functions, as objects or as names, and how many calls may run at once."""

    function: Func | None
    setup: Callable[..., Any] | None = None
    finalize: Func | None = None
    concurrent_calls: int | None = None
    patch_filter: PatchFilter | None = None

    @property
    def made_once(self) -> bool:
        """Whether a factory makes the function, once per process."""
        spec = isinstance(self.function, FunctionSpec) and self.function.factory
        return self.setup is not None or spec

    def load(self) -> Callable[..., Any]:
        if self.setup is not None:
            try:
                made: Callable[..., Any] = self.setup()
            except BaseException as error:
                raise blamed(error, f"setup {name_of(self.setup)}") from error
            if not callable(made):
                raise FunctionError(
                    f"setup {name_of(self.setup)} returned a {type(made).__name__}, "
                    f"wanted a function of a patch"
                )
            return made
        return loaded(self.function)

    def load_finalize(self) -> Callable[..., Any] | None:
        return None if self.finalize is None else loaded(self.finalize)


@dataclass(frozen=True)
class Trial:
    """What one batch, run for real in a worker, has told."""

    blending: BlendSpec
    func_memory: int
    resident: int
    seconds: float


@dataclass(frozen=True)
class Task:
    """A region, or the box of it that is still to be computed: whole write units."""

    region: int
    lead: tuple[int, ...]
    box: Box
    attempt: int = 1


@dataclass(frozen=True)
class Shared:
    """What all tasks of a run have in common.

    Attributes
    ----------
    wanted : SHA-256 of units that are made again, which must come out as they were.
    """

    plan: Plan
    spec: TargetSpec
    site: Site
    wanted: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a task has done."""

    stats: Stats
    encoded_bytes: int
    process: int
    peak_bytes: int


class Worker:
    """One process's share of a run; its threads share the functions."""

    def __init__(self, functions: Functions, source: Source) -> None:
        self.source = source
        self.function = functions.load()
        self.finalize = functions.load_finalize()
        self.patch_filter = functions.patch_filter
        calls = functions.concurrent_calls or (1 if functions.made_once else None)
        self.caller = Caller(self.function, threading.Semaphore(calls) if calls else None)
        self._recorders: dict[Site, Recorder] = {}
        self._lock = threading.Lock()

    def read(self, plan: Plan, lead: tuple[int, ...]) -> Read:
        """A way to read boxes of one index of the leading axes, (channels, *box)."""
        layout, source = plan.layout, self.source
        back = np.argsort(layout.order)
        ones = (None,) * len(layout.lead)

        def read(box: Box, out: Array) -> None:
            selection = layout.selection(lead, plan.roi, box)
            view = out[ones] if layout.channel is not None else out[(*ones, 0)]
            view = view.transpose(back)
            if view.dtype == source.dtype:
                source.read(selection, view)
            else:
                values = np.empty(view.shape, source.dtype)
                source.read(selection, values)
                view[...] = values

        return read

    def trial(self, plan: Plan) -> Trial:
        """Run the function twice on a batch of a patch from the middle of the volume.

        The first call pays for what is loaded on first use; the second shows what a call
        takes. Every loop that the run needs is compiled on the way. Where both are known, a voxel
        is enough to load what the function needs.
        """
        blending = plan.blending
        if blending.complete and plan.func_memory is not None:
            known = (blending.batch_size, blending.channels_in)
            axes = blending.grid.ndim + sum(one is not None for one in known)
            self.function(np.ones((1,) * axes, blending.input_dtype))
            warm_up(blending)
            return Trial(blending, plan.func_memory, self._resident(plan), 0.0)
        lead, _ = plan.region_box(0)
        try:
            found = self._trial_patch(plan, self.read(plan, lead))
        except SourceError:  # some of it is damaged: its region will fail, others need not
            found = None
        if found is None:  # nothing in sight will be called; the dtype is needed all the same
            batch = made_up(blending)
            place = ((0,) * blending.grid.ndim, Box((0,) * blending.grid.ndim, blending.grid.patch))
        else:
            place, patch = found
            batch = np.repeat(patch[None], blending.batch_size or 1, axis=0)

        def call(known: BlendSpec) -> Array:
            return self.caller(known, batch.copy(), lambda i: place)

        blending = learn(blending, call(blending), self.finalize)
        warm_up(blending)
        resident = self._resident(plan)
        begin = time.perf_counter()
        taken = machine.growth(lambda: call(blending))
        return Trial(blending, taken, resident, time.perf_counter() - begin)

    @staticmethod
    def _resident(plan: Plan) -> int:
        # threads share their process with what it held before; processes begin with nothing
        before = plan.held if plan.backend == "threads" else 0
        return max(0, machine.resident_bytes() - before)

    def _trial_patch(self, plan: Plan, read: Read) -> tuple[Place, Array] | None:
        """The patch nearest to the middle that is not skipped, (channels, *patch)."""
        blending, grid = plan.blending, plan.blending.grid
        numbers = relevant(grid, blending.owns, plan.box)
        if not all(len(n) for n in numbers):
            return None
        for position in itertools.islice(self._wanted(plan, numbers), TRIAL_PATCHES):
            patch = np.empty((blending.channels_in or 1, *grid.patch), blending.source_dtype)
            place = position, grid.box(position)
            read_padded(read, blending, place[1], patch)
            given = np.empty(patch.shape, blending.input_dtype)
            narrow(blending, patch, given, lambda place=place: place)  # type: ignore[misc]
            if self.patch_filter is None or not self.patch_filter.skips(given):
                return place, given
        return None

    def _wanted(self, plan: Plan, numbers: tuple[range, ...]) -> Iterator[tuple[int, ...]]:
        """Positions of patches that a mask keeps; about the nearest to the middle first.

        Rows of patches are looked at from the middle on, and of a wide row some at a time.
        """
        middle = tuple(n[len(n) // 2] for n in numbers)
        if self.patch_filter is None:
            yield middle
            return
        steps = (1, *(TRIAL_WIDTH for _ in numbers[1:]))
        parts = [_outwards(n, step) for n, step in zip(numbers, steps, strict=True)]
        for part in itertools.islice(itertools.product(*parts), TRIAL_LOOKS):
            tables = PatchTables.of(plan.blending, plan.box, part)
            kept = self.patch_filter.kept(tables, 0)
            if kept is None:
                kept = np.ones([len(n) for n in part[1:]], dtype=bool)
            places = np.argwhere(kept) + [n.start for n in part[1:]]
            order = np.argsort(np.abs(places - middle[1:]).sum(axis=1), kind="stable")
            for others in places[order[:TRIAL_PATCHES]].tolist():
                yield part[0][0], *others

    def recorder(self, site: Site) -> Recorder:
        """This process's own file of records."""
        with self._lock:
            return self._recorders.setdefault(site, Recorder(site.ledger, site.disk))

    def region(
        self, task: Task, shared: Shared, *, tick: Tick, stop: threading.Event | None = None
    ) -> Outcome:
        """Compute a task's box and write it, with a record of every layer that is finished."""
        plan, box = shared.plan, task.box
        machine.give_back()  # what the region before left in pieces, which would add up
        start, extent = placed(plan, task.lead, box)
        log = self.recorder(shared.site)
        log.write("start", task.region, attempt=task.attempt)
        begin = time.perf_counter()
        with (
            InFlight(shared.site.temp, task.region, self.caller) as flight,
            LayerWriter(
                shared.site.root,
                shared.site.disk,
                shared.spec,
                start=start,
                stop=tuple(a + n for a, n in zip(start, extent, strict=True)),
                stream_axis=plan.out_axes.index(plan.layout.patched[0]),
                check=functools.partial(_go_on, stop),
                wanted=shared.wanted,
            ) as writer,
        ):
            layers = LayerLog(log, task.region, units_of(plan, shared.spec, task.region))
            sink = StoreSink(writer, plan, box, layers)
            ticks = Ticks(tick)
            stream = Stream(
                plan.blending,
                box,
                flight,
                lambda blending: sink,
                self.read(plan, task.lead),
                layer=plan.read_layer,
                finalize=self.finalize,
                patch_filter=self.patch_filter,
                tick=ticks.add,
                stop=stop,
            )
            layers.stats = stream.stats
            stats = stream.run()
            ticks.flush()
            writer.close()
            outcome = Outcome(stats, writer.encoded_bytes, os.getpid(), machine.peak_bytes())
        log.write(
            "done",
            task.region,
            state=_state(stream),
            seconds=round(time.perf_counter() - begin, 6),
            phases={name: round(spent, 6) for name, spent in stats.seconds.items()},
            peak_bytes=outcome.peak_bytes,
        )
        return outcome


def _outwards(numbers: range, step: int) -> Iterator[range]:
    """Numbers of an axis, some at a time: the middle ones, then those before and after."""
    pieces = -(-len(numbers) // step)
    middle = len(numbers) // 2 // step
    order = (m for d in range(TRIAL_LOOKS) for m in dict.fromkeys((middle - d, middle + d)))
    for piece in order:
        if 0 <= piece < pieces:
            yield numbers[piece * step : (piece + 1) * step]


def _state(stream: Stream) -> str:
    """How a region ended: with patches computed, all of them skipped, or none there."""
    if stream.stats.patches:
        return "done"
    return "skipped" if stream.input is not None else "empty"


def placed(plan: Plan, lead: tuple[int, ...], box: Box) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where a box of the patched axes starts in the output, and its extent there."""
    layout, axes = plan.layout, plan.out_axes
    lengths: dict[int | None, int] = dict.fromkeys(layout.lead, 1)
    lengths.update(zip(layout.patched, box.shape, strict=True))
    begin = dict(zip((*layout.lead, *layout.patched), (*lead, *box.start), strict=True))
    lengths[None] = plan.blending.out_channels or 1
    start = tuple(0 if axis is None else begin[axis] - plan.roi.start[axis] for axis in axes)
    return start, tuple(lengths[axis] for axis in axes)


def units_of(plan: Plan, spec: TargetSpec, region: int) -> tuple[range, ...]:
    """The write units of a region, a range of positions per axis of the output."""
    start, extent = placed(plan, *plan.region_box(region))
    stop = [a + n for a, n in zip(start, extent, strict=True)]
    return tuple(unit_ranges(start, stop, spec.unit))


def _go_on(stop: threading.Event | None) -> None:
    """End the region here if the run was told to stop."""
    if stop is not None and stop.is_set():
        raise Stopped


class Ticks:
    """Passes counts on, but not more often than anybody can look."""

    def __init__(self, tick: Tick) -> None:
        self._tick, self._count, self._last = tick, 0, time.monotonic()

    def add(self, patches: int) -> None:
        self._count += patches
        if time.monotonic() - self._last > TICK_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._tick(self._count)
        self._count, self._last = 0, time.monotonic()


class LayerLog:
    """Records the layers of one region as they are finished.

    Parameters
    ----------
    log : of the process.
    region : int
    units : of the whole region, also where less of it is computed.
    """

    def __init__(self, log: Recorder, region: int, units: tuple[range, ...]) -> None:
        self._log, self._region = log, region
        self._count = math.prod(map(len, units))
        self._told = (0, 0)
        self.stats = Stats()

    def add(self, units: Sequence[Unit]) -> None:
        """Record the objects that were put, with what was done since the last ones."""
        if not units:
            return
        patches, clipped = self.stats.patches, self.stats.clipped
        self._log.write(
            "layer",
            self._region,
            of=self._count,
            units=units,
            patches=patches - self._told[0],
            clipped=clipped - self._told[1],
        )
        self._told = patches, clipped


@dataclass
class StoreSink:
    """Gathers finished planes into layers of stored chunks, and writes each as it is full."""

    writer: LayerWriter
    plan: Plan
    box: Box
    log: LayerLog
    layer: Array = field(init=False)

    def __post_init__(self) -> None:
        self.first = self.box.start[0]
        self.takes_blocks = self.plan.straight
        planes = min(self.plan.layer, self.box.shape[0])
        channels = self.plan.blending.out_channels or 1
        self.layer = np.empty((channels, planes, *self.box.shape[1:]), self.plan.blending.out_dtype)

    def whole(self) -> None:
        """There is only ever a layer of it."""

    def limit(self, plane: int) -> int:
        return min(self.first + int(self.layer.shape[1]), self.box.stop[0])

    def rows(self, start: int, stop: int) -> Array:
        return self.layer[:, start - self.first : stop - self.first]

    def done(self, stop: int) -> None:
        if (stop - self.first) % self.plan.chunks[0] and stop < self.box.stop[0]:
            return
        full = self.layer[:, : stop - self.first]
        self.writer.write(self._as_stored(full), self.first - self.plan.box.start[0])
        self.log.add(self.writer.drain())
        self.first = stop

    def _as_stored(self, full: Array) -> Array:
        """Finished planes (channels, *patched) with all axes of the output, in its order."""
        own: tuple[int | None, ...] = (None, *self.plan.layout.patched)
        axes = self.plan.out_axes
        if None not in axes:
            full, own = full[0], own[1:]
        there = full.transpose([own.index(axis) for axis in axes if axis in own])
        return there[tuple(slice(None) if axis in own else np.newaxis for axis in axes)]


def warm_up(blending: BlendSpec) -> None:
    """Compile every loop that a blending needs, on a volume of a few voxels."""
    n = blending.grid.ndim
    grid = PatchGrid((4,) * n, 2, 1)
    box = Box((0,) * n, grid.shape)
    # a window of the user's need not make sense for a patch of two voxels
    windows = blending.windows if blending.crop else ("constant",) * n
    tables = PatchTables.of(replace(blending, grid=grid, windows=windows), box)
    ids = np.zeros(1, dtype=np.int64)
    source = Ring.new(
        box, 4, 1, blending.input_dtype if blending.halves else blending.source_dtype, 0
    )
    cut(source, tables, ids, np.zeros((1, 1, *grid.patch), blending.cut_dtype))
    sums = Sums.new(Ring.new(box, 4, 1, blending.accumulator, 0), blending.mode)
    blend(sums, tables, ids, np.zeros((1, 1, *grid.patch), blending.known_result), blending.mode)
    if blending.mode is Mode.PRESENT:
        touch(sums, tables, ids)
    if not blending.finalizes:
        round_to(sums.values.array, np.zeros(sums.values.array.shape, blending.out_dtype))
