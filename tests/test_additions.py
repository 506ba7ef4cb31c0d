"""What a newcomer adds: one file and its name in one list. Each is done here with a made-up one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import volpatch
from volpatch.cli.main import execute
from volpatch.functions import registry
from volpatch.functions.operation import Operation, Parameter
from volpatch.storage import open as opening

READER = '''
"""Planes of bytes, one after another, with their sizes in the name: scan.4x5x6.planes."""
import os
from dataclasses import dataclass
import numpy as np
from volpatch.core.errors import SourceError
from volpatch.storage.volume import Format, StoredAxes, make_source

@dataclass(frozen=True)
class PlanesReader:
    path: str
    shape: tuple
    metadata_files = ()
    n_files = 1

    def read(self, selection, out):
        out[...] = np.memmap(self.path, np.uint8, "r", shape=self.shape)[selection]

    def file(self, number):
        return self.path

    def file_box(self, number):
        return tuple(slice(0, n) for n in self.shape)

def open_planes(path, *, level, series, missing):
    shape = tuple(map(int, os.path.basename(path).split(".")[-2].split("x")))
    if os.path.getsize(path) != np.prod(shape):
        raise SourceError(f"{path} is truncated")
    axes = StoredAxes(("z", "y", "x"), shape, (1, *shape[1:]), None, (2.0, 1.0, 1.0),
                      (0.0,) * 3, (None,) * 3)
    return make_source(path, kind="planes of bytes", level=0, axes=axes, dtype=np.dtype("u1"),
                       reader=PlanesReader(path, shape))

FORMAT = Format("planes", lambda path: path.endswith(".planes"), open_planes)
'''

EXECUTOR = '''
"""Everything in the thread that asks: no workers at all."""
from contextlib import contextmanager
from volpatch.running.pool import Done, Failed, Ticked
from volpatch.running.worker import Worker

class Here:
    def __init__(self, worker):
        self.trial, self._worker = worker.trial, worker

    def tasks(self, more, shared, listener, workers):
        while (task := more()) is not None:
            try:
                done = self._worker.region(task, shared, tick=lambda n: listener(Ticked(n)))
            except Exception as error:
                listener(Failed(task, error))
            else:
                listener(Done(task, done))

@contextmanager
def start(plan, functions, source):
    yield Here(Worker(functions, source))
'''

WITH_EXECUTOR = """
import importlib.util, sys
from pathlib import Path

spec = importlib.util.find_spec("volpatch.core.options")
text = Path(spec.origin).read_text()
line = 'BACKENDS = ("threads", "processes")'
assert text.count(line) == 1
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
exec(compile(text.replace(line, 'BACKENDS = ("threads", "here")'), spec.origin, "exec"),
     module.__dict__)

import volpatch
import volpatch.running.executors
from volpatch.cli.main import execute

folder = sys.argv[1]
volpatch.running.executors.__path__.append(folder)
sys.exit(execute(["run", f"{folder}/in.tif", f"{folder}/out.zarr", "--apply", "gaussian",
                  "--patch", "6", "--chunks", "12", "--region", "12", "--backend", "here"]))
"""


@pytest.fixture
def volume() -> Any:
    return np.random.default_rng(0).integers(0, 255, (24, 20, 22), dtype=np.uint8)


def loaded(path: Path, text: str) -> Any:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def test_a_format_is_one_file_and_a_line_in_the_list(tmp_path, volume, monkeypatch, capsys):
    made = loaded(tmp_path / "made_up_planes.py", READER)
    monkeypatch.setattr(opening, "FORMATS", (made.FORMAT, *opening.FORMATS))
    path = tmp_path / "scan.24x20x22.planes"
    path.write_bytes(volume.tobytes())
    np.testing.assert_array_equal(volpatch.open_volume(path).values, volume)
    assert execute(["info", str(path)]) == 0
    assert "kind      planes of bytes" in capsys.readouterr().out
    report = volpatch.run("gaussian", path, tmp_path / "out.zarr", patch=6)
    wanted = volpatch.map_patches("gaussian", volume, 6)
    np.testing.assert_array_equal(volpatch.open_volume(report.target).values, wanted)
    path.write_bytes(b"short")
    with pytest.raises(volpatch.SourceError, match="is truncated"):
        volpatch.open_volume(path)


def test_an_executor_is_one_file_and_a_word_in_the_list(tmp_path, volume):
    tifffile.imwrite(tmp_path / "in.tif", volume)
    (tmp_path / "here.py").write_text(EXECUTOR)
    done = subprocess.run(
        [sys.executable, "-c", WITH_EXECUTOR, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert "8 of 8 regions" in done.stdout
    assert " here\n" in done.stdout
    found = volpatch.open_volume(tmp_path / "out.zarr").values
    np.testing.assert_array_equal(found, volpatch.map_patches("gaussian", volume, 6))


def divide(patch, by=2):
    return patch // by


def test_an_operation_is_a_function_and_an_entry_in_the_list(tmp_path, volume, monkeypatch, capsys):
    by = Parameter("by", 2, "how small (2)", lambda value: value >= 1, "at least 1")
    made = Operation("divide", divide, "a part", (by,))
    monkeypatch.setitem(registry.OPERATIONS, "divide", made)
    wanted = volpatch.map_patches(divide, volume, 6, dtype="uint8")
    np.testing.assert_array_equal(volpatch.map_patches("divide", volume, 6), wanted)
    volpatch.to_zarr(volume, tmp_path / "in.zarr")
    line = ["run", str(tmp_path / "in.zarr"), str(tmp_path / "out.zarr"), "--apply", "divide"]
    assert execute([*line, "--patch", "6", "--param", "bi=3"]) == 3
    assert "divide has no parameter 'bi'; it takes by" in capsys.readouterr().err
    assert execute([*line, "--patch", "6", "--param", "by=0"]) == 3
    assert "divide: by=0 must be at least 1" in capsys.readouterr().err
    assert execute([*line, "--patch", "6", "--param", "by=2"]) == 0
    np.testing.assert_array_equal(volpatch.open_volume(tmp_path / "out.zarr").values, wanted)
