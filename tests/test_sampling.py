"""Iterating and sampling patches, against plain slicing; and how often chunks are read."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections import Counter

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.oracles import padded
from volpatch.arrays.api import coverage
from volpatch.core.box import Box
from volpatch.core.errors import GridError, MemoryLimitError, SettingError
from volpatch.core.grid import PatchGrid
from volpatch.sampling import iter_patches, sample_patches
from volpatch.storage.open import open_source, open_volume


class Counted:
    """An array in chunks that counts how often each one is decoded."""

    def __init__(self, array, chunks):
        self.array, self.chunks = array, tuple(chunks)
        self.shape, self.dtype = array.shape, array.dtype
        self.reads = Counter()

    def __getitem__(self, key):
        spans = [
            range(k.start // c, -(-k.stop // c)) for k, c in zip(key, self.chunks, strict=True)
        ]
        self.reads.update(itertools.product(*spans))
        return self.array[key]

    @property
    def number(self):
        return int(np.prod([-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True)]))


def distinct(shape, dtype=np.uint32):
    return np.arange(1, np.prod(shape) + 1).reshape(shape).astype(dtype)


def prefetchers():
    return [t for t in threading.enumerate() if t.name == "volpatch-prefetch"]


@st.composite
def grids(draw, max_ndim=3):
    ndim = draw(st.integers(1, max_ndim))
    axes = []
    for _ in range(ndim):
        size = draw(st.integers(1, 12))
        edge = draw(st.sampled_from(["shift", "pad", "drop"]))
        patch = draw(st.integers(1, size if edge == "shift" else size + 3))
        offset = draw(st.integers(0, size - patch if edge == "shift" else size - 1))
        axes.append((size, patch, draw(st.integers(1, patch + 2)), edge, offset))
    size, patch, stride, edge, offset = zip(*axes, strict=True)
    return PatchGrid(size, patch, stride, edge=edge, offset=offset)


@st.composite
def irregular(draw, shape):
    """Chunks of odd lengths, as dask has them."""
    chunks = []
    for n in shape:
        cuts = draw(st.sets(st.integers(1, max(1, n - 1)), max_size=4)) | {0, n}
        chunks.append(tuple(np.diff(sorted(cuts)).tolist()))
    return tuple(chunks)


def least_memory(grid, itemsize=4):
    """Bytes of one patch; one byte less must fail."""
    return int(np.prod(grid.patch)) * itemsize


# ------------------------------------------------------------------ iter_patches


@given(grids(), st.data())
def test_each_patch_comes_once_and_equals_a_slice(grid, data):
    volume = distinct(grid.shape)
    least = least_memory(grid)
    memory = data.draw(st.integers(least, 6 * least) | st.just(2**20))
    size = data.draw(st.integers(1, 9))
    chunks = data.draw(irregular(grid.shape))
    given_as = data.draw(st.sampled_from(["numpy", "dask", "regular"]))
    if given_as == "dask":
        source = da.from_array(volume, chunks)
    elif given_as == "regular":
        source = Counted(volume, [max(c) for c in chunks])
    else:
        source = volume
    prefetch = data.draw(st.sampled_from([0, 0, 2]))
    got = list(iter_patches(source, grid, batch_size=size, memory=memory, prefetch=prefetch))
    assert all(len(boxes) == len(batch) for boxes, batch in got)
    assert [len(b) for _, b in got[:-1]] == [size] * (len(got) - 1)
    assert sorted(b.start for boxes, _ in got for b in boxes) == list(grid.origins)
    whole = padded(volume, grid)
    for boxes, batch in got:
        assert batch.dtype == volume.dtype
        assert batch.flags.writeable
        for box, patch in zip(boxes, batch, strict=True):
            np.testing.assert_array_equal(patch, whole[box.slices])


@pytest.mark.parametrize("shape", [(40, 33, 50), (9, 70), (100,)])
def test_every_chunk_is_read_exactly_once_where_the_bound_holds_it_all(shape):
    source = Counted(distinct(shape), [8, 16, 10][: len(shape)])
    batches = list(iter_patches(source, 7, stride=3, batch_size=16))
    assert sum(len(boxes) for boxes, _ in batches) == len(PatchGrid(shape, 7, 3))
    assert len(source.reads) == source.number
    assert set(source.reads.values()) == {1}


def test_no_chunk_of_odd_length_is_computed_twice():
    counts = Counter()

    def note(block, block_id):
        counts[block_id] += 1
        return block

    volume = distinct((37, 20, 11))
    lazy = da.from_array(volume, ((10, 3, 17, 7), (20,), (4, 7))).map_blocks(
        note, dtype=volume.dtype, meta=np.empty((0, 0, 0), volume.dtype)
    )
    got = list(iter_patches(lazy, 6, stride=4, batch_size=8))
    assert sum(len(boxes) for boxes, _ in got) == len(PatchGrid(volume.shape, 6, 4))
    assert set(counts.values()) == {1}
    assert len(counts) == 8


def test_a_smaller_bound_reads_only_chunks_between_columns_again():
    source = Counted(distinct((64, 64, 64), np.uint8), (16, 16, 16))
    memory = (8 + 15) * 40 * 64  # the whole face takes 23 * 64 * 64
    assert sum(len(b) for b, _ in iter_patches(source, 8, stride=4, memory=memory)) == 15**3
    reads = Counter(source.reads.values())
    assert reads[2] <= 16  # one layer of chunks under the border of two columns
    assert set(reads) == {1, 2}


def test_columns_part_where_chunks_do():
    source = Counted(distinct((48, 48, 48), np.uint8), (16, 16, 16))
    memory = (8 + 15) * 32 * 48
    assert sum(len(b) for b, _ in iter_patches(source, 8, stride=8, memory=memory)) == 6**3
    assert set(source.reads.values()) == {1}


@pytest.mark.parametrize("memory", [8**3, 3000, 10_000, 30_000])
def test_the_buffer_keeps_to_its_bound(memory, monkeypatch):
    from volpatch.sampling import batches as sampling

    taken = []

    class Spy(sampling.RingInput):
        def __init__(self, *args):
            super().__init__(*args)
            taken.append(self.ring.flat.nbytes)
            assert self.ring.flat.size == self.ring.planes * np.prod(self.ring.face)

    monkeypatch.setattr(sampling, "RingInput", Spy)
    volume = distinct((40, 33, 50), np.uint8)
    got = list(iter_patches(Counted(volume, (16, 16, 16)), 8, batch_size=50, memory=memory))
    assert sum(len(boxes) for boxes, _ in got) == len(PatchGrid(volume.shape, 8))
    assert max(taken) <= memory


def test_a_bound_below_one_patch_is_refused():
    with pytest.raises(MemoryLimitError, match=r"one patch of \(8, 8\) .* 256 B .*memory=255 B"):
        iter_patches(distinct((20, 20)), 8, memory=255)
    next(iter_patches(distinct((20, 20)), 8, memory=256))


def test_leading_axes_give_boxes_over_all_axes():
    volume = distinct((2, 3, 7, 9))
    seen = []
    for boxes, batch in iter_patches(volume, (4, 5), batch_size=7):
        for box, patch in zip(boxes, batch, strict=True):
            assert patch.shape == (4, 5)
            np.testing.assert_array_equal(patch[None, None], volume[box.slices])
            seen.append(box.start)
    assert len(set(seen)) == len(seen) == 6 * len(PatchGrid((7, 9), (4, 5)))


@pytest.mark.parametrize("axis", [0, 1, 3, -1])
def test_channels_come_whole_before_the_patched_axes(axis):
    volume = distinct((6, 8, 9, 10))
    moved = np.moveaxis(volume, axis, 0)
    got = list(iter_patches(volume, 5, channel_axis=axis, batch_size=4))
    assert sum(len(boxes) for boxes, _ in got) == len(PatchGrid(moved.shape[1:], 5))
    for boxes, batch in got:
        for box, patch in zip(boxes, batch, strict=True):
            np.testing.assert_array_equal(patch, moved[(slice(None), *box.slices)])


def test_leading_axes_beside_channels():
    volume = distinct((2, 3, 8, 9))
    for boxes, batch in iter_patches(volume, (4, 4), channel_axis=1):
        np.testing.assert_array_equal(batch, volume[boxes[0].slices])


def test_a_named_axis_may_be_patched_in_any_place():
    volume = xr.DataArray(distinct((6, 2, 8)), dims=("y", "t", "x"))
    for boxes, batch in iter_patches(volume, {"y": 3, "x": 4}, stride={"y": 3, "x": 4}):
        np.testing.assert_array_equal(batch[0][:, None], volume.values[boxes[0].slices])


@pytest.mark.parametrize("dtype", ["?", "i1", "<f2", ">u2", ">f8"])
def test_values_come_native_and_unchanged(dtype):
    volume = distinct((9, 10)).astype(dtype)
    for boxes, batch in iter_patches(volume, 4):
        assert batch.dtype == volume.dtype.newbyteorder("=")
        np.testing.assert_array_equal(batch[0], volume[boxes[0].slices])


@pytest.mark.parametrize("mode", ["reflect", "symmetric", "edge", "constant"])
def test_what_hangs_over_is_padded_as_numpy_does(mode):
    volume, grid = distinct((7, 5)), PatchGrid((7, 5), 4, 3, edge="pad")
    whole = padded(volume, grid, mode)
    for boxes, batch in iter_patches(volume, grid, pad_mode=mode):
        np.testing.assert_array_equal(batch[0], whole[boxes[0].slices])


def test_batches_are_the_callers_to_keep():
    volume = distinct((20, 20))
    kept = list(iter_patches(volume, 5, batch_size=3))
    for boxes, batch in kept:
        for box, patch in zip(boxes, batch, strict=True):
            np.testing.assert_array_equal(patch, volume[box.slices])
        batch[:] = 0
    assert volume.min() == 1
    assert not any(np.shares_memory(a, b) for (_, a), (_, b) in itertools.pairwise(kept))


@pytest.fixture
def stored(tmp_path):
    volume = distinct((12, 30, 31), np.uint16)
    zarr.create_array(str(tmp_path / "v.zarr"), data=volume, chunks=(5, 8, 8))
    return volume, str(tmp_path / "v.zarr")


def test_paths_sources_and_opened_volumes_are_read(stored):
    volume, path = stored
    wanted = {b.start: volume[b.slices] for b in PatchGrid(volume.shape, 6)}
    for source in (
        path,
        open_source(path),
        open_volume(path),
        open_volume(path)[:],
        xr.DataArray(volume),
    ):
        got = {
            box.start: patch
            for boxes, batch in iter_patches(source, 6, batch_size=5)
            for box, patch in zip(boxes, batch, strict=True)
        }
        assert got.keys() == wanted.keys()
        assert all((got[k] == wanted[k]).all() for k in wanted)


def test_nothing_is_read_before_the_first_batch():
    source = Counted(distinct((20, 20)), (5, 5))
    batches = iter_patches(source, 5, prefetch=2)
    assert not source.reads
    assert not prefetchers()
    next(batches)
    assert source.reads
    batches.close()


def test_a_grid_without_patches_gives_none():
    assert list(iter_patches(distinct((4, 9)), 6, edge="drop")) == []
    assert list(iter_patches(distinct((4, 9)), 6, edge="drop", prefetch=1)) == []


# -- prefetch


def test_prefetch_runs_ahead_by_as_many_batches_as_asked():
    source = Counted(distinct((40, 4)), (1, 4))
    batches = iter_patches(source, (1, 4), prefetch=3)
    next(batches)
    for _ in range(200):
        if len(source.reads) == 5:
            break
        threading.Event().wait(0.01)
    threading.Event().wait(0.1)
    assert len(source.reads) == 5  # one is used, three wait, one is in the thread's hands
    batches.close()


@pytest.mark.parametrize("end", ["close", "break", "throw"])
def test_stopping_early_stops_the_thread(end):
    batches = iter_patches(distinct((50, 50)), 4, prefetch=2)
    next(batches)
    assert len(prefetchers()) == 1
    if end == "close":
        batches.close()
    elif end == "throw":
        with pytest.raises(KeyError):
            batches.throw(KeyError("mine"))
    else:
        for _ in batches:
            break
        del batches, _
    assert prefetchers() == []


def test_an_error_in_the_thread_reaches_the_consumer():
    class Broken(Counted):
        def __getitem__(self, key):
            if key[0].start >= 10:
                raise OSError("the disk is gone")
            return super().__getitem__(key)

    batches = iter_patches(Broken(distinct((40, 4)), (5, 4)), (5, 4), stride=5, prefetch=4)
    got = []
    with pytest.raises(OSError, match="the disk is gone"):
        got.extend(batch for _, batch in batches)
    assert len(got) <= 2
    assert prefetchers() == []
    assert list(batches) == []


def test_an_open_iterator_does_not_hang_the_end_of_python():
    code = (
        "import numpy as np; from volpatch.sampling import iter_patches\n"
        "it = iter_patches(np.zeros((50, 50)), 4, prefetch=2); next(it)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- what is refused


@pytest.mark.parametrize(
    ("volume", "grid", "options", "error", "says"),
    [
        (
            (8, 9),
            PatchGrid((8, 10), 4),
            {},
            GridError,
            r"made for 2 axes of \(8, 10\) .* shape \(8, 9\)",
        ),
        (
            (8, 9),
            PatchGrid((8, 9), 4),
            {"channel_axis": 0},
            GridError,
            r"\(8, 9\).*besides channel_axis=0",
        ),
        (
            (9,),
            PatchGrid((8, 9), 4),
            {},
            GridError,
            r"made for 2 axes of \(8, 9\) .* shape \(9,\)",
        ),
        (
            (8, 9),
            PatchGrid((8, 9), 4),
            {"stride": 2},
            SettingError,
            "part of the grid that was given",
        ),
        ((8, 9), 10, {}, GridError, "patch 10 on y does not fit its 8 voxels"),
        ((8, 9), 4, {"stride": 2, "overlap": 2}, GridError, "the same thing twice"),
        ((8, 9), 4, {"batch_size": 0}, SettingError, "batch_size must be .* got 0"),
        ((8, 9), 4, {"prefetch": -1}, SettingError, "prefetch must be .* got -1"),
        ((8, 9), 4, {"memory": "lots"}, SettingError, "memory must be a size .* 'lots'"),
        ((8, 9), 4, {"pad_mode": "wrap"}, SettingError, "pad_mode must be one of .* 'wrap'"),
        (
            (8, 9),
            4,
            {"pad_value": -1},
            SettingError,
            "pad_value -1 is no uint32; choose a whole number from 0",
        ),
        ((8, 9), 4, {"pad_value": float("nan")}, SettingError, "pad_value nan is no uint32"),
        ((8, 9), 4, {"channel_axis": 5}, SettingError, "channel_axis 5 is none of"),
    ],
)
def test_what_cannot_be_is_refused_on_the_call(volume, grid, options, error, says):
    with pytest.raises(error, match=says):
        iter_patches(distinct(volume), grid, **options)


def test_volumes_that_cannot_be_are_refused():
    with pytest.raises(SettingError, match=r"must be a numpy, dask .* got builtins\.int"):
        iter_patches(5, 4)
    with pytest.raises(SettingError, match="complex64 is not supported"):
        iter_patches(np.zeros((5, 5), np.complex64), 4)
    with pytest.raises(SettingError, match=r"Dataset of \['a'\]; give one variable"):
        iter_patches(xr.Dataset({"a": ("x", np.zeros(5))}), 4)
    lazy = da.from_array(np.arange(20), 5)
    with pytest.raises(SettingError, match="compute_chunk_sizes"):
        iter_patches(lazy[lazy > 3], 4)


# ------------------------------------------------------------------ sample_patches


def centres(samples, patch):
    return samples.origins + np.array(patch) // 2


@st.composite
def spots(draw):
    """A shape, a patch that fits it, and a seed."""
    ndim = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 14)) for _ in range(ndim))
    patch = tuple(draw(st.integers(1, n)) for n in shape)
    return shape, patch, draw(st.integers(0, 2**32))


def admissible(shape, patch, mask=None, exclude=()):
    """Centres by brute force: every origin, one after the other."""
    found = []
    for origin in np.ndindex(*(n - p + 1 for n, p in zip(shape, patch, strict=True))):
        centre = tuple(o + p // 2 for o, p in zip(origin, patch, strict=True))
        box = [range(o, o + p) for o, p in zip(origin, patch, strict=True)]
        touched = any(
            all(set(r) & set(range(a, b)) for r, a, b in zip(box, e.start, e.stop, strict=True))
            for e in exclude
        )
        cell = (
            None
            if mask is None
            else tuple(c * m // n for c, m, n in zip(centre, mask.shape, shape, strict=True))
        )
        if not touched and (mask is None or mask[cell]):
            found.append(centre)
    return found


@given(spots(), st.data())
def test_samples_are_slices_and_the_same_from_any_storage(spot, data):
    shape, patch, seed = spot
    image, labels = distinct(shape), distinct(shape, np.uint16) % 3
    chunks = data.draw(irregular(shape))
    regular = [max(c) for c in chunks]
    plain = sample_patches(image, patch, 7, rng=seed)
    for got in (
        sample_patches((image, labels), patch, 7, rng=seed),
        sample_patches((da.from_array(image, chunks), labels), patch, 7, rng=seed),
        sample_patches((Counted(image, regular), Counted(labels, regular)), patch, 7, rng=seed),
    ):
        np.testing.assert_array_equal(got.origins, plain.origins)
        np.testing.assert_array_equal(got.patches[0], plain.patches)
        for origin, a, b in zip(got.origins, *got.patches, strict=True):
            here = tuple(slice(o, o + p) for o, p in zip(origin, patch, strict=True))
            np.testing.assert_array_equal(a, image[here])
            np.testing.assert_array_equal(b, labels[here])
    assert plain.origins.dtype == np.int64
    assert len(plain) == 7


@given(spots(), st.data())
def test_centres_lie_in_the_mask_and_can_be_anywhere_in_it(spot, data):
    shape, patch, seed = spot
    coarse = tuple(data.draw(st.integers(1, n)) for n in shape)
    cells = coarse if data.draw(st.booleans()) else shape
    mask = np.random.default_rng(seed).random(cells) < data.draw(st.sampled_from([0.1, 0.5, 1]))
    box = data.draw(st.none() | st.tuples(*(st.integers(0, n - 1) for n in shape)))
    exclude = [] if box is None else [Box(box, tuple(b + 1 for b in box))]
    wanted = admissible(shape, patch, mask, exclude)
    if not wanted:
        with pytest.raises(SettingError, match=r"has its centre where it may be|found 0 of"):
            sample_patches(distinct(shape), patch, 3, rng=seed, where=mask, exclude=exclude)
        return
    assume(len(wanted) < 40)
    got = sample_patches(distinct(shape), patch, 800, rng=seed, where=mask, exclude=exclude)
    assert {tuple(c) for c in centres(got, patch).tolist()} == set(wanted)


def test_all_centres_of_a_coarse_mask_are_equally_likely():
    mask = np.array([[1, 0, 1], [0, 1, 1]])
    shape, patch = (5, 7), (2, 3)  # cells of two and three, and cells cut by the border
    wanted = admissible(shape, patch, mask)
    got = sample_patches(distinct(shape), patch, 20_000, rng=1, where=mask)
    counts = Counter(map(tuple, centres(got, patch).tolist()))
    assert set(counts) == set(wanted)
    expected = 20_000 / len(wanted)
    assert all(abs(c - expected) < 6 * expected**0.5 for c in counts.values())


def test_without_a_mask_all_positions_are_equally_likely():
    got = sample_patches(distinct((6, 5)), (3, 2), 16_000, rng=3)
    counts = Counter(map(tuple, got.origins.tolist()))
    assert set(counts) == set(np.ndindex(4, 4))
    assert all(abs(c - 1000) < 200 for c in counts.values())


@given(spots(), st.integers(1, 20))
def test_classes_are_drawn_in_turn_whatever_their_sizes(spot, n):
    shape, patch, seed = spot
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 2, 7, 70_000], shape, p=[0.8, 0.1, 0.05, 0.05]).astype(np.uint32)
    where = labels > 0
    for options, mask in (({}, None), ({"where": where}, where)):
        wanted = sorted({int(labels[c]) for c in admissible(shape, patch, mask)})
        assume(wanted)
        got = sample_patches(distinct(shape), patch, n, rng=seed, balance=labels, **options)
        found = [int(labels[tuple(c)]) for c in centres(got, patch)]
        assert found == [wanted[i % len(wanted)] for i in range(n)]


@pytest.mark.parametrize("coarse", [False, True])
def test_masks_and_labels_may_be_stored_in_any_chunks(coarse, stored, tmp_path):
    volume, path = stored
    shape = (4, 10, 8) if coarse else volume.shape
    labels = (distinct(shape, np.int16) // 50) % 4
    mask = labels != 2
    stack = mask.astype("u1")[None]
    zarr.create_array(str(tmp_path / "m.zarr"), data=stack, chunks=(1, 2, 7, 3))
    for options in ({"where": mask}, {"balance": labels}, {"where": mask, "balance": labels}):
        plain = sample_patches(volume, 5, 30, rng=9, **options)
        other = {k: da.from_array(v, (3, 4, 5)) for k, v in options.items()}
        lazy = sample_patches(path, 5, 30, rng=9, **other)
        np.testing.assert_array_equal(plain.patches, lazy.patches)
    plain = sample_patches(volume, 5, 30, rng=9, where=mask)
    lazy = sample_patches(path, 5, 30, rng=9, where=str(tmp_path / "m.zarr"))
    np.testing.assert_array_equal(plain.origins, lazy.origins)


@pytest.mark.parametrize("cells", [2**24, 2**12, 64])
def test_a_big_mask_is_looked_at_in_parts_and_gives_the_same(cells, monkeypatch):
    from volpatch.sampling import census as sampling

    labels = np.random.default_rng(0).integers(0, 5, (40, 50, 60)).astype(np.uint8)
    monkeypatch.setattr(sampling, "BLOCK_CELLS_LOG2", 9)  # blocks of 8 x 8 x 8
    monkeypatch.setattr(sampling, "CELLS", 2**24)
    volume = distinct(labels.shape)
    wanted = sample_patches(volume, 9, 50, rng=4, balance=labels, where=labels > 1)
    monkeypatch.setattr(sampling, "CELLS", cells)
    largest = []

    class Spy(Counted):
        def __getitem__(self, key):
            largest.append(int(np.prod([k.stop - k.start for k in key])))
            return super().__getitem__(key)

    marks = Spy(labels, (16, 16, 16))
    got = sample_patches(volume, 9, 50, rng=4, balance=marks, where=labels > 1)
    np.testing.assert_array_equal(got.origins, wanted.origins)
    assert max(largest) <= max(cells, 8**3)
    if cells == 2**12:  # whole chunks: each is read once to count, and once at most to pick
        assert max(marks.reads.values()) <= 2
    if cells == 2**24:
        assert set(marks.reads.values()) == {2}


def test_a_mask_is_read_in_whole_chunks_whatever_their_length(monkeypatch):
    from volpatch.sampling import census as sampling

    monkeypatch.setattr(sampling, "BLOCK_CELLS_LOG2", 9)  # blocks of 8 x 8 x 8
    monkeypatch.setattr(sampling, "CELLS", 2**14)
    mask = Counted(distinct((48, 48, 72)) % 2, (24, 24, 24))
    sample_patches(distinct(mask.shape), 1, 40, rng=0, where=mask)
    assert max(mask.reads.values()) == 2  # counted, and picked from


def test_blocks_grow_until_their_counts_are_few(monkeypatch):
    from volpatch.sampling import census as sampling

    monkeypatch.setattr(sampling, "BLOCK_CELLS_LOG2", 3)
    monkeypatch.setattr(sampling, "MOST_BLOCKS", 12)
    mask = distinct((20, 30)) % 7 == 0
    got = sample_patches(mask, 1, 500, rng=0, where=mask)
    assert {tuple(o) for o in got.origins.tolist()} == set(map(tuple, np.argwhere(mask).tolist()))


@given(spots(), st.data())
def test_no_patch_touches_what_is_excluded(spot, data):
    shape, patch, seed = spot
    corners = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    box = Box(tuple(a for a, _ in corners), tuple(b for _, b in corners))
    wanted = admissible(shape, patch, None, [box])
    if not wanted:
        with pytest.raises(SettingError, match=r"found 0 of 3 patches .* 1 excluded boxes"):
            sample_patches(distinct(shape), patch, 3, rng=seed, exclude=box)
        return
    assume(len(wanted) < 60)
    got = sample_patches(distinct(shape), patch, 800, rng=seed, exclude=box)
    assert {tuple(c) for c in centres(got, patch).tolist()} == set(wanted)


@given(spots(), st.data())
def test_given_centres_are_where_patches_are_centred(spot, data):
    shape, patch, _ = spot
    wanted = admissible(shape, patch)
    points = data.draw(st.lists(st.sampled_from(wanted), max_size=5))
    shift = data.draw(st.floats(-0.49, 0.49))
    volume = distinct(shape)
    got = sample_patches(volume, patch, at=[[c + shift for c in p] for p in points])
    assert [tuple(c) for c in centres(got, patch).tolist()] == points
    assert got.patches.shape == (len(points), *patch)
    for origin, values in zip(got.origins, got.patches, strict=True):
        here = tuple(slice(o, o + p) for o, p in zip(origin, patch, strict=True))
        np.testing.assert_array_equal(values, volume[here])


@pytest.mark.parametrize("patch", [(3, 5), (4, 6), (1, 2), (4, 5)])
def test_the_centres_of_a_grid_give_its_patches(patch):
    volume = distinct((11, 13))
    grid = PatchGrid(volume.shape, patch, (2, 3))
    got = sample_patches(volume, patch, at=grid.centers)
    assert [tuple(o) for o in got.origins.tolist()] == list(grid.origins)


def test_each_needed_chunk_is_read_once_per_volume_and_no_other():
    shape, patch = (40, 50, 60), (9, 10, 11)
    image = Counted(distinct((2, *shape)), (1, 16, 16, 16))
    labels = Counted(distinct(shape), (8, 50, 20))
    got = sample_patches({"image": image, "labels": labels}, patch, 25, rng=0, channel_axis=0)
    for volume, lead in ((image, [range(2)]), (labels, [])):
        needed = set()
        for origin in got.origins:
            spans = zip(origin, patch, volume.chunks[-3:], strict=True)
            needed |= set(
                itertools.product(*lead, *(range(o // c, -(-(o + p) // c)) for o, p, c in spans))
            )
        assert set(volume.reads) == needed
        assert set(volume.reads.values()) == {1}
    assert got.patches["image"].shape == (25, 2, *patch)
    assert got.patches["labels"].shape == (25, *patch)


def test_a_scalar_patch_finds_the_patched_axes_by_the_labels():
    image, labels = distinct((2, 9, 9)), distinct((9, 9))
    got = sample_patches([image, labels], 4, 3, rng=0, channel_axis=0)
    assert isinstance(got.patches, list)
    assert [p.shape for p in got.patches] == [(3, 2, 4, 4), (3, 4, 4)]
    both = sample_patches((image, image), 4, 3, rng=0, channel_axis=0)
    assert [p.shape for p in both.patches] == [(3, 2, 4, 4)] * 2
    named = xr.DataArray(image, dims=("c", "y", "x"))
    got = sample_patches({"a": named, "b": labels}, {"y": 4, "x": 3}, 3, rng=0, channel_axis="c")
    assert [p.shape for p in got.patches.values()] == [(3, 2, 4, 3), (3, 4, 3)]


def test_axes_of_length_one_are_no_obstacle():
    got = sample_patches(distinct((1, 1, 9, 9)), (4, 4), 3, rng=0)
    assert got.patches.shape == (3, 4, 4)


def test_a_generator_moves_on_and_a_seed_repeats():
    volume, rng = distinct((90, 90)), np.random.default_rng(5)
    a, b = (sample_patches(volume, 4, 9, rng=rng).origins for _ in range(2))
    assert (a != b).any()
    np.testing.assert_array_equal(a, sample_patches(volume, 4, 9, rng=5).origins)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({}, SettingError, "how many patches"),
        ({"n": 0}, SettingError, "n must be a whole number of at least 1, got 0"),
        ({"n": 3, "at": [(3, 3)]}, SettingError, "leave out n, where and balance, or at"),
        ({"where": np.ones((8, 9)), "at": [(3, 3)]}, SettingError, "leave out n, where"),
        ({"n": 3, "rng": "dice"}, SettingError, "rng must be .* got 'dice'"),
        (
            {"at": [(4, 4), (1, 4), (4, 9)]},
            SettingError,
            r"2 of 3 points .* at\[1\] = \(1\.0, 4\.0\): .* \[2:7, 2:8\] .* \(8, 9\)",
        ),
        ({"at": [(4, 4, 4)]}, SettingError, r"shape \(points, 2\).* got shape \(1, 3\)"),
        ({"at": [(4, np.nan)]}, SettingError, "must be finite"),
        ({"at": "here"}, SettingError, "got 'here'"),
        (
            {"at": [(2, 2), (5, 5)], "exclude": Box((6, 6), (8, 8))},
            SettingError,
            r"1 of 2 points .* touch an excluded box, .* at\[1\] = \(5\.0, 5\.0\)",
        ),
        ({"n": 3, "where": np.ones((8, 10))}, SettingError, r"where has shape \(8, 10\).*\(8, 9\)"),
        ({"n": 3, "where": np.ones(8)}, SettingError, r"where has shape \(8,\)"),
        ({"n": 3, "where": np.zeros((8, 9))}, SettingError, r"no patch of \(4, 4\) has its centre"),
        ({"n": 3, "balance": np.ones((8, 9))}, SettingError, "whole numbers, .* got float64"),
        ({"n": 3, "balance": -np.ones((8, 9), int)}, SettingError, "balance has the value -1"),
        ({"n": 3, "exclude": [Box((0,), (5,))]}, SettingError, "boxes over the 2 patched axes"),
        ({"n": 3, "exclude": [(0, 5)]}, SettingError, r"got \(0, 5\)"),
        (
            {"n": 3, "exclude": Box((0, 0), (8, 9))},
            SettingError,
            r"found 0 of 3 patches of \(4, 4\) .* after 1000 tries",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused(options, error, says):
    with pytest.raises(error, match=says):
        sample_patches(distinct((8, 9)), 4, **options)


def test_volumes_that_do_not_go_together_are_refused():
    image = distinct((8, 9))
    with pytest.raises(GridError, match=r"patch 10 on x does not fit its 9 voxels; .* 1 to 9"):
        sample_patches(image, (4, 10), 3)
    with pytest.raises(GridError, match=r"volume 'b' has \(8, 8\) .* volume 'a' has \(8, 9\)"):
        sample_patches({"a": image, "b": image[:, :8]}, 4, 3)
    with pytest.raises(GridError, match=r"has the axes \('z',\) of \(2,\) besides"):
        sample_patches(distinct((2, 8, 9)), (4, 4), 3)
    with pytest.raises(SettingError, match="no volumes"):
        sample_patches({}, 4, 3)
    with pytest.raises(SettingError, match="volume 1 must be a numpy"):
        sample_patches([image, 3], 4, 3)


def test_what_only_claims_its_size_is_refused_before_anything_is_listed(tmp_path):
    path, part = tmp_path / "claims.zarr", "at most 16,777,216 can be gone through"
    zarr.create_array(path, shape=(2**40, 64, 64), dtype="uint8", chunks=(64, 64, 64))
    with pytest.raises(SettingError, match=f"17,179,869,184 chunks of 64 .*{part}"):
        sample_patches(str(path), 32, n=3)
    thick = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (2**40, 8), (0, 0))
    with pytest.raises(SettingError, match=f"patches of 4 on an axis of 1099511627776.*{part}"):
        iter_patches(thick, 4, stride=2)
    with pytest.raises(SettingError, match=f"1,099,511,627,776 cells of where.*{part}"):
        sample_patches(thick, 4, n=3, where=thick)
    with pytest.raises(SettingError, match=r"1,099,511,627,776 voxels along z.*give run the path"):
        open_volume(path)
    with pytest.raises(SettingError, match=r"voxels along z, .* at most 134,217,728; .* part"):
        coverage(PatchGrid((2**40, 64, 64), 8))
