"""Lazy arrays: the same bits as in memory, nothing read too early, nothing computed twice."""

from __future__ import annotations

import pickle
import tracemalloc

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import volpatch
from tests import oracles
from tests.helpers_arrays import distinct, identity
from tests.strategies import chunked, problems
from volpatch import GridError, Merger, PatchGrid, SettingError, extract, map_patches, merge

dask.config.set(scheduler="synchronous")


class Counting:
    """An array that counts how often it is read."""

    def __init__(self, array):
        self.array, self.reads = array, []
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __getitem__(self, key):
        self.reads.append(key)
        return self.array[key]


@given(problems(), st.sampled_from(["hann", "crop", "constant"]), st.data())
def test_lazy_map_patches_has_the_bits_of_memory(grid, window, data):
    volume = distinct(grid.shape)
    options = {"stride": grid.stride, "edge": grid.edge, "window": window}
    lazy = da.from_array(volume, chunks=data.draw(chunked(grid.shape)))
    got = map_patches(np.sqrt, lazy, grid.patch, **options)
    wanted = map_patches(np.sqrt, volume, grid.patch, **options)
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    np.testing.assert_array_equal(got.compute(), wanted)


@given(problems(), st.sampled_from(["hann", "crop", "gaussian"]), st.data())
def test_extract_then_merge_has_the_bits_of_map_patches(grid, window, data):
    volume = distinct(grid.shape)
    options = {"stride": grid.stride, "edge": grid.edge}
    lazy = da.from_array(volume, chunks=data.draw(chunked(grid.shape)))
    patches = extract(lazy, grid.patch, **options)
    whole = oracles.padded(volume, grid)
    in_memory = extract(volume, grid.patch, **options)
    assert patches.shape == in_memory.shape == (*grid.lattice, *grid.patch)
    np.testing.assert_array_equal(patches.compute(), in_memory)
    for position in np.ndindex(*grid.lattice):
        np.testing.assert_array_equal(in_memory[position], whole[grid[position].slices])
    wanted = map_patches(np.sqrt, volume, grid.patch, window=window, **options)
    merged = merge(patches.map_blocks(np.sqrt), grid, window=window)
    assert merged.shape == volume.shape
    np.testing.assert_array_equal(merged.compute(), wanted)
    np.testing.assert_array_equal(merge(np.sqrt(in_memory), grid, window=window), wanted)


@given(problems(max_ndim=2), st.data())
def test_a_mask_and_omitted_nans_have_the_bits_of_memory(grid, data):
    volume = distinct(grid.shape)
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random(grid.shape) < 0.1

    def spoil(patch):
        return np.where(patch % 5 == 0, np.nan, patch)

    options = {
        "stride": grid.stride,
        "edge": grid.edge,
        "mask": mask,
        "nan_policy": "omit",
        "fill_value": -1,
    }
    lazy = da.from_array(volume, chunks=data.draw(chunked(grid.shape)))
    np.testing.assert_array_equal(
        map_patches(spoil, lazy, grid.patch, **options).compute(),
        map_patches(spoil, volume, grid.patch, **options),
    )


@given(st.integers(5, 30), st.integers(1, 6), st.integers(1, 9), st.integers(0, 5), st.data())
@settings(max_examples=60)
def test_gaps_offsets_and_drop_work_lazily(size, patch, stride, offset, data):
    edge = data.draw(st.sampled_from(["shift", "pad", "drop"]))
    try:
        grid = PatchGrid((size, size), patch, stride, offset=offset, edge=edge)
    except GridError:
        reject()
    volume = distinct(grid.shape)
    lazy = da.from_array(volume, chunks=data.draw(chunked(grid.shape)))
    options = {"stride": stride, "offset": offset, "edge": edge}
    wanted = map_patches(identity, volume, patch, fill_value=-7, **options)
    got = map_patches(identity, lazy, patch, fill_value=-7, **options)
    np.testing.assert_array_equal(got.compute(), wanted)
    patches = extract(lazy, patch, **options)
    np.testing.assert_array_equal(patches.compute(), extract(volume, patch, **options))
    if len(grid):
        np.testing.assert_array_equal(merge(patches, grid, fill_value=-7).compute(), wanted)


def test_building_reads_nothing_and_a_slice_computes_only_its_patches():
    source = Counting(distinct((96, 32, 32)))
    lazy = da.from_array(source, chunks=(16, 32, 32))
    source.reads.clear()  # dask itself looks at an empty slice
    calls = []
    out = map_patches(
        lambda p: (calls.append(1), p)[1], lazy, 16, stride=8, dtype="float32", out_channels=None
    )
    patches = extract(lazy, 16, stride=8)
    merged = merge(patches, PatchGrid((96, 32, 32), 16, 8))
    assert source.reads == []
    assert len(calls) <= 1  # one on a made-up patch
    calls.clear()
    out[:16].compute()
    assert len(calls) == 2 * 9
    assert len(source.reads) <= 3
    source.reads.clear()
    merged[:16].compute()
    assert len(source.reads) <= 3


def merged_alike(grid, chunks, window):
    numbers = distinct(grid.lattice, seed=1)[(..., *(None for _ in grid.patch))]
    patches = np.asarray(extract(distinct(grid.shape), grid)) + numbers
    lazy = da.from_array(patches, chunks=(*chunks, *grid.patch))
    merged = merge(lazy, grid, window=window).compute()
    np.testing.assert_array_equal(merged, merge(patches, grid, window=window))


@given(problems(), st.sampled_from(["hann", "crop"]), st.data())
def test_merge_has_the_same_bits_however_the_lattice_is_chunked(grid, window, data):
    merged_alike(grid, [data.draw(chunked((n,)))[0] for n in grid.lattice], window)


@pytest.mark.parametrize("shape", [(9,), (12,), (9, 12), (10, 9)])
def test_merge_takes_a_chunk_for_each_patch(shape):
    """The last patch, which is shifted, may overlap more others than any other does."""
    grid = PatchGrid(shape, 5, 3)
    merged_alike(grid, [(1,) * n for n in grid.lattice], "hann")


def test_each_patch_is_computed_once_between_extract_and_merge():
    volume = distinct((40, 36))
    grid = PatchGrid(volume.shape, 8, 4)
    seen = []

    def count(block):
        seen.append(block.shape[0] * block.shape[1])
        return block * 2

    patches = extract(da.from_array(volume, chunks=(16, 12)), grid)
    merged = merge(patches.map_blocks(count, dtype="float32", meta=np.empty((0,) * 4, "f4")), grid)
    np.testing.assert_allclose(merged.compute(), volume * 2, rtol=1e-6)
    assert sum(seen) == len(grid)


def test_tasks_follow_chunks_not_patches():
    def tasks(chunk, stride):
        lazy = da.zeros((256, 256), chunks=chunk, dtype="float32")
        out = map_patches(identity, lazy, 16, stride=stride)
        return len(dict(out.__dask_graph__()))

    assert tasks(64, 1) == tasks(64, 16)
    assert tasks(32, 8) < 5 * tasks(64, 8)


@pytest.mark.parametrize(
    ("shape", "chunks", "patch", "stride"),
    [
        ((64, 64, 16), (32, 32, 2), 8, 4),
        ((6, 20, 20), (1, 20, 20), 4, 2),
        ((130, 40), (64, 40), 16, 8),
        ((65, 33), (64, 32), 32, 8),
        ((20, 20), (20, 20), 20, 5),
    ],
)
def test_awkward_chunks(shape, chunks, patch, stride):
    volume = distinct(shape)
    lazy = da.from_array(volume, chunks=chunks)
    wanted = map_patches(identity, volume, patch, stride=stride)
    np.testing.assert_array_equal(map_patches(identity, lazy, patch, stride=stride), wanted)
    grid = PatchGrid(shape, patch, stride)
    np.testing.assert_array_equal(merge(extract(lazy, grid), grid).compute(), wanted)


def test_merged_chunks_may_be_asked_for():
    grid = PatchGrid((40, 40), 8, 5)
    lazy = da.zeros((40, 40), chunks=13)
    assert merge(extract(lazy, grid), grid, chunks=lazy.chunks).chunks == lazy.chunks


@pytest.mark.parametrize("chunks", [(1, 2, 10, 9), (2, 3, 20, 5)])
def test_leading_axes_and_channels(chunks):
    volume = distinct((2, 3, 20, 18))
    lazy = da.from_array(volume, chunks=chunks)

    def two(patch):
        return np.stack([patch, -patch])

    wanted = map_patches(two, volume, (6, 6), stride=4)
    got = map_patches(two, lazy, (6, 6), stride=4)
    assert got.shape == wanted.shape == (2, 3, 2, 20, 18)
    np.testing.assert_array_equal(got.compute(), wanted)
    mixed = map_patches(lambda p: p.sum(0), lazy, (6, 6), channel_axis=1)
    np.testing.assert_array_equal(
        mixed.compute(), map_patches(lambda p: p.sum(0), volume, (6, 6), channel_axis=1)
    )
    both = map_patches(lambda p: p[:2], lazy, (6, 6), channel_axis=1, roi=(slice(0, 1), 0, 3, 5))
    patches = extract(lazy, (6, 6), stride=4)
    assert patches.shape[:2] == (2, 3)
    grid = PatchGrid((20, 18), 6, 4)
    np.testing.assert_allclose(merge(patches, grid).compute(), volume, rtol=1e-6)
    assert both.shape == (1, 1, 1, 1) or both.shape == (1, 2, 1, 1)


def test_finalize_and_roi_work_lazily():
    volume = distinct((24, 24))
    lazy = da.from_array(volume, chunks=10)
    options = {
        "stride": 4,
        "finalize": lambda b: b.argmax(0).astype("uint8"),
        "roi": (slice(3, 20), slice(5, 24)),
    }

    def classes(patch):
        return np.stack([patch * 0 + 200, patch])

    got = map_patches(classes, lazy, 8, **options)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got.compute(), map_patches(classes, volume, 8, **options))


def test_numpy_extract_is_a_view_where_starts_are_regular():
    volume = distinct((60, 60))
    patches = extract(volume, 39, stride=1)
    assert patches.base is not None
    assert not patches.flags.writeable
    assert np.shares_memory(patches, volume)
    huge = extract(np.broadcast_to(np.float32(1), (10_038, 10_038)), 39, stride=1)
    assert huge.shape == (10_000, 10_000, 39, 39)
    assert not np.shares_memory(extract(volume, 39, stride=2), volume)


def test_dense_patches_as_a_matrix_are_averaged_back():
    image = distinct((60, 57))

    def centred(batch):
        rows = batch.reshape(len(batch), 39 * 39)
        return (rows - rows.mean(1, keepdims=True)).reshape(batch.shape)

    got = map_patches(centred, image, 39, stride=1, window="constant", batch_size=64)
    from sklearn.feature_extraction.image import extract_patches_2d, reconstruct_from_patches_2d

    patches = extract_patches_2d(image, (39, 39))
    wanted = reconstruct_from_patches_2d(centred(patches), image.shape)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-2)


def test_strided_six_axis_view_of_a_stack():
    stack = distinct((9, 12, 10))
    patches = extract(stack, (3, 4, 4), stride=(3, 4, 2))
    view = np.lib.stride_tricks.sliding_window_view(stack, (3, 4, 4))[::3, ::4, ::2]
    np.testing.assert_array_equal(patches, view)
    assert PatchGrid(stack.shape, (3, 4, 4), (3, 4, 2)).centers[0] == (1.0, 1.5, 1.5)


def test_xarray_keeps_names_coords_units_and_attrs():
    z = xr.Variable("z", 5 + 2.0 * np.arange(12), {"units": "micrometer"})
    volume = xr.DataArray(
        distinct((2, 12, 20, 20)),
        dims=("c", "z", "y", "x"),
        coords={"z": z},
        name="brain",
        attrs={"stain": "DAPI"},
    )
    for data in (volume, volume.chunk(z=5, y=7)):
        out = map_patches(lambda p: p * 2, data, {"z": 4, "y": 8, "x": 8}, overlap="50%")
        assert out.dims == volume.dims
        assert out.attrs == volume.attrs
        assert out.name == "brain"
        assert out.z.attrs == {"units": "micrometer"}
        np.testing.assert_allclose(out.values, volume.values * 2, rtol=1e-6)
        part = map_patches(lambda p: p, data, {"z": 4, "y": 8, "x": 8}, roi="z=3:6,c=1")
        assert part.shape == (1, 3, 20, 20)
        assert part.z.values.tolist() == [11.0, 13.0, 15.0]
        patches = extract(data, {"z": 4, "y": 8, "x": 8}, stride={"z": 2, "y": 4, "x": 4})
        assert patches.dims == ("c", "z_patch", "y_patch", "x_patch", "z", "y", "x")
        assert patches.z_start.values.tolist() == [0, 2, 4, 6, 8]
        assert patches.z_patch.values.tolist() == [8.0, 12.0, 16.0, 20.0, 24.0]
        assert patches.z_patch.attrs == {"units": "micrometer"}
        grid = PatchGrid((12, 20, 20), (4, 8, 8), (2, 4, 4))
        back = merge(patches, grid)
        assert back.dims == volume.dims
        np.testing.assert_allclose(back.z, volume.z)
        np.testing.assert_allclose(back.values, volume.values, rtol=1e-6)


def test_dataset_variables_are_mapped_one_by_one():
    pair = xr.Dataset({"a": (("y", "x"), distinct((9, 9))), "b": (("y", "x"), distinct((9, 9)))})
    out = pair.map(lambda v: map_patches(lambda p: p + 1, v, 4))
    np.testing.assert_allclose(out["b"], pair["b"] + 1, rtol=1e-6)
    with pytest.raises(SettingError, match="one by one"):
        map_patches(identity, pair, 4)


def test_coverage_counts_patches():
    grid = PatchGrid((10, 11), 4, 3)
    counts = volpatch.coverage(grid, chunks=5)
    assert isinstance(counts, da.Array)
    wanted = np.zeros(grid.shape, int)
    for box in grid:
        wanted[box.slices] += 1
    np.testing.assert_array_equal(counts.compute(), wanted)


@pytest.mark.parametrize("edge", ["shift", "pad", "drop"])
@pytest.mark.parametrize(("patch", "stride", "offset"), [(5, 2, 3), (3, 7, 0), (30, 1, 1)])
def test_coverage_of_every_edge(edge, patch, stride, offset):
    grid = PatchGrid((31,), patch, stride, edge=edge, offset=offset)
    wanted = np.zeros(grid.axes[0].padded, int)
    for box in grid:
        wanted[box.slices] += 1
    np.testing.assert_array_equal(volpatch.coverage(grid, chunks=7).compute(), wanted[:31])


def test_coverage_of_a_huge_grid_is_counted_where_it_is_looked_at():
    tracemalloc.start()
    counts = volpatch.coverage(PatchGrid((2**27, 4), 4, 2), chunks=(2**20, 4))
    near_end = counts[-3:].compute()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert near_end.tolist() == [[2] * 4, [1] * 4, [1] * 4]
    assert peak < 2**27


@given(problems(max_ndim=2), st.sampled_from(["hann", "crop"]), st.booleans())
def test_merger_in_raster_order_has_the_bits_of_merge(grid, window, batches):
    volume = distinct(grid.shape)
    patches = extract(volume, grid)
    merger = Merger(grid, window=window)
    flat = patches.reshape(-1, *grid.patch)
    if batches:
        for start in range(0, len(flat), 3):
            merger.add_batch(range(start, min(start + 3, len(flat))), flat[start : start + 3])
    else:
        for position in np.ndindex(*grid.lattice):
            merger.add(position, patches[position])
    np.testing.assert_array_equal(merger.result(), merge(patches, grid, window=window))


def test_merger_takes_any_order_channels_and_any_target():
    volume = distinct((12, 13), "uint8").astype("float32")
    grid = PatchGrid(volume.shape, 5, 2)
    out = np.zeros((2, 12, 13), "uint16")
    merger = Merger(grid, dtype="uint16", out=Counting2(out))
    for index in np.random.default_rng(0).permutation(len(grid)):
        patch = volume[grid[index].slices]
        merger.add(index, np.stack([patch, patch + 1]))
    merger.result()
    np.testing.assert_array_equal(out, np.stack([volume, volume + 1]))


class Counting2:
    """Something that only takes slices."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __setitem__(self, key, value):
        self.array[key] = value


def test_merger_misuse_is_named():
    grid = PatchGrid((8, 8), 4, 4)
    merger = Merger(grid)
    merger.add(1, np.ones((4, 4)))
    with pytest.raises(GridError, match=r"patch 1 at \[0:4, 4:8\] was added before"):
        merger.add((0, 1), np.ones((4, 4)))
    with pytest.raises(GridError, match=r"3 of 4 patches were never added, first patch 0 at"):
        merger.result()
    for bad in (-1, 4, (0, 2), (-1, 0), 1.5):
        with pytest.raises(GridError, match="there is no patch"):
            merger.add(bad, np.ones((4, 4)))
    with pytest.raises(SettingError, match=r"must have the shape \(1, 4, 4\).*got \(1, 4, 5\)"):
        merger.add(0, np.ones((4, 5)))
    with pytest.raises(SettingError, match="do not go with those"):
        merger.add(0, np.ones((4, 4), "float32"))
    with pytest.raises(SettingError, match="averaged labels"):
        Merger(grid).add(0, np.ones((4, 4), int))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: extract(np.zeros((8, 9)), PatchGrid((8, 8), 4, 4)), r"volume of shape \(8, 8\)"),
        (lambda: merge(np.zeros((2, 2, 4, 5)), PatchGrid((8, 8), 4, 4)), "do not belong to this"),
        (lambda: merge(np.zeros((4, 4)), PatchGrid((8, 8), 4, 4)), "do not belong to this"),
        (lambda: merge(np.zeros((3, 3, 2, 2)), PatchGrid((8, 8), 2, 5)), "fill_value=VALUE"),
        (lambda: extract(np.zeros((8, 8)), {"z": 4}), "patch names axis 'z'"),
        (lambda: extract(np.zeros((8, 8)), 4, stride=1.5), "whole number"),
        (lambda: map_patches(identity, unknown_chunks(), 1), "unknown size"),
        (lambda: extract(unknown_chunks(), 1), "unknown size"),
        (lambda: map_patches(identity, da.zeros((8, 8)), 4, mask=da.ones((8, 8))), "mask.compute"),
        (lambda: map_patches(identity, "x.zarr", 4), "volpatch.run takes paths"),
        (lambda: map_patches(lambda p: p[1:], da.zeros((8, 8)), 4), r"returned shape \(3, 4\)"),
    ],
)
def test_what_cannot_be_is_refused_while_building(action, message):
    from volpatch import VolpatchError

    with pytest.raises(VolpatchError, match=message):
        action()


def unknown_chunks():
    array = da.ones((8,), chunks=4)
    return array[array > 0]


def test_a_function_that_changes_shape_later_is_named_when_computed():
    sizes = iter([4, 4, 3])
    out = map_patches(lambda p: p[: next(sizes)], da.zeros((8, 8)), 4, stride=4)
    with pytest.raises(volpatch.FunctionError, match=r"returned shape \(3, 4\)"):
        out.compute()


def test_lazy_results_pickle_and_run_in_threads():
    volume = distinct((40, 40))
    lazy = map_patches(np.sqrt, da.from_array(volume, chunks=16), 8)
    wanted = map_patches(np.sqrt, volume, 8)
    again = pickle.loads(pickle.dumps(lazy))
    np.testing.assert_array_equal(again.compute(scheduler="threads"), wanted)


def test_five_axes_and_a_four_axis_patch():
    volume = distinct((2, 2, 10, 12, 11))
    lazy = da.from_array(volume, chunks=(1, 2, 4, 5, 6))
    options = {"stride": (2, 3, 3)}
    np.testing.assert_array_equal(
        map_patches(np.sqrt, lazy, (4, 6, 6), **options).compute(),
        map_patches(np.sqrt, volume, (4, 6, 6), **options),
    )
    four = {"stride": (1, 2, 3, 3)}
    np.testing.assert_array_equal(
        map_patches(np.sqrt, lazy, (2, 4, 6, 6), **four).compute(),
        map_patches(np.sqrt, volume, (2, 4, 6, 6), **four),
    )
