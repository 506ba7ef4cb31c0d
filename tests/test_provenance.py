"""How an output was made: in its attributes, in its records, and as a line for the shell."""

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

import volpatch
from tests import helpers_functions as functions
from volpatch.storage.plan_file import PlanFile

OPTIONS = {
    "gaussian": "--apply gaussian --param sigma=[1,1.5,2] --patch 6 --overlap 25%",
    "crop": "--apply median --param size=3 --window crop --patch 5,6,7 --stride 4,5,6 --level 0",
    "pads": "--apply identity --edge pad,shift,pad --pad-mode constant --pad-value 7 --patch 6",
    "drops": "--apply identity --edge drop --stride 5 --patch 4 --fill-value 3 --offset 1,0,2",
    "part": "--apply identity --roi z=2:9,x=3:9 --patch 4 --chunks 4 --shards 8 --codec blosc-lz4",
    "floats": "--apply normalize --input-dtype float64 --dtype float32 --batch-size 3 --patch 5",
    "skips": "--apply identity --skip-below 90.5 --fill-value -1 --dtype int32 --patch 4",
    "mask": "--apply identity --mask mask.zarr --fill-value 0 --patch 4",
    "nan": "--apply identity --nan-policy omit --reduce max --missing fill --patch 4",
    "file": "--apply func.py:add --param by=2 --param 'name=\"3\"' --window crop --patch 4"
    " --depends-on func.py",
    "factory": "--factory func.py:make --finalize func.py:half --dtype uint8 --patch 4",
    "reach": "--apply func.py:smooth --reach 1,2,3 --chunks 4 --depends-on func.py",
    "filter": "--apply gaussian --param sigma=[0.5,1,0.5] --dtype float32",
    "resources": "--apply identity --patch 4 --chunks 4 --workers 1 --region 8 --memory-limit 2GiB",
}
CODE = """
def add(patch, by, name):
    assert name == "3"
    return patch + patch.dtype.type(by)

def smooth(patch):
    from scipy import ndimage
    return ndimage.uniform_filter(patch, [3, 5, 7])

def make():
    return lambda patch: patch

def half(block):
    return block / 2
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(volpatch.__file__).parents[1]))
    values = np.random.default_rng(0).integers(0, 99, (11, 12, 13)).astype(np.uint16)
    array = zarr.create_array("in.zarr", shape=values.shape, dtype="u2", chunks=(4, 5, 6))
    array[...] = values
    zarr.create_array("mask.zarr", data=(values > 95).astype("u1"))
    Path("func.py").write_text(CODE)
    return tmp_path


def objects(path):
    """The bytes of all that is not a record."""
    root = Path(path)
    files = (file for file in root.rglob("*") if file.is_file())
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in files
        if ".volpatch" not in file.parts
    }


@pytest.mark.parametrize("name", OPTIONS)
def test_the_line_that_is_told_makes_the_same_objects_again(here, ask, name):
    assert ask("run", "in.zarr", "out.zarr", *shlex.split(OPTIONS[name]))[0] == 0
    code, line, _ = ask("info", "out.zarr", "--command")
    assert code == 0
    assert line.startswith(f"volpatch run {here}/in.zarr {here}/out.zarr ")
    for word in ("--workers", "--region", "--memory-limit", "--func-memory"):
        assert word not in line
    before = objects("out.zarr")
    os.rename("out.zarr", "before.zarr")
    ran = line.replace("volpatch", f"{sys.executable} -m volpatch", 1)
    done = subprocess.run(ran, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert objects("out.zarr") == before
    assert ask("info", "out.zarr", "--command")[1] == line


def test_a_run_of_python_with_named_functions_is_told_as_a_command(here, ask):
    volpatch.run("gaussian", "in.zarr", "out.zarr", patch={"z": 4, "y": 5, "x": 6}, stride=3)
    _, line, _ = ask("info", "out.zarr", "--command")
    assert "--apply gaussian" in line
    assert "--patch 4,5,6 --stride 3" in line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"func": functions.half}, "was made with a function given as an object, .*half, which no"),
        (
            {"func": None, "setup": lambda: functions.half},
            "was made with a setup given as an",
        ),
        ({"finalize": abs}, "was made with a finalize given as an object"),
        ({"window": np.ones}, "with a mask or a window that is an object"),
        ({"patch": {"z": 4, "x": 4}}, "patches along z, x, and sizes on a command line are those"),
    ],
)
def test_what_no_command_can_say_is_told_so(here, ask, options, says):
    given = {"func": "identity", "patch": 4, "dtype": "uint16", **options}
    volpatch.run(given.pop("func"), "in.zarr", "out.zarr", **given)
    code, out, err = ask("info", "out.zarr", "--command")
    assert (code, out) == (3, "")
    assert re.search(says, err), err


def test_the_series_of_a_file_of_several_is_told_also_the_first(here, ask):
    with tifffile.TiffWriter("many.tif") as file:
        for shape in ((5, 20, 30), (4, 8, 9)):
            file.write(np.ones(shape, np.uint8), photometric="minisblack")
    for series in ("0", "1"):
        words = ["--series", series, "--apply", "identity", "--patch", "4"]
        assert ask("run", "many.tif", f"{series}.zarr", *words)[0] == 0
        assert f" --series {series} " in ask("info", f"{series}.zarr", "--command")[1]


def test_what_is_no_output_of_volpatch_has_no_command(here, ask):
    assert "has no records of how it was made" in ask("info", "in.zarr", "--command")[2]
    volpatch.to_zarr(np.zeros((4, 4, 4), np.uint8), "lazy.zarr")
    assert "was written by to_zarr, which is no command" in ask("info", "lazy.zarr", "--command")[2]


def test_attributes_and_records_tell_how_an_output_was_made(here, ask, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/volpatch", "run", "in.zarr", "an out.zarr"])
    words = "--apply gaussian --param sigma=2 --patch 6 --finalize func.py:half --dtype uint16"
    assert ask("run", "in.zarr", "out.zarr", *words.split())[0] == 0
    told = zarr.open_group("out.zarr", mode="r").attrs["volpatch"]
    assert told["function"] == "gaussian"
    assert told["parameters"] == {"sigma": 2}
    assert told["finalize"] == "func.py:half"
    assert (told["patch"], told["stride"], told["overlap"]) == ([6] * 3, [3] * 3, [3] * 3)
    assert (told["window"], told["edge"], told["source"]) == (
        ["hann"] * 3,
        ["shift"] * 3,
        "in.zarr",
    )
    assert told["version"] == volpatch.__version__
    assert str(here) not in json.dumps(told)
    made = PlanFile.load(here / "out.zarr/.volpatch").layout["made"]
    assert made["by"] == "volpatch run in.zarr 'an out.zarr'"
    assert made["source"] == f"{here}/in.zarr"
    assert made["versions"]["numpy"] == np.__version__
    _, text, _ = ask("info", "out.zarr")
    assert "made      gaussian(sigma=2), then func.py:half, of in.zarr" in text
    assert f"from {here}/in.zarr" in text
    assert f"numpy {np.__version__}" in text
    assert "volpatch run in.zarr 'an out.zarr'" in text
    facts = json.loads(ask("info", "out.zarr", "--format", "json")[1])["made"]
    assert facts["parameters"] == {"sigma": 2}
    assert json.loads(ask("info", "in.zarr", "--format", "json")[1])["made"] is None


def test_time_and_command_make_no_other_job(here, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["first"])
    volpatch.run("identity", "in.zarr", "out.zarr", patch=4, part="0/2", chunks=4, region=4)
    monkeypatch.setattr(sys, "argv", ["second"])
    report = volpatch.run("identity", "in.zarr", "out.zarr", patch=4, chunks=4, region=4)
    assert report.complete
    volpatch.run("identity", "in.zarr", "once.zarr", patch=4, chunks=4)
    assert objects("out.zarr") == objects("once.zarr")


def test_a_partial_is_called_by_its_function(here):
    volpatch.run(functools.partial(functions.half), "in.zarr", "out.zarr", patch=4)
    assert zarr.open_group("out.zarr", mode="r").attrs["volpatch"]["function"] == "half"
