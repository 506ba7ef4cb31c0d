"""TIFF files (plain, ImageJ, OME) as sources: which image of the file, and whether it is whole.

Sizes, page headers and series are checked when a file is opened: one that was cut off never
reads as zeros, a page that is not like the others is never read as if it were, and no series is
left out without a word.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tifffile

from volpatch.core.errors import SourceError
from volpatch.storage.readers.tiff_grid import Grid, file_grid, tiff_names
from volpatch.storage.readers.tiff_pages import Look, PageHeaders, ranges
from volpatch.storage.readers.tiff_readers import (
    ALL,
    DecodedReader,
    PlainReader,
    all_series,
    decoded,
    levels_of,
    page_end,
    stacked,
)
from volpatch.storage.volume import Format, Source, StoredAxes, check_readable, make_source

SUFFIXES = (".tif", ".tiff")
_MAX_PAGE_BYTES = 64 * 2**20
_LISTED = 8  # series in an error
# of series whose pages are listed one by one; of all others some are known by their number only
_LISTED_KINDS = ("uniform", "generic", "ome")


@dataclass(frozen=True)
class _Opened:
    """A file that is being looked at."""

    tif: tifffile.TiffFile
    path: str
    headers: PageHeaders
    every: list[Any]  # its series


def open_tiff(path: str, *, level: int, series: int | str | None, missing: str) -> Source:
    """An image of a TIFF file as a Source; without `series` the only one."""
    headers = PageHeaders(path)
    try:
        with tifffile.TiffFile(path) as tif:
            opened = _Opened(tif, path, headers, all_series(tif, mixed=not headers.alike))
            return _describe(opened, level, series)
    except (SourceError, MemoryError):
        raise
    except Exception as error:
        raise SourceError(f"{path} is no TIFF file, or a damaged one: {error}") from error


def _describe(opened: _Opened, level: int, given: int | str | None) -> Source:
    path, every = opened.path, opened.every
    series = _chosen(opened, given)
    numbers = range(len(every)) if series == ALL else [int(series)]
    levels = every[numbers[0]].levels
    if level >= len(levels):
        have = ", ".join(f"{number} {one.shape}" for number, one in enumerate(levels))
        raise SourceError(f"{path} has no level {level}; it has levels {have}")
    parts = levels_of(every, series, level)
    check_readable(parts[0].dtype, path)
    for part in parts:
        _check_complete(opened.tif, part, path)
    _check_alike(opened, parts)
    image = stacked(parts) if series == ALL else parts[0]
    finest = (len(parts), *levels[0].shape) if series == ALL else levels[0].shape
    names = tiff_names(parts[0].axes)
    if series == ALL:
        names = ("series" if "z" in names else "z", *names)
    grid, channels = _common_grid(opened, numbers)
    reader, chunks = _reader(opened, parts, image, (series, level))
    spacing, origin = [], []
    for axis, name in enumerate(names):
        # a coarser level: voxels of whole numbers of the finest ones, their centres moved
        factor = max(1, round(finest[axis] / max(image.shape[axis], 1)))
        fine = grid.get(name, (1.0, None))[0]
        spacing.append(fine * factor)
        origin.append((factor - 1) * fine / 2)
    axes = StoredAxes(
        names=names,
        shape=tuple(image.shape),
        chunks=chunks,
        shards=None,
        spacing=tuple(spacing),
        origin=tuple(origin),
        units=tuple(grid.get(name, (1.0, None))[1] for name in names),
    )
    coded = "" if isinstance(reader, PlainReader) else ", compressed or tiled"
    return make_source(
        path,
        kind=f"TIFF stack{coded}",
        level=level,
        levels=len(levels),
        series=series if len(every) > 1 else None,
        axes=axes,
        dtype=image.dtype,
        reader=reader,
        channel_names=channels,
        remarks=_left_out(opened),
    )


def _common_grid(opened: _Opened, numbers: Sequence[int]) -> Grid:
    """What the metadata say of some series, if they say the same of each."""
    grids = [file_grid(opened.tif, opened.every, number) for number in numbers]
    if any(other != grids[0] for other in grids):
        raise SourceError(
            f"the series of {opened.path} have other voxel sizes or channels, so they are no one "
            f"stack; choose one with series=N"
        )
    return grids[0]


# -- which image ---------------------------------------------------------------------------


def _chosen(opened: _Opened, series: int | str | None) -> int | str:
    """Number of the series that is meant, or ALL."""
    every, path = opened.every, opened.path
    if not every:
        raise SourceError(f"{path} has no image in it")
    if len(every) == 1 and series in (None, ALL):
        return 0
    if isinstance(series, int):
        if series < len(every):
            return series
        raise SourceError(f"{path} has no series {series}; it has {_series_text(every)}")
    kinds = {_kind(one) for one in every}
    if series == ALL and len(kinds) == 1:
        return ALL
    if series == ALL:
        raise SourceError(
            f"the series of {path} differ, so they are no one stack: {_series_text(every)}; "
            f"choose one with series=N"
        )
    other = ", or stack them with series='all'" if len(kinds) == 1 else ""
    raise SourceError(
        f"{path} holds {len(every)} series of image data, and a volume is one: "
        f"{_series_text(every)}. Choose with series=N{other}"
    )


def _kind(series: Any) -> tuple[object, ...]:
    """What series must have in common to be stacked."""
    return series.dtype, series.axes, tuple(one.shape for one in series.levels)


def _series_text(every: Sequence[Any]) -> str:
    """Series with name, shape, dtype and pages; those alike that follow each other as one."""
    listed = []
    for (name, look), run in itertools.groupby(enumerate(every), lambda pair: _said(pair[1])):
        numbers = [number for number, _ in run]
        if len(numbers) > 1:
            listed.append(f"{numbers[0]} to {numbers[-1]}{name} each {look}")
        else:
            listed.append(f"{numbers[0]}{name} {look}{_pages_text(every[numbers[0]])}")
    more = f"; and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return "; ".join(listed[:_LISTED]) + more


def _said(series: Any) -> tuple[str, str]:
    coded = series.keyframe.compression
    code = "" if coded == 1 else f" {getattr(coded, 'name', coded)}".lower()
    name = f" {series.name!r}" if series.name else ""
    return name, f"{series.shape} {series.dtype}{code}"


def _pages_text(series: Any) -> str:
    if series.kind != "generic":
        return ""
    numbers = sorted(page.index for page in series if page is not None)
    return f" (page{'s' if len(numbers) > 1 else ''} {ranges(numbers)})"


def _left_out(opened: _Opened) -> tuple[str, ...]:
    """A remark if the metadata of the file describe only some of its pages."""
    count = len(opened.headers)
    kinds = {one.kind for one in opened.every}
    if kinds != {"ome"} or any(one.is_multifile for one in opened.every):
        return ()
    found = {page.index for one in opened.every for page in one if page is not None}
    if len(found) == count:
        return ()
    left = [number for number in range(count) if number not in found]
    return (
        f"{len(left)} of its {count} pages are part of no image by its OME metadata, and left "
        f"out: {ranges(left)}",
    )


# -- how it is read ------------------------------------------------------------------------


def _reader(
    opened: _Opened, parts: Sequence[Any], image: Any, which: tuple[int | str, int]
) -> tuple[PlainReader | DecodedReader, tuple[int, ...]]:
    path, shape, page = opened.path, tuple(image.shape), image.keyframe
    offsets = [part.dataoffset for part in parts if not part.is_multifile]
    if page.is_final and len(offsets) == len(parts) and None not in offsets:
        dtype = opened.tif.byteorder + image.dtype.char
        plane_axes = min(3 if image.axes.endswith("XS") else 2, len(shape))
        plane = shape[len(shape) - plane_axes :]
        row_bytes = math.prod(plane[1:]) * image.dtype.itemsize
        rows = min(plane[0], max(1, _MAX_PAGE_BYTES // row_bytes))
        chunks = (1,) * (len(shape) - plane_axes) + (rows, *plane[1:])
        return PlainReader(path, tuple(offsets), dtype, shape, plane_axes), chunks
    whole = not page.is_tiled and page.nbytes <= _MAX_PAGE_BYTES
    mode = tifffile.CHUNKMODE.PAGE if whole else tifffile.CHUNKMODE.STRILE
    status = os.stat(path)
    stamp = status.st_mtime_ns, status.st_size
    reader = DecodedReader(path, *which, not opened.headers.alike, int(mode), stamp)
    array = decoded(reader)
    if array.shape != shape:
        raise SourceError(f"{path} is damaged: {shape} by its metadata, {array.shape} by its pages")
    return reader, array.chunks


# -- whether it is whole -------------------------------------------------------------------


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


def _imagej_images(tif: tifffile.TiffFile) -> int:
    found = tif.imagej_metadata or {}
    channels = found.get("channels", 1)
    if tif.pages.first.samplesperpixel == channels:
        channels = 1
    return int(found.get("slices", 1) * found.get("frames", 1) * channels)


def _check_alike(opened: _Opened, parts: Sequence[Any]) -> None:
    """Refuse a page that would be read as if it were like the first and is not, by its number."""
    headers = {opened.path: opened.headers}
    first = parts[0].keyframe
    wanted = _look(headers, first)
    for part in parts:
        if part.dataoffset is not None and part.kind not in _LISTED_KINDS:
            _check_row(opened, part, wanted)
            continue
        for page in part:
            if page is None or not page.offset:
                continue
            look = _look(headers, page)
            if look != wanted:
                raise _odd_page(page.parent.filehandle.path, page.treeindex, look, wanted)


def _look(headers: dict[str, PageHeaders], page: Any) -> Look:
    path = page.parent.filehandle.path
    if path not in headers:
        headers[path] = PageHeaders(path)
    return headers[path].look_at(page.offset)


def _check_row(opened: _Opened, part: Any, wanted: Look) -> None:
    """The pages of a series that is known by its first page, and read in one go from there."""
    headers, page = opened.headers, part.keyframe
    if len(page.treeindex) > 1:
        return
    images = math.prod(part.shape) // math.prod(page.shape)
    if part.kind == "imagej" and len(headers) > images:
        raise SourceError(
            f"{opened.path} has {len(headers)} pages, and its ImageJ header describes {images}, "
            f"so some would be left out; save it anew as a stack"
        )
    last = page.index + (1 if part.is_truncated else images)
    for number in range(page.index, min(last, len(headers))):
        if headers.look(number) != wanted:
            raise _odd_page(opened.path, (number,), headers.look(number), wanted)
        there = part.dataoffset + (number - page.index) * page.nbytes
        if headers.start(number) != there:
            raise SourceError(
                f"the voxels of page {number} of {opened.path} begin at byte "
                f"{headers.start(number)}, and by its {part.kind} header the pages follow one "
                f"another, which would put them at {there}; save it anew as a stack"
            )


def _odd_page(path: str, index: tuple[int, ...], look: Look, wanted: Look) -> SourceError:
    number = ".".join(map(str, index))
    return SourceError(
        f"page {number} of {path} is not like the first of its series: it has "
        f"{look.differences(wanted)}; put it right, or take it out"
    )


FORMAT = Format(
    "TIFF stack",
    lambda path: path.lower().endswith(SUFFIXES) and os.path.isfile(path),
    open_tiff,
    has_series=True,
)
