"""What a batch system or a container grants: the smallest bound counts, and 0 is none."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

import volpatch
from volpatch.core import resources as machine

VARIABLES = ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "PBS_RESC_MEM", "LSB_MAX_MEM_RUSAGE")


@pytest.fixture
def grants(monkeypatch, tmp_path):
    """A machine of 4 GiB and 4 cores without a batch system; sets variables and cgroup files."""
    for name in (*VARIABLES, "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_available", lambda: 2**32)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: range(4), raising=False)

    def grant(files=(), **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for name, text in dict(files).items():
            (tmp_path / name).write_text(text)
        return machine.memory_granted(), machine.processors()

    return grant


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("value", ["0", "", " ", "-1", "all", "4G", "2(x3)", "1e3", "²", "nan"])
def test_a_variable_that_sets_no_bound_is_none(grants, name, value):
    assert grants(**{name: value}) == (2**32, 4)


@pytest.mark.parametrize(
    ("name", "value", "memory"),
    [
        ("SLURM_MEM_PER_NODE", "1024", 2**30),
        ("SLURM_MEM_PER_CPU", "512", 2**31),  # of four
        ("PBS_RESC_MEM", "1073741824", 2**30),
        ("LSB_MAX_MEM_RUSAGE", "1048576", 2**30),
        ("SLURM_MEM_PER_NODE", "9999999", 2**32),  # more than there is
    ],
)
def test_a_bound_counts_where_it_is_the_smallest(grants, name, value, memory):
    assert grants(**{name: value}) == (memory, 4)


@pytest.mark.parametrize(
    ("value", "cores"),
    [("2", 2), ("0", 4), ("", 4), ("-3", 4), ("2(x3)", 4), ("many", 4), ("9", 4)],
)
def test_cores_of_a_task(grants, value, cores):
    assert grants(SLURM_CPUS_PER_TASK=value) == (2**32, cores)


@pytest.mark.parametrize(
    ("files", "granted"),
    [
        ({"memory.max": "max\n", "memory.current": "5\n", "cpu.max": "max 100000\n"}, (2**32, 4)),
        ({"memory.max": "1073741824\n", "memory.current": "200\n"}, (2**30 - 100, 4)),
        ({"memory.max": "1073741824\n"}, (2**30, 4)),
        ({"memory.max": "", "cpu.max": ""}, (2**32, 4)),
        ({"cpu.max": "150000 100000\n"}, (2**32, 2)),
        ({"cpu.max": "1000 100000\n"}, (2**32, 1)),
        ({"cpu.max": "150000 0\n"}, (2**32, 4)),
    ],
)
def test_what_a_container_grants(grants, files, granted):
    assert grants(files) == granted


@pytest.mark.parametrize("name", ["SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"])
def test_a_job_with_all_memory_of_its_node_is_planned(monkeypatch, tmp_path, name):
    monkeypatch.setenv(name, "0")
    tifffile.imwrite(tmp_path / "in.tif", np.ones((9, 10, 11), np.uint8))
    plan = volpatch.plan(tmp_path / "in.tif", tmp_path / "out.zarr", patch=4)
    assert plan.n_regions == 1
