"""All patches of a grid in batches, in an order that suits the stored chunks.

`iter_patches` walks a grid column by column. A column is as wide as memory allows, whole
stored chunks where it can be, and is streamed along the first axis in layers of chunks, so
that a chunk is decoded once by every column that touches it:

      y x  ┌────┬────┐
       z   │ 1  │ 2  │     within a column: rows of patches, in raster order
       ↓   │ ↓  │ ↓  │
           └────┴────┘
"""

from __future__ import annotations

import itertools
import math
import queue
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.blend import Stats
from volpatch.compute.buffers import PatchTables, Ring
from volpatch.compute.kernels import cut
from volpatch.compute.reading import Read, RingInput, reach_of
from volpatch.core.blending import BlendSpec
from volpatch.core.box import Box
from volpatch.core.errors import GridError, MemoryLimitError, SettingError
from volpatch.core.grid import Overlap, PatchGrid
from volpatch.core.layout import Layout, refuse_beside_grid
from volpatch.core.options import Sizes
from volpatch.core.parse import by_axis, parse_bytes, show_bytes, whole_counts
from volpatch.sampling.views import View, borders_of, channels_of, check_listed, reader
from volpatch.storage.adapt import as_volume

Array = NDArray[Any]
Ints = NDArray[np.int64]
Batch = tuple[list[Box], Array]


def iter_patches(
    volume: Any,
    grid: PatchGrid | Sizes,
    *,
    stride: Sizes | None = None,
    overlap: Overlap | Sequence[Overlap] | Mapping[str, Overlap] | None = None,
    edge: str | Sequence[str] | None = None,
    offset: Sizes | None = None,
    batch_size: int | None = None,
    prefetch: int = 0,
    channel_axis: int | str | None = None,
    pad_mode: str = "reflect",
    pad_value: float = 0,
    memory: int | str = "256MiB",
) -> Iterator[Batch]:
    """All patches of a volume in batches, each once, in an order that suits its chunks.

    Parameters
    ----------
    volume : NumPy, dask or xarray array, path, or Source
        Axes before the patched ones are looped over, index by index.
    grid : PatchGrid, or the patch size
        A size makes a grid from `stride` or `overlap` (default "50%"), `edge` (default
        "shift"), `offset`; a grid has its own.
    batch_size : int, optional
        Patches per batch; only the last batch may be shorter. None: one.
    prefetch : int
        Batches that a thread in the background keeps ready; 0 reads when asked.
    channel_axis : int or str, optional
        Axis that comes whole with every patch, before the patched axes.
    pad_mode, pad_value
        How patches that hang over the end (edge="pad") are filled: "reflect", "symmetric",
        "edge", or "constant" with `pad_value`.
    memory : int or str
        Bound of the buffer the volume is read into. Where a layer of chunks under the
        whole volume does not fit, chunks between two columns are read for both.

    Yields
    ------
    boxes : list of Box
        Over the patched axes; where axes are looped over, over all axes of the volume, so
        that `volume[box.slices]` is the patch but for the length of these.
    batch : ndarray (B, [channels,] *patch)
        In the volume's dtype; fresh memory, yours to keep and to write into.

    Raises
    ------
    GridError, SettingError
        On the call, before anything is read: a grid that is not the volume's, settings
        that cannot be.
    MemoryLimitError
        `memory` does not hold one patch.

    Notes
    -----
    Stopping early (`break`, `close()`) ends the background thread, after the batch it is
    reading. Patches come column by column, not in raster order: go by the boxes.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(30).reshape(5, 6)
    >>> for boxes, batch in iter_patches(image, 4, stride=2, batch_size=2):
    ...     print([str(box) for box in boxes], batch.shape)
    ['[0:4, 0:4]', '[0:4, 2:6]'] (2, 4, 4)
    ['[1:5, 0:4]', '[1:5, 2:6]'] (2, 4, 4)
    """
    view = View.of(as_volume(volume, "the volume"), "the volume")
    if isinstance(grid, PatchGrid):
        layout = _layout_of(view, grid, channel_axis)
        refuse_beside_grid(stride=stride, overlap=overlap, edge=edge, offset=offset)
    else:
        layout = Layout.of(view.dims, view.shape, grid, channel_axis, named=view.named)
        dims = layout.patched_dims
        grid = PatchGrid(
            layout.patched_shape,
            by_axis(grid, dims, "patch"),
            by_axis(stride, dims, "stride"),
            overlap=by_axis(overlap, dims, "overlap"),
            edge=by_axis("shift" if edge is None else edge, dims, "edge"),
            offset=by_axis(0 if offset is None else offset, dims, "offset"),
        )
    blending = BlendSpec(
        grid,
        ("constant",) * grid.ndim,
        view.dtype,
        view.dtype,
        channels_in=channels_of(layout),
        fill_value=0,
        pad_mode=pad_mode,
        pad_value=_fitting(pad_value, view.dtype),
    )
    size = whole_counts(batch_size, 1, "batch_size")
    ahead = whole_counts(prefetch or None, 0, "prefetch")
    columns = Columns.fit(blending, view, layout, parse_bytes(memory, "memory"))
    batches = _batches(blending, view, layout, columns, size)
    return _ahead(batches, ahead) if ahead else batches


def _layout_of(view: View, grid: PatchGrid, channel_axis: int | str | None) -> Layout:
    n = grid.ndim
    room = len(view.dims) - (channel_axis is not None)
    layout = (
        Layout.of(view.dims, view.shape, grid.patch, channel_axis, named=view.named)
        if n <= room
        else None
    )
    if layout is None or layout.patched_shape != grid.shape:
        besides = "" if channel_axis is None else f" besides channel_axis={channel_axis!r}"
        raise GridError(
            f"the grid is made for {n} axes of {grid.shape} voxels, but the volume of shape "
            f"{view.shape} has {layout.patched_shape if layout else view.shape} there{besides}; "
            f"make the grid from the volume's shape, or give the patch size instead"
        )
    return layout


def _fitting(value: float, dtype: np.dtype[Any]) -> float:
    """`pad_value`, if voxels can have it."""
    if dtype.kind in "biu":
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if not (low <= value <= high and value == int(value)):
            raise SettingError(
                f"pad_value {value} is no {dtype}; choose a whole number from {low} to {high}"
            )
    return value


@dataclass(frozen=True)
class Columns:
    """How a grid is walked: columns of patches, streamed along the first axis.

    Attributes
    ----------
    groups : per axis but the first, ranges of lattice numbers; a column is one of each.
    borders : planes at which reading pauses, along the first axis.
    voxels : what the buffer has to hold, channels counted.
    """

    groups: tuple[tuple[range, ...], ...]
    borders: Ints
    voxels: int

    @classmethod
    def fit(cls, blending: BlendSpec, view: View, layout: Layout, memory: int) -> Columns:
        """The widest columns whose buffer fits; narrower ones first, thinner layers after."""
        grid = blending.grid
        for axis in grid.axes:
            check_listed(axis.count, f"patches of {axis.patch} on an axis of {axis.size} voxels")
        stored = [
            borders_of(axis.size, axis.patch) if view.borders is None else view.borders[i]
            for axis, i in zip(grid.axes, layout.patched, strict=True)
        ]
        parts = [1] * grid.ndim  # of the face axes; the first axis' counts halvings of its layers
        starts = [np.array(axis.starts, np.int64) for axis in grid.axes]
        while True:
            columns = cls._of(blending, stored, starts, parts)
            need = columns.voxels * blending.source_dtype.itemsize
            if need <= memory or len(grid) == 0:
                return columns
            divisible = [a for a, groups in enumerate(columns.groups, 1) if _most(groups) > 1]
            whole = [a for a in divisible if parts[a] < len(stored[a]) - 1]  # chunks stay whole
            if divisible:
                widths = {a: _extent(columns.groups[a - 1], starts[a]) for a in divisible}
                parts[max(whole or divisible, key=widths.__getitem__)] *= 2
            elif np.diff(columns.borders).max() > 1:
                parts[0] *= 2
            else:
                raise MemoryLimitError(
                    f"one patch of {grid.patch} voxels needs {show_bytes(need)} with "
                    f"{blending.channels_in or 1} channels of {blending.source_dtype}, over "
                    f"memory={show_bytes(memory)}; raise memory, or choose a smaller patch"
                )

    @classmethod
    def _of(
        cls, blending: BlendSpec, stored: list[Ints], starts: list[Ints], parts: list[int]
    ) -> Columns:
        grid = blending.grid
        groups = tuple(
            _groups(s, _coarser(b, n))
            for s, b, n in zip(starts[1:], stored[1:], parts[1:], strict=True)
        )
        layer = -(-int(np.diff(stored[0]).max()) // parts[0])
        borders = stored[0] if parts[0] == 1 else borders_of(grid.shape[0], layer)
        extent = 0 if not len(starts[0]) else int(starts[0][-1] - starts[0][0])
        planes = min(extent + grid.patch[0], grid.patch[0] + layer - 1)
        face = [
            _extent(g, s) + p for g, s, p in zip(groups, starts[1:], grid.patch[1:], strict=True)
        ]
        return cls(groups, borders, (blending.channels_in or 1) * planes * math.prod(face))

    def __iter__(self) -> Iterator[tuple[range, ...]]:
        return itertools.product(*self.groups)


def _coarser(borders: Ints, parts: int) -> Ints:
    """First voxels of about `parts` parts of an axis: whole chunks while there are enough."""
    chunks = len(borders) - 1
    if parts <= chunks:
        return borders[: -1 : -(-chunks // parts)]
    return borders_of(int(borders[-1]), max(1, -(-int(borders[-1]) // parts)))[:-1]


def _groups(starts: Ints, parts: Ints) -> tuple[range, ...]:
    """Lattice numbers of the patches that start in each part, where there are any."""
    firsts = np.flatnonzero(np.diff(np.searchsorted(parts, starts, "right"), prepend=-1))
    return tuple(range(a, b) for a, b in itertools.pairwise([*firsts.tolist(), len(starts)]))


def _most(groups: Sequence[range]) -> int:
    return max(map(len, groups), default=0)


def _extent(groups: Sequence[range], starts: Ints) -> int:
    """Voxels from the first start to the last, in the widest group."""
    return max((int(starts[g[-1]] - starts[g[0]]) for g in groups), default=0)


def _layers(
    blending: BlendSpec, tables: PatchTables, read: Read, borders: Ints, buffer: Array
) -> RingInput:
    """The planes of one column of patches, in a part of the buffer."""
    reach = reach_of(blending.grid, tables.numbers)
    planes = min(reach.shape[0], blending.grid.patch[0] + int(np.diff(borders).max()) - 1)
    channels, face = blending.channels_in or 1, reach.shape[1:]
    flat = buffer[: channels * planes * math.prod(face)]
    ring = Ring(flat, reach.start, planes, face, channels)

    def next_border(plane: int) -> int:
        return int(borders[np.searchsorted(borders, plane, "right")])

    return RingInput(blending, reach, ring, read, next_border)


def _batches(
    blending: BlendSpec, view: View, layout: Layout, columns: Columns, size: int
) -> Iterator[Batch]:
    """Batches of all patches, column by column."""
    grid, channels = blending.grid, blending.channels_in or 1
    whole = Box((0,) * grid.ndim, grid.shape)
    leads = layout.pick(layout.shape, layout.lead)
    left = len(grid) * math.prod(leads)
    buffer = np.empty(columns.voxels if left else 0, blending.source_dtype)
    batch, boxes, stats = np.empty(0), list[Box](), Stats()
    for lead, column in itertools.product(np.ndindex(*leads), columns if left else ()):
        tables = PatchTables.of(blending, whole, (range(grid.lattice[0]), *column))
        layers = _layers(blending, tables, reader(view, layout, lead), columns.borders, buffer)
        per_row = math.prod(map(len, column))
        for row, number in enumerate(tables.numbers[0]):
            start = grid.axes[0].start(number)
            layers.load(start, start + grid.patch[0], stats)
            at, end = row * per_row, (row + 1) * per_row
            while at < end:
                if not boxes:
                    shape = (min(size, left), channels, *grid.patch)
                    batch = np.empty(shape, blending.source_dtype)
                ids = np.arange(at, min(end, at + len(batch) - len(boxes)))
                cut(layers.ring, tables, ids, batch[len(boxes) : len(boxes) + len(ids)])
                found = (grid.box(tables.position(i)) for i in ids.tolist())
                boxes.extend(_full(layout, lead, box) if layout.lead else box for box in found)
                at += len(ids)
                if len(boxes) == len(batch):
                    yield boxes, batch if layout.channel is not None else batch[:, 0]
                    left, boxes = left - len(batch), []


def _full(layout: Layout, lead: tuple[int, ...], box: Box) -> Box:
    """The box over all axes of the volume; like it, it may hang over the end."""
    whole = Box((0,) * len(layout.shape), layout.shape)
    chosen = layout.selection(lead, whole, box)
    return Box(tuple(s.start for s in chosen), tuple(s.stop for s in chosen))


def _ahead(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """The same batches, made by a thread that stays up to `count` of them ahead."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(count)
    stop = threading.Event()

    def hand(item: Batch | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.05)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for batch in batches:
                hand(batch)
                if stop.is_set():
                    return
            hand(None)
        except BaseException as error:  # it is raised where the batches are used
            hand(error)

    thread = threading.Thread(target=work, name="volpatch-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        if not sys.is_finalizing():  # a daemon thread is frozen then, and would never end
            thread.join()
