"""Masks, skips and NaN rules in store-to-store runs: the bits of memory."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from tests.helpers_arrays import distinct
from volpatch import SettingError, map_patches, open_volume, run
from volpatch.compute.reading import RingInput


@pytest.fixture
def stored(tmp_path):
    volume = distinct((40, 36, 30))
    array = zarr.create_array(
        tmp_path / "in.zarr", shape=volume.shape, chunks=(8, 16, 16), dtype="f4"
    )
    array[:] = volume
    mask = np.zeros((20, 18, 15), "uint8")
    mask[3:9, 4:12, 2:9] = 1
    kept = zarr.create_array(tmp_path / "mask.zarr", shape=mask.shape, chunks=(8, 8, 8), dtype="u1")
    kept[:] = mask
    return tmp_path, volume, mask


@pytest.mark.parametrize("window", ["hann", "crop"])
@pytest.mark.parametrize("region", [(16, 16, 16), (40, 48, 32)])
def test_a_masked_run_has_the_bits_of_memory(stored, window, region):
    folder, volume, mask = stored
    options = {"patch": 8, "stride": 4, "window": window, "fill_value": -3.0}
    report = run(
        np.sqrt,
        folder / "in.zarr",
        folder / "out.zarr",
        mask=folder / "mask.zarr",
        chunks=(8, 16, 16),
        region=region,
        **options,
    )
    wanted = map_patches(np.sqrt, volume, mask=mask, **options)
    np.testing.assert_array_equal(open_volume(folder / "out.zarr").values, wanted)
    assert 0 < report.stats.patches < 9 * 8 * 7


def test_skip_by_number_and_omitted_nans(stored):
    folder, volume, _ = stored

    def holey(patch):
        return np.where(patch % 3 == 0, np.nan, patch)

    options = {"patch": 8, "stride": 4, "skip": float(np.median(volume)), "nan_policy": "omit"}
    run(
        holey,
        folder / "in.zarr",
        folder / "out.zarr",
        region=(16, 16, 32),
        chunks=(8, 16, 16),
        **options,
    )
    np.testing.assert_array_equal(
        open_volume(folder / "out.zarr").values, map_patches(holey, volume, **options)
    )


def test_what_is_filled_in_is_not_counted_as_clipped(stored):
    folder, volume, _ = stored

    def halved(block):
        return block * np.float32(0.5)

    options = {"patch": 8, "stride": 8, "edge": "drop", "fill_value": -3, "dtype": "int32"}
    report = run(
        np.sqrt,
        folder / "in.zarr",
        folder / "out.zarr",
        mask=folder / "mask.zarr",
        finalize=halved,
        **options,
    )
    assert report.stats.clipped == 0
    got = open_volume(folder / "out.zarr").values
    assert (got[36:] == -3).all()
    assert (got[:4, :4, :4] == -3).all()
    np.testing.assert_array_equal(
        got[8:16, 8:16, 8:16], np.rint(np.sqrt(volume) / 2)[8:16, 8:16, 8:16]
    )


def test_where_a_whole_region_is_skipped_nothing_is_read(stored, monkeypatch):
    folder, _, _ = stored
    mask = np.zeros((1, 1, 1), bool)
    monkeypatch.setattr(RingInput, "load", lambda *args: pytest.fail("something was read"))
    run(
        lambda p: p,
        folder / "in.zarr",
        folder / "out.zarr",
        patch=8,
        mask=mask,
        fill_value=1.0,
        dtype="float32",
    )
    assert (open_volume(folder / "out.zarr").values == 1).all()


def test_a_mask_that_does_not_fit_is_refused_before_anything_is_written(stored):
    folder, _, _ = stored
    with pytest.raises(SettingError, match="mask has 41 cells on z"):
        run(np.sqrt, folder / "in.zarr", folder / "out.zarr", mask=np.ones((41, 1, 1)))
    assert sorted(p.name for p in folder.iterdir()) == ["in.zarr", "mask.zarr"]


def test_each_layer_of_chunks_is_read_once_in_a_region(stored, monkeypatch):
    from volpatch.storage.volume import Source

    folder, _, _ = stored
    seen = []
    read = Source.read
    monkeypatch.setattr(
        Source, "read", lambda self, s, out: (seen.append(s[0]), read(self, s, out))[1]
    )
    run(
        np.sqrt,
        folder / "in.zarr",
        folder / "out.zarr",
        patch=7,
        stride=3,
        region=(64, 36, 30),
        chunks=(64, 36, 30),
        workers=1,
    )
    layers = [(s.start, s.stop) for s in seen[1:]]  # the first is the trial's patch
    assert layers == [(0, 8), (8, 16), (16, 24), (24, 32), (32, 40)]
