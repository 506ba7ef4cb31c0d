"""An output that is named like a file of another format is refused, with the name to write."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest

import volpatch
from tests.helpers_runs import GRID, SHADE, run, volume_with, words
from tests.helpers_stores import store
from volpatch import TargetError

VOLUME = volume_with({})


@pytest.fixture
def here(here):
    """A folder that functions find too, with a volume in it."""
    store(here / "in.zarr", VOLUME, 8)
    return here


ENDS = "nii h5 hdf5 nrrd npy npz png jpg mrc mha mhd raw ims czi n5 zip tar json"
NAMES = {
    "out.tif": "out.ome.zarr",
    "out.ome.TIFF": "out.ome.zarr",
    "a.b.nii.gz": "a.b.ome.zarr",
    "out.zarr.zip": "out.ome.zarr",
    "out.btf/": "out.ome.zarr",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_another_format_is_refused_by_each_call_with_the_one_to_write(here, name):
    given = f"{here}/{name}"
    says = re.escape(f"the output {given!r} is named like ") + ".*" + re.escape(
        f"; write '{here}/{NAMES[name]}' instead"
    )  # fmt: skip
    planned = volpatch.plan(here / "in.zarr", here / "out", func=SHADE, **GRID)
    job = volpatch.planning.job.to_json(planned)
    for call in (
        lambda: run(SHADE, here / "in.zarr", given),
        lambda: volpatch.plan(here / "in.zarr", given),
        lambda: volpatch.to_zarr(np.ones((4, 4, 4)), given),
        lambda: volpatch.running.api.run_job({**job, "target": given}),
        lambda: volpatch.running.api.run_job(job, target=given),
    ):
        with pytest.raises(TargetError, match=says):
            call()
    assert os.listdir(here) == ["in.zarr"]


@pytest.mark.parametrize("name", ["out.tif.zarr", "tif", "out.d", "v1.2", "out.zarr", "o.ome.zarr"])
def test_other_names_are_fine(here, name):
    assert run(SHADE, here / "in.zarr", here / name).complete


def test_the_command_refuses_a_name_of_another_format(here, ask):
    code, out, err = ask(*words(here / "in.zarr", here / "out.tif", "shade"))
    assert (code, out) == (3, "")
    assert "named like a TIFF file, and what is made is a folder in OME-Zarr; write '" in err


@pytest.mark.parametrize("end", ENDS.split())
def test_each_ending_of_another_format_is_refused(here, end):
    with pytest.raises(TargetError, match=rf"{end}' is named like .*; write .*/out\.ome\.zarr"):
        run(SHADE, here / "in.zarr", here / f"out.{end}")
