"""A TIFF file gives the image that is meant: no page read as another, no series left out."""

import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tifffile

import volpatch
from volpatch import open_volume
from volpatch.cli.main import execute
from volpatch.core.errors import SettingError, SourceError, VolpatchError

STACK = (np.arange(24 * 40 * 48) % 60_000 + 1).reshape(24, 40, 48).astype("u2")


def refused(path, **options) -> str:
    with pytest.raises(SourceError) as caught:
        open_volume(path, **options)
    said = str(caught.value)
    assert "\n" not in said
    return said


def one_by_one(path: Path, planes, odd=None, **of_the_odd) -> Path:
    """Pages written one by one without metadata; page 5 may have other options."""
    with tifffile.TiffWriter(path) as tif:
        for number, plane in enumerate(planes):
            options = of_the_odd if number == 5 else {}
            data = odd if number == 5 and odd is not None else plane
            tif.write(data, metadata=None, contiguous=False, **options)
    return path


def field(path: Path, page: int, code: int, value: int) -> None:
    """Put another value into a field of a page's header."""
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[page].tags[code].overwrite(value)


# --- pages that are not alike


@pytest.mark.parametrize(
    ("odd", "options", "said"),
    [
        (STACK[5, :39], {}, "1 (39, 48) uint16 (page 5)"),
        (STACK[5, :, :47], {}, "1 (40, 47) uint16 (page 5)"),
        (STACK[5].astype("i2"), {}, "1 (40, 48) int16 (page 5)"),
        (STACK[5].astype("f2"), {}, "1 (40, 48) float16 (page 5)"),
        (STACK[5].astype("u1"), {}, "1 (40, 48) uint8 (page 5)"),
        (None, {"compression": "zlib"}, "1 (40, 48) uint16 adobe_deflate (page 5)"),
        (None, {"photometric": "miniswhite"}, "1 (40, 48) uint16 (page 5)"),
        (None, {"tile": (16, 16)}, "1 (40, 48) uint16 (page 5)"),
        (None, {"rowsperstrip": 7}, "1 (40, 48) uint16 (page 5)"),
    ],
)
def test_a_page_that_is_not_like_the_others_is_named(tmp_path, odd, options, said):
    path = one_by_one(tmp_path / "a.tif", STACK, odd, **options)
    assert f"0 (23, 40, 48) uint16 (pages 0 to 4, 6 to 23); {said}" in refused(path)
    np.testing.assert_array_equal(open_volume(path, series=0), np.delete(STACK, 5, axis=0))
    expected = STACK[5] if odd is None else odd
    np.testing.assert_array_equal(open_volume(path, series=1), expected)


WRITERS = {
    "imagej": ({"imagej": True}, "imagej"),
    "shaped": ({"metadata": {"axes": "ZYX"}}, "tifffile"),
    "ome": ({"ome": True, "metadata": {"axes": "ZYX"}}, "OME"),
    "zlib": ({"compression": "zlib", "metadata": {"axes": "ZYX"}}, "tifffile"),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("code", "value", "said"),
    [
        (257, 39, "length 39 (not 40)"),
        (259, 32773, "compression 32773 (not "),
        (258, 32, "bits 32 (not 16)"),
    ],
)
def test_metadata_of_the_first_page_do_not_hide_an_odd_one(tmp_path, kind, code, value, said):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, imagej=kind == "imagej", ome=kind == "ome") as tif:
        options = {key: v for key, v in WRITERS[kind][0].items() if key not in ("imagej", "ome")}
        tif.write(STACK, contiguous=False, **options)
    assert open_volume(path).shape == STACK.shape
    field(path, 5, code, value)
    assert f"page 5 of {path} is not like the first of its series: it has {said}" in refused(path)


def test_a_page_of_other_bytes_is_named_whatever_its_shape(tmp_path):
    path = one_by_one(tmp_path / "a.tif", STACK)
    field(path, 5, 279, 3838)
    said = refused(path)
    assert "page 5 of" in said
    assert "it has bytes 3838 (not 3840); put it right, or take it out" in said


def test_strips_that_do_not_follow_each_other_are_not_read_as_if_they_did(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        for plane in STACK[:9]:
            tif.write(plane, metadata=None, contiguous=False, rowsperstrip=20)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tag = tif.pages[5].tags[273]
        tag.overwrite(tag.value[::-1])
    assert "page 5 of" in refused(path)
    assert "gaps True (not False)" in refused(path)


def test_pages_of_an_imagej_stack_that_are_elsewhere_are_not_read_in_one_go(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, imagej=True)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        first, second = (tif.pages[number].tags[273] for number in (5, 6))
        places = first.value[0], second.value[0]
        first.overwrite(places[1])
        second.overwrite(places[0])
    said = refused(path)
    assert f"the voxels of page 5 of {path} begin at byte {places[1]}" in said
    assert f"would put them at {places[0]}; save it anew" in said


def test_more_pages_than_an_imagej_header_tells_of_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, imagej=True, metadata={"axes": "ZYX"})
    content = path.read_bytes()
    assert content.count(b"images=24\nslices=24") == 1
    path.write_bytes(content.replace(b"images=24\nslices=24", b"images=20\nslices=20"))
    assert "has 24 pages, and its ImageJ header describes 20" in refused(path)


def test_pages_that_no_ome_image_has_are_told_of(tmp_path, capsys):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, STACK[:8], metadata={"axes": "ZYX"})
    content = path.read_bytes()
    for name in (b"SizeZ", b"PlaneCount"):
        assert content.count(name + b'="8"') == 1
        content = content.replace(name + b'="8"', name + b'="6"')
    path.write_bytes(content)
    assert execute(["info", str(path)]) == 0
    said = capsys.readouterr().out
    assert "z=6 y=40 x=48" in said
    remark = "2 of its 8 pages are part of no image by its OME metadata, and left out: 6 to 7"
    assert f"remark    {remark}" in said
    assert remark in volpatch.plan(path, patch=6).explain()


def test_many_pages_take_little_memory_to_compare(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        for number in range(1_000):
            tif.write(np.full((2, 3), number, "u2"), metadata=None, contiguous=False)
    from volpatch.storage.readers.tiff_pages import PageHeaders

    tracemalloc.start()
    try:
        headers = PageHeaders(str(path))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(headers), headers.alike) == (1_000, True)
    assert held < 1_000 * 250


# --- headers that claim what cannot be


def big_tiff(entries: int, rest: bytes = bytes(400)) -> bytes:
    return b"II" + struct.pack("<HHHQQ", 43, 8, 0, 16, entries) + rest


@pytest.mark.parametrize("count", [2**64 - 1, 2**63 - 1, 2**60, 10**6, 5_000, 0])
def test_an_absurd_number_of_fields_is_refused(tmp_path, count):
    (tmp_path / "a.tif").write_bytes(big_tiff(count))
    said = refused(tmp_path / "a.tif")
    assert f"is damaged: the header of page 0 claims {count} fields, and 1 to 4096 can be" in said


@pytest.mark.parametrize("code", [270, 273, 279, 330, 700])
@pytest.mark.parametrize("count", [2**63, 2**40])
def test_an_absurd_number_of_values_is_refused(tmp_path, code, count):
    entry = struct.pack("<HHQQ", code, 16, count, 64)
    (tmp_path / "a.tif").write_bytes(big_tiff(1, entry + bytes(400)))
    said = refused(tmp_path / "a.tif")
    assert f"it has 444 bytes, and field {code} of page 0 claims {count} values" in said


@pytest.mark.parametrize("first", [2**64 - 1, 2**63, 10**9])
def test_a_first_page_beyond_the_end_is_refused(tmp_path, first):
    head = b"II" + struct.pack("<HHHQ", 43, 8, 0, first)
    (tmp_path / "a.tif").write_bytes(head + bytes(100))
    assert f"is truncated: it has 116 bytes, its page 0 is described at byte {first}" in refused(
        tmp_path / "a.tif"
    )


@pytest.mark.parametrize("back_to", [0, 3, 7])
def test_a_chain_of_pages_that_runs_in_a_circle_is_refused(tmp_path, back_to):
    path = one_by_one(tmp_path / "a.tif", STACK[:8])
    with tifffile.TiffFile(path) as tif:
        offsets = [page.offset for page in tif.pages]
    with open(path, "r+b") as file:
        file.seek(offsets[7])
        (entries,) = struct.unpack("<H", file.read(2))
        file.seek(offsets[7] + 2 + 12 * entries)
        file.write(struct.pack("<I", offsets[back_to]))
    assert "is damaged: its page 8 is nowhere" in refused(path)


# --- several series


def series_file(path: Path, images, **options) -> Path:
    with tifffile.TiffWriter(path) as tif:
        for image in images:
            tif.write(image, **options)
    return path


def test_series_are_listed_and_one_can_be_chosen(tmp_path):
    path = series_file(tmp_path / "a.tif", [STACK[0, ::4, ::4], STACK[:9], STACK[9:11]])
    said = refused(path)
    assert (
        f"{path} holds 3 series of image data, and a volume is one: 0 (10, 12) uint16; "
        f"1 (9, 40, 48) uint16; 2 (2, 40, 48) uint16. Choose with series=N" in said
    )
    assert "stack them" not in said
    np.testing.assert_array_equal(open_volume(path, series=1), STACK[:9])
    np.testing.assert_array_equal(open_volume(path, series=0), STACK[0, ::4, ::4])
    assert "has no series 3; it has 0 (10, 12) uint16; 1" in refused(path, series=3)
    assert "differ, so they are no one stack: 0 (10, 12)" in refused(path, series="all")


def test_a_thumbnail_as_first_page_does_not_hide_the_stack(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        tif.write(STACK[0, ::4, ::4], metadata=None)
        for plane in STACK[1:]:
            tif.write(plane, metadata=None, contiguous=False)
    assert "0 (10, 12) uint16 (page 0); 1 (23, 40, 48) uint16 (pages 1 to 23)" in refused(path)
    np.testing.assert_array_equal(open_volume(path, series=1), STACK[1:])


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib"}, {"rowsperstrip": 7}, {"tile": (16, 16)}], ids=str
)
@pytest.mark.parametrize("ndim", [2, 3])
def test_series_that_are_alike_make_one_stack(tmp_path, options, ndim):
    data = STACK if ndim == 2 else STACK.reshape(6, 4, 40, 48)
    path = series_file(tmp_path / "a.tif", data, photometric="minisblack", **options)
    said = refused(path)
    assert f"{len(data)} series of image data" in said
    assert f"0 to {len(data) - 1} each {data.shape[1:]} uint16" in said
    assert "or stack them with series='all'" in said
    volume = open_volume(path, series="all")
    assert volume.dims == (("z", "y", "x") if ndim == 2 else ("series", "z", "y", "x"))
    np.testing.assert_array_equal(volume, data)
    np.testing.assert_array_equal(volume[1:3, ..., 5:9, 11], data[1:3, ..., 5:9, 11])


def test_an_odd_page_inside_of_a_stack_of_series_is_named(tmp_path):
    path = series_file(tmp_path / "a.tif", STACK[:8], photometric="minisblack")
    field(path, 5, 262, 0)
    assert "page 5 of" in refused(path, series="all")
    assert "photometric 0 (not 1)" in refused(path, series="all")


def test_series_of_ome_files_have_names_voxel_sizes_and_levels_of_their_own(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        for name, size in (("left", 0.5), ("right", 2.0)):
            sizes = {"PhysicalSizeX": size, "PhysicalSizeY": size, "PhysicalSizeZ": 3.0}
            names = {"Name": name, "axes": "ZYX", **sizes}
            tif.write(STACK[:3], subifds=1, tile=(16, 16), metadata=names)
            tif.write(STACK[:3, ::2, ::2], subfiletype=1, tile=(16, 16))
    said = refused(path)
    assert "0 'left' (3, 40, 48) uint16; 1 'right' (3, 40, 48) uint16" in said
    second = volpatch.plan(path, series=1, level=1, patch=3).source
    assert (second.series, second.level, second.shape) == (1, 1, (3, 20, 24))
    assert open_volume(path, series=1)["x"].values[1] == 2.0
    assert open_volume(path, series=0, level=1)["x"].values[0] == 0.25
    assert "have other voxel sizes or channels, so they are no one stack" in refused(
        path, series="all"
    )


def test_a_pyramid_is_one_series(tmp_path):
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(STACK, subifds=1, tile=(16, 16), metadata={"axes": "ZYX"})
        tif.write(STACK[:, ::2, ::2], subfiletype=1, tile=(16, 16))
    assert open_volume(path).shape == STACK.shape
    assert open_volume(path, series=0, level=1).shape == (24, 20, 24)
    assert volpatch.plan(path, series="all").source.series is None


def test_the_only_series_can_be_named_all_or_0(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", STACK, metadata={"axes": "ZYX"})
    for series in (None, 0, "all"):
        assert open_volume(tmp_path / "a.tif", series=series).shape == STACK.shape
    assert "has no series 1; it has 0 (24, 40, 48) uint16" in refused(tmp_path / "a.tif", series=1)


@pytest.mark.parametrize("series", [-1, True, 1.0, "1", "every"])
def test_series_is_a_number_or_all(tmp_path, series):
    with pytest.raises(SettingError, match="series must be a whole number from 0, or 'all'"):
        open_volume(tmp_path, series=series)


def test_only_a_tiff_file_has_series(tmp_path):
    made = volpatch.to_zarr(STACK, tmp_path / "a.zarr")
    assert "has no series 0: only a TIFF file may hold several; leave series out" in refused(
        made, series=0
    )
    (tmp_path / "slices").mkdir()
    tifffile.imwrite(tmp_path / "slices" / "s_1.tif", STACK[0])
    assert "has no series all: only a TIFF" in refused(tmp_path / "slices", series="all")
    tif = series_file(tmp_path / "a.tif", STACK[:4])
    with pytest.raises(SettingError, match=r"is open already, with series=2; pass series to open"):
        volpatch.plan(open_volume(tif, series=2), series=1)


def test_series_reach_a_run_its_records_and_its_job(tmp_path, capsys):
    path = series_file(tmp_path / "a.tif", [STACK[:9], STACK[9:18], STACK[:2]])
    out, job = tmp_path / "out.zarr", tmp_path / "job.json"
    words = [str(path), str(out), "--apply", "identity", "--patch", "8", "--region", "64"]
    assert execute(["plan", *words, "--series", "1", "-o", str(job)]) == 0
    assert json.loads(job.read_text())["series"] == 1
    assert execute(["run", str(job)]) == 0
    np.testing.assert_array_equal(open_volume(out), STACK[9:18])
    # a repair reads the same series again
    victim = next(file for file in (out / "scale0/image/c").rglob("*") if file.is_file())
    victim.unlink()
    volpatch.retry(out)
    np.testing.assert_array_equal(open_volume(out), STACK[9:18])


@pytest.mark.parametrize(
    ("command", "words", "code", "said"),
    [
        ("info", [], 3, "holds 3 series"),
        ("info", ["--series", "0", "--format", "json"], 0, '"series": 0'),
        ("info", ["--series", "2"], 0, "series    2"),
        ("plan", ["--series", "x"], 2, "'x' is no number from 0 on, nor 'all'"),
        ("plan", [], 3, "--series N"),
        ("plan", ["--series", "all"], 3, "no one stack"),
    ],
)
def test_the_command_takes_a_series(tmp_path, capsys, command, words, code, said):
    path = series_file(tmp_path / "a.tif", [STACK[:9], STACK[9:18], STACK[:2]])
    assert execute([command, str(path), *words]) == code
    out, err = capsys.readouterr()
    assert said in out + err


def test_a_run_that_goes_on_is_that_of_the_same_series(tmp_path):
    path = series_file(tmp_path / "a.tif", [STACK[:9], STACK[9:18]])
    options = {"patch": 8, "region": {"z": 64, "y": 64, "x": 64}}
    volpatch.run("identity", path, tmp_path / "o.zarr", series=0, part="0/2", **options)
    with pytest.raises(VolpatchError, match="series"):
        volpatch.run("identity", path, tmp_path / "o.zarr", series=1, part="1/2", **options)
