"""Corners that were wrong once: dtypes at their limits, nothing to compute, names out of order."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from tests.helpers_arrays import distinct, identity
from volpatch import (
    ClippedWarning,
    FunctionError,
    GridError,
    Merger,
    PatchGrid,
    SettingError,
    VolpatchError,
    coverage,
    extract,
    iter_patches,
    map_patches,
    merge,
    open_volume,
    run,
    sample_patches,
    to_zarr,
)


def test_a_run_whose_middle_is_skipped_still_learns_the_dtype(tmp_path):
    image = np.zeros((16, 64, 64), "uint16")
    image[:, :16, :16] = 500
    to_zarr(image, tmp_path / "a.zarr", chunks=16)
    options = {"patch": 8, "skip": 100}
    run("identity", tmp_path / "a.zarr", tmp_path / "b.zarr", **options)
    wanted = map_patches(identity, image, dtype="uint16", **options)
    np.testing.assert_array_equal(open_volume(tmp_path / "b.zarr").values, wanted)
    run(identity, tmp_path / "a.zarr", tmp_path / "c.zarr", patch=8, skip=1e6, window="crop")
    assert open_volume(tmp_path / "c.zarr").dtype == np.uint16


def test_what_the_function_returns_is_learnt_also_where_all_is_skipped():
    labels = np.zeros((2, 16, 16), "int64")
    labels[1] = 2**53 + 1
    got = map_patches(identity, labels, (8, 8), skip=1, window="crop")
    assert got.dtype == np.int64
    assert (got[1] == 2**53 + 1).all()
    dark = np.zeros((16, 16), "uint8")
    options = {"skip": 1, "finalize": lambda b: (b > 3).any(0)}
    in_memory = map_patches(
        lambda p: np.stack([p, p]), dark, 8, dtype=None, window="crop", **options
    )
    lazy = map_patches(lambda p: np.stack([p, p]), da.from_array(dark), 8, window="crop", **options)
    assert in_memory.dtype == lazy.dtype == bool
    assert in_memory.shape == lazy.shape == (16, 16)


def test_clipping_64_bit_numbers_does_not_depend_on_the_region():
    labels = np.full((8, 8), 2**53 + 1, "uint64")
    labels[7, 7] = 2**63 + 5
    with pytest.warns(ClippedWarning, match="^1 values did not fit int64"):
        got = map_patches(identity, labels, 4, window="crop", dtype="int64")
    assert got[7, 0] == 2**53 + 1
    assert got[7, 7] == 2**63 - 1
    low = np.array([[-1, 2**53 + 1]] * 4)
    with pytest.warns(ClippedWarning, match="^4 values did not fit uint64"):
        got = map_patches(identity, low, 2, reduce="max", dtype="uint64")
    assert got[0].tolist() == [0, 2**53 + 1]


def test_float16_goes_everywhere():
    volume = (distinct((9, 9), "uint8") % 50).astype("float16")
    got = map_patches(identity, volume, 4, window="crop", dtype="uint8")
    np.testing.assert_array_equal(got, volume)
    got = map_patches(identity, volume.astype("float32"), 4, input_dtype="float16", window="crop")
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, volume)


def test_what_is_empty_is_refused_or_stays_empty(tmp_path):
    image = np.ones((0, 8, 9), "float32")
    for volume in (image, da.from_array(image), xr.DataArray(image, dims=("c", "y", "x"))):
        for call in (
            lambda v: map_patches(lambda p: p.sum(0), v, (4, 4), channel_axis=0),
            lambda v: iter_patches(v, (4, 4), channel_axis=0),
            lambda v: sample_patches(v, (4, 4), 2, channel_axis=0),
        ):
            with pytest.raises(SettingError, match=r"channel_axis 0 has length 0 .* \(0, 8, 9\)"):
                call(volume)
    for volume in (image.T, da.from_array(image.T)):
        for call in (lambda v: map_patches(identity, v, 4), lambda v: extract(v, 4)):
            with pytest.raises(GridError, match="size on x must be at least 1, got 0"):
                call(volume)
    # nothing to loop over: what the function would return is known all the same
    two = lambda p: np.stack([p, p]).astype("int16")  # noqa: E731
    lazy = map_patches(two, da.from_array(image), (4, 4), window="crop")
    for got in (map_patches(two, image, (4, 4), window="crop"), lazy, lazy.compute()):
        assert (got.shape, got.dtype) == ((0, 2, 8, 9), np.int16)
    patches = extract(image, (4, 4))
    assert patches.shape == (0, 3, 4, 4, 4)
    assert merge(patches, PatchGrid((8, 9), 4)).shape == (0, 8, 9)
    with pytest.raises(FunctionError, match=r"finalize .* shape \(0, .* at least one channel"):
        map_patches(identity, image[0:0].sum(0), 4, finalize=lambda b: b[None][:0])
    grid = PatchGrid((8, 9), 4)
    for empty in (np.empty((0, 4, 4)), np.empty((0, 4)), np.empty(0)):
        with pytest.raises(
            SettingError, match=r"patches must have the shape \(1, 4, 4\).* C from 1"
        ):
            Merger(grid).add(0, empty)


def test_big_endian_patches_merge_and_extract():
    volume = distinct((8, 8)).astype(">f4")
    grid = PatchGrid((8, 8), 3, 2)
    lazy = da.from_array(volume, chunks=5)
    for patches in (extract(volume, grid), extract(lazy, grid)):
        np.testing.assert_allclose(np.asarray(merge(patches, grid)), volume, rtol=1e-6)
    merger = Merger(grid)
    for index, box in enumerate(grid):
        merger.add(index, volume[box.slices])
    np.testing.assert_allclose(merger.result(), volume, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fill_value": -1}, "fill_value -1 cannot be held by uint8.*from 0 to 255"),
        ({"fill_value": 2.5}, "fill_value 2.5 cannot be held"),
        ({"fill_value": float("nan")}, "fill_value nan cannot be held"),
        ({"fill_value": "a"}, "fill_value must be a number, got 'a'"),
        ({"pad_value": 300, "pad_mode": "constant"}, "pad_value 300 cannot be held by uint8"),
        ({"pad_value": None}, "pad_value must be a number"),
        ({"batch_size": 2.0}, "batch_size must be a whole number"),
        ({"out_channels": 0}, "out_channels must be a whole number of at least 1"),
        ({"window": lambda n: 1 / 0}, "window <lambda>.*failed: .*division by zero"),
        ({"window": lambda n: "text"}, "window <lambda>.*failed"),
        ({"patch": PatchGrid((8, 8), 3, 2)}, "takes sizes: patch=grid.patch"),
    ],
)
def test_settings_are_refused_in_words(options, message):
    volume = distinct((8, 8), "uint8")
    options = {"patch": 3, "window": "crop", "edge": "drop", "stride": 4, "fill_value": 0} | options
    with pytest.raises(VolpatchError, match=message):
        map_patches(identity, volume, **options)


@pytest.mark.parametrize(
    ("dtype", "number"),
    [
        ("uint64", 2**64 - 1),
        ("uint64", np.uint64(2**64 - 1)),
        ("uint64", 2**53 + 1),
        ("int64", 2**63 - 1),
        ("int64", -(2**63)),
        ("int64", -(2.0**63)),
        ("uint8", np.int8(127)),
    ],
)
def test_fill_and_padding_are_exact_up_to_the_ends_of_a_dtype(tmp_path, dtype, number):
    volume = np.arange(1, 12, dtype=dtype)
    options = {"patch": 4, "stride": 5, "window": "crop", "edge": "drop", "fill_value": number}
    got = map_patches(identity, volume, **options)
    assert [int(v) for v in got] == [1, 2, 3, 4, int(number), 6, 7, 8, 9, int(number), int(number)]
    padding = {"edge": "pad", "pad_mode": "constant", "pad_value": number}
    last = [batch[0] for _, batch in iter_patches(volume, 4, stride=4, **padding)][-1]
    assert [int(v) for v in last] == [9, 10, 11, int(number)]
    grid = PatchGrid((11,), 4, 4, edge="pad")
    last = extract(volume, 4, stride=4, **padding)[-1]
    assert [int(v) for v in last] == [9, 10, 11, int(number)]
    to_zarr(volume.reshape(1, 11), tmp_path / "in.zarr", chunks=4)
    options = {**options, "patch": (1, 4), "stride": (1, 5)}
    run(identity, tmp_path / "in.zarr", tmp_path / "out.zarr", **options)
    np.testing.assert_array_equal(open_volume(tmp_path / "out.zarr").values[0], got)
    merger = Merger(PatchGrid((11,), 4, 5, edge="drop"), window="crop", fill_value=number)
    for index, box in enumerate(merger.grid):
        merger.add(index, volume[box.slices])
    np.testing.assert_array_equal(merger.result(), got)
    assert grid.uncovered == 0


@pytest.mark.parametrize(
    ("dtype", "number", "message"),
    [
        ("uint64", 2**64, "cannot be held by uint64"),
        ("uint64", float(2**64), "cannot be held by uint64"),
        ("int64", 2**63, "cannot be held by int64"),
        ("int64", float(2**63), "cannot be held by int64"),
        ("int64", -(2**63) - 1, "cannot be held by int64"),
        ("float32", 1e39, r"cannot be held by float32: its largest value is 3.40282e\+38"),
        ("float32", 10**400, "cannot be held by float32"),
    ],
)
def test_fill_beyond_a_dtype_is_refused(dtype, number, message):
    for name in ("fill_value", "pad_value"):
        options = {"window": "crop", "dtype": dtype, name: number}
        with pytest.raises(SettingError, match=f"{name} .*{message}"):
            map_patches(identity, np.ones(9, dtype), 4, **options)


@pytest.mark.parametrize(
    "call",
    [lambda: merge(np.zeros((2, 2)), (8, 8)), lambda: Merger((8, 8)), lambda: coverage((8, 8))],
)
def test_a_shape_is_no_grid(call):
    with pytest.raises(GridError, match=r"wanted a PatchGrid\(shape, patch, ...\), got \(8, 8\)"):
        call()


def test_nan_rules_hold_for_merge_and_merger():
    grid = PatchGrid((8, 8), 4, 2)
    patches = np.ones((*grid.lattice, *grid.patch), "float32")
    patches[1, 2, 0, 3] = np.nan
    with pytest.raises(FunctionError, match=r"patch \(1, 2\) .* at voxel \(2, 7\)"):
        merge(patches, grid, nan_policy="raise")
    with pytest.raises(FunctionError, match=r"patch \(1, 2\)"):
        Merger(grid, nan_policy="raise").add((1, 2), patches[1, 2])


def test_merger_rounds_into_its_target():
    grid = PatchGrid((8, 8), 4, 2)
    out = np.zeros((8, 8), "uint8")
    merger = Merger(grid, out=out)
    merger.add_batch(range(len(grid)), np.full((len(grid), 4, 4), 300.7, "float32"))
    with pytest.warns(ClippedWarning, match="^64 values did not fit uint8"):
        merger.result()
    assert (out == 255).all()
    with pytest.raises(SettingError, match="out holds uint8, but dtype=uint16"):
        Merger(grid, out=out, dtype="uint16")


def test_numbers_of_any_kind_may_be_a_skip():
    volume = distinct((8, 8))
    for number in (np.float32(3), np.int64(3), volume.mean()):
        map_patches(identity, volume, 4, skip=number)


def test_a_mask_is_matched_by_the_names_of_its_axes():
    volume = xr.DataArray(distinct((12, 12)), dims=("y", "x"))
    mask = xr.DataArray(np.zeros((12, 12), bool), dims=("y", "x"))
    mask[:3, 8:] = True
    straight = map_patches(identity, volume, {"y": 4, "x": 4}, mask=mask)
    turned = map_patches(identity, volume, {"y": 4, "x": 4}, mask=mask.transpose("x", "y"))
    np.testing.assert_array_equal(straight, turned)


def test_a_mask_may_be_an_opened_volume(tmp_path):
    volume = distinct((12, 12, 12))
    mask = np.zeros((12, 12, 12), "uint8")
    mask[:4] = 1
    to_zarr(mask, tmp_path / "mask.zarr", chunks=4)
    np.testing.assert_array_equal(
        map_patches(identity, volume, 4, mask=open_volume(tmp_path / "mask.zarr")),
        map_patches(identity, volume, 4, mask=mask),
    )


def test_merging_gives_back_the_very_coordinates():
    volume = xr.DataArray(
        distinct((40, 30)),
        dims=("y", "x"),
        coords={"y": 0.29 * np.arange(40), "x": np.arange(30.0) ** 2},
    )
    grid = PatchGrid((40, 30), 8, 5)
    patches = extract(volume, grid)
    merged = merge(patches, grid)
    assert (merged - volume).shape == volume.shape
    xr.testing.assert_allclose(merged, volume, rtol=1e-6)
    turned = patches.transpose("y_patch", "x_patch", "x", "y")
    xr.testing.assert_identical(merge(turned, grid), merged)


def test_samples_match_axes_by_name():
    image = xr.DataArray(np.arange(64.0).reshape(8, 8), dims=("y", "x"))
    sizes = {"y": 1, "x": 1}
    where = xr.DataArray(np.zeros((8, 8), bool), dims=("x", "y"))
    where[5, 2] = True
    assert sample_patches(image, sizes, 1, rng=0, where=where).origins.tolist() == [[2, 5]]
    with pytest.raises(SettingError, match="transpose one of them"):
        sample_patches({"a": image, "b": image.transpose("x", "y")}, sizes, at=[(2, 5)])


def test_finalize_must_not_change_its_mind():
    sizes = iter([1, 1, 2, 2, 2, 2, 2, 2])
    with pytest.raises(FunctionError, match="it must be the same for every block"):
        map_patches(identity, distinct((64, 8)), 8, finalize=lambda b: np.stack([b] * next(sizes)))
