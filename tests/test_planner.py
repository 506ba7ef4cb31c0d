"""Plans: arithmetic against brute force, promises on memory, and jobs that repeat exactly."""

from __future__ import annotations

import itertools
import json
import math
import re
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import zarr
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import volpatch
from volpatch import GridError, MemoryLimitError, SettingError
from volpatch.core.parse import parse_bytes
from volpatch.planning import job
from volpatch.planning.fit import _cost
from volpatch.storage.volume import StoredAxes, make_source

DIMS = ("t", "c", "z", "y", "x")
MIB = 2**20


def stored(shape, dtype="uint16", chunks=16, shards=None, dims=None):
    """A volume that only says what it is; planning reads nothing of it."""
    n = len(shape)
    chunks = (chunks,) * n if isinstance(chunks, int) else chunks
    axes = StoredAxes(
        dims or DIMS[-n:], tuple(shape), chunks, shards, (1.0,) * n, (0.0,) * n, (None,) * n
    )
    return make_source(
        "volume.zarr", kind="made up", level=0, axes=axes, dtype=np.dtype(dtype), reader=None
    )


@st.composite
def jobs(draw):
    """A source and options of a job on it: everything that shapes regions and memory."""
    ndim = draw(st.integers(2, 3))
    shape = tuple(draw(st.integers(1, 60)) for _ in range(ndim))
    sizes = st.integers(1, 20)
    patch = tuple(draw(st.integers(1, min(20, n))) for n in shape)
    chunks = tuple(draw(sizes) for _ in shape)
    options = {
        "patch": patch,
        "stride": tuple(draw(st.integers(1, p)) for p in patch),
        "window": draw(st.sampled_from(["hann", "crop"])),
        "edge": draw(st.sampled_from(["shift", "pad"])),
        "chunks": chunks,
        "dtype": "uint16",
        "workers": draw(st.integers(1, 4)),
        "backend": draw(st.sampled_from(["threads", "processes"])),
        "batch_size": draw(st.sampled_from([None, 1, 5])),
    }
    if draw(st.booleans()):
        options["shards"] = tuple(c * draw(st.integers(1, 3)) for c in chunks)
    if draw(st.booleans()):
        starts = [draw(st.integers(0, n - 1)) for n in shape]
        stops = [draw(st.integers(a + 1, n)) for a, n in zip(starts, shape, strict=True)]
        options["roi"] = [slice(a, b) for a, b in zip(starts, stops, strict=True)]
    source = stored(shape, chunks=tuple(draw(sizes) for _ in shape))
    return source, options


def boxes(plan):
    return [plan.region_box(i) for i in range(plan.n_regions)]


def useful(plan, box):
    """Numbers of the patches, per axis, that give a value to a voxel of a box, one by one."""
    for axis, start, stop in zip(plan.blending.grid.axes, box.start, box.stop, strict=True):
        spans = [axis.own(i) if plan.blending.crop else axis.span(i) for i in range(axis.count)]
        yield [i for i, (a, b) in enumerate(spans) if max(a, start) < min(b, stop)]


# -- arithmetic ----------------------------------------------------------------------------


@given(jobs())
def test_regions_tile_the_roi_and_each_write_unit_belongs_to_one(drawn):
    source, options = drawn
    plan = volpatch.plan(source, **options, memory_limit="8GiB")
    visits = np.zeros(plan.box.stop, int)
    for _, box in boxes(plan):
        visits[box.slices] += 1
        for a, b, begin, end, unit in zip(
            box.start, box.stop, plan.box.start, plan.box.stop, plan.unit, strict=True
        ):
            assert (a - begin) % unit == 0
            assert (b - begin) % unit == 0 or b == end
    assert (visits[plan.box.slices] == 1).all()
    assert visits.sum() == plan.box.size


@given(jobs())
def test_counts_are_those_of_walking_over_every_region(drawn):
    source, options = drawn
    plan = volpatch.plan(source, **options, memory_limit="8GiB")
    assert plan.patches_owned == math.prod(map(len, useful(plan, plan.box)))
    assert plan.patches_computed == sum(
        math.prod(map(len, useful(plan, box))) for _, box in boxes(plan)
    )
    assert plan.redundancy == plan.patches_computed / plan.patches_owned >= 1
    assert plan.bytes_read >= plan.bytes_needed > 0
    assert plan.bytes_written == plan.box.size * 2


@given(jobs())
@settings(max_examples=40)
def test_bytes_read_are_those_of_the_chunks_under_every_region(drawn):
    source, options = drawn
    plan = volpatch.plan(source, **options, memory_limit="8GiB")
    if source.chunks[0] > plan.read_layer:
        return  # thick chunks are decoded again for each layer; the plan rounds that number
    total = 0
    for _, box in boxes(plan):
        voxels = 1
        for axis, numbers, chunk in zip(
            plan.blending.grid.axes, useful(plan, box), source.chunks, strict=True
        ):
            low = axis.start(numbers[0]) // chunk
            high = -(-min(axis.start(numbers[-1]) + axis.patch, axis.size) // chunk)
            voxels *= min(high * chunk, axis.size) - low * chunk
        total += voxels * 2
    assert plan.bytes_read == total


@given(st.data())
@settings(max_examples=60)
def test_sums_over_many_regions_are_those_of_walking_over_each(data):
    size = data.draw(st.integers(400, 3000))
    patch = data.draw(st.integers(1, 40))
    edge = data.draw(st.sampled_from(["shift", "pad", "drop"]))
    options = {
        "patch": (patch, 1),
        "stride": (data.draw(st.integers(1, 50)), 1),
        "offset": (data.draw(st.sampled_from([0, 7, 300])), 0),
        "window": data.draw(st.sampled_from(["hann", "crop"])),
        "edge": (edge, "shift"),
        "fill_value": 0,
        "chunks": (unit := data.draw(st.integers(1, 20)), 1),
        "region": (unit * data.draw(st.integers(1, 3)), 1),
        "roi": [slice(data.draw(st.integers(0, 90)), size - data.draw(st.integers(0, 90))), 0],
        "dtype": "uint16",
        "memory_limit": "8GiB",
    }
    options["roi"][1] = slice(0, 1)
    source = stored((size, 1), chunks=(data.draw(st.integers(1, 90)), 1))
    plan = volpatch.plan(source, **options)
    counts, voxels, (axis, _) = 0, 0, plan.blending.grid.axes
    spans = [axis.own(i) if plan.blending.crop else axis.span(i) for i in range(axis.count)]
    for _, box in boxes(plan):
        start, stop = box.start[0], box.stop[0]
        near = [i for i, (a, b) in enumerate(spans) if max(a, start) < min(b, stop)]
        counts += len(near)
        if near:
            chunk = source.chunks[0]
            low = axis.start(near[0]) // chunk * chunk
            end = min(axis.start(near[-1]) + axis.patch, axis.size)
            voxels += min(-(-end // chunk) * chunk, axis.size) - low
    assert plan.patches_computed == counts
    assert plan.bytes_read == 2 * voxels * max(1, source.chunks[0] // plan.read_layer)


@pytest.mark.parametrize(
    ("region", "redundancy"),
    [
        ((128, 128, 128), 1.95),
        ((256, 256, 256), 1.42),
        ((512, 512, 512), 1.20),
        ((1024, 512, 512), 1.16),
        ((2048, 1024, 1024), 1.08),
    ],
)
def test_redundancy_is_that_of_the_table(region, redundancy):
    plan = volpatch.plan(
        stored((2**16,) * 3, chunks=128),
        patch=64,
        stride=32,
        region=region,
        chunks=128,
        dtype="uint16",
        memory_limit="1PiB",
    )
    assert math.prod(1 + 32 / r for r in region) == pytest.approx(redundancy, abs=0.005)
    assert plan.redundancy == pytest.approx(redundancy, abs=0.0051)


@pytest.mark.parametrize(("overlap", "calls"), [("50%", 8.0), ("25%", 2.4), (0, 1.0)])
def test_calls_per_voxel(overlap, calls):
    plan = volpatch.plan(stored((512,) * 3), patch=64, overlap=overlap)
    assert round(plan.calls_per_voxel, 1) == calls


def test_each_index_of_the_leading_axes_is_done_on_its_own():
    source = stored((3, 2, 40, 50, 60), dims=DIMS)
    plan = volpatch.plan(source, patch=16, chunks=32, dtype="uint16", roi="t=1:3,c=1,z=8:40")
    assert plan.lead_counts == (2, 1)
    assert plan.out_shape == (2, 1, 32, 50, 60)
    one = volpatch.plan(stored((40, 50, 60)), patch=16, chunks=32, dtype="uint16", roi="8:40,:,:")
    assert plan.patches_owned == 2 * one.patches_owned
    leads = {lead for lead, _ in boxes(plan)}
    assert leads == {(1, 1), (2, 1)}
    per_lead = plan.n_regions // 2
    assert [lead for lead, _ in boxes(plan)] == [(1, 1)] * per_lead + [(2, 1)] * per_lead


@pytest.mark.parametrize(
    ("shape", "patch"), [((5000, 1), (64, 1)), ((1, 5000), (1, 64)), ((300, 400), 64)]
)
def test_flat_and_thin_volumes_have_plans(shape, patch):
    source = stored(shape, chunks=(min(64, shape[0]), min(64, shape[1])))
    plan = volpatch.plan(source, patch=patch, dtype="uint16", workers=2, chunks=64)
    assert sum(box.size for _, box in boxes(plan)) == math.prod(shape)


# -- what the memory limit does ------------------------------------------------------------


def suggestions(error):
    """The settings that a refusal names, as options."""
    text = str(error.value)
    found = [{"memory_limit": m} for m in re.findall(r"memory_limit='([^']+)'", text)]
    if "workers=1" in text:
        found.append({"workers": 1})
    return found


@given(jobs(), st.floats(0, 1))
def test_a_plan_stays_under_its_limit_or_the_refusal_names_what_fits(drawn, part):
    source, options = drawn
    roomy = volpatch.plan(source, **options, memory_limit="1PiB")
    floor = roomy.interpreters
    limit = max(1, int(0.98 * floor + part * (1.05 * roomy.peak - 0.98 * floor)))
    try:
        plan = volpatch.plan(source, **options, memory_limit=limit)
    except MemoryLimitError as error:
        wrapped = pytest.ExceptionInfo.from_exception(error)
        ways = suggestions(wrapped)
        assert ways
        for way in ways:
            fitting = volpatch.plan(source, **{**options, "memory_limit": limit, **way})
            assert fitting.peak <= fitting.memory_limit
    else:
        assert plan.peak <= limit
        assert plan.peak == plan.interpreters + plan.running * sum(plan.memory.values())


@given(jobs(), st.floats(0, 1), st.floats(1, 3))
def test_more_memory_never_makes_a_slower_plan(drawn, part, factor):
    source, options = drawn
    roomy = volpatch.plan(source, **options, memory_limit="1PiB")
    floor = roomy.interpreters
    limit = int(floor + part * (roomy.peak - floor))
    try:
        small = volpatch.plan(source, **options, memory_limit=limit)
    except MemoryLimitError:
        reject()
    large = volpatch.plan(source, **options, memory_limit=int(limit * factor))
    assert _cost(large) <= 1.002 * _cost(small)


@pytest.mark.parametrize("limit", ["400MiB", "600MiB", "1GiB", "3GiB", "12GiB"])
def test_the_planner_uses_what_it_is_given(limit):
    source = stored((4096, 4096, 4096), chunks=64)
    plan = volpatch.plan(
        source,
        patch=64,
        chunks=64,
        dtype="uint16",
        memory_limit=limit,
        workers=2,
        func_memory="8MiB",
    )
    assert plan.region[0] >= 2048
    assert plan.peak <= parse_bytes(limit)
    if limit != "400MiB":
        assert plan.peak > 0.6 * parse_bytes(limit)


def test_a_wider_face_is_chosen_under_a_larger_limit():
    source = stored((4096, 4096, 4096), chunks=64)
    factors = [
        volpatch.plan(
            source, patch=64, chunks=64, dtype="uint16", memory_limit=m, workers=2
        ).redundancy
        for m in ("400MiB", "600MiB", "1GiB", "3GiB", "12GiB")
    ]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] > 1.15 > 1.05 > factors[-1]


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(256, 256, 256), (64, 512, 512), (512, 64, 64), (512, 512)])
def test_there_are_as_many_regions_as_workers(shape, workers):
    plan = volpatch.plan(
        stored(shape, chunks=32),
        patch=32,
        chunks=32,
        dtype="uint16",
        workers=workers,
        memory_limit="64GiB",
    )
    assert plan.n_regions >= workers
    assert plan.running == workers


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_an_interpreter_may_come_to_hold_more_than_at_its_trial(backend):
    plan = volpatch.plan(stored((64,) * 3), patch=32, chunks=32, workers=2, backend=backend)
    resident = 400 * MIB
    tried = replace(plan, resident=resident)
    count = 1 if backend == "threads" else 2
    assert tried.interpreters >= plan.interpreters
    assert tried.interpreters - count * resident >= 16 * MIB


def test_a_stride_that_shares_nothing_with_the_chunks_still_fits():
    plan = volpatch.plan(
        stored((8000, 8000, 8000), chunks=64),
        patch=64,
        overlap=7,
        chunks=64,
        dtype="uint16",
        workers=4,
        memory_limit="2GiB",
    )
    assert math.lcm(57, 64) > 3000
    assert plan.peak <= 2 * 2**30
    assert all(r % 64 == 0 for r in plan.region)


def test_fewer_workers_are_taken_where_all_do_not_fit_unless_they_were_asked_for():
    source = stored((512, 2048, 2048), "float32", chunks=128)
    options = {"patch": 64, "chunks": 128, "memory_limit": "600MiB", "func_memory": "60MiB"}
    with pytest.raises(MemoryLimitError, match=r"with 8 workers.*workers=1 or"):
        volpatch.plan(source, workers=8, **options)
    draft = volpatch.plan(source, workers=1, **options)
    assert draft.running == 1


@pytest.mark.parametrize("part", [0.2, 0.6, 0.99])
def test_one_worker_is_only_advised_where_it_fits(part):
    # many workers cut z into pieces thinner than a patch, which one worker would not do
    source = stored((4096, 512, 512), "float32", chunks=16)
    options = {"patch": 64, "chunks": 16, "dtype": "float32", "func_memory": 1}
    options["shards"] = (16, 512, 512)
    alone = volpatch.plan(source, workers=1, memory_limit="1TiB", **options)
    floor = alone.interpreters
    limit = int(floor + part * (alone.peak - floor))
    with pytest.raises(MemoryLimitError) as error:
        volpatch.plan(source, workers=64, memory_limit=limit, **options)
    for way in suggestions(error):
        plan = volpatch.plan(source, **{"workers": 64, "memory_limit": limit, **options, **way})
        assert plan.peak <= plan.memory_limit


@pytest.mark.parametrize(
    ("options", "dominant", "way"),
    [
        ({"memory_limit": "100MiB"}, "interpreters", "memory_limit="),
        ({"batch_size": 4096, "func_memory": 1}, "batch and its result", "a smaller batch_size"),
        ({"func_memory": "3GiB"}, "function", "memory_limit="),
        ({"chunks": (64, 2048, 2048), "func_memory": 1}, "chunks being encoded", "smaller chunks"),
        ({"region": (512, 2048, 2048)}, "input ring|finished|accum", "a smaller region"),
        ({"patch": 512, "chunks": 32, "func_memory": 1}, "batch|ring|accum", "memory_limit="),
    ],
)
def test_a_refusal_names_the_largest_term_and_what_to_do(options, dominant, way):
    source = stored((1024, 2048, 2048), "float32", chunks=64)
    settings_ = {"patch": 64, "chunks": 64, "workers": 2, "memory_limit": "1GiB", **options}
    with pytest.raises(MemoryLimitError, match=f"largest part is ({dominant})") as error:
        volpatch.plan(source, **settings_)
    text = str(error.value)
    assert way in text
    assert re.search(r"needs [\d.]+ [MG]iB .* over the limit of [\d.]+ [MG]iB", text)
    for more in suggestions(error):
        plan = volpatch.plan(source, **{**settings_, **more})
        assert plan.peak <= plan.memory_limit


def test_a_limit_without_a_unit_is_refused():
    with pytest.raises(SettingError, match="memory_limit must be a size with a unit, such as 2GiB"):
        volpatch.plan(stored((64,) * 3), memory_limit="2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"region": 40}, r"region 40 on z is no multiple of the write unit 32.*choose 32"),
        ({"region": (32, 64, 10)}, "region 10 on x .* choose 32"),
        ({"region": (32, 64)}, "region has 2 values"),
        ({"region": {"z": 32, "y": 32}}, "region names the axes"),
        ({"shards": 48}, r"shards=\(48, 48, 48\) must be multiples of chunks=\(32, 32, 32\)"),
        ({"chunks": 0}, "chunks=.* must be at least 1"),
        ({"codec": "gzip"}, "codec='gzip' is not known"),
        ({"workers": 0}, "workers must be a whole number of at least 1"),
        ({"backend": "dask"}, "backend must be one of threads, processes; got 'dask'"),
        ({"memory_limt": "2GiB"}, "no option 'memory_limt'; did you mean 'memory_limit'"),
        ({"dtype": "complex64"}, "dtype complex64 is not supported"),
        ({"dtype": "uint17"}, "dtype 'uint17' is no dtype"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"out_channels": 0}, "."),
    ],
)
def test_settings_that_cannot_be_are_refused(options, message):
    with pytest.raises((SettingError, GridError), match=message):
        volpatch.plan(stored((96,) * 3, chunks=32), **{"patch": 16, "chunks": 32, **options})


# -- huge volumes, and jobs on disk --------------------------------------------------------


def test_10_to_the_15_voxels_are_planned_in_little_memory(tmp_path):
    zarr.create_array(tmp_path / "in.zarr", shape=(100_000,) * 3, dtype="uint8", chunks=(128,) * 3)
    options = {"patch": 64, "memory_limit": "8GiB", "dtype": "uint8", "workers": 4}
    volpatch.plan(tmp_path / "in.zarr", **options)  # what is imported is not the plan's
    tracemalloc.start()
    try:
        plan = volpatch.plan(tmp_path / "in.zarr", tmp_path / "out.zarr", **options)
        text = json.dumps(job.to_json(plan)) + repr(plan) + plan.explain()
        last = plan.region_box(plan.n_regions - 1)[1]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10e6
    assert len(text) < 10_000
    assert last.stop == (100_000,) * 3
    assert plan.bytes_written == 10**15
    assert plan.patches_owned == 3124**3
    assert plan.redundancy < 1.06
    assert plan.peak <= 8 * 2**30


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for name, shape in [("zyx", (90, 100, 70)), ("czyx", (2, 40, 50, 60)), ("yx", (200, 300))]:
        zarr.create_array(
            folder / name,
            shape=shape,
            dtype="uint16",
            chunks=tuple(min(32, n) for n in shape),
            dimension_names=tuple(name),
        )
    return folder


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("zyx", {}),
        ("zyx", {"patch": 16, "overlap": "25%", "window": "crop", "edge": "pad"}),
        ("zyx", {"patch": {"z": 8, "y": 16, "x": 32}, "stride": (4, 8, 16), "workers": 3}),
        (
            "zyx",
            {"patch": (8, 16, 32), "window": ("hann", "constant", "gaussian:2"), "fill_value": 0},
        ),
        ("zyx", {"patch": 16, "stride": 20, "fill_value": 7, "offset": (1, 2, 3), "edge": "drop"}),
        ("zyx", {"patch": 16, "chunks": 8, "shards": (16, 32, 32), "codec": "blosc-lz4"}),
        ("zyx", {"patch": 16, "roi": "z=5:64,x=-20:", "pad_mode": "constant", "pad_value": 3}),
        ("zyx", {"patch": 32, "region": (64, 32, 32), "chunks": 32, "workers": 2}),
        (
            "zyx",
            {"patch": 16, "backend": "processes", "concurrent_calls": 1, "func_memory": "3MiB"},
        ),
        ("zyx", {"patch": 16, "input_dtype": "float32", "batch_size": 5, "out_channels": 3}),
        ("zyx", {"patch": 16, "edge": ("pad", "shift", "pad"), "memory_limit": "700MiB"}),
        ("czyx", {"patch": 16, "channel_axis": "c"}),
        ("czyx", {"patch": 16, "channel_axis": 0, "roi": "c=1,z=3:33"}),
        ("czyx", {"patch": (16, 16), "roi": "1,5:9,:,:"}),
        ("yx", {"patch": 64, "memory_limit": "900MiB"}),
        ("yx", {"patch": {"y": 30}, "stride": 30}),
    ],
)
def test_a_saved_job_gives_the_same_plan_again(images, tmp_path, name, options):
    options = {"memory_limit": "2GiB", "workers": 2, "dtype": "uint16", **options}
    plan = volpatch.plan(
        images / name, tmp_path / "out.zarr", func="gaussian", finalize=None, **options
    )
    job.save(plan, tmp_path / "job.json")
    saved = job.load(tmp_path / "job.json")
    assert saved == json.loads(json.dumps(job.to_json(plan)))
    again = volpatch.plan(
        saved["source"], saved["target"], level=saved["level"], func="gaussian", **saved["options"]
    )
    same = {"options": {}, "free_disk": 0, "held": 0}  # what differs from one moment to the next
    assert replace(again, **same) == replace(plan, **same)
    assert boxes(again) == boxes(plan)
    for word in ("codec", "out_channels"):
        assert saved["options"][word] == again.options[word]
    assert job.to_json(again)["options"] == saved["options"]


def test_a_damaged_or_foreign_job_is_refused(tmp_path):
    path = tmp_path / "job.json"
    for text, message in [
        ("{", "is no readable job file"),
        ("[]", "is no job file of this volpatch"),
        ('{"volpatch_job": 99}', "is no job file of this volpatch"),
    ]:
        path.write_text(text)
        with pytest.raises(SettingError, match=message):
            job.load(path)
    with pytest.raises(SettingError, match="is no readable job file"):
        job.load(tmp_path / "none.json")


def test_what_has_no_name_cannot_be_saved(images, tmp_path):
    plan = volpatch.plan(images / "zyx", func=np.sqrt, patch=16)
    with pytest.raises(SettingError, match=r"func cannot be saved .* give its name"):
        job.save(plan, tmp_path / "job.json")
    plan = volpatch.plan(images / "zyx", patch=16, window=np.hamming)
    with pytest.raises(SettingError, match="window function cannot be saved"):
        job.save(plan, tmp_path / "job.json")
    assert not (tmp_path / "job.json").exists()


def test_a_plan_tells_the_essentials():
    plan = volpatch.plan(
        stored((512, 600, 700), chunks=64),
        "out.zarr",
        patch=64,
        chunks=64,
        shards=128,
        dtype="uint16",
        memory_limit="1GiB",
        workers=2,
    )
    short = repr(plan)
    for words in (
        "z=512 y=600 x=700 uint16",
        "512 x 600 x 700 uint16",
        "chunks (64, 64, 64), shards (128, 128, 128)",
        "patch",
        "window hann, edge shift",
        f"{plan.patches_owned:,} needed, {plan.patches_computed:,} computed",
        f"redundancy {plan.redundancy:.2f}; 8.0 calls per voxel",
        f"{plan.n_regions} of {' x '.join(map(str, plan.region))}",
        "2 of 2 threads",
        f"(x{plan.read_amplification:.2f})",
        "under the limit of 1.0 GiB",
        "dtype assumed",
    ):
        assert words in short
    long = plan.explain()
    assert long.startswith(short)
    assert all(term in long for term in plan.memory)
    assert max(len(line) for line in long.splitlines() if "out.zarr" not in line) <= 100


def test_figures_are_plain_json():
    plan = volpatch.plan(stored((96, 96, 96)), patch=16, dtype="uint16")
    figures = json.loads(json.dumps(plan.to_json()))
    assert figures["patches_needed"] == plan.patches_owned
    assert figures["peak_bytes"] == plan.peak <= figures["memory_limit_bytes"]
    assert figures["peak_bytes"] == figures["interpreter_bytes"] + (
        figures["workers"] * figures["peak_bytes_per_worker"]
    )
    assert sum(figures["memory_bytes_per_worker"].values()) == figures["peak_bytes_per_worker"]
    assert figures["output_dtype"] is None


def test_edges_of_regions_are_multiples_of_the_stride_where_that_can_be_had():
    for stride, unit in itertools.product([16, 32], [32, 64]):
        plan = volpatch.plan(
            stored((1000, 1000, 1000)),
            patch=64,
            stride=stride,
            chunks=unit,
            dtype="uint16",
            workers=2,
            memory_limit="1GiB",
        )
        assert all(r % math.lcm(stride, unit) == 0 for r in plan.region)
