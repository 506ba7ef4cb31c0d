"""Every filter, in blocks with its reach for a margin, against scipy on the whole volume."""

from __future__ import annotations

import functools
import json
import tracemalloc

import dask.array as da
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

import volpatch
from tests.helpers_arrays import distinct
from tests.helpers_stores import image, store
from volpatch import map_patches
from volpatch.core import reach as reaches
from volpatch.functions.filters.smooth import uniform
from volpatch.functions.named import FunctionSpec
from volpatch.functions.registry import OPERATIONS, get


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks so small that a volume of a test has many."""
    monkeypatch.setattr(reaches, "MOST_BLOCK", 600)


def smooth(volume, sigma):
    return ndimage.gaussian_filter(volume.astype(np.float32), sigma)


def sharpened(volume, sigma, amount):
    values = volume.astype(np.float32)
    return values + np.float32(amount) * (values - smooth(volume, sigma))


def even(volume, sigma):
    wide = smooth(volume, sigma)
    return np.divide(volume.astype(np.float32), wide, out=wide, where=wide != 0)


WHOLE = {  # parameters, and what scipy makes of the whole volume
    "gaussian": ({"sigma": [0.5, 1, 0]}, lambda v: smooth(v, [0.5, 1, 0])),
    "uniform": ({"size": 5}, lambda v: ndimage.uniform_filter(v.astype(np.float32), 5)),
    "median": ({"size": [3, 1, 5]}, lambda v: ndimage.median_filter(v, [3, 1, 5])),
    "minimum": ({"size": 5}, lambda v: ndimage.minimum_filter(v, 5)),
    "maximum": ({"size": [1, 3, 5]}, lambda v: ndimage.maximum_filter(v, [1, 3, 5])),
    "percentile": ({"percentile": 80}, lambda v: ndimage.percentile_filter(v, 80, 3)),
    "opening": ({"size": 5}, lambda v: ndimage.grey_opening(v, 5)),
    "closing": ({"size": 3}, lambda v: ndimage.grey_closing(v, 3)),
    "tophat": ({"size": 5}, lambda v: ndimage.white_tophat(v, 5)),
    "sobel": (
        {},
        lambda v: ndimage.generic_gradient_magnitude(v.astype(np.float32), ndimage.sobel),
    ),
    "laplace": ({}, lambda v: ndimage.laplace(v.astype(np.float32))),
    "dog": ({"high_sigma": [1, 2, 1.5]}, lambda v: smooth(v, 1) - smooth(v, [1, 2, 1.5])),
    "unsharp": ({"sigma": 1.2, "amount": 2}, lambda v: sharpened(v, 1.2, 2)),
    "background": ({"sigma": 1.5}, lambda v: even(v, 1.5)),
    "threshold": ({"value": 117}, lambda v: v > 117),
    "identity": ({}, lambda v: v),
}
TIGHT = sorted(set(WHOLE) - {"threshold", "identity"})


def test_every_filter_of_known_reach_is_compared():
    assert set(WHOLE) == {name for name, one in OPERATIONS.items() if one.reach is not None}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("name", WHOLE)
def test_in_blocks_it_is_scipys_on_the_whole(name, dtype):
    parameters, whole = WHOLE[name]
    rng = np.random.default_rng(1)
    volume = rng.integers(0, 250, (26, 30, 41)).astype(dtype)
    wanted = whole(volume)
    spec = FunctionSpec.parse(name, parameters)
    got = map_patches(spec, volume, dtype=wanted.dtype)
    if name == "uniform" and dtype in ("int16", "float32"):  # summed anew at every voxel
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
        wanted = uniform(volume, **parameters)
    assert (got.dtype, got.tobytes()) == (wanted.dtype, wanted.tobytes())
    lazy = map_patches(spec, da.from_array(volume, chunks=(8, 9, 41)), dtype=wanted.dtype)
    np.testing.assert_array_equal(lazy.compute(), wanted)


@pytest.mark.parametrize("name", TIGHT)
def test_one_voxel_less_of_reach_is_not_enough(name):
    """A bright or a dark voxel shows how far it is seen."""
    operation = get(name)
    parameters = {k: v for k, v in WHOLE[name][0].items() if not isinstance(v, list)}
    (reach,) = operation.reach_of(1, parameters)
    function = functools.partial(operation.function, **parameters)
    rng = np.random.default_rng(2)
    volume = rng.integers(0, 60_000, (96, 12, 12)).astype(np.float32)
    wanted = function(volume)
    np.testing.assert_array_equal(map_patches(function, volume, reach=reach), wanted)
    assert (map_patches(function, volume, reach=reach - 1) != wanted).any()


@given(
    st.lists(st.integers(1, 24), min_size=1, max_size=3),
    st.sampled_from(sorted(set(WHOLE) - {"identity"})),
    st.floats(0.2, 3),
    st.sampled_from([1, 3, 5, 9]),
)
@settings(max_examples=80)
def test_faces_corners_and_sizes(shape, name, sigma, size):
    volume = distinct(tuple(shape), "uint16")
    choices = {"sigma": sigma, "high_sigma": sigma, "size": size, "value": 117}
    known = {parameter.name for parameter in get(name).parameters}
    parameters = {key: value for key, value in choices.items() if key in known}
    wanted = get(name).bind(parameters)(volume)
    got = map_patches(FunctionSpec.parse(name, parameters), volume, dtype=wanted.dtype)
    np.testing.assert_array_equal(got, wanted)


@given(st.integers(0, 2**32), st.sampled_from([3, 5, 7, 15, 21, 41]), st.integers(1, 3))
@example(seed=0, size=41, ndim=1)
@settings(max_examples=30)
def test_means_of_boxes_do_not_depend_on_where_a_sum_began(seed, size, ndim):
    """A value of 1e30 in a running sum is left in all that come after it."""
    rng = np.random.default_rng(seed)
    shape = (70, 20, 20)[:ndim]
    volume = (rng.standard_normal(shape) * 10.0 ** rng.integers(-9, 9, shape)).astype(np.float32)
    volume[tuple(n // 2 for n in shape)] = 1e30
    spec = FunctionSpec.parse("uniform", {"size": size})
    wanted = uniform(volume, size)
    np.testing.assert_array_equal(map_patches(spec, volume), wanted)
    counts = rng.integers(0, 2**16, shape).astype(np.uint16)
    assume(size <= 15)
    exact = ndimage.uniform_filter(counts.astype(np.float32), size)
    np.testing.assert_array_equal(uniform(counts, size), exact)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
@pytest.mark.parametrize("name", sorted(n for n, o in OPERATIONS.items() if o.memory))
def test_no_call_takes_more_memory_than_it_declares(name, dtype):
    operation = get(name)
    volume = np.random.default_rng(0).integers(0, 250, (64, 64, 64)).astype(dtype)
    function = operation.bind({})
    function(volume[:8])  # what is loaded on first use
    tracemalloc.start()
    try:
        function(volume)
        _, taken = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= operation.call_bytes(volume.size, dtype)


def test_what_is_known_is_not_tried(tmp_path, ask, monkeypatch):
    volume = distinct((20, 24, 28), "uint16")
    store(tmp_path / "in.zarr", volume, 8)
    shapes = []
    median = ndimage.median_filter

    def watched(values, **options):
        shapes.append(values.shape)
        return median(values, **options)

    monkeypatch.setattr(ndimage, "median_filter", watched)
    report = volpatch.run("median", tmp_path / "in.zarr", tmp_path / "out.zarr", workers=1)
    assert shapes[0] == (1, 1, 1)
    assert len(shapes) == 1 + report.stats.patches
    np.testing.assert_array_equal(image(tmp_path / "out.zarr"), median(volume, size=3))
    _, told, _ = ask("plan", tmp_path / "in.zarr", "--apply", "median")
    assert "assumed" not in told


def test_filters_are_listed(ask):
    code, told, _ = ask("filters")
    assert code == 0
    assert "gaussian    Gaussian smoothing (reach 4, the source's dtype, " in told
    facts = {one["name"]: one for one in json.loads(ask("filters", "--format", "json")[1])}
    assert list(facts) == list(OPERATIONS)
    assert facts["background"]["parameters"]["by"]["default"] == "division"
    assert (facts["opening"]["reach"], facts["threshold"]["stored"]) == (2, "bool")
    assert facts["normalize"]["reach"] is None


@pytest.mark.parametrize(
    ("target", "parameters", "reach", "tight"),
    [
        ("restoration:rolling_ball", {"radius": 5}, 5, True),
        ("restoration:denoise_tv_chambolle", {"eps": 0, "max_num_iter": 8}, 8, False),
        ("filters:threshold_sauvola", {"window_size": 15}, 7, True),
        ("filters:threshold_local", {"block_size": 15}, 9, True),
        ("filters:sato", {"sigmas": [2], "black_ridges": False}, 24, False),
    ],
)
def test_functions_of_the_guide_have_the_reach_it_says(
    monkeypatch, target, parameters, reach, tight
):
    monkeypatch.setattr(reaches, "MOST_BLOCK", 20_000)
    volume = distinct((100, 20, 20), "uint16")
    spec = FunctionSpec.parse(f"skimage.{target}", parameters)
    wanted = spec.load()(volume)
    np.testing.assert_array_equal(map_patches(spec, volume, reach=reach), wanted)
    if tight:
        assert (map_patches(spec, volume, reach=reach - 1) != wanted).any()
