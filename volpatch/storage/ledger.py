"""What is known of one output: its plan, and the records of what was done.

    out.zarr.volpatch/data/.volpatch/     while the output is being built
        plan.json                what determines the bytes, and the regions; made exclusively
        records/*.log            one file per process, a line per event with its own checksum
    out.zarr/.volpatch/          the same, when it is published

Data comes first, its record after it, with the size and SHA-256 of every object: an object
without a record is made again (the same bytes), a record without its object is not believed.
A command opens the ledger of its output once and asks it, so that repeated, late and parallel
tasks are harmless.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from volpatch.core.errors import IncompleteError, RunError
from volpatch.core.parse import show_numbers
from volpatch.storage.codec import TargetSpec
from volpatch.storage.layers import unit_key
from volpatch.storage.plan_file import PLAN, PlanFile
from volpatch.storage.records import RECORDS, Event, Recorder, RecordReader, State
from volpatch.storage.stores.local import SUFFIX, AtomicFiles, disk_errors

LISTED = 3


@dataclass(frozen=True)
class Ledger:
    """The ledger of one output, finished or not.

    Records are read from the disk for each question, since others add to them, and since those
    of a large output fill memory.

    Attributes
    ----------
    root : the output where it lies, or is built.
    file : its plan.
    stamp : of the plan's file, which another output's is not.
    """

    root: Path
    file: PlanFile
    stamp: tuple[int, int] | None = None

    @classmethod
    def open(cls, root: Path) -> Ledger | None:
        """The ledger of the output at `root`; None where there is none.

        Raises
        ------
        TargetError
            There is one, and it cannot be read or is damaged.
        """
        file = PlanFile.load(root / SUFFIX)
        return None if file is None else cls(root, file, _stamp(root))

    @classmethod
    def create(cls, root: Path, file: PlanFile, disk: AtomicFiles) -> Ledger:
        """Put a plan, unless another process was first; gives the ledger that is there."""
        begin_records(root, disk)
        folder = root / SUFFIX
        with disk_errors(folder):
            disk.put_new(folder / PLAN, file.to_bytes())
        there = cls.open(root)
        if there is None:
            raise RunError(
                f"the plan in {str(folder)!r} vanished: somebody removed the work folder; run again"
            )
        return there

    @functools.cached_property
    def spec(self) -> TargetSpec:
        """What the output looks like."""
        return TargetSpec.from_json(self.file.identity["output"])

    @property
    def folder(self) -> Path:
        """Of the plan and the records."""
        return self.root / SUFFIX

    @property
    def is_current(self) -> bool:
        """Whether this is still the ledger of what lies at `root`."""
        return self.stamp == _stamp(self.root)

    def events(self) -> Iterator[Event]:
        """All that was recorded."""
        return RecordReader(self.folder)()

    def told(self) -> State:
        """What the records say of each region; the objects are not looked at."""
        state = State(self.file.n_regions, events=RecordReader(self.folder))
        state.refresh()
        return state

    def state(self, bad: Collection[int] = ()) -> State:
        """What the records say of each region, where the objects are there with their size.

        Parameters
        ----------
        bad : units whose objects are not to be believed in until they are recorded anew.
        """
        distrusted = set(bad)

        def believe(unit: int, size: int) -> bool:
            there = 0 <= unit < self.spec.n_units and unit not in distrusted
            return there and size_is(self.root, unit_key(self.spec, unit), size)

        state = State(self.file.n_regions, believe, RecordReader(self.folder))
        state.refresh()
        distrusted.clear()
        return state

    def checksums(self, regions: Collection[int]) -> dict[int, str]:
        """SHA-256 of all units of some regions, as recorded."""
        wanted = set(regions)
        return {
            unit: checksum
            for event in self.events()
            if event["kind"] == "layer" and event["region"] in wanted
            for unit, _, checksum in event["units"]
        }

    def tell_metadata(self, files: Mapping[str, bytes], disk: AtomicFiles) -> None:
        """Record size and SHA-256 of the metadata of an output that is complete."""
        told = [[key, len(b), hashlib.sha256(b).hexdigest()] for key, b in files.items()]
        Recorder(self.folder, disk).write("commit", -1, files=told)

    def flush(self, disk: AtomicFiles) -> None:
        """Let all records, whoever wrote them, survive a power cut."""
        with disk_errors(self.folder):
            disk.flush_files(self.folder / RECORDS)

    def check_whole(self, state: State) -> None:
        """Refuse to call an output complete that lacks objects, or has some of another size.

        What is in the objects is not looked at.

        Parameters
        ----------
        state : of its regions, see `Ledger.state`.

        Raises
        ------
        IncompleteError
            Names the metadata and the regions.
        """
        left = state.left
        told = {key: size for key, (size, _) in state.metadata.items()}
        lacking = [key for key, size in told.items() if not size_is(self.root, key, size)]
        if not told and not (self.root / "zarr.json").is_file():
            lacking = ["zarr.json"]
        if not left and not lacking:
            return
        what = lacking[:LISTED]
        if left:
            count = f"{len(left)} of {self.file.n_regions} regions"
            what.append(f"objects of {count} ({show_numbers(left, LISTED)})")
        root = self.root
        raise IncompleteError(
            f"{str(root)!r} was complete, but {', '.join(what)} are missing, have another size or "
            f"have no record; `volpatch verify {root}` names all that is wrong, and `volpatch "
            f"retry {root}` makes it again"
        )


def begin_records(root: Path, disk: AtomicFiles) -> None:
    """Make a ledger's folders, where they are not there yet."""
    folder = root / SUFFIX
    with disk_errors(folder):
        disk.make_folder(folder, exist_ok=True)
        disk.make_folder(folder / RECORDS, exist_ok=True)


def _stamp(root: Path) -> tuple[int, int] | None:
    try:
        state = os.stat(root / SUFFIX / PLAN)
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns


def size_is(root: Path, key: str, size: int) -> bool:
    """Whether an object is there with the size that was recorded."""
    try:
        state = os.lstat(root / key)
    except OSError:
        return False
    return state.st_size == size and state.st_mode & 0o170000 == 0o100000
