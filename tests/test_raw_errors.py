"""What cannot be is refused with a sentence of ours, never with what Python happens to raise."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import volpatch
from volpatch import Merger, PatchGrid, VolpatchError, coverage, extract, map_patches, merge
from volpatch.core.box import Box

VOLUME = np.random.default_rng(0).random((12, 13, 14), dtype=np.float32)
GRID = PatchGrid((10, 10), 4)
HOLE = PatchGrid((3, 3), 4, edge="drop")
HUGE = 10**30


def mapped(**options):
    return lambda: map_patches(np.abs, VOLUME, **{"patch": 4, **options})


def named(*dims):
    return xr.DataArray(VOLUME, dims=dims)


def no_window(n):
    raise ZeroDivisionError("n")


CASES = {
    "no shape": (
        lambda: PatchGrid(None, 4),
        "size on x must be a whole number of voxels",
    ),
    "no size": (lambda: PatchGrid((None, 4), 4), "size on y must be a whole number"),
    "no axis": (lambda: PatchGrid((), 4), "a grid needs at least one axis"),
    "0-d": (lambda: map_patches(np.abs, np.array(3.0), 4), "at least one axis"),
    "superscript": (lambda: PatchGrid((9, 9), "²"), "must be a whole number of voxels, got '²'"),
    "superscript overlap": (lambda: PatchGrid((9, 9), 4, overlap="²"), "'²' on y is neither"),
    "signs": (lambda: PatchGrid((9, 9), 4, overlap="--5"), "overlap '--5' on y is neither voxels"),
    "huge size": (lambda: PatchGrid((HUGE, 9), 4), "size on y is beyond what any volume has"),
    "huge patch": (mapped(patch=HUGE), "patch on z is beyond what any volume has .* 1.000e.30"),
    "huge stride": (mapped(stride=HUGE), "stride on z is beyond what any volume has"),
    "huge offset": (mapped(offset=HUGE), "offset on z is beyond what any volume has"),
    "touching": (lambda: GRID.touching(Box((0,), (3,))), "touching takes a Box of 2 axes"),
    "touching nothing": (lambda: GRID.touching(None), "touching takes a Box of 2 axes"),
    "no grid": (lambda: PatchGrid.from_json({}), "a grid is told by shape, patch, stride, edge"),
    "a list": (lambda: PatchGrid.from_json([]), "a grid is told by shape"),
    "window raises": (mapped(window=no_window), r"window no_window\(4\) failed: ZeroDivision"),
    "fill": (mapped(patch=5, edge="drop", fill_value=10**400), "fill_value 1000.* cannot be held"),
    "pad": (mapped(patch=5, edge="pad", pad_mode="constant", pad_value="x"), "must be a number"),
    "no channel": (
        lambda: map_patches(np.abs, np.zeros((0, 8, 8)), 4, channel_axis=0),
        "channel_axis 0 has length 0 .* nothing to hand to the function",
    ),
    "ragged": (mapped(mask=[[1, 2], [1]]), "the lists of the mask have unequal lengths"),
    "numbers as names": (lambda: map_patches(np.abs, named(0, 1, 2), 4), "an axis named 0, which"),
    "a tuple as name": (lambda: extract(named(("a", 1), "y", "x"), 4), "named .'a', 1., which is"),
    "coverage": (lambda: coverage(GRID, chunks="x"), "chunks='x' are none of dask's"),
    "out": (lambda: Merger(GRID, out=[1]), "out must be a NumPy array that is filled; got list"),
    "complex": (mapped(finalize=lambda b: b.astype(complex)), "returned dtype complex128"),
    "objects": (mapped(finalize=lambda b: b.astype(object)), "returned dtype object"),
    "text": (mapped(finalize=lambda b: b.astype(str)), "returned dtype <U"),
    "no job": (lambda: volpatch.run_job([1]), "it is no mapping, but"),
}
RUNS = {
    "region": ({"region": "x"}, "region must be a whole number of voxels, got 'x'"),
    "depends": ({"depends_on": 3}, "depends_on must be paths of files; got 3"),
    "roi is true": ({"roi": True}, "roi=True on axis x is no part of it; write a range"),
    "roi twice": ({"roi": "z=0:4,z=2:5"}, "roi 'z=0:4,z=2:5' names axis 'z' twice"),
    "complex": ({"finalize": lambda b: b.astype(complex)}, "returned dtype complex128"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_is_refused_in_words(name):
    call, says = CASES[name]
    with pytest.raises(VolpatchError, match=says):
        call()


@pytest.mark.parametrize("name", RUNS)
def test_what_cannot_be_run_is_refused_in_words(name, tmp_path):
    options, says = RUNS[name]
    source = volpatch.to_zarr(VOLUME, tmp_path / "in.zarr", durability="process")
    with pytest.raises(VolpatchError, match=says):
        volpatch.run("identity", source, tmp_path / "out.zarr", patch=4, **options)
    assert not (tmp_path / "out.zarr").exists()


def test_numbers_of_numpy_are_numbers():
    grid = PatchGrid((np.int64(10), np.uint8(9)), np.int32(4), np.int64(2))
    assert grid == PatchGrid((10, 9), 4, 2) == PatchGrid(np.array([10, 9]), 4, 2)
    assert PatchGrid(np.int64(10), 4).shape == (10,)


def test_patches_of_which_there_are_none_blend_to_what_is_asked_for():
    patches = np.zeros((2, 0, 0, 4, 4))
    for given in (patches, da.from_array(patches)):
        np.testing.assert_array_equal(merge(given, HOLE, fill_value=7), np.full((2, 3, 3), 7.0))
        with pytest.raises(volpatch.GridError, match="no patch covers 9 of the 9 voxels"):
            merge(given, HOLE)
