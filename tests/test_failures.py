"""What goes wrong in a run, and what is said, kept and mended then: functions, places, disks."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import tifffile
import zarr

import volpatch
from tests import helpers_functions as functions
from tests.helpers_functions import MARK, MISDEEDS
from tests.helpers_runs import SHADE, command, corner, run, shaded, tree, volume_with, words
from tests.helpers_stores import image, same, store
from volpatch import IncompleteError, RunError, TargetError, map_patches
from volpatch.core.box import Box
from volpatch.storage.stores import local as disk

BACKENDS = ("threads", "processes")
DEADLY = ("ends its process", "aborts")


# -- one bad patch of many ---------------------------------------------------------------------

SAYS = {
    "None": r"misbehave returned None for {patch}, wanted a numpy array$",
    "list": r"misbehave returned a builtins\.list for {patch}, wanted a numpy array$",
    "scalar": r"misbehave returned a numpy\.uint16 for {patch}, wanted a numpy array$",
    "number": r"misbehave returned a builtins\.float for {patch}, wanted a numpy array$",
    "tensor": r"returned a tests\.helpers_functions\.Tensor for {patch}.*\.cpu\(\)\.numpy\(\)\)$",
    "one voxel": r"misbehave returned shape \(1, 1, 1\) for {patch}, wanted \(4, 4, 4\)$",
    "extra axis": r"misbehave returned shape \(1, 4, 4, 4\) for {patch}, wanted \(4, 4, 4\)$",
    "axis dropped": r"misbehave returned shape \(4, 4\) for {patch}, wanted \(4, 4, 4\)$",
    "another dtype": r"returned dtype float64 for {patch}, wanted float32 as for other patches$",
    "complex": r"returned dtype complex64 for {patch}, wanted real numbers of up to 64 bits$",
    "objects": r"returned dtype object for {patch}, wanted real numbers of up to 64 bits$",
    "masked": r"returned a masked array for {patch}, wanted a plain one \(\.filled\(VALUE\)",
    "raises": r"misbehave raised ValueError on {patch}: too dark$",
    "raises without a word": r"misbehave raised ValueError on {patch}: no message$",
    "raises at length": r"misbehave raised ValueError on {patch}: a{{1000,5000}}\.\.\.",
    "awkward": r"misbehave raised AwkwardError on {patch}: this and that$",
    "stops": r"misbehave raised StopIteration on {patch}: no more$",
    "exits": r"misbehave raised SystemExit on {patch}: 0$",
    "interrupts": r"misbehave raised KeyboardInterrupt on {patch}: no message$",
    "cancels": r"misbehave raised CancelledError on {patch}: by a library$",
    "ends": r"misbehave raised Ending on {patch}: of all$",
    "has no memory": r"FunctionError: .*misbehave raised MemoryError on {patch}: no room for 9 GB$",
    "speaks for us": r"FunctionError: .* raised SettingError on {patch}: choose another one$",
    "is wordless": r"misbehave raised WordlessError on {patch}: its message cannot be shown$",
    "ends its process": r"a worker process died \(exit code 0\).*; {patch} was in flight$",
    "aborts": r"a worker process died \(exit code -6\).*; {patch} was in flight$",
}


@pytest.fixture(scope="module")
def misdeeds(tmp_path_factory):
    """A run per backend in which every misdeed was done once: its error, status and volume."""
    found = {}

    def of(backend):
        if backend not in found:
            folder = tmp_path_factory.mktemp(backend)
            names = [n for n in MISDEEDS if backend == "processes" or n not in DEADLY]
            volume = volume_with({n: n for n in range(len(names))})
            store(folder / "in.zarr", volume, 8)
            with pytest.MonkeyPatch.context() as patching:
                patching.setenv("VOLPATCH_TEST_FOLDER", str(folder))
                with pytest.raises(IncompleteError) as caught:
                    run("tests.helpers_functions:misbehave", folder / "in.zarr",
                        folder / "out.zarr", backend=backend)  # fmt: skip
            found[backend] = folder, names, caught.value, volpatch.status(folder / "out.zarr")
        return found[backend]

    return of


@pytest.mark.parametrize(
    ("backend", "name"),
    # what would end this process: see the test of a killed run
    [(b, n) for b in BACKENDS for n in MISDEEDS if b == "processes" or n not in DEADLY],
)
def test_each_misdeed_is_told_with_its_patch(misdeeds, backend, name):
    _, names, _, status = misdeeds(backend)
    number = names.index(name)
    start = corner(number)
    position = tuple(c // 4 for c in start)
    box = Box(start, tuple(c + 4 for c in start))
    (event,) = (e for e in status.failures if e["region"] == number)
    says = SAYS[name].format(patch=re.escape(f"patch {position} at {box}"))
    assert re.search(says, event["error"]), event["error"][:500]
    assert len(event["error"]) < 10_000
    if "raise" in says and name != "raises at length":
        assert "helpers_functions.py" in event["traceback"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_other_regions_are_done_and_the_bad_ones_are_mended(misdeeds, backend, monkeypatch):
    folder, names, error, status = misdeeds(backend)
    target = folder / "out.zarr"
    assert status.left == [e["region"] for e in status.failures] == list(range(len(names)))
    assert status.counts["done"] == 27 - len(names)
    assert error.exit_code == 4
    assert f"{len(names)} of 27 regions failed (0-{len(names) - 1})" in str(error)
    assert len(str(error)) < 10_000
    assert not os.path.lexists(target)
    monkeypatch.setenv("VOLPATCH_TEST_FOLDER", str(folder))
    (folder / "mended").touch()
    report = volpatch.retry(target, workers=2, durability="process")
    assert report.complete
    assert report.stats.patches == 8 * len(names)
    same(image(target), shaded(zarr.open_array(folder / "in.zarr")[...]))
    assert sorted(os.listdir(folder)) == ["in.zarr", "mended", "out.zarr"]
    assert volpatch.verify(target).ok


@pytest.mark.parametrize("deed", DEADLY)
def test_a_run_killed_by_its_function_names_the_patch_that_was_in_flight(here, ask, deed):
    volume = volume_with({13: list(MISDEEDS).index(deed)})
    store(here / "in.zarr", volume, 8)
    done = command(here, *words(here / "in.zarr", here / "out.zarr", "misbehave", workers=1))
    assert done.returncode in (0, -signal.SIGABRT)  # what the function said to the system
    assert not (here / "out.zarr").exists()
    code, out, _ = ask("status", here / "out.zarr")
    assert code == 0
    assert re.search(
        r"^in call   region 13, patch \(2, 2, 2\) at 8:12 x 8:12 x 8:12: running, or died there$",
        out,
        re.MULTILINE,
    )
    assert "13 done" in out
    (here / "mended").touch()
    code, *_ = ask(*words(here / "in.zarr", here / "out.zarr", "misbehave"))
    assert code == 0
    same(image(here / "out.zarr"), shaded(volume))


# -- tries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_retries_are_counted_after_the_first_failure(here, ask, backend):
    volume = volume_with({5: 0})
    store(here / "in.zarr", volume, 8)
    call = words(here / "in.zarr", here / "out.zarr", "fail_twice", backend=backend)
    code, _, err = ask(*call, "--retries", 1)
    assert code == 4
    assert "1 of 27 regions failed (5)" in err
    assert "raised ConnectionError on patch (0, 2, 4) at [0:4, 8:12, 16:20]" in err
    assert (here / "tries").read_bytes() == b".."
    shutil.rmtree(here / "out.zarr.volpatch")
    (here / "tries").unlink()
    assert ask(*call, "--retries", 2)[0] == 0
    assert (here / "tries").read_bytes() == b"..."
    same(image(here / "out.zarr"), shaded(volume))
    events = [json.loads(line.partition("\t")[0])
              for p in (here / "out.zarr/.volpatch/records").iterdir()
              for line in p.read_text().splitlines()]  # fmt: skip
    assert [e["attempt"] for e in events if e["kind"] == "failed"] == [1, 2]
    assert sorted(e["attempt"] for e in events if e["kind"] == "start" and e["region"] == 5) == [
        1, 2, 3]  # fmt: skip


@pytest.mark.parametrize("retries", [-1, 1.5, True, "2"])
def test_retries_must_be_a_count(here, retries):
    store(here / "in.zarr", volume_with({}), 8)
    with pytest.raises(volpatch.SettingError, match=f"retries must be .* got {retries!r}"):
        run(SHADE, here / "in.zarr", here / "out.zarr", retries=retries)
    assert os.listdir(here) == ["in.zarr"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_fail_fast_ends_at_the_first_failure_and_can_go_on(here, ask, backend):
    volume = volume_with({4: list(MISDEEDS).index("raises")})
    store(here / "in.zarr", volume, 8)
    call = words(here / "in.zarr", here / "out.zarr", "misbehave", backend=backend, workers=1)
    code, _, err = ask(*call, "--fail-fast")
    assert code == 3
    assert err.startswith("volpatch: the function misbehave raised ValueError on patch (0, 2, 2)")
    status = volpatch.status(here / "out.zarr")
    assert (status.counts["done"], status.left) == (4, list(range(4, 27)))
    (here / "mended").touch()
    assert ask(*call)[0] == 0
    same(image(here / "out.zarr"), shaded(volume))


SAID_IN_WORDS = ("interrupts", "exits", "ends", "has no memory", "speaks for us", "is wordless")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SAID_IN_WORDS)
def test_the_very_first_call_may_fail_in_any_way(here, ask, backend, name):
    volume = volume_with({})
    volume[::4, ::4, ::4] = MARK + list(MISDEEDS).index(name)
    store(here / "in.zarr", volume, 8)
    code, out, err = ask(
        *words(here / "in.zarr", here / "out.zarr", "misbehave", backend=backend, workers=1)
    )
    assert (code, out) == (3, "")
    says = SAYS[name].removeprefix("FunctionError: .*").format(patch="patch .*")
    assert re.search(says, err.splitlines()[0]), err
    assert "Traceback" not in err.splitlines()[0]
    assert os.listdir(here) == ["in.zarr"]


@pytest.mark.parametrize("what", ["setup", "finalize", "skip", "window"])
@pytest.mark.parametrize("name", ["ends", "has no memory", "speaks for us", "is wordless"])
def test_whatever_is_the_users_own_is_named_when_it_fails(here, what, name):
    store(here / "in.zarr", volume_with({}), 8)

    def fail(*_):
        return MISDEEDS[name](None)

    given = {"function": None if what == "setup" else functions.shade, what: fail}
    expected = volpatch.SettingError if what == "window" else volpatch.FunctionError
    says = SAYS[name].rpartition("{patch}: ")[2]
    with pytest.raises(expected, match=f"{what} .*: {says}") as caught:
        run(source=here / "in.zarr", target=here / "out.zarr", **given)
    assert caught.value.__cause__ is not None
    assert os.listdir(here) == ["in.zarr"]


def test_what_a_function_raises_is_named_in_memory_too(here):
    volume = volume_with({26: list(MISDEEDS).index("has no memory")})
    with pytest.raises(volpatch.FunctionError, match="raised MemoryError on patch") as caught:
        map_patches(functions.misbehave, volume, 4, overlap=0)
    assert isinstance(caught.value.__cause__, MemoryError)
    with pytest.raises(KeyboardInterrupt):  # for all that can be told, somebody pressed Ctrl-C
        map_patches(MISDEEDS["interrupts"], volume, 4, overlap=0)


def test_an_error_at_length_does_not_flood_the_screen(here, ask):
    store(here / "in.zarr", volume_with({7: list(MISDEEDS).index("raises at length")}), 8)
    code, _, err = ask(*words(here / "in.zarr", here / "out.zarr", "misbehave"))
    assert code == 4
    assert "helpers_functions.py" in err  # the user's own frames
    assert len(err) < 50_000


# -- functions with manners of their own -------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("name", ["spoil", "in_place", "flipped_view"])
def test_what_a_function_does_to_its_input_does_not_spread(here, name, batch_size):
    volume = volume_with({})
    store(here / "in.zarr", volume, 8)
    alone = getattr(functions, name)
    pure = {"spoil": functions.shade, "in_place": lambda p: p + np.float32(1)}.get(name, alone)

    def batch(given):
        if name == "spoil":
            result = np.stack([functions.shade(p) for p in given])
            given[...] = 0
            return result
        if name == "in_place":
            given += 1
            return given
        return given[:, ::-1, ::-1, ::-1]

    options = {"patch": 6, "overlap": 3, "input_dtype": "float32"}
    run(alone if batch_size is None else batch, here / "in.zarr", here / "out.zarr",
        batch_size=batch_size, **options)  # fmt: skip
    same(image(here / "out.zarr"), map_patches(pure, volume, **options))


@pytest.mark.parametrize("how", ["setup", "calls", "factory"])
def test_a_function_may_give_back_one_buffer_where_it_is_called_alone(here, how):
    volume = volume_with({})
    store(here / "in.zarr", volume, 8)
    wanted = shaded(volume)
    for number in range(3):
        function, options = {
            "setup": (None, {"setup": functions.OneBuffer}),
            "calls": (functions.OneBuffer(), {"concurrent_calls": 1}),
            "factory": (
                volpatch.functions.named.FunctionSpec.parse(
                    "tests.helpers_functions:OneBuffer", factory=True
                ),
                {},
            ),
        }[how]
        run(function, here / "in.zarr", here / f"{number}.zarr", **{**options, "workers": 4})
        same(image(here / f"{number}.zarr"), wanted)


def test_a_function_may_move_about_and_change_numpy(here, monkeypatch):
    volume = volume_with({})
    store(here / "in.zarr", volume, 8)
    monkeypatch.chdir(here)
    with np.errstate():
        run(functions.rude, "in.zarr", "out.zarr")
    monkeypatch.chdir(here)
    same(image(here / "out.zarr"), shaded(volume))
    assert sorted(os.listdir(here)) == ["in.zarr", "out.zarr"]


@pytest.mark.filterwarnings("ignore:coroutine 'later' was never awaited:RuntimeWarning")
@pytest.mark.parametrize(
    ("function", "says"),
    [
        (functions.later, r"later returned a builtins\.coroutine for patch"),
        (functions.generate, r"generate returned a builtins\.generator for patch"),
        (functions.Tensor, r"Tensor raised TypeError on patch .* takes no arguments"),
        (lambda: None, r"raised TypeError on patch .* takes 0 positional arguments but 1 was"),
        (3, r"raised TypeError on patch .*: 'int' object is not callable"),
        ("shadee", r"no ready-made operation is called 'shadee'; .* package\.module:function"),
        ("tests.helpers_functions:shaed", r"has no function 'shaed': did you mean 'shade'\?"),
    ],
)
def test_what_is_no_function_of_a_patch_is_refused_before_anything_is_written(here, function, says):
    store(here / "in.zarr", volume_with({}), 8)
    with pytest.raises(volpatch.VolpatchError, match=says):
        run(function, here / "in.zarr", here / "out.zarr")
    assert os.listdir(here) == ["in.zarr"]


def test_measured_memory_of_nothing_is_no_obstacle_to_a_retry(here):
    volume = volume_with({3: list(MISDEEDS).index("raises")})
    store(here / "in.zarr", volume, 8)
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(
            "volpatch.core.resources.growth", lambda call: 0 if call() is not None else 1
        )
        with pytest.raises(IncompleteError):
            run("tests.helpers_functions:misbehave", here / "in.zarr", here / "out.zarr")
    (here / "mended").touch()
    assert volpatch.retry(here / "out.zarr").complete
    same(image(here / "out.zarr"), shaded(volume))


# -- places ------------------------------------------------------------------------------------


def complete(here):
    run(SHADE, here / "in.zarr", here / "out.zarr")


def unfinished(here, **options):
    """A run of `misbehave` that failed on region 20."""
    with pytest.raises(IncompleteError, match=r"1 of 27 regions failed \(20\)"):
        run("tests.helpers_functions:misbehave", here / "in.zarr", here / "out.zarr", **options)


def foreign_zarr(here):
    zarr.create_array(here / "out.zarr", data=np.ones((4, 4)))


def folder(here):
    (here / "out.zarr").mkdir()
    (here / "out.zarr/notes").write_text("mine")


def file(here):
    (here / "out.zarr").write_text("mine")


def link(here):
    folder(here)
    (here / "out.zarr").rename(here / "elsewhere")
    (here / "out.zarr").symlink_to(here / "elsewhere")


def dangling(here):
    (here / "out.zarr").symlink_to(here / "nowhere")


def foreign_work(here):
    (here / "out.zarr.volpatch").mkdir()
    (here / "out.zarr.volpatch/notes").write_text("mine")


IN_THE_WAY = {
    complete: ("exists, and was made by another job: .*; pass --overwrite", None),
    unfinished: ("holds a run of another plan: function.target was", None),
    foreign_zarr: ("has no 'volpatch' attribute",) * 2,
    folder: ("has no 'volpatch' attribute",) * 2,
    file: ("it is a file",) * 2,
    link: ("is a link to '.*/elsewhere', and links are not replaced",) * 2,
    dangling: ("is a link to '.*/nowhere', and links are not replaced",) * 2,
    foreign_work: ("volpatch did not make it", "volpatch did not make it"),
}


def test_what_belongs_to_another_user_is_told_so(here, ask, monkeypatch):
    """Nothing is denied to root, so the answers of the system are made up."""
    store(here / "in.zarr", volume_with({}), 8)
    run(SHADE, here / "in.zarr", here / "out.zarr", part="0/2")
    call = words(here / "in.zarr", here / "out.zarr", "shade")
    before = tree(here)

    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    for patch, says in (
        (("os.access", lambda *args: False), "you may not write there (permission denied)"),
        (("volpatch.storage.plan_file.open_file", denied), "plan.json' cannot be read (permission"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(*patch)
            code, out, err = ask(*call)
        assert (code, out) == (3, "")
        assert says in err
        assert "another" in err
        assert "--overwrite" not in err
        assert tree(here) == before


@pytest.mark.parametrize("make", IN_THE_WAY, ids=lambda make: make.__name__)
def test_what_is_in_the_way_is_kept_unless_it_is_ours_and_given_up(here, ask, make):
    volume = volume_with({20: list(MISDEEDS).index("raises")})
    store(here / "in.zarr", volume, 8)
    make(here)
    before = tree(here)
    plain, given_up = IN_THE_WAY[make]
    call = words(here / "in.zarr", here / "out.zarr", "in_place", input_dtype="float32")
    code, out, err = ask(*call)
    assert (code, out) == (3, "")
    assert re.search(plain, err)
    assert tree(here) == before
    code, out, err = ask(*call, "--overwrite")
    if given_up is None:
        assert code == 0
        same(image(here / "out.zarr"), volume.astype("float32") + 1)
        assert sorted(os.listdir(here)) == ["in.zarr", "out.zarr"]
    else:
        assert (code, out) == (3, "")
        assert re.search(given_up, err)
        assert tree(here) == before


def test_an_unfinished_run_of_the_same_words_goes_on(here):
    volume = volume_with({20: list(MISDEEDS).index("raises")})
    store(here / "in.zarr", volume, 8)
    unfinished(here)
    (here / "mended").touch()
    report = run("tests.helpers_functions:misbehave", here / "in.zarr", here / "out.zarr")
    assert (report.regions_before, report.stats.patches) == (26, 8)
    same(image(here / "out.zarr"), shaded(volume))


def test_an_interrupt_while_threads_are_started_ends_the_run(here, monkeypatch):
    """A thread that never began cannot be waited for."""
    store(here / "in.zarr", volume_with({}), 8)
    start, begun = threading.Thread.start, []

    def interrupted(thread):
        if "Threads._work" in repr(getattr(thread, "_target", None)):
            if begun:
                raise KeyboardInterrupt
            begun.append(thread)
        start(thread)

    with monkeypatch.context() as patching:
        patching.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            complete(here)
    assert begun
    assert not begun[0].is_alive()
    assert not (here / "out.zarr").exists()
    complete(here)


@pytest.mark.parametrize("name", ["-o", "a b", "$HOME", "~", "*", "ünï", "dot.", "'\"", "a" * 246])
def test_odd_names_of_targets_are_taken_as_they_are(here, name):
    volume = volume_with({})
    store(here / "in.zarr", volume, 8)
    run(SHADE, here / "in.zarr", here / name)
    assert sorted(os.listdir(here)) == sorted(["in.zarr", name])
    same(image(here / name), shaded(volume))
    assert volpatch.verify(here / name).ok


def test_a_folder_that_cannot_be_written_is_refused_before_the_function_is_called(
    here, monkeypatch
):
    store(here / "in.zarr", volume_with({}), 8)
    monkeypatch.setattr(disk, "probe", lambda folder: _fail(errno.EROFS))
    with pytest.raises(TargetError, match=r"no file can be written in .*Read-only file system"):
        run("tests.helpers_functions:shade_and_count", here / "in.zarr", here / "out.zarr")
    assert os.listdir(here) == ["in.zarr"]


def _fail(number):
    raise OSError(number, os.strerror(number))


# -- inputs ------------------------------------------------------------------------------------


def test_an_input_that_changes_during_the_run_is_not_published(here, ask):
    volume = volume_with({})
    source = store(here / "in.zarr", volume, 8)
    seen = []

    def disturb(patch):
        seen.append(1)
        if len(seen) == 100:
            os.utime(source / "c/1/2/0", ns=(1, 1))
        return functions.shade(patch)

    with pytest.raises(RunError, match=r"/c/1/2/0' of the input changed during the run") as caught:
        run(disturb, source, here / "out.zarr")
    assert caught.value.exit_code == 1
    assert not (here / "out.zarr").exists()
    with pytest.raises(TargetError, match=r"/c/1/2/0' of the input changed, and 1 regions"):
        run(disturb, source, here / "out.zarr")
    run(disturb, source, here / "out.zarr", overwrite=True)
    same(image(here / "out.zarr"), shaded(volume))


def folder_there(path, kept):
    path.mkdir()


def link_to_nothing(path, kept):
    path.symlink_to("../nowhere")


def pipe(path, kept):
    os.mkfifo(path)


def truncated(path, kept):
    path.write_bytes(kept.read_bytes()[:-9])


def emptied(path, kept):
    path.touch()


def flipped(path, kept):
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


DAMAGE = {
    folder_there: "a folder is in its place",
    link_to_nothing: "a dead link is in its place",
    pipe: "it is a FIFO, a socket or a device, not a file",
    truncated: "",
    emptied: "",
    flipped: "[Cc]hecksum|crc32c",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_chunk_spoils_its_region_alone_and_is_mended(here, ask, damage):
    volume = volume_with({})
    codec = zarr.codecs.Crc32cCodec()
    source = store(here / "in.zarr", volume, 8, compressors=[zarr.codecs.ZstdCodec(), codec])
    chunk = source / "c/1/2/0"
    chunk.rename(here / "kept")
    damage(chunk, here / "kept")
    code, _, err = ask(*words(source, here / "out.zarr", "shade"))
    assert code == 4
    assert "1 of 27 regions failed (15)" in err
    assert re.search(rf" chunk c/1/2/0 of .*/in.zarr is damaged: .*{DAMAGE[damage]}", err)
    assert "Traceback" not in err
    assert volpatch.status(here / "out.zarr").left == [15]
    code, _, err = ask("retry", here / "out.zarr")
    assert (code, "c/1/2/0" in err) == (4, True)
    if chunk.is_dir():
        chunk.rmdir()
    else:
        chunk.unlink()
    (here / "kept").rename(chunk)
    code, _, err = ask("retry", here / "out.zarr", "--progress", "none")
    assert (code, err) == (0, "")
    same(image(here / "out.zarr"), shaded(volume))


def test_a_slice_that_vanishes_spoils_its_regions_alone_and_is_mended(here, ask):
    volume = volume_with({})
    source = here / "slices"
    source.mkdir()
    for z, plane in enumerate(volume):
        tifffile.imwrite(source / f"{z:03}.tif", plane)

    def vanish(plan):
        (source / "020.tif").rename(here / "kept.tif")

    with pytest.raises(IncompleteError, match=r"9 of 27 regions failed \(18-26\).*020\.tif"):
        run(SHADE, source, here / "out.zarr", announce=vanish)
    code, _, err = ask("retry", here / "out.zarr")
    assert code == 3
    assert "020" in err
    (here / "kept.tif").rename(source / "020.tif")
    assert ask("retry", here / "out.zarr")[0] == 0
    same(image(here / "out.zarr"), shaded(volume))


# -- disks -------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder, size):
    """A file system of `size` bytes in `folder`; the test is skipped where that is not allowed."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount")
@pytest.mark.parametrize(
    ("backend", "shards"), [("threads", None), ("threads", 8), ("processes", None)]
)
def test_a_full_disk_ends_the_run_which_goes_on_when_there_is_room(here, ask, backend, shards):
    volume = volume_with({})
    store(here / "in.zarr", volume, 8)
    more = {"codec": "none", "chunks": 8 if shards is None else 4, "shards": shards}
    run(SHADE, here / "in.zarr", here / "wanted.zarr", **more)
    with small_disk(here / "disk", 256 * 1024) as disk:
        (disk / "ballast").write_bytes(bytes(140 * 1024))
        call = words(here / "in.zarr", disk / "out.zarr", "shade", backend=backend, **more)
        code, _, err = ask(*call)
        assert code == 1
        assert "No space left on device" in err
        assert "free some space and run again" in err
        assert "Traceback" not in err
        assert err.count("\n") == 1
        assert not (disk / "out.zarr").exists()
        done = volpatch.status(disk / "out.zarr").counts["done"]
        assert 0 < done < 27
        (disk / "ballast").unlink()
        code, out, err = ask(*call, "--format", "json")
        assert code == 0, err
        assert json.loads(out)["regions_before"] >= done
        assert tree_of_objects(disk / "out.zarr") == tree_of_objects(here / "wanted.zarr")
        assert volpatch.verify(disk / "out.zarr", deep=True).ok


def tree_of_objects(target):
    return {k: v for k, v in tree(target).items() if not k.startswith((".volpatch", "zarr.json"))}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["replace", "open", "write", "fsync", "mkdir"])
def test_a_disk_that_fails_ends_the_run_which_goes_on_later(here, ask, monkeypatch, call, number):
    volume = volume_with({})
    store(here / "in.zarr", volume, 8)
    real, count = getattr(os, call), []

    def fail(*args, **kwargs):
        if _ours(call, args, here):
            count.append(1)
            if len(count) > {"mkdir": 8, "replace": 10}.get(call, 60):
                raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    words_ = words(here / "in.zarr", here / "out.zarr", "shade", durability="full")
    monkeypatch.setattr(os, call, fail)
    code, _, err = ask(*words_)
    monkeypatch.setattr(os, call, real)
    assert code == 1
    assert os.strerror(number) in err
    assert "cannot write" in err
    assert "Traceback" not in err
    assert not (here / "out.zarr").exists()
    assert volpatch.status(here / "out.zarr").counts["done"] < 27
    assert ask(*words_)[0] == 0
    same(image(here / "out.zarr"), shaded(volume))
    assert sorted(os.listdir(here)) == ["in.zarr", "out.zarr"]


def _ours(call, args, here):
    """Whether a call of the system changes anything in the work folder of the test."""
    where = args[0]
    if isinstance(where, int):
        where = os.readlink(f"/proc/self/fd/{where}")
    if call == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR):
        return False  # it only looks
    return str(where).startswith(str(here / "out.zarr.volpatch"))


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EAGAIN])
@pytest.mark.parametrize(
    ("call", "shards"),
    [("replace", None), ("open", None), ("write", None), ("fsync", None), ("replace", 16)],
)
def test_a_fault_of_the_disk_that_passes_is_waited_for(here, monkeypatch, call, shards, number):
    volume = volume_with({})
    store(here / "in.zarr", volume, 8)
    real, count = getattr(os, call), []
    sleeps = []
    monkeypatch.setattr(disk.time, "sleep", sleeps.append)

    def fail(*args, **kwargs):
        if _ours(call, args, here):
            count.append(1)
            if len(count) in (range(5, 8) if call == "replace" else range(70, 73)):
                raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, fail)
    run(SHADE, here / "in.zarr", here / "out.zarr", durability="full", shards=shards, region=None)
    monkeypatch.setattr(os, call, real)
    assert sleeps
    same(image(here / "out.zarr"), shaded(volume))
    assert volpatch.verify(here / "out.zarr").ok
