"""Under `python -O` all works as without: nothing that is needed may hide in an assertion."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import zarr

import volpatch
from tests.helpers_stores import image, same, store
from volpatch.storage.codec import TargetSpec
from volpatch.storage.metadata import metadata_files

# both backends, parts, shards, an output as source, and the way back from damage
SCRIPT = """
import sys
from pathlib import Path
import volpatch
from volpatch.cli import main as cli

def same(patch):
    return patch

def main():
    assert False, "assertions are off"
    grid = ["--apply", "identity", "--patch", "6", "--dtype", "uint16"]
    quiet = ["--progress", "none"]
    sharded = ["run", "in.zarr", "out.zarr", *grid, *quiet]
    sharded += ["--chunks", "8", "--shards", "16", "--region", "16"]
    ask("plan", "in.zarr", "-o", "job.json", *grid)
    ask(*sharded, "--part", "0/2")
    ask(*sharded, "--part", "1/2")
    ask("run", "out.zarr", "again.zarr", *grid, *quiet,
        "--backend", "processes", "--workers", "1")
    ask("run", "job.json", "third.zarr", *quiet)
    shard = Path("out.zarr/scale0/image/c/0/1/0")
    shard.write_bytes(shard.read_bytes()[:-1])
    ask("verify", "out.zarr", "--deep", code=4)
    ask("retry", "out.zarr")
    ask("verify", "out.zarr", "--deep")
    ask("status", "out.zarr")
    lazy = volpatch.map_patches(same, volpatch.open_volume("out.zarr"), 6, dtype="uint16")
    volpatch.to_zarr(lazy, "lazy.zarr")

def ask(*words, code=0):
    if cli.execute(words) != code:
        sys.exit(f"{words} did not end with {code}")

if __name__ == "__main__":
    main()
"""


def test_runs_parts_and_repairs_work_without_assertions(tmp_path):
    volume = np.random.default_rng(4).integers(1, 60_000, (17, 20, 19)).astype("uint16")
    store(tmp_path / "in.zarr", volume, 8)
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-O", "script.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in ("out", "again", "third", "lazy"):
        same(image(tmp_path / f"{name}.zarr"), volume)
    assert sorted(n for n in os.listdir(tmp_path) if n.endswith(".zarr")) == [
        "again.zarr", "in.zarr", "lazy.zarr", "out.zarr", "third.zarr"]  # fmt: skip
    assert volpatch.verify(tmp_path / "out.zarr", deep=True).ok


@pytest.mark.skipif(not __debug__, reason="what zarr 3.1 does needs an assertion of its own")
@pytest.mark.parametrize(
    "spec",
    [
        TargetSpec((100, 90, 80), "uint16", ("z", "y", "x"), (8, 16, 16), (32, 64, 64)),
        TargetSpec(
            (3, 2, 10, 9), "float32", ("t", "c", "y", "x"), (1, 1, 16, 16), codec="blosc-lz4",
            units=(None, None, "micrometer", None), spacing=(1, 1, 0.5, 1e-9),
            attributes={"a": "ünï", "b": [1e300, None]},
        ),
    ],
    ids=["volume", "channels"],
)  # fmt: skip
def test_the_root_repeats_what_is_below_as_zarr_does(tmp_path, spec):
    files = metadata_files(spec, {"complete": True})
    for key, content in files.items():
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(content)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(zarr.storage.LocalStore(tmp_path))
    for key, content in files.items():
        assert (tmp_path / key).read_bytes() == content, key
