"""Windows and shares: the exact values, and that all shares of a voxel sum to one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.strategies import axis_grids
from volpatch import SettingError, VolpatchError
from volpatch.core.grid import AxisGrid
from volpatch.core.window import FLOOR, WINDOWS, axis_shares, sample, windows_per_axis

WEIGHTED = [w for w in WINDOWS if w != "crop"]


@pytest.mark.parametrize(
    ("window", "n", "weights"),
    [
        ("hann", 4, [0.34549, 0.90451, 0.90451, 0.34549]),
        ("hann", 5, [0.25, 0.75, 1, 0.75, 0.25]),
        ("triangle", 4, [0.25, 0.75, 0.75, 0.25]),
        ("triangle", 5, [0.2, 0.6, 1, 0.6, 0.2]),
        ("gaussian", 5, [0.00598, 0.27804, 1, 0.27804, 0.00598]),
        ("constant", 3, [1, 1, 1]),
        ("gaussian:2", 3, [math.exp(-1 / 8), 1, math.exp(-1 / 8)]),
    ],
)
def test_windows_have_the_stated_values(window, n, weights):
    np.testing.assert_allclose(sample(window, n), weights, atol=5e-6)


@given(st.sampled_from([*WEIGHTED, "crop", "gaussian:0.3", "gaussian:100"]), st.integers(1, 300))
def test_windows_are_symmetric_positive_and_floored(window, n):
    weights = sample(window, n)
    assert weights.shape == (n,)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, weights[::-1], rtol=1e-9)
    assert weights.min() >= FLOOR * weights.max() > 0
    assert weights.argmax() in ((n - 1) // 2, n // 2) or window in ("constant", "crop")
    assert (np.diff(weights[: (n + 1) // 2]) >= -1e-15).all()


@pytest.mark.parametrize("window", WEIGHTED)
def test_a_window_of_one_voxel_is_one(window):
    assert sample(window, 1).tolist() == [1.0]


def test_a_hann_is_the_middle_of_the_textbook_one_so_it_never_reaches_zero():
    for n in (1, 2, 7, 64):
        np.testing.assert_allclose(sample("hann", n), np.hanning(n + 2)[1:-1], atol=1e-15)


def test_a_narrow_gaussian_is_floored_where_it_would_underflow():
    weights = sample("gaussian:1", 128)
    assert weights[0] == weights[40] == FLOOR * weights.max()
    assert weights[63] > 0.8


# -- shares --------------------------------------------------------------------------------


def summed(axis, window):
    """Shares of all patches, added voxel by voxel over the padded axis."""
    total = np.zeros(axis.padded)
    shares = axis_shares(axis, window, range(axis.count))
    for start, share in zip(axis.starts, shares, strict=True):
        total[start : start + axis.patch] += share
    return total


@given(axis_grids(), st.sampled_from([*WEIGHTED, "gaussian:0.4", lambda n: np.arange(1, n + 1)]))
def test_shares_of_every_covered_voxel_sum_to_one(axis, window):
    wanted = np.zeros(axis.padded)
    for start in axis.starts:
        wanted[start : start + axis.patch] = 1
    wanted[axis.size :] = 0
    np.testing.assert_allclose(summed(axis, window), wanted, atol=1e-14)


@given(axis_grids(), st.sampled_from(WEIGHTED), st.data())
def test_shares_do_not_depend_on_the_range_asked_for(axis, window, data):
    assume(axis.count)
    first = data.draw(st.integers(0, axis.count - 1))
    last = data.draw(st.integers(first + 1, axis.count))
    whole = axis_shares(axis, window, range(axis.count))
    part = axis_shares(axis, window, range(first, last))
    assert part.tobytes() == whole[first:last].tobytes()


@given(axis_grids(gaps=False), st.sampled_from(WEIGHTED))
def test_shares_are_the_window_over_the_sum_of_all_windows_there(axis, window):
    assume(axis.count)
    weights = sample(window, axis.patch)
    shares = axis_shares(axis, window, range(axis.count))
    for number, start in enumerate(axis.starts):
        for j in range(min(axis.patch, axis.size - start)):
            there = [s for s in axis.starts if s <= start + j < s + axis.patch]
            total = math.fsum(weights[start + j - s] for s in there)
            assert shares[number, j] == pytest.approx(weights[j] / total, rel=1e-13)


def test_a_patch_that_hangs_over_has_no_share_outside():
    axis = AxisGrid(11, 4, 2, "pad")
    shares = axis_shares(axis, "hann", range(axis.count))
    assert shares[-1, 3] == 0
    assert (shares[-1, :3] > 0).all()


def test_no_patches_have_no_shares():
    assert axis_shares(AxisGrid(3, 4, 2, "drop"), "hann", range(0)).shape == (0, 4)


@given(axis_grids(gaps=False))
def test_crop_parts_tile_what_the_patches_cover(axis):
    assume(axis.count)
    parts = [axis.own(i) for i in range(axis.count)]
    assert parts[0][0] == axis.starts[0]
    assert parts[-1][1] == axis.starts[-1] + axis.patch
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    assert all(s <= a <= b <= s + axis.patch for s, (a, b) in zip(axis.starts, parts, strict=True))


def test_crop_parts_of_odd_overlaps_and_of_a_shifted_last_patch():
    odd = AxisGrid(12, 5, 2)
    assert [odd.own(i) for i in range(odd.count)] == [(0, 4), (4, 6), (6, 8), (8, 9), (9, 12)]
    shifted = AxisGrid(10, 4, 3)
    assert [shifted.own(i) for i in range(3)] == [(0, 4), (4, 7), (7, 10)]


# -- windows of one's own ------------------------------------------------------------------


def test_a_callable_is_asked_for_its_weights():
    assert sample(lambda n: range(1, n + 1), 4).tolist() == [1, 2, 3, 4]
    assert sample(np.hamming, 3).tolist() == np.hamming(3).tolist()
    # what is positive counts for something, however little, and sums stay finite
    assert sample(lambda n: [0, 1e-300, 1, 1e-3, 0, 0], 6).tolist() == [0, 2**-20, 1, 1e-3, 0, 0]
    assert sample(lambda n: [5e307, 1e308, 5e-324], 3).max() < 2
    assert sample(lambda n: [5e-324] * 3, 3).tolist() == [0.5] * 3
    for sigma in ("0.001", "1e-200", "5e-324"):
        narrow = sample(f"gaussian:{sigma}", 4)
        assert (narrow / narrow.max()).tolist() == [2**-20, 1, 1, 2**-20]


def broken(n):
    return np.full(n, np.inf)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (lambda n: np.ones(n - 1), r"gave shape \(4,\), wanted \(5,\)"),
        (lambda n: 1.0, r"gave shape \(\), wanted \(5,\)"),
        (lambda n: -np.ones(n), "must be finite and not negative"),
        (broken, r"window broken\(5\) must be finite and not negative"),
        (lambda n: np.full(n, np.nan), "must be finite and not negative"),
        (lambda n: np.full(n, 1e308), r"sum to infinity, the largest is 1e\+308; divide them"),
        (lambda n: np.zeros(n), r"leaves every voxel without any weight: all are 0"),
        (lambda n: abs(np.arange(n) - 2), "is 0 at place 2, between positive weights; only at"),
    ],
)
def test_weights_that_cannot_be_are_refused(window, message):
    with pytest.raises(SettingError, match=message):
        sample(window, 5)


def test_a_voxel_without_any_weight_is_refused():
    def without_rim(n):
        return np.r_[0, np.ones(n - 2), 0]

    with pytest.raises(SettingError, match=r"leaves voxel 0 of x without any weight: .* 4 weights"):
        axis_shares(AxisGrid(10, 4, 2, name="x"), without_rim, range(4))


@pytest.mark.parametrize(
    ("window", "message"),
    [
        ("hamming", "window must be one of constant, hann, triangle, gaussian, crop.*'hamming'"),
        ("Hann", "window must be one of"),
        ("", "window must be one of"),
        (3, "window must be one of.*3"),
        ("hann:3", "window must be one of.*'hann:3'"),
        ("gaussian:0", "sigma of window 'gaussian:0' must be a positive number"),
        ("gaussian:inf", "sigma"),
        ("gaussian:nan", "sigma"),
        ("gaussian:wide", "sigma"),
        (("hann", "crop"), "crop' selects one patch per voxel and does not mix"),
        (("hann",), "window has 1 values"),
    ],
)
def test_unknown_windows_are_refused(window, message):
    with pytest.raises(VolpatchError, match=message):
        windows_per_axis(window, 2)


def test_one_window_serves_all_axes_or_each_has_its_own():
    assert windows_per_axis("crop", 3) == ("crop",) * 3
    assert windows_per_axis(["hann", np.hanning], 2) == ("hann", np.hanning)
    assert windows_per_axis("gaussian:8", 2) == ("gaussian:8",) * 2
