"""TIFF files (plain, ImageJ, OME) and folders of TIFF slices as sources.

Uncompressed, contiguous voxels are read with `pread`, a span of rows at a time, so no handle is
shared between threads or processes and no page stays mapped. All else goes through tifffile's
decoders. Sizes are checked when a file is opened: one that was cut off never reads as zeros.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
import struct
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from zarr.core.buffer.cpu import NDBuffer

from volpatch.errors import SourceError
from volpatch.storage.ome import normal_unit
from volpatch.storage.source import Layout, Source, check_dtype, make_source

SUFFIXES = (".tif", ".tiff")
_NAMED = 5
_SPAN_BYTES = 16 * 2**20
_MAX_PAGE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class PlainReader:
    """Voxels that lie in one file uncompressed, one after the other, from `offset` on."""

    path: str
    offset: int
    dtype: str
    shape: tuple[int, ...]
    plane_axes: int

    def read(self, selection: tuple[slice, ...], out: NDArray[Any]) -> None:
        """Fill `out`, plane by plane."""
        lead = len(self.shape) - self.plane_axes
        plane = self.shape[lead:]
        plane_bytes = math.prod(plane) * np.dtype(self.dtype).itemsize
        with _File(self.path) as file:
            for index in np.ndindex(*(one.stop - one.start for one in selection[:lead])):
                place = [one.start + step for one, step in zip(selection, index, strict=False)]
                number = int(np.ravel_multi_index(place, self.shape[:lead])) if lead else 0
                start = self.offset + number * plane_bytes
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
    level: int
    chunkmode: int
    stamp: tuple[int, int]

    def read(self, selection: tuple[slice, ...], out: NDArray[Any]) -> None:
        """Fill `out` through tifffile's decoders."""
        try:
            # the process is part of the key: after a fork two would share one file position
            array = _decoded(self, os.getpid())
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
        return tuple(slice(0, n) for n in _decoded(self, os.getpid()).shape)


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
            self._descriptor = os.open(self.path, os.O_RDONLY)
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


@functools.lru_cache(maxsize=16)
def _decoded(reader: DecodedReader, process: int) -> zarr.Array[Any]:
    store = tifffile.imread(
        reader.path,
        aszarr=True,
        series=0,
        level=reader.level,
        chunkmode=reader.chunkmode,
        maxworkers=1,
    )
    array = zarr.open_array(store, mode="r")
    weakref.finalize(array, store.close)
    return array


def _why(error: Exception) -> str:
    said = str(error) or type(error).__name__
    if "imagecodecs" in said:
        return f"has a compression that needs another package ({said}): pip install imagecodecs"
    return f"is damaged: {said}; restore it from a copy"


def _box_text(selection: Sequence[slice]) -> str:
    return "[" + ", ".join(f"{one.start}:{one.stop}" for one in selection) + "]"


def open_tiff(path: str, *, level: int) -> Source:
    """The first image of a TIFF file as a Source."""
    _check_pages_follow(path)
    try:
        with tifffile.TiffFile(path) as tif:
            return _describe(tif, path, level)
    except (SourceError, MemoryError):
        raise
    except Exception as error:
        raise SourceError(f"{path} is no TIFF file, or a damaged one: {error}") from error


def _describe(tif: tifffile.TiffFile, path: str, level: int) -> Source:
    levels = tif.series[0].levels
    if level >= len(levels):
        have = ", ".join(f"{number} {one.shape}" for number, one in enumerate(levels))
        raise SourceError(f"{path} has no level {level}; it has levels {have}")
    series = levels[level]
    check_dtype(series.dtype, path)
    _check_complete(tif, series, path)
    reader, chunks = _reader(tif, series, path, level)
    names = tiff_names(series.axes)
    grid, channels = file_grid(tif)
    spacing, origin = [], []
    for axis, name in enumerate(names):
        # a coarser level: voxels of whole numbers of the finest ones, their centres moved
        factor = max(1, round(levels[0].shape[axis] / max(series.shape[axis], 1)))
        fine = grid.get(name, (1.0, None))[0]
        spacing.append(fine * factor)
        origin.append((factor - 1) * fine / 2)
    layout = Layout(
        names=names,
        shape=tuple(series.shape),
        chunks=chunks,
        shards=None,
        spacing=tuple(spacing),
        origin=tuple(origin),
        units=tuple(grid.get(name, (1.0, None))[1] for name in names),
    )
    return make_source(
        path,
        level=level,
        layout=layout,
        dtype=series.dtype,
        reader=reader,
        channel_names=channels,
    )


def _reader(
    tif: tifffile.TiffFile, series: Any, path: str, level: int
) -> tuple[PlainReader | DecodedReader, tuple[int, ...]]:
    shape = tuple(series.shape)
    page = series.keyframe
    if series.dataoffset is not None and page.is_final:
        dtype = tif.byteorder + series.dtype.char
        plane_axes = min(3 if series.axes.endswith("XS") else 2, len(shape))
        plane = shape[len(shape) - plane_axes :]
        row_bytes = math.prod(plane[1:]) * series.dtype.itemsize
        rows = min(plane[0], max(1, _MAX_PAGE_BYTES // row_bytes))
        chunks = (1,) * (len(shape) - plane_axes) + (rows, *plane[1:])
        return PlainReader(path, series.dataoffset, dtype, shape, plane_axes), chunks
    whole = not page.is_tiled and page.nbytes <= _MAX_PAGE_BYTES
    mode = tifffile.CHUNKMODE.PAGE if whole else tifffile.CHUNKMODE.STRILE
    status = os.stat(path)
    reader = DecodedReader(path, level, int(mode), (status.st_mtime_ns, status.st_size))
    array = _decoded(reader, os.getpid())
    if array.shape != shape:
        raise SourceError(f"{path} is damaged: {shape} by its metadata, {array.shape} by its pages")
    return reader, array.chunks


def _check_pages_follow(path: str) -> None:
    """Follow the chain of page headers: tifffile stops at a broken link and says nothing."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(16)
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 8:
            raise SourceError(f"{path} ({size} bytes) does not begin like a TIFF file; is it one?")
        big = struct.unpack(order + "H", head[2:4])[0] == 43
        count_format, entry, link_format = ("Q", 20, "Q") if big else ("H", 12, "I")
        start = 8 if big else 4
        link = head[start : start + struct.calcsize(link_format)]
        seen: set[int] = set()
        while len(link) == struct.calcsize(link_format):
            (offset,) = struct.unpack(order + link_format, link)
            if offset == 0 and seen:
                return
            if offset in seen or offset < 8:
                raise SourceError(f"{path} is damaged: its page {len(seen)} is nowhere")
            seen.add(offset)
            file.seek(offset)
            number = file.read(struct.calcsize(count_format))
            if len(number) < struct.calcsize(count_format):
                break
            file.seek(struct.unpack(order + count_format, number)[0] * entry, os.SEEK_CUR)
            link = file.read(struct.calcsize(link_format))
    at = max(seen, default=8)
    raise SourceError(
        f"{path} is truncated: it has {size} bytes, its page {max(len(seen) - 1, 0)} is "
        f"described at byte {at} and beyond; copy the file again"
    )


def _check_complete(tif: tifffile.TiffFile, series: Any, path: str) -> None:
    """Whether every voxel the headers promise lies within the file."""
    size = os.path.getsize(path)
    needed = 0
    if tif.is_imagej and not tif.is_ome and str(series.kind).lower() != "imagej":
        first = tif.pages.first
        needed = first.dataoffsets[0] + _imagej_images(tif) * first.nbytes
    elif series.dataoffset is not None:
        needed = series.dataoffset + math.prod(series.shape) * series.dtype.itemsize
    else:
        pages = list(series.pages)
        if any(page is None for page in pages):
            raise SourceError(f"{path} is incomplete: {pages.count(None)} of its pages are missing")
        if len(pages) * series.keyframe.size != math.prod(series.shape):
            raise SourceError(
                f"{path} is incomplete: {len(pages)} pages of {series.keyframe.shape} "
                f"do not make {series.shape}"
            )
        for page in pages:
            needed = page_end(page)
            size = page.parent.filehandle.size
            if needed > size:
                break
    if needed > size:
        raise SourceError(
            f"{path} is truncated: it has {size} bytes, and its voxels need {needed}; "
            f"copy the file again"
        )


def page_end(page: Any) -> int:
    """First byte after the data of a page."""
    ends = zip(page.dataoffsets, page.databytecounts, strict=True)
    return max((offset + count for offset, count in ends), default=0)


def _imagej_images(tif: tifffile.TiffFile) -> int:
    found = tif.imagej_metadata or {}
    channels = found.get("channels", 1)
    if tif.pages.first.samplesperpixel == channels:
        channels = 1
    return int(found.get("slices", 1) * found.get("frames", 1) * channels)


def tiff_names(axes: str) -> tuple[str, ...]:
    """Names of the axes a series has; samples are channels, unknown pages are z.

    >>> tiff_names("QYX"), tiff_names("ZYXS")
    (('z', 'y', 'x'), ('z', 'y', 'x', 'c'))
    """
    names = list(axes.lower())
    if "c" not in names and "s" in names:
        names[names.index("s")] = "c"
    unknown = [axis for axis, name in enumerate(names) if name in "qi"]
    if "z" not in names and unknown:
        names[unknown[-1]] = "z"
    return tuple(names)


_Grid = dict[str, tuple[float, str | None]]


def file_grid(tif: tifffile.TiffFile) -> tuple[_Grid, tuple[str, ...] | None]:
    """Spacing and unit per axis, and channel names, as OME or ImageJ write them.

    The resolution tag of any other file is left aside: most hold a printer's 72 dpi.
    """
    if tif.is_ome and tif.ome_metadata:
        return _ome_grid(tif.ome_metadata)
    if tif.is_imagej:
        return _imagej_grid(tif), None
    return {}, None


def _imagej_grid(tif: tifffile.TiffFile) -> _Grid:
    found = tif.imagej_metadata or {}
    unit = found.get("unit")
    grid: _Grid = {}
    for name, tag in (("x", "XResolution"), ("y", "YResolution")):
        value = tif.pages.first.tags.valueof(tag)
        if value is not None and value[0] > 0 and value[1] > 0:
            grid[name] = value[1] / value[0], normal_unit(found.get(f"{name}unit", unit))
    for name, key, fallback in (("z", "spacing", unit), ("t", "finterval", "sec")):
        value = _positive(found.get(key))
        if value is not None:
            grid[name] = value, normal_unit(found.get(f"{name}unit", fallback))
    return grid


def _ome_grid(text: str) -> tuple[_Grid, tuple[str, ...] | None]:
    grid: _Grid = {}
    pixels = next(ElementTree.fromstring(text).iterfind("{*}Image/{*}Pixels"), None)
    if pixels is None:
        return grid, None
    keys = [(name.lower(), f"PhysicalSize{name}", "um") for name in "XYZ"]
    for name, key, usual in [*keys, ("t", "TimeIncrement", "s")]:
        value = _positive(pixels.get(key))
        if value is not None:
            grid[name] = value, normal_unit(pixels.get(f"{key}Unit", usual))
    labels = [channel.get("Name") for channel in pixels.iterfind("{*}Channel")]
    named = tuple(label for label in labels if label)
    return grid, named if named and len(named) == len(labels) else None


def _positive(found: object) -> float | None:
    try:
        value = float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def natural_key(name: str) -> tuple[tuple[str, int], ...]:
    """Sort key by which slice_2 comes before slice_10."""
    parts = re.split(r"(\d+)", name)
    numbers = [int(number) for number in parts[1::2]] + [-1]
    return tuple(zip(parts[::2], numbers, strict=True))


def open_folder(path: str, *, level: int) -> Source:
    """A folder of one-page TIFF files, in natural order of their names, as a stack."""
    everything = sorted(os.listdir(path))
    files = [name for name in everything if _is_slice(path, name)]
    if not files:
        raise _no_slices(path, everything)
    if level:
        raise SourceError(f"{path} is a folder of slices and has no level {level}; leave it at 0")
    files.sort(key=natural_key)
    headers = [_header(os.path.join(path, name)) for name in files]
    kinds = Counter((header.shape, header.kind) for header in headers)
    shape, kind = kinds.most_common(1)[0][0]
    for name, header in zip(files, headers, strict=True):
        if (header.shape, header.kind) != (shape, kind):
            raise SourceError(
                f"{os.path.join(path, name)} is {header.shape} {header.kind}, the other slices "
                f"are {shape} {kind}; put it right or move it elsewhere"
            )
    _check_numbering(path, files)
    names = ("z", "y", "x", "c")[: 1 + len(shape)]
    slices = zip(files, headers, strict=True)
    return make_source(
        path,
        level=0,
        layout=Layout(
            names=names,
            shape=(len(files), *shape),
            chunks=(1, *shape),
            shards=None,
            spacing=(1.0,) * len(names),
            origin=(0.0,) * len(names),
            units=(None,) * len(names),
        ),
        dtype=np.dtype(kind),
        reader=FolderReader(
            path, tuple(Slice(name, one.offset, one.dtype) for name, one in slices), shape
        ),
    )


def _is_slice(folder: str, name: str) -> bool:
    hidden = name.startswith(".")  # macOS leaves ._name.tif beside name.tif
    return (
        not hidden
        and name.lower().endswith(SUFFIXES)
        and os.path.isfile(os.path.join(folder, name))
    )


def _no_slices(path: str, everything: Sequence[str]) -> SourceError:
    if not everything:
        return SourceError(f"{path} is an empty folder")
    kinds = Counter(os.path.splitext(name)[1].lower() or "(no suffix)" for name in everything)
    have = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    return SourceError(
        f"{path} is no Zarr store and has no TIFF slices in it (but {have}); "
        f"volpatch reads Zarr, OME-Zarr, TIFF stacks and folders of TIFF slices"
    )


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    kind: str
    offset: int | None
    dtype: str


def _header(path: str) -> _Header:
    """Look at one slice; refuse it if it is cut off or not one 2-D page."""
    _check_pages_follow(path)
    try:
        with tifffile.TiffFile(path) as tif:
            page: Any = tif.pages.first
            pages, end = len(tif.pages), page_end(page)
            dtype, axes = page.dtype, page.axes
            offset = page.dataoffsets[0] if page.is_final and page.dataoffsets else None
            header = _Header(tuple(page.shape), str(dtype), offset, f"{tif.byteorder}{dtype.char}")
    except Exception as error:
        raise SourceError(f"{path} is no TIFF file, or a damaged one: {error}") from error
    if pages != 1 or axes not in ("YX", "YXS"):
        raise SourceError(
            f"{path} holds {pages} pages of axes {axes}, and a slice is one 2-D page; "
            f"pass the file itself if it is the volume"
        )
    check_dtype(dtype, path)
    size = os.path.getsize(path)
    if end > size:
        raise SourceError(
            f"{path} is truncated: it has {size} bytes, and its voxels need {end}; copy it again"
        )
    return header


def _check_numbering(folder: str, files: Sequence[str]) -> None:
    """Refuse a folder where the names of the slices skip a number.

    Counted is the last number in the name that varies; if that one is no counter (a time of
    day), an earlier one that never skips is as good.
    """
    stems = [os.path.splitext(name)[0] for name in files]
    runs = [re.findall(r"\d+", stem) for stem in stems]
    if len(files) < 2 or len({re.sub(r"\d+", "#", stem) for stem in stems}) > 1:
        return
    columns = [column for column in zip(*runs, strict=True) if len(set(column)) > 1]
    if not columns or any(_skips(column) is None for column in columns):
        return
    missing = _skips(columns[-1])
    if not missing:
        raise SourceError(
            f"{folder} has slices numbered unevenly (from {files[0]} to {files[-1]}); "
            f"keep one series, with an even step, in one folder"
        )
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    raise SourceError(
        f"{folder} lacks slice {', '.join(missing[:_NAMED])}{more} between {files[0]} and "
        f"{files[-1]}; restore what is missing, or number the slices anew"
    )


def _skips(column: Sequence[str]) -> list[str] | None:
    """Numbers missing from a counter, written as its others are; None if nothing is."""
    numbers = [int(text) for text in column]
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    common = max(Counter(steps).items(), key=lambda pair: (pair[1], -pair[0]))[0]
    if set(steps) == {common} and common > 0:
        return None
    if common <= 0 or any(step <= 0 or step % common for step in steps):
        return []
    width = min(len(text) for text in column)
    there = set(numbers)
    wanted = range(numbers[0], numbers[-1], common)
    return [str(number).zfill(width) for number in wanted if number not in there]
