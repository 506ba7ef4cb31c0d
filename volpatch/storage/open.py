"""Open a volume: find out of which kind it is, and give it the face that all kinds share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from volpatch.core.axes import CHANNELS, SPATIAL, has_positions
from volpatch.core.errors import GridError, SettingError, SourceError
from volpatch.core.grid import whole_number
from volpatch.core.options import Sizes, check_choice
from volpatch.storage.blocks import block_shape
from volpatch.storage.readers import tiff, tiff_folder, zarr
from volpatch.storage.readers.zarr import ZarrReader
from volpatch.storage.volume import Source

if TYPE_CHECKING:
    import xarray as xr

# asked in this order: a folder is one of slices where it is nothing else
FORMATS = (zarr.FORMAT, tiff.FORMAT, tiff_folder.FORMAT)
# voxels of an axis whose coordinates and chunks are listed in memory: 1 GiB of coordinates
MOST_ALONG = 2**27
# stored volumes by the names of the dask arrays that read them, as long as those live
_opened: WeakValueDictionary[str, Source] = WeakValueDictionary()


def open_source(
    path: str | os.PathLike[str],
    *,
    level: int = 0,
    series: int | str | None = None,
    missing: str = "auto",
) -> Source:
    """Look at a volume on disk without reading any of its voxels.

    Parameters
    ----------
    path : path-like
        A Zarr array, an OME-Zarr image, a TIFF file or a folder of TIFF slices; a pattern
        such as "scan/DAPI_z*.tif" is a folder of just those files.
    level : int
        Which resolution, where there are several; 0 is the finest.
    series : int or "all", optional
        Which image of a TIFF file, where there are several, from 0 on; "all" stacks them along
        a new axis (z, or "series" where they have a z), if they have the same shape and dtype.
    missing : {"auto", "fill", "error"}
        What a chunk of a Zarr array that is not stored is: its fill value, or an error once
        a box that touches it is read. "auto" takes outputs of volpatch, which store every
        chunk, by "error", and all others by "fill".

    Raises
    ------
    SourceError
        When there is no such volume, it is damaged, or of another kind.
    """
    given = os.fspath(path)
    if isinstance(level, bool) or not isinstance(level, int) or level < 0:
        raise SettingError(f"level must be a whole number from 0, got {level!r}")
    check_series(series)
    check_missing(missing)
    if "://" in given or "::" in given:
        raise SourceError(f"{given!r} is a URL; volpatch reads local paths: copy or mount it")
    there = bool(given) and "\0" not in given
    if not there or not (os.path.exists(given) or any(kind.takes(given) for kind in FORMATS)):
        raise SourceError(f"no such volume: {given!r} (looked for in {os.getcwd()!r})")
    return _open_existing(os.path.abspath(given), level, series, missing)


def check_series(series: object) -> None:
    """Refuse what is no number of a series, nor "all"."""
    number = isinstance(series, int) and not isinstance(series, bool) and series >= 0
    if not (series is None or series == "all" or number):
        raise SettingError(f"series must be a whole number from 0, or 'all'; got {series!r}")


def check_missing(missing: object) -> None:
    """Refuse what is none of the three words."""
    check_choice("missing", missing)


def with_missing(source: Source, missing: str) -> Source:
    """The same volume, read so; "auto" leaves it as it was opened, as do kinds without chunks."""
    check_missing(missing)
    reader = source.reader
    if missing == "auto" or not isinstance(reader, ZarrReader):
        return source
    return replace(source, reader=replace(reader, missing=missing))


def missing_of(source: Source) -> str:
    """What gives a volume that is read so again."""
    return str(getattr(source.reader, "missing", "auto"))


def _open_existing(path: str, level: int, series: int | str | None, missing: str) -> Source:
    kind = next((one for one in FORMATS if one.takes(path)), None)
    if kind is None:
        names = ", ".join(one.name for one in FORMATS)
        raise SourceError(
            f"{path} is not a kind volpatch reads ({names}); convert it to one of them"
        )
    if series is not None and not kind.has_series:
        raise SourceError(
            f"{path} has no series {series}: only a TIFF file may hold several; leave series out"
        )
    try:
        return kind.open(path, level=level, series=series, missing=missing)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
    except RecursionError as error:
        raise SourceError(f"metadata of {path} is damaged: it is nested too deeply") from error


def open_volume(
    path: str | os.PathLike[str],
    *,
    level: int = 0,
    series: int | str | None = None,
    missing: str = "auto",
    chunks: Sizes | None = None,
) -> xr.DataArray:
    """Open a volume on disk as a lazy, dask-backed DataArray with physical coordinates.

    Parameters
    ----------
    path, level, series, missing
        As in `open_source`.
    chunks : int, sequence of int, or mapping by axis name, optional
        Voxels of a block of dask: a number for each of z, y and x, a sequence for the last
        axes. Without, a block is what is stored as one (a shard, or a chunk), or some of these
        up to 32 MiB; small blocks cost tasks, big ones memory.

    Returns
    -------
    DataArray
        Coordinates t, z, y, x hold positions (their unit in `attrs["units"]`), c the channel
        names, where known. Nothing but metadata is read before it is computed.
    """
    import dask.array as da
    import xarray as xr
    from dask.base import tokenize

    source = open_source(path, level=level, series=series, missing=missing)
    check_lazy(source.shape, source.dims, "or give run the path, and a roi")
    blocks = dask_chunks(source, chunks)
    name = f"{source.name}-{tokenize(source, blocks)}"
    data = da.from_array(  # type: ignore[no-untyped-call]
        source,
        chunks=blocks,
        name=name,
        lock=False,
        asarray=False,
        fancy=False,
        meta=np.empty((0,) * source.ndim, source.dtype),
    )
    volume = xr.DataArray(
        data,
        dims=source.dims,
        coords=_coordinates(source),
        name=source.name,
        attrs=dict(source.attributes),
    )
    _opened[name] = source
    return volume


def check_lazy(shape: Sequence[int], names: Sequence[str], way_out: str) -> None:
    """Refuse a lazy array whose coordinates and chunks alone would fill the memory."""
    for name, size in zip(names, shape, strict=True):
        if size > MOST_ALONG:
            raise SettingError(
                f"there are {size:,} voxels along {name}, and the coordinates and chunks of a "
                f"lazy array are listed for at most {MOST_ALONG:,}; check the shape, {way_out}"
            )


def source_of(volume: xr.DataArray) -> Source | None:
    """The Source behind what `open_volume` returned; None once it was sliced or computed with."""
    source = _opened.get(str(getattr(volume.data, "name", "")))
    return source if source is not None and volume.dims == source.dims else None


def sources_of(array: Any) -> list[Source]:
    """Stored volumes that a lazy array is known to read: those that `open_volume` opened."""
    layers = getattr(getattr(array, "dask", None), "layers", {})
    return [source for name in layers if (source := _opened.get(str(name))) is not None]


def _coordinates(source: Source) -> dict[str, Any]:
    coordinates: dict[str, Any] = {}
    for axis, dim in enumerate(source.dims):
        if has_positions(dim):
            values = source.origin[axis] + source.spacing[axis] * np.arange(source.shape[axis])
            unit = source.units[axis]
            coordinates[dim] = (dim, values, {} if unit is None else {"units": unit})
        elif dim == CHANNELS and source.channel_names is not None:
            coordinates[dim] = (dim, list(source.channel_names))
    return coordinates


def dask_chunks(source: Source, chunks: Any = None) -> tuple[int, ...]:
    """Blocks that are asked for, or else a few stored shards (or chunks) each."""
    spatial = [axis for axis, dim in enumerate(source.dims) if dim in SPATIAL]
    unit = source.shards or source.chunks
    own = block_shape(source.shape, unit, source.dtype.itemsize, spatial)
    if chunks is None:
        return own
    if isinstance(chunks, Mapping):
        said = dict(chunks)
    else:
        sizes = tuple(chunks) if hasattr(chunks, "__len__") else (chunks,) * len(spatial)
        if len(sizes) > source.ndim:
            raise GridError(f"chunks has {len(sizes)} sizes, but the axes are {source.dims}")
        said = dict(zip(source.dims[source.ndim - len(sizes) :], sizes, strict=True))
    for dim, size in said.items():
        if dim not in source.dims:
            raise GridError(f"chunks names axis {dim!r}, but the axes are {tuple(source.dims)}")
        if whole_number(size, f"chunks on {dim}") < 1:
            raise GridError(f"chunks on {dim} must be at least 1, got {size}")
    axes = zip(source.dims, own, source.shape, strict=True)
    return tuple(min(int(said.get(dim, block)), size) for dim, block, size in axes)


@contextmanager
def reading_limits(chunks_in_flight: int) -> Iterator[None]:
    """Bound how many stored chunks each reader keeps in memory while inside."""
    from zarr import config

    with config.set({"async.concurrency": chunks_in_flight}):
        yield
