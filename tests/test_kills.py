"""Kill it anywhere, go on, compare every byte: with real processes and real SIGKILLs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import zarr

import volpatch
from volpatch.storage.records import RecordReader

SHAPE, PATCH, REGION = (40, 40, 48), 8, (32, 16, 48)
FUNCTION = """
import os, time
import numpy as np

calls = os.open(os.environ["CALLS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def halve(patch):
    # the first voxel's value tells which patch it is
    os.write(calls, int(patch.flat[0]).to_bytes(8, "little"))
    time.sleep(0.001)
    return patch * np.float32(0.5)
"""
LAYOUTS = {"chunks": ("--chunks", "8"), "shards": ("--chunks", "8", "--shards", "16")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A volume whose voxels are numbered, and a function that writes down what it was given."""
    folder = tmp_path_factory.mktemp("kills")
    numbers = np.arange(np.prod(SHAPE), dtype=np.uint32).reshape(SHAPE)
    zarr.create_array(folder / "in.zarr", data=numbers, chunks=(16, 16, 16))
    (folder / "halving.py").write_text(FUNCTION)
    return folder


def start(folder, target, layout, *more):
    """The command in a process group of its own."""
    words = ["run", "in.zarr", target, "--apply", "halving.py:halve", "--patch", str(PATCH)]
    words += ["--region", ",".join(map(str, REGION)), "--workers", "2", "--progress", "none"]
    return subprocess.Popen(
        [sys.executable, "-m", "volpatch", *words, *LAYOUTS[layout], *more],
        cwd=folder,
        env={**os.environ, "CALLS": str(folder / f"{target}.calls")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process):
    _, said = process.communicate(timeout=120)
    return process.returncode, said.decode()


def kill(process):
    """End a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def tree(root):
    """All that a reader of the output may look at."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".volpatch" not in path.relative_to(root).parts
    }


@pytest.fixture(scope="module")
def reference(place):
    """What runs that nobody disturbs give, and how long one of them takes."""
    found = {}
    for layout in LAYOUTS:
        begin = time.monotonic()
        assert finish(start(place, f"{layout}.zarr", layout)) == (0, "")
        found[layout] = tree(place / f"{layout}.zarr"), time.monotonic() - begin
    return found


def gaps(folder, target):
    """Boxes of voxels that the records do not vouch for, one a region; None without a plan."""
    ledger = folder / f"{target}.volpatch" / "data" / ".volpatch"
    if not (ledger / "plan.json").exists():
        return None
    output = json.loads((ledger / "plan.json").read_text())["identity"]["output"]
    unit = output["shards"] or output["chunks"]
    grid = [-(-n // u) for n, u in zip(SHAPE, unit, strict=True)]
    there = {
        number
        for event in RecordReader(ledger)()
        if event["kind"] == "layer"
        for number, _, _ in event["units"]
    }
    boxes = []
    for place in product(*(range(0, n, r) for n, r in zip(SHAPE, REGION, strict=True))):
        ranges = [
            range(a // u, -(-min(a + r, n) // u))
            for a, r, n, u in zip(place, REGION, SHAPE, unit, strict=True)
        ]
        lacking = [p for p in product(*ranges) if np.ravel_multi_index(p, grid) not in there]
        if lacking:
            spans = list(zip(zip(*lacking, strict=True), unit, strict=True))
            low = [min(axis) * u for axis, u in spans]
            high = [(max(axis) + 1) * u for axis, u in spans]
            boxes.append((low, high))
    return boxes


def called(folder, target, since=0):
    """Starts of the patches that the function was given, in order."""
    path = folder / f"{target}.calls"
    numbers = np.frombuffer(path.read_bytes(), "<u8") if path.exists() else np.zeros(0, "<u8")
    return np.stack(np.unravel_index(numbers[since:].astype(int), SHAPE), 1)


def touches(patch, box):
    return all(p < b and p + PATCH > a for p, a, b in zip(patch, *box, strict=True))


def storm(folder, target, layout, modes, rng, kills, seconds):
    """Kill runs at random moments, `kills` times at least; returns how often each was killed."""
    killed = 0
    while killed < kills:
        before, since = gaps(folder, target), len(called(folder, target))
        if (folder / target).exists():
            break
        words = rng.choice(modes)
        running = [start(folder, target, layout, *more) for more in words]
        if rng.random() < 0.8:  # much of its life a process imports; more is at stake later
            while len(called(folder, target)) == since and any(p.poll() is None for p in running):
                time.sleep(0.005)
            time.sleep(rng.random() * 0.4 * seconds)
        else:
            time.sleep(rng.random() * seconds)
        for process in running:
            if process.poll() is None:
                process.kill()  # its workers may live on for a moment, and write
                killed += 1
        time.sleep(rng.random() * 0.05)
        for process in running:
            kill(process)
        if before is not None:
            for patch in called(folder, target, since):
                assert any(touches(patch, box) for box in before), (patch, before)
    return killed


def settle(folder, target, layout):
    """Go on undisturbed until all is done."""
    if not (folder / target).exists():
        assert finish(start(folder, target, layout)) == (0, "")
    assert volpatch.verify(folder / target, deep=True).ok


SINGLE = [[("--backend", "threads")], [("--backend", "processes")]]
PARTS = [
    [("--part", f"{i}/3") for i in range(3)],
    [("--part", "1/2"), ("--part", "1/2"), ("--part", "0/2", "--backend", "processes")],
    [(), ()],
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_runs_go_on_to_the_same_bytes(place, reference, layout):
    rng = random.Random(layout)
    wanted, seconds = reference[layout]
    target = f"sample-{layout}.zarr"
    assert storm(place, target, layout, [*SINGLE, *PARTS[:2]], rng, 5, seconds) >= 3
    settle(place, target, layout)
    assert tree(place / target) == wanted
    assert not (place / f"{target}.volpatch").exists()


@pytest.mark.slow
def test_three_hundred_kills_change_no_byte(place, reference):
    rng, killed, runs = random.Random(7), 0, 0
    while killed < 300:
        layout = rng.choice(list(LAYOUTS))
        wanted, seconds = reference[layout]
        target = f"storm-{runs}.zarr"
        killed += storm(place, target, layout, [*SINGLE, *PARTS], rng, rng.randint(3, 12), seconds)
        runs += 1
        settle(place, target, layout)
        assert tree(place / target) == wanted
    print(f"{killed} kills over {runs} outputs")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_a_signal_ends_a_run_that_can_go_on(place, reference, number, backend):
    target = f"{backend}-{number}.zarr"
    running = start(place, target, "chunks", "--backend", backend)
    while not gaps(place, target) and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(number)
    code, said = finish(running)
    assert code in (128 + number, 0)
    assert "Traceback" not in said
    settle(place, target, "chunks")
    assert tree(place / target) == reference["chunks"][0]


def test_a_stopped_worker_that_wakes_after_the_end_does_no_harm(place, reference):
    target = "zombie.zarr"
    late = start(place, target, "chunks", "--part", "0/1")
    while not gaps(place, target) and late.poll() is None:
        time.sleep(0.005)
    os.killpg(late.pid, signal.SIGSTOP)
    settle(place, target, "chunks")
    os.killpg(late.pid, signal.SIGCONT)
    code, said = finish(late)
    assert (code, said) == (0, "")
    assert tree(place / target) == reference["chunks"][0]
    assert not Path(place / f"{target}.volpatch").exists()
