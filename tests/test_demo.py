"""The specimen is what its coordinates say, and the demo tells the truth about what it did."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaozarrs
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from volpatch.cli import main as cli
from volpatch.cli.demo import SPACING_UM, demo, specimen_slabs, write_specimen
from volpatch.core.box import Box
from volpatch.core.errors import SettingError, TargetError
from volpatch.running.api import plan
from volpatch.storage.open import open_source

SHAPE = (11, 40, 52)
TINY = {"shape": (20, 48, 40), "patch": 16, "memory_limit": "2GiB", "progress": "none"}


def specimen(shape=SHAPE, **more):
    return np.concatenate([slab for _, slab in specimen_slabs(shape, **more)])


@given(st.integers(1, 12))
@settings(max_examples=8, deadline=None)
def test_the_specimen_does_not_depend_on_how_it_is_cut_into_slabs(planes):
    slabs = list(specimen_slabs(SHAPE, planes=planes))
    assert [start for start, _ in slabs] == list(range(0, SHAPE[0], planes))
    assert np.array_equal(np.concatenate([slab for _, slab in slabs]), specimen())


def test_a_bigger_specimen_holds_the_smaller_one():
    assert np.array_equal(specimen((11, 60, 70))[:, :40, :52], specimen())


def test_the_seed_decides_noise_and_structure():
    assert np.array_equal(specimen(seed=3), specimen(seed=3))
    assert not np.array_equal(specimen(seed=3), specimen(seed=4))
    clean = [specimen((8, 128, 128), seed=seed, noise=False) for seed in (3, 4)]
    assert not np.array_equal(*clean)


def test_the_noise_is_that_of_a_dim_exposure():
    shape = (12, 256, 256)
    clean, noisy = specimen(shape, noise=False).astype(float), specimen(shape).astype(float)
    light = clean - 100
    expected = 6.0 * light + 6.0**2  # shot noise at 6 counts for a photon, and read noise
    chosen = (light > 60) & (light < 2000)
    spread = ((noisy - clean) ** 2)[chosen] / expected[chosen]
    assert abs(spread.mean() - 1) < 0.02
    assert abs((noisy - clean)[chosen].mean()) < 0.5


def test_neighbouring_voxels_have_noise_of_their_own():
    shape = (12, 128, 128)
    noise = specimen(shape).astype(float) - specimen(shape, noise=False)
    for axis in range(3):
        first, second = (np.take(noise, r, axis) for r in (range(11), range(1, 12)))
        assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.03


def test_there_are_structures_of_several_kinds_to_see():
    clean = specimen((30, 256, 256), noise=False)
    low, middle, high = np.percentile(clean, (1, 50, 99.5))
    assert 100 < low < middle < 500
    assert high > 3 * middle


def test_the_stored_specimen_is_valid_and_the_same(tmp_path):
    path = write_specimen(tmp_path / "a.ome.zarr", (40, 300, 70), seed=2)
    yaozarrs.validate_zarr_store(str(path))
    source = open_source(path)
    assert (source.dims, source.spacing) == (("z", "y", "x"), SPACING_UM)
    assert source.units == ("micrometer",) * 3
    assert source.chunks == (32, 256, 70)
    assert np.array_equal(source[...], specimen((40, 300, 70), seed=2))
    assert [p.name for p in tmp_path.iterdir()] == ["a.ome.zarr"]


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(TargetError, match="exists already"):
        write_specimen(tmp_path / "a.zarr", SHAPE)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"shape": (4, 4)}, "three positive"),
        ({"shape": (4, 0, 4)}, "three positive"),
        ({"spacing_um": (1, 1, 0)}, "spacing_um"),
        ({"seed": -1}, "seed=-1"),
        ({"planes": 0}, "planes=0"),
    ],
)
def test_a_specimen_that_cannot_be_is_refused(wrong, words):
    with pytest.raises(SettingError, match=words):
        next(specimen_slabs(**{"shape": SHAPE, **wrong}))


# -- the demo ------------------------------------------------------------------------------


def told(folder: Path, **more: object) -> str:
    lines: list[str] = []
    demo(folder, tell=lambda text: lines.append(str(text)), **{**TINY, **more})
    return "\n".join(lines)


def test_the_demo_denoises_and_tells_plan_report_and_what_next(tmp_path):
    folder = tmp_path / "demo"
    text = told(folder)
    order = ["making", "patches   (16, 16, 16)", "wrote ", "noise ", "seams ", "next "]
    assert [text.index(word) for word in order] == sorted(text.index(word) for word in order)
    result = zarr.open_array(folder / "denoised.ome.zarr/scale0/image", mode="r")[...]
    noisy, clean = specimen(TINY["shape"]), specimen(TINY["shape"], noise=False)
    middle = slice(8, 12)

    def flat(volume: np.ndarray) -> np.ndarray:
        """Where the specimen has no edges, which smoothing blurs."""
        steps = np.abs(np.diff(clean[middle].astype(float), axis=2, append=0))
        return (volume[middle].astype(float) - clean[middle])[steps < 3]

    assert np.std(flat(result)) < 0.6 * np.std(flat(noisy))
    for name in ("specimen.ome.zarr", "denoised.ome.zarr"):
        yaozarrs.validate_zarr_store(str(folder / name))
        assert str(folder / name) in text
    assert (folder / "demo.png").exists() == (find_spec("matplotlib") is not None)


def test_the_noise_told_is_the_noise_there_is(tmp_path):
    text = told(tmp_path / "demo")
    noisy, clean = specimen(TINY["shape"]), specimen(TINY["shape"], noise=False)
    before = np.sqrt(np.mean((noisy[8:12].astype(float) - clean[8:12]) ** 2))
    line = next(line for line in text.splitlines() if line.startswith("noise"))
    assert f" {before:.1f} counts (rms) before" in line
    times = float(line.split(": ")[1].split(" times")[0])
    assert 2 < times < 4  # two axes, each smoothed with sigma 0.8


def test_a_seam_would_show():
    from volpatch.cli.demo import _steps

    smooth = np.zeros((2, 4, 30), np.float32) + np.arange(30, dtype=np.float32)
    assert _steps(smooth, [10, 20]) == (1.0, 1.0)
    smooth[..., 10:] += 5
    assert _steps(smooth, [10, 20]) == (3.5, 1.0)


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(TargetError, match="not empty, and no earlier demo"):
            demo(tmp_path, overwrite=overwrite, **TINY)
    with pytest.raises(TargetError, match="not a folder"):
        demo(tmp_path / "thesis.txt", **TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_earlier_demo_is_replaced_when_asked(tmp_path):
    folder = tmp_path / "demo"
    told(folder)
    with pytest.raises(TargetError, match="pass overwrite=True"):
        demo(folder, **TINY)
    told(folder, shape=(16, 32, 32), overwrite=True)
    assert open_source(folder / "denoised.ome.zarr").shape == (16, 32, 32)
    assert json.loads((folder / "volpatch-demo.json").read_text()) == {"volpatch_demo": 1}


def test_the_demo_is_bigger_than_its_memory():
    from volpatch.cli.demo import DEMO_LIMIT, DEMO_SHAPE
    from volpatch.core.parse import parse_bytes

    assert 2 * np.prod(DEMO_SHAPE) > parse_bytes(DEMO_LIMIT)


def test_the_command_runs_it(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "volpatch.cli.demo.demo", lambda folder, **more: seen.update(more, at=folder)
    )
    assert cli.execute(["demo", str(tmp_path), "--overwrite", "--progress", "log"]) == 0
    assert seen == {"at": str(tmp_path), "overwrite": True, "progress": "log"}
    assert cli.execute(["demo"]) == 0
    assert seen == {"at": "volpatch-demo", "overwrite": False, "progress": "auto"}


# -- the picture ---------------------------------------------------------------------------


def test_the_picture_shows_voxels_in_their_proportions(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from volpatch.report import plot as view

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    source = open_source(write_specimen(tmp_path / "a.zarr", (20, 48, 40)))
    view.planes(source, source, "unused.png", plan=plan(source, patch=(8, 16, 16)))
    xy, xz, yz = drawn[0].axes[:3]
    for axes, across, down in ((xy, 20, 24), (xz, 20, 40), (yz, 24, 40)):
        assert axes.get_xlim() == (0, across)  # micrometres
        assert axes.get_ylim() == (down, 0)
        assert axes.get_aspect() == 1
    assert np.array_equal(np.asarray(xz.images[0].get_array()), source[:, 24, :])
    starts = sorted(line.get_xdata()[0] for line in drawn[0].axes[3].lines if _upright(line))
    assert starts == [4.0, 8.0, 12.0]  # x patches start at voxels 8, 16, 24 of 0.5 um


def _upright(line) -> bool:
    return list(line.get_ydata()) == [0, 1]


def test_of_a_big_volume_the_middle_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from volpatch.report import plot as view

    source = open_source(write_specimen(tmp_path / "a.zarr", (100, 400, 30)))
    assert view._middle_box(source) == Box((10, 40, 0), (90, 360, 30))


def test_volumes_of_other_shapes_are_not_drawn_side_by_side(tmp_path):
    from volpatch.report import plot as view

    sources = [open_source(write_specimen(tmp_path / f"{n}.zarr", (n, 8, 8))) for n in (8, 9)]
    with pytest.raises(SettingError, match="of one shape"):
        view.planes(*sources, tmp_path / "a.png")
