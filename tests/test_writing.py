"""to_zarr: the voxels of the array and the bytes of `run`, or nothing at all."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import tifffile
import xarray as xr
import yaozarrs
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import volpatch
from tests.helpers_arrays import distinct
from tests.strategies import chunked
from volpatch import (
    RunError,
    SettingError,
    SourceError,
    TargetError,
    map_patches,
    open_volume,
    to_zarr,
)
from volpatch.running.to_zarr import _step
from volpatch.storage.layers import LayerWriter
from volpatch.storage.output import Output


def stored(path):
    return zarr.open_array(Path(path) / "scale0/image", mode="r")


def digests(path):
    """SHA-256 of every object of the image, by its key."""
    objects = Path(path) / "scale0/image/c"
    return {
        str(file.relative_to(objects)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(objects.rglob("*"))
        if file.is_file()
    }


@st.composite
def pieces(draw):
    """A shape, chunks of a dask array, chunks on disk along z, y, x, and shards or None."""
    ndim = draw(st.integers(2, 5))
    most = {2: 20, 3: 9, 4: 5, 5: 3}[ndim]
    shape = tuple(draw(st.lists(st.integers(1, most), min_size=ndim, max_size=ndim)))
    spatial = shape[-3:]
    chunks = tuple(draw(st.integers((n + 3) // 4, n + 2)) for n in spatial)
    shards = tuple(c * draw(st.integers(1, 3)) for c in chunks) if draw(st.booleans()) else None
    return shape, draw(chunked(shape)), chunks, shards


@given(pieces(), st.sampled_from(["float32", ">u2", "bool"]), st.sampled_from(["zstd", "none"]))
@settings(max_examples=60, deadline=None)
def test_what_is_read_back_is_the_array_whatever_its_chunks(case, dtype, codec):
    shape, own, chunks, shards = case
    values = distinct(shape).astype(dtype)
    options = {"chunks": chunks, "shards": shards, "codec": codec, "durability": "process"}
    with tempfile.TemporaryDirectory() as folder:
        lazy = to_zarr(da.from_array(values, chunks=own), f"{folder}/lazy.zarr", **options)
        there = to_zarr(values, f"{folder}/there.zarr", **options)
        got = stored(lazy)
        np.testing.assert_array_equal(got[...], values)
        assert got.dtype == values.dtype.newbyteorder("=")
        ones = (1,) * (len(shape) - len(chunks))
        if shards is None:
            assert got.chunks == tuple(
                min(a, b) for a, b in zip((*ones, *chunks), shape, strict=True)
            )
        else:
            assert (got.chunks, got.shards) == ((*ones, *chunks), (*ones, *shards))
        assert digests(lazy) == digests(there)
        assert sorted(os.listdir(folder)) == ["lazy.zarr", "there.zarr"]


@pytest.fixture
def stack(tmp_path):
    """A calibrated OME-Zarr, made by volpatch."""
    values = (distinct((40, 45, 50)) * 7 % 3001).astype("uint16")
    volume = xr.DataArray(values, dims=("z", "y", "x"), name="stack").assign_coords(
        z=("z", 5 + 0.3 * np.arange(40), {"units": "um"}),
        y=("y", 0.1 * np.arange(45), {"units": "um"}),
        x=("x", 0.1 * np.arange(50), {"units": "um"}),
    )
    return to_zarr(volume, tmp_path / "stack.zarr", chunks=(10, 20, 20))


@pytest.mark.parametrize("shards", [None, (16, 36, 32)])
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_the_bytes_are_those_of_run(stack, tmp_path, shards, scheduler):
    options = {"patch": 12, "stride": 5, "dtype": "uint16"}
    units = {"chunks": (8, 12, 16), "shards": shards}
    volpatch.run(np.sqrt, stack, tmp_path / "run.zarr", **options, **units)
    with dask.config.set(scheduler=scheduler):
        to_zarr(
            map_patches(np.sqrt, open_volume(stack), **options), tmp_path / "lazy.zarr", **units
        )
    assert len(digests(tmp_path / "run.zarr")) > 5
    assert digests(tmp_path / "lazy.zarr") == digests(tmp_path / "run.zarr")
    metadata = [
        zarr.open_group(tmp_path / name, mode="r").attrs["ome"]
        for name in ("run.zarr", "lazy.zarr")
    ]
    # the name is the source's in both
    assert metadata[0] == metadata[1]
    yaozarrs.validate_zarr_store(tmp_path / "lazy.zarr")


def test_channels_and_several_leading_axes_are_those_of_run(tmp_path):
    values = (np.arange(2 * 3 * 20 * 22) % 251).astype("uint8").reshape(2, 3, 20, 22)
    source = to_zarr(xr.DataArray(values, dims=("t", "c", "y", "x")), tmp_path / "in.zarr")

    def two(patch):
        return np.stack([patch.mean(0), patch.max(0)])

    options = {"patch": 8, "channel_axis": "c", "window": "hann", "dtype": "float32", "chunks": 8}
    volpatch.run(two, source, tmp_path / "run.zarr", **options)
    chunks = options.pop("chunks")
    lazy = map_patches(two, open_volume(source), **options)
    to_zarr(lazy, tmp_path / "lazy.zarr", chunks=chunks)
    assert stored(tmp_path / "lazy.zarr").shape == (2, 2, 20, 22)
    assert digests(tmp_path / "lazy.zarr") == digests(tmp_path / "run.zarr")


def test_processes_write_the_same(tmp_path):
    values = distinct((20, 21, 22))
    lazy = da.from_array(values, chunks=7)
    with dask.config.set(scheduler="processes", num_workers=2):
        to_zarr(lazy + 1, tmp_path / "out.zarr", chunks=8)
    np.testing.assert_array_equal(stored(tmp_path / "out.zarr")[...], values + 1)


def test_each_write_unit_is_put_once(tmp_path, monkeypatch):
    from volpatch.storage.stores.local import AtomicFiles

    put, publish = [], AtomicFiles.publish_temp

    def count(self, temp, path):
        put.append(str(path))
        publish(self, temp, path)

    monkeypatch.setattr(AtomicFiles, "publish_temp", count)
    lazy = da.zeros((30, 31, 32), chunks=(1, 31, 5), dtype="u1")
    to_zarr(lazy, tmp_path / "out.zarr", chunks=8, shards=16)
    objects = [path for path in put if "/image/c/" in path]
    assert len(objects) == len(set(objects)) == 2 * 2 * 2


# -- what is kept --------------------------------------------------------------------------


def test_calibration_survives_there_and_back(stack, tmp_path):
    back = open_volume(stack)
    np.testing.assert_array_equal(back.z, 5 + 0.3 * np.arange(40))
    assert back.z.attrs["units"] == "micrometer"
    ome = zarr.open_group(stack, mode="r").attrs["ome"]["multiscales"][0]
    assert ome["name"] == "stack"
    scale, shift = ome["datasets"][0]["coordinateTransformations"]
    assert scale["scale"] == [0.3, 0.1, 0.1]
    assert shift["translation"] == [5.0, 0.0, 0.0]
    again = to_zarr(back.isel(z=slice(4, 9)) + 1, tmp_path / "part.zarr")
    assert float(open_volume(again).z[0]) == 5 + 0.3 * 4
    assert open_volume(again).x.attrs["units"] == "micrometer"


@given(st.decimals("0.001", 900, places=3), st.decimals(-999, 999, places=3), st.integers(2, 999))
def test_positions_come_back_to_the_last_bit(step, first, n):
    positions = float(first) + float(step) * np.arange(n)
    np.testing.assert_array_equal(float(first) + _step(positions) * np.arange(n), positions)


def test_axes_are_put_in_the_order_of_ome_zarr(tmp_path):
    values = distinct((4, 5, 6, 2))
    made = to_zarr(xr.DataArray(values, dims=("x", "z", "y", "c")), tmp_path / "out.zarr")
    assert stored(made).metadata.dimension_names == ("c", "z", "y", "x")
    np.testing.assert_array_equal(stored(made), values.transpose(3, 1, 2, 0))


def test_axes_without_names_get_the_usual_ones(tmp_path):
    for number, array in enumerate((np.zeros((3, 4, 5)), xr.DataArray(np.zeros((3, 4, 5))))):
        made = to_zarr(array, tmp_path / f"{number}.zarr")
        assert open_volume(made).dims == ("z", "y", "x")


@pytest.mark.parametrize("positions", [[0, 1, 3, 4], [3, 2, 1, 0], [1, 1, 1, 1], list("abcd")])
def test_positions_that_are_no_grid_are_written_in_voxels_with_a_warning(tmp_path, positions):
    array = xr.DataArray(np.zeros((4, 4)), dims=("y", "x"), coords={"y": positions})
    with pytest.warns(UserWarning, match=r"positions along 'y' are not .* in voxels") as told:
        made = to_zarr(array, tmp_path / "out.zarr")
    assert told[0].filename == __file__
    assert open_volume(made).y.values.tolist() == [0, 1, 2, 3]


def test_default_chunks_are_the_arrays_own_where_they_are_handy(tmp_path):
    handy = da.zeros((200, 300), chunks=(100, 120))
    thin = da.zeros((200, 300), chunks=(1, 300))
    assert stored(to_zarr(handy, tmp_path / "a.zarr")).chunks == (100, 120)
    assert stored(to_zarr(thin, tmp_path / "b.zarr")).chunks == (200, 300)
    assert stored(to_zarr(np.zeros((70, 200, 20)), tmp_path / "c.zarr")).chunks == (64, 128, 20)


# -- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "options", "says"),
    [
        (np.zeros(9), {}, "two or three of the axes z, y, x"),
        (np.zeros((1,) * 6), {}, "two or three of the axes z, y, x"),
        (np.zeros((0, 4)), {}, r"shape=\(0, 4\) must be at least 1"),
        (np.zeros((4, 4), complex), {}, "dtype='complex128' cannot be written; choose one of"),
        (np.zeros((4, 4), "datetime64[s]"), {}, "cannot be written; choose one of"),
        (np.zeros((4, 4), object), {}, "dtype='object' cannot be written; choose one of"),
        (np.zeros((4, 4)), {"chunks": 0}, "must be at least 1"),
        (np.zeros((4, 4)), {"chunks": 2.5}, "whole numbers of voxels"),
        (np.zeros((4, 4)), {"chunks": "2"}, "whole numbers of voxels"),
        (np.zeros((4, 4)), {"chunks": (1, 2, 2)}, "chunks"),
        (np.zeros((4, 4)), {"chunks": {"q": 2}}, "chunks names the axes"),
        (np.zeros((4, 4)), {"chunks": 2, "shards": 3}, "must be multiples of chunks"),
        (np.zeros((4, 4)), {"codec": "blosc"}, "codec='blosc' is not known"),
        (np.ma.masked_equal(np.zeros((4, 4)), 0), {}, "masked"),
        (da.ma.masked_equal(da.zeros((4, 4)), 0), {}, "masked"),
        ([[1, 2], [3, 4]], {}, "to_zarr takes a numpy, dask or xarray array"),
        (da.zeros((4, 4))[da.zeros(4) > 0], {}, "chunks of unknown size"),
        (xr.Dataset({"a": ("x", [1])}), {}, "one by one"),
        (xr.DataArray(np.zeros((4, 4)), dims=("row", "col")), {}, "rename axes"),
        (xr.DataArray(np.zeros((1,) * 4), dims=("a", "b", "y", "x")), {}, "one more"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path, array, options, says):
    with pytest.raises(volpatch.VolpatchError, match=says):
        to_zarr(array, tmp_path / "out.zarr", **options)
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_are_refused(stack, tmp_path):
    folder = Path(stack)
    with pytest.raises(TargetError, match="exists; pass"):
        to_zarr(np.zeros((4, 4)), stack)
    lazy = map_patches(np.sqrt, open_volume(stack), 8)
    for place in (folder, folder / "inner.zarr"):
        with pytest.raises(TargetError, match="the input is never written to"):
            to_zarr(lazy, place, overwrite=True)
    with pytest.raises(TargetError, match="make that folder first"):
        to_zarr(np.zeros((4, 4)), tmp_path / "no" / "out.zarr")
    assert sorted(os.listdir(tmp_path)) == ["stack.zarr"]


@pytest.mark.parametrize("wrong", ["shape", "dtype"])
def test_a_block_that_is_not_as_declared_is_refused(tmp_path, wrong):
    def lie(block):
        return block[:3] if wrong == "shape" else block.astype("f8")

    lazy = da.zeros((8, 8), chunks=4, dtype="f4")
    lying = lazy.map_blocks(lie, dtype="f4", meta=np.empty((0, 0), "f4"))
    with pytest.raises(SourceError, match="must declare the chunks and dtype"):
        to_zarr(lying, tmp_path / "out.zarr", chunks=4)
    assert os.listdir(tmp_path) == []


def test_overwrite_keeps_the_old_output_until_the_new_one_is_there(tmp_path):
    made = to_zarr(np.ones((8, 8)), tmp_path / "out.zarr", chunks=4)
    with pytest.raises(ZeroDivisionError):
        to_zarr(failing((8, 8)), made, overwrite=True)
    assert os.listdir(tmp_path) == ["out.zarr"]
    assert stored(made)[...].sum() == 64
    to_zarr(np.zeros((6, 6)), made, overwrite=True)
    assert os.listdir(tmp_path) == ["out.zarr"]
    assert stored(made).shape == (6, 6)


# -- what goes wrong -----------------------------------------------------------------------


def failing(shape):
    def fail(block):
        raise ZeroDivisionError("one block cannot be computed")

    return da.zeros(shape, chunks=4).map_blocks(fail, dtype="f8", meta=np.empty((0, 0)))


@pytest.mark.parametrize("shards", [None, 8])
@pytest.mark.parametrize("when", ["while all is removed", "while the next call builds"])
def test_after_an_error_blocks_on_their_way_write_nothing(tmp_path, monkeypatch, shards, when):
    """Not under the name, and not into what another call builds in the same place."""
    at_the_door, go_on, outcome = threading.Event(), threading.Event(), []
    write = LayerWriter.write

    def late(self, layer, at):
        if layer[0, 0] != 1 or self.start != (0, 0):
            return write(self, layer, at)
        at_the_door.set()
        go_on.wait(30)
        try:
            write(self, layer, at)
            outcome.append("written")
        except RunError as error:
            outcome.append(str(error))
            raise

    def let_go():
        if not at_the_door.is_set():
            return  # an earlier tree is removed before any block is on its way
        go_on.set()
        until = time.monotonic() + 30
        while not outcome and time.monotonic() < until:
            time.sleep(0.01)

    remove = Output._remove_all
    if when == "while all is removed":
        monkeypatch.setattr(Output, "_remove_all", lambda self: (let_go(), remove(self)))

    def fail_after_that(block, block_id=None):
        if block_id == (0, 1):
            at_the_door.wait(30)
            raise ZeroDivisionError
        return block

    monkeypatch.setattr(LayerWriter, "write", late)
    options = {"chunks": 4 if shards else 8, "shards": shards}
    ones = da.ones((8, 32), chunks=(8, 8))
    failing = ones.map_blocks(fail_after_that, dtype="f8", meta=np.empty((0, 0)))
    with dask.config.set(scheduler="threads", num_workers=2):
        with pytest.raises(ZeroDivisionError):
            to_zarr(failing, tmp_path / "out.zarr", **options)
        assert os.listdir(tmp_path) == []

        def meanwhile(block, block_id=None):
            if block_id == (0, 3):  # the new tree is there, and the old block goes on
                let_go()
            return block * 5

        fives = ones.map_blocks(meanwhile, dtype="f8", meta=np.empty((0, 0)))
        to_zarr(fives, tmp_path / "out.zarr", **options)
    assert len(outcome) == 1
    assert "cannot write" in outcome[0]
    assert os.listdir(tmp_path) == ["out.zarr"]
    np.testing.assert_array_equal(stored(tmp_path / "out.zarr")[...], 5)


def test_an_interrupt_leaves_nothing(tmp_path):
    script = f"""
        import time, dask.array as da, numpy as np, volpatch
        def slow(block):
            time.sleep(0.1)
            return block
        lazy = da.zeros((400, 8), chunks=4).map_blocks(slow, dtype="f8", meta=np.empty((0, 0)))
        volpatch.to_zarr(lazy, {str(tmp_path / "out.zarr")!r}, chunks=4)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stderr=subprocess.PIPE, text=True
    )
    try:
        objects = tmp_path / "out.zarr.volpatch/data/scale0/image/c"
        until = time.monotonic() + 60
        while not objects.is_dir() and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "KeyboardInterrupt" in told
    assert process.returncode != 0
    assert os.listdir(tmp_path) == []


def test_a_tiff_is_mapped_and_written_without_ever_being_whole(tmp_path):
    values = (distinct((30, 40, 50)) % 255).astype("uint8")
    tifffile.imwrite(tmp_path / "in.tif", values)
    lazy = map_patches(lambda p: 255 - p, open_volume(tmp_path / "in.tif"), 16, dtype="uint8")
    made = to_zarr(lazy, tmp_path / "out.zarr")
    np.testing.assert_array_equal(open_volume(made), 255 - values)


def test_settings_are_named_in_errors():
    with pytest.raises(SettingError, match="choose one of"):
        to_zarr(np.zeros((4, 4), "S3"), "out.zarr")


# -- records -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["threads", "processes", "in memory"])
@pytest.mark.parametrize("shards", [None, 8])
def test_what_was_written_can_be_verified(tmp_path, scheduler, shards):
    values = np.random.default_rng(0).integers(0, 999, (10, 17, 9), np.uint16)
    array = values if scheduler == "in memory" else da.from_array(values, chunks=(5, 6, 9))
    config = {} if scheduler == "in memory" else {"scheduler": scheduler}
    with dask.config.set(config):
        made = to_zarr(array, tmp_path / "out.zarr", chunks=4, shards=shards)
    found = volpatch.verify(made, deep=True)
    assert found.ok
    assert found.finished
    units = [file for file in Path(made, "scale0/image/c").rglob("*") if file.is_file()]
    assert found.objects == len(units) + len([*Path(made).rglob("zarr.json")]) + 3  # z, y, x
    state = volpatch.status(made)
    assert state.finished
    assert state.left == []
    assert volpatch.commit(made) == made
    spoiled = units[len(units) // 2]
    content = bytearray(spoiled.read_bytes())
    content[len(content) // 2] ^= 4
    spoiled.write_bytes(content)
    bad = volpatch.verify(made).bad
    assert list(bad) == [str(spoiled.relative_to(made))]


def test_what_was_written_cannot_be_repeated_or_gone_on_with(tmp_path):
    values = np.arange(1000, dtype=np.uint8).reshape(10, 10, 10)
    made = to_zarr(values, tmp_path / "out.zarr", chunks=5)
    with pytest.raises(SettingError, match="was written by to_zarr, which cannot be repeated"):
        volpatch.retry(made)
    tifffile.imwrite(tmp_path / "in.tif", values)
    said = "made by another job: it was written by to_zarr and is now asked of run; pass overwrite"
    with pytest.raises(TargetError, match=said):
        volpatch.run("identity", tmp_path / "in.tif", made, patch=4)
    volpatch.run("identity", tmp_path / "in.tif", made, patch=4, overwrite=True)
    assert volpatch.verify(made).ok
    to_zarr(values, made, chunks=5, overwrite=True)
    assert volpatch.verify(made).ok


def test_written_and_not_yet_named_it_can_be_committed_or_written_again(tmp_path, monkeypatch):
    values = np.arange(1000, dtype=np.uint8).reshape(10, 10, 10)

    def killed(self, spec):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Output, "publish", killed)
        patched.setattr(Output, "give_up", lambda self, temp: None)
        for name in ("a.zarr", "b.zarr", "c.zarr"):
            with pytest.raises(KeyboardInterrupt):
                to_zarr(values, tmp_path / name, chunks=5)
    assert not (tmp_path / "a.zarr").exists()
    volpatch.commit(tmp_path / "a.zarr")
    to_zarr(values, tmp_path / "b.zarr", chunks=5)
    assert volpatch.clean(tmp_path / "c.zarr")
    for name in ("a.zarr", "b.zarr"):
        assert volpatch.verify(tmp_path / name, deep=True).ok
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "b.zarr"]
