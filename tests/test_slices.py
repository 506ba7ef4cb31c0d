"""Which files of a folder make a stack, and what an error says where they make several."""

import os

import numpy as np
import pytest
import tifffile

import volpatch
from volpatch import open_volume
from volpatch.cli.main import execute
from volpatch.core.errors import SourceError

PLANES = (np.arange(12 * 5 * 6) + 1).reshape(12, 5, 6).astype("u2")


def slices(path, names):
    """A folder of slices; the n-th name holds the n-th plane."""
    path.mkdir(exist_ok=True)
    for name, plane in zip(names, PLANES, strict=False):
        tifffile.imwrite(path / name, plane)
    return path


def refused(path) -> str:
    with pytest.raises(SourceError) as caught:
        open_volume(path)
    said = str(caught.value)
    assert "\n" not in said
    return said


def numbered(pattern, numbers=range(4)):
    return [pattern.format(number) for number in numbers]


SEVERAL = {
    "channels": (
        numbered("DAPI_z{:03}.tif") + numbered("GFP_z{:03}.tif"),
        "2 kinds, and a stack is of one: 'DAPI_z*.tif' (4 files), 'GFP_z*.tif' (4 files)",
        {"DAPI_z*.tif": range(4), "GFP_z*.tif": range(4, 8)},
    ),
    "stray": (
        [*numbered("s_{:03}.tif", (0, 1, 2)), "overview.tif"],
        "'overview.tif' (1 file), 's_*.tif' (3 files)",
        {"s_*.tif": range(3), "overview.tif": None},
    ),
    "copy": (
        [*numbered("s_{:03}.tif"), "s_002 (copy).tif"],
        "'s_???.tif' (4 files), 's_002 (copy).tif' (1 file)",
        {"s_???.tif": range(4), "s_002 (copy).tif": None},
    ),
    "second copy": (
        [*numbered("s_{:03}.tif"), "s_002 (1).tif", "s_002 (2).tif"],
        "'s_???.tif' (4 files), 's_002 (*).tif' (2 files)",
        {"s_???.tif": range(4)},
    ),
    "other suffix": (
        [*numbered("s_{:03}.tif"), "s_001.tiff"],
        "'s_*.tif' (4 files), 's_001.tiff' (1 file)",
        {"s_*.tif": range(4)},
    ),
    "channel numbers": (
        numbered("c1_z{:02}.tif") + numbered("c2_z{:02}.tif"),
        "'c1_z*.tif' (4 files), 'c2_z*.tif' (4 files)",
        {"c1_z*.tif": range(4), "c2_z*.tif": range(4, 8)},
    ),
    "channels last": (
        [f"z{z}_c{c}.tif" for c in (1, 2) for z in range(4)],
        "'z*_c1.tif' (4 files), 'z*_c2.tif' (4 files)",
        {"z*_c1.tif": range(4), "z*_c2.tif": range(4, 8)},
    ),
    "three numbers": (
        [f"t{t}_c{c}_z{z}.tif" for t in (0, 1) for c in (1, 2) for z in range(3)],
        "4 kinds, and a stack is of one: 't0_c1_z*.tif' (3 files), 't0_c2_z*.tif' (3 files)",
        {"t0_c2_z*.tif": range(3, 6), "t1_c1_z*.tif": range(6, 9)},
    ),
    "brackets": (
        numbered("[a]{}.tif") + numbered("[b]{}.tif"),
        "'[[]a]*.tif' (4 files)",
        {"[[]b]*.tif": range(4, 8)},
    ),
    "no numbers": (["a.tif", "b.tif"], "'a.tif' (1 file), 'b.tif' (1 file)", {"a.tif": None}),
    "no pattern": (
        [*numbered("s{}.tif", (1, 9, 10)), "s1b.tif", "s9b.tif", "s10b.tif", "sb.tif", "sbb.tif"],
        "s1.tif to s10.tif (3 files)",
        {"s*b.tif": None},
    ),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_names_of_several_kinds_are_listed_with_a_pattern_for_each(tmp_path, case):
    names, said, patterns = SEVERAL[case]
    folder = slices(tmp_path / "scan", names)
    message = refused(folder)
    assert f"{folder} has names of " in message
    assert said in message
    for pattern, planes in patterns.items():
        if planes is not None:
            volume = open_volume(folder / pattern)
            np.testing.assert_array_equal(volume, PLANES[list(planes)])
    advised = message.partition("such as '")[2].partition("'")[0]
    assert advised  # the advice can be taken
    assert volpatch.plan(advised, patch=1, overlap=0).source.shape


ONE = {
    "plain": numbered("s_{}.tif"),
    "padding": numbered("s_{:03}.tif", range(9, 13)),
    "mixed padding": ["s_8.tif", "s_09.tif", "s_10.tif", "s_011.tif"],
    "a fixed number": numbered("scan20240131_z{}_w2.tif"),
    "a time beside": ["1_at93.tif", "2_at99.tif", "3_at112.tif"],
    "steps": numbered("s_{}.tif", (10, 20, 30)),
    "one": ["only.tif"],
    "capitals": ["s_1.tif", "s_2.TIF", "s_3.tif"],
}


@pytest.mark.parametrize("case", ONE)
def test_names_of_one_kind_are_a_stack(tmp_path, case):
    folder = slices(tmp_path / "scan", ONE[case])
    np.testing.assert_array_equal(open_volume(folder), PLANES[: len(ONE[case])])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (numbered("s_{}.tif", (1, 2, 4)), "lacks slice 3 between s_1.tif and s_4.tif"),
        (["s_1.tif", "s_01.tif", "s_2.tif"], "numbered unevenly"),
        (["s_1.tif", "s_1.TIF", "s_2.tif"], "numbered unevenly"),
        (["a1_7.tif", "a2_9.tif", "a4_3.tif"], "numbered unevenly"),
    ],
)
def test_numbers_that_skip_one_are_refused_also_where_a_pattern_chose(tmp_path, names, said):
    folder = slices(tmp_path / "scan", [*names, "overview.tif"])
    assert said in refused(folder / f"{names[0][0]}[0-9_]*")
    (folder / "overview.tif").unlink()
    assert said in refused(folder)


def test_files_that_are_no_images_are_passed_over_and_told_of(tmp_path, capfd):
    folder = slices(tmp_path / "scan", numbered("s_{}.tif"))
    for name in ("LICENSE", "notes.txt", "scan.json", "s.xml", "Thumbs.db", "z.log", ".hidden"):
        (folder / name).write_text("x")
    (folder / "old").mkdir()
    assert open_volume(folder).shape == (4, 5, 6)
    assert execute(["info", str(folder)]) == 0
    said = capfd.readouterr().out
    told = "passed over: LICENSE, Thumbs.db, notes.txt, old, s.xml and 2 more"
    assert f"remark    {told}" in said
    assert execute(["plan", str(folder), "--patch", "4"]) == 0
    assert f"          {told}\n" in capfd.readouterr().out
    assert execute(["info", str(folder / "s_*"), "--format", "json"]) == 0
    assert '"remarks": []' in capfd.readouterr().out


@pytest.mark.parametrize("name", ["preview.png", "s_4.JPG", "all.h5", "s_4.dcm"])
def test_images_of_another_kind_are_not_passed_over(tmp_path, name):
    folder = slices(tmp_path / "scan", numbered("s_{}.tif"))
    (folder / name).write_bytes(b"x")
    said = refused(folder)
    assert f"'{name}' (1 file)" in said
    assert f"such as '{folder}/s_*.tif'" in said


def test_a_slice_that_is_no_file_is_named(tmp_path):
    folder = slices(tmp_path / "scan", numbered("s_{}.tif"))
    os.symlink("gone.tif", folder / "s_4.tif")
    assert "s_4.tif is no file that can be read" in refused(folder)
    (folder / "s_4.tif").unlink()
    os.mkfifo(folder / "s_4.tif")
    assert "s_4.tif is no file that can be read" in refused(folder)


def test_a_pattern_is_a_source_wherever_a_path_is(tmp_path, capsys, monkeypatch):
    folder = slices(tmp_path / "scan", numbered("DAPI_z{:03}.tif") + numbered("GFP_z{:03}.tif"))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out.zarr"
    words = ["scan/GFP_z*.tif", "out.zarr", "--apply", "identity", "--patch", "2"]
    assert execute(["plan", *words, "-o", "job.json"]) == 0
    assert execute(["run", "job.json"]) == 0
    np.testing.assert_array_equal(open_volume(out), PLANES[4:8])
    next(file for file in (out / "scale0/image/c").rglob("*") if file.is_file()).unlink()
    monkeypatch.chdir(folder)
    volpatch.retry(out)
    np.testing.assert_array_equal(open_volume(out), PLANES[4:8])
    tifffile.imwrite(folder / "GFP_z004.tif", PLANES[0])
    with pytest.raises(SourceError, match=r"is now \(5, 5, 6\) uint16, but the job was planned"):
        volpatch.run_job(tmp_path / "job.json", target=tmp_path / "new.zarr")


def test_a_pattern_that_chooses_nothing_is_refused(tmp_path):
    folder = slices(tmp_path / "scan", numbered("s_{}.tif"))
    (folder / "notes.txt").write_text("x")
    assert "no file matches" in refused(folder / "t_*.tif")
    assert "has no TIFF slices in it (but 1 .txt)" in refused(folder / "notes*")
    assert "no such volume" in refused(tmp_path / "sc*" / "s_1.tif")
    assert "no such volume" in refused(tmp_path / "gone" / "s_*.tif")


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    slices(tmp_path, ["s[12].tif", "s1.tif", "s2.tif"])
    np.testing.assert_array_equal(open_volume(tmp_path / "s[12].tif"), PLANES[0])
