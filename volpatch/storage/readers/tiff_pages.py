"""Page headers of a TIFF file, read straight from its bytes, a few of their fields only.

tifffile looks at four pages of a stack and takes the others to be alike, it stops at a link
that leads nowhere, and it believes any count. A walk along the chain of headers finds pages
that differ, chains that break off or run in a circle, and counts that cannot be. It keeps
three numbers a page, and each kind of page once.
"""

from __future__ import annotations

import itertools
import os
import struct
from array import array
from dataclasses import dataclass, fields

from volpatch.core.errors import SourceError

_FIRST_READ = 512  # bytes: a header of 40 fields
_MOST_FIELDS = 4096
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {16: 8, 17: 8, 18: 8}
_LETTERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
# what tells how the voxels of a page are to be read
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_SAMPLES, _ROWS, _PLANAR, _PREDICTOR, _EXTRA, _FORMAT = 277, 278, 284, 317, 338, 339
_TILE_WIDTH, _TILE_LENGTH, _DEPTH, _TILE_DEPTH = 322, 323, 32997, 32998
_STARTS, _COUNTS = (273, 324), (279, 325)
_KEPT = frozenset(
    (
        *(_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES, _ROWS),
        *(_PLANAR, _PREDICTOR, _EXTRA, _FORMAT, _TILE_WIDTH, _TILE_LENGTH, _DEPTH, _TILE_DEPTH),
        *(*_STARTS, *_COUNTS),
    )
)
_Values = tuple[int, ...]


@dataclass(frozen=True)
class Look:
    """All that must be the same for two pages to be read alike; the words of their errors.

    `bytes` and `gaps` (between the strips of a page) count where voxels lie as they are.
    """

    width: int
    length: int
    depth: int
    samples: int
    bits: _Values
    sample_format: _Values
    extra_samples: _Values
    photometric: int
    planar_configuration: int
    fill_order: int
    compression: int
    predictor: int
    tile: _Values
    rows_per_strip: int
    strips_or_tiles: int
    bytes: int | None
    gaps: bool

    def differences(self, other: Look) -> str:
        """What is otherwise here.

        >>> plain = dict(samples=1, bits=(8,), sample_format=(1,), extra_samples=(), depth=1)
        >>> plain |= dict(photometric=1, planar_configuration=1, fill_order=1, compression=1)
        >>> plain |= dict(predictor=1, tile=(), strips_or_tiles=1, gaps=False, width=5)
        >>> short = Look(length=3, rows_per_strip=3, bytes=15, **plain)
        >>> short.differences(Look(length=4, rows_per_strip=4, bytes=20, **plain))
        'length 3 (not 4), rows per strip 3 (not 4), bytes 15 (not 20)'
        """
        pairs = [(one.name, getattr(self, one.name), getattr(other, one.name)) for one in _FIELDS]
        return ", ".join(
            f"{name.replace('_', ' ')} {_plain(own)} (not {_plain(its)})"
            for name, own, its in pairs
            if own != its
        )


_FIELDS = fields(Look)


def _plain(value: object) -> object:
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


class PageHeaders:
    """The pages of one file: where their headers and their voxels are, and how they look.

    Parameters
    ----------
    path : str

    Raises
    ------
    SourceError
        The file is no TIFF file, is cut off, or its headers say what cannot be.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.size = os.path.getsize(path)
        self.numbers: dict[int, int] = {}  # of pages, by the byte that their header begins at
        self._kinds = array("Q")
        self._starts = array("Q")
        self._looks: dict[tuple[object, ...], int] = {}
        self._known: list[Look] = []
        with open(path, "rb", buffering=0) as file:
            self._begin(file.read(16))
            self._walk(file.fileno())

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def alike(self) -> bool:
        """Whether all pages look the same."""
        return len(self._known) == 1

    def look(self, number: int) -> Look:
        """How the page of this number looks."""
        return self._known[self._kinds[number]]

    def start(self, number: int) -> int:
        """Where the voxels of a page begin."""
        return self._starts[number]

    def look_at(self, offset: int) -> Look:
        """How the page looks whose header begins at a byte; also one outside of the chain."""
        if offset in self.numbers:
            return self.look(self.numbers[offset])
        with open(self.path, "rb", buffering=0) as file:
            _, kind, _ = self._header(file.fileno(), offset, f"the page at byte {offset}")
        return self._known[kind]

    def _begin(self, head: bytes) -> None:
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 8:
            raise SourceError(
                f"{self.path} ({self.size} bytes) does not begin like a TIFF file; is it one?"
            )
        self._order = order
        self._big = struct.unpack(order + "H", head[2:4])[0] == 43
        self._count = struct.Struct(order + ("Q" if self._big else "H"))
        self._entry = struct.Struct(order + ("HHQ8s" if self._big else "HHI4s"))
        self._link = struct.Struct(order + ("Q" if self._big else "I"))
        start = 8 if self._big else 4
        self._first = head[start : start + self._link.size]

    def _walk(self, file: int) -> None:
        if len(self._first) < self._link.size:
            raise self._cut_off(8)
        (offset,) = self._link.unpack(self._first)
        while offset or not self.numbers:
            number = len(self.numbers)
            if offset in self.numbers or offset < 8:
                raise SourceError(f"{self.path} is damaged: its page {number} is nowhere")
            self.numbers[offset] = number
            offset, kind, start = self._header(file, offset, f"page {number}")
            self._kinds.append(kind)
            self._starts.append(start)

    def _header(self, file: int, offset: int, name: str) -> tuple[int, int, int]:
        """Where the next header is, number of the look, where the voxels begin."""
        if offset >= self.size:  # no seek takes any number
            raise self._cut_off(offset)
        data = os.pread(file, _FIRST_READ, offset)
        if len(data) < self._count.size:
            raise self._cut_off(offset)
        (count,) = self._count.unpack_from(data)
        if not 1 <= count <= _MOST_FIELDS:
            raise SourceError(
                f"{self.path} is damaged: the header of {name} claims {count} fields, and 1 to "
                f"{_MOST_FIELDS} can be; restore the file from a copy"
            )
        end = self._count.size + count * self._entry.size
        if len(data) < end + self._link.size:
            data = os.pread(file, end + self._link.size, offset)
            if len(data) < end + self._link.size:
                raise self._cut_off(offset)
        kept: dict[int, tuple[int, int, bytes]] = {}
        for code, form, values, inline in self._entry.iter_unpack(data[self._count.size : end]):
            if values * _SIZES.get(form, 1) > self.size:
                raise self._absurd(name, code, values)
            if code in _KEPT:
                kept[code] = form, values, inline
        found = {code: self._values(file, name, code, *one) for code, one in kept.items()}
        starts = found.get(_STARTS[0]) or found.get(_STARTS[1]) or ()
        counts = found.get(_COUNTS[0]) or found.get(_COUNTS[1]) or ()
        key = _look_key(found, starts, counts)
        kind = self._looks.get(key)
        if kind is None:
            kind = self._looks[key] = len(self._known)
            self._known.append(Look(*key))  # type: ignore[arg-type]
        (link,) = self._link.unpack_from(data, end)
        return link, kind, starts[0] if starts else 0

    def _values(
        self, file: int, name: str, code: int, form: int, count: int, inline: bytes
    ) -> _Values:
        letter = _LETTERS.get(form)
        if letter is None:
            return ()
        length = count * _SIZES[form]
        if length > len(inline):
            (offset,) = self._link.unpack(inline)
            if offset + length > self.size:
                raise self._absurd(name, code, count, f" at byte {offset}")
            inline = os.pread(file, length, offset)
        return struct.unpack(f"{self._order}{count}{letter}", inline[:length])

    def _absurd(self, name: str, code: int, count: int, where: str = "") -> SourceError:
        return SourceError(
            f"{self.path} is truncated or damaged: it has {self.size} bytes, and field {code} of "
            f"{name} claims {count} values{where}; restore the file from a copy"
        )

    def _cut_off(self, offset: int) -> SourceError:
        return SourceError(
            f"{self.path} is truncated: it has {self.size} bytes, its page "
            f"{max(len(self.numbers) - 1, 0)} is described at byte {offset} and beyond; "
            f"copy the file again"
        )


def _look_key(found: dict[int, _Values], starts: _Values, counts: _Values) -> tuple[object, ...]:
    """The fields of a `Look`, in their order, with what a TIFF file leaves out filled in."""

    def one(code: int, otherwise: int) -> int:
        values = found.get(code)
        return values[0] if values else otherwise

    width, length, samples = one(_WIDTH, 0), one(_LENGTH, 0), one(_SAMPLES, 1)
    tiled, compression = _TILE_WIDTH in found, one(_COMPRESSION, 1)
    tile = (one(_TILE_WIDTH, 0), one(_TILE_LENGTH, 0), one(_TILE_DEPTH, 1)) if tiled else ()
    plain = compression == 1 and len(counts) == len(starts)
    pieces = zip(starts, counts, starts[1:], strict=False)
    return (
        width,
        length,
        one(_DEPTH, 1),
        samples,
        _same(found.get(_BITS, (1,))),
        _same(found.get(_FORMAT, (1,))),
        found.get(_EXTRA, ()),
        one(_PHOTOMETRIC, 0),
        one(_PLANAR, 1) if samples > 1 else 1,
        one(_FILL_ORDER, 1),
        compression,
        one(_PREDICTOR, 1),
        tile,
        0 if tiled else min(one(_ROWS, length), length),
        len(starts),
        sum(counts) if plain else None,
        plain and not tiled and any(start + n != after for start, n, after in pieces),
    )


def _same(values: _Values) -> _Values:
    """One value where all are the same: some writers give it per sample, some once."""
    return values[:1] if len(set(values)) == 1 else values


def ranges(numbers: list[int], most: int = 3) -> str:
    """Rising numbers as text.

    >>> ranges([5]), ranges([0, 1, 2, 4, 5]), ranges([1, 3, 5, 7, 9, 11])
    ('5', '0 to 2, 4 to 5', '1, 3, 5 and 3 more')
    """
    runs: list[list[int]] = []
    for _, group in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        runs.append([number for _, number in group])
    shown = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs[:most]]
    left = sum(map(len, runs[most:]))
    return ", ".join(shown) + (f" and {left} more" if left else "")
