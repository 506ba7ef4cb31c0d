"""Skipped patches, omitted NaNs and other reductions, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers_arrays import distinct, identity
from tests.oracles import padded
from tests.strategies import WEIGHTED, problems
from volpatch import FunctionError, Merger, PatchGrid, SettingError, map_patches
from volpatch.core.window import sample


def brute(volume, grid, window, kept, function=identity, reduce="mean", omit=False):
    """Result where there is one, NaN elsewhere; and the voxels touched by a hole."""
    source = padded(volume.astype("f8"), grid)
    weight_of = np.ones(())
    for n in grid.patch:
        weight_of = np.multiply.outer(weight_of, sample(window, n))
    total, weight = np.zeros(source.shape), np.zeros(source.shape)
    best = np.full(source.shape, np.nan)
    touched = np.zeros(source.shape, bool)
    for number, box in enumerate(grid):
        here = box.slices
        if not kept[number]:
            touched[here] = True
            continue
        value = function(source[here].copy())
        good = ~np.isnan(value) if omit else np.ones(value.shape, bool)
        touched[here] |= ~good
        total[here] += np.where(good, weight_of * value, 0)
        weight[here] += np.where(good, weight_of, 0)
        pick = np.fmax if reduce == "max" else np.fmin
        best[here] = np.where(good, pick(best[here], value), best[here])
    inside = tuple(slice(0, n) for n in grid.shape)
    with np.errstate(invalid="ignore"):
        result = {"mean": total / weight, "sum": np.where(weight > 0, total, np.nan)}.get(
            reduce, best
        )
    return result[inside], touched[inside]


def options_of(grid, window):
    return {"stride": grid.stride, "window": window, "edge": grid.edge}


@given(problems(), st.sampled_from(WEIGHTED), st.data())
def test_a_mask_changes_only_what_a_hole_touches(grid, window, data):
    volume = distinct(grid.shape)
    mask = data.draw(st.integers(0, 2**31).map(lambda s: np.random.default_rng(s))).random(
        grid.shape
    ) < data.draw(st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]))
    kept = [
        mask[
            tuple(
                slice(a, min(b, n)) for a, b, n in zip(box.start, box.stop, grid.shape, strict=True)
            )
        ].any()
        for box in grid
    ]
    wanted, touched = brute(volume, grid, window, kept)
    called = []
    got = map_patches(
        lambda p: (called.append(1), p)[1],
        volume,
        grid.patch,
        mask=mask,
        fill_value=-5.0,
        **options_of(grid, window),
    )
    assert len(called) == max(1, sum(kept))  # one made-up call where all is skipped
    full = map_patches(identity, volume, grid.patch, **options_of(grid, window))
    np.testing.assert_array_equal(got[~touched], full[~touched])
    np.testing.assert_allclose(got, np.where(np.isnan(wanted), -5, wanted), rtol=1e-5)


@given(problems(max_ndim=2), st.sampled_from([*WEIGHTED, "crop"]), st.integers(0, 200))
def test_skip_by_content_gives_the_same_as_any_region(grid, window, limit):
    volume = distinct(grid.shape)
    whole = map_patches(
        np.sqrt, volume, grid.patch, skip=float(limit), fill_value=-1, **options_of(grid, window)
    )
    again = map_patches(
        np.sqrt,
        volume,
        grid.patch,
        skip=lambda p: p.max() < limit,
        fill_value=-1,
        batch_size=3,
        **options_of(grid, window),
    )
    np.testing.assert_array_equal(whole, again)
    half = [slice(n // 2, n) for n in grid.shape]
    part = map_patches(
        np.sqrt,
        volume,
        grid.patch,
        skip=float(limit),
        fill_value=-1,
        roi=half,
        **options_of(grid, window),
    )
    np.testing.assert_array_equal(part, whole[tuple(half)])


@given(problems(max_ndim=2), st.sampled_from(WEIGHTED), st.integers(0, 2**31))
def test_omitted_nans_are_made_up_for_by_the_neighbours(grid, window, seed):
    volume = distinct(grid.shape)
    rng = np.random.default_rng(seed)
    holes = [rng.random(grid.patch) < 0.3 for _ in range(len(grid))]

    def spoiled():
        numbers = iter(range(len(grid)))
        return lambda p: np.where(holes[next(numbers)], np.nan, p).astype(p.dtype)

    wanted, touched = brute(volume, grid, window, [True] * len(grid), spoiled(), omit=True)
    got = map_patches(spoiled(), volume, grid.patch, nan_policy="omit", **options_of(grid, window))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    full = map_patches(identity, volume, grid.patch, **options_of(grid, window))
    np.testing.assert_array_equal(got[~touched], full[~touched])


@given(problems(max_ndim=2), st.sampled_from(["max", "min", "sum"]), st.integers(0, 99))
def test_other_reductions(grid, reduce, seed):
    volume = distinct(grid.shape)

    def shuffled():
        rng = np.random.default_rng(seed)
        return lambda p: rng.permutation(p.ravel()).reshape(p.shape)

    wanted, _ = brute(volume, grid, "constant", [True] * len(grid), shuffled(), reduce=reduce)
    got = map_patches(
        shuffled(), volume, grid.patch, stride=grid.stride, edge=grid.edge, reduce=reduce
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_reductions_of_whole_numbers_need_no_dtype():
    volume = distinct((9, 9), "uint8")
    assert map_patches(identity, volume, 4, stride=2, reduce="max").dtype == np.uint8
    np.testing.assert_array_equal(map_patches(identity, volume, 4, stride=2, reduce="min"), volume)
    total = map_patches(np.ones_like, volume, 4, stride=2, reduce="sum")
    assert total.dtype == np.uint64
    assert total[4, 4] == 4


def test_crop_with_holes_takes_the_nearest_patch_that_is_there():
    volume = distinct((40,))
    grid = PatchGrid(40, 8, 4)
    numbers = iter(range(len(grid)))

    def function(p):
        return p * 0 + next(numbers)

    whole = map_patches(function, volume, 8, stride=4, window="crop")
    mask = np.ones(40, bool)
    mask[12:20] = False  # patch 3 alone lies inside of it
    numbers = iter([0, 1, 2, 4, 5, 6, 7, 8])
    got = map_patches(function, volume, 8, stride=4, window="crop", mask=mask)
    changed = np.flatnonzero(whole != got)
    assert changed.tolist() == [14, 15, 16, 17]
    assert got[14:18].tolist() == [2, 2, 4, 4]


def test_nan_rules():
    volume = distinct((12, 12))
    volume[5, 6] = np.nan
    with pytest.raises(FunctionError, match=r"a NaN came back .* at voxel \(5, 6\).*omit"):
        map_patches(identity, volume, 5, nan_policy="raise")
    got = map_patches(identity, volume, 5, nan_policy="omit")
    assert np.argwhere(np.isnan(got)).tolist() == [[5, 6]]
    got = map_patches(identity, volume, 5, nan_policy="omit", window="crop", fill_value=0)
    assert got[5, 6] == 0
    with pytest.raises(SettingError, match="nan_policy must be one of propagate, omit, raise"):
        map_patches(identity, volume, 5, nan_policy="ignore")


def test_a_coarser_mask_is_stretched_over_the_volume():
    volume = distinct((16, 16))
    coarse = np.array([[True, False], [False, False]])
    fine = np.kron(coarse, np.ones((8, 8), bool))
    options = {"stride": 4, "fill_value": 0}
    np.testing.assert_array_equal(
        map_patches(identity, volume, 4, mask=coarse, **options),
        map_patches(identity, volume, 4, mask=fine, **options),
    )


def test_channels_share_the_holes_and_finalize_still_works():
    volume = distinct((16, 16))
    mask = np.zeros((16, 16), bool)
    mask[:6] = True
    got = map_patches(
        lambda p: np.stack([p, p * 0 + 1]),
        volume,
        4,
        mask=mask,
        finalize=lambda b: (b[0] > b[1]).astype("uint8"),
        fill_value=9,
    )
    assert (got[:4] == (volume > 1)[:4]).all()
    assert (got[9:] == 9).all()


def test_ties_go_to_the_earlier_patch_in_whatever_order_they_are_added():
    grid, rng = PatchGrid((9, 10), (4, 3), 1, edge="pad"), np.random.default_rng(3)
    patches = np.empty((len(grid), *grid.patch))
    patches[:] = np.arange(len(grid))[:, None, None]
    patches[rng.random(patches.shape) < 0.3] = np.nan
    wanted = np.full(grid.shape, np.nan)
    nearest = np.full(grid.shape, np.inf)
    for number, box in enumerate(grid):
        for inside in np.ndindex(grid.patch):
            voxel = tuple(np.add(box.start, inside))
            away = sum((2 * i - p + 1) ** 2 for i, p in zip(inside, grid.patch, strict=True))
            there = voxel[0] < 9 and voxel[1] < 10 and not np.isnan(patches[number][inside])
            if there and away < nearest[voxel]:
                wanted[voxel], nearest[voxel] = patches[number][inside], away
    for order in (np.arange(len(grid)), np.arange(len(grid))[::-1], rng.permutation(len(grid))):
        merger = Merger(grid, window="crop", nan_policy="omit")
        for some in np.array_split(order, 7):
            merger.add_batch(some.tolist(), patches[some])
        np.testing.assert_array_equal(merger.result(), wanted)


def nan_where(number):
    """Two channels; the second, or both, have no value where the patch is below a number."""
    return lambda p: np.stack(
        [np.where(p < number - 20, np.nan, p), np.where(p < number, np.nan, -p)]
    )


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"window": "hann", "nan_policy": "omit"}, True),
        ({"window": "crop", "nan_policy": "omit"}, True),
        ({"reduce": "max", "nan_policy": "omit"}, True),
        ({"reduce": "min", "nan_policy": "omit"}, True),
        ({"reduce": "sum", "nan_policy": "omit"}, True),
        ({"window": "hann"}, False),
        ({"window": "crop"}, False),
    ],
)
def test_finalize_sees_nan_where_a_channel_has_no_value(options, missing):
    volume = distinct((13, 12))
    seen = []

    def finalize(block):
        seen.append(block.copy())
        return np.where(np.isnan(block[1]), 7, block[0] > 0).astype("uint8")

    # 13 x 12 voxels under patches of 4, 5 apart: some voxels have no patch
    grid = {"stride": 5, "edge": "drop", "fill_value": 9}
    got = map_patches(nan_where(60), volume, 4, finalize=finalize, **grid, **options)
    covered = np.zeros((13, 12), bool)
    for box in PatchGrid((13, 12), 4, 5, edge="drop"):
        covered[box.slices] = True
    bare = ~covered | ((volume < 40) & missing)
    block = np.concatenate(seen[1:], axis=1)  # the first is a patch, to learn the dtype
    for channel, limit in enumerate((40, 60)):
        np.testing.assert_array_equal(np.isnan(block[channel]), ~covered | (volume < limit))
    np.testing.assert_array_equal(got == 9, bare)
    np.testing.assert_array_equal(got == 7, (volume < 60) & ~bare)


def test_finalize_sees_zero_where_whole_numbers_are_missing():
    volume = distinct((8, 12), "uint8")
    mask = np.ones((8, 12), bool)
    mask[:, 8:] = False
    blocks = []
    got = map_patches(
        identity,
        volume,
        4,
        stride=4,
        window="crop",
        mask=mask,
        fill_value=-1,
        finalize=lambda b: (blocks.append(b.copy()), b.astype("int16"))[1],
    )
    assert (blocks[-1][:, 8:] == 0).all()
    assert (got[:, 8:] == -1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.ones((3, 3, 3))}, r"the mask has shape \(3, 3, 3\).*\(9, 9\) voxels"),
        ({"mask": np.ones((10, 9))}, r"as long or shorter"),
        ({"skip": "dark"}, "skip must be a function of a patch, or a number"),
        ({"reduce": "median"}, "reduce must be one of mean, sum, max, min"),
        ({"reduce": "max", "window": "hann"}, "weighs all values alike"),
        ({"stride": 2.5}, "whole number"),
        ({"overlp": 3}, "did you mean 'overlap'"),
    ],
)
def test_settings_that_cannot_be(options, message):
    from volpatch import VolpatchError

    with pytest.raises(VolpatchError, match=message):
        map_patches(identity, distinct((9, 9)), 4, **options)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_nan_is_no_value_at_or_above_a_number(dtype):
    volume = np.zeros((4, 16), dtype)
    volume[0, 0] = volume[0, 6] = np.nan
    volume[1, 4:8] = np.nan
    volume[2, 6], volume[3, 9] = 5, 1
    called = []

    def note(patch):
        called.append(patch.copy())
        return patch

    got = map_patches(note, volume, 4, stride=4, skip=1, fill_value=-1)
    assert [np.nanmax(patch) for patch in called] == [5, 1]
    assert (got[:, :4] == -1).all()
    assert (got[:, 12:] == -1).all()
    np.testing.assert_array_equal(got[:, 4:12], volume[:, 4:12])
    with pytest.raises(SettingError, match="skip is NaN, and no value is at or above it"):
        map_patches(note, volume, 4, skip=float("nan"))


def test_a_skip_that_raises_is_named():
    with pytest.raises(FunctionError, match="skip raised ZeroDivisionError"):
        map_patches(identity, distinct((9, 9)), 4, skip=lambda p: 1 / 0)
