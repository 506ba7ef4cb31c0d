"""Stored chunks are looked at before they are decoded: damaged ones and bombs are named."""

import bz2
import gzip
import json
import lzma
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import google_crc32c
import numcodecs
import numpy as np
import pytest
import zarr

from volpatch.core.errors import IncompleteError, SettingError, SourceError, TargetError
from volpatch.planning import job
from volpatch.running import api
from volpatch.storage.open import open_source, open_volume

ABSENT = 2**64 - 1
BLOSC = zarr.codecs.BloscCodec()


def numbered(*shape: int, dtype: str = "uint16") -> np.ndarray:
    """Distinct values, so that a misplaced voxel shows."""
    return (np.arange(np.prod(shape)) % 60_000 + 1).reshape(shape).astype(dtype)


def stored(path: Path, data: np.ndarray, chunks=(4, 5, 6), **options) -> Path:
    array = zarr.create_array(path, shape=data.shape, chunks=chunks, dtype=data.dtype, **options)
    array[...] = data
    return path


def whole(path: Path, **options) -> np.ndarray:
    return open_source(path, **options)[...]


def refused(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        open_source(path)
    return str(caught.value)


def damaged(path: Path) -> str:
    source = open_source(path)
    with pytest.raises(SourceError) as caught:
        source[...]
    return str(caught.value)


def edit(path: Path, change) -> None:
    """Change the metadata of an array in place."""
    file = path / "zarr.json"
    file = file if file.exists() else path / ".zarray"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def sharding(content) -> dict:
    return content["codecs"][0]["configuration"]


def split_shard(file: Path) -> tuple[list[bytes], int]:
    """The stored chunks of a shard with its index at the end."""
    content = file.read_bytes()
    count = next(n for n in range(1, 999) if len(content) >= 16 * n + 4 and _fits(content, n))
    table = np.frombuffer(content[-16 * count - 4 : -4], "<u8").reshape(-1, 2)
    return [content[a : a + n] if a != ABSENT else b"" for a, n in table.tolist()], count


def _fits(content: bytes, count: int) -> bool:
    index = content[-16 * count - 4 :]
    return google_crc32c.value(index[:-4]) == int.from_bytes(index[-4:], "little")


def join_shard(file: Path, chunks: list[bytes | None], entries=None) -> None:
    """Write a shard whose index is right, or holds `entries` (by number) where they are given."""
    rows, body = [], b""
    for chunk in chunks:
        rows.append((ABSENT, ABSENT) if chunk is None else (len(body), len(chunk)))
        body += chunk or b""
    for number, entry in (entries or {}).items():
        rows[number] = entry
    index = b"".join(struct.pack("<QQ", *row) for row in rows)
    file.write_bytes(body + index + struct.pack("<I", google_crc32c.value(index)))


LIMITED = """
import resource, sys, time
import numpy as np
from volpatch.core.errors import SourceError
from volpatch.storage.open import open_source

with open("/proc/self/statm") as file:
    base = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (base + 2**31, base + 2**31))
for path in sys.argv[1:]:
    try:
        found = open_source(path)[...]
    except SourceError as error:
        print(error)
    else:
        print("read", int(found.sum(dtype="u8")))
"""


def read_limited(paths) -> list[str]:
    """What reading says of each, in a process that may take 2 GiB and neither crash nor hang."""
    command = [sys.executable, "-c", LIMITED, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == len(paths)
    return said


# --- honest data


CHECKSUMS = [
    numcodecs.CRC32(),
    numcodecs.CRC32(location="end"),
    numcodecs.CRC32C(location="start"),
    numcodecs.Adler32(),
    numcodecs.Fletcher32(),
    numcodecs.JenkinsLookup3(),
]
COMPRESSORS = [
    *(numcodecs.Blosc(), numcodecs.LZ4(), numcodecs.Zstd(), numcodecs.GZip()),
    *(numcodecs.Zlib(), numcodecs.BZ2(), numcodecs.LZMA(), numcodecs.LZMA(format=2)),
]


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda codec: codec.codec_id)
@pytest.mark.parametrize("checksum", CHECKSUMS, ids=lambda codec: codec.codec_id)
def test_checksums_on_either_side_of_a_compressor_are_allowed_for(tmp_path, compressor, checksum):
    data = numbered(9, 11, 13)
    options = {"zarr_format": 2, "compressors": None}
    for name, filters in {"a": [checksum, compressor], "b": [compressor, checksum]}.items():
        path = stored(tmp_path / name, data, filters=filters, **options)
        np.testing.assert_array_equal(whole(path), data)


@pytest.mark.parametrize(
    ("dtype", "filters"),
    [
        ("<u2", [numcodecs.Delta("<u2", "<i4")]),
        ("<u2", [numcodecs.FixedScaleOffset(0, 1, "<u2", "<u4"), numcodecs.Shuffle(4)]),
        ("<f8", [numcodecs.Quantize(1, "<f8", "<f4")]),
        ("<f4", [numcodecs.BitRound(20)]),
        ("<u2", [numcodecs.AsType("<u8", "<u2")]),
        ("|b1", [numcodecs.PackBits()]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0].codec_id,
)
@pytest.mark.parametrize("compressor", [None, numcodecs.Blosc(), numcodecs.Zstd()], ids=str)
def test_filters_that_change_the_size_of_a_voxel_are_allowed_for(
    tmp_path, dtype, filters, compressor
):
    data = (numbered(9, 11, 13) % 2000).astype(dtype)
    options = {"zarr_format": 2, "compressors": compressor}
    path = stored(tmp_path / "a", data, filters=filters, **options)
    np.testing.assert_array_equal(whole(path), data)


@pytest.mark.parametrize("fill", [None, 0, 7])
def test_v2_arrays_without_a_fill_value_read_missing_chunks_as_zero(tmp_path, fill):
    data = numbered(9, 11, 13)
    path = stored(tmp_path / "a", data, zarr_format=2)
    edit(path, lambda content: content.update(fill_value=fill))
    (path / "1.0.1").unlink()
    data[4:8, :5, 6:12] = fill or 0
    np.testing.assert_array_equal(whole(path), data)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda codec: codec.codec_id)
def test_large_chunks_that_hardly_compress_read_as_written(tmp_path, compressor):
    """So large that a stream without a stated size has to be counted."""
    data = np.random.default_rng(0).integers(0, 2**16, (64, 64, 128), "u2")
    path = stored(tmp_path / "a", data, data.shape, zarr_format=2, compressors=compressor)
    np.testing.assert_array_equal(whole(path), data)


@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("place", ["start", "end"])
@pytest.mark.parametrize("checked", [True, False])
def test_any_shard_index_is_understood(tmp_path, endian, place, checked):
    index = [zarr.codecs.BytesCodec(endian=endian)] + [zarr.codecs.Crc32cCodec()] * checked
    codec = zarr.codecs.ShardingCodec(
        chunk_shape=(2, 5, 3),
        codecs=[zarr.codecs.BytesCodec(), BLOSC],
        index_codecs=index,
        index_location=place,
    )
    data = numbered(9, 11, 13)
    data[:2, :5, :3] = 0  # an inner chunk that is not stored
    options = {"serializer": codec, "compressors": None}
    path = stored(tmp_path / "a", data, (4, 10, 6), **options)
    source = open_source(path)
    np.testing.assert_array_equal(source[...], data)
    np.testing.assert_array_equal(source[3:5, 2:11, 5:7], data[3:5, 2:11, 5:7])
    with pytest.raises(SourceError, match=r"chunk \(0, 0, 0\) in c/0/0/0 of .* is missing"):
        whole(path, missing="error")


def zstd_frame(blocks: list[bytes], *, size: int | None = None, rle: int = 0) -> bytes:
    """A frame of raw blocks, or with `rle` of blocks of that many times their one byte."""
    header = bytes([0 if size is None else 0xC0, 0x58])
    header += b"" if size is None else struct.pack("<Q", size)
    frame = struct.pack("<I", 0xFD2FB528) + header
    for number, block in enumerate(blocks):
        last = number == len(blocks) - 1
        frame += ((rle or len(block)) << 3 | bool(rle) << 1 | last).to_bytes(3, "little") + block
    return frame


def test_zstd_may_state_no_size_and_come_in_several_frames(tmp_path):
    data = numbered(4, 5, 6)
    path = stored(tmp_path / "a", data)
    raw = data.tobytes()
    encode = numcodecs.Zstd(checksum=True).encode
    skipped = struct.pack("<II", 0x184D2A5F, 3) + b"abc"
    for content in (
        zstd_frame([raw[:100], raw[100:]]),
        encode(raw[:64]) + skipped + encode(raw[64:]),
        zstd_frame([raw[:64]]) + encode(raw[64:]) + skipped,
        zstd_frame([raw], size=len(raw)),
        zstd_frame([raw[:64], b""], size=64) + zstd_frame([raw[64:]]),
    ):
        (path / "c/0/0/0").write_bytes(content)
        np.testing.assert_array_equal(whole(path), data)
    (path / "c/0/0/0").write_bytes(encode(raw) + encode(b"more"))
    assert "it says that it decodes to 244 bytes, its voxels take 240" in damaged(path)
    (path / "c/0/0/0").write_bytes(encode(raw) + b"more")
    assert "there should be a Zstandard frame, and is none" in damaged(path)


# --- damage


def test_no_damage_to_blosc_inside_shards_ends_the_interpreter(tmp_path):
    """60 shards with chunks cut off (their index says so rightly) or with header bytes changed."""
    data = np.random.default_rng(0).integers(0, 99, (8, 10, 12), "u2")
    draw = np.random.default_rng(1)
    paths = []
    for number in range(60):
        shards = {"shards": (8, 10, 12), "compressors": zarr.codecs.BloscCodec(cname="zstd")}
        path = stored(tmp_path / str(number), data, **shards)
        chunks, count = split_shard(path / "c/0/0/0")
        assert count == 8
        victim = int(draw.integers(count))
        chunk = bytearray(chunks[victim])
        if number % 3:
            chunks[victim] = bytes(chunk[: draw.integers(1, len(chunk))])
        else:
            chunk[draw.integers(4, 16)] ^= 1 << draw.integers(8)
            chunks[victim] = bytes(chunk)
        join_shard(path / "c/0/0/0", chunks)
        paths.append(path)
    for path, said in zip(paths, read_limited(paths), strict=True):
        right = f"read {data.sum(dtype='u8')}"
        assert said == right or said.startswith(f"chunk c/0/0/0 of {path} is damaged: ")
        assert said != right or int(path.name) % 3 == 0  # a cut is never read right


def test_a_damaged_chunk_of_a_shard_is_named_and_its_neighbours_still_read(tmp_path):
    data = numbered(8, 10, 12)
    path = stored(tmp_path / "a", data, shards=(8, 10, 12), compressors=BLOSC)
    chunks, _ = split_shard(path / "c/0/0/0")
    chunks[5] = chunks[5][:-7]
    join_shard(path / "c/0/0/0", chunks)
    said = damaged(path)
    assert said.startswith(f"chunk c/0/0/0 of {path} is damaged: chunk (1, 0, 1) of the shard: ")
    assert f"it has {len(chunks[5])} bytes, its Blosc header says {len(chunks[5]) + 7};" in said
    np.testing.assert_array_equal(open_source(path)[:4], data[:4])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((10**6, 10), r"chunk \(0, 0, 1\) at byte 1000000 with 10 bytes, and it has"),
        ((0, 10**6), "at byte 0 with 1000000 bytes"),
        ((2**63, 2**63), "at byte 9223372036854775808"),
        ((2**64 - 10, 20), "at byte 18446744073709551606"),
        ((ABSENT, 5), "at byte 18446744073709551615 with 5 bytes"),
        ((5, ABSENT), "at byte 5 with 18446744073709551615 bytes"),
        ((0, 0), "it has 0 bytes"),
    ],
)
@pytest.mark.parametrize("compressor", ["blosc", None])
def test_an_index_that_points_elsewhere_is_named(tmp_path, entry, message, compressor):
    codec = BLOSC if compressor else None
    path = stored(tmp_path / "a", numbered(4, 5, 12), shards=(4, 5, 12), compressors=codec)
    chunks, _ = split_shard(path / "c/0/0/0")
    join_shard(path / "c/0/0/0", chunks, {1: entry})
    with pytest.raises(SourceError, match=f"chunk c/0/0/0 of {path} is damaged: .*{message}"):
        whole(path)


def test_a_shard_without_its_index_is_damaged_not_missing(tmp_path):
    path = stored(tmp_path / "a", numbered(4, 5, 12), shards=(4, 5, 12))
    file = path / "c/0/0/0"
    content = file.read_bytes()
    file.write_bytes(b"")
    assert "is damaged: it has 0 bytes, its index alone 36; restore" in damaged(path)
    file.write_bytes(content[:-1] + b"\0")
    assert "its index does not fit the index's checksum" in damaged(path)
    file.write_bytes(bytes(5 * 2**20))
    assert "it has 5242880 bytes, and decoded it should have" in damaged(path)


# --- bombs


def deflated(mebibytes: int) -> bytes:
    """Zeros without header or end; pieces that can follow each other."""
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = encoder.compress(bytes(2**24)) + encoder.flush(zlib.Z_FULL_FLUSH)
    return piece * (mebibytes // 16)


GIGABYTES = 4096  # MiB: more than the process that reads them may take
BOMBS = {
    "lz4": lambda: struct.pack("<I", 2**31 - 1) + bytes(1000),
    "zstd": lambda: zstd_frame([b"\7"] * 8 * GIGABYTES, size=GIGABYTES * 2**20, rle=2**17),
    "zstd, no size": lambda: zstd_frame([b"\7"] * 8 * GIGABYTES, rle=2**17),
    "gzip": lambda: b"\x1f\x8b\x08" + bytes(7) + deflated(GIGABYTES),
    "gzip, many": lambda: gzip.compress(bytes(2**24)) * (GIGABYTES // 16),
    "gzip, padded": lambda: (
        gzip.compress(bytes(2**19)) + bytes(99) + gzip.compress(bytes(2**24)) * (GIGABYTES // 16)
    ),
    "zlib": lambda: b"\x78\x9c" + deflated(GIGABYTES),
    "bz2": lambda: bz2.compress(bytes(2**25)) * (GIGABYTES // 32),
    "lzma": lambda: lzma.compress(bytes(2**26)) * (GIGABYTES // 64),
    "blosc": lambda: (
        bytes([2, 1, 33, 1]) + struct.pack("<III", 2**31 - 17, 2**20, 4096) + bytes(4080)
    ),
}


def test_a_small_chunk_that_decodes_to_gigabytes_is_named(tmp_path):
    """Alone, and in a shard."""
    paths = []
    for number, (kind, make) in enumerate(BOMBS.items()):
        name = kind.split(",")[0]
        path = tmp_path / f"{number}"
        numcodec = numcodecs.get_codec({"id": name})
        stored(path, np.zeros((64, 64, 128), "u1"), (64, 64, 128), zarr_format=2,
               compressors=numcodec)  # fmt: skip
        bomb = make()
        (path / "0.0.0").write_bytes(bomb)
        paths.append(path)
        inner = tmp_path / f"{number}s"
        stored(inner, np.ones((1024, 128, 128), "u1"), (512, 128, 128), shards=(1024, 128, 128))
        edit(inner, lambda content, name=name: sharding(content).update(codecs=[
            {"name": "bytes"}, {"name": f"numcodecs.{name}", "configuration": {}}
        ]))  # fmt: skip
        join_shard(inner / "c/0/0/0", [None, bomb])
        paths.append(inner)
    for path, said in zip(paths, read_limited(paths), strict=True):
        key = "c/0/0/0" if path.name.endswith("s") else "0.0.0"
        where = "chunk (1, 0, 0) of the shard: " if path.name.endswith("s") else ""
        kind = list(BOMBS)[int(path.name.strip("s"))]
        assert said.startswith(f"chunk {key} of {path} is damaged: {where}it "), (kind, said)
        assert "decode" in said, (kind, said)


def test_a_chunk_that_is_stored_in_far_too_many_bytes_is_not_read(tmp_path):
    path = stored(tmp_path / "a", numbered(4, 5, 6))
    with open(path / "c/0/0/0", "r+b") as file:
        file.truncate(2**40)
    assert "it has 1099511627776 bytes, and decoded it should have 240" in damaged(path)


# --- layouts that cannot be checked


def chain(*codecs):
    return lambda content: content.update(
        codecs=[one if isinstance(one, dict) else {"name": one} for one in codecs]
    )


def shard(**changes):
    return lambda content: sharding(content).update(changes)


INNER = {"chunk_shape": [4, 5, 6], "codecs": [{"name": "bytes"}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (chain("bytes", "zstd", "gzip"), "through bytes, zstd, gzip, .* takes one compressor"),
        (chain("bytes", "blosc", "numcodecs.shuffle"), "through bytes, blosc, shuffle"),
        (
            shard(codecs=[{"name": "sharding_indexed", "configuration": INNER}]),
            "through sharding_indexed",
        ),
        (shard(index_codecs=[{"name": "bytes"}, {"name": "gzip"}]), "index .* through bytes, gzip"),
        (shard(index_codecs=[]), "index .* through no codec"),
        (shard(index_location="middle"), "index_location is 'middle'"),
        (shard(chunk_shape=[3, 5, 6]), r"\(3, 5, 6\) do not divide shards of \(8, 10, 12\)"),
        (shard(chunk_shape=[4, 5]), r"damaged: chunks of \[4, 5\] in a shape of"),
        (
            lambda content: content["codecs"].append({"name": "crc32c"}),
            r"codecs around its shards \(sharding_indexed, crc32c\)",
        ),
        (
            lambda content: content["chunk_grid"]["configuration"].update(
                chunk_shape=[400, 500, 6 * 2**10]
            ),
            "10240000 chunks in a shard, and volpatch reads up to 4194304",
        ),
        (
            chain({"name": "numcodecs.astype", "configuration": {"decode_dtype": "U1000000"}}),
            "dtype <U1000000 of .* not numeric",
        ),
        (
            chain("bytes", {"name": "numcodecs.lzma", "configuration": {"format": 3}}),
            "lzma without a header",
        ),
        (lambda content: content.update(fill_value="red"), "damaged"),
        (lambda content: content.update(fill_value=float("nan")), "damaged"),
        (lambda content: content.update(shape=[float("nan"), 5, 6]), r"its shape is \[nan"),
        (
            lambda content: content["chunk_grid"]["configuration"].update(
                chunk_shape=[2**20, 2**20, 2**20]
            ),
            r"too big to be decoded: 2305843009213693952 bytes, and the limit is 1099511627776",
        ),
    ],
)
def test_a_layout_that_cannot_be_checked_is_refused_when_it_is_opened(tmp_path, change, message):
    path = stored(tmp_path / "a", numbered(8, 10, 12), shards=(8, 10, 12))
    edit(path, change)
    with pytest.raises(SourceError, match=message):
        open_source(path)


def test_shards_nested_without_end_are_refused(tmp_path):
    path = stored(tmp_path / "a", numbered(8, 10, 12), shards=(8, 10, 12))
    text = (path / "zarr.json").read_text()
    for depth in (20, 200, 20_000):
        name = (
            '{"name": "sharding_indexed", "configuration": {"chunk_shape": [8,10,12], "codecs": ['
        )
        nested = name * depth + '{"name": "bytes"}' + "]}}" * depth
        content = json.loads(text)
        content["codecs"] = ["here"]
        (path / "zarr.json").write_text(json.dumps(content).replace('"here"', nested))
        assert str(path) in refused(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"zarr_format": ' + "1" * 10**6 + "}", "is damaged .*1000017 bytes"),
        ('{"a": "' + "a" * 17 * 2**20 + '"}', "is damaged .zarr.json has 17825801 bytes."),
        ('{"zarr_format": 3, "node_type": "array"}\x1b[2J', "is damaged"),
    ],
    ids=["long number", "17 MiB", "escapes"],
)
def test_metadata_of_no_good_size_is_named(tmp_path, text, message):
    path = stored(tmp_path / "a", numbered(4, 5, 6))
    (path / "zarr.json").write_text(text)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(path)
    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)


def test_an_arrays_own_metadata_wins_over_consolidated_metadata(tmp_path):
    data = numbered(4, 5, 6)
    zarr.create_group(tmp_path / "g")
    own = json.loads((stored(tmp_path / "g/a", data) / "zarr.json").read_text())
    other = {"kind": "inline", "metadata": {"a": {**own, "shape": [1, 1, 1]}}}
    edit(tmp_path / "g", lambda content: content.update(consolidated_metadata=other))
    np.testing.assert_array_equal(whole(tmp_path / "g/a"), data)


# --- chunks that are missing


def take_away(file: Path) -> None:
    file.unlink()


def make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def make_dead_link(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.parent / "nowhere")


def take_inner(file: Path) -> None:
    chunks, _ = split_shard(file)
    join_shard(file, [*chunks[:3], None, *chunks[4:]])


@pytest.mark.parametrize(
    ("lose", "message"),
    [
        (take_away, "chunk c/1/0/1 of PATH is missing; restore it, or read it as its fill value"),
        (take_inner, r"chunk \(0, 1, 1\) in c/1/0/1 of PATH is missing; .*missing='fill'"),
    ],
)
def test_a_missing_chunk_is_its_fill_value_or_an_error(tmp_path, lose, message):
    data = numbered(16, 20, 24)
    path = stored(tmp_path / "a", data, shards=(8, 10, 12))
    lose(path / "c/1/0/1")
    expected = data.copy()
    lost = np.s_[8:12, 5:10, 18:24] if lose is take_inner else np.s_[8:16, :10, 12:24]
    expected[lost] = 0
    np.testing.assert_array_equal(whole(path), expected)
    np.testing.assert_array_equal(whole(path, missing="fill"), expected)
    source = open_source(path, missing="error")
    with pytest.raises(SourceError, match=message.replace("PATH", str(path))):
        source[...]
    np.testing.assert_array_equal(source[:8], data[:8])  # which the box does not touch
    if lose is take_inner:
        np.testing.assert_array_equal(source[9:, 6:, 12:18], data[9:, 6:, 12:18])
    with pytest.raises(SourceError, match="is missing"):
        source[11:, 9:10, 20]
    with pytest.raises(SourceError, match="is missing"):
        open_volume(path, missing="error").compute()


@pytest.mark.parametrize(
    ("lose", "there"), [(make_folder, "a folder"), (make_dead_link, "a dead link")]
)
def test_what_no_writer_leaves_in_place_of_a_chunk_is_never_its_fill_value(tmp_path, lose, there):
    path = stored(tmp_path / "a", numbered(16, 20, 24), shards=(8, 10, 12))
    lose(path / "c/1/0/1")
    with pytest.raises(SourceError, match=f"chunk c/1/0/1 of .* is damaged: {there} is in its"):
        open_source(path, missing="fill")[...]
    with pytest.raises(SourceError, match=rf"chunk c/1/0/1 of .* is missing \({there} is in its"):
        open_source(path, missing="error")[...]


@pytest.mark.parametrize("where", [".", "..", "../..", "../../.."])
@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ({"complete": True}, "missing"),
        ({"complete": False}, None),
        ({"complete": 1}, None),
        ("complete", None),
    ],
)
def test_what_volpatch_finished_has_no_missing_chunks(tmp_path, where, mark, said):
    root = tmp_path / "root"
    for folder in (root, root / "b", root / "b/c"):
        zarr.create_group(folder)
    path = stored(root / "b/c/d", numbered(4, 5, 12))
    edit(path / where, lambda content: content.update(attributes={"volpatch": mark}))
    (path / "c/0/0/1").unlink()
    if said:
        assert "chunk c/0/0/1 of " in damaged(path)
    else:
        whole(path)
    whole(path, missing="fill")


def test_missing_is_one_of_three_words(tmp_path):
    path = stored(tmp_path / "a", numbered(4, 5, 6))
    with pytest.raises(SettingError, match="missing must be one of auto, fill, error; got 'nan'"):
        open_source(path, missing="nan")
    with pytest.raises(SettingError, match="missing must be one of"):
        api.plan(open_source(path), missing="zero", patch=2)


def test_a_run_takes_missing_and_a_job_keeps_it(tmp_path):
    path = stored(tmp_path / "a", numbered(8, 10, 12))
    (path / "c/1/0/1").unlink()
    options = {"patch": 4, "memory_limit": "1GiB", "workers": 1}
    with pytest.raises(IncompleteError, match=r"chunk c/1/0/1 of .* is missing"):
        api.run("identity", path, tmp_path / "out", missing="error", **options)
    assert not (tmp_path / "out").exists()
    strict = open_volume(path, missing="error")
    for source, given, kept in (
        (path, {}, "fill"),
        (path, {"missing": "error"}, "error"),
        (strict, {}, "error"),
        (strict, {"missing": "fill"}, "fill"),
    ):
        plan = api.plan(source, tmp_path / "out", func="identity", **given, **options)
        saved = job.to_json(plan)
        assert saved["options"]["missing"] == kept
        if kept == "error":
            with pytest.raises(IncompleteError, match="is missing"):
                api.run_job(saved)
    saved = job.to_json(api.plan(path, tmp_path / "out", func="identity", **options))
    with pytest.raises(TargetError, match='missing was "error" and is now "fill"'):
        api.run_job(saved)
    api.run_job(saved, overwrite=True)
    np.testing.assert_array_equal(whole(tmp_path / "out"), whole(path))


# --- files that are none


def test_a_fifo_or_a_device_is_named_and_never_opened(tmp_path):
    paths = []
    for name in ("fifo", "shard", "link", "json"):
        options = {"shards": (4, 5, 6)} if name == "shard" else {}
        path = stored(tmp_path / name, numbered(4, 5, 6), **options)
        file = path / ("zarr.json" if name == "json" else "c/0/0/0")
        file.unlink()
        if name == "link":
            file.symlink_to("/dev/zero")
        else:
            os.mkfifo(file)
        paths.append(path)
    *chunks, metadata = read_limited(paths)
    for path, said in zip(paths[:-1], chunks, strict=True):
        reason = "it is a FIFO, a socket or a device, not a file; restore"
        assert said.startswith(f"chunk c/0/0/0 of {path} is damaged: {reason}")
    assert (
        metadata == f"metadata of {paths[-1]} is damaged (zarr.json is no file); restore the file"
    )


@pytest.mark.parametrize("inside", [True, False])
def test_a_chunk_behind_a_link_is_read(tmp_path, inside):
    data = numbered(4, 5, 6)
    path = stored(tmp_path / "a", data)
    file = path / "c/0/0/0"
    target = path / "elsewhere" if inside else tmp_path / "elsewhere"
    file.rename(target)
    file.symlink_to(target)
    np.testing.assert_array_equal(whole(path, missing="error"), data)


def test_a_chunk_that_links_to_itself_is_damaged(tmp_path):
    path = stored(tmp_path / "a", numbered(4, 5, 6))
    (path / "c/0/0/0").unlink()
    (path / "c/0/0/0").symlink_to(path / "c/0/0/0")
    assert f"chunk c/0/0/0 of {path} is damaged: " in damaged(path)
