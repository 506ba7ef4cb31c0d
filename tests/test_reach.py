"""Functions of which the reach is known: the same voxels as on the whole volume, on every path."""

from __future__ import annotations

import itertools
import json

import dask.array as da
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

import volpatch
from tests.helpers_arrays import distinct
from tests.helpers_stores import image, store
from tests.strategies import chunked
from volpatch import GridError, SettingError, map_patches
from volpatch.core import reach as reaches
from volpatch.core.grid import REACH, AxisGrid
from volpatch.core.reach import reach_grid
from volpatch.functions.named import FunctionSpec


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks so small that a volume of a test has many."""
    monkeypatch.setattr(reaches, "MOST_BLOCK", 600)


def smooth(patch):
    return ndimage.gaussian_filter(patch.astype(np.float32), 1.0)


# -- one axis ------------------------------------------------------------------------------


@given(st.integers(1, 80), st.integers(1, 40), st.integers(0, 20), st.data())
@settings(max_examples=200)
def test_blocks_tile_an_axis_and_have_their_margins(size, block, margin, data):
    assume(margin < block)
    patch = block + 2 * margin
    fits = patch < size
    axis = AxisGrid(size, patch if fits else size, block if fits else size, REACH)
    starts, own = axis.starts, [axis.own(i) for i in range(axis.count)]
    assert all(a < b for a, b in itertools.pairwise(starts))
    assert (own[0][0], own[-1][1]) == (0, size)
    for (_, stop), (start, _) in itertools.pairwise(own):
        assert stop == start == start // block * block
    for start, (lo, hi) in zip(starts, own, strict=True):
        stop = start + axis.patch
        assert 0 <= start <= lo < hi <= stop <= size
        assert start == 0 or lo - start >= margin
        assert stop == size or stop - hi >= margin
    low, high = sorted(data.draw(st.tuples(st.integers(-5, 90), st.integers(-5, 90))))
    touching = [i for i, s in enumerate(starts) if s < high and s + axis.patch > low < high]
    assert list(axis.touching(low, high)) == touching
    owning = [i for i, (a, b) in enumerate(own) if a < high and b > low < high]
    assert list(axis.owning(low, high)) == owning
    visits = (sum(s <= v < s + axis.patch for s in starts) for v in range(size))
    assert axis.most_visits == max(visits)


@pytest.mark.parametrize(
    ("size", "patch", "stride"), [(20, 11, 8), (20, 30, 10), (40, 30, 10), (20, 6, 8)]
)
def test_what_are_no_blocks_with_margins_is_refused(size, patch, stride):
    with pytest.raises(GridError, match="with their margins cannot be patches of"):
        AxisGrid(size, patch, stride, REACH)


@given(st.data())
def test_blocks_lie_on_units_or_are_equal_parts_of_them(data):
    n = data.draw(st.integers(1, 3))
    sizes = st.tuples(*[st.integers(1, 300)] * n)
    shape, unit = data.draw(sizes), data.draw(sizes)
    reach = data.draw(st.tuples(*[st.integers(0, 20)] * n))
    made = reach_grid(shape, reach, unit)
    for axis, one, size in zip(made.axes, unit, shape, strict=True):
        chunk = min(one, size)
        assert axis.count == 1 or axis.stride % chunk == 0 or chunk % axis.stride == 0
    assert reach_grid(made.shape, reach, unit) == made == type(made).from_json(made.to_json())


# -- volumes -------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.data())
@settings(max_examples=40)
def test_in_memory_and_lazily_it_is_the_function_of_the_whole(shape, data):
    volume = distinct(tuple(shape), "uint16")
    wanted = smooth(volume)
    got = map_patches(smooth, volume, reach=4)
    assert (got.dtype, got.tobytes()) == (wanted.dtype, wanted.tobytes())
    lazy = da.from_array(volume, chunks=data.draw(chunked(volume.shape)))
    np.testing.assert_array_equal(map_patches(smooth, lazy, reach=4).compute(), wanted)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": 8},
        {"chunks": 8, "shards": 16},
        {"chunks": 16, "region": (16, 16, 32)},
        {"chunks": 8, "region": 8, "backend": "processes", "workers": 2},
        {"roi": "z=2:17,x=3:15", "chunks": 8},
    ],
    ids=str,
)
def test_a_run_is_the_filter_of_the_whole(tmp_path, options):
    volume = distinct((37, 45, 52), "uint16")
    store(tmp_path / "in.zarr", volume, 8)
    wanted = np.rint(smooth(volume)).astype(np.uint16)
    report = volpatch.run("gaussian", tmp_path / "in.zarr", tmp_path / "out.zarr", **options)
    whole = wanted[2:17, :, 3:15] if "roi" in options else wanted
    np.testing.assert_array_equal(image(tmp_path / "out.zarr"), whole)
    if "roi" not in options:
        assert report.redundancy <= 1.2  # a rest that is no longer than the margin is shared
    again = volpatch.run("gaussian", tmp_path / "in.zarr", tmp_path / "out.zarr", **options)
    assert again.already
    plan = volpatch.plan(tmp_path / "in.zarr", func="gaussian", **options)
    assert (plan.memory["accumulator"] == 0) == ("roi" not in options)


@pytest.mark.parametrize(
    ("name", "parameters", "whole"),
    [
        ("gaussian", {"sigma": 1.5}, lambda v: ndimage.gaussian_filter(v, 1.5)),
        ("gaussian", {"sigma": [0, 1, 2]}, lambda v: ndimage.gaussian_filter(v, [0, 1, 2])),
        ("gaussian", {"truncate": 2.0}, lambda v: ndimage.gaussian_filter(v, 1, truncate=2)),
        ("median", {"size": 5}, lambda v: ndimage.median_filter(v, 5)),
        ("median", {"size": [1, 3, 5]}, lambda v: ndimage.median_filter(v, [1, 3, 5])),
    ],
)
def test_filters_know_their_reach(ask, tmp_path, name, parameters, whole):
    volume = distinct((30, 26, 33))
    store(tmp_path / "in.zarr", volume, 8)
    params = [word for k, v in parameters.items() for word in ("--param", f"{k}={v}")]
    line = ("run", tmp_path / "in.zarr", tmp_path / "out.zarr", "--apply", name, *params)
    code, out, _ = ask(*line)
    assert code == 0
    assert "\nblocks " in out
    assert "each voxel from the block it lies in" in out
    np.testing.assert_array_equal(image(tmp_path / "out.zarr"), whole(volume))


def test_one_voxel_less_is_not_enough():
    volume = distinct((96, 20, 20))  # blocks in the middle have no more of a margin than that
    exact, short = (map_patches(smooth, volume, reach=n) for n in (4, 3))
    np.testing.assert_array_equal(exact, smooth(volume))
    assert (short != exact).any()


@pytest.mark.parametrize(
    "asked",
    [{"patch": 16}, {"patch": 16, "overlap": "50%"}, {"patch": 16, "window": "hann"}],
    ids=str,
)
def test_a_filter_is_blended_where_patches_are_asked_for(asked):
    volume = distinct((30, 26, 33))
    blended = map_patches("gaussian", volume, **asked)
    assert (blended != smooth(volume)).any()


def test_around_the_whole_volume_nothing_is_near():
    volume = distinct((30, 26, 33))
    wrapped = FunctionSpec.parse("gaussian", {"mode": "wrap"})
    blended = map_patches(wrapped, volume)
    wanted = map_patches(wrapped, volume, (30, 26, 33), window="hann")
    np.testing.assert_array_equal(blended, wanted)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"reach": 2, "patch": 8}, "reach computes every voxel once, .* so patch has no meaning"),
        ({"reach": 2, "overlap": 4}, "so overlap has no meaning beside it; leave one of them out"),
        ({"reach": 2, "mask": np.ones((30, 26, 33))}, "so mask has no meaning beside it"),
        ({"reach": 2, "window": [np.ones, "hann", "hann"]}, "so window has no meaning beside it"),
        ({"reach": 2, "offset": (0, 1, 0)}, "so offset has no meaning beside it"),
        ({"reach": 2, "nan_policy": "omit"}, "so nan_policy has no meaning beside it"),
        ({"reach": -1}, "reach must not be negative, got -1"),
        ({"reach": 1.5}, "reach on z must be a whole number of voxels, got 1.5"),
        ({"reach": (1, 2, 3, 4)}, "has 4 sizes, but the volume has the axes"),
    ],
)
def test_what_reach_cannot_be_is_said(options, says):
    volume = distinct((30, 26, 33))
    with pytest.raises((GridError, SettingError), match=says):
        map_patches(smooth, volume, **options)


def test_a_job_and_a_retry_have_the_same_blocks(ask, tmp_path):
    volume = distinct((37, 45, 52), "uint16")
    store(tmp_path / "in.zarr", volume, 8)
    line = ("plan", tmp_path / "in.zarr", tmp_path / "out.zarr", "--apply", "gaussian")
    code, _, err = ask(*line, "--chunks", "8", "-o", tmp_path / "job.json")
    assert code == 0, err
    assert json.loads((tmp_path / "job.json").read_text())["options"]["reach"] == dict.fromkeys(
        "zyx", 4
    )
    code, _, err = ask("run", tmp_path / "job.json")
    assert code == 0, err
    wanted = np.rint(smooth(volume)).astype(np.uint16)
    np.testing.assert_array_equal(image(tmp_path / "out.zarr"), wanted)
    damaged = next((tmp_path / "out.zarr").rglob("c/1/1/1"))
    content = damaged.read_bytes()
    damaged.write_bytes(b"\0" + content[1:])
    code, _, err = ask("retry", tmp_path / "out.zarr")
    assert code == 0, err
    assert damaged.read_bytes() == content
