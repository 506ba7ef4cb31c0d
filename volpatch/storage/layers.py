"""Write one box of an image: encode whole write units and put each in one step.

A write unit is known by its number (C order over all units) and by its key, the object's place
below the root. Each object that was put is told with its size and SHA-256, for the records.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.core.errors import RunError, SettingError
from volpatch.storage.codec import ChunkEncoder, ShardIndex, TargetSpec
from volpatch.storage.patience import patiently
from volpatch.storage.stores.local import AtomicFiles, Piece, disk_errors

IMAGE = "scale0/image"
Unit = tuple[int, int, str]  # number, bytes, SHA-256


def unit_key(spec: TargetSpec, number: int) -> str:
    """Where the object of a write unit lies below the root.

    >>> unit_key(TargetSpec((10, 10), "uint8", ("y", "x"), (4, 4)), 5)
    'scale0/image/c/1/2'
    """
    return _key(tuple(int(i) for i in np.unravel_index(number, spec.unit_grid)))


def _key(unit: Sequence[int]) -> str:
    return "/".join((IMAGE, "c", *map(str, unit)))


class OtherBytesError(RunError):
    """An object that is made again does not come out as it was."""


class LayerWriter:
    """Writes one box of the image, layer by layer along one axis; for one thread.

    Memory holds one encoded chunk: a shard grows in a temporary file of its own. Its chunks lie
    in the order of their layers and in C order within one, whatever the box, so that the bytes
    do not depend on how the image was divided among tasks.

    Parameters
    ----------
    root : Path
        Folder of the root group.
    disk : AtomicFiles
        How files are written.
    spec : TargetSpec
    start, stop : sequence of int
        The box, half-open, full rank; on write units, or at the array's end.
    stream_axis : int
        The axis along which layers come, in rising order.
    check : callable
        Called before each object is put; raises when nothing more is to be written.
    wanted : mapping of int to str
        SHA-256 that the objects of some units must have; others than these are not put.
    """

    def __init__(
        self,
        root: Path,
        disk: AtomicFiles,
        spec: TargetSpec,
        *,
        start: Sequence[int],
        stop: Sequence[int],
        stream_axis: int,
        check: Callable[[], None] = lambda: None,
        wanted: Mapping[int, str] | None = None,
    ) -> None:
        self.start, self.stop = aligned_box(spec, start, stop)
        self.axis = range(len(spec.shape))[stream_axis]
        self.encoded_bytes = 0
        self.finished: list[Unit] = []
        self._spec = spec
        self._root = root
        self._disk = disk
        self._check = check
        self._encoder = ChunkEncoder(spec)
        self._wanted = wanted or {}
        self._open: dict[tuple[int, ...], tuple[str, ShardIndex, Any]] = {}
        self._next: int | None = self.start[self.axis]

    def write(self, layer: NDArray[Any], at: int) -> None:
        """Write the next layer.

        Parameters
        ----------
        layer : ndarray
            The box's whole extent on every axis but the streaming one; there, whole chunks from
            `at`, or up to the box's end. The image's dtype, any strides, either byte order.
        at : int
            Where the layer begins along the streaming axis, in voxels of the image.
        """
        self._check_layer(layer, at)
        self._next = None  # stays so if this fails: what is on disk is then half a layer
        end = at + layer.shape[self.axis]
        thickness = self._spec.chunks[self.axis]
        with disk_errors(self._root):
            for low in range(at, end, thickness):
                self._write_slab(layer, at, low, min(low + thickness, end))
        self._next = end

    def close(self) -> None:
        """Check that the whole box was written; a RunError if not."""
        if self._next != self.stop[self.axis]:
            reached = "a failed layer" if self._next is None else f"voxel {self._next}"
            raise RunError(
                f"the region from {self.start} to {self.stop} was not finished: it got to "
                f"{reached} along axis {self._spec.dims[self.axis]!r}; run it again"
            )

    def abort(self) -> None:
        """Give up: remove the temporary files; objects that are whole stay."""
        self._next = None
        while self._open:
            _, (temp, _, _) = self._open.popitem()
            self._disk.drop_temp(temp)

    def __enter__(self) -> LayerWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.close()
        except RunError:
            self.abort()
            raise
        if error is not None:
            self.abort()

    def _check_layer(self, layer: NDArray[Any], at: int) -> None:
        if at != self._next:
            raise ValueError(f"a layer at {at} was given where {self._next} comes next")
        extent = [stop - start for start, stop in zip(self.start, self.stop, strict=True)]
        left = self.stop[self.axis] - at
        thickness = layer.shape[self.axis] if layer.ndim == len(extent) else 0
        extent[self.axis] = thickness
        whole = thickness == left or thickness % self._spec.chunks[self.axis] == 0
        if layer.shape != tuple(extent) or not whole or not 0 < thickness <= left:
            raise ValueError(
                f"a layer of shape {layer.shape} at {at} does not fit the region from "
                f"{self.start} to {self.stop} in chunks of {self._spec.chunks}"
            )
        if layer.dtype.newbyteorder("=") != np.dtype(self._spec.dtype):
            raise ValueError(f"a layer of {layer.dtype} was given for {self._spec.dtype}")

    def _write_slab(self, layer: NDArray[Any], at: int, low: int, high: int) -> None:
        """One chunk's thickness, write unit by write unit."""
        corner = list(self.start)
        corner[self.axis] = at
        first, last = list(self.start), list(self.stop)
        first[self.axis], last[self.axis] = low, high
        for unit in touched(first, last, self._spec.unit):
            self._check()
            if self._spec.shards is None:
                pieces = self._chunk(layer, corner, unit)
                number, digest = self._known(unit, _hashed(hashlib.sha256(), pieces))
                size = self._disk.put(self._root / _key(unit), pieces)
                self._count(number, size, digest)
            else:
                self._extend_shard(unit, layer, corner, low)

    def _extend_shard(
        self, unit: tuple[int, ...], layer: NDArray[Any], corner: Sequence[int], low: int
    ) -> None:
        """Append one layer of a shard's chunks to its file; the last one completes it."""
        if unit not in self._open:
            self._open[unit] = self._disk.new_temp(), self._new_index(unit), hashlib.sha256()
        temp, index, running = self._open[unit]
        first, last = self._unit_box(unit)
        first[self.axis] = low
        last[self.axis] = low + 1
        chunks = touched(first, last, self._spec.chunks)
        self._disk.append(temp, self._indexed(index, chunks, layer, corner, running))
        if not index.waiting:
            end = index.encode()
            number, digest = self._known(unit, _hashed(running, end))
            size = index.size + self._disk.append(temp, end)
            patiently(lambda: self._disk.publish_temp(temp, self._root / _key(unit)))
            del self._open[unit]
            self._count(number, size, digest)

    def _indexed(
        self,
        index: ShardIndex,
        chunks: Iterator[tuple[int, ...]],
        layer: NDArray[Any],
        corner: Sequence[int],
        running: Any,
    ) -> Iterator[Piece]:
        per_shard = self._chunks_per_shard()
        for chunk in chunks:
            pieces = self._chunk(layer, corner, chunk)
            _hashed(running, pieces)
            yield from pieces
            position = [i % n for i, n in zip(chunk, per_shard, strict=True)]
            index.add(position, sum(len(piece) for piece in pieces))

    def _chunk(
        self, layer: NDArray[Any], corner: Sequence[int], chunk: tuple[int, ...]
    ) -> tuple[Piece, Piece]:
        # A slice that goes past the layer's end is cut there, which is the array's end.
        window = tuple(
            slice(i * size - low, (i + 1) * size - low)
            for i, size, low in zip(chunk, self._spec.chunks, corner, strict=True)
        )
        return self._encoder.encode(layer[window])

    def _new_index(self, unit: tuple[int, ...]) -> ShardIndex:
        first, last = self._unit_box(unit)
        expected = math.prod(len(r) for r in unit_ranges(first, last, self._spec.chunks))
        return ShardIndex(self._chunks_per_shard(), expected)

    def _chunks_per_shard(self) -> tuple[int, ...]:
        return tuple(u // c for u, c in zip(self._spec.unit, self._spec.chunks, strict=True))

    def _unit_box(self, unit: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """Where a write unit starts and stops within the array."""
        first = [i * size for i, size in zip(unit, self._spec.unit, strict=True)]
        ends = zip(first, self._spec.unit, self._spec.shape, strict=True)
        return first, [min(low + size, end) for low, size, end in ends]

    def _known(self, unit: tuple[int, ...], checksum: Any) -> tuple[int, str]:
        """Number and digest of a unit that is about to be put, if it may be."""
        number = int(np.ravel_multi_index(unit, self._spec.unit_grid))
        digest: str = checksum.hexdigest()
        if self._wanted.get(number, digest) != digest:
            raise OtherBytesError(
                f"{_key(unit)} came out with other bytes than it had (SHA-256 {digest[:12]}... "
                f"instead of {self._wanted[number][:12]}...): the function, a library or the "
                f"input is no longer the same. Nothing was replaced; run anew with overwrite=True"
            )
        return number, digest

    def _count(self, number: int, size: int, digest: str) -> None:
        self.encoded_bytes += size
        self.finished.append((number, size, digest))

    def drain(self) -> list[Unit]:
        """The objects that were put since the last call."""
        finished, self.finished = self.finished, []
        return finished


def _hashed(checksum: Any, pieces: Iterable[Piece]) -> Any:
    for piece in pieces:
        checksum.update(piece)
    return checksum


def aligned_box(
    spec: TargetSpec, start: Sequence[int], stop: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The box as tuples, if whole write units make it up; a SettingError otherwise."""
    low, high = tuple(map(int, start)), tuple(map(int, stop))
    if not len(low) == len(high) == len(spec.shape):
        raise SettingError(f"a region from {low} to {high} does not fit the shape {spec.shape}")
    for dim, a, b, size, unit in zip(spec.dims, low, high, spec.shape, spec.unit, strict=True):
        if not 0 <= a < b <= size:
            raise SettingError(
                f"a region from {low} to {high} does not lie within the shape {spec.shape}"
            )
        if a % unit or (b % unit and b != size):
            raise SettingError(
                f"a region from {a} to {b} along {dim!r} cuts through write units of {unit} "
                f"voxels: two tasks would write the same object; choose multiples of {unit}"
            )
    return low, high


def unit_ranges(first: Sequence[int], last: Sequence[int], size: Sequence[int]) -> list[range]:
    """Per axis, which pieces of `size` share a voxel with the box from `first` to `last`."""
    return [range(a // n, -(-b // n)) for a, b, n in zip(first, last, size, strict=True)]


def touched(
    first: Sequence[int], last: Sequence[int], size: Sequence[int]
) -> Iterator[tuple[int, ...]]:
    """Positions of the pieces of `size` that share a voxel with the box, in C order."""
    return itertools.product(*unit_ranges(first, last, size))
