"""Any kind of volume, seen alike: `as_volume` is the one place that asks what something is.

    a path, what `open_volume` gave      ->  AnyVolume: axes, stored chunks, where it lies,
    NumPy, dask, xarray                                 a way to read a box of it, and
    a zarr.Array, an h5py dataset                       an array to compute with

Arrays come from anywhere, and lose silently what is not looked for: `numpy.asarray` drops a
mask, and assigning broadcasts a block of one plane to as many as a dask array promised.
"""

from __future__ import annotations

import enum
import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.core.axes import default_dims, distinct_names
from volpatch.core.errors import SettingError, SourceError
from volpatch.storage.blocks import block_shape
from volpatch.storage.open import open_source, source_of
from volpatch.storage.volume import Source

Array = NDArray[Any]


class Kind(enum.Enum):
    """What a volume is, in words."""

    PATH = "a path"
    STORED = "a stored volume"
    NUMPY = "a NumPy array"
    DASK = "a dask array"
    XARRAY = "a DataArray"
    DATASET = "an xarray Dataset"
    ZARR = "a zarr.Array"
    HDF5 = "an h5py dataset"
    SEQUENCE = "a list"
    OTHER = "something else"


def kind_of(anything: Any) -> Kind:
    """What something is, without importing any library that it may be of."""
    module, name = type(anything).__module__.partition(".")[0], type(anything).__name__
    if isinstance(anything, str | os.PathLike):
        return Kind.PATH
    if isinstance(anything, Source):
        return Kind.STORED
    if isinstance(anything, np.ndarray):
        return Kind.NUMPY
    if isinstance(anything, list | tuple):
        return Kind.SEQUENCE
    if hasattr(anything, "data_vars"):
        return Kind.DATASET
    if hasattr(anything, "dims") and hasattr(anything, "variable"):
        return Kind.XARRAY
    if is_dask(anything):
        return Kind.DASK
    if module == "zarr" and hasattr(anything, "shape"):
        return Kind.ZARR
    return Kind.HDF5 if (module, name) == ("h5py", "Dataset") else Kind.OTHER


def path_of(array: Any) -> str | None:
    """Where a zarr.Array lies, if that is a folder on a local disk."""
    root = getattr(array.store, "root", None)
    if type(array.store).__name__ != "LocalStore" or root is None:
        return None
    return os.path.join(str(root), str(array.path))


@dataclass(frozen=True)
class AnyVolume:
    """A volume of any kind.

    Attributes
    ----------
    data : what is sliced: an array of NumPy, dask, zarr or h5py, or a Source.
    dims : names of the axes; `named` tells whether they are the volume's own words.
    shape, dtype : as the volume has them.
    chunks : per axis the size of stored chunks, or the sizes of dask's; None where there are none.
    origin : the DataArray, if it was one.
    source : the stored volume, if it is one and nothing was done with it yet.
    """

    kind: Kind
    data: Any
    dims: tuple[str, ...]
    named: bool
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int | tuple[int, ...], ...] | None = None
    origin: Any = None
    source: Source | None = None

    @property
    def lazy(self) -> bool:
        """Whether it is computed by dask."""
        return is_dask(self.data)

    @property
    def names(self) -> dict[str, list[str]]:
        """Names of indices, of the axes whose coordinate holds text."""
        coords = {} if self.origin is None else self.origin.coords
        return {
            dim: [str(name) for name in coords[dim].values]
            for dim in self.dims
            if dim in coords and coords[dim].dtype.kind in "OUT"
        }

    @functools.cached_property
    def _sound(self) -> Any:
        """What is sliced, with the blocks of a lazy array looked at; made once, not per box."""
        return checked(self.data) if self.lazy else self.data

    def read(self, selection: tuple[slice, ...], out: Array, what: str) -> None:
        """Fill `out` with a box, and refuse values that are other than was said."""
        if self.source is not None:
            self.source.read(selection, out)
            return
        found = self._sound[selection]
        values = np.asanyarray(found.compute() if is_dask(found) else found)
        box = ", ".join(f"{one.start}:{one.stop}" for one in selection)
        refuse_lie(values, out.shape, self.dtype, f"{what} at [{box}]")
        out[...] = values


def as_volume(anything: Any, what: str) -> AnyVolume:
    """A volume of any kind, or an error that says what `what` must be.

    Raises
    ------
    SettingError
        It is no volume, or would lose something on the way: a mask, the sizes of its chunks.
    """
    refuse_masked(anything, what)
    kind = kind_of(anything)
    if kind is Kind.PATH:
        return _stored(kind, open_source(anything))
    if kind is Kind.STORED:
        return _stored(kind, anything)
    if kind is Kind.XARRAY:
        return _labelled(anything, what)
    if kind is Kind.DATASET:
        raise SettingError(
            f"{what} is a Dataset of {sorted(map(str, anything.data_vars))}; give one variable, or "
            f"map them one by one: dataset.map(lambda v: ...)"
        )
    if kind is Kind.SEQUENCE:
        try:
            anything = np.asarray(anything)
        except ValueError:
            raise SettingError(
                f"the lists of {what} have unequal lengths, so they are no array; make rows equal"
            ) from None
    if not all(hasattr(anything, name) for name in ("shape", "dtype", "__getitem__")):
        raise SettingError(
            f"{what} must be a numpy, dask or xarray array, a zarr.Array, an h5py dataset or a "
            f"path; got {type(anything).__module__}.{type(anything).__name__}"
        )
    if kind is Kind.DASK:
        check_chunks(anything, what)
    shape = tuple(anything.shape)
    chunks = getattr(anything, "chunks", None)
    dims = default_dims(len(shape))
    return AnyVolume(kind, anything, dims, False, shape, anything.dtype, chunks)


def _stored(kind: Kind, source: Source, origin: Any = None) -> AnyVolume:
    data = source if origin is None else origin.data
    shape, dtype = source.shape, source.dtype
    return AnyVolume(kind, data, source.dims, True, shape, dtype, source.chunks, origin, source)


def _labelled(array: Any, what: str) -> AnyVolume:
    if odd := [name for name in array.dims if not isinstance(name, str)]:
        raise SettingError(
            f"{what} has an axis named {odd[0]!r}, which is no text; rename it: "
            f"array.rename({{{odd[0]!r}: 'z'}}), say"
        )
    if is_dask(array.data):
        check_chunks(array.data, what)
    source = source_of(array)
    if source is not None:
        return _stored(Kind.XARRAY, source, array)
    dims, chunks = distinct_names(array.dims, what), array.chunks
    return AnyVolume(Kind.XARRAY, array.data, dims, True, array.shape, array.dtype, chunks, array)


def as_array(anything: Any, what: str) -> AnyVolume:
    """A volume whose `data` is a NumPy or a dask array, for what computes with arrays.

    Stored arrays become lazy ones, with blocks of a few of their chunks.
    """
    kind = kind_of(anything)
    if kind in (Kind.PATH, Kind.STORED):
        raise SettingError(
            f"{what} takes a numpy, dask or xarray array, got {kind.value}; open_volume(path) "
            f"makes one of it, and volpatch.run takes paths"
        )
    if kind is Kind.SEQUENCE or (kind is Kind.OTHER and not hasattr(anything, "shape")):
        raise SettingError(
            f"{what} takes a numpy, dask or xarray array, a zarr.Array or an h5py dataset, got a "
            f"{type(anything).__module__}.{type(anything).__name__}"
        )
    found = as_volume(anything, f"what {what} was given")
    if found.lazy or isinstance(found.data, np.ndarray):
        return found
    return _lazily(found)


def _lazily(volume: AnyVolume) -> AnyVolume:
    """What is sliced as it is read, as a dask array."""
    import dask.array as da

    stored = [n if isinstance(n, int) else 1 for n in volume.chunks or volume.shape]
    blocks = block_shape(volume.shape, stored, volume.dtype.itemsize)
    # h5py reads by one thread at a time
    lock = volume.kind is Kind.HDF5
    data = da.from_array(  # type: ignore[no-untyped-call]
        volume.data, chunks=blocks, lock=lock, asarray=False, fancy=False
    )
    shape, dtype = volume.shape, volume.dtype
    return AnyVolume(volume.kind, data, volume.dims, volume.named, shape, dtype, data.chunks)


def is_dask(array: Any) -> bool:
    """Whether this is a dask array, without importing dask."""
    return type(array).__module__.startswith("dask.array")


def check_chunks(array: Any, what: str) -> None:
    """Refuse chunks of unknown size: where a block lies would be unknown."""
    if any(math.isnan(size) for sizes in array.chunks for size in sizes):
        raise SettingError(
            f"{what} has chunks of unknown size {array.chunks}; "
            f"array.compute_chunk_sizes() finds them out"
        )


def refuse_masked(array: Any, what: str) -> None:
    """Refuse a masked array, also one in a list, behind dask or in a DataArray."""
    inner = array.variable._data if hasattr(array, "variable") else array
    parts = inner if isinstance(inner, list | tuple) else [getattr(inner, "_meta", inner)]
    if any(map(np.ma.isMaskedArray, parts)):
        filled = "dask.array.ma.filled(array, VALUE)" if is_dask(inner) else "array.filled(VALUE)"
        raise SettingError(
            f"{what} is a masked array, and its mask would be lost; {filled} gives the masked "
            f"voxels a value, and mask= leaves patches out"
        )


def refuse_lie(found: Any, shape: Sequence[int], dtype: np.dtype[Any], where: str) -> None:
    """Refuse values that have another shape or dtype than was said, or a mask."""
    if np.ma.isMaskedArray(found):
        raise SourceError(
            f"{where} came as a masked array, and its mask would be lost; "
            f".filled(VALUE) in what makes it, or dask.array.ma.filled(array, VALUE)"
        )
    if found.shape != tuple(shape) or found.dtype.newbyteorder("=") != dtype.newbyteorder("="):
        raise SourceError(
            f"{where} came as {found.shape} {found.dtype}, but the array says {tuple(shape)} "
            f"{dtype}; what made it (map_blocks?) must declare the chunks and dtype that it gives"
        )


@dataclass(frozen=True)
class CheckBlock:
    """Lets a block of a dask array pass if it is what the array says."""

    chunks: tuple[tuple[int, ...], ...]
    dtype: np.dtype[Any]

    def __call__(self, block: Any, block_id: tuple[int, ...] = ()) -> Array:
        sizes = [own[i] for own, i in zip(self.chunks, block_id, strict=True)]
        first = [sum(own[:i]) for own, i in zip(self.chunks, block_id, strict=True)]
        box = ", ".join(f"{a}:{a + n}" for a, n in zip(first, sizes, strict=True))
        values: Array = np.asanyarray(block)
        refuse_lie(values, sizes, self.dtype, f"block {tuple(block_id)} at [{box}]")
        return values


def checked(array: Any) -> Any:
    """A dask array whose blocks are looked at before anything is done with them."""
    return array.map_blocks(
        CheckBlock(array.chunks, array.dtype),
        dtype=array.dtype,
        meta=array._meta,
        token="volpatch-check",
    )
