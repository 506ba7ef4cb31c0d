"""Where masks lie: by their own place, or by how many cells they have, against brute force."""

from __future__ import annotations

import itertools
import json

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers_arrays import distinct, identity
from tests.strategies import WEIGHTED, problems
from volpatch import (
    IncompleteError,
    PatchGrid,
    SettingError,
    SourceError,
    TargetError,
    map_patches,
    open_volume,
    plan,
    run,
    sample_patches,
    to_zarr,
)
from volpatch.cli.main import execute
from volpatch.compute.skip import bare_cells


def reduced(marks, k):
    """What `any` over cells of k voxels makes of marks; the last cell may be cut off."""
    return np.array([marks[i : i + k].any() for i in range(0, len(marks), k)])


def possible(n, m):
    """Sizes that m cells over n voxels may have, by trying all."""
    if n % m == 0:
        return [n // m]
    return [k for k in range(1, n + 1) if m in (-(-n // k), n // k)]


def called(volume, patch, **options):
    """First voxels of the patches that the function is called with, in one dimension."""
    seen = []
    # the volume holds the number of each voxel; a call on a made-up patch holds others
    numbers = xr.zeros_like(volume) if isinstance(volume, xr.DataArray) else volume * 0.0
    numbers[:] = np.arange(volume.size, dtype="f8") + 1000
    map_patches(lambda p: (seen.append(int(p[0]) - 1000), p)[1], numbers, patch, **options)
    return [start for start in seen if start >= 0]


# -- without a place -----------------------------------------------------------------------


def check_every_factor(n):
    voxels = np.arange(n)
    for k in range(1, n + 1):
        m = -(-n // k)
        (exact,) = bare_cells("x", n, m, k)
        cell = exact.under(voxels, voxels + 1)
        np.testing.assert_array_equal(cell[:, 0], voxels // k)
        np.testing.assert_array_equal(cell[:, 1], voxels // k + 1)
        if k not in possible(n, m) if n < 60 else n % m == 0 and k != n // m:
            continue  # equal cells are taken to be equal, which mask_factor= says otherwise
        ways = [one.under(voxels, voxels + 1) for one in bare_cells("x", n, m, None)]
        there = [(w[:, 0] <= voxels // k) & (voxels // k < w[:, 1]) for w in ways]
        assert np.any(there, axis=0).all(), (n, k)


@pytest.mark.parametrize("n", [*range(1, 64), 97, 100, 210, 345, 1000])
def test_no_voxel_loses_its_cell_whatever_the_factor_was(n):
    check_every_factor(n)


@pytest.mark.slow
def test_no_voxel_loses_its_cell_on_axes_up_to_1100():
    for n in range(64, 1101):
        check_every_factor(n)


@given(problems(), st.sampled_from(["uint8", "float32"]))
def test_a_mask_of_ones_changes_no_choice_of_a_patch(grid, dtype):
    """Also where two centres are equally near a voxel: every patch has values of its own."""
    volume = distinct(grid.shape, dtype)
    options = {"stride": grid.stride, "window": "crop", "edge": grid.edge}

    def numbering():
        numbers = itertools.count(1)
        return lambda patch: np.full(patch.shape, next(numbers) % 251, dtype)

    plain = map_patches(numbering(), volume, grid.patch, **options)
    ones = np.ones(grid.shape, bool)
    masked = map_patches(numbering(), volume, grid.patch, mask=ones, **options)
    np.testing.assert_array_equal(masked, plain)


@given(st.integers(1, 70), st.data())
def test_a_patch_is_skipped_only_where_all_possible_cells_say_so(n, data):
    k = data.draw(st.integers(1, n))
    patch = data.draw(st.integers(1, min(n, 9)))
    stride = data.draw(st.integers(1, patch))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    marks = rng.random(n) < data.draw(st.sampled_from([0.01, 0.1, 0.5]))
    mask = reduced(marks, k)
    grid, options = PatchGrid(n, patch, stride), {"stride": stride, "fill_value": -1, "mask": mask}

    def touched(factors):
        fine = [mask[np.minimum(np.arange(n) // k, len(mask) - 1)] for k in factors]
        return [o for (o,) in grid.origins if any(f[o : o + patch].any() for f in fine)]

    volume = np.zeros(n)
    assert called(volume, patch, **options) == touched(possible(n, len(mask)))
    exact = called(volume, patch, mask_factor=k, **options)
    assert exact == touched([k])
    assert {o for (o,) in grid.origins if marks[o : o + patch].any()} <= set(exact)


def test_a_mask_whose_factor_does_not_divide_loses_nothing():
    marks = np.zeros(1000, bool)
    marks[500:512] = True
    options = {"stride": 8, "mask": reduced(marks, 32), "fill_value": -1}
    # 32 cells: of 32 voxels with a last one of 8, or of 31 with a last one of 39
    assert called(np.zeros(1000), 8, **options) == list(range(464, 512, 8))
    assert called(np.zeros(1000), 8, mask_factor=(32,), **options) == list(range(480, 512, 8))
    assert called(np.zeros(1000), 8, **{**options, "mask": marks[:100]}) == []


@given(problems(max_ndim=2), st.sampled_from([*WEIGHTED, "crop", "sum", "max", "min"]))
def test_a_mask_of_ones_equals_no_mask(grid, how):
    volume = distinct(grid.shape)
    rule = {"reduce": how} if how in ("sum", "max", "min") else {"window": how}

    def result(**options):
        numbers = iter(range(1, len(grid) + 1))
        return map_patches(
            lambda p: p * 0 + next(numbers),
            volume,
            grid.patch,
            stride=grid.stride,
            edge=grid.edge,
            **rule,
            **options,
        )

    plain = result()
    np.testing.assert_array_equal(result(mask=np.ones(grid.shape)), plain)
    np.testing.assert_array_equal(result(mask=np.ones((1,) * grid.ndim, bool)), plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.ones((8, 9))}, "the mask has 8 cells on y, and no whole number of voxels"),
        ({"mask": np.ones((11, 9))}, "the mask has 11 cells on y, but the volume has 10 voxels"),
        ({"mask": np.full((10, 9), np.nan)}, "the mask holds NaN, which is neither yes nor no"),
        ({"mask": np.full((10, 9), "a")}, "the mask holds <U1; it takes bools or numbers"),
        ({"mask_factor": 2}, "mask_factor says how large a mask's cells are; give mask= too"),
        (
            {"mask": np.ones((3, 3)), "mask_factor": 2},
            r"mask_factor=2 on y would make 5 cells of 10 voxels, but the mask has 3; .* 3 to 4",
        ),
        ({"mask": np.ones((5, 3)), "mask_factor": 2.5}, "mask_factor on y must be a whole number"),
        ({"mask": np.ones((5, 3)), "mask_factor": (2, 0)}, "mask_factor=0 on x would make"),
        ({"mask": da.ones((10, 9))}, "the mask is a dask array"),
    ],
)
def test_masks_that_cannot_be_are_refused(options, message):
    from volpatch import VolpatchError

    for volume in (distinct((10, 9)), da.from_array(distinct((10, 9)))):
        with pytest.raises(VolpatchError, match=message):
            map_patches(identity, volume, 4, **options)


def test_a_stored_nan_is_found_when_it_is_read(tmp_path):
    to_zarr(distinct((8, 8, 8)), tmp_path / "in.zarr", chunks=8)
    marks = np.ones((8, 8, 8), "f4")
    marks[7, 7, 7] = np.nan
    to_zarr(marks, tmp_path / "mask.zarr", chunks=8)
    options = {"patch": 4, "mask": tmp_path / "mask.zarr", "workers": 1}
    with pytest.raises(SettingError, match="the mask holds NaN"):
        run(identity, tmp_path / "in.zarr", tmp_path / "out.zarr", **options)
    assert not (tmp_path / "out.zarr").exists()


# -- with a place --------------------------------------------------------------------------


def along(n, spacing=1.0, origin=0.0, unit=None, values=None):
    """One axis with coordinates."""
    where = ("x", origin + spacing * np.arange(n), {} if unit is None else {"units": unit})
    return xr.DataArray(np.zeros(n) if values is None else values, dims="x", coords={"x": where})


@given(st.integers(2, 40), st.data())
def test_a_mask_is_laid_where_its_coordinates_say(n, data):
    k = data.draw(st.integers(1, 6))
    m = data.draw(st.integers(2, 12))
    start = data.draw(st.integers(-8, n + 3).filter(lambda s: k == 1 or 2 * s != 1 - k))
    spacing, origin = data.draw(st.sampled_from([(1.0, 0.0), (0.35, -7.2), (-2.5, 1e4)]))
    patch = data.draw(st.integers(1, min(n, 7)))
    marks = np.random.default_rng(data.draw(st.integers(0, 2**31))).random(m) < 0.3
    volume = along(n, spacing, origin, "micrometer")
    first = origin + spacing * (start + (k - 1) / 2)
    mask = along(m, spacing * k * 1000, first * 1000, "nm", marks)
    fine = np.zeros(n, bool)
    for voxel in range(n):
        cell = (voxel - start) // k
        fine[voxel] = 0 <= cell < m and marks[cell]
    grid = PatchGrid(n, patch, max(1, patch - 1))
    wanted = [o for (o,) in grid.origins if fine[o : o + patch].any()]
    options = {"stride": grid.stride, "fill_value": -1, "mask": mask}
    assert called(volume, patch, **options) == wanted


def test_a_coarser_mask_without_an_offset_of_its_own_may_begin_with_the_volume():
    # voxel 3 lies in cell 1 if cell 0 begins with the volume, in cell 1 too if it is centred
    marks = np.zeros(4, bool)
    marks[1] = True
    got = called(along(12), 1, stride=1, mask=along(4, 3.0, values=marks), fill_value=-1)
    assert got == [2, 3, 4, 5]
    got = called(along(8), 1, stride=1, mask=along(4, 2.0, values=marks), fill_value=-1)
    assert got == [2, 3]


def test_volumes_of_all_kinds_place_the_same_mask(tmp_path):
    """32 x 8 x 8 voxels of 1 um, and a mask of 8 x 8 x 8 that begins at 24 um."""
    names = ("z", "y", "x")
    coords = {
        d: (d, np.arange(n) * 1.0, {"units": "um"}) for d, n in zip(names, (32, 8, 8), strict=True)
    }
    volume = xr.DataArray(distinct((32, 8, 8)), dims=names, coords=coords)
    places = {**coords, "z": ("z", 24.0 + np.arange(8), {"units": "um"})}
    mask = xr.DataArray(np.ones((8, 8, 8), "uint8"), dims=names, coords=places)
    to_zarr(volume, tmp_path / "in.zarr", chunks=8)
    to_zarr(mask, tmp_path / "mask.zarr", chunks=8)
    stored, path = open_volume(tmp_path / "mask.zarr"), tmp_path / "mask.zarr"
    options = {"stride": 4, "fill_value": -1.0}
    wanted = volume.values.copy()
    wanted[:24] = -1
    for one in (volume, volume.chunk({"z": 16}), open_volume(tmp_path / "in.zarr")):
        for marks in (mask, stored, path, mask.transpose("x", "z", "y")):
            got = map_patches(identity, one, 4, mask=marks, **options)
            np.testing.assert_allclose(got.values, wanted, rtol=1e-6)
    for number, marks in enumerate((mask, stored, path)):
        target = tmp_path / f"out{number}.zarr"
        report = run(identity, tmp_path / "in.zarr", target, mask=marks, patch=4, **options)
        assert report.stats.patches == 2 * 2 * 2
        np.testing.assert_allclose(open_volume(target).values, wanted, rtol=1e-6)
    made = plan(tmp_path / "in.zarr", mask=path, patch=4)
    assert "mask      cells of z 1 from voxel 24, y 1, x 1 voxels" in str(made.explain())
    drawn = sample_patches(volume, 3, 200, rng=0, where=mask)
    assert drawn.origins[:, 0].min() == 23
    labels = mask.copy(data=np.random.default_rng(0).integers(0, 3, mask.shape).astype("u1"))
    drawn = sample_patches(tmp_path / "in.zarr", 1, 99, rng=0, balance=labels)
    assert drawn.origins[:, 0].min() >= 24
    found = [labels.values[z - 24, y, x] for z, y, x in drawn.origins]
    assert found == [0, 1, 2] * 33


@pytest.mark.parametrize(
    ("volume", "mask", "message"),
    [
        (along(9), along(9, origin=0.5), r"along x: it begins at voxel 0.5, in cells of 1 voxels"),
        (along(9), along(9, origin=0.02), "begins at voxel 0.02"),
        (along(9), along(4, 2.5, 0.75), "in cells of 2.5 voxels"),
        (along(9), along(9, 0.5), "in cells of 0.5 voxels"),
        (along(9), along(9, -1.0, 8.0), r"run the other way .* along x; .*sortby\('x'\)"),
        (along(9, unit="um"), along(9, unit="second"), "in second and the volume in micrometer"),
        (
            xr.DataArray(np.zeros(9), dims="x", coords={"x": np.arange(9.0) ** 2}),
            along(8),
            r"x are not evenly spaced, and the mask does not have the volume's own 9",
        ),
        (
            np.zeros(9),
            along(3, 3.0, 24.0, "um"),
            "the mask begins at 24 micrometer on x, but the volume does not say where it lies",
        ),
        (
            along(9),
            along(9).rename(x="a"),
            r"the mask has the axes \('a',\) with coordinates, but \('x',\) are patched",
        ),
    ],
)
def test_a_mask_that_cannot_lie_on_the_grid_is_refused(volume, mask, message):
    with pytest.raises(SettingError, match=message):
        map_patches(identity, volume, 3, mask=mask, fill_value=0)
    if isinstance(volume, xr.DataArray) and "a" not in mask.dims:
        with pytest.raises(SettingError, match=message.replace("the mask", "where")):
            sample_patches(volume, {"x": 3}, 1, where=mask)


def test_places_that_are_the_same_or_nearly_so_fit():
    marks = np.zeros(9)
    marks[4] = 1
    squares = xr.DataArray(np.zeros(9), dims="x", coords={"x": np.arange(9.0) ** 2})
    for volume, mask in (
        (along(9), along(9, origin=0.009, values=marks)),
        (squares, squares.copy(data=marks)),
        (np.zeros(9), along(9, 0.3, 24.0, "um", marks)),
        (np.zeros(18), along(9, 2.0, 0.5, values=marks)),
        (along(9), xr.DataArray(marks, dims="a")),
        (along(9), xr.DataArray(marks[None], dims=("c", "x"), coords={"x": np.arange(9)})),
    ):
        k = volume.size // 9
        got = called(volume, k, stride=k, mask=mask, fill_value=-1)
        assert got == [4 * k]
    assert called(along(9), 3, stride=3, mask=along(1, origin=4.0, values=[True])) == [0, 3, 6]


def test_what_may_lie_in_several_ways_is_named_and_not_drawn_from(tmp_path):
    to_zarr(distinct((13, 8, 8)), tmp_path / "in.zarr", chunks=8)
    mask = np.ones((4, 8, 8))
    told = plan(tmp_path / "in.zarr", mask=mask, patch=4).explain()
    assert "cells of z 3 or 4, y 1, x 1 voxels; a patch is skipped where all of these say" in told
    figures = plan(tmp_path / "in.zarr", mask=mask, patch=4, mask_factor={"z": 4, "y": 1, "x": 1})
    assert figures.to_json()["mask"] == "cells of z 4, y 1, x 1 voxels"
    with pytest.raises(SettingError, match="the cells of where on x may be 3 from voxel -1 or 3 v"):
        sample_patches(along(12), {"x": 4}, 1, where=along(4, 3.0))


def test_the_command_takes_a_factor_and_saves_it(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    to_zarr(distinct((13, 8, 8)), "in.zarr", chunks=8)
    marks = np.zeros((4, 8, 8), "u1")
    marks[1, 0, 0] = 1
    to_zarr(marks, "mask.zarr", chunks=8)
    words = ["--apply", "identity", "--patch", "1", "--stride", "1", "--fill-value", "0"]
    words += ["--mask", "mask.zarr", "--mask-factor", "4,1,1"]
    assert execute(["plan", "in.zarr", "out.zarr", *words, "-o", "job.json"]) == 0
    assert "mask      cells of z 4, y 1, x 1 voxels\n" in capfd.readouterr().out
    saved = json.loads((tmp_path / "job.json").read_text())["options"]
    assert saved["mask_factor"] == {"z": 4, "y": 1, "x": 1}
    assert execute(["run", "job.json", "--progress", "none"]) == 0
    volume = open_volume("out.zarr").values
    assert np.argwhere(volume).tolist() == [[z, 0, 0] for z in range(4, 8)]


def test_a_mask_that_is_not_there_is_named(tmp_path):
    to_zarr(distinct((8, 8, 8)), tmp_path / "in.zarr", chunks=8)
    with pytest.raises(SourceError, match=r"no such volume: .*gone.zarr"):
        plan(tmp_path / "in.zarr", mask=tmp_path / "gone.zarr", patch=4)


def test_the_same_mask_in_another_place_is_another_job(tmp_path):
    volume = distinct((13, 8, 8))
    to_zarr(volume, tmp_path / "in.zarr", chunks=8)
    options = {"patch": 4, "fill_value": 0, "mask": np.ones((4, 8, 8), "u1")}
    first = float(volume[0, 0, 0])

    def fail(patch):
        if patch[0, 0, 0] == first:
            raise ValueError("the sun is too high")
        return patch

    with pytest.raises(IncompleteError):
        run(fail, tmp_path / "in.zarr", tmp_path / "out.zarr", **options)
    with pytest.raises(TargetError, match=r"mask was .*\"3\", \"4\".* and is now .*\"4\""):
        run(fail, tmp_path / "in.zarr", tmp_path / "out.zarr", mask_factor=(4, 1, 1), **options)
