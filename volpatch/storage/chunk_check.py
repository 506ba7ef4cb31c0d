"""Look at a stored chunk before it is decoded.

Decoders trust what they are given: Blosc reads past the end of a chunk that was cut off, and a few
kilobytes can state, or turn into, gigabytes. So a chunk reaches its decoder only when its file is
a regular one that is as long as it says, and when it cannot decode to more than the voxels of a
chunk take. That costs a read of some bytes: Blosc, LZ4 and Zstandard state or bound their sizes.
Gzip, zlib, bz2 and LZMA do not; they are decoded once more, without being kept, as far as it takes
until what is left can do no harm.
"""

from __future__ import annotations

import bz2
import itertools
import lzma
import math
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.storage.chain import ChunkForm, FileForm, IndexForm
from volpatch.storage.codec import checksum

_ABSENT = 2**64 - 1
# What a chunk may decode to where only a bound is known: zarr decodes ten at a time, so ten
# hostile ones reach 2.5 GiB before they are found out.
_ROOM = 2**28
_PIECE = 2**16
_MAX_PIECE = 2**20
RUN_BYTES = 2**20  # of chunks of a shard that are read as one
# An encoder that gains nothing adds little; a file of many times the voxels is not a chunk.
_SLACK = 2**20

_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_SKIPPABLE = 0x184D2A50
_ZSTD_BLOCK = 2**17  # no block decodes to more
_ZSTD_MAX_BLOCKS = 2**20


_Stored = tuple[tuple[int, ...], int, int]  # place of a chunk in a shard, its offset, its length


class AbsentChunk(Exception):  # noqa: N818 - no error where absent chunks are welcome
    """A chunk that is not stored: which one of a shard, and what is in its place, if anything."""

    def __init__(self, place: tuple[int, ...] | None = None, instead: str = "") -> None:
        super().__init__(place, instead)
        self.place = place
        self.instead = instead


@dataclass(frozen=True)
class Span:
    """A part of an open file.

    Attributes
    ----------
    held : buffer, optional
        What is in it, once it was read; looked into instead of the file.
    """

    file: int
    start: int
    length: int
    held: memoryview | None = None

    def read(self, at: int, count: int) -> bytes:
        """Up to `count` bytes from `at`; fewer where the part ends."""
        count = min(count, self.length - at)
        if count <= 0:
            return b""
        if self.held is not None:
            return bytes(self.held[at : at + count])
        return os.pread(self.file, count, self.start + at)

    def load(self) -> Span:
        """The same part with all of its bytes; fewer than before where the file was cut since."""
        pieces, at = [], 0
        while at < self.length:  # one read gives 2 GiB at most
            piece = os.pread(self.file, self.length - at, self.start + at)
            if not piece:
                break
            pieces.append(piece)
            at += len(piece)
        held = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return replace(self, length=len(held), held=memoryview(held))

    def number(self, at: int, count: int) -> int:
        """The little-endian number in `count` bytes from `at`; they have to be there."""
        found = self.read(at, count)
        if len(found) < count:
            raise ValueError(f"it ends after {self.length} bytes, in the middle of a header")
        return int.from_bytes(found, "little")

    def inside(self, front: int, back: int) -> Span:
        """The part without some bytes at either end."""
        if self.length < front + back:
            raise ValueError(f"it has {self.length} bytes, its checksums alone {front + back}")
        held = None if self.held is None else self.held[front : self.length - back]
        return Span(self.file, self.start + front, self.length - front - back, held)


@contextmanager
def checked(
    path: str, box: Sequence[slice], form: FileForm, *, dense: bool, load: bool = False
) -> Iterator[Iterator[tuple[tuple[int, ...], Span | None]]]:
    """Look at what a box needs of one file, chunk by chunk.

    Parameters
    ----------
    path : str
        The file, which need not exist.
    box : sequence of slice
        The part that is to be read, in voxels from the file's first one.
    form : FileForm
        What it should hold.
    dense : bool
        Whether an absent chunk is an error.
    load : bool
        Read each chunk, once it is known that it is no longer than it may be.

    Yields
    ------
    iterator of (tuple of int, Span or None)
        Each chunk that the box touches: its place in the file, and what is stored; None for
        an absent one. A chunk is looked at when its turn comes.

    Raises
    ------
    AbsentChunk
        If `dense`.
    ValueError
        When it is not what it should be; the text follows "is damaged:".
    """
    spans = [
        range(one.start // edge, -(-one.stop // edge))
        for one, edge in zip(box, form.chunk_shape, strict=True)
    ]
    places = itertools.product(*spans)
    try:
        file = _open(path)
    except AbsentChunk as absent:
        if dense:
            raise
        if absent.instead:  # no writer leaves this: it stood for a chunk that is out of reach
            raise ValueError(f"{absent.instead} is in its place") from None
        yield ((place, None) for place in places)
        return
    try:
        span = Span(file, 0, os.fstat(file).st_size)
        if form.index is None:
            yield ((place, _looked_at(span, form.chunk, load=load)) for place in places)
        else:
            yield _in_shard(span, places, form, form.index, dense=dense, load=load)
    finally:
        os.close(file)


def _open(path: str) -> int:
    """A descriptor of a regular file; opening a FIFO could wait for ever."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise AbsentChunk(instead="a dead link" if os.path.islink(path) else "") from None
    if stat.S_ISDIR(mode):
        raise AbsentChunk(instead="a folder")
    if not stat.S_ISREG(mode):
        raise ValueError("it is a FIFO, a socket or a device, not a file")
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _in_shard(
    span: Span,
    places: Iterator[tuple[int, ...]],
    form: FileForm,
    index: IndexForm,
    *,
    dense: bool,
    load: bool,
) -> Iterator[tuple[tuple[int, ...], Span | None]]:
    whole = math.prod(form.shape) // math.prod(form.chunk_shape) * form.chunk.nbytes
    _check_length(span.length, whole + index.nbytes)
    table = _read_index(span, index)
    stored: Iterable[_Stored] = ((p, int(table[p][0]), int(table[p][1])) for p in places)
    for run in _runs(sorted(stored, key=lambda one: one[1])) if load else ([o] for o in stored):
        start, end = run[0][1], run[-1][1] + run[-1][2]
        held = Span(span.file, start, end - start).load().held if len(run) > 1 else None
        for place, offset, length in run:
            if offset == _ABSENT:
                if dense:
                    raise AbsentChunk(place)
                yield place, None
                continue
            own = None if held is None else held[offset - start : offset - start + length]
            try:
                chunk = Span(span.file, offset, length, own)
                found = _looked_at(chunk, form.chunk, load=load and own is None)
            except ValueError as error:
                raise ValueError(f"chunk {place} of the shard: {error}") from error
            yield place, found


def _runs(stored: Iterable[_Stored]) -> Iterator[list[_Stored]]:
    """Chunks that lie one behind the other, to be read as one if they are small.

    A request for each of many little chunks is what takes long on a share or a slow disk.
    """
    run: list[_Stored] = []
    for one in stored:
        follows = bool(run) and run[-1][1] + run[-1][2] == one[1] and one[1] != _ABSENT
        if run and not (follows and one[1] + one[2] - run[0][1] <= RUN_BYTES):
            yield run
            run = []
        run.append(one)
    if run:
        yield run


def _read_index(span: Span, index: IndexForm) -> NDArray[Any]:
    """(offset, length) per chunk, each inside the file or both absent."""
    if span.length < index.nbytes:
        raise ValueError(f"it has {span.length} bytes, its index alone {index.nbytes}")
    stored = span.read(0 if index.at_start else span.length - index.nbytes, index.nbytes)
    entries = stored[: 16 * math.prod(index.grid)]
    if index.checked and checksum(entries) != stored[len(entries) :]:
        raise ValueError("its index does not fit the index's checksum")
    table = np.frombuffer(entries, index.dtype).reshape(*index.grid, 2).astype("u8")
    offsets, lengths = table[..., 0], table[..., 1]
    size = np.uint64(span.length)
    # written so that no sum can pass 2**64
    inside = (offsets <= size) & (lengths <= size - np.minimum(offsets, size))
    absent = (offsets == _ABSENT) & (lengths == _ABSENT)
    wrong = np.argwhere(~(inside | absent))
    if len(wrong):
        place = tuple(map(int, wrong[0]))
        raise ValueError(
            f"its index puts chunk {place} at byte {offsets[place]} with {lengths[place]} bytes, "
            f"and it has {span.length}"
        )
    return table


def _looked_at(span: Span, form: ChunkForm, *, load: bool) -> Span:
    """A chunk that may be decoded; read before its content is looked at, if it is to be read."""
    if form.compressor is None:
        if span.length != form.nbytes:
            raise ValueError(f"it has {span.length} bytes, its voxels take {form.nbytes}")
        return span.load() if load else span
    _check_length(span.length, form.nbytes)
    if span.length == 0:
        raise ValueError("it has 0 bytes")
    span = span.load() if load else span
    check = _CHECKS.get(form.compressor)
    if check is not None:
        check(span.inside(form.front, form.back), form.nbytes)
    return span


def _check_length(length: int, expected: int) -> None:
    if length > 4 * expected + _SLACK:
        raise ValueError(f"it has {length} bytes, and decoded it should have {expected}")


def _check_stated(stated: int, expected: int) -> None:
    if stated != expected:
        raise ValueError(f"it says that it decodes to {stated} bytes, its voxels take {expected}")


def _check_blosc(span: Span, expected: int) -> None:
    header = span.read(0, 16)
    said = int.from_bytes(header[12:16], "little")
    if len(header) < 16 or said != span.length:
        raise ValueError(f"it has {span.length} bytes, its Blosc header says {said}")
    _check_stated(int.from_bytes(header[4:8], "little"), expected)


def _check_lz4(span: Span, expected: int) -> None:
    _check_stated(span.number(0, 4), expected)


def _check_zstd(span: Span, expected: int) -> None:
    """Add up all frames: what they state, or else what their blocks could hold at most.

    Some writers state no size. Blocks have headers of their own, so a bound needs no decoding.
    """
    at = blocks = stated = most = 0
    all_state = True
    while at < span.length:
        magic = span.number(at, 4)
        if magic & ~0xF == _ZSTD_SKIPPABLE:
            at += 8 + span.number(at + 4, 4)
            continue
        if magic != _ZSTD_MAGIC:
            raise ValueError(f"at byte {at} there should be a Zstandard frame, and is none")
        at, size, checked = _zstd_header(span, at + 4)
        all_state = all_state and size is not None
        stated += size or 0
        last = False
        while not last:
            header = span.number(at, 3)
            last, kind, size_here = bool(header & 1), header >> 1 & 3, header >> 3
            at += 3 + (1 if kind == 1 else size_here)
            most += size_here if kind < 2 else _ZSTD_BLOCK
            blocks += 1
            if blocks > _ZSTD_MAX_BLOCKS:
                raise ValueError(f"it has more than {_ZSTD_MAX_BLOCKS} Zstandard blocks")
        at += 4 * checked
    if at > span.length:
        raise ValueError(f"it ends after {span.length} bytes, in the middle of a block")
    if all_state:
        _check_stated(stated, expected)
    elif most > max(4 * expected, _ROOM):
        raise ValueError(f"it may decode to {most} bytes, its voxels take {expected}")


def _zstd_header(span: Span, at: int) -> tuple[int, int | None, bool]:
    """Where a frame's first block begins, the size it states, whether a checksum ends it."""
    flags = span.number(at, 1)
    single, kind = bool(flags & 32), flags >> 6
    at += 1 + (not single) + (0, 1, 2, 4)[flags & 3]
    width = (int(single), 2, 4, 8)[kind]
    size = span.number(at, width) + 256 * (width == 2) if width else None
    return at + width, size, bool(flags & 4)


@dataclass(frozen=True)
class _Stream:
    """A format that states no size; no stored byte decodes to more than `ratio`."""

    decoder: Callable[[], Any]
    ratio: int
    joined: bool = True  # several streams may follow each other
    padded: bool = False  # with zeros between them

    def check(self, span: Span, expected: int) -> None:
        """Decode, and forget, until what is left is harmless."""
        room = max(4 * expected, _ROOM)
        decoded = 0
        for size, left in self._sizes(span):
            decoded += size
            if decoded > expected:
                raise ValueError(f"it decodes to more than the {expected} bytes its voxels take")
            if decoded + left * self.ratio <= room:
                return

    def _sizes(self, span: Span) -> Iterator[tuple[int, int]]:
        """Bytes that the next piece decodes to, and stored bytes that follow it."""
        yield 0, span.length
        decoder, fresh = self.decoder(), True
        for at in range(0, span.length, _PIECE):
            piece = span.read(at, _PIECE)
            left = span.length - at - len(piece)
            while True:
                if fresh and self.padded:
                    piece = piece.lstrip(b"\0")
                if fresh and not piece:
                    break
                size = len(decoder.decompress(piece, _MAX_PIECE))
                fresh = decoder.eof
                # zlib hands back what it did not take, the others keep it
                piece = decoder.unused_data if fresh else getattr(decoder, "unconsumed_tail", b"")
                held = 0 if getattr(decoder, "needs_input", True) else _PIECE
                yield size, left + len(piece) + held
                if fresh and not self.joined:
                    return
                if fresh:
                    decoder = self.decoder()
                elif not piece and getattr(decoder, "needs_input", True):
                    break


def _lzma() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=_ROOM)


_CHECKS: dict[str, Callable[[Span, int], None]] = {
    "blosc": _check_blosc,
    "lz4": _check_lz4,
    "zstd": _check_zstd,
    "gzip": _Stream(lambda: zlib.decompressobj(31), 1032, padded=True).check,
    "zlib": _Stream(zlib.decompressobj, 1032, joined=False).check,
    "bz2": _Stream(bz2.BZ2Decompressor, 2**21).check,
    "lzma": _Stream(_lzma, 2**14, padded=True).check,
}
