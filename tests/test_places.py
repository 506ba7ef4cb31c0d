"""Voxel sizes, time steps and names of channels are found, and stay what they are."""

import numpy as np
import pytest
import tifffile
import xarray as xr
import yaozarrs
import zarr
from ome_zarr_models.v05 import Image

import volpatch
from volpatch import map_patches, open_volume, to_zarr
from volpatch.cli.main import execute
from volpatch.storage.open import open_source

STACK = (np.arange(6 * 9 * 11) + 1).reshape(6, 9, 11).astype("u2")


def place(path):
    source = open_source(path)
    return source.spacing, source.units


# --- TIFF


@pytest.mark.parametrize("spacing", [-2.5, 2.5])
@pytest.mark.parametrize("unit", ["um", "micron", "\\u00B5m"])
def test_a_negative_imagej_spacing_is_a_distance(tmp_path, spacing, unit):
    options = {"axes": "ZYX", "spacing": spacing, "unit": unit}
    tifffile.imwrite(tmp_path / "a.tif", STACK, imagej=True, metadata=options, resolution=(2, 4))
    assert place(tmp_path / "a.tif") == ((2.5, 0.25, 0.5), ("micrometer",) * 3)


@pytest.mark.parametrize(
    ("resolution", "unit", "size"),
    [
        ((20_000, 10_000), "CENTIMETER", (1.0, 0.5)),
        ((50_800, 25_400), "INCH", (1.0, 0.5)),
        ((508, 508), "INCH", (50.0, 50.0)),
        ((200, 100), "CENTIMETER", (100.0, 50.0)),
        ((10, 10), "CENTIMETER", (1000.0, 1000.0)),
        ((4, 2), "MICROMETER", (0.5, 0.25)),
        ((1, 1), "INCH", None),
        ((1, 1), "CENTIMETER", None),
        ((72, 72), "INCH", None),
        ((28, 28), "CENTIMETER", None),
        ((300, 300), "INCH", None),
        ((118.11, 118.11), "CENTIMETER", None),
        ((5, 5), "NONE", None),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "imagej", "slices"])
def test_resolution_tags_count_unless_they_are_a_printers(tmp_path, kind, resolution, unit, size):
    path = tmp_path / "a.tif"
    options = {"resolution": resolution, "resolutionunit": unit}
    if kind == "slices":
        path = tmp_path / "slices"
        path.mkdir()
        for number, plane in enumerate(STACK):
            tifffile.imwrite(path / f"{number}.tif", plane, metadata=None, **options)
    elif kind == "plain":
        tifffile.imwrite(path, STACK, metadata=None, **options)
    else:
        tifffile.imwrite(path, STACK, imagej=True, metadata={"axes": "ZYX"}, **options)
    if kind == "imagej" and unit == "NONE":
        assert place(path) == ((1.0, 0.2, 0.2), (None, None, None))
    elif size is None:
        assert place(path) == ((1.0, 1.0, 1.0), (None, None, None))
    else:
        found, units = place(path)
        assert found == pytest.approx((1.0, *size), rel=1e-6)
        assert units == (None, "micrometer", "micrometer")


def test_an_imagej_spacing_without_a_unit_is_in_that_of_the_tags(tmp_path):
    options = {"metadata": {"axes": "ZYX", "spacing": 0.001}, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", STACK, imagej=True, resolution=(2000, 2000), **options)
    assert place(tmp_path / "a.tif") == ((10.0, 5.0, 5.0), ("micrometer",) * 3)


def fiji_sequence(path, spacings):
    path.mkdir()
    for number, (plane, spacing) in enumerate(zip(STACK, spacings, strict=False)):
        options = {"metadata": {"spacing": spacing, "unit": "micron"}, "resolution": (2, 2)}
        tifffile.imwrite(path / f"s{number:04}.tif", plane, imagej=True, **options)
    return path


def test_slices_saved_by_fiji_keep_their_spacing(tmp_path):
    folder = fiji_sequence(tmp_path / "a", [3.0] * 6)
    assert place(folder) == ((3.0, 0.5, 0.5), ("micrometer",) * 3)
    assert place(folder / "s*.tif") == place(folder)


def test_slices_that_give_different_sizes_give_none(tmp_path, capsys):
    folder = fiji_sequence(tmp_path / "a", [3.0, 3.0, 2.0])
    assert place(folder) == ((1.0, 1.0, 1.0), (None, None, None))
    assert execute(["info", str(folder)]) == 0
    assert "remark    voxel size unknown: the slices give different ones" in capsys.readouterr().out


def test_an_imagej_time_step_is_told_of(tmp_path, capsys):
    options = {"axes": "TYX", "finterval": 2.5, "unit": "um"}
    tifffile.imwrite(tmp_path / "a.tif", STACK, imagej=True, metadata=options)
    assert open_volume(tmp_path / "a.tif")["t"].attrs == {"units": "second"}
    assert open_volume(tmp_path / "a.tif")["t"].values[2] == 5.0
    assert execute(["info", str(tmp_path / "a.tif")]) == 0
    assert "time      steps of 2.5 second" in capsys.readouterr().out


# --- from one volume to the next


def movie() -> xr.DataArray:
    """Axes t, c, z, y, x with all that can be said of them."""
    return xr.DataArray(
        np.arange(3 * 2 * 2 * 9 * 11, dtype="f4").reshape(3, 2, 2, 9, 11),
        dims=("t", "c", "z", "y", "x"),
        coords={
            "t": ("t", 10 + 2.5 * np.arange(3), {"units": "second"}),
            "c": ["DAPI", "GFP"],
            "z": ("z", 4.0 * np.arange(2), {"units": "micrometer"}),
            "y": ("y", 0.5 * np.arange(9), {"units": "micrometer"}),
            "x": ("x", 7 + 0.5 * np.arange(11), {"units": "micrometer"}),
        },
    )


def same_coords(found, expected):
    assert set(found.coords) == set(expected.coords)
    for name, coord in expected.coords.items():
        np.testing.assert_array_equal(found[name], coord)
        assert found[name].attrs == coord.attrs


def test_time_step_and_channels_survive_every_way_through(tmp_path):
    given = movie()
    made = to_zarr(given, tmp_path / "a.zarr")
    same_coords(open_volume(made), given)
    mapped = map_patches(lambda p: p, open_volume(made), {"y": 4, "x": 4})
    same_coords(mapped, given)
    same_coords(open_volume(to_zarr(mapped, tmp_path / "b.zarr")), given)
    same_coords(open_volume(to_zarr(open_volume(made), tmp_path / "c.zarr")), given)
    volpatch.run("identity", made, tmp_path / "d.zarr", patch={"y": 4, "x": 4})
    same_coords(open_volume(tmp_path / "d.zarr"), given)
    np.testing.assert_allclose(open_volume(tmp_path / "d.zarr"), given, rtol=1e-6)
    roi = {"patch": {"y": 4, "x": 4}, "roi": "t=1:3,c=GFP,z=1:2"}
    volpatch.run("identity", made, tmp_path / "e.zarr", **roi)
    part = open_volume(tmp_path / "e.zarr")
    assert list(part["c"].values) == ["GFP"]
    np.testing.assert_array_equal(part["t"], [12.5, 15.0])
    np.testing.assert_allclose(part, given[1:3, 1:2, 1:2], rtol=1e-6)


def test_channels_that_a_function_makes_have_no_names_of_others(tmp_path):
    made = to_zarr(movie()[0], tmp_path / "a.zarr")
    options = {"patch": {"z": 2, "y": 4, "x": 4}, "channel_axis": "c", "dtype": "float32"}
    volpatch.run(lambda p: p[::-1], made, tmp_path / "b.zarr", **options)
    assert "c" not in open_volume(tmp_path / "b.zarr").coords


def test_what_has_names_is_valid_and_open_to_xarray(tmp_path):
    for number, dtype in enumerate(("u2", "i1", "f4", "bool")):
        made = to_zarr(movie().astype(dtype), tmp_path / f"{number}.zarr")
        yaozarrs.validate_zarr_store(made)
        Image.from_zarr(zarr.open_group(made, mode="r"))
    opened = xr.open_zarr(tmp_path / "0.zarr", group="scale0", consolidated=False)
    np.testing.assert_array_equal(opened["t"], [10.0, 12.5, 15.0])
    to_zarr(movie(), tmp_path / "0.zarr", overwrite=True)  # knows all its files as its own


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore:The data type:Warning")
def test_what_xarray_wrote_has_its_time_step_and_channels(tmp_path, zarr_format):
    movie().rename("image").to_zarr(tmp_path / "a", zarr_format=zarr_format, consolidated=False)
    same_coords(open_volume(tmp_path / "a" / "image"), movie())


def test_positions_that_were_assigned_are_the_ones_that_are_written(tmp_path):
    made = to_zarr(movie(), tmp_path / "a.zarr")
    moved = open_volume(made).assign_coords(z=("z", [100.0, 103.0], {"units": "micrometer"}))
    same_coords(open_volume(to_zarr(moved, tmp_path / "b.zarr")), moved)
    named = open_volume(made).assign_coords(c=["a", "b"])
    same_coords(open_volume(to_zarr(named, tmp_path / "c.zarr")), named)
    # one position tells no distance: that of the stored volume stays
    first = to_zarr(movie()[:, :, :1], tmp_path / "d.zarr")
    volpatch.run("identity", made, tmp_path / "e.zarr", patch={"y": 4, "x": 4}, roi="z=0:1")
    again = to_zarr(open_volume(tmp_path / "e.zarr"), tmp_path / "f.zarr")
    assert place(first)[0][2] == 1.0
    assert place(again)[0][2] == 4.0


def test_names_that_are_not_one_for_each_channel_are_refused():
    from volpatch.core.errors import SettingError
    from volpatch.storage.codec import TargetSpec

    with pytest.raises(SettingError, match=r"must be one for each of 2 channels"):
        TargetSpec((2, 4, 4), "u1", ("c", "y", "x"), (1, 4, 4), channel_names=("a",))
