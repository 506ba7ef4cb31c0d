"""Chunks of known chains are decoded without zarr, and give what zarr gives."""

from __future__ import annotations

import itertools
import os

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from volpatch.core.errors import SourceError
from volpatch.storage import chunk_check
from volpatch.storage.open import open_source
from volpatch.storage.readers import zarr as zarr_reader

V2 = {
    "none": None,
    "blosc": numcodecs.Blosc("lz4", 5, 2),
    "zstd": numcodecs.Zstd(1, True),
    "lz4": numcodecs.LZ4(),
    "gzip": numcodecs.GZip(1),
    "zlib": numcodecs.Zlib(1),
}
CRC = zarr.codecs.Crc32cCodec()
V3 = {
    "none": [],
    "crc": [CRC],
    "blosc": [zarr.codecs.BloscCodec(typesize=2, shuffle="shuffle"), CRC],
    "zstd": [zarr.codecs.ZstdCodec(level=1, checksum=True)],
    "gzip": [zarr.codecs.GzipCodec(level=1), CRC],
}
SHAPE, CHUNKS, SHARDS = (13, 17, 11), (4, 5, 3), (8, 10, 6)
CASES = [
    *((2, name, dtype, None) for name in V2 for dtype in ("<u2", ">f4")),
    *((3, name, dtype, s) for name in V3 for dtype in ("<u2", ">i8") for s in (None, SHARDS)),
    (2, "blosc", "|b1", None),
    (3, "blosc", "<f2", SHARDS),
]


def made(path, version, codec, dtype, shards):
    """An array with some chunks that are not stored."""
    more = {"zarr_format": version, "compressors": (V2 if version == 2 else V3)[codec]}
    if version == 3:
        order = "big" if dtype[0] == ">" else "little"
        more["serializer"] = zarr.codecs.BytesCodec(endian=order)
        if shards:
            more["shards"] = shards
    if version == 2:
        more["filters"] = None
    array = zarr.create_array(
        path, shape=SHAPE, chunks=CHUNKS, dtype=dtype, fill_value=np.dtype(dtype).type(1), **more
    )
    values = np.random.default_rng(0).integers(0, 2 if dtype == "|b1" else 2000, SHAPE)
    values[:4, 5:10] = 1
    array[...] = values.astype(dtype)
    return array


def boxes():
    ends = [st.tuples(st.integers(0, n - 1), st.integers(1, n)).map(sorted) for n in SHAPE]
    return st.tuples(*ends).map(lambda box: tuple(slice(a, max(b, a + 1)) for a, b in box))


@pytest.fixture
def alone(monkeypatch):
    def refuse(*args):
        raise AssertionError("zarr was asked")

    monkeypatch.setattr(zarr_reader, "_fill", refuse)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_known_chains_are_read_without_zarr_and_alike(tmp_path, alone, case):
    array = made(tmp_path / "a", *case)
    wanted, source = array[...], open_source(tmp_path / "a", missing="fill")

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(boxes(), st.permutations(range(3)))
    def check(box, order):
        shape = [one.stop - one.start for one in box]
        room = np.zeros([shape[i] for i in order], source.dtype)
        out = room.transpose(np.argsort(order))
        source.read(box, out)
        np.testing.assert_array_equal(out, wanted[box])

    check()


@pytest.mark.parametrize(
    "more",
    [
        {"zarr_format": 2, "order": "F"},
        {"zarr_format": 2, "compressors": numcodecs.BZ2()},
        {"zarr_format": 2, "filters": [numcodecs.Delta("<u2")]},
        {"filters": [zarr.codecs.TransposeCodec(order=(2, 0, 1))]},
        {"compressors": [CRC, zarr.codecs.ZstdCodec()]},
    ],
    ids=["F", "bz2", "delta", "transpose", "crc first"],
)
def test_other_chains_are_left_to_zarr(tmp_path, more):
    array = zarr.create_array(tmp_path / "a", shape=SHAPE, chunks=CHUNKS, dtype="<u2", **more)
    array[...] = np.arange(array.size).reshape(SHAPE)
    np.testing.assert_array_equal(open_source(tmp_path / "a")[...], array[...])


def test_little_chunks_of_a_shard_are_read_together(tmp_path, monkeypatch):
    whole = (16, 20, 12)
    array = zarr.create_array(tmp_path / "a", shape=whole, chunks=CHUNKS, shards=whole, dtype="u2")
    array[...] = np.arange(array.size).reshape(whole)
    reads, pread = [], os.pread

    def counted(*args):
        reads.append(args)
        return pread(*args)

    monkeypatch.setattr(chunk_check.os, "pread", counted)
    wanted = array[...]
    np.testing.assert_array_equal(open_source(tmp_path / "a")[...], wanted)
    in_runs = len(reads)
    reads.clear()
    monkeypatch.setattr(chunk_check, "RUN_BYTES", 0)
    np.testing.assert_array_equal(open_source(tmp_path / "a")[...], wanted)
    assert in_runs < 20 < 64 < len(reads)


def test_a_wrong_checksum_is_told_with_the_chunk(tmp_path):
    for shards, place in itertools.product((None, SHARDS), (1,)):
        path = tmp_path / f"a{bool(shards)}"
        made(path, 3, "crc", "<u2", shards)
        file = path / "c/1/1/1"
        content = bytearray(file.read_bytes())
        content[place] ^= 4
        file.write_bytes(content)
        where = "chunk .* of the shard: " if shards else ""
        with pytest.raises(SourceError, match=f"is damaged: {where}its bytes have the checksum"):
            open_source(path)[...]
