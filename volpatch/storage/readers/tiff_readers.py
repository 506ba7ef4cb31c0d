"""Readers of TIFF voxels: straight from the file where they lie as they are, else decoded.

Uncompressed, contiguous voxels are read with `pread`, a span of rows at a time, so no handle is
shared between threads or processes and no page stays mapped. All else goes through tifffile's
decoders.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from zarr.core.buffer.cpu import NDBuffer

from volpatch.core.errors import SourceError

ALL = "all"
_SPAN_BYTES = 16 * 2**20


@dataclass(frozen=True)
class PlainReader:
    """Voxels that lie in one file uncompressed: equal runs of planes, each in one piece.

    `offsets` says where each run begins; there is one, or one per index of the first axis.
    """

    path: str
    offsets: tuple[int, ...]
    dtype: str
    shape: tuple[int, ...]
    plane_axes: int

    def read(self, selection: tuple[slice, ...], out: NDArray[Any]) -> None:
        """Fill `out`, plane by plane."""
        lead = len(self.shape) - self.plane_axes
        plane = self.shape[lead:]
        plane_bytes = math.prod(plane) * np.dtype(self.dtype).itemsize
        in_run = math.prod(self.shape[:lead]) // len(self.offsets)
        with _File(self.path) as file:
            for index in np.ndindex(*(one.stop - one.start for one in selection[:lead])):
                place = [one.start + step for one, step in zip(selection, index, strict=False)]
                number = int(np.ravel_multi_index(place, self.shape[:lead])) if lead else 0
                run, inside = divmod(number, in_run)
                start = self.offsets[run] + inside * plane_bytes
                _read_plane(file, start, self.dtype, plane, selection[lead:], out[index])

    metadata_files = ()
    n_files = 1

    def file(self, number: int) -> str:
        """The file itself."""
        return self.path

    def file_box(self, number: int) -> tuple[slice, ...]:
        """All of the volume."""
        return tuple(slice(0, n) for n in self.shape)


@dataclass(frozen=True)
class DecodedReader:
    """One level of a file that needs decoding (compressed, tiled, scattered)."""

    path: str
    series: int | str
    level: int
    mixed: bool
    chunkmode: int
    stamp: tuple[int, int]

    def read(self, selection: tuple[slice, ...], out: NDArray[Any]) -> None:
        """Fill `out` through tifffile's decoders."""
        try:
            array = decoded(self)
            array.get_basic_selection(selection, out=NDBuffer.from_numpy_array(out))
        except MemoryError:
            raise
        except Exception as error:
            raise SourceError(
                f"{self.path} {_why(error)} (within {_box_text(selection)})"
            ) from error

    metadata_files = ()
    n_files = 1

    def file(self, number: int) -> str:
        """The file itself."""
        return self.path

    def file_box(self, number: int) -> tuple[slice, ...]:
        """All of the volume."""
        return tuple(slice(0, n) for n in decoded(self).shape)


@dataclass(frozen=True)
class Slice:
    """One file of a folder; `offset` is None where its voxels must be decoded."""

    name: str
    offset: int | None
    dtype: str


@dataclass(frozen=True)
class FolderReader:
    """A stack of one-page files."""

    folder: str
    slices: tuple[Slice, ...]
    shape: tuple[int, ...]

    def read(self, selection: tuple[slice, ...], out: NDArray[Any]) -> None:
        """Fill `out`, file by file."""
        for step, one in enumerate(self.slices[selection[0]]):
            path = os.path.join(self.folder, one.name)
            if one.offset is None:
                out[step] = _decode_page(path)[selection[1:]]
                continue
            with _File(path) as file:
                _read_plane(file, one.offset, one.dtype, self.shape, selection[1:], out[step])

    metadata_files = ()

    @property
    def n_files(self) -> int:
        """One a slice."""
        return len(self.slices)

    def file(self, number: int) -> str:
        """The file of one slice."""
        return os.path.join(self.folder, self.slices[number].name)

    def file_box(self, number: int) -> tuple[slice, ...]:
        """One slice."""
        return (slice(number, number + 1), *(slice(0, n) for n in self.shape))


class _File:
    """A file open for `pread`; what the system says becomes a SourceError with its path."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> _File:
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(f"{self.path} cannot be read any more: {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def bytes_at(self, start: int, count: int) -> bytes:
        parts: list[bytes] = []
        while count:
            try:
                part = os.pread(self._descriptor, count, start)
            except OSError as error:
                raise SourceError(f"{self.path} cannot be read: {error.strerror}") from error
            if not part:
                raise SourceError(f"{self.path} is truncated: it ends {count} bytes too early")
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _read_plane(
    file: _File,
    start: int,
    dtype: str,
    shape: tuple[int, ...],
    selection: tuple[slice, ...],
    out: NDArray[Any],
) -> None:
    """Part of one (rows, columns[, samples]) plane whose first byte is at `start`."""
    row_bytes = math.prod(shape[1:]) * np.dtype(dtype).itemsize
    step = max(1, _SPAN_BYTES // row_bytes)
    first, last = selection[0].start, selection[0].stop
    for row in range(first, last, step):
        rows = min(step, last - row)
        data = np.frombuffer(file.bytes_at(start + row * row_bytes, rows * row_bytes), dtype)
        span = data.reshape(rows, *shape[1:])
        out[row - first : row - first + rows] = span[(slice(None), *selection[1:])]


def _decode_page(path: str) -> NDArray[Any]:
    try:
        with tifffile.TiffFile(path) as tif:
            page: NDArray[Any] = tif.pages.first.asarray(maxworkers=1)
            return page
    except MemoryError:
        raise
    except Exception as error:
        raise SourceError(f"{path} {_why(error)}") from error


def decoded(reader: DecodedReader) -> zarr.Array[Any]:
    """The level as an array that decodes, opened once per process."""
    # the process is part of the key: after a fork two would share one file position
    return _decoded(reader, os.getpid())


@functools.lru_cache(maxsize=16)
def _decoded(reader: DecodedReader, process: int) -> zarr.Array[Any]:
    with tifffile.TiffFile(reader.path) as tif:
        parts = levels_of(all_series(tif, mixed=reader.mixed), reader.series, reader.level)
        one = parts[0] if reader.series != ALL else stacked(parts)
        store = one.aszarr(level=0, chunkmode=reader.chunkmode, maxworkers=1)
    array = zarr.open_array(store, mode="r")
    weakref.finalize(array, store.close)
    return array


def all_series(tif: tifffile.TiffFile, *, mixed: bool) -> list[Any]:
    """The images of a file; `mixed` where not all of its pages look the same."""
    if mixed:
        tif.is_uniform = False  # as tifffile finds by looking at four pages, if it happens to
    return list(tif.series)


def levels_of(every: Sequence[Any], series: int | str, level: int) -> list[Any]:
    """One level of one series, or of all."""
    chosen = every if series == ALL else [every[int(series)]]
    return [one.levels[level] for one in chosen]


# older releases of tifffile take axes of length 1 away unless told, newer ones have no such word
_TAKES = inspect.signature(tifffile.TiffPageSeries).parameters
_UNSQUEEZED: dict[str, Any] = {"squeeze": False} if "squeeze" in _TAKES else {}


def stacked(parts: Sequence[Any]) -> Any:
    """Series that are alike as one, along a new first axis."""
    first = parts[0]
    return tifffile.TiffPageSeries(
        [page for part in parts for page in part.pages],
        (len(parts), *first.shape),
        first.dtype,
        next(letter for letter in "QI" if letter not in first.axes) + first.axes,
        **_UNSQUEEZED,
    )


def _why(error: Exception) -> str:
    said = str(error) or type(error).__name__
    if "imagecodecs" in said:
        return f"has a compression that needs another package ({said}): pip install imagecodecs"
    return f"is damaged: {said}; restore it from a copy"


def _box_text(selection: Sequence[slice]) -> str:
    return "[" + ", ".join(f"{one.start}:{one.stop}" for one in selection) + "]"


def page_end(page: Any) -> int:
    """First byte after the data of a page."""
    ends = zip(page.dataoffsets, page.databytecounts, strict=True)
    return max((offset + count for offset, count in ends), default=0)
