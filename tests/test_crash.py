"""Ended at any point and run again, a run gives the same bytes: every crash point is tried.

See `helpers_disk` for what is modelled. A small run is traced once; each state of the disk that
a crash could leave is then laid out in the same place, looked at, and gone on with.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

import volpatch
from tests import helpers_functions as functions
from tests.helpers_disk import (
    KILLED,
    POWER_CUTS,
    Crash,
    Dead,
    Disk,
    Op,
    Trace,
    Tree,
    read_tree,
    states,
    write_tree,
)
from tests.helpers_stores import distinct, image, store
from volpatch import TargetError
from volpatch.running import repair, status
from volpatch.storage import output as target
from volpatch.storage.codec import TargetSpec
from volpatch.storage.metadata import metadata_files

SHAPE = (12, 12, 12)
PATCH, STRIDE = 6, 4
FUNCTION = "tests.helpers_functions:shade_and_tell"
TARGET = "out.zarr"
LEDGER = f"{TARGET}/.volpatch"


@dataclass(frozen=True)
class Layout:
    """How an output is divided, in voxels; two regions of two layers each."""

    name: str
    chunks: tuple[int, int, int]
    shards: tuple[int, int, int] | None
    region: tuple[int, int, int] = (16, 16, 8)

    @property
    def unit(self) -> tuple[int, int, int]:
        return self.shards or self.chunks

    @property
    def options(self) -> dict[str, Any]:
        return {"chunks": self.chunks, "shards": self.shards, "region": self.region}


CHUNKS = Layout("chunks", (8, 8, 8), None)
SHARDS = Layout("shards", (4, 8, 8), (8, 16, 8))
LAYOUTS = pytest.mark.parametrize("layout", [CHUNKS, SHARDS], ids=lambda layout: layout.name)


class Bench:
    """A folder for one target, and what is done to it."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.root = folder / "disk"
        self.target = self.root / TARGET
        self.layout = layout
        self.source = store(folder / "in.zarr", distinct(SHAPE), 8)
        self.root.mkdir()

    def run(self, **more: Any) -> volpatch.RunReport:
        words = {"window": "hann", "durability": "full", **self.layout.options, **more}
        return volpatch.run(
            FUNCTION, self.source, self.target, patch=PATCH, stride=STRIDE, workers=1,
            backend="threads", memory_limit="4GiB", **words,
        )  # fmt: skip

    def reset(self, tree: Tree) -> None:
        write_tree(self.root, tree)
        functions.told.clear()

    def crashes(self, call: Callable[[], Any], *models: str, seed: int = 0) -> Iterator[Crash]:
        """All that is left of a call that starts from what is on the disk now."""
        before = read_tree(self.root)
        with Trace(self.root) as trace:
            call()
        return states(before, trace.ops, models, seed)


def output(tree: Tree, name: str = TARGET) -> Tree:
    """What determines the voxels that a reader sees: all but the plan and the records."""
    prefix, ledger = f"{name}/", f"{name}/.volpatch/"
    return {
        path.removeprefix(prefix): data
        for path, data in tree.items()
        if path.startswith(prefix)
        and path != f"{ledger}plan.json"
        and not path.startswith(f"{ledger}records/")
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place that is quick to fill and to clear, hundreds of times."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # only modelled machines lose power
    made: dict[str, dict[str, bytes]] = {}

    def metadata(spec: TargetSpec, record: Any) -> dict[str, bytes]:
        key = repr((spec, record))
        if key not in made:
            made[key] = metadata_files(spec, record)
        return made[key]

    for module in (target, repair, status):
        monkeypatch.setattr(module, "metadata_files", metadata)
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="volpatch-", dir=memory) as name:
        yield Path(name)


@pytest.fixture
def bench(folder: Path, layout: Layout) -> Bench:
    return Bench(folder, layout)


def try_all(crashes: Iterable[Crash], check: Callable[[Crash], None]) -> int:
    """Look at all crashes, then tell the first that went wrong; gives how many there were."""
    wrong: list[tuple[Crash, BaseException]] = []
    count = 0
    for crash in crashes:
        count += 1
        try:
            check(crash)
        except (AssertionError, volpatch.VolpatchError) as error:
            wrong.append((crash, error))
    if wrong:
        told = "\n".join(f"{crash}: {error}" for crash, error in wrong[:20])
        raise AssertionError(f"{len(wrong)} of {count} crashes:\n{told}") from wrong[0][1]
    return count


def resume(bench: Bench, **more: Any) -> None:
    """Run again, as somebody does who does not know how far the last run came."""
    try:
        assert bench.run(**more).complete
    except TargetError as error:  # the old output is whole, and nothing new was begun
        if "exists, and was made by another job: window was" not in str(error):
            raise


def has_unnamed_files(folder: Path) -> bool:
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY))
    except OSError:
        return False
    return True


def check_whole(bench: Bench, wanted: Tree) -> None:
    """What is there is the output, to the byte, and nothing but the output."""
    tree = read_tree(bench.root)
    there = {path.split("/")[0] for path in tree}
    if not has_unnamed_files(bench.root):  # there, a look whether files can be made is a file
        there = {name for name in there if not name.startswith(".volpatch-")}
    assert there == {TARGET}
    got = output(tree)
    assert sorted(got) == sorted(wanted)
    assert [path for path in wanted if got[path] != wanted[path]] == []
    assert volpatch.verify(bench.target).ok


# -- what may be called: worked out from the records, without volpatch ----------------------


def recorded_units(bench: Bench, tree: Tree) -> set[tuple[int, ...]] | None:
    """Positions of units with a record and an object of that size; None where no plan is."""
    roots = [f"{TARGET}.volpatch/data", TARGET]
    root = next((root for root in roots if f"{root}/.volpatch/plan.json" in tree), None)
    if root is None:
        return None
    grid = [-(-n // u) for n, u in zip(SHAPE, bench.layout.unit, strict=True)]
    positions = list(np.ndindex(*grid))
    found = set()
    for path, data in tree.items():
        if path.startswith(f"{root}/.volpatch/records/") and data:
            for line in data.split(b"\n")[:-1]:
                text, _, check = line.rpartition(b"\t")
                assert int(check, 16) == zlib.crc32(text)
                for number, size, _ in json.loads(text).get("units", ()):
                    position = positions[number]
                    key = "/".join((root, "scale0/image/c", *map(str, position)))
                    if len(tree.get(key) or b"") == size:
                        found.add(position)
    return found


def expected_calls(bench: Bench, tree: Tree) -> Counter[int] | None:
    """First voxels of the patches that a resume calls; None where it must begin anew.

    Of each region, those that touch the bounding box of its units that lack a record.
    """
    known = recorded_units(bench, tree)
    if known is None:
        return None
    unit, region = bench.layout.unit, bench.layout.region
    lacking: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for position in np.ndindex(*(-(-n // u) for n, u in zip(SHAPE, unit, strict=True))):
        if position not in known:
            starts = [i * u for i, u in zip(position, unit, strict=True)]
            number = tuple(a // r for a, r in zip(starts, region, strict=True))
            lacking.setdefault(number, []).append(tuple(starts))
    firsts = [sorted({*range(0, n - PATCH, STRIDE), n - PATCH}) for n in SHAPE]
    volume = distinct(SHAPE)
    calls: Counter[int] = Counter()
    for missing in lacking.values():
        low = np.min(missing, axis=0)
        high = np.minimum(np.max(missing, axis=0) + unit, SHAPE)
        for first in itertools.product(*firsts):
            if all(a < h and a + PATCH > b for a, b, h in zip(first, low, high, strict=True)):
                calls[int(volume[first])] += 1
    return calls


# -- the model itself ----------------------------------------------------------------------


@LAYOUTS
def test_the_model_of_the_disk_is_the_disk(bench: Bench) -> None:
    """After every operation of a run, model and disk agree on names and bytes."""
    for overwrite in (False, True):
        disk = Disk(read_tree(bench.root))

        def compare(op: Op, disk: Disk = disk) -> None:
            disk.do(op)
            found, there = disk.tree(), read_tree(bench.root)
            assert sorted(found) == sorted(there), op
            # notes of calls in flight are not traced: nothing depends on them
            changed = {path for path, data in found.items() if data != there[path]}
            assert not {path for path in changed if "/flight-" not in path}, op

        with Trace(bench.root, compare):
            bench.run(overwrite=overwrite)
        assert len(output(read_tree(bench.root))) > 10


def test_no_change_goes_past_the_trace(tmp_path: Path) -> None:
    """Python's own auditing sees no change of a file that the trace did not see."""
    bench, seen, watching = Bench(tmp_path, SHARDS), Counter(), [False]
    kinds = {"os.rename": "rename", "os.link": "link", "os.remove": "unlink", "os.mkdir": "mkdir",
             "os.rmdir": "rmdir"}  # fmt: skip
    others = ("os.truncate", "os.symlink", "shutil.", "os.chmod", "os.utime", "os.setxattr")

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if not watching[0] or not str(args[0] if args else "").startswith(str(bench.root)):
            return
        if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen["open"] += 1
        elif event in kinds:
            seen[kinds[event]] += 1
        elif event.startswith(others):
            seen[event] += 1

    sys.addaudithook(audit)
    for overwrite in (False, True):
        with Trace(bench.root) as trace:
            seen.clear()
            watching[0] = True
            bench.run(overwrite=overwrite)
            watching[0] = False
        assert seen == +trace.tried
        assert seen["rename"] > 10


# -- one crash -----------------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize("durability", ["process", "full"])
def test_a_run_that_ended_anywhere_goes_on_to_the_same_bytes(bench: Bench, durability: str) -> None:
    """And calls the function for what has no record only; until then the name is not there."""
    models = POWER_CUTS if durability == "full" else (KILLED,)
    crashes = bench.crashes(lambda: bench.run(durability=durability), *models)
    wanted = output(read_tree(bench.root))

    def check(crash: Crash) -> None:
        found = output(crash.tree)
        assert not found or found == wanted, "something unfinished has the final name"
        bench.reset(crash.tree)
        resume(bench, durability=durability)
        check_whole(bench, wanted)
        calls = expected_calls(bench, crash.tree)
        assert calls is None or Counter(functions.told) == calls

    assert try_all(crashes, check) > 60


@LAYOUTS
def test_blocks_that_ended_anywhere_go_on_to_the_same_bytes(bench: Bench) -> None:
    """Their values go straight into the layers that are written."""

    def run() -> volpatch.RunReport:
        told = {"kwargs": {"sigma": 0.5}, "workers": 1, "durability": "process"}
        return volpatch.run("gaussian", bench.source, bench.target, **bench.layout.options, **told)

    crashes = bench.crashes(run, KILLED)
    wanted = output(read_tree(bench.root))
    whole = ndimage.gaussian_filter(distinct(SHAPE).astype(np.float32), 0.5)
    np.testing.assert_array_equal(image(bench.target), np.rint(whole))

    def check(crash: Crash) -> None:
        found = output(crash.tree)
        assert not found or found == wanted, "something unfinished has the final name"
        bench.reset(crash.tree)
        run()
        assert output(read_tree(bench.root)) == wanted

    assert try_all(crashes, check) > 30


@LAYOUTS
@pytest.mark.parametrize("durability", ["process", "full"])
def test_an_overwriting_run_that_ended_anywhere_leaves_the_old_or_the_new_output(
    bench: Bench, durability: str
) -> None:
    """Whole under its name, or, between two renames, whole beside it and put back by anything.

    It goes on without being allowed anew to overwrite, once the permission is on the disk.
    """
    models = POWER_CUTS if durability == "full" else (KILLED,)
    bench.run(window="triangle", durability=durability)
    old = output(read_tree(bench.root))
    crashes = list(bench.crashes(lambda: bench.run(overwrite=True, durability=durability), *models))
    new = output(read_tree(bench.root))
    assert old.keys() == new.keys()
    assert old != new
    chance = random.Random(1)

    def check(crash: Crash) -> None:
        found = output(crash.tree)
        if not found:
            assert output(crash.tree, f"{TARGET}.volpatch/old") == old, "there is none of them"
        assert found in ({}, old, new), "something unfinished has the final name"
        bench.reset(crash.tree)
        if bench.layout is SHARDS:
            volpatch.clean(bench.target)
            check_whole(bench, found or old)
            return
        resume(bench, durability=durability, overwrite=found != new and chance.random() < 0.1)
        if output(read_tree(bench.root)) == old:
            resume(bench, durability=durability, overwrite=True)
        check_whole(bench, new)

    assert try_all(crashes, check) > 60
    assert durability == "full" or any(output(crash.tree) == new for crash in crashes)


def test_what_is_left_of_a_replaced_output_is_never_put_back(
    folder: Path,
) -> None:
    """Not even when the run ended while it was removed, and then the new one was removed too."""
    bench = Bench(folder, CHUNKS)
    bench.run(window="triangle")
    old = output(read_tree(bench.root))
    crashes = bench.crashes(lambda: bench.run(overwrite=True), KILLED, *POWER_CUTS)
    new = output(read_tree(bench.root))

    def check(crash: Crash) -> None:
        kept = {path: data for path, data in crash.tree.items() if path.split("/")[0] != TARGET}
        bench.reset(kept)
        volpatch.clean(bench.target)
        assert output(read_tree(bench.root)) in ({}, old)

    assert try_all((c for c in crashes if output(c.tree) == new), check) > 10


@LAYOUTS
@pytest.mark.parametrize("models", [(KILLED,), POWER_CUTS], ids=["process", "full"])
def test_a_repair_that_ended_anywhere_is_repeated_to_the_same_bytes(
    bench: Bench, models: tuple[str, ...]
) -> None:
    durability = "process" if models == (KILLED,) else "full"
    bench.run(durability=durability)
    wanted = output(read_tree(bench.root))
    lost = ("scale0/image/c/1/0/1", "scale0/zarr.json")
    for key in lost:
        (bench.target / key).unlink()

    def repair() -> None:
        report = volpatch.retry(bench.target, workers=1, backend="threads", memory_limit="4GiB",
                                durability=durability)  # fmt: skip
        assert report.complete

    crashes = bench.crashes(repair, *models)
    assert output(read_tree(bench.root)) == wanted

    def check(crash: Crash) -> None:
        found = output(crash.tree)
        assert {key: found.get(key, wanted[key]) for key in lost} == {k: wanted[k] for k in lost}
        assert found.items() <= wanted.items()
        assert wanted.keys() - found.keys() <= set(lost)
        bench.reset(crash.tree)
        repair()
        check_whole(bench, wanted)
        assert Counter(functions.told) == expected_calls(bench, crash.tree)

    assert try_all(crashes, check) > 0


@LAYOUTS
def test_what_a_call_has_told_of_survives_a_power_cut(bench: Bench) -> None:
    """A run, an overwriting run or a repair that has returned is not undone."""

    def repair() -> None:
        (bench.target / "scale0/image/c/1/0/1").unlink()
        volpatch.retry(bench.target, workers=1, memory_limit="4GiB")

    def overwrite() -> None:
        bench.run(overwrite=True, window="triangle")

    for call in (bench.run, repair, overwrite):
        disk = Disk(read_tree(bench.root))
        with Trace(bench.root, disk.do):
            call()
        for model in POWER_CUTS:
            left = disk.tree(model, random.Random(4))
            assert output(left) == output(read_tree(bench.root)), (call, model)


def test_a_repair_that_ended_anywhere_is_not_in_the_way(folder: Path) -> None:
    """Of the same run, of its parts, of a commit, nor of parts that make another output of it."""
    bench = Bench(folder, SHARDS)
    bench.run()
    wanted = output(read_tree(bench.root))
    key = "scale0/image/c/1/0/1"
    (bench.target / key).unlink()

    def repair() -> None:
        volpatch.retry(bench.target, workers=1, memory_limit="4GiB")

    crashes = list(bench.crashes(repair, KILLED, *POWER_CUTS))

    def again(crash: Crash) -> None:
        whole = key in output(crash.tree)
        for call in (
            bench.run,
            lambda: bench.run(part="1/2"),
            lambda: volpatch.commit(bench.target),
        ):
            bench.reset(crash.tree)
            if whole:
                call()
                check_whole(bench, wanted)
            else:
                with pytest.raises(volpatch.IncompleteError, match=r"1 of 2 regions \(1\)"):
                    call()
            assert not functions.told

    def anew(crash: Crash) -> None:
        bench.reset(crash.tree)
        assert bench.run(overwrite=True, part="0/1", window="triangle").complete
        check_whole(bench, other)

    bench.run(overwrite=True, window="triangle")
    other = output(read_tree(bench.root))
    assert try_all(crashes, again) > 10
    assert try_all(crashes, anew) > 10


def test_a_run_killed_after_its_last_rename_is_complete_already(folder: Path) -> None:
    bench = Bench(folder, CHUNKS)
    bench.run(window="triangle")
    crashes = list(bench.crashes(lambda: bench.run(overwrite=True), KILLED))
    wanted = output(read_tree(bench.root))

    def check(crash: Crash) -> None:
        for call in (bench.run, lambda: bench.run(part="1/2")):
            bench.reset(crash.tree)
            report = call()
            assert report.already
            assert not functions.told
            check_whole(bench, wanted)
        bench.reset(crash.tree)
        assert volpatch.commit(bench.target) == str(bench.target)
        check_whole(bench, wanted)

    assert try_all((c for c in crashes if output(c.tree) == wanted), check) > 5


# -- several -------------------------------------------------------------------------------


def crash_twice(bench: Bench, pairs: int, seed: int) -> None:
    """Crash at a point, and at a point of what goes on from there; both are drawn."""
    chance = random.Random(seed)
    first = list(bench.crashes(bench.run, KILLED, *POWER_CUTS, seed=seed))
    wanted = output(read_tree(bench.root))
    by_first: Counter[int] = Counter(chance.randrange(len(first)) for _ in range(pairs))

    def seconds() -> Iterator[Crash]:
        for number, count in by_first.items():
            crash = first[number]
            bench.reset(crash.tree)
            again = bench.crashes(lambda: resume(bench), KILLED, *POWER_CUTS, seed=seed)
            second = list(again)
            for then in chance.sample(second, min(count, len(second))):
                yield replace(then, where=f"{then.where}, after a crash {crash}")

    def check(crash: Crash) -> None:
        found = output(crash.tree)
        assert not found or found == wanted, "something unfinished has the final name"
        bench.reset(crash.tree)
        resume(bench)
        check_whole(bench, wanted)

    try_all(seconds(), check)


@LAYOUTS
def test_a_run_that_ended_twice_goes_on_to_the_same_bytes(bench: Bench) -> None:
    crash_twice(bench, 12, seed=2)


@pytest.mark.slow
@LAYOUTS
@pytest.mark.parametrize("seed", range(100, 105))
def test_many_runs_that_ended_twice_go_on_to_the_same_bytes(bench: Bench, seed: int) -> None:
    crash_twice(bench, 200, seed)


# -- ended by an exception -----------------------------------------------------------------


def die_and_resume(bench: Bench, sample: int | None) -> None:
    """End a run from inside: what is done on the way out must not reach the disk."""
    with Trace(bench.root) as trace:
        bench.run()
    wanted = output(read_tree(bench.root))
    lifetimes = range(len(trace.ops))
    for lifetime in random.Random(3).sample(lifetimes, sample or len(lifetimes)):
        bench.reset({})
        with Trace(bench.root, lifetime=lifetime) as trace, pytest.raises(Dead):
            bench.run()
        disk = Disk({})
        for op in trace.ops:
            disk.do(op)
        there, modelled = read_tree(bench.root), disk.tree()
        for tree in (there, modelled):  # notes of calls in flight are not traced
            tree.update(dict.fromkeys((path for path in tree if "/flight-" in path), b""))
        assert there == modelled, trace.ops[-1:]
        resume(bench)
        check_whole(bench, wanted)


@LAYOUTS
def test_the_dead_leave_what_is_modelled(bench: Bench) -> None:
    die_and_resume(bench, 8)


@pytest.mark.slow
@LAYOUTS
def test_the_dead_leave_what_is_modelled_at_every_point(bench: Bench) -> None:
    die_and_resume(bench, None)
