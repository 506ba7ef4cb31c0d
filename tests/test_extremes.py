"""Values and weights at the ends of what floats hold, on every path."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers_arrays import distinct, identity
from tests.strategies import WEIGHTED
from volpatch import (
    FunctionError,
    Merger,
    PatchGrid,
    SettingError,
    extract,
    map_patches,
    merge,
    open_volume,
    plan,
    run,
    to_zarr,
)
from volpatch.core.grid import AxisGrid
from volpatch.core.window import check_window


def narrow(n):
    """A Gaussian of sigma n / 24; at 4 sigma from the centre float32 cannot hold products."""
    return np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) * 24 / n) ** 2)


def late(n):
    """Zero at its end, as for a function that goes wrong there."""
    return np.r_[np.ones(n - 1), 0]


@pytest.mark.parametrize("window", ["gaussian:1", narrow])
@pytest.mark.parametrize("options", [{}, {"nan_policy": "omit"}, {"skip": -1e9}])
def test_infinity_stays_where_it_is_under_a_narrow_window(window, options):
    volume = distinct((48, 36))
    volume[13, 13], volume[0, 0], volume[30, 35], volume[40, 12] = np.inf, -np.inf, np.inf, -np.inf
    got = map_patches(identity, volume, 24, stride=12, window=window, **options)
    np.testing.assert_allclose(got, volume, rtol=1e-6)


@pytest.mark.parametrize("window", [*WEIGHTED, "gaussian:0.3", narrow])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_half_of_the_largest_float_stays_finite(window, dtype):
    limits = np.finfo(dtype)
    volume = np.full((13, 14), limits.max / 2, dtype)
    volume[::3] *= -1
    for stride in (1, 3):
        for more in ({}, {"nan_policy": "omit"}):
            got = map_patches(identity, volume, 5, stride=stride, window=window, **more)
            np.testing.assert_allclose(got, volume, rtol=40 * limits.eps)


@pytest.mark.parametrize("window", WEIGHTED)
@pytest.mark.parametrize(
    ("shape", "patch", "stride"), [((35, 33), 16, 1), ((13, 11, 12), 6, 1), ((20, 17, 18), 8, 4)]
)
def test_whole_numbers_are_exact_up_to_the_bound(shape, patch, stride, window):
    grid = PatchGrid(shape, patch, stride)
    visits = [axis.most_visits for axis in grid.axes]
    bound = 2**52 // (int(np.prod(visits)) + sum(visits) + grid.ndim) - 1
    rng = np.random.default_rng(0)
    volume = rng.integers(bound - 1000, bound + 1, shape)
    volume[rng.random(shape) < 0.3] *= -1
    got = map_patches(identity, volume, patch, stride=stride, window=window, dtype="int64")
    np.testing.assert_array_equal(got, volume)


@given(st.integers(1, 30), st.data())
def test_a_voxel_without_weight_is_found_as_by_looking_at_each(size, data):
    edge = data.draw(st.sampled_from(["shift", "pad", "drop"]))
    patch = data.draw(st.integers(1, size if edge == "shift" else size + 4))
    stride = data.draw(st.integers(1, patch + 3))
    first = data.draw(st.integers(0, min(1, patch - 1)))
    stop = data.draw(st.integers(first + 1, patch))
    axis = AxisGrid(size, patch, stride, edge)
    weights = np.zeros(patch)
    weights[first:stop] = 1
    under, weight = np.zeros(size + patch, bool), np.zeros(size + patch)
    for start in axis.starts:
        under[start : start + patch] = True
        weight[start : start + patch] += weights
    bare = np.flatnonzero(under[:size] & (weight[:size] == 0))
    if len(bare):
        with pytest.raises(SettingError, match=r"leaves voxel (\d+) of axis") as caught:
            check_window(axis, lambda n: weights)
        assert int(str(caught.value).split("voxel ")[1].split()[0]) in bare
    else:
        check_window(axis, lambda n: weights)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (lambda n: np.zeros(n), "leaves every voxel without any weight"),
        (lambda n: np.r_[0.0, np.ones(n - 1)], "leaves voxel 0 of y without any weight"),
        (lambda n: np.r_[np.ones(n - 1), 0.0], "leaves voxel 8 of y without any weight"),
        (lambda n: np.r_[1.0, 0.0, np.ones(n - 2)], "is 0 at place 1, between"),
        (lambda n: np.full(n, 1e308), "sum to infinity"),
    ],
)
def test_windows_without_weight_are_refused_on_every_path(tmp_path, window, message):
    image, grid = distinct((9, 9)), PatchGrid((9, 9), 4, 2)
    to_zarr(image, tmp_path / "in.zarr", chunks=8)
    patches, options = extract(image, grid), {"stride": 2, "window": window}
    lazy = da.from_array(image, chunks=5)
    for call in (
        lambda: map_patches(pytest.fail, image, 4, **options),
        lambda: map_patches(pytest.fail, image, 4, roi=np.s_[4:5, 4:5], **options),
        lambda: map_patches(pytest.fail, image, 4, mask=np.ones((9, 9)), **options),
        lambda: map_patches(pytest.fail, lazy, 4, **options),
        lambda: merge(patches, grid, window=window),
        lambda: merge(da.from_array(patches), grid, window=window),
        lambda: Merger(grid, window=window),
        lambda: plan(tmp_path / "in.zarr", patch=4, **options),
        lambda: run(pytest.fail, tmp_path / "in.zarr", tmp_path / "out.zarr", patch=4, **options),
    ):
        with pytest.raises(SettingError, match=message):
            call()


def test_ends_of_weight_zero_let_nothing_in(tmp_path):
    """What hangs over ends beyond the border, so each voxel has weight from another patch."""
    image = distinct((11, 9))
    options = {"stride": 2, "edge": "pad", "window": late}

    def spoil(value):
        def function(patch):
            result = patch.copy()
            result[-1:], result[:, -1:] = value, value
            return result

        return function

    wanted = map_patches(spoil(0), image, 4, **options)
    np.testing.assert_allclose(wanted, image, rtol=1e-6)
    to_zarr(image, tmp_path / "in.zarr", chunks=8)
    for value in (np.inf, -np.inf, np.nan, 1e30):
        function = spoil(value)
        for more in (
            {},
            {"nan_policy": "omit"},
            {"nan_policy": "raise"},
            {"mask": np.ones((11, 9))},
        ):
            got = map_patches(function, image, 4, **options, **more)
            np.testing.assert_array_equal(got, wanted)
        lazy = map_patches(function, da.from_array(image, chunks=5), 4, **options)
        np.testing.assert_array_equal(lazy.compute(), wanted)
    run(spoil(np.nan), tmp_path / "in.zarr", tmp_path / "out.zarr", patch=4, **options)
    np.testing.assert_array_equal(open_volume(tmp_path / "out.zarr").values, wanted)
    with pytest.raises(FunctionError, match=r"patch \(0, 0\) .* at voxel \(0, 0\)"):
        map_patches(lambda p: p * np.nan, image, 4, nan_policy="raise", **options)


@pytest.mark.parametrize("window", ["hann", "crop"])
@pytest.mark.parametrize("grid", [PatchGrid((10, 11), 4, 5), PatchGrid((12, 13), 5, 3)])
def test_a_last_patch_that_is_pulled_back_is_the_same_on_every_path(tmp_path, grid, window):
    image = distinct(grid.shape)
    options = {"stride": grid.stride, "window": window, "fill_value": -1}

    def function(patch):
        return patch * np.float32(0.5) + patch.flat[0]

    wanted = map_patches(function, image, grid.patch, **options)
    for chunks in (1, 4, 7):
        lazy = map_patches(function, da.from_array(image, chunks=chunks), grid.patch, **options)
        np.testing.assert_array_equal(lazy.compute(), wanted)
    patches = extract(image, grid)
    made = patches * np.float32(0.5) + patches[..., :1, :1]
    np.testing.assert_array_equal(merge(made, grid, window=window, fill_value=-1), wanted)
    lattice = da.from_array(made, chunks=(1, 1, *grid.patch))
    np.testing.assert_array_equal(
        merge(lattice, grid, window=window, fill_value=-1).compute(), wanted
    )
    merger = Merger(grid, window=window, fill_value=-1)
    for index, box in enumerate(grid):
        merger.add(index, function(image[box.slices]))
    np.testing.assert_array_equal(merger.result(), wanted)
    to_zarr(image, tmp_path / "in.zarr", chunks=4)
    words = {**options, "patch": grid.patch, "chunks": (4, 4), "region": (4, 4)}
    run(function, tmp_path / "in.zarr", tmp_path / "out.zarr", **words)
    np.testing.assert_array_equal(open_volume(tmp_path / "out.zarr").values, wanted)
    uncovered = np.ones(grid.shape, bool)
    for box in grid:
        uncovered[box.slices] = False
    np.testing.assert_array_equal(wanted == -1, uncovered)


def test_a_positive_weight_counts_however_far_it_lies_below_the_largest():
    def steep(n):
        return np.r_[np.full(n - 1, 1e-300), 1e300]

    def floored(n):
        return np.r_[np.full(n - 1, 2.0**-20), 1.0]

    image = distinct((9, 9))
    got = map_patches(identity, image, 4, stride=2, window=steep)
    np.testing.assert_array_equal(got, map_patches(identity, image, 4, stride=2, window=floored))
