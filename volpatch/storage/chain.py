"""What the metadata of a Zarr array promises of its files: chunks, codecs, bytes.

Read from the JSON alone. An array whose files could not be looked at before they are decoded is
refused here: codecs that build objects, two compressors in a row, a shard in a shard.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from volpatch.core.errors import SourceError
from volpatch.storage.volume import check_readable

# A chunk is decoded whole. Blosc ends at 2 GiB, and a plan weighs a chunk against the memory
# limit: this is for what no worker could hold, before anything is reserved for it.
_MAX_CHUNK_BYTES = 2**35
_MAX_FILE_BYTES = 2**40
_MAX_CHUNKS_PER_SHARD = 2**22  # an index of 64 MiB, which is read again for every box
_COMPRESSORS = frozenset({"blosc", "zstd", "gzip", "zlib", "bz2", "lz4", "lzma"})
# Those that are decoded without the help of zarr.
DIRECT = frozenset({"blosc", "zstd", "lz4", "gzip", "zlib"})
# These need packages of their own, and state their sizes in ways that are not looked at.
_UNSIZED = frozenset({"pcodec", "zfpy"})
_CHECKSUMS = {"crc32c": "end", "crc32": "start", "adler32": "start"}
_CHECKSUMS |= {"fletcher32": "end", "jenkins_lookup3": "end"}
_SAME_SIZE = frozenset({"bytes", "endian", "transpose", "shuffle", "bitround", "scale_offset"})
_RETYPING = frozenset({"delta", "fixedscaleoffset", "quantize", "astype", "cast_value"})
_DTYPE_OPTIONS = ("encode_dtype", "astype", "data_type", "dtype", "decode_dtype")
# Those that only move numbers: pickle, json2 and the like would build objects from the file.
_CODECS = _COMPRESSORS | _UNSIZED | set(_CHECKSUMS) | _SAME_SIZE | _RETYPING
_CODECS |= {"packbits", "sharding_indexed"}


@dataclass(frozen=True)
class ChunkForm:
    """A chunk as it is stored: `front` bytes of checksums, compressed voxels, `back` bytes.

    Attributes
    ----------
    nbytes : int
        What the compressor was given, and decoding has to give back.
    compressor : str, optional
        Without one, the chunk is stored in exactly `nbytes` and its checksums.
    plain : str
        The dtype, with its byte order, of what decoding gives: voxels in C order, compressed by
        one of `DIRECT` or not at all, with a CRC32C behind them or nothing. "" for other chains.
    """

    nbytes: int
    compressor: str | None = None
    front: int = 0
    back: int = 0
    plain: str = ""


@dataclass(frozen=True)
class IndexForm:
    """Where a shard says where its chunks are: (offset, length) for each, in C order."""

    grid: tuple[int, ...]
    at_start: bool
    dtype: str
    checked: bool

    @property
    def nbytes(self) -> int:
        """Length of the index, with its CRC32C if there is one."""
        return 16 * math.prod(self.grid) + 4 * self.checked


@dataclass(frozen=True)
class FileForm:
    """What one file of an array holds: a chunk, or with `index` a shard of such chunks."""

    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    chunk: ChunkForm
    index: IndexForm | None = None


@dataclass(frozen=True)
class _Codec:
    name: str
    options: Mapping[str, Any]


def file_form(path: str, version: int, content: Mapping[str, Any]) -> FileForm:
    """What the files of an array hold, by its JSON.

    Raises
    ------
    SourceError
        For what must not reach zarr: objects, unknown codecs, impossible or huge shapes.
    """
    dtype = _dtype(content.get("dtype" if version == 2 else "data_type"))
    check_readable(dtype, path)
    for codec in _every_codec(version, content):
        _check_codec(codec, path)
    shape = content.get("shape")
    if not _are_sizes(shape, least=0) or math.prod(shape or ()) > 2**62:
        raise SourceError(f"metadata of {path} is damaged: its shape is {shape!r}")
    if version == 2:
        outer, codecs = content.get("chunks"), _v2_codecs(content)
    else:
        outer, codecs = _regular_chunks(content, path), _v3_codecs(content.get("codecs"))
    itemsize = np.dtype(dtype).itemsize
    sharded = any(codec.name == "sharding_indexed" for codec in codecs)
    limit = _MAX_FILE_BYTES if sharded else _MAX_CHUNK_BYTES
    edges = _checked_shape(outer, shape, itemsize, limit, path)
    if not sharded:
        found = replace(
            _chunk_form(codecs, edges, dtype, path), plain=_plain(version, content, codecs, dtype)
        )
        return FileForm(edges, edges, found)
    if len(codecs) != 1:
        raise SourceError(
            f"{path} has codecs around its shards ({_names(codecs)}), which volpatch does not "
            f"read; write it again with them inside the shards"
        )
    options = codecs[0].options
    inner = _checked_shape(options.get("chunk_shape"), shape, itemsize, _MAX_CHUNK_BYTES, path)
    codecs = _v3_codecs(options.get("codecs", ["bytes"]))
    form = _chunk_form(codecs, inner, dtype, path)
    form = replace(form, plain=_plain(version, content, codecs, dtype))
    return FileForm(edges, inner, form, _index_form(options, edges, inner, path))


def _dtype(found: object) -> np.dtype[Any] | str:
    if not isinstance(found, str):
        return repr(found)
    try:
        return np.dtype(found)
    except TypeError:
        return found


def _check_codec(codec: _Codec, path: str) -> None:
    if codec.name not in _CODECS and not codec.name.startswith("imagecodecs_"):
        raise SourceError(
            f"{path} is compressed with {codec.options.get('id', codec.name)!r}, which volpatch "
            f"does not read; write it again with zstd, gzip, lz4 or blosc"
        )
    for dtype in _dtype_options(codec):
        check_readable(_dtype(dtype), path)
    if codec.name == "lzma" and codec.options.get("format", 1) not in (0, 1, 2):
        raise SourceError(
            f"{path} is compressed with lzma without a header, which volpatch does not read; "
            f"write it again with zstd, gzip, lz4 or blosc"
        )


def _every_codec(version: int, content: Mapping[str, Any]) -> Iterator[_Codec]:
    """Those inside shards included; a loop, for the JSON may be nested deeply."""
    waiting = _v2_codecs(content) if version == 2 else _v3_codecs(content.get("codecs"))
    for codec in waiting:
        yield codec
        for inner in ("codecs", "index_codecs"):
            waiting += _v3_codecs(codec.options.get(inner))


def _v2_codecs(content: Mapping[str, Any]) -> list[_Codec]:
    """Filters and compressor in the order of writing."""
    filters = content.get("filters")
    used = [*(filters if isinstance(filters, list) else [filters]), content.get("compressor")]
    options = [_mapping(codec) for codec in used if codec is not None]
    return [_Codec(str(one.get("id")).lower(), one) for one in options]


def _v3_codecs(found: object) -> list[_Codec]:
    codecs = []
    for codec in found if isinstance(found, list) else ():
        plain = {"name": codec} if isinstance(codec, str) else _mapping(codec)
        given = str(plain.get("name"))
        options = {"id": given, **_mapping(plain.get("configuration"))}
        codecs.append(_Codec(given.lower().removeprefix("numcodecs."), options))
    return codecs


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def _names(codecs: Sequence[_Codec]) -> str:
    return ", ".join(codec.name for codec in codecs[:10])


def _regular_chunks(content: Mapping[str, Any], path: str) -> Any:
    grid = _mapping(content.get("chunk_grid"))
    if grid.get("name", "regular") != "regular":
        raise SourceError(
            f"{path} has chunks of varying size ({grid.get('name')!r}), which volpatch "
            f"does not read; write it again with a regular grid"
        )
    return _mapping(grid.get("configuration")).get("chunk_shape")


def _are_sizes(found: object, *, least: int) -> bool:
    if not isinstance(found, list):
        return False
    return all(type(size) is int and size >= least for size in found)


def _checked_shape(found: Any, shape: Any, itemsize: int, limit: int, path: str) -> tuple[int, ...]:
    if not _are_sizes(found, least=1) or len(found) != len(shape):
        raise SourceError(
            f"metadata of {path} is damaged: chunks of {found!r} in a shape of {shape!r}"
        )
    nbytes = math.prod(found) * itemsize
    if nbytes > limit:
        raise SourceError(
            f"{path} has chunks of {found} voxels, too big to be decoded: {nbytes} bytes, and "
            f"the limit is {limit}; write it again with smaller ones"
        )
    return tuple(found)


def _chunk_form(
    codecs: Sequence[_Codec], shape: Sequence[int], dtype: str | np.dtype[Any], path: str
) -> ChunkForm:
    """Follow a chunk's bytes through its codecs, in the order of writing."""
    voxels = math.prod(shape)
    nbytes, front, back = voxels * np.dtype(dtype).itemsize, 0, 0
    compressor = None
    for codec in codecs:
        name = codec.name
        if name in _CHECKSUMS:
            if compressor is None:
                nbytes += 4
            elif codec.options.get("location", _CHECKSUMS[name]) == "start":
                front += 4
            else:
                back += 4
        elif compressor is not None or name == "sharding_indexed":
            raise SourceError(
                f"{path} stores its chunks through {_names(codecs)}, which volpatch does not "
                f"read: it takes one compressor, with nothing but checksums behind it; write it "
                f"again with zstd, gzip, lz4 or blosc"
            )
        elif name in _RETYPING:
            nbytes = voxels * np.dtype(next(iter(_dtype_options(codec)), dtype)).itemsize
        elif name == "packbits":
            nbytes = 1 + -(-voxels // 8)
        elif name not in _SAME_SIZE:
            compressor = name
    return ChunkForm(nbytes, compressor, front, back)


def _plain(
    version: int, content: Mapping[str, Any], codecs: Sequence[_Codec], dtype: str | np.dtype[Any]
) -> str:
    """`ChunkForm.plain` of a chain of codecs."""
    if not isinstance(dtype, np.dtype):
        return ""
    match [codec.name for codec in codecs]:
        case [] if version == 2:
            known = True
        case [name] if version == 2:
            known = name in DIRECT
        case ["bytes"]:
            known = True
        case ["bytes", name] | ["bytes", name, "crc32c"]:
            at_end = codecs[-1].options.get("location", "end") == "end"
            known = at_end and (name in DIRECT or (name == "crc32c" and len(codecs) == 2))
        case _:
            known = False
    if version == 2:
        return dtype.str if known and content.get("order") == "C" else ""
    big = bool(codecs) and codecs[0].options.get("endian") == "big"
    return dtype.newbyteorder(">" if big else "<").str if known else ""


def _dtype_options(codec: _Codec) -> list[Any]:
    """The dtypes in a codec's options, that of its output first."""
    found = [codec.options.get(name) for name in _DTYPE_OPTIONS]
    return [dtype for dtype in found if dtype is not None]


def _index_form(
    options: Mapping[str, Any], shard: Sequence[int], chunk: Sequence[int], path: str
) -> IndexForm:
    grid = tuple(one // other for one, other in zip(shard, chunk, strict=True))
    if any(one % other for one, other in zip(shard, chunk, strict=True)):
        raise SourceError(
            f"metadata of {path} is damaged: chunks of {tuple(chunk)} do not divide shards of "
            f"{tuple(shard)}"
        )
    if math.prod(grid) > _MAX_CHUNKS_PER_SHARD:
        raise SourceError(
            f"{path} has {math.prod(grid)} chunks in a shard, and volpatch reads up to "
            f"{_MAX_CHUNKS_PER_SHARD}; write it again with larger chunks or smaller shards"
        )
    codecs = _v3_codecs(options.get("index_codecs", ["bytes", "crc32c"]))
    place = options.get("index_location", "end")
    if [codec.name for codec in codecs] not in (["bytes"], ["bytes", "crc32c"]):
        raise SourceError(
            f"{path} stores the index of its shards through {_names(codecs) or 'no codec'}, "
            f"and volpatch reads bytes and crc32c; write it again with these"
        )
    if place not in ("start", "end"):
        raise SourceError(f"metadata of {path} is damaged: its index_location is {place!r}")
    dtype = ">u8" if codecs[0].options.get("endian") == "big" else "<u8"
    return IndexForm(grid, place == "start", dtype, len(codecs) == 2)
