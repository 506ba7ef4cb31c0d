"""Patch positions: the table every patcher must get right, and brute force for the rest."""

from __future__ import annotations

import itertools
import json
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import axis_grids
from volpatch import Box, GridError, PatchGrid
from volpatch.core.grid import AxisGrid, Listing, axis_name, stride_from_overlap

ERROR = "error"


def covering(axis, voxel):
    """Numbers of the patches over a voxel, by looking at each."""
    return [i for i, s in enumerate(axis.starts) if s <= voxel < s + axis.patch]


# -- one axis ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "shift", "pad", "padded", "drop"),
    [
        ((10, 4, 4), (0, 4, 6), (0, 4, 8), 12, (0, 4)),
        ((10, 4, 3), (0, 3, 6), (0, 3, 6), 10, (0, 3, 6)),
        ((10, 5, 3), (0, 3, 5), (0, 3, 6), 11, (0, 3)),
        ((11, 4, 2), (0, 2, 4, 6, 7), (0, 2, 4, 6, 8), 12, (0, 2, 4, 6)),
        ((4, 4, 2), (0,), (0,), 4, (0,)),
        ((5, 4, 4), (0, 1), (0, 4), 8, (0,)),
        ((110, 64, 32), (0, 32, 46), (0, 32, 64), 128, (0, 32)),
        ((3, 4, 2), ERROR, (0,), 4, ()),
    ],
)
def test_starts_are_those_of_the_table(case, shift, pad, padded, drop):
    if shift is ERROR:
        with pytest.raises(GridError, match=r"patch 4 on x does not fit its 3 voxels.*edge='pad'"):
            PatchGrid((9, 3), (4, 4), case[2])
    else:
        assert AxisGrid(*case).starts == shift
        assert AxisGrid(*case).padded == case[0]
    assert AxisGrid(*case, edge="pad").starts == pad
    assert AxisGrid(*case, edge="pad").padded == padded
    assert AxisGrid(*case, edge="drop").starts == drop


@given(st.integers(1, 200), st.data())
def test_shift_begins_at_zero_ends_at_the_border_and_leaves_no_gap(size, data):
    patch = data.draw(st.integers(1, size))
    stride = data.draw(st.integers(1, patch))
    axis = AxisGrid(size, patch, stride)
    starts = axis.starts
    assert (starts[0], starts[-1] + patch) == (0, size)
    assert all(0 < b - a <= stride for a, b in itertools.pairwise(starts))
    assert axis.count == len(starts) == -(-(size - patch) // stride) + 1
    assert axis.covered == size


def scanned_starts(axis):
    """Starts found by walking along the axis, one stride at a time."""
    found, end = [], axis.offset
    for start in range(axis.offset, axis.size, axis.stride):
        if axis.edge != "pad" and start + axis.patch > axis.size:
            break
        if axis.edge == "pad" and found and end >= axis.size:
            break
        found.append(start)
        end = start + axis.patch
    if axis.edge == "shift" and end < axis.size:
        found.append(axis.size - axis.patch)
    return tuple(found)


def test_the_last_patch_is_pulled_back_also_where_the_stride_is_larger():
    assert AxisGrid(10, 4, 5).starts == (0, 5, 6)
    assert AxisGrid(11, 4, 5).starts == (0, 5, 7)
    assert AxisGrid(9, 4, 5).starts == (0, 5)
    assert AxisGrid(12, 4, 9, offset=1).starts == (1, 8)
    assert PatchGrid((10, 11), 4, 5).uncovered == 10 * 11 - 9 * 10


@given(axis_grids())
def test_starts_are_those_of_a_walk_along_the_axis(axis):
    assert axis.starts == scanned_starts(axis)
    assert axis.count == len(axis.starts)
    assert axis.padded == max([axis.size, *(s + axis.patch for s in axis.starts)])
    steps = {b - a for a, b in itertools.pairwise(axis.starts)}
    assert axis.regular == (steps <= {axis.stride})


@given(axis_grids(), st.data())
def test_touching_is_what_looking_at_every_patch_finds(axis, data):
    start = data.draw(st.integers(0, axis.size))
    stop = data.draw(st.integers(start, axis.size))
    slow = [i for i, s in enumerate(axis.starts) if max(s, start) < min(s + axis.patch, stop)]
    assert list(axis.touching(start, stop)) == slow


@given(axis_grids())
def test_covered_and_most_visits_count_voxels(axis):
    visits = [len(covering(axis, v)) for v in range(axis.size)]
    assert axis.covered == sum(n > 0 for n in visits)
    assert axis.most_visits == max(visits)


@given(axis_grids())
def test_own_parts_give_each_covered_voxel_to_the_nearest_centre(axis):
    owner = [None] * axis.size
    for number in range(axis.count):
        start, stop = axis.own(number)
        for voxel in range(start, min(stop, axis.size)):
            assert owner[voxel] is None
            owner[voxel] = number
    for voxel in range(axis.size):
        distances = [
            (abs(2 * (voxel - axis.starts[i]) - axis.patch + 1), i) for i in covering(axis, voxel)
        ]
        assert owner[voxel] == min(distances, default=(0, None))[1]


@given(axis_grids(), st.data())
def test_owning_is_what_looking_at_every_own_part_finds(axis, data):
    start = data.draw(st.integers(0, axis.size - 1))
    stop = data.draw(st.integers(start + 1, axis.size))
    parts = [axis.own(i) for i in range(axis.count)]
    slow = [i for i, (a, b) in enumerate(parts) if max(a, start) < min(b, stop)]
    assert list(axis.owning(start, stop)) == slow


def test_one_axis_of_10_to_the_15_answers_at_once():
    axis = AxisGrid(10**15, 64, 1)
    assert axis.count == 10**15 - 63
    assert axis.touching(10**14, 10**14 + 1) == range(10**14 - 63, 10**14 + 1)
    assert axis.owning(5 * 10**14, 5 * 10**14 + 1) == range(5 * 10**14 - 32, 5 * 10**14 - 31)
    assert (axis.most_visits, axis.covered) == (64, 10**15)


# -- overlap -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patch", "overlap", "stride"),
    [
        (10, 0.8, 2),
        (100, 0.07, 93),
        (3, 0.5, 1),
        (5, 0.5, 2),
        (1, 0.25, 1),
        (2, 0.75, 1),
        (100, "7%", 93),
        (64, "50%", 32),
        (64, " 12.5 % ".strip(), 56),
        (64, 32, 32),
        (64, "32", 32),
        (64, np.int64(16), 48),
        (64, 0, 64),
        (64, 0.0, 64),
        (64, "0%", 64),
        (4, 0.999, 1),
        (64, "0.25", 48),
        (64, 63, 1),
    ],
)
def test_overlap_as_voxels_or_as_a_part(patch, overlap, stride):
    assert stride_from_overlap(patch, overlap, "x") == stride
    assert PatchGrid((200,), patch, overlap=overlap).stride == (stride,)


@given(st.integers(1, 300), st.integers(0, 999))
def test_a_part_is_rounded_half_up_in_whole_numbers(patch, permille):
    shared = (patch * permille * 2 + 1000) // 2000
    assert stride_from_overlap(patch, permille / 1000, "x") == max(1, patch - shared)
    assert stride_from_overlap(patch, f"{permille / 10}%", "x") == max(1, patch - shared)


@pytest.mark.parametrize(
    ("overlap", "message"),
    [
        (-1, "overlap -1 on z is outside 0 to 3 for patch 4"),
        (4, "overlap 4 on z is outside 0 to 3 for patch 4; patches must move"),
        ("-1", "overlap -1 on z is outside"),
        (-0.1, "overlap -0.1 on z must be at least 0 and less than 1"),
        (1.0, r"overlap 1.0 on z must be .* less than 1 \(100%\)"),
        ("100%", "overlap 100% on z must be"),
        (1.5, "overlap 1.5 on z .* whole voxels are written as an int"),
        (float("nan"), "overlap nan on z is neither"),
        ("half", r"overlap 'half' on z is neither voxels \(32\) nor a part"),
        ("%", "overlap '%' on z is neither"),
        ("", "overlap '' on z is neither"),
        (True, "overlap on z must be a whole number of voxels, got True"),
        ((1, 2), r"overlap has 2 values, \(1, 2\), but there are 3 axes"),
    ],
)
def test_bad_overlaps_are_refused(overlap, message):
    with pytest.raises(GridError, match=message):
        PatchGrid((9, 9, 9), 4, overlap=overlap)


# -- grids that cannot be ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((9, 9, 9), (4, 0, 4)), {}, "patch on y must be at least 1, got 0"),
        (((9, 9, 9), -4), {}, "patch on z must be at least 1, got -4"),
        (((9, 9, 9), 4.0), {}, "patch on z must be a whole number of voxels, got 4.0"),
        (((9, 9, 9), True), {}, "patch on z must be a whole number of voxels, got True"),
        (((9, 9, 9), "4"), {}, "patch on z must be a whole number of voxels, got '4'"),
        (((9, 9, 9), (4, 4)), {}, r"patch has 2 values, \(4, 4\), but there are 3 axes"),
        (((9, 9, 9), 4), {"stride": (2, 2, 0)}, "stride on x must be at least 1, got 0"),
        (((9, 9, 9), 4), {"stride": -2}, "stride on z must be at least 1, got -2"),
        (((9, 9, 9), 4), {"stride": 0.5}, "stride on z must be a whole number"),
        (((9, 9, 9), 4), {"stride": (2, 2)}, "stride has 2 values"),
        (((9, 9, 9), 4), {"stride": 2, "overlap": 2}, "stride 2 and overlap 2 say the same"),
        (((9, 9, 9), 4), {"edge": "wrap"}, "edge must be one of shift, pad, drop; got 'wrap'"),
        (((9, 9, 9), 4), {"edge": ("pad", "pad")}, "edge has 2 values"),
        (((9, 9, 9), 4), {"offset": -1}, "offset on z must not be negative, got -1"),
        (((9, 9, 9), 4), {"offset": (0, 0)}, "offset has 2 values"),
        (((9, 9, 9), 4), {"offset": (0, 0, 6)}, "patch 4 on x .* after an offset of 6.*1 to 3"),
        (((9, 9), 4), {"offset": 9, "edge": "pad"}, "offset 9 on y lies beyond its 9 voxels"),
        (((9, 5, 9), 6), {}, "patch 6 on y does not fit its 5 voxels; choose .* 1 to 5, or edge="),
        (((2, 9, 9, 9), (4, 4, 4, 4)), {}, "patch 4 on axis 0 does not fit its 2 voxels"),
        (((9, 0, 9), 4), {}, "size on y must be at least 1, got 0"),
        (((9, 2.5), 1), {}, "size on x must be a whole number"),
        (((), 4), {}, r"at least one axis, got shape \(\)"),
    ],
)
def test_grids_that_cannot_be_are_refused_with_the_axis_named(arguments, options, message):
    with pytest.raises(GridError, match=message):
        PatchGrid(*arguments, **options)


def test_numpy_sizes_are_taken_as_ints():
    grid = PatchGrid(np.array([9, 10]), np.array([4, 5]), np.int32(2))
    assert grid == PatchGrid((9, 10), (4, 5), 2)
    assert all(type(n) is int for n in (*grid.shape, *grid.patch, *grid.stride))
    json.dumps(grid.to_json())


def test_axis_names_count_from_the_end():
    assert [axis_name(i, 5) for i in range(5)] == ["axis 0", "axis 1", "z", "y", "x"]
    assert [axis_name(i, 2) for i in range(2)] == ["y", "x"]


# -- grids ---------------------------------------------------------------------------------


@st.composite
def grids(draw):
    axes = draw(st.lists(axis_grids(), min_size=1, max_size=3))
    columns = {n: tuple(getattr(a, n) for a in axes) for n in ("patch", "stride", "edge", "offset")}
    patch, stride = columns.pop("patch"), columns.pop("stride")
    return PatchGrid(tuple(a.size for a in axes), patch, stride, **columns)


@given(grids())
def test_a_grid_is_the_product_of_its_axes_in_raster_order(grid):
    origins = list(itertools.product(*grid.starts))
    boxes = [Box(o, tuple(a + p for a, p in zip(o, grid.patch, strict=True))) for o in origins]
    assert len(grid) == len(origins)
    assert list(grid) == boxes
    assert list(grid.origins) == origins
    assert [grid.position(i) for i in range(len(grid))] == list(np.ndindex(*grid.lattice))
    assert [grid[p] for p in np.ndindex(*grid.lattice)] == boxes
    assert list(grid.centers) == [
        tuple((a + b - 1) / 2 for a, b in zip(box.start, box.stop, strict=True)) for box in boxes
    ]
    visits = np.zeros(grid.shape, int)
    for box in boxes:
        visits[box.slices] += 1
    assert grid.most_visits == visits.max()
    assert grid.uncovered == (visits == 0).sum()


@given(grids(), st.data())
def test_indexing_is_that_of_a_list(grid, data):
    boxes = list(grid)
    n = len(boxes)
    number = data.draw(st.integers(-n - 2, n + 1))
    if -n <= number < n:
        assert grid[number] == boxes[number]
        assert grid.origins[number] == boxes[number].start
    else:
        with pytest.raises(IndexError):
            grid[number]
        with pytest.raises(IndexError):
            grid.origins[number]
    part = data.draw(st.slices(n))
    assert list(grid[part]) == boxes[part]
    assert list(grid.centers[part]) == list(grid.centers)[part]
    if n:
        last = tuple(-1 for _ in grid.lattice)
        assert grid[last] == boxes[-1]
    with pytest.raises(IndexError):
        grid[(0,) * (grid.ndim + 1)]
    with pytest.raises(IndexError):
        grid[grid.lattice]


@given(grids(), st.data())
def test_touching_a_box_is_a_range_per_axis(grid, data):
    start = tuple(data.draw(st.integers(0, n - 1)) for n in grid.shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, grid.shape, strict=True))
    box = Box(start, stop)
    slow = [
        p
        for p in np.ndindex(*grid.lattice)
        if all(
            max(a, c) < min(b, d)
            for a, b, c, d in zip(grid[p].start, grid[p].stop, start, stop, strict=True)
        )
    ]
    assert list(itertools.product(*grid.touching(box))) == slow


@given(grids())
def test_a_grid_survives_json_and_pickle(grid):
    for again in (
        PatchGrid.from_json(json.loads(json.dumps(grid.to_json()))),
        pickle.loads(pickle.dumps(grid)),
    ):
        assert again == grid
        assert hash(again) == hash(grid)
        assert again.starts == grid.starts
        assert again.edge == grid.edge


def test_grids_that_differ_are_not_equal():
    one = PatchGrid((9, 9), 4, 2)
    others = [
        PatchGrid((9, 10), 4, 2),
        PatchGrid((9, 9), 3, 2),
        PatchGrid((9, 9), 4, 3),
        PatchGrid((9, 9), 4, 2, edge="pad"),
        PatchGrid((9, 9), 4, 2, offset=1),
    ]
    assert all(other != one for other in others)
    with pytest.raises(AttributeError):
        one.patch = (1, 1)


def test_the_default_is_half_overlap():
    assert PatchGrid((110, 512, 512), 64) == PatchGrid((110, 512, 512), 64, overlap=0.5)
    assert PatchGrid((512,) * 3, 64).visits_per_voxel == 8
    assert PatchGrid((512,) * 3, 64, overlap="25%").visits_per_voxel == pytest.approx(64 / 27)


def test_ten_million_patches_and_10_to_the_15_voxels_take_no_memory():
    tracemalloc.start()
    try:
        many = PatchGrid((1000, 1000, 20), 10, (2, 2, 1), overlap=None)
        huge = PatchGrid((100_000,) * 3, 64, overlap="50%")
        assert len(many) == 496 * 496 * 11
        assert len(PatchGrid((460, 460, 460), 30, 2)) == 216**3 > 10**7
        assert len(huge) == 3124**3
        assert huge[-1].stop == (100_000,) * 3
        assert huge.origins[1] == (0, 0, 32)
        assert huge.centers[-1] == (99_967.5,) * 3
        assert len(huge.origins[::2]) == -(-(3124**3) // 2)
        assert huge.touching(Box((50_000,) * 3, (50_001,) * 3)) == (range(1561, 1563),) * 3
        assert (huge.uncovered, huge.most_visits) == (0, 8)
        assert len(pickle.dumps(huge)) < 1000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_boxes_know_their_shape_and_say_where_they_are():
    box = Box((1, 2), (4, 9))
    assert (box.shape, box.ndim, box.size) == ((3, 7), 2, 21)
    assert box.slices == (slice(1, 4), slice(2, 9))
    assert str(box) == "[1:4, 2:9]"
    for start, stop in [((3,), (2,)), ((0, 0), (1,))]:
        with pytest.raises(GridError, match="no box goes from"):
            Box(start, stop)


def test_a_listing_is_a_sequence():
    squares = Listing(10, lambda i: i * i)
    assert squares == [i * i for i in range(10)]
    assert squares[::-3] == [81, 36, 9, 0]
    assert repr(squares) == "<10 items: 0, 1, 4, 9, …>"
    assert repr(squares[:2]) == "<2 items: 0, 1>"
    assert squares != 3
