"""Look at an output, finished or not, by its records: how far it is, and whether it is sound."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volpatch.core import resources as machine
from volpatch.core import tables
from volpatch.core.errors import IncompleteError, RunError
from volpatch.core.parse import show_numbers
from volpatch.report.progress import show_seconds
from volpatch.running.inflight import in_flight
from volpatch.storage.files import open_file
from volpatch.storage.layers import IMAGE, unit_key
from volpatch.storage.ledger import Ledger
from volpatch.storage.metadata import completion, metadata_files
from volpatch.storage.output import Output, Stage
from volpatch.storage.records import (
    DONE,
    EMPTY,
    FAILED,
    MISSING,
    SKIPPED,
    STARTED,
    STATES,
    Event,
    State,
)

# how far back the speed of an unfinished run is looked at
RECENT_SECONDS = 600.0
LISTED = 10
_BLOCK = 2**20
UNRECORDED = "it has no record"


@dataclass
class Status:
    """How far an output is. `print(status)` for people, `to_json()` for programs.

    Attributes
    ----------
    counts : regions by state: done, skipped (all patches were), empty (no patch there),
        failed, started (under way, or broken off), missing.
    left : numbers of the regions that are not done.
    failures : the last failure of regions that failed.
    in_flight : patches that are in a call now, or were when their process died.
    patches, clipped : so far; what was computed twice counts twice.
    patches_per_second, seconds_left : by the last ten minutes of records; None if unknown.
    """

    target: str
    finished: bool
    plan_id: str
    counts: dict[str, int]
    left: Sequence[int]
    failures: list[Event] = field(default_factory=list)
    in_flight: list[dict[str, Any]] = field(default_factory=list)
    patches: int = 0
    clipped: int = 0
    patches_per_second: float | None = None
    seconds_left: float | None = None

    @property
    def regions(self) -> int:
        return sum(self.counts.values())

    @property
    def fraction(self) -> float:
        """Part of the regions that is done, 0 to 1."""
        return 1 - len(self.left) / max(1, self.regions)

    @property
    def ids(self) -> str:
        """Regions that are left, as batch systems take them: 0,3-5,9."""
        return show_numbers(self.left)

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "finished": self.finished,
            "plan": self.plan_id,
            "regions": self.regions,
            "percent": 100 * self.fraction,
            **self.counts,
            "left": list(self.left),
            "failures": self.failures,
            "in_flight": self.in_flight,
            "patches": self.patches,
            "clipped": self.clipped,
            "patches_per_second": self.patches_per_second,
            "seconds_left": self.seconds_left,
        }

    def _repr_html_(self) -> str:
        return tables.html("Status", self._rows())

    def __repr__(self) -> str:
        return tables.text(self._rows())

    def _rows(self) -> Iterator[tuple[str, str]]:
        counts = ", ".join(f"{n:,} {name}" for name, n in self.counts.items() if n)
        yield "target", f"{self.target}: {'finished' if self.finished else 'being built'}"
        yield "regions", f"{counts} of {self.regions:,}: {self.fraction:.1%}"
        yield "patches", f"{self.patches:,} computed, {self.clipped:,} values clipped"
        if self.patches_per_second is not None:
            left = "" if self.seconds_left is None else f", {show_seconds(self.seconds_left)} left"
            yield "speed", f"{self.patches_per_second:,.0f} patches/s{left}"
        if self.left:
            yield "left", f"regions {show_numbers(self.left, LISTED)}"
        for event in self.failures[:LISTED]:
            yield "failed", f"region {event['region']}: {' '.join(event['error'].split())}"
        for note in self.in_flight[:LISTED]:
            box = " x ".join(f"{a}:{b}" for a, b in zip(note["start"], note["stop"], strict=True))
            yield (
                "in call",
                f"region {note['region']}, patch {tuple(note['patch'])} at {box}: "
                f"running, or died there",
            )


def status(target: str | os.PathLike[str]) -> Status:
    """How far an output is, by its records alone; the objects are not looked at.

    Parameters
    ----------
    target : path
        What `run` was given.

    Returns
    -------
    Status

    Raises
    ------
    TargetError
        There is no output there with records.
    """
    output = Output(os.fspath(target))
    stage, ledger = output.opened()
    state, finished = ledger.told(), stage is Stage.COMPLETE
    codes = (DONE, SKIPPED, EMPTY, FAILED, STARTED, MISSING)
    tally = state.status.tally
    found = Status(
        str(output.target),
        finished,
        ledger.file.id,
        {STATES[code]: tally[code] for code in codes},
        state.left,
        [state.failures[n] for n in sorted(state.failures) if state.status[n] == FAILED],
        patches=state.patches,
        clipped=state.clipped,
    )
    if not finished:
        notes = in_flight(output.site.temp)
        there = (note for note in notes if note["region"] < ledger.file.n_regions)
        found.in_flight = [note for note in there if not state.is_done(note["region"])]
        _estimate(found, state, ledger.file.layout["patches"])
    return found


def _estimate(found: Status, state: State, patches_in_all: int) -> None:
    """Speed by the newest records, and what it lets expect."""
    if not state.times:
        return
    newest = max(when for when, _ in state.times)
    recent = [(when, n) for when, n in state.times if when > newest - RECENT_SECONDS]
    first, first_patches = min(recent)
    patches = sum(n for _, n in recent) - first_patches
    if newest > first and patches:
        found.patches_per_second = patches / (newest - first)
        left = patches_in_all * (1 - found.fraction)
        found.seconds_left = left / found.patches_per_second


# -- soundness -----------------------------------------------------------------------------


@dataclass
class Verification:
    """Whether an output is as it was written. `print` it, or look at `bad`.

    Attributes
    ----------
    bad : objects that are not as they were written, with what is wrong, by key.
    objects, bytes : looked at.
    """

    target: str
    finished: bool
    deep: bool
    bad: dict[str, str] = field(default_factory=dict)
    objects: int = 0
    bytes: int = 0

    @property
    def ok(self) -> bool:
        return not self.bad

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "ok": self.ok}

    def _repr_html_(self) -> str:
        return tables.html("Verification", self._rows())

    def __repr__(self) -> str:
        return tables.text(self._rows())

    def _rows(self) -> Iterator[tuple[str, str]]:
        how = "decoded, size and SHA-256 compared" if self.deep else "size and SHA-256 compared"
        yield "target", f"{self.target}: {'finished' if self.finished else 'being built'}"
        yield "looked at", f"{self.objects:,} objects, {self.bytes:,} bytes: {how}"
        lines = [f"{len(self.bad):,}" if self.bad else "none: all is as written"]
        lines += [f"{key}: {why}" for key, why in list(self.bad.items())[:LISTED]]
        if len(self.bad) > LISTED:
            lines.append(f"and {len(self.bad) - LISTED} more (--format json lists them)")
        yield "bad", "\n".join(lines)


def verify(target: str | os.PathLike[str], *, deep: bool = False) -> Verification:
    """Compare an output with its records, object by object.

    Parameters
    ----------
    target : path
        What `run` was given, or a copy of the finished output, under any name. Of an
        unfinished output what is recorded is looked at.
    deep : bool
        Decode every voxel too.

    Returns
    -------
    Verification

    Raises
    ------
    TargetError
        There is no output there with records, or its plan is damaged.
    """
    output = Output(os.fspath(target))
    stage, ledger = output.opened()
    found = Verification(str(output.target), stage is Stage.COMPLETE, deep)
    check_units(ledger, found)
    if found.finished:
        told = ledger.told().metadata
        for key, (size, checksum) in told.items():
            _note(found, key, fault(ledger.root / key, size, checksum), size)
        for key in metadata_files(ledger.spec, completion(ledger.file, ledger.spec)):
            found.bad.update({} if key in told else {key: UNRECORDED})
    if deep:
        _decode(ledger, found)
    found.bad = dict(sorted(found.bad.items()))
    return found


def check_units(ledger: Ledger, found: Verification) -> set[int]:
    """Note the units that are not as recorded; gives their numbers, the unrecorded included."""
    spec = ledger.spec
    if 2 * spec.n_units > machine.memory_granted():
        raise RunError(
            f"{found.target!r} has {spec.n_units:,} write units, and to check them takes two "
            f"bytes each, more than the {machine.memory_granted():,} that are free; check it on a "
            f"machine with more memory"
        )
    good: NDArray[np.bool_] = np.zeros(spec.n_units, dtype=bool)
    known = good.copy()
    whys: dict[int, str] = {}

    def look(unit: tuple[int, int, str]) -> str | None:
        return fault(ledger.root / unit_key(spec, unit[0]), *unit[1:])

    with ThreadPoolExecutor(machine.processors()) as threads:
        for event in ledger.events():
            if event["kind"] != "layer":
                continue
            there = (unit for unit in event["units"] if 0 <= unit[0] < spec.n_units)
            units = [unit for unit in there if not good[unit[0]]]
            for unit, why in zip(units, threads.map(look, units), strict=True):
                found.objects += not known[unit[0]]
                found.bytes += 0 if known[unit[0]] else unit[1]
                known[unit[0]], good[unit[0]] = True, why is None
                whys[unit[0]] = why or ""
    bad = np.flatnonzero(~good if found.finished else known & ~good).tolist()
    for unit in bad:
        found.bad[unit_key(spec, unit)] = whys.get(unit) or UNRECORDED
    return set(bad)


def _note(found: Verification, key: str, why: str | None, size: int) -> None:
    found.objects += 1
    found.bytes += size
    if why is not None:
        found.bad[key] = why


def fault(path: Path, size: int, checksum: str) -> str | None:
    """What is wrong with an object; None if it is as it was written."""
    if not os.path.lexists(path):
        return "it is missing"
    if path.is_symlink() or not path.is_file():
        return "it is not a file"
    running, seen = hashlib.sha256(), 0
    try:
        with open_file(path) as file:
            while block := file.read(_BLOCK):
                running.update(block)
                seen += len(block)
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    if seen != size:
        return f"it has {seen} bytes instead of {size}"
    return None if running.hexdigest() == checksum else "its bytes are not those that were written"


def _decode(ledger: Ledger, found: Verification) -> None:
    """Decode every write unit that is there, and note those that do not decode."""
    import zarr

    spec = ledger.spec
    metadata = ledger.root / IMAGE / "zarr.json"
    if os.path.lexists(metadata) and not metadata.is_file():
        return  # as is told already; zarr would open a named pipe, and wait
    try:
        array = zarr.open_array(zarr.storage.LocalStore(ledger.root), path=IMAGE, mode="r")
    except Exception as error:
        if found.finished:
            found.bad.setdefault(f"{IMAGE}/zarr.json", f"it cannot be opened: {error}")
        return
    for number in range(spec.n_units):
        key = unit_key(spec, number)
        if key in found.bad or not (ledger.root / key).is_file():
            continue
        position = np.unravel_index(number, spec.unit_grid)
        starts = [int(i) * u for i, u in zip(position, spec.unit, strict=True)]
        try:
            array[tuple(slice(a, a + u) for a, u in zip(starts, spec.unit, strict=True))]
        except Exception as error:
            found.bad[key] = f"it does not decode: {error or type(error).__name__}"


# -- the end -------------------------------------------------------------------------------


def commit(target: str | os.PathLike[str]) -> str:
    """Publish an output whose regions are all done; once it is published, only clear up.

    Returns
    -------
    str
        Absolute path of the output.

    Raises
    ------
    IncompleteError
        Regions are missing; the message lists them. Nothing is changed. Or the output was
        published, and lacks objects now, or has some of another size.
    TargetError
        Nothing is being built there.
    """
    return committed(target)[0]


def committed(target: str | os.PathLike[str]) -> tuple[str, bool]:
    """As `commit`; tells too whether the output was complete already."""
    output = Output(os.fspath(target))
    stage, ledger = output.opened()
    if stage is Stage.COMPLETE:
        with output.publishing():
            output.settle()
        ledger.check_whole(ledger.state())
        return str(output.target), True
    left = ledger.told().left
    if left:
        raise IncompleteError(
            f"{len(left)} of {ledger.file.n_regions} regions of {str(output.target)!r} are not "
            f"done: {show_numbers(left, 100)}. Run again, or `volpatch retry` those that failed; "
            f"then commit"
        )
    output.publish(ledger)
    return str(output.target), False


def clean(target: str | os.PathLike[str]) -> bool:
    """Remove what an unfinished run left beside the target; a finished output stays.

    Returns
    -------
    bool
        Whether there was anything.

    Raises
    ------
    TargetError
        A run is at work there, or the folder holds what volpatch did not make.
    """
    output = Output(os.fspath(target))
    with output.publishing():
        output.settle(ended=False)
    there = os.path.lexists(output.folder)
    output.discard()
    return there
