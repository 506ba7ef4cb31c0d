"""Volumes on disk read as they were written, whatever their kind, and bad ones are named."""

import json
import multiprocessing
import pickle
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import tifffile
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import volpatch
from volpatch.core.errors import SettingError, SourceError
from volpatch.storage import ngff as ome
from volpatch.storage.open import dask_chunks, open_source, open_volume, source_of
from volpatch.storage.readers.tiff_grid import tiff_names
from volpatch.storage.volume import axis_names


def numbered(*shape: int, dtype: str = "uint16") -> np.ndarray:
    """Distinct values, so that a misplaced voxel shows."""
    return (np.arange(np.prod(shape)) % 60_000 + 1).reshape(shape).astype(dtype)


def whole(source):
    out = np.zeros(source.shape, source.dtype)
    source.read(tuple(slice(0, size) for size in source.shape), out)
    return out


def refused(path, **options) -> str:
    with pytest.raises(SourceError) as caught:
        open_source(path, **options)
    return str(caught.value)


def plain_zarr(path: Path, data: np.ndarray, chunks=(4, 5, 6), **options) -> Path:
    array = zarr.create_array(path, shape=data.shape, chunks=chunks, dtype=data.dtype, **options)
    array[...] = data
    return path


def ome_zarr(path: Path, data, names, *, version="0.5", levels=1, omero=None) -> Path:
    """An image whose level k is every 2**k-th voxel; scale 1, 2, ... per axis, translation 0.5."""
    v3 = version == "0.5"
    group = zarr.create_group(path, zarr_format=3 if v3 else 2)
    datasets = []
    for level in range(levels):
        part = data[..., :: 2**level, :: 2**level, :: 2**level]
        options = {"dimension_names": names} if v3 else {}
        array = group.create_array(
            f"s{level}", shape=part.shape, chunks=(3,) * part.ndim, dtype=part.dtype, **options
        )
        array[...] = part
        scale = [(axis + 1.0) * 2**level for axis in range(part.ndim)]
        datasets.append((f"s{level}", scale, [0.5] * part.ndim))
    units = ["micrometer" if name in "zyx" else None for name in names]
    made = ome.multiscales(name="a", dims=names, units=units, datasets=datasets)
    if omero:
        made["omero"] = omero
    if v3:
        group.attrs["ome"] = made
    else:
        made["multiscales"][0]["version"] = made.pop("version").replace("0.5", "0.4")
        group.attrs.update(made)
    return path


# --- Zarr arrays


def layout_name(value):
    """A test's name that is the same in every process: codecs print sets in any order."""
    if not isinstance(value, dict):
        return str(value)
    plain = (int, str, tuple, type(None))
    return " ".join(
        f"{key}={inner if isinstance(inner, plain) else type(inner).__name__}"
        for key, inner in value.items()
    )


@pytest.mark.parametrize(
    "options",
    [
        {"zarr_format": 3},
        {"zarr_format": 3, "shards": (8, 10, 12)},
        {"zarr_format": 3, "compressors": None},
        {"zarr_format": 3, "compressors": zarr.codecs.BloscCodec()},
        {"zarr_format": 2, "compressors": numcodecs.Blosc()},
        {"zarr_format": 2, "order": "F"},
        {"zarr_format": 2, "filters": [numcodecs.Delta("<u2")], "compressors": numcodecs.Zstd()},
        {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "."}},
        {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    ],
    ids=layout_name,
)
def test_a_zarr_array_reads_as_written(tmp_path, options):
    data = numbered(9, 11, 13)
    source = open_source(plain_zarr(tmp_path / "a.zarr", data, **options))
    assert (source.dims, source.shape, source.dtype) == (("z", "y", "x"), (9, 11, 13), data.dtype)
    assert (source.chunks, source.shards) == ((4, 5, 6), options.get("shards"))
    assert (source.spacing, source.origin, source.units) == ((1,) * 3, (0,) * 3, (None,) * 3)
    np.testing.assert_array_equal(whole(source), data)


@pytest.mark.parametrize("dtype", [">u2", ">f4", "<i8", "|b1", "<f2"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_values_come_in_native_byte_order(tmp_path, dtype, zarr_format):
    data = (numbered(5, 6, 7) % 251).astype(dtype)
    options = {}
    if zarr_format == 3:
        endian = "big" if dtype[0] == ">" else "little"
        options = {"serializer": zarr.codecs.BytesCodec(endian=endian)}
        data = data.astype(data.dtype.newbyteorder("="))
    path = plain_zarr(tmp_path / "a", data, zarr_format=zarr_format, **options)
    source = open_source(path)
    assert source.dtype.isnative
    np.testing.assert_array_equal(whole(source), data)
    np.testing.assert_array_equal(source[1:3, :, 2], data[1:3, :, 2])


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """One volume of 6 x 9 x 10 in each kind of storage."""
    root = tmp_path_factory.mktemp("kinds")
    data = numbered(6, 9, 10)
    plain_zarr(root / "v3", data, chunks=(2, 3, 4))
    plain_zarr(root / "sharded", data, chunks=(2, 3, 2), shards=(4, 6, 6))
    plain_zarr(root / "big", data.astype(">u2"), chunks=(2, 3, 4), zarr_format=2)
    turned = plain_zarr(root / "turned", data.transpose(2, 0, 1), dimension_names=("x", "z", "y"))
    tifffile.imwrite(root / "plain.tif", data, metadata={"axes": "ZYX"})
    tifffile.imwrite(root / "tiled.tif", data, tile=(16, 16), metadata={"axes": "ZYX"})
    tifffile.imwrite(root / "zlib.tif", data, compression="zlib", metadata={"axes": "ZYX"})
    tifffile.imwrite(root / "imagej.tif", data, imagej=True, metadata={"axes": "ZYX"})
    (root / "slices").mkdir()
    (root / "packed").mkdir()
    for number, plane in enumerate(data):
        tifffile.imwrite(root / "slices" / f"s_{number}.tif", plane)
        tifffile.imwrite(root / "packed" / f"s_{number}.tif", plane, compression="zlib")
    assert turned.exists()
    return data, {path.name: open_source(path) for path in sorted(root.iterdir())}


KINDS = (
    *("big", "imagej.tif", "packed", "plain.tif", "sharded", "slices"),
    *("tiled.tif", "turned", "v3", "zlib.tif"),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_any_box_into_any_view_is_what_numpy_gives(kinds, kind, draw):
    data, sources = kinds
    source = sources[kind]
    assert source.dims == ("z", "y", "x")
    starts = [draw.draw(st.integers(0, size - 1)) for size in data.shape]
    stops = [
        draw.draw(st.integers(a + 1, size)) for a, size in zip(starts, data.shape, strict=True)
    ]
    box = tuple(slice(a, b) for a, b in zip(starts, stops, strict=True))
    shape = data[box].shape
    step = draw.draw(st.sampled_from([1, 2, -1]))
    turn = draw.draw(st.permutations(range(3)))
    buffer = np.zeros([shape[axis] * abs(step) for axis in turn], data.dtype)
    out = buffer.transpose(np.argsort(turn))[::step, ::step, ::step]
    out = out[: shape[0], : shape[1], : shape[2]]
    source.read(box, out)
    np.testing.assert_array_equal(out, data[box])
    assert np.count_nonzero(buffer) == out.size  # nothing was written beside the view


@pytest.mark.parametrize(
    "key", [3, -1, (..., 2), (slice(None, None, -2), 1), slice(4, 1), (1, 2, 3), np.s_[5:0:-3, ::4]]
)
def test_indexing_is_numpys(kinds, key):
    data, sources = kinds
    np.testing.assert_array_equal(sources["turned"][key], data[key])


def test_indexing_outside_is_an_error(kinds):
    with pytest.raises(IndexError):
        kinds[1]["v3"][6]


@pytest.mark.parametrize(
    ("names", "ndim", "dims"),
    [
        (None, 2, ("y", "x")),
        (None, 4, ("c", "z", "y", "x")),
        (None, 5, ("t", "c", "z", "y", "x")),
        (None, 6, ("d0", "t", "c", "z", "y", "x")),
        (("Z", "Y", "X"), 3, ("z", "y", "x")),
        (("dim_0", "dim_1", "dim_2"), 3, ("z", "y", "x")),
        (("plane", "y", "x"), 3, ("plane", "y", "x")),
        (("x", "x", "y"), 3, ("z", "y", "x")),
    ],
)
def test_axes_are_named_by_name_or_number(names, ndim, dims):
    assert axis_names(names or (None,) * ndim, "a") == dims


def test_leading_axes_come_first_whatever_the_order_on_disk(tmp_path):
    data = numbered(2, 3, 4, 5, 6)
    path = plain_zarr(
        tmp_path / "a", data, chunks=(1, 2, 3, 4, 5), dimension_names=("z", "c", "x", "t", "y")
    )
    source = open_source(path)
    assert source.dims == ("t", "c", "z", "y", "x")
    assert (source.shape, source.chunks) == ((5, 3, 2, 6, 4), (4, 2, 1, 5, 3))
    np.testing.assert_array_equal(whole(source), data.transpose(3, 1, 0, 4, 2))


def test_v2_names_come_from_xarrays_attribute(tmp_path):
    path = plain_zarr(tmp_path / "a", numbered(2, 3, 4), zarr_format=2, chunks=(2, 3, 4))
    zarr.open_array(path).attrs["_ARRAY_DIMENSIONS"] = ["c", "y", "x"]
    assert open_source(path).dims == ("c", "y", "x")


def test_coordinates_written_by_xarray_give_the_spacing(tmp_path):
    volume = xr.DataArray(
        numbered(3, 4, 5),
        dims=("z", "y", "x"),
        coords={
            "z": ("z", [10.0, 12.0, 14.0], {"units": "um"}),
            "y": [0.5, 1.0, 1.5, 2.0],
            "x": [0.0, 1.0, 2.0, 4.0, 8.0],
        },
        name="image",
    )
    volume.to_zarr(tmp_path / "a", zarr_format=3, consolidated=False)
    source = open_source(tmp_path / "a" / "image")
    assert source.spacing == (2.0, 0.5, 1.0)  # x is not regular
    assert source.origin == (10.0, 0.5, 0.0)
    assert source.units == ("micrometer", None, None)


# --- OME-Zarr


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_ome_image_gives_axes_spacing_units_and_channels(tmp_path, version):
    omero = {"channels": [{"label": "DAPI", "color": "0000FF"}, {"label": "GFP"}]}
    data = numbered(3, 2, 4, 6, 8)
    path = ome_zarr(tmp_path / "a", data, "tczyx", version=version, levels=2, omero=omero)
    source = open_source(path, level=1)
    assert source.dims == ("t", "c", "z", "y", "x")
    assert source.spacing == (2, 4, 6, 8, 10)
    assert source.origin == (0.5,) * 5
    assert source.units == (None, None, "micrometer", "micrometer", "micrometer")
    assert source.channel_names == ("DAPI", "GFP")
    assert source.attributes == {"omero": omero}
    assert (source.level, source.path, source.name) == (1, str(path), "a")
    np.testing.assert_array_equal(whole(source), data[..., ::2, ::2, ::2])
    inner = open_source(path / "s1")
    assert (inner.spacing, inner.units, inner.level) == (source.spacing, source.units, 0)


def test_transformations_of_the_whole_image_come_last(tmp_path):
    path = ome_zarr(tmp_path / "a", numbered(4, 4, 4), "zyx", version="0.4")
    attributes = json.loads((path / ".zattrs").read_text())
    attributes["multiscales"][0]["coordinateTransformations"] = [
        {"type": "scale", "scale": [10, 10, 10]},
        {"type": "translation", "translation": [100, 0, 0]},
    ]
    (path / ".zattrs").write_text(json.dumps(attributes))
    source = open_source(path)
    assert source.spacing == (10, 20, 30)
    assert source.origin == (105, 5, 5)


def test_what_is_written_is_valid_for_both_validators(tmp_path):
    import yaozarrs
    from ome_zarr_models.v05 import Image

    path = ome_zarr(tmp_path / "a", numbered(2, 2, 4, 4, 4), "tczyx", levels=2)
    yaozarrs.validate_zarr_store(str(path))
    Image.from_zarr(zarr.open_group(path, mode="r"))


def test_written_metadata_needs_a_number_per_axis():
    with pytest.raises(ValueError, match="2 axes, but 1 numbers"):
        ome.multiscales(
            name="a", dims=("y", "x"), units=(None, None), datasets=[("0", (1,), (0, 0))]
        )


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        *[(text, "micrometer") for text in ("um", "micron", "µm", "μm", "\\u00B5m", "Micrometer")],
        *[("nm", "nanometer"), ("mm", "millimeter"), ("cm", "centimeter"), ("inch", "inch")],
        *[("sec", "second"), ("pixel", None), ("", None), (None, None), ("\x1b[31m", None)],
        ("kilometer", "kilometer"),
    ],
)
def test_units_get_one_spelling(text, unit):
    assert ome.normal_unit(text) == unit


def edit_ome(path: Path, change) -> None:
    content = json.loads((path / "zarr.json").read_text())
    change(content["attributes"]["ome"])
    (path / "zarr.json").write_text(json.dumps(content))


def set_dataset(key, value):
    return lambda made: made["multiscales"][0]["datasets"][0].update({key: value})


def set_scale(*scale):
    return set_dataset("coordinateTransformations", [{"type": "scale", "scale": list(scale)}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_dataset("path", "../other"), r"datasets\[0\].path is '../other'"),
        (set_dataset("path", "/etc"), r"datasets\[0\].path is '/etc'"),
        (set_scale(1, 0, 1), r"datasets\[0\].coordinateTransformations is .*0"),
        (set_scale(1, -2, 1), "damaged"),
        (set_scale(1, 2), "damaged"),
        (set_scale(1, float("nan"), 1), "damaged"),
        (lambda made: made["multiscales"][0].pop("axes"), r"multiscales\[0\].axes is None"),
        (lambda made: made["multiscales"][0]["axes"].pop(), r"damaged"),
        (lambda made: made.update(multiscales=[]), r"multiscales is \[\]"),
        (lambda made: made.update(version="0.6"), "OME-Zarr 0.6; volpatch reads 0.4 and 0.5"),
        (set_dataset("path", "gone"), "level 0 should be an array at 'gone'"),
    ],
)
def test_bad_image_metadata_is_named(tmp_path, change, message):
    path = ome_zarr(tmp_path / "a", numbered(4, 4, 4), "zyx")
    edit_ome(path, change)
    with pytest.raises(SourceError, match=message):
        open_source(path)


def test_image_metadata_with_coordinate_systems_is_too_new(tmp_path):
    path = ome_zarr(tmp_path / "a", numbered(4, 4, 4), "zyx")
    edit_ome(path, lambda made: made["multiscales"][0].update(coordinateSystems=[]))
    assert "volpatch reads 0.4 and 0.5" in refused(path)
    assert open_source(path / "s0").spacing == (1, 1, 1)  # the way out that it names


def test_a_level_that_is_not_there_lists_those_that_are(tmp_path):
    path = ome_zarr(tmp_path / "a", numbered(8, 8, 8), "zyx", levels=2)
    assert "has no level 2; it has levels 0 (8, 8, 8), 1 (4, 4, 4)" in refused(path, level=2)
    assert "has no level 1" in refused(path / "s0", level=1)
    with pytest.raises(SettingError, match="whole number from 0, got -1"):
        open_source(path, level=-1)


def test_a_group_that_is_no_image_lists_what_is_in_it(tmp_path):
    group = zarr.create_group(tmp_path / "a")
    assert "group with no array in it" in refused(tmp_path / "a")
    group.create_array("raw", shape=(4, 5, 6), dtype="u1")
    group.create_array("deep/labels", shape=(4, 5, 6), dtype="u4")
    said = refused(tmp_path / "a")
    assert "in it: deep/labels (4, 5, 6), raw (4, 5, 6)" in said
    assert f"pass one of them, e.g. {tmp_path}/a/deep/labels" in said


def test_a_bioformats2raw_store_says_which_path_to_pass(tmp_path):
    group = zarr.create_group(tmp_path / "a", attributes={"ome": {"bioformats2raw.layout": 3}})
    group.create_group("0")
    assert f"pass {tmp_path}/a/0" in refused(tmp_path / "a")


# --- damaged and hostile Zarr


@pytest.mark.parametrize(
    "text",
    ["", '{"zarr_format": 3, "sha', "[1, 2]", "7", "[" * 100_000, '{"zarr_format": 4}', "\xff\xfe"],
    ids=["empty", "cut off", "list", "number", "deep", "version 4", "not text"],
)
def test_damaged_metadata_is_named(tmp_path, text):
    path = plain_zarr(tmp_path / "a", numbered(4, 5, 6))
    (path / "zarr.json").write_bytes(text.encode("latin-1"))
    assert f"metadata of {path} is damaged" in refused(path)


def edit_array(path: Path, **changes) -> None:
    name = "zarr.json" if (path / "zarr.json").exists() else ".zarray"
    content = json.loads((path / name).read_text())
    content.update(changes)
    (path / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [4, -5, 6]}, "its shape is"),
        ({"shape": [2**40, 2**40, 2**40]}, "its shape is"),
        ({"shape": "4"}, "its shape is '4'"),
        ({"chunks": [0, 5, 6]}, r"chunks of \[0, 5, 6\]"),
        ({"chunks": [5, 6]}, r"chunks of \[5, 6\]"),
        ({"chunks": [True, 5, 6]}, "chunks of"),
        ({"chunks": [10**13, 5, 6]}, "too big to be decoded"),
        ({"dtype": "|O", "filters": [{"id": "pickle"}]}, "dtype object .* not numeric"),
        ({"filters": [{"id": "pickle"}]}, "'pickle', which volpatch does not read"),
        ({"compressor": {"id": "pickle"}}, "'pickle', which volpatch does not read"),
        ({"dtype": "<c8"}, "dtype complex64 of .*int8..64"),
        ({"dtype": "<M8[s]"}, "not numeric"),
        ({"dtype": "<U4"}, "not numeric"),
        ({"dtype": [["a", "<u2"]]}, "not numeric"),
        ({"dtype": "<f16"}, "not numeric"),
        ({"shape": [4, 0, 6]}, r"is empty: its shape is \(4, 0, 6\)"),
        ({"shape": [4], "chunks": [4]}, "has 1 axes"),
        ({"fill_value": "nonsense"}, "damaged"),
    ],
)
def test_an_array_that_cannot_be_is_refused_before_a_chunk_is_read(tmp_path, changes, message):
    path = plain_zarr(tmp_path / "a", numbered(4, 5, 6), zarr_format=2)
    edit_array(path, **changes)
    with pytest.raises(SourceError, match=message):
        open_source(path)


@pytest.mark.parametrize(
    ("dtype", "said"), [("complex64", "complex64"), ({"name": "struct"}, "struct"), ("r24", "r24")]
)
def test_v3_types_that_are_not_numbers_are_refused(tmp_path, dtype, said):
    path = plain_zarr(tmp_path / "a", numbered(4, 5, 6))
    edit_array(path, data_type=dtype)
    assert said in refused(path)


def test_an_unknown_v3_codec_inside_a_shard_is_refused(tmp_path):
    path = plain_zarr(tmp_path / "a", numbered(8, 10, 12), shards=(8, 10, 12))
    content = json.loads((path / "zarr.json").read_text())
    content["codecs"][0]["configuration"]["codecs"].append({"name": "numcodecs.pickle"})
    (path / "zarr.json").write_text(json.dumps(content))
    assert "'numcodecs.pickle'" in refused(path)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({}, "c/1/0/1"),
        ({"shards": (8, 10, 12)}, "c/1/0/1"),
        ({"compressors": zarr.codecs.BloscCodec()}, "c/1/0/1"),
        ({"zarr_format": 2, "compressors": numcodecs.Blosc()}, "1.0.1"),
        ({"zarr_format": 2, "compressors": numcodecs.Zstd()}, "1.0.1"),
        ({"compressors": None}, "c/1/0/1"),
    ],
    ids=layout_name,
)
def test_a_damaged_chunk_is_named(tmp_path, options, key):
    data = numbered(16, 20, 24)
    path = plain_zarr(tmp_path / "a", data, **options)
    source = open_source(path)
    chunk = path / key
    chunk.write_bytes(chunk.read_bytes()[:-7])
    with pytest.raises(SourceError, match=f"chunk {key} of {path} is damaged: .+; restore"):
        whole(source)
    np.testing.assert_array_equal(source[:4, :5, :6], data[:4, :5, :6])  # others still read


@pytest.mark.parametrize("keep", [0, 10, 16, 60])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_cut_blosc_chunk_never_reaches_the_decoder(tmp_path, zarr_format, keep):
    """Decoding it can end the interpreter, so its header is compared with its length."""
    blosc = numcodecs.Blosc() if zarr_format == 2 else zarr.codecs.BloscCodec()
    data = numbered(8, 10, 12)
    path = plain_zarr(tmp_path / "a", data, zarr_format=zarr_format, compressors=blosc)
    chunk = path / ("0.0.0" if zarr_format == 2 else "c/0/0/0")
    chunk.write_bytes(chunk.read_bytes()[:keep])
    with pytest.raises(SourceError, match=f"is damaged: it has {keep} bytes"):
        whole(open_source(path))


def test_an_array_that_went_away_does_not_read_as_zeros(tmp_path):
    path = plain_zarr(tmp_path / "a", numbered(4, 5, 6))
    source = open_source(path)
    whole(source)
    shutil.rmtree(path)
    with pytest.raises(SourceError, match="was there when it was opened, and is gone"):
        whole(source)


def test_an_array_made_anew_under_the_same_path_is_read_anew(tmp_path):
    data = numbered(4, 5, 6)
    path = plain_zarr(tmp_path / "a", data)
    whole(open_source(path))
    shutil.rmtree(path)
    plain_zarr(path, data.astype("f4") / 3, chunks=(2, 2, 2))
    np.testing.assert_array_equal(whole(open_source(path)), data.astype("f4") / 3)


# --- TIFF files


def test_an_imagej_stack_gives_spacing_and_unit(tmp_path):
    data = numbered(5, 2, 6, 7)
    tifffile.imwrite(
        tmp_path / "a.tif",
        data,
        imagej=True,
        byteorder=">",
        resolution=(4, 2),
        metadata={"axes": "ZCYX", "spacing": 1.5, "unit": "\\u00B5m"},
    )
    source = open_source(tmp_path / "a.tif")
    assert source.dims == ("c", "z", "y", "x")
    assert source.dtype == np.dtype("=u2")
    assert source.dtype.isnative
    assert source.spacing == (1.0, 1.5, 0.5, 0.25)
    assert source.units == (None, "micrometer", "micrometer", "micrometer")
    assert source.chunks == (1, 1, 6, 7)
    np.testing.assert_array_equal(whole(source), data.transpose(1, 0, 2, 3))


def test_an_ome_tiff_gives_spacing_units_and_channels(tmp_path):
    data = numbered(2, 3, 32, 48)
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        data,
        tile=(16, 16),
        compression="zlib",
        metadata={
            "axes": "CZYX",
            "PhysicalSizeX": 0.2,
            "PhysicalSizeY": 0.3,
            "PhysicalSizeZ": 900,
            "PhysicalSizeZUnit": "nm",
            "Channel": {"Name": ["DAPI", "GFP"]},
        },
    )
    source = open_source(tmp_path / "a.ome.tif")
    assert source.dims == ("c", "z", "y", "x")
    assert source.spacing == (1.0, 900, 0.3, 0.2)
    assert source.units == (None, "nanometer", "micrometer", "micrometer")
    assert source.channel_names == ("DAPI", "GFP")
    assert source.chunks == (1, 1, 16, 16)
    np.testing.assert_array_equal(whole(source), data)


def test_a_pyramid_gives_its_levels(tmp_path):
    data = numbered(3, 64, 64)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as tif:
        sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
        tif.write(data, subifds=1, tile=(16, 16), metadata={"axes": "ZYX", **sizes})
        tif.write(data[:, ::2, ::2], subfiletype=1, tile=(16, 16))
    source = open_source(tmp_path / "a.ome.tif", level=1)
    assert source.spacing == (2.0, 1.0, 1.0)
    assert source.origin == (0.0, 0.25, 0.25)
    np.testing.assert_array_equal(whole(source), data[:, ::2, ::2])
    assert "has no level 2; it has levels 0 (3, 64, 64)" in refused(source.path, level=2)


@pytest.mark.parametrize(
    ("axes", "names"),
    [("QYX", "zyx"), ("IYX", "zyx"), ("YXS", "yxc"), ("ZCYXS", "zcyxs"), ("TZCYX", "tzcyx")],
)
def test_tiff_axes_are_translated(axes, names):
    assert tiff_names(axes) == tuple(names)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"bigtiff": True}], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "bool", "float32", "uint16"])
def test_rgb_and_other_types_read_as_written(tmp_path, options, dtype):
    stack = (numbered(3, 7, 9, 3) % 251).astype(dtype)
    image = stack[0, ..., 0]
    if dtype != "bool":
        tifffile.imwrite(tmp_path / "rgb.tif", stack, photometric="rgb", **options)
        source = open_source(tmp_path / "rgb.tif")
        assert source.dims == ("c", "z", "y", "x")
        np.testing.assert_array_equal(whole(source), stack.transpose(3, 0, 1, 2))
        planar = stack.transpose(0, 3, 1, 2).copy()
        tifffile.imwrite(
            tmp_path / "planar.tif", planar, photometric="rgb", planarconfig="separate", **options
        )
        source = open_source(tmp_path / "planar.tif")
        assert source.dims == ("c", "z", "y", "x")
        np.testing.assert_array_equal(whole(source), planar.transpose(1, 0, 2, 3))
    tifffile.imwrite(tmp_path / "one.tif", image, byteorder=">", **options)
    np.testing.assert_array_equal(whole(open_source(tmp_path / "one.tif")), image)


WRITERS = {
    "plain": {"metadata": {"axes": "ZYX"}},
    "imagej": {"imagej": True},
    "zlib": {"compression": "zlib", "metadata": {"axes": "ZYX"}},
    "bare": {"metadata": None},
    "big": {"metadata": None, "bigtiff": True},
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("keep", [0.02, 0.3, 0.7, 0.97])
def test_a_truncated_tiff_is_refused_with_its_size(tmp_path, kind, keep):
    path = tmp_path / "a.tif"
    data = np.random.default_rng(0).integers(0, 60_000, (6, 30, 40), dtype="u2")
    tifffile.imwrite(path, data, **WRITERS[kind])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    said = refused(path)
    assert "truncated" in said or "damaged" in said
    if kind != "bare" and keep > 0.3:
        assert f"it has {int(len(content) * keep)} bytes" in said


def test_a_truncated_imagej_stack_with_one_page_header_does_not_become_one_page(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, numbered(6, 30, 40), imagej=True, metadata={"axes": "ZYX"})
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack("<I", content[4:8])
    (entries,) = struct.unpack("<H", content[first : first + 2])
    link = first + 2 + 12 * entries
    content[link : link + 4] = bytes(4)  # as ImageJ writes stacks of more than 4 GB
    path.write_bytes(content)
    assert open_source(path).shape == (6, 30, 40)
    path.write_bytes(content[:9000])
    assert "is truncated: it has 9000 bytes, and its voxels need 14" in refused(path)


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.97])
def test_a_chain_of_pages_that_breaks_off_is_refused(tmp_path, keep):
    path = tmp_path / "a.tif"
    for plane in numbered(6, 30, 40):
        tifffile.imwrite(path, plane, append=True, metadata=None)
    content = path.read_bytes()
    assert open_source(path).shape == (6, 30, 40)
    path.write_bytes(content[: int(len(content) * keep)])
    assert "is truncated: it has" in refused(path)


def test_a_damaged_compressed_page_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, numbered(5, 30, 40), compression="zlib", metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[1].dataoffsets[0]
    source = open_source(path)
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 20)
    with pytest.raises(SourceError, match=f"{path} is damaged: .*within \\[0:5"):
        whole(source)


def test_a_tiff_cut_off_while_it_is_read_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, numbered(3, 30, 40), imagej=True)
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(SourceError, match="is truncated: it ends"):
        whole(source)
    path.unlink()
    with pytest.raises(SourceError, match="cannot be read any more: No such file"):
        whole(source)


@pytest.mark.parametrize("content", [b"", b"II", b"PK\3\4" + bytes(50), b"II*\0" + bytes(50)])
def test_what_is_no_tiff_inside_is_refused(tmp_path, content):
    (tmp_path / "a.tif").write_bytes(content)
    said = refused(tmp_path / "a.tif")
    assert str(tmp_path / "a.tif") in said
    assert "TIFF" in said or "damaged" in said


def test_page_headers_in_a_circle_are_refused(tmp_path):
    entry = struct.pack("<HI", 0, 8)  # a header without entries that names itself as the next
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + entry)
    assert "is damaged" in refused(tmp_path / "a.tif")


def test_a_complex_tiff_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", numbered(7, 5, dtype="complex64"))
    assert "dtype complex64" in refused(tmp_path / "a.tif")


# --- folders of slices


def folder_of(path: Path, data: np.ndarray, numbers=None, pattern="slice_{}.tif", **options):
    path.mkdir()
    for number, plane in zip(numbers or range(len(data)), data, strict=True):
        tifffile.imwrite(path / pattern.format(number), plane, **options)
    return path


def test_slices_come_in_the_order_of_their_numbers(tmp_path):
    data = numbered(12, 6, 7)
    folder = folder_of(tmp_path / "stack", data, byteorder=">")
    (folder / "LICENSE").write_text("free")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "._slice_3.tif").write_bytes(b"not a TIFF")
    source = open_source(folder)
    assert (source.dims, source.shape, source.chunks) == (("z", "y", "x"), (12, 6, 7), (1, 6, 7))
    assert source.name == "stack"
    np.testing.assert_array_equal(whole(source), data)


def test_slices_in_colour_are_channels(tmp_path):
    data = numbered(4, 6, 7, 3, dtype="uint8")
    source = open_source(folder_of(tmp_path / "a", data, photometric="rgb"))
    assert source.dims == ("c", "z", "y", "x")
    np.testing.assert_array_equal(whole(source), data.transpose(3, 0, 1, 2))


def test_an_odd_slice_is_named(tmp_path):
    folder = folder_of(tmp_path / "a", numbered(4, 6, 7))
    tifffile.imwrite(folder / "slice_0.tif", numbered(6, 8))
    said = refused(folder)
    assert "slice_0.tif is (6, 8) uint16, the other slices are (6, 7) uint16" in said
    tifffile.imwrite(folder / "slice_0.tif", numbered(6, 7, dtype="uint8"))
    assert "slice_0.tif is (6, 7) uint8" in refused(folder)
    tifffile.imwrite(folder / "slice_0.tif", numbered(2, 6, 7), photometric="minisblack")
    assert "slice_0.tif holds 2 pages" in refused(folder)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([1, 2, 4], "lacks slice 3 between slice_1.tif and slice_4.tif"),
        ([0, 2, 4, 8], "lacks slice 6 between"),
        (["008", "009", "012"], "lacks slice 010, 011 between"),
        ([1, 2, 3, 20], "lacks slice 4, 5, 6, 7, 8 and 11 more between"),
        (["1", "01", "2"], "numbered unevenly"),
    ],
)
def test_a_gap_in_the_numbers_is_named(tmp_path, numbers, message):
    folder = folder_of(tmp_path / "a", numbered(len(numbers), 3, 4), numbers)
    with pytest.raises(SourceError, match=message):
        open_source(folder)


@pytest.mark.parametrize(
    "numbers",
    [[5], [5, 10, 15], ["t7_1", "t7_2"], ["1_at93", "2_at99", "3_at112"]],
    ids=str,
)
def test_numbers_without_a_gap_are_fine(tmp_path, numbers):
    folder = folder_of(tmp_path / "a", numbered(len(numbers), 3, 4), numbers)
    assert open_source(folder).shape == (len(numbers), 3, 4)


def test_a_truncated_slice_is_named(tmp_path):
    folder = folder_of(tmp_path / "a", numbered(4, 30, 40))
    path = folder / "slice_2.tif"
    path.write_bytes(path.read_bytes()[:1500])
    assert "slice_2.tif is truncated: it has 1500 bytes" in refused(folder)
    path.write_bytes(b"")
    assert "slice_2.tif (0 bytes) does not begin like a TIFF" in refused(folder)


def test_a_slice_damaged_inside_is_named(tmp_path):
    folder = folder_of(tmp_path / "a", numbered(4, 30, 40), compression="zlib")
    source = open_source(folder)
    path = folder / "slice_2.tif"
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages.first.dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + 20] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"slice_2.tif is damaged"):
        whole(source)
    path.unlink()
    with pytest.raises(SourceError, match=r"slice_2.tif"):
        whole(source)


def test_a_folder_without_slices_says_what_it_holds(tmp_path):
    assert "is an empty folder" in refused(tmp_path)
    for name in ("a.png", "b.png", "README"):
        (tmp_path / name).write_bytes(b"x")
    assert "no TIFF slices in it (but 2 .png, 1 (no suffix))" in refused(tmp_path)


# --- other things


def test_paths_that_are_no_volume_are_refused(tmp_path):
    assert "no such volume: ''" in refused("")
    assert "no such volume" in refused(tmp_path / "missing.zarr")
    assert "no such volume" in refused(f"{tmp_path}\0")
    assert "is a URL" in refused("s3://bucket/volume.zarr")
    (tmp_path / "a.nii.gz").write_bytes(b"x")
    assert "is not a kind volpatch reads (Zarr, OME-Zarr, TIFF" in refused(tmp_path / "a.nii.gz")


# --- the lazy DataArray


def test_a_lazy_volume_has_physical_coordinates(tmp_path):
    omero = {"channels": [{"label": "DAPI"}, {"label": "GFP"}]}
    data = numbered(2, 4, 5, 6)
    path = ome_zarr(tmp_path / "a", data, "czyx", omero=omero)
    volume = open_volume(path)
    assert (volume.name, volume.dims, volume.dtype) == ("a", ("c", "z", "y", "x"), data.dtype)
    np.testing.assert_array_equal(volume["z"], 0.5 + 2 * np.arange(4))
    assert volume["z"].attrs == {"units": "micrometer"}
    assert list(volume["c"].values) == ["DAPI", "GFP"]
    assert isinstance(volume.data._meta, np.ndarray)
    np.testing.assert_array_equal(volume.sel(c="GFP"), data[1])


def test_opening_reads_no_voxel(tmp_path):
    path = ome_zarr(tmp_path / "a", numbered(4, 5, 6), "zyx")
    for chunk in (path / "s0" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"broken")
    volume = open_volume(path)
    with pytest.raises(SourceError, match="is damaged"):
        volume.compute()


def test_a_volume_knows_its_source_until_it_is_touched(tmp_path):
    volume = open_volume(plain_zarr(tmp_path / "a", numbered(9, 11, 13)))
    assert source_of(volume) == open_source(tmp_path / "a")
    assert source_of(pickle.loads(pickle.dumps(volume))) == source_of(volume)
    for changed in (
        volume[1:],
        volume + 1,
        volume.astype("f4"),
        volume.transpose("x", "y", "z"),
        volume.compute(),
        volume.rename(z="c"),
        xr.DataArray(numbered(3, 4)),
    ):
        assert source_of(changed) is None


def test_the_same_volume_has_the_same_dask_name(tmp_path):
    path = plain_zarr(tmp_path / "a", numbered(9, 11, 13))
    assert open_volume(path).data.name == open_volume(path).data.name
    other = plain_zarr(tmp_path / "b", numbered(9, 11, 13))
    assert open_volume(path).data.name != open_volume(other).data.name


def test_a_lazy_volume_can_be_saved_by_xarray(tmp_path):
    volume = open_volume(plain_zarr(tmp_path / "a", numbered(9, 11, 13)))
    volume.to_zarr(tmp_path / "b", zarr_format=3, consolidated=False)
    np.testing.assert_array_equal(whole(open_source(tmp_path / "b" / "a")), volume)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_computes_under_threads(kinds, kind):
    data, sources = kinds
    volume = open_volume(sources[kind].path).chunk(z=2, y=4, x=5)
    np.testing.assert_array_equal(volume.compute(scheduler="threads"), data)
    np.testing.assert_array_equal(volume[::-2, 3], data[::-2, 3])


def test_dask_chunks_are_whole_shards_of_about_32_mib(tmp_path):
    array = zarr.create_array(
        tmp_path / "a", shape=(2, 900, 3000, 3000), chunks=(1, 20, 64, 64), dtype="u2",
        shards=(1, 60, 256, 256),
    )  # fmt: skip
    chunks = dask_chunks(open_source(tmp_path / "a"))
    assert array.shards is not None
    assert all(size % unit == 0 for size, unit in zip(chunks, array.shards, strict=True))
    assert 16 * 2**20 < np.prod(chunks) * 2 <= 32 * 2**20
    assert open_volume(tmp_path / "a").data.chunksize == chunks
    assert open_volume(tmp_path / "a", chunks=100).data.chunksize == (1, 100, 100, 100)
    assert open_volume(tmp_path / "a", chunks={"y": 50}).data.chunksize[2] == 50
    with pytest.raises(volpatch.GridError, match="chunks names axis 'q', but the axes are"):
        open_volume(tmp_path / "a", chunks={"q": 50})


def test_a_source_reads_in_another_process(kinds):
    data, sources = kinds
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        found = pool.map(whole, [sources[kind] for kind in KINDS])
        for kind, values in zip(KINDS, found, strict=True):
            np.testing.assert_array_equal(values, data, err_msg=kind)


FORKED = """
import multiprocessing, sys
import numpy as np
from volpatch.storage.open import open_source

source, data = open_source(sys.argv[1]), np.load(sys.argv[2])

def read(number):
    return (source[number % 40] == data[number % 40]).all()

assert read(0)  # the file is open, and zarr's threads run, before the fork
with multiprocessing.get_context("fork").Pool(4) as pool:
    assert all(pool.map(read, range(400), chunksize=1))
"""


def test_forked_processes_share_no_file_position(tmp_path):
    data = np.random.default_rng(0).integers(0, 60_000, (40, 64, 80), dtype="u2")
    tifffile.imwrite(tmp_path / "a.tif", data, compression="zlib", metadata={"axes": "ZYX"})
    np.save(tmp_path / "a.npy", data)
    paths = [str(tmp_path / "a.tif"), str(tmp_path / "a.npy")]
    command = [sys.executable, "-W", "ignore", "-c", FORKED, *paths]
    subprocess.run(command, check=True, timeout=100)


def test_a_lazy_volume_computes_in_processes(kinds):
    data, sources = kinds
    volume = open_volume(sources["zlib.tif"].path).chunk(z=3)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        np.testing.assert_array_equal(volume.compute(scheduler="processes", pool=pool), data)


def test_chunks_that_are_not_stored_are_counted(tmp_path, monkeypatch):
    array = zarr.create_array(
        tmp_path / "in.zarr", shape=(20, 20, 20), chunks=(5, 5, 5), dtype="uint8", fill_value=3
    )
    array[:5] = np.ones((5, 20, 20), np.uint8)
    says = "48 of 64 chunks are not stored, and read as the fill value; missing='error' refuses"
    assert says in str(volpatch.plan(tmp_path / "in.zarr", patch=8))
    report = volpatch.run("identity", tmp_path / "in.zarr", tmp_path / "out.zarr", patch=8)
    assert f"\nremark    {says}" in str(report)
    assert "not stored" not in str(volpatch.plan(tmp_path / "out.zarr", patch=8))
    monkeypatch.setattr("volpatch.planning.inputs.MOST_COUNTED", 63)
    monkeypatch.setattr("volpatch.planning.inputs.MOST_OBJECTS", 32)
    about = "75% of 64 chunks are not stored, as far as 32 that were looked at tell"
    assert about in str(volpatch.plan(tmp_path / "in.zarr", patch=8))
