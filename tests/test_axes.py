"""Axes come out in the order in which they went in, with channels before the patched ones."""

from __future__ import annotations

import json
import math

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import yaozarrs
import zarr

import volpatch
from tests import helpers_functions as functions
from volpatch import GridError, PatchGrid, SettingError, extract, map_patches, merge, to_zarr
from volpatch.core.axes import default_dims

SHAPE = {"t": 2, "z": 9, "y": 7, "x": 8}
SIZES = {"t": 2, "z": 4, "y": 3, "x": 5}


def volume(dims="tzyx", dtype="float32"):
    shape = [SHAPE.get(dim, 2) for dim in dims]
    values = np.random.default_rng(0).permutation(int(np.prod(shape))).reshape(shape)
    return xr.DataArray(values.astype(dtype), dims=list(dims))


def index_by_index(function, array, sizes):
    """Each index of the other axes alone, put where it belongs; channels as "c" in front."""
    others = [dim for dim in array.dims if dim not in sizes]
    parts = array.stack(other=others) if others else array.expand_dims("other", -1)
    made = []
    for i in range(parts.sizes["other"]):
        one = parts.isel(other=i, drop=True)
        out = map_patches(function, np.ascontiguousarray(one), tuple(sizes[d] for d in one.dims))
        names = [*(["c"] if out.ndim > one.ndim else []), *one.dims]
        made.append(xr.DataArray(out, dims=names))
    out = xr.concat(made, "other").assign_coords(other=parts.coords.get("other", [0]))
    return out.unstack("other") if others else out.isel(other=0, drop=True)


def run(function, source, target, **options):
    options = {"durability": "process", "workers": 2, "memory_limit": "4GiB", **options}
    return volpatch.run(function, source, target, **options)


# -- the order -----------------------------------------------------------------------------


def test_axes_of_an_array_in_memory_stay_where_they_were():
    cube = np.arange(27.0).reshape(3, 3, 3)
    np.testing.assert_allclose(map_patches(lambda p: p, cube, {"z": 2, "y": 2}), cube)
    for patch in ({"z": 2}, {"y": 2}, {"z": 2, "x": 2}):
        np.testing.assert_allclose(map_patches(lambda p: p, cube, patch), cube)


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("patched", ["zyx", "yx", "zx", "ty"])
def test_every_way_gives_the_same_axes_in_the_same_order(tmp_path, patched, channels):
    array = volume()
    sizes = {dim: SIZES[dim] for dim in patched}
    function = functions.channels if channels else functions.shade
    dims = ("t", "c", "z", "y", "x") if channels else ("t", "z", "y", "x")
    wanted = index_by_index(function, array, sizes).transpose(*dims).values

    kinds = {"xarray": array, "lazy": array.chunk({"t": 1, "z": 5, "y": 4, "x": 8})}
    for kind, given in kinds.items():
        got = map_patches(function, given, sizes)
        assert got.dims == dims, kind
        np.testing.assert_array_equal(got.values, wanted, err_msg=kind)

    source = to_zarr(array, tmp_path / "in.zarr", chunks=4)
    target = tmp_path / "run.zarr"
    options = {"patch": sizes, "chunks": 2, "region": 4, "shards": 4 if channels else None}
    known = {"out_channels": 3} if channels else {}
    plan = volpatch.plan(source, **options, **known)
    report = run(function, source, target, **options)
    stored = zarr.open_array(target / "scale0/image", mode="r")
    assert stored.metadata.dimension_names == dims
    assert plan.out_shape == report.shape == stored.shape
    np.testing.assert_array_equal(stored[...], wanted)
    assert report.regions > 2
    yaozarrs.validate_zarr_store(str(target))
    opened = volpatch.open_volume(target)
    assert opened.dims == dims
    np.testing.assert_array_equal(opened, wanted)
    to_zarr(got, tmp_path / "lazy.zarr", chunks=4)
    np.testing.assert_array_equal(volpatch.open_volume(tmp_path / "lazy.zarr"), wanted)


def test_axes_without_names_keep_the_looped_ones_in_front_of_channels():
    array = volume("tyx").values
    for given in (array, da.from_array(array, chunks=(1, 4, 8))):
        got = map_patches(functions.channels, given, (3, 5))
        assert got.shape == (2, 3, 7, 8)
        wanted = [map_patches(functions.channels, one, (3, 5)) for one in array]
        np.testing.assert_array_equal(np.asarray(got), np.stack(wanted))


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_channels_of_a_channel_axis_come_before_the_patched_axes_or_go(at):
    dims = [*"zyx"]
    dims.insert(at, "c")
    array = volume(dims)
    in_front = array.transpose("c", ...).values
    for function in (lambda p: p[::-1], lambda p: p[0] - p[1]):
        wanted = map_patches(function, in_front, 4, channel_axis=0)
        for given in (array, array.chunk(4)):
            got = map_patches(function, given, 4, channel_axis="c")
            assert got.dims == (("c",) if wanted.ndim == 4 else ()) + ("z", "y", "x")
            np.testing.assert_array_equal(got.values, wanted)


def test_a_roi_and_a_part_and_a_broken_run_find_their_places(tmp_path):
    array = volume()
    source = to_zarr(array, tmp_path / "in.zarr", chunks=4)
    options = {"patch": {"z": 4, "x": 5}, "chunks": 2, "region": 4, "roi": "y=2:6,z=1:"}
    whole = map_patches(functions.channels, array, options["patch"])
    wanted = whole.isel(y=slice(2, 6), z=slice(1, None)).values
    np.testing.assert_array_equal(
        map_patches(functions.channels, array, options["patch"], roi=options["roi"]), wanted
    )
    target = tmp_path / "out.zarr"
    calls = []

    def fails(patch):
        calls.append(1)
        if len(calls) == 20:
            raise ValueError("once")
        return functions.channels(patch)

    for part in ("0/2", "1/2"):
        calls.clear()
        with pytest.raises(volpatch.IncompleteError, match="once"):
            run(fails, source, target, part=part, workers=1, func_version="1", **options)
    calls.extend([1] * 100)
    run(fails, source, target, workers=1, func_version="1", **options)
    np.testing.assert_array_equal(volpatch.open_volume(target), wanted)
    lost = sorted((target / "scale0/image/c").rglob("*"))
    lost = [path for path in lost if path.is_file()][5]
    before = lost.read_bytes()
    lost.write_bytes(b"")
    volpatch.retry(target, fails, durability="process")
    assert lost.read_bytes() == before


def test_a_saved_job_and_a_run_along_other_axes_are_told_apart(tmp_path):
    source = to_zarr(volume("zyx").isel(z=slice(7)), tmp_path / "in.zarr", chunks=4)
    plan = volpatch.plan(
        source, tmp_path / "out.zarr", func="identity", patch={"z": 3, "y": 3}, chunks=1
    )
    from volpatch.planning import job

    saved = json.loads(json.dumps(job.to_json(plan)))
    report = volpatch.run_job(saved, durability="process")
    assert report.shape == (7, 7, 8)
    wanted = volpatch.open_volume(source)
    np.testing.assert_allclose(volpatch.open_volume(tmp_path / "out.zarr"), wanted, rtol=1e-6)
    options = {"chunks": 1, "func_version": "1"}
    square = to_zarr(volume("zyx").isel(z=slice(7), x=slice(7)), tmp_path / "sq.zarr", chunks=4)
    for part, patch in (("0/2", {"z": 3, "y": 3}), ("1/2", {"y": 3, "x": 3})):
        if part == "0/2":
            run(functions.shade, square, tmp_path / "two.zarr", part=part, patch=patch, **options)
            continue
        with pytest.raises(volpatch.TargetError, match="patched was"):
            run(functions.shade, square, tmp_path / "two.zarr", part=part, patch=patch, **options)


def test_patches_of_some_axes_of_a_dataarray_merge_to_the_order_it_had():
    array = volume("zyx").assign_coords(
        x=np.linspace(0, 1, 8), kind="DAPI", row=("x", list("abcdefgh")), z=np.arange(9) * 0.5
    )
    for given in (array, array.chunk(4)):
        patches = extract(given, {"z": 4, "y": 3})
        back = merge(patches + 1, PatchGrid((9, 7), (4, 3)))
        assert back.dims == array.dims
        np.testing.assert_allclose(back, array + 1, rtol=1e-6)
        for name in ("x", "kind", "row", "z"):
            xr.testing.assert_identical(back.coords[name].variable, array.coords[name].variable)


# -- channels beside other axes, and by name -----------------------------------------------


def named_channels():
    names = {"c": ["DAPI", "488"]}
    return volume("czyx").assign_coords(names)


def test_a_coordinate_with_the_name_of_the_channels_gives_way():
    one = named_channels().sel(c="488").assign_coords(row=("y", np.arange(7)), when=3)
    for given in (one, one.chunk(4)):
        got = map_patches(functions.channels, given, 4)
        assert got.sizes == {"c": 3, "z": 9, "y": 7, "x": 8}
        assert set(got.coords) == {"row", "when"}
        assert got.isel(c=1).mean("z").shape == (7, 8)
        assert set(map_patches(functions.shade, given, 4).coords) == {"row", "when", "c"}
    along = one.drop_vars("c").assign_coords(c=("z", np.arange(9)))
    assert "c" not in map_patches(functions.channels, along, 4).coords


def test_one_channel_that_was_chosen_gives_way_to_those_of_the_function(tmp_path):
    array = named_channels()
    source = to_zarr(array, tmp_path / "in.zarr", chunks=4)
    wanted = map_patches(functions.channels, array.values[0], 4)
    for roi in ("c=0", {"c": slice(0, 1)}):
        for given in (array, array.chunk(4)):
            got = map_patches(functions.channels, given, 4, roi=roi)
            assert got.dims == ("c", "z", "y", "x")
            assert "c" not in got.coords
            np.testing.assert_array_equal(got.values, wanted)
        target = tmp_path / f"out{len(roi)}.zarr"
        assert volpatch.plan(source, patch=4, roi=roi, out_channels=3).out_shape == wanted.shape
        run(functions.channels, source, target, patch=4, roi=roi)
        np.testing.assert_array_equal(volpatch.open_volume(target), wanted)
    with pytest.raises(GridError, match=r"an axis c of 2 that is looped over.*roi='c=0'"):
        run(functions.channels, source, tmp_path / "no.zarr", patch=4)
    both = map_patches(functions.channels, array, 4)
    assert both.dims == ("c", "channel", "z", "y", "x")
    assert both.c.values.tolist() == ["DAPI", "488"]


def test_channels_beside_an_axis_of_another_name_are_refused_on_disk(tmp_path):
    values = volume("zyx").values[None].repeat(2, 0)
    zarr.create_array(tmp_path / "in.zarr", data=values, dimension_names=("rep", "z", "y", "x"))
    with pytest.raises(GridError, match=r"an axis rep of 2.*channel_axis='rep'$"):
        run(functions.channels, tmp_path / "in.zarr", tmp_path / "out.zarr", patch=4)


@pytest.mark.parametrize("roi", ["c=DAPI,z=2:", {"c": "DAPI", "z": slice(2, None)}])
def test_a_roi_names_channels_wherever_the_volume_has_them(tmp_path, roi):
    array = named_channels()
    whole = map_patches(functions.shade, array, 4)
    for given in (array, array.chunk(4), array.rename(c="stain")):
        mine = roi
        if "stain" in given.dims:
            mine = (
                roi.replace("c=", "stain=")
                if isinstance(roi, str)
                else {"stain": roi["c"], "z": roi["z"]}
            )
        got = map_patches(functions.shade, given, 4, roi=mine)
        np.testing.assert_array_equal(got, whole.values[:1, 2:])
        assert got.coords[given.dims[0]].values.tolist() == ["DAPI"]
    for asked in ("c=488", {"c": 488}):
        got = map_patches(functions.shade, array, 4, roi=asked)
        np.testing.assert_array_equal(got, whole.values[1:])


def test_a_roi_of_the_channel_axis_selects_what_the_function_is_given(tmp_path):
    array = named_channels()
    omero = {"channels": [{"label": "DAPI"}, {"label": "488"}]}
    source = to_zarr(array, tmp_path / "in.zarr", chunks=4)
    group = zarr.open_group(source, mode="r+")
    group.attrs["ome"] = {**group.attrs["ome"], "omero": omero}
    wanted = map_patches(lambda p: p * 2, array.values[1], 4)
    seen = []

    def only(patch):
        seen.append(patch.shape)
        return patch[0] * 2

    for roi in ("c=488", "c=1"):
        for given in (array, array.chunk(4)):
            got = map_patches(only, given, 4, roi=roi, channel_axis="c")
            assert got.dims == ("z", "y", "x")
            np.testing.assert_array_equal(got, wanted)
        target = tmp_path / f"{roi}.zarr"
        run(only, source, target, patch=4, roi=roi, channel_axis="c")
        np.testing.assert_array_equal(volpatch.open_volume(target), wanted)
    assert set(seen) == {(1, 4, 4, 4)}


def test_a_name_that_several_channels_have_is_refused():
    array = named_channels().assign_coords(c=["DAPI", "DAPI"])
    with pytest.raises(GridError, match=r"the name of \[0, 1\]; choose one by its number"):
        map_patches(functions.shade, array, 4, roi="c=DAPI")
    with pytest.raises(GridError, match=r"asks for 'GFP' on axis c, but its names are \['DAPI'"):
        map_patches(functions.shade, array, 4, roi="c=GFP")


@pytest.mark.filterwarnings("ignore:Duplicate dimension names")
def test_two_axes_of_one_name_are_refused():
    array = xr.DataArray(np.zeros((6, 6)), dims=("x", "x"))
    for call in (
        lambda: map_patches(functions.shade, array, 3),
        lambda: extract(array, 3),
        lambda: next(volpatch.iter_patches(array, 3)),
        lambda: volpatch.sample_patches(array, 3, 1),
    ):
        with pytest.raises(SettingError, match=r"has 2 axes named 'x'.*rename them"):
            call()


@pytest.mark.parametrize("ndim", [2, 3, 4, 5, 6, 7])
def test_axes_without_names_are_called_alike_through_every_door(tmp_path, ndim):
    shape = (2, 3, 2, 3, 5, 6, 7)[7 - ndim :]
    data = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    zarr.create_array(tmp_path / "a.zarr", data=data)
    names = default_dims(ndim)
    opened = volpatch.open_volume(tmp_path / "a.zarr")
    assert opened.dims == names
    np.testing.assert_array_equal(opened.values, data)
    for axis, name in enumerate(names):
        for volume in (data, opened.data, opened):
            part = volpatch.map_patches(lambda p: p, volume, (3, 3), roi={name: 0})
            assert part.shape == (*shape[:axis], 1, *shape[axis + 1 :])
