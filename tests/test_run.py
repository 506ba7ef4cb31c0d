"""Store-to-store runs: the bits of the in-memory result, whatever the pieces and the workers."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext

import numpy as np
import pytest
import xarray as xr
import yaozarrs
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ome_zarr_models import open_ome_zarr

import volpatch
from tests import helpers_functions as functions
from tests.helpers_stores import distinct, image, objects, same, store
from volpatch import (
    ClippedWarning,
    FunctionError,
    IncompleteError,
    RunError,
    SettingError,
    SourceError,
    TargetError,
    VolpatchError,
    map_patches,
)

SHAPE = (37, 41, 53)


def run(function, source, target, **options):
    options = {"durability": "process", "workers": 2, "memory_limit": "4GiB", **options}
    return volpatch.run(function, source, target, **options)


def expected(function, volume, options):
    """The result in memory: chunks, regions, workers and batches play no part in it."""
    names = ("patch", "stride", "overlap", "window", "edge", "dtype", "input_dtype", "fill_value",
             "finalize", "channel_axis", "roi", "pad_mode", "offset")  # fmt: skip
    chosen = {name: options[name] for name in names if name in options}
    return map_patches(function, volume, chosen.pop("patch"), **chosen)


@pytest.fixture(scope="module")
def volume():
    return distinct(SHAPE)


@pytest.fixture(scope="module")
def source(tmp_path_factory, volume):
    return store(tmp_path_factory.mktemp("source") / "in.zarr", volume)


# -- the same bits -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (5, 16, 9)},
        {"chunks": 8, "shards": (16, 24, 32)},
        {"chunks": 8, "shards": 16, "region": 16},
        {"chunks": 16, "region": (16, 32, 64), "workers": 4},
        {"chunks": 16, "region": (64, 16, 16), "workers": 1},
        {"region": (64, 64, 64)},
        {"batch_size": 1},
        {"batch_size": 3, "workers": 1},
        {"batch_size": 7},
        {"batch_size": 64, "workers": 4, "chunks": 16},
        {"edge": "pad", "chunks": 16, "region": 16},
        {"edge": "pad", "pad_mode": "constant", "patch": (50, 12, 60), "overlap": "25%"},
        {"edge": "drop", "fill_value": -5, "chunks": 16, "region": 16},
        {"window": "crop", "chunks": 16, "region": 16},
        {"window": ("gaussian", "triangle", "constant"), "stride": (3, 5, 11)},
        {"window": np.hamming, "overlap": "25%"},
        {"stride": 15, "fill_value": 3, "chunks": 16, "region": 16},
        {"offset": (1, 2, 3), "fill_value": 0.5, "chunks": 16},
        {"input_dtype": "float64"},
        {"dtype": "float16"},
        {"dtype": "uint8"},
        {"concurrent_calls": 1, "workers": 3},
        {"codec": "none"},
    ],
    ids=lambda options: ",".join(options) or "defaults",
)
def test_a_run_has_the_bits_of_the_result_in_memory(source, volume, tmp_path, options):
    options = {"patch": 12, "overlap": "50%", **options}
    if "stride" in options:
        del options["overlap"]
    function = functions.shade_batch if options.get("batch_size") else functions.shade
    report = run(function, source, tmp_path / "out.zarr", **options)
    clipped = report.stats.clipped
    told = pytest.warns(ClippedWarning, match=f"^{clipped} values") if clipped else nullcontext()
    with told:
        wanted = expected(functions.shade, volume, options)
    same(image(tmp_path / "out.zarr"), wanted)
    assert report.to_json()["shape"] == list(SHAPE)


@pytest.mark.parametrize("chunks", [16, 24, 33, 60, (1, 41, 53), (37, 7, 7)])
@pytest.mark.parametrize("shards", [None, 2])
def test_chunks_of_the_source_do_not_show(tmp_path, volume, chunks, shards):
    chunks = tuple(int(min(c, n)) for c, n in zip(np.broadcast_to(chunks, 3), SHAPE, strict=True))
    packed = None if shards is None else tuple(c * shards for c in chunks)
    path = store(tmp_path / "in.zarr", volume, chunks, shards=packed)
    options = {"patch": 10, "overlap": "40%", "chunks": 16, "region": (32, 16, 48)}
    run(functions.shade, path, tmp_path / "out.zarr", **options)
    same(image(tmp_path / "out.zarr"), expected(functions.shade, volume, options))


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "int32", "float16", ">f4", "float64", "bool"])
@pytest.mark.parametrize("window", ["hann", "crop"])
def test_every_dtype_of_the_source(tmp_path, dtype, window):
    volume = distinct((23, 30, 19), dtype)
    path = store(tmp_path / "in.zarr", volume, 8)
    options = {"patch": 8, "stride": 5, "window": window, "input_dtype": "float32", "chunks": 8}
    run(functions.shade, path, tmp_path / "out.zarr", **options)
    same(image(tmp_path / "out.zarr"), expected(functions.shade, volume, options))
    if window == "crop":
        del options["input_dtype"]
        run(functions.identity, path, tmp_path / "same.zarr", **options)
        same(image(tmp_path / "same.zarr"), volume.astype(volume.dtype.newbyteorder("=")))


@st.composite
def jobs(draw):
    ndim = draw(st.integers(2, 4))
    shape = tuple(draw(st.integers(3, 30 if ndim < 4 else 12)) for _ in range(ndim))
    lead = draw(st.integers(0, 2)) if ndim == 4 else draw(st.integers(0, ndim - 2))
    patched = shape[lead:]
    edge = draw(st.sampled_from(["shift", "pad"]))
    patch = tuple(draw(st.integers(2, min(n, 12) if edge == "shift" else 14)) for n in patched)
    chunks = tuple(draw(st.integers(4, 16)) for _ in patched)
    times = tuple(draw(st.integers(1, 2)) for _ in patched)
    unit = tuple(c * k for c, k in zip(chunks, times, strict=True))
    options = {
        "patch": patch,
        "stride": tuple(draw(st.integers(max(1, p // 3), p)) for p in patch),
        "window": draw(st.sampled_from(["hann", "triangle", "gaussian", "crop"])),
        "edge": edge,
        "chunks": chunks,
        "shards": unit if draw(st.booleans()) else None,
        "region": tuple(u * draw(st.integers(1, 3)) for u in unit),
        "workers": draw(st.integers(1, 3)),
        "batch_size": draw(st.sampled_from([None, 1, 4])),
    }
    if draw(st.booleans()):
        starts = [draw(st.integers(0, n - 1)) for n in shape]
        options["roi"] = [
            slice(a, draw(st.integers(a + 1, n))) for a, n in zip(starts, shape, strict=True)
        ]
    return shape, tuple(draw(st.integers(3, 20)) for _ in shape), options


@given(jobs())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_job_has_the_bits_of_the_result_in_memory(tmp_path_factory, job):
    shape, chunks, options = job
    folder = tmp_path_factory.mktemp("job")
    volume = distinct(shape, "float32")
    path = store(folder / "in.zarr", volume, chunks)
    function = functions.shade_batch if options["batch_size"] else functions.shade
    run(function, path, folder / "out.zarr", **options)
    same(image(folder / "out.zarr"), expected(functions.shade, volume, options))


@pytest.mark.parametrize("shards", [None, 16])
def test_stored_objects_are_the_same_for_regions_workers_and_backends(source, tmp_path, shards):
    options = {"patch": 12, "chunks": 8, "shards": shards, "durability": "process"}
    variants = [
        {"region": 16, "workers": 1},
        {"region": (64, 64, 64), "workers": 1},
        {"region": (16, 48, 32), "workers": 4},
        {"backend": "processes", "workers": 2},
    ]
    found = []
    for number, variant in enumerate(variants):
        target = tmp_path / f"{number}.zarr"
        run(functions.shade, source, target, **options, **variant)
        found.append(objects(target))
    assert len(found[0]) == np.prod([-(-n // (shards or 8)) for n in SHAPE])
    assert all(one == found[0] for one in found)


def test_a_last_chunk_shorter_than_the_halo(tmp_path):
    volume = distinct((65, 65, 34))
    path = store(tmp_path / "in.zarr", volume, 32)
    options = {"patch": 16, "overlap": 4, "chunks": 32, "region": 32}
    run(functions.shade, path, tmp_path / "out.zarr", **options)
    same(image(tmp_path / "out.zarr"), expected(functions.shade, volume, options))


def test_images_are_streamed_along_y(tmp_path):
    volume = distinct((150, 130))
    path = store(tmp_path / "in.zarr", volume, (32, 48))
    for window in ("hann", "crop"):
        options = {"patch": (16, 20), "stride": 7, "window": window, "chunks": 32, "region": 64}
        run(functions.shade, path, tmp_path / f"{window}.zarr", **options)
        same(image(tmp_path / f"{window}.zarr"), expected(functions.shade, volume, options))


def test_labels_pass_crop_in_processes(tmp_path, source, volume):
    options = {"patch": 12, "window": "crop", "chunks": 16}
    run(functions.labels, source, tmp_path / "out.zarr", backend="processes", **options)
    same(image(tmp_path / "out.zarr"), expected(functions.labels, volume, options))


# -- channels, leading axes, roi -----------------------------------------------------------


def test_channels_out_come_before_z_and_finalize_may_drop_them(tmp_path, source, volume):
    options = {"patch": 12, "chunks": 16, "region": 16}
    run(functions.channels, source, tmp_path / "c.zarr", **options)
    wanted = expected(functions.channels, volume, options)
    assert wanted.shape == (3, *SHAPE)
    same(image(tmp_path / "c.zarr"), wanted)
    options["finalize"] = functions.brightest
    report = run(functions.channels, source, tmp_path / "f.zarr", **options)
    same(image(tmp_path / "f.zarr"), expected(functions.channels, volume, options))
    same(image(tmp_path / "f.zarr"), wanted.argmax(0).astype("uint8"))
    assert report.dtype == "uint8"


@pytest.mark.parametrize("roi", [None, "t=1:,c=0:1,y=3:30", "t=0,x=-9:"])
def test_leading_axes_are_done_index_by_index(tmp_path, roi):
    volume = distinct((2, 3, 14, 33, 20))
    path = store(tmp_path / "in.zarr", volume, (1, 2, 8, 16, 16))
    options = {"patch": 8, "chunks": 8, "roi": roi}
    run(functions.shade, path, tmp_path / "out.zarr", **options)
    parts = np.stack([[map_patches(functions.shade, c, 8) for c in t] for t in volume])
    box = {
        None: np.s_[:],
        "t=1:,c=0:1,y=3:30": np.s_[1:, 0:1, :, 3:30],
        "t=0,x=-9:": np.s_[0:1, ..., -9:],
    }[roi]
    same(image(tmp_path / "out.zarr"), np.ascontiguousarray(parts[box]))
    assert all(n == 1 for n in zarr.open_array(tmp_path / "out.zarr/scale0/image").chunks[:2])


@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_channel_axis_is_handed_whole(tmp_path, batch_size):
    volume = distinct((2, 3, 14, 33), "float32")
    path = store(tmp_path / "in.zarr", volume, (1, 2, 8, 16), dims="tcyx")

    def batch(given):
        return np.stack([functions.mean_of_channels(one) for one in given])

    function = functions.mean_of_channels if batch_size is None else batch
    options = {"patch": 8, "chunks": 8, "channel_axis": "c", "batch_size": batch_size}
    run(function, path, tmp_path / "out.zarr", **options)
    wanted = [map_patches(functions.mean_of_channels, t, (8, 8), channel_axis=0) for t in volume]
    same(image(tmp_path / "out.zarr"), np.stack(wanted))
    run(function, path, tmp_path / "two.zarr", roi="c=1:3,x=5:20", **options)
    wanted = [map_patches(functions.mean_of_channels, t[1:3], (8, 8), channel_axis=0)
              for t in volume]  # fmt: skip
    same(image(tmp_path / "two.zarr"), np.ascontiguousarray(np.stack(wanted)[..., 5:20]))


@pytest.mark.parametrize("channel_axis", [None, "t"])
def test_axes_in_an_odd_order_of_roles(tmp_path, channel_axis):
    volume = distinct((2, 9, 14, 5))
    path = store(tmp_path / "in.zarr", volume, 8, dims="tzyx")
    function = functions.shade if channel_axis is None else functions.mean_of_channels
    options = {"patch": {"z": 4, "y": 6}, "chunks": 8, "channel_axis": channel_axis}
    run(function, path, tmp_path / "out.zarr", **options)
    planes = np.moveaxis(volume, 3, 0)  # each index of x on its own, and put back in its place
    if channel_axis is None:
        planes = np.moveaxis(planes, 1, 0)
    wanted = map_patches(
        function, np.ascontiguousarray(planes), (4, 6), channel_axis=channel_axis and 1
    )
    same(image(tmp_path / "out.zarr"), np.moveaxis(wanted, -3, -1))


def test_the_function_returns_channels_over_a_looped_channel_axis(tmp_path):
    path = store(tmp_path / "in.zarr", distinct((2, 9, 9, 9)), 8)
    with pytest.raises(VolpatchError, match=r"channel_axis='c', or choose one with roi='c=0'"):
        run(functions.channels, path, tmp_path / "out.zarr", patch=4)
    assert not os.path.lexists(tmp_path / "out.zarr")
    assert not os.path.lexists(tmp_path / "out.zarr.volpatch")


def test_a_roi_moves_the_origin(tmp_path):
    folder = tmp_path / "in.zarr"
    volume = distinct((20, 30, 40))
    scale = [2.0, 0.5, 0.5]
    group = zarr.create_group(folder, zarr_format=3, attributes={"ome": {
        "version": "0.5",
        "multiscales": [{
            "axes": [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"],
            "datasets": [{"path": "0", "coordinateTransformations": [
                {"type": "scale", "scale": scale},
                {"type": "translation", "translation": [100.0, 10.0, 1.0]},
            ]}],
        }],
    }})  # fmt: skip
    group.create_array("0", data=volume, chunks=(8, 8, 8), dimension_names=list("zyx"))
    options = {"patch": 8, "roi": "z=3:17,x=10:", "chunks": 8}
    run(functions.shade, folder, tmp_path / "out.zarr", **options)
    same(image(tmp_path / "out.zarr"), np.ascontiguousarray(
        map_patches(functions.shade, volume, 8)[3:17, :, 10:]))  # fmt: skip
    opened = volpatch.open_volume(tmp_path / "out.zarr")
    whole = volpatch.open_volume(folder)
    for dim, part in [("z", slice(3, 17)), ("y", slice(None)), ("x", slice(10, None))]:
        np.testing.assert_allclose(opened[dim], whole[dim][part])
        assert opened[dim].attrs == whole[dim].attrs == {"units": "micrometer"}


def test_outputs_open_elsewhere(tmp_path, source):
    for name, options in [("z", {}), ("c", {"roi": "z=3:20"})]:
        target = tmp_path / f"{name}.ome.zarr"
        function = functions.shade if name == "z" else functions.channels
        run(function, source, target, patch=12, chunks=16, shards=32, **options)
        tree = xr.open_datatree(target, engine="zarr")
        assert tree["scale0/image"].dims == (("c",) if name == "c" else ()) + ("z", "y", "x")
        np.testing.assert_array_equal(tree["scale0/image"], image(target))
        yaozarrs.validate_zarr_store(str(target))
        assert open_ome_zarr(zarr.open_group(target, mode="r")) is not None
        again = volpatch.open_volume(target)
        np.testing.assert_array_equal(again, image(target))


# -- what the function gives back ----------------------------------------------------------


def test_the_dtype_is_taken_from_a_trial(tmp_path, source):
    plans = []
    report = run(functions.shade, source, tmp_path / "o.zarr", patch=12, announce=plans.append)
    assert report.dtype == "float32"
    assert plans[0].blending.complete
    assert plans[0].func_memory is not None
    assert plans[0].resident > 0


def test_labels_under_a_weighted_window_are_refused_before_anything_is_written(tmp_path, source):
    with pytest.raises(SettingError, match=r"window='crop'.*dtype='int32'"):
        run(functions.labels, source, tmp_path / "out.zarr", patch=12)
    assert os.listdir(tmp_path) == []


def test_integers_are_rounded_and_clipped_and_that_is_counted(tmp_path):
    volume = np.arange(8 * 12 * 8, dtype="float32").reshape(8, 12, 8) / 2 - 20
    path = store(tmp_path / "in.zarr", volume, 8)
    report = run(functions.identity, path, tmp_path / "out.zarr", patch=4, overlap=0, dtype="uint8")
    same(image(tmp_path / "out.zarr"), np.clip(np.rint(volume), 0, 255).astype("uint8"))
    assert report.stats.clipped == ((np.rint(volume) < 0) | (np.rint(volume) > 255)).sum() > 0
    assert "clipped   " + f"{report.stats.clipped:,}" in repr(report)


def test_chunks_of_zeros_are_stored_too(tmp_path, source):
    run(functions.zeros, source, tmp_path / "out.zarr", patch=12, chunks=16)
    assert len(objects(tmp_path / "out.zarr")) == 3 * 3 * 4
    assert not image(tmp_path / "out.zarr").any()


def test_the_report_adds_up(tmp_path, source):
    plans = []
    report = run(functions.shade, source, tmp_path / "out.zarr", patch=12, chunks=16,
                 region=(16, 48, 32), announce=plans.append)  # fmt: skip
    figures = json.loads(json.dumps(report.to_json()))
    plan = plans[0]
    assert figures["patches"] == plan.patches_computed == figures["calls"]
    assert figures["regions"] == plan.n_regions
    assert figures["predicted_bytes"] == plan.peak
    assert figures["peak_bytes"] > 0
    assert figures["bytes_written"] == np.prod(SHAPE) * 4
    assert figures["encoded_bytes"] == sum(
        p.stat().st_size for p in (tmp_path / "out.zarr/scale0/image/c").rglob("*") if p.is_file()
    )
    assert figures["bytes_read"] >= np.prod(SHAPE) * 2
    assert set(figures["phase_seconds"]) == {"read", "cut", "function", "blend", "write"}
    assert all(s > 0 for s in figures["phase_seconds"].values())
    assert sum(figures["phase_seconds"].values()) <= 2 * figures["seconds"]
    assert figures["voxels_per_second"] == pytest.approx(np.prod(SHAPE) / figures["seconds"])
    assert figures["target"] == str(tmp_path / "out.zarr")


# -- functions: factories, calls, failures -------------------------------------------------


def test_a_factory_runs_once_per_process(tmp_path, source, volume, monkeypatch):
    monkeypatch.setenv("VOLPATCH_TEST_FOLDER", str(tmp_path / "made"))
    for backend, processes in [("threads", 1), ("processes", 2)]:
        (tmp_path / "made").mkdir()
        target = tmp_path / f"{backend}.zarr"
        run(None, source, target, setup=functions.make_and_count, patch=12, chunks=16, region=16,
            backend=backend)  # fmt: skip
        made = [p.name.split("-")[0] for p in (tmp_path / "made").iterdir()]
        assert len(made) == len(set(made)) == processes
        same(image(target), map_patches(functions.shade, volume, 12))
        for p in (tmp_path / "made").iterdir():
            p.unlink()
        (tmp_path / "made").rmdir()


@pytest.mark.parametrize(("calls", "most"), [(1, 1), (2, 2), (None, 4)])
def test_calls_bounds_simultaneous_calls(tmp_path, source, calls, most):
    crowd = functions.Crowd()
    run(crowd, source, tmp_path / "out.zarr", patch=16, chunks=16, region=16, workers=4,
        concurrent_calls=calls, func_version="1")  # fmt: skip
    assert crowd.most == most


def test_a_factory_means_one_call_at_a_time_unless_told_otherwise(tmp_path, source):
    crowd = functions.Crowd()
    options = {"patch": 16, "chunks": 16, "region": 16, "workers": 4, "setup": lambda: crowd}
    options["func_version"] = "1"  # a lock cannot be compared
    run(None, source, tmp_path / "one.zarr", **options)
    assert crowd.most == 1
    run(None, source, tmp_path / "three.zarr", concurrent_calls=3, **options)
    assert crowd.most == 3


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_a_function_that_raises_leaves_no_target_and_a_second_run_succeeds(tmp_path, backend):
    volume = np.zeros((40, 40, 40), "uint16")
    volume[36, 36, 36] = 777
    path = store(tmp_path / "in.zarr", volume, 16)
    target = tmp_path / "out.zarr"
    options = {"patch": 4, "overlap": 0, "chunks": 16, "region": 16, "backend": backend}
    with pytest.raises(
        IncompleteError,
        match=r"1 of 27 regions failed \(26\); all others .* are done and kept. Region 26: .*"
        r"fail_at_noon raised ValueError on patch \(9, 9, 9\) at \[36:40, 36:40, 36:40\]: "
        r"the sun is too high.*volpatch retry .*out.zarr`",
    ) as caught:
        run(functions.fail_at_noon, path, target, **options)
    cause = caught.value.__cause__
    assert isinstance(cause, FunctionError)
    if backend == "threads":
        assert isinstance(cause.__cause__, ValueError)
    else:
        assert "in a worker process" in cause.__notes__[0]
        assert "the sun is too high" in cause.__notes__[0]
    assert not os.path.lexists(target)
    with pytest.raises(TargetError, match=r"holds a run of another plan: function.target was"):
        run(functions.identity, path, target, dtype="uint16", **options)
    run(functions.identity, path, target, dtype="uint16", overwrite=True, **options)
    same(image(target), volume)
    assert sorted(os.listdir(tmp_path)) == ["in.zarr", "out.zarr"]


def test_what_cannot_be_sent_to_processes_is_refused(tmp_path, source):
    with pytest.raises(SettingError, match=r"define it in a module .* backend='threads'"):
        run(lambda p: p, source, tmp_path / "out.zarr", patch=12, backend="processes")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("function", "code"), [("die", 17), ("die_later", 23)])
def test_a_worker_process_that_dies_is_named(tmp_path, source, function, code):
    with pytest.raises(RunError, match=rf"a worker process died \(exit code {code}\)"):
        run(getattr(functions, function), source, tmp_path / "out.zarr", patch=12, chunks=16,
            backend="processes")  # fmt: skip
    assert not os.path.lexists(tmp_path / "out.zarr")


def test_an_error_that_cannot_be_pickled_still_says_its_words(tmp_path, source):
    with pytest.raises(FunctionError, match=r"raised AwkwardError on patch .*: this and that"):
        run(functions.fail_awkwardly, source, tmp_path / "out.zarr", patch=12, backend="processes")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda p: None, r"returned None for patch \(.*\) at \[.*wanted a numpy array"),
        (lambda p: p[1:].astype("f4"), r"returned shape \(11, 12, 12\).*wanted \(12, 12, 12\)"),
        (lambda p: p.tolist(), "returned a builtins.list"),
        (lambda p: p.astype("complex64"), "returned dtype complex64"),
    ],
)
def test_a_wrong_answer_is_named_and_nothing_is_written(tmp_path, source, function, message):
    with pytest.raises(FunctionError, match=message):
        run(function, source, tmp_path / "out.zarr", patch=12)
    assert os.listdir(tmp_path) == []


# -- sources and targets -------------------------------------------------------------------


def test_what_open_volume_returned_is_a_source(tmp_path, source, volume):
    opened = volpatch.open_volume(source)
    run(functions.shade, opened, tmp_path / "out.zarr", patch=12)
    same(image(tmp_path / "out.zarr"), map_patches(functions.shade, volume, 12))
    for changed in (opened[:20], opened + 1, opened.transpose("x", "y", "z"), opened.compute()):
        with pytest.raises(SourceError, match="that was sliced, computed or made otherwise; roi="):
            run(functions.shade, changed, tmp_path / "no.zarr", patch=12)
    with pytest.raises(SourceError, match="got a NumPy array; map_patches computes it"):
        run(functions.shade, volume, tmp_path / "no.zarr", patch=12)
    assert os.listdir(tmp_path) == ["out.zarr"]


def test_bad_settings_write_nothing(tmp_path, source):
    for options, message in [
        ({"pach": 12}, "there is no option 'pach'; did you mean 'patch'"),
        ({"patch": 64}, "patch 64 on z does not fit its 37 voxels.*edge='pad'"),
        ({"patch": 12, "stride": 0}, "stride on z must be at least 1"),
        ({"patch": 12, "stride": 4, "overlap": 8}, "give only one"),
        ({"patch": 12, "overlap": "100%"}, "overlap 100% on z must be"),
        ({"patch": 12, "window": "hamming"}, "window must be one of"),
        ({"patch": 12, "edge": "wrap"}, "edge must be one of"),
        ({"patch": 12, "stride": 20}, "no patch covers .* give fill_value=VALUE"),
        ({"patch": 12, "memory_limit": "9MiB"}, "over the limit of 9.0 MiB.*memory_limit='"),
        ({"patch": 12, "chunks": 8, "shards": 12}, "must be multiples of chunks"),
        ({"patch": (12,) * 4}, "has 4 sizes, but the volume has the axes"),
        ({"patch": 12, "progress": "loud"}, "progress must be one of"),
        (
            {"patch": 12, "durability": "forever"},
            "durability must be one of full, process; got 'forever'",
        ),
    ]:
        with pytest.raises(VolpatchError, match=message):
            run(functions.shade, source, tmp_path / "out.zarr", **options)
        assert os.listdir(tmp_path) == [], options
    with pytest.raises(SettingError, match="give one of func and setup"):
        run(None, source, tmp_path / "out.zarr")
    with pytest.raises(SourceError, match="no such volume"):
        run(functions.shade, tmp_path / "none.zarr", tmp_path / "out.zarr")


def test_overwrite_replaces_an_earlier_output_once_the_new_one_is_there(tmp_path, source, volume):
    target = tmp_path / "out.zarr"
    run(functions.shade, source, target, patch=12)
    before = objects(target)
    with pytest.raises(TargetError, match="overwrite"):
        run(functions.zeros, source, target, patch=12)
    assert objects(target) == before
    with pytest.raises(FunctionError):
        run(functions.fail_awkwardly, source, target, patch=12, overwrite=True)
    assert objects(target) == before
    run(functions.zeros, source, target, patch=12, overwrite=True)
    assert not image(target).any()
    assert os.listdir(tmp_path) == ["out.zarr"]


def test_a_target_in_at_or_around_the_source_is_refused(tmp_path, volume):
    source = store(tmp_path / "in.zarr", volume)
    link = tmp_path / "link"
    link.symlink_to(source)
    before = sorted(p.name for p in source.rglob("*"))
    for target in (source, source / "out.zarr", link, link / "out.zarr"):
        with pytest.raises(TargetError):
            run(functions.shade, source, target, patch=12, overwrite=True)
    assert sorted(p.name for p in source.rglob("*")) == before
    assert sorted(os.listdir(tmp_path)) == ["in.zarr", "link"]


def test_a_tree_is_not_discarded_while_a_run_is_at_work_in_it(tmp_path):
    volume = np.random.default_rng(0).random((16, 16, 16), dtype="float32")
    path = store(tmp_path / "in.zarr", volume, 8)
    calls = []

    def ask_again(patch):
        calls.append(1)
        if len(calls) == 4:  # after the trial
            for attempt in (
                lambda: run(functions.identity, path, tmp_path / "out.zarr", overwrite=True),
                lambda: volpatch.clean(tmp_path / "out.zarr"),
            ):
                with pytest.raises(TargetError, match=r"another run is writing .*out.zarr"):
                    attempt()
        return patch

    run(ask_again, path, tmp_path / "out.zarr", patch=8)
    assert len(calls) > 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.zarr", "out.zarr"]


def test_an_output_of_a_function_that_takes_no_memory_can_be_mended(tmp_path, source, monkeypatch):
    monkeypatch.setattr(
        volpatch.core.resources, "growth", lambda call: 0 if call() is not None else 1
    )
    target = tmp_path / "out.zarr"
    run("tests.helpers_functions:shade", source, target, patch=12, chunks=16)
    before = objects(target)
    (target / "scale0/image/c/1/1/1").unlink()
    volpatch.retry(target, workers=1)
    assert objects(target) == before
