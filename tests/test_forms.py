"""The user's ways to say sizes, parts and roles of axes, and what is said back to slips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volpatch import Box, GridError, SettingError, VolpatchError
from volpatch.core.axes import default_dims
from volpatch.core.layout import Layout
from volpatch.core.parse import (
    by_axis,
    parse_bytes,
    parse_roi,
    show_bytes,
    whole_counts,
)

ZYX, SHAPE = ("z", "y", "x"), (64, 100, 612)
TCZYX, SHAPE5 = ("t", "c", "z", "y", "x"), (3, 2, 64, 100, 612)

# -- sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2GiB", 2 * 2**30),
        ("1.5 MB", 1_500_000),
        (" 500mib ", 500 * 2**20),
        ("3 kB", 3000),
        ("1TiB", 2**40),
        ("2 PB", 2 * 10**15),
        ("7b", 7),
        ("2.GB", 2 * 10**9),
        (12345, 12345),
        (np.int64(12345).item(), 12345),
    ],
)
def test_bytes_are_read_with_their_unit(text, number):
    assert parse_bytes(text) == number


@pytest.mark.parametrize(
    "text", ["2", "2000000000", "GiB", "-2GiB", "2 GiBs", "2Gi", "2G", "two GB", "", "1e9B"]
)
def test_bytes_without_a_unit_are_refused(text):
    with pytest.raises(SettingError, match="memory_limit must be a size with a unit, such as 2GiB"):
        parse_bytes(text)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "0GiB"])
def test_bytes_must_be_a_positive_number(value):
    with pytest.raises(SettingError, match="func_memory must be a positive number of bytes"):
        parse_bytes(value, "func_memory")


@given(st.integers(1, 2**60))
def test_bytes_are_shown_within_five_percent_and_can_be_read_again(number):
    assert parse_bytes(show_bytes(number)) == pytest.approx(number, rel=0.05)


def test_a_mapping_by_axis_follows_the_order_of_the_axes():
    assert by_axis({"x": 3, "z": 1, "y": 2}, ZYX, "patch") == (1, 2, 3)
    assert by_axis((1, 2), ZYX, "patch") == (1, 2)
    for wrong in ({"z": 1}, {"z": 1, "y": 2, "w": 3}, {"z": 1, "y": 2, "x": 3, "t": 1}, {}):
        with pytest.raises(GridError, match=r"chunks names the axes .* \['z', 'y', 'x'\] are"):
            by_axis(wrong, ZYX, "chunks")


def test_counts_are_whole_and_at_least_one():
    assert whole_counts(None, 7, "workers") == 7
    assert whole_counts(np.int8(3), 7, "workers") == 3
    for wrong in (0, -1, 1.0, "2", True):
        with pytest.raises(SettingError, match="workers must be a whole number of at least 1"):
            whole_counts(wrong, 7, "workers")


# -- roi -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roi", "start", "stop"),
    [
        (None, (0, 0, 0), SHAPE),
        ("0:64,:,100:612", (0, 0, 100), (64, 100, 612)),
        (" 1 : 4 , : , 5: ", (1, 0, 5), (4, 100, 612)),
        ("z=0:16", (0, 0, 0), (16, 100, 612)),
        ("x=-12:,z=5", (5, 0, 600), (6, 100, 612)),
        ("-1,-3:-1,7", (63, 97, 7), (64, 99, 8)),
        ("10:20", (0, 0, 10), (64, 100, 20)),
        ({"y": slice(3, 9)}, (0, 3, 0), (64, 9, 612)),
        ({"y": 3}, (0, 3, 0), (64, 4, 612)),
        ((slice(1, 3), slice(None), 4), (1, 0, 4), (3, 100, 5)),
        ([slice(2, 4)], (0, 0, 2), (64, 100, 4)),
        (slice(2, 4), (0, 0, 2), (64, 100, 4)),
        (np.int64(3), (0, 0, 3), (64, 100, 4)),
        ((np.int32(1), slice(np.int64(2), np.int64(4), 1), 0), (1, 2, 0), (2, 4, 1)),
        (Box((1, 2, 3), (4, 5, 6)), (1, 2, 3), (4, 5, 6)),
    ],
)
def test_a_roi_is_a_box_over_all_axes(roi, start, stop):
    assert parse_roi(roi, ZYX, SHAPE) == Box(start, stop)


@pytest.mark.parametrize(
    ("roi", "start", "stop"),
    [
        ("c=DAPI", (0, 1, 0, 0, 0), (3, 2, 64, 100, 612)),
        ("z=0:64,c=DAPI,t=0", (0, 1, 0, 0, 0), (1, 2, 64, 100, 612)),
        ("t=-1,c=0:1", (2, 0, 0, 0, 0), (3, 1, 64, 100, 612)),
        ({"c": "GFP"}, (0, 0, 0, 0, 0), (3, 1, 64, 100, 612)),
        ("1,DAPI,:,:,:", (1, 1, 0, 0, 0), (2, 2, 64, 100, 612)),
        ("0:8,:,:", (0, 0, 0, 0, 0), (3, 2, 8, 100, 612)),
    ],
)
def test_a_roi_names_axes_and_channels(roi, start, stop):
    assert parse_roi(roi, TCZYX, SHAPE5, {"c": ["GFP", "DAPI"]}) == Box(start, stop)


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        ("w=0:4", r"roi names axis 'w', but the axes are \('z', 'y', 'x'\)"),
        ({"w": 3}, "roi names axis 'w'"),
        ("0:4,:,:,:", "roi has 4 parts, but the axes are"),
        ("z=0:4,:", "mixes named and unnamed axes; name all or none"),
        ("0:4:2,:,:", "roi part '0:4:2' is no range; write start:stop"),
        ("a:b", "roi part 'a:b' is no range"),
        ("5:5", "roi 5:5 on x selects nothing, or lies outside of its 612 voxels"),
        ("9:5", "roi 9:5 on x selects nothing"),
        ("0:613", "roi 0:613 on x .* 0 <= start < stop <= 612"),
        ("z=64", "roi 64:65 on z selects nothing"),
        ("z=-65", "roi -1:0 on z"),
        ("z=-65:3", "roi -1:3 on z"),
        ("z=DAPI", "roi asks for 'DAPI' on axis z, but it has no names"),
        ("", "roi asks for '' on axis x"),
        (slice(0, 8, 2), "roi on x has step 2; only steps of 1"),
        (slice(8, 0, -1), "roi on x has step -1"),
        (1.5, "roi on x must be whole numbers, got 1.5"),
        (slice(0.5, 3), "roi on x must be whole numbers, got 0.5"),
    ],
)
def test_rois_that_cannot_be_are_refused(roi, message):
    with pytest.raises(GridError, match=message):
        parse_roi(roi, ZYX, SHAPE)


def test_an_unknown_channel_name_is_refused_with_the_known_ones():
    with pytest.raises(GridError, match=r"asks for 'RFP' on axis c, but its names are \['GFP',"):
        parse_roi("c=RFP", TCZYX, SHAPE5, {"c": ["GFP", "DAPI"]})
    with pytest.raises(GridError, match="asks for 'DAPI' on axis c, but it has no names"):
        parse_roi("c=DAPI", TCZYX, SHAPE5)


@given(st.data())
def test_text_slices_and_mapping_say_the_same(data):
    bounds = []
    for n in SHAPE:
        a = data.draw(st.integers(0, n - 1))
        bounds.append((a, data.draw(st.integers(a + 1, n))))
    box = Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))
    text = ",".join(f"{a}:{b}" for a, b in bounds)
    named = ",".join(f"{d}={a}:{b}" for d, (a, b) in reversed(list(zip(ZYX, bounds, strict=True))))
    negative = [slice(a - n, b - n or None) for n, (a, b) in zip(SHAPE, bounds, strict=True)]
    for roi in (text, named, negative, dict(zip(ZYX, negative, strict=True)), box):
        assert parse_roi(roi, ZYX, SHAPE) == box


# -- roles of axes -------------------------------------------------------------------------


def test_default_names_of_axes():
    assert default_dims(1) == ("x",)
    assert default_dims(3) == ZYX
    assert default_dims(5) == TCZYX
    assert default_dims(7) == ("d0", "d1", *TCZYX)


@pytest.mark.parametrize(
    ("patch", "channel", "lead", "channel_at", "patched"),
    [
        (64, None, (0, 1), None, (2, 3, 4)),
        (64, "c", (0,), 1, (2, 3, 4)),
        (64, -4, (0,), 1, (2, 3, 4)),
        ((8, 8), None, (0, 1, 2), None, (3, 4)),
        ((8, 8, 8, 8), "t", (), 0, (1, 2, 3, 4)),
        ({"y": 8, "z": 8}, None, (0, 1, 4), None, (2, 3)),
        ({"t": 2, "x": 8}, "c", (2, 3), 1, (0, 4)),
        (64, "x", (0, 1), 4, (2, 3)),
    ],
)
def test_roles_follow_from_patch_and_channel_axis(patch, channel, lead, channel_at, patched):
    layout = Layout.of(TCZYX, SHAPE5, patch, channel)
    assert (layout.lead, layout.channel, layout.patched) == (lead, channel_at, patched)
    assert layout.patched_dims == tuple(TCZYX[i] for i in patched)
    assert layout.patched_shape == tuple(SHAPE5[i] for i in patched)
    assert sorted(layout.order) == [0, 1, 2, 3, 4]


def test_axes_without_names_are_all_patched():
    assert Layout.of(TCZYX, SHAPE5, 2, named=False).patched == (0, 1, 2, 3, 4)
    assert Layout.of(("y", "x"), (9, 9), 4).patched == (0, 1)
    assert Layout.of(("a", "b"), (9, 9), 4).patched == (0, 1)


@pytest.mark.parametrize(
    ("patch", "channel", "message"),
    [
        ((1, 2, 3, 4), None, r"patch \(1, 2, 3, 4\) has 4 sizes, but the volume has the axes"),
        ((1, 2, 3), "z", r"has 3 sizes, but the volume has the axes \('y', 'x'\) of \(100, 612\)"),
        ((), None, "has 0 sizes"),
        ({"w": 3}, None, "patch names axis 'w', but the axes are"),
        (4, "c", "channel_axis 'c' is none of the axes"),
        (4, 3, "channel_axis 3 is none of the 3 axes"),
        (4, -4, "channel_axis -4 is none of the 3 axes"),
        (4, 1.5, "channel_axis 1.5 is none of"),
    ],
)
def test_roles_that_cannot_be_are_refused(patch, channel, message):
    with pytest.raises(VolpatchError, match=message):
        Layout.of(ZYX, SHAPE, patch, channel)


def test_a_selection_holds_one_index_of_each_lead_axis_and_all_channels():
    layout = Layout.of(TCZYX, SHAPE5, 8, "c")
    roi = parse_roi("t=1:3,c=1", TCZYX, SHAPE5)
    assert layout.selection((2,), roi, Box((1, 2, 3), (4, 5, 6))) == (
        slice(2, 3),
        slice(1, 2),
        slice(1, 4),
        slice(2, 5),
        slice(3, 6),
    )
