"""What is given is what is computed with: masks, blocks, dtypes and grids are never passed over."""

from __future__ import annotations

import warnings

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr

import volpatch
from tests import helpers_functions as functions
from volpatch import (
    ClippedWarning,
    FunctionError,
    GridError,
    Merger,
    PatchGrid,
    SettingError,
    SourceError,
    coverage,
    extract,
    iter_patches,
    map_patches,
    merge,
    sample_patches,
    to_zarr,
)

SHAPE = (5, 7)
GRID = PatchGrid(SHAPE, 4, 2)


def image(dtype="float32"):
    return np.random.default_rng(1).permutation(35).reshape(SHAPE).astype(dtype)


def masked():
    return np.ma.masked_less(image(), 9)


def run(function, source, target, **options):
    options = {"durability": "process", "workers": 2, "memory_limit": "4GiB", **options}
    return volpatch.run(function, source, target, **options)


# -- masked arrays -------------------------------------------------------------------------


KINDS = {
    "numpy": masked,
    "dask": lambda: da.from_array(masked(), chunks=4),
}
WAYS = {
    "map_patches": lambda a: map_patches(functions.shade, a, 4),
    "extract": lambda a: extract(a, 4),
    "to_zarr": lambda a: to_zarr(a, "/nowhere/at/all.zarr"),
    "iter_patches": lambda a: list(iter_patches(a, 4)),
    "sample_patches": lambda a: sample_patches(a, 4, 1),
    "where": lambda a: sample_patches(image(), 4, 1, where=a),
    "balance": lambda a: sample_patches(image(), 4, 1, balance=a),
    "mask": lambda a: map_patches(functions.shade, image(), 4, mask=a),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_masked_array_is_refused_with_the_way_out(way, kind):
    with pytest.raises(SettingError, match=r"is a masked array.*(array|ma)\.filled\(.*mask="):
        WAYS[way](KINDS[kind]())


def test_masked_patches_are_refused_on_their_way_back():
    patches = np.ma.masked_less(extract(image(), GRID), 9)
    for kind in (patches, da.from_array(patches, chunks=(1, 2, 4, 4))):
        with pytest.raises(SettingError, match=r"merge was given is a masked array"):
            merge(kind, GRID)
    merger = Merger(GRID)
    with pytest.raises(SettingError, match="the patch is a masked array"):
        merger.add(0, patches[0, 0])
    for batch in (patches[0, :1], [patches[0, 0]]):
        with pytest.raises(SettingError, match="the batch of patches is a masked array"):
            merger.add_batch([0], batch)
    with pytest.raises(SettingError, match="out is a masked array"):
        Merger(GRID, out=masked())
    with pytest.raises(SettingError, match="at is a masked array"):
        sample_patches(image(), 2, at=np.ma.masked_less([[2.0, 3.0]], 3))


def test_blocks_that_turn_out_masked_are_refused_when_they_are_computed(tmp_path):
    def hide(block):
        return np.ma.masked_less(block, 9)

    lazy = da.from_array(image(), chunks=4).map_blocks(hide, meta=image()[:0, :0])
    patches = da.from_array(np.array(extract(image(), GRID)), chunks=(1, 2, 4, 4))
    patches = patches.map_blocks(hide, meta=np.empty((0,) * 4, "float32"))
    named = xr.DataArray(lazy, dims=("y", "x"))
    ways = [
        lambda: map_patches(functions.shade, lazy, 4).compute(),
        lambda: map_patches(functions.shade, named, 4).compute(),
        lambda: extract(lazy, 4).compute(),
        lambda: list(iter_patches(named, 4)),
        lambda: sample_patches(lazy, 4, 1),
        lambda: to_zarr(lazy, tmp_path / "out.zarr"),
        lambda: merge(patches, GRID).compute(),
    ]
    for way in ways:
        with pytest.raises(SourceError, match=r"^block \(.* came as a masked array.*\.filled"):
            way()


def test_what_a_store_hands_out_masked_is_refused():
    class Store:  # as netCDF4 variables do
        shape, dtype, ndim = SHAPE, np.dtype("float32"), 2

        def __getitem__(self, key):
            return masked()[key]

    with pytest.raises(SourceError, match=r"^the volume at \[0:.*came as a masked array"):
        list(iter_patches(Store(), 4))


def test_masked_results_are_refused_in_memory_and_on_disk(tmp_path):
    source = to_zarr(image(), tmp_path / "in.zarr")

    def hides(block):
        return np.ma.masked_less(block, 9)

    calls = {
        r"hides returned a masked array; \.filled": {"finalize": hides},
        r"returned dtype complex64; it must be real": {
            "finalize": lambda block: block.astype("complex64")
        },
    }
    for message, options in calls.items():
        for volume in (image(), da.from_array(image(), chunks=4)):
            with pytest.raises(FunctionError, match=message):
                map_patches(functions.shade, volume, 4, **options)
        with pytest.raises(FunctionError, match=message):
            run(functions.shade, source, tmp_path / "out.zarr", patch=4, **options)
    big = map_patches(
        functions.shade, image(), 4, finalize=lambda b: np.abs(b).astype(">f4"), dtype="uint8"
    )
    want = map_patches(functions.shade, image(), 4, finalize=np.abs, dtype="uint8")
    np.testing.assert_array_equal(big, want)


# -- what was said about channels and blocks -----------------------------------------------


def test_other_channels_than_out_channels_says_are_refused(tmp_path):
    source = to_zarr(image(), tmp_path / "in.zarr")
    cases = [
        (functions.channels, 2, r"returned shape \(3, 4, 4\) .*wanted \(2, 4, 4\), as out_ch.*=2"),
        (functions.shade, 1, r"returned shape \(4, 4\) .*wanted \(1, 4, 4\), as out_channels=1"),
        (lambda b: b[:, None], 3, r"returned shape \(2, 1, 4, 4\) .*wanted \(2, 3, 4, 4\)"),
    ]
    for function, said, message in cases:
        options = {"out_channels": said, "batch_size": 2 if said == 3 else None}
        for given in (image(), da.from_array(image(), chunks=4)):
            with pytest.raises(FunctionError, match=message):
                map_patches(function, given, 4, stride=2, **options)
        with pytest.raises(FunctionError, match=message):
            run(function, source, tmp_path / "out.zarr", patch=4, stride=2, **options)
    for said in (3, None):
        got = map_patches(functions.channels, image(), 4, out_channels=said)
        assert got.shape == (3, *SHAPE)


def lies():
    """Blocks with one row less, two with one row moved from one to the other, other dtypes."""
    base = da.from_array(image(), chunks=((3, 2), (7,)))

    def moved(block, block_id=None):
        return image()[:2] if block_id[0] == 0 else image()[2:]

    return {
        "short": (lambda b: b[:-1], r"block \(., 0\) at \[.:., 0:7\] came as \(., 7\) float32"),
        "one row": (lambda b: b[:1], r"block \(., 0\) at .* came as \(1, 7\) .*says \([23], 7\)"),
        "moved": (moved, r"block \(0, 0\) at \[0:3, 0:7\] came as \(2, 7\)|\(1, 0\).*\(3, 7\)"),
        "dtype": (
            lambda b: b.astype("int16"),
            r"came as \((.), 7\) int16, but .* \(\1, 7\) float32",
        ),
        "number": (lambda b: b.sum(), r"block .* came as \(\) float32"),
    }, base


@pytest.mark.parametrize("kind", lies()[0])
def test_blocks_that_are_not_what_they_say_are_named(tmp_path, kind):
    found, base = lies()
    lie, message = found[kind]
    lazy = base.map_blocks(lie, dtype="float32", meta=image()[:0, :0])
    volume = xr.DataArray(lazy, dims=("y", "x"))
    ways = [
        lambda: map_patches(functions.shade, lazy, 4).compute(),
        lambda: map_patches(functions.shade, volume, 4).compute(),
        lambda: extract(lazy, 4).compute(),
        lambda: list(iter_patches(lazy, 4)),
        lambda: list(iter_patches(volume, 4)),
        lambda: sample_patches(lazy, 4, at=[(2, 3)]),
        lambda: to_zarr(lazy, tmp_path / "out.zarr", chunks=4),
    ]
    with dask.config.set(scheduler="synchronous"):
        for way in ways:
            with pytest.raises(SourceError, match=message):
                way()
    assert not list(tmp_path.iterdir())


def test_patches_in_blocks_that_lie_are_named():
    patches = da.from_array(np.array(extract(image(), GRID)), chunks=(1, 2, 4, 4))
    for lie, message in (
        (lambda b: b[:, :1], r"block \(., 0, 0, 0\) at \[.:., 0:2, .* came as \(1, 1, 4, 4\)"),
        (lambda b: b.astype("f8"), r"block \(., ., 0, 0\) .* came as \(1, (.), 4, 4\) float64"),
    ):
        lazy = patches.map_blocks(lie, dtype="float32", meta=np.empty((0,) * 4, "float32"))
        with pytest.raises(SourceError, match=message):
            merge(lazy, GRID).compute(scheduler="synchronous")


# -- dtypes that hold less -----------------------------------------------------------------


NARROW = [
    ("uint16", "uint8", 300, "300"),
    ("float32", "uint8", np.nan, "nan"),
    ("float32", "uint8", 255.6, "255.6"),
    ("float32", "int8", -129.0, "-129"),
    ("float64", "float32", 1e300, r"1e\+300"),
    ("float64", "float16", -70000.0, "-70000"),
    ("uint16", "float16", 65535, "65535"),
    ("float16", "uint8", np.inf, "inf"),
    ("int64", "int32", 2**31, "2147483648"),
    ("uint64", "int64", 2**63, "9223372036854775808"),
    ("uint8", "bool", 2, "2"),
    ("int16", "uint16", -1, "-1"),
]


@pytest.mark.parametrize(("source", "given", "value", "shown"), NARROW)
def test_a_value_that_input_dtype_cannot_hold_is_refused(tmp_path, source, given, value, shown):
    volume = (image("int64") % 2).astype(source)
    stored = to_zarr(volume, tmp_path / "fits.zarr")
    options = {"stride": 2, "input_dtype": given, "window": "crop"}
    seen = []

    def look(patch):
        seen.append(patch.dtype)
        return patch.astype("float32")

    ways = {
        "memory": lambda v, _: map_patches(look, v, 4, **options),
        "threads": lambda v, _: map_patches(look, v, 4, workers=2, **options),
        "lazy": lambda v, _: map_patches(look, da.from_array(v, chunks=4), 4, **options).compute(),
        "skip": lambda v, _: map_patches(look, v, 4, skip=lambda p: False, **options),
        "run": lambda v, path: run(look, path, f"{path}.out", patch=4, **options),
    }
    for name, way in ways.items():
        got = way(volume, stored)
        got = volpatch.open_volume(f"{stored}.out") if name == "run" else got
        np.testing.assert_array_equal(got, volume.astype("float32"), err_msg=name)
    assert set(seen) == {np.dtype(given)}

    volume[4, 6] = value
    bad = to_zarr(volume, tmp_path / "bad.zarr")
    message = rf"input_dtype={given} cannot hold {shown}\S*, at voxel \(4, 6\) of patch \(1, 2\)"
    for way in ways.values():
        with pytest.raises(SettingError, match=message):
            way(volume, bad)


def test_fractions_are_rounded_half_to_even_on_the_way_in(tmp_path):
    volume = np.array([[0.5, 1.5, 2.5, -0.5], [254.5, 255.4, 3.49, 3.51]], "float32")
    wanted = np.array([[0, 2, 2, 0], [254, 255, 3, 4]], "uint8")
    options = {"input_dtype": "uint8", "window": "crop"}
    source = to_zarr(volume, tmp_path / "in.zarr")
    run(functions.identity, source, tmp_path / "out.zarr", patch=2, **options)
    for got in (
        map_patches(functions.identity, volume, 2, **options),
        map_patches(functions.identity, da.from_array(volume, chunks=2), 2, **options).compute(),
        volpatch.open_volume(tmp_path / "out.zarr").values,
    ):
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, wanted)


def test_a_wider_input_dtype_is_not_looked_at_and_masked_patches_may_hold_anything():
    volume = image("uint16")
    volume[0, 0] = 300
    got = map_patches(functions.identity, volume, 4, input_dtype="float32")
    np.testing.assert_allclose(got, volume, rtol=1e-6)
    mask = np.ones(SHAPE, bool)
    mask[:2, :2] = False
    options = {"stride": 2, "window": "crop", "input_dtype": "uint8", "fill_value": 0}
    got = map_patches(functions.identity, volume, 2, edge="pad", mask=mask, **options)
    np.testing.assert_array_equal(got, np.where(mask, volume, 0))


# -- values that do not fit the result -----------------------------------------------------


def test_values_that_do_not_fit_the_result_are_counted_aloud(tmp_path):
    volume = image()
    volume[0, :3] = np.nan, 300, -2
    message = r"3 values did not fit uint8: those beyond 0 to 255 were clipped, and NaN became 0"
    options = {"stride": 4, "edge": "pad", "window": "constant", "dtype": "uint8"}
    grid = PatchGrid(SHAPE, 4, 4, edge="pad")
    wanted = np.nan_to_num(volume.clip(0, 255)).astype("uint8")

    def merged(kind):
        kind = da.from_array(np.array(kind), chunks=-1) if kind is not volume else kind
        return merge(extract(kind, grid), grid, window="constant", dtype="uint8")

    def by_hand():
        merger = Merger(grid, window="constant", dtype="uint8")
        patches = extract(volume, grid).reshape(-1, 4, 4)
        merger.add_batch(range(len(grid)), patches)
        return merger.result()

    ways = [
        lambda: map_patches(functions.identity, volume, 4, **options),
        lambda: map_patches(functions.identity, volume, 4, workers=2, **options),
        lambda: map_patches(functions.identity, da.from_array(volume), 4, **options).compute(),
        lambda: merged(volume),
        lambda: merged(volume.copy()).compute(),
        by_hand,
    ]
    for way in ways:
        with pytest.warns(ClippedWarning, match=message) as told:
            got = way()
        np.testing.assert_array_equal(got, wanted)
        assert len(told) == 1
    source = to_zarr(volume, tmp_path / "in.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = run(functions.identity, source, tmp_path / "out.zarr", patch=4, **options)
        assert report.stats.clipped == 3
        map_patches(functions.identity, np.abs(volume[2:]), 2, dtype="uint8")


# -- a grid has its own sizes --------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"edge": "shift"}, "edge"),
        ({"edge": "pad", "offset": 1}, "edge and offset"),
        ({"offset": 0}, "offset"),
        ({"stride": 2}, "stride"),
        ({"overlap": "50%"}, "overlap"),
    ],
)
def test_sizes_beside_a_grid_are_refused(options, named):
    grid = PatchGrid(SHAPE, 4, 2, edge="pad")
    for call in (extract, iter_patches):
        with pytest.raises(SettingError, match=rf"^{named} cannot be given beside a grid"):
            call(image(), grid, **options)
        call(image(), grid)
        call(image(), 4, **options)


def test_a_grid_where_sizes_are_wanted_is_refused(tmp_path):
    source = to_zarr(image(), tmp_path / "in.zarr")
    for call in (
        lambda: map_patches(functions.shade, image(), GRID),
        lambda: sample_patches(image(), GRID, 2),
        lambda: volpatch.plan(source, patch=GRID),
    ):
        with pytest.raises(GridError, match=r"takes sizes: patch=grid\.patch"):
            call()
    for wants in (lambda: coverage(SHAPE), lambda: merge(image(), 4), lambda: Merger(4)):
        with pytest.raises(GridError, match="wanted a PatchGrid"):
            wants()
