"""A folder of one-page TIFF files as a stack.

The names say which files belong together. They are grouped by what stands around their digits,
and a group in which more than one number counts is split further; one group is a stack, several
are an error that lists them. A pattern in place of the folder chooses among its files.
"""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile

from volpatch.core.errors import SourceError
from volpatch.storage.readers.tiff import SUFFIXES
from volpatch.storage.readers.tiff_grid import Grid, page_grid
from volpatch.storage.readers.tiff_pages import PageHeaders
from volpatch.storage.readers.tiff_readers import FolderReader, Slice, page_end
from volpatch.storage.volume import Format, Source, StoredAxes, check_readable, make_source

_NAMED = 5  # files, or groups of files, in an error or a remark
# what may hold voxels as well; files of all other kinds are passed over
_IMAGES = frozenset(
    [
        ".png",
        ".jpg",
        ".jpeg",
        ".jp2",
        ".j2k",
        ".jxl",
        ".bmp",
        ".gif",
        ".webp",
        ".pgm",
        ".ppm",
        ".pnm",
        ".dcm",
        ".ima",
        ".nii",
        ".mha",
        ".mhd",
        ".nrrd",
        ".nhdr",
        ".mrc",
        ".dm3",
        ".dm4",
        ".czi",
        ".lif",
        ".lsm",
        ".nd2",
        ".oib",
        ".oif",
        ".vsi",
        ".zvi",
        ".ims",
        ".h5",
        ".hdf5",
        ".npy",
        ".npz",
    ]
)


def is_pattern(path: str) -> bool:
    """Whether a path that does not exist is to choose files of a folder."""
    folder, name = os.path.split(path)
    return glob.has_magic(name) and os.path.isdir(folder or ".")


def open_folder(path: str, *, level: int, series: int | str | None, missing: str) -> Source:
    """Slices in a folder, or those whose names match a pattern, in the order of their numbers."""
    folder, pattern = (path, None) if os.path.isdir(path) else os.path.split(path)
    everything = sorted(os.listdir(folder))
    if pattern is not None:
        everything = fnmatch.filter(everything, pattern)
    shown = [name for name in everything if not name.startswith(".")]  # macOS leaves ._name.tif
    images = [name for name in shown if _may_be_image(folder, name)]
    if not any(_is_tiff(name) for name in images):
        raise _no_slices(path, pattern, everything)
    if level:
        raise SourceError(f"{path} is a folder of slices and has no level {level}; leave it at 0")
    files = _one_stack(path, folder, images)
    headers = [_header(os.path.join(folder, name)) for name in files]
    shape, kind = _common_kind(folder, files, headers)
    _check_numbering(path, files)
    (grid, _), agree = headers[0].grid, all(one.grid == headers[0].grid for one in headers)
    names = ("z", "y", "x", "c")[: 1 + len(shape)]
    known = [grid.get(name, (1.0, None)) if agree else (1.0, None) for name in names]
    slices = zip(files, headers, strict=True)
    passed_over = sorted(set(shown) - set(images))
    return make_source(
        path,
        kind="folder of TIFF slices",
        level=0,
        axes=StoredAxes(
            names=names,
            shape=(len(files), *shape),
            chunks=(1, *shape),
            shards=None,
            spacing=tuple(spacing for spacing, _ in known),
            origin=(0.0,) * len(names),
            units=tuple(unit for _, unit in known),
        ),
        dtype=np.dtype(kind),
        reader=FolderReader(
            folder, tuple(Slice(name, one.offset, one.dtype) for name, one in slices), shape
        ),
        remarks=(
            *([f"passed over: {_list(passed_over)}"] if passed_over else []),
            *([] if agree else ["voxel size unknown: the slices give different ones"]),
        ),
    )


def _is_tiff(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _may_be_image(folder: str, name: str) -> bool:
    """Whether a file may be a slice, or another image that somebody would miss."""
    known = _is_tiff(name) or os.path.splitext(name)[1].lower() in _IMAGES
    return known and not os.path.isdir(os.path.join(folder, name))


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _no_slices(path: str, pattern: str | None, everything: Sequence[str]) -> SourceError:
    if pattern is not None and not everything:
        return SourceError(f"no file matches {path!r}; a pattern chooses TIFF slices of a folder")
    if not everything:
        return SourceError(f"{path} is an empty folder")
    kinds = Counter(os.path.splitext(name)[1].lower() or "(no suffix)" for name in everything)
    have = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    return SourceError(
        f"{path} is no Zarr store and has no TIFF slices in it (but {have}); "
        f"volpatch reads Zarr, OME-Zarr, TIFF stacks and folders of TIFF slices"
    )


# -- which files belong together -----------------------------------------------------------


def _one_stack(path: str, folder: str, names: Sequence[str]) -> list[str]:
    """The names in order, if they are those of one stack."""
    groups = [part for group in _by_words(names) for part in _by_numbers(group)]
    if len(groups) == 1:
        return groups[0]
    patterns = [_pattern(group, names) for group in groups]
    listed = [
        f"{_quoted(group, pattern)} ({len(group)} file{'s' if len(group) > 1 else ''})"
        for group, pattern in zip(groups, patterns, strict=True)
    ]
    sizes = zip(patterns, map(len, groups), strict=True)
    best = max((pair for pair in sizes if pair[0] is not None), key=lambda p: p[1], default=None)
    way = "move the others elsewhere"
    if best is not None:
        way = f"choose one by a pattern, such as {os.path.join(folder, str(best[0]))!r}, or {way}"
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    raise SourceError(
        f"{path} has names of {len(groups)} kinds, and a stack is of one: "
        f"{', '.join(listed[:_NAMED])}{more}; {way}"
    )


def _by_words(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that are the same around their digits, each in natural order."""
    groups: dict[str, list[str]] = {}
    for name in tifffile.natural_sorted(names):
        stem, suffix = os.path.splitext(name)
        groups.setdefault(re.sub("[0-9]+", "\0", stem) + suffix.lower(), []).append(name)
    return list(groups.values())


def _columns(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Each number in the names, from the first name to the last."""
    found = [re.findall("[0-9]+", os.path.splitext(name)[0]) for name in names]
    return list(zip(*found, strict=True))


def _by_numbers(names: list[str]) -> list[list[str]]:
    """The names as they are if one number tells them apart, else split by the other numbers.

    >>> _by_numbers(["z0_c1", "z0_c2", "z1_c1", "z1_c2", "z2_c1", "z2_c2"])
    [['z0_c1', 'z1_c1', 'z2_c1'], ['z0_c2', 'z1_c2', 'z2_c2']]
    """
    columns = [tuple(map(int, column)) for column in _columns(names)]
    counts = [len(set(column)) for column in columns]
    varying = [number for number, count in enumerate(counts) if count > 1]
    if len(varying) < 2 or max(counts) == len(names):
        return [names]
    along = max(varying, key=lambda number: (counts[number], number))
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, *values in zip(names, *columns, strict=True):
        values.pop(along)
        groups.setdefault(tuple(values), []).append(name)
    return list(groups.values())


def _pattern(group: Sequence[str], names: Sequence[str]) -> str | None:
    """What chooses just these of the names, if anything short does."""
    if len(group) == 1:
        return glob.escape(group[0])
    stem, suffix = os.path.splitext(group[0])
    words = re.split("[0-9]+", stem)
    columns = _columns(group)
    for any_digits in (True, False):
        made = glob.escape(words[0])
        for column, word in zip(columns, words[1:], strict=True):
            fixed = column[0] if len(set(column)) == 1 else None
            made += fixed or ("*" if any_digits else "?" * len(column[0]))
            made += glob.escape(word)
        if set(fnmatch.filter(names, made + suffix)) == set(group):
            return made + suffix
    return None


def _quoted(group: Sequence[str], pattern: str | None) -> str:
    if len(group) == 1:
        return repr(group[0])
    return f"{group[0]} to {group[-1]}" if pattern is None else repr(pattern)


def _common_kind(
    folder: str, files: Sequence[str], headers: Sequence[_Header]
) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of all slices; the odd one out is named."""
    kinds = Counter((header.shape, header.kind) for header in headers)
    common = kinds.most_common(1)[0][0]
    for name, header in zip(files, headers, strict=True):
        if (header.shape, header.kind) != common:
            raise SourceError(
                f"{os.path.join(folder, name)} is {header.shape} {header.kind}, the other slices "
                f"are {common[0]} {common[1]}; put it right or move it elsewhere"
            )
    return common


# -- one slice -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    kind: str
    offset: int | None
    dtype: str
    grid: Grid


def _header(path: str) -> _Header:
    """Look at one slice; refuse it if it is cut off or not one 2-D page."""
    if not os.path.isfile(path):  # opening a FIFO would wait for ever
        raise SourceError(f"{path} is no file that can be read; restore it or move it elsewhere")
    PageHeaders(path)
    try:
        with tifffile.TiffFile(path) as tif:
            page: Any = tif.pages.first
            pages, end = len(tif.pages), page_end(page)
            dtype, axes = page.dtype, page.axes
            offset = page.dataoffsets[0] if page.is_final and page.dataoffsets else None
            order = f"{tif.byteorder}{dtype.char}"
            grid = page_grid(tif, page)
            header = _Header(tuple(page.shape), str(dtype), offset, order, grid)
    except Exception as error:
        raise SourceError(f"{path} is no TIFF file, or a damaged one: {error}") from error
    if pages != 1 or axes not in ("YX", "YXS"):
        raise SourceError(
            f"{path} holds {pages} pages of axes {axes}, and a slice is one 2-D page; "
            f"pass the file itself if it is the volume"
        )
    check_readable(dtype, path)
    size = os.path.getsize(path)
    if end > size:
        raise SourceError(
            f"{path} is truncated: it has {size} bytes, and its voxels need {end}; copy it again"
        )
    return header


def _check_numbering(path: str, files: Sequence[str]) -> None:
    """Refuse slices whose numbers skip one, or have one twice.

    Counted is the last number in the name that varies; if that one is no counter (a time of
    day), an earlier one that never skips is as good.
    """
    columns = [column for column in _columns(files) if len(set(column)) > 1]
    if len(files) < 2 or any(_skips(column) is None for column in columns):
        return
    missing = _skips(columns[-1]) if columns else []
    if not missing:
        raise SourceError(
            f"{path} has slices numbered unevenly (from {files[0]} to {files[-1]}); "
            f"keep one series, with an even step, in one folder"
        )
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    raise SourceError(
        f"{path} lacks slice {', '.join(missing[:_NAMED])}{more} between {files[0]} and "
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


FORMAT = Format(
    "folder of TIFF slices", lambda path: os.path.isdir(path) or is_pattern(path), open_folder
)
