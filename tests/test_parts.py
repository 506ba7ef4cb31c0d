"""Reports, progress and words of parts and of runs that go on: each tells what it did itself."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.helpers_runs import SHADE, run, volume_with, words
from tests.helpers_stores import store

VOXELS, REGIONS = 24**3, 27


@pytest.fixture
def here(here):
    store(here / "in.zarr", volume_with({}), 8)
    return here


def test_a_report_counts_what_its_run_did(here):
    parts = [run(SHADE, here / "in.zarr", here / "out.zarr", part=f"{i}/4") for i in range(4)]
    assert [report.regions_done for report in parts] == [7, 7, 7, 6]
    assert [report.regions_before for report in parts] == [0, 7, 14, 21]
    assert sum(report.voxels for report in parts) == VOXELS
    itemsize = np.dtype(parts[0].dtype).itemsize
    assert sum(report.raw_bytes for report in parts) == VOXELS * itemsize
    first = parts[0]
    assert first.voxels_per_second == pytest.approx(first.voxels / first.seconds)
    assert "7 of 27 regions, " in str(first)
    assert "\npart      0/4: 7 of 27 regions\n" in str(first)


def test_a_part_with_nothing_left_to_do_has_no_speed(here):
    run(SHADE, here / "in.zarr", here / "out.zarr", part="0/2")
    again = run(SHADE, here / "in.zarr", here / "out.zarr", part="0/2")
    assert (again.voxels, again.voxels_per_second, again.regions_done) == (0, 0, 0)
    assert "0 of 27 regions (14 done before): nothing was left to do" in str(again)
    assert "Mvoxel/s" not in str(again)


def test_progress_is_of_what_is_left_for_this_run(here, ask):
    run(SHADE, here / "in.zarr", here / "out.zarr", part="0/9")
    line = words(here / "in.zarr", here / "out.zarr", "shade", part="0/3")
    code, _, err = ask(*(w if w != "none" else "bar" for w in line))
    assert code == 0
    assert "going on: 3 of 27 regions are done" in err
    assert "100.0%  48 of 48 patches" in err  # of 9 regions, 3 were done, with 8 patches each


@pytest.mark.parametrize("form", ["text", "json"])
def test_more_parts_than_regions_are_told_before_the_run(here, ask, form):
    code, out, err = ask(
        *words(here / "in.zarr", here / "out.zarr", "shade", part="30/40", format=form)
    )
    assert code == 0
    plan = out[: out.index("building")] if form == "text" else err
    assert "part      30/40: none of 27 regions" in plan
    assert "there are more parts than regions: 13 have nothing to do; fewer parts" in plan
    assert "a smaller --region ... makes more regions" in plan
    if form == "json":
        assert json.loads(out)["regions_done"] == 0
    else:
        assert "not yet: part 30/40 is done" in out
