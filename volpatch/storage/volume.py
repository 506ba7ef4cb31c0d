"""A volume on disk: what it is (known from metadata alone) and how to read a box of it.

A `Source` gives every kind of file the same face: leading axes first, then z, y, x; native byte
order; a position and a spacing per axis. It holds paths, never open handles, so it pickles to a
worker in a few hundred bytes. What differs between formats sits behind `Reader`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from volpatch.core.axes import CHANNELS, SPATIAL, default_dims, in_order, known_name
from volpatch.core.blending import is_numeric
from volpatch.core.errors import SourceError

_T = TypeVar("_T")


class Opener(Protocol):
    """Looks at what is at a path that exists, and reads none of its voxels."""

    def __call__(
        self, path: str, *, level: int, series: int | str | None, missing: str
    ) -> Source: ...


@dataclass(frozen=True)
class Format:
    """One kind of stored volume; each reader's module has one, and `storage.open` lists them.

    Attributes
    ----------
    name : for people.
    takes : whether a path, of something that exists or a pattern, is of this kind.
    open : looks at it; raises SourceError where it is damaged, or has no such level.
    has_series : whether it may hold several images.
    """

    name: str
    takes: Callable[[str], bool]
    open: Opener
    has_series: bool = False


class Reader(Protocol):
    """One format's way of reading a box, in the order of axes on disk. Pickles."""

    def read(self, selection: tuple[slice, ...], out: NDArray[Any]) -> None:
        """Fill `out` (native dtype, any strides) with the box; raise SourceError if it cannot."""

    @property
    def metadata_files(self) -> tuple[str, ...]:
        """Small files that say how the others are to be read."""

    @property
    def n_files(self) -> int:
        """How many files hold voxels, or would if all were written."""

    def file(self, number: int) -> str:
        """Path of one of them."""

    def file_box(self, number: int) -> tuple[slice, ...]:
        """What part of the volume it holds, in the order of axes on disk; may hang over."""


@dataclass(frozen=True)
class StoredAxes:
    """What is known per axis, in the order of axes on disk."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    units: tuple[str | None, ...]


@dataclass(frozen=True)
class Source:
    """A volume on disk, opened by `open_source`; per-axis fields are in the order of `dims`.

    Attributes
    ----------
    path, level, series : str, int, int or "all" or None
        What to give `open_source` to get this again.
    kind : str
        What it is, for people.
    levels : int
        Resolutions that can be asked for, this one included.
    name : str
        Last part of the path.
    shape, dtype, dims
        Axes are t, c and others first, then those of z, y, x that exist. Native byte order.
    chunks : tuple of int
        What one decode gives (a shard's inner chunk; one page of a TIFF).
    shards : tuple of int, optional
        What one file holds, where that is more than a chunk.
    spacing, origin, units
        Physical grid: index i lies at origin + i * spacing. 1.0, 0.0 and None where unknown.
    channel_names : tuple of str, optional
        One per index of c.
    attributes : dict
        JSON-able; to be carried to an output.
    reader, order
        How to read; `order[k]` is the axis on disk of axis k here.
    remarks : tuple of str
        What was passed over, for people.
    in_turn : bool
        Whether a read decodes one chunk after another, so that only one is there at a time.
    """

    path: str
    level: int
    series: int | str | None
    kind: str
    levels: int
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dims: tuple[str, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    units: tuple[str | None, ...]
    channel_names: tuple[str, ...] | None
    attributes: dict[str, Any]
    reader: Reader
    order: tuple[int, ...]
    remarks: tuple[str, ...] = ()
    in_turn: bool = False

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of voxels, all axes counted."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded volume."""
        return self.size * self.dtype.itemsize

    def read(self, selection: tuple[slice, ...], out: NDArray[Any]) -> None:
        """Fill `out` with a box.

        Parameters
        ----------
        selection : tuple of slice
            One per axis, each with a start and a stop inside the volume, step 1.
        out : ndarray
            Of the box's shape and the native dtype; any strides.
        """
        shape = tuple(one.stop - one.start for one in selection)
        if out.shape != shape:
            raise ValueError(f"a box of shape {shape} does not fit an array of shape {out.shape}")
        on_disk = sorted(range(self.ndim), key=self.order.__getitem__)
        self.reader.read(tuple(selection[axis] for axis in on_disk), out.transpose(on_disk))

    def file_box(self, number: int) -> tuple[slice, ...]:
        """What part of the volume the file `number` of the reader holds."""
        on_disk = self.reader.file_box(number)
        return tuple(on_disk[axis] for axis in self.order)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Basic indexing, as numpy does it (integers, slices, an ellipsis)."""
        boxes, rest = _box_and_rest(key, self.shape)
        out = np.empty(tuple(box.stop - box.start for box in boxes), self.dtype)
        if out.size:
            self.read(boxes, out)
        return np.asarray(out[rest])

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return ("volpatch.Source", self.path, self.level, repr(self.reader))


def make_source(
    path: str,
    *,
    kind: str,
    level: int,
    axes: StoredAxes,
    dtype: np.dtype[Any],
    reader: Reader,
    levels: int = 1,
    series: int | str | None = None,
    channel_names: Sequence[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    remarks: Sequence[str] = (),
    in_turn: bool = False,
) -> Source:
    """A Source from what a format knows in its own order of axes; checks that it is an image."""
    if 0 in axes.shape:
        raise SourceError(f"{path} is empty: its shape is {axes.shape}")
    dims = axis_names(axes.names, path)
    order = in_order(dims)
    channels = axes.shape[dims.index(CHANNELS)] if CHANNELS in dims else None
    labels = tuple(channel_names or ())
    return Source(
        path=path,
        level=level,
        series=series,
        kind=kind,
        levels=levels,
        name=os.path.basename(path) or path,
        shape=_pick(axes.shape, order),
        dtype=dtype.newbyteorder("="),
        dims=_pick(dims, order),
        chunks=_pick(axes.chunks, order),
        shards=None if axes.shards is None else _pick(axes.shards, order),
        spacing=_pick(axes.spacing, order),
        origin=_pick(axes.origin, order),
        units=_pick(axes.units, order),
        channel_names=labels if labels and len(labels) == channels else None,
        attributes=dict(attributes or {}),
        reader=reader,
        order=order,
        remarks=tuple(remarks),
        in_turn=in_turn,
    )


def _pick(values: Sequence[_T], order: Sequence[int]) -> tuple[_T, ...]:
    return tuple(values[axis] for axis in order)


def axis_names(names: Sequence[str | None], path: str) -> tuple[str, ...]:
    """Names to go by: the given ones if they name y or x (or z), else by the number of axes.

    >>> axis_names(("Z", "Y", "X"), "a"), axis_names((None, "dim_1", "dim_2"), "a")
    (('z', 'y', 'x'), ('z', 'y', 'x'))
    """
    if len(names) < 2:
        raise SourceError(f"{path} has {len(names)} axes; volpatch reads images of 2 and more")
    lower = [str(name or "").lower() for name in names]
    named = all(lower) and len(set(lower)) == len(lower)
    if named and any(name in SPATIAL for name in lower):
        return tuple(known_name(str(name)) for name in names)
    return default_dims(len(names))


def check_readable(dtype: np.dtype[Any] | str, path: str) -> None:
    """Refuse what is not bool, an integer or a float of up to 8 bytes."""
    if not (isinstance(dtype, np.dtype) and is_numeric(dtype)):
        raise SourceError(
            f"dtype {dtype} of {path} is not numeric in a way volpatch handles: "
            f"it takes bool, int8..64, uint8..64 and float16/32/64"
        )


def _box_and_rest(
    key: Any, shape: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice | int, ...]]:
    """A numpy index as the box to read and what to take of the box."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (len(shape) - len(keys) + 1)
    keys += [slice(None)] * (len(shape) - len(keys))
    pairs = [_axis_box(one, size) for one, size in zip(keys, shape, strict=True)]
    return tuple(box for box, _ in pairs), tuple(rest for _, rest in pairs)


def _axis_box(key: Any, size: int) -> tuple[slice, slice | int]:
    if not isinstance(key, slice):
        index = range(size)[key]  # negative numbers, and an IndexError where it is outside
        return slice(index, index + 1), 0
    hits = range(size)[key]
    if not hits:
        return slice(0, 0), slice(None)
    first, last = min(hits[0], hits[-1]), max(hits[0], hits[-1])
    return slice(first, last + 1), slice(None, None, hits.step)
