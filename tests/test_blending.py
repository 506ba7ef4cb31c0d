"""Blending in memory against brute force, and the exact values every patcher must get right."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext

import dask.array
import numpy as np
import pytest
import zarr
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from scipy import ndimage

import volpatch
from tests import oracles
from tests.helpers_arrays import distinct, identity
from tests.strategies import WEIGHTED, problems
from volpatch import ClippedWarning, FunctionError, GridError, PatchGrid, SettingError, map_patches
from volpatch.compute.caller import Caller
from volpatch.core.blending import BlendSpec
from volpatch.core.window import axis_shares

UNIT = 2.0**-24


@given(problems(), st.sampled_from(WEIGHTED), st.sampled_from(["float32", "float64", "uint16"]))
def test_blending_agrees_with_brute_force(grid, window, dtype):
    volume = distinct(grid.shape, dtype)

    def function(patch):
        return patch * np.float32(0.5) + np.float32(patch.flat[0])

    wanted, _ = oracles.blend(volume.astype("float64"), grid, window, function)
    got = map_patches(
        function, volume, grid.patch, stride=grid.stride, window=window, edge=grid.edge
    )
    bound = 2 * (grid.most_visits + 2) * (UNIT if got.dtype == "float32" else 2.0**-53)
    assert got.shape == volume.shape
    assert np.abs(got - wanted).max() <= bound * np.abs(wanted).max()


@given(problems(), st.sampled_from(["uint8", "int64", "float32"]))
def test_crop_takes_each_voxel_from_the_nearest_patch(grid, dtype):
    volume = distinct(grid.shape, dtype)

    def function(patch):
        return patch + patch.flat[-1]

    got = map_patches(
        function, volume, grid.patch, stride=grid.stride, window="crop", edge=grid.edge
    )
    np.testing.assert_array_equal(got, oracles.select(volume, grid, function))


@given(
    problems(), st.sampled_from([*WEIGHTED, "crop"]), st.sampled_from(["uint8", "int16", "uint16"])
)
def test_identity_gives_whole_numbers_back_exactly(grid, window, dtype):
    volume = distinct(grid.shape, dtype)
    options = {"stride": grid.stride, "window": window, "edge": grid.edge, "dtype": dtype}
    np.testing.assert_array_equal(map_patches(identity, volume, grid.patch, **options), volume)


@given(problems(), st.sampled_from(WEIGHTED))
def test_identity_gives_floats_back_within_the_stated_bound(grid, window):
    volume = distinct(grid.shape)
    got = map_patches(
        identity, volume, grid.patch, stride=grid.stride, window=window, edge=grid.edge
    )
    bound = (grid.most_visits + 2) * UNIT
    assert (np.abs(got.astype("f8") - volume) <= bound * np.abs(volume)).all()


@pytest.mark.parametrize("mode", ["reflect", "symmetric", "edge", "constant"])
@given(problems(max_ndim=2))
@settings(max_examples=30)
def test_what_hangs_over_is_what_numpy_pads(mode, grid):
    grid = PatchGrid(grid.shape, grid.patch, grid.stride, edge="pad")
    volume = distinct(grid.shape)
    seen = []

    def look(patch):
        seen.append(patch.copy())
        return patch

    map_patches(look, volume, grid.patch, stride=grid.stride, edge="pad", pad_mode=mode)
    whole = oracles.padded(volume, grid, mode)
    assert len(seen) == len(grid)
    for patch, box in zip(seen, grid, strict=True):
        np.testing.assert_array_equal(patch, whole[box.slices])


@pytest.mark.parametrize("window", [*WEIGHTED, "crop"])
@pytest.mark.parametrize("edge", ["shift", "pad"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
@pytest.mark.parametrize(
    ("shape", "patch", "stride"),
    [
        ((103, 107), 10, 5),
        ((53, 57, 21), (10, 10, 5), 5),
        ((10, 33, 18, 19), (2, 8, 4, 4), (1, 8, 2, 2)),
        ((7, 8, 9), 4, 2),
    ],
)
def test_identity_round_trip(window, edge, dtype, shape, patch, stride):
    volume = distinct(shape, dtype)
    got = map_patches(identity, volume, patch, stride=stride, window=window, edge=edge, dtype=dtype)
    if dtype == "float32" and window != "crop":
        np.testing.assert_allclose(got, volume, rtol=40 * UNIT)
    else:
        np.testing.assert_array_equal(got, volume)


@pytest.mark.parametrize("n", [64, 128])
def test_a_gaussian_does_not_dim_the_corners(n):
    volume = np.full((n + 7, n + 5), 1000, dtype="float32")
    got = map_patches(identity, volume, n, stride=n // 2, window="gaussian")
    np.testing.assert_allclose(got, volume, rtol=8 * UNIT)


def test_a_narrow_gaussian_never_divides_zero_by_zero():
    volume = distinct((300,), "float32")
    got = map_patches(identity, volume, 128, stride=64, window="gaussian:1")
    np.testing.assert_allclose(got, volume, rtol=8 * UNIT)


def test_constants_of_three_patches():
    values = iter([3.0, 6.0, 9.0])
    got = map_patches(
        lambda p: np.full_like(p, next(values)), np.zeros(6), 4, stride=1, window="constant"
    )
    assert got.tolist() == [3, 4.5, 6, 6, 7.5, 9]


def test_a_stride_that_does_not_divide_keeps_the_last_voxels():
    got = map_patches(identity, np.arange(8.0), 4, stride=3)
    np.testing.assert_allclose(got, np.arange(8), rtol=1e-15)


@pytest.mark.parametrize("window", WEIGHTED)
def test_patch_numbers_blend_like_brute_force(window):
    grid = PatchGrid((13, 11), 5, 2)
    numbers, again = iter(range(len(grid))), iter(range(len(grid)))
    volume = np.zeros(grid.shape)
    got = map_patches(lambda p: p + next(numbers), volume, 5, stride=2, window=window)
    wanted, _ = oracles.blend(volume, grid, window, lambda p: p + next(again))
    np.testing.assert_allclose(got, wanted, rtol=1e-13)


@pytest.mark.parametrize(
    ("shape", "patch", "visits"),
    [((39, 39), 20, 400), ((303, 303), 280, 576), ((5_000,), 4_000, 1_001)],
)
def test_as_many_patches_on_a_voxel_as_there_may_be_average_to_one(shape, patch, visits):
    grid = PatchGrid(shape, patch, 1)
    assert grid.most_visits == visits
    got = map_patches(np.ones_like, np.zeros(shape, "float32"), patch, stride=1)
    np.testing.assert_allclose(got, 1, rtol=1e-6)


def test_shares_of_more_than_65535_patches_on_one_voxel_add_up_to_one():
    grid = PatchGrid((81, 81, 81), 41, 1)
    assert grid.most_visits == 41**3 > 65_535
    totals = [
        sum(axis_shares(axis, "hann", range(41))[i, 40 - i] for i in range(41))
        for axis in grid.axes
    ]
    assert np.prod(totals) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize(
    ("shape", "dtype", "wanted"),
    [
        ((2 * 64 - 1,), "uint16", "float32"),  # 64 visits of values below 2**16: 2**22
        ((2 * 65 - 1,), "uint16", "float64"),
        ((2 * 128 - 1,), "int16", "float32"),  # 128 visits of values down to -2**15
        ((2 * 129 - 1,), "int16", "float64"),
        ((2 * 128 - 1,) * 2, "uint8", "float32"),  # 16,384 visits of values up to 255
        ((2 * 129 - 1,) * 2, "uint8", "float64"),
        ((2 * 64 - 1,), "float32", "float32"),  # whole numbers below 2**16 are kept in floats
        ((2 * 65 - 1,), "float32", "float64"),
        ((3,), "float64", "float64"),
        ((3,), "int32", "float64"),
        ((1,) * 5, "uint8", "float32"),
        ((1,) * 6, "uint8", "float64"),
    ],
)
def test_sums_are_float32_as_long_as_whole_numbers_stay_exact(shape, dtype, wanted):
    grid = PatchGrid(shape, tuple((n + 1) // 2 for n in shape), 1)
    kind = np.dtype(dtype)
    found = BlendSpec(grid, ("hann",) * grid.ndim, kind, kind, result_dtype=kind, dtype=kind)
    assert found.accumulator == wanted


@pytest.mark.parametrize(
    ("shape", "patch"), [((12, 13, 14), 8), ((20, 18, 19), 16), ((60, 50), 39), ((66, 66, 66), 64)]
)
def test_dense_strides_keep_whole_numbers_exact(shape, patch):
    volume = distinct(shape, "uint16")
    np.testing.assert_array_equal(
        map_patches(identity, volume, patch, stride=1, dtype="uint16"), volume
    )


def test_crop_leaves_minus_zero_big_labels_and_a_nan_next_door_alone():
    labels = np.full((9, 9), 2**63 + 1, dtype="uint64")
    np.testing.assert_array_equal(map_patches(identity, labels, 4, stride=2, window="crop"), labels)
    floats = np.full((9, 9), -0.0, dtype="float32")
    floats[4, 4] = np.nan
    got = map_patches(identity, floats, 4, stride=2, window="crop")
    np.testing.assert_array_equal(got.view("uint32"), floats.view("uint32"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("window", WEIGHTED)
def test_one_voxel_that_is_not_finite_stays_one_voxel(bad, window):
    volume = distinct((11, 12))
    volume[5, 6] = bad
    got = map_patches(identity, volume, 5, stride=2, window=window)
    assert np.argwhere(~np.isfinite(got)).tolist() == [[5, 6]]


def test_averages_round_half_to_even_and_clip():
    results = iter([254, 255])
    got = map_patches(
        lambda p: np.full_like(p, next(results)),
        np.zeros(3, "uint8"),
        2,
        stride=1,
        window="constant",
        dtype="uint8",
    )
    assert got.tolist() == [254, 254, 255]
    for value, wanted in [(300.0, 255), (-1.0, 0), (2.5, 2), (np.inf, 255), (np.nan, 0)]:
        told = nullcontext() if value == 2.5 else pytest.warns(ClippedWarning, match="^3 values")
        with told:
            got = map_patches(
                lambda p, value=value: np.full(p.shape, value),
                np.zeros(3, "uint8"),
                2,
                stride=1,
                window="constant",
                dtype="uint8",
            )
        assert got.tolist() == [wanted] * 3


def test_averaging_labels_is_never_silent():
    volume = distinct((8, 8), "uint8")
    with pytest.raises(SettingError, match=r"window='crop'.*dtype='uint8'.*[Ii]nstance ids"):
        map_patches(identity, volume, 4)
    map_patches(identity, volume, 4, window="crop")
    map_patches(identity, volume, 4, dtype="uint8")


@pytest.mark.parametrize("size", [None, 1, 3, 7, 64])
@pytest.mark.parametrize("window", ["hann", "crop"])
def test_batch_size_does_not_change_the_bits(size, window):
    volume = distinct((23, 19, 17))
    single = map_patches(lambda p: np.sqrt(p), volume, 8, stride=3, window=window)
    got = map_patches(lambda p: np.sqrt(p), volume, 8, stride=3, window=window, batch_size=size)
    np.testing.assert_array_equal(got, single)


@given(problems(), st.sampled_from(["hann", "crop", "constant"]), st.integers(2, 5))
def test_the_number_of_threads_does_not_change_the_bits(grid, window, workers):
    volume = distinct(grid.shape)
    options = {"stride": grid.stride, "window": window, "edge": grid.edge}

    def function(patch):
        return patch * np.float32(0.7) + patch.flat[0]

    alone = map_patches(function, volume, grid.patch, **options)
    together = map_patches(function, volume, grid.patch, workers=workers, **options)
    np.testing.assert_array_equal(together, alone)


def test_a_failure_in_one_of_several_threads_is_the_failure():
    volume = np.zeros((64, 8, 8), "float32")
    volume[60, 4, 4] = 1

    def fail(patch):
        if patch.max() == 1:
            raise ValueError("bright")
        return patch

    with pytest.raises(FunctionError, match=r"raised ValueError on patch \(14, 0, 0\).*bright"):
        map_patches(fail, volume, 8, workers=3)
    with pytest.raises(SettingError, match=r"workers must be a whole number of at least 1"):
        map_patches(fail, volume, 8, workers=0)
    lazy = dask.array.from_array(volume)
    with pytest.raises(SettingError, match=r"workers=2 is for arrays in memory.*num_workers=2"):
        map_patches(fail, lazy, 8, workers=2)


@given(problems(), st.sampled_from(["hann", "crop"]), st.data())
def test_a_roi_has_the_voxels_of_the_full_result(grid, window, data):
    volume = distinct(grid.shape)
    options = {"stride": grid.stride, "window": window, "edge": grid.edge}
    roi = []
    for n in grid.shape:
        start = data.draw(st.integers(0, n - 1))
        roi.append(slice(start, data.draw(st.integers(start + 1, n))))
    full = map_patches(np.sqrt, volume, grid.patch, **options)
    part = map_patches(np.sqrt, volume, grid.patch, roi=roi, **options)
    np.testing.assert_array_equal(part, full[tuple(roi)])


def test_channels_out_of_each_patch_come_before_the_patched_axes():
    volume = distinct((3, 12, 11))
    got = map_patches(lambda p: np.stack([p, -p]), volume, (5, 5), stride=2)
    assert got.shape == (3, 2, 12, 11)
    np.testing.assert_allclose(got[:, 1], -volume, rtol=8 * UNIT)
    np.testing.assert_array_equal(got[:, 0], -got[:, 1])


def test_channel_axis_is_handed_whole_to_the_function():
    volume = distinct((2, 12, 11))
    got = map_patches(lambda p: p[0] * p[1], volume, 5, stride=2, channel_axis=0, window="crop")
    np.testing.assert_array_equal(got, volume[0] * volume[1])
    last = np.moveaxis(volume, 0, -1)
    got = map_patches(
        lambda p: p.sum(1), last, 5, stride=2, channel_axis=-1, window="crop", batch_size=4
    )
    np.testing.assert_array_equal(got, volume.sum(0))


def test_finalize_sees_blended_channels_and_may_drop_them():
    volume = distinct((13, 12))

    def classes(patch):
        return np.stack([np.zeros_like(patch), patch - 50])

    got = map_patches(classes, volume, 6, stride=2, finalize=lambda b: b.argmax(0).astype("uint8"))
    assert got.dtype == np.uint8
    assert got.shape == volume.shape
    np.testing.assert_array_equal(got, volume > 50)


def test_uncovered_voxels_need_a_fill():
    volume = distinct((10, 10))
    with pytest.raises(GridError, match=r"no patch covers 36 of the 100 voxels.*fill_value=VALUE"):
        map_patches(identity, volume, 4, edge="drop", stride=4)
    got = map_patches(identity, volume, 4, edge="drop", stride=4, fill_value=-1)
    np.testing.assert_array_equal(got[:8, :8], volume[:8, :8])
    assert (got[8:] == -1).all()
    assert (got[:, 8:] == -1).all()


@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 9), st.integers(0, 5), st.data())
def test_gaps_and_offsets_are_filled_and_nothing_else(size, patch, stride, offset, data):
    edge = data.draw(st.sampled_from(["shift", "pad", "drop"]))
    try:
        grid = PatchGrid((size, size), patch, stride, offset=offset, edge=edge)
    except GridError:
        reject()
    volume = distinct(grid.shape)
    got = map_patches(
        identity, volume, patch, stride=stride, offset=offset, edge=edge, fill_value=-7.0
    )
    _, weight = oracles.blend(volume, grid, "constant")
    np.testing.assert_allclose(got, np.where(weight > 0, volume, -7), rtol=1e-5)


@pytest.mark.parametrize(
    ("filter_", "margin"),
    [
        (lambda a: ndimage.median_filter(a, 3), 1),
        (lambda a: ndimage.uniform_filter(a, 5), 2),
        (lambda a: ndimage.gaussian_filter(a, 1.0, truncate=3.0), 3),
        (lambda a: ndimage.sobel(a, 0), 1),
    ],
)
def test_crop_equals_the_filter_on_the_whole_volume(filter_, margin):
    volume = distinct((31, 29, 33), "float32")
    got = map_patches(filter_, volume, 12, overlap=2 * margin, window="crop")
    wanted = filter_(volume)
    if margin == 2:  # a running sum depends on where it began
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    else:
        np.testing.assert_array_equal(got, wanted)


def test_a_function_that_writes_into_its_input_does_not_change_the_volume():
    volume = distinct((12, 12))
    before = volume.copy()

    def spoil(patch):
        patch *= 2
        return patch

    first = map_patches(spoil, volume, 4)
    np.testing.assert_array_equal(volume, before)
    np.testing.assert_array_equal(map_patches(spoil, volume, 4), first)


@pytest.mark.parametrize("dtype", ["bool", "float16", ">u2", ">f4", "int8", "uint64"])
def test_every_numeric_dtype_goes_in_and_out(dtype):
    volume = (distinct((11, 9), "uint8") % 100).astype(dtype)
    got = map_patches(identity, volume, 4, stride=2, window="crop")
    assert got.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(got, volume)
    as_float = map_patches(lambda p: p * 1, volume, 4, input_dtype="float32")
    np.testing.assert_allclose(as_float, volume.astype("float32"), rtol=8 * UNIT)


def test_non_contiguous_arrays_are_read_right():
    volume = distinct((20, 24)).T[::2, ::-1]
    got = map_patches(identity, volume, 5, stride=3, window="crop")
    np.testing.assert_array_equal(got, volume)


def test_custom_windows_and_windows_per_axis():
    grid = PatchGrid((14, 15), 6, 2)
    volume = distinct(grid.shape, "float64")
    ramp = lambda n: np.arange(1, n + 1)  # noqa: E731
    for window in (ramp, (ramp, "hann"), ("constant", "triangle")):
        both = window if isinstance(window, tuple) else (window, window)
        wanted, _ = oracles.blend(
            volume, grid, both, np.cumsum_like if False else (lambda p: p * p.flat[0])
        )
        got = map_patches(lambda p: p * p.flat[0], volume, 6, stride=2, window=window)
        np.testing.assert_allclose(got, wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ("hamming", "window must be one of constant, hann"),
        (lambda n: np.zeros(n), "without any weight"),
        (lambda n: np.full(n, np.nan), "finite and not negative"),
        (lambda n: np.ones(n + 1), r"gave shape \(5,\), wanted \(4,\)"),
        (("crop", "hann"), "does not mix"),
        ("gaussian:-1", "sigma"),
    ],
)
def test_bad_windows_are_refused(window, message):
    with pytest.raises(SettingError, match=message):
        map_patches(identity, distinct((9, 9)), 4, window=window)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda p: None, r"returned None for patch \(0, 0\) at \[0:4, 0:4\].*numpy array"),
        (lambda p: [1, 2], "returned a builtins.list"),
        (lambda p: p[1:], r"returned shape \(3, 4\).*wanted \(4, 4\)"),
        (lambda p: p.astype(complex), "returned dtype complex"),
        (lambda p: p.sum(), "numpy array"),
        (lambda p: 1 / 0, r"raised ZeroDivisionError on patch \(0, 0\).*division by zero"),
        (lambda p: exit(0), "raised SystemExit"),
    ],
)
def test_a_bad_answer_names_the_patch(function, message):
    with pytest.raises(FunctionError, match=message):
        map_patches(function, distinct((9, 9)), 4)


def test_an_error_names_the_patch_it_came_from_and_keeps_its_cause():
    def picky(patch):
        if patch.max() > 79:
            raise ValueError("too bright")
        return patch

    volume = np.arange(81, dtype="float32").reshape(9, 9)
    with pytest.raises(
        FunctionError, match=r"patch \(3, 3\) at \[5:9, 5:9\]: too bright"
    ) as caught:
        map_patches(picky, volume, 4)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_function_must_keep_its_dtype():
    dtypes = iter(["float32", "float64"] * 99)
    with pytest.raises(FunctionError, match=r"returned dtype float64 .* wanted float32"):
        map_patches(lambda p: p.astype(next(dtypes)), distinct((9, 9)), 4)


def test_only_arrays_are_taken():
    with pytest.raises(
        SettingError, match=r"takes a numpy, dask or xarray array, .*got a builtins\.list"
    ):
        map_patches(identity, [[1.0]], 1)
    with pytest.raises(SettingError, match="complex64 is not supported"):
        map_patches(identity, np.zeros((4, 4), "complex64"), 2)


def test_a_stored_array_is_computed_lazily(tmp_path):
    values = np.random.default_rng(0).random((9, 10, 11))
    array = zarr.create_array(tmp_path / "a.zarr", data=values, chunks=(4, 5, 6))
    result = map_patches(identity, array, 4)
    assert isinstance(result, dask.array.Array)
    np.testing.assert_array_equal(result.compute(), map_patches(identity, values, 4))
    volpatch.run(identity, array, tmp_path / "out.zarr", patch=4)
    with pytest.raises(volpatch.SourceError, match="got a NumPy array; map_patches computes"):
        volpatch.run(identity, values, tmp_path / "other.zarr", patch=4)


def test_public_names_resolve():
    for name in volpatch.__all__:
        assert getattr(volpatch, name) is not None


def slanted(patch):
    """Values that depend on the whole patch, so that a misplaced patch shows."""
    return patch * np.float32(0.5) + patch.flat[0] - patch.flat[-1]


@pytest.mark.parametrize("window", ["hann", "crop"])
@pytest.mark.parametrize("skip", [None, 0.2])
def test_a_volume_of_many_rows_of_patches_is_blended_as_one_of_few(window, skip):
    volume = np.random.default_rng(1).random((2300, 3, 5)).astype(np.float32)
    volume[700:1200] *= 0.1
    options = {"patch": (64, 2, 3), "stride": (1, 1, 2), "window": window, "skip": skip}
    long = map_patches(slanted, volume, **options, fill_value=0)
    for start in (0, 1000, 2100):  # far fewer rows than are looked up at a time
        part = (slice(start, start + 150), slice(None), slice(None))
        short = map_patches(slanted, volume, **options, roi=part, fill_value=0)
        assert np.array_equal(short, long[part], equal_nan=True)


# -- calls at the same time --------------------------------------------------------------------


def test_threads_in_memory_call_a_function_one_after_the_other_unless_more_is_said():
    volume = np.random.default_rng(0).random((40, 20, 20), np.float32)
    inside = []
    buffer = np.empty((10, 10, 10), np.float32)

    def alone(patch):
        inside.append(None)
        assert len(inside) == 1
        time.sleep(0.001)
        inside.pop()
        buffer[...] = 2 * patch  # one of its own, as it is called by one thread at a time
        return buffer

    doubled = volpatch.map_patches(alone, volume, 10, workers=4)
    np.testing.assert_array_equal(doubled, volpatch.map_patches(lambda p: 2 * p, volume, 10))

    both, made_up = threading.Barrier(2), [True]

    def together(patch):
        if made_up:  # the first call tells the dtype
            made_up.clear()
        else:
            both.wait(30)
        return patch

    told = {"workers": 2, "window": "crop", "stride": 10}
    same = volpatch.map_patches(together, volume, 10, concurrent_calls=2, **told)
    np.testing.assert_array_equal(same, volume)


def test_calls_at_the_same_time_are_those_of_dask_for_a_dask_array():
    volume = dask.array.ones((8, 8), chunks=4)
    with pytest.raises(SettingError, match="concurrent_calls=3 is for arrays in memory"):
        volpatch.map_patches(lambda p: p, volume, 4, concurrent_calls=3)
    with pytest.raises(SettingError, match="concurrent_calls must be a whole number"):
        volpatch.map_patches(lambda p: p, np.ones((8, 8)), 4, concurrent_calls=0)


@pytest.mark.parametrize("reach", [None, 2])
def test_patches_can_be_views_that_cannot_be_written_to(reach):
    volume = np.random.default_rng(0).integers(0, 999, (2, 14, 15, 16)).astype(np.uint16)
    told = {"patch": (6,) * 3} if reach is None else {"reach": (reach,) * 3}
    seen = []

    def look(patch):
        seen.append(np.shares_memory(patch, volume) and not patch.flags.writeable)
        return patch + np.float32(1)

    result = map_patches(look, volume, copy=False, **told)
    assert all(seen[-8:])
    np.testing.assert_array_equal(result, map_patches(lambda p: p + np.float32(1), volume, **told))

    def write(patch):
        patch[...] = 0
        return patch

    with pytest.raises(FunctionError, match="read-only"):
        map_patches(write, volume, copy=False, dtype="uint16", **told)
    assert not map_patches(write, volume, dtype="uint16", **told).any()


def test_patches_that_are_no_part_of_the_volume_are_copies():
    volume = np.random.default_rng(0).random((9, 10, 11), np.float32)
    for told in ({"edge": "pad"}, {"input_dtype": "float64"}, {"batch_size": 2}):
        alike = map_patches(lambda p: p * 2, volume, 4, copy=False, **told)
        np.testing.assert_array_equal(alike, map_patches(lambda p: p * 2, volume, 4, **told))


def test_only_a_buffer_that_others_may_write_to_is_copied_before_the_next_call():
    grid = PatchGrid((8, 8), 4, 2)
    blending = BlendSpec(grid, ("constant",) * 2, np.dtype("f4"), np.dtype("f4"))
    batch, kept = np.ones((1, 1, 4, 4), np.float32), np.zeros((4, 4), np.float32)
    made = []

    def fresh(patch):
        made.append(id(result := patch + 1))
        return result

    def call(function):
        caller = Caller(function, threading.Lock())
        return caller(blending, batch, lambda i: ((0, 0), grid[0]))[0]

    assert not np.shares_memory(call(lambda patch: kept), kept)
    assert not np.shares_memory(call(lambda patch: kept[:]), kept)
    assert np.shares_memory(call(lambda patch: patch), batch)
    found = call(fresh)
    assert id(found.base) == made[0]
