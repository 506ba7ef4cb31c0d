"""What an output looks like, and the bytes of its chunks and shards.

A chunk is its voxels in C order, little endian, padded with zeros where it hangs over the array's
end; compressed; with the CRC32C of the compressed bytes after it. A shard is its chunks one after
another, then an index of (offset, length) per chunk in C order, then the index's own CRC32C. The
bytes are made here rather than by zarr so that they depend on the voxels alone, and so that no
write ever begins by reading what was there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from volpatch.core.errors import SettingError
from volpatch.core.options import DEFAULT_CODEC
from volpatch.storage.compressors import Codec

DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
_ABSENT = 2**64 - 1


@dataclass(frozen=True)
class TargetSpec:
    """An output array: its shape, its pieces on disk, its place in the world.

    Parameters
    ----------
    shape, chunks : tuple of int
        Full rank, leading axes included.
    dtype : str
        bool, an integer, or float16/32/64.
    dims : tuple of str
        Axis names, as many as `shape` has axes (2 to 5).
    shards : tuple of int, optional
        Multiples of `chunks`; None makes each chunk an object of its own.
    codec : str
        See `volpatch.storage.compressors`; each is followed by a CRC32C.
    name : str
        Name of the image in the OME metadata.
    spacing, origin : tuple of float
        Distance between voxels, and position of the first voxel's centre; 1 and 0 if empty.
    units : tuple of (str or None)
        Unit of spacing and origin along each axis; unknown if empty.
    attributes : dict
        JSON-able; what the root group carries under 'volpatch'.
    channel_names : tuple of str, optional
        One per index of the axis c.

    Examples
    --------
    >>> spec = TargetSpec((100, 90, 80), "uint16", ("z", "y", "x"), (8, 16, 16), (32, 64, 64))
    >>> spec.unit, spec.unit_grid, spec.n_units, spec.nbytes
    ((32, 64, 64), (4, 2, 2), 16, 1440000)
    """

    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    codec: str = DEFAULT_CODEC
    name: str = "image"
    spacing: tuple[float, ...] = ()
    origin: tuple[float, ...] = ()
    units: tuple[str | None, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict, hash=False)
    channel_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        rank = len(self.shape)
        if not 2 <= rank <= 5:
            raise SettingError(
                f"an output has 2 to 5 axes, but shape={tuple(self.shape)} has {rank}"
            )
        for name in ("shape", "chunks", "shards"):
            if getattr(self, name) is not None:
                self._set(name, _sizes(name, getattr(self, name), rank))
        self._set("dims", _dims(self.dims, rank))
        self._set("spacing", _reals("spacing", self.spacing or (1.0,) * rank, rank))
        self._set("origin", _reals("origin", self.origin or (0.0,) * rank, rank))
        if min(self.spacing) <= 0:
            raise SettingError(f"spacing={self.spacing} must be above 0 along every axis")
        self._set("units", tuple(self.units) or (None,) * rank)
        _same_rank("units", self.units, rank)
        if not all(unit is None or isinstance(unit, str) for unit in self.units):
            raise SettingError(f"units={self.units} must be names of units, or None")
        self._set("dtype", _dtype_name(self.dtype))
        if not isinstance(self.attributes, dict):
            raise SettingError(f"attributes={self.attributes!r} must be a dict")
        self._set("attributes", _json_copy(self.attributes))
        self._check_shards()
        channels = dict(zip(self.dims, self.shape, strict=True)).get("c")
        if self.channel_names is not None and len(self.channel_names) != channels:
            raise SettingError(
                f"channel_names={self.channel_names} must be one for each of {channels} channels"
            )
        codec = Codec.parse(self.codec)
        codec.check(self.chunk_nbytes)
        self._set("codec", str(codec))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_shards(self) -> None:
        if self.shards is None:
            return
        if any(shard % chunk for shard, chunk in zip(self.shards, self.chunks, strict=True)):
            near = tuple(
                max(1, round(shard / chunk)) * chunk
                for shard, chunk in zip(self.shards, self.chunks, strict=True)
            )
            raise SettingError(
                f"shards={self.shards} must be multiples of chunks={self.chunks} along every "
                f"axis; the nearest that are: shards={near}"
            )

    @property
    def unit(self) -> tuple[int, ...]:
        """Size of one write unit: the shard, else the chunk."""
        return self.shards or self.chunks

    @property
    def unit_grid(self) -> tuple[int, ...]:
        """Number of write units along each axis."""
        return tuple(-(-size // unit) for size, unit in zip(self.shape, self.unit, strict=True))

    @property
    def n_units(self) -> int:
        """Number of write units, which is the number of objects of a complete image."""
        return math.prod(self.unit_grid)

    @property
    def nbytes(self) -> int:
        """Size of the image's voxels, not compressed, in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def chunk_nbytes(self) -> int:
        """Size of one chunk's voxels, not compressed, in bytes."""
        return math.prod(self.chunks) * np.dtype(self.dtype).itemsize

    def to_json(self) -> dict[str, Any]:
        """As JSON-able values."""
        return cast("dict[str, Any]", _json_copy(asdict(self)))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TargetSpec:
        """The inverse of `to_json`."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**fields)


class ChunkEncoder:
    """Turns voxels into the bytes of a chunk; one per thread, for it owns a scratch chunk.

    Parameters
    ----------
    spec : TargetSpec
    """

    def __init__(self, spec: TargetSpec) -> None:
        self.dtype = np.dtype(spec.dtype).newbyteorder("<")
        self._scratch: NDArray[Any] = np.empty(spec.chunks, self.dtype)
        self._compress = Codec.parse(spec.codec).compressor(self.dtype.itemsize)

    def encode(self, block: NDArray[Any]) -> tuple[bytes | memoryview, bytes]:
        """Encoded chunk and its checksum, to be written one after the other.

        Parameters
        ----------
        block : ndarray
            At most a chunk's size along each axis; any strides, either byte order.

        Returns
        -------
        payload, checksum : buffers
            With codec 'none' the payload is a view on the scratch: use it before the next call.
        """
        scratch = self._scratch
        if block.shape != scratch.shape:
            scratch.fill(0)
        inner = scratch[tuple(slice(size) for size in block.shape)]
        np.copyto(inner, block, casting="equiv")
        voxels = scratch.reshape(-1).view(np.uint8)
        voxels.flags.writeable = False  # google_crc32c takes nothing that could change under it
        if self._compress is None:
            return voxels.data, checksum(voxels)
        payload = self._compress(voxels)
        return payload, checksum(payload)


class ShardIndex:
    """Where each chunk of one shard lies in its file.

    Parameters
    ----------
    grid : sequence of int
        Number of chunks along each axis of a whole shard, also at the array's end.
    expected : int
        Number of chunks that hold voxels of the array; the others stay absent.
    """

    def __init__(self, grid: Sequence[int], expected: int) -> None:
        self._grid = tuple(grid)
        self._table = np.full((math.prod(grid), 2), _ABSENT, "<u8")
        self.size = 0
        self.waiting = expected

    def add(self, position: Sequence[int], length: int) -> None:
        """Note that the chunk at `position` is the next `length` bytes of the file."""
        row = int(np.ravel_multi_index(tuple(position), self._grid))
        self._table[row] = self.size, length
        self.size += length
        self.waiting -= 1

    def encode(self) -> tuple[bytes, bytes]:
        """The index and its checksum: the end of the file."""
        table = self._table.tobytes()
        return table, checksum(table)


def checksum(payload: bytes | NDArray[np.uint8]) -> bytes:
    """CRC32C as four bytes, least significant first.

    >>> checksum(b"123456789").hex()
    '839206e3'
    """
    return int(google_crc32c.value(payload)).to_bytes(4, "little")


def _sizes(name: str, values: Iterable[int], rank: int) -> tuple[int, ...]:
    sizes = tuple(values)
    _same_rank(name, sizes, rank)
    if not all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in sizes):
        raise SettingError(f"{name}={sizes} must be whole numbers of voxels")
    if min(sizes) < 1:
        raise SettingError(f"{name}={sizes} must be at least 1 along every axis")
    return tuple(int(n) for n in sizes)


def _reals(name: str, values: Iterable[float], rank: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    _same_rank(name, numbers, rank)
    if not all(map(math.isfinite, numbers)):
        raise SettingError(f"{name}={numbers} must be finite along every axis")
    return numbers


def _dims(values: Iterable[str], rank: int) -> tuple[str, ...]:
    dims = tuple(values)
    _same_rank("dims", dims, rank)
    named = all(isinstance(dim, str) and dim for dim in dims)
    if not named or len(set(dims)) < rank:
        raise SettingError(f"dims={dims} must be different names, none of them empty")
    return dims


def _same_rank(name: str, values: Sequence[object], rank: int) -> None:
    if len(values) != rank:
        raise SettingError(
            f"{name}={tuple(values)} has {len(values)} entries for an output of {rank} axes; "
            "give one per axis"
        )


def _dtype_name(dtype: str) -> str:
    try:
        name = np.dtype(dtype).newbyteorder("=").name
    except TypeError:
        name = ""
    if name not in DTYPES:
        raise SettingError(f"dtype={str(dtype)!r} cannot be written; choose one of {DTYPES}")
    return name


def _json_copy(values: dict[str, Any]) -> Any:
    try:
        return json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise SettingError(f"attributes must be JSON values: {error}") from error
