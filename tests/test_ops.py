"""The ready-made operations against scipy.ndimage on the whole volume, and what they refuse."""

import inspect
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from volpatch.core.errors import SettingError
from volpatch.functions import registry as ops
from volpatch.functions.filters.pointwise import identity, normalize
from volpatch.functions.filters.rank import median
from volpatch.functions.filters.smooth import gaussian

DTYPES = ["uint8", "uint16", "int16", "int32", ">u2", "float32", "float64"]


def volume(dtype, shape=(13, 17, 19), seed=0):
    return np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)


def same(got, expected):
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


def test_identity_gives_back_what_it_got():
    patch = volume("uint16")
    assert identity(patch) is patch


@pytest.mark.parametrize("dtype", DTYPES)
def test_gaussian_is_scipys_in_float32(dtype):
    patch = volume(dtype)
    expected = ndimage.gaussian_filter(patch.astype(np.float32), (1, 0.5, 2), truncate=3)
    same(gaussian(patch, sigma=[1, 0.5, 2], truncate=3), expected)


@pytest.mark.parametrize("dtype", [*DTYPES, "bool"])
def test_median_is_exact_in_float32_too(dtype):
    patch = volume(dtype)
    got = median(patch, size=(3, 1, 5))
    assert got.dtype == patch.dtype.newbyteorder("=")
    expected = ndimage.median_filter(patch.astype(np.float32), size=(3, 1, 5))
    np.testing.assert_array_equal(got.astype(np.float32), expected)


def test_median_keeps_integers_that_float32_cannot_hold():
    patch = np.full((3, 3, 3), 2**24 + 1, np.int32)
    same(median(patch), patch)


def test_half_precision_is_filtered_in_single():
    patch = volume("float16")
    wanted = ndimage.median_filter(patch.astype(np.float32), size=3)
    same(median(patch), wanted.astype(np.float16))


@given(start=st.tuples(*[st.integers(0, 9)] * 3), sigma=st.sampled_from([0.5, 1.0, (0, 1, 0.7)]))
def test_a_patch_with_enough_margin_equals_the_whole_volume(start, sigma):
    whole, margin, core = volume("uint16", (22, 21, 23)), 4, 3
    patch = whole[tuple(slice(a, a + core + 2 * margin) for a in start)]
    inner = tuple(slice(margin, margin + core) for _ in start)
    outer = tuple(slice(a + margin, a + margin + core) for a in start)
    filtered = ndimage.gaussian_filter(whole.astype(np.float32), sigma)
    same(gaussian(patch, sigma)[inner], filtered[outer])
    same(median(patch)[inner], ndimage.median_filter(whole, size=3)[outer])


@pytest.mark.parametrize("dtype", DTYPES)
def test_normalize_gives_mean_zero_and_variance_one(dtype):
    got = normalize(volume(dtype))
    assert got.dtype == np.float32
    assert abs(got.mean(dtype=np.float64)) < 1e-6
    assert abs(got.std(dtype=np.float64) - 1) < 1e-6


@pytest.mark.parametrize("value", [0, 7, 65535, 0.1, -1e30, 1e-30])
def test_a_constant_patch_normalizes_to_zeros(value):
    same(normalize(np.full((3, 4, 5), value)), np.zeros((3, 4, 5), np.float32))


def test_normalize_does_not_mind_the_unit():
    patch = volume("float64")
    np.testing.assert_allclose(normalize(patch * 1e-12), normalize(patch), atol=1e-6)


@pytest.mark.parametrize("name", list(ops.OPERATIONS))
def test_operations_keep_shape_leave_their_input_alone_and_pickle(name):
    operation = ops.get(name)
    patch = volume("uint16")
    before = patch.copy()
    patch.setflags(write=False)
    for given_patch in (patch, patch[:, ::2, ::-1], patch[0]):
        function = pickle.loads(pickle.dumps(operation.bind({})))
        assert function(given_patch).shape == given_patch.shape
    np.testing.assert_array_equal(patch, before)
    assert function(patch).dtype == operation.result(patch.dtype)
    assert operation.summary
    assert set(operation.filled({})) == set(inspect.signature(operation.function).parameters) - {
        "patch"
    }
    for name, parameter in inspect.signature(operation.function).parameters.items():
        assert name == "patch" or operation.filled({})[name] == parameter.default


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("gaussian", {"sigma": 0}, "sigma=0 must be a number of voxels above 0"),
        ("gaussian", {"sigma": -1}, "sigma=-1 must be a number of voxels above 0"),
        ("gaussian", {"sigma": [1, -1, 1]}, "one per axis"),
        ("gaussian", {"sigma": []}, "one per axis"),
        ("gaussian", {"sigma": float("nan")}, "sigma=nan must be a number of voxels"),
        ("gaussian", {"sigma": "big"}, "sigma='big' must be"),
        ("gaussian", {"sigma": True}, "sigma=True must be"),
        ("gaussian", {"truncate": 0}, "truncate=0 must be a positive"),
        ("gaussian", {"mode": "mirrored"}, "one of reflect, nearest, mirror, constant, wrap"),
        ("gaussian", {"sgima": 2}, "no parameter 'sgima': did you mean 'sigma'"),
        ("gaussian", {"width": 2}, "takes sigma, truncate, mode"),
        ("median", {"size": 4}, "size=4 must be an odd, positive number"),
        ("median", {"size": -3}, "size=-3 must be an odd"),
        ("median", {"size": 3.0}, "size=3.0 must be an odd"),
        ("normalize", {"epsilon": -1}, "epsilon=-1 must be a number from 0"),
        ("percentile", {"percentile": 101}, "percentile=101 must be a number from 0 to 100"),
        ("background", {"by": "magic"}, "by='magic' must be one of division, subtraction"),
        ("threshold", {"value": "high"}, "threshold: value='high' must be a finite number"),
        ("dog", {"high_sigma": -1}, "dog: high_sigma=-1 must be a number of voxels above 0"),
        ("identity", {"sigma": 1}, "identity has no parameter 'sigma'; it takes none"),
    ],
)
def test_bad_parameters_are_named_before_anything_runs(name, parameters, message):
    with pytest.raises(SettingError) as caught:
        ops.get(name).bind(parameters)
    assert message in str(caught.value)


def test_one_value_per_axis_means_as_many_as_the_patch_has():
    with pytest.raises(SettingError, match="a patch has 3 axes"):
        gaussian(volume("uint8"), sigma=[1, 2])
    with pytest.raises(SettingError, match="a patch has 2 axes"):
        median(volume("uint8")[0], size=[3, 3, 3])


@pytest.mark.parametrize("function", [gaussian, median, normalize])
def test_complex_numbers_are_refused(function):
    with pytest.raises(SettingError, match="real numbers, not complex128"):
        function(np.ones((3, 3, 3), complex))


def test_an_unknown_operation_gets_the_known_ones():
    with pytest.raises(SettingError) as caught:
        ops.get("gausian")
    assert "did you mean 'gaussian'?" in str(caught.value)
    assert "identity, threshold, normalize, gaussian, uniform, dog" in str(caught.value)
