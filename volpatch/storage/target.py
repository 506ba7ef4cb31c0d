"""The output of a run: built beside its place, put there by one rename.

    out.zarr.volpatch/          the work folder
        volpatch.json           says that the folder is ours, and whether `out.zarr` may be replaced
        tmp/                    files being written
        data/                   what becomes `out.zarr` when every write unit is there
        old/                    while publishing with overwrite: what `out.zarr` was

The image is OME-Zarr 0.5 on Zarr 3. zarr writes the metadata and the coordinates; the image's
objects are encoded and put by `LayerWriter`, each whole and by one task.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import math
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.errors import RunError, SettingError, TargetError
from volpatch.storage.codec import ChunkEncoder, ShardIndex, TargetSpec, zarr_codecs
from volpatch.storage.ome import multiscales
from volpatch.storage.puts import (
    KNOWN,
    MARKER,
    Durability,
    Piece,
    Puts,
    check_replaceable,
    check_target,
    check_work_folder,
    disk_errors,
    read_marker,
    work_folder,
)

__all__ = ["LayerWriter", "TargetSpec", "WorkTree", "check_target"]

_IMAGE = "scale0/image"
_SPATIAL = ("z", "y", "x")


class LayerWriter:
    """Writes one box of the image, layer by layer along one axis; for one thread.

    Memory holds one encoded chunk: a shard grows in a temporary file of its own. Its chunks lie
    in the order of their layers and in C order within one, whatever the box, so that the bytes
    do not depend on how the image was divided among tasks.

    Parameters
    ----------
    image : Path
        Folder of the image array.
    puts : Puts
        How files are written.
    spec : TargetSpec
    start, stop : sequence of int
        The box, half-open, full rank; on write units, or at the array's end.
    stream_axis : int
        The axis along which layers come, in rising order.
    check : callable
        Called before each object is put; raises when nothing more is to be written.
    """

    def __init__(
        self,
        image: Path,
        puts: Puts,
        spec: TargetSpec,
        *,
        start: Sequence[int],
        stop: Sequence[int],
        stream_axis: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.start, self.stop = _aligned_box(spec, start, stop)
        self.axis = range(len(spec.shape))[stream_axis]
        self.encoded_bytes = 0
        self.objects = 0
        self._spec = spec
        self._image = image
        self._puts = puts
        self._check = check
        self._encoder = ChunkEncoder(spec)
        self._open: dict[tuple[int, ...], tuple[str, ShardIndex]] = {}
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
        with disk_errors(self._image):
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
            _, (temp, _) = self._open.popitem()
            self._puts.drop_temp(temp)

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
        for unit in _touched(first, last, self._spec.unit):
            self._check()
            if self._spec.shards is None:
                self._count(self._puts.put(self._path(unit), self._chunk(layer, corner, unit)))
            else:
                self._extend_shard(unit, layer, corner, low)

    def _extend_shard(
        self, unit: tuple[int, ...], layer: NDArray[Any], corner: Sequence[int], low: int
    ) -> None:
        """Append one layer of a shard's chunks to its file; the last one completes it."""
        if unit not in self._open:
            self._open[unit] = self._puts.new_temp(), self._new_index(unit)
        temp, index = self._open[unit]
        first, last = self._unit_box(unit)
        first[self.axis] = low
        last[self.axis] = low + 1
        chunks = _touched(first, last, self._spec.chunks)
        self._puts.append(temp, self._indexed(index, chunks, layer, corner))
        if not index.waiting:
            size = index.size + self._puts.append(temp, index.encode())
            self._puts.publish_temp(temp, self._path(unit))
            del self._open[unit]
            self._count(size)

    def _indexed(
        self,
        index: ShardIndex,
        chunks: Iterator[tuple[int, ...]],
        layer: NDArray[Any],
        corner: Sequence[int],
    ) -> Iterator[Piece]:
        per_shard = self._chunks_per_shard()
        for chunk in chunks:
            pieces = self._chunk(layer, corner, chunk)
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
        expected = math.prod(len(r) for r in _ranges(first, last, self._spec.chunks))
        return ShardIndex(self._chunks_per_shard(), expected)

    def _chunks_per_shard(self) -> tuple[int, ...]:
        return tuple(u // c for u, c in zip(self._spec.unit, self._spec.chunks, strict=True))

    def _unit_box(self, unit: tuple[int, ...]) -> tuple[list[int], list[int]]:
        """Where a write unit starts and stops within the array."""
        first = [i * size for i, size in zip(unit, self._spec.unit, strict=True)]
        ends = zip(first, self._spec.unit, self._spec.shape, strict=True)
        return first, [min(low + size, end) for low, size, end in ends]

    def _path(self, unit: tuple[int, ...]) -> Path:
        return self._image.joinpath("c", *map(str, unit))

    def _count(self, size: int) -> None:
        self.encoded_bytes += size
        self.objects += 1


class WorkTree:
    """`TARGET.volpatch`, beside TARGET, where the output is built.

    Parameters
    ----------
    target : str or Path
        Where the output is to be.
    durability : {"full", "process"}
        What finished writes survive: a power cut, or only the death of the process.
    """

    def __init__(self, target: str | Path, *, durability: Durability = "full") -> None:
        self.target = Path(os.path.abspath(target))
        self.folder = work_folder(self.target)
        self.data = self.folder / "data"
        self.tmp = self.folder / "tmp"
        self.old = self.folder / "old"
        self.puts = Puts(self.tmp, root=self.data, durability=durability)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other runs from the work folder while inside; a TargetError if one has it.

        The lock lies beside the folder, which is removed and made anew, and goes with the
        process that holds it, however that ends.
        """
        path = self.folder.with_name(self.folder.name + ".lock")
        with disk_errors(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TargetError(
                    f"another run is writing {str(self.target)!r} at this moment; wait for it, or "
                    f"choose another name"
                ) from None
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
        finally:
            os.close(handle)

    def prepare(self, spec: TargetSpec, *, overwrite: bool) -> None:
        """Start afresh: check, drop an unfinished tree of ours, write the metadata.

        Parameters
        ----------
        spec : TargetSpec
        overwrite : bool
            Whether `publish` may replace an earlier output; that one stays until then.
        """
        self._restore()
        check_target(self.target, overwrite=overwrite, source_path=None)
        self.discard()
        with disk_errors(self.folder):
            self.puts.make_folder(self.folder)
            self.puts.make_folder(self.tmp)
            marker = {"volpatch": _version(), "overwrite": overwrite}
            self.puts.put(self.folder / MARKER, json.dumps(marker).encode())
            _write_metadata(spec, self.data)
            self.puts.flush_tree(self.folder)

    def writer(
        self,
        spec: TargetSpec,
        start: Sequence[int],
        stop: Sequence[int],
        *,
        stream_axis: int,
        check: Callable[[], None] = lambda: None,
    ) -> LayerWriter:
        """A writer for the box from `start` to `stop` (see `LayerWriter`)."""
        return LayerWriter(
            self.data / _IMAGE,
            self.puts,
            spec,
            start=start,
            stop=stop,
            stream_axis=stream_axis,
            check=check,
        )

    def missing(self, spec: TargetSpec) -> Iterator[str]:
        """Keys, below the root, of write units that are not there; in C order."""
        *lead, last = spec.unit_grid
        for position in itertools.product(*map(range, lead)):
            key = "/".join((_IMAGE, "c", *map(str, position)))
            there = _objects(self.data / key)
            yield from (f"{key}/{i}" for i in range(last) if str(i) not in there)

    def publish(self, spec: TargetSpec) -> None:
        """Put the finished tree in its place and remove the work folder.

        Raises
        ------
        RunError
            Something is missing; nothing is changed.
        TargetError
            There is something in that place that must not be replaced.
        """
        self._check_complete(spec)
        check_work_folder(self.folder)
        may_replace = read_marker(self.folder).get("overwrite") is True
        replaces = os.path.lexists(self.target)
        if replaces:
            check_replaceable(self.target, overwrite=may_replace)
        with disk_errors(self.target):
            if replaces:
                self.puts.rename(self.target, self.old)
            try:
                self.puts.rename(self.data, self.target)
            except OSError:
                self._restore()
                raise
        self._remove("the output itself is complete")

    def discard(self) -> None:
        """Remove the work folder, if it is there and all in it is ours."""
        if not os.path.lexists(self.folder):
            return
        check_work_folder(self.folder)
        self._restore()
        self._remove("nothing was published")

    def _remove(self, outcome: str) -> None:
        with disk_errors(self.folder, outcome):
            for name in (*KNOWN, MARKER):
                self.puts.remove(self.folder / name)
            self.folder.rmdir()

    def _restore(self) -> None:
        """Undo a publish that was cut short between its two renames."""
        if os.path.lexists(self.old) and not os.path.lexists(self.target):
            check_work_folder(self.folder)
            with disk_errors(self.target):
                self.puts.rename(self.old, self.target)

    def _check_complete(self, spec: TargetSpec) -> None:
        for name in ("", "scale0/", f"{_IMAGE}/"):
            if not (self.data / f"{name}zarr.json").is_file():
                raise RunError(
                    f"{str(self.data)!r} has no {name}zarr.json, so there is nothing to publish; "
                    "run again from the start"
                )
        first: list[str] = []
        count = 0
        for key in self.missing(spec):
            count += 1
            if len(first) < 3:
                first.append(key)
        if count:
            more = ", ..." if count > len(first) else ""
            raise RunError(
                f"{count} of {spec.n_units} write units of {str(self.target)!r} are missing "
                f"({', '.join(first)}{more}); nothing was published. Run again to compute them"
            )


def _version() -> str:
    try:
        return version("volpatch")
    except PackageNotFoundError:
        return "unknown"


def _write_metadata(spec: TargetSpec, path: Path) -> None:
    """Groups, coordinates and an image without objects."""
    import zarr

    level = [(_IMAGE, spec.spacing, spec.origin)]
    ome = multiscales(name=spec.name, dims=spec.dims, units=spec.units, datasets=level)
    attributes = {"ome": ome, "volpatch": {"version": _version(), **spec.attributes}}
    # A store rather than a path: zarr takes a path with '::' or '://' in it for a URL.
    store = zarr.storage.LocalStore(path)
    root = zarr.create_group(store, zarr_format=3, attributes=attributes)
    scale = root.create_group("scale0")
    itemsize = np.dtype(spec.dtype).itemsize
    scale.create_array(
        "image",
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=spec.chunks,
        shards=spec.shards,
        compressors=zarr_codecs(spec.codec, itemsize),
        filters=None,
        fill_value=0,
        dimension_names=spec.dims,
    )
    for dim, size, step, first, unit in zip(
        spec.dims, spec.shape, spec.spacing, spec.origin, spec.units, strict=True
    ):
        if dim in _SPATIAL:
            scale.create_array(
                dim,
                data=first + step * np.arange(size, dtype=np.float64),
                chunks=(size,),
                compressors=zarr_codecs("zstd", 8),
                dimension_names=(dim,),
                attributes={} if unit is None else {"units": unit},
                config={"write_empty_chunks": True},  # a lone 0.0 is a value, not a gap
            )
    with warnings.catch_warnings():
        # outside of the specification, but readers that do not know it pass it over
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(store)


def _aligned_box(
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


def _ranges(first: Sequence[int], last: Sequence[int], size: Sequence[int]) -> list[range]:
    """Per axis, which pieces of `size` share a voxel with the box from `first` to `last`."""
    return [range(a // n, -(-b // n)) for a, b, n in zip(first, last, size, strict=True)]


def _touched(
    first: Sequence[int], last: Sequence[int], size: Sequence[int]
) -> Iterator[tuple[int, ...]]:
    """Positions of the pieces of `size` that share a voxel with the box, in C order."""
    return itertools.product(*_ranges(first, last, size))


def _objects(folder: Path) -> set[str]:
    """Names of the files in a folder that hold anything; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            states = ((entry.name, entry.stat(follow_symlinks=False)) for entry in entries)
            return {name for name, s in states if stat.S_ISREG(s.st_mode) and s.st_size}
    except (FileNotFoundError, NotADirectoryError):
        return set()
