"""Patches for a loop of one's own: all of a grid in a chunk-friendly order, or a random few.

`iter_patches` walks a grid column by column. A column is as wide as memory allows, whole
stored chunks where it can be, and is streamed along the first axis in layers of chunks, so
that a chunk is decoded once by every column that touches it:

      y x  ┌────┬────┐
       z   │ 1  │ 2  │     within a column: rows of patches, in raster order
       ↓   │ ↓  │ ↓  │
           └────┴────┘

`sample_patches` first decides where the patches lie and then reads chunk by chunk: every
stored chunk that some patch needs is read once, and handed to all of them.
"""

from __future__ import annotations

import itertools
import math
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.errors import GridError, MemoryLimitError, SettingError
from volpatch.forms import by_axis, parse_bytes, show_bytes, whole_counts
from volpatch.geometry import Box, Overlap, PatchGrid, per_axis, whole_number
from volpatch.kernels import cut
from volpatch.layout import Layout, default_dims
from volpatch.options import Sizes
from volpatch.recipe import Recipe, check_dtype
from volpatch.region import Read, reach_of, read_padded, ring_planes
from volpatch.storage.opening import open_source, source_of
from volpatch.storage.source import Source
from volpatch.tables import Ring, Tables

Array = NDArray[Any]
Ints = NDArray[np.int64]
Batch = tuple[list[Box], Array]

TRIES = 1000  # draws per patch before `exclude` is given up on
CELLS = 2**24  # of a mask that are looked at together
BLOCK_CELLS_LOG2 = 18  # of a mask, in one count
MOST_BLOCKS = 2**20


@dataclass(frozen=True)
class View:
    """Any kind of volume, seen alike.

    Attributes
    ----------
    named : whether `dims` are the volume's own words.
    borders : per axis where stored chunks begin, and the axis' end; None where there are none.
    fill : copies a selection (slices over all axes) of the volume into an array.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    named: bool
    borders: tuple[Ints, ...] | None
    fill: Callable[[tuple[slice, ...], Array], None]

    @classmethod
    def of(cls, volume: Any, what: str) -> View:
        """Look at a path, a Source, a DataArray, or anything with a shape that can be sliced."""
        xarray = hasattr(volume, "encoding") and hasattr(volume, "dims")
        if isinstance(volume, str | os.PathLike):
            volume = open_source(volume)
        elif hasattr(volume, "data_vars"):
            raise SettingError(
                f"{what} is a Dataset of {sorted(map(str, volume.data_vars))}; give one variable"
            )
        elif xarray:
            volume = source_of(volume) or volume
        elif isinstance(volume, list | tuple):
            volume = np.asarray(volume)
        if not all(hasattr(volume, name) for name in ("shape", "dtype", "__getitem__")):
            raise SettingError(
                f"{what} must be a NumPy, dask or xarray array or a path; "
                f"got {type(volume).__module__}.{type(volume).__name__}"
            )
        shape, chunks = tuple(volume.shape), getattr(volume, "chunks", None)
        if any(n != n for n in shape):
            raise GridError(
                f"{what} has the shape {shape}: dask does not know its chunk sizes; "
                f"call compute_chunk_sizes() on it first"
            )
        dims = getattr(volume, "dims", None) if xarray or isinstance(volume, Source) else None
        return cls(
            default_dims(len(shape)) if dims is None else tuple(map(str, dims)),
            shape,
            check_dtype(volume.dtype, f"the dtype of {what},"),
            dims is not None,
            None if chunks is None else tuple(map(_borders, shape, chunks)),
            volume.read if isinstance(volume, Source) else partial(_copy, _data(volume)),
        )


def _data(volume: Any) -> Any:
    """The dask array of a DataArray, which is cheaper to slice."""
    lazy = hasattr(volume, "encoding") and volume.chunks is not None
    return volume.data if lazy else volume


def _copy(volume: Any, selection: tuple[slice, ...], out: Array) -> None:
    out[...] = np.asarray(volume[selection])


def _borders(size: int, chunk: int | tuple[int, ...]) -> Ints:
    if isinstance(chunk, tuple):
        kept = [c for c in chunk if c]
        return np.cumsum([0, *kept], dtype=np.int64)
    return np.append(np.arange(0, size, max(1, chunk), dtype=np.int64), size)


def _reader(view: View, layout: Layout, lead: tuple[int, ...]) -> Read:
    """Reads boxes of the patched axes, (channels, *box), at one index of the leading ones."""
    whole = Box((0,) * len(view.shape), view.shape)
    inverse = tuple(int(i) for i in np.argsort(layout.order))

    def read(box: Box, out: Array) -> None:
        values = out[0] if layout.channel is None else out
        every = values[(None,) * len(layout.lead)].transpose(inverse)
        view.fill(layout.selection(lead, whole, box), every)

    return read


def _channels(layout: Layout) -> int | None:
    return None if layout.channel is None else layout.shape[layout.channel]


# ---------------------------------------------------------------- all patches of a grid


def iter_patches(
    volume: Any,
    grid: PatchGrid | Sizes,
    *,
    stride: Sizes | None = None,
    overlap: Overlap | Sequence[Overlap] | Mapping[str, Overlap] | None = None,
    edge: str | Sequence[str] = "shift",
    offset: Sizes = 0,
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
        A size makes a grid from `stride` or `overlap` (default "50%"), `edge`, `offset`.
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
    view = View.of(volume, "the volume")
    if isinstance(grid, PatchGrid):
        layout = _layout_of(view, grid, channel_axis)
        if stride is not None or overlap is not None or edge != "shift" or offset != 0:
            raise SettingError(
                "stride, overlap, edge and offset are part of the grid that was given; "
                "leave them out, or give a patch size instead of a grid"
            )
    else:
        layout = Layout.of(view.dims, view.shape, grid, channel_axis, named=view.named)
        dims = layout.patched_dims
        grid = PatchGrid(
            layout.patched_shape,
            by_axis(grid, dims, "patch"),
            by_axis(stride, dims, "stride"),
            overlap=by_axis(overlap, dims, "overlap"),
            edge=by_axis(edge, dims, "edge"),
            offset=by_axis(offset, dims, "offset"),
        )
    recipe = Recipe(
        grid,
        ("constant",) * grid.ndim,
        view.dtype,
        view.dtype,
        channels_in=_channels(layout),
        fill=0,
        pad_mode=pad_mode,
        pad_value=_fitting(pad_value, view.dtype),
    )
    size = whole_counts(batch_size, 1, "batch_size")
    ahead = whole_counts(prefetch or None, 0, "prefetch")
    columns = Columns.fit(recipe, view, layout, parse_bytes(memory, "memory"))
    batches = _batches(recipe, view, layout, columns, size)
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
    def fit(cls, recipe: Recipe, view: View, layout: Layout, memory: int) -> Columns:
        """The widest columns whose buffer fits; narrower ones first, thinner layers after."""
        grid = recipe.grid
        stored = [
            _borders(axis.size, axis.patch) if view.borders is None else view.borders[i]
            for axis, i in zip(grid.axes, layout.patched, strict=True)
        ]
        parts = [1] * grid.ndim  # of the face axes; the first axis' counts halvings of its layers
        starts = [np.array(axis.starts, np.int64) for axis in grid.axes]
        while True:
            columns = cls._of(recipe, stored, starts, parts)
            need = columns.voxels * recipe.source_dtype.itemsize
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
                    f"{recipe.channels_in or 1} channels of {recipe.source_dtype}, over "
                    f"memory={show_bytes(memory)}; raise memory, or choose a smaller patch"
                )

    @classmethod
    def _of(
        cls, recipe: Recipe, stored: list[Ints], starts: list[Ints], parts: list[int]
    ) -> Columns:
        grid = recipe.grid
        groups = tuple(
            _groups(s, _coarser(b, n))
            for s, b, n in zip(starts[1:], stored[1:], parts[1:], strict=True)
        )
        layer = -(-int(np.diff(stored[0]).max()) // parts[0])
        borders = stored[0] if parts[0] == 1 else _borders(grid.shape[0], layer)
        extent = 0 if not len(starts[0]) else int(starts[0][-1] - starts[0][0])
        planes = min(extent + grid.patch[0], ring_planes(grid.patch[0], layer))
        face = [
            _extent(g, s) + p for g, s, p in zip(groups, starts[1:], grid.patch[1:], strict=True)
        ]
        return cls(groups, borders, (recipe.channels_in or 1) * planes * math.prod(face))

    def __iter__(self) -> Iterator[tuple[range, ...]]:
        return itertools.product(*self.groups)


def _coarser(borders: Ints, parts: int) -> Ints:
    """First voxels of about `parts` parts of an axis: whole chunks while there are enough."""
    chunks = len(borders) - 1
    if parts <= chunks:
        return borders[: -1 : -(-chunks // parts)]
    return _borders(int(borders[-1]), max(1, -(-int(borders[-1]) // parts)))[:-1]


def _groups(starts: Ints, parts: Ints) -> tuple[range, ...]:
    """Lattice numbers of the patches that start in each part, where there are any."""
    firsts = np.flatnonzero(np.diff(np.searchsorted(parts, starts, "right"), prepend=-1))
    return tuple(range(a, b) for a, b in itertools.pairwise([*firsts.tolist(), len(starts)]))


def _most(groups: Sequence[range]) -> int:
    return max(map(len, groups), default=0)


def _extent(groups: Sequence[range], starts: Ints) -> int:
    """Voxels from the first start to the last, in the widest group."""
    return max((int(starts[g[-1]] - starts[g[0]]) for g in groups), default=0)


class Layers:
    """The planes that the current row of patches needs, read up to where chunks end."""

    def __init__(
        self, recipe: Recipe, tables: Tables, read: Read, borders: Ints, buffer: Array
    ) -> None:
        self._recipe, self._read, self._borders = recipe, read, borders
        reach = reach_of(recipe.grid, tables.numbers)
        layer = int(np.diff(borders).max())
        planes = min(reach.shape[0], ring_planes(recipe.grid.patch[0], layer))
        channels, face = recipe.channels_in or 1, reach.shape[1:]
        flat = buffer[: channels * planes * math.prod(face)]
        self.ring = Ring(flat, reach.start, planes, face, channels)
        self._reach, self._loaded = reach, reach.start[0]

    def load(self, start: int, stop: int) -> None:
        """Make the planes [start, stop) present; those before `start` are given up."""
        self._loaded = max(self._loaded, start)
        end, size = self._reach.stop[0], self._recipe.grid.shape[0]
        while self._loaded < stop:
            border = end
            if self._loaded < size:
                next_border = np.searchsorted(self._borders, self._loaded, "right")
                border = min(end, int(self._borders[next_border]))
            if len(self.ring.runs(self._loaded, border)) > 1:
                self._to_front(start)  # a layer in two pieces would be decoded twice
            ((_, piece),) = self.ring.runs(self._loaded, border)
            box = Box((self._loaded, *self._reach.start[1:]), (border, *self._reach.stop[1:]))
            read_padded(self._read, self._recipe, box, piece)
            self._loaded = border

    def _to_front(self, start: int) -> None:
        """Move the planes from `start` on to the beginning of the buffer."""
        planes = self.ring.array
        behind = (start - self.ring.origin[0]) % self.ring.planes
        for i in range(self._loaded - start):
            planes[:, i] = planes[:, behind + i]
        self.ring = replace(self.ring, origin=(start, *self.ring.origin[1:]))


def _batches(
    recipe: Recipe, view: View, layout: Layout, columns: Columns, size: int
) -> Iterator[Batch]:
    """Batches of all patches, column by column."""
    grid, channels = recipe.grid, recipe.channels_in or 1
    whole = Box((0,) * grid.ndim, grid.shape)
    leads = layout.pick(layout.shape, layout.lead)
    left = len(grid) * math.prod(leads)
    buffer = np.empty(columns.voxels if left else 0, recipe.source_dtype)
    batch, boxes = np.empty(0), list[Box]()
    for lead, column in itertools.product(np.ndindex(*leads), columns if left else ()):
        tables = Tables.of(recipe, whole, (range(grid.lattice[0]), *column))
        layers = Layers(recipe, tables, _reader(view, layout, lead), columns.borders, buffer)
        per_row = math.prod(map(len, column))
        for row, number in enumerate(tables.numbers[0]):
            start = grid.axes[0].start(number)
            layers.load(start, start + grid.patch[0])
            at, end = row * per_row, (row + 1) * per_row
            while at < end:
                if not boxes:
                    shape = (min(size, left), channels, *grid.patch)
                    batch = np.empty(shape, recipe.source_dtype)
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


# ---------------------------------------------------------------- a random few, or given ones


@dataclass(frozen=True)
class Samples:
    """Patches and where they come from.

    Attributes
    ----------
    patches : (n, [channels,] *patch), or a mapping or sequence of these, as the volumes were.
    origins : (n, ndim) int64, first voxel of every patch along the patched axes.
    """

    patches: Any
    origins: Ints

    def __len__(self) -> int:
        return len(self.origins)


def sample_patches(
    volumes: Any,
    patch: Sizes,
    n: int | None = None,
    *,
    rng: int | np.random.Generator | None = None,
    where: Any = None,
    at: Any = None,
    balance: Any = None,
    exclude: Box | Sequence[Box] | None = None,
    channel_axis: int | str | None = None,
) -> Samples:
    """Patches at random or at given positions, the same ones in several aligned volumes.

    The centre voxel of a patch is `origin + patch // 2`.

    Parameters
    ----------
    volumes : NumPy, dask or xarray array, path, Source; or a mapping or sequence of these
        Equally long along the patched axes, such as an image and its labels.
    patch : int, sequence of int, or mapping by axis name
        Patch size in voxels; a sequence patches the last axes.
    n : int
        How many patches; drawn independently, so that one may come twice.
    rng : int or Generator, optional
        The same seed gives the same patches, however the volumes are stored.
    where : array, path or anything that can be sliced, optional
        Mask on the patched axes' grid or coarser: only centres where it is not zero are
        drawn, all of them equally likely. Read by chunks, twice.
    at : (n, ndim) numbers, optional
        Centres in voxels, instead of random ones; rounded to the nearest voxel.
    balance : like `where`, of non-negative integers, optional
        Patch i is centred on the class number i modulo the count of classes, from those
        present among the admissible centres, in ascending order: all as often, whatever
        their sizes. 0 is a class too; `where=` takes it out.
    exclude : Box or sequence of Box, optional
        Parts that no patch may touch, such as a hold-out region.
    channel_axis : int or str, optional
        Axis that comes whole with every patch; volumes that have only the patched axes,
        such as labels, do without it.

    Returns
    -------
    Samples

    Raises
    ------
    GridError
        A patch that does not fit, volumes that are not aligned.
    SettingError
        Settings that do not go together, a mask without admissible centres, points whose
        patch leaves the volume, an `exclude` that leaves too little room.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(400).reshape(20, 20)
    >>> data = {"image": image, "labels": image > 199}
    >>> drawn = sample_patches(data, 5, 4, rng=0, balance=data["labels"])
    >>> drawn.patches["image"].shape, drawn.patches["labels"][:, 2, 2].tolist()
    ((4, 5, 5), [False, True, False, True])
    >>> sample_patches(image, 3, at=[(1, 1), (9.8, 4)]).origins.tolist()
    [[0, 0], [9, 3]]
    """
    names, given = _named(volumes)
    views = [View.of(volume, name) for name, volume in zip(names, given, strict=True)]
    layouts = _aligned(names, views, patch, channel_axis)
    dims, shape = layouts[0].patched_dims, layouts[0].patched_shape
    sizes = _patch_sizes(by_axis(patch, dims, "patch"), dims, shape)
    room = Room(shape, sizes, exclude)
    if at is not None:
        if n is not None or where is not None or balance is not None:
            raise SettingError(
                "at=points says where the patches are; leave out n, where and balance, or at"
            )
        origins = _at(at, room)
    elif n is None:
        raise SettingError("how many patches? give n, or at=points")
    else:
        origins = _drawn(whole_counts(n, 1, "n"), rng, room, where, balance)
    patches = [_gather(v, layout, origins, sizes) for v, layout in zip(views, layouts, strict=True)]
    if isinstance(volumes, Mapping):
        return Samples(dict(zip(volumes, patches, strict=True)), origins)
    if isinstance(volumes, list | tuple):
        return Samples(patches if isinstance(volumes, list) else tuple(patches), origins)
    return Samples(patches[0], origins)


def _named(volumes: Any) -> tuple[list[str], list[Any]]:
    """The volumes, and what messages call them."""
    if isinstance(volumes, Mapping) and not hasattr(volumes, "data_vars"):
        names, given = [f"volume {key!r}" for key in volumes], list(volumes.values())
    elif isinstance(volumes, list | tuple):
        names, given = [f"volume {i}" for i in range(len(volumes))], list(volumes)
    else:
        names, given = ["the volume"], [volumes]
    if not given:
        raise SettingError("there are no volumes to sample; give at least one")
    return names, given


def _aligned(
    names: list[str], views: list[View], patch: Sizes, channel_axis: int | str | None
) -> list[Layout]:
    """Roles of the axes of every volume; the patched ones must be equally long."""

    sized = len(patch) if hasattr(patch, "__len__") else None
    ranks = {len(view.dims) for view in views}

    def channel(view: View, patched: int) -> int | str | None:
        lacks = isinstance(channel_axis, str) and channel_axis not in view.dims and len(views) > 1
        return None if lacks or len(view.dims) <= patched else channel_axis

    def patchable(view: View) -> int:
        """Axes that one number as patch size is for."""
        axis = channel(view, 0) if len(ranks) == 1 else None  # else the labels tell
        return len(Layout.of(view.dims, view.shape, 1, axis, named=view.named).patched)

    patched = min(map(patchable, views)) if sized is None else sized
    sizes = patch if isinstance(patch, Mapping) else per_axis(patch, patched, "patch")
    layouts = [Layout.of(v.dims, v.shape, sizes, channel(v, patched), named=v.named) for v in views]
    for name, layout in zip(names, layouts, strict=True):
        leads = layout.pick(layout.shape, layout.lead)
        if math.prod(leads) > 1:
            raise GridError(
                f"{name} of shape {layout.shape} has the axes "
                f"{layout.pick(layout.dims, layout.lead)} of {leads} besides the patched ones; "
                f"choose one index of each, or hand one over whole with channel_axis"
            )
        if layout.patched_shape != layouts[0].patched_shape:
            raise GridError(
                f"{name} has {layout.patched_shape} voxels along the patched axes, but {names[0]} "
                f"has {layouts[0].patched_shape}; aligned volumes are equally long"
            )
    return layouts


def _patch_sizes(patch: Any, dims: Sequence[str], shape: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(
        whole_number(p, f"patch on {d}")
        for p, d in zip(per_axis(patch, len(dims), "patch"), dims, strict=True)
    )
    for size, dim, length in zip(sizes, dims, shape, strict=True):
        if not 1 <= size <= length:
            raise GridError(
                f"patch {size} on {dim} does not fit its {length} voxels; "
                f"choose a patch from 1 to {length}"
            )
    return sizes


def _at(at: Any, room: Room) -> Ints:
    """Origins of the patches that are centred on given points."""
    ndim = len(room.shape)
    try:
        points = np.asarray(at, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.empty(())
    if points.size == 0 and len(points.shape) == 1:
        points = points.reshape(0, ndim)
    if points.ndim != 2 or points.shape[1] != ndim or not np.isfinite(points).all():
        raise SettingError(
            f"at must be finite numbers of shape (points, {ndim}), one row per centre; got "
            f"{f'shape {points.shape}' if points.shape else repr(at)}"
        )
    centres = np.rint(points)
    outside = np.flatnonzero(((centres < room.low) | (centres >= room.high)).any(axis=1))
    if len(outside):
        raise SettingError(
            f"{len(outside)} of {len(points)} points are too near to the border for a patch of "
            f"{room.patch}, the first is at[{outside[0]}] = {tuple(points[outside[0]].tolist())}: "
            f"centres must lie in {room} of the volume's {room.shape}; leave these out, or choose "
            f"a smaller patch"
        )
    origins = centres.astype(np.int64) - room.half
    held = np.flatnonzero(room.held(origins))
    if len(held):
        raise SettingError(
            f"{len(held)} of {len(points)} points have patches that touch an excluded box, the "
            f"first is at[{held[0]}] = {tuple(points[held[0]].tolist())}; leave these out"
        )
    return origins


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


def _drawn(n: int, rng: Any, room: Room, where: Any, balance: Any) -> Ints:
    """Origins of `n` random patches; those that touch what is excluded are drawn again."""
    try:
        generator = np.random.default_rng(rng)
    except (TypeError, ValueError):
        raise SettingError(f"rng must be a whole number or a Generator, got {rng!r}") from None
    census = None if where is None and balance is None else Census(Cells(room, where, balance))
    origins = np.empty((n, len(room.shape)), np.int64)
    left = np.arange(n)
    for _ in range(TRIES if room.boxes else 1):
        if census is None:
            centres = generator.integers(room.low, room.high, (len(left), len(room.shape)))
        else:
            centres = census.draw(left, generator)
        origins[left] = centres - room.half
        left = left[room.held(origins[left])]
        if not len(left):
            return origins
    raise SettingError(
        f"found {n - len(left)} of {n} patches of {room.patch} that touch none of the "
        f"{len(room.boxes)} excluded boxes, after {TRIES} tries each; exclude less of the "
        f"{room.shape} voxels, or choose a smaller patch"
    )


class Cells:
    """The cells into which a mask and labels divide the volume; both may be coarse.

    A voxel v lies in cell v * cells // voxels of an array.

    Attributes
    ----------
    edges : per axis, first voxels of the cells, and the axis' end.
    widths : per axis, how many admissible centres lie in each cell.
    box : the cells that have any.
    """

    def __init__(self, room: Room, where: Any, balance: Any) -> None:
        self._room = room
        given = [(where, "where"), (balance, "balance")]
        self.views = [None if a is None else _marks(a, what, room.shape) for a, what in given]
        self.edges: list[Ints] = []
        self._index: list[list[Ints]] = []
        for axis, n in enumerate(room.shape):
            counts = [v.shape[axis] for v in self.views if v is not None]
            edges = [-(-np.arange(m + 1, dtype=np.int64) * n // m) for m in counts]
            self.edges.append(np.unique(np.concatenate(edges)))
            first = self.edges[-1][:-1]
            self._index.append([first * (v.shape[axis] if v else 0) // n for v in self.views])
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


def _marks(marks: Any, what: str, shape: tuple[int, ...]) -> View:
    """A mask or labels, on the grid of the patched axes or coarser."""
    view = View.of(marks, what)
    extra = len(view.shape) - len(shape)
    cells = view.shape[max(0, extra) :]
    if (
        extra < 0
        or math.prod(view.shape[:extra]) != 1
        or not all(1 <= m <= n for m, n in zip(cells, shape, strict=True))
    ):
        raise SettingError(
            f"{what} has shape {view.shape}, but the patched axes have {shape} voxels; it must "
            f"have as many axes, each as long or shorter (a coarser grid)"
        )
    if what == "balance" and view.dtype.kind not in "biu":
        raise SettingError(f"balance must hold whole numbers, the classes; got {view.dtype}")

    def fill(selection: tuple[slice, ...], out: Array) -> None:
        view.fill((slice(0, 1),) * extra + selection, out[(None,) * extra])

    borders = None if view.borders is None else view.borders[extra:]
    return View(view.dims[extra:], cells, view.dtype, view.named, borders, fill)


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
            part = _inside(block, box)
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
            place, part = places[block], _inside(places[block], box)
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


def _inside(inner: Box, outer: Box) -> tuple[slice, ...]:
    """Slices of `inner` in an array that holds `outer`."""
    return tuple(
        slice(a - o, b - o) for a, b, o in zip(inner.start, inner.stop, outer.start, strict=True)
    )


def _gather(view: View, layout: Layout, origins: Ints, patch: tuple[int, ...]) -> Array:
    """The patches at `origins`; a stored chunk is read once for all that want some of it."""
    out = np.empty((len(origins), _channels(layout) or 1, *patch), view.dtype)
    read = _reader(view, layout, (0,) * len(layout.lead))
    whole = [np.array([0, n]) for n in layout.patched_shape]
    stored = whole if view.borders is None else [view.borders[a] for a in layout.patched]
    wanted: dict[tuple[int, ...], list[int]] = {}
    for i, origin in enumerate(origins):
        spans = (
            range(np.searchsorted(b, o, "right") - 1, np.searchsorted(b, o + p))
            for b, o, p in zip(stored, origin, patch, strict=True)
        )
        for chunk in itertools.product(*spans):
            wanted.setdefault((*([i] * (view.borders is None)), *chunk), []).append(i)
    for chunk, ids in sorted(wanted.items()):
        at = chunk[-len(patch) :]
        low = np.maximum(origins[ids], [b[c] for b, c in zip(stored, at, strict=True)])
        high = np.minimum(origins[ids] + patch, [b[c + 1] for b, c in zip(stored, at, strict=True)])
        box = Box(tuple(low.min(axis=0).tolist()), tuple(high.max(axis=0).tolist()))
        values = np.empty((out.shape[1], *box.shape), view.dtype)
        read(box, values)
        for i, a, b in zip(ids, low.tolist(), high.tolist(), strict=True):
            piece = Box(tuple(a), tuple(b))
            mine = Box(tuple(origins[i].tolist()), tuple((origins[i] + patch).tolist()))
            out[i][(slice(None), *_inside(piece, mine))] = values[
                (slice(None), *_inside(piece, box))
            ]
    return out if layout.channel is not None else out[:, 0]
