"""Write an array, a lazy one above all, as the same OME-Zarr that `run` writes.

Blocks are made to be whole write units first, so that no two tasks ever share an object:

    blocks of the array      |----|----|----|----|----|--|
    write units              |------|------|------|------|
    blocks that are written  |------|------|------|------|      each border moved up

The output is built beside its place and gets its name when every unit is there. The
temporary files of a call lie in a folder of the call's own: after an error that folder is
moved away first, and whatever blocks are still being computed can write nothing more.

Each block is recorded as the regions of a run are, so that `verify` can tell whether the output
is as it was written. The plan comes last: nobody can go on with what a kill left here.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import uuid
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.arrays.dask import borders
from volpatch.core.axes import CHANNELS, SPATIAL, default_dims, has_positions, in_order
from volpatch.core.errors import SettingError, TargetError
from volpatch.core.layout import write_units
from volpatch.core.options import DEFAULT_CODEC, Durability, Sizes
from volpatch.storage.adapt import AnyVolume, as_array, checked
from volpatch.storage.codec import TargetSpec
from volpatch.storage.endings import check_ending
from volpatch.storage.ledger import Ledger, begin_records
from volpatch.storage.locks import check_locks
from volpatch.storage.ngff import normal_unit
from volpatch.storage.open import sources_of
from volpatch.storage.output import Output
from volpatch.storage.plan_file import PlanFile
from volpatch.storage.records import Recorder
from volpatch.storage.stores.local import SUFFIX, check_target

Array = NDArray[Any]
EVENNESS = 1e-3  # of a step: what positions may be off a regular grid


def to_zarr(
    array: Any,
    path: str | os.PathLike[str],
    *,
    chunks: Sizes | None = None,
    shards: Sizes | None = None,
    codec: str = DEFAULT_CODEC,
    overwrite: bool = False,
    durability: Durability = "full",
) -> str:
    """Write an array as OME-Zarr 0.5, as `volpatch.run` does.

    Its records go along, so `verify`, `status` and `commit` know the output as they know that
    of a run; it cannot be gone on with, or repaired, since an array has no name.

    Parameters
    ----------
    array : ndarray, dask array or DataArray
        2 to 5 axes: t and one other (c, say), if any, then two or three of z, y, x; those of
        a DataArray are put in this order. A lazy array is computed block by block, with
        whatever dask scheduler is in use, and never held as a whole. Voxel size, time
        step, position, units and names of channels come from a DataArray's coordinates t, z, y,
        x (and their `attrs["units"]`) and c.
    path : path
        The OME-Zarr to be made. It appears under its name when it is complete.
    chunks, shards : int, sequence of int, or mapping by axis name
        Voxels along z, y, x (those there are), shards being multiples of chunks; other axes
        have chunks of 1. Without `chunks`, those of a lazy array where they are of a handy
        size, else (64, 128, 128) or (512, 512). Memory holds blocks of whole shards.
    codec : str
        "blosc-zstd[:LEVEL][:bitshuffle|noshuffle]" or "blosc-lz4" likewise, "zstd[:LEVEL]", "none";
        always with a checksum.
    overwrite : bool
        Replace an earlier output of volpatch, once the new one is complete.
    durability : {"full", "process"}
        What finished writes survive: a power cut, or only the death of the process.

    Returns
    -------
    str
        Absolute path of the output.

    Raises
    ------
    SettingError, TargetError
        An array, chunks or a place that cannot be, before anything is computed.
    SourceError
        A block of another shape or dtype than the lazy array says.
    Exception
        What computing the array raised. There is no output then, and none later.

    Warns
    -----
    UserWarning
        Positions along an axis are not regular; that axis is written in voxels.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from volpatch import open_volume
    >>> made = to_zarr(np.arange(60.0).reshape(3, 4, 5), tempfile.mkdtemp() + "/out.zarr")
    >>> open_volume(made).sizes["y"]
    4
    """
    check_locks()
    check_ending(path)
    given = as_array(array, "to_zarr")
    for source in sources_of(given.data):
        check_target(os.fspath(path), overwrite=overwrite, source_path=source.path)
    data, spec = _described(given, chunks, shards, codec)
    for dim in _uneven(given):
        warnings.warn(
            f"the positions along {dim!r} are not numbers that rise in equal steps, so the "
            f"output gives them in voxels; interpolate, or assign others (assign_coords)",
            stacklevel=2,
        )
    work = Output(os.fspath(path), durability=durability)
    there = work.building()
    if there is not None and there.file.writer is None and not overwrite:
        raise TargetError(
            f"an unfinished run is building {str(work.target)!r}; finish it, remove it with "
            f"`volpatch clean`, or pass overwrite=True"
        )
    pairs = zip(_sizes(data, spec), spec.unit, strict=True)
    whole = tuple(_aligned(sizes, unit) for sizes, unit in pairs)
    plan = _plan(spec, whole)
    work.settle(ended=False)
    check_target(work.target, overwrite=overwrite, source_path=None)
    work.begin(overwrite=overwrite, anew=True)
    call = work.tmp / uuid.uuid4().hex
    with work.in_use():
        try:
            call.mkdir()
            begin_records(work.data, work.disk)
            _write(data, whole, WriteBlock(str(work.target), spec, durability, call.name))
            work.publish(Ledger.create(work.data, plan, work.disk))
        except BaseException:
            work.give_up(call)
            raise
    return str(work.target)


def _sizes(data: Any, spec: TargetSpec) -> tuple[tuple[int, ...], ...]:
    """Sizes of the blocks along each axis, which need not be whole write units yet."""
    if not isinstance(data, np.ndarray):
        chunks: tuple[tuple[int, ...], ...] = data.chunks
        return chunks
    axis = _streamed(spec)
    row = [*spec.unit[: axis + 1], *spec.shape[axis + 1 :]]
    return tuple(
        tuple(min(edge, size - at) for at in range(0, size, edge))
        for edge, size in zip(row, spec.shape, strict=True)
    )


def _plan(spec: TargetSpec, whole: Sequence[Sequence[int]]) -> PlanFile:
    """What tells of an output that no run has made; its blocks count as regions."""
    layout = {
        "regions": math.prod(map(len, whole)),
        "patches": 0,
        "region": [max(sizes) for sizes in whole],
        "result": {
            **dict.fromkeys(("channels_out", "final_dtype", "final_channels")),
            "result_dtype": spec.dtype,
        },
        "func_memory": 0,
        "resident": 0,
        "input": [],
    }
    return PlanFile({"writer": "to_zarr", "output": spec.to_json()}, layout, None)


def _write(data: Any, whole: tuple[tuple[int, ...], ...], write: WriteBlock) -> None:
    """Compute all blocks, each of whole write units, and write each where it is computed."""
    import dask.array as da

    there = isinstance(data, np.ndarray)
    if there:
        data = da.from_array(data, chunks=whole, name=False)  # type: ignore[no-untyped-call]
    written = da.map_blocks(  # type: ignore[no-untyped-call]
        write,
        data.rechunk(whole),
        tuple(map(borders, whole)),
        chunks=tuple((1,) * len(sizes) for sizes in whole),
        dtype=np.bool_,
        meta=np.empty((0,) * data.ndim, np.bool_),
        name=f"volpatch-write-{write.call}",
    )
    # an array of this process is best written by its threads; a lazy one says itself
    written.compute(**({"scheduler": "threads"} if there else {}))


@dataclass(frozen=True)
class WriteBlock:
    """What one task does: encode and put the write units of its block. Holds no handles.

    Attributes
    ----------
    call : folder of temporary files; nothing can be written when it is gone.
    """

    target: str
    spec: TargetSpec
    durability: Durability
    call: str

    def __call__(
        self, block: Array, edges: tuple[tuple[int, ...], ...], block_id: tuple[int, ...] = ()
    ) -> Array:
        start = tuple(edge[i] for edge, i in zip(edges, block_id, strict=True))
        stop = tuple(edge[i + 1] for edge, i in zip(edges, block_id, strict=True))
        work = _tree(self.target, self.durability, self.call)
        axis = _streamed(self.spec)
        with work.writer(self.spec, start, stop, stream_axis=axis) as writer:
            writer.write(block, start[axis])
            units = writer.drain()
        number = int(np.ravel_multi_index(block_id, [len(edge) - 1 for edge in edges]))
        log = _recorder(self.target, self.durability, self.call)
        log.write("layer", number, of=len(units), units=units, patches=0, clipped=0)
        return np.ones((1,) * block.ndim, np.bool_)


@functools.lru_cache(maxsize=16)
def _recorder(target: str, durability: Durability, call: str) -> Recorder:
    """The file of records of this process and call."""
    work = _tree(target, durability, call)
    return Recorder(work.data / SUFFIX, work.disk)


def _tree(target: str, durability: Durability, call: str) -> Output:
    """Where the output is built, with the temporary files of one call in its own folder."""
    work = Output(target, durability=durability)
    work.disk.tmp = work.tmp / call
    return work


def _streamed(spec: TargetSpec) -> int:
    """The first of z, y, x, along which `run` streams: it orders the chunks of a shard."""
    return next(i for i, dim in enumerate(spec.dims) if dim in SPATIAL)


def _aligned(sizes: Sequence[int], unit: int) -> tuple[int, ...]:
    """Sizes of chunks with every border moved up to a multiple of the write unit.

    >>> _aligned((5, 5, 5, 1), 4)
    (8, 4, 4)
    """
    edges = borders(sizes)
    moved = sorted({min(-(-edge // unit) * unit, edges[-1]) for edge in edges})
    return tuple(b - a for a, b in itertools.pairwise(moved))


# -- what the output looks like ------------------------------------------------------------


def _described(given: AnyVolume, chunks: Any, shards: Any, codec: str) -> tuple[Any, TargetSpec]:
    """The data with its axes in order, and what its output looks like."""
    names = _names(given)
    order = in_order(names)
    dims = tuple(names[i] for i in order)
    data = (checked(given.data) if given.lazy else given.data).transpose(order)
    _check_axes(dims, data.shape)
    first = next(i for i, dim in enumerate(dims) if dim in SPATIAL)
    own = [sizes[0] for sizes in data.chunks[first:]] if given.lazy else None
    itemsize = data.dtype.itemsize
    inner, outer = write_units(
        dims[first:], data.shape[first:], own, itemsize, chunks=chunks, shards=shards
    )
    ones = (1,) * first
    places = [_place(given, order[i], dim) for i, dim in enumerate(dims)]
    spacing, origin, units = zip(*places, strict=True)
    own_name = getattr(given.origin, "name", None)
    return data, TargetSpec(
        shape=data.shape,
        dtype=str(data.dtype),
        dims=dims,
        chunks=(*ones, *inner),
        shards=None if outer is None else (*ones, *outer),
        codec=codec,
        name="image" if own_name is None else str(own_name),
        spacing=spacing,
        origin=origin,
        units=units,
        channel_names=_channel_names(given),
    )


def _channel_names(given: AnyVolume) -> tuple[str, ...] | None:
    """Names of the channels, where the array has them as a coordinate."""
    coord = given.origin.coords.get(CHANNELS) if given.named and CHANNELS in given.dims else None
    values = [] if coord is None else coord.values.tolist()
    return tuple(values) if values and all(isinstance(v, str) for v in values) else None


def _names(given: AnyVolume) -> tuple[str, ...]:
    """Names of the axes; those that xarray made up are no names."""
    made_up = all(dim == f"dim_{i}" for i, dim in enumerate(given.dims))
    return default_dims(len(given.dims)) if made_up else given.dims


def _check_axes(dims: Sequence[str], shape: Sequence[int]) -> None:
    """Refuse axes that an OME-Zarr image cannot have."""
    spatial = sum(dim in SPATIAL for dim in dims)
    others = [dim for dim in dims if not has_positions(dim)]
    if spatial < 2 or len(others) > 1:
        raise SettingError(
            f"an OME-Zarr image has two or three of the axes z, y, x, with t and one more (c, "
            f"say) at most; this array has {tuple(dims)} of {tuple(shape)}. Choose an index of "
            f"an axis (array[0], isel), or rename axes (DataArray.rename)"
        )


def _place(given: AnyVolume, axis: int, dim: str) -> tuple[float, float, str | None]:
    """Spacing, origin and unit along an axis; voxels where the array does not tell."""
    if not given.named or not has_positions(dim):
        return 1.0, 0.0, None
    source = given.source
    coord = given.origin.coords.get(given.dims[axis])
    if source is not None and coord is not None:
        # one position tells no distance, so the source is asked, unless others were assigned
        start, spacing, unit = source.origin[axis], source.spacing[axis], source.units[axis]
        own = np.array_equal(coord.values, start + spacing * np.arange(len(coord)))
        if own and coord.attrs.get("units") == unit:
            return spacing, start, unit
    step = None if coord is None else _step(coord.values)
    if coord is None or step is None:
        return 1.0, 0.0, None
    return step, float(coord.values[0]), normal_unit(coord.attrs.get("units"))


def _uneven(given: AnyVolume) -> Iterable[str]:
    """Axes whose positions cannot be kept."""
    coords = given.origin.coords if given.named else {}
    for dim in given.dims:
        if dim in coords and has_positions(dim) and _step(coords[dim].values) is None:
            yield dim


def _step(positions: Array) -> float | None:
    """The distance between positions, if it is one; the roundest number that gives them.

    >>> _step(0.3 + 0.1 * np.arange(100)), _step(np.array([0.0, 1.0, 3.0])), _step(np.array([7]))
    (0.1, None, 1.0)
    """
    if positions.dtype.kind not in "iuf":
        return None
    values = positions.astype(np.float64)
    if len(values) == 1:
        return 1.0 if np.isfinite(values[0]) else None
    mean = float(values[-1] - values[0]) / (len(values) - 1)
    numbers = np.arange(len(values))
    if not np.isfinite(mean) or mean <= 0:
        return None
    if not np.allclose(values, values[0] + mean * numbers, rtol=0, atol=EVENNESS * mean):
        return None
    exact = (
        step
        for step in (*(float(f"{mean:.{n}g}") for n in (3, 6, 9, 12, 15)), mean)
        if np.array_equal(values[0] + step * numbers, values)
    )
    return next(exact, mean)
