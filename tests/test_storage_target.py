"""The output: the same bytes however it is divided, whole or absent, and nothing else harmed."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import pickle
import random
import re
import threading
from pathlib import Path

import numcodecs.blosc
import numpy as np
import pytest
import tensorstore
import xarray as xr
import yaozarrs
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr_models import open_ome_zarr

from volpatch.core.errors import RunError, SettingError, TargetError
from volpatch.storage.codec import ChunkEncoder, TargetSpec, checksum
from volpatch.storage.compressors import Codec
from volpatch.storage.ledger import Ledger, begin_records
from volpatch.storage.metadata import metadata_files
from volpatch.storage.output import Output
from volpatch.storage.plan_file import PlanFile
from volpatch.storage.stores.local import AtomicFiles, check_target

DTYPES = ("uint8", "uint16", "int32", "int64", "float16", "float32", "float64", "bool")
CODECS = (
    *("blosc-zstd", "blosc-zstd:5:bitshuffle", "blosc-zstd:1:noshuffle", "blosc-lz4"),
    *("zstd", "zstd:1", "none"),
)
LAYOUTS = {  # shape, chunks, shards
    "chunks": ((13, 11, 17), (4, 5, 6), None),
    "shards": ((13, 11, 17), (2, 3, 6), (4, 6, 12)),
    "one chunk": ((3, 4, 5), (8, 8, 8), None),
    "one shard": ((3, 4, 5), (2, 2, 2), (8, 8, 8)),
    "2-D": ((23, 19), (4, 5), (8, 5)),
    "5-D": ((2, 3, 5, 6, 7), (1, 1, 2, 3, 4), (1, 1, 4, 6, 4)),
}
DIMS = ("t", "c", "z", "y", "x")


def make_spec(layout="shards", dtype="uint16", **kwargs):
    shape, chunks, shards = LAYOUTS[layout]
    return TargetSpec(shape, dtype, DIMS[-len(shape) :], chunks, shards, **kwargs)


def volume(spec):
    """Distinct values, as far as the dtype has them; a misplaced voxel shows."""
    numbers = np.arange(1, np.prod(spec.shape) + 1, dtype="u4")
    if spec.dtype == "bool":
        values = numbers * np.uint32(2654435761) >> 31 == 1
    elif spec.dtype == "float16":
        values = numbers.astype("u2").view("f2")
    else:
        values = numbers.astype(spec.dtype)
    return values.reshape(spec.shape)


def stream_axis(spec):
    return max(len(spec.shape) - 3, 0)


def box(start, stop):
    return tuple(map(slice, start, stop))


def write_box(tree, spec, array, start, stop, layers=1):
    """Write one region, `layers` chunks at a time; returns the writer."""
    axis = stream_axis(spec)
    step = spec.chunks[axis] * layers
    with tree.writer(spec, start, stop, stream_axis=axis) as writer:
        for at in range(start[axis], stop[axis], step):
            low, high = list(start), list(stop)
            low[axis], high[axis] = at, min(at + step, stop[axis])
            writer.write(array[box(low, high)], at)
    return writer


def regions(spec, units):
    """Boxes of `units` write units along each axis."""
    sizes = [n * unit for n, unit in zip(units, spec.unit, strict=True)]
    axes = zip(spec.shape, sizes, strict=True)
    for start in itertools.product(*(range(0, end, size) for end, size in axes)):
        ends = zip(start, sizes, spec.shape, strict=True)
        yield start, tuple(min(a + size, end) for a, size, end in ends)


def begin(tree, *, overwrite):
    """As `to_zarr` begins."""
    tree.settle(ended=False)
    check_target(tree.target, overwrite=overwrite, source_path=None)
    tree.begin(overwrite=overwrite, anew=True)
    begin_records(tree.data, tree.disk)


def finish(tree, spec):
    """Publish what no region tells of."""
    tree.publish(Ledger(tree.data, PlanFile({"output": spec.to_json()}, {"regions": 0}, None)))


def build(target, spec, array, units=None, *, seed=0, overwrite=False, layers=1):
    """A complete work tree, by regions of `units` write units in a shuffled order."""
    tree = Output(target, durability="process")
    begin(tree, overwrite=overwrite)
    for key, content in metadata_files(spec, {}).items():
        tree.disk.put(tree.data / key, content)
    boxes = list(regions(spec, units or spec.unit_grid))
    random.Random(seed).shuffle(boxes)
    for start, stop in boxes:
        write_box(tree, spec, array, start, stop, layers)
    return tree


def objects(image):
    """SHA-256 of each object, by key."""
    paths = [path for path in Path(image, "c").rglob("*") if path.is_file()]
    hashes = {p.relative_to(image): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
    return {str(key): value for key, value in hashes.items()}


def read(target):
    return zarr.open_array(Path(target, "scale0/image"), mode="r")[...]


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def litter(tree):
    """Temporary files."""
    return [path for path in tree.tmp.rglob("*") if path.is_file()]


def publish(target, spec=None, array=None, **kwargs):
    spec = spec or make_spec()
    tree = build(target, spec, volume(spec) if array is None else array, **kwargs)
    finish(tree, spec)
    return tree


def message(error):
    """An error's text, on one line."""
    text = str(error.value)
    assert "\n" not in text
    return text


# -- what is written ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zarr_reads_back_every_bit(tmp_path, layout, dtype):
    spec = make_spec(layout, dtype)
    publish(tmp_path / "out.zarr", spec)
    assert same_bits(read(tmp_path / "out.zarr"), volume(spec))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout", ["chunks", "shards"])
def test_each_codec_reads_back(tmp_path, codec, layout):
    spec = make_spec(layout, codec=codec)
    publish(tmp_path / "out.zarr", spec)
    assert same_bits(read(tmp_path / "out.zarr"), volume(spec))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["uint16", "float32", "bool"])
def test_chunks_have_the_bytes_zarr_would_write(tmp_path, codec, dtype):
    spec = make_spec("chunks", dtype, codec=codec)
    tree = build(tmp_path / "out.zarr", spec, volume(spec))
    ours = objects(tree.data / "scale0/image")
    zarr.open_array(tree.data / "scale0/image", mode="r+")[...] = volume(spec)
    assert objects(tree.data / "scale0/image") == ours


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout", ["chunks", "shards"])
def test_another_library_reads_what_is_written(tmp_path, layout, codec):
    for dtype in ("uint16", "float32", "bool"):
        spec = make_spec(layout, dtype, codec=codec)
        tree = build(tmp_path / dtype, spec, volume(spec))
        place = {"driver": "file", "path": str(tree.data / "scale0/image")}
        array = tensorstore.open({"driver": "zarr3", "kvstore": place}).result()
        np.testing.assert_array_equal(array.read().result(), volume(spec))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", ["zstd", "blosc-zstd"])
def test_bytes_do_not_depend_on_the_regions(tmp_path, layout, codec):
    spec = make_spec(layout, codec=codec)
    rank = len(spec.shape)
    whole = objects(build(tmp_path / "a", spec, volume(spec)).data / "scale0/image")
    assert len(whole) == spec.n_units
    for number, units in enumerate(
        [(1,) * rank, (1,) * (rank - 1) + (2,), (2,) + (1,) * (rank - 1)]
    ):
        tree = build(
            tmp_path / f"b{number}", spec, volume(spec), units, seed=number, layers=number + 1
        )
        assert objects(tree.data / "scale0/image") == whole


def test_bytes_do_not_depend_on_strides_or_byte_order(tmp_path):
    spec = make_spec()
    array = volume(spec)
    whole = objects(build(tmp_path / "a", spec, array).data)
    padded = np.zeros([2 * size + 1 for size in spec.shape], "u2")[1::2, 1::2, 1::2]
    padded[...] = array
    forms = [np.asfortranarray(array), array.astype(">u2"), padded, array[::-1].copy()[::-1]]
    for number, form in enumerate(forms):
        assert objects(build(tmp_path / f"b{number}", spec, form).data) == whole


@st.composite
def specs(draw):
    rank = draw(st.integers(2, 4))
    chunks = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    shards = tuple(c * draw(st.integers(1, 3)) for c in chunks)
    return TargetSpec(
        shape=tuple(draw(st.integers(1, 9)) for _ in range(rank)),
        dtype=draw(st.sampled_from(DTYPES)),
        dims=DIMS[-rank:],
        chunks=chunks,
        shards=draw(st.sampled_from([None, shards])),
        codec=draw(st.sampled_from(CODECS)),
    )


@settings(deadline=None, max_examples=60)
@given(specs(), st.data())
def test_any_layout_reads_back_and_is_the_same_by_regions(tmp_path_factory, spec, data):
    folder = tmp_path_factory.mktemp("any")
    whole = objects(build(folder / "a", spec, volume(spec)).data / "scale0/image")
    units = tuple(data.draw(st.integers(1, 3)) for _ in spec.shape)
    layers = data.draw(st.integers(1, 3))
    tree = build(folder / "b", spec, volume(spec), units, layers=layers)
    assert objects(tree.data / "scale0/image") == whole
    finish(tree, spec)
    assert same_bits(read(folder / "b"), volume(spec))


@pytest.mark.parametrize("layout", ["chunks", "shards"])
def test_zeros_are_written_too(tmp_path, layout):
    spec = make_spec(layout)
    tree = build(tmp_path / "out.zarr", spec, np.zeros(spec.shape, "u2"))
    assert len(objects(tree.data / "scale0/image")) == spec.n_units
    assert list(tree.missing(spec)) == []


def test_a_shard_knows_which_chunks_lie_outside(tmp_path):
    spec = make_spec("one shard")
    tree = build(tmp_path / "out.zarr", spec, volume(spec))
    end = (tree.data / "scale0/image/c/0/0/0").read_bytes()[-(64 * 16 + 4) :]
    assert checksum(end[:-4]) == end[-4:]
    table = np.frombuffer(end[:-4], "<u8").reshape(4, 4, 4, 2)
    inside = table[..., 0] != 2**64 - 1
    assert inside[:2, :2, :3].all()
    assert inside.sum() == 2 * 2 * 3


def test_counters_tell_what_is_on_disk(tmp_path):
    for layout in ("chunks", "shards"):
        spec = make_spec(layout)
        tree = Output(tmp_path / layout)
        begin(tree, overwrite=False)
        writer = write_box(tree, spec, volume(spec), (0, 0, 0), spec.shape)
        sizes = [p.stat().st_size for p in (tree.data / "scale0/image/c").rglob("*") if p.is_file()]
        assert (len(writer.finished), writer.encoded_bytes) == (spec.n_units, sum(sizes))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("layout", ["chunks", "one shard"])
def test_a_flipped_bit_is_noticed_on_reading(tmp_path, codec, layout):
    spec = make_spec(layout, codec=codec)
    publish(tmp_path / "out.zarr", spec)
    path = tmp_path / "out.zarr/scale0/image/c/0/0/0"
    good = path.read_bytes()
    for bit in random.Random(1).sample(range(8 * len(good)), 40):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises((ValueError, RuntimeError), match=r"(?i)checksum"):
            read(tmp_path / "out.zarr")


@pytest.mark.parametrize("codec", ["blosc-zstd", "blosc-lz4"])
def test_bytes_do_not_depend_on_threads_of_blosc(codec):
    """They append blocks as they finish, and any library may turn them on at any time."""
    noise = np.random.default_rng(0).poisson(200, (64, 128, 128)).astype(np.uint16)
    spec = TargetSpec(noise.shape, "uint16", ("z", "y", "x"), noise.shape, codec=codec)
    encoder, turned = ChunkEncoder(spec), threading.Event()
    alone, _ = encoder.encode(noise)

    def turn():
        while not turned.is_set():
            numcodecs.blosc.use_threads = True

    before = numcodecs.blosc.use_threads
    thread = threading.Thread(target=turn)
    thread.start()
    try:
        assert all(encoder.encode(noise)[0] == alone for _ in range(60))
    finally:
        turned.set()
        thread.join()
        numcodecs.blosc.use_threads = before


def test_checksum_is_crc32c():
    assert checksum(b"123456789") == 0xE3069283.to_bytes(4, "little")


# -- what describes it ----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_validators_accept_the_output(tmp_path, layout):
    publish(tmp_path / "out.zarr", make_spec(layout, attributes={"function": "f"}))
    yaozarrs.validate_zarr_store(str(tmp_path / "out.zarr"))
    assert "v05" in type(open_ome_zarr(zarr.open_group(tmp_path / "out.zarr", mode="r"))).__module__


def test_xarray_opens_it_with_coordinates_and_units(tmp_path):
    spec = make_spec(
        "5-D",
        "float32",
        spacing=(1, 1, 2.5, 0.5, 0.25),
        origin=(0, 0, 10, 0, -1),
        units=(None, None, "micrometer", "micrometer", None),
        attributes={"source": "in.tif", "patch": (4, 5)},
    )
    publish(tmp_path / "out.zarr", spec)
    with xr.open_datatree(tmp_path / "out.zarr", engine="zarr") as tree:
        image = tree["scale0/image"]
        assert image.dims == DIMS
        assert same_bits(image.values, volume(spec))
        assert set(image.coords) == {"t", "z", "y", "x"}
        assert image.z.values.tolist() == [10, 12.5, 15, 17.5, 20]
        assert image.y.values.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
        assert image.x.values[:2].tolist() == [-1, -0.75]
        assert (image.z.attrs, image.x.attrs) == ({"units": "micrometer"}, {})
        recorded = tree.attrs["volpatch"]
        assert (recorded["source"], recorded["patch"]) == ("in.tif", [4, 5])
        assert tree.attrs["ome"]["multiscales"][0]["datasets"][0]["path"] == "scale0/image"


def test_a_coordinate_that_is_zero_is_on_disk(tmp_path):
    publish(tmp_path / "out.zarr", TargetSpec((1, 4, 4), "uint8", ("z", "y", "x"), (1, 2, 2)))
    assert (tmp_path / "out.zarr/scale0/z/c/0").stat().st_size > 0


def test_metadata_names_the_codecs(tmp_path):
    tree = build(tmp_path / "out.zarr", make_spec("chunks", codec="blosc-lz4"), volume(make_spec()))
    codecs = json.loads((tree.data / "scale0/image/zarr.json").read_text())["codecs"]
    assert [codec["name"] for codec in codecs] == ["bytes", "blosc", "crc32c"]
    assert codecs[1]["configuration"] == {
        "typesize": 2,
        "cname": "lz4",
        "clevel": 5,
        "shuffle": "shuffle",
        "blocksize": 0,
    }


@pytest.mark.parametrize(
    ("said", "meant", "shuffle"),
    [
        ("blosc-zstd", "blosc-zstd:1", "shuffle"),
        ("blosc-zstd:bitshuffle", "blosc-zstd:1:bitshuffle", "bitshuffle"),
        ("blosc-lz4:noshuffle", "blosc-lz4:5:noshuffle", "noshuffle"),
        ("blosc-lz4:9:shuffle", "blosc-lz4:9", "shuffle"),
    ],
)
def test_codecs_are_said_in_one_way_and_shuffle_as_they_say(said, meant, shuffle):
    spec = make_spec(codec=said)
    assert spec.codec == meant == make_spec(codec=meant).codec
    (blosc, _) = Codec.parse(meant).for_metadata(2)
    assert blosc.to_dict()["configuration"]["shuffle"] == shuffle


def test_a_spec_survives_json_and_pickle():
    spec = make_spec(
        spacing=(1, 2, 3), units=("mm", None, "mm"), attributes={"a": [1, {"b": None}]}
    )
    assert TargetSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert TargetSpec.from_json(make_spec("chunks").to_json()).shards is None
    assert hash(spec) == hash(TargetSpec.from_json(spec.to_json()))


def test_a_spec_does_not_share_its_attributes():
    given_attributes = {"list": [1]}
    spec = make_spec(attributes=given_attributes)
    given_attributes["list"].append(2)
    assert spec.attributes == {"list": [1]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shards": (5, 6, 12)}, r"shards=\(5, 6, 12\) must be multiples of chunks=\(2, 3, 6\).*"
                                 r"shards=\(4, 6, 12\)"),
        ({"shards": (1, 6, 12)}, r"shards=\(2, 6, 12\)"),
        ({"shards": (4, 6)}, r"shards=\(4, 6\) has 2 entries for an output of 3 axes"),
        ({"chunks": (2, 3)}, r"chunks=\(2, 3\) has 2 entries"),
        ({"chunks": (2, 0, 6)}, r"chunks=\(2, 0, 6\) must be at least 1"),
        ({"chunks": (2, 1.5, 6)}, "whole numbers of voxels"),
        ({"shape": (7,)}, r"2 to 5 axes, but shape=\(7,\) has 1"),
        ({"shape": (1,) * 6}, "has 6"),
        ({"shape": (0, 4, 4)}, "must be at least 1"),
        ({"dims": ("z", "y")}, "has 2 entries"),
        ({"dims": ("z", "x", "x")}, "different names"),
        ({"codec": "gzip"}, r"codec='gzip' is not known; there are blosc-zstd\[:LEVEL\].*, none"),
        ({"codec": "lz4"}, "codec='lz4' is not known; lz4 is called blosc-lz4; there are"),
        ({"codec": 3}, "codec=3 is not known; there are"),
        ({"codec": "zstd:0"}, "'zstd:0' cannot be: zstd stands with a LEVEL from 1 to 22; there"),
        ({"codec": "zstd:23"}, "LEVEL from 1 to 22"),
        ({"codec": "zstd:"}, "cannot be"),
        ({"codec": "zstd:3:shuffle"}, "cannot be"),
        ({"codec": "blosc-lz4:10"}, "blosc-lz4 stands with a LEVEL from 1 to 9"),
        ({"codec": "blosc-zstd:bitshuffle:1"}, "cannot be"),
        ({"codec": "none:1"}, "codec='none:1' cannot be: none stands alone; there are"),
        ({"codec": None}, "codec=None is not known"),
        ({"dtype": "complex64"}, "dtype='complex64' cannot be written; choose one of .*'float16'"),
        ({"dtype": "longdouble"}, "cannot be written"),
        ({"dtype": "U3"}, "cannot be written"),
        ({"dtype": "nonsense"}, "dtype='nonsense' cannot be written"),
        ({"spacing": (1, 0, 1)}, "must be above 0"),
        ({"spacing": (1, float("nan"), 1)}, "must be finite"),
        ({"origin": (1, 2)}, r"origin=\(1.0, 2.0\) has 2 entries"),
        ({"units": ("mm",)}, "has 1 entries"),
        ({"units": (1, 2, 3)}, "names of units"),
        ({"attributes": {"a": {1, 2}}}, "attributes must be JSON values"),
        ({"attributes": {"a": float("nan")}}, "attributes must be JSON values"),
        ({"shape": (1, 2**20, 2**20), "chunks": (1, 2**15, 2**15), "shards": None},
         "below 2 GiB.* have 2147483648 bytes; choose smaller chunks, or codec='zstd'"),
    ],
)  # fmt: skip
def test_a_spec_cannot_be_wrong(change, says):
    values = make_spec().to_json() | change
    with pytest.raises(SettingError, match=says) as error:
        TargetSpec(**values)
    message(error)


# -- one region -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "stop", "says"),
    [
        ((2, 0, 0), (13, 11, 17), "from 2 to 13 along 'z' cuts through write units of 4 voxels"),
        ((0, 0, 0), (13, 11, 16), "from 0 to 16 along 'x' .* choose multiples of 12"),
        ((0, 0, 0), (16, 11, 17), r"does not lie within the shape \(13, 11, 17\)"),
        ((4, 0, 0), (4, 11, 17), "does not lie within"),
        ((-4, 0, 0), (4, 11, 17), "does not lie within"),
        ((0, 0), (13, 11), "does not fit the shape"),
    ],
)
def test_a_region_of_partial_write_units_is_refused(tmp_path, start, stop, says):
    with pytest.raises(SettingError, match=says) as error:
        Output(tmp_path / "out.zarr").writer(make_spec(), start, stop, stream_axis=0)
    message(error)


@pytest.mark.parametrize(
    ("shape", "dtype", "at", "says"),
    [
        ((2, 11, 17), "u2", 2, "a layer at 2 was given where 0 comes next"),
        ((1, 11, 17), "u2", 0, "does not fit the region"),
        ((3, 11, 17), "u2", 0, "does not fit the region"),
        ((14, 11, 17), "u2", 0, "does not fit the region"),
        ((0, 11, 17), "u2", 0, "does not fit the region"),
        ((2, 10, 17), "u2", 0, r"shape \(2, 10, 17\) at 0 .* chunks of \(2, 3, 6\)"),
        ((2, 11), "u2", 0, "does not fit the region"),
        ((2, 11, 17), "i2", 0, "a layer of int16 was given for uint16"),
    ],
)
def test_a_layer_that_does_not_fit_is_refused(tmp_path, shape, dtype, at, says):
    spec = make_spec()
    tree = Output(tmp_path / "out.zarr")
    begin(tree, overwrite=False)
    writer = tree.writer(spec, (0, 0, 0), spec.shape, stream_axis=0)
    with pytest.raises(ValueError, match=says) as error:
        writer.write(np.zeros(shape, dtype), at)
    message(error)
    write_rest(writer, spec)  # a refused layer does no harm


def write_rest(writer, spec):
    writer.write(volume(spec), 0)
    writer.close()


def test_a_region_that_stops_early_is_an_error_and_leaves_no_shard(tmp_path):
    spec = make_spec("one shard")
    tree = Output(tmp_path / "out.zarr")
    begin(tree, overwrite=False)
    writer = tree.writer(spec, (0, 0, 0), spec.shape, stream_axis=0)

    def write_half():
        with writer:
            writer.write(volume(spec)[:2], 0)
            assert len(litter(tree)) == 1

    with pytest.raises(RunError, match=r"not finished: it got to voxel 2 along axis 'z'") as error:
        write_half()
    message(error)
    assert litter(tree) == []
    assert objects(tree.data / "scale0/image") == {}
    assert (len(writer.finished), writer.encoded_bytes) == (0, 0)


def test_abort_leaves_whole_objects_only(tmp_path):
    spec = make_spec("shards")
    tree = Output(tmp_path / "out.zarr")
    begin(tree, overwrite=False)
    whole = objects(build(tmp_path / "other", spec, volume(spec)).data / "scale0/image")
    writer = tree.writer(spec, (0, 0, 0), spec.shape, stream_axis=0)
    writer.write(volume(spec)[:6], 0)
    writer.abort()
    there = objects(tree.data / "scale0/image")
    assert there == {key: value for key, value in whole.items() if key.startswith("c/0/")}
    assert litter(tree) == []
    with pytest.raises(RunError, match="not finished"):
        writer.close()
    with pytest.raises(ValueError, match="None comes next"):
        writer.write(volume(spec)[6:], 6)


class BrokenFiles(AtomicFiles):
    """Fails at one of its steps, as a full disk does: after some of the bytes are there."""

    def __init__(self, tmp, *, root, step, number=errno.ENOSPC):
        super().__init__(tmp, root=root, durability="process")
        self.step = step
        self.number = number

    def _tick(self):
        self.step -= 1
        if self.step == 0:
            raise OSError(self.number, os.strerror(self.number))

    def append(self, temp, data):
        size = super().append(temp, data)
        self._tick()
        return size

    def publish_temp(self, temp, path):
        self._tick()
        super().publish_temp(temp, path)

    def rename(self, old, new):
        self._tick()
        super().rename(old, new)


@pytest.mark.parametrize("layout", ["chunks", "shards"])
@pytest.mark.parametrize("step", [1, 2, 7, 20])
def test_a_full_disk_leaves_whole_objects_and_no_litter(tmp_path, layout, step):
    spec = make_spec(layout)
    tree = Output(tmp_path / "out.zarr")
    begin(tree, overwrite=False)
    whole = objects(build(tmp_path / "other", spec, volume(spec)).data / "scale0/image")
    tree.disk = BrokenFiles(tree.tmp, root=tree.data, step=step)
    with pytest.raises(RunError, match=r"No space left.*free some space and run again") as error:
        write_box(tree, spec, volume(spec), (0, 0, 0), spec.shape)
    assert str(tree.data) in message(error)
    assert objects(tree.data / "scale0/image").items() <= whole.items()
    assert litter(tree) == []
    assert not (tmp_path / "out.zarr").exists()


def test_after_a_layer_that_failed_the_writer_is_no_use(tmp_path):
    spec = make_spec()
    tree = Output(tmp_path / "out.zarr")
    begin(tree, overwrite=False)
    tree.disk = BrokenFiles(tree.tmp, root=tree.data, step=2)
    writer = tree.writer(spec, (0, 0, 0), spec.shape, stream_axis=0)
    with pytest.raises(RunError, match="No space left"):
        writer.write(volume(spec)[:2], 0)
    with pytest.raises(ValueError, match="None comes next"):
        writer.write(volume(spec)[:2], 0)
    with pytest.raises(RunError, match="it got to a failed layer along axis 'z'"):
        writer.close()
    writer.abort()
    assert litter(tree) == []


def test_a_worker_left_over_after_publishing_changes_nothing(tmp_path):
    spec = make_spec("chunks")
    tree = build(tmp_path / "out.zarr", spec, volume(spec))
    late = tree.writer(spec, (0, 0, 0), spec.shape, stream_axis=0)
    finish(tree, spec)
    before = objects(tmp_path / "out.zarr/scale0/image")
    with pytest.raises(RunError, match="No such file"):
        late.write(volume(spec), 0)
    assert objects(tmp_path / "out.zarr/scale0/image") == before
    assert os.listdir(tmp_path) == ["out.zarr"]


def test_folders_are_made_below_the_root_only(tmp_path):
    (tmp_path / "tmp").mkdir()
    disk = AtomicFiles(tmp_path / "tmp", root=tmp_path / "data")
    with pytest.raises(FileNotFoundError):
        disk.put(tmp_path / "data/c/0", b"a")
    (tmp_path / "data").mkdir()
    assert disk.put(tmp_path / "data/c/0", [b"a", memoryview(b"bc")]) == 3
    assert (tmp_path / "data/c/0").read_bytes() == b"abc"
    assert os.listdir(tmp_path / "tmp") == []
    with pytest.raises(FileNotFoundError):
        disk.put(tmp_path / "elsewhere/0", b"a")
    with pytest.raises(FileExistsError):
        disk.rename(tmp_path / "tmp", tmp_path / "data")


@pytest.mark.parametrize("durability", ["full", "process"])
def test_full_durability_flushes_before_and_after_the_rename(tmp_path, monkeypatch, durability):
    (tmp_path / "tmp").mkdir()
    (tmp_path / "data").mkdir()
    done = []
    fsync, replace = os.fsync, os.replace
    name = lambda fd: Path(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(name(fd)), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (replace(a, b), done.append("rename")))
    disk = AtomicFiles(tmp_path / "tmp", root=tmp_path / "data", durability=durability)
    disk.put(tmp_path / "data/c/0", b"a")
    if durability == "process":
        assert done == ["rename"]
    else:
        assert done[0].parent == tmp_path / "tmp"
        assert done[1:] == [tmp_path / "data", "rename", tmp_path / "data/c"]


# -- publishing -----------------------------------------------------------------------------------


def test_nothing_has_the_final_name_until_published(tmp_path):
    spec = make_spec()
    tree = build(tmp_path / "out.zarr", spec, volume(spec))
    assert os.listdir(tmp_path) == ["out.zarr.volpatch"]
    finish(tree, spec)
    assert os.listdir(tmp_path) == ["out.zarr"]
    assert sorted(os.listdir(tmp_path / "out.zarr")) == [".volpatch", "scale0", "zarr.json"]


def test_publishing_with_missing_units_is_refused_by_name(tmp_path):
    spec = make_spec()
    tree = build(tmp_path / "out.zarr", spec, volume(spec))
    assert list(tree.missing(spec)) == []
    keys = ["scale0/image/c/0/0/1", "scale0/image/c/0/1/0", "scale0/image/c/2/0/1"]
    keys += ["scale0/image/c/3/1/1"]
    for key in keys:
        (tree.data / key).unlink()
    (tree.data / keys[1]).write_bytes(b"")  # an empty object is not there either
    assert list(tree.missing(spec)) == keys
    with pytest.raises(RunError) as error:
        finish(tree, spec)
    assert message(error).startswith(
        f"4 of {spec.n_units} write units of {str(tree.target)!r} are missing "
        f"({keys[0]}, {keys[1]}, {keys[2]}, ...); nothing was published"
    )
    assert os.listdir(tmp_path) == ["out.zarr.volpatch"]


def test_an_empty_tree_misses_every_unit(tmp_path):
    for layout in LAYOUTS:
        spec = make_spec(layout)
        tree = Output(tmp_path / layout)
        begin(tree, overwrite=False)
        assert len(list(tree.missing(spec))) == spec.n_units


def test_publishing_nothing_is_refused(tmp_path):
    spec = make_spec()
    with pytest.raises(RunError, match=r"16 of 16 write units .* are missing") as error:
        finish(Output(tmp_path / "out.zarr"), spec)
    message(error)


def test_a_target_that_appeared_meanwhile_is_kept(tmp_path):
    spec = make_spec()
    tree = build(tmp_path / "out.zarr", spec, volume(spec))
    (tmp_path / "out.zarr").mkdir()
    with pytest.raises(TargetError, match=r"exists and was not made by volpatch alone"):
        finish(tree, spec)
    assert os.listdir(tmp_path / "out.zarr") == []
    assert list(tree.missing(spec)) == []


def test_overwrite_keeps_the_old_output_until_the_new_one_is_whole(tmp_path):
    spec = make_spec()
    target = tmp_path / "out.zarr"
    publish(target, spec)
    old = volume(spec)
    new = old[::-1].copy()
    tree = Output(target)
    begin(tree, overwrite=True)
    *most, last = regions(spec, (1, 1, 1))
    for start, stop in most:
        write_box(tree, spec, new, start, stop)
        assert same_bits(read(target), old)
    with pytest.raises(RunError, match="1 of 16 write units"):
        finish(tree, spec)
    write_box(tree, spec, new, *last)
    assert same_bits(read(target), old)
    finish(Output(target), spec)  # by another process, say
    assert same_bits(read(target), new)
    assert os.listdir(tmp_path) == ["out.zarr"]


@pytest.mark.parametrize("step", [1, 2])
def test_overwrite_that_fails_halfway_leaves_the_old_output(tmp_path, step):
    spec = make_spec()
    target = tmp_path / "out.zarr"
    publish(target, spec)
    new = volume(spec)[::-1].copy()
    tree = build(target, spec, new, overwrite=True)
    before = 2 * len(metadata_files(spec, {}))
    tree.disk = BrokenFiles(tree.tmp, root=tree.data, step=before + step, number=errno.EIO)
    with pytest.raises(
        RunError, match=r"nothing was published. To go on, remove the cause"
    ) as error:
        finish(tree, spec)
    message(error)
    assert same_bits(read(target), volume(spec))
    finish(Output(target), spec)
    assert same_bits(read(target), new)


@pytest.mark.parametrize("then", ["prepare", "refuse", "discard", "publish"])
def test_a_process_killed_between_the_two_renames_loses_nothing(tmp_path, then):
    spec = make_spec()
    target = tmp_path / "out.zarr"
    publish(target, spec)
    new = volume(spec)[::-1].copy()
    tree = build(target, spec, new, overwrite=True)
    os.rename(target, tree.old)
    if then == "publish":
        finish(tree, spec)
        assert same_bits(read(target), new)
        assert os.listdir(tmp_path) == ["out.zarr"]
        return
    if then == "prepare":
        begin(tree, overwrite=True)
    elif then == "refuse":
        with pytest.raises(TargetError, match="exists; pass overwrite=True"):
            begin(tree, overwrite=False)
    else:
        tree.discard()
    assert same_bits(read(target), volume(spec))


def test_an_unfinished_tree_of_ours_is_dropped_by_the_next_run(tmp_path):
    spec = make_spec()
    tree = build(tmp_path / "out.zarr", spec, volume(spec))
    (tree.tmp / "1-litter").write_bytes(b"x")
    begin(tree, overwrite=False)
    assert len(list(tree.missing(spec))) == spec.n_units
    assert litter(tree) == []


@pytest.mark.parametrize("left", [(), ("tmp",), ("tmp", f"tmp/12-{'a' * 32}")])
def test_a_run_killed_while_making_its_folder_does_not_block_the_next(tmp_path, left):
    folder = tmp_path / "out.zarr.volpatch"
    folder.mkdir()
    for name in left:
        (folder / name).mkdir() if name == "tmp" else (folder / name).write_bytes(b"{")
    publish(tmp_path / "out.zarr")
    assert os.listdir(tmp_path) == ["out.zarr"]


def test_discard_removes_our_folder_and_may_be_repeated(tmp_path):
    spec = make_spec()
    tree = build(tmp_path / "out.zarr", spec, volume(spec))
    tree.discard()
    tree.discard()
    assert os.listdir(tmp_path) == []


# -- what must not be touched ---------------------------------------------------------------------


def snapshot(folder):
    """Everything below a folder: kinds, links, bytes."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        kind = os.readlink(path) if path.is_symlink() else path.is_dir() or path.read_bytes()
        found[str(path.relative_to(folder))] = kind
    return found


def add_foreign_group(folder):
    zarr.create_group(folder / "out.zarr", attributes={"made": "elsewhere"})


def add_file(folder):
    (folder / "out.zarr").write_text("precious")


def add_folder(folder):
    (folder / "out.zarr").mkdir()
    (folder / "out.zarr/notes.txt").write_text("precious")


def add_broken_metadata(folder):
    (folder / "out.zarr").mkdir()
    (folder / "out.zarr/zarr.json").write_text("[" * 10000)


def add_other_attributes(folder):
    (folder / "out.zarr").mkdir()
    (folder / "out.zarr/zarr.json").write_text('{"attributes": ["volpatch"]}')


def add_notes_to_ours(folder):
    publish(folder / "out.zarr")
    (folder / "out.zarr/notes.txt").write_text("precious")


def add_labels_to_ours(folder):
    publish(folder / "out.zarr")
    (folder / "out.zarr/scale0/labels").mkdir()


def add_file_for_a_level(folder):
    publish(folder / "out.zarr")
    (folder / "out.zarr/scale1").write_text("precious")


def add_link_to_ours(folder):
    publish(folder / "real.zarr")
    (folder / "out.zarr").symlink_to(folder / "real.zarr")


def add_dangling_link(folder):
    (folder / "out.zarr").symlink_to(folder / "nowhere")


HOSTILE_TARGETS = {
    add_foreign_group: "its zarr.json has no 'volpatch' attribute",
    add_file: "it is a file",
    add_folder: "its zarr.json has no 'volpatch' attribute",
    add_broken_metadata: "its zarr.json has no 'volpatch' attribute",
    add_other_attributes: "its zarr.json has no 'volpatch' attribute",
    add_notes_to_ours: "it holds 'notes.txt'",
    add_labels_to_ours: "it holds 'scale0/labels'",
    add_file_for_a_level: "'scale1' is not a folder",
    add_link_to_ours: "is a link to .*name the folder itself",
    add_dangling_link: "is a link to",
}


@pytest.mark.parametrize(("make", "says"), HOSTILE_TARGETS.items())
def test_what_volpatch_did_not_make_is_never_overwritten(tmp_path, make, says):
    make(tmp_path)
    before = snapshot(tmp_path)
    for attempt in (
        lambda: check_target(tmp_path / "out.zarr", overwrite=True, source_path=None),
        lambda: begin(Output(tmp_path / "out.zarr"), overwrite=True),
    ):
        with pytest.raises(TargetError, match=says) as error:
            attempt()
        assert str(tmp_path / "out.zarr") in message(error)
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize(("make", "says"), HOSTILE_TARGETS.items())
def test_what_is_not_ours_is_refused_and_not_advised_to_be_overwritten(tmp_path, make, says):
    make(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(TargetError, match=says) as error:
        check_target(tmp_path / "out.zarr", overwrite=False, source_path=None)
    assert "choose another name" in message(error)
    assert "overwrite=" not in str(error.value)
    assert snapshot(tmp_path) == before


def test_an_output_of_ours_is_kept_without_overwrite(tmp_path):
    publish(tmp_path / "out.zarr")
    with pytest.raises(TargetError, match=r"exists; pass overwrite=True to replace it"):
        check_target(tmp_path / "out.zarr", overwrite=False, source_path=None)


def test_what_is_put_into_ours_during_the_run_is_kept(tmp_path):
    spec = make_spec()
    publish(tmp_path / "out.zarr", spec)
    tree = build(tmp_path / "out.zarr", spec, volume(spec), overwrite=True)
    (tmp_path / "out.zarr/notes.txt").write_text("precious")
    with pytest.raises(TargetError, match=r"it holds 'notes.txt'"):
        finish(tree, spec)
    assert (tmp_path / "out.zarr/notes.txt").read_text() == "precious"


def work_folder_without_marker(folder):
    (folder / "data").mkdir()
    (folder / "data/notes.txt").write_text("precious")


def work_folder_with_notes(folder):
    (folder / "volpatch.json").write_text('{"volpatch": "1"}')
    (folder / "notes.txt").write_text("precious")


def work_folder_with_another_marker(folder):
    (folder / "volpatch.json").write_text("{}")
    (folder / "data").mkdir()


def work_folder_with_a_link(folder):
    (folder / "volpatch.json").write_text('{"volpatch": "1"}')
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere/notes.txt").write_text("precious")
    (folder / "data").symlink_to(folder.parent / "elsewhere")


def work_folder_with_strange_tmp(folder):
    (folder / "tmp").mkdir()
    (folder / "tmp/notes.txt").write_text("precious")


def work_folder_with_tmp_file(folder):
    (folder / "tmp").write_text("precious")


def work_folder_that_is_a_link(folder):
    folder.rmdir()
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere/volpatch.json").write_text('{"volpatch": "1"}')
    folder.symlink_to(folder.parent / "elsewhere")


def work_folder_that_is_a_file(folder):
    folder.rmdir()
    folder.write_text("precious")


HOSTILE_WORK_FOLDERS = {
    work_folder_without_marker: "it has no volpatch.json of ours",
    work_folder_with_notes: "it holds 'notes.txt'",
    work_folder_with_another_marker: "it has no volpatch.json of ours",
    work_folder_with_a_link: "it holds 'data'",
    work_folder_with_strange_tmp: "it has no volpatch.json of ours",
    work_folder_with_tmp_file: "it has no volpatch.json of ours",
    work_folder_that_is_a_link: "it is not a folder",
    work_folder_that_is_a_file: "it is not a folder",
}


@pytest.mark.parametrize(("make", "says"), HOSTILE_WORK_FOLDERS.items())
def test_a_work_folder_that_is_not_ours_is_left_alone(tmp_path, make, says):
    folder = tmp_path / "out.zarr.volpatch"
    folder.mkdir()
    make(folder)
    before = snapshot(tmp_path)
    tree = Output(tmp_path / "out.zarr")
    for attempt in (
        lambda: check_target(tree.target, overwrite=True, source_path=None),
        lambda: begin(tree, overwrite=True),
        tree.discard,
    ):
        with pytest.raises(TargetError, match=re.escape(says)) as error:
            attempt()
        assert "is left alone; move it away" in message(error)
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("target", "source", "relation"),
    [
        ("in.zarr", "in.zarr", "is"),
        ("link.zarr", "in.zarr", "is"),
        ("in.zarr", "link.zarr", "is"),
        ("other/../in.zarr", "in.zarr", "is"),
        ("in.zarr/out.zarr", "in.zarr", "lies inside"),
        ("link.zarr/out.zarr", "in.zarr", "lies inside"),
        ("in.zarr/deep/out.zarr", "link.zarr", "lies inside"),
        ("in.zarr", "in.zarr/deep", "would contain"),
        ("in.zarr", "link.zarr/deep", "would contain"),
        ("deep.zarr/out.zarr", "in.zarr", "lies inside"),
        ("in.zarr", "deep.zarr", "would contain"),
        ("hard.tif", "in.tif", "is"),
        ("work", "work.volpatch/data", "would contain"),
        ("work", "work.volpatch", "is"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_input_is_never_written_to(tmp_path, target, source, relation, overwrite):
    publish(tmp_path / "in.zarr")
    (tmp_path / "in.zarr/deep").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "link.zarr").symlink_to(tmp_path / "in.zarr")
    (tmp_path / "deep.zarr").symlink_to(tmp_path / "in.zarr/deep")
    (tmp_path / "in.tif").write_text("pixels")
    os.link(tmp_path / "in.tif", tmp_path / "hard.tif")
    (tmp_path / "work.volpatch/data").mkdir(parents=True)
    before = snapshot(tmp_path)
    with pytest.raises(TargetError, match=f"{relation} the input .*never written to") as error:
        check_target(tmp_path / target, overwrite=overwrite, source_path=str(tmp_path / source))
    message(error)
    assert snapshot(tmp_path) == before


def test_a_place_beside_the_input_is_fine(tmp_path):
    publish(tmp_path / "in.zarr")
    for source in (str(tmp_path / "in.zarr"), "https://example.org/out.zarr", str(tmp_path / "no")):
        check_target(tmp_path / "out.zarr", overwrite=False, source_path=source)
    check_target(tmp_path / "in.zarr", overwrite=True, source_path=None)
    assert os.listdir(tmp_path) == ["in.zarr"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a\0b", r"control characters"),
        ("a\nb", r"'a\\nb' has control characters"),
        ("s3://bucket/out.zarr", "is a URL; give a path on a local disk"),
        ("", "names no folder"),
        ("/", "names no folder"),
        ("x" * 250, "has 250 bytes; at most 246 are possible"),
        ("nowhere/out.zarr", "'.*/nowhere' does not exist; make that folder first"),
        ("file/out.zarr", "'.*/file' is not a folder"),
    ],
)
def test_a_name_that_cannot_be_is_refused(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match=says) as error:
        check_target(name, overwrite=False, source_path=None)
    message(error)


def test_a_parent_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(
        TargetError, match=r"no file can be written in .*\(Permission denied\)"
    ) as error:
        check_target(tmp_path / "out.zarr", overwrite=False, source_path=None)
    message(error)


@pytest.mark.parametrize("name", ["sp ace", "per%20cent", "a::b", "ünïcode", "-dash", "c"])
def test_odd_names_are_taken_as_they_are(tmp_path, name):
    publish(tmp_path / name)
    assert os.listdir(tmp_path) == [name]
    assert same_bits(read(tmp_path / name), volume(make_spec()))


def test_a_relative_target_stays_where_it_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = make_spec()
    tree = build("out.zarr", spec, volume(spec))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    finish(tree, spec)
    assert same_bits(read(tmp_path / "out.zarr"), volume(spec))
