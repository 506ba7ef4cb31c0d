"""Runs of 27 regions with 8 patches each, in this process or by the command."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

import volpatch
from tests import helpers_functions as functions
from tests.helpers_functions import MARK
from volpatch import map_patches

SHAPE = (24, 24, 24)
# 27 regions of 8 patches each
GRID = {"patch": 4, "overlap": 0, "chunks": 8, "region": 8}
HERE = {"durability": "process", "workers": 2, "memory_limit": "4GiB"}
SHADE = "tests.helpers_functions:shade"


def corner(region):
    """First voxel of a region."""
    return tuple(8 * int(i) for i in np.unravel_index(region, (3, 3, 3)))


def volume_with(marks):
    """Distinct values below `MARK`, and a mark at the first voxel of some regions."""
    volume = (np.random.default_rng(1).permutation(24**3).reshape(SHAPE) % 900).astype("uint16")
    for region, mark in marks.items():
        volume[corner(region)] = MARK + mark
    return volume


def run(function, source, target, **options):
    return volpatch.run(function, source, target, **{**GRID, **HERE, **options})


def shaded(volume):
    return map_patches(functions.shade, volume, 4, overlap=0)


def tree(folder):
    """All that lies in a folder, with content."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


def words(source, target, function, **more):
    """The command of a run."""
    given = {"apply": f"tests.helpers_functions:{function}", **GRID, **HERE, **more}
    pairs = ((f"--{k.replace('_', '-')}", v) for k, v in given.items() if v is not None)
    return ["run", source, target, "--progress", "none", *(w for pair in pairs for w in pair)]


def command(folder, *args):
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "volpatch", *map(str, args)],
        env={**os.environ, "VOLPATCH_TEST_FOLDER": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
