"""Any kind of volume, seen alike: axes, stored chunks, and a way to read a box of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.compute.stream import Read
from volpatch.core.axes import default_dims, distinct_names
from volpatch.core.errors import GridError, SettingError
from volpatch.core.grid import Box
from volpatch.core.layout import Layout
from volpatch.core.recipe import check_dtype
from volpatch.storage.adapt import checked, is_dask, refuse_lie, refuse_masked
from volpatch.storage.open import open_source, source_of
from volpatch.storage.volume import Source

Array = NDArray[Any]
Ints = NDArray[np.int64]
# chunks, patches or cells along one axis that are listed: more would take more memory than they
# are worth, and what claims to have them is hardly there
MOST_LISTED = 2**24


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
        refuse_masked(volume, what)
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
            default_dims(len(shape)) if dims is None else distinct_names(dims, what),
            shape,
            check_dtype(volume.dtype, f"the dtype of {what},"),
            dims is not None,
            None if chunks is None else tuple(map(borders_of, shape, chunks)),
            volume.read if isinstance(volume, Source) else partial(_copy, _data(volume), what),
        )


def _data(volume: Any) -> Any:
    """What is sliced: the dask array of a DataArray, which is cheaper, with its blocks checked."""
    lazy = hasattr(volume, "encoding") and volume.chunks is not None
    data = volume.data if lazy else volume
    return checked(data) if is_dask(data) else data


def _copy(volume: Any, what: str, selection: tuple[slice, ...], out: Array) -> None:
    found = volume[selection]
    if is_dask(found):
        found = found.compute()
    values = np.asanyarray(found)
    refuse_lie(values, out.shape, volume.dtype, f"{what} at {_said(selection)}")
    out[...] = values


def _said(selection: tuple[slice, ...]) -> str:
    return f"[{', '.join(f'{one.start}:{one.stop}' for one in selection)}]"


def check_listed(count: int, what: str) -> None:
    """Refuse to list what would fill the memory."""
    if count > MOST_LISTED:
        raise SettingError(
            f"there are {count:,} {what}, and at most {MOST_LISTED:,} can be gone through; "
            f"open a part of the volume, or sample one that is stored in larger chunks"
        )


def borders_of(size: int, chunk: int | tuple[int, ...]) -> Ints:
    if isinstance(chunk, tuple):
        kept = [c for c in chunk if c]
        return np.cumsum([0, *kept], dtype=np.int64)
    check_listed(-(-size // max(1, chunk)), f"chunks of {chunk} on an axis of {size} voxels")
    return np.append(np.arange(0, size, max(1, chunk), dtype=np.int64), size)


def reader(view: View, layout: Layout, lead: tuple[int, ...]) -> Read:
    """Reads boxes of the patched axes, (channels, *box), at one index of the leading ones."""
    whole = Box((0,) * len(view.shape), view.shape)
    inverse = tuple(int(i) for i in np.argsort(layout.order))

    def read(box: Box, out: Array) -> None:
        values = out[0] if layout.channel is None else out
        every = values[(None,) * len(layout.lead)].transpose(inverse)
        view.fill(layout.selection(lead, whole, box), every)

    return read


def channels_of(layout: Layout) -> int | None:
    return None if layout.channel is None else layout.shape[layout.channel]
