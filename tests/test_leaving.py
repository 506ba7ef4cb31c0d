"""How a command ends: with what was left running, without streams, and without its parent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile

import volpatch

FUNCTIONS = """
import multiprocessing, os, threading, time

def linger(patch):
    if threading.active_count() < 40:
        threading.Thread(target=time.sleep, args=(900,), name="dawdler", daemon=False).start()
    return patch

def beget(patch):
    if not multiprocessing.active_children():
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(900,)).start()
    return patch

def hang(patch):
    open(f"called-{os.getpid()}", "w").close()
    time.sleep(900)

def hang_with_the_lock(patch):
    open(f"called-{os.getpid()}", "w").close()
    import ctypes
    ctypes.PyDLL(None).sleep(900)  # lets no other thread run

def vanish(patch):
    os._exit(0)
"""
PATIENCE = 120  # seconds: for a machine that is very busy


@pytest.fixture
def folder(tmp_path):
    volume = np.random.default_rng(2).integers(0, 9999, (9, 10, 11)).astype("uint16")
    tifffile.imwrite(tmp_path / "in.tif", volume)
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    return tmp_path


def words(function="identity", *more, target="out.zarr"):
    name = function if function == "identity" else f"functions.py:{function}"
    call = ["run", "in.tif", target, "--apply", name, "--patch", 4, "--dtype", "uint16", *more]
    return [sys.executable, "-m", "volpatch", *map(str, call)]


def ended(folder, *args, **more):
    return subprocess.run(
        words(*args), cwd=folder, capture_output=True, text=True, timeout=PATIENCE, **more
    )


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_a_thread_that_was_left_running_does_not_keep_a_finished_run(folder, backend):
    done = ended(folder, "linger", "--backend", backend, "--workers", 1)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == f"complete  {folder / 'out.zarr'}"
    if backend == "threads":
        assert "threads or processes that the function had left running (thread dawd" in done.stderr


def test_nor_does_a_process_that_was_left_running(folder):
    done = ended(folder, "beget")
    assert done.returncode == 0
    assert "ended 1 threads or processes that the function had left running (proc" in done.stderr
    assert volpatch.verify(folder / "out.zarr").ok


def test_a_run_that_vanished_has_no_last_line(folder):
    done = ended(folder, "vanish")
    assert done.returncode == 0  # what the function said to the system
    assert "complete" not in done.stdout
    assert not (folder / "out.zarr").exists()


def test_a_part_says_that_more_is_to_come(folder):
    small = ("--chunks", 8, "--region", 8)
    first = ended(folder, "identity", "--part", "0/2", *small)
    assert first.stdout.splitlines()[-1] == (
        "complete  not yet: part 0/2 is done, other regions are missing"
    )
    second = ended(folder, "identity", "--part", "1/2", *small)
    assert second.stdout.splitlines()[-1] == f"complete  {folder / 'out.zarr'}"


@pytest.mark.parametrize("function", ["hang", "hang_with_the_lock"])
def test_workers_end_with_a_parent_that_was_killed(folder, function):
    run = words(function, "--backend", "processes", "--workers", 1)
    parent = psutil.Popen(run, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: list(folder.glob("called-*")))
        (name,) = folder.glob("called-*")
        family = parent.children(recursive=True)
        assert int(name.name.removeprefix("called-")) in [child.pid for child in family]
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not [child for child in family if alive(child)])


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(process):
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


# -- streams -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("streams", "code", "says"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        (">/dev/full", 1, "volpatch: all is done, but the report could not be written to stdout: "),
        ("| true; exit ${PIPESTATUS[0]}", 0, ""),
    ],
)
def test_a_run_does_its_work_whoever_listens(folder, streams, code, says):
    script = f"{' '.join(words())} {streams}"
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr[: len(says)]) == (code, says), done.stderr
    assert len(done.stderr.splitlines()) == bool(says)
    assert volpatch.verify(folder / "out.zarr").ok
    assert sorted(os.listdir(folder)) == ["functions.py", "in.tif", "out.zarr"]


@pytest.mark.parametrize(
    ("streams", "code"), [(">&-", 0), (">/dev/full", 1), ("| true; exit ${PIPESTATUS[0]}", 0)]
)
def test_what_nobody_reads_is_no_defect(folder, streams, code):
    script = f"{sys.executable} -m volpatch info in.tif {streams}"
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_names_that_are_no_text_are_taken_by_all_commands(folder):
    odd = b"\xff\xfe\xc3"
    shutil.copy(folder / "in.tif", os.fsencode(folder) + b"/" + odd + b".tif")
    source, target, other = odd + b".tif", odd + b".zarr", b"other" + odd + b".zarr"
    grid = ("--apply", "identity", "--patch", "4", "--dtype", "uint16")
    script = [
        ("info", source), ("plan", source, target, *grid, "-o", odd + b".json"),
        ("run", source, target, *grid), ("run", odd + b".json", other), ("status", target),
        ("verify", target, "--deep"), ("retry", target), ("commit", target), ("clean", target),
        ("info", target), ("run", target, target + b"2", *grid),
    ]  # fmt: skip
    code = (
        "import json, sys\n"
        "from volpatch.cli import main as cli\n"
        "cli.open_streams()\n"
        "for call in json.loads(sys.stdin.read()):\n"
        "    print(call[0], cli.execute(call))\n"
    )
    calls = json.dumps([[os.fsdecode(word) for word in call] for call in script])
    env = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, input=calls.encode(), capture_output=True, env=env
    )
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()  # shown as escapes
    assert [line for line in lines if line.startswith(tuple(f"{c[0]} " for c in script))] == [
        f"{call[0]} 0" for call in script
    ]
    assert any(r"\udcff\udcfe\udcc3.zarr" in line for line in lines)
    assert volpatch.verify(Path(os.fsdecode(os.fsencode(folder) + b"/" + other))).ok


def test_an_interrupt_at_the_very_end_is_too_late(folder):
    code = (
        "import os, signal, sys\n"
        "from volpatch.cli import main as cli\n"
        "import atexit\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "sys.argv = ['volpatch', 'info', 'in.tif']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
