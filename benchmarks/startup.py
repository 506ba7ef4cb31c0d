"""How long it takes until something happens."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.child import ROOT
from benchmarks.harness import Job, Question
from benchmarks.task import CannotError, Task

RUN = """
import tempfile, numpy, volpatch, zarr
with tempfile.TemporaryDirectory() as folder:
    zarr.create_array(folder + "/in.zarr", data=numpy.ones((64, 64, 64), "u2"))
    volpatch.run(lambda p: p, folder + "/in.zarr", folder + "/out.zarr", patch=32, dtype="uint16")
"""
COMMANDS = {
    "python, nothing": ["-c", "pass"],
    "volpatch --help": ["-m", "volpatch", "--help"],
    "volpatch run --help": ["-m", "volpatch", "run", "--help"],
    "import volpatch": ["-c", "import volpatch"],
    "from volpatch import map_patches": ["-c", "from volpatch import map_patches"],
    "first map_patches of 32³": [
        "-c",
        "import numpy, volpatch;"
        "volpatch.map_patches(lambda p: p, numpy.ones((32, 32, 32), 'f4'), 16)",
    ],
    "run of 64³": ["-c", RUN],
    "run of 64³, nothing compiled": ["-c", RUN],
    "import dask.array, zarr": ["-c", "import dask.array, zarr"],
    "import monai.inferers": ["-c", "import monai.inferers"],
    "import torchio": ["-c", "import torchio"],
    "import cubed": ["-c", "import cubed"],
    "import patchly": ["-c", "import patchly"],
}
OF_PEERS = ("import monai.inferers", "import torchio", "import cubed", "import patchly")


@dataclass(frozen=True)
class Size:
    names: Sequence[str] = tuple(COMMANDS)
    runs: int = 7


FULL = Size()
SMALL = Size(("python, nothing", "volpatch --help", "import volpatch"), 1)


def task(name: str) -> Task:
    command = [sys.executable, *COMMANDS[name]]

    def run() -> None:
        with tempfile.TemporaryDirectory() as empty:
            env = {**os.environ, "NUMBA_CACHE_DIR": empty} if name.endswith("compiled") else None
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
        if done.returncode:
            raise CannotError(done.stderr.strip().splitlines()[-1][:80])

    return Task(run, run)


def questions(size: Size) -> Iterator[Question]:
    jobs = [Job(name, "benchmarks.startup:task", {"name": name}, 1) for name in size.names]
    yield Question(
        "Start-up: a process from its beginning to its end",
        jobs,
        "runs",
        runs=size.runs,
        base="import volpatch",
    )
