"""Records, plans and other files that were lost, or that are something else than a file."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from contextlib import contextmanager

import numpy as np
import pytest
import tifffile

import volpatch
from tests.helpers_runs import GRID, SHADE, run, shaded, volume_with, words
from tests.helpers_stores import image, objects, same, store
from volpatch import SettingError, SourceError

VOLUME = volume_with({})


@pytest.fixture
def here(here):
    """A folder that functions find too, with a volume in it."""
    store(here / "in.zarr", VOLUME, 8)
    return here


def test_an_output_without_its_records_is_mended(here, ask):
    run(SHADE, here / "in.zarr", here / "out.zarr")
    wanted, folder = objects(here / "out.zarr"), here / "out.zarr/.volpatch/records"
    shutil.rmtree(folder)
    assert ask("verify", here / "out.zarr")[0] == 4
    code, out, err = ask(*words(here / "in.zarr", here / "out.zarr", "shade"))
    assert (code, out) == (4, "")
    assert "objects of 27 of 27 regions (0-26) are missing" in err
    assert volpatch.retry(here / "out.zarr").stats.patches == 216
    assert volpatch.verify(here / "out.zarr", deep=True).ok
    assert objects(here / "out.zarr") == wanted
    assert run(SHADE, here / "in.zarr", here / "out.zarr").already


@pytest.mark.parametrize("lost", ["data/.volpatch/records", "tmp"])
def test_a_run_goes_on_without_folders_that_were_lost(here, lost):
    run(SHADE, here / "in.zarr", here / "out.zarr", part="1/2")
    shutil.rmtree(here / "out.zarr.volpatch" / lost)
    report = run(SHADE, here / "in.zarr", here / "out.zarr")
    assert report.stats.patches == (216 if lost.endswith("records") else 216 - 13 * 8)
    assert volpatch.verify(here / "out.zarr", deep=True).ok
    same(image(here / "out.zarr"), shaded(VOLUME))


@pytest.mark.parametrize("finished", [True, False])
def test_a_file_in_the_place_of_the_records_is_named_by_each_command(here, ask, finished):
    run(SHADE, here / "in.zarr", here / "out.zarr", part=None if finished else "1/2")
    root = here / ("out.zarr" if finished else "out.zarr.volpatch/data")
    folder = root / ".volpatch/records"
    shutil.rmtree(folder)
    folder.write_text("mine")
    call = words(here / "in.zarr", here / "out.zarr", "shade")
    for asked in (call, *([name, here / "out.zarr"] for name in ("status", "verify", "retry"))):
        code, _, err = ask(*asked)
        assert code == 3
        assert re.search(r"/records' is not a folder, but records .*; move it away, then", err)
    assert folder.read_text() == "mine"
    folder.unlink()
    assert ask(*(("retry", here / "out.zarr") if finished else call))[0] == 0
    assert volpatch.verify(here / "out.zarr", deep=True).ok


def a_pipe(path):
    os.mkfifo(path)


def a_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # which may have 108 bytes at most


def a_folder(path):
    path.mkdir()


def a_device(path):
    path.symlink_to("/dev/zero")


KINDS = {
    a_pipe: "it is a named pipe (FIFO), not a file",
    a_socket: "it is a socket, not a file",
    a_folder: "it is a folder, not a file",
    a_device: "it is a device, not a file",
}


@contextmanager
def no_waiting():
    """Turn waiting for ever into an error."""

    def late(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["plan.json", "records/more.log"])
def test_what_is_no_file_is_named_by_each_command_and_not_waited_for(
    here, ask, monkeypatch, name, make
):
    monkeypatch.chdir(here)
    run(SHADE, here / "in.zarr", here / "out.zarr")
    path = here / "out.zarr/.volpatch" / name
    aside = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    make(path)
    call = words(here / "in.zarr", here / "out.zarr", "shade")
    with no_waiting():
        for asked in (call, *([do, here / "out.zarr"] for do in ("status", "verify", "retry"))):
            code, _, err = ask(*asked)
            assert code == 3
            assert f"{path}' cannot be read ({KINDS[make]}); " in err
        path.rmdir() if make is a_folder else path.unlink()
        if aside is not None:
            path.write_bytes(aside)
        assert run(SHADE, here / "in.zarr", here / "out.zarr").already


def test_other_files_are_not_waited_for_either(here, ask):
    job, weights = here / "job.json", here / "w.pt"
    for path in (job, weights):
        os.mkfifo(path)
    with no_waiting():
        code, _, err = ask("run", job)
        assert code == 3
        assert f"'{job}' is no readable job file: it is a named pipe (FIFO), not a file" in err
        planned = volpatch.plan(here / "in.zarr", here / "out.zarr", func=SHADE, **GRID)
        with pytest.raises(SettingError, match="exists and is no job file, so it is left alone"):
            volpatch.planning.job.save(planned, job)
        with pytest.raises(SettingError, match=r"w\.pt', .* cannot be read: it is a named pipe"):
            run(SHADE, here / "in.zarr", here / "out.zarr", depends_on=[weights])
        run(SHADE, here / "in.zarr", here / "out.zarr")
        metadata = here / "out.zarr/scale0/image/zarr.json"
        metadata.unlink()
        os.mkfifo(metadata)
        found = volpatch.verify(here / "out.zarr", deep=True)
        assert found.bad == {"scale0/image/zarr.json": "it is not a file"}


def test_a_note_that_is_no_file_is_not_waited_for(here):
    run(SHADE, here / "in.zarr", here / "out.zarr", part="1/2")
    (temp,) = (here / "out.zarr.volpatch/tmp").iterdir()
    os.mkfifo(temp / "flight-1-2")
    with no_waiting():
        assert volpatch.status(here / "out.zarr").in_flight == []


def test_a_page_that_became_a_pipe_is_not_waited_for(here):
    slices = here / "slices"
    slices.mkdir()
    for z in range(8):
        tifffile.imwrite(slices / f"{z}.tif", VOLUME[z])
    opened = volpatch.open_volume(slices)
    (slices / "5.tif").unlink()
    os.mkfifo(slices / "5.tif")
    with no_waiting(), pytest.raises(SourceError, match=r"5\.tif"):
        np.asarray(opened)
