"""An output that is complete, or mended by somebody, or lost its records: what commands say."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

import volpatch
from tests import helpers_functions as functions
from tests.helpers_functions import MISDEEDS
from tests.helpers_runs import GRID, SHADE, run, shaded, tree, volume_with, words
from tests.helpers_stores import image, objects, same, store
from volpatch import IncompleteError, SourceError, TargetError
from volpatch.functions.named import FunctionSpec

MAKER = "tests.helpers_functions:make_and_count"
GATE = "tests.helpers_functions:behind_a_gate"
VOLUME = volume_with({})


@pytest.fixture
def here(here):
    """A folder that functions find too, with a volume in it."""
    store(here / "in.zarr", VOLUME, 8)
    return here


def made(here, *more):
    """The command of a run with a function that is made, in a folder."""
    call = words(here / "in.zarr", here / "out.zarr", "shade")
    call[call.index("--apply")] = "--factory"
    call[call.index("--factory") + 1] = MAKER
    return [*call, *more]


def times_made(here):
    return sum(re.fullmatch(r"\d+-\d+", name) is not None for name in os.listdir(here))


# -- complete already --------------------------------------------------------------------------


def test_the_same_command_on_a_complete_output_makes_no_function_and_ends_with_0(here, ask):
    assert ask(*made(here))[0] == 0
    count, before = times_made(here), tree(here)
    assert count > 0
    says = f"complete already: {here / 'out.zarr'}: 24 x 24 x 24 float32\n"
    # what changes no byte does not matter either, not even where nothing could be computed
    others = ("--region", "16", "--memory-limit", "300MiB", "--workers", "1")
    for more in ((), ("--part", "0/2"), ("--part", "1/2", "--overwrite"), others):
        code, out, err = ask(*made(here, *more))
        assert (code, err) == (0, "")
        assert says in out
        assert "sizes of all objects" in out
    told = json.loads(ask(*made(here, "--format", "json"))[1])
    assert (told["complete"], told["already"], told["patches"]) == (True, True, 0)
    assert ask("commit", here / "out.zarr") == (0, f"complete already {here / 'out.zarr'}\n", "")
    assert times_made(here) == count
    assert tree(here) == before
    code, out, err = ask(*made(here, "--overwrite"))
    assert (code, err) == (0, "")
    assert "216 patches" in out


@pytest.mark.parametrize("part", [None, "1/2"])
def test_another_job_on_a_complete_output_ends_with_3_and_names_what_differs(here, ask, part):
    assert ask(*made(here))[0] == 0
    count, before = times_made(here), tree(here)
    for more, says in (
        (("--overlap", "1"), r"grid\.stride was \[4, 4, 4\] and is now \[3, 3, 3\]"),
        (("--func-version", "2"), '--func-version was nothing and is now "2"'),
    ):
        code, out, err = ask(*made(here, *more, *(() if part is None else ("--part", part))))
        assert (code, out) == (3, "")
        assert re.search(f"exists, and was made by another job: .*{says}.*; pass --overwrite", err)
    assert times_made(here) == count
    assert tree(here) == before


def test_a_limit_too_small_for_the_regions_is_no_obstacle_to_a_complete_output(here):
    run(SHADE, here / "in.zarr", here / "out.zarr")
    report = run(SHADE, here / "in.zarr", here / "out.zarr", memory_limit="1MiB")
    assert report.already
    assert report.complete
    assert (report.stats.patches, report.regions, report.regions_before) == (0, 27, 27)


def test_an_input_that_is_gone_is_remarked_and_all_else_compared(here, ask):
    assert ask(*made(here))[0] == 0
    call = made(here)
    func = FunctionSpec.parse(MAKER, {}, factory=True)
    planned = volpatch.plan(here / "in.zarr", here / "out.zarr", func=func, **GRID)
    volpatch.planning.job.save(planned, here / "job.json")
    count = times_made(here)
    (here / "in.zarr").rename(here / "elsewhere.zarr")
    for words_ in (call, made(here, "--part", "1/2"), ["run", here / "job.json"]):
        code, out, err = ask(*words_)
        assert (code, err) == (0, "")
        assert "complete already" in out
        assert f"the input '{here / 'in.zarr'}' is gone, so it was not compared" in out
    code, out, err = ask(*made(here, "--overlap", "1"))
    assert (code, out) == (3, "")
    assert "made by another job: grid.stride was [4, 4, 4] and is now [3, 3, 3]" in err
    for more in (("--overwrite",), ("--level", "1")):
        code, out, err = ask(*made(here, *more))
        assert (code, out) == (3, "")
        assert f"no such volume: '{here / 'in.zarr'}'" in err
    other = [here / "never.zarr" if word == here / "in.zarr" else word for word in call]
    code, out, err = ask(*other)
    assert (code, out) == (3, "")
    assert f"no such volume: '{here / 'never.zarr'}'" in err
    assert times_made(here) == count
    shutil.rmtree(here / "out.zarr")
    with pytest.raises(SourceError, match="no such volume"):
        run(None, here / "in.zarr", here / "out.zarr", setup=functions.make_and_count)


def test_an_input_that_changed_is_named(here):
    run(SHADE, here / "in.zarr", here / "out.zarr")
    chunk = here / "in.zarr/c/0/1/2"
    os.utime(chunk, ns=(0, 10**18))
    with pytest.raises(TargetError, match=r"in\.zarr/c/0/1/2' of the input changed"):
        run(SHADE, here / "in.zarr", here / "out.zarr")


LACKS = {
    "scale0/image/c/0/1/2": r"objects of 1 of 27 regions \(5\)",
    "scale0/zarr.json": r"scale0/zarr\.json",
    "zarr.json": r"zarr\.json",
}


@pytest.mark.parametrize("how", ["missing", "cut", "folder"])
@pytest.mark.parametrize("key", LACKS)
def test_a_damaged_output_is_not_called_complete_and_is_mended(here, ask, key, how):
    run(SHADE, here / "in.zarr", here / "out.zarr")
    wanted, path = objects(here / "out.zarr"), here / "out.zarr" / key
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[:-1])
    elif how == "folder":
        path.mkdir()
    call = words(here / "in.zarr", here / "out.zarr", "shade")
    for asked in (call, [*call, "--part", "1/2"], ("commit", here / "out.zarr")):
        code, out, err = ask(*asked)
        assert (code, out) == (4, "")
        assert re.search(f"was complete, but {LACKS[key]} are missing, have another size", err)
        assert "`volpatch retry " in err
    assert ask("retry", here / "out.zarr")[0] == 0
    assert objects(here / "out.zarr") == wanted
    assert "complete already" in ask(*call)[1]


def test_a_twin_that_is_faster_leaves_nothing_to_do(here):
    """It has published before this run has made its plan: nothing is computed twice."""
    twin, calls = [], []

    def function(patch):
        calls.append(1)
        if not twin:
            twin.append(None)
            twin[0] = run(
                function, here / "in.zarr", here / "out.zarr", func_version="1", workers=1
            )
        return patch.astype("float32")

    report = run(function, here / "in.zarr", here / "out.zarr", func_version="1", workers=1)
    assert (twin[0].already, report.already) == (False, True)
    assert len(calls) < 2 * 216
    assert sorted(os.listdir(here)) == ["in.zarr", "out.zarr"]


def test_an_unfinished_twin_of_a_complete_output_is_not_gone_on_with(here):
    """As it is left by a run that was killed when it had just made its plan, too late."""
    run(SHADE, here / "in.zarr", here / "out.zarr")
    (here / "out.zarr").rename(here / "aside.zarr")
    with pytest.raises(KeyboardInterrupt):
        run(SHADE, here / "in.zarr", here / "out.zarr", announce=_stop)
    assert (here / "out.zarr.volpatch/data/.volpatch/plan.json").is_file()
    (here / "aside.zarr").rename(here / "out.zarr")
    assert run(SHADE, here / "in.zarr", here / "out.zarr").already
    assert sorted(os.listdir(here)) == ["in.zarr", "out.zarr"]


def _stop(plan):
    raise KeyboardInterrupt


def test_a_complete_output_is_complete_beside_an_unfinished_one_that_is_to_replace_it(here):
    run(SHADE, here / "in.zarr", here / "out.zarr")
    with pytest.raises(KeyboardInterrupt):
        run(
            SHADE,
            here / "in.zarr",
            here / "out.zarr",
            func_version="2",
            overwrite=True,
            announce=_stop,
        )
    assert run(SHADE, here / "in.zarr", here / "out.zarr").already
    report = run(SHADE, here / "in.zarr", here / "out.zarr", func_version="2")
    assert (report.already, report.stats.patches) == (False, 216)
    assert sorted(os.listdir(here)) == ["in.zarr", "out.zarr"]


def test_what_appeared_meanwhile_is_replaced_where_that_is_allowed_now(here):
    """Before anything is computed, not when all is."""
    run(SHADE, here / "in.zarr", here / "old.zarr")
    with pytest.raises(KeyboardInterrupt):
        run(SHADE, here / "in.zarr", here / "out.zarr", func_version="2", announce=_stop)
    (here / "old.zarr").rename(here / "out.zarr")
    with pytest.raises(TargetError, match=r"made by another job: func_version was"):
        run(SHADE, here / "in.zarr", here / "out.zarr", func_version="2")
    assert run(SHADE, here / "in.zarr", here / "out.zarr", func_version="2", part="0/1",
               overwrite=True).complete  # fmt: skip
    assert run(SHADE, here / "in.zarr", here / "out.zarr", func_version="2").already


# -- several that mend -------------------------------------------------------------------------


@contextmanager
def at_the_gate(here, *args):
    """A command in a process of its own that waits in its first call while inside."""
    (here / "gate").touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "volpatch", *map(str, args)],
        env={**os.environ, "VOLPATCH_TEST_FOLDER": str(here), "VOLPATCH_TEST_WAITS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not (here / "arrived").exists() and process.poll() is None:
            time.sleep(0.01)
        yield process
        (here / "gate").unlink()
        (here / "arrived").unlink()
        process.said = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()


def test_of_several_that_mend_one_output_one_works_and_the_others_are_told(here, ask):
    run(GATE, here / "in.zarr", here / "out.zarr")
    wanted = objects(here / "out.zarr")
    (here / "out.zarr/scale0/image/c/0/1/2").unlink()
    call = words(here / "in.zarr", here / "out.zarr", "behind_a_gate")
    with at_the_gate(here, "retry", here / "out.zarr", "--workers", "1") as process:
        for other in (
            ("retry", here / "out.zarr"),
            call,
            [*call, "--func-version", "2", "--overwrite"],
            [*call, "--func-version", "2", "--overwrite", "--part", "0/1"],
            ("commit", here / "out.zarr"),
            ("clean", here / "out.zarr"),
        ):
            code, out, err = ask(*other)
            assert (code, out) == (3, ""), other
            assert re.search(r"another run is writing .*, or a retry mends it; wait for it", err)
    assert (process.returncode, process.said[1]) == (0, "going on: 26 of 27 regions are done\n")
    assert objects(here / "out.zarr") == wanted
    assert volpatch.verify(here / "out.zarr", deep=True).ok
    (here / "out.zarr/scale0/image/c/0/1/2").unlink()
    assert ask("retry", here / "out.zarr")[0] == 0
    assert sorted(os.listdir(here)) == ["in.zarr", "out.zarr"]


def test_two_that_mend_one_unfinished_output_both_end_well(here):
    """The slower one finds the folders gone and the output in its place."""
    fails = list(MISDEEDS).index("raises")
    shutil.rmtree(here / "in.zarr")
    store(here / "in.zarr", volume_with({20: fails, 21: fails}), 8)
    with pytest.raises(IncompleteError):
        run(GATE, here / "in.zarr", here / "out.zarr")
    (here / "mended").touch()
    with at_the_gate(here, "retry", here / "out.zarr", "--workers", "1") as process:
        assert volpatch.retry(here / "out.zarr", workers=1).complete
    assert (process.returncode, process.said[1]) == (0, "going on: 25 of 27 regions are done\n")
    assert "complete already" in process.said[0]
    assert volpatch.verify(here / "out.zarr", deep=True).ok


def test_a_killed_retry_is_not_in_the_way_of_parts_that_replace_the_output(here, ask):
    run(GATE, here / "in.zarr", here / "out.zarr")
    (here / "out.zarr/scale0/image/c/0/1/2").unlink()
    with at_the_gate(here, "retry", here / "out.zarr", "--workers", "1") as process:
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert (here / "out.zarr.volpatch").exists()
    report = run(
        GATE, here / "in.zarr", here / "out.zarr", func_version="2", overwrite=True, part="0/2"
    )
    assert not report.complete
    report = run(GATE, here / "in.zarr", here / "out.zarr", func_version="2", part="1/2")
    assert report.complete
    same(image(here / "out.zarr"), shaded(VOLUME))
    assert sorted(os.listdir(here)) == ["in.zarr", "out.zarr"]
