"""`volpatch try --check-reach`: the reach of filters of which it is known, and what it refuses."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from scipy import ndimage

from tests.helpers_arrays import distinct
from tests.helpers_stores import store
from volpatch import FunctionError, map_patches
from volpatch.sampling.reach_check import CORES, Side, find_reach, smallest

SHAPE = (44, 50, 61)
FUNCTIONS = """
import itertools
import numpy as np
from scipy import ndimage

def smooth(patch, sigma=2, mode="reflect"):
    return ndimage.gaussian_filter(patch.astype(np.float32), sigma, mode=mode)

def box(patch): return ndimage.uniform_filter(patch.astype(np.int64), 5)
def lopsided(patch): return ndimage.uniform_filter(patch.astype(np.int64), (1, 1, 4))
def flat(patch): return ndimage.minimum_filter(patch, (1, 3, 7))
def rank(patch): return ndimage.percentile_filter(patch, 30, (3, 5, 1))
def double(patch): return patch * 2
def in_place(patch):
    patch[...] = ndimage.maximum_filter(patch, 3)
    return patch
def gaps(patch):
    values = patch.astype(np.float32)
    values[values < 2000] = np.nan
    return ndimage.correlate1d(values, [1, 0, 0, 0, 1], axis=0)
def edges(patch): return np.stack([ndimage.sobel(patch.astype(np.float32), a) for a in range(3)])
kept = {}
def buffered(patch):
    out = kept.setdefault("out", np.empty(200_000, np.float32))[: patch.size]
    out = out.reshape(patch.shape)
    out[...] = smooth(patch, 1)
    return out
def maker(size): return lambda patch: ndimage.median_filter(patch, (1, size, size))
def table(patch): return np.arange(4097)[patch]
def of_floats(patch):
    assert patch.dtype == np.float32
    return smooth(patch, 1)

def normalized(patch): return patch - patch.mean(dtype=np.float64)
def brightest(patch): return patch / np.float32(patch.max())
def pooled(patch): return np.repeat(patch[..., ::2], 2, -1)[..., : patch.shape[-1]]
def random(patch): return patch + np.random.default_rng().random(patch.shape)
numbers = itertools.count()
def counted(patch): return np.full(patch.shape, next(numbers))
def half(patch): return patch[::2]
def one(patch): return float(patch.mean())
def fail(patch): raise ValueError("no light")
def fails_small(patch):
    assert len(patch) > 20, "too small for me"
    return patch
"""


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """A volume, thin ones, one with channels, one that is longer than a box, an even one."""
    folder = tmp_path_factory.mktemp("volumes")
    (folder / "functions.py").write_text(FUNCTIONS)
    rng = np.random.default_rng(3)
    values = rng.integers(0, 4096, SHAPE).astype(np.uint16)
    store(folder / "in.zarr", values)
    store(folder / "thin.zarr", values[:5])
    store(folder / "flat.zarr", values[0])
    store(folder / "tiny.zarr", values[:5, :5, :9])
    store(folder / "even.zarr", np.full((20, 20, 20), 7, np.uint8))
    store(folder / "channels.zarr", np.stack([values[:20] * 0, values[:20]]), dims="czyx")
    store(folder / "long.zarr", rng.integers(0, 4096, (18, 20, 140)).astype(np.uint16))
    return folder


@pytest.fixture
def check(ask, volumes):
    """Ask for the reach of a function: exit code, stdout, stderr."""

    def call(function, *more, volume="in.zarr", by="--apply"):
        own = function.removeprefix("own:")
        name = f"{volumes / 'functions.py'}:{own}" if own != function else function
        return ask("try", volumes / volume, by, name, "--check-reach", *more)

    return call


def found(answer):
    code, out, err = answer
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize(
    ("function", "reach"),
    [
        ("smooth", (8, 8, 8)),
        ("box", (2, 2, 2)),
        ("lopsided", (0, 0, 2)),
        ("flat", (0, 1, 3)),
        ("rank", (1, 2, 0)),
        ("double", (0, 0, 0)),
        ("in_place", (1, 1, 1)),
        ("gaps", (2, 0, 0)),
        ("edges", (1, 1, 1)),
        ("buffered", (4, 4, 4)),
        ("table", (0, 0, 0)),
    ],
)
def test_the_reach_is_that_which_is_known(check, function, reach):
    facts = found(check(f"own:{function}", "--format", "json"))
    assert tuple(facts["reach"].values()) == reach
    assert list(facts["reach"]) == ["z", "y", "x"]
    short = str(reach[0]) if len(set(reach)) == 1 else ",".join(map(str, reach))
    assert facts["words"] == f"--reach {short}"
    assert (facts["one_less"] is None) == (max(reach) == 0)
    assert (facts["whole_axes"], facts["declared"]) == ([], None)


def test_a_filter_of_another_library(check):
    pytest.importorskip("skimage")
    line = ("skimage.filters:threshold_local", "--param", "block_size=15", "--format", "json")
    assert found(check(*line))["words"] == "--reach 9"


def test_what_is_found_is_exact_in_a_run_and_one_less_is_not(check, ask, volumes, tmp_path):
    words = found(check("own:flat", "--format", "json"))["words"].split()
    line = ("run", volumes / "in.zarr", tmp_path / "out.zarr", "--apply")
    code, _, err = ask(*line, f"{volumes / 'functions.py'}:flat", *words, "--dtype", "uint16")
    assert code == 0, err
    volume = distinct((200, 20, 20))
    wanted = ndimage.gaussian_filter(volume.astype(np.float32), 1.5)

    def smooth(patch):
        return ndimage.gaussian_filter(patch.astype(np.float32), 1.5)

    sizes = find_reach(smooth, volume, [True] * 3).sizes
    assert sizes == (6, 6, 6)
    np.testing.assert_array_equal(map_patches(smooth, volume, reach=sizes), wanted)


def test_people_are_told_what_to_say(check):
    code, out, err = check("own:flat")
    assert (code, err) == (0, "")
    lines = [line.split(maxsplit=1) for line in out.replace("one less", "less").splitlines()]
    told = dict(lines)
    assert told["box"] == "z=0:44 y=0:50 x=0:61 of in.zarr, uint16"
    assert told["reach"] == "z 0, y 1, x 3 voxels to each side"
    assert told["less"].startswith("differs in ")
    assert told["say"] == "--reach 0,1,3"
    assert "declared" not in told
    assert "reach     2 voxels to each side\n" in check("own:box")[1]


def test_what_one_voxel_less_does_is_counted():
    volume = np.zeros((64,), np.int64)
    volume[24 + 16] = 5  # one voxel beyond the smaller core in the middle

    def look_ahead(patch):
        return ndimage.correlate1d(patch, [0, 0, 1], mode="constant")

    less = find_reach(look_ahead, volume, [True]).less
    assert less is not None
    assert (less.voxels, less.largest) == (1, 5.0)
    assert less.compared == sum(b - a for a, b in Side(64, True).cores)
    assert str(less) == f"1 of {less.compared} voxels, by 5 at most"


def test_a_nan_that_differs_is_told():
    volume = np.arange(64, dtype=np.float32)

    def wide(patch):
        return np.where(ndimage.maximum_filter1d(patch, 5) - patch < 2, np.nan, 1)

    less = find_reach(wide, volume, [True]).less
    assert less is not None
    assert less.largest is None
    assert str(less).endswith("voxels, by a NaN")


def test_signs_of_zero_are_bits_too():
    def signs(patch):
        return np.copysign(np.float32(0), ndimage.maximum_filter1d(patch, 7) - 500.0)

    volume = np.random.default_rng(5).integers(0, 600, 64)
    assert find_reach(signs, volume, [True]).sizes == (3,)


def test_where_little_is_to_be_seen_other_voxels_show_it():
    volume = np.zeros((40, 40), np.uint8)
    volume[20, 20] = 9
    found = find_reach(lambda patch: ndimage.maximum_filter(patch, (3, 9)), volume, [True] * 2)
    assert found.sizes == (1, 4)
    assert found.less is not None
    assert found.less.voxels == 0
    assert str(found.less).endswith("voxels here, but where lower or higher ones are near")


@pytest.mark.parametrize(
    ("function", "parameters", "declared"),
    [("gaussian", "sigma=[0,1,2]", "0,4,8"), ("median", "size=3", "1"), ("sobel", "", "1")],
)
def test_a_filter_that_declares_its_reach_is_told_so(check, function, parameters, declared):
    words = ("--param", parameters) if parameters else ()
    code, out, _ = check(function, *words)
    assert code == 0
    assert f"declared  {declared}, the same; a run needs no --reach" in out
    assert f"say       --reach {declared}" in out
    facts = found(check(function, *words, "--format", "json"))
    assert facts["declared"] == facts["reach"]


def test_a_filter_that_declares_more_than_shows_is_right(check):
    _, out, _ = check("threshold", "--param", "value=9000")
    assert "reach     0 voxels" in out
    code, out, _ = check("median", "--param", "size=1", "--roi", "x=3:40")
    assert (code, "declared  0, the same" in out) == (0, True)
    code, out, _ = check("gaussian", "--param", "sigma=0.2", "--param", "truncate=14.9")
    assert (code, "declared  3, more than shows here; it is right" in out) == (0, True)


def test_a_thin_volume_is_taken_whole_where_no_less_is_exact(check):
    facts = found(check("own:smooth", "--format", "json", volume="thin.zarr"))
    assert facts["words"] == "--reach 4,8,8"
    assert facts["whole_axes"] == ["z"]
    assert "z 4 (all of it), y 8, x 8 voxels" in check("own:smooth", volume="thin.zarr")[1]
    facts = found(check("own:flat", "--format", "json", volume="thin.zarr"))
    assert (facts["words"], facts["whole_axes"]) == ("--reach 0,1,3", [])


def test_a_plane_and_channels(check):
    facts = found(check("own:smooth", "--format", "json", volume="flat.zarr"))
    assert facts["reach"] == {"y": 8, "x": 8}
    code, _, err = check("own:smooth", volume="channels.zarr")
    assert (code, "are 0, so that nothing shows" in err) == (3, True)
    facts = found(check("own:box", "--format", "json", "--roi", "c=1", volume="channels.zarr"))
    assert facts["words"] == "--reach 2"
    assert facts["box"] == {"c": [1, 2], "z": [0, 20], "y": [0, 50], "x": [0, 61]}


def test_the_box_lies_in_the_middle_of_the_volume_or_the_roi(check):
    facts = found(check("own:box", "--format", "json", volume="long.zarr"))
    assert facts["box"] == {"z": [0, 18], "y": [0, 20], "x": [6, 134]}
    assert facts["words"] == "--reach 2"
    facts = found(check("own:box", "--format", "json", "--roi", "x=100:131", volume="long.zarr"))
    assert facts["box"]["x"] == [100, 131]
    assert facts["words"] == "--reach 2"


def test_a_factory_and_an_input_dtype(check):
    line = ("--param", "size=5", "--format", "json")
    assert found(check("own:maker", *line, by="--factory"))["words"] == "--reach 0,2,2"
    line = ("--input-dtype", "float32", "--format", "json")
    assert found(check("own:of_floats", *line))["words"] == "--reach 4"
    code, _, err = check("own:box", "--input-dtype", "uint8")
    assert code == 3
    assert "--input-dtype uint8 cannot hold" in err
    assert "choose one that holds all values of the source, uint16" in err


@pytest.mark.parametrize(
    ("function", "more", "says"),
    [
        ("normalized", (), "normalized looks farther than 30 voxels to a side, or at the whole"),
        ("normalized", (), "blend its patches instead, or pass what it takes from all voxels, "),
        ("smooth", ("--param", "sigma=20"), "no reach up to 30, which is what a box of (44, 50, 6"),
        ("smooth", ("--param", "mode=wrap"), "looks farther than 30 voxels"),
        ("pooled", (), "pooled looks farther than 30 voxels to a side"),
        ("brightest", (), "brightest looks farther than 30 voxels to a side, or at the whole"),
        ("brightest", (), "such as their maximum, as a parameter (see `volpatch guide filters`)"),
        ("random", (), "random gives another result for the same array when it is called again"),
        ("random", (), "in 134,200 of 134,200 voxels, by 0.99"),
        ("counted", (), "by 1 at most; have it draw no random numbers (or always the same) and"),
        ("half", (), "half returned shape (22, 50, 61) for patch (0, 0, 0) at [0:44, 0:50, 0:61]"),
        ("half", (), "a function with a reach gives a value for each voxel of an array of any si"),
        ("one", (), "one returned a builtins.float for patch (0, 0, 0)"),
        ("fail", (), "fail raised ValueError on patch (0, 0, 0) at [0:44, 0:50, 0:61]: no light"),
        ("fails_small", (), "fails_small raised AssertionError on patch (0, 0, 0) at [0:2, 0:3, 0"),
    ],
)
def test_what_has_no_reach_is_said(check, function, more, says):
    code, out, err = check(f"own:{function}", *more)
    assert (code, out) == (3, "")
    assert says in err
    assert err.startswith("volpatch: ")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("tiny.zarr",), "a box of (5, 5, 9) voxels is too small to tell how far a function looks"),
        (("in.zarr", "--roi", "z=4"), "a box of (1, 50, 61) voxels is too small to tell how far"),
        (("in.zarr", "--roi", "z=4"), "unless the volume itself is shorter there, and along one"),
        (("even.zarr",), "all 8,000 voxels of the box are 7, so that nothing shows how far the fu"),
        (("even.zarr",), "choose a part with something in it, with --roi"),
        (("in.zarr", "--roi", "q=4"), "roi names axis 'q'"),
        (("in.zarr", "--level", "3"), "level"),
        (("nowhere.zarr",), "no such volume"),
    ],
)
def test_what_shows_nothing_is_refused(check, line, says):
    volume, *more = line
    code, out, err = check("own:double", *more, volume=volume)
    assert (code, out) == (3, "")
    assert says in err


def test_a_declared_reach_beyond_the_box_is_not_tried(check):
    code, _, err = check("gaussian", "--param", "sigma=20")
    assert code == 3
    assert "gaussian declares a reach of 80, and a box of (44, 50, 61) voxels can show no" in err
    assert "no more than 30; a run takes what it declares, without --reach" in err


def test_usage(ask, volumes):
    code, _, err = ask("try", volumes / "in.zarr", "--apply", "median")
    assert (code, "Say what to find out: --check-reach." in err) == (2, True)
    code, _, err = ask("try", volumes / "in.zarr", "--check-reach")
    assert (code, "Give one of --apply and --factory" in err) == (2, True)
    line = ("--apply", "gaussian", "--sigma", "2")
    code, _, err = ask("try", volumes / "in.zarr", "--check-reach", *line)
    assert (code, "write --param sigma=2" in err) == (2, True)


def test_it_says_of_python_what_is_wrong():
    volume = np.random.default_rng(0).random((40, 40), np.float32)
    with pytest.raises(FunctionError, match="looks farther than 20 voxels to a side"):
        find_reach(lambda patch: patch - patch.sum(), volume, [True, True])


def test_the_smallest_is_found_wherever_it_is():
    for most, wanted in itertools.product(range(45), range(47)):
        found = smallest(lambda n, wanted=wanted: n >= wanted, most)
        assert found == (wanted if wanted <= most else None)


def test_cores_lie_in_the_box_and_margins_end_before_it():
    for size, whole in itertools.product(range(1, 150), (True, False)):
        side = Side(size, whole)
        assert len(side.cores) == CORES
        assert all(0 <= a < b <= size for a, b in side.cores)
        assert side.cores[0][0] == 0
        assert {b for _, b in side.cores[1:3]} == {size}
        for reach in range(side.most + 1):
            pieces = [side.piece(core, reach) for core in side.cores]
            assert all(b - a < size for a, b in pieces[:3])
            assert whole or all(0 < a < b < size for a, b in pieces[3:])
        assert side.piece(side.cores[0], side.most + 1) == (0, size)
        for (a, _), (b, _) in (side.cores[1:3], side.cores[3:]):
            assert size < 16 or (a - b) % 2 == 1
