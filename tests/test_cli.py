"""The command: words become calls, stdout holds the result alone, exit codes tell what happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from scipy import ndimage

import volpatch
from volpatch.cli import main as cli
from volpatch.cli import streams
from volpatch.core.errors import RunError
from volpatch.core.grid import EDGES, PAD_MODES
from volpatch.core.options import BACKENDS, PROGRESS, BlendOptions, JobOptions
from volpatch.core.window import WINDOWS
from volpatch.planning import job
from volpatch.running import api

SHAPE = (24, 30, 34)
FUNCTIONS = """
import os, threading, time
import numpy as np

def double(patch):
    print("from python")
    os.system("echo from a child")
    return patch * np.float32(2)

def labels(patch): return patch
def wrong_shape(patch): return patch[1:].astype(np.float32)
def nothing(patch): return None
def listed(patch): return patch.tolist()
def complain(patch):
    if patch[0, 0, 0] == 0:
        fail_deep(patch)
    return patch.astype(np.float32)
def fail_deep(patch): raise ValueError("it is dark\\nin here")

calls = 0
def hang(patch):
    global calls
    calls += 1
    if calls > 6:
        threading.Thread(target=time.sleep, args=(60,), daemon=False).start()  # exits wait for it
        open(os.environ["HANGS"], "w").close()
        time.sleep(600)
    return patch.astype(np.float32)

def maker(factor=1):
    return lambda patch: patch * np.float32(factor)
"""


def write(path: Path, volume: np.ndarray) -> Path:
    tifffile.imwrite(path, volume, photometric="minisblack")
    return path


def stored(path: Path) -> np.ndarray:
    return np.asarray(zarr.open_array(path / "scale0/image", mode="r")[...])


@pytest.fixture
def volume() -> np.ndarray:
    return np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE)


@pytest.fixture
def folder(tmp_path, volume, monkeypatch) -> Path:
    """A folder to work in, with a volume and functions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])  # loading functions.py adds its folder
    write(tmp_path / "in.tif", volume)
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    return tmp_path


Answer = tuple[int, str, str]


@pytest.fixture
def ask(folder, capfd) -> Callable[..., Answer]:
    """Run the command in this process: exit code, stdout, stderr."""

    def run(*args: object) -> Answer:
        capfd.readouterr()
        code = cli.execute([str(a) for a in args])
        out, err = capfd.readouterr()
        return code, out, err

    return run


_spawned: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _nothing_is_left_running():
    yield
    while _spawned:
        with _spawned.pop() as process:
            process.kill()


def spawn(folder: Path, *args: object, **more: Any) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "volpatch", *map(str, args)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )
    _spawned.append(process)
    return process


def tree(folder: Path) -> list[tuple[str, int, int]]:
    """All that lies in a folder, but for what importing leaves behind."""
    paths = (p for p in folder.rglob("*") if "__pycache__" not in p.parts)
    return sorted((str(p), p.lstat().st_mtime_ns, p.lstat().st_size) for p in paths if p.is_file())


# -- words ---------------------------------------------------------------------------------


def test_options_reach_python_as_python_would_write_them(ask, monkeypatch):
    seen: dict[str, Any] = {}

    def fake(source: Any, target: Any, **given: Any) -> Any:
        seen.update(given)
        raise RunError("seen")

    monkeypatch.setattr(api, "plan", fake)
    text = (
        "--patch 8,16,16 --overlap 4,50%,0.25 --window hann,gaussian:3,crop --edge pad,shift,drop "
        "--offset 1 --batch-size 4 --dtype float32 --out-channels 2 --input-dtype uint8 "
        "--fill-value nan --pad-mode edge --pad-value -1.5 --chunks 16,32,32 --shards 64 "
        "--codec blosc-lz4 --region 128 --memory-limit 2GiB --func-memory 10MB --workers 3 "
        "--backend processes --concurrent-calls 2 --channel-axis c --roi z=0:64 --level 1 "
        "--missing fill --apply gaussian --param sigma=1.5 --finalize functions.py:labels"
    )
    assert ask("plan", "in.tif", *text.split())[0] == 1
    fill = seen.pop("fill_value")
    assert np.isnan(fill)
    assert seen.pop("func").to_json() == {
        "target": "gaussian",
        "parameters": {"sigma": 1.5},
        "factory": False,
    }
    assert seen.pop("finalize").target.endswith("functions.py:labels")
    assert seen == {
        "level": 1,
        "patch": (8, 16, 16),
        "overlap": ("4", "50%", "0.25"),
        "window": ("hann", "gaussian:3", "crop"),
        "edge": ("pad", "shift", "drop"),
        "offset": 1,
        "batch_size": 4,
        "dtype": "float32",
        "out_channels": 2,
        "input_dtype": "uint8",
        "pad_mode": "edge",
        "pad_value": -1.5,
        "chunks": (16, 32, 32),
        "shards": 64,
        "codec": "blosc-lz4",
        "region": 128,
        "memory_limit": "2GiB",
        "func_memory": "10MB",
        "workers": 3,
        "backend": "processes",
        "concurrent_calls": 2,
        "channel_axis": "c",
        "missing": "fill",
        "roi": "z=0:64",
    }


@pytest.mark.parametrize("command", ["run", "plan"])
def test_every_option_of_python_is_an_option_of_the_command(ask, command):
    code, out, _ = ask(command, "--help")
    assert code == 0
    for name in {**BlendOptions.__annotations__, **JobOptions.__annotations__}:
        option = {"skip": "skip-below"}.get(name, name.replace("_", "-"))
        assert f"--{option} " in out


def test_help_names_what_there_is(ask):
    _, out, _ = ask("run", "--help")
    words = out.replace("\n", " ")
    for name in ["`volpatch filters`", *WINDOWS, *PAD_MODES, *EDGES]:
        assert name in words
    assert f"[{'|'.join(BACKENDS)}]" in words
    assert f"[{'|'.join(PROGRESS)}]" in words


@pytest.mark.parametrize("command", [[], ["info"], ["plan"], ["run"], ["try"], ["demo"]])
def test_help_is_short_and_imports_nothing_heavy(command):
    code = (
        "import sys\nfrom volpatch.cli.main import execute\n"
        f"assert execute({[*command, '--help']}) == 0\n"
        "assert not {'numpy', 'zarr', 'dask', 'numba', 'xarray'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") <= 108


def test_version(ask):
    assert ask("--version") == (0, f"volpatch {volpatch.__version__}\n", "")


# -- results -------------------------------------------------------------------------------


def test_info_tells_what_a_volume_is(ask):
    code, out, err = ask("info", "in.tif")
    assert (code, err) == (0, "")
    assert "TIFF stack" in out
    assert "z=24 y=30 x=34 uint16, 47.8 KiB" in out
    code, out, _ = ask("info", "in.tif", "--format", "json")
    facts = json.loads(out)
    assert facts["shape"] == {"z": 24, "y": 30, "x": 34}
    assert facts["bytes"] == 2 * 24 * 30 * 34
    assert facts["levels"] == [[24, 30, 34]]


def test_names_in_a_volume_cannot_write_to_the_terminal(ask, folder):
    evil = "\x1b[2J\x07\n\u202e"
    group = zarr.create_group(folder / "g")
    group.create_array(f"a{evil}b", shape=(4, 5, 6), dtype="u1")
    code, _, err = ask("info", "g")
    assert code == 3
    assert r"in it: a\x1b[2J\x07" in err
    made = {"multiscales": [{"axes": [{"name": n} for n in "czyx"], "datasets": [{"path": "0"}]}]}
    omero = {"channels": [{"label": evil}]}
    image = zarr.create_group(folder / "i", attributes={"ome": {**made, "omero": omero}})
    image.create_array("0", shape=(1, 4, 5, 6), dtype="u1")
    code, out, _ = ask("info", "i")
    assert code == 0
    assert r"\x1b[2J\x07\n\u202e" in out
    assert not {"\x1b", "\x07", "\u202e"} & {*out, *err}


def test_a_missing_chunk_can_be_refused(ask, folder, volume):
    array = zarr.create_array(
        folder / "in.zarr", shape=SHAPE, chunks=(8, 10, 12), dtype=volume.dtype
    )
    array[...] = volume
    (folder / "in.zarr/c/1/0/2").unlink()
    args = ("in.zarr", "out.zarr", "--apply", "identity", "--patch", 16, "--progress", "none")
    code, _, err = ask("run", *args, "--missing", "error")
    assert code == 4
    assert "chunk c/1/0/2 of " in err
    assert not (folder / "out.zarr").exists()
    assert ask("run", *args, "--overwrite")[0] == 0
    assert not stored(folder / "out.zarr")[8:16, :10, 24:].any()


def test_info_of_an_output_says_that_it_is_ome_zarr(ask):
    ask("run", "in.tif", "out.zarr", "--apply", "identity", "--patch", 16)
    _, out, _ = ask("info", "out.zarr")
    assert "OME-Zarr image" in out
    assert "chunks    24 x 30 x 34, shards none" in out
    assert "Zarr array" in ask("info", "out.zarr/scale0/image")[1]


def test_run_prints_plan_and_report_and_does_the_work(ask, folder, volume):
    args = ("--apply", "median", "--param", "size=3", "--window", "crop", "--patch", 16)
    code, out, err = ask("run", "in.tif", "out.zarr", *args, "--progress", "none")
    assert (code, err) == (0, "")
    plan, report = out.index("patches   (16, 16, 16)"), out.index("wrote     ")
    assert plan < report
    assert np.array_equal(stored(folder / "out.zarr"), ndimage.median_filter(volume, 3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["text", "json"])
def test_stdout_holds_the_result_alone(folder, backend, form):
    args = ["--apply", "functions.py:double", "--patch", 20, "--backend", backend]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    process = spawn(folder, "run", "in.tif", "out.zarr", *args, "--format", form, env=env)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "from python" in err
    assert "from a child" in err
    assert "from" not in out.replace(str(folder), "")
    if form == "json":
        report = json.loads(out)
        assert report["shape"] == list(SHAPE)
        assert report["peak_bytes"] > 0
        assert "patches   (20, 20, 20)" in err
    else:
        assert out.startswith("source ")


def test_a_bar_is_drawn_on_stderr(ask):
    args = ("--apply", "identity", "--patch", 16, "--progress", "bar")
    _, out, err = ask("run", "in.tif", "out.zarr", *args)
    assert "100.0%" in err
    assert "%  " not in out


def test_a_factory_makes_the_function_with_its_parameters(ask, folder, volume):
    args = ("--factory", "functions.py:maker", "--param", "factor=3", "--patch", 16)
    code, *_ = ask("run", "in.tif", "out.zarr", *args, "--window", "crop")
    assert code == 0
    assert np.array_equal(stored(folder / "out.zarr"), volume.astype(np.float32) * 3)


def test_a_saved_plan_runs_as_it_was_planned(ask, folder):
    grid = ("--apply", "gaussian", "--patch", 16, "--overlap", "25%", "--roi", "z=4:20")
    code, out, err = ask("plan", "in.tif", "first.zarr", *grid, "-o", "job.json")
    assert (code, err) == (0, "saved job.json\n")
    assert "accumulator" in out
    assert not (folder / "first.zarr").exists()
    code, printed, _ = ask("plan", "in.tif", "first.zarr", *grid, "--format", "json")
    saved = json.loads((folder / "job.json").read_text())
    differing = {k for k in saved if saved[k] != json.loads(printed)[k]}
    assert differing <= {"options", "figures"}  # free memory and free disk change by the minute
    assert ask("run", "job.json")[0] == 0
    assert ask("run", "job.json", "second.zarr", "--durability", "process")[0] == 0
    assert ask("run", "in.tif", "third.zarr", *grid)[0] == 0
    assert stored(folder / "first.zarr").shape == (16, 30, 34)
    for name in ("second.zarr", "third.zarr"):
        assert np.array_equal(stored(folder / "first.zarr"), stored(folder / name))


def test_a_volume_far_too_big_is_planned_as_json(ask):
    zarr.create_array("big.zarr", shape=(10**5,) * 3, chunks=(256,) * 3, dtype="u2")
    code, out, _ = ask("plan", "big.zarr", "--memory-limit", "8GiB", "--format", "json")
    assert code == 0
    assert json.loads(out)["figures"]["bytes_written"] >= 2 * 10**15


def test_overwriting_is_asked_for(ask, folder):
    args = ("run", "in.tif", "out.zarr", "--apply", "identity", "--patch", 16)
    assert ask(*args)[0] == 0
    before = tree(folder)
    other = (*args, "--overlap", 4)
    code, out, err = ask(*other)
    assert (code, out) == (3, "")
    assert "pass --overwrite" in err
    assert tree(folder) == before
    assert ask(*other, "--overwrite")[0] == 0


# -- what is refused: what, why, what to do; nothing is written -------------------------------


def run(source: str = "in.tif", target: str = "out.zarr", **more: object) -> list[object]:
    """The words of a run; `apply` is identity unless it is given."""
    words = {"apply": "identity", "patch": 12, **more}
    pairs = ((f"--{k.replace('_', '-')}", v) for k, v in words.items() if v is not None)
    return ["run", source, target, *(word for pair in pairs for word in pair)]


def empty_file() -> None:
    Path("empty.tif").touch()


def empty_folder() -> None:
    Path("nothing").mkdir()


def plane() -> None:
    write(Path("plane.tif"), np.ones((40, 40), np.uint8))


def complex_zarr() -> None:
    zarr.create_array("complex.zarr", shape=(16, 16, 16), chunks=(8, 8, 8), dtype="c8")


def object_zarr() -> None:
    Path("object.zarr").mkdir()
    fields = {"shape": [16, 16, 16], "chunks": [8, 8, 8], "dtype": "|O", "order": "C"}
    fields |= {"compressor": None, "filters": [{"id": "pickle"}], "fill_value": 0}
    Path("object.zarr/.zarray").write_text(json.dumps({"zarr_format": 2, **fields}))


def output() -> None:
    Path("out.zarr").mkdir()
    Path("out.zarr/precious").write_text("mine")


def zarr_source() -> None:
    zarr.create_array("source.zarr", data=np.ones((16, 16, 16), np.uint8), chunks=(8, 8, 8))


def linked() -> None:
    zarr_source()
    Path("link.zarr").symlink_to("source.zarr")


def file_as_parent() -> None:
    Path("notes").write_text("mine")


def slices(skip: int | None = None, odd: int | None = None) -> None:
    Path("slices").mkdir()
    for z in range(16):
        if z != skip:
            shape = (20, 21) if z == odd else (20, 20)
            write(Path(f"slices/s_{z:03}.tif"), np.full(shape, z, np.uint8))


def gap() -> None:
    slices(skip=5)


def odd_one() -> None:
    slices(odd=5)


def cut_off() -> None:
    whole = Path("in.tif").read_bytes()
    Path("cut.tif").write_bytes(whole[: len(whole) // 2])


def bad_job() -> None:
    Path("job.json").write_text('{"volpatch_job": 99}')


REFUSED: dict[str, tuple[Any, list[object], list[str]]] = {
    "missing source": (None, run("none.tif"), ["no such volume", "none.tif"]),
    "source is a URL": (None, run("s3://bucket/a.zarr"), ["URL", "local"]),
    "empty file": (empty_file, run("empty.tif"), ["empty.tif"]),
    "empty folder": (empty_folder, run("nothing"), ["nothing"]),
    "2-D source, 3-D patch": (plane, run("plane.tif", patch="8,8,8"), ["3 sizes", "('y', 'x')"]),
    "complex": (complex_zarr, run("complex.zarr"), ["complex64", "float16/32/64"]),
    "object": (object_zarr, run("object.zarr"), ["object"]),
    "patch too large": (None, run(patch="25,16,16"), ["25", "24", "z", "pad"]),
    "stride 0": (None, run(stride=0), ["stride", "0"]),
    "stride and overlap": (None, run(stride=6, overlap=6), ["stride", "overlap"]),
    "overlap 100%": (None, run(overlap="100%"), ["100%", "less than"]),
    "overlap in voxels": (None, run(overlap=12), ["overlap 12", "patch 12"]),
    "overlap of nonsense": (None, run(overlap="half"), ["'half'", "50%"]),
    "gaps": (None, run(stride=14), ["no patch covers", "--fill-value VALUE"]),
    "sizes for too many axes": (None, run(patch="8,8,8,8"), ["4", "3"]),
    "unknown window": (None, run(window="han"), ["'han'", "hann"]),
    "crop mixed with others": (None, run(window="crop,hann,hann"), ["crop", "all axes"]),
    "unknown edge": (None, run(edge="wrap"), ["'wrap'", "shift"]),
    "unknown operation": (None, run(apply="gausian"), ["'gausian'", "did you mean 'gaussian'"]),
    "unknown module": (None, run(apply="no_such.module:f"), ["no_such", "current folder"]),
    "unknown function": (None, run(apply="math:sinn"), ["'sinn'", "did you mean 'sin'"]),
    "unknown file": (None, run(apply="none.py:f"), ["none.py"]),
    "function not in file": (None, run(apply="functions.py:doubel"), ["did you mean 'double'"]),
    "unknown parameter": (None, run(param="sigma=1"), ["identity", "sigma"]),
    "parameter of nonsense": (None, run(apply="gaussian", param="sigma=1,2"), ["JSON", "sigma"]),
    "wrong shape": (None, run(apply="functions.py:wrong_shape"), ["(11, 12, 12)", "(12, 12, 12)"]),
    "None": (None, run(apply="functions.py:nothing"), ["None", "patch", "wanted"]),
    "another type": (None, run(apply="functions.py:listed"), ["list", "patch", "wanted"]),
    "labels, weighted": (
        None,
        run(apply="functions.py:labels"),
        ["uint16", "--window crop", "--dtype uint16"],
    ),
    "target exists": (output, run(overwrite=None), ["exists", "move or delete it yourself"]),
    "target of others": (
        output,
        [*run(), "--overwrite"],
        ["not made by volpatch", "delete it yourself"],
    ),
    "target is the source": (None, run(target="in.tif"), ["is the input"]),
    "target inside": (zarr_source, run("source.zarr", "source.zarr/a", patch=8), ["lies inside"]),
    "through a link": (linked, run("source.zarr", "link.zarr/a", patch=8), ["lies inside"]),
    "the link itself": (linked, run("link.zarr", "source.zarr", patch=8), ["is the input"]),
    "parent is a file": (file_as_parent, run(target="notes/out.zarr"), ["is not a folder"]),
    "no parent": (None, run(target="there/out.zarr"), ["does not exist"]),
    "memory too small": (None, run(memory_limit="10MiB"), ["10.0 MiB", "--memory-limit 2"]),
    "memory without unit": (None, run(memory_limit=2), ["unit", "2GiB"]),
    "shards": (None, run(chunks=8, shards=12), ["12", "8", "multiple"]),
    "region": (None, run(chunks=8, region=12), ["region 12", "write unit 8"]),
    "unknown codec": (None, run(codec="snappy"), ["snappy", "zstd"]),
    "unknown dtype": (None, run(dtype="flaot32"), ["flaot32"]),
    "roi outside": (None, run(roi="z=0:99"), ["99", "24"]),
    "roi of no axis": (None, run(roi="t=0"), ["'t'", "'z'"]),
    "no such level": (None, run(level=3), ["level 3"]),
    "no such axis": (None, run(channel_axis="c"), ["c"]),
    "no workers": (None, run(workers=0), ["workers", "0"]),
    "no batch": (None, run(batch_size=0), ["--batch-size must", "got 0"]),
    "slice missing": (gap, run("slices", patch=8), ["slices"]),
    "odd slice": (odd_one, run("slices", patch=8), ["s_005.tif", "21"]),
    "truncated": (cut_off, run("cut.tif"), ["cut.tif"]),
    "job of another format": (bad_job, ["run", "job.json", "out.zarr"], ["job.json", "plan"]),
    "no job": (None, ["run", "none.json", "out.zarr"], ["none.json"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(ask, folder, case):
    prepare, args, words = REFUSED[case]
    if prepare is not None:
        prepare()
    before = tree(folder)
    code, out, err = ask(*args)
    assert (code, out) == (3, ""), err
    assert err.startswith("volpatch: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert tree(folder) == before
    assert not (folder / "out.zarr.volpatch").exists()


USAGE: dict[str, tuple[list[object], str]] = {
    "no such command": (["rum"], "rum"),
    "no such option": ([*run(), "--overlpa", "3"], "--overlap"),
    "no target": (["run", "in.tif", "--apply", "identity"], "TARGET"),
    "no function": (run(apply=None), "--apply and --factory"),
    "two functions": (run(factory="functions.py:maker"), "--apply and --factory"),
    "no number": (run(patch="a lot"), "64,128,128"),
    "a part of a voxel": (run(stride="1.5"), "'1.5'"),
    "unknown backend": (run(backend="cloud"), "'processes'"),
    "unknown progress": (run(progress="loud"), "'none'"),
    "parameter of nothing": (["plan", "in.tif", "--param", "sigma=1"], "--apply"),
    "a job has its settings": (["run", "job.json", "--patch", "8"], "--patch"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_told_from_wrong_settings(ask, folder, case):
    args, word = USAGE[case]
    before = tree(folder)
    code, out, err = ask(*args)
    assert (code, out) == (2, "")
    assert word in err
    assert "Traceback" not in err
    assert tree(folder) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_function_that_fails_midway_is_shown_with_patch_box_and_cause(ask, folder, backend):
    args = ("--patch", 12, "--apply", "functions.py:complain", "--backend", backend)
    code, out, err = ask("run", "in.tif", "out.zarr", *args)
    line, *frames = err.splitlines()
    assert code == 4
    assert "complain raised ValueError on patch (0, 0, 0) at [0:12, 0:12, 0:12]" in line
    assert "it is dark in here" in line
    assert frames[0].startswith("Traceback")
    assert "fail_deep" in err
    assert f'File "{streams.OURS}' not in err
    assert "wrote" not in out
    assert not (folder / "out.zarr").exists()
    args = ("--patch", 12, "--apply", "identity", "--overwrite")
    code, *_ = ask("run", "in.tif", "out.zarr", *args)
    assert code == 0
    assert not (folder / "out.zarr.volpatch").exists()


@pytest.mark.parametrize("position", [(0, 0, 0), (1, 1, 1)])
def test_a_corrupt_chunk_is_named(ask, folder, volume, position):
    zarr.create_array("bad.zarr", data=volume, chunks=(12, 15, 17))
    chunk = folder.joinpath("bad.zarr", "c", *map(str, position))
    chunk.write_bytes(chunk.read_bytes()[:-20])
    code, _, err = ask("run", "bad.zarr", "out.zarr", "--apply", "identity", "--patch", 10)
    assert code == 4
    assert f"chunk c/{'/'.join(map(str, position))} of" in err
    assert "Traceback" not in err
    assert not (folder / "out.zarr").exists()


# -- what goes wrong outside of the settings ---------------------------------------------------


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RunError("the disk is full"), "volpatch: the disk is full\n"),
        (OSError(28, "No space left on device"), "volpatch: No space left on device\n"),
        (MemoryError("9 GB"), "volpatch: out of memory: 9 GB; a lower --memory-limit may help\n"),
    ],
)
def test_a_failed_run_gives_one_line_and_1(ask, monkeypatch, error, line):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(api, "run", fail)
    assert ask(*run()) == (1, "", line)


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_of_our_own_that_is_not_there_gives_one_line_and_1(folder, backend):
    (folder / "starved.py").write_text(
        "from volpatch.cli import main as cli\n"
        "from volpatch.running import worker as work\n"
        "def starve(*_): raise MemoryError('9 GB')\n"
        "work.warm_up = starve\n"
        "if __name__ == '__main__': cli.main()"
    )
    words = [sys.executable, "starved.py", *map(str, run(backend=backend))]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    line = "volpatch: out of memory: 9 GB; a lower --memory-limit may help\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


def test_a_defect_of_ours_keeps_its_traceback(folder):
    code = (
        "from volpatch.cli import main as cli\n"
        "from volpatch.running import api\n"
        "def plan(*_, **__): raise KeyError('ours')\n"
        "api.plan = plan\n"
        "import sys; sys.argv = ['volpatch', 'plan', 'in.tif']\n"
        "cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("KeyError: 'ours'\n")


def test_the_job_file_must_be_writable(ask):
    code, out, err = ask("plan", "in.tif", "-o", "no/such/job.json")
    assert (code, out) == (3, "")
    assert "no/such/job.json" in err


def test_run_job_and_the_command_agree_on_what_a_job_is(folder):
    plan = volpatch.plan("in.tif", "out.zarr", patch=12, func="identity")
    job.save(plan, "job.json")
    assert job.load("job.json")["options"] == job.to_json(plan)["options"]


@pytest.mark.parametrize(
    ("backend", "number", "code"),
    [
        ("threads", signal.SIGINT, 130),
        ("processes", signal.SIGINT, 130),
        ("threads", signal.SIGTERM, 143),
        ("processes", signal.SIGTERM, 143),
    ],
)
def test_an_interrupt_ends_a_stuck_run_and_nothing_writes_afterwards(folder, backend, number, code):
    hangs = folder / "hangs"
    args = ["--apply", "functions.py:hang", "--patch", 10, "--chunks", 10, "--backend", backend]
    process = spawn(
        folder, "run", "in.tif", "out.zarr", *args, env={**os.environ, "HANGS": str(hangs)}
    )
    deadline = time.monotonic() + 40
    while not hangs.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    begin = time.monotonic()
    _, err = process.communicate(timeout=20)
    before = tree(folder)
    assert process.returncode == code
    assert time.monotonic() - begin < 10
    assert "Traceback" not in err
    assert not (folder / "out.zarr").exists()
    time.sleep(0.5)
    assert tree(folder) == before


def test_a_call_that_swallows_the_interrupt_is_cut_off(folder):
    (folder / "deaf.py").write_text(
        "import os, time\n"
        "def deaf(patch):\n"
        "    open(os.environ['HANGS'], 'w').close()\n"
        "    while True:\n"
        "        try: time.sleep(600)\n"
        "        except BaseException: pass\n"
    )
    hangs = folder / "hangs"
    env = {**os.environ, "HANGS": str(hangs)}
    process = spawn(folder, *run(apply="deaf.py:deaf"), env=env)
    while not hangs.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=cli.PATIENCE_SECONDS + 10)
    assert process.returncode == 130


def test_a_closed_pipe_is_no_drama(folder):
    script = f"{sys.executable} -m volpatch run --help | head -c 10"
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.stdout == "Usage: vol"
    assert "Traceback" not in done.stderr


def test_the_work_tree_of_an_interrupted_run_is_no_obstacle(ask, folder):
    assert ask("run", "in.tif", "out.zarr", "--apply", "identity", "--patch", 12)[0] == 0
    shutil.move("out.zarr", "kept.zarr")
    left = folder / "out.zarr.volpatch"
    (left / "tmp").mkdir(parents=True)
    (left / "data").mkdir()
    (left / "volpatch.json").write_text('{"volpatch": "0.1.0", "overwrite": false}')
    assert ask("run", "in.tif", "out.zarr", "--apply", "identity", "--patch", 12)[0] == 0
    assert not left.exists()
    assert np.array_equal(stored(folder / "out.zarr"), stored(folder / "kept.zarr"))


def test_a_job_file_replaces_nothing_but_a_job_file(ask, tmp_path):
    before = Path("in.tif").read_bytes()
    code, _, err = ask("plan", "in.tif", "-o", "in.tif")
    assert (code, Path("in.tif").read_bytes()) == (3, before)
    assert "would be written into" in err
    Path("notes.txt").write_text("mine")
    code, _, err = ask("plan", "in.tif", "-o", "notes.txt")
    assert (code, Path("notes.txt").read_text()) == (3, "mine")
    assert "is no job file, so it is left alone" in err
    assert ask("plan", "in.tif", "-o", "job.json")[0] == 0
    assert ask("plan", "in.tif", "-o", "job.json")[0] == 0


@pytest.mark.parametrize(
    "text", ['{"volpatch_job": 1}', '{"volpatch_job": 1, "source": "a"}', "[]"]
)
def test_a_damaged_job_file_is_named(ask, text):
    Path("bad.json").write_text(text)
    code, out, err = ask("run", "bad.json")
    assert (code, out) == (3, "")
    assert "bad.json" in err
    assert "Traceback" not in err


def test_a_factory_that_exits_is_a_failure(ask):
    Path("leave.py").write_text("import sys\n\ndef make():\n    sys.exit(0)\n")
    code, _, err = ask("run", "in.tif", "out.zarr", "--factory", "leave.py:make", "--patch", 8)
    assert code == 3
    assert "leave.py:make raised SystemExit" in err
    assert not Path("out.zarr").exists()
