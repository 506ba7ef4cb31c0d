"""What is done stays done: plans that must agree, parts, records, and runs that were cut short."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import volpatch
from tests.helpers_functions import MISDEEDS
from tests.helpers_runs import GRID, HERE, SHADE, command, shaded, tree, volume_with, words
from tests.helpers_stores import image, objects, same, store
from volpatch import IncompleteError, MemoryLimitError, SettingError, TargetError
from volpatch.functions.named import FunctionSpec
from volpatch.storage.ledger import Ledger
from volpatch.storage.plan_file import PlanFile
from volpatch.storage.records import (
    FAILED,
    MISSING,
    STARTED,
    Recorder,
    RecordReader,
    State,
    decode_line,
    encode_line,
)
from volpatch.storage.stores.local import AtomicFiles

RAISES = list(MISDEEDS).index("raises")
BAD = "tests.helpers_functions:misbehave"
BASE = {**HERE, "patch": 6, "stride": 4, "chunks": 8, "region": 8}


def run(function, source, target, **options):
    return volpatch.run(function, source, target, **{**GRID, **HERE, **options})


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder that functions find too, with a volume on whose region 20 `misbehave` fails."""
    monkeypatch.setenv("VOLPATCH_TEST_FOLDER", str(tmp_path))
    store(tmp_path / "in.zarr", volume_with({20: RAISES}), 8)
    return tmp_path


# -- plans that must agree ---------------------------------------------------------------------

MASK = np.ones((24, 24, 24), bool)
OTHER_MASK = MASK.copy()
OTHER_MASK[:4] = False
# what a run was begun with, what is asked for then, and what is said
FIELDS = {
    "patch": ({}, {"patch": 5}, r"grid\.patch was \[6, 6, 6\] and is now \[5, 5, 5\]"),
    "stride": ({}, {"stride": 3}, r"grid\.stride was \[4, 4, 4\] and is now \[3, 3, 3\]"),
    "overlap": ({"stride": None, "overlap": 2}, {"overlap": 3}, r"grid\.stride was \[4, 4, 4\]"),
    "window": ({}, {"window": "triangle"}, r"window was \[\"hann\".* is now \[\"triangle\""),
    "window function": ({"window": np.hamming}, {"window": np.ones}, r"window was \[\[0\.\d.*1"),
    "edge": ({}, {"edge": "pad"}, r"grid\.edge was \[\"shift\".* is now \[\"pad\""),
    "offset": (
        {"fill_value": 0},
        {"offset": 1},
        r"grid\.offset was \[0, 0, 0\] and is now \[1, 1, 1\]",
    ),
    "dtype": ({}, {"dtype": "float64"}, r"output\.dtype was \"float32\" and is now \"float64\""),
    "input_dtype": ({}, {"input_dtype": "i4"}, r"input_dtype was \"uint16\" and is now \"int32\""),
    "fill_value": ({"fill_value": 1}, {"fill_value": 2}, r"fill_value was \"1\" and is now \"2\""),
    "pad_mode": ({"edge": "pad"}, {"pad_mode": "edge"}, r"pad_mode was \"reflect\" .* \"edge\""),
    "pad_value": (
        {"edge": "pad", "pad_mode": "constant"},
        {"pad_value": 3},
        r"pad_value was \"0\" and is now \"3\"",
    ),
    "nan_policy": ({}, {"nan_policy": "omit"}, r"nan_policy was \"propagate\" and is now \"omit\""),
    "reduce": ({}, {"reduce": "max"}, r"reduce was \"mean\" and is now \"max\""),
    "mask": (
        {"mask": MASK, "fill_value": 0},
        {"mask": OTHER_MASK},
        r"mask was \[+24.*is now \[+24",
    ),
    "mask at all": (
        {"fill_value": 0},
        {"mask": MASK},
        r"mask was nothing and is now \[+24, 24, 24\]",
    ),
    "skip": ({"skip": 1, "fill_value": 0}, {"skip": 2}, r"skip was 1 and is now 2"),
    "roi": ({}, {"roi": "z=1:"}, r"roi was \[\[0, 0, 0\], .* and is now \[\[1, 0, 0\]"),
    "channel_axis": (
        {},
        {"channel_axis": "z", "region": None},
        r"channel_axis was nothing and is now 0",
    ),
    "chunks": ({}, {"chunks": 4}, r"output\.chunks was \[8, 8, 8\] and is now \[4, 4, 4\]"),
    "larger chunks": ({}, {"chunks": 12, "region": None}, r"output\.chunks was \[8.* now \[12"),
    "shards": ({}, {"shards": 16, "region": None}, r"output\.shards was nothing .* \[16, 16, 16\]"),
    "codec": (
        {},
        {"codec": "blosc-lz4"},
        r"output\.codec was \"blosc-zstd:1\" and is now \"blosc-lz4:5\"",
    ),
    "batches at all": ({}, {"batch_size": 2}, r"batches was false and is now true"),
    "func_version": (
        {"func_version": "1"},
        {"func_version": "2"},
        r"func_version was \"1\" and is now \"2\"",
    ),
    "fingerprint": ({}, {"fingerprint": "full"}, r"source\.files was \"sample\" .* \"full\""),
    "finalize": (
        {"finalize": "tests.helpers_functions:identity"},
        {"finalize": "tests.helpers_functions:half"},
        r"finalize\.target was \".*:identity\" and is now \".*:half\"",
    ),
    "finalize at all": ({}, {"finalize": np.sqrt}, r"finalize\.target was nothing .*numpy:sqrt"),
    "region": (
        {},
        {"region": 16},
        r"region=\(16, 16, 16\) is asked for, but .* begun with regions of \(8, 8, 8\)",
    ),
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_run_does_not_go_on_with_another_plan(here, field):
    begun, change, says = FIELDS[field]
    with pytest.raises(IncompleteError):
        volpatch.run(BAD, here / "in.zarr", here / "out.zarr", **{**BASE, **begun})
    before = tree(here)
    with pytest.raises(TargetError, match=says) as caught:
        volpatch.run(BAD, here / "in.zarr", here / "out.zarr", **{**BASE, **begun, **change})
    assert caught.value.exit_code == 3
    assert "start over with overwrite=True" in str(caught.value)
    assert tree(here) == before


CODE = """
import numpy as np

class Maker:
    def __init__(self, gain=1): self.gain = gain
    def __call__(self, patch): return f(patch, self.gain)

def make(gain=1): return Maker(gain)

def f(patch, gain=1):
    if patch.flat[0] >= 1000:
        raise ValueError("too dark")
    return patch * np.float32(gain)

def g(patch, gain=1): return patch * np.float32(gain)
"""


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("f", "g", r"function\.target was .*user\.py:f\" and is now .*user\.py:g\"[;.]"),
        (("f", {"gain": 2}), ("f", {"gain": 3}), r"function\.parameters\.gain was 2 and is now 3"),
        ("make()", ("make()", {"gain": 2}), r"function\.parameters\.gain was nothing .* now 2"),
        ("f", "make()", r"function\.factory was false and is now true"),
    ],
)
def test_a_run_does_not_go_on_with_another_function(here, monkeypatch, before, after, says):
    monkeypatch.setattr(sys, "path", sys.path[:])
    folder = here / ("long" * 25)  # so that only a part of it is shown
    folder.mkdir()
    (folder / "code_of_a_user.py").write_text(CODE)

    def spec(words):
        name, parameters = (words, {}) if isinstance(words, str) else words
        plain = name.removesuffix("()")
        return FunctionSpec.parse(
            f"{folder}/code_of_a_user.py:{plain}", parameters, factory=plain != name
        )

    with pytest.raises(IncompleteError):
        run(spec(before), here / "in.zarr", here / "out.zarr")
    with pytest.raises(TargetError, match=says):
        run(spec(after), here / "in.zarr", here / "out.zarr")


def test_a_run_does_not_go_on_when_files_it_is_made_of_changed(here, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    code, weights = here / "code_of_a_user.py", here / "weights.bin"
    code.write_text(CODE)
    weights.write_text("one")

    def go(**more):
        target = here / "out.zarr"
        function = FunctionSpec.parse(f"{code}:f")
        return run(function, here / "in.zarr", target, depends_on=[weights], **more)

    with pytest.raises(IncompleteError):
        go()
    weights.write_text("two")
    with pytest.raises(
        TargetError, match=r"depends_on\.1 \(.*weights\.bin\) was \"\w{12}\.\.\.\" and"
    ):
        go()
    weights.unlink()
    with pytest.raises(SettingError, match=r"weights\.bin', which the result depends on, cannot"):
        go()
    weights.write_text("one")
    code.write_text(CODE.replace('"too dark"', '"too bright"'))
    with pytest.raises(TargetError, match=r"function\.code was \"\w{12}\.\.\.\" and is now"):
        go()
    code.write_text("# moved\n" + CODE)
    with pytest.raises(IncompleteError):
        go()  # all is as it was: it goes on
    shutil.rmtree(here / "in.zarr")
    store(here / "in.zarr", volume_with({20: RAISES}), (8, 8, 24))
    with pytest.raises(TargetError, match=r"source\.metadata was"):
        go()
    shutil.rmtree(here / "in.zarr")
    store(here / "in.zarr", volume_with({20: RAISES}) + 1, 8)
    with pytest.raises(TargetError, match=r"c/0/0/0' of the input changed, and 26 regions"):
        go()
    code.write_text(CODE.replace(">= 1000", ">= 5000"))
    go(overwrite=True)
    same(image(here / "out.zarr"), (volume_with({20: RAISES}) + 1).astype("float32"))


@pytest.mark.parametrize("which", ["setup", "function"])
def test_objects_are_told_apart_by_what_they_carry(here, which):
    class Gain:
        def __init__(self, gain):
            self.gain = gain

        def __call__(self, patch):
            if patch.flat[0] >= 1000:
                raise ValueError
            return patch * np.float32(self.gain)

    def go(gain):
        if which == "function":
            return run(Gain(gain), here / "in.zarr", here / "out.zarr")
        maker = functools.partial(Gain, gain)
        return run(None, here / "in.zarr", here / "out.zarr", setup=maker)

    with pytest.raises(IncompleteError):
        go(2)
    with pytest.raises(IncompleteError):
        go(2)
    with pytest.raises(
        TargetError, match=rf"{which}\.(state\.gain|arguments\.0) was 2 and is now 3"
    ):
        go(3)


SAME_BYTES = {
    "workers": {"workers": 1},
    "backend": {"backend": "processes"},
    "memory_limit": {"memory_limit": "2GiB"},
    "func_memory": {"func_memory": "10MiB"},
    "concurrent_calls": {"concurrent_calls": 1},
    "progress": {"progress": "log"},
    "durability": {"durability": "full"},
    "batch_size": {"batch_size": 7},
    "retries": {"retries": 2},
    "fail_fast": {"fail_fast": True},
    "region": {"region": None},
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run in batches of 3 that failed on one region, and what it should have been."""
    folder = tmp_path_factory.mktemp("begun")
    store(folder / "in.zarr", volume_with({20: RAISES}), 8)
    with pytest.MonkeyPatch.context() as patching:
        patching.setenv("VOLPATCH_TEST_FOLDER", str(folder))
        options = {**BASE, "batch_size": 3}
        with pytest.raises(IncompleteError):
            volpatch.run(f"{BAD}_batch", folder / "in.zarr", folder / "out.zarr", **options)
        (folder / "mended").touch()
        volpatch.run(f"{BAD}_batch", folder / "in.zarr", folder / "all.zarr", **options)
    return folder


@pytest.mark.parametrize("change", SAME_BYTES)
def test_a_run_goes_on_with_what_changes_no_bit(begun, tmp_path, monkeypatch, change):
    monkeypatch.setenv("VOLPATCH_TEST_FOLDER", str(begun))
    shutil.copytree(begun / "out.zarr.volpatch", tmp_path / "moved.zarr.volpatch")
    options = {**BASE, "batch_size": 3, **SAME_BYTES[change]}
    report = volpatch.run(f"{BAD}_batch", begun / "in.zarr", tmp_path / "moved.zarr", **options)
    assert report.regions_before == 26
    assert report.complete
    assert objects(tmp_path / "moved.zarr") == objects(begun / "all.zarr")
    assert os.listdir(tmp_path) == ["moved.zarr"]


def test_a_limit_too_small_for_regions_that_are_fixed_names_one_that_does(here):
    with pytest.raises(IncompleteError):
        run(BAD, here / "in.zarr", here / "out.zarr", region=24)
    options = {"region": None, "memory_limit": "9MiB"}
    with pytest.raises(MemoryLimitError, match="24 x 24 x 24") as caught:
        run(BAD, here / "in.zarr", here / "out.zarr", **options)
    named = str(caught.value).partition("memory_limit='")[2].partition("'")[0]
    (here / "mended").touch()
    assert run(BAD, here / "in.zarr", here / "out.zarr", **{**options, "memory_limit": named})


# -- parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("7/7", "part 7/7 does not exist: i counts from 0, so i/7 goes from 0/7 to 6/7"),
        ("0/0", "part 0/0 does not exist.*n must be at least 1"),
        *((p, r"part must be written i/n, such as 0/8 for the first of eight; got")
          for p in ("a/b", "-1/3", "1", "", "1/2/3", "0.5/2", "1/-2", "1 2", "٣/٤", "1/2\n3")),
        ((3, 3), "part 3/3 does not exist"),
        ((-1, 3), "part -1/3 does not exist"),
        ((0, 1, 2), "part must be written i/n"),
        ((1.0, 2), "part must be written i/n"),
        (3, "part must be written i/n"),
    ],
)  # fmt: skip
def test_a_part_that_there_is_not(here, part, says):
    with pytest.raises(SettingError, match=says):
        run(SHADE, here / "in.zarr", here / "out.zarr", part=part)
    assert os.listdir(here) == ["in.zarr"]


@pytest.mark.parametrize("part", ["7/7", "a/b", ""])
def test_the_command_refuses_such_a_part(here, part):
    done = volpatch.cli.main.execute(
        [str(w) for w in words(here / "in.zarr", here / "o", "shade", part=part)]
    )
    assert done in (2, 3)
    assert os.listdir(here) == ["in.zarr"]


@pytest.mark.parametrize("moment", ["create", "load"])
def test_a_part_that_is_overtaken_while_it_makes_its_plan_finds_all_done(here, monkeypatch, moment):
    """The others put the output in its place, before or after this one has put the same plan."""
    create, load = Ledger.create, PlanFile.load

    def others():
        monkeypatch.undo()
        assert run(SHADE, here / "in.zarr", here / "out.zarr", part="0/1").complete

    def created(root, plan, disk):
        if moment == "create":
            others()
        else:
            monkeypatch.setattr(PlanFile, "load", loaded)
        return create(root, plan, disk)

    def loaded(folder):
        others()
        return load(folder)

    monkeypatch.setattr(Ledger, "create", created)
    assert run(SHADE, here / "in.zarr", here / "out.zarr", part="0/1").complete
    assert sorted(os.listdir(here)) == ["in.zarr", "out.zarr"]


def test_parts_in_any_order_and_repeated_make_the_same_bytes(here):
    run("tests.helpers_functions:shade_and_count", here / "in.zarr", here / "all.zarr")
    (here / "calls").unlink()

    def part(i):
        return run(
            "tests.helpers_functions:shade_and_count",
            here / "in.zarr",
            here / "out.zarr",
            part=f"{i}/7",
        )

    for i in (6, 5, 5, 4, 3, 2, 1):
        assert not part(i).complete
        assert not (here / "out.zarr").exists()
    with pytest.raises(IncompleteError, match=r"4 of 27 .* not done: 0,7,14,21\. Run again"):
        volpatch.commit(here / "out.zarr")
    last = part(0)
    assert last.complete
    assert (last.regions_before, last.stats.patches) == (23, 4 * 8)
    assert (here / "calls").stat().st_size == 2 + 27 * 8  # one trial, and each patch once
    assert objects(here / "out.zarr") == objects(here / "all.zarr")
    assert sorted(os.listdir(here)) == ["all.zarr", "calls", "in.zarr", "out.zarr"]
    before = tree(here)
    late = part(3)
    assert late.complete
    assert late.regions_before == 27
    assert late.stats.patches == 0
    assert tree(here) == before
    with pytest.raises(TargetError, match=r"exists, and was made by another job: grid\.patch"):
        run("tests.helpers_functions:shade_and_count", here / "in.zarr", here / "out.zarr",
            patch=8, part="3/7")  # fmt: skip


def test_more_parts_than_regions_is_no_error(here):
    assert not run(SHADE, here / "in.zarr", here / "out.zarr", part="30/40").complete
    assert run(SHADE, here / "in.zarr", here / "out.zarr").complete


# -- cut short ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("region", "rest", "change"),
    [
        (8, 3 * 8, {"workers": 1}),  # whole regions
        (8, 3 * 8, {"workers": 3, "memory_limit": "1GiB"}),
        (8, 3 * 8, {"backend": "processes", "workers": 2}),
        (24, 72, {"workers": 1}),  # the last layer of the only one
    ],
    ids=["same", "workers", "processes", "layer"],
)
def test_of_a_run_that_was_killed_only_the_rest_is_computed(here, region, rest, change):
    (here / "limit").write_text("196")
    call = words(here / "in.zarr", here / "out.zarr", "end_after", region=region, workers=1)
    assert command(here, *call).returncode == 9
    assert (here / "calls").stat().st_size == 196  # two of the trial, and 194 of 216 patches
    assert not (here / "out.zarr").exists()
    (here / "calls").unlink()
    (here / "limit").write_text("1000000")
    report = run("tests.helpers_functions:end_after", here / "in.zarr", here / "out.zarr",
                 region=region, **change)  # fmt: skip
    assert report.complete
    assert (here / "calls").stat().st_size == rest
    same(image(here / "out.zarr"), shaded(volume_with({20: RAISES})))
    run(SHADE, here / "in.zarr", here / "wanted.zarr")
    assert objects(here / "out.zarr") == objects(here / "wanted.zarr")
    assert volpatch.verify(here / "out.zarr", deep=True).ok
    assert sorted(os.listdir(here)) == ["calls", "in.zarr", "limit", "out.zarr", "wanted.zarr"]


def test_an_output_that_is_not_finished_opens_nowhere(here):
    with pytest.raises(IncompleteError):
        run(BAD, here / "in.zarr", here / "out.zarr")
    for path in (here / "out.zarr", here / "out.zarr.volpatch", here / "out.zarr.volpatch/data"):
        for opened in (
            lambda p: zarr.open_group(p, mode="r"),
            lambda p: zarr.open_array(p / "scale0/image", mode="r"),
            lambda p: xr.open_zarr(p, consolidated=False),
            lambda p: da.from_zarr(str(p), component="scale0/image"),
            lambda p: volpatch.open_volume(p),
        ):
            with pytest.raises(Exception):  # noqa: B017 - each has errors of its own
                opened(path)


def test_an_output_of_zeros_is_complete(here):
    run("tests.helpers_functions:zeros", here / "in.zarr", here / "out.zarr", chunks=4, shards=8)
    assert volpatch.verify(here / "out.zarr", deep=True).ok
    assert volpatch.status(here / "out.zarr").counts["done"] == 27
    for path in (here / "out.zarr/scale0/image/c").rglob("*"):
        if path.is_file():
            path.unlink()
            break
    assert len(volpatch.verify(here / "out.zarr").bad) == 1
    assert volpatch.retry(here / "out.zarr").complete
    assert volpatch.verify(here / "out.zarr").ok


# -- records -----------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
events = st.dictionaries(st.text(), json_values, max_size=6)


@given(events)
def test_a_record_survives_its_line(event):
    line = encode_line(event)
    assert decode_line(line) == event
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")


@given(events, st.data())
def test_a_line_that_was_torn_or_changed_is_no_record(event, data):
    line = encode_line(event)
    assert decode_line(line[: data.draw(st.integers(0, len(line) - 1))]) is None
    where = data.draw(st.integers(0, len(line) - 1))
    other = data.draw(st.integers(1, 255))
    changed = bytearray(line)
    changed[where] ^= other
    assert decode_line(bytes(changed)) is None


UNITS = 3  # of each region


@st.composite
def histories(draw):
    """Events of four regions in any order, some twice."""
    region = st.integers(-1, 4)
    event = st.one_of(
        st.fixed_dictionaries({"kind": st.just("start"), "region": region}),
        st.fixed_dictionaries({"kind": st.just("failed"), "region": region, "error": st.text()}),
        st.fixed_dictionaries(
            {
                "kind": st.just("done"),
                "region": region,
                "state": st.sampled_from(["done", "skipped"]),
            }
        ),
        st.builds(
            lambda region, ks: {
                "kind": "layer",
                "region": region,
                "of": UNITS,
                "units": [[region * UNITS + k, 1, ""] for k in ks],
                "patches": len(ks),
                "clipped": 1,
                "time": 0.0,
            },
            region,
            st.lists(st.integers(0, UNITS - 1), min_size=1, unique=True),
        ),
    )
    found = draw(st.lists(event, max_size=30))
    twice = draw(st.lists(st.sampled_from(found), max_size=5)) if found else []
    return draw(st.permutations([*found, *twice]))


@given(histories(), st.data())
def test_the_state_of_regions_is_that_of_all_whole_lines(history, data):
    """Against sets: a region is done when the union of what is recorded of it is all of it."""
    owner = data.draw(st.lists(st.integers(0, 2), min_size=len(history), max_size=len(history)))
    torn = data.draw(st.lists(st.integers(1, 20), min_size=3, max_size=3))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "records").mkdir()
        reader, state = RecordReader(folder), State(4)
        for number in range(3):
            lines = [encode_line(e) for e, o in zip(history, owner, strict=True) if o == number]
            content = b"".join(lines)
            middle = data.draw(st.integers(0, len(content)))
            with open(folder / "records" / f"{number}.log", "wb", buffering=0) as file:
                file.write(content[:middle])
                for event in reader():
                    state.take(event)
                file.write(content[middle:] + encode_line({"kind": "start"})[: torn[number]])
        for event in reader():
            state.take(event)
        assert list(reader()) == []
    kinds = {(e["kind"], e["region"]) for e in history}
    patches = 0
    for region in range(4):
        layers = [e for e in history if (e["kind"], e["region"]) == ("layer", region)]
        recorded = {unit for e in layers for unit, _, _ in e["units"]}
        patches += sum(e["patches"] for e in layers)
        if len(recorded) == UNITS:
            assert state.is_done(region)
            assert region not in state.failures
            continue
        assert state.recorded(region).tolist() == sorted(recorded)
        begun = recorded or ("start", region) in kinds
        bad = ("failed", region) in kinds
        assert state.status[region] == (FAILED if bad else STARTED if begun else MISSING)
        assert (region in state.failures) == bad
    assert state.patches == patches
    assert state.n_done == len(state.done)


@given(st.lists(events.map(lambda event: {**event, "kind": "log"}), max_size=6), st.data())
@settings(max_examples=25)
def test_records_are_read_once_however_they_arrive(found, data):
    content = b"".join(map(encode_line, found))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "records").mkdir()
        reader, seen, at = RecordReader(folder), [], 0
        with open(folder / "records/a.log", "wb", buffering=0) as file:
            while at < len(content):
                step = data.draw(st.integers(1, len(content) - at))
                file.write(content[at : at + step])
                at += step
                seen += list(reader())
    assert seen == found
    assert reader.damaged == 0


def test_a_recorder_that_failed_writes_no_line_behind_a_torn_one(tmp_path, monkeypatch):
    (tmp_path / "records").mkdir()
    log = Recorder(tmp_path, AtomicFiles(tmp_path, durability="process"))
    log.write("start", 1)
    real = os.write

    def tear(handle, data):
        monkeypatch.setattr(os, "write", real)
        real(handle, bytes(data)[:10])
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", tear)
    with pytest.raises(volpatch.RunError, match=r"what was finished before is kept"):
        log.write("start", 2)
    log.write("start", 3)
    reader = RecordReader(tmp_path)
    found = [e["region"] for e in reader() if e["kind"] == "start"]
    assert (sorted(found), reader.damaged) == ([1, 3], 0)


def write_records(folder, n):
    """A ledger of `n` regions of one unit each, of which every thousandth is missing."""
    digest = "0" * 64
    with open(folder / "records" / "many.log", "wb") as file:
        for region in range(n):
            if region % 1000 == 0:
                continue
            event = {
                "kind": "layer", "region": region, "of": 1, "units": [[region, 4096, digest]],
                "patches": 8, "clipped": 0, "time": 1e9 + region / 100,
            }  # fmt: skip
            file.write(encode_line(event))


LOOK = """
import sys, time, volpatch
from volpatch.core import resources as machine
volpatch.status
before = machine.resident_bytes()
machine.forget_peak()
begin = time.perf_counter()
found = volpatch.status(sys.argv[1])
print(time.perf_counter() - begin, machine.peak_bytes() - before)
print(found.counts["done"], len(found.left), found.ids[:20], found.patches)
print(found)
"""


@pytest.mark.parametrize(
    "n", [200_000, pytest.param(2_000_000, marks=pytest.mark.slow)], ids=["200k", "2M"]
)
def test_the_status_of_many_regions_takes_little_memory(here, n, record_property):
    with pytest.raises(IncompleteError):
        run(BAD, here / "in.zarr", here / "out.zarr")
    work = volpatch.storage.output.Output(here / "out.zarr")
    plan = PlanFile.load(work.site.ledger)
    many = PlanFile(plan.identity, {**plan.layout, "regions": n, "patches": 8 * n}, plan.job)
    (work.site.ledger / "plan.json").write_bytes(many.to_bytes())
    shutil.rmtree(work.site.ledger / "records")
    (work.site.ledger / "records").mkdir()
    write_records(work.site.ledger, n)
    done = subprocess.run([sys.executable, "-c", LOOK, str(here / "out.zarr")],
                          capture_output=True, text=True, check=True)  # fmt: skip
    figures, counts, *text = done.stdout.splitlines()
    seconds, peak = map(float, figures.split())
    record_property("seconds", seconds)
    record_property("peak_mb", peak / 1e6)
    print(f"{n} regions: {seconds:.1f} s, {peak / 1e6:.0f} MB")
    missing = n // 1000
    assert counts == f"{n - missing} {missing} 0,1000,2000,3000,400 {8 * (n - missing)}"
    assert any("99.9%" in line for line in text)
    assert peak < 150e6
